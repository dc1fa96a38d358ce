"""Augmentation of a recipe, and which library draws each policy."""

import keras
import numpy as np
from keras import layers

from keras_resnet_cifar.data.augmentation import (
    RandomCutout,
    RandomPadCrop,
    RandomResizedCrop,
)
from keras_resnet_cifar.errors import InputError

RAND_AUGMENT_MAGNITUDE = 0.3  # of 1: KerasCV's scale, and 3 of Keras's 10


def image_layers(recipe, mean, seed):
    """Layers on images that run inside the compiled step, in their order.

    Args:
        recipe: A `Recipe`.
        mean: The data set's channel mean in 0 to 1: what cutout fills with.
        seed: Integer; each layer draws from a stream of its own.
    """
    chain = []
    if recipe.random_resized_crop:
        side = recipe.random_resized_crop
        chain.append(RandomResizedCrop(side, flip=recipe.flip, seed=seed))
    elif recipe.padding or recipe.flip:
        crop = (recipe.padding, recipe.padding_mode, recipe.flip)
        chain.append(RandomPadCrop(*crop, seed=seed))
    if recipe.cutout:
        fill = [255 * value for value in mean]
        chain.append(RandomCutout(recipe.cutout, fill, seed=seed + 1))
    return chain


def check_crop(recipe, model):
    """Raises `InputError` if a net cannot take a recipe's resized crops.

    A net that resizes its images itself takes any; see `training_clone`.
    """
    side = recipe.random_resized_crop
    resizes = any(isinstance(x, layers.Resizing) for x in model.layers)
    if side and not resizes and model.input_shape[1:3] != (side, side):
        raise InputError(
            f"random_resized_crop={side}, but {model.name} takes images "
            f"{model.input_shape[1:3]}: give it that side, or fine-tune a net "
            "of build_finetuned"
        )


def mixing_layers(recipe, seed):
    """Layers on `{"images", "labels"}` in the compiled step: Keras's own."""
    chain = []
    if recipe.mixup:
        chain.append(layers.MixUp(alpha=recipe.mixup, seed=seed + 2))
    if recipe.cutmix:
        chain.append(layers.CutMix(factor=recipe.cutmix, seed=seed + 3))
    return chain


def host_transform(recipe, seed):
    """RandAugment as a function `(images, epoch, step)`, or `None`.

    It runs on the host ahead of the step, for no backend compiles it; inside
    the step it would make JAX run the whole step eagerly. Under TensorFlow it
    is KerasCV's, twice as fast per image as Keras's own. Both keep states of
    their own and draw from the global one as well. So each batch has a new
    layer, and sets the global seeds of Python, NumPy and the backend.
    """
    if not recipe.rand_augment:
        return None

    def transform(images, epoch, step):
        drawn = np.random.default_rng([seed, epoch, step]).integers(2**31)
        keras.utils.set_random_seed(int(drawn))
        layer = rand_augment(recipe.rand_augment, int(drawn))
        out = layer(images.astype("float32"), training=True)
        return keras.ops.convert_to_numpy(out).astype("uint8")

    return transform


def rand_augment(operations, seed):
    """The RandAugment layer of the library that is faster here."""
    if keras.backend.backend() != "tensorflow":
        return layers.RandAugment(
            value_range=(0, 255),
            num_ops=operations,
            factor=RAND_AUGMENT_MAGNITUDE,
            seed=seed,
        )
    try:
        from keras_cv.layers import RandAugment
    except ImportError as error:
        raise InputError(
            "rand_augment needs keras-cv under TensorFlow: pip install keras-cv"
        ) from error
    return RandAugment(
        value_range=(0, 255),
        augmentations_per_image=operations,
        magnitude=RAND_AUGMENT_MAGNITUDE,
        seed=seed,
    )
