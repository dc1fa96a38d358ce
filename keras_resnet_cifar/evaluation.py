"""Evaluates models on a split: logits by Keras, metrics by NumPy, pictures."""

import keras
import numpy as np

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.feed import even_batch_size
from keras_resnet_cifar.files import make_folder, write_json
from keras_resnet_cifar.hardware import jit_compile
from keras_resnet_cifar.metrics import most_confident_mistakes, score
from keras_resnet_cifar.plots import plot_confusion, plot_mistakes


def logits_of(model, images, batch_size=None):
    """Returns the model's logits as float32 `[N, classes]`.

    Args:
        model: From raw images to logits, as of `build_resnet`.
        images: uint8 or float `[N, H, W, 3]`, 0 to 255.
        batch_size: Images a step; by default one that divides N.
    """
    model.jit_compile = jit_compile() == "auto"
    batch_size = batch_size or even_batch_size(len(images))
    logits = model.predict(images, batch_size=batch_size, verbose=0)
    return np.asarray(logits, "float32")


def evaluate(model, split, class_names, batch_size=None):
    """Returns the `Evaluation` of a model on a split.

    Raises:
        InputError: The model's classes are not the split's, or its logits
            are not finite.
    """
    _check_classes(model, class_names)
    logits = logits_of(model, split.images, batch_size)
    return score(logits, split.labels, class_names)


def report(model, split, class_names, folder, mistakes=25):
    """Evaluates a model and writes metrics.json and two pictures.

    Args:
        model: From raw images to logits.
        split: A `Split`.
        class_names: One name per class.
        folder: Where metrics.json, confusion.png and mistakes.png go.
        mistakes: How many of the most confident mistakes to draw.

    Returns:
        The `Evaluation`.

    Raises:
        InputError: As `evaluate`, or the folder cannot be written.
    """
    _check_classes(model, class_names)
    make_folder(folder)
    logits = logits_of(model, split.images)
    result = score(logits, split.labels, class_names)
    wrong = most_confident_mistakes(logits, split.labels, mistakes)
    write_json(folder / "metrics.json", result.to_json())
    plot_confusion(result.confusion, class_names, folder / "confusion.png")
    plot_mistakes(
        split.images[wrong.indices],
        split.labels[wrong.indices],
        wrong.predicted,
        wrong.probabilities,
        class_names,
        folder / "mistakes.png",
    )
    return result


def _check_classes(model, class_names):
    outputs = model.output_shape[-1]
    if outputs != len(class_names):
        raise InputError(
            f"the model {model.name} has {outputs} outputs, the data set "
            f"{len(class_names)} classes: name the data set it was trained on"
        )


def load_model(path):
    """Loads a `.keras` file.

    Raises:
        InputError: The file is missing, damaged, or no classifier of images.
    """
    if not path.is_file():
        raise InputError(f"no model at {path}: name a .keras file or a run")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds for a damaged file
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(
            f"cannot load {path}: {reason}; name a .keras file of a classifier"
        ) from error
    return model
