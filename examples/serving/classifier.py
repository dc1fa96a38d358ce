"""Runs the newest exported ONNX model in a folder, with onnxruntime and Pillow.

`scripts/export.py RUN --out FOLDER --format onnx` writes `FOLDER/onnx/1/`,
`2/`, ...: give `FOLDER/onnx`. A new version is used as soon as it appears.
"""

import base64
import binascii
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

warnings.simplefilter("error", Image.DecompressionBombWarning)


class Classifier:
    """Classifies raw images.

    Args:
        folder: Folder with one folder per version, named by its number.

    Attributes:
        version: The number of the version in use.
        labels: The names of the classes.
        size: Height and width of the images.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.version = 0
        self.load_newest()

    def load_newest(self) -> None:
        """Loads the newest version, if it is newer than the current one."""
        names = (path.name for path in self.folder.iterdir())
        versions = [int(name) for name in names if name.isdigit()]
        newest = max(versions, default=0)
        if newest <= self.version:
            return
        folder = self.folder / str(newest)
        # A request in progress keeps the session that it started with.
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")
        self.labels = (folder / "labels.txt").read_text().splitlines()
        self.size = tuple(self.session.get_inputs()[0].shape[1:3])
        self.version = newest

    def __call__(self, images: Any) -> np.ndarray:
        """Returns float32 probabilities `[N, C]` of uint8 `[N, H, W, 3]`.

        Raises:
            ValueError: The images have another shape, or are not pixels.
        """
        self.load_newest()
        try:
            pixels = np.asarray(images)
            whole = pixels.astype("uint8")
        except (TypeError, ValueError) as error:
            raise ValueError(
                "the images are not arrays of one shape"
            ) from error
        shape = (*self.size, 3)
        if pixels.shape[1:] != shape or not len(pixels):
            raise ValueError(f"give images of shape {shape}")
        if not np.array_equal(whole, pixels):
            raise ValueError("give whole numbers from 0 to 255")
        return self.session.run(["probabilities"], {"image": whole})[0]

    def decode(self, encoded: str) -> np.ndarray:
        """Returns the uint8 image `[H, W, 3]` of a picture file in base64.

        Raises:
            ValueError: It is not a picture.
        """
        try:
            file = io.BytesIO(base64.b64decode(encoded, validate=True))
            with Image.open(file, formats=("JPEG", "PNG", "BMP")) as picture:
                if picture.mode.startswith("I"):
                    raise ValueError("its pixels are not 8-bit")
                upright = ImageOps.exif_transpose(picture).convert("RGB")
        except (OSError, TypeError, ValueError, binascii.Error) as error:
            raise ValueError(
                "this is not an 8-bit JPEG, PNG or BMP file"
            ) from error
        except (
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise ValueError("the picture has too many pixels") from error
        # As in training: crop the centre instead of distorting the image.
        bicubic = Image.Resampling.BICUBIC
        return np.asarray(ImageOps.fit(upright, self.size[::-1], bicubic))
