"""Backbones: their weights, and what they are given."""

import dataclasses
import functools
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import refusal
from keras import ops
from keras.applications import imagenet_utils

from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.finetuning.backbones import BACKBONES, FREEZE
from keras_resnet_cifar.finetuning.finetune import (
    build_finetuned,
    freeze_backbone,
    stage_of,
)
from keras_resnet_cifar.models.nets import leaf_layers
from keras_resnet_cifar.models.normalization import IMAGENET, preprocess_input
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.saving import load_model

slow = pytest.mark.slow


@functools.cache
def random_net(name):
    return build_finetuned(name, 5, weights="none", image_size=32)


def refused(backbone, **arguments):
    arguments = {"num_classes": 5, "image_size": 32} | arguments
    return refusal(functools.partial(build_finetuned, backbone, **arguments))


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


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet50", keras.applications.resnet),
        ("resnet50v2", keras.applications.resnet_v2),
    ],
)
def test_the_backbone_gets_what_its_family_expects(name, family):
    model = random_net(name)
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    x = ops.convert_to_tensor(x.astype("float32"))
    given = keras.Model(model.input, model.get_layer("normalization").output)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(given(x)),
        ops.convert_to_numpy(family.preprocess_input(x)),
    )


# --- Weights


def test_each_row_of_the_table_is_a_net_of_keras_applications_or_ours():
    for backbone in BACKBONES.values():
        assert backbone.application or backbone.arch
        if backbone.application:
            assert hasattr(keras.applications, backbone.application)
        else:  # torchvision's names end in the first digits of the digest
            assert backbone.file.endswith(f"-{backbone.sha256[:8]}.pth")


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", (2, 2, 2, 2)),
        pytest.param("resnet34", (3, 4, 6, 3), marks=slow),
    ],
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
        ops.convert_to_numpy(model(x)),
        expected,
        rtol=0,
        atol=1e-4 * abs(expected).max(),
    )


def test_a_pytorch_checkpoint_must_hold_the_net_that_is_named(tmp_path):
    torch = pytest.importorskip("torch", reason="the file is PyTorch's")
    references = pytest.importorskip("torch_references")
    net = references.Net("torchvision", (64, 128, 256, 512), (2,) * 4, stem=7)
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    assert "not resnet50-imagenet" in refused("resnet50", weights=path)


@pytest.mark.slow
def test_weights_of_keras_applications_from_a_file(tmp_path):
    expected = random_net("resnet50").get_layer("backbone")
    path = tmp_path / "notop.weights.h5"
    expected.save_weights(path)
    model = build_finetuned("resnet50", 5, weights=path, image_size=32)
    weights = model.get_layer("backbone").get_weights()
    for one, other in zip(weights, expected.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "block", "blocks"),
    [
        ("resnet18", "basic_block", [2, 2, 2, 2]),
        pytest.param("resnet50", "bottleneck_block", [3, 4, 6, 3], marks=slow),
    ],
)
def test_a_preset_of_keras_hub(
    name, block, blocks, randomize_norms, tmp_path, monkeypatch
):
    hub = pytest.importorskip("keras_hub", reason="extra hub")
    preset = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=blocks,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block,
    )
    randomize_norms(preset)
    preset.save_to_preset(str(tmp_path / "preset"))
    row = dataclasses.replace(BACKBONES[name], preset=str(tmp_path / "preset"))
    monkeypatch.setitem(BACKBONES, name, row)
    model = build_finetuned(name, 5, weights="hub", image_size=64)
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    ours = ops.convert_to_numpy(model.get_layer("backbone")(x))
    expected = ops.convert_to_numpy(preset(x))
    np.testing.assert_allclose(
        ours, expected, rtol=0, atol=1e-4 * abs(expected).max()
    )
    # Names as in `build_resnet`: `freeze` and `convert` go by them.
    names = {x.name for x in leaf_layers(random_net("resnet18")) if x.weights}
    if name == "resnet18":
        assert names == {x.name for x in leaf_layers(model) if x.weights}


def test_a_preset_that_cannot_be_loaded(monkeypatch):
    missing = dataclasses.replace(BACKBONES["resnet18"], preset="/nowhere")
    monkeypatch.setitem(BACKBONES, "resnet18", missing)
    message = refused("resnet18", weights="hub")
    assert "KerasHub cannot load /nowhere" in message
    assert "pip install keras-hub" in message


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


