"""Writes a model as a SavedModel, for ONNX or for LiteRT, by TensorFlow.

    KERAS_BACKEND=tensorflow python -m keras_resnet_cifar.export.formats \\
        FORMAT MODEL.keras SAMPLE.npz FOLDER TARGET REFERENCE.npy

calls `write` and saves what it returns as REFERENCE.npy. The exit code is 2
for what a user can mend, with a line on stderr that says so.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.metrics import softmax
from keras_resnet_cifar.export.saved_model import (
    write_saved_model,
    write_warmup_requests,
)
from keras_resnet_cifar.models.cloning import clone_with
from keras_resnet_cifar.models.saving import check_classifier, load_model


def write(
    format: str,
    model: keras.Model | Path,
    sample: Path,
    folder: Path,
    target: Path,
) -> np.ndarray:
    """Writes a model that computes in float32.

    Args:
        format: `"saved_model"`, `"onnx"` or `"litert"`.
        model: From images `[N, H, W, 3]`, 0 to 255, to logits `[N, C]`; or
            its `.keras` file.
        sample: An `.npz` file with `images`, uint8 `[N, H, W, 3]`; optionally
            `class_names`, C strings; and to quantise for LiteRT,
            `calibration`, uint8 `[M, H, W, 3]`.
        folder: An empty folder to write to.
        target: Its later path, which names the model on a server.

    Returns:
        The Keras model's probabilities of the images, float32 `[N, C]`.

    Raises:
        InputError: The model cannot be loaded, does not fit the sample, or
            cannot be written.
    """
    with np.load(sample) as arrays:
        images = arrays["images"]
        names = arrays.get("class_names")
        calibration = arrays.get("calibration")
    if isinstance(model, Path):
        model = load_model(model)
    if names is None:
        names = range(model.output_shape[1])
    names = [str(name) for name in names]
    check_classifier(model, len(names), images.shape[1:])
    model, size = clone_with(model, _float32), images.shape[1:3]
    try:
        if format == "saved_model":
            write_saved_model(model, names, size, folder)
            if find_spec("tensorflow_serving"):
                named = target.parent if target.name.isdecimal() else target
                write_warmup_requests(folder, named.name, size)
        else:
            if format == "onnx":
                _write_onnx(model, size, folder / "model.onnx")
            else:
                _write_litert(model, size, folder / "model.tflite", calibration)
            labels = "".join(f"{name}\n" for name in names)
            (folder / "labels.txt").write_text(labels, encoding="utf-8")
    except (OSError, tf.errors.OpError) as error:
        # TensorFlow's message begins with the op; the cause comes last.
        cause = getattr(error, "strerror", None) or str(error).split("; ")[-1]
        raise InputError(
            f"cannot write {target}: {' '.join(cause.split())[:200]}; name a "
            "writable folder with free space"
        ) from error
    return softmax(logits_of(model, images)).astype("float32")


def _float32(layer, config):
    if not isinstance(layer, keras.layers.InputLayer):
        config["dtype"] = "float32"
    return type(layer), config


def _with_softmax(model, size, dtype="uint8"):
    """Returns the model from raw images to `{"probabilities": ...}`.

    ONNX and LiteRT have no strings: labels.txt lists the names.
    """
    image = keras.Input((*size, 3), dtype=dtype, name="image")
    logits = model(keras.ops.cast(image, "float32"))
    probabilities = keras.layers.Softmax(dtype="float32")(logits)
    return keras.Model(image, {"probabilities": probabilities})


def _write_onnx(model, size, path):
    """Writes from a frozen graph.

    `Model.export(format="onnx")` of Keras 3.15 makes the constants of
    `Normalization` further inputs.
    """
    import onnx
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )
    from tf2onnx.convert import from_graph_def

    spec = tf.TensorSpec((None, *size, 3), tf.uint8, name="image")
    function = tf.function(_with_softmax(model, size))
    graph = convert_variables_to_constants_v2(
        function.get_concrete_function(spec)
    )
    names = {graph.inputs[0].name: "image"}
    names[graph.outputs[0].name] = "probabilities"
    proto, _ = from_graph_def(
        graph.graph.as_graph_def(),
        input_names=[graph.inputs[0].name],
        output_names=[graph.outputs[0].name],
        tensors_to_rename=names,
    )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _write_litert(model, size, path, calibration=None):
    """Writes in float32 or, given images to calibrate with, in int8."""
    operations, options = tf.lite.OpsSet.TFLITE_BUILTINS, {}
    if calibration is not None:
        operations = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        options = {
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "representative_dataset": lambda: (
                [image[None].astype("float32")] for image in calibration
            ),
            "inference_input_type": tf.uint8,  # of the float32 input
        }
    dtype = "uint8" if calibration is None else "float32"
    _with_softmax(model, size, dtype).export(
        path,
        format="litert",
        verbose=False,
        target_spec={"supported_ops": [operations]},
        **options,
    )


def main(format: str, *paths: str) -> int:
    """Runs `write` as the module's docstring says; returns the exit code."""
    model, sample, folder, target, reference = map(Path, paths)
    try:
        np.save(reference, write(format, model, sample, folder, target))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
