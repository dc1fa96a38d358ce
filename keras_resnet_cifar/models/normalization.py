"""Normalisation of raw images, as a stock layer at the head of each model."""

import numpy as np
from keras import layers

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError, unknown

# Of torchvision's ImageNet models, and of akamaster/pytorch_resnet_cifar10.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Of keras.applications' "caffe" weights: B, G, R in 0 to 255.
_CAFFE_MEAN = (103.939, 116.779, 123.68)
PREPROCESSINGS = ("caffe", "tf", "torch")


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


def preprocess_input(x, mode):
    """Prepares images as an ImageNet net wants them, in stock layers.

    The same to the bit as `keras.applications.imagenet_utils.preprocess_input`,
    which no saved model could hold: divisions are divisions, and the channels
    are swapped by slices, which no accelerator rounds.

    Args:
        x: Keras tensor of images `[N, H, W, 3]` (R, G, B), 0 to 255.
        mode: `"caffe"` (B, G, R minus their means: ResNets of
            keras.applications), `"tf"` (-1 to 1: its ResNetV2s) or `"torch"`
            (ImageNet's mean and deviation: torchvision and timm).

    Returns:
        Keras tensor of the same shape, float32.
    """
    if mode == "caffe":
        # Told "channels first", the layer crops the last two axes: W and C.
        planes = [
            layers.Cropping2D(
                ((0, 0), (before, 2 - before)),
                data_format="channels_first",
                dtype="float32",
                name=f"plane_{name}",
            )(x)
            for before, name in ((2, "blue"), (1, "green"), (0, "red"))
        ]
        x = layers.Concatenate(dtype="float32", name="bgr")(planes)
        offset = [-mean for mean in _CAFFE_MEAN]
        return _rescaling(1.0, offset, "normalization")(x)
    if mode == "tf":
        x = _division(0.0, 127.5, "to_two")(x)
        return _rescaling(1.0, -1.0, "normalization")(x)
    mean, std = IMAGENET
    x = _division(0.0, 255.0, "to_one")(x)
    return _division(mean, std, "normalization")(x)


def _rescaling(scale, offset, name):
    return layers.Rescaling(scale, offset, dtype="float32", name=name)


def _division(mean, std, name):
    """(x - mean) / std; the layer's root of its variance is `std` exactly."""
    mean = np.broadcast_to(mean, 3).tolist()
    variance = np.broadcast_to(np.float32(std).astype("float64") ** 2, 3)
    return layers.Normalization(
        mean=mean, variance=variance.tolist(), dtype="float32", name=name
    )


def describe_normalization(model):
    """Returns how a model normalises, as words.

    A model of `build_resnet`, or one of `build_finetuned` on a PyTorch net.

    For whoever has to do the same to images in 0 to 1 elsewhere.
    """
    layer = _find(model, "normalization")
    if isinstance(layer, layers.Rescaling):
        return "scaled to 0 to 1"
    if isinstance(layer, layers.LayerNormalization):
        return "normalised per image"
    config = layer.get_config()
    scale = 1 if _find(model, "to_one") else 255
    mean = np.divide(config["mean"], scale).round(4)
    std = np.divide(np.sqrt(config["variance"]), scale).round(4)
    return (
        f"in 0 to 1 normalised by mean {tuple(mean.tolist())} and deviation "
        f"{tuple(std.tolist())}"
    )


def _find(model, name):
    """The layer of that name, in the model or in one inside it, or `None`."""
    for layer in getattr(model, "layers", ()):
        if layer.name == name:
            return layer
        found = _find(layer, name)
        if found is not None:
            return found
    return None


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
