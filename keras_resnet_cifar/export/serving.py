"""What a served model computes, as TensorFlow graphs: images in, classes out.

Everything is inside the graph: the cast of raw pixels, the decoding and
resizing of encoded images, the softmax, the names of the classes. Needs Keras
on TensorFlow.
"""

import keras
import tensorflow as tf

WARMUP_BATCHES = (1, 32)


def classifier(model, class_names):
    """Returns the function of raw images that a SavedModel serves.

    Args:
        model: From images `[N, H, W, 3]`, 0 to 255, to logits `[N, C]`.
        class_names: C names.

    Returns:
        A function of uint8 `[N, H, W, 3]` to `{"probabilities": float32
        [N, C], "class_id": int64 [N], "label": string [N]}`.
    """

    def classify(image):
        logits = model(tf.cast(image, tf.float32), training=False)
        probabilities = tf.nn.softmax(logits)
        class_id = tf.argmax(probabilities, axis=1)
        label = tf.gather(tf.constant(list(class_names)), class_id)
        return {
            "probabilities": probabilities,
            "class_id": class_id,
            "label": label,
        }

    return classify


def decode(encoded, size):
    """Decodes an image file and resizes it, in the graph.

    As `prediction.read_image` does it (bicubic, antialiased), to within two
    grey levels, four for JPEG; the orientation in EXIF data is not heeded.

    Args:
        encoded: A scalar string: JPEG, PNG, BMP, or GIF (its first frame).
        size: `(H, W)`.

    Returns:
        uint8 `[H, W, 3]`.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.image.resize(image, size, "bicubic", antialias=True)
    return tf.saturate_cast(tf.round(image), tf.uint8)


def write_saved_model(model, class_names, size, folder):
    """Writes a SavedModel with two signatures, for any number of images.

    `serving_default` takes raw images, `image` uint8 `[None, H, W, 3]`;
    `serving_bytes` takes image files of any size, `image_bytes` string
    `[None]`. Both return what `classifier` does.

    Args:
        model: From images `[N, H, W, 3]`, 0 to 255, to logits `[N, C]`.
        class_names: C names.
        size: `(H, W)`.
        folder: A `pathlib.Path`, where it goes.
    """
    classify = classifier(model, class_names)
    pixels = tf.TensorSpec((*size, 3), tf.uint8)

    def classify_bytes(image_bytes):
        return classify(
            tf.map_fn(
                lambda encoded: decode(encoded, size),
                image_bytes,
                fn_output_signature=pixels,
            )
        )

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", classify, [image_spec(size)])
    archive.add_endpoint(
        "serving_bytes",
        classify_bytes,
        [tf.TensorSpec((None,), tf.string, name="image_bytes")],
    )
    archive.write_out(folder, verbose=False)


def image_spec(size, dtype=tf.uint8):
    """The `tf.TensorSpec` of raw images, any number of them."""
    return tf.TensorSpec((None, *size, 3), dtype, name="image")


def write_warmup_requests(folder, model_name, size):
    """Adds requests that TensorFlow Serving runs before it takes others.

    Both signatures, a single image and a batch; black images.

    Args:
        folder: A SavedModel.
        model_name: What the server calls the model.
        size: `(H, W)`.

    Raises:
        ImportError: tensorflow-serving-api is not installed.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    black = tf.zeros((*size, 3), tf.uint8)
    inputs = {
        "serving_default": ("image", black),
        "serving_bytes": ("image_bytes", tf.io.encode_png(black)),
    }
    extra = folder / "assets.extra"
    extra.mkdir()
    path = str(extra / "tf_serving_warmup_requests")
    with tf.io.TFRecordWriter(path) as writer:
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
