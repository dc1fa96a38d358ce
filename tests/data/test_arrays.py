"""Arrays of one's own: what becomes a `Dataset`, and twenty that do not."""

import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.data.load import Dataset, Split
from keras_resnet_cifar.data.splits import fingerprint

X, Y = shapes.draw(60, seed=0)
Y = Y.astype("int64")
GREY = X[..., :1]


def test_arrays_shaped_as_those_of_keras_datasets():
    test = (X[:20], Y[:20, None])
    names = tuple(shapes.FIGURES)
    data = Dataset.from_arrays(
        X, Y[:, None], class_names=names, validation=0.1, test=test
    )
    assert [len(s) for s in (data.train, data.validation, data.test)] == [
        *(54, 6, 20)
    ]
    assert data.test.labels.shape == (20,)
    assert data.class_names == names
    assert set(data.fingerprints) == {"train", "test"}
    assert not data.verified


def test_classes_are_counted_where_they_have_no_names():
    assert Dataset.from_arrays(X, Y).class_names == tuple("0123456789")
    rows = np.eye(12)[Y]
    data = Dataset.from_arrays(X, rows, validation=(GREY[:9], rows[:9]))
    assert data.num_classes == 12
    np.testing.assert_array_equal(data.train.labels, Y)
    assert len(data.validation) == 9


def test_floats_and_one_channel_are_taken():
    data = Dataset.from_arrays(GREY.astype("float64"), Y)
    assert data.train.images.dtype == "float32"
    assert data.train.images.shape == (60, 32, 32, 1)


def ten_rows(value=0):
    rows = np.eye(10)[Y]
    rows[0] = value
    return rows


WRONG = {
    "fewer labels": (X, Y[:50], "one label for each"),
    "fewer images": (X[:50], Y, "one label for each"),
    "no image": (X[:0], Y[:0], "at least one image"),
    "floats to 1": (X / 255, Y, "from 0 to 1, but models take 0 to 255: mult"),
    "floats to 1, cut to integers": (X // 128, Y, "multiply them by 255"),
    "black": (0 * X, Y, "from 0 to 0"),
    "floats around 0": (X / 127.5 - 1, Y, "from -1 to 1, but models take"),
    "16 bits": (X.astype("uint16") * 257, Y, "from 0 to 6.554e+04"),
    "not finite": (np.where(X > 250, np.nan, X), Y, "not finite"),
    "channels first": (X.transpose(0, 3, 1, 2), Y, "give numbers [N, H, W, 3]"),
    "no channels": (GREY[..., 0], Y, "images[..., None]"),
    "one image": (X[0], Y[:1], "images are uint8 (32, 32, 3)"),
    "opacity": (np.concatenate([X, GREY], -1), Y, "(60, 32, 32, 4)"),
    "texts": (X.astype(str), Y, "give numbers"),
    "ragged": ([X[0], X[1][:9]], Y[:2], "as arrays"),
    "labels from 1": (
        X,
        Y + 1,
        "for 10 classes, they must be whole numbers from 0 to 9",
    ),
    "labels below 0": (X, Y - 1, "whole numbers from 0"),
    "floats as labels": (X, Y / 2, "must be whole numbers, not float64"),
    "names as labels": (X, Y.astype(str), "must be whole numbers, not <U"),
    "infinite labels": (
        X,
        np.where(Y, np.inf, 0),
        "must be whole numbers, not float64",
    ),
    "numbers of articles": (X, Y * 10**10, "from 0 to 90000000000"),
    "12 columns": (X, np.eye(12)[Y], "one-hot [N, 10]"),
    "two columns": (X, np.stack([Y, Y], 1), "one label for each"),
    "shares as labels": (X, ten_rows(0.1), "one-hot rows"),
    "several classes": (X, ten_rows(1), "one-hot rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays_are_refused_however_they_come(name):
    images, labels, words = WRONG[name]
    names = tuple("abcdefghij")
    for make in (
        lambda: Dataset.from_arrays(images, labels, class_names=names),
        lambda: Dataset(train=Split(images, labels), class_names=names),
    ):
        line = refusal(make)
        assert line.startswith("train: ")
        assert words in line


@pytest.mark.parametrize("name", ["validation", "test"])
def test_each_split_is_checked(name):
    def given(pair):
        return refusal(lambda: Dataset.from_arrays(X, Y, **{name: pair}))

    assert given((X, Y[1:])).startswith(f"{name}: images are")
    assert f"{name}: give (images, labels)" in given(X)


@pytest.mark.parametrize("case", ["infinite labels", "numbers of articles"])
def test_labels_that_cannot_be_counted(case):
    images, labels, _ = WRONG[case]
    assert "whole numbers" in refusal(Dataset.from_arrays, images, labels)
    line = refusal(lambda: Dataset.from_arrays(X, -Y - 1))
    assert "labels are from -10 to -1" in line


@pytest.mark.parametrize("names", [10, "abcdefghij"])
def test_class_names_are_a_list(names):
    make = lambda: Dataset.from_arrays(X, Y, class_names=names)  # noqa: E731
    assert "give a list" in refusal(make)


def test_each_class_has_its_own_name():
    make = lambda: Dataset.from_arrays(X, Y, class_names=["a"] * 10)  # noqa: E731
    assert "a different name" in refusal(make)


def test_a_fingerprint_takes_any_label():
    image = np.zeros((1, 2, 2, 3), "uint8")
    prints = {fingerprint(image, np.array([x])) for x in (0, 256, 2**16, 2**24)}
    assert len(prints) == 4


def test_the_fingerprint_of_a_validation_split_is_kept():
    data = Dataset.from_arrays(X, Y, validation=(X[:9], Y[:9]))
    assert set(data.fingerprints) == {"train", "validation"}


def test_a_fraction_of_any_float_type():
    data = Dataset.from_arrays(X, Y, validation=np.float32(0.1))
    assert len(data.validation) == 6
    make = lambda: Dataset.from_arrays(X, Y, validation=True)  # noqa: E731
    assert "validation=True" in refusal(make)


def test_a_share_that_does_not_fit():
    assert "validation=60" in refusal(
        lambda: Dataset.from_arrays(X, Y, validation=60)
    )
