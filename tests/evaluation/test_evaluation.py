"""Evaluation and prediction, of models and of image files."""

import dataclasses
import gc
import json
import weakref
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers import refusal
from PIL import Image

from keras_resnet_cifar.data.images import read_image
from keras_resnet_cifar.errors import InputError, Stopped
from keras_resnet_cifar.evaluation import evaluate as evaluation
from keras_resnet_cifar.evaluation.evaluate import (
    evaluate,
    logits_of,
    report,
    split_logits,
)
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


def test_flips_at_test_time_do_not_see_a_mirrored_split(tiny_model, tiny_data):
    model, names = tiny_model(), tiny_data.class_names
    split = tiny_data.test
    mirrored = dataclasses.replace(split, images=split.images[:, :, ::-1])
    plain, other = (evaluate(model, s, names) for s in (split, mirrored))
    result = evaluate(model, split, names, tta="flip")
    again = evaluate(model, mirrored, names, tta="flip")
    assert plain.loss != pytest.approx(other.loss, abs=1e-4)
    assert result.loss == pytest.approx(again.loss, abs=1e-5)
    # The mean of two logits is less surprised than the two by themselves.
    assert result.loss < (plain.loss + other.loss) / 2
    assert "flip" in refusal(lambda: evaluate(model, split, names, tta="crop"))


def test_images_of_other_classes_are_noticed(tiny_model, tiny_data):
    model = tiny_model()
    model.class_names = tuple(f"kind {i}" for i in range(10))
    with pytest.warns(UserWarning, match="trained on other classes"):
        evaluate(model, tiny_data.test, tiny_data.class_names)
    evaluate(model, tiny_data.test, tuple("0123456789"))


def test_a_report_is_json_and_two_pictures(tiny_model, tiny_data, tmp_path):
    names, test = tiny_data.class_names, tiny_data.test
    logits = split_logits(tiny_model(), test, names)
    result = report(logits, test, names, tmp_path, 9)
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.json",
        "confusion.png",
        "mistakes.png",
    }
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read["top1"] == result.top1


def test_classes_must_fit(tiny_model, tiny_data):
    with pytest.raises(InputError, match="100 outputs"):
        evaluate(
            tiny_model(num_classes=100), tiny_data.test, tiny_data.class_names
        )


def test_a_dataset_is_evaluated_on_its_test_split(tiny_model, tiny_data):
    model = tiny_model()
    expected = evaluate(model, tiny_data.test, tiny_data.class_names)
    assert evaluate(model, tiny_data).to_json() == expected.to_json()
    named = evaluate(model, tiny_data.test)
    assert named.class_names == tuple("0123456789")
    assert named.top1 == expected.top1
    lacking = replace(tiny_data, test=None)
    with pytest.raises(InputError, match="shapes has no test split"):
        evaluate(model, lacking)


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


# --- The model stays as it was


class Counting(keras.layers.Layer):
    """Counts how often Python calls it: once per trace, where one is."""

    calls = 0

    def call(self, x):
        Counting.calls += 1
        return x


def counting_model():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(Counting()(inputs))
    x = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def state(model):
    """All attributes of a model and its layers, by identity."""
    return {
        (part.name, key): id(value)
        for part in (model, *model.layers)
        for key, value in vars(part).items()
    }


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("accelerator", [False, True])
def test_a_model_is_left_as_it_was(
    compiled, accelerator, tiny_data, monkeypatch
):
    """Whatever the caller compiled, set or traced, on any backend."""
    if accelerator and keras.backend.backend() == "tensorflow":
        pytest.skip("XLA would compile for a GPU that is not there")
    monkeypatch.setattr(evaluation, "has_accelerator", lambda: accelerator)
    model, images = counting_model(), tiny_data.test.images
    if compiled:
        model.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
        model.predict(images[:8], verbose=0)
    if keras.backend.backend() == "torch":
        model.train()
    jit, weights = model.jit_compile, model.get_weights()
    before = state(model)
    evaluate(model, tiny_data.test, tiny_data.class_names)
    assert state(model) == before
    assert model.jit_compile == jit
    assert model.compiled == compiled
    for one, other in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_evaluation_traces_nothing(tiny_data):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch runs eagerly: it traces nothing")
    model, images = counting_model(), tiny_data.test.images
    first = logits_of(model, images)
    traces = Counting.calls
    model.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    second = logits_of(model, images)  # weights are not compiled in
    assert Counting.calls == traces
    np.testing.assert_allclose(second, 2 * first, rtol=1e-4, atol=1e-4)


def test_a_model_that_has_changed_is_compiled_again(tiny_data):
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    assert logits_of(model, tiny_data.test.images).shape[1] == 3
    model.add(keras.layers.Dense(5))
    assert logits_of(model, tiny_data.test.images).shape[1] == 5


def test_a_compiled_predictor_dies_with_its_model(tiny_data):
    model = counting_model()
    logits_of(model, tiny_data.test.images)
    reference = weakref.ref(model)
    count = len(evaluation._PREDICTORS)
    del model
    gc.collect()
    assert reference() is None
    assert len(evaluation._PREDICTORS) < count


class StopAt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_predict_batch_end(self, step, logs=None):
        if step == self.step:
            raise Stopped(2)


def test_a_callback_stops_an_evaluation_and_the_model_survives(tiny_data):
    model, images = counting_model(), tiny_data.test.images
    expected, weights = logits_of(model, images, 16), model.get_weights()
    with pytest.raises(Stopped):
        logits_of(model, images, 16, callbacks=[StopAt(1)])
    for one, other in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(logits_of(model, images, 16), expected)


def test_a_model_without_a_graph_is_refused(tiny_data):
    class Subclassed(keras.Model):
        def call(self, images):
            return images

    line = refusal(logits_of, Subclassed(name="mine"), tiny_data.test.images)
    assert "mine has no graph of layers" in line


def test_a_sequential_model(tiny_data):
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    images = tiny_data.test.images
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(
        logits_of(model, images), expected, rtol=1e-4, atol=1e-4
    )


# --- JAX: many batches in one call

only_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX alone: KERAS_BACKEND=jax"
)


@only_jax
@pytest.mark.parametrize("resident", [2**31, 2 * 16 * 3072])
def test_all_batches_in_one_call(resident, tiny_model, tiny_data, monkeypatch):
    """Or in calls of two batches, where no more are to be resident."""
    model, images = tiny_model(), tiny_data.test.images[:50]
    expected = logits_of(model, images)
    monkeypatch.setattr(evaluation, "has_accelerator", lambda: True)
    monkeypatch.setattr(evaluation, "RESIDENT_BYTES", resident)
    logits = logits_of(model, images, batch_size=16)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [48, 50])
def test_batches_share_memory_unless_they_are_padded(count):
    images = np.arange(count * 12, dtype="uint8").reshape(count, 2, 2, 3)
    batches = evaluation._in_batches(images, 16)
    assert batches.shape == (-(-count // 16), 16, 2, 2, 3)
    np.testing.assert_array_equal(batches.reshape(-1, 2, 2, 3)[:count], images)
    assert np.shares_memory(batches, images) == (count == 48)


def test_no_images_are_refused(tiny_model, tiny_data):
    line = refusal(logits_of, tiny_model(), tiny_data.test.images[:0])
    assert "there are no images" in line
    line = refusal(logits_of, tiny_model(), tiny_data.test.images[0])
    assert "which is images[None] for one image" in line
