"""Backups and checkpoints, from which a run resumes to the same bits.

backup.npz holds everything that changes in training, and is written last: a run
that is killed before that repeats the steps since the previous backup, and
writes the same files again. The previous backup is kept as backup-previous.npz,
in case the newest is damaged.
"""

import json
import shutil
import time
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.files import atomic_write, check_zip
from keras_resnet_cifar.training import hosts
from keras_resnet_cifar.training.callbacks import Logs
from keras_resnet_cifar.training.recipes import Recipe, get_recipe
from keras_resnet_cifar.training.run_directory import RunDirectory
from keras_resnet_cifar.training.training_model import TrainingModel
from keras_resnet_cifar.training.variables import arrays, assign


@dataclass
class Snapshot:
    """The content of a backup.

    `run` is a `run_directory.identity`, `rows` is the history of whole epochs,
    `variables` are arrays of `resumed_variables`, and `metrics` are those of
    the epoch in progress.
    """

    run: str
    rows: list[dict]
    variables: list[np.ndarray]
    metrics: list[np.ndarray] = field(default_factory=list)

    def write(self, directory: RunDirectory) -> None:
        """Writes the backup atomically; the newest becomes the previous one."""
        named = {
            f"{group}-{index}": array
            for group in ("variables", "metrics")
            for index, array in enumerate(getattr(self, group))
        }
        state = json.dumps({"run": self.run, "rows": self.rows})
        with atomic_write(
            directory.backup, keep=directory.previous_backup
        ) as temporary:
            np.savez(temporary, state=np.array(state), **named)

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Reads a backup; raises the errors of zipfile, NumPy and JSON."""
        # If NumPy cannot read a file, it leaves it open; this `open` does not.
        with open(path, "rb") as opened:
            check_zip(path)
            file = np.load(opened, allow_pickle=False)
            state = json.loads(str(file["state"]))
            if not all(isinstance(row, dict) for row in state["rows"]):
                raise ValueError("invalid history")
            variables, metrics = (
                [file[name] for name in file.files if name.startswith(group)]
                for group in ("variables-", "metrics-")
            )
        return cls(state["run"], state["rows"], variables, metrics)


def read_snapshot(
    directory: RunDirectory, model: TrainingModel, run: str
) -> tuple[Snapshot, str | None]:
    """Returns the newest backup that can be read, and the fault of a newer one.

    The fault is one line, or `None`. Raises `InputError` if no backup can be
    read, or if it belongs to another run, net or optimizer.
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
                f"the backup {path} belongs to another run: restore the "
                "original, or start a new run"
            )
        if _shapes(snapshot.variables, snapshot.metrics) != _shapes(
            resumed_variables(model), model.metrics_variables
        ):
            raise InputError(
                f"the backup {path} is for another net or optimizer: resume "
                "with the config of the run"
            )
        return snapshot, faults[0] if faults else None
    raise InputError(f"{'; '.join(faults)}: start a new run")


def _shapes(*groups):
    return [[tuple(array.shape) for array in group] for group in groups]


