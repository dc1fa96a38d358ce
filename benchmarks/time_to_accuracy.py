"""Wall seconds that training takes to an accuracy, cold and warm."""

import dataclasses
import time

import keras

from keras_resnet_cifar.device import fresh_compilations
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training.train import train

SPLITS = ("validation", "test")


class StopAt(keras.callbacks.Callback):
    """Stops after the first epoch that reaches an accuracy.

    Args:
        target: Share of right answers on the split that `fit` validates on.

    Attributes:
        seconds: From its making to the end of that epoch; `None` if it was
            not reached.
        first_step: From its making to the end of the first call of the
            compiled step, which may be several steps.
        epochs: How many have run.
        best: The highest accuracy so far.
    """

    async_safe = True  # it reads the logs of a batch once

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.seconds = self.first_step = None
        self.epochs, self.best = 0, 0.0
        self._begin = time.perf_counter()

    def _elapsed(self):
        return time.perf_counter() - self._begin

    def on_train_batch_end(self, batch, logs=None):
        if self.first_step is None:
            float(logs["loss"])  # waits
            self.first_step = self._elapsed()

    def on_epoch_end(self, epoch, logs=None):
        self.epochs = epoch + 1
        self.best = max(self.best, float(logs["val_accuracy"]))
        if self.best >= self.target:
            self.seconds = self._elapsed()
            self.model.stop_training = True


def time_to(
    target,
    data,
    arch,
    recipe,
    split="validation",
    seed=0,
    tell=print,
    **changes,
):
    """Trains twice, a new net each time, until an accuracy is reached.

    The first run is cold: it compiles all, whatever has been kept before.
    The second is warm as far as the backend keeps what the first has compiled;
    `first_step` is what is left of it. No files are written. Building the net
    and each epoch's validation are in the time, loading the data and the
    imports are not.

    Args:
        target: Accuracy, above 0 and up to 1.
        data: A `Dataset`; its validation split is looked at, if that is
            `split`.
        arch: Name of the net.
        recipe: A name of `RECIPES` or a `Recipe`.
        split: After each epoch the net is tried on this split. That of `"test"`
            is how published times to an accuracy are taken; it chooses when to
            stop by the test split, so that what is reached is a time and no
            result.
        seed: Of the first run; the second has the next one.
        tell: A function that takes a line about each run.
        **changes: Fields of the recipe to replace.

    Returns:
        A list of two dicts: run, seconds (`None` if not reached), first_step,
        epochs, accuracy (the highest), seed.

    Raises:
        InputError: A target out of range, a split that is not there.
    """
    check_target(target, split)
    data = _looking_at(data, split)
    found = []
    with fresh_compilations():
        for index, name in enumerate(("cold", "warm")):
            run = _run(target, data, arch, recipe, seed + index, changes)
            found.append({"run": name, **run})
            tell(told(found[-1], target, split))
    return found


def _run(target, data, arch, recipe, seed, changes):
    stop = StopAt(target)
    keras.utils.set_random_seed(seed)
    model = build_resnet(
        arch,
        num_classes=data.num_classes,
        input_shape=data.train.images.shape[1:],
        normalization=data.name,
    )
    train(
        model,
        data,
        recipe,
        seed=seed,
        callbacks=[stop],
        verbose=False,
        **changes,
    )
    return {
        "seconds": stop.seconds,
        "first_step": stop.first_step,
        "epochs": stop.epochs,
        "accuracy": stop.best,
        "seed": seed,
    }


def check_target(target, split):
    """Raises `InputError` for a target or a split that cannot be."""
    if not 0 < target <= 1:
        raise InputError(
            f"--time-to {target}: give a share of 1, such as 0.94 for 94 %"
        )
    if split not in SPLITS:
        raise InputError(f"--split {split}: give {' or '.join(SPLITS)}")


def _looking_at(data, split):
    """The data with `split` as what `fit` validates on."""
    if split == "test":
        return dataclasses.replace(data, validation=data.test)
    if data.validation is None:
        raise InputError(
            "the data has no validation split: load_dataset(..., "
            "validation=5000), or look at the test split"
        )
    return data


def told(run, target, split):
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
