"""Runs an exported model as a stranger would.

A script, run in a process of its own; it imports nothing of this package, and
shuts this package and Keras out:

    python -P artefact.py FORMAT FOLDER IMAGES.npy OUTPUT.npz

OUTPUT.npz holds `probabilities` of all images, `alone` (of the first image in
a batch of one), `images_per_second`, and of a SavedModel `class_id`, `label`
and `from_bytes`, the probabilities of the first images as PNG files.
"""

import os
import sys
import time

import numpy as np

BATCH = 128
ENCODED = 32


def open_saved_model(folder):
    """Returns functions of images, and of what they cost to know besides."""
    import tensorflow as tf

    model = tf.saved_model.load(folder)
    from_pixels = model.signatures["serving_default"]
    from_files = model.signatures["serving_bytes"]

    def run(images):
        found = from_pixels(image=tf.constant(images))
        return {key: value.numpy() for key, value in found.items()}

    def run_encoded(images):
        files = tf.stack([tf.io.encode_png(image) for image in images])
        return from_files(image_bytes=files)["probabilities"].numpy()

    # A function does not keep the model that holds its variables.
    run.model = model
    return run, run_encoded


def open_onnx(folder):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        os.path.join(folder, "model.onnx"), providers=["CPUExecutionProvider"]
    )

    def run(images):
        (probabilities,) = session.run(["probabilities"], {"image": images})
        return {"probabilities": probabilities}

    return run, None


def open_litert(folder):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        os.path.join(folder, "model.tflite"), num_threads=os.cpu_count()
    )
    signature = interpreter.get_signature_runner("serving_default")
    return lambda images: signature(image=images), None


OPENERS = {
    "saved_model": open_saved_model,
    "onnx": open_onnx,
    "litert": open_litert,
}


def main(format, folder, images_path, output_path):
    for name in ("keras_resnet_cifar", "keras"):
        sys.modules[name] = None  # as if it were not installed
    images = np.load(images_path)
    run, run_encoded = OPENERS[format](folder)
    output = {"alone": run(images[:1])["probabilities"]}
    run(images[:BATCH])  # the first of a new size prepares
    begin = time.perf_counter()
    found = [
        run(images[start : start + BATCH])
        for start in range(0, len(images), BATCH)
    ]
    output["images_per_second"] = len(images) / (time.perf_counter() - begin)
    for key in found[0]:
        output[key] = np.concatenate([batch[key] for batch in found])
    if "label" in output:
        output["label"] = np.char.decode(output["label"].astype(bytes), "utf-8")
    if run_encoded:
        output["from_bytes"] = run_encoded(images[:ENCODED])
    np.savez(output_path, **output)


if __name__ == "__main__":
    main(*sys.argv[1:])
