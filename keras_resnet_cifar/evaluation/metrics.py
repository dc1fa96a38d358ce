"""Metrics of a classifier, from its logits, with NumPy alone."""

import dataclasses
from typing import NamedTuple

import numpy as np

from keras_resnet_cifar.errors import InputError

ECE_BINS = 15


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """How well logits agree with labels, over one split.

    Attributes:
        class_names: Tuple of C names.
        n: Number of images.
        top1: Share of images whose class has the highest logit, 0 to 1.
        top5: Share whose class is among the five highest (all, if C < 5).
        loss: Mean cross entropy, in nats.
        per_class: float64 `[C]`, the top-1 of each class; NaN without images.
        ece: Expected calibration error, 0 to 1, over 15 bins of equal width
            (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
        confusion: int64 `[C, C]`, counts: rows are true, columns predicted.
    """

    class_names: tuple
    n: int
    top1: float
    top5: float
    loss: float
    per_class: np.ndarray
    ece: float
    confusion: np.ndarray

    def to_json(self):
        """Returns plain Python values; a class without images has None."""
        return {
            "n": self.n,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "ece": self.ece,
            "per_class": {
                name: None if np.isnan(accuracy) else float(accuracy)
                for name, accuracy in zip(
                    self.class_names, self.per_class, strict=True
                )
            },
            "confusion": self.confusion.tolist(),
        }


class Mistakes(NamedTuple):
    """Wrong predictions, the most confident first; three arrays `[count]`."""

    indices: np.ndarray  # int64, rows of the logits
    predicted: np.ndarray  # int64, classes
    probabilities: np.ndarray  # float64, of the predicted class


def score(logits, labels, class_names):
    """Evaluates logits against the true labels.

    Equal logits rank by class index, so that a constant output is right by
    chance only.

    Args:
        logits: Float `[N, C]`, finite.
        labels: Integer `[N]`, from 0 to C - 1.
        class_names: C different names.

    Returns:
        An `Evaluation`.

    Raises:
        InputError: Shapes disagree, nothing to score, a label out of range,
            or a logit that is not finite.
    """
    logits, labels = _checked(logits, labels)
    n, classes = logits.shape
    if len(set(class_names)) != classes or len(class_names) != classes:
        raise InputError(
            f"class_names must be {classes} different names, one for each "
            f"logit. Received: {len(class_names)}, "
            f"{len(set(class_names))} different"
        )
    log_probability = _log_softmax(logits)
    predicted = logits.argmax(axis=1)
    rank = _rank(logits, labels)
    confusion = np.bincount(
        labels * classes + predicted, minlength=classes * classes
    ).reshape(classes, classes)
    per_class = np.full(classes, np.nan)
    images = confusion.sum(axis=1)
    np.divide(confusion.diagonal(), images, out=per_class, where=images > 0)
    return Evaluation(
        class_names=tuple(class_names),
        n=n,
        top1=float(np.mean(rank < 1)),
        top5=float(np.mean(rank < 5)),
        loss=float(-log_probability[np.arange(n), labels].mean()),
        per_class=per_class,
        ece=_calibration_error(
            np.exp(log_probability.max(axis=1)), predicted == labels
        ),
        confusion=confusion.astype("int64"),
    )


def most_confident_mistakes(logits, labels, count):
    """Returns the wrong predictions with the highest probability.

    Args:
        logits: Float `[N, C]`, finite.
        labels: Integer `[N]`, from 0 to C - 1.
        count: How many at most, 0 or more.

    Returns:
        `Mistakes`, fewer than `count` when there are no more.

    Raises:
        InputError: As `score`, or `count` is below 0.
    """
    if count < 0:
        raise InputError(f"count must be 0 or more. Received: count={count}")
    logits, labels = _checked(logits, labels)
    predicted = logits.argmax(axis=1)
    probability = np.exp(_log_softmax(logits).max(axis=1))
    wrong = np.flatnonzero(predicted != labels)
    order = np.argsort(-probability[wrong], kind="stable")
    chosen = wrong[order[:count]]
    return Mistakes(chosen, predicted[chosen], probability[chosen])


def softmax(logits):
    """Probabilities float64 `[N, C]` of logits `[N, C]`."""
    return np.exp(_log_softmax(np.asarray(logits, "float64")))


def _checked(logits, labels):
    logits, labels = np.asarray(logits), np.asarray(labels)
    if (
        logits.ndim != 2
        or 0 in logits.shape
        or labels.shape != logits.shape[:1]
    ):
        raise InputError(
            "logits must be [N, C] and labels [N], N and C 1 or more. "
            f"Received: logits {logits.shape}, labels {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels must be integers. Received: {labels.dtype}")
    classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels must be from 0 to {classes - 1}, as there are {classes} "
            f"logits. Received: {labels.min()} to {labels.max()}"
        )
    logits = logits.astype("float64")
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        raise InputError(
            f"logits of {broken.size} of {len(logits)} images are not finite "
            f"(the first is image {broken[0]}): the model has diverged, use "
            "an earlier checkpoint or a lower learning rate"
        )
    return logits, labels.astype("int64")


def _log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _rank(logits, labels):
    """Returns how many classes come before the true one, int `[N]`."""
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > true) | ((logits == true) & earlier)).sum(axis=1)


def _calibration_error(confidence, correct):
    """Returns the mean gap of confidence and accuracy over bins (a, b]."""
    bins = np.ceil(confidence * ECE_BINS).astype("int64").clip(1, ECE_BINS) - 1
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))
