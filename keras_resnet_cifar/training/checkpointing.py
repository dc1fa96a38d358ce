"""What a run keeps on disk so that it can be resumed to the same bits.

backup.npz holds all that changes in training, and is written last: a run that
is killed before repeats the steps since the backup, and writes the same files.
The backup before stays as backup-previous.npz, in case the newest is damaged.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.files import atomic_write, check_zip
from keras_resnet_cifar.training.callbacks import EpochCheckpoint, Logs
from keras_resnet_cifar.training.recipes import Recipe, get_recipe
from keras_resnet_cifar.training.run_directory import (
    EPOCH_PATTERN,
    Interval,
    RunDirectory,
)
from keras_resnet_cifar.training.training_model import TrainingModel

_GROUPS = ("variables", "metrics")


@dataclass
class Snapshot:
    """The content of a backup.

    Attributes:
        run: The `run_directory.identity` of the run.
        rows: The history, one dict per whole epoch.
        variables: Arrays of `resumed_variables`.
        metrics: Arrays of the metrics of the epoch in progress.
    """

    run: str
    rows: list = field(default_factory=list)
    variables: list[np.ndarray] = field(default_factory=list)
    metrics: list[np.ndarray] = field(default_factory=list)

    def write(self, directory: RunDirectory) -> None:
        """Writes the backup whole; the one before becomes the previous."""
        arrays = {
            f"{group}-{index}": array
            for group in _GROUPS
            for index, array in enumerate(getattr(self, group))
        }
        state = json.dumps({"run": self.run, "rows": self.rows})
        with atomic_write(
            directory.backup, keep=directory.previous_backup
        ) as temporary:
            np.savez(temporary, state=np.array(state), **arrays)

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Reads a backup; raises what zipfile, NumPy and JSON raise."""
        if path.exists():
            check_zip(path)
        # NumPy leaves a file open that it cannot read; this `open` does not.
        with open(path, "rb") as opened:
            file = np.load(opened, allow_pickle=False)
            snapshot = cls(**json.loads(str(file["state"])))
            for group in _GROUPS:
                count = sum(name.startswith(f"{group}-") for name in file.files)
                arrays = [file[f"{group}-{i}"] for i in range(count)]
                setattr(snapshot, group, arrays)
        if not all(isinstance(row, dict) for row in snapshot.rows):
            raise ValueError("invalid history")
        return snapshot


def read_snapshot(
    directory: RunDirectory, model: TrainingModel, run: str
) -> tuple[Snapshot, str | None]:
    """Returns the newest backup that can be read.

    Args:
        directory: Of the run.
        model: The compiled model that the backup must fit.
        run: The identity that it must have.

    Returns:
        The backup, and `None` or a line that says what is wrong with a newer
        one.

    Raises:
        InputError: None can be read, or it belongs to another run.
    """
    faults = []
    for path in (directory.backup, directory.previous_backup):
        try:
            snapshot = Snapshot.read(path)
        except FileNotFoundError:
            faults.append(f"{path} is missing")
            continue
        except Exception as error:  # zipfile, numpy and json raise their own
            faults.append(f"cannot read the backup {path} ({one_line(error)})")
            continue
        if snapshot.run != run:
            raise InputError(
                f"the backup {path} belongs to another run: restore the right "
                "one, or start a new run"
            )
        for arrays, variables in (
            (snapshot.variables, resumed_variables(model)),
            (snapshot.metrics, model.metrics_variables),
        ):
            if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
                raise InputError(
                    f"the backup {path} is of another net or optimizer: resume "
                    "with the config of the run"
                )
        return snapshot, faults[0] if faults else None
    raise InputError(f"{'; '.join(faults)}: start a new run")


def check_length(
    recipe: Recipe, epochs: int, steps_per_epoch: int, steps_done: int
) -> None:
    """Checks that a run can become as long as a recipe says.

    It is allowed if the rates of completed steps do not change.

    Args:
        recipe: The recipe to go on with.
        epochs: Epochs of the run so far planned.
        steps_per_epoch: Steps of one epoch.
        steps_done: Steps already done.

    Raises:
        InputError: It cannot.
    """
    if recipe.epochs == epochs:
        return
    if recipe.epochs * steps_per_epoch < steps_done:
        raise InputError(
            f"epochs={recipe.epochs}: the run is already in epoch "
            f"{steps_done // steps_per_epoch + 1}; give more, or resume "
            "without changing the number"
        )
    steps = np.arange(steps_done)
    before, after = (
        r.schedule_for(steps_per_epoch)(steps)
        for r in (get_recipe(recipe, epochs=epochs), recipe)
    )
    if not np.array_equal(before, after):
        raise InputError(
            f"epochs={recipe.epochs}, which was {epochs}: the rates of the "
            f"{recipe.schedule[0]} schedule depend on it, and {steps_done} "
            "steps have used the old ones; resume without the change, or start "
            "a new run"
        )


