"""Temperature scaling."""

import json

import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.evaluation.calibration import fit_temperature
from keras_resnet_cifar.evaluation.evaluate import calibrate
from keras_resnet_cifar.evaluation.metrics import score, softmax


def drawn(temperature, n=20_000):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(n, 5)) * 3
    below = softmax(logits / temperature).cumsum(axis=1)
    return logits, (generator.random((n, 1)) > below).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    logits, labels = drawn(temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    names = list("abcde")
    before, after = (score(x, labels, names) for x in (logits, logits / fitted))
    assert after.top1 == before.top1
    assert after.ece < 0.02
    if temperature != 1:
        assert after.ece < before.ece / 3


def test_no_other_temperature_is_better():
    logits, labels = drawn(2.0, 300)
    fitted, names = fit_temperature(logits, labels), list("abcde")
    best = score(logits / fitted, labels, names).loss
    for other in (0.95 * fitted, 1.05 * fitted):
        assert best < score(logits / other, labels, names).loss


def test_the_ends_of_the_range():
    logits = np.array([[2.0, 0.0], [3.0, 0.0]])
    assert fit_temperature(logits / 100, np.zeros(2, int)) < 0.011
    assert fit_temperature(logits, np.ones(2, int)) > 99
    assert "labels" in refusal(fit_temperature, logits, np.array([0, 2]))


def test_a_calibration_is_json_and_a_picture(tmp_path):
    values = calibrate(drawn(3.0, 200), drawn(3.0, 500), tmp_path)
    assert json.loads((tmp_path / "calibration.json").read_text()) == values
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert values["loss_after"] < values["loss_before"]
    assert values["fitted_on"] == 200
