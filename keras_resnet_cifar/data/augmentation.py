"""Augmentation layers that run inside the compiled step, one draw an image.

They take raw images `[N, H, W, C]`, uint8 or float in 0 to 255, and return
floats in the layer's compute dtype (bfloat16 holds 0 to 255 exactly). Active
with `training=True` only; `TrainingModel` applies them, so that none is ever in
a saved model.
"""

import math

import keras
from keras import ops, random

from keras_resnet_cifar.errors import unknown

PADDING_MODES = ("zero", "reflect")


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
        if mode not in PADDING_MODES:
            raise unknown("padding mode", mode, PADDING_MODES)
        self.padding = int(padding)
        self.mode = mode
        self.flip = flip
        self.seed = seed
        self.generator = random.SeedGenerator(seed)

    def call(self, images, training=None):
        if not training:
            return ops.cast(images, self.compute_dtype)
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
        rows, columns = rows + offsets[0], columns + offsets[1]
        if self.mode == "reflect":
            rows = _reflected(rows, height)
            columns = _reflected(columns, width)
        else:
            border = (self.padding, self.padding)
            images = ops.pad(images, ((0, 0), border, border, (0, 0)))
            rows, columns = rows + self.padding, columns + self.padding
        # An index a pixel, of what may still be bytes: of the formulations in
        # tests/crop_formulations.py the one that is fast on every backend.
        return ops.cast(_picked(images, rows, columns), self.compute_dtype)

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
class RandomResizedCrop(keras.layers.Layer):
    """Crops a random box of each image and resizes it, as torchvision's.

    The box has a share `scale` of the image's area and an aspect ratio in
    `ratio`, uniform in its logarithm; of ten draws the first that fits is
    taken, else the largest central box of an allowed ratio (Szegedy et al.
    2014, arXiv:1409.4842, as in torchvision). The resizing is bilinear, with a
    wider filter where it shrinks, as Pillow's: the pixels of the box are
    resampled once, straight to the size that the net works at.

    Args:
        size: Side of the square output in pixels.
        scale: Least and greatest share of the area.
        ratio: Least and greatest width / height.
        flip: Also mirror each image with probability 1/2.
        seed: Integer, or `None` for a random one.
    """

    TRIES = 10

    def __init__(
        self,
        size=224,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        flip=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = int(size)
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.flip = flip
        self.seed = seed
        self.generator = random.SeedGenerator(seed)

    def call(self, images, training=None):
        images = ops.cast(images, self.compute_dtype)
        if not training:
            return images
        count = ops.shape(images)[0]
        boxes = self.draw(count, *images.shape[1:3])
        rows, columns = self.interpolation(boxes, *images.shape[1:3])
        if self.flip:
            mirrored = random.randint((count, 1, 1), 0, 2, seed=self.generator)
            columns = ops.where(mirrored == 1, ops.flip(columns, 1), columns)
        # Separable, so two matrix products; that compiles on every backend.
        return _resampled(images, rows, columns)

    def draw(self, count, height, width):
        """Returns boxes (top, left, height, width), each whole `[count]`."""
        drawn = (self.TRIES, count)
        area = random.uniform(drawn, *self.scale, seed=self.generator)
        area = area * (height * width)
        logarithms = [math.log(bound) for bound in self.ratio]
        ratio = ops.exp(random.uniform(drawn, *logarithms, seed=self.generator))
        tall = ops.round(ops.sqrt(area / ratio))
        wide = ops.round(ops.sqrt(area * ratio))
        fits = ops.logical_and(tall <= height, wide <= width)
        fits = ops.logical_and(fits, ops.minimum(tall, wide) >= 1)
        first = ops.expand_dims(ops.argmax(fits, axis=0), 0)
        tall, wide = (
            ops.take_along_axis(sides, first, axis=0)[0]
            for sides in (tall, wide)
        )
        found = ops.any(fits, axis=0)
        least, most = self.ratio
        tall = ops.where(found, tall, min(height, round(width / least)))
        wide = ops.where(found, wide, min(width, round(height * most)))
        place = random.uniform((2, count), seed=self.generator)
        # The central box, if none was found.
        place = ops.where(found, place, 0.5)
        top = ops.floor(place[0] * (height - tall + 1))
        left = ops.floor(place[1] * (width - wide + 1))
        return top, left, tall, wide

    def interpolation(self, boxes, height, width):
        """Returns matrices `[N, size, height]` and `[N, size, width]`."""
        top, left, tall, wide = boxes
        return (
            self._weights(top, tall, height),
            self._weights(left, wide, width),
        )

    def _weights(self, first, extent, side):
        """Weight of each input pixel in each output pixel, `[N, size, side]`.

        Pixels have their centres at halves; those outside the box count for
        nothing, so that its border is extended.
        """
        first, extent = first[:, None, None], extent[:, None, None]
        step = extent / self.size
        centre = (
            first
            + (ops.arange(self.size, dtype="float32") + 0.5)[None, :, None]
            * step
        )
        pixel = (ops.arange(side, dtype="float32") + 0.5)[None, None, :]
        inside = ops.logical_and(pixel > first, pixel < first + extent)
        distance = ops.abs(pixel - centre) / ops.maximum(step, 1.0)
        weights = ops.where(inside, ops.relu(1.0 - distance), 0.0)
        weights = weights / ops.sum(weights, axis=-1, keepdims=True)
        return ops.cast(weights, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.size, self.size, input_shape[3])

    def get_config(self):
        return super().get_config() | {
            "size": self.size,
            "scale": self.scale,
            "ratio": self.ratio,
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


def _reflected(positions, size):
    """Positions outside of 0 to size - 1, mirrored at the border pixels."""
    return (size - 1) - ops.abs(size - 1 - ops.abs(positions))


def _picked(images, rows, columns):
    """Pixels of images at rows `[N, h]` and columns `[N, w]` of each."""
    height, width, channels = images.shape[1:]
    start = ops.arange(ops.shape(images)[0])[:, None, None] * (height * width)
    places = start + rows[:, :, None] * width + columns[:, None, :]
    return ops.take(ops.reshape(images, (-1, channels)), places, axis=0)


def _resampled(images, rows, columns):
    """Images by a matrix `[N, out, in]` each for their rows and columns."""
    images = ops.einsum("nij,njwc->niwc", rows, images)
    return ops.einsum("nij,nhjc->nhic", columns, images)
