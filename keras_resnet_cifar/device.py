"""Settings for the hardware: precision, compiler, steps per call."""

import importlib.util
import os
from pathlib import Path

import keras

from keras_resnet_cifar.errors import InputError

_MOST_STEPS = 64
_MOST_RESIDENT_STEPS = 4000  # on an accelerator
_CPU_OPERATIONS = {  # in about a second on two cores
    "tensorflow": 250e9,
    "jax": 50e9,
}
_ACCELERATED_OPERATIONS = 20e12  # in two seconds at 10 TFLOP/s

JAX_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# What XLA puts into CUDA graphs: its defaults, and convolutions.
_COMMAND_BUFFER = "xla_gpu_enable_command_buffer"
_COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION"


def accelerator_name() -> str | None:
    """Returns the name of the GPU or TPU in use; `None` on a CPU."""
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

    for kind in ("GPU", "TPU"):
        if tf.config.list_logical_devices(kind):
            device = tf.config.list_physical_devices(kind)[0]
            details = tf.config.experimental.get_device_details(device)
            return details.get("device_name", kind)
    return None


def has_accelerator() -> bool:
    """Returns whether Keras's backend runs on a GPU or TPU."""
    return accelerator_name() is not None


def resolve_precision(precision: str) -> str:
    """Returns the Keras dtype policy for a recipe's precision on this machine.

    `"auto"` is `"mixed_bfloat16"` if the hardware multiplies bfloat16: on
    accelerators, and under TensorFlow on a CPU with AVX512_BF16 or AMX, which
    oneDNN uses (XLA's CPU code does not). Otherwise, it is `"float32"`.
    """
    if precision != "auto":
        return precision
    return "mixed_bfloat16" if _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16():
    backend = keras.backend.backend()
    if not has_accelerator():
        return backend == "tensorflow" and _cpu_multiplies_bfloat16()
    if backend == "torch":
        import torch

        return torch.cuda.is_bf16_supported()
    return True


def _cpu_multiplies_bfloat16(cpuinfo=Path("/proc/cpuinfo")):
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


def compiler_options() -> dict[str, str]:
    """Returns XLA's options for a loop of steps under JAX; none on a CPU.

    On a GPU, convolutions become commands of CUDA graphs, so that the host
    launches one graph per step. XLA leaves them out by default, since not all
    can be captured (openxla/xla#34572); to leave them out as well, set the
    option in `XLA_FLAGS`.
    """
    import jax

    own_choice = _COMMAND_BUFFER in os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() != "gpu" or own_choice:
        return {}
    return {_COMMAND_BUFFER: _COMMANDS}


def start_cudnn() -> None:
    """Makes each GPU of this process compute a convolution under JAX.

    cuDNN cannot start while a CUDA graph is recorded. Usually, XLA has started
    it before, to choose the algorithms of convolutions, but it has no need to
    if a cache holds its choices.
    """
    import jax
    import jax.numpy as jnp

    for device in jax.local_devices():
        with jax.default_device(device):
            images = jnp.ones((8, 16, 32, 32))
            kernels = jnp.ones((16, 16, 3, 3))
            jax.lax.conv(images, kernels, (1, 1), "SAME").block_until_ready()


def steps_per_execution(
    operations: float, steps: int, resident: bool = False
) -> int:
    """Returns how many steps one compiled call should run.

    One call for many steps saves the dispatch of each: TensorFlow loops inside
    the graph, and so does `training.jax_steps` under JAX. A call should take at
    most a second on a CPU and two on an accelerator, since a signal or a backup
    waits for its end. If possible, the number divides `steps`, since JAX
    compiles a shorter last call separately.

    `operations` are the floating-point operations of a step, `steps` the steps
    of an epoch. Unless the images are `resident` on the device, a call waits
    for all of its batches and should be shorter than an epoch.
    """
    operations_of_call = _CPU_OPERATIONS.get(keras.backend.backend())
    if operations_of_call is None:  # PyTorch runs step by step
        return 1
    limit = _MOST_STEPS
    if has_accelerator():
        operations_of_call = _ACCELERATED_OPERATIONS
        limit = _MOST_RESIDENT_STEPS if resident else _MOST_STEPS
    fitting = max(operations_of_call // max(operations, 1), 1)
    most = int(min(fitting, limit, steps))
    divisors = [n for n in range(-(-most // 2), most + 1) if steps % n == 0]
    return max(divisors, default=most)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception of any backend means out of memory."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(
        sign in text
        for sign in ("resource_exhausted", "resourceexhausted", "out of memory")
    )


def make_deterministic(seed: int) -> None:
    """Makes the backend use operations that give the same bits each time.

    On a CPU, they do so anyway. Call it before the first computation. Under JAX
    on a GPU, it raises `InputError` unless `XLA_FLAGS` has the setting.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # It refuses operations without a seed, and to make a generator.
        tf.random.set_seed(seed)
        generator = tf.random.Generator.from_seed(seed)
        tf.random.set_global_generator(generator)
        tf.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    elif has_accelerator() and JAX_DETERMINISTIC not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        raise InputError(
            "deterministic=True under JAX on a GPU must be set before JAX "
            f"starts: set the variable XLA_FLAGS to {JAX_DETERMINISTIC}"
        )


def cache_compilations() -> None:
    """Makes JAX cache its compilations on disk, so that later starts are fast.

    `JAX_COMPILATION_CACHE_DIR` names another folder; an empty value switches
    the cache off.
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
    # Cache initializers, too: about sixty small ones take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
