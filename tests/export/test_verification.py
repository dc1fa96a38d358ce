"""What makes an exported model pass or fail its check."""

import subprocess
import sys

import numpy as np
import pytest

from keras_resnet_cifar.errors import ExportFailed
from keras_resnet_cifar.export import run_exported
from keras_resnet_cifar.export import verify as verification

NAMES = ["cat", "dog", "frog"]
REFERENCE = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], "float32"
)


def outputs(**changes):
    """What `run_exported.py` writes of a SavedModel that is right."""
    return {
        "probabilities": REFERENCE,
        "class_id": np.array([0, 1, 2]),
        "label": np.array(["cat", "dog", "frog"]),
        "batch_of_one": REFERENCE[:1],
        "from_bytes": REFERENCE[:2],
        "images_per_second": np.array(100.0),
    } | changes


def verify(monkeypatch, output, **kwargs):
    monkeypatch.setattr(verification, "_run", lambda *_: output)
    return verification.verify("", "", "", REFERENCE, NAMES, **kwargs)


def off(amount, row=2):
    probabilities = REFERENCE.copy()
    probabilities[row, 0] += amount
    return probabilities


def test_a_model_that_agrees(monkeypatch):
    result = verify(monkeypatch, outputs(probabilities=off(0.9e-5)))
    assert (result.images, result.same_class) == (3, 3)
    assert result.difference == pytest.approx(0.9e-5, rel=0.01)
    assert result.images_per_second == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": off(1.1e-5)}, "differ by 1.1e-05.*1e-05"),
        ({"probabilities": off(0.2)}, "1 of 3 images get another class"),
        ({"probabilities": off(float("nan"), 0)}, "differ by nan"),
        ({"probabilities": REFERENCE[:2]}, r"\(2, 3\).*\(3, 3\)"),
        ({"batch_of_one": off(1e-3, 0)[:1]}, r"\(batch_of_one\) differ"),
        ({"from_bytes": off(1e-3, 0)[:2]}, r"\(from_bytes\) differ"),
        ({"class_id": np.array([0, 1, 1])}, "class_id or label"),
        ({"label": np.array(["cat", "dog", "dog"])}, "class_id or label"),
    ],
    ids=str,
)
def test_a_model_that_does_not(monkeypatch, changes, message):
    with pytest.raises(ExportFailed, match=message):
        verify(monkeypatch, outputs(**changes))


def test_tolerance(monkeypatch):
    output = outputs(probabilities=off(5e-5))
    verify(monkeypatch, output, tolerance=1e-4)
    quantised = outputs(probabilities=off(0.2))
    del quantised["class_id"], quantised["label"]
    assert verify(monkeypatch, quantised, tolerance=None).same_class == 2


def test_a_model_that_cannot_be_run_is_one_line(tmp_path):
    sample = tmp_path / "sample.npz"
    np.savez(sample, images=np.zeros((1, 32, 32, 3), "uint8"))
    with pytest.raises(ExportFailed, match="does not run") as caught:
        verification.verify(tmp_path, "onnx", sample, REFERENCE, NAMES)
    assert "\n" not in str(caught.value)


PROBE = """
import importlib, runpy, sys
script = runpy.run_path(sys.argv[1])
def open_probe(folder):
    for name in ("keras", "keras_resnet_cifar", "keras_resnet_cifar.errors"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        sys.exit(name + " can be imported")
    return lambda images: {"probabilities": images}, None
script["OPENERS"]["probe"] = open_probe
script["main"]("probe", "", *sys.argv[2:])
"""


def test_the_process_has_neither_this_package_nor_keras(tmp_path):
    paths = [tmp_path / "sample.npz", tmp_path / "output.npz"]
    np.savez(paths[0], images=REFERENCE)
    command = [sys.executable, "-P", "-c", PROBE, run_exported.__file__, *paths]
    subprocess.run(list(map(str, command)), check=True)
    with np.load(paths[1]) as output:
        np.testing.assert_array_equal(output["probabilities"], REFERENCE)
        np.testing.assert_array_equal(output["batch_of_one"], REFERENCE[:1])
