"""Loads PyTorch checkpoints of ResNets as Keras models, and saves them.

A checkpoint must match the model of `build_resnet` in every tensor.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.models.nets import assemble, leaf_layers
from keras_resnet_cifar.pytorch.files import read_tensors, write_tensors
from keras_resnet_cifar.pytorch.schemes import SCHEMES, get_scheme, recognize

# Kind of layer -> {tensor: (our variable, PyTorch's axes in our order)}.
_TENSORS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "conv": {"weight": ("kernel", (2, 3, 1, 0))},
    "bn": {
        "weight": ("gamma", (0,)),
        "bias": ("beta", (0,)),
        "running_mean": ("moving_mean", (0,)),
        "running_var": ("moving_variance", (0,)),
    },
    "dense": {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))},
}
_SHOWN = 12  # names in an error, before "and ... more"


class CheckpointMismatch(Exception):
    """Tensors and model do not match; the message lists where."""


def load_torch_checkpoint(
    path: str | Path, arch: str | None = None, normalization: Any = None
) -> keras.Model:
    """Loads a PyTorch checkpoint of a ResNet as a Keras model.

    The naming scheme, one of `schemes.SCHEMES` such as `"akamaster"`, and the
    architecture are inferred from the names and shapes of the tensors. Like all
    models of this package, the model takes raw images; it applies the
    `normalization` that the PyTorch code applies before the net.

    Args:
        path: A .th, .pt or .pth file (needs PyTorch) or a .safetensors file.
        arch: Name of the architecture that the checkpoint must have, or `None`.
        normalization: As in `build_resnet`. `None` is the one that the scheme's
            project trained with: `"imagenet"` for akamaster's nets and those
            with the ImageNet stem, else the project's mean and standard
            deviation for the CIFAR dataset with this number of classes.

    Returns:
        A `keras.Model` of stock layers from images `[N, H, W, 3]`, 0 to 255,
        to logits `[N, classes]`.

    Raises:
        InputError: The file cannot be read or contains more than tensors; its
            names fit no scheme; a tensor is missing, unexpected or of the wrong
            shape; or the architecture is not `arch`.

    Examples:
        >>> model = load_torch_checkpoint("resnet20.th", arch="resnet20")
    """
    expected = resolve(arch) if arch else None
    tensors = read_tensors(path)
    scheme = recognize({name.rpartition(".")[0] for name in tensors})
    if scheme is None:
        raise InputError(
            f"the tensor names in {path} ({_listed(sorted(tensors))}) fit no "
            f"known scheme ({', '.join(SCHEMES)}): rename the tensors as one "
            "of them does"
        )
    try:
        net, num_classes = _describe(tensors, scheme)
        if expected not in (None, net):
            differences = [
                f"{field} is {value!r}, not {vars(expected)[field]!r}"
                for field, value in vars(net).items()
                if value != vars(expected)[field]
            ]
            raise InputError(
                f"{path} holds {net.name}, not {expected.name}: "
                f"{'; '.join(differences)}; omit arch={expected.name!r} to "
                "load it"
            )
        if normalization is None:
            normalization = scheme.default_normalization(net.stem, num_classes)
        model = assemble(net, num_classes, normalization=normalization)
        variables = _variables(model, scheme)
        _check(tensors, variables)
    except CheckpointMismatch as mismatch:
        raise InputError(
            f"{path} is not a complete ResNet of the scheme {scheme.name}: "
            f"{mismatch}; save the whole state_dict of such a net"
        ) from None
    for name, (variable, axes) in variables.items():
        variable.assign(np.transpose(tensors[name], axes))
    return model


def save_torch_checkpoint(
    model: keras.Model, path: str | Path, scheme: str
) -> None:
    """Saves a model's weights with the tensor names of a PyTorch project.

    The file is a plain state_dict: the project's net of the same architecture
    loads it with `net.load_state_dict(torch.load(path), strict=True)`. It does
    not contain the normalization; PyTorch code must normalize images as the
    model does.

    Args:
        model: A model of `build_resnet`, or loaded from its file.
        path: A .th, .pt or .pth file (needs PyTorch) or a .safetensors file.
        scheme: A name in `schemes.SCHEMES`, such as `"akamaster"`.

    Raises:
        InputError: The scheme is unknown or has no such nets (the message
            names schemes that might fit), or the file cannot be written.
    """
    try:
        tensors = _state_dict(model, get_scheme(scheme))
    except CheckpointMismatch as mismatch:
        names = {layer.name.partition("_")[0] for layer in leaf_layers(model)}
        stages = sum(name.startswith("stage") for name in names)
        others = [s for s, row in SCHEMES.items() if len(row.stages) == stages]
        raise InputError(
            f"the scheme {scheme} has no nets like {model.name} ({mismatch}); "
            f"schemes of {stages} stages: {', '.join(others) or 'none'}"
        ) from None
    write_tensors(tensors, path)


def _describe(tensors, scheme):
    """Returns the architecture of the tensors, and the number of classes."""
    shapes = {}  # our layer -> shape of its weight in PyTorch
    misshapen = []
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        layer = scheme.layer(module)
        if layer is None or kind != "weight":
            continue
        shapes[layer] = tensor.shape
        _, axes = _tensors_of(layer)["weight"]
        if tensor.ndim != len(axes) or 0 in tensor.shape:
            misshapen.append(f"{name} {tensor.shape}")
    missing = [
        f"{scheme.module(layer)}.weight"
        for layer in scheme.essential
        if layer not in shapes
    ]
    _refuse(missing=missing, misshapen=misshapen)
    numbers = range(1, len(scheme.stages) + 1)
    blocks = {tuple(layer.split("_")[:2]) for layer in shapes}
    bottleneck = "stage1_block0_conv3" in shapes
    seven = "imagenet" in scheme.stems and shapes["stem_conv"][2] == 7
    try:
        net = resolve(
            block="bottleneck" if bottleneck else "basic",
            preactivation=scheme.preactivation,
            final_norm=not scheme.preactivation,
            shortcut=_shortcut(shapes, scheme),
            widths=[shapes[f"stage{n}_block0_conv1"][0] for n in numbers],
            stage_blocks=[
                sum(stage == f"stage{n}" for stage, _ in blocks)
                for n in numbers
            ],
            stem="imagenet" if seven else "cifar",
        )
    except InputError as error:
        raise CheckpointMismatch(str(error)) from error
    # Checked before the net is built, as it could fill the memory. Each block
    # has a 3x3 convolution from its width to its width.
    stages = zip(net.stage_blocks, net.widths, strict=True)
    needed = sum(9 * count * width**2 for count, width in stages)
    if needed > sum(tensor.size for tensor in tensors.values()):
        raise CheckpointMismatch(
            f"a net of widths {net.widths} has more weights"
        )
    return net, shapes["head_dense"][0]


def _shortcut(shapes, scheme):
    for layer, shape in shapes.items():
        if layer.endswith("shortcut_conv"):
            return "conv3x3" if shape[2] == 3 else "projection"
    # If the identity is not an option, `_check` reports what is missing.
    return "identity" if scheme.identity else "projection"


def _tensors_of(layer):
    return _TENSORS[layer.rpartition("_")[2].rstrip("123")]


def _variables(model, scheme):
    """Returns `{tensor name: (our variable, PyTorch's axes in our order)}`."""
    variables = {}
    unnamed = []
    for layer in leaf_layers(model):
        module = scheme.module(layer.name)
        if module is not None:
            for name, (variable, axes) in _tensors_of(layer.name).items():
                tensor = f"{module}.{name}"
                variables[tensor] = (getattr(layer, variable), axes)
        elif layer.weights:
            unnamed.append(layer.name)
    _refuse(unnamed=unnamed)
    return variables


def _counter(name):
    """Returns the name of the step counter beside a BatchNorm's variance."""
    return name.replace("running_var", "num_batches_tracked")


