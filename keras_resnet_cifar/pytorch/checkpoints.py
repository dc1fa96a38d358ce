"""Checkpoints of PyTorch's ResNets: to a Keras model, and back.

The names come from `torch_schemes.py`, the files from `torch_files.py`, and
the shapes from the model that `build_resnet` makes: what does not fit it to
the last tensor is refused.
"""

import re

import keras
import numpy as np

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.models.resnet import build_resnet, leaf_layers
from keras_resnet_cifar.pytorch.files import read_tensors, write_tensors
from keras_resnet_cifar.pytorch.schemes import (
    SCHEMES,
    default_normalization,
    get_scheme,
    recognise,
)

# Kind of layer -> {tensor: (our variable, PyTorch's axes in our order)}.
_TENSORS = {
    "conv": {"weight": ("kernel", (2, 3, 1, 0))},
    "bn": {
        "weight": ("gamma", (0,)),
        "bias": ("beta", (0,)),
        "running_mean": ("moving_mean", (0,)),
        "running_var": ("moving_variance", (0,)),
    },
    "dense": {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))},
}
_COUNTER = "num_batches_tracked"  # of BatchNorm; no result depends on it
_SHOWN = 12  # names of a list in an error; how many more there are is told


class _Misfit(Exception):
    """Tensors and net disagree; the message lists where."""


def load_torch_checkpoint(path, arch=None, normalization=None):
    """Loads a PyTorch checkpoint of a ResNet as a Keras model.

    The naming scheme (see `torch_schemes.SCHEMES`) and the architecture are
    worked out from the tensors alone. The model takes raw images, as all
    models of this package do: what the PyTorch code does to its images before
    the net is `normalization`.

    Args:
        path: A .th, .pt or .pth file (needs PyTorch) or .safetensors.
        arch: A name that the tensors must agree with, or `None`.
        normalization: As of `build_resnet`. `None` means what the scheme's
            project trained with: `"imagenet"` for akamaster's nets and those
            with the ImageNet stem, else the project's mean and deviation of
            the CIFAR that has so many classes.

    Returns:
        A `keras.Model` of stock layers from images `[N, H, W, 3]`, 0 to 255,
        to logits `[N, classes]`.

    Raises:
        InputError: The file cannot be read or wants more than tensors; no
            scheme knows its names; a tensor is missing, unexpected or
            misshapen; the net is not `arch`.

    Example:
        >>> model = load_torch_checkpoint("resnet20.th", arch="resnet20")
    """
    wanted = resolve(arch) if arch else None
    tensors = read_tensors(path)
    scheme = _recognised(path, tensors)
    try:
        description, num_classes = _describe(tensors, scheme)
        found = resolve(**description)
        if wanted not in (None, found):
            raise _another(path, found, wanted)
        if normalization is None:
            normalization = _default(path, scheme, found.stem, num_classes)
        model = build_resnet(
            **description, num_classes=num_classes, normalization=normalization
        )
        places = _places(model, scheme)
        _check(tensors, places)
    except _Misfit as misfit:
        raise InputError(
            f"{path} holds no whole ResNet of the scheme {scheme.name}: "
            f"{misfit}"
        ) from None
    for name, (variable, axes) in places.items():
        variable.assign(np.transpose(tensors[name], axes))
    return model


def save_torch_checkpoint(model, path, scheme):
    """Saves a model's weights under the names of a PyTorch project.

    The file is a bare state_dict: the project's net of the same shape loads it
    with `net.load_state_dict(torch.load(path), strict=True)`. It holds no
    normalisation; the images must be normalised there as the model does here.

    Args:
        model: A model of `build_resnet`, or loaded from a file of one.
        path: A .th, .pt or .pth file (needs PyTorch) or .safetensors.
        scheme: A name of `torch_schemes.SCHEMES`.

    Raises:
        InputError: An unknown scheme, one that has no such nets (it says
            which have), or a file that cannot be written.
    """
    try:
        tensors = _exported(model, get_scheme(scheme))
    except _Misfit as misfit:
        fitting = [name for name in SCHEMES if _fits(model, SCHEMES[name])]
        raise InputError(
            f"the scheme {scheme} has no nets like {model.name} ({misfit}): "
            + (f"use {' or '.join(fitting)}" if fitting else "nor has another")
        ) from None
    write_tensors(tensors, path)


def _recognised(path, tensors):
    """The scheme of a checkpoint's names."""
    modules = {name.rpartition(".")[0] for name in tensors}
    scheme = recognise(modules)
    if scheme is None:
        raise InputError(
            f"{path} holds no ResNet by its names ({_listed(sorted(tensors))})"
            f": known are those of {', '.join(SCHEMES)}"
        )
    return scheme


def _another(path, found, wanted):
    differing = [
        f"{field} is {value!r}, not {vars(wanted)[field]!r}"
        for field, value in vars(found).items()
        if value != vars(wanted)[field]
    ]
    return InputError(
        f"{path} holds {found.name}, not {wanted.name}: "
        f"{'; '.join(differing)}; leave arch out to load what it holds"
    )


