"""Models by their run or file, and what they predict of files and arrays."""

import shutil

import numpy as np
import pytest
from helpers import refusal
from PIL import Image

import keras_resnet_cifar as krc
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.finetuning.backbones import found_backbone
from keras_resnet_cifar.finetuning.pretrained import load_backbone
from keras_resnet_cifar.training.train import Run


@pytest.fixture
def run(tiny_model, tiny_data, tmp_path):
    """A folder like that of a run, with a model that names its classes."""
    model = tiny_model()
    model.class_names = tiny_data.class_names
    (tmp_path / "run").mkdir()
    krc.save_model(model, tmp_path / "run" / "last.keras")
    (tmp_path / "run" / "config.json").write_text("{}")
    return tmp_path / "run"


def test_a_model_by_its_run_or_file(run, tiny_data, tmp_path):
    moved = shutil.copy(run / "last.keras", tmp_path / "elsewhere.keras")
    for place in (run, str(run), moved):
        assert krc.load_model(place).class_names == tiny_data.class_names
    finished = Run(model := krc.load_model(run), [], {}, {}, run)
    assert krc.load_model(finished) is model
    assert "last.keras" in refusal(krc.load_model, tmp_path)
    (tmp_path / "tuned").mkdir()  # as by fine-tuning
    for name in ("last.keras", "config.json"):
        shutil.copy(run / name, tmp_path / "tuned" / name)
    assert krc.load_model(tmp_path).class_names == tiny_data.class_names


def test_what_is_no_image_is_refused(run, tiny_data):
    images, labels = tiny_data.test.images, tiny_data.test.labels
    model = krc.load_model(run)
    for wrong in (None, [], [images[0]], 3):
        assert "give paths" in refusal(krc.predict, model, wrong)
    for wrong in (images / 255, images * np.nan):
        assert "models take 0 to 255" in refusal(krc.predict, model, wrong)
    assert krc.predict(model, 0.0 * images[:1])  # black
    for words, pair in {
        "from 0 to 1": (images / 255, labels),
        "one label for each": (images, labels[1:]),
        "give (images, labels)": images,
    }.items():
        assert words in refusal(krc.evaluate, model, pair)


def test_classes_with_other_numbers_are_refused(run, tiny_data):
    model, images = krc.load_model(run), tiny_data.test.images
    first, second, *rest = tiny_data.class_names
    swapped = (second, first, *rest)
    line = f"{first} is class 1 here, but class 0 of {model.name}"
    assert line in refusal(krc.predict, model, images, swapped)
    assert line in refusal(krc.evaluate, model, tiny_data.test, swapped)
    translated = ("un", "deux", *rest)
    assert krc.evaluate(model, tiny_data.test, translated)


def test_evaluate_takes_arrays(run, tiny_data):
    images, labels = tiny_data.test.images, tiny_data.test.labels
    model = krc.load_model(run)
    expected = krc.evaluate(model, tiny_data).top1
    for given in (labels[:, None], np.eye(10)[labels]):
        assert krc.evaluate(model, (images, given)).top1 == expected


def test_files_folders_and_arrays_predict_alike(run, tiny_data, tmp_path):
    images, folder = tiny_data.test.images[:2], tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    paths = [folder / "a.png", folder / "more" / "b.PNG"]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    hidden = folder / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(paths[0], hidden / "a-checkpoint.png")
    by_array = krc.predict(run, images, top=10)
    by_folder = krc.predict(run, folder, top=10)
    assert krc.predict(run, paths, top=10) == by_folder
    assert [row["image"] for row in by_array] == [0, 1]
    assert [row["image"] for row in by_folder] == [*map(str, paths)]
    best = logits_of(krc.load_model(run), images).argmax(axis=1)
    for i, row in enumerate(by_folder):
        assert row["classes"] == by_array[i]["classes"]
        assert row["classes"][0]["class"] == tiny_data.class_names[best[i]]
        shares = [entry["probability"] for entry in row["classes"]]
        assert sum(shares) == pytest.approx(1)


def test_names_that_are_given_come_first(run, tiny_model, tiny_data):
    images = tiny_data.test.images[:1]
    (row,) = krc.predict(run, images, [f"kind {i}" for i in range(10)])
    assert row["classes"][0]["class"].startswith("kind ")
    (row,) = krc.predict(tiny_model(), images)
    assert row["classes"][0]["class"].isdecimal()


def test_what_predict_refuses(run, tmp_path):
    model = krc.load_model(run)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    for images, names, word in (
        (tmp_path / "a.png", ("one", "two"), "10 outputs"),
        (tmp_path / "none.png", None, "none.png does not exist"),
        (tmp_path / "empty", None, "has no images"),
        (np.zeros((32, 32, 3), "uint8"), None, "[N, H, W, 3]"),
        (np.zeros((1, 16, 16, 3), "uint8"), None, "takes images"),
    ):
        assert word in refusal(krc.predict, model, images, names)


def test_a_run_is_a_backbone(run):
    assert found_backbone(run) == str(run / "last.keras")
    assert found_backbone("ResNet-50") == "resnet50"
    assert found_backbone("resnet20") == "resnet20"
    backbone, preprocessing, side = load_backbone(run)
    assert (preprocessing, side) == (None, 32)
    for one, other in zip(
        backbone.get_weights(), krc.load_model(run).get_weights(), strict=False
    ):
        np.testing.assert_array_equal(one, other)
