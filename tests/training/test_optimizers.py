"""SGD and Adam by PyTorch's definition, at a changing rate."""

import keras
import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.training.optimizers import (
    CoupledAdam,
    CoupledSGD,
)
from keras_resnet_cifar.training.recipes import get_recipe

RATES = [0.1, 0.1, 0.05, 0.3, 0.01]


class Rates(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return keras.ops.take(keras.ops.convert_to_tensor(RATES), step)


def reference(weight, gradients, momentum, nesterov, decay):
    """The update of torch.optim.SGD, as its documentation writes it."""
    buffer = np.zeros_like(weight)
    for rate, gradient in zip(RATES, gradients, strict=True):
        gradient = gradient + decay * weight
        buffer = momentum * buffer + gradient
        step = gradient + momentum * buffer if nesterov else buffer
        weight = weight - rate * step
    return weight


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 5e-2])
def test_five_steps(momentum, nesterov, decay):
    generator = np.random.default_rng(0)
    start = generator.normal(size=(4, 3))
    gradients = generator.normal(size=(5, 4, 3))
    variable = keras.Variable(start, dtype="float32", name="kernel")
    optimizer = CoupledSGD(Rates(), momentum, nesterov, decay)
    for gradient in gradients:
        optimizer.apply(
            [keras.ops.convert_to_tensor(gradient, "float32")], [variable]
        )
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(variable),
        reference(start, gradients, momentum, nesterov, decay),
        rtol=1e-5,
        atol=1e-6,
    )


def test_decay_on_kernels_spares_the_rest():
    names = ("kernel", "bias", "gamma", "beta")
    variables = [keras.Variable(np.ones(2), name=name) for name in names]
    zeros = [keras.ops.zeros(2)] * 4
    for decay_on, decayed in (("kernels", 1), ("all", 4)):
        optimizer = CoupledSGD(1.0, 0.0, weight_decay=0.5, decay_on=decay_on)
        for variable in variables:
            variable.assign(np.ones(2))
        optimizer.apply(zeros, variables)
        values = [float(keras.ops.sum(v)) / 2 for v in variables]
        assert values == [0.5] * decayed + [1.0] * (4 - decayed)


def test_excluded_variables_do_not_decay():
    optimizer = CoupledSGD(1.0, 0.0, weight_decay=0.5)
    weights = [keras.Variable([1.0], name=name) for name in ("one", "two")]
    optimizer.exclude_from_weight_decay(var_names=["two"])
    optimizer.apply([keras.ops.zeros(1)] * 2, weights)
    assert [float(weight[0]) for weight in weights] == [0.5, 1.0]


def test_weight_decay_is_coupled_alone():
    """Keras's own decay of that name must not act as well."""
    optimizer = CoupledSGD(0.1, 0.0, weight_decay=0.5)
    assert optimizer.weight_decay is None
    assert optimizer.get_config()["weight_decay"] == 0.5
    variable = keras.Variable(np.ones(2), name="kernel")
    optimizer.apply([keras.ops.zeros(2)], [variable])
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(variable), 0.95, rtol=1e-6
    )


def test_it_survives_its_config():
    optimizer = CoupledSGD(0.1, 0.8, True, 5e-4, "kernels")
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    with pytest.raises(ValueError, match="decay_on"):
        CoupledSGD(decay_on="biases")


@pytest.mark.parametrize("decay", [0.0, 5e-2])
def test_adam_is_pytorchs(decay):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    generator = np.random.default_rng(0)
    start = generator.normal(size=(4, 3)).astype("float32")
    gradients = generator.normal(size=(5, 4, 3)).astype("float32")
    variable = keras.Variable(start, name="kernel")
    recipe = get_recipe("paper", optimizer="adam", weight_decay=decay)
    optimizer = recipe.optimizer_for(Rates())
    expected = torch.tensor(start, requires_grad=True)
    reference = torch.optim.Adam([expected], weight_decay=decay)
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        reference.param_groups[0]["lr"] = rate
        expected.grad = torch.tensor(gradient)
        reference.step()
    # Keras takes 1 - 0.999 ** t in float32: 3e-5 of a step of at most 0.3.
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(variable),
        expected.detach().numpy(),
        rtol=0,
        atol=2e-5,
    )


@pytest.mark.parametrize("cls", [CoupledSGD, CoupledAdam])
def test_optimizers_survive_their_config(cls):
    optimizer = cls(0.5, weight_decay=1e-3, decay_on="kernels")
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is cls
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (CoupledSGD, "momentum", 1),
        (CoupledSGD, "momentum", -0.1),
        (CoupledAdam, "beta_1", 2),
        (CoupledAdam, "weight_decay", -1),
    ],
)
def test_values_out_of_range(make, name, value):
    line = refusal(lambda: make(**{name: value}))
    assert line.startswith(f"{name}={value}: must be")
