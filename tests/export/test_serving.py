"""The graphs that are served, run in this process."""

import importlib.util
import io

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.metrics import softmax
from keras_resnet_cifar.evaluation.predict import read_image

if keras.backend.backend() != "tensorflow":
    pytest.skip("served graphs are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from keras_resnet_cifar.export import serving

NAMES = DATASETS["shapes"].class_names


def picture(width, height, mode="RGB"):
    """A smooth picture with an edge, as photos have them."""
    y, x = np.mgrid[:height, :width]
    wave = 127 + 90 * np.sin(x / width * 9) + 30 * (y > height // 2)
    pixels = np.stack([wave, wave[::-1], wave[:, ::-1]], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype("uint8")).convert(mode)


def encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "mode", "kind"),
    [
        ((32, 32), "RGB", "PNG"),
        ((200, 150), "RGB", "PNG"),
        ((200, 150), "RGB", "JPEG"),
        ((17, 40), "RGB", "PNG"),
        ((64, 64), "L", "JPEG"),
        ((64, 64), "P", "PNG"),
        ((64, 64), "RGB", "BMP"),
        ((64, 64), "RGB", "GIF"),
    ],
    ids=str,
)
def test_decoding_is_that_of_predict(size, mode, kind, tmp_path):
    content = encoded(picture(*size, mode), kind)
    (tmp_path / "image").write_bytes(content)
    expected = read_image(tmp_path / "image", (32, 32)).astype(int)
    got = serving.decode(content, (32, 32)).numpy()
    assert got.dtype == np.uint8
    if size == (32, 32):
        np.testing.assert_array_equal(got, expected)
    # Pillow rounds to whole levels between its two passes, and the decoders
    # of JPEG compute the cosine transform in two ways.
    assert np.abs(got - expected).max() <= (4 if kind == "JPEG" else 2)
    if kind == "PNG":
        assert abs(np.mean(got - expected)) < 0.1  # rounded, not cut off


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model, and its SavedModel with warm-up requests where they can be."""
    from keras_resnet_cifar.models.resnet import build_resnet

    keras.utils.set_random_seed(0)
    model = build_resnet(depth=8, widths=(4, 8, 16), normalization="shapes")
    folder = tmp_path_factory.mktemp("served") / "1"
    serving.write_saved_model(model, NAMES, (32, 32), folder)
    if importlib.util.find_spec("tensorflow_serving"):
        serving.write_warmup_requests(folder, "net", (32, 32))
    return model, folder


def test_both_signatures(served, tiny_data):
    model, folder = served
    images = tiny_data.test.images[:5]
    loaded = tf.saved_model.load(folder)
    pixels, files = (
        loaded.signatures[name] for name in ("serving_default", "serving_bytes")
    )
    (spec,) = pixels.structured_input_signature[1].values()
    assert (spec.name, spec.dtype) == ("image", tf.uint8)
    assert spec.shape.as_list() == [None, 32, 32, 3]

    expected = softmax(logits_of(model, images))
    pngs = [encoded(Image.fromarray(image), "PNG") for image in images]
    for found in (
        pixels(image=tf.constant(images)),
        files(image_bytes=tf.constant(pngs)),
    ):
        probabilities = found["probabilities"].numpy()
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
        class_id = found["class_id"].numpy()
        np.testing.assert_array_equal(class_id, expected.argmax(1))
        labels = [label.decode() for label in found["label"].numpy()]
        assert labels == [NAMES[index] for index in class_id]


def test_files_of_several_sizes_in_one_batch(served):
    _, folder = served
    loaded = tf.saved_model.load(folder)
    contents = [
        encoded(picture(90, 60), "JPEG"),
        encoded(picture(32, 32), "PNG"),
        encoded(picture(20, 500), "PNG"),
    ]
    batch, singles = (
        [
            loaded.signatures["serving_bytes"](image_bytes=tf.constant(group))
            for group in groups
        ]
        for groups in ([contents], [[content] for content in contents])
    )
    alone = np.concatenate([found["probabilities"] for found in singles])
    np.testing.assert_allclose(batch[0]["probabilities"], alone, atol=1e-6)


def test_what_is_no_image_is_refused(served):
    loaded = tf.saved_model.load(served[1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="image"):
        loaded.signatures["serving_bytes"](image_bytes=tf.constant([b"text"]))


def test_the_saved_model_holds_nothing_of_training(served):
    model, folder = served
    variables = tf.train.list_variables(str(folder / "variables/variables"))
    numbers = sum(
        int(np.prod(shape)) for name, shape in variables if name[0] != "_"
    )
    # Beside the weights: the counter of saves.
    assert numbers <= model.count_params() + 1


def test_warmup_requests_run(served):
    pytest.importorskip(
        "tensorflow_serving", reason="tensorflow-serving-api is not installed"
    )
    from tensorflow_serving.apis import prediction_log_pb2

    loaded = tf.saved_model.load(served[1])
    path = served[1] / "assets.extra" / "tf_serving_warmup_requests"
    seen = []
    for record in tf.data.TFRecordDataset(str(path)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "net"
        name = request.model_spec.signature_name
        inputs = {
            key: tf.constant(tf.make_ndarray(value))
            for key, value in request.inputs.items()
        }
        found = loaded.signatures[name](**inputs)
        seen.append((name, len(found["label"])))
    assert seen == [
        (name, count)
        for name in ("serving_default", "serving_bytes")
        for count in serving.WARMUP_BATCHES
    ]
