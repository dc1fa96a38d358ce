"""Fine-tuning: what the backbone is given, what trains, what is kept."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from keras.applications import imagenet_utils

from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.finetuning import finetune as finetuning
from keras_resnet_cifar.finetuning.backbones import BACKBONES, FREEZE
from keras_resnet_cifar.finetuning.finetune import (
    build_finetuned,
    finetune,
    freeze_backbone,
    stage_of,
)
from keras_resnet_cifar.finetuning.phases import (
    PHASES,
    PhasedDirectory,
    newest_run,
)
from keras_resnet_cifar.models.normalization import IMAGENET, preprocess_input
from keras_resnet_cifar.models.resnet import leaf_layers
from keras_resnet_cifar.models.saving import load_model
from keras_resnet_cifar.training.recipes import get_recipe

# Small steps: nothing here has to learn much.
GENTLE = {"learning_rate": 1e-3, "batch_size": 64, "epochs": 1}


@pytest.fixture
def own_net(tiny_model, tmp_path):
    """The file of a net of three stages that "was trained" before."""
    model = tiny_model(num_classes=7)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.set_weights(generator.uniform(0.5, 1.5, (4, *size)))
    path = tmp_path / "own.keras"
    model.save(path)
    return path


def weights_of(model):
    """`{path of a weight: array}` of a model, by the names of its layers."""
    leaves = [layer for layer in leaf_layers(model) if layer.weights]
    return {
        f"{layer.name}/{variable.name}": ops.convert_to_numpy(variable.value)
        for layer in leaves
        for variable in layer.weights
    }


def moved(before, after):
    return {name for name in before if (before[name] != after[name]).any()}


@functools.cache
def random_net(name):
    return build_finetuned(name, 5, weights="none", image_size=32)


# --- Preprocessing


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_preprocessing_is_that_of_keras_applications_to_the_bit(mode, tmp_path):
    generator = np.random.default_rng(0)
    x = np.concatenate(
        [
            generator.integers(0, 256, (8, 24, 20, 3)).astype("float32"),
            generator.uniform(0, 255, (8, 24, 20, 3)).astype("float32"),
        ]
    )
    inputs = keras.Input((24, 20, 3))
    path = tmp_path / "preprocessing.keras"
    keras.Model(inputs, preprocess_input(inputs, mode)).save(path)
    ours = ops.convert_to_numpy(keras.saving.load_model(path)(x))
    expected = imagenet_utils.preprocess_input(
        ops.convert_to_tensor(x), mode=mode
    )
    np.testing.assert_array_equal(ours, ops.convert_to_numpy(expected))
    if keras.backend.backend() != "jax":  # it divides by multiplying
        expected = imagenet_utils.preprocess_input(x.copy(), mode=mode)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name", ["resnet50", "resnet50v2"])
def test_the_backbone_gets_what_its_family_wants(name):
    model = random_net(name)
    family = {
        "resnet50": keras.applications.resnet,
        "resnet50v2": keras.applications.resnet_v2,
    }[name]
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    x = ops.convert_to_tensor(x.astype("float32"))
    given = keras.Model(model.input, model.get_layer("normalization").output)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(given(x)),
        ops.convert_to_numpy(family.preprocess_input(x)),
    )


# --- Backbones


def test_each_row_of_the_table_is_a_net_of_keras_applications_or_ours():
    for backbone in BACKBONES.values():
        assert backbone.application or backbone.arch
        if backbone.application:
            assert hasattr(keras.applications, backbone.application)


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))]
)
def test_logits_are_those_of_a_pytorch_reference(name, blocks, tmp_path):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    references = pytest.importorskip("torch_references")
    net = references.randomized(
        references.Net(
            "torchvision", (64, 128, 256, 512), blocks, stem=7, classes=5
        )
    )
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    model = build_finetuned(name, 5, weights=path, image_size=64)
    model.get_layer("head_dense").set_weights(
        [net.fc.weight.detach().numpy().T, net.fc.bias.detach().numpy()]
    )
    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    with torch.no_grad():
        resized = torch.nn.functional.interpolate(
            references.normalized(x, *IMAGENET), (64, 64), mode="bilinear"
        )
        expected = net(resized).numpy()
    # Another order of sums in float32, over up to 34 layers.
    np.testing.assert_allclose(
        logits_of(model, x), expected, rtol=0, atol=1e-4 * abs(expected).max()
    )


def test_a_pytorch_checkpoint_must_hold_the_net_that_is_asked(tmp_path):
    torch = pytest.importorskip("torch", reason="the file is PyTorch's")
    references = pytest.importorskip("torch_references")
    net = references.Net("torchvision", (64, 128, 256, 512), (2,) * 4, stem=7)
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    with pytest.raises(InputError, match="not resnet50-imagenet"):
        build_finetuned("resnet50", 5, weights=path)


def test_weights_of_keras_applications_from_a_file(tmp_path):
    shape = {"include_top": False, "input_shape": (32, 32, 3)}
    base = keras.applications.ResNet50(weights=None, **shape)
    path = tmp_path / "notop.weights.h5"
    base.save_weights(path)
    model = build_finetuned("resnet50", 5, weights=path, image_size=32)
    held = model.get_layer("backbone").get_weights()
    for one, other in zip(held, base.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "block", "blocks"),
    [
        ("resnet18", "basic_block", [2, 2, 2, 2]),
        ("resnet50", "bottleneck_block", [3, 4, 6, 3]),
    ],
)
def test_a_preset_of_keras_hub(name, block, blocks, tmp_path, monkeypatch):
    hub = pytest.importorskip("keras_hub", reason="extra hub")
    preset = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=blocks,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block,
    )
    generator = np.random.default_rng(0)
    for layer in preset.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.set_weights(generator.uniform(0.5, 1.5, (4, *size)))
    preset.save_to_preset(str(tmp_path / "preset"))
    row = dataclasses.replace(BACKBONES[name], preset=str(tmp_path / "preset"))
    monkeypatch.setitem(BACKBONES, name, row)
    model = build_finetuned(name, 5, weights="hub", image_size=64)
    x = generator.normal(size=(2, 64, 64, 3)).astype("float32")
    ours = ops.convert_to_numpy(model.get_layer("backbone")(x))
    expected = ops.convert_to_numpy(preset(x))
    np.testing.assert_allclose(
        ours, expected, rtol=0, atol=1e-4 * abs(expected).max()
    )


def test_own_net_brings_its_weights_and_normalization(own_net):
    model = build_finetuned(own_net, 5)
    model.get_layer("head_dense").set_weights(
        [np.eye(16, 5, dtype="float32"), np.zeros(5, "float32")]
    )
    own = load_model(own_net)
    features = keras.Model(own.input, own.get_layer("head_pool").output)
    x = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), "uint8")
    np.testing.assert_allclose(
        logits_of(model, x), logits_of(features, x)[:, :5], rtol=1e-5
    )
    assert model.name == "finetuned-own"


def test_own_net_at_another_size(own_net):
    model = build_finetuned(own_net, 5, image_size=48)
    assert model.input_shape == (None, 32, 32, 3)
    assert model.get_layer("backbone").input_shape == (None, 48, 48, 3)


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty home of caches, and downloads that fail."""
    for variable in ("KERAS_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setattr(
        "keras.src.backend.config._KERAS_DIR", str(tmp_path / "KERAS_HOME")
    )

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)
    return tmp_path


