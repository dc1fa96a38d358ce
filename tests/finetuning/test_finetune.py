"""Fine-tuning: what trains, what is kept, how a run is resumed."""

import functools
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import refusal
from keras import ops

from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.errors import Diverged
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.finetuning import features
from keras_resnet_cifar.finetuning import finetune as finetuning
from keras_resnet_cifar.finetuning.finetune import build_finetuned
from keras_resnet_cifar.finetuning.phases import (
    PHASES,
    PhasedDirectory,
    newest_run,
)
from keras_resnet_cifar.models.nets import leaf_layers
from keras_resnet_cifar.models.saving import load_model
from keras_resnet_cifar.training.recipes import get_recipe

HEAD = {"head_dense/kernel", "head_dense/bias"}
# The second phase trains the head too, whose features are computed once.
HEAD_ONLY = {"freeze": "all", "head_epochs": 0}


class Interrupt(Exception):
    pass


def interrupted(*args, **kwargs):
    raise Interrupt


def weights_of(model):
    """`{layer/weight: array}` of a model."""
    return {
        f"{layer.name}/{variable.name}": ops.convert_to_numpy(variable.value)
        for layer in leaf_layers(model)
        for variable in layer.weights
    }


def moved(before, model):
    """The names of the weights that are not as before."""
    after = weights_of(model)
    return {name for name in before if (before[name] != after[name]).any()}


@pytest.fixture
def before(own_net):
    """The weights with which `start` begins."""
    keras.utils.set_random_seed(0)
    return weights_of(build_finetuned(own_net, 10))


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run's folder, to change."""
    return shutil.copytree(finished.directory.parent, tmp_path / "copy")


def run_cli(*arguments):
    return cli.main([str(argument) for argument in arguments])


# --- What trains


def test_each_phase_moves_only_what_should_train(finished, before):
    folder = finished.directory.parent
    assert moved(before, load_model(folder / "head" / "last.keras")) == HEAD
    assert moved(before, finished.model) == {
        name
        for name in before
        if name.startswith(("stage3", "head")) and "_bn" not in name
    }


