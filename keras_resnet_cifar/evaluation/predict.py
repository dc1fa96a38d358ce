"""Predicts image files: reads them as the model wants them."""

import numpy as np

from keras_resnet_cifar.data.folders import open_image
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.metrics import softmax
from keras_resnet_cifar.models.saving import check_classifier


def read_image(path, size):
    """Returns an image file as uint8 `[height, width, 3]`.

    Args:
        path: A file of one of `FORMATS`.
        size: `(height, width)` to resize to, where it differs (bicubic).

    Raises:
        InputError: The file is missing or no image, or claims a size that
            would exhaust memory.
    """
    from PIL import Image

    image = open_image(path)
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def predict_files(model, paths, class_names=None, top=3):
    """Returns the most probable classes of image files.

    Args:
        model: From raw images to logits, as of `build_resnet`.
        paths: Image files; each is resized to the model's input.
        class_names: One name per class, or `None` for numbers.
        top: How many classes to give, at least 1.

    Returns:
        A list of dicts `{"image": path, "classes": [{"class": name,
        "probability": 0 to 1}, ...]}`, the most probable class first.

    Raises:
        InputError: A file is no image, or the names do not fit the model.
    """
    check_classifier(model, class_names and len(class_names))
    outputs = model.output_shape[1]
    names = class_names or [str(index) for index in range(outputs)]
    if top < 1:
        raise InputError(f"top={top}: ask for at least 1 class")
    size = tuple(side or 32 for side in model.input_shape[1:3])
    images = np.stack([read_image(path, size) for path in paths])
    probabilities = softmax(logits_of(model, images))
    ranked = np.argsort(-probabilities, axis=1)[:, :top]
    return [
        {
            "image": str(path),
            "classes": [
                {"class": names[i], "probability": float(row[i])} for i in order
            ],
        }
        for path, row, order in zip(paths, probabilities, ranked, strict=True)
    ]
