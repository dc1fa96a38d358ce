"""The embedded dataset: deterministic, balanced, not linearly separable."""

import hashlib

import numpy as np
import pytest

from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError

CLASSES = len(shapes.FIGURES)


def digest(images, labels):
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def test_class_names_are_those_of_the_table():
    assert DATASETS["shapes"].class_names == tuple(shapes.FIGURES)


@pytest.mark.parametrize("count", [1, 10, 503])
def test_types_shapes_and_balance(count):
    images, labels = shapes.draw(count, seed=3)
    assert images.shape == (count, 32, 32, 3)
    assert labels.shape == (count,)
    assert images.dtype == labels.dtype == np.uint8
    counts = np.bincount(labels, minlength=CLASSES)
    assert len(counts) == CLASSES
    assert counts.max() - counts.min() <= 1


def test_bytes_are_the_same_on_every_machine():
    # Published results name this data: a change of the drawing is a new
    # dataset, so it has to be made on purpose.
    assert (
        digest(*shapes.draw(600, seed=0))
        == "f941d2a184b7bba77772cc7e5770ae6c3b6e9fb1f2f0796bfd906647a3ce7b74"
    )


def test_seeds_differ_and_labels_are_shuffled():
    images, labels = shapes.draw(200, seed=0)
    other_images, other_labels = shapes.draw(200, seed=1)
    assert np.all(np.any(images != other_images, axis=(1, 2, 3)))
    assert np.any(labels != other_labels)
    assert np.any(np.diff(labels.astype(int)) < 0)


def test_images_are_all_different():
    images, _ = shapes.draw(1000, seed=0)
    assert len({image.tobytes() for image in images}) == 1000


@pytest.mark.parametrize("name", shapes.FIGURES)
def test_figure_is_a_signed_distance_inside_its_frame(name):
    axis = np.linspace(-1.5, 1.5, 301, dtype="float32")
    x, y = np.meshgrid(axis, axis)
    distance = shapes.FIGURES[name](x, y)
    radius = np.hypot(x, y)
    inside = distance < 0
    assert distance.dtype == np.float32
    assert 0.5 < inside.sum() * 0.01**2 < 2.3, "area of the figure"
    assert 0.75 < radius[inside].max() < 1.15, "reach of the figure"
    # Never steeper than a distance: edges are a pixel wide or softer.
    slope = np.abs(np.diff(distance, axis=0)) / np.diff(axis)[:, None]
    assert slope.max() < 1.01


@pytest.mark.slow
def test_linear_model_stays_under_60_percent():
    images, labels = shapes.draw(10000, seed=0)
    test_images, test_labels = shapes.draw(2000, seed=1)
    x, test_x = (
        part.reshape(len(part), -1).astype("float32") / 128 - 1
        for part in (images, test_images)
    )
    gram, target = x.T @ x, x.T @ np.eye(CLASSES, dtype="float32")[labels]
    accuracies = []
    for ridge in (1e3, 1e5):
        regularised = gram + ridge * np.eye(len(gram), dtype="float32")
        weights = np.linalg.solve(regularised, target)
        predicted = (test_x @ weights).argmax(axis=1)
        accuracies.append(np.mean(predicted == test_labels))
    assert max(accuracies) < 0.6


@pytest.mark.parametrize(
    "arguments, message",
    [((0, 0), "count must be 1 or more"), ((1, -1), "seed must be 0 or more")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        shapes.draw(*arguments)
