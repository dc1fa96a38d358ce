"""Verifies an exported model: a fresh process, real images, equal classes."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_resnet_cifar.errors import ExportFailed
from keras_resnet_cifar.export import run_exported

TOLERANCE = 1e-5  # of a probability; in float32, 56 layers differ by 5e-6


@dataclass(frozen=True)
class Verification:
    """How an exported model compares with the Keras model.

    Attributes:
        probabilities: float32 `[N, C]`, of the exported model.
        images: N.
        same_class: How many images have the same most probable class.
        difference: The largest difference of a probability.
        images_per_second: In batches of 128, on the CPU.
    """

    probabilities: np.ndarray
    images: int
    same_class: int
    difference: float
    images_per_second: float


def verify(
    folder: Path,
    format: str,
    sample: Path,
    reference: np.ndarray,
    class_names: Sequence[str],
    tolerance: float | None = TOLERANCE,
) -> Verification:
    """Compares an exported model, run without Keras, with the Keras model.

    Args:
        folder: The exported model.
        format: `"saved_model"`, `"onnx"` or `"litert"`.
        sample: An `.npz` file with `images`, uint8 `[N, H, W, 3]`.
        reference: float32 `[N, C]`, probabilities by the Keras model.
        class_names: C names, of which a SavedModel returns one per image.
        tolerance: How far a probability may be off, while every image must
            have the same class; `None` requires neither.

    Raises:
        ExportFailed: It does not run, or does not agree.
    """
    arrays = _run(folder, format, sample)
    probabilities = arrays["probabilities"]
    if probabilities.shape != reference.shape:
        raise ExportFailed(
            f"its probabilities are {probabilities.shape}, those of the Keras "
            f"model {reference.shape}"
        )
    class_id = probabilities.argmax(1)
    result = Verification(
        probabilities,
        images=len(reference),
        same_class=int(np.sum(class_id == reference.argmax(1))),
        difference=_difference(probabilities, reference),
        images_per_second=float(arrays["images_per_second"]),
    )
    if tolerance is not None:
        if different := result.images - result.same_class:
            raise ExportFailed(
                f"{different} of {result.images} images get another class "
                "than from the Keras model"
            )
        for name in ("probabilities", "batch_of_one", "from_bytes"):
            difference = _difference(arrays.get(name, reference[:0]), reference)
            if not difference <= tolerance:
                raise ExportFailed(
                    f"its probabilities ({name}) differ by {difference:.1e} "
                    f"from the Keras model's; the tolerance is {tolerance:.0e}"
                )
    if "label" in arrays:
        labels = np.asarray(class_names)[class_id]
        if any(arrays["class_id"] != class_id) or any(
            arrays["label"] != labels
        ):
            raise ExportFailed("class_id or label is not the most probable one")
    return result


def _run(folder, format, sample):
    """Returns the arrays that `run_exported.py` writes."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary, "output.npz")
        process = run_python(
            "-P", run_exported.__file__, format, folder, sample, output
        )
        if process.returncode:
            raise ExportFailed(f"it does not run: {last_line(process)}")
        with np.load(output) as arrays:
            return dict(arrays)


def run_python(*arguments: object) -> subprocess.CompletedProcess:
    """Runs Python on the CPU, with TensorFlow as the backend of Keras.

    Accelerators round products to fewer digits, each in its own way.
    """
    settings = {
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | settings
    )


def last_line(process: subprocess.CompletedProcess) -> str:
    """Returns the last line of stderr, which is what an exception says."""
    lines = process.stderr.strip().splitlines() or ["no message"]
    return f"{lines[-1].strip()[:300]} (exit code {process.returncode})"


def _difference(rows, reference):
    """Returns the largest difference from the first rows of the reference."""
    return float(np.abs(rows - reference[: len(rows)]).max(initial=0.0))
