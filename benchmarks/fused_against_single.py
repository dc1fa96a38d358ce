"""Times steps of a tiny net, many in one call against one a call.

    KERAS_BACKEND=jax python tests/fused_against_single.py

prints milliseconds a step within `fit`, in turns, and the ratio: median, least
and most over the rounds. What a call costs is seen where a step costs little.
"""

import statistics
import time

import keras
import numpy as np

from keras_resnet_cifar.data.batches import ShuffledBatches
from keras_resnet_cifar.data.load import Split, load_dataset
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training import compilation
from keras_resnet_cifar.training.recipes import get_recipe

FUSED, STEPS, ROUNDS = 64, 512, 9
NETS = {  # side of the images, batch size, widths of its stages
    "widths 4, 8x8, batch 2": (8, 2, (4,)),
    "widths 2 and 4, 8x8, batch 4": (8, 4, (2, 4)),
    "ResNet-8, 8x8, batch 8": (8, 8, (16, 32, 64)),
}


def fit_function(count, side, batch, widths):
    """A function that runs an epoch, `count` steps a call."""
    model = build_resnet(
        widths=widths,
        stage_blocks=(1,) * len(widths),
        block="basic",
        input_shape=(side, side, 3),
    )
    generator = np.random.default_rng(0)
    shape = (STEPS * batch, side, side, 3)
    images = generator.integers(0, 256, shape, "uint8")
    split = Split(images, np.arange(len(images)) % 10)
    recipe = get_recipe("onecycle", batch_size=batch, precision="float32")
    feed = ShuffledBatches(split, 10, batch, seed=0)
    compilation.steps_per_execution = lambda *_: count
    data = load_dataset("shapes")
    trained = compilation.compiled(model, data, recipe, "float32", 0, feed)
    return lambda: trained.fit(feed.source(), shuffle=False, verbose=0)


def milliseconds(fit):
    begin = time.perf_counter()
    fit()
    return (time.perf_counter() - begin) / STEPS * 1000


def main():
    print(f"{keras.backend.backend()}: {FUSED} steps a call against one")
    for name, setting in NETS.items():
        fits = [fit_function(count, *setting) for count in (1, FUSED)]
        for fit in fits:
            fit()  # compiles
        rounds = [[milliseconds(fit) for fit in fits] for _ in range(ROUNDS)]
        single, fused = map(statistics.median, zip(*rounds, strict=True))
        ratios = sorted(one / many for one, many in rounds)
        print(
            f"{name}: {single:.2f} ms, fused {fused:.2f} ms; ratio "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