def test_a_named_net_with_its_weights():
    model = build_finetuned("resnet8", 5, weights="shapes")
    assert model.get_layer("backbone").input_shape == (None, 32, 32, 3)
    source = build_resnet("resnet8", weights="shapes")
    backbone = model.get_layer("backbone")
    for one, other in zip(
        backbone.get_weights(), source.get_weights()[:-2], strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_own_net_at_another_size(own_net):
    model = build_finetuned(own_net, 5, image_size=np.int64(48))
    assert model.input_shape == (None, 32, 32, 3)
    assert model.get_layer("backbone").input_shape == (None, 48, 48, 3)


def test_own_net_of_images_that_are_not_square(tiny_model, tmp_path):
    path = tmp_path / "wide.keras"
    tiny_model(input_shape=(32, 40, 3)).save(path)
    assert "32 x 40" in refused(path, image_size=None)


# --- Downloads


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Empty caches; a list of the files that are asked of the network.

    The network answers with damaged files.
    """
    for variable in ("KERAS_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    monkeypatch.setattr(
        "keras.src.backend.config._KERAS_DIR", str(tmp_path / "KERAS_HOME")
    )
    requested = []

    def retrieve(origin, path, hook):
        requested.append(origin)
        Path(path).write_bytes(b"half of it")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", retrieve)
    return requested


@pytest.mark.parametrize("name", ["resnet18", "resnet50v2"])
def test_a_missing_download_says_which_file_and_where_to_put_it(
    name, downloads, tmp_path, monkeypatch
):
    def refuse(*arguments):
        raise OSError("no route to host")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)
    message = refused(name)
    assert BACKBONES[name].file in message
    assert str(tmp_path / "KERAS_HOME" / "models") in message
    assert "no route to host" in message
    assert "weights='none'" in message


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("resnet50v2", marks=slow)]
)
def test_a_damaged_download_is_never_used(name, downloads):
    for times in (1, 2):  # what the first one left is not taken either
        assert "Incomplete or corrupted file" in refused(name)
        assert len(downloads) == times
    assert downloads[0].endswith(BACKBONES[name].file)


def test_a_copy_in_the_cache_of_torch_is_taken(downloads, tmp_path):
    folder = tmp_path / "TORCH_HOME" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / BACKBONES["resnet18"].file).touch()
    message = refused("resnet18")
    assert f"{folder / BACKBONES['resnet18'].file} is empty" in message
    assert not downloads


# --- Bad input


@pytest.mark.parametrize(
    ("backbone", "arguments", "part"),
    [
        ("resnet19", {}, "resnet18"),
        ("resnet20", {}, "such as weights=cifar10"),
        ("resnet19", {"weights": "shapes"}, "no ResNet of basic blocks"),
        ("resnet20", {"weights": "shapes"}, "only for resnet8"),
        ("runs/nowhere", {}, "backbone=runs/nowhere does not exist"),
        ("nowhere.keras", {}, "no model at"),
        ("nowhere.keras", {"weights": "none"}, "omit weights="),
        ("resnet18", {"weights": "imagnet"}, "'imagenet', 'none'"),
        ("resnet50", {"weights": "nowhere.h5"}, "no weights at nowhere.h5"),
        ("resnet18", {"weights": "nowhere.pth"}, "no checkpoint at"),
        ("resnet50v2", {"weights": "some.pth"}, "no PyTorch checkpoints"),
        ("resnet34", {"weights": "hub"}, "KerasHub has no resnet34"),
        ("resnet18", {"weights": "none", "image_size": 16}, "32 to 1024"),
        ("resnet18", {"weights": "none", "image_size": 0}, "image_size=0"),
        ("resnet18", {"weights": "none", "freeze": "stage9"}, "stage4"),
        ("resnet18", {"num_classes": 0}, "num_classes"),
    ],
)
def test_bad_input(backbone, arguments, part):
    assert part in refused(backbone, **arguments)


def test_a_damaged_file_of_weights(tmp_path):
    path = tmp_path / "damaged.weights.h5"
    path.write_bytes(b"\x89HDF but no more")
    assert "cannot load" in refused("resnet50", weights=path)


def test_a_net_without_pooling(tmp_path):
    path = tmp_path / "flat.keras"
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, x).save(path)
    assert "GlobalAveragePooling2D" in refused(path)


# --- Stages


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
    assert "3 stages" in refused(own_net, freeze="stage4")


def test_a_model_without_a_backbone(tiny_model):
    assert "build_finetuned" in refusal(freeze_backbone, tiny_model(), "all")
