"""Runs an exported model without Keras and without this package.

    python -P run_exported.py FORMAT FOLDER SAMPLE.npz OUTPUT.npz

SAMPLE.npz holds `images`. OUTPUT.npz gets their `probabilities`, `batch_of_one`
(of the first image), `images_per_second` and, from a SavedModel, `class_id`,
`label` and `from_bytes` (of the first images as PNG files).
"""

import os
import sys
import time

import numpy as np

BATCH = 128
ENCODED = 32


def open_saved_model(folder: str):
    """Returns functions of raw images and of image files."""
    import tensorflow as tf

    model = tf.saved_model.load(folder)

    def run(images):
        outputs = model.signatures["serving_default"](image=tf.constant(images))
        return {key: value.numpy() for key, value in outputs.items()}

    def run_files(images):
        files = tf.stack([tf.io.encode_png(image) for image in images])
        outputs = model.signatures["serving_bytes"](image_bytes=files)
        return outputs["probabilities"].numpy()

    return run, run_files


def open_onnx(folder: str):
    """Returns a function of raw images, and `None` for files."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        os.path.join(folder, "model.onnx"), providers=["CPUExecutionProvider"]
    )

    def run(images):
        (probabilities,) = session.run(["probabilities"], {"image": images})
        return {"probabilities": probabilities}

    return run, None


def open_litert(folder: str):
    """Returns a function of raw images, and `None` for files."""
    from ai_edge_litert.interpreter import Interpreter

    path = os.path.join(folder, "model.tflite")
    interpreter = Interpreter(path, num_threads=os.cpu_count())
    signature = interpreter.get_signature_runner("serving_default")
    return lambda images: signature(image=images), None


OPENERS = {
    "saved_model": open_saved_model,
    "onnx": open_onnx,
    "litert": open_litert,
}


def main(format: str, folder: str, sample: str, output: str) -> None:
    """Runs the model on all images, as the module's docstring says."""
    for name in ("keras_resnet_cifar", "keras"):
        sys.modules[name] = None  # type: ignore  # as if not installed
    images = np.load(sample)["images"]
    run, run_files = OPENERS[format](folder)
    arrays = {"batch_of_one": run(images[:1])["probabilities"]}
    run(images[:BATCH])  # the first batch of a size takes longer
    begin = time.perf_counter()
    starts = range(0, len(images), BATCH)
    batches = [run(images[start : start + BATCH]) for start in starts]
    arrays["images_per_second"] = len(images) / (time.perf_counter() - begin)
    for key in batches[0]:
        arrays[key] = np.concatenate([batch[key] for batch in batches])
    if "label" in arrays:
        arrays["label"] = np.char.decode(arrays["label"].astype(bytes), "utf-8")
    if run_files:
        arrays["from_bytes"] = run_files(images[:ENCODED])
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
