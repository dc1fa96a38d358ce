"""The builder: parameters, shapes, padding and arguments."""

import keras
import numpy as np
import pytest

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.architectures import (
    ARCHITECTURES,
    resolve,
)
from keras_resnet_cifar.models.resnet import build_resnet


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def parameters(arch, classes):
    """Trainable parameters of an architecture, by arithmetic.

    A convolution has a kernel and, unless nothing follows it, a BatchNorm of
    its outputs (of its inputs in a pre-activation block) with two per channel.
    """
    imagenet, before = arch.stem == "imagenet", arch.preactivation
    channels = arch.stem_width
    total = 3 * channels * (49 if imagenet else 9)
    total += 2 * channels * (imagenet or not before)
    for stage, (width, blocks) in enumerate(
        zip(arch.widths, arch.stage_blocks, strict=True)
    ):
        for block in range(blocks):
            if arch.block == "basic":
                convs = [(9, channels, width), (9, width, width)]
            else:
                convs = [(1, channels, width), (9, width, width)]
                convs += [(1, width, 4 * width)]
            outputs = convs[-1][2]
            total += sum(
                k * i * o + 2 * (i if before else o) for k, i, o in convs
            )
            changes = channels != outputs or (stage > 0 and block == 0)
            if changes and arch.shortcut != "identity":
                kernel = 9 if arch.shortcut == "conv3x3" else 1
                total += kernel * channels * outputs
                total += 2 * outputs * (not before)
            channels = outputs
    total += 2 * channels * (before and arch.final_norm)
    return total + (channels + 1) * classes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_table_has_the_parameters_for_10_classes(name):
    assert ARCHITECTURES[name].parameters == parameters(resolve(name), 10)


# As published: option A, option B with BatchNorm, and pre-activation nets with
# projections, for 100 classes (those for 10 are in the table of names).
PUBLISHED = {
    "resnet20": 275_572,
    "resnet32": 470_004,
    "resnet44": 664_436,
    "resnet56": 858_868,
    "resnet110": 1_733_812,
    "resnet1202": 19_427_124,
    "resnet20-projection": 278_324,
    "resnet32-projection": 472_756,
    "resnet44-projection": 667_188,
    "resnet56-projection": 861_620,
    "resnet110-projection": 1_736_564,
    "resnet1202-projection": 19_429_876,
    "resnet20-preact": 278_132,
    "resnet56-preact": 861_428,
    "resnet110-preact": 1_736_372,
    "resnet164-bottleneck-preact": 1_726_388,
    "resnet1001-bottleneck-preact": 10_350_836,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_for_100_classes(name):
    assert parameters(resolve(name), 100) == PUBLISHED[name]


# Of the nets with over 1,000 layers, which take about a minute each, one is
# built; the arithmetic agrees with all that are built.
BUILT = [
    name
    for name in ARCHITECTURES
    if resolve(name).depth < 1000 or name == "resnet1202"
]


# The deepest are built once, for 10 classes, below.
@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in PUBLISHED if "net1" not in x])
def test_a_built_net_has_the_published_parameters(name):
    model = build_resnet(name, num_classes=100)
    assert trainable(model) == PUBLISHED[name]
    keras.backend.clear_session()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "resnet8" else pytest.mark.slow)
        for name in BUILT
    ],
)
def test_a_named_net_has_its_parameters_and_shape(name):
    model = build_resnet(name)
    assert model.name == name
    assert trainable(model) == ARCHITECTURES[name].parameters
    side = 224 if name.endswith("imagenet") else 32
    assert model.input_shape == (None, side, side, 3)
    assert model.output_shape == (None, 10)
    keras.backend.clear_session()


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("shortcut", ["identity", "projection", "conv3x3"])
def test_every_block_halves_what_it_should(block, preactivation, shortcut):
    """The sides are even and odd: 18, 9, 5 and 23, 12, 6."""
    shape = {"block": block, "preactivation": preactivation}
    shape |= {"shortcut": shortcut, "widths": (2, 4, 8)}
    model = build_resnet(
        stage_blocks=(1, 2, 1), input_shape=(18, 23, 3), **shape
    )
    expansion = 4 if block == "bottleneck" else 1
    sides = [(18, 23), (9, 12), (5, 6)]
    for stage, width in enumerate((2, 4, 8)):
        outputs = model.get_layer(f"stage{stage + 1}_block0_add").output
        assert outputs.shape == (None, *sides[stage], width * expansion)
    arch = resolve(stage_blocks=(1, 2, 1), **shape)
    assert trainable(model) == parameters(arch, 10)
    logits = model(np.zeros((2, 18, 23, 3), "uint8"))
    assert tuple(logits.shape) == (2, 10)


