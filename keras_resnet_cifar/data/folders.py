"""A user's own images as a dataset: one folder per class."""

import os
import statistics
from pathlib import Path

import numpy as np

from keras_resnet_cifar.data.checks import Splits
from keras_resnet_cifar.data.images import open_image, opened_path
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
    """Returns the classes of a folder of images: its sorted folder names.

    Args:
        folder: As for `load_folders`.

    Raises:
        InputError: There are fewer than two classes.
    """
    train = _split_folders(folder)["train"]
    names = tuple(_classes(train))
    if len(names) < 2:
        raise InputError(
            f"{train} needs one folder per class, at least two. Received: "
            f"{len(names)}"
        )
    return names


def load_folders(folder: str | os.PathLike) -> Splits:
    """Loads images that lie in one folder per class.

    All become squares. Their side is the median of the shorter sides of the
    training images, at most 256: each image is resized (bicubic) until its
    shorter side has that length, and its middle is cut out. Pillow reads them,
    for `keras.utils.image_dataset_from_directory` ignores the orientation that
    cameras note, and needs TensorFlow.

    Args:
        folder: It holds train/ and perhaps val/ and test/, each with one
            folder per class; or the classes themselves, as the train split.

    Returns:
        `{split: (images, labels)}` of `"train"` and, if they exist,
        `"validation"` and `"test"`: images uint8 `[N, side, side, 3]`, labels
        uint8 `[N]`, uint16 for more than 256 classes.

    Raises:
        InputError: A class has no images or is unknown to train/, or a file
            cannot be read.
    """
    from PIL import Image, ImageOps

    names = class_names(folder)
    roots = _split_folders(folder)
    files = {split: _files(root, names) for split, root in roots.items()}
    shorter_sides = map(_shorter_side, files["train"][0])
    side = min(statistics.median_low(shorter_sides), LARGEST_SIDE)
    splits = {}
    for split, (paths, labels) in files.items():
        images = np.empty((len(paths), side, side, 3), "uint8")
        for index, path in enumerate(paths):
            images[index] = ImageOps.fit(
                open_image(path), (side, side), Image.Resampling.BICUBIC
            )
        dtype = "uint8" if len(names) <= 256 else "uint16"
        splits[split] = images, np.array(labels, dtype)
    return splits


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
            f"{root} has the class {min(foreign)}, which the train split "
            "lacks: all splits need the same folders"
        )
    paths, labels = [], []
    for label, name in enumerate(names):
        entries = sorted((root / name).glob("[!.]*"))
        images = [path for path in entries if path.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError(
                f"{root / name} holds no images: give it some "
                f"({', '.join(SUFFIXES)}), or remove the class"
            )
        paths += images
        labels += [label] * len(images)
    return paths, labels
