"""Predicts the classes of image files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet_cifar.data.images import read_image
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.grad_cam import grad_cam
from keras_resnet_cifar.evaluation.metrics import softmax
from keras_resnet_cifar.evaluation.plots import plot_grad_cam
from keras_resnet_cifar.models.saving import check_classifier


def predict_files(
    model: keras.Model,
    paths: Sequence[str | os.PathLike],
    class_names: Sequence[str] | None = None,
    top: int = 3,
    explain: str | os.PathLike | None = None,
) -> list[dict[str, Any]]:
    """Returns the most probable classes of image files.

    Args:
        model: From raw images to logits, as from `build_resnet`.
        paths: Image files; `read_image` brings each to the model's input size.
        class_names: One name per class, or `None` for numbers.
        top: How many classes to return per image, at least 1.
        explain: PNG file for a picture of where the model sees the most
            probable class of each image: see `grad_cam`.

    Returns:
        A list of dicts `{"image": path, "classes": [{"class": name,
        "probability": 0 to 1}, ...]}`, the most probable class first.

    Raises:
        InputError: A file is not an image, the names do not fit the model, or
            it cannot be explained, as `grad_cam` says.
    """
    classes = len(class_names) if class_names else None
    check_classifier(model, classes, (None, None, 3))
    names = class_names or list(map(str, range(model.output_shape[1])))
    if top < 1:
        raise InputError(f"top={top}: ask for at least 1 class")
    height, width = (side or 32 for side in model.input_shape[1:3])
    images = np.stack([read_image(path, (height, width)) for path in paths])
    probabilities = softmax(logits_of(model, images))
    ranked = np.argsort(-probabilities, axis=1)[:, :top]
    if explain is not None:
        heat = grad_cam(model, images, ranked[:, 0])
        titles = [
            f"{names[order[0]]} {row[order[0]]:.0%}"
            for row, order in zip(probabilities, ranked, strict=True)
        ]
        plot_grad_cam(images, heat, titles, Path(explain))
    return [
        {
            "image": str(path),
            "classes": [
                {"class": names[i], "probability": float(row[i])} for i in order
            ],
        }
        for path, row, order in zip(paths, probabilities, ranked, strict=True)
    ]
