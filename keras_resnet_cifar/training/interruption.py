"""SIGINT and SIGTERM: finish the step, save, stop; a second one kills."""

import contextlib
import os
import signal
import threading

import keras

from keras_resnet_cifar.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(keras.callbacks.Callback):
    """Raises `Stopped` between two steps, once a signal has come.

    Example:

        stop = StopOnSignal()
        with stop.listening():
            model.fit(..., callbacks=[stop])
    """

    def __init__(self):
        super().__init__()
        self.number = None
        self._taken = []

    @contextlib.contextmanager
    def listening(self):
        """Takes the signals over for a while; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        # A signal that the parent has us ignore, as nohup may, stays ignored.
        self._taken = [n for n in _SIGNALS if before[n] is not signal.SIG_IGN]
        for number in self._taken:
            signal.signal(number, self._request)
        try:
            yield
        finally:
            for number in self._taken:
                signal.signal(number, before[number])

    def _request(self, number, frame):
        self.number = number
        for taken in self._taken:
            signal.signal(taken, signal.SIG_DFL)
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this step; again to exit at once\n")

    def check(self):
        """Raises `Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def on_train_batch_begin(self, batch, logs=None):
        self.check()

    def on_test_batch_begin(self, batch, logs=None):
        self.check()

    def on_predict_batch_begin(self, batch, logs=None):
        self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()
