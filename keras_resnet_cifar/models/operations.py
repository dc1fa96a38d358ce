"""Counts the floating-point operations of a model's convolutions and head."""

import math

import keras

from keras_resnet_cifar.models.nets import leaf_layers


def step_operations(model: keras.Model, batch_size: int) -> float:
    """Returns the floating-point operations of one train step.

    A multiply-add counts as two; biases are ignored. The backward pass has
    twice the operations of the forward pass, for the gradients of the weights
    and of the inputs; the first convolution needs no gradient of its inputs.
    The result is infinite if the model takes images of any size.
    """
    forward = [0.0]
    for layer in leaf_layers(model):
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            sides = layer.output.shape[1:-1]
            pixels = math.inf if None in sides else math.prod(sides)
            forward.append(2 * pixels * math.prod(layer.kernel.shape))
    return batch_size * (2 * sum(forward[:2]) + 3 * sum(forward[2:]))