def check_length(
    recipe: Recipe, epochs: int, steps_per_epoch: int, steps_done: int
) -> None:
    """Checks that a run of `epochs` can be extended to its recipe's number.

    The rates of the steps already done must not change.
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
            f"epochs={recipe.epochs}, which was {epochs}: it changes the rates "
            f"of the {recipe.schedule[0]} schedule, and {steps_done} steps "
            "have used the old ones; resume without the change, or start a new "
            "run from last.keras (init_from= of the command train)"
        )


@dataclass(eq=False)
class Backup(keras.callbacks.Callback):
    """Writes and restores backup.npz.

    `keras.callbacks.BackupAndRestore` saves weights, optimizer and epoch, but
    not the history, the metrics and the position in the epoch, and deletes its
    backup at the end.

    `run` and `rows` are those of `Snapshot`; another callback appends to
    `rows`. `interval` holds the epochs and the seconds between backups, one of
    them 0. `within_epochs` says whether an epoch can be resumed in the middle.
    """

    directory: RunDirectory
    trained: InitVar[TrainingModel]
    run: str
    rows: list[dict]
    interval: tuple[int, float]
    within_epochs: bool = True

    def __post_init__(self, trained: TrainingModel) -> None:
        super().__init__()
        self.set_model(trained)
        self._epochs = 0  # for which all files have been written
        # Metrics of the epoch in progress, while Keras resets the model's.
        self._metrics: list | None = None
        self._saved: int | None = None  # steps done at the newest backup
        self._saved_at = time.monotonic()

    def restore(self) -> str | None:
        """Restores model and history; returns the fault of `read_snapshot`."""
        snapshot, fault = read_snapshot(self.directory, self.model, self.run)
        assign(resumed_variables(self.model), snapshot.variables)
        self.rows += snapshot.rows
        self._epochs = len(self.rows)
        self._metrics = snapshot.metrics
        self._saved = self.steps_done()
        return fault

    def steps_done(self) -> int:
        """Returns the steps done since the run began."""
        return int(self.model.steps_done)

    def steps_in_epoch(self) -> int:
        """Returns the steps done of the epoch in progress."""
        return self.steps_done() - self._epochs * self.model.steps_per_epoch

    def save(self) -> None:
        """Writes the backup, unless the loss is not finite."""
        if not hosts.is_first():
            return
        if int(self.model.steps_finite) != self.steps_done():
            return
        Snapshot(
            self.run,
            self.rows[: self._epochs],
            arrays(resumed_variables(self.model)),
            self._metrics or arrays(self.model.metrics_variables),
        ).write(self.directory)
        self._saved = self.steps_done()
        self._saved_at = time.monotonic()

    def save_if_new(self) -> None:
        """Writes a backup if there were steps since the newest one."""
        self.model.swap_out_averages()
        whole = self.steps_in_epoch() == 0
        if self.steps_done() != self._saved and (whole or self.within_epochs):
            self.save()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        if self._metrics and self.steps_in_epoch():
            # `fit` has just reset the metrics of the epoch that is resumed.
            assign(self.model.metrics_variables, self._metrics)
        self._metrics = None

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if batch and self.within_epochs and self._is_due():
            self.save()

    def on_test_begin(self, logs: Logs = None) -> None:
        # `evaluate` is about to reset them.
        self._metrics = arrays(self.model.metrics_variables)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self.model.within_epoch:  # a callback ended the run
            return
        self._metrics = None
        self._epochs = epoch + 1
        every, _ = self.interval
        if (
            (every and (epoch + 1) % every == 0)
            or self._is_due()
            or not self.within_epochs
        ):
            self.save()

    def on_train_end(self, logs: Logs = None) -> None:
        self.save_if_new()

    def _is_due(self):
        _, seconds = self.interval
        return seconds and time.monotonic() - self._saved_at >= seconds


class _EpochCheckpoint(keras.callbacks.ModelCheckpoint):
    """`keras.callbacks.ModelCheckpoint` after every `every` epochs.

    Keras's `save_freq` counts batches, and starts from 0 in a resumed run.
    """

    async_safe = True  # it does nothing after a batch

    def __init__(self, filepath: Path, every: int = 1, **kwargs: Any):
        super().__init__(filepath, **kwargs)
        self.every = every

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if (epoch + 1) % self.every == 0 and not self.model.within_epoch:
            super().on_epoch_end(epoch, logs)


def checkpoints(
    directory: RunDirectory, rows: list[dict], every: int, validated: bool
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that write last.keras, best.keras, checkpoints/.

    If `validated`, best.keras must beat the validation accuracies in `rows`;
    otherwise it is a copy of last.keras. `every` is the number of epochs
    between the models in checkpoints/; 0 writes none.
    """
    # Keras formats the paths, so braces in the folder's name are doubled.
    folder = str(directory.path).replace("{", "{{").replace("}", "}}")
    pattern = RunDirectory(Path(folder))
    last = _EpochCheckpoint(pattern.last)

    def copy_last(epoch: int, logs: Logs) -> None:
        if not last.model.within_epoch:
            with atomic_write(directory.best) as temporary:
                shutil.copyfile(directory.last, temporary)

    best = keras.callbacks.LambdaCallback(on_epoch_end=copy_last)
    if validated:
        accuracies = [row["val_accuracy"] for row in rows]
        best = _EpochCheckpoint(
            pattern.best,
            monitor="val_accuracy",
            mode="max",
            save_best_only=True,
            initial_value_threshold=max(accuracies, default=None),
        )
    if not every:
        return [last, best]
    return [last, best, _EpochCheckpoint(pattern.checkpoint, every=every)]


def resumed_variables(model: TrainingModel) -> list[keras.Variable]:
    """Returns the variables that a resumed run needs, in a fixed order.

    They are weights, averages, counters and the optimizer's variables, without
    metrics and anything that is a function of the epoch or the step.
    """
    derived = [*model.metrics_variables, *model.random_states(), model.rates]
    derived.append(model.optimizer.learning_rate)
    for split in (model.source, model.held_out):
        if split:
            derived += split.variables
    ids = {id(variable) for variable in derived}
    return [
        variable
        for variable in [*model.variables, *model.optimizer.variables]
        if id(variable) not in ids
    ]
