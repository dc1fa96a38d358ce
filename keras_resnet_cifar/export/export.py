"""Exports models for serving: numbered versions, verified before they appear.

    saved_models/resnet20/1/           a SavedModel
    saved_models/resnet20/2/           the next version
    saved_models/resnet20/onnx/1/      model.onnx, labels.txt
    saved_models/resnet20/litert/1/    model.tflite, labels.txt

TensorFlow Serving loads the highest number in the folder that it watches and
ignores other names, so each format has its own versions.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.data.images import opened_path
from keras_resnet_cifar.data.load import (
    Dataset,
    at_input_size,
    load_dataset,
)
from keras_resnet_cifar.errors import (
    ExportFailed,
    InputError,
    check_name,
    checked_number,
    one_line,
    spelled,
)
from keras_resnet_cifar.evaluation.calibration import fit_temperature
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.metrics import score
from keras_resnet_cifar.export import verify
from keras_resnet_cifar.export.verify import FORMATS, TOLERANCE
from keras_resnet_cifar.files import (
    move_folder,
    staged_folder,
    write_text,
)
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.models.saving import (
    check_classifier,
    check_names,
    load_model,
    names_of,
    save_model,
)
from keras_resnet_cifar.training.run_directory import (
    RunDirectory,
    check_data,
    find_run,
)
from keras_resnet_cifar.training.train import Run

CALIBRATION_IMAGES = 500
DRAWN_IMAGES = 256
SERVED_FORMATS = ("PNG", "JPEG", "BMP", "GIF")  # tf.io.decode_image
_ORIENTATION = 0x0112  # EXIF


@dataclass(frozen=True)
class Export:
    """An exported, verified model.

    Attributes:
        path: Folder of the model.
        size: Bytes of all files in the folder.
        images: Description of the images that it was verified on.
        count: Number of these images.
        same_class: Number of images that get the same class as from the Keras
            model.
        difference: Largest difference of a probability from the Keras model's.
        images_per_second: Speed in batches of 128, on the CPU.
        top1: Accuracy on the images, 0 to 1; `None` without labels.
        keras_top1: Accuracy of the Keras model on the images.
        files: Number of image files sent to `serving_bytes`; 0 if the images
            do not come from files.
        files_same_class: Number of files that get the same class as from the
            Keras model.
        latency_ms: Median milliseconds of a call, for each of `batch_sizes`,
            on the CPU.
        keras_latency_ms: The same for `predict_on_batch` of the Keras model, on
            the device of this process.
    """

    path: Path
    size: int
    images: str
    count: int
    same_class: int
    difference: float
    images_per_second: float
    top1: float | None = None
    keras_top1: float | None = None
    files: int = 0
    files_same_class: int = 0
    latency_ms: Sequence[float] = ()
    keras_latency_ms: Sequence[float] = ()


def export_saved_model(
    model_or_run: keras.Model | Run | str | Path,
    path: str | Path,
    **kwargs: Any,
) -> Export:
    """Exports a SavedModel: `export_model` with `format="saved_model"`.

    Its signature `serving_default` takes raw images (uint8 `[N, H, W, 3]`), and
    `serving_bytes` takes JPEG or PNG files of any size (string `[N]`). Both
    return `probabilities` (float32 `[N, C]`), `class_id` (int64 `[N]`) and
    `label` (string `[N]`).

    Args:
        model_or_run, path, **kwargs: See `export_model`.

    Returns:
        An `Export`.

    Examples:

        export_saved_model(run, "saved_models/resnet20").path
    """
    return export_model(model_or_run, path, "saved_model", **kwargs)


def export_model(
    model_or_run: keras.Model | Run | str | Path,
    path: str | Path,
    format: str = "saved_model",
    *,
    int8: bool = False,
    data: Dataset | dict[str, Any] | None = None,
    images: int | None = None,
    tolerance: float = TOLERANCE,
    calibrated: bool = False,
    batch_sizes: Sequence[int] = (),
    allow_changed_data: bool = False,
) -> Export:
    """Exports a model, and verifies it before it appears at its path.

    One process writes the model to a hidden folder; another, without Keras and
    without this package, runs it there, in float32 on the CPU.

    Args:
        model_or_run: A model of Keras's own layers from images `[N, H, W, 3]`,
            0 to 255, to logits, on any backend; a `Run`; or the path of a run
            directory (its `last.keras`) or of a `.keras` file.
        path: Folder of the model, in which the next free version is created;
            or, if it ends in a number, folder of that version.
        format: `"saved_model"`, `"onnx"` or `"litert"`.
        int8: Quantize for LiteRT, calibrated on 500 images of the train split.
            Differences from the Keras model are reported, but not limited.
        data: A `Dataset`, or arguments of `load_dataset` that override the
            run's; by default the run's data. It provides the class names and
            the test split to verify the model on. Without data, drawn images
            are used, and the names come from the run's config or the model's
            file, else they are numbers.
        images: Number of test images to use; by default all.
        tolerance: Largest allowed difference of a probability from the Keras
            model's.
        calibrated: Divide the logits by a temperature fitted on the validation
            split (see `fit_temperature`), in the exported graph. A model card,
            README.md in the same folder, states it.
        batch_sizes: Batch sizes to measure the latency of.
        allow_changed_data: Verify on the run's data even if they have changed
            since training; the description of the images says so.

    Returns:
        An `Export`.

    Raises:
        InputError: The model, format or data are unknown, a package is
            missing, or the path is taken or cannot be written.
        ExportFailed: The model cannot be converted, or the converted model
            disagrees with the Keras model. No file is left.
    """
    format = spelled(format, FORMATS)
    _check_request(format, int8, images)
    tolerance = checked_number("tolerance", tolerance)
    for size in batch_sizes:
        checked_number("batch_sizes", size, int, 1)
    path = Path(path)
    parent, version = _place(path, format, int8)
    with (
        staged_folder(parent) as staged,
        tempfile.TemporaryDirectory() as temporary,
    ):
        scratch = Path(temporary)
        model, config, card = _source(model_or_run)
        check_classifier(model, image_shape=(None, None, 3))
        config = config or {"request": {}, "dataset": {}}
        dataset, same = _loaded(config["request"], data, model)
        description, sample = _sample(model, config, dataset, int8, images)
        if same:
            description += check_data(
                config, dataset.fingerprints, allow_changed_data
            )
        if dataset and format == "saved_model":
            _copy_files(dataset.test_files[:images], sample, scratch / "files")
        if calibrated:
            model, text = _calibrated(model, dataset)
            write_text(staged / "README.md", f"{card}\n{text}")
        if batch_sizes:
            sample["batch_sizes"] = np.array(batch_sizes)
        np.savez(scratch / "sample.npz", **sample)
        _save(model, scratch / "model.keras", format)
        _run_python(
            f"cannot export to {format}",
            "-m",
            "keras_resnet_cifar.export.formats",
            *(format, staged, path, scratch),
        )
        _run_python(
            f"{path}: the {format} model failed its check and was removed",
            "-P",
            verify.__file__,
            *(format, staged, scratch),
            *([] if int8 else [tolerance]),
        )
        measures = json.loads((scratch / "measures.json").read_text())
        size = sum(p.stat().st_size for p in staged.rglob("*") if p.is_file())
        place = _move(staged, parent, version)
    if batch_sizes:  # with another model, so that the caller's is not compiled
        call = keras.Model(model.inputs, model.outputs).predict_on_batch
        keras_ms = verify.latencies(call, sample["images"], batch_sizes)
        measures["keras_latency_ms"] = keras_ms
    return Export(place, size, description, **measures)


def _check_request(format, int8, images):
    check_name("format", format, FORMATS)
    if int8 and format != "litert":
        raise InputError(f"int8=True needs format='litert', not {format!r}")
    if images is not None and images < 1:
        raise InputError(f"images={images}: give 1 or more")
    needed = ("tensorflow", *FORMATS[format][1])
    missing = [x for x in needed if not find_spec(x.replace("-", "_"))]
    if missing:
        raise InputError(
            f"exporting to {format} needs more packages: pip install "
            f"{' '.join(missing)}"
        )


def _place(path, format, int8):
    """Returns the folder of the versions, and the version if it is given."""
    if path.name.isdecimal():
        if path.exists():
            raise InputError(
                f"{path} already exists: name another version, or its folder "
                "for the next free one"
            )
        return path.parent, path.name
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: name a folder")
    if format == "saved_model":
        return path, None
    return path / (f"{format}-int8" if int8 else format), None


def _source(model_or_run):
    """Returns a model, the config of its run if it has one, and its card."""
    if isinstance(model_or_run, str | Path):
        path = Path(model_or_run)
        file = newest_run(path).last if path.is_dir() else path
        model, run = load_model(file), find_run(file)
        config = run and run.read_config()
    elif isinstance(model_or_run, Run):
        model, config = model_or_run.model, model_or_run.config
        folder = model_or_run.directory
        run = folder and RunDirectory(folder)
    else:
        model, config, run = model_or_run, None, None
    card = f"# {getattr(model, 'name', model)}\n"
    if run and run.card.is_file():
        card = run.card.read_text("utf-8")
    return model, config, card


def _loaded(request, data, model):
    """Returns the `Dataset` to use, if any, and whether it is the run's."""
    same = data is None
    if isinstance(data, dict):
        same = data.get("name") in (None, request.get("name"))
        data, request = None, (request if same else {}) | data
    if data is None and "name" in request:
        data = load_dataset(**at_input_size(request, model.input_shape))
        return data, same
    return data, False


