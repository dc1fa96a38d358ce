"""The graphs that are served, run in this process."""

import importlib.util
import io

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet_cifar.data.images import read_image
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.evaluation.metrics import softmax

if keras.backend.backend() != "tensorflow":
    pytest.skip("served graphs are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from keras_resnet_cifar.export import export, formats


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
    got = formats.decode(content, (32, 32)).numpy()
    assert got.dtype == np.uint8
    if size == (32, 32):
        np.testing.assert_array_equal(got, expected)
    # Pillow rounds to whole levels between its two passes, and the decoders
    # of JPEG compute the cosine transform in two ways.
    assert np.abs(got - expected).max() <= (4 if kind == "JPEG" else 2)
    if kind == "PNG":
        assert abs(np.mean(got - expected)) < 0.1  # rounded, not cut off


@pytest.fixture(scope="module")
def loaded(exported):
    _, _, result = exported("saved_model")
    return tf.saved_model.load(result.path)


def test_both_signatures(loaded, exported, tiny_data):
    _, model, _ = exported("saved_model")
    images = tiny_data.test.images[:5]
    pixels, files = (
        loaded.signatures[name] for name in ("serving_default", "serving_bytes")
    )
    (spec,) = pixels.structured_input_signature[1].values()
    assert (spec.name, spec.dtype) == ("image", tf.uint8)
    assert spec.shape.as_list() == [None, 32, 32, 3]

    # The model computes in bfloat16, of 8 bits; what is served in float32.
    expected = softmax(logits_of(model, images))
    pngs = [encoded(Image.fromarray(image), "PNG") for image in images]
    outputs = [
        pixels(image=tf.constant(images)),
        files(image_bytes=tf.constant(pngs)),
    ]
    for output in outputs:
        probabilities = output["probabilities"].numpy()
        np.testing.assert_allclose(probabilities, expected, atol=0.05)
        np.testing.assert_allclose(
            probabilities, outputs[0]["probabilities"], atol=1e-6
        )
        class_id = output["class_id"].numpy()
        np.testing.assert_array_equal(class_id, probabilities.argmax(1))
        labels = [label.decode() for label in output["label"].numpy()]
        assert labels == [tiny_data.class_names[index] for index in class_id]


def test_files_of_several_sizes_in_one_batch(loaded):
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
    alone = np.concatenate([output["probabilities"] for output in singles])
    np.testing.assert_allclose(batch[0]["probabilities"], alone, atol=1e-6)


def test_a_file_that_is_no_image_is_refused(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError, match="image"):
        loaded.signatures["serving_bytes"](image_bytes=tf.constant([b"text"]))


def test_the_saved_model_holds_nothing_of_training(exported):
    _, model, result = exported("saved_model")
    path = str(result.path / "variables/variables")
    numbers = sum(
        int(np.prod(shape))
        for name, shape in tf.train.list_variables(path)
        if name[0] != "_"
    )
    # Beside the weights: the counter of saves.
    assert numbers <= model.count_params() + 1


def test_warmup_requests_run(loaded, exported):
    if not importlib.util.find_spec("tensorflow_serving"):
        pytest.skip("tensorflow-serving-api is not installed")
    from tensorflow_serving.apis import prediction_log_pb2

    _, _, result = exported("saved_model")
    path = result.path / "assets.extra" / "tf_serving_warmup_requests"
    requests = []
    for record in tf.data.TFRecordDataset(str(path)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "net"
        name = request.model_spec.signature_name
        inputs = {
            key: tf.constant(tf.make_ndarray(value))
            for key, value in request.inputs.items()
        }
        outputs = loaded.signatures[name](**inputs)
        requests.append((name, len(outputs["label"])))
    assert requests == [
        (name, count)
        for name in ("serving_default", "serving_bytes")
        for count in formats.WARMUP_BATCHES
    ]


def test_files_that_are_turned_by_exif_are_left_out(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(32, 32).save(tmp_path / "a.jpg")
    picture(32, 32).save(tmp_path / "b.webp")
    picture(32, 32).save(tmp_path / "c.jpg", exif=exif)
    sample, names = {}, ("c.jpg", "b.webp", "a.jpg")
    with pytest.warns(UserWarning, match="rotates 1 of the test images"):
        export._copy_files(
            [tmp_path / name for name in names], sample, tmp_path / "files"
        )
    assert sample["files"].tolist() == [2]
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["2"]
