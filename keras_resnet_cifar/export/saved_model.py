"""Writes a SavedModel that takes raw images or image files.

The cast of raw pixels, the decoding and resizing of image files, the softmax
and the names of the classes are all in its graph. Keras runs on TensorFlow.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

WARMUP_BATCHES = (1, 32)


def write_saved_model(
    model: keras.Model,
    class_names: Sequence[str],
    size: tuple[int, int],
    folder: Path,
) -> None:
    """Writes a SavedModel with two signatures, for any number of images.

    `serving_default` takes raw images, `image` uint8 `[N, H, W, 3]`;
    `serving_bytes` takes image files of any size, `image_bytes` string `[N]`.
    Both return `probabilities` (float32 `[N, C]`), `class_id` (int64 `[N]`)
    and `label` (string `[N]`).

    Args:
        model: From images `[N, H, W, 3]`, 0 to 255, to logits `[N, C]`.
        class_names: C names.
        size: `(H, W)`.
        folder: Where to write.
    """
    pixels = tf.TensorSpec((*size, 3), tf.uint8)

    def classify(image):
        logits = model(tf.cast(image, tf.float32), training=False)
        class_id = tf.argmax(logits, axis=1)
        return {
            "probabilities": tf.nn.softmax(logits),
            "class_id": class_id,
            "label": tf.gather(tf.constant(list(class_names)), class_id),
        }

    def classify_files(image_bytes):
        images = tf.map_fn(
            lambda file: decode(file, size),
            image_bytes,
            fn_output_signature=pixels,
        )
        return classify(images)

    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = tf.TensorSpec((None, *size, 3), tf.uint8, name="image")
    archive.add_endpoint("serving_default", classify, [spec])
    spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serving_bytes", classify_files, [spec])
    archive.write_out(folder, verbose=False)


def decode(encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decodes an image file and resizes it, in the graph.

    As `evaluation.predict.read_image` (bicubic, antialiased) to within two
    grey levels, four for JPEG; the orientation in EXIF data is ignored.

    Args:
        encoded: A scalar string: JPEG, PNG, BMP, or GIF (its first frame).
        size: `(H, W)`.

    Returns:
        uint8 `[H, W, 3]`.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.image.resize(image, size, "bicubic", antialias=True)
    return tf.saturate_cast(tf.round(image), tf.uint8)


def write_warmup_requests(
    folder: Path, model_name: str, size: tuple[int, int]
) -> None:
    """Adds requests that TensorFlow Serving runs before it takes others.

    They are black images, one and a batch, for each signature. Needs
    tensorflow-serving-api.

    Args:
        folder: A SavedModel.
        model_name: The name of the model on the server.
        size: `(H, W)`.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

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
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature
                batch = tf.stack([value] * count).numpy()
                request.inputs[key].CopyFrom(tf.make_tensor_proto(batch))
                log = prediction_log_pb2.PredictionLog()
                log.predict_log.request.CopyFrom(request)
                writer.write(log.SerializeToString())
