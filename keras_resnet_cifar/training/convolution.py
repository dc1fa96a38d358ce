"""Convolutions that XLA runs fast inside of a loop on a CPU.

XLA's CPU compiler hands a convolution to Eigen's threads if its dimensions come
in one order, `[N, H, W, C]` with a kernel `[H, W, in, out]`. It brings others
into that order outside of loops only (jax-ml/jax#12868); the gradients that JAX
derives have other orders, and a step in a loop ran 20 to 40 times slower
(JAX 0.10.2). Here the gradients are convolutions in that order too.

On a GPU cuDNN knows the gradients that JAX derives, so these stay on the CPU.
As `batch_normalization`, this is for the clone that trains, never on a disk.
"""

import functools

import jax
import keras
from jax import lax
from jax import numpy as jnp
from keras import ops

_ORDER = ("NHWC", "HWIO", "NHWC")


def is_replaceable(layer):
    """Whether `layer` is a stock Conv2D that can run in this way, here."""
    return (
        type(layer) is keras.layers.Conv2D
        and layer.data_format == "channels_last"
        and layer.groups == 1
        and layer.dilation_rate == (1, 1)
        and jax.default_backend() == "cpu"
    )


class CanonicalConv2D(keras.layers.Conv2D):
    """As `keras.layers.Conv2D` on `[N, H, W, C]`."""

    def convolution_op(self, inputs, kernel):
        padding = lax.padtype_to_pads(
            inputs.shape[1:3], self.kernel_size, self.strides, self.padding
        )
        kernel = ops.convert_to_tensor(kernel)
        inputs = ops.cast(inputs, kernel.dtype)
        return convolve(inputs, kernel, self.strides, tuple(padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(images, kernel, strides, padding):
    """Convolves `[N, H, W, in]` with `[kh, kw, in, out]`.

    Args:
        images: Array, as `kernel` of a floating dtype.
        kernel: Array.
        strides: Two integers.
        padding: Zeros before and after, `((top, bottom), (left, right))`.

    Returns:
        An array `[N, height, width, out]`.
    """
    return _convolved(images, kernel, padding, window_strides=strides)


def _convolved(images, kernel, padding, window_strides=(1, 1), **dilations):
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides,
        padding,
        dimension_numbers=_ORDER,
        **dilations,
    )


def _forward(images, kernel, strides, padding):
    return convolve(images, kernel, strides, padding), (images, kernel)


def _backward(strides, padding, held, gradient):
    images, kernel = held
    sides = zip(
        images.shape[1:3],
        kernel.shape[:2],
        gradient.shape[1:3],
        strides,
        padding,
        strict=True,
    )
    to_images, to_kernel = [], []
    for size, window, places, stride, (before, _) in sides:
        spread = (places - 1) * stride + 1  # the gradient, strides filled in
        to_images.append((window - 1 - before, size - spread + before))
        to_kernel.append((before, spread + window - 1 - size - before))
    turned = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    by_images = _convolved(gradient, turned, to_images, lhs_dilation=strides)
    # The batch is summed over: it takes the place of the channels.
    by_kernel = _convolved(
        jnp.transpose(images, (3, 1, 2, 0)),
        jnp.transpose(gradient, (1, 2, 0, 3)),
        to_kernel,
        rhs_dilation=strides,
    )
    return by_images, jnp.transpose(by_kernel, (1, 2, 0, 3))


convolve.defvjp(_forward, _backward)
