"""Times three ways to pad, crop and flip each image at its own offset.

    python -m benchmarks.crop_formulations

prints milliseconds per batch of 128, from bytes to floats, compiled, in
alternation, and checks that all three agree.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.device import has_accelerator

PADDING, SIZE, BATCH = 4, 32, 128


def product(images, rows, columns, mirrored, dtype):
    """0/1 matrices; they pad and flip as well."""
    rows = ops.one_hot(rows - PADDING, SIZE, dtype=dtype)
    columns = ops.one_hot(columns - PADDING, SIZE, dtype=dtype)
    images = ops.einsum("nij,njwc->niwc", rows, ops.cast(images, dtype))
    return ops.einsum("nij,nhjc->nhic", columns, images)


def gather(images, rows, columns, mirrored, dtype):
    """One flat index per pixel, as `RandomPadCrop` does it."""
    side = SIZE + 2 * PADDING
    pixels = ops.reshape(_padded(images), (-1, 3))
    start = ops.arange(BATCH)[:, None, None] * side * side
    places = start + rows[:, :, None] * side + columns[:, None, :]
    return ops.cast(ops.take(pixels, places, axis=0), dtype)


def slices(images, rows, columns, mirrored, dtype):
    """One slice per image, and a flip of the whole batch to choose from."""
    starts = ops.stack(
        [rows[:, 0], ops.min(columns, axis=1), 0 * rows[:, 0]], axis=1
    )
    cropped = ops.vectorized_map(
        lambda pair: ops.slice(pair[0], pair[1], (SIZE, SIZE, 3)),
        (_padded(images), starts),
    )
    cropped = ops.where(mirrored[:, None, None], cropped[:, :, ::-1], cropped)
    return ops.cast(cropped, dtype)


def _padded(images):
    border = (PADDING, PADDING)
    return ops.pad(images, ((0, 0), border, border, (0, 0)))


def compiled(function: Callable) -> Callable:
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=has_accelerator())
    return function


def compare(dtype: str, rounds: int = 30, calls: int = 5) -> dict[str, float]:
    """Returns the median milliseconds per batch of each way."""
    draw = np.random.default_rng(0).integers
    offsets = draw(0, 2 * PADDING + 1, (2, BATCH, 1))
    mirrored = draw(0, 2, (BATCH, 1)).astype(bool)
    pixels = np.arange(SIZE)
    columns = offsets[1] + np.where(mirrored, pixels[::-1], pixels)
    batch = [
        ops.convert_to_tensor(draw(0, 256, (BATCH, SIZE, SIZE, 3)), "uint8"),
        ops.convert_to_tensor(offsets[0] + pixels, "int32"),
        ops.convert_to_tensor(columns, "int32"),
        ops.convert_to_tensor(mirrored),
    ]
    ways = {
        way.__name__: compiled(partial(way, dtype=dtype))
        for way in (product, gather, slices)
    }
    results = [ops.convert_to_numpy(way(*batch)) for way in ways.values()]
    assert all((result == results[0]).all() for result in results)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            for _ in range(calls):
                ops.convert_to_numpy(way(*batch))  # waits
            times[name].append((time.perf_counter() - begin) / calls * 1000)
    return {name: statistics.median(taken) for name, taken in times.items()}


if __name__ == "__main__":
    for dtype in ("float32", "bfloat16"):
        medians = compare(dtype).items()
        line = "  ".join(f"{name} {ms:.2f} ms" for name, ms in medians)
        print(f"{keras.backend.backend()} {dtype}: {line}")
