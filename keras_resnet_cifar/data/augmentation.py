"""Augmentation: layers that transform each image independently.

The layers take batches of raw images `[N, H, W, C]`, uint8 or float in 0 to
255, and return floats in their compute dtype (bfloat16 holds 0 to 255 exactly).
They are active with `training=True` only, and compile on every backend.
`krc.train` runs them inside its step and does not save them. With plain `fit`,
use them as the first layers of a model or, under TensorFlow, in `map`:

    model = keras.Sequential([krc.RandomPadCrop(4, flip=True), net])
    dataset = dataset.map(lambda x, y: (layer(x, training=True), y))
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops, random
from scipy.special import betaincinv

from keras_resnet_cifar.errors import (
    InputError,
    check_name,
    checked_number,
    checked_seed,
)

Tensor = Any  # of the backend
_QUANTILES = 2048  # of MixUp's Beta distribution
PADDING_MODES = ("zero", "reflect")

_register = keras.saving.register_keras_serializable("keras_resnet_cifar")


class _PerImage(layers.Layer):
    """A layer whose `augment` transforms each image in training."""

    OPTIONS: tuple[str, ...]  # attributes that are arguments of the constructor
    augment: Callable[[Tensor], Tensor]

    def __init__(self, seed, **kwargs):
        super().__init__(**kwargs)
        seed = None if seed is None else checked_seed(seed)
        self.seed = seed
        self.generator = random.SeedGenerator(seed)

    def call(self, images: Tensor, training: bool | None = None) -> Tensor:
        if training:
            images = self.augment(images)
        return ops.cast(images, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.OPTIONS}
        return super().get_config() | options | {"seed": self.seed}


@_register
class RandomPadCrop(_PerImage):
    """Pads each image, then crops it to its size at a random offset.

    As in the literature (He et al. 2015, section 4.2), each image has its own
    offset; `keras.layers.RandomCrop` draws one for the whole batch.

    Args:
        padding: Pixels on each side; offsets are uniform over
            `(2 * padding + 1) ** 2` positions.
        mode: `"zero"` or `"reflect"` (the border pixel is not repeated).
        flip: Also mirror each image with probability 1/2, at no extra cost.
        seed: Integer, or `None` for a random one.
    """

    OPTIONS = ("padding", "mode", "flip")

    def __init__(
        self,
        padding: int = 4,
        mode: str = "zero",
        flip: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, **kwargs)
        check_name("mode", mode, PADDING_MODES)
        self.padding = checked_number("padding", padding, int)
        self.mode = mode
        self.flip = flip

    def augment(self, images: Tensor) -> Tensor:
        count, (height, width) = ops.shape(images)[0], images.shape[1:3]
        pad = self.padding
        offsets = random.randint(
            (2, count, 1), -pad, pad + 1, seed=self.generator
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
            images = ops.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
            rows, columns = rows + pad, columns + pad
        # One index per pixel, on images that may still be uint8: fast on every
        # backend, see benchmarks/crop_formulations.py.
        return _gather_pixels(images, rows, columns)


@_register
class RandomResizedCrop(_PerImage):
    """Crops a random box of each image and resizes it, as torchvision does.

    The box covers a fraction of the image's area in `scale` and has an aspect
    ratio in `ratio`, uniform in its logarithm. The first of ten draws that fits
    is used, else the largest central box of an allowed ratio (Szegedy et al.
    2014, arXiv:1409.4842). Resizing is bilinear with antialiasing, as in
    Pillow. Outside training, the whole image is resized.

    Args:
        size: Side of the square output in pixels.
        scale: Minimum and maximum fraction of the area.
        ratio: Minimum and maximum width / height.
        flip: Also mirror each image with probability 1/2.
        seed: Integer, or `None` for a random one.
    """

    TRIES = 10
    OPTIONS = ("size", "scale", "ratio", "flip")

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, **kwargs)
        self.size = checked_number("size", size, int, 1)
        self.scale = _checked_range("scale", scale)
        self.ratio = _checked_range("ratio", ratio)
        self.flip = flip

    def call(self, images: Tensor, training: bool | None = None) -> Tensor:
        images, size = super().call(images, training), (self.size, self.size)
        if tuple(images.shape[1:3]) == size:
            return images
        return ops.image.resize(
            images, size, antialias=True, data_format="channels_last"
        )

    def augment(self, images: Tensor) -> Tensor:
        images = ops.cast(images, self.compute_dtype)
        count, (height, width) = ops.shape(images)[0], images.shape[1:3]
        top, left, tall, wide = self.draw(count, height, width)
        rows = self.interpolation(top, tall, height)
        columns = self.interpolation(left, wide, width)
        if self.flip:
            mirrored = random.randint((count, 1, 1), 0, 2, seed=self.generator)
            columns = ops.where(mirrored == 1, ops.flip(columns, 1), columns)
        # Separable, so two matrix products; they compile on every backend.
        images = ops.einsum("nij,njwc->niwc", rows, images)
        return ops.einsum("nij,nhjc->nhic", columns, images)

    def draw(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Returns boxes (top, left, height, width), each `[count]` pixels."""
        shape = (self.TRIES, count)
        area = random.uniform(shape, *self.scale, seed=self.generator)
        area = area * (height * width)
        logarithms = [math.log(bound) for bound in self.ratio]
        ratio = ops.exp(random.uniform(shape, *logarithms, seed=self.generator))
        tall = ops.round(ops.sqrt(area / ratio))
        wide = ops.round(ops.sqrt(area * ratio))
        fits = ops.logical_and(tall <= height, wide <= width)
        fits = ops.logical_and(fits, ops.minimum(tall, wide) >= 1)
        first = ops.expand_dims(ops.argmax(fits, axis=0), 0)
        tall, wide = (
            ops.take_along_axis(sides, first, axis=0)[0]
            for sides in (tall, wide)
        )
        # If none fits: the central box.
        fits = ops.any(fits, axis=0)
        least, most = self.ratio
        tall = ops.where(fits, tall, min(height, round(width / least)))
        wide = ops.where(fits, wide, min(width, round(height * most)))
        place = random.uniform((2, count), seed=self.generator)
        place = ops.where(fits, place, 0.5)
        top = ops.floor(place[0] * (height - tall + 1))
        left = ops.floor(place[1] * (width - wide + 1))
        return top, left, tall, wide

    def interpolation(self, first: Tensor, extent: Tensor, side: int) -> Tensor:
        """Returns the weight of each input pixel in each output pixel.

        Pixel centres are at halves. Pixels outside the box have weight 0, which
        extends its border.

        Args:
            first: First row (or column) of each box, `[N]`.
            extent: Rows (or columns) of each box, `[N]`.
            side: Rows (or columns) of the images.

        Returns:
            `[N, size, side]`; each row sums to 1.
        """
        first, extent = first[:, None, None], extent[:, None, None]
        step = extent / self.size
        centre = ops.arange(self.size, dtype="float32")[None, :, None] + 0.5
        centre = first + centre * step
        pixel = ops.arange(side, dtype="float32")[None, None, :] + 0.5
        inside = ops.logical_and(pixel > first, pixel < first + extent)
        distance = ops.abs(pixel - centre) / ops.maximum(step, 1.0)
        weights = ops.where(inside, ops.relu(1.0 - distance), 0.0)
        weights = weights / ops.sum(weights, axis=-1, keepdims=True)
        return ops.cast(weights, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.size, self.size, input_shape[3])


