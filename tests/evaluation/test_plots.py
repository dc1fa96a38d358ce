"""Plots: PNG files that decode, without a display and with readable text."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_resnet_cifar.data.load import Split
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation import plots
from keras_resnet_cifar.evaluation.metrics import Mistakes


def size(path):
    """Returns (width, height) of a PNG that decodes and is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.ptp(np.asarray(image.convert("L"))) > 100
        return image.size


def row(epoch, **values):
    return {"epoch": epoch, "loss": 1 / epoch, "accuracy": 0.5, **values}


HISTORIES = {
    "no epoch": [],
    "one epoch": [row(1)],
    "everything": [
        row(
            epoch,
            val_loss=2 / epoch,
            val_accuracy=0.4,
            learning_rate=0.1,
            images_per_second=1000.0,
        )
        for epoch in range(1, 5)
    ],
    "several runs": [
        row(epoch, loss=1 / epoch + run / 10, val_accuracy=0.1 * run)
        for run in range(3)
        for epoch in range(1, 4 + run)
    ],
    "gaps": [row(1, val_loss=None), row(2, val_loss=""), row(3, val_loss=2)],
    "diverged": [row(1), row(2, loss=float("nan"))],
    "text of a CSV file": [{"epoch": "1", "loss": "2.0", "accuracy": "0.5"}],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_curves(tmp_path, history):
    plots.plot_curves(history, tmp_path / "curves.png")
    width, height = size(tmp_path / "curves.png")
    assert width > 2 * height, "three panels side by side"


def drawn(monkeypatch, *arguments):
    """The figure that `plot_curves` draws."""
    figures = []
    monkeypatch.setattr(
        plots, "_save", lambda figure, _: figures.append(figure)
    )
    plots.plot_curves(*arguments)
    return figures[0]


def test_one_bad_epoch_does_not_flatten_the_losses(monkeypatch):
    history = [row(e, val_loss=1.2 / e + 311 * (e == 1)) for e in range(1, 13)]
    loss = drawn(monkeypatch, history, "").axes[0]
    assert 1 <= loss.get_ylim()[1] <= 3
    assert "312" in loss.get_title()
    history = [row(e, val_loss=3 / e) for e in range(1, 200)]
    loss = drawn(monkeypatch, history, "").axes[0]
    assert loss.get_ylim()[1] > 3
    assert loss.get_title() == "loss"


def test_rates_are_drawn_by_the_step_under_a_title(monkeypatch):
    history = [row(1, learning_rate=0.2), row(2, learning_rate=0.4)]
    rates = np.linspace(0, 0.4, 20).reshape(2, 10)
    figure = drawn(monkeypatch, history, "", "resnet20 on cifar10", rates)
    assert figure.get_suptitle() == "resnet20 on cifar10"
    epochs, values = figure.axes[2].lines[0].get_data()
    np.testing.assert_allclose(epochs, np.arange(20) / 10)
    np.testing.assert_array_equal(values, rates.ravel())
    by_epoch = drawn(monkeypatch, history, "").axes[2].lines[0].get_data()
    np.testing.assert_array_equal(by_epoch, [[1, 2], [0.2, 0.4]])


def test_confusion_tells_where_its_cells_are(tmp_path):
    """The diagonal is dark, and is where the box says."""
    path = tmp_path / "confusion.png"
    names = ["one", "two", "a third with a long name"]
    left, top, right, bottom = plots.plot_confusion(np.eye(3), names, path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    for row, column in np.ndindex(3, 3):
        # Beside the number, which is in the middle.
        x = left + (column + 0.1) / 3 * (right - left)
        y = top + (row + 0.1) / 3 * (bottom - top)
        assert (pixels[int(y), int(x)] < 100) == (row == column)


@pytest.mark.parametrize(
    "classes", [2, pytest.param(20, marks=pytest.mark.slow), 100]
)
def test_confusion(tmp_path, classes):
    confusion = np.eye(classes, dtype=int) * 90 + 1
    confusion[0] = 0  # A class without images.
    names = [f"class number {index}" for index in range(classes)]
    plots.plot_confusion(confusion, names, tmp_path / "confusion.png")
    width, height = size(tmp_path / "confusion.png")
    # A label of 7 points is 11 pixels high, of 9 points 14.
    assert min(width, height) > classes * (14 if classes <= 20 else 11)


@pytest.mark.parametrize(
    "count", [0, 1, pytest.param(7, marks=pytest.mark.slow), 40]
)
def test_mistakes(tmp_path, count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 32, 32, 3), "uint8")
    plots.plot_mistakes(
        split=Split(images, np.zeros(50, int)),
        mistakes=Mistakes(
            indices=np.arange(10, 10 + count),
            predicted=np.ones(count, int),
            probabilities=np.full(count, 0.99),
        ),
        class_names=["cat", "dog"],
        path=tmp_path / "mistakes.png",
    )
    width, _ = size(tmp_path / "mistakes.png")
    assert width >= 200 * min(count, 2)


def test_grayscale_images_are_drawn_in_grey(tmp_path):
    images = np.random.default_rng(0).integers(100, 151, (4, 32, 32, 1))
    plots.plot_mistakes(
        split=Split(images.astype("uint8"), np.zeros(4, int)),
        mistakes=Mistakes(np.arange(4), np.ones(4, int), np.full(4, 0.9)),
        class_names=["cat", "dog"],
        path=tmp_path / "grey.png",
    )
    with Image.open(tmp_path / "grey.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == pixels[..., :1]).all()


def test_a_folder_that_is_absent_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*curves\.png"):
        plots.plot_curves([row(1)], tmp_path / "absent" / "curves.png")


def test_import_is_free_and_drawing_leaves_no_global_state(tmp_path):
    code = f"""
import sys
from keras_resnet_cifar.evaluation import plots
assert "matplotlib" not in sys.modules
plots.plot_curves([dict(epoch=1, loss=1.0)], {str(tmp_path / "a.png")!r})
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
