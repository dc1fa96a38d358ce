"""Shared by the commands: options, the files they name, and output."""

import argparse
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from keras_resnet_cifar.data import folders
from keras_resnet_cifar.data.datasets import (
    DATASETS,
    SOURCES,
    check_known,
    spelled_dataset,
)
from keras_resnet_cifar.errors import InputError, spelled
from keras_resnet_cifar.evaluation.metrics import described, top1_interval
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.pytorch.files import refuse_checkpoint
from keras_resnet_cifar.training.run_directory import check_data, find_run

WEIGHTS = (
    "trained weights to start from: a name that the list command shows for "
    "this net, hf://user/name, or a .keras or PyTorch file (default: none)"
)
JOBS = "trainings to run at once (default: one per GPU, or 1 without a GPU)"
_METAVARS = {str: "VALUE", int: "N", float: "X", Path: "PATH"}


def add(
    parser: Any,
    flags: str,
    kind: Any,
    text: str,
    default: Any = None,
    **settings: Any,
) -> None:
    """Adds an argument, such as `"-o --output"`, to a parser or a group.

    `kind` is a type, `bool` for an option without a value, or a tuple of
    choices; `settings` are more arguments of `add_argument`.
    """
    if kind is bool:
        settings = {"action": "store_true"} | settings
    elif isinstance(kind, tuple):
        settings["choices"] = kind
        settings["type"] = partial(spelled, known=kind)
    else:
        settings = {"type": kind, "metavar": _METAVARS[kind]} | settings
    if default is not None:
        text = f"{text} (default: {default})"
        settings["default"] = default
    parser.add_argument(*flags.split(), help=text, **settings)


def add_data_options(parser: Any, default: str) -> None:
    """Adds the options of the dataset; `default` appears in the help."""
    names = (
        f"{', '.join(DATASETS)}, or a folder that holds train/ (optionally "
        f"val/, test/) with one folder per class (default: {default})"
    )
    folder = (
        "folder with CIFAR in any layout (default: KERAS_RESNET_CIFAR_DATA, "
        "else the caches of Keras, torchvision and tfds, else a download)"
    )
    sources = "; ".join(f"{name}: {text}" for name, text in SOURCES.items())
    sources += " (default: disk, then tfds)"
    unverified = "accept CIFAR images that differ from the published ones"
    add(parser, "--dataset", str, names, type=spelled_dataset)
    add(parser, "--data-dir", Path, folder)
    add(parser, "--source", str, sources)
    add(parser, "--allow-unverified", bool, unverified)


def add_allow_changed_data(parser: Any) -> None:
    """Adds `--allow-changed-data`."""
    text = "continue if a run's data have changed since training, and say so"
    add(parser, "--allow-changed-data", bool, text)


def dataset_name(args: argparse.Namespace) -> str | None:
    """Returns `--dataset` as a run records it: a folder by its full path."""
    if args.dataset is None or args.dataset in DATASETS:
        return args.dataset
    return os.path.abspath(args.dataset)


def class_names(dataset: str) -> tuple[str, ...]:
    """Returns the classes of a dataset or a folder, without loading images."""
    check_known(dataset)
    if dataset in DATASETS:
        return DATASETS[dataset].class_names
    return folders.class_names(dataset)


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `load_dataset` that were given as options."""
    given = {
        "data_dir": args.data_dir and str(args.data_dir),
        "source": args.source,
        "allow_unverified": args.allow_unverified or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def data_request(
    path: Path, args: argparse.Namespace
) -> tuple[dict[str, Any], bool]:
    """Returns the arguments of `load_dataset` to evaluate a checkpoint on.

    They are those of its run unless options override them. Also returns whether
    the dataset is that of the run.
    """
    run = find_run(path)
    request = run.read_config()["request"] if run else {}
    same = dataset_name(args) in (None, request.get("name"))
    request = (request if same else {"name": args.dataset}) | data_options(args)
    if "name" not in request:
        fault = "is not in a run directory"
        if run:
            fault = "was trained on data given in Python (see krc.evaluate)"
        raise InputError(
            f"{path} {fault}: give --dataset ({', '.join(DATASETS)}, or a "
            "folder)"
        )
    source, data_dir = request.get("source"), request.get("data_dir")
    check_known(request["name"], source, data_dir)
    return request, same


def loaded(
    checkpoints: Iterable[tuple[Path, dict[str, Any]]], allow_changed_data: bool
) -> Iterator[tuple[Any, Any, dict[str, Any], str]]:
    """Loads checkpoints, each with the data of its request.

    Yields the model, its `Dataset`, the config of its run (empty without one),
    and words to be printed where the data have changed since the training.
    """
    from keras_resnet_cifar.data.load import at_input_size, load_dataset
    from keras_resnet_cifar.models.saving import load_model

    last = None
    for path, request in checkpoints:
        model, run = load_model(path), find_run(path)
        request = at_input_size(request, model.input_shape)
        if request != last:  # most often, all models share one dataset
            data, last = load_dataset(**request), request
        config, changed = run.read_config() if run else {}, ""
        if config and config["dataset"]["name"] == data.name:
            changed = check_data(config, data.fingerprints, allow_changed_data)
        yield model, data, config, changed


def checkpoints(path: Path, which: str = "last") -> list[Path]:
    """Returns the `.keras` files of a path, a file or a run directory.

    `which` selects those of a run: "last", "best" or "all".
    """
    if path.is_file():
        refuse_checkpoint(path)
        return [path]
    if not path.exists():
        raise InputError(f"{path} does not exist: give a run or a .keras file")
    run = newest_run(path)
    files = {"last": [run.last], "best": [run.best]}.get(
        which, [*run.checkpoints(), run.best, run.last]
    )
    if not any(file.is_file() for file in files):
        raise InputError(
            f"{path} has no {files[-1].name}: give a run that has finished an "
            "epoch, or a .keras file"
        )
    return [file for file in files if file.is_file()]


def given(args: argparse.Namespace, *left_out: str) -> dict[str, Any]:
    """Returns the options that are not at their defaults, as `flags` takes."""
    return {
        name: value
        for name, value in vars(args).items()
        if value != args.parser.get_default(name) and name not in left_out
    }


def exit_if(failed: dict[str, int], go_on: str) -> None:
    """Exits if something failed: with 2 if all exit codes are 2, else 1."""
    if failed:
        names = ", ".join(f"{k} (exit code {v})" for k, v in failed.items())
        print(f"not finished: {names}; to continue: {go_on}", file=sys.stderr)
        sys.exit(2 if {*failed.values()} == {2} else 1)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Returns mean ± standard deviation, or one value as it is."""
    text = f"{statistics.mean(values):,.{digits}f}"
    if len(values) < 2:
        return text
    return f"{text} ± {statistics.stdev(values):,.{digits}f}"


def with_interval(accuracy: float, n: int) -> str:
    """Returns an accuracy on n images with its bootstrap interval."""
    low, high = top1_interval(accuracy, n)
    return f"{accuracy:.2%} ({low:.2%} to {high:.2%})"


def scores(test: dict[str, Any]) -> str:
    """Returns an `Evaluation`, given as JSON, as one line."""
    texts = described(test)
    texts["top-1"] = with_interval(test["top1"], test["n"])
    return ", ".join(f"{title} {text}" for title, text in texts.items())
