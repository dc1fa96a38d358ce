"""Callbacks of `train`: each epoch's record, its files, its progress line."""

import sys
import time

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.errors import Diverged
from keras_resnet_cifar.files import atomic_write
from keras_resnet_cifar.runs import save_backup, write_history


class EpochFeed(keras.callbacks.Callback):
    """Tells the feed which epoch it is: its order is a function of that."""

    def __init__(self, feed):
        super().__init__()
        self.feed = feed

    def on_epoch_begin(self, epoch, logs=None):
        self.feed.epoch = epoch


class AverageForValidation(keras.callbacks.Callback):
    """Validates the averaged weights, where a recipe averages them."""

    def on_test_begin(self, logs=None):
        self._context = self.model.averaged()
        self._context.__enter__()

    def on_test_end(self, logs=None):
        self._context.__exit__(None, None, None)


class EpochRecord(keras.callbacks.Callback):
    """Adds rate, speed and time to the logs that later callbacks see.

    `learning_rate` is that of the epoch's last step. `images_per_second`
    counts the training steps of the epoch alone, from its beginning to its
    last step: validation and saving are not in it.

    Args:
        batch_size: Images a step.
        rates: The rate at each step of the run.
    """

    async_safe = True  # it reads a clock only

    def __init__(self, batch_size, rates):
        super().__init__()
        self.batch_size = batch_size
        self.rates = rates

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()
        self._trained = None

    def on_test_begin(self, logs=None):
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        trained = (self._trained or now) - self._begin
        steps = self.params["steps"]
        logs["learning_rate"] = float(self.rates[(epoch + 1) * steps - 1])
        logs["images_per_second"] = round(steps * self.batch_size / trained, 1)
        logs["seconds"] = round(now - self._begin, 3)
        if not np.isfinite(logs["loss"]):
            raise Diverged(
                f"the loss is {logs['loss']} in epoch {epoch + 1}: try a lower "
                "learning rate or --precision float32; last.keras is of the "
                "epoch before"
            )


class StopOnNaN(keras.callbacks.TerminateOnNaN):
    """As Keras's, without holding back the next step for it."""

    async_safe = True


class HistoryRows(keras.callbacks.Callback):
    """Appends each epoch's logs to the state of the run."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def on_epoch_end(self, epoch, logs=None):
        self.state.epoch = epoch + 1
        self.state.rows.append({"epoch": epoch + 1} | logs)


class Checkpoints(keras.callbacks.Callback):
    """Keeps the run directory up to date at the end of each epoch.

    It writes last.keras, best.keras (by validation accuracy; without a
    validation split the newest), checkpoints/ every so many epochs, history.csv
    and the backup that resumes.

    Args:
        directory: A `RunDirectory`.
        state: The `State` of the run, its newest row already in it.
        published: The model of stock layers that is saved.
        every: Epochs between kept checkpoints; 0 keeps none.
    """

    def __init__(self, directory, state, published, every=0):
        super().__init__()
        self.directory = directory
        self.state = state
        self.published = published
        self.every = every

    def on_epoch_end(self, epoch, logs=None):
        epoch += 1
        publish(self.model, self.published)
        save_model(self.published, self.directory.last)
        if self._is_best(epoch, logs):
            save_model(self.published, self.directory.best)
        if self.every and epoch % self.every == 0:
            path = self.directory.checkpoint(epoch)
            path.parent.mkdir(exist_ok=True)
            save_model(self.published, path)
        write_history(self.directory.history, self.state.rows)
        save_backup(
            self.directory.backup, self.state, training_state(self.model)
        )

    def _is_best(self, epoch, logs):
        accuracy = logs.get("val_accuracy")
        best = self.state.best.get("val_accuracy")
        if None not in (accuracy, best) and accuracy <= best:
            return False
        self.state.best = {"epoch": epoch, "val_accuracy": accuracy}
        return True


class Progress(keras.callbacks.Callback):
    """One line an epoch; on a terminal it counts the steps meanwhile."""

    async_safe = True

    def __init__(self, epochs, images_per_step, stream=None):
        super().__init__()
        self.epochs = epochs
        self.images_per_step = images_per_step
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch + 1
        self._begin = self._shown = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if not self.live or now - self._shown < 0.2:
            return
        self._shown = now
        steps = self.params["steps"]
        speed = (batch + 1) * self.images_per_step / (now - self._begin)
        left = (steps - batch - 1) * self.images_per_step / speed
        bar = "=" * (20 * (batch + 1) // steps)
        self._write(
            f"\r{self._head()} [{bar:<20}] {batch + 1}/{steps}  "
            f"{_told(logs)}  {speed:,.0f} images/s  {left:.0f} s left \033[K"
        )

    def on_epoch_end(self, epoch, logs=None):
        clear = "\r\033[K" if self.live else ""
        self._write(
            f"{clear}{self._head()}  {_told(logs)}  "
            f"rate {logs['learning_rate']:.4g}  "
            f"{logs['images_per_second']:,.0f} images/s  "
            f"{logs['seconds']:.0f} s\n"
        )

    def _head(self):
        return f"epoch {self._epoch:>{len(str(self.epochs))}}/{self.epochs}"

    def _write(self, text):
        self.stream.write(text)
        self.stream.flush()


def _told(logs):
    """Loss and accuracy of both splits, as far as the logs have them."""
    parts = []
    for prefix in ("", "val_"):
        if f"{prefix}loss" in logs:
            parts.append(f"{prefix}loss {float(logs[f'{prefix}loss']):.4f}")
        if f"{prefix}accuracy" in logs:
            accuracy = 100 * float(logs[f"{prefix}accuracy"])
            parts.append(f"{prefix}accuracy {accuracy:.2f} %")
    return "  ".join(parts)


def publish(training_model, model):
    """Copies the trained (or averaged) weights to the stock model."""
    with training_model.averaged():
        model.set_weights(training_model.network.get_weights())


def save_model(model, path):
    """Saves a model as `.keras`, whole or not at all."""
    with atomic_write(path) as temporary:
        model.save(temporary)


def training_variables(model):
    """Variables that a resumed run needs: weights, random state, optimizer."""
    held = {id(variable) for variable in model.metrics_variables}
    return [
        variable
        for variable in [*model.variables, *model.optimizer.variables]
        if id(variable) not in held
    ]


def training_state(model):
    """The values of `training_variables`, as NumPy arrays."""
    return [ops.convert_to_numpy(v.value) for v in training_variables(model)]
