"""Exports a model for serving: numbered versions, verified before they appear.

    saved_models/resnet20/1/           a SavedModel
    saved_models/resnet20/2/           the next
    saved_models/resnet20/onnx/1/      model.onnx, labels.txt
    saved_models/resnet20/litert/1/    model.tflite, labels.txt

TensorFlow Serving watches the folder and loads the highest number, whatever is
in it, and passes by what is no number: so each format has its own numbers.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from keras_resnet_cifar.errors import ExportFailed, InputError, unknown
from keras_resnet_cifar.export.verify import (
    TOLERANCE,
    Verification,
    last_line,
    on_cpu,
    verify,
)
from keras_resnet_cifar.files import move_folder, staged_folder
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.training.run_directory import find_run

CALIBRATION_IMAGES = 500
DRAWN_IMAGES = 256
EXIT_BAD_INPUT = 2  # of `formats.py`, for what a user can mend

# What each format needs, beside TensorFlow: {module: name of its package}.
FORMATS = {
    "saved_model": {},
    "onnx": {
        "tf2onnx": "tf2onnx",
        "onnx": "onnx",
        "onnxruntime": "onnxruntime",
    },
    "litert": {"ai_edge_litert": "ai-edge-litert"},
}


@dataclass(frozen=True)
class Export:
    """An exported, verified model.

    Attributes:
        path: Its folder.
        size: Bytes of all files in it.
        images: What it was verified on, in words.
        verification: How it compares with the Keras model.
        top1: Its accuracy on these images, 0 to 1; `None` without labels.
        keras_top1: The Keras model's.
    """

    path: Path
    size: int
    images: str
    verification: Verification
    top1: float | None
    keras_top1: float | None


def export_saved_model(model_or_run, path, **kwargs):
    """Exports a SavedModel; `export_model` with `format="saved_model"`.

    Its signature `serving_default` takes raw images (uint8 `[N, H, W, 3]`),
    `serving_bytes` JPEG or PNG files of any size (string `[N]`); both return
    `probabilities` (float32 `[N, C]`), `class_id` (int64 `[N]`) and `label`
    (string `[N]`).

    Example:

        export_saved_model(run, "saved_models/resnet20").path
    """
    return export_model(model_or_run, path, "saved_model", **kwargs)


def export_model(
    model_or_run,
    path,
    format="saved_model",
    *,
    int8=False,
    data=None,
    images=None,
    tolerance=TOLERANCE,
):
    """Exports a model and verifies it before it appears at its path.

    It is written, and run in a process without this package and without
    Keras, in a hidden folder beside its place; all on the CPU, in float32.

    Args:
        model_or_run: A model from images `[N, H, W, 3]`, 0 to 255, to logits,
            on any backend; a `Run`; or the path of a run directory (its
            `last.keras`) or of a `.keras` file.
        path: The folder of the model, which gets the next free version; or,
            if it ends in a number, that version.
        format: A key of `FORMATS`.
        int8: LiteRT in whole numbers, calibrated on 500 images of the train
            split. Its agreement with the Keras model is told, not required.
        data: A `Dataset`, or arguments of `load_dataset` (for a run, those
            that replace its own): it names the classes, and the model is
            verified on its test split. By default the run's; for a model
            outside of runs, drawn images, and numbers for names.
        images: How many images of the test split to take; all by default.
        tolerance: How far a probability may be off from the Keras model's.

    Returns:
        An `Export`.

    Raises:
        InputError: No such model, format or data, a package is missing, the
            path is taken or cannot be written.
        ExportFailed: It cannot be converted, or the converted model does not
            agree with the Keras model. Nothing is left of it.
    """
    _check_request(format, int8, images)
    path = Path(path)
    parent, version = _place(path, format, int8)
    with (
        staged_folder(parent) as staged,
        tempfile.TemporaryDirectory() as temporary,
    ):
        scratch = Path(temporary)
        model, config = _source(model_or_run, scratch)
        sample = _sample(config, data, int8, images)
        job = {
            "model": str(model),
            "format": format,
            "int8": int8,
            "class_names": sample.class_names,
            "model_name": path.parent.name if version else path.name,
            "folder": str(staged),
            "target": str(path),
        }
        reference = _run_job(job, sample, scratch)
        found = _verified(job, sample, reference, scratch, tolerance)
        size = sum(p.stat().st_size for p in staged.rglob("*") if p.is_file())
        place = _move(staged, parent, version)
    return Export(
        path=place,
        size=size,
        images=sample.told,
        verification=found,
        top1=_accuracy(found.probabilities, sample.labels),
        keras_top1=_accuracy(reference, sample.labels),
    )


def _check_request(format, int8, images):
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if int8 and format != "litert":
        raise InputError(
            f"int8 is of the format litert, not {format}: leave it out"
        )
    if images is not None and images < 1:
        raise InputError(f"images={images}: verify on at least 1")
    needed = {"tensorflow": "tensorflow", **FORMATS[format]}
    missing = [name for key, name in needed.items() if not find_spec(key)]
    if missing:
        raise InputError(
            f"exporting to {format} needs {', '.join(missing)}: pip install "
            f"{' '.join(missing)}"
        )


def _place(path, format, int8):
    """Returns the folder of the versions, and the version if it is given."""
    if path.name.isdecimal():
        if path.exists():
            raise InputError(
                f"{path} is there already: name another version, or its "
                "folder for the next free one"
            )
        return path.parent, path.name
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: name a folder")
    if format == "saved_model":
        return path, None
    return path / (f"{format}-int8" if int8 else format), None


def _source(model_or_run, scratch):
    """Returns the `.keras` file to export, and the config of its run if any."""
    if isinstance(model_or_run, str | Path):
        return _file(Path(model_or_run))
    from keras_resnet_cifar.models.saving import check_classifier, save_model

    config = getattr(model_or_run, "config", None)
    model = model_or_run.model if config else model_or_run
    check_classifier(model)
    save_model(model, scratch / "model.keras")
    return scratch / "model.keras", config


def _file(path):
    if path.is_dir():
        run = newest_run(path)
        path = run.last
        if not path.is_file():
            raise InputError(
                f"{run.path} has no {path.name}: name a run with a checkpoint, "
                "or a .keras file"
            )
    if not path.is_file():
        raise InputError(
            f"no run or model at {path}: name a run directory or a .keras file"
        )
    run = find_run(path)
    return path.absolute(), run and run.read_config()


@dataclass(frozen=True)
class _Sample:
    """What a model is verified on, and calibrated with."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple | None
    calibration: np.ndarray | None
    told: str


