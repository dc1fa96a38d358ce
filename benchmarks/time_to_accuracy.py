"""Measures the seconds of training to an accuracy, cold and warm."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training.recipes import Recipe, get_recipe
from keras_resnet_cifar.training.train import train

SPLITS = ("validation", "test")


class StopAt(keras.callbacks.Callback):
    """Stops after the first epoch that reaches a validation accuracy.

    `result` has `seconds` from creation to the end of that epoch, or `None`;
    `first_step`, seconds to the end of the first call of the compiled step;
    `epochs` run; and the highest `accuracy`, 0 to 1.
    """

    async_safe = True  # it reads no logs of steps

    def __init__(self, target: float):
        super().__init__()
        self.target = target
        self.result: dict[str, Any] = {
            "seconds": None,
            "first_step": None,
            "accuracy": 0.0,
        }
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.result["first_step"] is None:
            self.result["first_step"] = time.perf_counter() - self._begin

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        best = max(self.result["accuracy"], float(logs["val_accuracy"]))
        self.result |= {"epochs": epoch + 1, "accuracy": best}
        if best >= self.target:
            self.result["seconds"] = time.perf_counter() - self._begin
            self.model.stop_training = True


def time_to(
    target: float,
    data: Dataset,
    arch: str,
    recipe: str | Recipe,
    split: str = "validation",
    report: Callable[[str], Any] = print,
) -> list[dict[str, Any]]:
    """Trains twice, with the same seed, until an accuracy is reached.

    The first run is cold: it compiles everything. The second is warm to the
    extent that the backend keeps compilations of the first. The time includes
    building the net and validating after each epoch, but not loading the data
    or importing libraries. No files are written.

    Published times to an accuracy evaluate the `"test"` split after each epoch.
    It then decides when to stop, so the accuracy must not be reported as a
    result. Returns `run` and `StopAt.result` of both runs.
    """
    check_target(target, split)
    if split == "test":
        data = replace(data, validation=data.test)
    if data.validation is None:
        raise InputError(
            "the data has no validation split: use load_dataset(..., "
            "validation=5000) or split='test'"
        )
    recipe = get_recipe(recipe)
    known = data.name if data.name in DATASETS else "imagenet"
    normalization = recipe.normalization or known
    runs = []
    with fresh_compilations():
        for name in ("cold", "warm"):
            stop = StopAt(target)
            keras.utils.set_random_seed(0)
            model = build_resnet(
                arch,
                num_classes=data.num_classes,
                input_shape=data.train.images.shape[1:],
                normalization=normalization,
            )
            train(model, data, recipe, callbacks=[stop], verbose=False)
            runs.append({"run": name, **stop.result})
            report(summary(runs[-1], target, split))
    return runs


@contextlib.contextmanager
def fresh_compilations() -> Iterator[None]:
    """Gives JAX an empty compilation cache within the context."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    def keep_in(folder):
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # it reads the setting once

    before = jax.config.values["jax_compilation_cache_dir"]
    with tempfile.TemporaryDirectory() as folder:
        keep_in(folder)
        try:
            yield
        finally:
            keep_in(before)


def check_target(target: float, split: str) -> None:
    """Raises `InputError` for an impossible target or an unknown split."""
    if not 0 < target <= 1:
        raise InputError(f"time_to={target}: give a fraction such as 0.94")
    if split not in SPLITS:
        raise InputError(f"split={split}: give {' or '.join(SPLITS)}")


def summary(run: dict[str, Any], target: float, split: str) -> str:
    """Returns a run as one line."""
    epochs = f"{run['epochs']} epoch{'s' if run['epochs'] > 1 else ''}"
    if run["seconds"] is None:
        return (
            f"{run['run']}: {target:.2%} on the {split} split not reached in "
            f"{epochs}, {run['accuracy']:.2%} at most"
        )
    return (
        f"{run['run']}: {run['seconds']:.1f} s to {run['accuracy']:.2%} on the "
        f"{split} split, in {epochs}; {run['first_step']:.1f} s of them to the "
        "end of the first step"
    )