@_register
class RandomCutout(_PerImage):
    """Blanks one square in each image (DeVries and Taylor 2017).

    Its centre is uniform over the image, so the square may lie partly outside,
    as in the paper's code.

    Args:
        size: Side of the square in pixels.
        fill: The new value: one number or one per channel, 0 to 255. The
            dataset's mean corresponds to the paper's 0 after normalization.
        seed: Integer, or `None` for a random one.
    """

    OPTIONS = ("size", "fill")

    def __init__(
        self,
        size: int = 16,
        fill: float | Sequence[float] = 127.5,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, **kwargs)
        self.size = checked_number("size", size, int)
        self.fill = fill

    def augment(self, images: Tensor) -> Tensor:
        images = ops.cast(images, self.compute_dtype)
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


class QuantileMixUp(layers.MixUp):
    """`keras.layers.MixUp` on batches, without rejection sampling.

    Keras draws from Beta(alpha, alpha) in loops that end when all samples are
    accepted, so a GPU has to wait for the host in each step. Here, a table of
    quantiles maps uniform draws.
    """

    def get_random_transformation(
        self, data: dict, training: bool = True, seed: Any = None
    ) -> dict[str, Tensor]:
        count = ops.shape(data["images"])[0]
        seed = self.generator if seed is None else seed
        order = random.shuffle(ops.arange(count, dtype="int32"), seed=seed)
        shares = np.linspace(0, 1, _QUANTILES + 1)
        quantiles = betaincinv(self.alpha, self.alpha, shares).astype("float32")
        place = random.uniform((count,), 0, len(quantiles) - 1, seed=seed)
        before = ops.cast(place, "int32")
        share = place - ops.cast(before, place.dtype)
        lower = ops.take(quantiles[:-1], before)
        upper = ops.take(quantiles[1:], before)
        weight = (1 - share) * lower + share * upper
        return {"mix_weight": weight, "permutation_order": order}


