"""Loads, saves and checks classifiers in `.keras` files."""

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_resnet_cifar.data import augmentation  # noqa: F401  registers layers
from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.files import atomic_write, check_zip
from keras_resnet_cifar.models.nets import leaf_layers
from keras_resnet_cifar.pytorch.files import refuse_checkpoint

_CLASS_NAMES = "class_names.json"  # beside the files of Keras in the zip file


def load_model(path: str | Path) -> keras.Model:
    """Loads an image classifier from a `.keras` file.

    If the file names the classes, `model.class_names` is a tuple of them.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no model at {path}: give an existing .keras file")
    refuse_checkpoint(path)
    try:
        check_zip(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        with zipfile.ZipFile(path) as archive:
            if _CLASS_NAMES in archive.namelist():
                names = json.loads(archive.read(_CLASS_NAMES))
                model.class_names = tuple(map(str, names))
    except InputError as error:
        raise InputError(
            f"{path} is damaged or not a .keras file ({error}): give another"
        ) from error
    except Exception as error:  # Keras raises many kinds for a damaged file
        raise InputError(
            f"cannot load {path}: {one_line(error)}; give a .keras file of a "
            "classifier"
        ) from error
    named = getattr(model, "class_names", None)
    check_classifier(model, named and len(named), name=path)
    return model


def save_model(model: keras.Model, path: str | Path, **options: Any) -> None:
    """Saves a model with its `class_names` as a `.keras` file, atomically.

    `keras.saving.load_model` loads the file, too. Keras's `model.save` would
    leave out the names.

    Args:
        model: Any model; it may have `class_names`, one per output.
        path: Path of the `.keras` file, or of a legacy `.h5` file, which has
            no place for the names.
        **options: Arguments of `keras.Model.save`.

    Raises:
        InputError: The path has another suffix, or the system refuses to write.
    """
    if Path(path).suffix not in (".keras", ".h5"):
        raise InputError(f"{path}: name a .keras file")
    with atomic_write(path) as temporary:
        model.save(temporary, **options)
        names = getattr(model, "class_names", None)
        if names and zipfile.is_zipfile(temporary):
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(_CLASS_NAMES, json.dumps(names))


def names_of(model: keras.Model) -> tuple[str, ...]:
    """Returns the model's `class_names`, else numbers."""
    numbers = tuple(map(str, range(model.output_shape[-1])))
    return getattr(model, "class_names", None) or numbers


def check_names(model: keras.Model, class_names: Sequence[str]) -> None:
    """Checks that each class has the same number as in the model.

    Renaming the folder of a class, for example, changes the numbers.
    """
    names = list(class_names)
    for number, name in enumerate(getattr(model, "class_names", None) or ()):
        if name in names and names.index(name) != number:
            raise InputError(
                f"{name} is class {names.index(name)} here, but class {number} "
                f"of {model.name}: name the classes as in training"
            )


def check_loads(model: keras.Model, path: Path) -> None:
    """Checks that a saved model with custom parts loads.

    If it does not, the `InputError` names the layer.
    """
    # Loading a deep net takes seconds, so nets of stock parts are not checked.
    own = r'"registered_name": "(?!Functional")|"__lambda__"'
    if not re.search(own, model.to_json()):
        return
    try:
        load_model(path)
    except InputError as error:
        faults = [
            f"its layer {layer.name} ({type(layer).__name__}) is not registered"
            for layer in leaf_layers(model)
            if type(layer).__module__.partition(".")[0] != "keras"
            and ">" not in keras.saving.get_registered_name(type(layer))
        ]
        raise InputError(
            f"{model.name} would not load after training: "
            f"{[*faults, one_line(error)][0]}; decorate your layers and "
            "functions with keras.saving.register_keras_serializable()"
        ) from error


def check_classifier(
    model: Any,
    classes: int | None = None,
    image_shape: tuple[int | None, ...] | None = None,
    name: str | Path | None = None,
) -> None:
    """Checks that a model takes images and returns one logit per class.

    If given, `classes` is the number of its logits, and `image_shape` the
    `(H, W, channels)` that it must take, where `None` fits any size. Errors
    call the model `name`, by default its own.
    """
    name = name or getattr(model, "name", repr(model))
    match getattr(model, "input_shape", 0), getattr(model, "output_shape", 0):
        case tuple((_, height, width, 1 | 3 as channels)), tuple((_, outputs)):
            own = (height, width, channels)
        case _:  # several inputs or outputs are a list; or it is no model
            raise InputError(
                f"{name} is not a classifier of images: give a built Keras "
                "model from [N, H, W, 3] or [N, H, W, 1] to [N, classes]"
            )
    shape = tuple(image_shape or own)
    sides = zip(own, shape, strict=True)
    if any(None not in pair and pair[0] != pair[1] for pair in sides):
        raise InputError(
            f"{name} takes images {own}, but these are {shape}: resize them, "
            f"or build it with input_shape={shape}"
        )
    if classes not in (None, outputs):
        raise InputError(
            f"{name} has {outputs} outputs, but the dataset has {classes} "
            "classes: give the dataset it was trained on, or a net of "
            f"{classes} outputs"
        )
    activation = _last_activation(model)
    if activation:
        raise InputError(
            f"{name} ends in {activation}, but logits are needed: build it "
            "with activation=None and without such a layer at the end"
        )


def _computes(operation):
    """Returns whether an operation may change the values of its input."""
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is not keras.activations.linear
    same = ("Reshape", "Flatten", "Identity", "Dropout")
    return type(operation).__name__ not in same


def _last_activation(model):
    """Returns the name of the activation that a model ends in, if any."""
    last = model
    while isinstance(last, keras.Model):
        # Operations include functions such as `keras.ops.softmax`.
        chain = getattr(last, "operations", None) or last.layers
        last = next(filter(_computes, reversed(chain)), chain[-1])
    activation = getattr(last, "activation", None)
    if activation is not None:
        linear = activation is keras.activations.linear
        return None if linear else getattr(activation, "__name__", activation)
    known = {name.replace("_", "") for name in dir(keras.activations)}
    kind = type(last).__name__.lower()
    return kind if kind in {*known, "prelu"} else None
