"""What makes an exported model pass or fail its check."""

import json

import numpy as np
import pytest

from keras_resnet_cifar.errors import ExportFailed
from keras_resnet_cifar.export import export, verify
from keras_resnet_cifar.export.verify import TOLERANCE, compare

SAMPLE = {"class_names": np.array(["cat", "dog", "frog"])}
REFERENCE = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], "float32"
)


def outputs(**changes):
    """What a SavedModel that is right says of three images."""
    return {
        "probabilities": REFERENCE,
        "class_id": np.array([0, 1, 2]),
        "label": np.array([b"cat", b"dog", b"frog"], object),
        "batch_of_one": REFERENCE[:1],
        "from_bytes": REFERENCE[:2],
        "images_per_second": 100.0,
    } | changes


def off(amount, row=2):
    probabilities = REFERENCE.copy()
    probabilities[row, 0] += amount
    return probabilities


def test_a_model_that_agrees():
    output = outputs(probabilities=off(0.9e-5))
    result = compare(output, REFERENCE, SAMPLE, TOLERANCE)
    assert (result["count"], result["same_class"]) == (3, 3)
    assert result["difference"] == pytest.approx(0.9e-5, rel=0.01)
    assert result["images_per_second"] == 100
    assert "top1" not in result


def test_accuracy():
    sample = SAMPLE | {"labels": np.array([0, 0, 2])}
    output = outputs(probabilities=off(0.2), class_id=[0, 1, 0])
    output["label"] = [b"cat", b"dog", b"cat"]
    result = compare(output, REFERENCE, sample)
    assert result["top1"] == pytest.approx(1 / 3)
    assert result["keras_top1"] == pytest.approx(2 / 3)


def test_image_files_may_be_off_by_what_decoders_differ():
    sample = SAMPLE | {"files": np.array([0, 2])}
    output = outputs(from_files=off(0.11)[[0, 2]])
    result = compare(output, REFERENCE, sample, TOLERANCE)
    assert (result["files"], result["files_same_class"]) == (2, 1)
    output = outputs(from_files=off(0.2)[[0, 2]])
    with pytest.raises(SystemExit, match="1 of 2 image files"):
        compare(output, REFERENCE, sample, TOLERANCE)


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
        ({"label": np.array([b"cat", b"dog", b"dog"])}, "class_id or label"),
    ],
    ids=str,
)
def test_a_model_that_does_not(changes, message):
    with pytest.raises(SystemExit, match=message):
        compare(outputs(**changes), REFERENCE, SAMPLE, TOLERANCE)


def test_tolerance():
    output = outputs(probabilities=off(5e-5))
    compare(output, REFERENCE, SAMPLE, tolerance=1e-4)
    quantised = outputs(probabilities=off(0.2))
    del quantised["class_id"], quantised["label"]
    assert compare(quantised, REFERENCE, SAMPLE)["same_class"] == 2


PROBE = """
import importlib, sys
class InferenceSession:
    def __init__(self, path, providers):
        for name in ("keras", "keras_resnet_cifar.errors"):
            try:
                importlib.import_module(name)
            except ImportError:
                continue
            sys.exit(name + " can be imported")
    def run(self, names, feed):
        return [feed["image"]]
"""


def test_the_process_has_neither_this_package_nor_keras(tmp_path, monkeypatch):
    np.savez(tmp_path / "sample.npz", images=REFERENCE, **SAMPLE)
    np.save(tmp_path / "reference.npy", REFERENCE)
    (tmp_path / "onnxruntime.py").write_text(PROBE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    paths = [verify.__file__, "onnx", tmp_path, tmp_path]
    export._run_python("failed", "-P", *paths, TOLERANCE)
    measures = json.loads((tmp_path / "measures.json").read_text())
    assert (measures["count"], measures["difference"]) == (3, 0)

    np.save(tmp_path / "reference.npy", off(1e-3))
    with pytest.raises(ExportFailed, match=r"^failed: .*differ by 1.0e-03"):
        export._run_python("failed", "-P", *paths, TOLERANCE)


def test_a_model_that_cannot_be_run_is_one_line(tmp_path):
    np.savez(tmp_path / "sample.npz", images=REFERENCE, **SAMPLE)
    np.save(tmp_path / "reference.npy", REFERENCE)
    paths = [verify.__file__, "onnx", tmp_path, tmp_path]
    with pytest.raises(ExportFailed, match="failed: ") as caught:
        export._run_python("failed", "-P", *paths)
    assert "\n" not in str(caught.value)
