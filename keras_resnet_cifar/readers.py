"""Readers of CIFAR on disk: python batches, binary batches, npz, tfds.

`find` looks for a layout under a folder, `read` reads it. Files are taken as
hostile: nothing in them is executed, and every defect is an `InputError` that
names the file. How many images a file holds is not checked here; that is the
business of the fingerprints in `keras_resnet_cifar.data`.
"""

import contextlib
import os
import pickle
import re
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_resnet_cifar.datasets import DATASETS
from keras_resnet_cifar.errors import InputError, unknown

PIXELS = 32 * 32 * 3
HOST = "https://www.cs.toronto.edu/~kriz/cifar.html"  # tfds downloads from it


def reason(error):
    """Returns an exception as one short line for the end of a message."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check(images, labels, family, where):
    """Returns `labels` as uint8 [N] if images and labels can be a split.

    Args:
        images: An array; must be uint8 [N, 32, 32, 3], N at least 1.
        labels: An array; must be integers [N] or [N, 1] below the number of
            classes.
        family: `"cifar10"` or `"cifar100"`.
        where: The file, for the message.

    Raises:
        InputError: They cannot.
    """
    classes = DATASETS[family].num_classes
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        fault = f"images are {images.dtype} {list(images.shape)}, "
        fault += "not uint8 [N, 32, 32, 3]"
    elif labels.ndim != 1 or labels.dtype.kind not in "iu":
        fault = f"labels are {labels.dtype} {list(labels.shape)}, "
        fault += "not integers [N]"
    elif len(images) != len(labels) or not len(images):
        fault = f"{len(images)} images but {len(labels)} labels"
    elif labels.min() < 0 or labels.max() >= classes:
        worst = labels.min() if labels.min() < 0 else labels.max()
        fault = f"label {worst} is not in 0..{classes - 1}"
    else:
        return labels.astype(np.uint8)
    raise InputError(f"{where}: {fault}; is it a file of {family}, and whole?")


# --- Parsers: (open binary file, split) -> (images, labels), as found


def _plain_dtype(code, *state):
    if code not in ("u1", b"u1"):  # bytes in pickles of Python 2
        raise InputError(f"an array of dtype {code!r}, where only u1 belongs")
    return np.dtype(code, *state)


def _latin1(text, encoding):
    return text.encode("latin1")


def _numpy_globals():
    """The only globals that a batch may name, by (module, name)."""
    from numpy._core import multiarray, numeric

    allowed = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _plain_dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = multiarray._reconstruct
        allowed[f"{core}.numeric", "_frombuffer"] = numeric._frombuffer
    return allowed


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of bytes; whatever else a pickle could call is refused."""

    allowed = _numpy_globals()

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
    return _channels_last(batch["data"]), np.asarray(batch[label_key])


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
    files: dict[str, tuple[str, ...]]
    parse: Callable
    archive: str = ""


_NPZ = {"train": ("train.npz",), "test": ("test.npz",)}
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

LAYOUTS = {
    "cifar10": (
        Layout(
            name="python",
            folder="cifar-10-batches-py",
            files={"train": _BATCHES, "test": ("test_batch",)},
            parse=partial(_parse_python, label_key="labels"),
            archive="cifar-10-python.tar.gz",
        ),
        Layout(
            name="binary",
            folder="cifar-10-batches-bin",
            files={
                "train": tuple(f"{name}.bin" for name in _BATCHES),
                "test": ("test_batch.bin",),
            },
            parse=partial(_parse_binary, label_bytes=1),
            archive="cifar-10-binary.tar.gz",
        ),
        Layout("npz", "cifar10", _NPZ, _parse_npz),
        Layout(
            name="npz",
            folder=".",
            files={"train": ("cifar10.npz",), "test": ("cifar10.npz",)},
            parse=_parse_npz,
        ),
    ),
    "cifar100": (
        Layout(
            name="python",
            folder="cifar-100-python",
            files={"train": ("train",), "test": ("test",)},
            parse=partial(_parse_python, label_key="fine_labels"),
            archive="cifar-100-python.tar.gz",
        ),
        Layout(
            name="binary",
            folder="cifar-100-binary",
            files={"train": ("train.bin",), "test": ("test.bin",)},
            parse=partial(_parse_binary, label_bytes=2),
            archive="cifar-100-binary.tar.gz",
        ),
        Layout("npz", "cifar100", _NPZ, _parse_npz),
        Layout(
            name="npz",
            folder=".",
            files={"train": ("cifar100.npz",), "test": ("cifar100.npz",)},
            parse=_parse_npz,
        ),
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
    return _read(layout, family, folder, lambda name: open(folder / name, "rb"))


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
        return tarfile.open(archive)
    except Exception as error:
        raise InputError(
            f"{archive}: not a tar archive ({reason(error)}); delete it and "
            "download it again"
        ) from error


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
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing; download the dataset again"
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file fails in any way it likes
        raise InputError(
            f"{path}: not a whole {layout.name} file ({reason(error)}); "
            "download it again"
        ) from error
    return images, check(images, labels, family, path)


# --- tensorflow_datasets


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
        return _tfds_splits(tfds, tfds.builder_from_directory(folder), family)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{folder}: tensorflow_datasets cannot read it ({reason(error)}); "
            "delete it and prepare it again"
        ) from error


def download_tfds(family, data_dir=None):
    """Has tfds download and prepare a dataset, with its own progress bar.

    Args:
        family: `"cifar10"` or `"cifar100"`.
        data_dir: Where tfds keeps it; its own default if `None`.

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
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the download of {family} by tensorflow_datasets failed "
            f"({reason(error)})"
        ) from error


def _import_tfds(what):
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"{what} needs tensorflow-datasets, which is not installed here "
            f"({reason(error)}): pip install tensorflow tensorflow-datasets"
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
        where = f"{builder.data_path} ({split})"
        splits[split] = images, check(images, labels[:done], family, where)
    return splits
