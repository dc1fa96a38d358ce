"""Errors name arguments of Python, and names may be spelled in several ways."""

import ast
import re
from pathlib import Path

import pytest

import keras_resnet_cifar as krc
from keras_resnet_cifar.data.datasets import DATASETS, check_known
from keras_resnet_cifar.errors import spelled
from keras_resnet_cifar.export.verify import FORMATS
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.models.normalization import input_normalization
from keras_resnet_cifar.training.recipes import CHOICES, get_recipe

PACKAGE = Path(krc.__file__).parent


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("CIFAR-10", DATASETS, "cifar10"),
        ("cifar_100 Coarse", DATASETS, "cifar100-coarse"),
        ("tflite", FORMATS, "litert"),
        ("SavedModel", FORMATS, "saved_model"),
        ("bf16", CHOICES["precision"], "mixed_bfloat16"),
        ("bfloat16", CHOICES["precision"], "mixed_bfloat16"),
        ("Mixed-Float16", CHOICES["precision"], "mixed_float16"),
        ("bf16", FORMATS, "bf16"),
        ("mnist", DATASETS, "mnist"),
        ((1, 2), DATASETS, (1, 2)),
    ],
)
def test_spelled(name, known, meant):
    assert spelled(name, known) == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ResNet20", "resnet20"),
        ("RESNET20", "resnet20"),
        ("resnet_20", "resnet20"),
        ("ResNet-38", "resnet38"),
        ("ResNet_110_preact", "resnet110-preact"),
        ("WideResNet16-4", "wideresnet16-4"),
    ],
)
def test_architectures(name, meant):
    assert resolve(name).name == meant


def test_recipes_and_their_fields():
    recipe = get_recipe("Fast_40", precision="BF16", schedule="One-Cycle")
    assert recipe.name == "fast-40"
    assert recipe.precision == "mixed_bfloat16"
    assert recipe.schedule == ("one_cycle", {})


def test_normalizations():
    for name, meant in (("CIFAR-10", "cifar10"), ("per-image", "per_image")):
        one, other = (
            input_normalization(n).get_config() for n in (name, meant)
        )
        assert {**one, "name": ""} == {**other, "name": ""}


def test_a_folder_keeps_its_name(tmp_path, monkeypatch):
    """Also where a dataset is called alike."""
    monkeypatch.chdir(tmp_path)
    check_known("CIFAR-10")
    for name in ("one", "two"):
        (tmp_path / "CIFAR-10" / name).mkdir(parents=True)
    with pytest.raises(krc.InputError, match="CIFAR-10/one has no images"):
        krc.load_dataset("CIFAR-10")


def test_errors_outside_the_command_line_name_no_options():
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.parts:
            continue
        raised = [
            constant.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Raise)
            for constant in ast.walk(node)
            if isinstance(constant, ast.Constant)
            and isinstance(constant.value, str)
        ]
        options = [text for text in raised if re.search(r"(^|\s)--[a-z]", text)]
        assert not options, path
