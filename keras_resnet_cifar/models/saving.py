"""Loads and saves models as `.keras` files, and checks what they are."""

import keras

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import atomic_write, check_zip


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


def save_model(model, path):
    """Saves a model as `.keras`, whole or not at all."""
    with atomic_write(path) as temporary:
        model.save(temporary)
