"""BatchNormalization as one pass, for training only.

Keras's own layer casts the activations to float32, takes the moments, then
normalises: three passes over memory. This one calls the fused kernel of the
backend. Statistics and parameters stay float32, activations keep their dtype,
and the running variance is the unbiased one, as in PyTorch and so in the
literature's training code (Keras keeps the biased).

It never reaches a disk: `training_model.py` makes a clone with these layers to
train, and `checkpoints.publish` copies its weights to the model of stock
layers.
"""

import keras
from keras import ops

_CHANNELS_LAST = (-1, 3)


def is_replaceable(layer):
    """Whether `layer` is a stock BatchNormalization that can run fused."""
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.axis in _CHANNELS_LAST
        and layer.center
        and layer.scale
        and not layer.renorm
        and not layer.synchronized
        and len(layer.input.shape) == 4
    )


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """As `keras.layers.BatchNormalization` on `[N, H, W, C]`, in one pass."""

    def call(self, inputs, training=None, mask=None):
        if mask is not None:
            return super().call(inputs, training=training, mask=mask)
        if not (training and self.trainable):
            return _inference(self, inputs)
        outputs, mean, variance = _normalize(self, inputs)
        if mean is not None:
            self._update(mean, variance)
        return outputs

    def _update(self, mean, variance):
        keep = self.momentum
        self.moving_mean.assign(keep * self.moving_mean + (1 - keep) * mean)
        self.moving_variance.assign(
            keep * self.moving_variance + (1 - keep) * variance
        )


def _portable_inference(layer, x):
    return super(FusedBatchNormalization, layer).call(x, training=False)


if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def _kernel(layer, x, mean, variance, training):
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
        y, mean, variance, *_ = _kernel(layer, x, (), (), True)
        return y, mean, variance  # its variance is the unbiased one

    def _inference(layer, x):
        mean, variance = layer.moving_mean.value, layer.moving_variance.value
        return _kernel(layer, x, mean, variance, False)[0]

elif keras.backend.backend() == "torch":
    import torch

    def _kernel(layer, x, training):
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
        return _kernel(layer, x, True), None, None  # updates by itself

    def _inference(layer, x):
        return _kernel(layer, x, False)

else:

    def _normalize(layer, x):
        # Sum and sum of squares in one pass; `ops.var` would read x twice.
        x32 = ops.cast(x, "float32")
        mean = ops.mean(x32, axis=(0, 1, 2))
        square = ops.mean(ops.square(x32), axis=(0, 1, 2))
        variance = ops.maximum(square - ops.square(mean), 0.0)
        scale = layer.gamma * ops.rsqrt(variance + layer.epsilon)
        y = x32 * scale + (layer.beta - mean * scale)
        count = ops.size(x) // x.shape[-1]
        unbiased = variance * (count / max(count - 1, 1))
        return ops.cast(y, x.dtype), mean, unbiased

    _inference = _portable_inference
