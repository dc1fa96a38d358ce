"""Grad-CAM against its definition by gradients."""

import keras
import numpy as np
import pytest
from helpers import refusal
from keras import ops

from keras_resnet_cifar.evaluation.grad_cam import grad_cam
from keras_resnet_cifar.finetuning.finetune import build_finetuned
from keras_resnet_cifar.models.resnet import build_resnet


def by_gradients(model, images, class_id):
    """Grad-CAM as the paper writes it, with numerical gradients.

    The gradient of a logit with respect to the mean of a map, divided by the
    number of positions, is the mean gradient of the map.
    """
    pooling, dense = model.layers[-2:]
    maps = keras.Model(model.input, pooling.input)
    maps = ops.convert_to_numpy(maps(images.astype("float32")))

    def logits(maps):
        return ops.convert_to_numpy(dense(pooling(maps)))[:, class_id]

    weights = []
    for channel in range(maps.shape[-1]):
        step = np.zeros_like(maps)
        step[..., channel] = 0.5
        slope = logits(maps + step) - logits(maps - step)
        weights.append(slope / maps[0, ..., 0].size)
    heat = np.maximum(np.einsum("nhwc,cn->nhw", maps, weights), 0)
    return heat / heat.max(axis=(1, 2), keepdims=True)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (3, 32, 32, 3), "uint8")


@pytest.mark.parametrize("arch", ["resnet8", "resnet11-bottleneck-preact"])
def test_it_is_the_mean_gradient_that_weighs_the_maps(arch, images):
    keras.utils.set_random_seed(0)
    model = build_resnet(arch)
    heat = grad_cam(model, images, 3)
    assert heat.shape == (3, 32, 32) and heat.dtype == np.float32
    expected = ops.image.resize(
        by_gradients(model, images, 3)[..., None], (32, 32)
    )
    expected = ops.convert_to_numpy(expected)[..., 0]
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(heat, expected, atol=1e-4)


def test_by_default_it_is_of_the_most_probable_class(images):
    model = build_resnet("resnet8")
    logits = ops.convert_to_numpy(model(images))
    expected = grad_cam(model, images, logits.argmax(axis=1))
    np.testing.assert_array_equal(grad_cam(model, images), expected)


def test_it_points_at_what_decides():
    """A net of one kernel that sees red in one corner only."""
    pixels = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(pixels)
    model = keras.Model(pixels, keras.layers.Dense(2, use_bias=False)(x))
    model.set_weights([np.array([[1, 0], [0, 0], [0, 0]])])
    image = np.zeros((1, 8, 8, 3), "uint8")
    image[0, :4, 4:, 0] = 255
    heat = grad_cam(model, image, 0)
    np.testing.assert_array_equal(heat, image[..., 0] / 255)
    np.testing.assert_array_equal(heat, grad_cam(model, image))
    assert not grad_cam(model, image, 1).any()


def test_a_fine_tuned_net(images):
    model = build_finetuned("resnet18", 4, weights="none", image_size=32)
    heat = grad_cam(model, images, [0, 1, 2])
    assert heat.shape == (3, 32, 32)
    assert heat.min() >= 0 and heat.max() <= 1


@pytest.mark.parametrize("class_ids", [10, -1, 1.5, [1, 2], "cat"])
def test_classes_must_fit(class_ids, images):
    model = build_resnet("resnet8")
    message = refusal(grad_cam, model, images, class_ids)
    assert "class_ids=" in message and "0 to 9" in message


def test_another_head_is_refused(images):
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
    assert "build_resnet" in refusal(grad_cam, model, images)
