"""Augmentation layers that run inside the compiled step, one draw an image.

They take raw images `[N, H, W, C]`, uint8 or float in 0 to 255, and return
floats in the layer's compute dtype (bfloat16 holds 0 to 255 exactly). Active
with `training=True` only; `TrainingModel` applies them, so that none is ever in
a saved model.
"""

import keras
from keras import ops, random

from keras_resnet_cifar.errors import unknown
from keras_resnet_cifar.recipes import CHOICES


@keras.saving.register_keras_serializable(package="keras_resnet_cifar")
class RandomPadCrop(keras.layers.Layer):
    """Pads each side, then crops back, at an offset of its own per image.

    `keras.layers.RandomCrop` draws one offset for the whole batch; the
    literature (He et al. 2015, section 4.2) draws one for each image, and
    flips half of them.

    Args:
        padding: Pixels on each side; offsets are uniform over
            `(2 * padding + 1) ** 2` positions.
        mode: `"zero"` or `"reflect"` (the border pixel is not repeated).
        flip: Also mirror each image with probability 1/2. It costs nothing
            here: the columns are read from right to left.
        seed: Integer, or `None` for a random one.
    """

    def __init__(self, padding=4, mode="zero", flip=False, seed=None, **kwargs):
        super().__init__(**kwargs)
        if mode not in CHOICES["padding_mode"]:
            raise unknown("padding mode", mode, CHOICES["padding_mode"])
        self.padding = int(padding)
        self.mode = mode
        self.flip = flip
        self.seed = seed
        self.generator = random.SeedGenerator(seed)

    def call(self, images, training=None):
        images = ops.cast(images, self.compute_dtype)
        if not training:
            return images
        count, height, width = ops.shape(images)[0], *images.shape[1:3]
        offsets = random.randint(
            (2, count, 1),
            -self.padding,
            self.padding + 1,
            seed=self.generator,
        )
        rows, columns = ops.arange(height), ops.arange(width)
        if self.flip:
            mirrored = random.randint((count, 1), 0, 2, seed=self.generator)
            columns = ops.where(mirrored == 1, width - 1 - columns, columns)
        # A crop is a matrix product with 0/1 matrices, rows then columns; that
        # compiles on every backend, and padding and flip come with it.
        rows = self._selection(rows + offsets[0], height)
        columns = self._selection(columns + offsets[1], width)
        images = ops.einsum("nij,njwc->niwc", rows, images)
        return ops.einsum("nij,nhjc->nhic", columns, images)

    def _selection(self, positions, size):
        """0/1 matrices `[N, size, size]`: output pixel i takes input j."""
        if self.mode == "reflect":
            positions = ops.abs(positions)
            positions = (size - 1) - ops.abs(size - 1 - positions)
        # A position outside matches no column: a row of zeros, zero padding.
        return ops.one_hot(positions, size, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "padding": self.padding,
            "mode": self.mode,
            "flip": self.flip,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_resnet_cifar")
class RandomCutout(keras.layers.Layer):
    """Blanks one square an image (DeVries and Taylor 2017).

    Its centre is uniform over the image, so that the square may lie partly
    outside, as in the paper's code.

    Args:
        size: Side of the square in pixels.
        fill: What it becomes: a number or one per channel, 0 to 255. The
            paper's 0 after normalisation is the data set's mean here.
        seed: Integer, or `None` for a random one.
    """

    def __init__(self, size=16, fill=127.5, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.size = int(size)
        self.fill = fill
        self.seed = seed
        self.generator = random.SeedGenerator(seed)

    def call(self, images, training=None):
        images = ops.cast(images, self.compute_dtype)
        if not training or not self.size:
            return images
        rows = self._inside(images, 1)[:, :, None, None]
        columns = self._inside(images, 2)[:, None, :, None]
        fill = ops.cast(ops.convert_to_tensor(self.fill), images.dtype)
        return ops.where(ops.logical_and(rows, columns), fill, images)

    def _inside(self, images, axis):
        """Booleans `[N, size of the axis]`: within the square."""
        side = images.shape[axis]
        centre = random.randint(
            (ops.shape(images)[0], 1), 0, side, seed=self.generator
        )
        first = centre - self.size // 2
        position = ops.arange(side)[None, :]
        return ops.logical_and(position >= first, position < first + self.size)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "size": self.size,
            "fill": self.fill,
            "seed": self.seed,
        }
