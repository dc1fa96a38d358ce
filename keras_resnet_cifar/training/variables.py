"""Values of many variables at once: copies on the device, and arrays."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

_JAX = keras.backend.backend() == "jax"

if _JAX:
    import jax
    from jax import numpy as jnp

    @jax.jit
    def _jax_copies(values: list) -> list:
        return [jnp.copy(value) for value in values]


def copies(variables: Sequence[keras.Variable]) -> list[Any]:
    """Returns copies of the values, as tensors on the device.

    Under JAX, this is one call, and the copies stay valid when a step donates
    the memory of the variables.
    """
    values = [variable.value for variable in variables]
    return _jax_copies(values) if _JAX else [ops.copy(v) for v in values]


def arrays(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Returns copies of the values as arrays."""
    values = [variable.value for variable in variables]
    if _JAX:
        values = jax.device_get(values)  # transfers them in parallel
    # Under TensorFlow, an array may be a view of memory that training changes.
    return [np.array(ops.convert_to_numpy(value)) for value in values]


def assign(variables: Sequence[keras.Variable], values: Sequence[Any]) -> None:
    """Assigns to each variable its value, a tensor or an array."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
