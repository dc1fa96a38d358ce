"""The user's own images as a dataset: one folder per class."""

import hashlib
import operator
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_resnet_cifar.data.checks import Splits
from keras_resnet_cifar.data.images import opened_path, read_image
from keras_resnet_cifar.errors import InputError

# Other files in the folder of a class are ignored.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LARGEST_SIDE = 256  # the customary size of images that are cropped to 224
# The names that the folder of a split may have.
_SPLITS = {
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
}


def class_names(folder: str | os.PathLike) -> tuple[str, ...]:
    """Returns the classes of a folder of images: its sorted folder names."""
    train = _split_folders(folder)["train"]
    names = tuple(_classes(train))
    if len(names) < 2:
        raise InputError(
            f"{train} needs one folder per class, at least two: it has "
            f"{len(names)}"
        )
    return names


class Images(NamedTuple):
    """The images of a folder, their size `[H, W]` and their files, in order.

    The splits are `"train"`, `"test"` and, if there is one, `"validation"`.
    Labels are uint8, or uint16 for more than 256 classes.
    """

    splits: Splits
    size: list[int]
    files: dict[str, list[Path]]


def load_folders(
    folder: str | os.PathLike,
    image_size: int | Sequence[int] | None = None,
    validation: float = 0,
    seed: int = 0,
) -> Images:
    """Loads images that are stored in one folder per class.

    `folder` contains train/ and perhaps val/ and test/, each with one folder
    per class; or the classes themselves, as the train split. `read_image`
    brings the images to the same size. They are read with Pillow, since
    `keras.utils.image_dataset_from_directory` ignores the EXIF orientation and
    needs TensorFlow.

    Without test/, about a fifth of the train split becomes the test split. The
    bytes of a file decide, so an image stays in its split when others are
    added or removed.

    Args:
        image_size: `(height, width)`, or the side of squares, in pixels. By
            default squares; their side is the median of the shorter sides of
            the training images, at most 256.
        validation: Fraction of the train split to hold out if there is no
            val/, decided by the bytes of the files and `seed`; 0 for none.
    """
    if not 0 <= validation < 1:
        raise InputError(
            f"validation={validation}: give a fraction such as 0.1"
        )
    names = class_names(folder)
    roots = _split_folders(folder)
    files = {split: _files(root, names) for split, root in roots.items()}
    if "test" not in files:
        _hold_out(files, "test", 0.2, "test", names)
    if validation and "validation" not in files:
        _hold_out(files, "validation", validation, f"validation {seed}", names)
    if image_size is None:
        shorter_sides = map(_shorter_side, files["train"][0])
        image_size = min(statistics.median_low(shorter_sides), LARGEST_SIDE)
    sides: Any = image_size if np.ndim(image_size) else [image_size] * 2
    try:
        height, width = map(operator.index, sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise InputError(
            f"image_size={image_size!r}: give (height, width), or the side of "
            "squares, in pixels"
        )
    dtype = "uint8" if len(names) <= 256 else "uint16"
    splits = {}
    for split, (paths, labels) in files.items():
        images = np.empty((len(paths), height, width, 3), "uint8")
        for index, path in enumerate(paths):
            images[index] = read_image(path, (height, width))
        splits[split] = images, np.array(labels, dtype)
    paths = {split: paths for split, (paths, _) in files.items()}
    return Images(splits, [height, width], paths)


def _hold_out(files, split, share, salt, names):
    """Moves a share of the training files to another split."""
    taken, kept = [], []
    for path, label in zip(*files["train"], strict=True):
        content = salt.encode() + path.read_bytes()
        number = int.from_bytes(hashlib.sha256(content).digest()[:8])
        (taken if number < share * 2**64 else kept).append((path, label))
    lacking = {*range(len(names))} - {label for _, label in kept}
    if lacking or not taken:
        which = f"class {names[min(lacking)]}" if lacking else "the train split"
        raise InputError(
            f"{which} has too few images to hold some out for {split}: add "
            f"images, or a folder {_SPLITS[split][0]}/"
        )
    files["train"], files[split] = (
        tuple(map(list, zip(*rows, strict=True))) for rows in (kept, taken)
    )


def image_files(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Returns image files; a folder stands for all images in it.

    It opens each, so that a file that is not an image is an `InputError` here.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = _images(
                file
                for file in path.rglob("*")
                if not any(x[0] == "." for x in file.relative_to(path).parts)
            )
            if not found:
                raise InputError(f"{path} has no images: give another folder")
        files += found
    for path in files:
        if not path.exists():
            raise InputError(f"{path} does not exist: give an image file")
        with opened_path(path):
            pass
    return files


def _images(paths):
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES and not path.is_dir()
    )


def _shorter_side(path):
    with opened_path(path) as image:
        return min(image.size)


def _split_folders(folder):
    """`{split: its folder}` of the splits that exist, train in any case."""
    folders = {
        split: Path(folder, name)
        for split, names in _SPLITS.items()
        for name in reversed(names)
        if Path(folder, name).is_dir()
    }
    return folders if "train" in folders else {"train": Path(folder)}


def _classes(root):
    folders = (entry.name for entry in root.iterdir() if entry.is_dir())
    return sorted(name for name in folders if not name.startswith("."))


def _files(root, names):
    """The image files of a split, in order, and their labels."""
    foreign = set(_classes(root)) - set(names)
    if foreign:
        raise InputError(
            f"{root} has the class {min(foreign)}, which the train split does "
            "not have: all splits need the same folders"
        )
    paths, labels = [], []
    for label, name in enumerate(names):
        images = _images((root / name).glob("[!.]*"))
        if not images:
            raise InputError(
                f"{root / name} has no images: add some "
                f"({', '.join(SUFFIXES)}), or remove the class"
            )
        paths += images
        labels += [label] * len(images)
    return paths, labels
