"""Reads CIFAR from disk: python batches, binary batches, npz, archives, tfds.

Files are not trusted: nothing in them is executed or unpacked to disk, no more
is read than a dataset can hold, and any defect raises an `InputError` that
names the file. `load` verifies that the images are the published ones.
"""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from keras_resnet_cifar.data import pickles, tfds
from keras_resnet_cifar.data.checks import Splits, check_form
from keras_resnet_cifar.errors import InputError, explained

MOST_BYTES = 1 << 30  # of a file, unpacked; the largest official has 0.2e9


# --- Parsers: (open binary file, family, split) -> (images, labels), unchecked


def _channels_last(rows):
    """uint8 [N, 3072], R then G then B, as a view [N, 32, 32, 3]."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _parse_python(file, family, split):
    batch = pickles.load(file.read())
    # Batches from Python 2 have bytes as keys, later copies may have text.
    batch = {k.decode() if isinstance(k, bytes) else k: batch[k] for k in batch}
    labels = batch["labels" if family == "cifar10" else "fine_labels"]
    # Lists that share lists would grow beyond bounds as an array.
    if any(isinstance(label, (list, tuple)) for label in labels):
        raise InputError("labels are nested")
    return _channels_last(pickles.byte_array(batch["data"])), np.array(labels)


def _parse_binary(file, family, split):
    # CIFAR-100 has two labels per record, of which the second is the fine one.
    label_bytes = 1 if family == "cifar10" else 2
    content, record = file.read(), label_bytes + 3072
    if len(content) % record:
        raise InputError(
            f"{len(content)} bytes are not a whole number of {record}-byte "
            "records"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return _channels_last(rows[:, label_bytes:]), rows[:, label_bytes - 1]


def _parse_npz(file, family, split):
    with zipfile.ZipFile(file) as archive:
        _refuse_large(sum(x.file_size for x in archive.infolist()))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        suffix = "" if "x" in arrays else f"_{split}"
        return arrays[f"x{suffix}"], arrays[f"y{suffix}"]


_PARSERS = {"python": _parse_python, "binary": _parse_binary, "npz": _parse_npz}


# --- Layouts


@dataclass(frozen=True)
class Layout:
    """Where a layout keeps the files of one dataset."""

    name: str  # of `_PARSERS`
    folder: str  # the customary one, relative to a root
    files: dict[str, list[str]]  # of each split
    archive: str = ""  # the official one of the folder, if there is one


def _layouts(family, files, python_folder, binary_folder):
    archive = family.replace("cifar", "cifar-")
    binary = {split: [f"{x}.bin" for x in files[split]] for split in files}
    pair = {split: [f"{split}.npz"] for split in files}
    whole = {split: [f"{family}.npz"] for split in files}
    return (
        Layout("python", python_folder, files, f"{archive}-python.tar.gz"),
        Layout("binary", binary_folder, binary, f"{archive}-binary.tar.gz"),
        Layout("npz", family, pair),
        Layout("npz", ".", whole),
    )


_CIFAR10 = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
}
_CIFAR100 = {"train": ["train"], "test": ["test"]}
LAYOUTS = {
    "cifar10": _layouts(
        "cifar10", _CIFAR10, "cifar-10-batches-py", "cifar-10-batches-bin"
    ),
    "cifar100": _layouts(
        "cifar100", _CIFAR100, "cifar-100-python", "cifar-100-binary"
    ),
}


def looked_for(family: str) -> str:
    """Returns what `copies` looks for, as text for a message."""
    layouts = LAYOUTS[family]
    files = [str(Path(x.folder, x.files["train"][0])) for x in layouts]
    archives = [x.archive for x in layouts if x.archive]
    return ", ".join([*files, f"{family}/<version> of tfds", *archives])


def copies(
    root: Path, family: str, search_root: bool = True
) -> Iterator[tuple[str, Callable[[], Splits]]]:
    """Yields the copies of a dataset under a folder, the fastest to read first.

    A copy is a description such as `"npz files in /data/cifar10"` and a
    function that reads the splits `"train"` and `"test"`, with fine labels, or
    raises `InputError`. With `search_root`, the files may lie in `root` itself,
    and not only in the folders named after the dataset.
    """
    # os.path's: Path.is_file raises where a folder may not be entered.
    for layout in LAYOUTS[family]:
        names = [name for part in layout.files.values() for name in part]
        for folder in (root / layout.folder, *([root] if search_root else [])):
            if any(os.path.isfile(folder / name) for name in names):
                read = partial(_read, layout, family, folder)
                yield f"{layout.name} files in {folder}", read
                break
    if version := tfds.find(root, family, search_root):
        yield f"tfds files in {version}", partial(tfds.read, family, version)
    for layout in LAYOUTS[family]:
        archive = root / layout.archive
        if layout.archive and os.path.isfile(archive):
            read = partial(_read, layout, family, archive)
            yield f"{layout.name} files in {archive}", read


# --- Reading


def _refuse_large(size):
    if size > MOST_BYTES:
        raise InputError(
            f"refused: it holds {size:,} bytes; a file of CIFAR has less than "
            f"{MOST_BYTES:,}"
        )


def _open_tar(archive):
    """Opens a tar.gz that holds plain files and folders, within itself."""
    with explained(
        f"{archive}: invalid tar archive", "delete it and download it again"
    ):
        with gzip.open(archive) as file:  # whole, so that its checksum counts
            content = io.BytesIO(file.read(MOST_BYTES + 1))
        _refuse_large(len(content.getbuffer()))
        tar = tarfile.open(fileobj=content, mode="r:")  # noqa: SIM115
        for member in tar.getmembers():
            path = PurePosixPath(member.name)
            plain = member.isfile() or member.isdir()
            if not plain or path.is_absolute() or ".." in path.parts:
                raise InputError(
                    f"refused: {path} is a link, a device or outside the folder"
                )
        return tar


def _open(place, tar, layout, name):
    """Opens a file of a folder or, without extracting it, of an archive."""
    path, member = place / name, f"{layout.folder}/{name}"
    if tar and member in tar.getnames():
        return tar.extractfile(member)
    if os.path.isfile(path):  # opening a pipe would wait for its writer
        _refuse_large(path.stat().st_size)
        return open(path, "rb")
    raise InputError(f"{name} is missing")


def _read(layout, family, place):
    """Reads the splits of a layout from a folder or an archive."""
    tar = None if os.path.isdir(place) else _open_tar(place)
    splits = {}
    for split, names in layout.files.items():
        parts = []
        for name in names:
            with (
                explained(
                    f"{place / name}: invalid {layout.name} file of {family}",
                    "download it again",
                ),
                _open(place, tar, layout, name) as file,
            ):
                arrays = _PARSERS[layout.name](file, family, split)
                parts.append(check_form(*arrays, family))
        images, labels = zip(*parts, strict=True)
        # Into a new array: the result of concatenating transposed views would
        # keep their channels-first order in memory.
        whole = np.empty((sum(map(len, images)), 32, 32, 3), np.uint8)
        np.concatenate(images, out=whole)
        splits[split] = whole, np.concatenate(labels)
    return splits