class Backup(keras.callbacks.Callback):
    """Keeps backup.npz.

    `keras.callbacks.BackupAndRestore` keeps weights, optimizer and epoch, but
    not the history, the metrics and the place within an epoch, and deletes its
    backup in the end.

    Args:
        directory: Of the run.
        model: The compiled `TrainingModel`.
        run: The identity of the run.
        rows: Its history, to which other callbacks append.
        interval: How often to write.
        within_epochs: Whether an epoch can be resumed in the middle.
    """

    def __init__(
        self,
        directory: RunDirectory,
        model: TrainingModel,
        run: str,
        rows: list,
        interval: Interval,
        within_epochs: bool = True,
    ):
        super().__init__()
        self.set_model(model)
        self.directory = directory
        self.run = run
        self.rows = rows
        self.interval = interval
        self.within_epochs = within_epochs
        self._resumed_metrics: list | None = None
        self._metrics: list | None = None  # of an epoch being validated
        self._saved: int | None = None  # steps done at the newest backup
        self._saved_at = time.monotonic()

    def restore(self, snapshot: Snapshot) -> None:
        """Puts the model into the state of a backup."""
        _assign(resumed_variables(self.model), snapshot.variables)
        self._resumed_metrics = snapshot.metrics
        self._saved = self.steps_done()

    def steps_done(self) -> int:
        """Returns the steps done since the run began."""
        return int(_array(self.model.steps_done))

    def steps_in_epoch(self) -> int:
        """Returns the steps done of the epoch in progress."""
        return self.steps_done() - len(self.rows) * self.model.steps_per_epoch

    def save(self) -> None:
        """Writes the backup, unless the loss is no longer finite."""
        if int(_array(self.model.steps_finite)) != self.steps_done():
            return
        variables = resumed_variables(self.model)
        metrics = self.model.metrics_variables
        Snapshot(
            self.run,
            self.rows,
            [_array(variable) for variable in variables],
            self._metrics or [_array(variable) for variable in metrics],
        ).write(self.directory)
        self._saved = self.steps_done()
        self._saved_at = time.monotonic()

    def save_if_new(self) -> None:
        """Writes the backup if steps were done since the newest one."""
        self.model.swap_out_averages()
        whole = self.steps_in_epoch() == 0
        if self.steps_done() != self._saved and (whole or self.within_epochs):
            self.save()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._metrics = None
        if self._resumed_metrics and self.steps_in_epoch():
            # `fit` has just reset the metrics of the epoch that is resumed.
            _assign(self.model.metrics_variables, self._resumed_metrics)
        self._resumed_metrics = None

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if batch and self.within_epochs and self._is_due():
            self.save()

    def on_test_begin(self, logs: Logs = None) -> None:
        # `evaluate` is about to reset them.
        variables = self.model.metrics_variables
        self._metrics = [_array(variable) for variable in variables]

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._metrics = None
        every = self.interval.epochs
        if (every and (epoch + 1) % every == 0) or (
            self._is_due() or not self.within_epochs
        ):
            self.save()

    def on_train_end(self, logs: Logs = None) -> None:
        self.save_if_new()

    def _is_due(self):
        seconds = self.interval.seconds
        return seconds and time.monotonic() - self._saved_at >= seconds


def checkpoints(
    directory: RunDirectory, rows: Sequence[dict], every: int, validated: bool
) -> list[EpochCheckpoint]:
    """Returns the callbacks that write last.keras, best.keras, checkpoints/.

    Args:
        directory: Of the run.
        rows: The history so far, which says what best.keras has to beat.
        every: Epochs between the models in checkpoints/; 0 keeps none.
        validated: Whether best.keras is chosen by validation accuracy;
            otherwise it is the newest.
    """
    accuracies = [row["val_accuracy"] for row in rows] if validated else []
    callbacks = [
        EpochCheckpoint(_escape_braces(directory.last)),
        EpochCheckpoint(
            _escape_braces(directory.best),
            monitor="val_accuracy",
            mode="max",
            save_best_only=validated,
            initial_value_threshold=max(accuracies, default=None),
        ),
    ]
    if every:
        pattern = f"{_escape_braces(directory.path)}/{EPOCH_PATTERN}"
        callbacks.append(EpochCheckpoint(pattern, every=every))
    return callbacks


def _escape_braces(path):
    """Returns a path that `str.format` leaves as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of the epoch in best.keras, or `{}` if there is none."""
    if not rows or "val_accuracy" not in rows[-1]:
        return rows[-1] if rows else {}
    return max(rows, key=lambda row: row["val_accuracy"])  # the first of equals


def resumed_variables(model: TrainingModel) -> list[keras.Variable]:
    """Returns the variables that a resumed run needs, in a fixed order.

    They are weights, averages, counters and the optimizer's; not the metrics,
    and nothing that is a function of the epoch or the step.
    """
    derived = [*model.metrics_variables, *model.random_states(), model.rates]
    derived.append(model.optimizer.learning_rate)
    if model.source:
        derived += model.source.variables
    ids = {id(variable) for variable in derived}
    return [
        variable
        for variable in [*model.variables, *model.optimizer.variables]
        if id(variable) not in ids
    ]


def _assign(variables, arrays):
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _array(variable):
    """Returns a copy: under TensorFlow `numpy` may be a view."""
    return np.array(ops.convert_to_numpy(variable.value))
