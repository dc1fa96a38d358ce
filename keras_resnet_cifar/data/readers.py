"""Readers of CIFAR on disk: python batches, binary batches, npz, tfds.

`find` looks for a layout under a folder, `read` reads it. Files are taken as
hostile: nothing in them is executed or unpacked to disk, no more is read than
a dataset can hold, and every defect is an `InputError` that names the file.
How many images a file holds is not checked here; that is the business of the
fingerprints in `keras_resnet_cifar.data.load`.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import keras
import numpy as np

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError, one_line, unknown

PIXELS = 32 * 32 * 3
MOST_BYTES = 1 << 30  # of a file, unpacked; the largest official has 0.2e9
HOST = "https://www.cs.toronto.edu/~kriz/cifar.html"  # tfds downloads from it


def check(images, labels, family):
    """Returns `labels` as uint8 [N] if images and labels can be a split.

    Args:
        images: An array; must be uint8 [N, 32, 32, 3], N at least 1.
        labels: An array; must be integers [N] or [N, 1] below the number of
            classes.
        family: `"cifar10"` or `"cifar100"`.

    Raises:
        InputError: They cannot; it says why and leaves it to the caller to
            name the file.
    """
    classes = DATASETS[family].num_classes
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        found = f"{images.dtype} {list(images.shape)}"
        raise InputError(f"images are {found}, not uint8 [N, 32, 32, 3]")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        found = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"labels are {found}, not integers [N]")
    if len(images) != len(labels) or not len(images):
        raise InputError(f"{len(images)} images but {len(labels)} labels")
    for label in (labels.min(), labels.max()):
        if not 0 <= label < classes:
            raise InputError(f"label {label} is not in 0..{classes - 1}")
    return labels.astype(np.uint8)


def _refuse_large(size):
    if size > MOST_BYTES:
        raise InputError(
            f"refused: it holds {size:,} bytes, and no file of CIFAR has "
            f"{MOST_BYTES:,}"
        )


# --- Parsers: (open binary file, split) -> (images, labels), as found


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, code, *_):
        if code not in ("u1", b"u1"):  # bytes in pickles of Python 2
            raise InputError(f"an array of dtype {code!r}, not bytes")

    def __setstate__(self, state):
        pass


class _Array:
    """Stands for `numpy.ndarray`; `value` is uint8."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state):
        _, shape, _, fortran, content = state
        self.value = np.frombuffer(content, np.uint8).reshape(
            shape, order="F" if fortran else "C"
        )

    @classmethod
    def from_buffer(cls, content, dtype, shape, order):
        array = cls()
        array.__setstate__((1, shape, dtype, order == "F", content))
        return array


class _ArrayUnpickler(pickle._Unpickler):
    """Reads arrays of bytes; whatever else a pickle could call is refused.

    Even numpy gets nothing from the pickle but bytes and a shape: its own
    reconstruction would believe forged dtypes. It is the unpickler written in
    Python: for five bytes that number an object 2**31 the one in C fills
    tens of gigabytes.
    """

    allowed = MappingProxyType(
        {
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _Dtype,
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy._core.multiarray", "_reconstruct"): _Array,
            ("numpy.core.numeric", "_frombuffer"): _Array.from_buffer,
            ("numpy._core.numeric", "_frombuffer"): _Array.from_buffer,
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
        }
    )

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise InputError(
                f"refused: the pickle asks for {module}.{name}, and only "
                "numpy arrays are read"
            )
        return self.allowed[module, name]


