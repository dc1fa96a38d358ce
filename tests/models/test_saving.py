"""Saved models load with Keras alone; what is not a classifier is refused."""

import os
import subprocess
import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.export.export import export_model
from keras_resnet_cifar.finetuning.finetune import build_finetuned
from keras_resnet_cifar.finetuning.inference import predict
from keras_resnet_cifar.models import nets
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.saving import (
    check_classifier,
    load_model,
    names_of,
    save_model,
)

BACKENDS = [b for b in ("tensorflow", "jax", "torch") if find_spec(b)]
# Loads each NAME.keras; writes its logits for images.npy to NAME-BACKEND.npy.
LOAD = """
import pathlib, sys
sys.modules["keras_resnet_cifar"] = None  # importing it would fail
import keras, numpy as np
images = np.load("images.npy")
for path in pathlib.Path().glob("*.keras"):
    model = keras.saving.load_model(path)
    kinds = {type(layer) for layer in model.layers}
    assert all(kind.__module__.startswith("keras.") for kind in kinds), kinds
    logits = keras.ops.convert_to_numpy(model(images))
    np.save(f"{path.stem}-{keras.backend.backend()}", logits)
"""


def randomized(model):
    """The model with BatchNorm statistics as if it had been trained."""
    generator = np.random.default_rng(0)
    weights = [
        weight
        if weight.ndim > 1
        else (weight + generator.uniform(0.1, 0.5, weight.shape))
        for weight in model.get_weights()
    ]
    model.set_weights([weight.astype("float32") for weight in weights])
    return model


def assert_load_with_keras_alone(models, folder):
    """On all installed backends, each in a process of its own."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")
    np.save(folder / "images.npy", images)
    for name, model in models.items():  # with the names of its classes
        model.class_names = tuple(map(str, range(model.output_shape[-1])))
        save_model(model, folder / f"{name}.keras")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD],
            cwd=folder,
            env={**os.environ, "KERAS_BACKEND": backend},
        )
        for backend in BACKENDS
    ]
    assert [process.wait() for process in processes] == [0] * len(BACKENDS)
    for name, model in models.items():
        logits = keras.ops.convert_to_numpy(model(images))
        for backend in BACKENDS:
            # Other backends add in another order: float32 rounding over 8 to
            # 338 layers.
            loaded = np.load(folder / f"{name}-{backend}.npy")
            np.testing.assert_allclose(loaded, logits, rtol=1e-3, atol=1e-4)


def test_a_saved_model_needs_keras_only(tmp_path, monkeypatch):
    """Also nets so deep that they are built of sub-models."""
    monkeypatch.setattr(nets, "FLAT_BLOCKS", 1)
    monkeypatch.setattr(nets, "GROUP_BLOCKS", 1)
    model = build_resnet(
        stage_blocks=(1, 1), widths=(4, 8), shortcut="identity"
    )
    assert model.get_layer("stage2_block0_to_stage2_block0")
    assert_load_with_keras_alone({"net": randomized(model)}, tmp_path)


@pytest.mark.slow
def test_each_kind_of_net_needs_keras_only(tmp_path):
    """The deep one at Python's default recursion limit."""
    names = ("resnet8", "resnet8-conv3x3", "resnet20-preact", "resnet338")
    models = {name: randomized(build_resnet(name)) for name in names}
    deep = models["resnet338"]  # 168 residual sums overflow with such weights
    deep.set_weights([0.1 * weight for weight in deep.get_weights()])
    assert_load_with_keras_alone(models, tmp_path)


def test_a_model_is_loaded_as_it_was_saved(tiny_model, tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "net.keras")
    loaded = load_model(str(tmp_path / "net.keras"))
    assert loaded.name == model.name
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(loaded(images)),
        keras.ops.convert_to_numpy(model(images)),
    )


def test_a_model_is_not_saved_under_another_suffix(tiny_model, tmp_path):
    line = refusal(save_model, tiny_model(), tmp_path / "a.foo")
    assert "a.foo: name a .keras file" in line
    assert not list(tmp_path.iterdir())


def test_class_names_stay_in_the_file(tiny_model, tmp_path):
    """And in nets that get its weights."""
    model, path = tiny_model(), tmp_path / "net.keras"
    model.class_names = names = tuple("abcdefghiö")
    save_model(model, path)
    loaded = load_model(path)
    assert loaded.class_names == names_of(loaded) == names
    again = tiny_model(weights=path, normalization="auto")
    assert again.class_names == names
    del model.class_names
    save_model(model, path)
    assert names_of(load_model(path)) == tuple("0123456789")


