"""Copies of variables do not change with them."""

import keras
import numpy as np

from keras_resnet_cifar.training.variables import arrays, assign, copies

VALUES = [np.arange(6, dtype="float32").reshape(2, 3), np.array(7, "int32")]


def variables():
    return [
        keras.Variable(v, dtype=v.dtype.name, trainable=False) for v in VALUES
    ]


def assert_are_values(tensors):
    for expected, tensor in zip(VALUES, tensors, strict=True):
        got = keras.ops.convert_to_numpy(tensor)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_copies_stay_as_they_were():
    held = variables()
    on_device, on_host = copies(held), arrays(held)
    for variable in held:
        variable.assign(variable + 1)
    if keras.backend.backend() == "jax":
        import jax

        # What a step does with the memory of the variables.
        taken = jax.jit(lambda values: values, donate_argnums=0)
        assign(held, taken([variable.value for variable in held]))
    assert_are_values(on_device)
    assert_are_values(on_host)
    for values in (on_device, on_host):
        assign(held, values)
        assert_are_values([variable.value for variable in held])
