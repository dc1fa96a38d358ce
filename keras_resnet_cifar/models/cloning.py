"""Clones models with layers of another class or config."""

from collections.abc import Callable
from typing import Any

import keras

from keras_resnet_cifar.errors import InputError, one_line

Change = Callable[[keras.layers.Layer, dict[str, Any]], tuple[type, dict]]


def clone_with(
    model: keras.Model,
    change: Change | None = None,
    inputs: keras.KerasTensor | None = None,
) -> keras.Model:
    """Returns a copy of a functional model, with the same weights.

    Args:
        model: A functional model; its sub-models are copied as well.
        change: `(layer, config) -> (class, config)` of the layer to build in
            place of each one; by default the same layer.
        inputs: A `keras.Input` for the copy; by default one like the model's.

    Returns:
        The copy. Its variables have the order and shapes of `model`'s.

    Raises:
        InputError: A layer cannot be built from its config.
    """

    def clone(layer):
        try:
            layer_class, config = type(layer), layer.get_config()
            if change is not None:
                layer_class, config = change(layer, config)
            return layer_class.from_config(config)
        except Exception as error:  # of the user's own class, or a lambda
            raise InputError(
                f"the layer {layer.name} ({type(layer).__name__}) cannot be "
                f"built from its config ({one_line(error)[:80]}): use no "
                "lambda, and decorate your classes and functions with "
                "keras.saving.register_keras_serializable()"
            ) from error

    copy = keras.models.clone_model(
        model, input_tensors=inputs, clone_function=clone, recursive=True
    )
    copy.set_weights(model.get_weights())
    return copy
