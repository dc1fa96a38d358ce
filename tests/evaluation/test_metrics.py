"""Metrics against values by hand, and against plain loops."""

import json
import math

import numpy as np
import pytest

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation import metrics


def names(classes):
    return [f"class{index}" for index in range(classes)]


def score(logits, labels):
    return metrics.score(logits, labels, names(np.shape(logits)[1]))


def random_case(n, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) * 2
    logits[np.arange(n), labels] += 1.5
    return logits, labels


# Logits of log p are probabilities p, so these are checked with a pencil.
BY_HAND = [
    # Two right at .8, one wrong at .6: gaps 2 * .2 and -.6, one of each bin.
    (
        np.log([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4]]),
        [0, 1, 1],
        {
            "top1": 2 / 3,
            "loss": -(2 * math.log(0.8) + math.log(0.4)) / 3,
            "ece": (0.4 + 0.6) / 3,
            "per_class": [1, 0.5],
            "confusion": [[1, 0], [1, 1]],
        },
    ),
    # In one bin a right and a wrong one balance: |1 - 2 * .55| / 2.
    (
        np.log([[0.55, 0.45], [0.55, 0.45]]),
        [0, 1],
        {"top1": 0.5, "ece": 0.05, "per_class": [1, 0]},
    ),
    # Six classes: the last label is sixth, out of the top five.
    (
        [[6.0, 5, 4, 3, 2, 1]] * 3,
        [0, 4, 5],
        {"top1": 1 / 3, "top5": 2 / 3},
    ),
    # A constant output ranks by index: right by chance only.
    (
        np.zeros((6, 6)),
        range(6),
        {"top1": 1 / 6, "top5": 5 / 6, "loss": math.log(6), "ece": 0},
    ),
    # Large logits neither overflow nor lose the loss.
    (
        [[1e4, 0.0], [0.0, 1e4]],
        [0, 0],
        {"top1": 0.5, "loss": 5e3, "ece": 0.5},
    ),
    # A class without images has no accuracy.
    ([[1.0, 0, 0]], [0], {"per_class": [1, math.nan, math.nan]}),
    # One class: every answer is right and certain.
    ([[3.0], [-2.0]], [0, 0], {"top1": 1, "loss": 0, "ece": 0}),
]


