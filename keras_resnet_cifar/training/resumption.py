"""What must hold for a run to go on, and where it goes on."""

import numpy as np

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.training.backups import load_backup
from keras_resnet_cifar.training.checkpointing import training_variables
from keras_resnet_cifar.training.recipes import get_recipe
from keras_resnet_cifar.training.run_directory import (
    check_same,
    identity,
    other_versions,
)
from keras_resnet_cifar.training.schedules import rates_of


def read_held(directory, config, say):
    """Returns the config of a run that is resumed under `config`.

    Args:
        directory: A `RunDirectory`.
        config: What it is resumed as.
        say: Function that tells a line to the user.

    Raises:
        InputError: There is no run, or the configs do not fit.
    """
    held = directory.read_config()
    check_same(held, config)
    for line in other_versions(held, config):
        say(f"{line}: the run may not go on to the same bits")
    return held


def read_backup(directory, trained, held, recipe, steps, say):
    """Returns the `Backup` to go on from.

    Args:
        directory: A `RunDirectory`.
        trained: The compiled `TrainingModel`.
        held: The config of the run.
        recipe: The `Recipe` to go on with; its epochs may be others.
        steps: Steps of an epoch.
        say: Function that tells a line to the user.

    Raises:
        InputError: No backup can be read or fits, or the run cannot be as long
            as asked.
    """
    backup, fault = load_backup(
        directory,
        [v.shape for v in training_variables(trained)],
        [v.shape for v in trained.metrics_variables],
    )
    if backup.state.run != identity(held):
        raise InputError(
            f"the backup in {directory.path} is of another run: restore its "
            "own, or start a new run"
        )
    place = f"epoch {backup.state.epoch + 1}, step {backup.state.step + 1}"
    if fault:
        say(f"{fault}: going on from the one before, at {place}")
    _check_length(held["recipe"]["epochs"], recipe, backup.state, steps)
    return backup


def _check_length(epochs, recipe, state, steps):
    """A run may become longer if that leaves the rates of its past alone."""
    if recipe.epochs == epochs:
        return
    done = state.epoch * steps + state.step
    if recipe.epochs * steps < done:
        raise InputError(
            f"epochs={recipe.epochs}: the run is in epoch {state.epoch + 1} "
            "already; give more, or leave the option out"
        )
    before = rates_of(get_recipe(recipe, epochs=epochs), steps)[:done]
    after = rates_of(recipe, steps)[:done]
    if not np.array_equal(before, after):
        raise InputError(
            f"epochs was {epochs}, now {recipe.epochs}: the "
            f"{recipe.schedule[0]} schedule's rates depend on it, and {done} "
            "steps were done with others; leave it out, or start a new run"
        )
