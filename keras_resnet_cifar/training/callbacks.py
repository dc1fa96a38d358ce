"""Callbacks of `train`, beside those that Keras has."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_resnet_cifar.data.batches import Feed, ShuffledBatches
from keras_resnet_cifar.errors import Diverged, Stopped
from keras_resnet_cifar.training.run_directory import (
    RunDirectory,
    write_history,
)

Logs = dict[str, Any] | None


class BeginEpoch(keras.callbacks.Callback):
    """Sets the order of the images and the rates of an epoch.

    Both are functions of the epoch alone, so a resumed run needs no state.

    Args:
        feed: The batches of the run.
        schedule: Its learning-rate schedule.
    """

    def __init__(self, feed: Feed, schedule: LearningRateSchedule):
        super().__init__()
        self.feed = feed
        self.schedule = schedule

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.feed.begin(epoch)
        if isinstance(self.feed, ShuffledBatches) and self.feed.resident:
            self.model.source.order.assign(self.feed.order)
        steps = np.arange(self.feed.steps) + epoch * self.feed.steps
        self.model.rates.assign(self.schedule(steps))


class StopOnDivergence(keras.callbacks.Callback):
    """Ends a run whose loss is not finite with `Diverged`.

    `keras.callbacks.TerminateOnNaN` waits for each step under JAX, and does
    not report the step.

    Args:
        advice: What to try, and what has been kept.
    """

    async_safe = True

    def __init__(self, advice: str):
        super().__init__()
        self.advice = advice

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if logs and not np.isfinite(logs["loss"]):
            # Not `self.model`, which would wait for the step in flight.
            self._model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if logs and not np.isfinite(logs["loss"]):
            steps = self.model.steps_per_epoch
            step = int(self.model.steps_finite) - epoch * steps + 1
            raise Diverged(
                f"the loss is {logs['loss']} from step {step} of epoch "
                f"{epoch + 1}: {self.advice}"
            )


class EpochStatistics(keras.callbacks.Callback):
    """Adds `learning_rate`, `images_per_second` and `seconds` to the logs.

    The rate is that of the epoch's last step. Images per second are those of
    the training steps alone, without validation and saving. In an epoch that
    is resumed, both count from there.

    Args:
        feed: The batches of the run.
        schedule: Its learning-rate schedule.
    """

    async_safe = True

    def __init__(self, feed: Feed, schedule: LearningRateSchedule):
        super().__init__()
        self.feed = feed
        self.schedule = schedule

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._begin = time.perf_counter()
        self._trained: float | None = None

    def on_test_begin(self, logs: Logs = None) -> None:
        int(self.model.steps_done)  # waits for steps that JAX has dispatched
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        assert logs is not None
        now = time.perf_counter()
        seconds = (self._trained or now) - self._begin
        images = len(self.feed) * self.feed.batch_size
        last_step = np.array([(epoch + 1) * self.feed.steps - 1])
        logs["learning_rate"] = float(self.schedule(last_step)[0])
        speed = round(images / seconds, 1) if images else None
        logs["images_per_second"] = speed
        logs["seconds"] = round(now - self._begin, 3)


class RecordEpoch(keras.callbacks.Callback):
    """Appends the logs of each epoch to the history, and writes it.

    Args:
        rows: The history, a list with one dict per epoch.
        directory: Where history.csv goes, or `None`.
    """

    def __init__(self, rows: list, directory: RunDirectory | None = None):
        super().__init__()
        self.rows = rows
        self.directory = directory

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self.rows.append({"epoch": epoch + 1} | (logs or {}))
        if self.directory is not None:
            write_history(self.directory, self.rows)


class StopEarly(keras.callbacks.Callback):
    """Stops a run whose validation accuracy no longer improves.

    `keras.callbacks.EarlyStopping` forgets its count in a resumed run. This
    looks at the history alone, so the run stops at the same epoch.

    Args:
        rows: The history, its newest row already in it.
        patience: Epochs without improvement; 0 never stops.
    """

    def __init__(self, rows: list, patience: int):
        super().__init__()
        self.rows = rows
        self.patience = patience

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self.is_over():
            self.model.stop_training = True

    def is_over(self) -> bool:
        """Returns whether the history says to stop."""
        accuracies = [row.get("val_accuracy") for row in self.rows]
        if not self.patience or not accuracies or None in accuracies:
            return False
        since_best = len(accuracies) - 1 - int(np.argmax(accuracies))
        return since_best >= self.patience


class EpochCheckpoint(keras.callbacks.ModelCheckpoint):
    """`keras.callbacks.ModelCheckpoint` after every so many epochs.

    The `save_freq` of Keras counts batches, and starts from 0 in a resumed run.

    Args:
        filepath: See `ModelCheckpoint`.
        every: Epochs between checkpoints.
        **kwargs: See `ModelCheckpoint`.
    """

    async_safe = True  # it does nothing after a batch

    def __init__(self, filepath: Any, every: int = 1, **kwargs: Any):
        super().__init__(filepath, **kwargs)
        self.every = every

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if (epoch + 1) % self.every == 0:
            super().on_epoch_end(epoch, logs)


class ValidateAverages(keras.callbacks.Callback):
    """Validates the averaged weights, BatchNorm statistics included.

    `keras.callbacks.SwapEMAWeights` leaves the statistics as they are.
    """

    def on_test_begin(self, logs: Logs = None) -> None:
        self.model.swap_in_averages()

    def on_test_end(self, logs: Logs = None) -> None:
        self.model.swap_out_averages()


class StopOnSignal(keras.callbacks.Callback):
    """Raises `Stopped` between two steps, once SIGINT or SIGTERM has come.

    A second signal has its default effect.

    Example:

        stop = StopOnSignal()
        with stop.listening():
            model.fit(..., callbacks=[stop])
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        super().__init__()
        self.number: int | None = None
        self._handled: list[signal.Signals] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals in this context; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Callable | int | None] = {
            number: signal.getsignal(number) for number in self._SIGNALS
        }
        # A signal that the parent ignores, as nohup may, stays ignored.
        self._handled = [n for n in before if before[n] is not signal.SIG_IGN]
        for number in self._handled:
            signal.signal(number, self._request)
        try:
            yield
        finally:
            for number in self._handled:
                signal.signal(number, before[number])

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for handled in self._handled:
            signal.signal(handled, signal.SIG_DFL)
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this step; again to exit at once\n")

    def check(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self.check()

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self.check()

    def on_predict_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self.check()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self.check()
