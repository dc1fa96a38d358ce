"""Evaluation and prediction, of models and of image files."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation import evaluate as evaluation
from keras_resnet_cifar.evaluation.evaluate import evaluate, logits_of, report
from keras_resnet_cifar.evaluation.predict import predict_files, read_image
from keras_resnet_cifar.models.saving import load_model


def test_evaluation_is_of_the_models_own_logits(tiny_model, tiny_data):
    model = tiny_model()
    logits = logits_of(model, tiny_data.test.images)
    result = evaluate(model, tiny_data.test, tiny_data.class_names)
    right = logits.argmax(axis=1) == tiny_data.test.labels
    assert result.top1 == right.mean()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(
        logits, logits_of(model, tiny_data.test.images, 10), atol=1e-4
    )


def test_a_report_is_json_and_two_pictures(tiny_model, tiny_data, tmp_path):
    folder = tmp_path / "deep" / "report"
    result = report(
        tiny_model(), tiny_data.test, tiny_data.class_names, folder, 9
    )
    assert {p.name for p in folder.iterdir()} == {
        "metrics.json",
        "confusion.png",
        "mistakes.png",
    }
    read = json.loads((folder / "metrics.json").read_text())
    assert read["top1"] == result.top1


def test_classes_must_fit(tiny_model, tiny_data, tmp_path):
    with pytest.raises(InputError, match="100 outputs"):
        evaluate(
            tiny_model(num_classes=100), tiny_data.test, tiny_data.class_names
        )
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="10 outputs"):
        predict_files(tiny_model(), [tmp_path / "a.png"], ("one", "two"))


def test_an_image_file_predicts_as_the_array_does(
    tiny_model, tiny_data, tmp_path
):
    model = tiny_model()
    Image.fromarray(tiny_data.test.images[0]).save(tmp_path / "a.png")
    (row,) = predict_files(model, [tmp_path / "a.png"], top=10)
    logits = logits_of(model, tiny_data.test.images[:1])[0]
    assert row["classes"][0]["class"] == str(logits.argmax())
    assert sum(c["probability"] for c in row["classes"]) == pytest.approx(1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_images_of_any_kind_and_size_become_rgb(mode, tmp_path):
    Image.new(mode, (50, 20)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", (32, 32))
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)


def test_a_photo_is_turned_as_its_camera_was(tmp_path):
    image = Image.new("RGB", (2, 4))
    image.putpixel((0, 0), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    turned = read_image(tmp_path / "a.png", (2, 4))
    assert turned[0, 3].tolist() == [255, 0, 0]


def test_files_that_are_no_image(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    cut = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    Image.new("I;16", (64, 64)).save(tmp_path / "deep.png")
    for name in ("text.png", "cut.png", "none.png", ".", "deep.png"):
        with pytest.raises(InputError, match="as an image") as error:
            read_image(tmp_path / name, (32, 32))
        assert "\n" not in str(error.value)


def test_files_that_are_no_model(tmp_path):
    (tmp_path / "text.keras").write_text("not a model")
    inputs = keras.Input((4,))
    keras.Model(inputs, inputs).save(tmp_path / "vector.keras")
    for name in ("text.keras", "none.keras", "vector"):
        with pytest.raises(InputError, match=name) as error:
            load_model((tmp_path / name).with_suffix(".keras"))
        assert "\n" not in str(error.value)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX alone: KERAS_BACKEND=jax"
)
def test_all_batches_in_one_call(tiny_model, tiny_data, monkeypatch):
    model, images = tiny_model(), tiny_data.test.images[:50]
    expected = logits_of(model, images)
    monkeypatch.setattr(evaluation, "has_accelerator", lambda: True)
    for scale in (1, 2):  # of the weights: they are no part of what is compiled
        head = model.layers[-1]
        head.set_weights([scale * weight for weight in head.get_weights()])
        logits = logits_of(model, images, batch_size=16)
        np.testing.assert_allclose(
            logits, scale * expected, rtol=1e-5, atol=1e-5
        )
    assert model.fused_predict_function._cache_size() == 1
