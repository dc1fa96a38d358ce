"""Keras's own callbacks, in `train` and in a plain `fit`."""

import subprocess
import sys
from functools import partial

import keras
import numpy as np
import pytest
from helpers import TINY, refusal

import keras_resnet_cifar as krc
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import logits_of

SHORT = {"epochs": 2, "batch_size": 64, "precision": "float32", "seed": 0}


class Weights(keras.callbacks.Callback):
    """A user's callback: what it sees of the model at the end of an epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.model.get_weights())
        self.logs = logs


def assert_same(weights, others):
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_array_equal(one, other)


def loaded_weights(path):
    return keras.saving.load_model(path).get_weights()


EMAS = [pytest.param(0.0, marks=pytest.mark.slow), 0.9]


@pytest.fixture(scope="module", params=EMAS, ids=["plain", "averaged"])
def run(request, tiny_data, tmp_path_factory):
    """A run with every callback, and the folder where they wrote."""
    folder = tmp_path_factory.mktemp("callbacks")
    keras.utils.set_random_seed(0)
    model = krc.build_resnet(**TINY, normalization="shapes")
    lines, seen = [], Weights()
    every = keras.callbacks.ModelCheckpoint(folder / "epoch-{epoch}.keras")
    best = keras.callbacks.ModelCheckpoint(
        folder / "best.keras", monitor="val_accuracy", save_best_only=True
    )
    weights = keras.callbacks.ModelCheckpoint(
        folder / "{epoch}.weights.h5", save_weights_only=True
    )
    finished = krc.train(
        model,
        tiny_data,
        output_dir=folder / "run",
        callbacks=[
            every,
            best,
            weights,
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=9),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: lines.append(sorted(logs))
            ),
            seen,
        ],
        ema=request.param,
        verbose=False,
        **SHORT,
    )
    return finished, folder, seen, lines


def test_a_checkpoint_holds_the_stock_model(run):
    finished, folder, seen, _ = run
    for epoch in (1, 2):
        path = folder / f"epoch-{epoch}.keras"
        assert_same(loaded_weights(path), seen.epochs[epoch - 1])
        kinds = {type(x) for x in keras.saving.load_model(path).layers}
        assert all(kind.__module__.startswith("keras.") for kind in kinds)
    assert_same(loaded_weights(folder / "epoch-2.keras"), seen.epochs[1])
    assert_same(loaded_weights(folder / "run" / "last.keras"), seen.epochs[1])
    assert_same(finished.model.get_weights(), seen.epochs[1])
    files = ("epoch-1.keras", "best.keras", "run/last.keras", "run/best.keras")
    for name in files:
        names = krc.load_model(folder / name).class_names
        assert names == DATASETS["shapes"].class_names
    assert_same(
        loaded_weights(folder / "best.keras"),
        loaded_weights(folder / "run" / "best.keras"),
    )


def test_a_file_is_kept_if_asked_for(run, tmp_path):
    path = tmp_path / "kept.keras"
    path.write_text("kept")
    _, _, seen, _ = run
    save = partial(seen.model.save, path, overwrite=False)
    assert "overwrite=True" in refusal(save)
    assert path.read_text() == "kept"


def test_weights_alone_load_into_the_stock_model(run):
    _, folder, seen, _ = run
    model = krc.build_resnet(**TINY, normalization="shapes")
    model.load_weights(folder / "2.weights.h5")
    assert_same(model.get_weights(), seen.epochs[1])


def test_logs_reach_every_callback(run):
    finished, folder, _, lines = run
    assert len(lines) == 2
    assert {"loss", "val_accuracy", "learning_rate"} <= set(lines[0])
    rows = (folder / "log.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "val_accuracy" in rows[0]
    assert len(finished.history) == 2


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_early_stopping_restores_the_best_weights(
    ema, tiny_model, tiny_data, tmp_path
):
    seen = Weights()
    stop = keras.callbacks.EarlyStopping(
        monitor="val_loss",
        mode="max",  # so that a falling loss is no improvement
        patience=1,
        restore_best_weights=True,
    )
    finished = krc.train(
        tiny_model(),
        tiny_data,
        output_dir=tmp_path / "run",
        callbacks=[stop, seen],
        ema=ema,
        verbose=False,
        **(SHORT | {"epochs": 9}),
    )
    epochs = len(finished.history)
    losses = [row["val_loss"] for row in finished.history]
    assert epochs < 9 or np.argmax(losses) >= 7
    assert_same(finished.model.get_weights(), seen.epochs[np.argmax(losses)])
    last = loaded_weights(tmp_path / "run" / "last.keras")
    assert_same(last, finished.model.get_weights())
    assert finished.metrics["last"]["epoch"] == np.argmax(losses) + 1
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    again = krc.train(
        tiny_model(seed=1),
        tiny_data,
        output_dir=tmp_path / "run",
        resume=True,
        ema=ema,
        verbose=False,
        **(SHORT | {"epochs": 9}),
    )
    assert len(again.history) == epochs  # it stays ended
    assert_same(again.model.get_weights(), last)
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


class StopAt(keras.callbacks.Callback):
    """Ends the training after some steps, within an epoch."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        self.steps -= 1
        self.model.stop_training = self.steps == 0