def _channels_last(rows):
    """uint8 [N, 3072], R then G then B, as a view [N, 32, 32, 3]."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _parse_python(file, split, label_key):
    batch = _ArrayUnpickler(file, encoding="bytes").load()
    # Batches from Python 2 have bytes for keys, re-saved ones may have str.
    batch = {k.decode() if isinstance(k, bytes) else k: batch[k] for k in batch}
    labels = batch[label_key]
    # Lists that share lists would grow beyond bounds as an array.
    if any(isinstance(label, (list, tuple)) for label in labels):
        raise InputError("labels are nested")
    return _channels_last(batch["data"].value), np.asarray(labels)


def _parse_binary(file, split, label_bytes):
    content = file.read()
    record = label_bytes + PIXELS
    if len(content) % record:
        raise InputError(
            f"{len(content)} bytes are no whole number of {record}-byte records"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    # In CIFAR-100 the coarse label comes first: the last one is the fine.
    return _channels_last(rows[:, label_bytes:]), rows[:, label_bytes - 1]


def _parse_npz(file, split):
    with zipfile.ZipFile(file) as archive:
        _refuse_large(sum(x.file_size for x in archive.infolist()))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        suffix = "" if "x" in arrays else f"_{split}"
        return arrays[f"x{suffix}"], arrays[f"y{suffix}"]


# --- Layouts


@dataclass(frozen=True)
class Layout:
    """Where a layout keeps the files of one dataset, and how they are parsed.

    Attributes:
        name: `"python"`, `"binary"` or `"npz"`.
        folder: The customary folder, relative to a root.
        files: File names per split.
        parse: (open binary file, split) -> (images, labels).
        archive: Name of the official archive of `folder`, if there is one.
    """

    name: str
    folder: str
    files: dict[str, list[str]]
    parse: Callable
    archive: str = ""


def _layouts(family, folders, batches, label_key, label_bytes):
    python, binary = folders
    number = family.removeprefix("cifar")
    return (
        Layout(
            "python",
            python,
            batches,
            partial(_parse_python, label_key=label_key),
            archive=f"cifar-{number}-python.tar.gz",
        ),
        Layout(
            "binary",
            binary,
            {s: [f"{n}.bin" for n in names] for s, names in batches.items()},
            partial(_parse_binary, label_bytes=label_bytes),
            archive=f"cifar-{number}-binary.tar.gz",
        ),
        Layout("npz", family, {s: [f"{s}.npz"] for s in batches}, _parse_npz),
        Layout("npz", ".", {s: [f"{family}.npz"] for s in batches}, _parse_npz),
    )


LAYOUTS = {
    "cifar10": _layouts(
        "cifar10",
        folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
        batches={
            "train": [f"data_batch_{i}" for i in range(1, 6)],
            "test": ["test_batch"],
        },
        label_key="labels",
        label_bytes=1,
    ),
    "cifar100": _layouts(
        "cifar100",
        folders=("cifar-100-python", "cifar-100-binary"),
        batches={"train": ["train"], "test": ["test"]},
        label_key="fine_labels",
        label_bytes=2,
    ),
}
LAYOUT_NAMES = ("python", "binary", "npz", "tfds")


def looked_for(family):
    """Returns what `find` looks for, as text for a message."""
    names = []
    for layout in LAYOUTS[family]:
        first = layout.files["train"][0]
        names.append(os.path.normpath(os.path.join(layout.folder, first)))
    archives = [x.archive for x in LAYOUTS[family] if x.archive]
    return ", ".join([*names, f"{family}/<version> of tfds", *archives])


def find(root, family, layout=None, bare=True):
    """Looks for a dataset under a folder.

    Args:
        root: The folder.
        family: `"cifar10"` or `"cifar100"`.
        layout: One of `LAYOUT_NAMES` to look for that alone.
        bare: Whether the files may lie in `root` itself, and not only in the
            folders named after the dataset.

    Returns:
        `(description, reader)` of the first layout found, or `None`. The
        reader takes no arguments and returns
        `{"train": (images, labels), "test": (images, labels)}`, images uint8
        [N, 32, 32, 3], labels uint8 [N] (fine ones for CIFAR-100). It raises
        `InputError` for a file that is missing or defective.
    """
    if layout not in (None, *LAYOUT_NAMES):
        raise unknown("layout", layout, LAYOUT_NAMES)
    root = Path(root)
    wanted = [x for x in LAYOUTS[family] if layout in (None, x.name)]
    for candidate in wanted:
        for folder in (root / candidate.folder, *([root] if bare else [])):
            if any(_is_file(folder / n) for n in _all_files(candidate)):
                return (
                    f"{candidate.name} files in {folder}",
                    partial(_read_folder, candidate, folder, family),
                )
    if layout in (None, "tfds"):
        version = _find_tfds(root, family, bare)
        if version:
            return f"tfds in {version}", partial(read_tfds, family, version)
    for candidate in wanted:
        archive = root / candidate.archive
        if candidate.archive and _is_file(archive):
            return (
                f"{archive}",
                partial(_read_archive, candidate, archive, family),
            )
    return None


def _is_file(path):
    # Path.is_file raises where a folder may not be entered.
    return os.path.isfile(path)


def _all_files(layout):
    return [name for names in layout.files.values() for name in names]


def _read_folder(layout, folder, family):
    def opener(name):
        path = folder / name
        if not _is_file(path):  # to open a pipe would wait for its writer
            raise FileNotFoundError(path)
        _refuse_large(path.stat().st_size)
        return open(path, "rb")

    return _read(layout, family, folder, opener)


def _read_archive(layout, archive, family):
    def opener(name):
        # Read in place: nothing is ever extracted.
        try:
            return tar.extractfile(f"{layout.folder}/{name}")
        except KeyError as error:
            raise FileNotFoundError(name) from error

    with _open_tar(archive) as tar:
        return _read(layout, family, archive, opener)


def _open_tar(archive):
    try:
        with gzip.open(archive) as file:  # whole, so its checksum counts
            content = file.read(MOST_BYTES + 1)
        _refuse_large(len(content))
        return _plain_tar(io.BytesIO(content))
    except Exception as error:
        raise InputError(
            f"{archive}: not a whole tar archive ({one_line(error)}); delete it "
            "and download it again"
        ) from error


def _plain_tar(file):
    """An open tar archive that holds files and folders, and within itself."""
    tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    for member in tar.getmembers():
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()):
            raise InputError(f"refused: {path} is a link or a device")
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"refused: {path} lies outside of it")
    return tar


def _read(layout, family, place, opener):
    splits = {}
    for split, names in layout.files.items():
        parts = [
            _parse(layout, family, split, place / name, opener)
            for name in names
        ]
        images, labels = zip(*parts, strict=True)
        # Into an array of its own: concatenating transposed views alone would
        # keep their channels-first order in memory.
        whole = np.empty((sum(map(len, images)), 32, 32, 3), np.uint8)
        splits[split] = (
            np.concatenate(images, out=whole),
            np.concatenate(labels),
        )
    return splits


def _parse(layout, family, split, path, opener):
    try:
        with opener(path.name) as file:
            images, labels = layout.parse(file, split)
        return images, check(images, labels, family)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing; download the dataset again"
        ) from error
    except Exception as error:  # a damaged file fails in any way it likes
        raise InputError(
            f"{path}: not a whole {layout.name} file of {family} "
            f"({one_line(error)}); download it again"
        ) from error


# --- tensorflow_datasets

_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_TFDS_CLASSES = "tensorflow_datasets.core.features."


def _find_tfds(root, family, bare):
    """Returns the newest prepared version of a tfds dataset, or `None`."""
    found = [*(root / family).glob("*/dataset_info.json")]
    if bare and not found:
        found = [*root.glob("*/dataset_info.json"), root / "dataset_info.json"]
    versions = [path.parent for path in found if _is_file(path)]
    numbers = re.compile(r"\d+")
    return max(
        versions,
        key=lambda path: [int(n) for n in numbers.findall(path.name)],
        default=None,
    )


def read_tfds(family, folder):
    """Reads a prepared version folder of tfds; returns as `find`'s reader."""
    tfds = _import_tfds(folder)
    try:
        _check_features(folder)
        return _tfds_splits(tfds, tfds.builder_from_directory(folder), family)
    except Exception as error:
        raise InputError(
            f"{folder}: tensorflow_datasets cannot read it ({one_line(error)}); "
            "delete it and prepare it again"
        ) from error


