"""Normalization: what the layer computes, and what its description says."""

import keras
import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.models.normalization import (
    IMAGENET,
    describe_normalization,
    input_normalization,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), "uint8")
CIFAR = DATASETS["cifar10"]
OWN = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        (None, 0, 1),
        ("cifar10", CIFAR.mean, CIFAR.std),
        ("imagenet", *IMAGENET),
        (OWN, *OWN),
    ],
)
def test_it_is_that_of_images_in_0_to_1(kind, mean, std):
    layer = input_normalization(kind)
    result = keras.ops.convert_to_numpy(layer(IMAGES))
    assert result.dtype == "float32"
    # Float32 rounding of values up to 3.
    np.testing.assert_allclose(
        result, (IMAGES / 255 - np.array(mean)) / np.array(std), atol=2e-6
    )


def test_per_image():
    layer = input_normalization("per_image")
    images = IMAGES.astype("float32")
    result = keras.ops.convert_to_numpy(layer(images))
    np.testing.assert_allclose(result.mean((1, 2, 3)), 0, atol=1e-5)
    # An epsilon of 1 beside a variance of some 5,000.
    np.testing.assert_allclose(result.std((1, 2, 3)), 1, atol=1e-3)
    black = keras.ops.convert_to_numpy(layer(0 * images))
    assert not black.any()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (None, "scaled to [0, 1]"),
        ("per_image", "normalized per image"),
        (
            OWN,
            "scaled to [0, 1], then normalized with mean (0.1, 0.2, 0.3) and "
            "std (0.4, 0.5, 0.6)",
        ),
    ],
)
def test_the_description(kind, words, tiny_model):
    model = tiny_model(normalization=kind)
    assert describe_normalization(model) == words
    inputs = keras.Input((32, 32, 3))
    assert describe_normalization(keras.Model(inputs, model(inputs))) == words


def test_the_description_of_another_model():
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.ReLU()(inputs))
    assert "not normalized" in describe_normalization(model)


@pytest.mark.parametrize(
    "kind",
    [
        ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        ((0.5, 0.5, 0.5), (63.0, 62.1, 66.7)),
        ((0.5, 0.5, 1.5), (0.2, 0.2, 0.2)),
        ((-0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        ((0.5, 0.5, 0.5), (0.2, 0.2, 0.0)),
        ((0.5, 0.5, float("nan")), (0.2, 0.2, 0.2)),
        (0.5, 0.2),
        ((0.5, 0.5, 0.5), 0.2),
        3,
    ],
    ids=str,
)
def test_statistics_of_another_range_or_form(kind, tiny_model):
    line = refusal(lambda: tiny_model(normalization=kind))
    assert "three numbers each, of images from 0 to 1" in line


def test_one_channel_has_one_mean(tiny_model):
    shape = (28, 28, 1)
    for kind in (0.1307, 0.3081), ((0.1307,), (0.3081,)):
        model = tiny_model(normalization=kind, input_shape=shape)
        words = "mean (0.1307,) and std (0.3081,)"
        assert words in describe_normalization(model)
    model = tiny_model(normalization="auto", input_shape=shape)
    assert describe_normalization(model) == "scaled to [0, 1]"
    for kind in ("cifar10", "imagenet"):
        line = refusal(
            lambda kind=kind: tiny_model(normalization=kind, input_shape=shape)
        )
        assert f"normalization={kind!r} is for RGB" in line
    assert "one number each" in refusal(
        lambda: tiny_model(normalization=OWN, input_shape=shape)
    )
    assert "1 for grayscale" in refusal(
        lambda: tiny_model(input_shape=(28, 28, 2))
    )
