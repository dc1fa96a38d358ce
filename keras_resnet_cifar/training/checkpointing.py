"""What a run keeps on disk while it goes on, and how it goes on from there."""

import copy
import time

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.models.saving import save_model
from keras_resnet_cifar.training.backups import Backup, save_backup
from keras_resnet_cifar.training.run_directory import write_history


class Checkpoints(keras.callbacks.Callback):
    """Keeps the run directory: models, history and the backup that resumes.

    At the end of an epoch, when a backup is due, it writes last.keras,
    best.keras (by validation accuracy; without a validation split the newest),
    history.csv and the backup; within an epoch the backup alone. The backup
    comes last and holds all that the other files are made of, so that a run
    that is killed in between writes them again. Models in checkpoints/ are
    written after each so many epochs.

    Args:
        directory: A `RunDirectory`.
        state: The `State` of the run; other callbacks add its rows before.
        published: The model of stock layers that is saved.
        trained: The `TrainingModel`.
        steps: Steps of an epoch.
        interval: An `Interval`.
        every: Epochs between models in checkpoints/; 0 keeps none.
    """

    def __init__(
        self, directory, state, published, trained, steps, interval, every=0
    ):
        super().__init__()
        self.set_model(trained)
        self.directory = directory
        self.state = state
        self.published = published
        self.steps = steps
        self.interval = interval
        self.every = every
        self._last = []  # weights of the newest whole epoch
        self._best = []
        self._best_is_new = False
        self._files_are_old = False
        self._metrics = []  # of the epoch that a resumed run goes on with
        self._unvalidated = None  # backup of an epoch before its validation
        self._saved = None  # position of the newest backup
        self._saved_at = self._written_at = time.monotonic()

    def begin(self, backup):
        """Writes a new run's first files, or goes on from a backup.

        Args:
            backup: A `Backup`; without arrays the run is new.
        """
        if not backup.variables:
            save_model(self.published, self.directory.last)
            self._save()
            return
        _assign(training_variables(self.model), backup.variables)
        self._metrics = backup.metrics
        self._best = backup.best
        self._saved = self._position()
        if self._best:  # best.keras may be of an epoch after the backup
            self._best_is_new = True
            self._write_best()
        epoch = self.state.epoch
        missing = not self.directory.checkpoint(epoch).exists()
        if self._keeps(epoch) and not self.state.step and missing:
            publish(self.model, self.published)
            self._write_checkpoint(epoch)

    def on_epoch_begin(self, epoch, logs=None):
        if self.state.step:  # `fit` has just reset the metrics
            _assign(self.model.metrics_variables, self._metrics)

    def on_train_batch_begin(self, batch, logs=None):
        if batch and self._is_late(self._saved_at):
            self._save()

    def on_test_begin(self, logs=None):
        self._unvalidated = self._backup(step=self.steps)

    def on_epoch_end(self, epoch, logs=None):
        epoch += 1
        self._unvalidated = None
        self.state.step = 0
        publish(self.model, self.published)
        self._last = [np.array(w) for w in self.published.get_weights()]
        self._files_are_old = True
        if self._is_best(epoch, logs):
            self._best = self._last
            self._best_is_new = True
        if self._keeps(epoch):
            self._write_checkpoint(epoch)
        if (
            self._is_late(self._written_at)
            or (self.interval.epochs and epoch % self.interval.epochs == 0)
            or epoch == self.params["epochs"]
            or self.model.stop_training
        ):
            self.write_files()
            self._save()

    def rescue(self):
        """Saves what is not, after a stop or a fault between two steps."""
        self.write_files()
        if self._unvalidated is not None:
            save_backup(self.directory, self._unvalidated)
        elif self._position() != self._saved:
            self._save()

    def write_files(self):
        """Writes last.keras, best.keras and the history of whole epochs."""
        if not self._files_are_old:
            return
        self.published.set_weights(self._last)
        save_model(self.published, self.directory.last)
        self._write_best()
        write_history(self.directory, self.state.rows)
        self._files_are_old = False
        self._written_at = time.monotonic()

    def _keeps(self, epoch):
        return self.every and epoch and epoch % self.every == 0

    def _write_checkpoint(self, epoch):
        path = self.directory.checkpoint(epoch)
        path.parent.mkdir(exist_ok=True)
        save_model(self.published, path)

    def _position(self):
        """Steps done since the run began."""
        return int(_array(self.model.steps_done))

    def _is_late(self, since):
        seconds = self.interval.seconds
        return seconds and time.monotonic() - since >= seconds

    def _save(self):
        if not np.isfinite(float(self.model.get_metrics_result()["loss"])):
            return  # the run is lost from here on; the backup is not
        save_backup(self.directory, self._backup())
        self._saved = self._position()
        self._saved_at = time.monotonic()

    def _backup(self, step=None):
        state = copy.deepcopy(self.state)
        done = self._position() - self.state.epoch * self.steps
        state.step = done if step is None else step
        return Backup(
            state,
            training_state(self.model),
            [_array(v) for v in self.model.metrics_variables],
            self._best,
        )

    def _write_best(self):
        if not self._best_is_new:
            return
        held = self.published.get_weights()
        self.published.set_weights(self._best)
        save_model(self.published, self.directory.best)
        self.published.set_weights(held)
        self._best_is_new = False

    def _is_best(self, epoch, logs):
        accuracy = logs.get("val_accuracy")
        best = self.state.best.get("val_accuracy")
        if None not in (accuracy, best) and accuracy <= best:
            return False
        self.state.best = {"epoch": epoch, "val_accuracy": accuracy}
        return True


def publish(training_model, model):
    """Copies the trained (or averaged) weights to the stock model."""
    with training_model.averaged():
        model.set_weights(training_model.network.get_weights())


def training_variables(model):
    """Variables that a resumed run needs: weights, counters, optimizer."""
    spared = [*model.metrics_variables, *model.random_states()]
    if model.source:
        spared += model.source.variables
    held = {id(variable) for variable in spared}
    return [
        variable
        for variable in [*model.variables, *model.optimizer.variables]
        if id(variable) not in held
    ]


def training_state(model):
    """The values of `training_variables`, as NumPy arrays."""
    return [_array(variable) for variable in training_variables(model)]


def _assign(variables, arrays):
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _array(variable):
    """A copy: under TensorFlow `numpy` may be a view of what goes on."""
    return np.array(ops.convert_to_numpy(variable.value))