def _copy_files(paths, sample, folder):
    """Copies some of the files that `serving_bytes` decodes to a folder."""
    chosen, turned = [], 0
    for index, path in enumerate(paths):
        with opened_path(path) as image:
            if image.format in SERVED_FORMATS:
                upright = image.getexif().get(_ORIENTATION, 1) == 1
                chosen += [index] * upright
                turned += not upright
    if turned:
        warnings.warn(
            "serving_bytes ignores the orientation in EXIF data, which rotates "
            f"{turned} of the test images: rotate such files before sending "
            "them",
            stacklevel=3,
        )
    places = np.linspace(0, len(chosen) - 1, min(len(chosen), verify.ENCODED))
    sample["files"] = np.array(chosen, int)[places.round().astype(int)]
    folder.mkdir()
    for index in sample["files"]:
        shutil.copyfile(paths[index], folder / str(index))


def _calibrated(model, data):
    """Returns a model with its temperature in it, and a card's section."""
    held_out = data and data.validation
    if not held_out:
        raise InputError(
            "calibrated=True needs a validation split to fit a temperature on: "
            "export a run trained with validation=5000, or give a dataset that "
            "has one"
        )
    temperature = fit_temperature(
        logits_of(model, held_out.images), held_out.labels
    )
    scaled = keras.layers.Rescaling(1 / temperature, name="temperature")
    logits = logits_of(model, data.test.images)
    before, after = (
        score(x, data.test.labels, data.class_names)
        for x in (logits, logits / temperature)
    )
    model = keras.Model(model.inputs, scaled(model.outputs[0]), name=model.name)
    return model, (
        "## Temperature\n\nThe exported model divides the logits by "
        f"{temperature:.4f} before the softmax; no prediction changes. The "
        f"temperature was fitted on the {len(held_out):,} images of the "
        f"validation split of {data.name}. On the {after.n:,} images of the "
        f"test split, the expected calibration error is {before.ece:.4f} "
        f"without it and {after.ece:.4f} with it; the loss is "
        f"{before.loss:.4f} and {after.loss:.4f}.\n"
    )


