"""Runs the remaining epochs of a run, with one or two calls of `model.fit`."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import keras

from keras_resnet_cifar.data import batches
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.training import data_parallel
from keras_resnet_cifar.training.training_model import TrainingModel

_LINE_SECONDS = 30  # between the lines within an epoch, without a terminal


def fit(
    model: TrainingModel,
    data: Dataset,
    feed: batches.Feed,
    done: tuple[int, int],
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: bool,
) -> None:
    """Runs the remaining epochs, starting within the epoch in progress.

    `done` counts the completed epochs, and the completed steps of the epoch in
    progress; `epochs` are those of the whole run.
    """
    held_out = _held_out(model, data)
    x, y = held_out.get("x"), held_out.get("y")
    bar_or_line = 1 if sys.stdout.isatty() else 2
    epoch, step = done

    def run(first, last):
        shown = [_Progress(epochs)] if verbose else []
        model.fit(
            feed.source(model.fused_steps, data_parallel.local(model.devices)),
            initial_epoch=first,
            epochs=last,
            shuffle=False,  # the feed shuffles
            verbose=bar_or_line if verbose else 0,
            callbacks=[*callbacks, *shown],
            validation_data=x if y is None else (x, y),
            validation_batch_size=held_out.get("batch_size"),
        )

    model.stop_training = False
    if step:
        feed.start = step
        if step == feed.steps:
            _end_epoch(model, epoch, callbacks, held_out)
        else:
            run(epoch, epoch + 1)
        feed.start = 0
        epoch += 1
    if epoch < epochs and not model.stop_training:
        run(epoch, epochs)


class _Progress(keras.callbacks.ProgbarLogger):
    """Shows progress from the first second on, even without a terminal.

    It counts the epochs of the whole run, while `fit` counts those of the call.
    The time left ignores the first call of an epoch, which may compile; Keras
    ignores only the first step, and a call has many.
    """

    async_safe = True  # Keras treats its own as such

    def __init__(self, epochs: int):
        super().__init__()
        self._run_epochs = epochs
        self._step_seconds = 0.0

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params | {"epochs": self._run_epochs})

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._begin = self._printed = time.time()
        self._first: tuple[int, float] | None = None
        if self.verbose == 1 and self._step_seconds:
            self.progbar.update(0)
        elif self.verbose == 1:  # the bar replaces it
            print(f"0/{self.target} preparing", end="", flush=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        now, done = time.time(), batch + 1
        each = self._estimate(done, now)
        due = now - self._printed >= _LINE_SECONDS and done < self.target
        if self.verbose == 2 and due:
            self._printed = now
            scores = "".join(f" - {k}: {v:.4f}" for k, v in logs.items())
            left = f"{each * (self.target - done):.0f}s left"
            print(f"{done}/{self.target} - {left}{scores}", flush=True)

    def _maybe_init_progbar(self) -> None:
        super()._maybe_init_progbar()
        self.progbar._estimate_step_duration = self._estimate

    def _estimate(self, done: int, now: float) -> float:
        """Returns the seconds of a step."""
        if done:
            self._first = self._first or (done, now)
            step, since = self._first
            if step == done:
                step, since = 0, self._begin
            self._step_seconds = (now - since) / (done - step)
        return self._step_seconds


def _end_epoch(model, epoch, callbacks, held_out):
    """Does what `fit` does after an epoch's last step, where it was stopped."""
    chain = keras.callbacks.CallbackList(
        list(callbacks), model=model, epochs=epoch + 1, steps=0
    )
    chain.on_train_begin()
    chain.on_epoch_begin(epoch)
    logs = {k: float(v) for k, v in model.get_metrics_result().items()}
    if held_out:
        results = model.evaluate(
            **held_out, verbose=0, callbacks=chain, return_dict=True
        )
        logs |= {f"val_{name}": value for name, value in results.items()}
    chain.on_epoch_end(epoch, logs)
    chain.on_train_end(logs)


def _held_out(model: TrainingModel, data: Dataset) -> dict[str, Any]:
    """Returns the arguments of `evaluate` for the validation split, if any."""
    split = data.validation
    if split is None:
        return {}
    if model.held_out is not None:
        steps = model.held_out.order.shape[0]
        devices = data_parallel.local(model.devices)
        return {"x": batches.step_numbers(0, steps, model.fused_steps, devices)}
    return {
        "x": split.images,
        "y": batches.one_hot(split.labels, data.num_classes),
        "batch_size": batches.even_batch_size(len(split)),
    }