def _sample(config, data, int8, count):
    """Takes the images of the data given, or of the run, or draws some."""
    request = config["request"] if config else {}
    if isinstance(data, dict):
        same = data.get("name") in (None, request.get("name"))
        data, request = None, (request if same else {}) | data
    if data is None:
        if "name" not in request:
            return _drawn(int8, count)
        from keras_resnet_cifar.data.load import load_dataset

        data = load_dataset(**request)
    calibration = None
    if int8:
        picked = np.random.default_rng(0).permutation(len(data.train))
        calibration = data.train.images[picked[:CALIBRATION_IMAGES]]
    return _Sample(
        data.test.images[:count],
        data.test.labels[:count],
        data.class_names,
        calibration,
        f"test images of {data.name}",
    )


def _drawn(int8, count):
    if int8:
        raise InputError(
            "int8 is calibrated on images of the train split: name the data "
            "set that the model was trained on"
        )
    from keras_resnet_cifar.data import shapes

    images, _ = shapes.draw(count or DRAWN_IMAGES, seed=0)
    return _Sample(images, None, None, None, "drawn images")


def _run_job(job, sample, scratch):
    """Has `formats.py` write the model; returns the reference."""
    try:
        np.save(scratch / "images.npy", sample.images)
        if sample.calibration is not None:
            np.save(scratch / "calibration.npy", sample.calibration)
        (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write {scratch}: {error.strerror}; name a folder with "
            "free space in TMPDIR"
        ) from error
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "keras_resnet_cifar.export.formats",
            str(scratch),
        ],
        capture_output=True,
        text=True,
        env=on_cpu(KERAS_BACKEND="tensorflow"),
    )
    if process.returncode == EXIT_BAD_INPUT:
        raise InputError(process.stderr.strip().splitlines()[-1])
    if process.returncode:
        raise ExportFailed(
            f"cannot export to {job['format']}: {last_line(process)}"
        )
    return np.load(scratch / "reference.npy")


def _verified(job, sample, reference, scratch, tolerance):
    numbers = [str(index) for index in range(reference.shape[1])]
    try:
        return verify(
            job["folder"],
            job["format"],
            scratch / "images.npy",
            reference,
            sample.class_names or numbers,
            None if job["int8"] else tolerance,
        )
    except ExportFailed as error:
        raise ExportFailed(
            f"{job['target']}: the {job['format']} model failed its check and "
            f"was removed: {error}"
        ) from error


def _move(staged, parent, version):
    """Renames the folder to its version; returns where it is then."""
    while True:
        place = parent / (version or str(_next_version(parent)))
        try:
            move_folder(staged, place)
            return place
        except InputError:
            # Another process may have taken the number in the meantime.
            if version or not place.exists():
                raise


def _next_version(parent):
    numbers = [int(p.name) for p in parent.iterdir() if p.name.isdecimal()]
    return max(numbers, default=0) + 1


def _accuracy(probabilities, labels):
    if labels is None:
        return None
    return float(np.mean(probabilities.argmax(1) == labels))