def _checked_range(name, pair):
    """Returns two numbers above 0 in order, or raises `InputError`."""
    if not isinstance(pair, Iterable) or isinstance(pair, str):
        pair = (pair,)
    low, *high = (checked_number(name, number) for number in pair)
    if len(high) != 1 or not 0 < low <= high[0]:
        raise InputError(f"{name}={pair}: give the least and the most, above 0")
    return low, high[0]


def _reflected(positions, size):
    """Positions outside 0 to size - 1, mirrored at the border pixels."""
    positions = ops.abs(positions) % max(2 * (size - 1), 1)
    return (size - 1) - ops.abs(size - 1 - positions)


def _gather_pixels(images, rows, columns):
    """Pixels of images at rows `[N, h]` and columns `[N, w]` of each."""
    count, (height, width, channels) = ops.shape(images)[0], images.shape[1:]
    places = rows[:, :, None] * width + columns[:, None, :]
    if keras.distribution.distribution() is not None:
        # This shows XLA that no device needs the images of another.
        pixels = ops.reshape(images, (count, -1, channels))
        indices = ops.reshape(places, (count, -1, 1))
        picked = ops.take_along_axis(pixels, indices, axis=1)
        return ops.reshape(picked, (*places.shape, channels))
    places += ops.arange(count)[:, None, None] * (height * width)
    return ops.take(ops.reshape(images, (-1, channels)), places, axis=0)


# --- The augmentation of a recipe


def image_layers(recipe: Any, mean: Sequence[float], seed: int) -> list:
    """Returns the layers on images of a `Recipe`, in order.

    Cutout fills with `mean`, the dataset's channel mean in 0 to 1.
    """
    chain: list[layers.Layer] = []
    flip = recipe.flip and not recipe.alternating_flip
    if recipe.random_resized_crop:
        side = recipe.random_resized_crop
        chain.append(RandomResizedCrop(side, flip=flip, seed=seed))
    elif recipe.padding or flip:
        crop = (recipe.padding, recipe.padding_mode, flip)
        chain.append(RandomPadCrop(*crop, seed=seed))
    if recipe.cutout:
        fill = [255 * value for value in mean]
        chain.append(RandomCutout(recipe.cutout, fill, seed=seed + 1))
    return chain


def mixing_layers(recipe: Any, seed: int) -> list:
    """Returns the layers on `{"images", "labels"}` of a `Recipe`."""
    chain: list[layers.Layer] = []
    if recipe.mixup:
        chain.append(QuantileMixUp(alpha=recipe.mixup, seed=seed + 2))
    if recipe.cutmix:
        chain.append(layers.CutMix(factor=recipe.cutmix, seed=seed + 3))
    return chain


def host_transform(recipe: Any, seed: int) -> Callable | None:
    """Returns RandAugment as a function `(images, epoch, step)`, or `None`.

    It runs on the host, since no backend compiles it. The layers draw from
    their own and from global states, so each batch uses a new layer and sets
    the global seeds of Python, NumPy and the backend.
    """
    if not recipe.rand_augment:
        return None

    def transform(images, epoch, step):
        drawn = int(np.random.default_rng([seed, epoch, step]).integers(2**31))
        keras.utils.set_random_seed(drawn)
        layer = rand_augment(recipe.rand_augment, drawn)
        augmented = layer(images.astype("float32"), training=True)
        return ops.convert_to_numpy(augmented).astype("uint8")

    return transform


def rand_augment(operations: int, seed: int) -> layers.Layer:
    """Returns a RandAugment layer with a number of operations per image.

    Under TensorFlow, it is KerasCV's, which takes half the time of Keras's; on
    other backends, or if KerasCV is not installed, it is Keras's.
    """
    shared = {"value_range": (0, 255), "seed": seed}
    strength = 0.3  # of 1 on KerasCV's scale; 3 of Keras's 10
    if keras.backend.backend() == "tensorflow":
        with contextlib.suppress(ImportError):
            from keras_cv.layers import RandAugment

            return RandAugment(
                augmentations_per_image=operations, magnitude=strength, **shared
            )
    return layers.RandAugment(num_ops=operations, factor=strength, **shared)


def check_sizes(recipe: Any, model: keras.Model) -> None:
    """Raises `InputError` if resized crops or cutout do not fit a model.

    A model that resizes its images itself takes crops of any size.
    """
    side = recipe.random_resized_crop
    smallest = side or min(filter(None, model.input_shape[1:3]), default=0)
    if smallest and recipe.cutout > smallest:
        raise InputError(
            f"cutout={recipe.cutout}: must be at most {smallest}, the side of "
            "the images"
        )
    resizes = any(isinstance(x, layers.Resizing) for x in model.layers)
    if side and not resizes and model.input_shape[1:3] != (side, side):
        raise InputError(
            f"random_resized_crop={side}, but {model.name} takes images "
            f"{model.input_shape[1:3]}: use that side, or fine-tune a net of "
            "build_finetuned"
        )