@pytest.mark.parametrize("name", ["resnet18", "resnet50v2"])
def test_a_missing_download_says_which_file_and_where_to_put_it(
    name, no_network
):
    with pytest.raises(InputError) as error:
        build_finetuned(name, 5, image_size=32)
    told = str(error.value)
    assert "\n" not in told
    for part in (
        BACKBONES[name].file,
        str(no_network / "KERAS_HOME" / "models"),
        "no route to host",
        "--weights",
    ):
        assert part in told


def test_a_copy_in_the_cache_of_torch_is_found(no_network):
    torch = pytest.importorskip("torch", reason="the file is PyTorch's")
    references = pytest.importorskip("torch_references")
    net = references.Net("torchvision", (64, 128, 256, 512), (2,) * 4, stem=7)
    folder = no_network / "TORCH_HOME" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / BACKBONES["resnet18"].file)
    assert build_finetuned("resnet18", 5, image_size=32).built


def test_a_damaged_download_is_not_kept(no_network, monkeypatch):
    file = BACKBONES["resnet18"].file

    def damaged(origin, path, hook):
        Path(path).write_bytes(b"half of it")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", damaged)
    with pytest.raises(InputError, match="damaged"):
        build_finetuned("resnet18", 5, image_size=32)
    assert not (no_network / "KERAS_HOME" / "models" / file).exists()


@pytest.mark.parametrize(
    ("backbone", "arguments", "word"),
    [
        ("resnet19", {}, "resnet18"),
        ("nowhere.keras", {}, "no model at"),
        ("resnet18", {"weights": "imagnet"}, "imagenet, none"),
        ("resnet50", {"weights": "nowhere.h5"}, "no weights at nowhere.h5"),
        ("resnet18", {"weights": "nowhere.pth"}, "no checkpoint at"),
        ("resnet50v2", {"weights": "some.pth"}, "no PyTorch checkpoints"),
        ("resnet34", {"weights": "hub"}, "KerasHub has no resnet34"),
        ("resnet18", {"weights": "none", "image_size": 16}, "32 to 1024"),
        ("resnet18", {"weights": "none", "freeze": "stage9"}, "stage4"),
        ("resnet18", {"num_classes": 0}, "num_classes"),
    ],
)
def test_bad_input(backbone, arguments, word):
    with pytest.raises(InputError, match=word) as error:
        build_finetuned(backbone, **({"num_classes": 5} | arguments))
    assert "\n" not in str(error.value)