def test_norm_trains_on_request_where_its_layers_train(own_net):
    model = build_finetuned(own_net, 10, freeze="stage1", train_norm=True)
    norms = {
        layer.name: layer.trainable
        for layer in leaf_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    assert len(norms) == 7
    for name, trains in norms.items():
        assert trains != name.startswith(("stem", "stage1"))


@pytest.mark.slow
def test_random_weights_train_their_norm(start, before):
    options = {"freeze": "stage1", "head_epochs": 0, "train_norm": True}
    changed = moved(before, start(None, **options).model)
    assert "stage2_block0_bn1/moving_mean" in changed
    assert not [name for name in changed if name.startswith(("stem", "stage1"))]


def test_plain_fit_of_the_saved_model_moves_no_statistics(
    own_net, tiny_data, tmp_path
):
    path = tmp_path / "model.keras"
    build_finetuned(own_net, 10).save(path)
    model = keras.saving.load_model(path)
    before = weights_of(model)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    split = tiny_data.test
    model.fit(split.images, split.labels, batch_size=64, verbose=0)
    changed = moved(before, model)
    assert "stage1_block0_conv1/kernel" in changed
    assert not [name for name in changed if "_bn" in name]


# --- What is kept


def test_both_phases_are_runs(finished):
    folder = finished.directory.parent
    assert finished.directory == folder / "tuned"
    head, tuned = (
        json.loads((folder / name / "config.json").read_text())
        for name in PHASES
    )
    rates = [phase["recipe"]["learning_rate"] for phase in (head, tuned)]
    assert rates == [0.01, 1e-3]
    assert [phase["recipe"]["epochs"] for phase in (head, tuned)] == [2, 1]
    assert head["parameters"] == 16 * 10 + 10
    # The crop has the size at which the backbone works.
    assert tuned["recipe"]["random_resized_crop"] == 32
    assert {path.name for path in (folder / "head").iterdir()} == {
        "README.md",
        "config.json",
        "curves.png",
        "history.csv",
        "metrics.json",
        "last.keras",
    }
    card = (folder / "head" / "README.md").read_text()
    assert "`last.keras` is the last epoch." in card


@pytest.mark.slow
def test_the_saved_model_needs_nothing_of_this_package(
    own_net, tiny_data, tmp_path
):
    model = build_finetuned(own_net, 10, image_size=48)
    path = tmp_path / "model.keras"
    model.save(path)
    images = tiny_data.test.images
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['keras_resnet_cifar'] = None\n"
        "import keras, numpy as np\n"
        f"model = keras.saving.load_model({str(path)!r})\n"
        f"images = np.load({str(tmp_path / 'images.npy')!r})\n"
        f"np.save({str(tmp_path / 'logits.npy')!r},"
        " model.predict(images, verbose=0))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "logits.npy"),
        logits_of(model, images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_run_says_what_was_fine_tuned(finished, own_net):
    for phase in PHASES:
        run = PhasedDirectory(finished.directory.parent).phase(phase)
        assert run.read_config()["weights"] == str(own_net)
    card = (finished.directory / "README.md").read_text()
    assert f"started from the weights {own_net}" in card


def test_what_training_saves_has_stock_layers(finished):
    model = load_model(finished.directory / "last.keras")
    kinds = {type(layer) for layer in leaf_layers(model)}
    assert all(kind.__module__.startswith("keras.") for kind in kinds)


def test_the_folder_of_both_phases_means_the_newest(tmp_path):
    assert newest_run(tmp_path).path == tmp_path
    for name in PHASES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert newest_run(tmp_path).path == tmp_path / name


def test_each_phase_is_backed_up_and_repeated_as_asked(
    start, tmp_path, monkeypatch
):
    given = []
    monkeypatch.setattr(
        finetuning, "train", lambda *_, **options: given.append(options)
    )
    options = {"backup_every": "30s", "deterministic": True, "devices": 2}
    options |= {"callbacks": [keras.callbacks.Callback()]}
    weights = {label: 2.0 if label else 1.0 for label in range(10)}
    options["class_weight"] = weights
    start(tmp_path / "run", cache_features=False, **options)
    for each in given:
        assert each["class_weight"] == weights
        assert each["callbacks"] == options["callbacks"]
    assert [each["backup_every"] for each in given] == ["30s", "30s"]
    assert all(each["deterministic"] for each in given)
    assert [each["devices"] for each in given] == [2, 2]


# --- Cached features


@pytest.mark.slow
def test_cached_features_train_the_same_head(start, before, tmp_path):
    plain = {"flip": False, "random_resized_crop": 0, "label_smoothing": 0.1}
    # One batch of all images: no order to differ in.
    options = HEAD_ONLY | plain | {"batch_size": 256, "epochs": 3}
    options |= {"validate": False, "class_weight": {0: 5.0, 3: 0.5}}
    ends = []
    for cached in (False, True):
        run = start(tmp_path / f"{cached}", cache_features=cached, **options)
        assert [row["epoch"] for row in run.history] == [1, 2, 3]
        assert moved(before, run.model) == HEAD
        ends.append(run.model.get_weights())
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    again = start(tmp_path / "True", resume=True, **options)
    assert again.history == run.history
    assert all(isinstance(row["epoch"], int) for row in again.history)
    assert again.metrics == run.metrics


@pytest.mark.slow
def test_each_phase_says_which_it_is(start, tmp_path, capsys):
    """And leaves curves and a card, with cached features as well."""
    options = {"freeze": "all", "head_epochs": 1, "verbose": True}
    start(tmp_path / "run", **options)
    printed = capsys.readouterr().out
    head, tuned = (printed.index(f"phase {name}, epochs: 1") for name in PHASES)
    assert head < tuned
    assert "\b" not in printed  # lines, not bars
    for name in PHASES:
        for file in ("curves.png", "README.md"):
            assert (tmp_path / "run" / name / file).is_file()


class Stream(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.full((4, 32, 32, 3), 7, "uint8"), np.arange(4)


def test_cached_features_need_images_in_memory(own_net, tiny_data):
    arrays = (tiny_data.train.images, tiny_data.train.labels)
    finetuned = functools.partial(
        finetuning.finetune,
        build_finetuned(own_net, 10),
        cache_features=True,
        epochs=1,
        verbose=False,
        **HEAD_ONLY,
    )
    seen = []
    callback = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(epoch)
    )
    (row,) = finetuned(
        arrays, validation_data=arrays, callbacks=[callback]
    ).history
    assert (row["epoch"], seen) == (1, [0])
    assert "val_accuracy" in row
    assert "images in memory" in refusal(finetuned, Stream())


@pytest.mark.slow
def test_a_callback_ends_the_training_of_a_head(start, tmp_path):
    def stop(epoch, logs):
        callback.model.stop_training = True

    callback = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    options = HEAD_ONLY | {"epochs": 3, "callbacks": [callback]}
    run = start(tmp_path / "run", validate=False, **options)
    assert [row["epoch"] for row in run.history] == [1]
    assert run.metrics["last"]["epoch"] == 1


@pytest.mark.slow
def test_a_head_is_written_whole_or_not_at_all(start, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(features.files, "move_folder", interrupted)
    with pytest.raises(Interrupt):
        start(folder, validate=False, **HEAD_ONLY)
    assert not folder.exists()


def test_a_head_that_diverges(start, tmp_path):
    with pytest.raises(Diverged, match="lower"):
        start(tmp_path / "run", validate=False, learning_rate=1e38, **HEAD_ONLY)
    assert not (tmp_path / "run").exists()


# --- Resuming


def test_a_resumed_run_ends_as_if_it_was_never_stopped(start, finished, copy):
    shutil.rmtree(copy / "tuned")  # stopped when the head was trained
    assert PhasedDirectory(copy).started_phases() == ["head"]
    resumed = start(copy, resume=True)
    for one, other in zip(
        finished.model.get_weights(), resumed.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cache_features", [False, True])
def test_the_plan_is_there_before_a_phase_is(
    cache_features, start, tmp_path, monkeypatch
):
    directory = PhasedDirectory(tmp_path / "run")

    def begin(*_, **options):
        assert directory.read_plan()["freeze"] == "stage2"
        raise Interrupt

    monkeypatch.setattr(finetuning, "train", begin)
    monkeypatch.setattr(finetuning, "train_head", begin)
    with pytest.raises(Interrupt):
        start(directory.path, cache_features=cache_features)
    assert not directory.path.exists()


def test_a_folder_with_nothing_but_a_plan_is_unused(tmp_path):
    """As a kill before the first phase leaves it."""
    directory = PhasedDirectory(tmp_path)
    directory.write_plan({"recipe": get_recipe("paper")})
    (tmp_path / ".0123abcd-finetune.json").touch()
    (tmp_path / ".0123abcd").mkdir()
    directory.check_unused()
    (tmp_path / "notes.txt").touch()
    assert "not empty" in refusal(directory.check_unused)


def test_a_run_that_began_deterministic_or_on_more_devices_stays_so(
    start, finished, copy, monkeypatch
):
    directory = PhasedDirectory(copy)
    began = {"deterministic": True, "devices": 2}
    directory.write_plan(directory.read_plan() | began)
    shutil.rmtree(copy / "tuned")
    given = {}
    monkeypatch.setattr(
        finetuning, "train", lambda *_, **options: given.update(options)
    )
    start(copy, resume=True)
    assert given["deterministic"]
    assert given["devices"] == 2
    start(copy, resume=True, devices=1)
    assert given["devices"] == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"freeze": "stage1"}, "freeze='stage1', which was 'stage2'"),
        ({"epochs": 2}, "epochs=2, which was 1"),
        ({"learning_rate": 0.5}, "learning_rate=0.5, which was 0.001"),
        ({"head_epochs": 3}, "head_epochs=3, which was 2"),
        (
            {"head_learning_rate": None},
            "head_learning_rate=0.001, which was 0.01",
        ),
        ({"train_norm": True}, "train_norm=True, which was False"),
        ({"cache_features": False}, "cache_features=False, which was True"),
        ({"seed": 1}, "seed=1, which was 0"),
        ({"class_weight": {0: 2.0}}, "class_weight.0=2.0, which was None"),
    ],
)
def test_a_run_is_resumed_as_it_began(start, finished, options, part):
    folder = finished.directory.parent
    act = functools.partial(start, folder, resume=True, **options)
    assert part in refusal(act)


