"""Times steps of tiny nets within `fit`: many per call, or one per call.

    KERAS_BACKEND=jax python -m benchmarks.fused_against_single

prints milliseconds per step, measured in alternation, and the ratio of the two
in a round: median, minimum and maximum. The nets are tiny, so that the cost of
a call matters.
"""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np

from keras_resnet_cifar.data.batches import ShuffledBatches
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training.compilation import compile_for_training
from keras_resnet_cifar.training.inputs import as_dataset
from keras_resnet_cifar.training.recipes import get_recipe

FUSED, STEPS, ROUNDS = 64, 512, 9
NETS = {  # side of the images, batch size, widths of the stages
    "widths 4, 8x8, batch 2": (8, 2, (4,)),
    "widths 2 and 4, 8x8, batch 4": (8, 4, (2, 4)),
    "ResNet-8, 8x8, batch 8": (8, 8, (16, 32, 64)),
}


def epoch_function(
    count: int, side: int, batch: int, widths: tuple[int, ...]
) -> Callable[[], object]:
    """Returns a function that trains an epoch, `count` steps per call."""
    model = build_resnet(
        widths=widths,
        stage_blocks=(1,) * len(widths),
        block="basic",
        input_shape=(side, side, 3),
    )
    shape = (STEPS * batch, side, side, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    data = as_dataset(model, (images, np.arange(len(images)) % 10))
    feed = ShuffledBatches(data.train, data.num_classes, batch, seed=0)
    recipe = get_recipe("onecycle", batch_size=batch, precision="float32")
    trained = compile_for_training(model, data, recipe, "float32", 0, feed)
    trained.steps_per_execution = count
    source = feed.source(trained.fused_steps)
    return lambda: trained.fit(source, shuffle=False, verbose=0)


def milliseconds(epoch: Callable[[], object]) -> float:
    begin = time.perf_counter()
    epoch()
    return (time.perf_counter() - begin) / STEPS * 1000


def main() -> None:
    print(f"{keras.backend.backend()}: {FUSED} steps per call against one")
    for name, net in NETS.items():
        epochs = [epoch_function(count, *net) for count in (1, FUSED)]
        for epoch in epochs:
            epoch()  # compiles
        rounds = [[milliseconds(e) for e in epochs] for _ in range(ROUNDS)]
        single, fused = map(statistics.median, zip(*rounds, strict=True))
        ratios = [one / many for one, many in rounds]
        print(
            f"{name}: {single:.2f} ms, fused {fused:.2f} ms; ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
