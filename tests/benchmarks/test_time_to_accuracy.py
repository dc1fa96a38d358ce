"""Seconds to an accuracy: training stops there, and a line reports it."""

from dataclasses import replace

import pytest
from helpers import refusal

from benchmarks.time_to_accuracy import summary, time_to
from keras_resnet_cifar.training.recipes import get_recipe


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test", "validation"])
def test_training_stops_at_the_accuracy(tiny_data, split):
    lines = []
    if split == "test":
        tiny_data = replace(tiny_data, validation=None, name="/my/photos")
    recipe = get_recipe(
        "onecycle", epochs=2, batch_size=64, precision="float32"
    )
    runs = time_to(0.01, tiny_data, "resnet8", recipe, split, lines.append)
    assert [run["run"] for run in runs] == ["cold", "warm"]
    for run in runs:
        assert run["epochs"] == 1
        assert 0 < run["first_step"] < run["seconds"]
        assert run["accuracy"] >= 0.01
    assert all(f"on the {split} split" in line for line in lines)


def test_a_missing_validation_split_is_refused(tiny_data):
    data = replace(tiny_data, validation=None)
    message = refusal(time_to, 0.5, data, "resnet8", "onecycle")
    assert "validation=5000" in message


def test_an_accuracy_that_was_not_reached_is_reported():
    run = {"run": "cold", "seconds": None, "epochs": 3, "accuracy": 0.5}
    line = summary(run, 0.94, "test")
    assert "94.00% on the test split not reached in 3 epochs" in line
    assert "50.00% at most" in line
