"""Computes the metrics of a classifier from its logits, with NumPy."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from keras_resnet_cifar.errors import InputError

ECE_BINS = 15
TEST_TIME_AUGMENTATIONS = ("none", "flip")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of a classifier on one split.

    Attributes:
        class_names: C names.
        n: Number of images.
        top1: Share of images whose class has the highest logit, 0 to 1.
        top5: Share of images whose class is among the five highest; `None` for
            five classes or fewer.
        loss: Mean cross-entropy, in nats.
        ece: Expected calibration error, 0 to 1, over 15 bins of equal width
            (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
        per_class: float64 `[C]`, top-1 of each class; NaN without images.
        confusion: int64 `[C, C]`, counts: rows are true, columns predicted.
    """

    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    n: int
    top1: float
    top5: float | None
    loss: float
    ece: float
    per_class: np.ndarray = dataclasses.field(repr=False)
    confusion: np.ndarray = dataclasses.field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Returns plain Python values; a class without images has `None`.

        If `top5` is `None`, it has no entry.
        """
        values = dataclasses.asdict(self)
        if self.top5 is None:
            del values["top5"]
        names = values.pop("class_names")
        shares = [None if np.isnan(x) else float(x) for x in self.per_class]
        values["per_class"] = dict(zip(names, shares, strict=True))
        return values | {"confusion": self.confusion.tolist()}


def described(test: dict[str, Any]) -> dict[str, str]:
    """Returns the scores of an `Evaluation`, given as JSON, by their titles."""
    top5 = {"top-5": f"{test['top5']:.2%}"} if "top5" in test else {}
    return {
        "top-1": f"{test['top1']:.2%}",
        **top5,
        "loss": f"{test['loss']:.4f}",
        "calibration error": f"{test['ece']:.4f}",
    }


class Mistakes(NamedTuple):
    """Wrong predictions, most confident first; three arrays `[count]`."""

    indices: np.ndarray  # int64, rows of the logits
    predicted: np.ndarray  # int64, classes
    probabilities: np.ndarray  # float64, of the predicted class


def score(
    logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> Evaluation:
    """Evaluates logits, float `[N, C]`, against labels `[N]`, 0 to C - 1.

    Raises `InputError` if shapes disagree, N is 0, a label is out of range, a
    name is missing or repeated, or a logit is not finite.
    """
    logits, labels = checked(logits, labels)
    n, classes = logits.shape
    different = len(set(class_names))
    if not len(class_names) == different == classes:
        raise InputError(
            f"class_names must be {classes} different names, one for each "
            f"logit. Received: {len(class_names)}, {different} different"
        )
    predicted = logits.argmax(axis=1)
    # The number of classes that rank before the true one. Equal logits rank by
    # index, so that a constant output is right only by chance.
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(classes) < labels[:, None]
    rank = ((logits > true) | ((logits == true) & earlier)).sum(axis=1)
    confusion = np.zeros((classes, classes), "int64")
    np.add.at(confusion, (labels, predicted), 1)
    with np.errstate(invalid="ignore"):  # a class without images is 0 / 0
        per_class = confusion.diagonal() / confusion.sum(axis=1)
    log_probability = special.log_softmax(logits, axis=1)
    bins = reliability(logits, labels)
    gaps = bins.images * np.nan_to_num(bins.accuracy - bins.confidence)
    return Evaluation(
        class_names=tuple(class_names),
        n=n,
        top1=float(np.mean(rank < 1)),
        top5=float(np.mean(rank < 5)) if classes > 5 else None,
        loss=-float(log_probability[np.arange(n), labels].mean()),
        ece=float(np.abs(gaps).sum() / n),
        per_class=per_class,
        confusion=confusion,
    )


class Reliability(NamedTuple):
    """Predictions by their probability, in 15 bins of equal width (a, b]."""

    confidence: np.ndarray  # float64 `[15]`, mean probability; NaN if empty
    accuracy: np.ndarray  # float64 `[15]`, share that is right; NaN if empty
    images: np.ndarray  # int64 `[15]`, how many


def reliability(logits: np.ndarray, labels: np.ndarray) -> Reliability:
    """Returns how often predictions of each probability are right."""
    logits, labels = checked(logits, labels)
    confidence = softmax(logits).max(axis=1)
    right = logits.argmax(axis=1) == labels
    bins = np.ceil(confidence * ECE_BINS).astype("int64").clip(1, ECE_BINS) - 1
    count, confidences, rights = (
        np.bincount(bins, weights, minlength=ECE_BINS)
        for weights in (None, confidence, right)
    )
    with np.errstate(invalid="ignore"):  # an empty bin is 0 / 0
        return Reliability(confidences / count, rights / count, count)


def top1_interval(top1: float, n: int) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of an accuracy, 0 to 1.

    The number of correct predictions in a resample of n images is binomial; the
    interval lies between the 2.5 % and 97.5 % quantiles of 100,000 resamples
    (seed 0). It shows how much the accuracy could differ on another test split
    of n images, not after another training.
    """
    resamples = np.random.default_rng(0).binomial(n, top1, 100_000) / n
    low, high = np.quantile(resamples, (0.025, 0.975))
    return float(low), float(high)


def most_confident_mistakes(
    logits: np.ndarray, labels: np.ndarray, count: int
) -> Mistakes:
    """Returns at most `count` wrong predictions, the most confident first."""
    if count < 0:
        raise InputError(f"count must be 0 or more. Received: count={count}")
    logits, labels = checked(logits, labels)
    predicted, confidence = logits.argmax(axis=1), softmax(logits).max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    chosen = order[predicted[order] != labels[order]][:count]
    return Mistakes(chosen, predicted[chosen], confidence[chosen])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities float64 `[N, C]` of logits `[N, C]`."""
    return special.softmax(np.asarray(logits, "float64"), axis=1)


def checked(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns float64 logits and int64 labels; raises as `score`."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    whole = logits.ndim == 2 and logits.size > 0
    if not whole or labels.shape != logits.shape[:1]:
        raise InputError(
            "logits must be [N, C] and labels [N], N and C 1 or more. "
            f"Received: logits {logits.shape}, labels {labels.shape}"
        )
    last, found = logits.shape[1] - 1, f"{labels.dtype}"
    if fits := labels.dtype.kind in "iu":
        low, high = labels.min(), labels.max()
        found += f", {low} to {high}"
        fits = low >= 0 and high <= last
    if not fits:
        raise InputError(
            f"labels must be integers from 0 to {last}, one per logit. "
            f"Received: {found}"
        )
    logits = logits.astype("float64")
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        raise InputError(
            f"logits of {broken.size} of {len(logits)} images are not finite "
            f"(the first is image {broken[0]}): the model has diverged; use "
            "an earlier checkpoint or a lower learning rate"
        )
    return logits, labels.astype("int64")
