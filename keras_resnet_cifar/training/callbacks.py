"""Callbacks of `train`: each epoch's order, record and progress line."""

import sys
import time

import keras
import numpy as np

from keras_resnet_cifar.errors import Diverged


class EpochFeed(keras.callbacks.Callback):
    """Tells the feed which epoch it is: its order is a function of that."""

    def __init__(self, feed):
        super().__init__()
        self.feed = feed

    def on_epoch_begin(self, epoch, logs=None):
        self.feed.begin(epoch)
        source = self.model.source
        if source is not None:
            source.order.assign(self.feed.order)


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
    last step: validation and saving are not in it. (After a resumption within
    an epoch, time and images since then.)

    Args:
        feed: The `ShuffledBatches`.
        rates: The rate at each step of the run.
    """

    async_safe = True  # it reads a clock only

    def __init__(self, feed, rates):
        super().__init__()
        self.feed = feed
        self.rates = rates

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()
        self._trained = None

    def on_test_begin(self, logs=None):
        int(self.model.steps_done)  # JAX has dispatched the steps: it waits
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        trained = (self._trained or now) - self._begin
        steps = self.feed.steps
        images = len(self.feed) * self.feed.batch_size
        logs["learning_rate"] = float(self.rates[(epoch + 1) * steps - 1])
        logs["images_per_second"] = round(images / trained, 1)
        logs["seconds"] = round(now - self._begin, 3)
        if not np.isfinite(logs["loss"]):
            step = int(self.model.steps_finite) - epoch * steps + 1
            kept = f"of epoch {epoch}" if epoch else "the net as it began"
            raise Diverged(
                f"the loss is {logs['loss']} from step {step} of epoch "
                f"{epoch + 1}: try a lower learning rate or --precision "
                f"float32; last.keras is {kept}"
            )


class StopOnNaN(keras.callbacks.Callback):
    """Ends the epoch once the loss is not finite; `EpochRecord` tells it."""

    async_safe = True  # it does not hold back the next step

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            # Not `self.model`, which would wait for the step in flight.
            self._model.stop_training = True


class HistoryRows(keras.callbacks.Callback):
    """Appends each epoch's logs to the state of the run."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def on_epoch_end(self, epoch, logs=None):
        self.state.epoch = epoch + 1
        self.state.rows.append({"epoch": epoch + 1} | logs)


class StopEarly(keras.callbacks.Callback):
    """Stops a run whose validation accuracy does not get better.

    It looks at the history alone: a resumed run stops at the same epoch.

    Args:
        state: The `State` of the run, its newest row already in it.
        patience: Epochs without a better one; 0 never stops.
    """

    def __init__(self, state, patience):
        super().__init__()
        self.state = state
        self.patience = patience

    def on_epoch_end(self, epoch, logs=None):
        if self.is_over():
            self.model.stop_training = True

    def is_over(self):
        accuracies = [row.get("val_accuracy") for row in self.state.rows]
        if not self.patience or not accuracies or None in accuracies:
            return False
        since_best = len(accuracies) - 1 - int(np.argmax(accuracies))
        return since_best >= self.patience


class Progress(keras.callbacks.Callback):
    """One line an epoch; on a terminal it counts the steps meanwhile."""

    async_safe = True

    def __init__(self, epochs, feed, stream=None):
        super().__init__()
        self.epochs = epochs
        self.feed = feed
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
        done = min(batch + 1, len(self.feed))  # since the epoch began here
        step, steps = self.feed.start + done, self.feed.steps
        speed = done * self.feed.batch_size / (now - self._begin)
        left = (steps - step) * self.feed.batch_size / speed
        bar = "=" * (20 * step // steps)
        self._write(
            f"\r{self._head()} [{bar:<20}] {step}/{steps}  "
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