def _default(path, scheme, stem, num_classes):
    normalization = default_normalization(scheme, stem, num_classes)
    if normalization is None:
        raise InputError(
            f"{path} has {num_classes} classes, for which the scheme "
            f"{scheme.name} has no normalization: name the one that the net "
            "was trained with"
        )
    return normalization


def _describe(tensors, scheme):
    """What the tensors say: arguments of `build_resnet`, and the classes."""
    shapes = {}  # of what is called weight in PyTorch, by our layer
    misshapen = []
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        layer = scheme.layer(module)
        axes = _TENSORS[_kind(layer)].get(kind, (None, ()))[1] if layer else ()
        if axes and (tensor.ndim != len(axes) or 0 in tensor.shape):
            misshapen.append(f"{name} {tensor.shape}")
        elif kind == "weight" and layer:
            shapes[layer] = tensor.shape
    absent = [
        f"{scheme.module(layer)}.weight"
        for layer in scheme.essential
        if layer not in shapes
    ]
    if absent or misshapen:
        raise _Misfit(_told(missing=absent, misshapen=misshapen))
    first = [f"stage{s + 1}_block0_conv1" for s in range(len(scheme.stages))]
    blocks = {layer.rpartition("_")[0] for layer in shapes if "_block" in layer}
    blocks = {re.match(r"stage\d+_block\d+", block)[0] for block in blocks}
    description = {
        "block": "basic",
        "preactivation": scheme.preactivation,
        "final_norm": not scheme.preactivation,
        "shortcut": _shortcut(shapes, scheme),
        "widths": tuple(shapes[layer][0] for layer in first),
        "stage_blocks": tuple(
            sum(block.startswith(f"stage{s + 1}_") for block in blocks)
            for s in range(len(scheme.stages))
        ),
        "stem": "cifar",
    }
    if "stage1_block0_conv3" in shapes:
        description["block"] = "bottleneck"
    if "imagenet" in scheme.stems and shapes["stem_conv"][2] == 7:
        description["stem"] = "imagenet"
    return description, shapes["head_dense"][0]


def _shortcut(shapes, scheme):
    kernels = [
        shape for layer, shape in shapes.items() if "shortcut_conv" in layer
    ]
    if not kernels:  # where it is no option, its tensors will be missed
        return "identity" if scheme.identity else "projection"
    return "conv3x3" if kernels[0][2] == 3 else "projection"


def _kind(layer):
    """`"conv"`, `"bn"` or `"dense"`, by the end of our layer's name."""
    return re.search(r"(conv|bn|dense)\d?$", layer)[1]


def _places(model, scheme):
    """Returns `{tensor name: (our variable, PyTorch's axes in our order)}`."""
    places, homeless = {}, []
    for layer in leaf_layers(model):
        if not layer.weights:
            continue
        module = scheme.module(layer.name)
        if module is None:
            homeless.append(layer.name)
            continue
        for name, (variable, axes) in _TENSORS[_kind(layer.name)].items():
            places[f"{module}.{name}"] = (getattr(layer, variable), axes)
    if homeless:
        raise _Misfit(f"no place for {_listed(homeless)}")
    return places


def _check(tensors, places):
    """Raises `_Misfit` unless the tensors are those of the places."""
    allowed = {
        name.replace("running_var", _COUNTER)
        for name in places
        if name.endswith(".running_var")
    }
    misshapen, damaged = [], []
    for name, (variable, axes) in places.items():
        tensor = tensors.get(name)
        shape = tuple(variable.shape[axis] for axis in np.argsort(axes))
        if tensor is None:
            continue
        if tensor.shape != shape:
            misshapen.append(f"{name} {tensor.shape}, not {shape}")
        elif tensor.dtype.kind != "f":
            misshapen.append(f"{name} of {tensor.dtype}, not float32")
        elif not _plausible(name, tensor):
            damaged.append(name)
    told = _told(
        missing=[name for name in places if name not in tensors],
        unexpected=[n for n in tensors if n not in places and n not in allowed],
        misshapen=misshapen,
        damaged=damaged,
    )
    if told:
        raise _Misfit(told)


def _plausible(name, tensor):
    """Whether numbers can be weights: not all formats have checksums."""
    return np.isfinite(tensor).all() and (
        not name.endswith("running_var") or (tensor >= 0).all()
    )


def _exported(model, scheme):
    """The model's weights as `{tensor name: array}`, complete for a scheme."""
    tensors = {}
    for name, (variable, axes) in _places(model, scheme).items():
        array = keras.ops.convert_to_numpy(variable).astype("float32")
        tensors[name] = np.transpose(array, np.argsort(axes))
        if name.endswith(".running_var"):
            counter = name.replace("running_var", _COUNTER)
            tensors[counter] = np.zeros((), "int64")
    # What is written must be what reading it back would build.
    description, num_classes = _describe(tensors, scheme)
    again = build_resnet(**description, num_classes=num_classes)
    _check(tensors, _places(again, scheme))
    return tensors


def _fits(model, scheme):
    try:
        return bool(_exported(model, scheme))
    except _Misfit:
        return False


def _told(**lists):
    return "; ".join(
        f"{len(names)} {kind}: {_listed(names)}"
        for kind, names in lists.items()
        if names
    )


def _listed(names):
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
