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

    All get one size: the side is the median of the shorter sides of the
    training images, at most 256. An image is resized (bicubic) until its
    shorter side has that length, and the middle is cut out as a square. Pillow
    reads them, for `keras.utils.image_dataset_from_directory` ignores the
    orientation that cameras note, and needs TensorFlow.

    Args:
        folder: It holds train/ and perhaps val/ and test/, each with one
            folder per class; or the classes themselves, as the train split.

    Returns:
        `{split: (images, labels)}` of the splits that exist, of `"train"`,
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
    shorter = [_shorter_side(path) for path, _ in files["train"]]
    side = min(statistics.median_low(shorter), LARGEST_SIDE)
    splits = {}
    for split, pairs in files.items():
        images = np.empty((len(pairs), side, side, 3), "uint8")
        for index, (path, _) in enumerate(pairs):
            images[index] = ImageOps.fit(
                open_image(path), (side, side), Image.Resampling.BICUBIC
            )
        dtype = "uint8" if len(names) <= 256 else "uint16"
        splits[split] = images, np.array([label for _, label in pairs], dtype)
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
    """[(image file, label)] of a split, in order."""
    foreign = set(_classes(root)) - set(names)
    if foreign:
        raise InputError(
            f"{root} has the class {min(foreign)}, which the train split "
            "lacks: all splits need the same folders"
        )
    files = []
    for label, name in enumerate(names):
        paths = sorted((root / name).glob("[!.]*"))
        images = [path for path in paths if path.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError(
                f"{root / name} holds no images: give it some "
                f"({', '.join(SUFFIXES)}), or remove the class"
            )
        files += [(path, label) for path in images]
    return files
