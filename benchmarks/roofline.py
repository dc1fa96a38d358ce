"""The floor under the time of a train step: what this machine cannot beat.

A step needs so many floating-point operations and so many bytes; the machine
multiplies matrices and reads memory at a rate that is measured here. The longer
of the two times, as if the other were hidden behind it, is the limit.

What is assumed:

- The operations are those of the convolutions and the head (`operations.py`).
- The rate is that of the largest square matrix product, in the precision of the
  step. Convolutions of 16 channels do not reach it on any hardware; the limit
  is generous.
- Each convolution's output crosses memory five times in the compute dtype:
  written and read forward; read again backward; its gradient written and read.
  All between two convolutions (BatchNorm, ReLU, addition, shortcut) is fused
  into them, so free. Of the parameters, float32, value and momentum are read
  and written, and the gradient too.
- The bandwidth is that of reading an array that fits in no cache. Where the
  activations do fit in one, the true limit of the bytes is higher.
"""

import math
import time

import keras

from keras_resnet_cifar.models.operations import step_operations
from keras_resnet_cifar.models.resnet import leaf_layers

_CROSSINGS = 5  # of memory, by each convolution's output
_PARAMETER_CROSSINGS = 6  # value, momentum, gradient: read and written
_BYTES = {"float32": 4, "mixed_bfloat16": 2, "mixed_float16": 2}
_DTYPES = {
    "float32": "float32",
    "mixed_bfloat16": "bfloat16",
    "mixed_float16": "float16",
}


def step_costs(model, batch_size, precision):
    """Returns (operations, bytes) of one train step; see the module."""
    outputs = sum(
        math.prod(layer.output.shape[1:])
        for layer in leaf_layers(model)
        if isinstance(layer, keras.layers.Conv2D)
    )
    parameters = sum(math.prod(w.shape) for w in model.trainable_weights)
    return step_operations(model, batch_size), (
        batch_size * outputs * _CROSSINGS * _BYTES[precision]
        + parameters * _PARAMETER_CROSSINGS * 4
    )


def limit(operations, bytes_, rate, bandwidth, batch_size):
    """Images a second at the floor, and what sets it.

    Returns:
        (images a second, `"arithmetic"` or `"memory"`).
    """
    times = {"arithmetic": operations / rate, "memory": bytes_ / bandwidth}
    bound = max(times, key=times.get)
    return batch_size / times[bound], bound


def measured_rates(precision, accelerated):
    """Measures this machine, by Keras's backend and by PyTorch if it is there.

    Args:
        precision: A Keras dtype policy.
        accelerated: Whether there is a device of teraflops to fill.

    Returns:
        (operations a second, bytes a second): the better library's of each.
    """
    size, count = (8192, 1 << 28) if accelerated else (2048, 1 << 26)
    dtype = _DTYPES[precision]
    found = [_rates(*_keras_operations(size, count, dtype), size, count)]
    if _torch_measures(dtype, accelerated):
        operations = _torch_operations(size, count, dtype)
        found.append(_rates(*operations, size, count))
    return tuple(max(rates) for rates in zip(*found, strict=True))


def _rates(multiply, read, size, count):
    return 2 * size**3 / _seconds(multiply), 4 * count / _seconds(read)


def _seconds(operation, least=0.5):
    """The shortest time of an operation, repeated for `least` seconds."""
    operation()
    best, end = math.inf, time.perf_counter() + least
    while time.perf_counter() < end or best is math.inf:
        begin = time.perf_counter()
        operation()
        best = min(best, time.perf_counter() - begin)
    return best


def _keras_operations(size, count, dtype):
    """Functions that multiply matrices and add up an array, to the end."""
    ops = keras.ops
    matrix = ops.cast(ops.ones((size, size)), dtype)
    array = ops.ones((count,))

    def multiply():
        ops.convert_to_numpy(ops.matmul(matrix, matrix)[:1, :1])

    def read():
        ops.convert_to_numpy(ops.sum(array))

    return multiply, read


def _torch_measures(dtype, accelerated):
    """Whether PyTorch is there, on the same kind of device, and not slow."""
    try:
        import torch
    except ImportError:
        return False
    slow = dtype == "float16" and not accelerated  # minutes a product
    return torch.cuda.is_available() == accelerated and not slow


def _torch_operations(size, count, dtype):
    import torch

    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    array = torch.ones(count, device=device)
    return (
        lambda: torch.matmul(matrix, matrix)[0, 0].item(),
        lambda: array.sum().item(),
    )
