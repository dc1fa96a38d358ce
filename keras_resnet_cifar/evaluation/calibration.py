"""Temperature scaling: calibrates the probabilities of a classifier."""

import numpy as np

from keras_resnet_cifar.evaluation.metrics import checked, softmax

_LOWEST, _HIGHEST = 0.01, 100.0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature that calibrates logits best.

    It minimizes the cross-entropy of `softmax(logits / temperature)` on the
    given images (Guo et al. 2017, arXiv:1706.04599). Predictions do not change.
    Fit it on validation images; on training images, it would be too low.

    Args:
        logits: Float `[N, C]`, finite.
        labels: Integer `[N]`, from 0 to C - 1.

    Returns:
        A float from 0.01 to 100; 100 if the logits carry no information about
        the labels.

    Raises:
        InputError: The shapes disagree, N is 0, a label is out of range, or a
            logit is not finite.
    """
    logits, labels = checked(logits, labels)
    true = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    # Cross-entropy is convex in 1 / temperature: its slope has one zero.
    low, high = 1 / _HIGHEST, 1 / _LOWEST
    for _ in range(60):
        inverse = np.sqrt(low * high)
        expected = (softmax(inverse * logits) * logits).sum(axis=1)
        if (expected - true).mean() < 0:
            low = inverse
        else:
            high = inverse
    return float(1 / inverse)
