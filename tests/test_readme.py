"""The README and the pages under docs/ say what is there."""

import ast
import functools
import importlib
import inspect
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import keras_resnet_cifar as krc
from benchmarks import reproduce
from keras_resnet_cifar.cli.main import COMMANDS, main
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.finetuning.backbones import BACKBONES
from keras_resnet_cifar.pytorch.schemes import SCHEMES
from keras_resnet_cifar.training.recipes import RECIPES, Recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# What the blocks of the README say, and what takes less time.
SHORTER = {
    '"fast"': 'krc.get_recipe("fast", epochs=1)',
    '"resnet20")': '"resnet8")',
    "resnet20 --dataset cifar10": "resnet8 --dataset shapes --epochs 1",
    "--epochs 10": "--epochs 1",
    "128, 12,": "128, 1,",
    'load_dataset("cifar10", validation=5000)': (
        'load_dataset("shapes", validation=5000)'
    ),
}


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def shortened(text):
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


def test_it_describes_each_subpackage():
    section = README.split("## Architecture of this package")[1]
    described = re.findall(r"^- `(\w+)` ", section, re.MULTILINE)
    packages = {p.parent.name for p in ROOT.glob("keras_resnet_cifar/*/*.py")}
    assert set(described) == packages


def test_it_can_be_finished():
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("recipes", RECIPES),
        ("pytorch", SCHEMES),
        ("finetuning", [b.removeprefix("resnet") for b in BACKBONES]),
        ("data", DATASETS),
    ],
    ids=["recipes", "schemes", "backbones", "datasets"],
)
def test_a_page_names_each_row_of_a_table(page, table):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for name in table:
        assert re.search(rf"`(?:resnet)?{name}`", text), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_paths_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    paths = r"(?:scripts|docs|tests|benchmarks)/\w+\.(?:py|md|ipynb)"
    for path in set(re.findall(paths, text)):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_code_is_in_blocks_of_a_language(page):
    fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
    assert all(fences[::2])
    assert not any(fences[1::2])


def test_the_reference_has_each_public_name():
    text = (ROOT / "docs" / "api.md").read_text()
    names = re.findall(r"^::: keras_resnet_cifar\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(krc.__all__)


@pytest.mark.parametrize("name", krc.__all__)
def test_public_names_have_docstrings(name):
    value = getattr(krc, name)
    if not isinstance(value, dict):
        assert value.__doc__


def test_the_site_has_each_page():
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    listed = re.findall(r"[\w-]+\.md", str(site["nav"]))
    pages = [p.name for p in (ROOT / "docs").glob("*.md")]
    assert sorted(listed) == sorted(pages)


def test_commands_on_all_pages_are_valid(monkeypatch, capfd):
    seen = []
    for name in itertools.chain(*COMMANDS.values()):
        module = importlib.import_module(f"keras_resnet_cifar.cli.{name}")
        parsed = functools.wraps(module.run)(lambda args: seen.append(args))
        monkeypatch.setattr(module, "run", parsed)
    monkeypatch.setattr(reproduce, "run", seen.append)
    count = 0
    for page in PAGES:
        text = "".join(blocks("bash", page.read_text())).replace("\\\n", "")
        for line in re.split("&&|\n", text):
            match = re.search(r"(?:scripts/|keras_resnet_cifar )(.*)", line)
            name, *arguments = shlex.split(match[1]) if match else [""]
            name = name.removesuffix(".py")
            if name == "reproduce":
                assert reproduce.main(arguments) == 0, line
            elif name in itertools.chain(*COMMANDS.values()):
                assert main([name, *arguments]) == 0, line
            else:
                continue
            count += 1
    assert len(seen) == count > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_on_all_pages_names_what_exists(page):
    for block in blocks("python", page.read_text()):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and "krc." in ast.unparse(node.func):
                function = eval(ast.unparse(node.func), {"krc": krc})
                parameters = inspect.signature(function).parameters
                known = {*parameters, None}
                if "changes" in parameters:  # of a recipe
                    known |= {field.name for field in fields(Recipe)}
                assert known >= {word.arg for word in node.keywords}, block


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} - " in (ROOT / "CHANGELOG.md").read_text()


def test_ci_uses_the_tested_versions():
    assert "-c constraints.txt" in (ROOT / ".ci" / "run").read_text()


def test_ci_calls_the_test_command():
    command = re.search(r"\.venv/bin/(python -m pytest)", README)[1]
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_its_python_runs(tmp_path, real_data):
    first, *others = blocks("python")
    code = first + "".join(map(shortened, others))
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    printed = result.stdout.splitlines()
    shown = re.search(r"# (\d+\.\d\d%)", first)[1]
    assert shown in printed


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    cells = [
        "".join(cell["source"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "interrupted" in result.stdout


@pytest.mark.slow
def test_the_sweep_by_ray_runs(tmp_path):
    pytest.importorskip("ray")
    (code,) = blocks("python", (ROOT / "docs" / "sweeps.md").read_text())
    result = subprocess.run(
        [sys.executable, "-c", code.replace("num_samples=4", "num_samples=2")],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # Ray may print a late line of a trial after it.
    best = r"^\{'learning_rate': 0\.\d+\} 0\.\d+$"
    found = re.findall(best, result.stdout, re.MULTILINE)
    assert len(found) == 1, result.stdout


@pytest.mark.slow
def test_its_commands_run(tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    commands = " && ".join(blocks("bash")).replace("\n", " ").split("&&")
    scripts = [c for c in commands if "scripts/" in c]
    assert scripts
    for command in map(shortened, scripts):
        command = command.replace(".venv/bin/python", sys.executable)
        result = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