def test_a_damaged_file_of_weights(tmp_path):
    path = tmp_path / "damaged.weights.h5"
    path.write_bytes(b"\x89HDF but no more")
    with pytest.raises(InputError, match="cannot load") as error:
        build_finetuned("resnet50", 5, weights=path, image_size=32)
    assert "\n" not in str(error.value)


# --- What trains


@pytest.mark.parametrize(
    ("layer", "stage"),
    [
        ("stem_conv", 0),
        ("stage1_block0_conv1", 1),
        ("stage4_block1_shortcut_bn", 4),
        ("head_bn", 5),
        ("conv1_bn", 0),
        ("conv2_block1_0_conv", 1),
        ("conv5_block3_3_bn", 4),
        ("post_bn", 5),
    ],
)
def test_stages_by_name(layer, stage):
    assert stage_of(layer) == stage


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50v2"])
@pytest.mark.parametrize("freeze", FREEZE)
def test_what_is_frozen(name, freeze):
    model = random_net(name)
    freeze_backbone(model, freeze)
    trains = {
        stage_of(layer.name)
        for layer in leaf_layers(model.get_layer("backbone"))
        if layer.trainable_weights
    }
    last = {"all": 4, "none": -1}.get(freeze, freeze[-1])
    assert trains == set(range(int(last) + 1, 5))
    assert len(model.get_layer("head_dense").trainable_weights) == 2
    for layer in leaf_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            assert not layer.trainable_weights


def test_a_stage_that_the_backbone_lacks(own_net):
    with pytest.raises(InputError, match="3 stages"):
        build_finetuned(own_net, 5, freeze="stage4")


def test_a_model_without_a_backbone(tiny_model):
    with pytest.raises(InputError, match="build_finetuned"):
        freeze_backbone(tiny_model(), "all")


def test_training_moves_only_what_should_train(own_net, tiny_data):
    model = build_finetuned(own_net, 10)
    before = weights_of(model)
    finetune(
        model,
        tiny_data,
        freeze="stage2",
        head_epochs=0,
        verbose=False,
        **GENTLE,
    )
    changed = moved(before, weights_of(model))
    assert changed == {
        name
        for name in before
        if name.startswith(("stage3", "head")) and "_bn" not in name
    }


def test_the_head_phase_moves_the_head_alone(own_net, tiny_data):
    model = build_finetuned(own_net, 10)
    before = weights_of(model)
    options = {"freeze": "all", "head_epochs": 0, "verbose": False}
    finetune(model, tiny_data, **options, **GENTLE)
    assert moved(before, weights_of(model)) == {
        "head_dense/kernel",
        "head_dense/bias",
    }


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
    changed = moved(before, weights_of(model))
    assert "stage1_block0_conv1/kernel" in changed
    assert not [name for name in changed if "_bn" in name]


def test_random_weights_train_their_norm(tiny_data, own_net):
    model = build_finetuned(own_net, 10, train_norm=True)
    before = weights_of(model)
    finetune(
        model,
        tiny_data,
        freeze="stage1",
        head_epochs=0,
        train_norm=True,
        verbose=False,
        **GENTLE,
    )
    changed = moved(before, weights_of(model))
    assert "stage2_block0_bn1/moving_mean" in changed
    assert not [name for name in changed if name.startswith(("stem", "stage1"))]


# --- Phases, folders, resumption


class Interrupt(Exception):
    pass


def test_two_phases_and_a_resumption_that_ends_as_if_never_stopped(
    own_net, tiny_data, tmp_path, monkeypatch
):
    def run(folder, **more):
        keras.utils.set_random_seed(0)
        return finetune(
            build_finetuned(own_net, 10),
            tiny_data,
            output_dir=tmp_path / folder,
            head_epochs=2,
            head_learning_rate=0.01,
            cache_features=True,
            verbose=False,
            **GENTLE,
            **more,
        )

    whole = run("whole")
    assert whole.directory == tmp_path / "whole" / "tuned"
    head, tuned = (
        json.loads((tmp_path / "whole" / name / "config.json").read_text())
        for name in ("head", "tuned")
    )
    rates = [held["recipe"]["learning_rate"] for held in (head, tuned)]
    assert rates == [0.01, 1e-3]
    assert [held["recipe"]["epochs"] for held in (head, tuned)] == [2, 1]
    assert head["parameters"] == 16 * 10 + 10
    # The crop has the size at which the backbone works.
    assert tuned["recipe"]["random_resized_crop"] == 32

    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "train", interrupted)
        with pytest.raises(Interrupt):
            run("stopped")
    resumed = run("stopped", resume=True)
    for one, other in zip(
        whole.model.get_weights(), resumed.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="another freeze"):
        run("stopped", resume=True, freeze="stage1")
    with pytest.raises(InputError, match="not empty"):
        run("stopped")


