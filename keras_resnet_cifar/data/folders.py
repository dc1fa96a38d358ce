"""Image files, and a user's own images as a dataset: a folder a class."""

import os
import warnings
from pathlib import Path

import numpy as np

from keras_resnet_cifar.errors import InputError

# Of images that Pillow reads; other files in a class's folder are left alone.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LARGEST_SIDE = 256  # what is cropped to 224 is usually kept at that
# The names that a split's folder may have.
_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
}

# Pillow reads many more, some with the help of other programs (EPS starts
# Ghostscript): these are common, and decoded by libraries alone.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def open_image(path):
    """Returns an image file as an upright RGB `PIL.Image.Image`.

    Args:
        path: A file of one of `FORMATS`.

    Raises:
        InputError: The file is missing or no image, or claims a size that
            would exhaust memory.
    """
    from PIL import Image, ImageOps

    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is no file")  # opening a pipe would wait
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are {image.mode}, not 8 bit")
                return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow raises many kinds for damaged files
        told = getattr(error, "strerror", None) or str(error)
        told = " ".join(told.split())
        raise InputError(
            f"cannot read {path} as an image: {told}; give one of "
            f"{', '.join(FORMATS)}"
        ) from error


def class_names(folder):
    """Returns the classes of a folder of images: its sorted folder names.

    Args:
        folder: It holds train/ (and val/, test/), or the classes themselves.

    Raises:
        InputError: There are no classes.
    """
    train = _split_folder(Path(folder), "train") or Path(folder)
    names = tuple(entry.name for entry in _entries(train) if entry.is_dir())
    if len(names) < 2:
        raise InputError(
            f"{train} holds {len(names)} folders: it needs one a class, with "
            "its images"
        )
    return names


def load_folders(folder):
    """Loads images that lie one folder a class.

    All get one size: the side is the median of the shorter sides of the
    training images, at most 256. An image is resized (bicubic) until its
    shorter side has that length, and the middle is cut out as a square.

    Args:
        folder: It holds train/ and perhaps val/ and test/, each with a folder
            a class; or the classes themselves, which are the train split.

    Returns:
        `{split: (uint8 [N, side, side, 3], labels [N])}` for the splits that
        are there, of "train", "validation" and "test".

    Raises:
        InputError: A class has no images or is unknown to train/, or a file
            cannot be read.
    """
    folder = Path(folder)
    names = class_names(folder)
    roots = {
        split: _split_folder(folder, split)
        for split in ("train", "validation", "test")
    }
    if roots["train"] is None:
        roots = {"train": folder}
    files = {
        split: _files(root, names) for split, root in roots.items() if root
    }
    side = _side(path for path, _ in files["train"])
    return {split: _read(found, side) for split, found in files.items()}


def _entries(folder):
    return sorted(
        entry for entry in folder.iterdir() if not entry.name.startswith(".")
    )


def _split_folder(folder, split):
    """The folder of a split, or `None`."""
    for name in _FOLDERS[split]:
        if (folder / name).is_dir():
            return folder / name
    return None


def _files(root, names):
    """The image files of a split with their labels, in order."""
    foreign = {entry.name for entry in _entries(root) if entry.is_dir()}
    foreign -= set(names)
    if foreign:
        raise InputError(
            f"{root} has the class {min(foreign)}, which train has not: the "
            "folders of all splits are the same classes"
        )
    files = []
    for label, name in enumerate(names):
        found = _entries(root / name) if (root / name).is_dir() else []
        images = [p for p in found if p.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError(
                f"{root / name} holds no images: give it some "
                f"({', '.join(SUFFIXES)}), or remove the class"
            )
        files += [(path, label) for path in images]
    return files


def _side(paths):
    """The median of the shorter sides, at most `LARGEST_SIDE`."""
    shorter = sorted(min(open_image(path).size) for path in paths)
    return min(shorter[(len(shorter) - 1) // 2], LARGEST_SIDE)


def _read(files, side):
    images = np.empty((len(files), side, side, 3), "uint8")
    for index, (path, _) in enumerate(files):
        images[index] = _square(open_image(path), side)
    labels = np.array([label for _, label in files])
    kind = "uint8" if labels.max() < 256 else "uint16"
    return images, labels.astype(kind)


def _square(image, side):
    """The middle of an image, its shorter side resized to `side`."""
    from PIL import Image, ImageOps

    if image.size == (side, side):
        return image
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
