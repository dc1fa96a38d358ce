"""Loads backbones: keras.applications, PyTorch, KerasHub and our own nets."""

import os
import re
from pathlib import Path

import keras
import numpy as np
from keras.layers import GlobalAveragePooling2D

from keras_resnet_cifar.data.load import keras_home
from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.finetuning.backbones import (
    BACKBONES,
    IMAGE_SIZE,
    check_backbone,
    found_backbone,
)
from keras_resnet_cifar.models.cloning import clone_with
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.saving import check_classifier, load_model
from keras_resnet_cifar.models.torch_checkpoints import load_torch_checkpoint
from keras_resnet_cifar.pytorch.files import FORMATS


def load_backbone(
    name: str | Path,
    weights: str | Path = "imagenet",
    image_size: int | None = None,
) -> tuple[keras.Model, str | None, int]:
    """Loads a ResNet without its head.

    The arguments and errors are those of `build_finetuned`, with `name` its
    `backbone`. Returns `(backbone, preprocessing, image_size)`: a model named
    "backbone" from images to features `[N, h, w, C]`; the mode of
    `preprocess_input` for its images, or `None` if it takes raw images; and
    their side in pixels.
    """
    name = found_backbone(name)
    if name.endswith(".keras"):
        if weights not in ("imagenet", None):
            raise InputError(
                f"weights={str(weights)!r}: {name} has its own weights; omit "
                "weights="
            )
        return _own_net(load_model(name), name, image_size)
    check_backbone(name, weights)
    if name not in BACKBONES:
        net = build_resnet(name, weights=weights)
        return _own_net(net, name, image_size)
    row, weights = BACKBONES[name], str(weights)
    side = _checked_size(image_size, IMAGE_SIZE)
    if weights == "hub":
        return _keras_hub_net(row, side), "torch", side
    if weights == "imagenet" and row.sha256:
        weights = _torchvision_file(row)
    if Path(weights).suffix in FORMATS:
        if row.arch is None:
            raise InputError(
                f"{weights}: there are no PyTorch checkpoints of {name}; give "
                f"{row.file}"
            )
        model = load_torch_checkpoint(weights, row.arch)
        return _headless(model, side), "torch", side
    if row.application:
        return _application(row, weights, side), row.preprocessing, side
    if weights == "none":
        return _headless(build_resnet(row.arch), side), row.preprocessing, side
    raise InputError(
        f"weights={weights!r}: for {name} give 'imagenet', 'none' or a PyTorch "
        f"checkpoint ({', '.join(FORMATS)})"
    )


def _checked_size(size, default):
    size = default if size is None else size
    if not isinstance(size, int | np.integer) or not 32 <= size <= 1024:
        raise InputError(f"image_size={size!r}: give 32 to 1024 pixels")
    return int(size)


def _own_net(model, name, image_size):
    """Returns a net without its head, including its normalization."""
    check_classifier(model, image_shape=(None, None, 3), name=name)
    pools = [x for x in model.layers if isinstance(x, GlobalAveragePooling2D)]
    if not pools:
        raise InputError(
            f"{name} has no GlobalAveragePooling2D, with which a head starts: "
            "give a net of this package"
        )
    height, width = model.input_shape[1:3]
    if height != width and image_size is None:
        raise InputError(
            f"{name} takes {height} x {width} images, but a backbone takes "
            "squares: give image_size="
        )
    side = _checked_size(image_size, height)
    return _backbone(model.input, pools[-1].input, side), None, side


def _application(row, weights, side):
    """Returns a net of keras.applications without its top."""
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise InputError(
            f"no weights at {weights}: give weights='imagenet', 'none' or an "
            "existing file"
        )
    try:
        return getattr(keras.applications, row.application)(
            include_top=False,
            weights=None if weights == "none" else weights,
            input_shape=(side, side, 3),
            name="backbone",
        )
    except Exception as error:  # the network, h5py and Keras raise many kinds
        if weights == "imagenet":
            raise _no_download(row, error) from error
        other = f" or a PyTorch checkpoint of {row.arch}" if row.arch else ""
        raise InputError(
            f"cannot load {weights} into {row.name} ({one_line(error)}): give "
            f"{row.file}{other}"
        ) from error


def _keras_hub_net(row, side):
    if row.preset is None:
        known = ", ".join(name for name in BACKBONES if BACKBONES[name].preset)
        raise InputError(
            f"weights='hub': KerasHub has no {row.name}; it has {known}"
        )
    try:
        import keras_hub

        net = keras_hub.models.Backbone.from_preset(row.preset)
    except Exception as error:  # the network and Kaggle's client: many kinds
        raise InputError(
            f"KerasHub cannot load {row.preset} ({one_line(error)}): pip "
            "install keras-hub if it is missing, or give weights='imagenet', "
            "'none' or a file"
        ) from error
    return _backbone(net.input, net.output, side, _rename_layer)


def _rename_layer(layer, config):
    """Renames a layer of KerasHub's ResNets as in `build_resnet`."""
    name = layer.name.replace("conv1_", "stem_")
    match = re.fullmatch(r"stack(\d)_block(\d+)_(\d)_(conv|bn)", name)
    if match:
        stage, block, index, kind = match.groups()
        part = f"shortcut_{kind}" if index == "0" else f"{kind}{index}"
        name = f"stage{int(stage) + 1}_block{block}_{part}"
    return type(layer), config | {"name": name}


def _headless(model, side):
    """Returns a `build_resnet` net between its normalization and its head."""
    first = model.get_layer("normalization").output
    return _backbone(first, model.get_layer("head_pool").input, side)


def _backbone(inputs, features, side, change=None):
    """Returns a copy of the net between two tensors, for square images."""
    part = keras.Model(inputs, features, name="backbone")
    return clone_with(part, change, inputs=keras.Input((side, side, 3)))


def _torchvision_file(row):
    """Returns the path of torchvision's weights, cached by torch or Keras."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    torch_home = os.environ.get("TORCH_HOME") or Path(cache, "torch")
    path = Path(torch_home, "hub", "checkpoints", row.file)
    if path.is_file():
        return str(path)
    try:
        return keras.utils.get_file(
            origin=f"https://download.pytorch.org/models/{row.file}",
            file_hash=row.sha256,
            cache_subdir="models",
        )
    except Exception as error:  # the network raises many kinds
        raise _no_download(row, error) from error


def _no_download(row, error):
    return InputError(
        f"no ImageNet weights for {row.name}: cannot download {row.file} "
        f"({one_line(error)}); put a copy into {keras_home() / 'models'}, give "
        "a path as weights=, or use weights='none'"
    )
