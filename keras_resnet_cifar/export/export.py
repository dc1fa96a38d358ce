"""Exports models to serve: numbered versions, verified before they appear.

    saved_models/resnet20/1/           a SavedModel
    saved_models/resnet20/2/           the next version
    saved_models/resnet20/onnx/1/      model.onnx, labels.txt
    saved_models/resnet20/litert/1/    model.tflite, labels.txt

TensorFlow Serving loads the highest number in the folder that it watches and
ignores other names, so each format has versions of its own.
"""

import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet_cifar.errors import (
    ExportFailed,
    InputError,
    one_line,
    unknown,
)
from keras_resnet_cifar.export.verify import (
    TOLERANCE,
    Verification,
    last_line,
    run_python,
    verify,
)
from keras_resnet_cifar.files import atomic_write, move_folder, staged_folder
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.training.run_directory import find_run

if TYPE_CHECKING:
    import keras

    from keras_resnet_cifar.data.load import Dataset
    from keras_resnet_cifar.training.train import Run

CALIBRATION_IMAGES = 500
DRAWN_IMAGES = 256

# The packages that each format needs besides TensorFlow.
FORMATS: dict[str, tuple[str, ...]] = {
    "saved_model": (),
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "litert": ("ai-edge-litert",),
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
        keras_top1: The Keras model's accuracy on them.
    """

    path: Path
    size: int
    images: str
    verification: Verification
    top1: float | None
    keras_top1: float | None


def export_saved_model(
    model_or_run: "keras.Model | Run | str | Path",
    path: str | Path,
    **kwargs: Any,
) -> Export:
    """Exports a SavedModel: `export_model` with `format="saved_model"`.

    Its signature `serving_default` takes raw images (uint8 `[N, H, W, 3]`),
    `serving_bytes` JPEG or PNG files of any size (string `[N]`); both return
    `probabilities` (float32 `[N, C]`), `class_id` (int64 `[N]`) and `label`
    (string `[N]`).

    Example:

        export_saved_model(run, "saved_models/resnet20").path
    """
    return export_model(model_or_run, path, "saved_model", **kwargs)


def export_model(
    model_or_run: "keras.Model | Run | str | Path",
    path: str | Path,
    format: str = "saved_model",
    *,
    int8: bool = False,
    data: "Dataset | dict[str, Any] | None" = None,
    images: int | None = None,
    tolerance: float = TOLERANCE,
) -> Export:
    """Exports a model, and verifies it before it appears at its path.

    It is written to a hidden folder beside its place, and run there by a
    process without Keras and without this package, in float32 on the CPU.

    Args:
        model_or_run: A model from images `[N, H, W, 3]`, 0 to 255, to logits,
            on any backend; a `Run`; or the path of a run directory (its
            `last.keras`) or of a `.keras` file.
        path: The folder of the model, which gets the next free version; or,
            if it ends in a number, that version.
        format: A key of `FORMATS`.
        int8: Quantise for LiteRT, calibrated on 500 images of the train
            split. Agreement with the Keras model is then reported, not
            required.
        data: A `Dataset`, or arguments of `load_dataset` (for a run, those
            that replace its own): it names the classes, and its test split
            verifies the model. By default the run's. For a model without a
            run, or a run on arrays or a stream: drawn images, and the run's
            names or numbers.
        images: How many images of the test split to use; all by default.
        tolerance: How far a probability may be off from the Keras model's.

    Raises:
        InputError: Unknown model, format or data, a package is missing, or
            the path is taken or cannot be written.
        ExportFailed: The model cannot be converted, or the converted model
            disagrees with the Keras model. No files are left.
    """
    _check_request(format, int8, images)
    path = Path(path)
    parent, version = _place(path, format, int8)
    with (
        staged_folder(parent) as staged,
        tempfile.TemporaryDirectory() as scratch,
    ):
        model, config = _source(model_or_run)
        description, sample = _sample(model, config, data, int8, images)
        file = Path(scratch, "sample.npz")
        with atomic_write(file) as temporary:
            np.savez(temporary, **sample)
        reference = _convert(format, model, file, staged, path)
        names = sample.get("class_names", np.arange(reference.shape[1]))
        limit = None if int8 else tolerance
        try:
            result = verify(staged, format, file, reference, names, limit)
        except ExportFailed as error:
            raise ExportFailed(
                f"{path}: the {format} model failed its check and was "
                f"removed: {error}"
            ) from error
        size = sum(p.stat().st_size for p in staged.rglob("*") if p.is_file())
        place = _move(staged, parent, version)

    def accuracy(probabilities):
        if "labels" not in sample:
            return None
        return float(np.mean(probabilities.argmax(1) == sample["labels"]))

    return Export(
        path=place,
        size=size,
        images=description,
        verification=result,
        top1=accuracy(result.probabilities),
        keras_top1=accuracy(reference),
    )


def _check_request(format, int8, images):
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if int8 and format != "litert":
        raise InputError(f"int8=True needs format='litert', not {format!r}")
    if images is not None and images < 1:
        raise InputError(f"images={images}: verify on at least 1")
    needed = ("tensorflow", *FORMATS[format])
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
    """Returns a model or its `.keras` file, and the config of its run."""
    if not isinstance(model_or_run, str | Path):
        from keras_resnet_cifar.models.saving import check_classifier
        from keras_resnet_cifar.training.train import Run

        model, config = model_or_run, None
        if isinstance(model_or_run, Run):
            model, config = model_or_run.model, model_or_run.config
        check_classifier(model)
        return model, config
    path = Path(model_or_run)
    if path.is_dir():
        path = newest_run(path).last
    if not path.is_file():
        raise InputError(
            f"no checkpoint at {path}: name a run directory with one, or a "
            ".keras file"
        )
    run = find_run(path)
    return path.absolute(), run and run.read_config()


def _sample(model, config, data, int8, count):
    """Describes and returns the arrays that the model is verified on."""
    request = config["request"] if config else {}
    if isinstance(data, dict):
        same = data.get("name") in (None, request.get("name"))
        data, request = None, (request if same else {}) | data
    if data is None and "name" in request:
        from keras_resnet_cifar.data.load import load_dataset

        data = load_dataset(**request)
    if data is None:
        if int8:
            raise InputError(
                "int8=True is calibrated on images of the train split: give "
                "data= the dataset that the model was trained on"
            )
        sample = {"images": _drawn_images(model, count or DRAWN_IMAGES)}
        if config and "class_names" in config["dataset"]:
            sample["class_names"] = np.array(config["dataset"]["class_names"])
        return "drawn images", sample
    if data.test is None:
        raise InputError(
            f"data={data.name!r} has no test split to verify the model on: "
            "give a Dataset with one, or omit data="
        )
    sample = {
        "images": data.test.images[:count],
        "labels": data.test.labels[:count],
        "class_names": np.array(data.class_names),
    }
    if int8:
        order = np.random.default_rng(0).permutation(len(data.train))
        sample["calibration"] = data.train.images[order[:CALIBRATION_IMAGES]]
    return f"test images of {data.name}", sample


def _drawn_images(model, count):
    """Returns images of the size that a model, or a `.keras` file, takes."""
    from keras_resnet_cifar.data import shapes
    from keras_resnet_cifar.models.saving import load_model

    if isinstance(model, Path):
        model = load_model(model)
    images, _ = shapes.draw(count, seed=0)
    height, width = (size or 32 for size in model.input_shape[1:3])
    rows, columns = (np.arange(n) * 32 // n for n in (height, width))
    return images[:, rows][:, :, columns]


def _convert(format, model, sample, folder, target):
    """Writes the model; returns the Keras model's probabilities of the sample.

    Keras on TensorFlow writes a SavedModel in this process. Other backends
    and accelerators need a process of their own, and so do the converters to
    ONNX and LiteRT, which print to stderr and may crash.
    """
    from keras_resnet_cifar.models.saving import save_model

    try:
        if format == "saved_model" and _on_tensorflow_on_cpu():
            from keras_resnet_cifar.export.formats import write

            return write(format, model, sample, folder, target)
        if not isinstance(model, Path):
            save_model(model, sample.with_name("model.keras"))
            model = sample.with_name("model.keras")
        output = sample.with_name("reference.npy")
        paths = (model, sample, folder, target, output)
        process = run_python(
            "-m", "keras_resnet_cifar.export.formats", format, *paths
        )
    except InputError:
        raise
    except Exception as error:  # each layer and converter has its own
        raise ExportFailed(
            f"cannot export to {format}: {one_line(error)}"
        ) from error
    if process.returncode == 2:  # bad input, as for argparse
        raise InputError(process.stderr.strip().splitlines()[-1])
    if process.returncode:
        raise ExportFailed(f"cannot export to {format}: {last_line(process)}")
    return np.load(output)


def _on_tensorflow_on_cpu():
    import keras

    from keras_resnet_cifar.device import has_accelerator

    return keras.backend.backend() == "tensorflow" and not has_accelerator()


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
