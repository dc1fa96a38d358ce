"""Backbones with weights: of keras.applications, of PyTorch, our own nets."""

import hashlib
import os
import re
from pathlib import Path

import keras

from keras_resnet_cifar.data.load import keras_home
from keras_resnet_cifar.errors import InputError, one_line, unknown
from keras_resnet_cifar.finetuning.backbones import BACKBONES, IMAGE_SIZE
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.saving import load_model
from keras_resnet_cifar.pytorch.checkpoints import load_torch_checkpoint
from keras_resnet_cifar.pytorch.files import FORMATS

_TORCHVISION = "https://download.pytorch.org/models/"


def load_backbone(name, weights="imagenet", image_size=None):
    """Returns a ResNet without its head, and what it wants of its images.

    Args:
        name: A name of `BACKBONES`, or a `.keras` file of a classifier whose
            head starts with `GlobalAveragePooling2D`, as our own nets.
        weights: `"imagenet"`, `"none"` (random), `"hub"` (ImageNet weights of
            KerasHub, for resnet18, 50, 101 and 152) or a file: of PyTorch
            (.th, .pt, .pth, .safetensors), or of `keras.applications` (.h5,
            without the top). A `.keras` file brings its own.
        image_size: Side of the images at which the net works; by default 224,
            or what the `.keras` file's net was built for.

    Returns:
        `(base, preprocessing, image_size)`: a `keras.Model` named "backbone"
        from images to features `[N, h, w, C]`, and a mode of
        `normalization.preprocess_input`, or `None` where the base takes raw
        images.

    Raises:
        InputError: An unknown name, weights that cannot be had or do not fit,
            an image size that is too small.
    """
    if str(name).endswith(".keras"):
        if weights not in ("imagenet", None):
            raise InputError(
                f"weights={weights!r}: {name} brings its own, leave them out"
            )
        return _own(Path(name), image_size)
    if name not in BACKBONES:
        raise unknown("backbone", name, [*BACKBONES, "a .keras file"])
    backbone = BACKBONES[name]
    image_size = _checked_size(image_size or IMAGE_SIZE)
    weights = str(weights)
    if weights == "hub":
        return _from_hub(backbone, image_size), "torch", image_size
    if weights == "imagenet" and not backbone.application:
        weights = str(_torchvision_file(backbone))
    if Path(weights).suffix in FORMATS:
        return _from_torch(backbone, weights, image_size), "torch", image_size
    build = _application if backbone.application else _random
    base = build(backbone, weights, image_size)
    return base, backbone.preprocessing, image_size


def _checked_size(size):
    if not isinstance(size, int) or not 32 <= size <= 1024:
        raise InputError(f"image_size={size!r}: give 32 to 1024 pixels")
    return size


def _own(path, image_size):
    """The features of a net in a `.keras` file, its normalisation included."""
    model = load_model(path)
    pools = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.GlobalAveragePooling2D)
    ]
    if not pools:
        raise InputError(
            f"{path} has no GlobalAveragePooling2D, so where its head begins "
            "is not known: name a net of this package"
        )
    side = image_size and _checked_size(image_size)
    shape = (side, side, 3) if side else model.input_shape[1:]
    if None in shape or shape[0] != shape[1]:
        raise InputError(f"{path} takes images {shape}: give an image_size")
    base = keras.Model(model.input, pools[-1].input, name="backbone")
    return _at_size(base, shape[0]), None, shape[0]


def _application(backbone, weights, image_size):
    """A net of keras.applications without its top."""
    build = getattr(keras.applications, backbone.application)
    shape = {"include_top": False, "input_shape": (image_size, image_size, 3)}
    if weights == "imagenet":
        try:
            return build(weights="imagenet", name="backbone", **shape)
        except Exception as error:  # of the network, or a damaged file
            raise _missing(backbone, [_models()], error) from error
    base = build(weights=None, name="backbone", **shape)
    if weights != "none":
        _load_weights(base, backbone, Path(weights))
    return base