def _check_features(folder):
    """Raises `InputError` if features.json names foreign code.

    tfds imports the module of every class that is named there, in JSON within
    strings too.
    """

    def check_strings(entry):
        for key, value in entry.items():
            if not isinstance(value, str):
                continue
            foreign = key in _CLASS_KEYS and not value.startswith(_TFDS_CLASSES)
            if foreign or "{" in value:
                raise InputError(
                    f"refused: features.json asks for {value[:80]}, and only "
                    f"{_TFDS_CLASSES}* are read"
                )
        return entry

    text = (folder / "features.json").read_text(encoding="utf-8")
    json.loads(text, object_hook=check_strings)


def download_tfds(family, data_dir):
    """Has tfds download and prepare a dataset, with its own progress bar.

    Args:
        family: `"cifar10"` or `"cifar100"`.
        data_dir: Where tfds is to keep it.

    Returns:
        What `find`'s reader returns.

    Raises:
        InputError: tfds is not installed, or it failed, for want of a network
            for example.
    """
    tfds = _import_tfds(f"the download of {family}")
    try:
        builder = tfds.builder(family, data_dir=data_dir)
        if not builder.is_prepared():
            # tfds itself retries for minutes where there is no network.
            urllib.request.urlopen(HOST, timeout=20).close()
            builder.download_and_prepare()
        return _tfds_splits(tfds, builder, family)
    except Exception as error:
        raise InputError(
            f"the download of {family} by tensorflow_datasets failed "
            f"({one_line(error)})"
        ) from error


def _import_tfds(what):
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"{what} needs tensorflow-datasets, which is not installed here "
            f"({one_line(error)}): pip install tensorflow tensorflow-datasets"
        ) from error
    if keras.config.backend() != "tensorflow":
        # TensorFlow would take the GPU's memory from the backend that trains.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    return tfds


def _tfds_splits(tfds, builder, family):
    splits = {}
    for split in ("train", "test"):
        batches = builder.as_dataset(split=split, batch_size=1000)
        total = builder.info.splits[split].num_examples
        images = np.empty((total, 32, 32, 3), np.uint8)
        labels = np.empty(total, np.int64)
        done = 0
        for batch in tfds.as_numpy(batches):
            part = slice(done, done + len(batch["label"]))
            images[part], labels[part] = batch["image"], batch["label"]
            done = part.stop
        splits[split] = images, check(images, labels[:done], family)
    return splits