def test_each_phase_is_backed_up_and_repeated_as_asked(
    own_net, tiny_data, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        finetuning, "train", lambda *_, **options: asked.append(options)
    )
    finetune(
        build_finetuned(own_net, 10),
        tiny_data,
        output_dir=tmp_path / "run",
        backup_every="30s",
        deterministic=True,
        **GENTLE,
    )
    assert [options["backup_every"] for options in asked] == ["30s", "30s"]
    assert all(options["deterministic"] for options in asked)


def interrupted(*args, **kwargs):
    raise Interrupt


def test_cached_features_train_the_same_head(own_net, tiny_data, tmp_path):
    model = build_finetuned(own_net, 10)
    start = model.get_weights()
    plain = {"flip": False, "random_resized_crop": 0, "label_smoothing": 0.1}
    # One batch of all images: no order to differ in.
    options = {**GENTLE, **plain, "batch_size": 256, "epochs": 3}
    ends = {}
    for cached in (False, True):
        model.set_weights(start)
        run = finetune(
            model,
            tiny_data,
            output_dir=tmp_path / f"{cached}",
            freeze="all",
            head_epochs=0,
            cache_features=cached,
            verbose=False,
            **options,
        )
        ends[cached] = model.get_weights()
        assert [row["epoch"] for row in run.history] == [1, 2, 3]
    for one, other in zip(ends[False], ends[True], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    folder = tmp_path / "True" / "tuned"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "history.csv",
        "metrics.json",
        "last.keras",
    }
    again = finetune(
        model,
        tiny_data,
        output_dir=tmp_path / "True",
        freeze="all",
        head_epochs=0,
        cache_features=True,
        resume=True,
        verbose=False,
        **options,
    )
    assert again.history == run.history
    assert again.metrics == run.metrics


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


# --- The command


def test_the_command_and_its_resumption(own_net, tiny_cifar, tmp_path, capsys):
    out = tmp_path / "run"
    data = ["--dataset", "cifar10", "--data-dir", tiny_cifar]
    command = ["finetune", "--backbone", own_net, *data, "--allow-unverified"]
    options = ["--head-epochs", 1, "--epochs", 1, "--freeze", "stage1"]
    options += ["--output-dir", out, "--quiet", "--backup-every", "1"]
    assert run_cli(*command, *options) == 0
    told = capsys.readouterr().out
    assert "finetuned-own on cifar10" in told
    assert "top-1" in told
    assert run_cli("finetune", "--resume", out, "--quiet") == 0
    kinds = {type(x) for x in leaf_layers(load_model(out / "tuned/last.keras"))}
    assert all(kind.__module__.startswith("keras.") for kind in kinds)
    assert run_cli("evaluate", out / "tuned", "--data-dir", tiny_cifar) == 0


def run_cli(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "--backbone"),
        (["--backbone", "resnet19"], "resnet18"),
        (["--backbone", "resnet18", "--dataset", "cifar11"], "cifar10"),
        (["--backbone", "resnet18", "--recipe", "fine"], "coursework-finetune"),
        (["--resume", "nowhere"], "nowhere holds no fine-tuning run"),
        (["--resume", "nowhere", "--freeze", "all"], "nowhere"),
    ],
)
def test_bad_options_are_told_at_once(options, word, capsys):
    assert run_cli("finetune", *options) == 2
    told = capsys.readouterr().err
    assert word in told
    assert told.count("\n") == 1


def test_training_from_scratch_by_a_recipe_for_larger_crops(tiny_cifar, capsys):
    command = ["train", "--recipe", "coursework-finetune", "--arch", "resnet8"]
    data = ["--dataset", "cifar10", "--data-dir", tiny_cifar]
    assert run_cli(*command, *data, "--allow-unverified") == 2
    assert "random_resized_crop=224" in capsys.readouterr().err


def test_a_plan_without_its_phases(tmp_path, capsys):
    recipe = get_recipe("paper")
    PhasedDirectory(tmp_path).write_plan({"recipe": recipe})
    assert run_cli("finetune", "--resume", tmp_path) == 2
    assert "no phase that has begun" in capsys.readouterr().err


def test_a_damaged_plan(tmp_path, capsys):
    (tmp_path / "finetune.json").write_text('{"recipe": {"name": 3')
    assert run_cli("finetune", "--resume", tmp_path) == 2
    assert "finetune.json" in capsys.readouterr().err


def test_the_folder_of_both_phases_means_the_newest(tmp_path):
    assert newest_run(tmp_path).path == tmp_path
    for name in PHASES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert newest_run(tmp_path).path == tmp_path / name