def _load_weights(base, backbone, path):
    if not path.is_file():
        raise InputError(
            f"no weights at {path}: give imagenet, none, or a file that is "
            "there"
        )
    try:
        base.load_weights(path)
    except Exception as error:  # h5py and Keras each raise their own
        torch = f" or a PyTorch checkpoint of {backbone.arch}"
        raise InputError(
            f"cannot load {path} into {backbone.name} ({one_line(error)}): give "
            f"{backbone.file}{torch if backbone.arch else ''}"
        ) from error


def _random(backbone, weights, image_size):
    if weights != "none":
        raise InputError(
            f"weights={weights}: for {backbone.name} give imagenet, none, or "
            f"a PyTorch checkpoint ({', '.join(FORMATS)})"
        )
    return _headless(build_resnet(backbone.arch), image_size)


def _from_torch(backbone, path, image_size):
    if backbone.arch is None:
        raise InputError(
            f"{path}: {backbone.name} has no PyTorch checkpoints of the same "
            f"net; give {backbone.file}"
        )
    return _headless(load_torch_checkpoint(path, backbone.arch), image_size)


def _from_hub(backbone, image_size):
    """Our net with the weights of KerasHub's preset."""
    if backbone.preset is None:
        having = [name for name, row in BACKBONES.items() if row.preset]
        raise InputError(
            f"weights=hub: KerasHub has no {backbone.name}, but "
            f"{', '.join(having)}"
        )
    try:
        from keras_hub.models import Backbone
    except ImportError as error:
        raise InputError(
            f"weights=hub needs KerasHub ({one_line(error)}): pip install "
            "keras-hub"
        ) from error
    try:
        hub = Backbone.from_preset(backbone.preset)
    except Exception as error:  # of Kaggle's client, or of the network
        raise InputError(
            f"KerasHub cannot load {backbone.preset} ({one_line(error)}): take "
            "--weights imagenet, a file, or none"
        ) from error
    model = build_resnet(backbone.arch, normalization="imagenet")
    for layer in hub.layers:
        if layer.weights:
            ours = model.get_layer(hub_layer(layer.name))
            ours.set_weights(layer.get_weights())
    return _headless(model, image_size)


def hub_layer(name):
    """Our name of a layer of KerasHub's ResNets."""
    match = re.fullmatch(r"stack(\d)_block(\d+)_(\d)_(conv|bn)", name)
    if not match:
        return name.replace("conv1_", "stem_")
    stage, block, index, kind = match.groups()
    part = f"shortcut_{kind}" if index == "0" else f"{kind}{index}"
    return f"stage{int(stage) + 1}_block{block}_{part}"


def _headless(model, image_size):
    """A net of `build_resnet` between its normalisation and its head."""
    first = model.get_layer("normalization").output
    features = model.get_layer("head_pool").input
    return _at_size(keras.Model(first, features, name="backbone"), image_size)


def _at_size(base, side):
    """The same net with the same weights, for square images of this side."""
    again = keras.models.clone_model(base, keras.Input((side, side, 3)))
    again.set_weights(base.get_weights())
    return again


def _models():
    return keras_home() / "models"


def _torchvision_file(backbone):
    """The file of torchvision's weights: torch's cache, Keras's, a download."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    torch_home = Path(os.environ.get("TORCH_HOME") or cache / "torch")
    folders = [torch_home / "hub" / "checkpoints", _models()]
    for folder in folders:
        if (folder / backbone.file).is_file():
            return folder / backbone.file
    try:
        path = keras.utils.get_file(
            backbone.file,
            _TORCHVISION + backbone.file,
            cache_subdir="models",
            cache_dir=str(keras_home()),
        )
    except Exception as error:  # of the network, in many kinds
        raise _missing(backbone, folders, error) from error
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if not digest.startswith(Path(path).stem.rpartition("-")[2]):
        os.remove(path)  # torchvision's names end in the digest's beginning
        raise _missing(backbone, folders, "the download was damaged")
    return Path(path)


def _missing(backbone, folders, error):
    told = error if isinstance(error, str) else one_line(error)
    return InputError(
        f"no ImageNet weights for {backbone.name}: {backbone.file} is not in "
        f"{' or '.join(map(str, folders))} and no download came ({told}); put "
        "a copy there, point --weights at one, or take --weights none"
    )
