"""`build_resnet`: stem, stages and head as a functional `keras.Model`."""

import numbers

import keras
from keras import layers

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models import blocks
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.models.normalization import input_normalization

# Keras walks a functional graph recursively, a frame a layer, when it builds
# and when it loads. Nets of more blocks than this are built of sub-models, so
# that Python's default recursion limit holds wherever they are loaded.
FLAT_BLOCKS = 54  # ResNet-110 and the bottleneck 164 have 54
GROUP_BLOCKS = 27


def build_resnet(
    arch=None,
    *,
    depth=None,
    block=None,
    preactivation=None,
    shortcut=None,
    widths=None,
    stage_blocks=None,
    stem=None,
    final_norm=None,
    num_classes=10,
    input_shape=None,
    normalization="cifar10",
    activation=None,
):
    """Builds a ResNet of the literature as a functional `keras.Model`.

    The model takes raw images, uint8 or float in 0 to 255, of shape
    `[N, H, W, 3]`, normalises them inside, and returns float32 logits
    `[N, num_classes]`, under a mixed precision policy as well. It consists of
    stock Keras layers only.

    Args:
        arch: A name such as `"resnet20"`; see `list_architectures()`.
        depth: Instead of a name: 6n+2 (basic), 9n+2 (bottleneck), or 18, 34,
            50, 101, 152 for the four-stage nets.
        block: `"basic"` or `"bottleneck"`.
        preactivation: Whether BatchNorm and ReLU come before convolutions.
        shortcut: `"identity"` (option A: subsampled, zero-padded),
            `"projection"` (option B: 1x1) or `"conv3x3"`, where the shape
            changes.
        widths: Filters of each stage.
        stage_blocks: Blocks of each stage.
        stem: `"cifar"` (3x3) or `"imagenet"` (7x7 stride 2, max pooling).
        final_norm: `False` leaves out the BatchNorm and ReLU at the end of a
            pre-activation net.
        num_classes: Size of the output.
        input_shape: `(H, W, 3)`; 32x32, or 224x224 with the ImageNet stem.
        normalization: A data set's name (its channel statistics),
            `"imagenet"`, `(mean, std)` in 0 to 1, `"per_image"`, or `None`
            (only scaled to 0 to 1).
        activation: Of the head: `None` for logits, `"softmax"`.

    Returns:
        A `keras.Model` named after the architecture, built, not compiled.
        Nets of more than 54 blocks hold their blocks in sub-models.

    Raises:
        InputError: A name or depth that no net has (it says what is near), or
            arguments that disagree.

    Example:
        >>> model = build_resnet("resnet20")
        >>> model.count_params()  # 269,722 and the BatchNorm statistics
        271098
    """
    arch = resolve(
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
    side = 224 if arch.stem == "imagenet" else 32
    inputs = keras.Input(
        _checked_input_shape(input_shape or (side, side, 3), arch),
        name="image",
    )
    x = input_normalization(normalization, name="normalization")(inputs)
    x = blocks.STEMS[arch.stem](x, arch.widths[0], arch.preactivation)
    for steps in _grouped(_plan(arch)):
        x = _apply(
            steps, x, arch, as_model=sum(arch.stage_blocks) > FLAT_BLOCKS
        )
    if arch.preactivation and arch.final_norm:
        x = blocks.relu(blocks.norm(x, "head_bn"), "head_relu")
    return keras.Model(inputs, head(x, num_classes, activation), name=arch.name)


def leaf_layers(model):
    """Yields a model's layers in order, those of sub-models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        else:
            yield layer


def check_head(num_classes, activation=None):
    """Raises `InputError` for what cannot be a head."""
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
            "another name that Keras has"
        ) from error


def head(x, num_classes, activation=None):
    """Global average pooling and a dense layer, in float32."""
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return layers.Dense(
        num_classes,
        activation=activation,
        kernel_initializer="he_normal",
        dtype="float32",  # logits keep their digits under mixed precision
        name="head_dense",
    )(x)


def _plan(arch):
    """The blocks in order, as (name, filters, strides)."""
    return [
        (f"stage{stage}_block{i}", width, 2 if stage > 1 and i == 0 else 1)
        for stage, (width, count) in enumerate(
            zip(arch.widths, arch.stage_blocks, strict=True), start=1
        )
        for i in range(count)
    ]


def _grouped(plan):
    return [
        plan[i : i + GROUP_BLOCKS] for i in range(0, len(plan), GROUP_BLOCKS)
    ]


def _apply(steps, x, arch, as_model):
    """Runs the blocks of one group on `x`, inside a sub-model on request."""
    inputs = keras.Input(x.shape[1:], dtype=x.dtype) if as_model else x
    block = blocks.BLOCKS[arch.block, arch.preactivation]
    y = inputs
    for name, filters, strides in steps:
        y = block(y, filters, strides, arch.shortcut, name)
    if not as_model:
        return y
    return keras.Model(inputs, y, name=f"{steps[0][0]}_to_{steps[-1][0]}")(x)


def _checked_input_shape(shape, arch):
    smallest = 2 ** (len(arch.widths) - 1)
    shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    sides = [side for side in shape if side is not None]
    whole = all(isinstance(side, numbers.Integral) for side in sides)
    if not whole or len(shape) != 3 or shape[2] != 3:
        raise InputError(
            f"input_shape={shape}: give (height, width, 3), channels last"
        )
    if any(side is not None and side < smallest for side in shape[:2]):
        raise InputError(
            f"input_shape={shape} is too small for {len(arch.widths)} stages: "
            f"give at least {smallest} x {smallest}"
        )
    return shape
