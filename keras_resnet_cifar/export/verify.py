"""Compares an exported model, run without Keras, with the Keras model.

    python -P verify.py FORMAT FOLDER SCRATCH [TOLERANCE]

runs the model in FOLDER on the images in SCRATCH (see `formats`), as if neither
this package nor Keras were installed, and writes the result of `compare` to
SCRATCH/measures.json. If the model does not run or does not agree, the last
line on stderr says why.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-5  # of a probability; in float32, 56 layers differ by 5e-6
BATCH = 128
ENCODED = 32
# Mean difference of a probability for image files: TensorFlow and Pillow
# decode and resize to within some grey levels.
FILES_TOLERANCE = 0.02
CALLS = 20  # timed calls for each batch size


def open_saved_model(folder: str) -> tuple:
    """Returns a function of raw images, and one of image files."""
    import tensorflow as tf

    model = tf.saved_model.load(folder)

    def run(images):
        outputs = model.signatures["serving_default"](image=tf.constant(images))
        return {key: value.numpy() for key, value in outputs.items()}

    def run_files(files):
        if isinstance(files, np.ndarray):  # images
            files = [tf.io.encode_png(image).numpy() for image in files]
        files = tf.constant(files)
        outputs = model.signatures["serving_bytes"](image_bytes=files)
        return outputs["probabilities"].numpy()

    return run, run_files


def open_onnx(folder: str) -> tuple:
    """Returns a function of raw images, and `None` for files."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        os.path.join(folder, "model.onnx"), providers=["CPUExecutionProvider"]
    )

    def run(images):
        (probabilities,) = session.run(["probabilities"], {"image": images})
        return {"probabilities": probabilities}

    return run, None


def open_litert(folder: str) -> tuple:
    """Returns a function of raw images, and `None` for files."""
    from ai_edge_litert.interpreter import Interpreter

    path = os.path.join(folder, "model.tflite")
    interpreter = Interpreter(path, num_threads=os.cpu_count())
    signature = interpreter.get_signature_runner("serving_default")
    return lambda images: signature(image=images), None


# The function that opens a format, and the packages needed besides TensorFlow.
FORMATS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "saved_model": (open_saved_model, ()),
    "onnx": (open_onnx, ("tf2onnx", "onnx", "onnxruntime")),
    "litert": (open_litert, ("ai-edge-litert",)),
}


def outputs_of(
    format: str, folder: str, images: np.ndarray, files: Sequence[bytes] = ()
) -> dict[str, Any]:
    """Runs a model on images, uint8 `[N, H, W, 3]`, and times it.

    Returns `probabilities`, `batch_of_one` (those of the first image) and
    `images_per_second`. A SavedModel adds `class_id`, `label`, `from_bytes`
    (the probabilities of the first `ENCODED` images as PNG files) and
    `from_files` (those of `files`, if given).
    """
    opener, _ = FORMATS[format]
    run, run_files = opener(folder)
    outputs = {"batch_of_one": run(images[:1])["probabilities"]}
    run(images[:BATCH])  # the first batch of a size takes longer
    begin = time.perf_counter()
    starts = range(0, len(images), BATCH)
    batches = [run(images[start : start + BATCH]) for start in starts]
    outputs["images_per_second"] = len(images) / (time.perf_counter() - begin)
    for key in batches[0]:
        outputs[key] = np.concatenate([batch[key] for batch in batches])
    if run_files:
        outputs["from_bytes"] = run_files(images[:ENCODED])
        if files:
            outputs["from_files"] = run_files(files)
    return outputs


def latencies(
    run: Callable, images: np.ndarray, batch_sizes: Sequence[int]
) -> list[float]:
    """Returns the median milliseconds of a call, for each batch size."""
    medians = []
    for size in batch_sizes:
        batch = np.resize(images, (size, *images.shape[1:]))
        run(batch)  # the first of a size takes longer
        times = [time.perf_counter()]
        for _ in range(CALLS):
            run(batch)
            times.append(time.perf_counter())
        medians.append(1e3 * statistics.median(np.diff(times).tolist()))
    return medians


def compare(
    outputs: dict[str, Any],
    reference: np.ndarray,
    sample: Mapping[str, np.ndarray],
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Compares outputs with the Keras model's probabilities.

    Every image must get the same class, and no probability may differ by more
    than the tolerance. Without a tolerance, neither is required. Returns the
    fields of `Export` from `count` to `files_same_class`; raises `SystemExit`
    if the outputs do not agree.
    """
    probabilities = outputs["probabilities"]
    if probabilities.shape != reference.shape:
        sys.exit(
            f"its probabilities are {probabilities.shape}, those of the Keras "
            f"model {reference.shape}"
        )
    differences = {
        name: float(np.abs(rows - reference[: len(rows)]).max())
        for name in ("probabilities", "batch_of_one", "from_bytes")
        if (rows := outputs.get(name)) is not None
    }
    count, class_id = len(reference), probabilities.argmax(1)
    same_class = int(np.sum(class_id == reference.argmax(1)))
    if tolerance is not None:
        if same_class < count:
            sys.exit(
                f"{count - same_class} of {count} images get another class "
                "from it than from the Keras model"
            )
        for name, difference in differences.items():
            if not difference <= tolerance:  # it may be NaN
                sys.exit(
                    f"its probabilities ({name}) differ by {difference:.1e} "
                    f"from the Keras model's; the tolerance is {tolerance:.0e}"
                )
    if "label" in outputs:
        labels = np.char.encode(sample["class_names"], "utf-8")[class_id]
        if any(outputs["class_id"] != class_id) or any(
            outputs["label"] != labels
        ):
            sys.exit("class_id or label is not the most probable one")
    measures = {
        "count": count,
        "same_class": same_class,
        "difference": differences["probabilities"],
        "images_per_second": outputs["images_per_second"],
    }
    if "from_files" in outputs:
        rows, expected = outputs["from_files"], reference[sample["files"]]
        same = int(np.sum(rows.argmax(1) == expected.argmax(1)))
        difference = float(np.abs(rows - expected).mean())
        if not difference <= FILES_TOLERANCE:
            sys.exit(
                f"serving_bytes classifies {same} of {len(rows)} image files "
                "as the Keras model does; its probabilities differ by "
                f"{difference:.3f} on average"
            )
        measures |= {"files": len(rows), "files_same_class": same}
    if "labels" in sample:
        top1, keras_top1 = (
            float(np.mean(rows.argmax(1) == sample["labels"]))
            for rows in (probabilities, reference)
        )
        measures |= {"top1": top1, "keras_top1": keras_top1}
    return measures


if __name__ == "__main__":
    format, folder, scratch, *tolerance = sys.argv[1:]
    for name in ("keras_resnet_cifar", "keras"):
        sys.modules[name] = None  # type: ignore  # as if not installed
    sample = np.load(os.path.join(scratch, "sample.npz"))
    reference = np.load(os.path.join(scratch, "reference.npy"))
    files = [
        Path(scratch, "files", str(index)).read_bytes()
        for index in sample.get("files", ())
    ]
    outputs = outputs_of(format, folder, sample["images"], files)
    measures = compare(outputs, reference, sample, *map(float, tolerance))
    if "batch_sizes" in sample:
        run, _ = FORMATS[format][0](folder)
        sizes = sample["batch_sizes"].tolist()
        measures["latency_ms"] = latencies(run, sample["images"], sizes)
    with open(os.path.join(scratch, "measures.json"), "w") as file:
        json.dump(measures, file)
