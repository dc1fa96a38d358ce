"""Loads trained weights, and copies them into a net of `assemble`."""

import os
import zipfile
from pathlib import Path
from typing import Any

import keras

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.downloads import check_digest, download
from keras_resnet_cifar.data.load import keras_home
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import check_zip
from keras_resnet_cifar.models import hub
from keras_resnet_cifar.models import weights as table
from keras_resnet_cifar.models.saving import load_model
from keras_resnet_cifar.models.torch_checkpoints import load_torch_checkpoint
from keras_resnet_cifar.pytorch.files import FORMATS


def load_donor(
    weights: str | Path,
    arch: str,
    num_classes: int | None = None,
    normalization: Any = None,
) -> keras.Model:
    """Returns a model with the weights, to copy them from.

    `weights` are as in `build_resnet`. They must belong to the net `arch` and,
    if given, have `num_classes` classes. `normalization` is for PyTorch
    checkpoints only, and `None` is that of their scheme.
    """
    row = table.find_weights(weights, arch)
    text = str(weights)
    if row is not None:
        text = row.name
        path = fetch(row)
    elif text.startswith(table.HUB):
        path = hub.fetch_model(text.removeprefix(table.HUB))
    else:
        path = Path(weights)
    if path.suffix in FORMATS:
        donor = load_torch_checkpoint(path, normalization=normalization)
    else:
        donor = load_model(path)
    if donor.name != arch:
        raise InputError(
            f"weights={text!r} are for {donor.name}, not for {arch}"
        )
    if "normalization" not in {layer.name for layer in donor.layers}:
        raise InputError(
            f"weights={text!r} have no layer named normalization: give those "
            "of a net of build_resnet"
        )
    if row is not None and row.dataset in DATASETS:
        donor.class_names = DATASETS[row.dataset].class_names
    donor.pretrained = text  # for the config of a run
    classes = donor.output_shape[-1]
    if num_classes not in (None, classes):
        raise InputError(
            f"weights={text!r} have {classes} classes, not {num_classes}: for "
            "other classes, fine-tune them with a new head"
        )
    return donor


def copy_weights(donor: keras.Model, model: keras.Model) -> None:
    """Copies the weights of `load_donor` into a net with the same name."""
    theirs, ours = (
        {v.path: tuple(v.shape) for v in net.weights} for net in (donor, model)
    )
    if theirs != ours:
        path = next(p for p in [*ours, *theirs] if theirs.get(p) != ours.get(p))
        raise InputError(
            f"the weights do not fit this {donor.name}: {path} has shape "
            f"{theirs.get(path)}, not {ours.get(path)}; build it with the "
            "arguments that they were trained with"
        )
    model.set_weights(donor.get_weights())
    model.class_names = getattr(donor, "class_names", None)
    model.pretrained = donor.pretrained


def fetch(row: table.Weights) -> Path:
    """Returns the file of a row, downloaded if necessary, and verified.

    Downloads are kept in the folder `models` of Keras's home.
    """
    if "://" not in row.where:
        shipped = table.SHIPPED / row.where
        try:
            check_digest(shipped, row.digest)
        except InputError as error:
            raise InputError(
                f"{shipped} is damaged ({error}): reinstall the package"
            ) from None
        return shipped
    name = Path(row.where).name
    path = keras_home() / "models" / name.removesuffix(".zip")
    remedy = f"check the network, or put a copy of {path.name} there"
    if os.path.isfile(path):  # does not raise if the folder is not readable
        try:
            check_digest(path, row.digest)
            return path
        except InputError:  # it is downloaded again
            remedy = f"the copy in {path.parent} is damaged or another file; "
            remedy += "check the network, or replace it"

    def check(temporary):
        if name.endswith(".zip"):
            check_zip(temporary)
            with zipfile.ZipFile(temporary) as archive:
                content = archive.read(path.name)
            temporary.write_bytes(content)
        check_digest(temporary, row.digest)

    download(row.where, path, check, remedy)
    return path