def _check(tensors, variables):
    """Raises `CheckpointMismatch` unless tensors and variables agree."""
    misshapen, damaged = [], []
    for name in (name for name in variables if name in tensors):
        tensor, (variable, axes) = tensors[name], variables[name]
        shape = tuple(variable.shape[axis] for axis in np.argsort(axes))
        variance = name.endswith("running_var")
        if tensor.shape != shape:
            misshapen.append(f"{name} {tensor.shape}, not {shape}")
        elif tensor.dtype.kind != "f":
            misshapen.append(f"{name} of {tensor.dtype}, not float32")
        # Not all formats have checksums, so implausible numbers are refused.
        elif not np.isfinite(tensor).all() or (variance and tensor.min() < 0):
            damaged.append(name)
    known = {*variables, *map(_counter, variables)}
    _refuse(
        missing=[name for name in variables if name not in tensors],
        unexpected=[name for name in tensors if name not in known],
        misshapen=misshapen,
        damaged=damaged,
    )


def _state_dict(model, scheme):
    """Returns the model's weights by their names in a scheme.

    Raises `CheckpointMismatch` unless reading them back builds the same net.
    """
    variables = _variables(model, scheme)
    tensors = {}
    for name, (variable, axes) in variables.items():
        array = keras.ops.convert_to_numpy(variable).astype("float32")
        tensors[name] = np.transpose(array, np.argsort(axes))
        if name.endswith("running_var"):
            tensors[_counter(name)] = np.zeros((), "int64")
    net, num_classes = _describe(tensors, scheme)
    again = assemble(net, num_classes)
    _check(tensors, _variables(again, scheme))
    return tensors


def _refuse(**faults):
    """Raises `CheckpointMismatch` if any of the lists has names."""
    summary = "; ".join(
        f"{len(names)} {kind}: {_listed(names)}"
        for kind, names in faults.items()
        if names
    )
    if summary:
        raise CheckpointMismatch(summary)


def _listed(names):
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
