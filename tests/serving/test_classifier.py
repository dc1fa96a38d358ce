"""What the example servers make of picture files."""

import base64
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import EXAMPLES
from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.data.images import read_image


@pytest.fixture
def decode(monkeypatch):
    """Decodes a file to 32x32 as the servers do."""
    pytest.importorskip("onnxruntime", reason="the servers run ONNX")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from classifier import Classifier

    server = SimpleNamespace(size=(32, 32))
    yield lambda path: Classifier.decode(
        server, base64.b64encode(path.read_bytes())
    )
    del sys.modules["classifier"]


def test_pictures_are_read_as_in_the_package(decode, tmp_path):
    (image,), _ = shapes.draw(1, seed=3)
    wide = Image.fromarray(image).resize((90, 40))
    exif = wide.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    wide.save(tmp_path / "wide.png")
    wide.save(tmp_path / "turned.jpg", exif=exif)
    wide.convert("CMYK").save(tmp_path / "cmyk.jpg")
    wide.convert("LA").save(tmp_path / "alpha.png")
    for path in tmp_path.iterdir():
        expected = read_image(path, (32, 32))
        np.testing.assert_array_equal(decode(path), expected, path.name)


def test_pictures_that_are_refused(decode, tmp_path):
    deep, large = tmp_path / "deep.png", tmp_path / "large.png"
    Image.fromarray(np.full((8, 8), 40_000, "uint16")).save(deep)
    Image.new("1", (10_000, 10_000)).save(large)
    for path, word in ((deep, "not an 8-bit JPEG"), (large, "too many pixels")):
        with pytest.raises(ValueError, match=word):
            decode(path)
