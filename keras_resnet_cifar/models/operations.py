"""Floating-point operations of a model: those of its convolutions and head."""

import math

import keras

from keras_resnet_cifar.models.resnet import leaf_layers


def forward_operations(model: keras.Model) -> dict[str, float]:
    """Returns the floating-point operations of a forward pass of one image.

    Returns:
        `{name of a Conv2D or Dense layer: operations}`, in the layers' order;
        a multiply-add counts as two, a bias as nothing. Infinite where the
        model takes images of any size.
    """
    operations = {}
    for layer in leaf_layers(model):
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            sides = layer.output.shape[1:-1]
            pixels = math.inf if None in sides else math.prod(sides)
            operations[layer.name] = 2 * pixels * math.prod(layer.kernel.shape)
    return operations


def step_operations(model: keras.Model, batch_size: int) -> float:
    """Returns the floating-point operations of one train step.

    The backward pass has twice those of the forward pass, for the gradients of
    the weights and of the inputs; the first convolution needs no latter ones.
    """
    forward = list(forward_operations(model).values())
    return batch_size * (3 * sum(forward) - sum(forward[:1]))
