"""Floating-point operations of a model: those of its convolutions and head."""

import math

import keras

from keras_resnet_cifar.models.resnet import leaf_layers


def forward_operations(model):
    """Floating-point operations of one image's way through a model.

    Returns:
        `{name of a Conv2D or Dense layer: operations}`, in the layers' order;
        a multiply-add counts as two, biases as nothing. Infinite where the
        model takes images of any size.
    """
    found = {}
    for layer in leaf_layers(model):
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            sides = layer.output.shape[1:-1]
            places = math.inf if None in sides else math.prod(sides)
            found[layer.name] = 2 * places * math.prod(layer.kernel.shape)
    return found


def step_operations(model, batch_size):
    """Floating-point operations of one train step.

    Once forward, and twice backward, for the gradients of the weights and of
    the inputs, which the first convolution does not need.
    """
    forward = forward_operations(model)
    first = next(iter(forward.values()), 0)
    return batch_size * (3 * sum(forward.values()) - first)
