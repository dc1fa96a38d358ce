"""The table of recipes, and what is refused."""

import dataclasses

import numpy as np
import pytest

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError, checked_seed
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.training.recipes import (
    DEFAULT,
    RECIPES,
    Recipe,
    get_recipe,
)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_stands_on_the_other_tables(recipe):
    net = architectures.resolve(recipe.arch).name
    assert net in architectures.ARCHITECTURES
    assert recipe.dataset in DATASETS
    assert recipe.source
    assert recipe.expected
    assert get_recipe(recipe) == recipe


def test_every_system_of_the_literature_and_of_the_reports_is_there():
    assert set(RECIPES) == {
        "fast",
        "fast-40",
        "fast-100",
        "onecycle",
        "paper",
        "paper-110",
        "wide",
        "cosine",
        "strong",
        "randaugment",
        "coursework-resnet20",
        "coursework-standard",
        "coursework-bottleneck",
        "coursework-cifar100",
        "coursework-finetune",
    }
    assert DEFAULT in RECIPES


def test_fields_can_be_replaced():
    recipe = get_recipe("paper", epochs=3, flip=False, batch_size=None)
    assert (recipe.epochs, recipe.flip, recipe.batch_size) == (3, False, 128)


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("papr", {}, "paper"),
        ("paper", {"epoch": 3}, "epochs"),
        ("paper", {"lr": 0.1}, "did you mean learning_rate?"),
        ("paper", {"bs": 64}, "did you mean batch_size?"),
        ("paper", {"wd": 1e-4}, "did you mean weight_decay?"),
        ("paper", {"decay": 1e-4}, "weight_decay"),
        ("paper", {"epochs": 0}, "at least 1"),
        ("paper", {"batch_size": 0}, "at least 1"),
        ("paper", {"epochs": 2.5}, "whole number"),
        ("paper", {"learning_rate": -0.1}, "at least 0"),
        ("paper", {"learning_rate": float("nan")}, "must be finite"),
        ("paper", {"learning_rate": float("inf")}, "finite"),
        ("paper", {"momentum": 1.0}, "below 1"),
        ("paper", {"label_smoothing": 1}, "below 1"),
        ("paper", {"precision": "float8"}, "mixed_bfloat16"),
        ("paper", {"padding_mode": "mirror"}, "reflect"),
        ("paper", {"optimizer": "adamw"}, "adam"),
        ("paper", {"random_resized_crop": 5000}, "at most 1024"),
        ("paper", {"decay_on": "biases"}, "kernels"),
        ("paper", {"schedule": ("cosinus", {})}, "cosine"),
        ("paper", {"epochs": "many"}, "number"),
        ("paper", {"epochs": 10**9}, "at most"),
        ("paper", {"flip": "no"}, "True or False"),
        ("paper", {"schedule": ("cosine",)}, "cosine"),
    ],
)
def test_bad_values(name, changes, word):
    with pytest.raises(InputError, match=word) as error:
        get_recipe(name, **changes)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_become_plain():
    recipe = get_recipe(
        "paper",
        epochs=np.int64(3),
        learning_rate=np.float32(0.5),
        schedule="cosine",
    )
    assert type(recipe.epochs) is int
    assert type(recipe.learning_rate) is float
    assert recipe.schedule == ("cosine", {})
    assert checked_seed(np.int32(7)) == 7


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["paper"].epochs = 1


def test_a_recipe_of_ones_own_needs_a_name_only():
    recipe = get_recipe(Recipe("mine", epochs=3))
    assert (recipe.source, recipe.expected) == ("not stated", "not stated")
