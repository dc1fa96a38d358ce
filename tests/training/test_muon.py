"""Muon, beside a PyTorch statement of the same."""

import math

import keras
import numpy as np
import pytest
from helpers import TINY, refusal

import keras_resnet_cifar as krc
from keras_resnet_cifar.training.muon import (
    check_trained_norm,
    orthogonalized,
)

# Names and shapes as Keras has them; two kernels share a shape.
VARIABLES = {
    "stem/kernel": (3, 3, 3, 16),
    "a/kernel": (3, 3, 16, 16),
    "b/kernel": (3, 3, 16, 16),
    "wide/kernel": (1, 1, 8, 32),
    "attention/kernel": (8, 2, 4),
    "hidden/kernel": (24, 16),
    "hidden/bias": (16,),
    "norm/gamma": (16,),
    "head_dense/kernel": (16, 10),
}
DECAY, RATIO = 5e-2, 5.0


def build(values):
    """Variables with the paths of `VARIABLES`."""
    variables = []
    for path, value in values.items():
        layer, name = path.split("/")
        with keras.name_scope(layer):
            variables.append(keras.Variable(value, name=name, dtype="float32"))
    return variables


def torch_muon(weights, gradients, rates):
    """The steps of cifar10-airbench's `Muon` and of `torch.optim.SGD`."""
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")

    def orthogonal(update):
        x = update.reshape(len(update), -1)
        x = x / (x.norm() + 1e-7)
        tall = x.shape[0] > x.shape[1]
        if tall:
            x = x.T
        for _ in range(3):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        if tall:
            x = x.T
        return x.reshape(update.shape)

    # PyTorch's order: outputs first.
    def of_keras(array):
        return torch.tensor(np.moveaxis(array, -1, 0).copy())

    values = {path: of_keras(array) for path, array in weights.items()}
    sgd_only = ("attention/kernel", "head_dense/kernel")
    muon = [p for p in values if "kernel" in p and p not in sgd_only]
    rest = [values[p] for p in values if p not in muon]
    for value in rest:
        value.requires_grad_()
    sgd = torch.optim.SGD(
        rest, 1.0, momentum=0.9, nesterov=True, weight_decay=DECAY
    )
    buffers = {path: torch.zeros_like(values[path]) for path in muon}
    for rate, gradient in zip(rates, gradients, strict=True):
        for path, value in values.items():
            g = of_keras(gradient[path])
            if path not in muon:
                value.grad = g
                continue
            buffers[path].mul_(0.6).add_(g)
            update = orthogonal(g.add(buffers[path], alpha=0.6))
            if value.ndim > 2:
                value.mul_(len(value) ** 0.5 / value.norm())
            else:
                value.mul_(1 - rate * DECAY)
            value.add_(update, alpha=-rate)
        sgd.param_groups[0]["lr"] = RATIO * rate
        sgd.step()
    return {
        path: np.moveaxis(value.detach().numpy(), 0, -1)
        for path, value in values.items()
    }


def test_twenty_steps_are_pytorchs():
    generator = np.random.default_rng(0)

    def draw():
        return {
            path: generator.normal(size=shape).astype("float32")
            for path, shape in VARIABLES.items()
        }

    weights, gradients = draw(), [draw() for _ in range(20)]
    schedule = krc.schedules.OneCycle(0.08, steps=20)
    rates = schedule(np.arange(20))
    optimizer = krc.Muon(schedule, weight_decay=DECAY, sgd_ratio=RATIO)
    variables = build(weights)
    for gradient in gradients:
        tensors = [keras.ops.convert_to_tensor(g) for g in gradient.values()]
        optimizer.apply(tensors, variables)
    expected = torch_muon(weights, gradients, rates)
    for (path, wanted), variable in zip(
        expected.items(), variables, strict=True
    ):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable),
            wanted,
            rtol=0,
            atol=1e-4,
            err_msg=path,
        )


@pytest.mark.parametrize("shape", [(4, 40, 8), (3, 8, 40), (16, 16)])
def test_many_steps_bring_singular_values_near_one(shape):
    matrices = np.random.default_rng(0).normal(size=shape).astype("float32")
    result = orthogonalized(keras.ops.convert_to_tensor(matrices), 10)
    result = keras.ops.convert_to_numpy(result)
    values = np.linalg.svd(result, compute_uv=False)
    assert result.shape == shape
    # The coefficients trade accuracy at 1 for speed at 0: 0.68 to 1.13.
    assert 0.6 < values.min() <= values.max() < 1.2


