"""Evaluates models on a split: logits by Keras, metrics by NumPy, pictures."""

import keras
import numpy as np

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.feed import RESIDENT_BYTES, even_batch_size
from keras_resnet_cifar.files import check_zip, make_folder, write_json
from keras_resnet_cifar.hardware import has_accelerator, jit_compile
from keras_resnet_cifar.metrics import most_confident_mistakes, score
from keras_resnet_cifar.plots import plot_confusion, plot_mistakes


def logits_of(model, images, batch_size=None, callbacks=()):
    """Returns the model's logits as float32 `[N, classes]`.

    Args:
        model: From raw images to logits, as of `build_resnet`.
        images: uint8 or float `[N, H, W, 3]`, 0 to 255.
        batch_size: Images a step; by default one that divides N.
        callbacks: Keras callbacks of `predict`.
    """
    batch_size = batch_size or even_batch_size(len(images))
    on_jax = keras.backend.backend() == "jax"
    if on_jax and has_accelerator() and images.nbytes <= RESIDENT_BYTES:
        from keras_resnet_cifar import fused_steps

        logits = fused_steps.predict(model, images, batch_size)
        return np.asarray(logits, "float32")
    held = model.jit_compile
    model.jit_compile = jit_compile()
    try:
        logits = model.predict(
            images,
            batch_size=batch_size,
            verbose=0,
            callbacks=list(callbacks),
        )
    finally:
        model.jit_compile = held
    return np.asarray(logits, "float32")


def evaluate(model, split, class_names, batch_size=None, callbacks=()):
    """Returns the `Evaluation` of a model on a split.

    Raises:
        InputError: The model's classes are not the split's, or its logits
            are not finite.
    """
    check_classifier(model, len(class_names), split.images.shape[1:])
    logits = logits_of(model, split.images, batch_size, callbacks)
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
    check_classifier(model, len(class_names), split.images.shape[1:])
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


def check_classifier(model, classes=None, image_shape=None, name=None):
    """Checks that a model takes images and gives one logit a class.

    Args:
        model: Anything.
        classes: How many classes it must have, if that is known.
        image_shape: `(H, W, 3)` that it must take, if that is known.
        name: What to call it; by default its own name.

    Raises:
        InputError: It does not.
    """
    name = name or getattr(model, "name", model)
    inputs = getattr(model, "input_shape", None)
    outputs = getattr(model, "output_shape", None)
    if not (_is_shape(inputs, 4) and inputs[3] == 3 and _is_shape(outputs, 2)):
        raise InputError(
            f"{name} is no classifier of images: give a built Keras model from "
            "[N, H, W, 3] to [N, classes]"
        )
    wanted = inputs[1:] if image_shape is None else tuple(image_shape)
    fits = zip(inputs[1:], wanted, strict=True)
    if any(side not in (None, given) for side, given in fits):
        raise InputError(
            f"{name} takes images {inputs[1:]}, these are {wanted}: build it "
            f"with input_shape={wanted}"
        )
    if classes not in (None, outputs[1]):
        raise InputError(
            f"{name} has {outputs[1]} outputs, the data set {classes} classes: "
            f"name the data set it was trained on, or build it with "
            f"num_classes={classes}"
        )
    activation = getattr(model.layers[-1], "activation", None)
    if activation not in (None, keras.activations.linear):
        raise InputError(
            f"{name} ends in {activation.__name__}: logits are needed, build "
            "it with activation=None"
        )


def _is_shape(shape, rank):
    return isinstance(shape, tuple) and len(shape) == rank


def load_model(path):
    """Loads a classifier of images from a `.keras` file.

    Raises:
        InputError: The file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"no model at {path}: name a .keras file or a run")
    try:
        check_zip(path)
    except InputError as error:
        raise InputError(
            f"{path} is damaged, or no .keras file ({error}): name another"
        ) from error
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot load {path}: {reason}; name a .keras file of a classifier"
        ) from error
    check_classifier(model, name=path)
    return model
