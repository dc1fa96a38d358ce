"""Training: what a run leaves, exact resumption, averaging, divergence."""

import dataclasses
import json
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from helpers import TINY, refusal

from keras_resnet_cifar.data import batches
from keras_resnet_cifar.data.batches import ShuffledBatches, even_batch_size
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.load import Dataset, Split
from keras_resnet_cifar.errors import Diverged, InputError
from keras_resnet_cifar.evaluation.evaluate import evaluate, logits_of
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.saving import load_model
from keras_resnet_cifar.training import callbacks
from keras_resnet_cifar.training import train as train_module
from keras_resnet_cifar.training.recipes import get_recipe
from keras_resnet_cifar.training.run_directory import RunDirectory
from keras_resnet_cifar.training.train import train
from keras_resnet_cifar.training.training_model import (
    TrainingModel,
    training_clone,
)

SPLITS = ("train", "validation", "test")
SHORT = {"epochs": 3, "batch_size": 64, "precision": "float32"}


def test_a_run_on_three_classes(tiny_model, tiny_data, tmp_path, monkeypatch):
    """What it says of itself is short, and has no top-5, which says nothing."""

    def of_three(split):
        kept = split.labels < 3
        return Split(split.images[kept], split.labels[kept])

    splits = {name: of_three(getattr(tiny_data, name)) for name in SPLITS}
    names = ("one", "two", "three")
    data = dataclasses.replace(tiny_data, class_names=names, **splits)
    drawn = []
    monkeypatch.setattr(train_module, "plot_curves", lambda *a: drawn.append(a))
    model, folder = tiny_model(num_classes=3), tmp_path / "run"
    run = quietly(model, data, folder, epochs=2, batch_size=16)
    assert load_model(folder / "last.keras").class_names == names
    assert "top5" not in run.metrics["last"]["test"]
    card = (folder / "README.md").read_text()
    assert "| checkpoint | epoch | top-1 | loss | calibration error |" in card
    assert "top-5" not in card
    ((rows, _, title, rates),) = drawn
    top1 = run.metrics["last"]["test"]["top1"]
    assert title == f"resnet8-custom on shapes, top-1 {top1:.2%}"
    assert rates.shape == (2, len(data.train) // 16)
    assert rates[:, -1].tolist() == [row["learning_rate"] for row in rows]
    for thing in (run, data, data.train):
        assert len(repr(thing)) < 300
        assert "array" not in repr(thing)


def quietly(model, data, output_dir=None, **kwargs):
    return train(
        model, data, output_dir=output_dir, verbose=False, **(SHORT | kwargs)
    )


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """A run of one epoch, which no test changes."""
    model = build_resnet(**TINY, normalization="shapes")
    folder = tmp_path_factory.mktemp("finished") / "run"
    return quietly(model, tiny_data, folder, epochs=1)


def test_a_run_leaves_everything_that_describes_it(
    tiny_model, tiny_data, tmp_path
):
    model = tiny_model()
    run = quietly(model, tiny_data, tmp_path / "run", checkpoint_every=2)
    directory = RunDirectory(run.directory)
    files = {path.name for path in run.directory.iterdir()}
    assert files == {
        "README.md",
        "backup-previous.npz",
        "backup.npz",
        "best.keras",
        "checkpoints",
        "config.json",
        "curves.png",
        "history.csv",
        "last.keras",
        "metrics.json",
        "timing.csv",
    }
    assert [p.name for p in directory.checkpoints()] == ["epoch-0002.keras"]

    lines = directory.history.read_text().splitlines()
    assert len(lines) == 4
    assert set(lines[0].split(",")) == {
        "epoch",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "learning_rate",
    }
    timing = directory.timing.read_text().splitlines()
    assert timing[0] == "epoch,images_per_second,seconds"
    assert len(timing) == 4

    config = json.loads(directory.config.read_text())
    assert config["recipe"]["epochs"] == 3
    assert config["dataset"]["train"] == 256
    assert config["versions"]["keras"] == keras.__version__
    assert config["parameters"] == 5_006

    metrics = json.loads(directory.metrics.read_text())
    assert metrics["last"]["epoch"] == 3
    best = max(run.history, key=lambda row: row["val_accuracy"])
    assert metrics["best"]["val_accuracy"] == best["val_accuracy"]
    assert metrics["best"]["epoch"] == best["epoch"]

    last = keras.saving.load_model(directory.last)
    np.testing.assert_allclose(
        logits_of(last, tiny_data.test.images),
        logits_of(model, tiny_data.test.images),
        rtol=1e-5,
        atol=1e-5,
    )
    card = directory.card.read_text()
    assert f"{metrics['last']['test']['top1']:.2%}" in card
    assert "was not used to choose" in card


def test_the_clock_of_an_epoch_waits_for_its_last_step(monkeypatch):
    """Under JAX the steps are dispatched long before they are done."""
    done = []

    class Steps:
        def __int__(self):
            return done.append("last step") or 1

    record = callbacks.RunEpoch(feed=None, schedule=None, rows=[])
    record.set_model(types.SimpleNamespace(steps_done=Steps()))
    clock = types.SimpleNamespace(perf_counter=lambda: done.append("clock"))
    monkeypatch.setattr(callbacks, "time", clock)
    record.on_test_begin()
    assert done == ["last step", "clock"]


@pytest.mark.slow
def test_training_learns(tiny_model, tiny_data):
    model = tiny_model(widths=(8, 16, 32))
    before = evaluate(model, tiny_data.train, tiny_data.class_names)
    quietly(
        model,
        tiny_data,
        recipe="onecycle",
        epochs=30,
        padding=0,
        flip=False,
        learning_rate=0.2,
        label_smoothing=0.0,
    )
    after = evaluate(model, tiny_data.train, tiny_data.class_names)
    assert after.loss < before.loss / 2
    assert after.top1 > 0.5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"learning_rate": 0.01}, "learning_rate=0.01, which was 0.06"),
        ({"seed": 3}, "seed=3, which was 0"),
        ({"epochs": 9}, "it changes the rates of the one_cycle schedule"),
        ({"recipe": "cosine"}, "recipe='cosine', which was 'fast'"),
    ],
)
def test_resuming_with_another_config(
    changes, word, finished, tiny_model, tiny_data, tmp_path
):
    run = finished
    before = {p: p.read_bytes() for p in run.directory.glob("*.*")}
    with pytest.raises(InputError, match=word):
        quietly(
            tiny_model(),
            tiny_data,
            run.directory,
            resume=True,
            **({"epochs": 1} | changes),
        )
    assert before == {p: p.read_bytes() for p in run.directory.glob("*.*")}


