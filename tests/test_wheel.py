"""The wheel, outside of the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORTED = "import keras_resnet_cifar as krc; print(krc.__file__)"


@pytest.mark.slow
def test_it_passes_quick_tests(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "keras_resnet_cifar",
        source / "keras_resnet_cifar",
        ignore=ignored,
    )
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, elsewhere / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", elsewhere)

    command = ["pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (wheel,) = tmp_path.glob("keras_resnet_cifar-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)

    def python(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )

    assert python("-c", IMPORTED).stdout.startswith(str(site))
    tests = ("tests/models/test_weights.py", "tests/test_subpackages.py")
    result = python("-m", "pytest", "-q", "-n0", *tests)
    assert result.returncode == 0, result.stdout
