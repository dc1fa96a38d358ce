"""Times three ways to pad, crop and flip each image at an offset of its own.

    python tests/crop_formulations.py

prints milliseconds a batch of 128, from bytes to floats, compiled, in turns;
and that all agree.
"""

import functools
import statistics
import time

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.device import jit_compile

PADDING, SIZE, BATCH = 4, 32, 128


def product(images, rows, columns, mirrored, dtype):
    """0/1 matrices; padding and flip come with them."""
    rows = ops.one_hot(rows - PADDING, SIZE, dtype=dtype)
    columns = ops.one_hot(columns - PADDING, SIZE, dtype=dtype)
    images = ops.einsum("nij,njwc->niwc", rows, ops.cast(images, dtype))
    return ops.einsum("nij,nhjc->nhic", columns, images)


def gather(images, rows, columns, mirrored, dtype):
    """One flat index a pixel, as `RandomPadCrop` does it."""
    side = SIZE + 2 * PADDING
    pixels = ops.reshape(_padded(images), (-1, 3))
    start = ops.arange(BATCH)[:, None, None] * side * side
    places = start + rows[:, :, None] * side + columns[:, None, :]
    return ops.cast(ops.take(pixels, places, axis=0), dtype)


def slices(images, rows, columns, mirrored, dtype):
    """A slice an image, and a flip of all that is chosen from."""
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


def compiled(function):
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=jit_compile())
    return function


def main():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (BATCH, SIZE, SIZE, 3))
    offsets = generator.integers(0, 2 * PADDING + 1, (2, BATCH, 1))
    flips = generator.integers(0, 2, (BATCH, 1)).astype(bool)
    rows = offsets[0] + np.arange(SIZE)
    columns = offsets[1] + np.where(
        flips, np.arange(SIZE)[::-1], np.arange(SIZE)
    )
    for dtype in ("float32", "bfloat16"):
        arguments = [
            ops.convert_to_tensor(pixels, "uint8"),
            *(ops.convert_to_tensor(a, "int32") for a in (rows, columns)),
            ops.convert_to_tensor(flips),
        ]
        ways = [
            compiled(functools.partial(way, dtype=dtype))
            for way in (product, gather, slices)
        ]
        results = [ops.convert_to_numpy(way(*arguments)) for way in ways]
        assert all((result == results[0]).all() for result in results)
        times = [[] for _ in ways]
        for _ in range(30):
            for way, taken in zip(ways, times, strict=True):
                begin = time.perf_counter()
                for _ in range(5):
                    result = way(*arguments)
                ops.convert_to_numpy(result)
                taken.append((time.perf_counter() - begin) / 5 * 1000)
        told = "  ".join(
            f"{name} {statistics.median(taken):.2f} ms"
            for name, taken in zip(
                ("product", "gather", "slices"), times, strict=True
            )
        )
        print(f"{keras.backend.backend()} {dtype}: {told}")


if __name__ == "__main__":
    main()
