"""Clones models with layers of another class or config."""

from collections.abc import Callable
from typing import Any

import keras

from keras_resnet_cifar.errors import explained

Change = Callable[[keras.layers.Layer, dict[str, Any]], tuple[type, dict]]


def clone_with(
    model: keras.Model,
    change: Change | None = None,
    inputs: keras.KerasTensor | None = None,
) -> keras.Model:
    """Returns a copy of a functional model, with the same weights.

    Sub-models are copied as well. The copy's variables have the order and
    shapes of `model`'s.

    Args:
        change: `(layer, config) -> (class, config)` of the layer to build in
            place of each one; by default the same layer.
        inputs: A `keras.Input` for the copy; by default one like the model's.
    """

    def clone(layer):
        kind = type(layer)
        with explained(
            f"the layer {layer.name} ({kind.__name__}) cannot be built from "
            "its config",
            "use no lambda, and decorate your classes and functions with "
            "keras.saving.register_keras_serializable()",
        ):
            config = layer.get_config()
            if change is not None:
                kind, config = change(layer, config)
            return kind.from_config(config)

    copy = keras.models.clone_model(
        model, input_tensors=inputs, clone_function=clone, recursive=True
    )
    copy.set_weights(model.get_weights())
    return copy
