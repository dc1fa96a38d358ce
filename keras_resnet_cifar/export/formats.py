"""Writes a model as a SavedModel, ONNX or LiteRT file, with TensorFlow.

    KERAS_BACKEND=tensorflow python -m keras_resnet_cifar.export.formats \\
        FORMAT FOLDER TARGET SCRATCH

writes a model that computes in float32 to FOLDER, which later becomes TARGET.
SCRATCH holds `model.keras`, from images `[N, H, W, 3]`, 0 to 255, to logits
`[N, C]`, and `sample.npz`: `images`, uint8; `class_names`, C strings; `labels`,
int `[N]`, for test images; and `calibration`, uint8 images, to quantize. The
Keras model's probabilities, float32 `[N, C]`, are written to `reference.npy`.

On failure, the last line on stderr says why; the exit code is 2 if the user can
fix it, else 1.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.metrics import softmax
from keras_resnet_cifar.models.cloning import clone_with
from keras_resnet_cifar.models.saving import load_model

WARMUP_BATCHES = (1, 32)


def write(format: str, folder: Path, target: Path, scratch: Path) -> None:
    """Writes a model as described in the module's docstring."""
    with np.load(scratch / "sample.npz") as arrays:
        images, names = arrays["images"], arrays["class_names"].tolist()
        calibration = arrays.get("calibration")
    try:
        model = load_model(scratch / "model.keras")
    except InputError as error:
        raise InputError(
            f"give a model of Keras's own layers; a new process says: {error}"
        ) from error
    model = clone_with(model, _float32)
    size = images.shape[1:3]
    try:
        if format == "saved_model":
            _write_saved_model(model, names, size, folder)
            if find_spec("tensorflow_serving"):
                named = target.parent if target.name.isdecimal() else target
                _write_warmup_requests(named.name, size, folder)
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
    reference = softmax(logits_of(model, images)).astype("float32")
    np.save(scratch / "reference.npy", reference)


def _float32(layer, config):
    if not isinstance(layer, keras.layers.InputLayer):
        config["dtype"] = "float32"
    return type(layer), config


def _write_saved_model(model, names, size, folder):
    """Writes the signatures that `export_saved_model` describes."""

    def classify(image):
        logits = model(tf.cast(image, tf.float32), training=False)
        class_id = tf.argmax(logits, axis=1)
        return {
            "probabilities": tf.nn.softmax(logits),
            "class_id": class_id,
            "label": tf.gather(tf.constant(names), class_id),
        }

    def classify_files(image_bytes):
        return classify(
            tf.map_fn(
                lambda file: decode(file, size),
                image_bytes,
                fn_output_signature=tf.TensorSpec((*size, 3), tf.uint8),
            )
        )

    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = tf.TensorSpec((None, *size, 3), tf.uint8, name="image")
    archive.add_endpoint("serving_default", classify, [spec])
    spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serving_bytes", classify_files, [spec])
    archive.write_out(folder, verbose=False)


def decode(encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decodes an image file, in the graph, to uint8 `[H, W, 3]`.

    It may be JPEG, PNG, BMP or GIF (the first frame). The result agrees with
    `data.images.read_image`, which crops the centre and resizes it, to within
    two grey levels (four for JPEG), except that the orientation in EXIF data is
    ignored.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.reduce_max(size / sides)
    image = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=size,
        scale=tf.stack([scale, scale]),
        translation=(size - scale * sides) / 2,
        kernel_type="keyscubic",
        antialias=True,
    )[0]
    return tf.saturate_cast(tf.round(image), tf.uint8)


def _write_warmup_requests(model_name, size, folder):
    """Adds black images for TensorFlow Serving to run before real requests."""
    from tensorflow_serving.apis import prediction_log_pb2

    black = tf.zeros((*size, 3), tf.uint8)
    inputs = {
        "serving_default": ("image", black),
        "serving_bytes": ("image_bytes", tf.io.encode_png(black)),
    }
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, (key, value) in inputs.items():
            for count in WARMUP_BATCHES:
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature
                batch = tf.stack([value] * count).numpy()
                request.inputs[key].CopyFrom(tf.make_tensor_proto(batch))
                writer.write(log.SerializeToString())


def _with_softmax(model, size, dtype="uint8"):
    """Returns the model from raw images to `{"probabilities": ...}`.

    ONNX and LiteRT have no strings: labels.txt lists the names.
    """
    image = keras.Input((*size, 3), dtype=dtype, name="image")
    logits = model(keras.ops.cast(image, "float32"))
    probabilities = keras.layers.Softmax(dtype="float32")(logits)
    return keras.Model(image, {"probabilities": probabilities})


def _write_onnx(model, size, path):
    import onnx
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )
    from tf2onnx.convert import from_graph_def

    # `Model.export(format="onnx")` of Keras 3.15 turns the constants of
    # `Normalization` into inputs.
    spec = tf.TensorSpec((None, *size, 3), tf.uint8, name="image")
    function = tf.function(_with_softmax(model, size), [spec])
    graph = convert_variables_to_constants_v2(function.get_concrete_function())
    (image,), (probabilities,) = graph.inputs, graph.outputs
    proto, _ = from_graph_def(
        graph.graph.as_graph_def(),
        input_names=[image.name],
        output_names=[probabilities.name],
        tensors_to_rename={
            image.name: "image",
            probabilities.name: "probabilities",
        },
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


if __name__ == "__main__":
    try:
        write(sys.argv[1], *map(Path, sys.argv[2:]))
    except Exception as error:  # each layer and converter has its own
        bad_input = isinstance(error, InputError)
        print(error if bad_input else one_line(error), file=sys.stderr)
        sys.exit(2 if bad_input else 1)