def test_class_names_that_do_not_fit_are_refused(tiny_model, tmp_path):
    model, path = tiny_model(), tmp_path / "net.keras"
    model.class_names = ("one", "two")
    save_model(model, path)
    assert "10 outputs" in refusal(load_model, path)


def test_a_pytorch_file_is_not_called_damaged(tmp_path):
    path = tmp_path / "resnet20.th"
    path.write_bytes(b"whole")
    message = refusal(load_model, path)
    assert "damaged" not in message
    assert "convert" in message


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "net.keras"
    assert f"no model at {path}" in refusal(load_model, path)
    path.write_text("some text")
    assert f"{path} is damaged" in refusal(load_model, path)
    inputs = keras.Input((4,))
    keras.Model(inputs, inputs).save(path)
    assert f"{path} is not a classifier of images" in refusal(load_model, path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 100}, ["10 outputs", "a net of 100 outputs"]),
        ({"image_shape": (16, 16, 3)}, ["input_shape=(16, 16, 3)"]),
        ({"image_shape": (32, 32, 1)}, ["input_shape=(32, 32, 1)"]),
        ({"model": "resnet20"}, ["'resnet20' is not a classifier"]),
        ({"classes": 3, "name": "runs/a"}, ["runs/a has 10 outputs"]),
    ],
)
def test_a_classifier_must_fit(arguments, words, tiny_model):
    arguments = {"model": tiny_model()} | arguments
    message = refusal(lambda: check_classifier(**arguments))
    for word in words:
        assert word in message


def test_a_classifier_that_fits(tiny_model):
    check_classifier(tiny_model(), classes=10, image_shape=(32, 32, 3))
    any_size = tiny_model(input_shape=(None, None, 3))
    check_classifier(any_size, image_shape=(50, 20, 3))
    check_classifier(tiny_model(), image_shape=(None, None, 3))
    probabilities = tiny_model(activation="softmax")
    assert "logits are needed" in refusal(check_classifier, probabilities)


def ends_in(last):
    """A small classifier with one more layer or function at its end."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, last(x), name="own")


@pytest.mark.parametrize(
    ("last", "name"),
    [
        (keras.layers.Softmax(), "softmax"),
        (keras.layers.Activation("softmax"), "softmax"),
        (keras.layers.Activation("sigmoid", dtype="float32"), "sigmoid"),
        (keras.layers.ReLU(), "relu"),
        (keras.layers.Dense(10, activation="tanh"), "tanh"),
        (keras.ops.softmax, "softmax"),
        (keras.Sequential([keras.layers.Softmax()], name="head"), "softmax"),
        (ends_in, "softmax"),
        (
            keras.Sequential(
                [
                    keras.layers.Softmax(),
                    keras.layers.Reshape((10,)),
                    keras.layers.Activation("linear", dtype="float32"),
                    keras.layers.Dropout(0.1),
                ]
            ),
            "softmax",
        ),
    ],
)
def test_a_model_that_ends_in_an_activation(last, name):
    """As a layer of its own too, in a model of models too."""
    if last is ends_in:
        inputs = keras.Input((8, 8, 3))
        inner = keras.Sequential([ends_in(keras.layers.Softmax())])
        model = keras.Model(inputs, inner(inputs))
    else:
        model = ends_in(last)
    line = refusal(check_classifier, model)
    assert f"ends in {name}, but logits are needed" in line


@pytest.mark.parametrize(
    "last",
    [
        keras.layers.Dense(10),
        keras.layers.Activation("linear", dtype="float32"),
        keras.layers.Dropout(0.1),
        keras.Sequential([keras.layers.Softmax(), keras.layers.Dense(10)]),
    ],
)
def test_a_model_that_ends_in_logits(last):
    check_classifier(ends_in(last))


def test_what_is_for_rgb_refuses_one_channel(tiny_model, tmp_path):
    model = tiny_model(input_shape=(28, 28, 1), normalization=None)
    save_model(model, tmp_path / "grey.keras")
    for action in (
        lambda: predict(model, ["photo.png"]),
        lambda: export_model(model, tmp_path / "exported"),
        lambda: build_finetuned(tmp_path / "grey.keras", 3),
    ):
        assert "takes images (28, 28, 1)" in refusal(action)
    shape = {"input_shape": (28, 28, 1), "weights": "none"}
    line = refusal(lambda: build_finetuned("resnet18", 3, **shape))
    assert "backbones take RGB images" in line
