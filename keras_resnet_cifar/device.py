"""What the machine at hand runs best: precision, compiler, fused steps."""

import contextlib
import importlib.util
import os
import tempfile
from pathlib import Path

import keras

from keras_resnet_cifar.errors import InputError

_MOST_STEPS = 64
_CPU_OPERATIONS = {  # of about a second on two cores
    "tensorflow": 250e9,
    "jax": 50e9,
}
_ACCELERATED_OPERATIONS = 10e12  # of a second at most on one of 10 TFLOP/s

JAX_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def resolve_precision(precision):
    """Returns the Keras dtype policy's name; `"auto"` is decided here.

    `"auto"` is `mixed_bfloat16` where the hardware multiplies bfloat16: on
    accelerators, and under TensorFlow on a CPU with AVX512_BF16 or AMX, whose
    kernels oneDNN uses (XLA's CPU code does not). Elsewhere `float32`.
    """
    if precision != "auto":
        return precision
    return "mixed_bfloat16" if _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16():
    backend = keras.backend.backend()
    if backend == "torch" and has_accelerator():
        import torch

        return torch.cuda.is_bf16_supported()
    on_cpu = backend == "tensorflow" and _cpu_multiplies_bfloat16()
    return has_accelerator() or on_cpu


def _cpu_multiplies_bfloat16(cpuinfo=Path("/proc/cpuinfo")):
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux: no oneDNN bfloat16 to speak of
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


def jit_compile():
    """What `compile(jit_compile=...)` should be here.

    TensorFlow on a CPU is faster without XLA: its own kernels are oneDNN's.
    PyTorch runs eagerly: torch.compile recompiles at each layer of a Keras
    model.
    """
    backend = keras.backend.backend()
    return backend == "jax" or (backend == "tensorflow" and has_accelerator())


def accelerator_name() -> str | None:
    """Returns the name of the GPU or TPU of Keras's backend; `None` on a CPU."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        device = jax.local_devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    if backend == "torch":
        import torch

        cuda = torch.cuda.is_available()
        return torch.cuda.get_device_name() if cuda else None
    import tensorflow as tf

    for device in tf.config.list_logical_devices():
        if device.device_type in ("GPU", "TPU"):
            return _tensorflow_name(device)
    return None


def _tensorflow_name(device):
    import tensorflow as tf

    physical = tf.config.list_physical_devices(device.device_type)
    details = tf.config.experimental.get_device_details(physical[0])
    return details.get("device_name", device.device_type)


def has_accelerator() -> bool:
    """Returns whether Keras's backend runs on a GPU or TPU."""
    return accelerator_name() is not None


def steps_per_execution(operations, steps):
    """How many steps one compiled call runs: it saves the dispatch of each.

    TensorFlow loops inside the graph, `fused_steps.py` does so under JAX.
    PyTorch runs step by step. A call takes a second or so at most, for a signal
    or a backup waits until it ends. If it can be, the number divides those of
    an epoch: JAX compiles a shorter last call by itself.

    Args:
        operations: Floating-point operations of a step.
        steps: Steps of an epoch.
    """
    second = _CPU_OPERATIONS.get(keras.backend.backend())
    if second is None:
        return 1
    if has_accelerator():
        second = _ACCELERATED_OPERATIONS
    most = int(min(max(second // max(operations, 1), 1), _MOST_STEPS))
    divisors = [n for n in range(-(-most // 2), most + 1) if steps % n == 0]
    return max(divisors, default=most)


def is_out_of_memory(error):
    """Whether an exception of any backend says that memory ran out."""
    told = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(
        sign in told
        for sign in ("resource_exhausted", "resourceexhausted", "out of memory")
    )


def make_deterministic(seed):
    """Has the backend use operations that give the same bits each time.

    A CPU gives them anyway. Call it before the first computation.

    Raises:
        InputError: Under JAX on a GPU, too late in the process to ask.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.random.set_seed(seed)  # it refuses operations without one
        tf.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        if has_accelerator() and JAX_DETERMINISTIC not in flags:
            raise InputError(
                "deterministic under JAX on a GPU must be asked for before JAX "
                f"starts: set XLA_FLAGS={JAX_DETERMINISTIC}"
            )


def cache_compilations():
    """Has JAX keep what it compiles, so that a second start is quick.

    `JAX_COMPILATION_CACHE_DIR` names another place; an empty one switches it
    off.
    """
    if keras.backend.backend() != "jax":
        return
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "keras_resnet_cifar" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if importlib.util.find_spec("filelock"):  # without it, JAX keeps nothing
        jax.config.update("jax_compilation_cache_max_size", 2**30)
    # The initializers too: some sixty small ones, seconds in all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def fresh_compilations():
    """Has JAX use nothing, for the time of the context, that it has kept.

    What it compiles in there it keeps until the end of the context.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    def keep_in(folder):
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # it looks at the setting once

    held = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as folder:
        keep_in(folder)
        try:
            yield
        finally:
            keep_in(held)