def test_imagenet_stem_divides_by_four():
    model = build_resnet("resnet18-imagenet", num_classes=1000)
    assert model.get_layer("stage1_block0_add").output.shape[1:3] == (56, 56)
    assert trainable(model) == 11_689_512  # torchvision's resnet18


def test_the_literature_is_in_the_layers():
    model = build_resnet("resnet20")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias
            # He: variance 2 / fan-in; 432 to 36,864 draws each.
            kernel = np.asarray(layer.get_weights()[0])
            fan_in = np.prod(kernel.shape[:3])
            assert np.isclose(kernel.std(), np.sqrt(2 / fan_in), rtol=0.15)
    assert model.get_layer("stage2_block0_conv1").strides == (2, 2)


def test_stride_pads_both_sides():
    """Output pixel (0, 0) of a strided 3x3 sees input rows -1, 0 and 1."""
    model = build_resnet(stage_blocks=(1, 1), widths=(1, 1), normalization=None)
    pad = model.get_layer("stage2_block0_conv1_pad")
    conv = model.get_layer("stage2_block0_conv1")
    conv.set_weights([np.ones((3, 3, 1, 1), "float32")])
    image = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    output = keras.ops.convert_to_numpy(conv(pad(image)))[0, :, :, 0]
    assert output.tolist() == [[10, 24], [51, 90]]


def test_option_a_subsamples_and_pads_channels_with_zeros():
    model = build_resnet(
        stage_blocks=(1, 1), widths=(2, 5), shortcut="identity"
    )
    before = model.get_layer("stage1_block0_relu2").output
    after = model.get_layer("stage2_block0_shortcut_pad").output
    path = keras.Model(before, after)
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 2)).astype("float32")
    # The layers are convolutional: any size of input passes.
    x = np.tile(x, (1, 7, 5, 1))[:, :32, :32]
    y = keras.ops.convert_to_numpy(path(x))
    assert y.shape == (2, 16, 16, 5)
    np.testing.assert_array_equal(y[..., 1:3], x[:, ::2, ::2])
    assert not y[..., [0, 3, 4]].any()


def test_images_are_raw_and_any_dtype_gives_the_same_logits(tiny_model):
    model = tiny_model()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3))
    as_bytes = keras.ops.convert_to_numpy(model(images.astype("uint8")))
    as_floats = keras.ops.convert_to_numpy(model(images.astype("float32")))
    np.testing.assert_array_equal(as_bytes, as_floats)
    assert as_bytes.std() > 0


def test_logits_are_float32_under_mixed_precision(tiny_model):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = tiny_model()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert model.get_layer("normalization").compute_dtype == "float32"
    assert model.output.dtype == "float32"


def test_numbers_of_numpy(tiny_model):
    assert tiny_model(num_classes=np.int64(3)).output_shape == (None, 3)


def test_activation_makes_probabilities(tiny_model):
    model = tiny_model(activation="softmax")
    output = keras.ops.convert_to_numpy(model(np.zeros((2, 32, 32, 3))))
    np.testing.assert_allclose(output.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"activation": "foo"}, "activation"),
        ({"input_shape": 32}, "input_shape"),
        ({"input_shape": ("a", 32, 3)}, "input_shape"),
        ({"input_shape": (32, 32)}, "input_shape"),
        ({"input_shape": (3, 32, 32)}, "channels last"),
        ({"input_shape": (2, 2, 3)}, "too small"),
        ({"normalization": "mnist"}, "normalization"),
        ({"normalization": (0.5, 0.5)}, "normalization"),
        ({"normalization": ((0, 0, 0), (0, 1, 1))}, "normalization"),
    ],
)
def test_bad_arguments(kwargs, word):
    with pytest.raises(InputError, match=word):
        build_resnet("resnet8", **kwargs)
