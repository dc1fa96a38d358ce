"""Verifies an exported model: a fresh process, real images, equal classes."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_resnet_cifar.errors import ExportFailed
from keras_resnet_cifar.export import artefact

TOLERANCE = 1e-5  # of a probability; float32 leaves 56 layers 5e-6


@dataclass(frozen=True)
class Verification:
    """How an exported model compares with the Keras model.

    Attributes:
        probabilities: float32 `[N, C]`, of the exported model.
        images: N.
        alike: How many images have the same most probable class.
        difference: The largest difference of a probability.
        images_per_second: In batches of 128, on the CPU.
    """

    probabilities: np.ndarray
    images: int
    alike: int
    difference: float
    images_per_second: float


def verify(folder, format, images, reference, class_names, tolerance=TOLERANCE):
    """Runs an exported model in a process without this package and Keras.

    Args:
        folder: What `formats.py` wrote.
        format: `"saved_model"`, `"onnx"` or `"litert"`.
        images: Path of a `.npy` file, uint8 `[N, H, W, 3]`.
        reference: float32 `[N, C]`, probabilities by the Keras model.
        class_names: C names, of which a SavedModel returns one an image.
        tolerance: How far a probability may be off, while every image must
            have the same class; `None` only counts, and requires neither.

    Returns:
        A `Verification`.

    Raises:
        ExportFailed: It does not run, or disagrees.
    """
    found = _run(folder, format, images)
    probabilities = found["probabilities"]
    if probabilities.shape != reference.shape:
        raise ExportFailed(
            f"its probabilities are {probabilities.shape}, those of the Keras "
            f"model {reference.shape}"
        )
    verification = Verification(
        probabilities,
        len(reference),
        int(np.sum(probabilities.argmax(1) == reference.argmax(1))),
        _difference(probabilities, reference),
        float(found["images_per_second"]),
    )
    if tolerance is not None:
        _check_same(verification, found, reference, tolerance)
    if "label" in found:
        _check_labels(found, class_names)
    return verification


def _run(folder, format, images):
    """Returns the arrays that `artefact.py` writes."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "output.npz"
        script = [artefact.__file__, format, folder, images, output]
        process = subprocess.run(
            [sys.executable, "-P", *map(str, script)],
            capture_output=True,
            text=True,
            env=on_cpu(),
        )
        if process.returncode:
            raise ExportFailed(f"it does not run: {last_line(process)}")
        with np.load(output) as arrays:
            return dict(arrays)


def on_cpu(**variables):
    """The environment of a child that computes on the CPU, in float32.

    Accelerators round products to fewer digits, each in its own way.
    """
    quiet = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **quiet, **variables}


def last_line(process):
    """The last line on a child's stderr: what an exception says."""
    lines = process.stderr.strip().splitlines() or ["no word"]
    return f"{lines[-1].strip()[:300]} (exit code {process.returncode})"


def _check_same(verification, found, reference, tolerance):
    if verification.alike != len(reference):
        raise ExportFailed(
            f"{len(reference) - verification.alike} of {len(reference)} images "
            "get another class than from the Keras model"
        )
    for name in ("probabilities", "alone", "from_bytes"):
        rows = found.get(name, reference[:0])
        difference = _difference(rows, reference[: len(rows)])
        if not difference <= tolerance:
            raise ExportFailed(
                f"its probabilities ({name}) differ by {difference:.1e} from "
                f"those of the Keras model, the tolerance is {tolerance:.0e}"
            )


def _check_labels(found, class_names):
    class_id = found["class_id"]
    names = np.asarray(class_names)[class_id]
    if (class_id != found["probabilities"].argmax(1)).any() or (
        found["label"] != names
    ).any():
        raise ExportFailed("its class_id or label is not the most probable's")


def _difference(one, other):
    return float(np.abs(one - other).max(initial=0.0))
