"""Normalization of raw images, in stock layers at the start of each model."""

from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError, spelled, unknown

# Mean and standard deviation of torchvision's ImageNet models.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Means of keras.applications' "caffe" weights: B, G, R, from 0 to 255.
_CAFFE_MEAN = (103.939, 116.779, 123.68)


def input_normalization(
    kind: Any, name: str | None = None, channels: int = 3
) -> layers.Layer:
    """Returns a stock layer that normalizes images with values 0 to 255.

    It computes in float32 under any policy: bfloat16 would round the pixels.
    Outside a model, the layer for `"per_image"` takes float images only.

    Args:
        kind: The name of a dataset, `"imagenet"`, `(mean, std)` of each channel
            for images from 0 to 1, `"per_image"` (each image to mean 0 and
            variance 1), `None` (scaled to 0 to 1), or a layer to copy. Dataset
            names and `"imagenet"` are for RGB.
        name: Name of the layer.
        channels: 3 (RGB) or 1 (grayscale).

    Returns:
        A stock Keras layer.

    Raises:
        InputError: `kind` is none of these.
    """
    if isinstance(kind, layers.Layer):
        return type(kind).from_config(kind.get_config() | {"name": name})
    if isinstance(kind, str):
        kind = spelled(kind, [*DATASETS, "imagenet", "per_image"])
    if kind is None:
        return layers.Rescaling(1 / 255, dtype="float32", name=name)
    if kind == "per_image":
        return layers.LayerNormalization(
            axis=(1, 2, 3),
            center=False,
            scale=False,
            epsilon=1.0,  # a black image stays black
            dtype="float32",
            name=name,
        )
    if isinstance(kind, str):
        known = {name: (info.mean, info.std) for name, info in DATASETS.items()}
        known["imagenet"] = IMAGENET
        if kind not in known:
            raise unknown("normalization", kind, [*known, "per_image"])
        if channels != 3:
            raise InputError(
                f"normalization={kind!r} is for RGB: give (mean, std) of the "
                "single channel, from 0 to 1, 'per_image' or None"
            )
        kind = known[kind]
    try:
        statistics = np.array([np.ravel(part) for part in kind], "float64")
    except (TypeError, ValueError):
        statistics = np.zeros(0)
    in_range = ((statistics >= 0) & (statistics <= 1)).all()
    if statistics.shape != (2, channels) or not (
        in_range and statistics[1].all()
    ):
        numbers = "three numbers each" if channels == 3 else "one number each"
        raise InputError(
            f"normalization={kind!r}: give (mean, std), {numbers}, of images "
            "from 0 to 1 (divide those of 0 to 255 by 255), or a name"
        )
    mean, std = statistics
    return layers.Normalization(
        mean=(255 * mean).tolist(),
        variance=((255 * std) ** 2).tolist(),
        dtype="float32",
        name=name,
    )


def preprocess_input(x: KerasTensor, mode: str) -> KerasTensor:
    """Preprocesses images as an ImageNet net expects them, in stock layers.

    It takes images `[N, H, W, 3]` (R, G, B), 0 to 255, and returns float32.
    The result equals `keras.applications.imagenet_utils.preprocess_input` bit
    for bit, but a saved model can contain it. Divisions are therefore not
    replaced by multiplications, and slices, which no accelerator rounds, swap
    the channels.

    Args:
        mode: `"caffe"` (B, G, R minus their means: ResNets of
            keras.applications), `"tf"` (-1 to 1: its ResNetV2s) or `"torch"`
            (ImageNet's mean and deviation: torchvision and timm).
    """
    if mode == "caffe":
        # With "channels_first" the layer crops the last two axes, here W and C.
        planes = [
            layers.Cropping2D(
                ((0, 0), (channel, 2 - channel)),
                data_format="channels_first",
                dtype="float32",
                name=f"plane_{name}",
            )(x)
            for channel, name in ((2, "blue"), (1, "green"), (0, "red"))
        ]
        x = layers.Concatenate(dtype="float32", name="bgr")(planes)
        return _division(_CAFFE_MEAN, 1.0, "normalization")(x)
    if mode == "tf":
        x = _division(0.0, 127.5, "to_two")(x)
        return _division(1.0, 1.0, "normalization")(x)
    x = _division(0.0, 255.0, "to_one")(x)
    return _division(*IMAGENET, "normalization")(x)


def _division(mean: Any, std: Any, name: str) -> layers.Layer:
    """(x - mean) / std; the layer's root of its variance is exactly `std`."""
    mean = np.broadcast_to(mean, 3).tolist()
    variance = np.broadcast_to(np.float32(std).astype("float64") ** 2, 3)
    return layers.Normalization(
        mean=mean, variance=variance.tolist(), dtype="float32", name=name
    )


def describe_normalization(model: keras.Model) -> str:
    """Describes the normalization of a net of `build_resnet` as text."""
    layer = _find(model, "normalization")
    if layer is None:
        return "not normalized by a layer of the model"
    if isinstance(layer, layers.Rescaling):
        return "scaled to [0, 1]"
    if isinstance(layer, layers.LayerNormalization):
        return "normalized per image"
    config = layer.get_config()
    statistics = np.stack([config["mean"], np.sqrt(config["variance"])])
    mean, std = (statistics / 255).round(4).tolist()
    return (
        "scaled to [0, 1], then normalized with mean "
        f"{tuple(mean)} and std {tuple(std)}"
    )


def _find(model: keras.Model, name: str) -> layers.Layer | None:
    """Returns the layer of that name in a model or its sub-models, if any."""
    for layer in model.layers:
        found = _find(layer, name) if isinstance(layer, keras.Model) else layer
        if found is not None and found.name == name:
            return found
    return None
