"""Faster equivalents of stock layers, for training only.

They are never saved: `training_model.training_clone` uses them in the copy of a
model that is trained, whose weights are copied back to the model of stock
layers.
"""

import functools
from typing import Any

import keras
from keras import ops

_BACKEND = keras.backend.backend()


def faster_class(layer: keras.layers.Layer) -> type:
    """Returns the class of `layer`, or a faster equivalent."""
    if _is_plain_normalization(layer):
        return FusedBatchNormalization
    if type(layer) is keras.layers.MaxPooling2D and layer.pool_size == (1, 1):
        return keras.layers.AveragePooling2D  # its gradient is no scatter
    if _BACKEND == "jax" and _is_plain_convolution(layer):
        return CanonicalConv2D
    return type(layer)


def _is_plain_normalization(layer):
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.axis in (-1, 3)
        and layer.center
        and layer.scale
        and not layer.renorm
        and not layer.synchronized
        and len(layer.input.shape) == 4
    )


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` on `[N, H, W, C]` as one operation.

    Keras's layer casts the activations to float32, takes the moments, then
    normalizes: three passes over memory. This one calls the fused kernel of the
    backend. Statistics and parameters stay float32 and activations keep their
    dtype. The running variance is unbiased, as in PyTorch, which most of the
    literature's code uses; Keras's is biased.
    """

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        if mask is not None:
            return super().call(inputs, training=training, mask=mask)
        if not (training and self.trainable):
            return _inference(self, inputs)
        outputs, mean, variance = _normalize(self, inputs)
        if mean is not None:
            keep = self.momentum
            self.moving_mean.assign(keep * self.moving_mean + (1 - keep) * mean)
            self.moving_variance.assign(
                keep * self.moving_variance + (1 - keep) * variance
            )
        return outputs


# For each backend, `_inference(layer, x)` returns the outputs with the running
# statistics. `_normalize(layer, x)` returns those with the batch's statistics,
# and the batch's mean and unbiased variance, which are `None` if the kernel
# updates the running statistics itself.

if _BACKEND == "tensorflow":
    import tensorflow as tf

    def _batch_norm(layer, x, mean, variance, training):
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=layer.gamma.value,
            offset=layer.beta.value,
            mean=mean,
            variance=variance,
            epsilon=layer.epsilon,
            is_training=training,
        )

    def _normalize(layer, x):
        y, mean, variance, *_ = _batch_norm(layer, x, (), (), True)
        return y, mean, variance

    def _inference(layer, x):
        mean, variance = layer.moving_mean.value, layer.moving_variance.value
        return _batch_norm(layer, x, mean, variance, False)[0]

elif _BACKEND == "torch":
    import torch

    def _torch_batch_norm(layer, x, training):
        y = torch.nn.functional.batch_norm(
            x.permute(0, 3, 1, 2),
            layer.moving_mean.value,
            layer.moving_variance.value,
            layer.gamma.value,
            layer.beta.value,
            training=training,
            momentum=1 - layer.momentum,
            eps=layer.epsilon,
        )
        return y.permute(0, 2, 3, 1)

    def _normalize(layer, x):
        return _torch_batch_norm(layer, x, True), None, None

    def _inference(layer, x):
        return _torch_batch_norm(layer, x, False)

else:
    import jax
    from jax import lax
    from jax import numpy as jnp

    def _normalize(layer, x):
        gamma, beta = layer.gamma.value, layer.beta.value
        if jax.default_backend() == "cpu":  # JAX's own gradient is faster
            return _forward_norm(x, gamma, beta, layer.epsilon)[0]
        return _jax_batch_norm(x, gamma, beta, layer.epsilon)

    def _inference(layer, x):
        stock = keras.layers.BatchNormalization
        return stock.call(layer, x, training=False)

    # The gradient that JAX derives takes one more kernel per layer on a GPU.
    # Here one kernel adds up two sums over the activations, in each direction.
    @functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
    def _jax_batch_norm(x, gamma, beta, epsilon):
        return _forward_norm(x, gamma, beta, epsilon)[0]

    def _forward_norm(x, gamma, beta, epsilon):
        count = x.size // x.shape[-1]
        x32 = x.astype("float32")
        total, squares = _sums(x32, x32 * x32)
        mean = total / count
        variance = jnp.maximum(squares / count - mean * mean, 0.0)
        inverse = lax.rsqrt(variance + epsilon)
        scale = gamma * inverse
        y = (x32 * scale + (beta - mean * scale)).astype(x.dtype)
        unbiased = variance * (count / max(count - 1, 1))
        return (y, mean, unbiased), (x, gamma, mean, inverse)

    def _backward_norm(epsilon, residuals, gradients):
        x, gamma, mean, inverse = residuals
        gradient = gradients[0].astype("float32")  # the statistics have none
        centred = x.astype("float32") - mean
        to_beta, products = _sums(gradient, gradient * centred)
        to_gamma = products * inverse
        count = x.size // x.shape[-1]
        slope = to_gamma * inverse / count
        to_x = gradient - slope * centred - to_beta / count
        to_x *= gamma * inverse
        return to_x.astype(x.dtype), to_gamma, to_beta

    _jax_batch_norm.defvjp(_forward_norm, _backward_norm)

    def _sums(x, y):
        """Returns the sums of two arrays over all axes but the last."""
        axes = tuple(range(x.ndim - 1))
        if jax.default_backend() == "cpu":  # XLA does not vectorize a pair
            return x.sum(axes), y.sum(axes)

        def add(a, b):
            return a[0] + b[0], a[1] + b[1]

        return lax.reduce((x, y), (jnp.float32(0),) * 2, add, axes)


if _BACKEND == "jax":
    # XLA's CPU compiler runs a convolution on Eigen's threads only if its
    # dimensions have one order: [N, H, W, C] with a kernel [H, W, in, out]. It
    # transposes others to that order only outside loops (jax-ml/jax#12868). The
    # gradients that JAX derives have other orders, and a step in a loop ran 20
    # to 40 times slower (JAX 0.10.2). Here, the gradients are convolutions in
    # that order, too. cuDNN does not need this.
    def _is_plain_convolution(layer):
        return (
            type(layer) is keras.layers.Conv2D
            and layer.data_format == "channels_last"
            and layer.groups == 1
            and layer.dilation_rate == (1, 1)
            and jax.default_backend() == "cpu"
        )

    class CanonicalConv2D(keras.layers.Conv2D):
        """`keras.layers.Conv2D` on `[N, H, W, C]`, fast in loops on a CPU."""

        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            padding = lax.padtype_to_pads(
                inputs.shape[1:3], self.kernel_size, self.strides, self.padding
            )
            kernel = ops.convert_to_tensor(kernel)
            inputs = ops.cast(inputs, kernel.dtype)
            return convolve(inputs, kernel, self.strides, tuple(padding))

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
    def convolve(
        images: Any, kernel: Any, strides: tuple, padding: tuple
    ) -> Any:
        """Convolves `[N, H, W, in]` with `[kh, kw, in, out]`.

        `padding` counts zeros, `((top, bottom), (left, right))`.
        """
        return _convolve(images, kernel, padding, window_strides=strides)

    def _convolve(images, kernel, padding, window_strides=(1, 1), **dilations):
        return lax.conv_general_dilated(
            images,
            kernel,
            window_strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **dilations,
        )

    def _forward(images, kernel, strides, padding):
        return convolve(images, kernel, strides, padding), (images, kernel)

    def _backward(strides, padding, residuals, gradient):
        images, kernel = residuals
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
            spread = (places - 1) * stride + 1  # of the dilated gradient
            to_images.append((window - 1 - before, size - spread + before))
            to_kernel.append((before, spread + window - 1 - size - before))
        flipped = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
        by_images = _convolve(
            gradient, flipped, to_images, lhs_dilation=strides
        )
        # The batch is summed over, so it takes the place of the channels.
        by_kernel = _convolve(
            jnp.transpose(images, (3, 1, 2, 0)),
            jnp.transpose(gradient, (1, 2, 0, 3)),
            to_kernel,
            rhs_dilation=strides,
        )
        return by_images, jnp.transpose(by_kernel, (1, 2, 0, 3))

    convolve.defvjp(_forward, _backward)
