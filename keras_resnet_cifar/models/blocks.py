"""Stems, blocks and shortcuts, as functions on tensors `[N, H, W, C]`.

They follow figure 5 of He et al. 2015 and figure 1 of He et al. 2016, and use
stock Keras layers only, so that a saved model loads without this package.
`filters` and `strides` are those of a block's 3x3 convolutions, `kind` is its
shortcut where the shape changes, and `name` is the prefix of its layers' names.
"""

from keras import KerasTensor as Tensor
from keras import layers


def conv(
    x: Tensor, filters: int, kernel: int, strides: int, name: str
) -> Tensor:
    """A convolution without bias, padded symmetrically as in the papers' code.

    With stride 2, the padding is explicit: Keras's "same" pads an even size by
    (0, 1), while PyTorch and the original code pad by (1, 1).
    """
    if strides > 1 and kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters,
        kernel,
        strides,
        padding="same" if strides == 1 else "valid",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def norm(x: Tensor, name: str) -> Tensor:
    # The literature's constants; Keras's defaults are 0.99 and 1e-3.
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def relu(x: Tensor, name: str) -> Tensor:
    return layers.ReLU(name=name)(x)


def norm_relu(x: Tensor, name: str, index: int) -> Tensor:
    return relu(norm(x, f"{name}_bn{index}"), f"{name}_relu{index}")


def add(x: Tensor, y: Tensor, name: str) -> Tensor:
    return layers.Add(name=f"{name}_add")([x, y])


def cifar_stem(x: Tensor, filters: int, preactivation: bool) -> Tensor:
    """3x3; a pre-activation net normalizes in its first block instead."""
    x = conv(x, filters, 3, 1, "stem_conv")
    return x if preactivation else relu(norm(x, "stem_bn"), "stem_relu")


def imagenet_stem(x: Tensor, filters: int, preactivation: bool) -> Tensor:
    """7x7 with stride 2, then 3x3 max pooling with stride 2, in all nets."""
    x = relu(norm(conv(x, filters, 7, 2, "stem_conv"), "stem_bn"), "stem_relu")
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)  # zero <= any ReLU
    return layers.MaxPooling2D(3, 2, name="stem_pool")(x)


def option_a(x: Tensor, filters: int, strides: int, name: str) -> Tensor:
    """Every second pixel, and zeros for the new channels, half on each side."""
    if strides > 1:
        x = layers.MaxPooling2D(1, strides, name=f"{name}_subsample")(x)
    new = filters - x.shape[-1]
    # With "channels_first" the layer pads the last two axes, here W and C.
    return layers.ZeroPadding2D(
        ((0, 0), (new // 2, new - new // 2)),
        "channels_first",
        name=f"{name}_pad",
    )(x)


def shortcut(
    x: Tensor,
    filters: int,
    strides: int,
    kind: str,
    name: str,
    activated: Tensor | None = None,
) -> Tensor:
    """The shortcut of a block: `x` itself unless the shape changes.

    If it changes, the shortcut is option A (`"identity"`) or a convolution with
    BatchNorm, 1x1 (`"projection"`, option B) or 3x3 (`"conv3x3"`). In a
    pre-activation block, the convolution takes the `activated` input, and no
    BatchNorm follows.
    """
    name = f"{name}_shortcut"
    if strides == 1 and x.shape[-1] == filters:
        return x
    if kind == "identity":
        return option_a(x, filters, strides, name)
    kernel = 3 if kind == "conv3x3" else 1
    if activated is not None:
        return conv(activated, filters, kernel, strides, f"{name}_conv")
    return norm(conv(x, filters, kernel, strides, f"{name}_conv"), f"{name}_bn")


def basic_block(
    x: Tensor, filters: int, strides: int, kind: str, name: str
) -> Tensor:
    """3x3, BN, ReLU, 3x3, BN, add, ReLU."""
    y = norm_relu(conv(x, filters, 3, strides, f"{name}_conv1"), name, 1)
    y = norm(conv(y, filters, 3, 1, f"{name}_conv2"), f"{name}_bn2")
    y = add(shortcut(x, filters, strides, kind, name), y, name)
    return relu(y, f"{name}_relu2")


def bottleneck_block(
    x: Tensor, filters: int, strides: int, kind: str, name: str
) -> Tensor:
    """1x1, BN, ReLU, 3x3, BN, ReLU, 1x1 (four times as wide), BN, add, ReLU.

    The stride is in the 3x3 convolution, as in PyTorch ResNets.
    """
    y = norm_relu(conv(x, filters, 1, 1, f"{name}_conv1"), name, 1)
    y = norm_relu(conv(y, filters, 3, strides, f"{name}_conv2"), name, 2)
    y = norm(conv(y, 4 * filters, 1, 1, f"{name}_conv3"), f"{name}_bn3")
    y = add(shortcut(x, 4 * filters, strides, kind, name), y, name)
    return relu(y, f"{name}_relu3")


def preactivation_block(
    x: Tensor, filters: int, strides: int, kind: str, name: str
) -> Tensor:
    """BN, ReLU, 3x3, BN, ReLU, 3x3, add."""
    y = norm_relu(x, name, 1)
    x = shortcut(x, filters, strides, kind, name, activated=y)
    y = norm_relu(conv(y, filters, 3, strides, f"{name}_conv1"), name, 2)
    y = conv(y, filters, 3, 1, f"{name}_conv2")
    return add(x, y, name)


def preactivation_bottleneck_block(
    x: Tensor, filters: int, strides: int, kind: str, name: str
) -> Tensor:
    """BN, ReLU, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1 (four times as wide), add."""
    y = norm_relu(x, name, 1)
    x = shortcut(x, 4 * filters, strides, kind, name, activated=y)
    y = norm_relu(conv(y, filters, 1, 1, f"{name}_conv1"), name, 2)
    y = norm_relu(conv(y, filters, 3, strides, f"{name}_conv2"), name, 3)
    y = conv(y, 4 * filters, 1, 1, f"{name}_conv3")
    return add(x, y, name)


STEMS = {"cifar": cifar_stem, "imagenet": imagenet_stem}

# (block, preactivation) -> function
BLOCKS = {
    ("basic", False): basic_block,
    ("bottleneck", False): bottleneck_block,
    ("basic", True): preactivation_block,
    ("bottleneck", True): preactivation_bottleneck_block,
}
