"""The setting shared by all contenders of a benchmark."""

import os
from dataclasses import dataclass

import numpy as np

from keras_resnet_cifar.training.recipes import Recipe, get_recipe

EPOCH_IMAGES, CLASSES = 50_000, 10  # as in CIFAR-10


def cores() -> set[int]:
    """Returns the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return os.sched_getaffinity(0)
    return {*range(os.cpu_count() or 1)}


@dataclass(frozen=True)
class Setting:
    """Net, recipe, data and number of steps to time.

    `precision` is a Keras dtype policy, or `"auto"`, which the first worker
    resolves. `steps` are per round, and `rounds` do not include the warm-up.
    `accelerated` says whether Keras's backend has a GPU or TPU.
    """

    arch: str = "resnet20"
    batch_size: int = 128
    precision: str = "auto"
    steps: int = 50
    rounds: int = 5
    accelerated: bool = False

    @property
    def round_epochs(self) -> int:
        """One, or as many as keep an epoch no longer than CIFAR-10's."""
        return -(-self.steps * self.batch_size // EPOCH_IMAGES)

    @property
    def epoch_steps(self) -> int:
        return max(self.steps // self.round_epochs, 1)

    @property
    def round_steps(self) -> int:
        """Steps per round in whole epochs: `steps`, or a few less."""
        return self.round_epochs * self.epoch_steps

    @property
    def round_images(self) -> int:
        return self.round_steps * self.batch_size

    @property
    def epochs(self) -> int:
        """Epochs of the schedule; a contender never reaches the last."""
        return (self.rounds + 3) * self.round_epochs

    def recipe(self) -> Recipe:
        """The recipe of `fit` and of the PyTorch loops."""
        size, precision = self.batch_size, self.precision
        return get_recipe(
            "onecycle", batch_size=size, precision=precision, epochs=self.epochs
        )

    def noise(self) -> tuple[np.ndarray, np.ndarray]:
        """One epoch of random images, uint8 `[N, 32, 32, 3]`, and labels."""
        count = self.epoch_steps * self.batch_size
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (count, 32, 32, 3), "uint8")
        return images, (np.arange(count) % CLASSES).astype("uint8")