@pytest.mark.parametrize("logits, labels, expected", BY_HAND)
def test_values_by_hand(logits, labels, expected):
    evaluation = score(np.array(logits), np.array(labels))
    assert evaluation.n == len(logits)
    for name, value in expected.items():
        np.testing.assert_allclose(
            getattr(evaluation, name), value, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("classes", [2, 4, 5, 10, 100])
def test_equals_plain_loops(classes):
    logits, labels = random_case(500, classes)
    evaluation = score(logits, labels)

    loss = top1 = top5 = 0
    confusion = np.zeros((classes, classes), int)
    bins = [[] for _ in range(metrics.ECE_BINS)]
    for row, label in zip(logits, labels, strict=True):
        probability = np.exp(row) / np.exp(row).sum()
        best = np.argsort(-row)
        loss -= math.log(probability[label])
        top1 += best[0] == label
        top5 += label in best[:5]
        confusion[label, best[0]] += 1
        confidence = probability[best[0]]
        for index, members in enumerate(bins):
            low, high = (np.array([index, index + 1])) / metrics.ECE_BINS
            if low < confidence <= high:
                members.append((confidence, best[0] == label))
    ece = sum(
        len(members)
        / len(labels)
        * abs(
            np.mean([c for c, _ in members]) - np.mean([r for _, r in members])
        )
        for members in bins
        if members
    )

    assert evaluation.loss == pytest.approx(loss / 500)
    assert evaluation.top1 == top1 / 500
    assert evaluation.top5 == (top5 / 500 if classes > 5 else None)
    assert evaluation.ece == pytest.approx(ece)
    np.testing.assert_array_equal(evaluation.confusion, confusion)
    np.testing.assert_allclose(
        evaluation.per_class, confusion.diagonal() / confusion.sum(axis=1)
    )


def test_low_precision_is_scored_in_double():
    logits, labels = random_case(2000, 10)
    logits = logits.astype("float16")
    evaluation = score(logits, labels)
    assert evaluation.loss == score(logits.astype("float64"), labels).loss


def test_json_is_keyed_by_class_name_and_plain():
    evaluation = score(np.array([[2.0, 1, 0], [2.0, 1, 0]]), np.array([0, 1]))
    value = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert list(value) == [
        "n",
        "top1",
        "loss",
        "ece",
        "per_class",
        "confusion",
    ]
    assert value["per_class"] == {"class0": 1, "class1": 0, "class2": None}
    assert value["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_a_top5_of_up_to_five_classes_is_left_out():
    """It would be 100 %."""
    for classes in (2, 3, 5, 6):
        result = score(*random_case(50, classes))
        assert (result.top5 is None) == (classes <= 5)
        titles = list(metrics.described(result.to_json()))
        top5 = ["top-5"] * (classes > 5)
        assert titles == ["top-1", *top5, "loss", "calibration error"]


def test_repr_is_short():
    result = score(*random_case(50, 100))
    assert repr(result).startswith("Evaluation(n=50, top1=")
    assert len(repr(result)) < 160


def test_mistakes_come_most_confident_first():
    logits = np.log([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 1])
    mistakes = metrics.most_confident_mistakes(logits, labels, 2)
    np.testing.assert_array_equal(mistakes.indices, [2, 1])
    np.testing.assert_array_equal(mistakes.predicted, [1, 0])
    np.testing.assert_allclose(mistakes.probabilities, [0.8, 0.7])


@pytest.mark.parametrize("count, found", [(0, 0), (2, 2), (99, 3)])
def test_no_more_mistakes_than_there_are(count, found):
    logits, labels = np.eye(4)[[0, 0, 0, 0]], np.array([0, 1, 2, 3])
    mistakes = metrics.most_confident_mistakes(logits, labels, count)
    assert [len(part) for part in mistakes] == [found] * 3


GOOD = np.zeros((3, 2))


@pytest.mark.parametrize(
    "logits, labels, class_names, message",
    [
        (GOOD * np.nan, [0, 1, 0], "ab", "3 of 3 images are not finite"),
        ([[0, 0], [0, -np.inf]], [0, 1], "ab", "the first is image 1"),
        (GOOD, [0, 1], "ab", r"logits \(3, 2\), labels \(2,\)"),
        (GOOD[0], [0], "ab", r"logits must be \[N, C\]"),
        (GOOD[:0], np.zeros(0, int), "ab", "1 or more"),
        (GOOD, [0, 1, 2], "ab", "labels must be integers from 0 to 1.*0 to 2"),
        (
            GOOD,
            [0, 1, -1],
            "ab",
            "labels must be integers from 0 to 1.*-1 to 1",
        ),
        (GOOD, [0.0, 1, 0], "ab", "labels must be integers.*float64"),
        (GOOD, ["0", "1", "0"], "ab", "labels must be integers.*U1"),
        (GOOD, [0, 1, 0], "abc", "2 different names.*Received: 3"),
        (GOOD, [0, 1, 0], "aa", "2 different names.*1 different"),
    ],
)
def test_bad_input(logits, labels, class_names, message):
    with pytest.raises(InputError, match=message):
        metrics.score(np.array(logits), np.array(labels), class_names)


def test_bad_count():
    with pytest.raises(InputError, match="count must be 0 or more"):
        metrics.most_confident_mistakes(GOOD, np.zeros(3, int), -1)


def test_reliability_bins_add_up_to_the_error():
    logits, labels = random_case(500, 4)
    bins = metrics.reliability(logits, labels)
    full = bins.images > 0
    assert bins.images.sum() == 500
    assert np.isnan(bins.accuracy[~full]).all() and not full.all()
    gaps = (bins.images * abs(bins.accuracy - bins.confidence))[full]
    assert score(logits, labels).ece == pytest.approx(gaps.sum() / 500)
    edges = np.arange(16) / 15
    assert (bins.confidence[full] > edges[:-1][full]).all()
    assert (bins.confidence[full] <= edges[1:][full]).all()


@pytest.mark.parametrize(("top1", "n"), [(0.9, 10_000), (0.5, 400)])
def test_the_interval_is_that_of_a_binomial(top1, n):
    low, high = metrics.top1_interval(top1, n)
    width = 1.96 * math.sqrt(top1 * (1 - top1) / n)
    assert low == pytest.approx(top1 - width, abs=0.1 * width)
    assert high == pytest.approx(top1 + width, abs=0.1 * width)
    assert metrics.top1_interval(1.0, n) == (1, 1)
