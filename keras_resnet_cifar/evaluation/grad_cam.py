"""Grad-CAM: where in an image a net sees a class."""

import weakref
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers, ops

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import logits_of

# The model of each model's last feature maps, kept so that it compiles once.
_MAPS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    class_ids: np.ndarray | Sequence[int] | int | None = None,
) -> np.ndarray:
    """Returns Grad-CAM heatmaps: where in an image a net sees a class.

    Grad-CAM weighs the last feature maps with the mean gradient of a logit
    (Selvaraju et al. 2017, arXiv:1610.02391). Before global average pooling and
    one dense layer, that gradient is the layer's kernel divided by the number
    of positions, for any image, so nothing has to be differentiated.

    Args:
        model: A model that ends in `GlobalAveragePooling2D` and `Dense`, like
            those of `build_resnet` and `build_finetuned`. It is not modified.
        images: uint8 or float `[N, H, W, channels]`, 0 to 255.
        class_ids: One class for all images, or one for each; `None` selects the
            most probable.

    Returns:
        float32 `[N, H, W]`: 1 where the evidence for the class is strongest in
        an image, 0 where there is none.

    Raises:
        InputError: The model ends in other layers, there are no images, or the
            classes do not fit.
    """
    pooling, dense = [None, None, *model.layers][-2:]
    if not isinstance(pooling, layers.GlobalAveragePooling2D) or not isinstance(
        dense, layers.Dense
    ):
        raise InputError(
            f"{model.name} does not end in GlobalAveragePooling2D and Dense: "
            "give a model of build_resnet or build_finetuned"
        )
    kernel, *bias = dense.get_weights()
    if model not in _MAPS:
        _MAPS[model] = keras.Model(model.inputs, pooling.input)
    maps = logits_of(_MAPS[model], images)
    if class_ids is None:
        chosen = (maps.mean(axis=(1, 2)) @ kernel + sum(bias)).argmax(axis=1)
    else:
        chosen = _checked(class_ids, len(images), kernel.shape[1])
    heat = np.einsum("nhwc,nc->nhw", maps, kernel.T[chosen])
    heat = np.maximum(heat, 0)
    resized = ops.image.resize(heat[..., None], images.shape[1:3])
    heat = ops.convert_to_numpy(resized)[..., 0]
    most = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(most > 0, most, 1)


def _checked(class_ids, count, classes):
    chosen = np.asarray(class_ids)
    fits = chosen.shape in ((), (count,)) and chosen.dtype.kind in "iu"
    if not fits or chosen.min() < 0 or chosen.max() >= classes:
        raise InputError(
            f"class_ids={class_ids!r}: give one class from 0 to {classes - 1}, "
            f"or {count}, one for each image"
        )
    return np.broadcast_to(chosen, count)