def test_a_head_is_resumed_with_the_net_it_belongs_to(
    start, finished, tiny_data, own_net, tmp_path
):
    other = shutil.copy(own_net, tmp_path / "other.keras")
    plan = PhasedDirectory(finished.directory.parent).read_plan()
    act = functools.partial(
        finetuning.finetune,
        build_finetuned(other, 10),
        tiny_data,
        output_dir=finished.directory.parent,
        resume=True,
        **plan,
    )
    assert "arch='finetuned-other', which was 'finetuned-own'" in refusal(act)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"resume": True}, "output_dir"),
        ({"head_epochs": -1}, "head_epochs=-1: must be at least 0"),
        ({"head_epochs": 1.5}, "head_epochs=1.5"),
        ({"head_learning_rate": -1.0}, "head_learning_rate=-1.0"),
        ({"head_epochs": 0, "head_learning_rate": -1.0}, "head_learning_rate"),
        ({"freeze": "stage4"}, "3 stages"),
        ({"seed": -1}, "seed=-1"),
        ({"batchsize": 3}, "batch_size"),
        ({"optimizer": "muon"}, "train_norm=True to fine-tune"),
    ],
)
def test_bad_arguments(start, options, part):
    assert part in refusal(functools.partial(start, None, **options))


def test_a_folder_in_use(start, finished):
    folder = finished.directory.parent
    assert "not empty" in refusal(start, folder)


