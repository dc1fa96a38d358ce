"""The subpackages: imports run downwards, public names have types."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import keras_resnet_cifar as krc

PACKAGE = Path(krc.__file__).parent
NAME = "keras_resnet_cifar"

# Each imports from its own row and from those before it.
LAYERS = (
    ("errors", "files", "device"),
    ("data",),
    ("pytorch",),
    ("models",),
    ("evaluation",),
    ("training",),
    ("finetuning",),
    ("export",),
    ("demo",),
    ("cli",),
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}

# What the command line needs for help and for errors, before Keras starts.
LIGHT = (
    "cli.main",
    "data.datasets",
    "errors",
    "files",
    "finetuning.backbones",
    "finetuning.phases",
    "models.architectures",
    "models.weights",
    "pytorch.files",
    "pytorch.schemes",
    "training.many_runs",
    "training.recipes",
    "training.run_directory",
    "training.sweeps",
)
HEAVY = ("keras", "tensorflow", "jax", "torch", "matplotlib", "pandas")


def modules():
    """{name without the package: path} of every module but __init__."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }


def imports(path):
    """Names of this package's modules that a module imports, anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(f"{NAME}."):
                yield name.removeprefix(f"{NAME}.")


def test_every_module_has_a_layer():
    assert {name.split(".")[0] for name in modules()} == set(LAYER)


@pytest.mark.parametrize("name", modules())
def test_imports_run_downwards(name):
    layer = LAYER[name.split(".")[0]]
    for imported in imports(modules()[name]):
        other = imported.split(".")[0]
        assert LAYER[other] <= layer, f"{name} imports {imported}"


def test_there_are_no_circular_imports():
    known = modules()
    graph = {
        name: {
            ".".join(parts[:depth])
            for parts in (i.split(".") for i in imports(path))
            for depth in (1, 2)
        }
        & set(known)
        for name, path in known.items()
    }
    while graph:
        leaves = {name for name, targets in graph.items() if not targets}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {n: t - leaves for n, t in graph.items() if n not in leaves}


def test_light_modules_import_nothing_heavy():
    lines = [f"import {NAME}.{name}" for name in LIGHT]
    lines += ["import sys", f"print(sorted(set({HEAVY}) & set(sys.modules)))"]
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "[]"


def public_functions():
    for name in krc.__all__:
        thing = getattr(krc, name)
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            for attribute, value in vars(thing).items():
                if inspect.isfunction(value) and (
                    attribute == "__init__" or not attribute.startswith("_")
                ):
                    yield f"{name}.{attribute}", value


def test_public_functions_have_types_and_docstrings():
    untyped = []
    for name, function in public_functions():
        parameters = inspect.signature(function).parameters
        missing = [
            p.name
            for p in parameters.values()
            if p.name != "self" and p.annotation is p.empty
        ]
        generated = "dataclass" in str(function.__code__.co_filename)
        if missing and not generated:
            untyped.append((name, missing))
        if "." not in name:
            assert function.__doc__, f"{name} has no docstring"
    assert not untyped


def test_every_public_name_exists():
    assert krc.__version__
    for name in krc.__all__:
        assert getattr(krc, name) is not None
    assert set(dir(krc)) >= {"train", "build_resnet", "schedules"}
    with pytest.raises(AttributeError, match="tarin"):
        _ = krc.tarin
