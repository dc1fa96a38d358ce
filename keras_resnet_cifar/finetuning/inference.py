"""Loads the model of a run or a fine-tuning run, and predicts with it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet_cifar.data.folders import image_files
from keras_resnet_cifar.data.images import read_image
from keras_resnet_cifar.data.splits import check_range
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.grad_cam import grad_cam
from keras_resnet_cifar.evaluation.metrics import softmax
from keras_resnet_cifar.evaluation.plots import plot_grad_cam
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.models import saving
from keras_resnet_cifar.training.train import Run


def load_model(path_or_run: str | Path | Run) -> keras.Model:
    """Loads an image classifier.

    Args:
        path_or_run: A `.keras` file; a run directory, whose `last.keras` is
            loaded (for a fine-tuning run, that of its newest phase); or a
            `Run`.

    Returns:
        The model, with a tuple `class_names` if the file names the classes.

    Raises:
        InputError: The file is missing, damaged, or not an image classifier.

    Examples:
        >>> model = load_model("runs/first")
    """
    if isinstance(path_or_run, Run):
        return path_or_run.model
    path = Path(path_or_run)
    return saving.load_model(newest_run(path).last if path.is_dir() else path)


def predict(
    model_or_run: keras.Model | str | Path | Run,
    images: Any,
    class_names: Sequence[str] | None = None,
    top: int = 3,
    explain: str | os.PathLike | None = None,
) -> list[dict[str, Any]]:
    """Returns the most probable classes of images.

    Args:
        model_or_run: A model from raw images to logits, or what `load_model`
            takes.
        images: An image file, a folder of image files, or a list of these, each
            cropped and resized to the model's input size; or an array
            `[N, H, W, channels]`, 0 to 255.
        class_names: One name per class; by default the model's own, else
            numbers.
        top: Number of classes to return per image, 1 or more.
        explain: PNG file to draw Grad-CAM heatmaps of each image's most
            probable class to: see `grad_cam`.

    Returns:
        A list of dicts `{"image": path, "classes": [{"class": name,
        "probability": 0 to 1}, ...]}`, the most probable class first. For an
        array, `"image"` is an index.

    Raises:
        InputError: A file is not an image, the images or the names do not fit
            the model, or Grad-CAM does not support the model.

    Examples:
        >>> predict("runs/first", "photo.png")[0]["classes"][0]["class"]
    """
    model: Any = model_or_run
    if not isinstance(model, keras.Model):
        model = load_model(model)
    saving.check_classifier(
        model, None if class_names is None else len(class_names)
    )
    names = saving.names_of(model) if class_names is None else class_names
    saving.check_names(model, names)
    if top < 1:
        raise InputError(f"top={top}: give 1 or more")
    if isinstance(images, str | os.PathLike):
        images = [images]
    if hasattr(images, "shape"):
        images = np.asarray(images)
        if images.ndim != 4:
            raise InputError(f"images {images.shape}: give [N, H, W, 3]")
        labels: Sequence[Any] = range(len(images))
        saving.check_classifier(model, image_shape=images.shape[1:])
        if images.dtype.kind == "f" and images.any():
            check_range("images", images)
    else:
        saving.check_classifier(model, image_shape=(None, None, 3))
        try:
            labels = [str(path) for path in image_files(images)]
        except TypeError:  # these are no paths
            labels = []
        if not labels:
            raise InputError(
                "images: give paths of image files, or an array [N, H, W, 3]"
            )
        height, width = (side or 32 for side in model.input_shape[1:3])
        images = np.stack([read_image(p, (height, width)) for p in labels])
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
            "image": label,
            "classes": [
                {"class": names[i], "probability": float(row[i])} for i in order
            ],
        }
        for label, row, order in zip(labels, probabilities, ranked, strict=True)
    ]