@pytest.mark.parametrize("name", ["history.csv", "metrics.json"])
def test_a_damaged_head(start, copy, name):
    shutil.rmtree(copy / "tuned")
    (copy / "head" / name).write_bytes(b"epoch,loss\n1,\xff{")
    act = functools.partial(start, copy, resume=True)
    assert "cannot read the finished head" in refusal(act)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"seed": 0', '"seed": 1'),
        lambda text: text.replace('"recipe": {', '"recipe": {"more": 1,'),
        lambda text: "[]",
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_plan(copy, damage):
    path = copy / "finetune.json"
    path.write_text(damage(path.read_text()))
    assert str(path) in refusal(PhasedDirectory(copy).read_plan)


def test_the_plan_is_read_without_keras():
    code = (
        "import sys, keras_resnet_cifar.finetuning.backbones\n"
        "import keras_resnet_cifar.finetuning.phases\n"
        "assert not {'keras', 'tensorflow', 'jax', 'torch'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- The command


@pytest.mark.parametrize(
    "options",
    [
        ["--freeze", "all", "--cache-features", "--head-epochs", 0],
        pytest.param(
            ["--freeze", "stage1", "--head-epochs", 1], marks=pytest.mark.slow
        ),
    ],
)
def test_the_command_and_its_resumption(
    options, own_net, tiny_cifar, tmp_path, capsys
):
    out = tmp_path / "run"
    data = ["--dataset", "cifar10", "--data-dir", tiny_cifar]
    command = ["finetune", "--backbone", own_net, *data, "--allow-unverified"]
    options = [*options, "--epochs", 1, "--quiet"]
    options += ["--output-dir", out, "--backup-every", "1"]
    assert run_cli(*command, *options) == 0
    printed = capsys.readouterr().out
    assert "finetuned-own on cifar10" in printed
    assert "top-1" in printed
    assert run_cli("finetune", "--resume", out, "--quiet") == 0
    assert run_cli("evaluate", out / "tuned", "--data-dir", tiny_cifar) == 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "--backbone"),
        (["--backbone", "resnet19"], "resnet18"),
        (["--backbone", "resnet18", "--dataset", "cifar11"], "cifar10"),
        (["--backbone", "resnet18", "--recipe", "fine"], "coursework-finetune"),
        (["--resume", "nowhere"], "nowhere holds no fine-tuning run"),
        (["--resume", "nowhere", "--freeze", "all"], "nowhere"),
    ],
)
def test_bad_options_are_refused_at_once(options, part, capsys):
    assert run_cli("finetune", *options) == 2
    message = capsys.readouterr().err
    assert part in message
    assert message.count("\n") == 1


def test_training_from_scratch_by_a_recipe_for_larger_crops(tiny_cifar, capsys):
    command = ["train", "--recipe", "coursework-finetune", "--arch", "resnet8"]
    data = ["--dataset", "cifar10", "--data-dir", tiny_cifar]
    assert run_cli(*command, *data, "--allow-unverified") == 2
    assert "--random-resized-crop 224" in capsys.readouterr().err


def test_a_plan_without_its_phases(tmp_path, capsys):
    recipe = get_recipe("paper")
    PhasedDirectory(tmp_path).write_plan({"recipe": recipe})
    assert run_cli("finetune", "--resume", tmp_path) == 2
    assert "has started: start a new run" in capsys.readouterr().err