def test_convolutions_keep_their_norm_whatever_the_gradient():
    optimizer = krc.Muon(0.01)
    (kernel,) = build({"conv/kernel": np.full((3, 3, 4, 9), 7.0)})
    for scale in (1e-3, 1e3):
        gradient = np.random.default_rng(0).normal(size=kernel.shape) * scale
        optimizer.apply(
            [keras.ops.convert_to_tensor(gradient, "float32")], [kernel]
        )
    norm = np.linalg.norm(keras.ops.convert_to_numpy(kernel))
    assert norm == pytest.approx(math.sqrt(9), abs=0.05)


def test_small_float16_gradients_stay_finite():
    update = keras.ops.full((4, 4), 1e-6, "float16")
    result = orthogonalized(update, 3)
    assert keras.backend.standardize_dtype(result.dtype) == "float16"
    assert np.isfinite(keras.ops.convert_to_numpy(result)).all()


@pytest.mark.parametrize(
    ("exclude", "kernels"),
    [((), 5), ("head_dense", 4), (("head_dense", "^a/"), 3)],
)
def test_what_is_excluded_is_trained_by_sgd(exclude, kernels):
    weights = {path: np.ones(shape) for path, shape in VARIABLES.items()}
    weights["a/kernel"] *= 2
    del weights["b/kernel"]
    sgd, muon = build(weights), build(weights)
    gradients = [keras.ops.ones(v.shape) for v in sgd]
    krc.CoupledSGD(0.4, 0.9, True).apply(gradients, sgd)
    krc.Muon(0.08, exclude=exclude).apply(gradients, muon)
    same = [
        np.allclose(
            keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        )
        for a, b in zip(sgd, muon, strict=True)
    ]
    assert len(same) - sum(same) == kernels


def test_a_frozen_normalization_is_refused(tiny_model, tiny_data):
    model = tiny_model()
    norms, convolutions = (
        [layer for layer in model.layers if isinstance(layer, kind)]
        for kind in (keras.layers.BatchNormalization, keras.layers.Conv2D)
    )
    for layer in norms:
        layer.trainable = False
    assert "optimizer=muon rescales" in refusal(
        krc.train, model, tiny_data, "fast"
    )
    check_trained_norm(model, "sgd")
    for layer in convolutions:
        layer.trainable = False
    check_trained_norm(model, "muon")


def test_decay_is_excluded_by_name():
    def trained(exclude):
        (kernel,) = build({"dense/kernel": np.full((4, 5), 7.0)})
        optimizer = krc.Muon(0.01, weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=exclude)
        optimizer.apply([keras.ops.zeros(kernel.shape)], [kernel])
        return keras.ops.convert_to_numpy(kernel)

    np.testing.assert_allclose(trained(["other"]), 7 * (1 - 0.01 * 0.1))
    np.testing.assert_array_equal(trained(["kernel"]), 7)


def test_it_survives_its_config():
    options = {
        "learning_rate": 0.03,
        "momentum": 0.7,
        "nesterov": False,
        "newton_schulz_steps": 5,
        "sgd_ratio": 2.0,
        "sgd_momentum": 0.8,
        "weight_decay": 1e-3,
        "decay_on": "kernels",
        "exclude": ("stem",),
    }
    optimizer = krc.Muon(**options)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is krc.Muon
    config = again.get_config()
    assert config == optimizer.get_config()
    assert {name: config[name] for name in options} == {
        name: pytest.approx(value) if isinstance(value, float) else value
        for name, value in options.items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {"sgd_momentum": 0.0},
        {"momentum": 1.0},
        {"newton_schulz_steps": 0},
        {"newton_schulz_steps": 2.5},
        {"sgd_ratio": -1},
        {"weight_decay": math.nan},
        {"exclude": ["("]},
        {"exclude": None},
        {"momentum": "x"},
        {"sgd_momentum": None},
    ],
)
def test_values_out_of_range(options):
    (name,) = options
    assert f"{name}=" in refusal(lambda: krc.Muon(**options))


def test_plain_fit_saves_and_goes_on(tmp_path):
    """A model compiled with it continues from a file as if never stopped."""
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3))
    labels = np.arange(32) % 10

    def fit(model, epochs):
        model.fit(images, labels, 16, epochs, shuffle=False, verbose=0)
        return model

    keras.utils.set_random_seed(0)
    model = krc.build_resnet(**TINY)
    model.compile(
        krc.Muon(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fit(model, 1).save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    assert isinstance(again.optimizer, krc.Muon)
    for one, other in zip(
        fit(model, 2).get_weights(), fit(again, 2).get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
