"""The layers of training compute what stock layers and the literature do."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_resnet_cifar.models.nets import leaf_layers
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training import layers, training_model
from keras_resnet_cifar.training.layers import FusedBatchNormalization
from keras_resnet_cifar.training.train import train
from keras_resnet_cifar.training.training_model import training_clone

SHAPE = (6, 5, 7, 3)


def batch(dtype="float32"):
    x = np.random.default_rng(0).normal(3, 2, SHAPE).astype("float32")
    return ops.cast(x, dtype)


def layer_pair(**kwargs):
    """A stock and a fused layer with the same random weights."""
    generator = np.random.default_rng(1)
    pair = []
    for cls in (keras.layers.BatchNormalization, FusedBatchNormalization):
        layer = cls(momentum=0.9, epsilon=1e-5, **kwargs)
        layer.build(SHAPE)
        pair.append(layer)
    weights = [generator.uniform(0.5, 2, 3).astype("float32") for _ in range(4)]
    for layer in pair:
        layer.set_weights(weights)
    return pair


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_stock_layer(training):
    stock, fused = layer_pair()
    expected = stock(batch(), training=training)
    got = fused(batch(), training=training)
    # One pass adds in another order: float32 rounding.
    np.testing.assert_allclose(
        ops.convert_to_numpy(got),
        ops.convert_to_numpy(expected),
        rtol=1e-4,
        atol=1e-5,
    )


def test_running_statistics_are_pytorchs():
    _, fused = layer_pair()
    before = [np.array(w) for w in fused.get_weights()[2:]]
    fused(batch(), training=True)
    x = ops.convert_to_numpy(batch()).reshape(-1, 3).astype("float64")
    mean, variance = x.mean(axis=0), x.var(axis=0, ddof=1)  # unbiased
    expected = [
        0.9 * b + 0.1 * v for b, v in zip(before, (mean, variance), strict=True)
    ]
    np.testing.assert_allclose(fused.get_weights()[2], expected[0], rtol=1e-5)
    np.testing.assert_allclose(fused.get_weights()[3], expected[1], rtol=1e-5)


def test_frozen_it_runs_in_inference_mode():
    _, fused = layer_pair()
    fused.trainable = False
    before = fused.get_weights()
    frozen = ops.convert_to_numpy(fused(batch(), training=True))
    inference = ops.convert_to_numpy(fused(batch(), training=False))
    np.testing.assert_array_equal(frozen, inference)
    for old, new in zip(before, fused.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_bfloat16_activations_keep_float32_statistics():
    _, fused = layer_pair(dtype="mixed_bfloat16")
    output = fused(batch("bfloat16"), training=True)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    x = ops.convert_to_numpy(ops.cast(batch("bfloat16"), "float32"))
    before = np.random.default_rng(1).uniform(0.5, 2, (4, 3))[2]
    expected = 0.9 * before + 0.1 * x.reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(fused.get_weights()[2], expected, rtol=1e-4)


def test_the_training_clone_differs_in_kind_only(tiny_model):
    model = tiny_model()
    clone = training_clone(model, "mixed_bfloat16")
    kinds = {type(layer) for layer in clone.layers}
    assert FusedBatchNormalization in kinds
    assert keras.layers.BatchNormalization not in kinds
    assert clone.get_layer("stage1_block0_conv1").compute_dtype == "bfloat16"
    for name in ("normalization", "head_pool", "head_dense"):
        assert clone.get_layer(name).compute_dtype == "float32"
    for old, new in zip(model.weights, clone.weights, strict=True):
        assert old.path.split("/")[-2:] == new.path.split("/")[-2:]
        np.testing.assert_array_equal(
            ops.convert_to_numpy(old), ops.convert_to_numpy(new)
        )


@pytest.mark.slow
def test_subsampling_in_the_clone_trains_the_same_weights(
    tiny_model, tiny_data, monkeypatch
):
    """Averages of one pixel, whose gradient is no scatter as that of maxima."""

    def stock_pooling(layer):
        is_pooling = type(layer) is keras.layers.MaxPooling2D
        return type(layer) if is_pooling else layers.faster_class(layer)

    weights = []
    for name, choice in (("faster", layers.faster_class), ("", stock_pooling)):
        monkeypatch.setattr(training_model, "faster_class", choice)
        model = tiny_model()
        pooling = {type(x) for x in training_clone(model, "float32").layers}
        assert (keras.layers.AveragePooling2D in pooling) == bool(name)
        changes = {"epochs": 1, "batch_size": 64, "precision": "float32"}
        train(model, tiny_data, verbose=False, **changes)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)
    kinds = {type(layer) for layer in model.layers}
    assert keras.layers.MaxPooling2D in kinds
    assert keras.layers.AveragePooling2D not in kinds


@pytest.mark.slow
def test_the_training_clone_reaches_into_sub_models():
    clone = training_clone(build_resnet("resnet332"), "float32")
    kinds = {type(layer) for layer in leaf_layers(clone)}
    assert FusedBatchNormalization in kinds
    assert keras.layers.BatchNormalization not in kinds


on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX alone: KERAS_BACKEND=jax"
)


@on_jax
@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_gradients_are_those_of_the_stock_layer(machine, monkeypatch):
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: machine)
    wanted = np.random.default_rng(2).normal(size=SHAPE).astype("float32")
    results = []
    for layer in layer_pair():
        statistics = [v.value for v in layer.non_trainable_variables]

        def loss(weights, x, layer=layer, statistics=statistics):
            outputs, _ = layer.stateless_call(
                weights, statistics, x, training=True
            )
            return ((outputs - wanted) ** 2).sum()

        weights = [v.value for v in layer.trainable_variables]
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        results.append(jax.tree.leaves(gradient(weights, batch())))
    # Sums of 210 terms in another order: float32 rounding.
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


@on_jax
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, (2, 1), 3])
@pytest.mark.parametrize("window", [1, 2, 3, (5, 1), 7])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_convolutions_and_their_gradients(padding, strides, window, size):
    import jax

    generator = np.random.default_rng(0)
    images = generator.normal(size=(3, *size, 4)).astype("float32")
    results = []
    for cls in (keras.layers.Conv2D, layers.CanonicalConv2D):
        layer = cls(5, window, strides, padding)
        layer.build(images.shape)
        weights = np.random.default_rng(1)
        kernel, bias = (
            weights.normal(size=w.shape).astype("float32")
            for w in layer.weights
        )

        def loss(images, kernel, layer=layer, bias=bias):
            outputs, _ = layer.stateless_call([kernel, bias], [], images)
            return (outputs**2).sum() / 2, outputs

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        results.append(jax.tree.leaves(gradient(images, kernel)))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


@on_jax
def test_the_training_clone_has_fast_convolutions(tiny_model):
    kinds = {type(x) for x in training_clone(tiny_model(), "float32").layers}
    assert layers.CanonicalConv2D in kinds
    assert keras.layers.Conv2D not in kinds