def test_a_folder_in_use_is_refused(finished, tiny_model, tiny_data, tmp_path):
    with pytest.raises(InputError, match="already holds a run"):
        quietly(tiny_model(), tiny_data, finished.directory, epochs=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        quietly(tiny_model(), tiny_data, tmp_path / "other", epochs=1)
    assert (tmp_path / "other" / "thesis.txt").exists()


def test_other_things_that_do_not_fit(tiny_model, tiny_data):
    with pytest.raises(InputError, match="larger than the 256"):
        quietly(tiny_model(), tiny_data, batch_size=257)
    with pytest.raises(InputError, match="a net of 10 outputs"):
        quietly(tiny_model(num_classes=7), tiny_data)
    with pytest.raises(InputError, match="output_dir"):
        quietly(tiny_model(), tiny_data, resume=True)
    with pytest.raises(InputError, match="logits are needed"):
        quietly(tiny_model(activation="softmax"), tiny_data)
    with pytest.raises(InputError, match="input_shape"):
        quietly(tiny_model(input_shape=(64, 64, 3)), tiny_data)
    with pytest.raises(InputError, match="not a classifier of images"):
        quietly(keras.Sequential(), tiny_data)
    with pytest.raises(InputError, match=r"data is str: give a Dataset"):
        quietly(tiny_model(), "cifar10")
    with pytest.raises(InputError, match="seed"):
        quietly(tiny_model(), tiny_data, seed=None)
    without = dataclasses.replace(tiny_data, validation=None)
    with pytest.raises(InputError, match="validation=5000 needs a validation"):
        quietly(tiny_model(), without, recipe="paper")


@pytest.mark.slow
def test_without_validation_best_is_last(tiny_model, tiny_data, tmp_path):
    data = dataclasses.replace(tiny_data, validation=None)
    run = quietly(tiny_model(), data, tmp_path / "run", epochs=2)
    assert set(run.metrics) == {"last"}
    assert "val_accuracy" not in run.history[0]
    files = [run.directory / name for name in ("best.keras", "last.keras")]
    best, last = (keras.saving.load_model(f).get_weights() for f in files)
    for one, other in zip(best, last, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "the same epoch" in (run.directory / "README.md").read_text()
    assert run.config["recipe"]["validation"] == 0


# A rate without bounds overflows float32: numpy and JAX may warn of it.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_keeps_the_good_checkpoint(
    tiny_model, tiny_data, tmp_path
):
    with pytest.raises(Diverged, match="epoch 1"):
        quietly(tiny_model(), tiny_data, tmp_path / "run", learning_rate=1e30)
    model = keras.saving.load_model(tmp_path / "run" / "last.keras")
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert load_model(tmp_path / "run" / "last.keras").name == "resnet8-custom"


def test_averages_follow_weights_and_batch_statistics(tiny_model, tiny_data):
    model = tiny_model()
    start = [np.array(w) for w in model.get_weights()]
    trained = TrainingModel(training_clone(model, "float32"), model, 1, ema=0.9)
    trained.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    trained.rates.assign([0.1])
    x = tiny_data.train.images[:64]
    y = np.zeros((64, 10), "float32")
    averages = start
    for count in (1, 2, 3):
        trained.train_on_batch(x, y)
        keep = min(0.9, (1 + count) / (10 + count))
        averages = [
            keep * a + (1 - keep) * w
            for a, w in zip(
                averages, trained.network.get_weights(), strict=True
            )
        ]
    raw = trained.network.get_weights()
    trained.swap_in_averages()
    for shown in (trained.network.get_weights(), trained.get_weights()):
        for expected, got in zip(averages, shown, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    trained.swap_out_averages()
    for expected, got in zip(raw, trained.network.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_label_smoothing_reaches_training_targets_only():
    net = keras.Sequential()
    trained = TrainingModel(net, net, 1, label_smoothing=0.1)
    _, targets = trained.augment(None, keras.ops.one_hot([2], 4))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(targets), [[0.025, 0.025, 0.925, 0.025]]
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["strong", "randaugment"])
def test_strong_policies_train(recipe, tiny_model, tiny_data):
    run = quietly(tiny_model(), tiny_data, recipe=recipe, epochs=1)
    assert np.isfinite(run.history[0]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_and_saves_float32(
    precision, tiny_model, tiny_data, tmp_path
):
    options = {"precision": precision, "epochs": 1}
    run = quietly(tiny_model(), tiny_data, tmp_path / "run", **options)
    assert np.isfinite(run.history[-1]["loss"])
    model = keras.saving.load_model(tmp_path / "run" / "last.keras")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


def test_batches_are_a_function_of_seed_and_epoch(tiny_data):
    def images_of(seed, epoch):
        feed = ShuffledBatches(tiny_data.train, 10, 60, seed, resident_bytes=0)
        feed.begin(epoch)
        return [feed[step] for step in range(len(feed))]

    batches = images_of(0, 2)
    assert len(batches) == 4  # 16 of the 256 images fill no batch
    for (x, y), (again, _) in zip(batches, images_of(0, 2), strict=True):
        assert (x.shape, x.dtype) == ((60, 32, 32, 3), np.uint8)
        assert (y.shape, y.dtype) == ((60, 10), np.float32)
        np.testing.assert_array_equal(x, again)
    assert (batches[0][0] != images_of(0, 3)[0][0]).any()
    assert (batches[0][0] != images_of(1, 2)[0][0]).any()
    feed = ShuffledBatches(tiny_data.train, 10, 64, 0)
    assert sorted(feed.order.flat) == list(range(256))


def test_even_batches_need_one_compilation():
    assert even_batch_size(10_000) == 500
    assert even_batch_size(5_000) == 500
    assert even_batch_size(97) == 97
    assert even_batch_size(997) == 512


@pytest.mark.slow
def test_validation_images_on_the_device_or_fed(
    tiny_model, tiny_data, monkeypatch
):
    images = np.resize(tiny_data.train.images, (640, 32, 32, 3))
    labels = np.resize(tiny_data.train.labels, 640)  # 2 batches
    data = dataclasses.replace(tiny_data, validation=Split(images, labels))
    rows = []
    for limit in (2**20 * 10, 0):
        monkeypatch.setattr(batches, "RESIDENT_BYTES", limit)
        rows += quietly(tiny_model(), data, epochs=1).history
    for name in ("val_loss", "val_accuracy"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-5)


def test_recipes_normalise_by_their_data():
    assert get_recipe("coursework-cifar100").normalization[0][0] == 0.507
    assert set(DATASETS) >= {"cifar10", "cifar100", "shapes"}


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX alone: KERAS_BACKEND=jax"
)
@pytest.mark.parametrize(
    "options", [{"run_eagerly": True}, {"jit_compile": False}]
)
def test_steps_are_fused_only_if_compiled(options, tiny_model):
    model = tiny_model()
    trained = TrainingModel(training_clone(model, "float32"), model, 1)
    for settings, steps in (({}, 2), (options, 1)):
        trained.compile("sgd", "mse", steps_per_execution=2, **settings)
        assert trained.fused_steps == steps


def test_a_device_fault_is_not_hidden_by_the_rescue(
    tiny_model, tiny_data, tmp_path
):
    """Under JAX a fault may surface steps later, when arrays are read."""

    class Fault(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            class Broken:
                value = property(lambda self: 1 / 0)

            self.model.steps_done = Broken()
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        quietly(tiny_model(), tiny_data, tmp_path / "run", callbacks=[Fault()])
    assert (tmp_path / "run" / "backup.npz").is_file()


RATES = "give schedule= or learning_rate= instead"


@pytest.mark.parametrize(
    ("callback", "remedy"),
    [
        (keras.callbacks.LearningRateScheduler(lambda epoch: 0.1), RATES),
        (keras.callbacks.ReduceLROnPlateau(), RATES),
        (
            keras.callbacks.BackupAndRestore("backup"),
            "give output_dir=, and resume=True to continue",
        ),
    ],
)
def test_callbacks_that_do_what_a_run_does_are_refused(
    callback, remedy, tiny_model, tiny_data
):
    line = refusal(
        lambda: quietly(tiny_model(), tiny_data, callbacks=[callback])
    )
    assert type(callback).__name__ in line
    assert remedy in line


def test_an_empty_name_of_a_folder_is_not_ignored(
    tiny_model, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    line = refusal(quietly, tiny_model(), tiny_data, "")
    assert "output_dir=. is a file or not empty" in line


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="only TensorFlow refuses"
)
def test_deterministic_with_rand_augment():
    program = (  # a process cannot undo it
        "import numpy as np\n"
        "from keras_resnet_cifar.data.augmentation import host_transform\n"
        "from keras_resnet_cifar.device import make_deterministic\n"
        "from keras_resnet_cifar.training.recipes import get_recipe\n"
        "make_deterministic(0)\n"
        "augment = host_transform(get_recipe('randaugment'), 0)\n"
        "print(augment(np.ones((2, 32, 32, 3), 'uint8'), 0, 0).shape)"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == "(2, 32, 32, 3)\n", result.stderr


def test_validation_images_of_another_size(tiny_model, tiny_data):
    small = dataclasses.replace(
        tiny_data.validation, images=tiny_data.validation.images[:, :16]
    )
    data = dataclasses.replace(tiny_data, validation=small)
    with pytest.raises(InputError, match="input_shape"):
        quietly(tiny_model(), data)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"callbacks": [3]}, "callbacks= holds 3"),
        ({"callbacks": [keras.callbacks.History]}, "give instances"),
        ({"arch": "resnet20"}, "arch= is fixed by the model"),
        ({"lr": 0.1}, "did you mean learning_rate?"),
        ({"steps_per_execution": 0}, "steps_per_execution=0: must be at"),
        ({"steps_per_execution": "all"}, "give a whole number"),
        ({"normalization": "cifar10"}, "normalization= is fixed"),
        ({"validation_data": 3}, "validation_data= is for arrays"),
        ({"recipe": ["fast"]}, "unknown recipe"),
        ({"loss": "mse"}, r"loss='mse': .*keras\.losses\.Cat"),
        ({"optimizer": 3}, r"optimizer=3: .*keras\.optimizers\.AdamW"),
    ],
)
def test_options_that_cannot_be(options, word, tiny_model, tiny_data, tmp_path):
    with pytest.raises(InputError, match=word):
        quietly(tiny_model(), tiny_data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_callback_may_evaluate_labels(tiny_model, tiny_data):
    """As `train` takes them: a class for each image."""

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            split = tiny_data.validation
            self.result = self.model.evaluate(
                split.images, split.labels, verbose=0, return_dict=True
            )
            self.expected = logs["val_accuracy"]

    callback = Evaluate()
    quietly(tiny_model(), tiny_data, epochs=1, callbacks=callback)
    assert callback.result["accuracy"] == pytest.approx(callback.expected)


def test_callbacks_after_each_step_if_wanted(tiny_model, tiny_data):
    seen = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(batch)
    )
    options = {"epochs": 1, "callbacks": [callback]}
    quietly(tiny_model(), tiny_data, **options, steps_per_execution=1)
    assert seen == [0, 1, 2, 3]


