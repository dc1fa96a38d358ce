"""The README says what is there."""

import re
from pathlib import Path

import pytest

from keras_resnet_cifar.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PACKAGE = ROOT / "keras_resnet_cifar"


def rooms():
    """Modules in the README's order: a list of lists, a room each."""
    section = README.split("## Architecture of this package")[1].split("\n## ")[
        0
    ]
    lines = re.findall(r"^- ([a-z_, ]+):", section, re.MULTILINE)
    return [line.split(", ") for line in lines]


def imports_of(module):
    text = (PACKAGE / f"{module}.py").read_text()
    found = re.findall(
        r"from keras_resnet_cifar(?:\.(\w+))? import ([^(\n]+|\([^)]+\))", text
    )
    for home, names in found:
        yield from [home] if home else re.findall(r"(\w+)(?: as \w+)?", names)


def test_every_module_has_a_room():
    modules = {path.stem for path in PACKAGE.glob("[!_]*.py")}
    assert sorted(m for room in rooms() for m in room) == sorted(modules)


@pytest.mark.parametrize("room", rooms(), ids=lambda room: room[0])
def test_imports_run_one_way(room):
    place = {name: i for i, names in enumerate(rooms()) for name in names}
    for module in room:
        for imported in imports_of(module):
            if imported in place and imported != module:
                assert place[imported] <= place[module], (module, imported)


def test_every_recipe_is_in_the_table():
    for name in RECIPES:
        assert f"`{name}`" in README


def test_ci_calls_the_test_command():
    command = re.search(r"\.venv/bin/(python -m pytest)", README)[1]
    assert command in (ROOT / ".ci" / "run").read_text()
