"""The README says what is there."""

import re
from pathlib import Path

import pytest

from keras_resnet_cifar.finetuning.backbones import BACKBONES
from keras_resnet_cifar.pytorch.schemes import SCHEMES
from keras_resnet_cifar.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_describes_each_room():
    section = README.split("## Architecture of this package")[1]
    described = re.findall(r"^- `(\w+)` ", section, re.MULTILINE)
    rooms = {p.parent.name for p in ROOT.glob("keras_resnet_cifar/*/*.py")}
    assert set(described) == rooms


@pytest.mark.parametrize("table", [RECIPES, SCHEMES], ids=["recipe", "scheme"])
def test_its_tables_have_a_row_for_each_name(table):
    for name in table:
        assert f"`{name}`" in README


def test_it_names_each_backbone():
    for name in BACKBONES:
        assert name.removeprefix("resnet") in README


def test_ci_calls_the_test_command():
    command = re.search(r"\.venv/bin/(python -m pytest)", README)[1]
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_scripts_it_names_are_there():
    for path in set(
        re.findall(r"(?:scripts|docs|tests|benchmarks)/\w+\.\w+", README)
    ):
        assert (ROOT / path).is_file(), path
