"""What the machine at hand runs best: precision, compiler, fused steps."""

import importlib.util
import os
from pathlib import Path

import keras

from keras_resnet_cifar.errors import InputError

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
    if backend == "jax":
        import jax

        return jax.default_backend() in ("gpu", "tpu")
    if backend == "torch":
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return _has_accelerator() or _cpu_multiplies_bfloat16()


def _has_accelerator():
    """Whether TensorFlow sees a GPU or TPU."""
    import tensorflow as tf

    devices = {
        device.device_type for device in tf.config.list_logical_devices()
    }
    return bool(devices & {"GPU", "TPU"})


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
    return backend == "jax" or (backend == "tensorflow" and _has_accelerator())


def steps_per_execution():
    """How many steps one compiled call runs.

    TensorFlow loops inside the graph, which saves the dispatch of each step.
    Under JAX `fused_steps.py` does so on an accelerator. On a CPU it would cost
    more than it saves: XLA's convolutions lose their threads inside of a loop
    (jax-ml/jax#12868). PyTorch runs step by step.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return 8
    return 64 if backend == "jax" and _multiplies_bfloat16() else 1


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
        if _multiplies_bfloat16() and JAX_DETERMINISTIC not in flags:
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