class Unregistered(keras.layers.Layer):
    """A layer as users write one first."""

    def call(self, x):
        return x


def unregistered(x):
    return x


def own_model(*parts):
    first = [keras.Input((32, 32, 3)), keras.layers.AveragePooling2D(8)]
    ends = [keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([*first, *parts, *ends], name="own")


def test_a_model_that_would_not_load_is_refused_before_it_trains(
    tiny_data, tmp_path
):
    """As `Sequential`, with a sub-model, with a function."""
    nested = keras.Sequential([Unregistered(name="mine")], name="part")
    register = "keras.saving.register_keras_serializable()"
    lambdas = keras.layers.Lambda(lambda x: x, name="mine")
    for model, words in (
        (own_model(Unregistered(name="mine")), "layer mine (Unregistered) is"),
        (own_model(nested), "layer mine (Unregistered) is not registered"),
        (own_model(keras.layers.Dense(3, activation=unregistered)), register),
        (own_model(lambdas), "layer mine (Lambda) cannot be built from its"),
    ):
        line = refusal(quietly, model, tiny_data, tmp_path / "run")
        assert words in line
        assert register in line
        assert not [*(tmp_path / "run").iterdir()]
    run = quietly(own_model(Unregistered()), tiny_data, epochs=1)
    assert len(run.history) == 1  # without a folder, nothing need load
    with keras.saving.custom_object_scope({"Unregistered": Unregistered}):
        path = tmp_path / "run"
        run = quietly(own_model(Unregistered()), tiny_data, path, epochs=1)
    assert len(run.metrics) == 2


@pytest.mark.slow
def test_images_of_one_channel(tiny_model, tiny_data):
    splits = (tiny_data.train, tiny_data.validation, tiny_data.test)
    train_, validation, test = (
        (split.images[..., :1], split.labels) for split in splits
    )
    data = Dataset.from_arrays(*train_, validation=validation, test=test)
    options = {"cutout": 8, "mixup": 0.2, "padding_mode": "reflect"}
    model = tiny_model(input_shape=(32, 32, 1), normalization="auto")
    run = quietly(model, data, epochs=1, **options)
    assert np.isfinite(run.history[0]["val_loss"])
    assert run.metrics["last"]["test"]["n"] == 64
    assert "input_shape=(32, 32, 1)" in refusal(quietly, tiny_model(), data)
    assert "rand_augment=2 is for RGB" in refusal(
        lambda: quietly(model, data, rand_augment=2)
    )


def test_a_dataset_by_hand_is_checked(tiny_model, tiny_data):
    """As `(images, labels)` are."""
    images, labels = tiny_data.train.images, tiny_data.train.labels
    for pair, words in (
        ((images, labels[:200]), "one label for each"),
        ((images / 255, labels), "multiply them by 255"),
        ((images, labels + 1), "whole numbers from 0 to 9"),
    ):
        line = refusal(
            lambda pair=pair: quietly(
                tiny_model(), dataclasses.replace(tiny_data, train=Split(*pair))
            )
        )
        assert words in line
