"""Copies of a model: the same weights, changed layers, another input."""

import keras
import numpy as np
import pytest
from helpers import TINY

from keras_resnet_cifar.models import nets
from keras_resnet_cifar.models.cloning import clone_with
from keras_resnet_cifar.models.resnet import build_resnet


@pytest.fixture(params=["flat", "grouped"])
def model(request, monkeypatch):
    if request.param == "grouped":
        monkeypatch.setattr(nets, "FLAT_BLOCKS", 2)
        monkeypatch.setattr(nets, "GROUP_BLOCKS", 2)
    return build_resnet(**TINY)


def assert_same_weights(model, other):
    for weight, copied in zip(
        model.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(weight, copied)


def test_a_copy_has_the_weights_and_shares_none(model):
    copy = clone_with(model)
    kinds = [
        [type(layer) for layer in nets.leaf_layers(net)]
        for net in (model, copy)
    ]
    assert kinds[0] == kinds[1]
    assert_same_weights(model, copy)
    copy.set_weights([weight + 1 for weight in copy.get_weights()])
    difference = copy.get_weights()[0] - model.get_weights()[0]
    np.testing.assert_allclose(difference, 1, atol=1e-6)


def test_layers_change_in_class_and_config(model):
    def change(layer, config):
        if isinstance(layer, keras.layers.ReLU):
            kept = {"name": config["name"], "negative_slope": 0.5}
            return keras.layers.LeakyReLU, kept
        if isinstance(layer, keras.layers.BatchNormalization):
            return type(layer), config | {"momentum": 0.5}
        return type(layer), config

    copy = clone_with(model, change)
    kinds = [type(layer) for layer in nets.leaf_layers(copy)]
    assert keras.layers.ReLU not in kinds
    assert kinds.count(keras.layers.LeakyReLU) == 7
    momenta = {
        layer.momentum
        for layer in nets.leaf_layers(copy)
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    assert momenta == {0.5}
    assert_same_weights(model, copy)


def test_a_copy_for_images_of_another_size():
    model = build_resnet(**TINY)
    copy = clone_with(model, inputs=keras.Input((18, 23, 3)))
    assert copy.input_shape == (None, 18, 23, 3)
    assert_same_weights(model, copy)
