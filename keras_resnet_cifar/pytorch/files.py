"""Reads and writes PyTorch and safetensors files, without running their code.

Only the library of a file's format is imported, when it is needed.
"""

import importlib
import io
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet_cifar.errors import InputError, explained, one_line
from keras_resnet_cifar.files import atomic_write, check_zip

FORMATS = (".th", ".pt", ".pth", ".safetensors")
# Training scripts save the tensors under one of these keys.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# DataParallel and torch.compile put these before each name.
PREFIXES = ("module.", "_orig_mod.")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint as `{name: NumPy array}`.

    `WRAPPERS` are unwrapped, and `PREFIXES` removed. Floating-point tensors
    become float32; others keep their dtype. Raises `InputError` also for a file
    that contains more than tensors, or a name twice.
    """
    path = Path(path)
    check_suffix(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a checkpoint file in it")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: give an existing file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: copy or download it again")
    read = _read_safetensors if _is_safetensors(path) else _read_torch
    state = _unwrapped(read(path))
    if not isinstance(state, dict) or not state:
        raise InputError(
            f"{path} holds no named tensors: save a state_dict in PyTorch"
        )
    tensors: dict[str, np.ndarray] = {}
    for key, value in state.items():
        name = str(key)
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if name in tensors:
            raise InputError(
                f"{path} contains {name} twice, with and without a prefix: "
                "save only one of them in PyTorch"
            )
        if not isinstance(value, np.ndarray):
            raise InputError(
                f"{path}: {name} is not a tensor but {type(value).__name__}: "
                "save a state_dict in PyTorch"
            )
        tensors[name] = value
    return tensors


def write_tensors(tensors: dict[str, np.ndarray], path: str | Path) -> None:
    """Writes `{name: NumPy array}` as a state_dict, atomically.

    The suffix, one of `FORMATS`, decides the format. The folder must exist.
    """
    path = Path(path)
    check_suffix(path)
    library = _import_library(path)
    tensors = {
        name: np.ascontiguousarray(array).reshape(array.shape)
        for name, array in tensors.items()
    }
    if _is_safetensors(path):
        content = library.save(tensors)
    else:
        # PyTorch's own file writer raises all kinds of errors on a full disk.
        file = io.BytesIO()
        library.save(
            {name: library.from_numpy(a) for name, a in tensors.items()}, file
        )
        content = file.getbuffer()
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def check_suffix(path: str | Path) -> None:
    """Raises `InputError` unless a path has the suffix of a checkpoint."""
    if Path(path).suffix not in FORMATS:
        raise InputError(
            f"{path} does not have the suffix of a PyTorch checkpoint: give a "
            f"file that ends in {', '.join(FORMATS)}"
        )


def refuse_checkpoint(path: str | Path) -> None:
    """Raises `InputError` for a PyTorch file where a .keras file is needed."""
    if Path(path).suffix in FORMATS:
        raise InputError(
            f"{path} is a PyTorch file: convert it to a .keras file with the "
            "command convert, or load it with load_torch_checkpoint in Python"
        )


def _is_safetensors(path):
    return path.suffix == ".safetensors"


def _import_library(path):
    """Returns the module `torch` or `safetensors.numpy`, by the suffix."""
    module, remedy = "torch", "torch, or use .safetensors"
    if _is_safetensors(path):
        module, remedy = "safetensors.numpy", "safetensors"
    with explained(f"{path} needs {module}", f"pip install {remedy}"):
        return importlib.import_module(module)


def _unwrapped(state: Any) -> Any:
    while isinstance(state, dict):
        inner = [state[key] for key in WRAPPERS if key in state]
        if not inner or not isinstance(inner[0], dict):
            break
        state = inner[0]
    return state


def _read_torch(path: Path) -> Any:
    torch = _import_library(path)
    try:
        if zipfile.is_zipfile(path):  # PyTorch does not verify the checksums
            check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
        return _as_arrays(torch, state)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise _unreadable(path, error) from error


def _as_arrays(torch: Any, value: Any) -> Any:
    """Returns `value` with each tensor as an array, floats as float32."""
    if isinstance(value, dict):
        return {key: _as_arrays(torch, item) for key, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError("a tensor is larger than its data in the file")
    if value.is_floating_point():
        value = value.float()
    return value.detach().numpy()


def _unreadable(path: Path, error: Exception) -> InputError:
    wanted = re.search(r"(?:GLOBAL|global) ['\"]?([\w.]+)", str(error))
    if wanted:
        return InputError(
            f"{path} contains more than tensors ({wanted[1]}), and was not "
            "run: if you trust it, save only its state_dict in PyTorch"
        )
    reason = one_line(error).split(". ")[0][:120]
    return InputError(
        f"{path} is damaged or not a PyTorch checkpoint ({reason}): copy it "
        "again, or save a state_dict in PyTorch"
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    library = _import_library(path)
    failure = f"{path} is damaged or not a safetensors file"
    with explained(failure, "copy it again"):
        tensors = library.load_file(path)
    # The kind of ml_dtypes' bfloat16 and float8 is "V".
    return {
        name: array.astype("float32") if array.dtype.kind in "fV" else array
        for name, array in tensors.items()
    }
