"""Normalisation of raw images, as a stock layer at the head of each model."""

import numpy as np
from keras import layers

from keras_resnet_cifar.datasets import DATASETS
from keras_resnet_cifar.errors import InputError, unknown

# Of torchvision's ImageNet models, and of akamaster/pytorch_resnet_cifar10.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def channel_statistics():
    """Returns {name: (mean, std)} per channel in 0 to 1, of all known sets."""
    known = {name: (info.mean, info.std) for name, info in DATASETS.items()}
    return known | {"imagenet": IMAGENET}


def input_normalization(kind, name=None):
    """Returns a stock layer that normalises images in 0 to 255 to about 1.

    It computes in float32 under any policy: bfloat16 would round the pixels.

    Args:
        kind: A data set's name, `"imagenet"`, `(mean, std)` with three
            numbers each in 0 to 1, `"per_image"` (each image to mean 0 and
            variance 1), or `None` (divided by 255).
        name: Name of the layer.

    Raises:
        InputError: If `kind` is none of these.
    """
    if kind is None:
        return layers.Rescaling(1 / 255, dtype="float32", name=name)
    if kind == "per_image":
        return layers.LayerNormalization(
            axis=(1, 2, 3),
            center=False,
            scale=False,
            epsilon=1.0,  # a black image stays black; pixels are 0 to 255
            dtype="float32",
            name=name,
        )
    mean, std = _statistics(kind)
    return layers.Normalization(
        axis=-1,
        mean=(255 * mean).tolist(),
        variance=((255 * std) ** 2).tolist(),
        dtype="float32",
        name=name,
    )


def told_normalization(model):
    """Returns how a model of `build_resnet` normalises, as words.

    For whoever has to do the same to images in 0 to 1 elsewhere.
    """
    layer = model.get_layer("normalization")
    if isinstance(layer, layers.Rescaling):
        return "scaled to 0 to 1"
    if isinstance(layer, layers.LayerNormalization):
        return "normalised per image"
    config = layer.get_config()
    mean = np.divide(config["mean"], 255).round(4)
    std = np.divide(np.sqrt(config["variance"]), 255).round(4)
    return (
        f"in 0 to 1 normalised by mean {tuple(mean.tolist())} and deviation "
        f"{tuple(std.tolist())}"
    )


def _statistics(kind):
    if isinstance(kind, str):
        known = channel_statistics()
        if kind not in known:
            raise unknown("normalization", kind, [*known, "per_image"])
        kind = known[kind]
    try:
        mean, std = (np.asarray(part, "float64") for part in kind)
    except (TypeError, ValueError):
        mean = std = np.zeros(0)
    if mean.shape != (3,) or std.shape != (3,) or (std <= 0).any():
        raise InputError(
            f"normalization={kind!r}: give (mean, std), three numbers each in "
            "0 to 1, or a name"
        )
    return mean, std
