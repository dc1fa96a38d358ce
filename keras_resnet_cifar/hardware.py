"""What the machine at hand runs best: precision, compiler, fused steps."""

from pathlib import Path

import keras


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

    TensorFlow loops inside the graph, which saves the dispatch of each step;
    Keras loops in Python for the other backends, which saves nothing.
    """
    return 8 if keras.backend.backend() == "tensorflow" else 1
