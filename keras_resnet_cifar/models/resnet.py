"""`build_resnet`: stem, stages and head as a functional `keras.Model`."""

import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import KerasTensor, layers

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models import blocks
from keras_resnet_cifar.models.architectures import Architecture, resolve
from keras_resnet_cifar.models.normalization import input_normalization

# Keras walks a functional graph recursively, one frame per layer, to build and
# to load it. Nets of more blocks than this consist of sub-models, so that they
# stay within Python's default recursion limit wherever they are loaded.
FLAT_BLOCKS = 54  # ResNet-110 and the bottleneck 164 have 54
GROUP_BLOCKS = 27


def build_resnet(
    arch: str | None = None,
    *,
    depth: int | None = None,
    block: str | None = None,
    preactivation: bool | None = None,
    shortcut: str | None = None,
    widths: Sequence[int] | None = None,
    stage_blocks: Sequence[int] | None = None,
    stem: str | None = None,
    final_norm: bool | None = None,
    num_classes: int = 10,
    input_shape: tuple[int | None, int | None, int] | None = None,
    normalization: Any = "cifar10",
    activation: str | None = None,
) -> keras.Model:
    """Builds a ResNet of the literature as a functional `keras.Model`.

    The model takes raw images `[N, H, W, 3]`, uint8 or float from 0 to 255,
    normalizes them, and returns float32 logits `[N, num_classes]`, also under
    a mixed precision policy. It consists of stock Keras layers only.

    Args:
        arch: A name such as `"resnet20"`; see `list_architectures()`.
        depth: Instead of a name: weight layers on the main path; 6n+2 (basic),
            9n+2 (bottleneck), or 18, 34, 50, 101, 152 for four-stage nets.
        block: `"basic"` (3x3, 3x3) or `"bottleneck"` (1x1, 3x3, 1x1, the last
            four times as wide).
        preactivation: Whether BatchNorm and ReLU precede each convolution.
        shortcut: `"identity"` (option A: subsampled, zero-padded),
            `"projection"` (option B: 1x1) or `"conv3x3"`, where the shape
            changes.
        widths: Filters of each stage, before a bottleneck's expansion.
        stage_blocks: Blocks of each stage.
        stem: `"cifar"` (3x3) or `"imagenet"` (7x7 stride 2, max pooling).
        final_norm: `False` omits the BatchNorm and ReLU at the end of a
            pre-activation net, as in kuangliu/pytorch-cifar.
        num_classes: Size of the output.
        input_shape: `(H, W, 3)`; by default 32x32, or 224x224 with the
            ImageNet stem. `None` for H and W takes any size.
        normalization: A data set's name (its channel statistics),
            `"imagenet"`, `(mean, std)` in 0 to 1, `"per_image"`, or `None`
            (only scaled to 0 to 1).
        activation: Of the head: `None` for logits, or e.g. `"softmax"`.

    Returns:
        A `keras.Model` named after the architecture, built, not compiled.
        Nets of more than 54 blocks hold their blocks in sub-models.

    Raises:
        InputError: No net has this name or depth (the message suggests
            others), or the arguments contradict each other.

    Example:
        >>> model = build_resnet("resnet20")
        >>> model.count_params()  # 269,722 and the BatchNorm statistics
        271098
    """
    net = resolve(
        arch,
        depth=depth,
        block=block,
        preactivation=preactivation,
        shortcut=shortcut,
        widths=widths,
        stage_blocks=stage_blocks,
        stem=stem,
        final_norm=final_norm,
    )
    check_head(num_classes, activation)
    side = 224 if net.stem == "imagenet" else 32
    shape = input_shape or (side, side, 3)
    shape = _checked_input_shape(shape, len(net.widths))
    inputs = keras.Input(shape, name="image")
    x = input_normalization(normalization, name="normalization")(inputs)
    x = blocks.STEMS[net.stem](x, net.widths[0], net.preactivation)
    x = _stages(x, net)
    if net.preactivation and net.final_norm:
        x = blocks.relu(blocks.norm(x, "head_bn"), "head_relu")
    return keras.Model(inputs, head(x, num_classes, activation), name=net.name)


def _stages(x: KerasTensor, net: Architecture) -> KerasTensor:
    """Applies all blocks, those of a deep net in groups, as sub-models."""
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
    """Yields a model's layers in order, those of sub-models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        else:
            yield layer


def head(
    x: KerasTensor, num_classes: int, activation: str | None = None
) -> KerasTensor:
    """Global average pooling and a dense layer, in float32."""
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return layers.Dense(
        num_classes,
        activation=activation,
        kernel_initializer="he_normal",
        dtype="float32",  # logits keep their digits under mixed precision
        name="head_dense",
    )(x)


def check_head(num_classes: int, activation: str | None = None) -> None:
    """Raises `InputError` unless `head` can be built of its arguments."""
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
    if not whole or len(shape) != 3 or shape[2] != 3:
        raise InputError(
            f"input_shape={shape}: give (height, width, 3), channels last"
        )
    if min(sides[:-1], default=smallest) < smallest:
        raise InputError(
            f"input_shape={shape} is too small for {stages} stages: give at "
            f"least {smallest} x {smallest}"
        )
    return shape