@pytest.mark.parametrize("steps", [1, 6])
def test_a_callback_may_end_a_run_within_an_epoch(
    steps, tiny_model, tiny_data, tmp_path
):
    """The epoch has no row, and more epochs continue it at its next step."""
    options = SHORT | {"schedule": "constant", "steps_per_execution": 1}
    options |= {"output_dir": tmp_path / "run", "verbose": False}
    stop = StopAt(steps)
    stopped = krc.train(tiny_model(), tiny_data, callbacks=[stop], **options)
    assert [row["epoch"] for row in stopped.history] == [1][: steps // 4]
    ended = krc.train(tiny_model(), tiny_data, resume=True, **options)
    assert ended.history == stopped.history
    assert_same(ended.model.get_weights(), stopped.model.get_weights())
    options["epochs"] = 3
    resumed = krc.train(tiny_model(), tiny_data, resume=True, **options)
    options["output_dir"] = None
    whole = krc.train(tiny_model(), tiny_data, **options)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]
    assert_same(resumed.model.get_weights(), whole.model.get_weights())


def test_a_file_of_weights_is_not_overwritten_unasked(
    tiny_model, tiny_data, tmp_path
):
    path = tmp_path / "a.weights.h5"
    path.write_text("mine")
    save = keras.callbacks.LambdaCallback()
    save.on_train_end = lambda logs: save.model.save_weights(
        path, overwrite=False
    )
    line = refusal(
        lambda: krc.train(
            tiny_model(),
            tiny_data,
            callbacks=[save],
            verbose=False,
            **(SHORT | {"epochs": 1}),
        )
    )
    assert "give overwrite=True" in line
    assert path.read_text() == "mine"


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written(tiny_model, tiny_data, tmp_path):
    (tmp_path / "taken.keras").mkdir()
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "taken.keras")
    with pytest.raises(InputError, match=r"cannot write .*taken\.keras"):
        krc.train(
            tiny_model(),
            tiny_data,
            callbacks=[checkpoint],
            verbose=False,
            **SHORT,
        )


def test_the_plain_ten_lines(tiny_data, tmp_path):
    """The README's example: Keras alone, with parts of this package."""
    x, y = tiny_data.train.images, tiny_data.train.labels
    validation = (tiny_data.validation.images, tiny_data.validation.labels)
    schedule = krc.schedules.OneCycle(0.1, steps=2 * len(x) // 64)
    net = krc.build_resnet(**TINY, normalization="shapes")
    model = keras.Sequential([krc.RandomPadCrop(4, flip=True), net])
    model.compile(
        krc.CoupledSGD(schedule, nesterov=True, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_accuracy", save_best_only=True
    )
    history = model.fit(
        x,
        y,
        batch_size=64,
        epochs=2,
        validation_data=validation,
        callbacks=[best],
        verbose=0,
    ).history
    assert len(history["val_accuracy"]) == 2
    program = (  # a new process has not used any of the classes yet
        "import sys, keras, keras_resnet_cifar as krc\n"
        "optimizer = keras.saving.load_model(sys.argv[1]).optimizer\n"
        "print(type(optimizer).__name__, krc.load_model(sys.argv[1]).name)"
    )
    command = [sys.executable, "-c", program, tmp_path / "best.keras"]
    printed = subprocess.run(command, capture_output=True, text=True)
    assert printed.stdout == f"CoupledSGD {model.name}\n", printed.stderr
    again = keras.saving.load_model(tmp_path / "best.keras")
    assert isinstance(again.optimizer, krc.CoupledSGD)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    if np.argmax(history["val_accuracy"]) == 1:
        np.testing.assert_allclose(
            again.predict(validation[0], verbose=0),
            logits_of(net, validation[0]),
            rtol=1e-4,
            atol=1e-5,
        )
