"""Decodes image files; no other module opens files with Pillow."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet_cifar.errors import InputError, explained

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads many more formats, some by starting other programs (EPS starts
# Ghostscript). These are common and decoded by libraries alone.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@contextlib.contextmanager
def opened(file, formats=FORMATS) -> Iterator["Image"]:
    """Opens an image; a size that would exhaust memory is an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=formats) as image:
            yield image


@contextlib.contextmanager
def opened_path(path: str | os.PathLike) -> Iterator["Image"]:
    """Opens an image file; any error becomes an `InputError` that names it."""
    with explained(
        f"cannot read {path} as an image", f"give one of {', '.join(FORMATS)}"
    ):
        if os.path.exists(path) and not os.path.isfile(path):
            raise InputError("it is not a file")  # opening a pipe would wait
        with opened(path) as image:
            yield image


def open_image(path: str | os.PathLike) -> "Image":
    """Returns an image of `FORMATS`, 8 bits per channel, upright and as RGB."""
    from PIL import ImageOps

    with opened_path(path) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"its pixels are {image.mode}, not 8-bit")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:  # else Pillow warns of some palettes
            upright = upright.convert("RGBA")
        return upright.convert("RGB")


def read_image(path: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    """Returns an image file as uint8 `[height, width, 3]`.

    The largest central crop with the aspect ratio of `size`, `(height, width)`
    in pixels, is resized (bicubic). Every image file is read in this way, so
    that a net sees images as in training.
    """
    from PIL import Image, ImageOps

    bicubic = Image.Resampling.BICUBIC
    return np.asarray(ImageOps.fit(open_image(path), size[::-1], bicubic))
