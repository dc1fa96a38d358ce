"""The convolutions of training under JAX compute what Keras's own do."""

import keras
import numpy as np
import pytest

from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training.training_model import training_clone

if keras.backend.backend() != "jax":
    pytest.skip("JAX alone: KERAS_BACKEND=jax", allow_module_level=True)

import jax

from keras_resnet_cifar.training.convolution import CanonicalConv2D


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, (2, 1), 3])
@pytest.mark.parametrize("window", [1, 2, 3, (5, 1), 7])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_outputs_and_gradients(padding, strides, window, size):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(3, *size, 4)).astype("float32")
    found = []
    for cls in (keras.layers.Conv2D, CanonicalConv2D):
        layer = cls(5, window, strides, padding)
        layer.build(images.shape)
        weights = np.random.default_rng(1)
        kernel, bias = (
            weights.normal(size=w.shape).astype("float32")
            for w in layer.weights
        )

        def loss(images, kernel, layer=layer, bias=bias):
            values = [kernel, bias]
            outputs, _ = layer.stateless_call(values, [], images)
            return (outputs**2).sum() / 2, outputs

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        found.append(jax.tree.leaves(gradient(images, kernel)))
    for expected, got in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_the_clone_that_trains_has_them():
    clone = training_clone(build_resnet("resnet8"), "float32")
    kinds = {type(layer) for layer in clone.layers}
    assert CanonicalConv2D in kinds
    assert keras.layers.Conv2D not in kinds
