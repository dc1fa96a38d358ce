"""Tensors by name in PyTorch's and safetensors files: read, write, nothing run.

PyTorch is imported for its own formats only, and when they are used.
"""

import io
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np

from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.files import atomic_write, check_zip

# Under these keys training scripts keep the tensors among other things.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# What DataParallel and torch.compile put before each name.
PREFIXES = ("module.", "_orig_mod.")


def read_tensors(path):
    """Returns the tensors of a checkpoint as `{name: NumPy array}`.

    Wrappers (`state_dict`, `model`, `net`) are opened and prefixes
    (`module.`, `_orig_mod.`) removed. Floating tensors become float32, others
    keep their dtype.

    Args:
        path: A .th, .pt, .pth or .safetensors file.

    Raises:
        InputError: The file is missing, damaged, of another kind, wants more
            than tensors, or holds a name twice; or its library is missing.
    """
    path = Path(path)
    read, _ = _format(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a checkpoint file in it")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: name a file that is there")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: copy or download it again")
    state = _unwrapped(read(path))
    if not isinstance(state, dict) or not state:
        raise InputError(
            f"{path} holds no tensors by name: save a state_dict in PyTorch"
        )
    tensors = {}
    for key, value in state.items():
        name = _without_prefixes(str(key))
        if name in tensors:
            raise InputError(
                f"{path} holds {name} twice, with and without a prefix: save "
                "one of the two in PyTorch"
            )
        if not isinstance(value, np.ndarray):
            raise InputError(
                f"{path}: {name} is no tensor but {type(value).__name__}: save "
                "a state_dict in PyTorch"
            )
        tensors[name] = value
    return tensors


def write_tensors(tensors, path):
    """Writes `{name: NumPy array}`, whole or not at all.

    Args:
        tensors: A state_dict as arrays.
        path: A .th, .pt, .pth or .safetensors file; its folder must exist.

    Raises:
        InputError: The suffix is none of these, its library is missing, or
            the system refuses to write.
    """
    path = Path(path)
    _, write = _format(path)
    tensors = {
        name: np.ascontiguousarray(array).reshape(array.shape)
        for name, array in tensors.items()
    }
    with atomic_write(path) as temporary:
        write(tensors, temporary)


def check_suffix(path):
    """Raises `InputError` if a path's suffix is no checkpoint's."""
    _format(Path(path))


def _format(path):
    if path.suffix not in FORMATS:
        raise InputError(
            f"{path} is no checkpoint by its name: use one that ends in "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[path.suffix]


def _unwrapped(state):
    while isinstance(state, dict):
        inner = [state[key] for key in WRAPPERS if key in state]
        if not inner or not isinstance(inner[0], dict):
            break
        state = inner[0]
    return state


def _without_prefixes(name):
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _import_torch(path):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} needs PyTorch ({one_line(error)}): pip install torch, or "
            "use a .safetensors file"
        ) from error
    return torch


def _import_safetensors(path):
    try:
        import safetensors.numpy
    except ImportError as error:
        raise InputError(
            f"{path} needs safetensors ({one_line(error)}): pip install "
            "safetensors"
        ) from error
    return safetensors.numpy


def _read_torch(path):
    torch = _import_torch(path)
    try:
        if zipfile.is_zipfile(path):  # PyTorch does not verify the checksums
            check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused
            state = torch.load(path, map_location="cpu", weights_only=True)
        return _as_arrays(torch, state)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise _unreadable(path, error) from error


def _as_arrays(torch, value):
    """`value` with each tensor as an array, floats as float32."""
    if isinstance(value, dict):
        return {key: _as_arrays(torch, item) for key, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point():
        value = value.float()
    return value.detach().numpy()


def _unreadable(path, error):
    """The error for a file that `torch.load` refuses."""
    wanted = re.search(r"(?:GLOBAL|global) ['\"]?([\w.]+)", str(error))
    if wanted:
        return InputError(
            f"{path} wants more than tensors ({wanted[1]}), and nothing of it "
            "was run: where you trust it, save its state_dict alone in PyTorch"
        )
    short = one_line(error).split(". ")[0][:120]
    return InputError(
        f"cannot read {path} as a PyTorch checkpoint ({short}): it is "
        "damaged, or no checkpoint of tensors"
    )


def _write_torch(tensors, path):
    torch = _import_torch(path)
    file = io.BytesIO()  # on a full disk its own writer raises anything
    torch.save(
        {name: torch.from_numpy(array) for name, array in tensors.items()}, file
    )
    path.write_bytes(file.getbuffer())


def _read_safetensors(path):
    library = _import_safetensors(path)
    try:
        tensors = library.load_file(path)
    except Exception as error:  # its own kind, and those of the system
        raise InputError(
            f"cannot read {path} as safetensors ({one_line(error)[:120]}): it "
            "is damaged, or another format"
        ) from error
    # ml_dtypes' bfloat16 and float8 are of kind "V".
    return {
        name: array.astype("float32") if array.dtype.kind in "fV" else array
        for name, array in tensors.items()
    }


def _write_safetensors(tensors, path):
    path.write_bytes(_import_safetensors(path).save(tensors))


_TORCH = (_read_torch, _write_torch)
FORMATS = {
    ".th": _TORCH,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".safetensors": (_read_safetensors, _write_safetensors),
}