def _sample(model, config, data, int8, count):
    """Describes and returns the arrays that the model is verified on."""
    sample = {}
    if data is None:
        if int8:
            raise InputError(
                "int8=True needs training images to calibrate on: give the "
                "dataset that the model was trained on as data="
            )
        description = "drawn images"
        sample["images"] = _drawn_images(model, count or DRAWN_IMAGES)
        names = config["dataset"].get("class_names", names_of(model))
    elif data.test is None:
        raise InputError(
            f"data={data.name!r} has no test split to verify the model on: "
            "give a Dataset with one, or omit data="
        )
    else:
        description = f"test images of {data.name}"
        sample["images"] = data.test.images[:count]
        sample["labels"] = data.test.labels[:count]
        names = data.class_names
        if int8:
            order = np.random.default_rng(0).permutation(len(data.train))
            chosen = order[:CALIBRATION_IMAGES]
            sample["calibration"] = data.train.images[chosen]
    check_classifier(model, len(names), sample["images"].shape[1:])
    check_names(model, names)
    return description, sample | {"class_names": np.array(names, str)}


def _drawn_images(model, count):
    """Returns images of the size that a model takes."""
    images, _ = shapes.draw(count, seed=0)
    height, width = (size or 32 for size in model.input_shape[1:3])
    rows, columns = (np.arange(n) * 32 // n for n in (height, width))
    return images[:, rows][:, :, columns]


def _save(model, path, format):
    try:
        save_model(model, path)
    except InputError:
        raise
    except Exception as error:  # each layer has its own
        raise ExportFailed(
            f"cannot export to {format}: {one_line(error)}"
        ) from error


def _run_python(failure, *arguments):
    """Runs Python; raises if it fails, with the last line of its stderr."""
    settings = {
        # Accelerators round products to fewer digits, in different ways.
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | settings,
    )
    code, lines = process.returncode, process.stderr.strip().splitlines()
    line = lines[-1].strip() if lines else "no message"
    if code == 2:  # bad input, as for argparse
        raise InputError(line)
    if code:
        crash = f" (exit code {code})" * (code != 1)
        raise ExportFailed(f"{failure}: {line[:300]}{crash}")


def _move(staged, parent, version):
    """Renames the folder to its version; returns its new path."""
    while True:
        numbers = [int(p.name) for p in parent.iterdir() if p.name.isdecimal()]
        place = parent / (version or str(max(numbers, default=0) + 1))
        try:
            move_folder(staged, place)
            return place
        except InputError:
            # Another process may have taken the number in the meantime.
            if version or not place.exists():
                raise
