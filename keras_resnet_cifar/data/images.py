"""Decodes image files: the one place that hands bytes to Pillow."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from keras_resnet_cifar.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads many more, some with the help of other programs (EPS starts
# Ghostscript): these are common, and libraries alone decode them.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@contextlib.contextmanager
def opened(file, formats=FORMATS) -> Iterator["Image"]:
    """Reads the header of an image; what would exhaust memory is an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=formats) as image:
            yield image


@contextlib.contextmanager
def _naming(path):
    """Raises what goes wrong as an `InputError` that names the file."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise InputError("it is not a file")  # opening a pipe would wait
        yield
    except Exception as error:  # damaged files fail in many ways
        raise InputError(
            f"cannot read {path} as an image ({one_line(error)}); give one of "
            f"{', '.join(FORMATS)}"
        ) from error


def shorter_side(path: str | os.PathLike) -> int:
    """Returns the shorter side in pixels; it reads the header alone.

    Raises:
        InputError: As `open_image`, but damaged pixels are not noticed.
    """
    with _naming(path), opened(path) as image:
        return min(image.size)


def open_image(path: str | os.PathLike) -> "Image":
    """Returns an image file as an upright RGB `PIL.Image.Image`.

    Args:
        path: A file of one of `FORMATS`, 8 bits per channel.

    Raises:
        InputError: The file is missing or not an image, or claims a size that
            would exhaust memory.
    """
    from PIL import ImageOps

    with _naming(path), opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"its pixels are {image.mode}, not 8 bit")
        return ImageOps.exif_transpose(image).convert("RGB")
