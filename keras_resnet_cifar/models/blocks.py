"""Stem, blocks and shortcuts, as functions on tensors [N, H, W, C].

They read like figure 5 of He et al. 2015 and figure 1 of He et al. 2016, and
use stock Keras layers only, so that a saved model needs this package nowhere.
"""

from keras import layers


def conv(x, filters, kernel, strides, name):
    """A convolution without bias, padded on both sides as in the papers' code.

    Keras's "same" pads an even size with stride 2 by (0, 1), PyTorch and the
    original code by (1, 1): with stride the padding is therefore explicit.
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


def norm(x, name):
    # The literature's constants; Keras's defaults are 0.99 and 1e-3.
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def relu(x, name):
    return layers.ReLU(name=name)(x)


def norm_relu(x, name, index):
    return relu(norm(x, f"{name}_bn{index}"), f"{name}_relu{index}")


def cifar_stem(x, filters, preactivation):
    """3x3; a pre-activation net normalises in its first block instead."""
    x = conv(x, filters, 3, 1, "stem_conv")
    return x if preactivation else relu(norm(x, "stem_bn"), "stem_relu")


def imagenet_stem(x, filters, preactivation):
    """7x7 stride 2, then 3x3 max pooling stride 2 (both kinds of net)."""
    del preactivation
    x = relu(norm(conv(x, filters, 7, 2, "stem_conv"), "stem_bn"), "stem_relu")
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)  # zero <= any ReLU
    return layers.MaxPooling2D(3, 2, name="stem_pool")(x)


def subsample_and_pad(x, filters, strides, name):
    """Option A: every second pixel, and zeros for the new channels."""
    if strides > 1:
        x = layers.MaxPooling2D(1, strides, name=f"{name}_subsample")(x)
    missing = filters - x.shape[-1]
    # Told "channels first", the layer pads the last two axes: here W and C.
    return layers.ZeroPadding2D(
        ((0, 0), (missing // 2, missing - missing // 2)),
        data_format="channels_first",
        name=f"{name}_pad",
    )(x)


def shortcut(x, filters, strides, kind, name):
    """The path beside the block: `x` itself where the shape stays.

    Where it changes, `kind` says how: `"identity"` (option A), `"projection"`
    (1x1, option B) or `"conv3x3"`.
    """
    if strides == 1 and x.shape[-1] == filters:
        return x
    if kind == "identity":
        return subsample_and_pad(x, filters, strides, f"{name}_shortcut")
    kernel = {"projection": 1, "conv3x3": 3}[kind]
    return conv(x, filters, kernel, strides, f"{name}_shortcut_conv")


def normalized_shortcut(x, filters, strides, kind, name):
    """As `shortcut`, with the BatchNorm that follows a convolution there."""
    y = shortcut(x, filters, strides, kind, name)
    if y is x or kind == "identity":
        return y
    return norm(y, f"{name}_shortcut_bn")


def preactivated_shortcut(x, activated, filters, strides, kind, name):
    """As `shortcut`; a convolution there takes the activated input."""
    y = shortcut(
        x if kind == "identity" else activated, filters, strides, kind, name
    )
    return x if y is activated else y


def add(x, y, name):
    return layers.Add(name=f"{name}_add")([x, y])


def basic_block(x, filters, strides, kind, name):
    """3x3, BN, ReLU, 3x3, BN, add, ReLU."""
    y = conv(x, filters, 3, strides, f"{name}_conv1")
    y = norm_relu(y, name, 1)
    y = conv(y, filters, 3, 1, f"{name}_conv2")
    y = norm(y, f"{name}_bn2")
    y = add(normalized_shortcut(x, filters, strides, kind, name), y, name)
    return relu(y, f"{name}_relu2")


def bottleneck_block(x, filters, strides, kind, name):
    """1x1, BN, ReLU, 3x3, BN, ReLU, 1x1 (four times as wide), BN, add, ReLU.

    The stride is in the 3x3, as in the PyTorch ResNets that people load.
    """
    y = conv(x, filters, 1, 1, f"{name}_conv1")
    y = norm_relu(y, name, 1)
    y = conv(y, filters, 3, strides, f"{name}_conv2")
    y = norm_relu(y, name, 2)
    y = conv(y, 4 * filters, 1, 1, f"{name}_conv3")
    y = norm(y, f"{name}_bn3")
    y = add(normalized_shortcut(x, 4 * filters, strides, kind, name), y, name)
    return relu(y, f"{name}_relu3")


def preactivated_basic_block(x, filters, strides, kind, name):
    """BN, ReLU, 3x3, BN, ReLU, 3x3, add."""
    y = norm_relu(x, name, 1)
    x = preactivated_shortcut(x, y, filters, strides, kind, name)
    y = conv(y, filters, 3, strides, f"{name}_conv1")
    y = norm_relu(y, name, 2)
    y = conv(y, filters, 3, 1, f"{name}_conv2")
    return add(x, y, name)


def preactivated_bottleneck_block(x, filters, strides, kind, name):
    """BN, ReLU, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1 (four times as wide), add."""
    y = norm_relu(x, name, 1)
    x = preactivated_shortcut(x, y, 4 * filters, strides, kind, name)
    y = conv(y, filters, 1, 1, f"{name}_conv1")
    y = norm_relu(y, name, 2)
    y = conv(y, filters, 3, strides, f"{name}_conv2")
    y = norm_relu(y, name, 3)
    y = conv(y, 4 * filters, 1, 1, f"{name}_conv3")
    return add(x, y, name)


STEMS = {"cifar": cifar_stem, "imagenet": imagenet_stem}

# (block, preactivation) -> function
BLOCKS = {
    ("basic", False): basic_block,
    ("bottleneck", False): bottleneck_block,
    ("basic", True): preactivated_basic_block,
    ("bottleneck", True): preactivated_bottleneck_block,
}
