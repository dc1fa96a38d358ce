"""Assembles a ResNet: stem, stages and head as a functional `keras.Model`."""

import numbers
from collections.abc import Iterator
from typing import Any

import keras
from keras import KerasTensor, layers

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models import blocks
from keras_resnet_cifar.models.architectures import Architecture
from keras_resnet_cifar.models.normalization import input_normalization

# Keras traverses a functional graph recursively, one frame per layer, to build
# and load it. Nets of more blocks than this consist of sub-models, so that they
# stay within Python's default recursion limit wherever they are loaded.
FLAT_BLOCKS = 54  # ResNet-110 and the bottleneck 164 have 54
GROUP_BLOCKS = 27


def assemble(
    net: Architecture,
    num_classes: int = 10,
    input_shape: tuple[int | None, int | None, int] | None = None,
    normalization: Any = "cifar10",
    activation: str | None = None,
) -> keras.Model:
    """Returns the model of an architecture, with random weights.

    The arguments are those of `build_resnet`.
    """
    check_head(num_classes, activation)
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            "nets take [N, H, W, C]: call "
            "keras.config.set_image_data_format('channels_last')"
        )
    side = 224 if net.stem == "imagenet" else 32
    shape = input_shape or (side, side, 3)
    shape = _checked_input_shape(shape, len(net.widths))
    inputs = keras.Input(shape, name="image")
    normalize = input_normalization(normalization, "normalization", shape[2])
    x = normalize(inputs)
    x = blocks.STEMS[net.stem](x, net.stem_width, net.preactivation)
    x = _stages(x, net)
    if net.preactivation and net.final_norm:
        x = blocks.relu(blocks.norm(x, "head_bn"), "head_relu")
    return keras.Model(inputs, head(x, num_classes, activation), name=net.name)


def _stages(x: KerasTensor, net: Architecture) -> KerasTensor:
    """Applies all blocks; those of a deep net are grouped into sub-models."""
    plan = [
        (f"stage{stage}_block{i}", width, 2 if stage > 1 and i == 0 else 1)
        for stage, (width, count) in enumerate(
            zip(net.widths, net.stage_blocks, strict=True), start=1
        )
        for i in range(count)
    ]
    block = blocks.BLOCKS[net.block, net.preactivation]

    def apply(x, plan):
        for name, filters, strides in plan:
            x = block(x, filters, strides, net.shortcut, name)
        return x

    if len(plan) <= FLAT_BLOCKS:
        return apply(x, plan)
    for i in range(0, len(plan), GROUP_BLOCKS):
        group = plan[i : i + GROUP_BLOCKS]
        inputs = keras.Input(x.shape[1:], dtype=x.dtype)
        name = f"{group[0][0]}_to_{group[-1][0]}"
        x = keras.Model(inputs, apply(inputs, group), name=name)(x)
    return x


def leaf_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields a model's layers in order, including those of sub-models."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        else:
            yield layer


def head(
    x: KerasTensor, num_classes: int, activation: str | None = None
) -> KerasTensor:
    """Global average pooling, and a dense layer in float32."""
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return layers.Dense(
        int(num_classes),
        activation=activation,
        kernel_initializer="he_normal",
        dtype="float32",  # logits keep their digits under mixed precision
        name="head_dense",
    )(x)


def check_head(num_classes: int, activation: str | None = None) -> None:
    """Raises `InputError` unless `head` accepts these arguments."""
    whole = isinstance(num_classes, numbers.Integral)
    if not whole or isinstance(num_classes, bool) or num_classes < 1:
        raise InputError(
            f"num_classes={num_classes!r}: give a positive number of classes"
        )
    try:
        keras.activations.get(activation)
    except ValueError as error:
        raise InputError(
            f"activation={activation!r}: give None for logits, 'softmax', or "
            "the name of another Keras activation"
        ) from error


def _checked_input_shape(shape: Any, stages: int) -> tuple:
    smallest = 2 ** (stages - 1)
    shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    sides = [side for side in shape if side is not None]
    whole = all(isinstance(side, numbers.Integral) for side in sides)
    if not whole or len(shape) != 3 or shape[2] not in (1, 3):
        raise InputError(
            f"input_shape={shape}: give (height, width, 3), channels last, or "
            "1 for grayscale"
        )
    if min(sides[:-1], default=smallest) < smallest:
        raise InputError(
            f"input_shape={shape} is too small for {stages} stages: give at "
            f"least {smallest} x {smallest}"
        )
    return shape
