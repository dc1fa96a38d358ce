"""Callbacks of `train`, in addition to Keras's."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_resnet_cifar.data.batches import Feed, ShuffledBatches
from keras_resnet_cifar.errors import Diverged, Stopped
from keras_resnet_cifar.training import hosts
from keras_resnet_cifar.training.run_directory import (
    RunDirectory,
    write_history,
)

Logs = dict[str, Any] | None


@dataclass(eq=False)
class StopOnDivergence(keras.callbacks.Callback):
    """Raises `Diverged`, with `advice`, if the loss is not finite.

    `keras.callbacks.TerminateOnNaN` waits for each step under JAX, and does
    not report the step.
    """

    advice: str
    async_safe = True

    def __post_init__(self) -> None:
        super().__init__()

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


@dataclass(eq=False)
class RunEpoch(keras.callbacks.Callback):
    """Begins each epoch of a run, and appends its row to the history.

    The order of the images and the learning rates are functions of the epoch,
    and early stopping is a function of the history, so a resumed run needs no
    other state. (`keras.callbacks.EarlyStopping` would forget its count.)

    A row has the rate of the epoch's last step. Its images per second leave out
    validation and saving. In a resumed epoch, they and the seconds count from
    the resumption. An epoch in which a callback ended the run has no row.
    """

    feed: Feed
    schedule: LearningRateSchedule
    rows: list[dict]
    patience: int = 0
    directory: RunDirectory | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.feed.begin(epoch)
        if isinstance(self.feed, ShuffledBatches) and self.feed.resident:
            self.model.source.order.assign(self.feed.order)
        steps = np.arange(self.feed.steps) + epoch * self.feed.steps
        self._rates = self.schedule(steps)
        self.model.rates.assign(self._rates)
        self._begin = time.perf_counter()
        self._trained: float | None = None

    def on_test_begin(self, logs: Logs = None) -> None:
        int(self.model.steps_done)  # waits for steps that JAX has dispatched
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        assert logs is not None
        if self.model.within_epoch:
            return
        now = time.perf_counter()
        images = len(self.feed) * self.feed.batch_size
        seconds = (self._trained or now) - self._begin
        speed = round(images / seconds, 1) if images else None
        logs["learning_rate"] = float(self._rates[-1])
        logs["images_per_second"] = speed
        logs["seconds"] = round(now - self._begin, 3)
        self.rows.append({"epoch": epoch + 1} | logs)
        if self.directory is not None:
            write_history(self.directory, self.rows)
        if is_over(self.rows, self.patience):
            self.model.stop_training = True


def is_over(rows: Sequence[dict[str, Any]], patience: int) -> bool:
    """Returns whether validation accuracy has stopped improving.

    `patience` is the number of epochs without improvement; 0 never stops.
    """
    accuracies: list[Any] = [row.get("val_accuracy") for row in rows]
    if not patience or not accuracies or None in accuracies:
        return False
    return len(accuracies) - 1 - int(np.argmax(accuracies)) >= patience


class ValidateAverages(keras.callbacks.Callback):
    """Validates the averaged weights, including BatchNorm statistics.

    `keras.callbacks.SwapEMAWeights` does not average the statistics.
    """

    def on_test_begin(self, logs: Logs = None) -> None:
        self.model.swap_in_averages()

    def on_test_end(self, logs: Logs = None) -> None:
        self.model.swap_out_averages()


class StopOnSignal(keras.callbacks.Callback):
    """Raises `Stopped` between two steps after a signal in `listening()`.

    The signals are SIGINT and SIGTERM. Several processes all stop at the same
    step. A second signal has its default effect.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals in this context; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A signal that the parent ignores, as nohup may, stays ignored.
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in signals}
        heard = [n for n in signals if before[n] is not signal.SIG_IGN]

        def request(number: int, frame: FrameType | None) -> None:
            self.number = number
            for each in heard:
                signal.signal(each, signal.SIG_DFL)
            # Not print: the signal may have interrupted another print.
            os.write(2, b"\nstopping after this step; repeat to exit at once\n")

        for number in heard:
            signal.signal(number, request)
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, before[number])

    def check(self, index: int | None = None, logs: Logs = None) -> None:
        """Raises `Stopped` if any process has received a signal."""
        if number := hosts.largest(self.number or 0):
            raise Stopped(number)

    on_train_batch_begin = on_test_batch_begin = check
    on_predict_batch_begin = on_epoch_end = check
