"""What several commands share: options, the files they name, and output."""

import argparse
from pathlib import Path
from typing import Any

from keras_resnet_cifar.data.datasets import DATASETS, SOURCES, check_known
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.training.run_directory import find_run

_METAVARS = {str: "VALUE", int: "N", float: "X", Path: "PATH"}


def add(parser: Any, *options: tuple) -> None:
    """Adds arguments `(flag, type, help[, default])` to a parser or a group.

    The type is `bool` for an option without a value, or a tuple of choices.
    """
    for flag, kind, text, *defaults in options:
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        values: dict[str, Any] = {"choices": kind}
        if not isinstance(kind, tuple):
            values = {"type": kind, "metavar": _METAVARS[kind]}
        if defaults:
            text = f"{text} (default: {defaults[0]})"
            values["default"] = defaults[0]
        parser.add_argument(flag, help=text, **values)


def add_data_options(parser: Any, default: str) -> None:
    """Adds the options of the dataset; the help names the default given."""
    names = (
        f"{', '.join(DATASETS)}, or a folder with train/ (and val/, test/), "
        f"each with one folder per class (default: {default})"
    )
    folder = (
        "a copy of the data in any layout (default: KERAS_RESNET_CIFAR_DATA, "
        "the caches of Keras, torchvision and tfds, then a download)"
    )
    sources = "; ".join(f"{name}: {text}" for name, text in SOURCES.items())
    add(
        parser,
        ("--dataset", str, names),
        ("--data-dir", Path, folder),
        ("--source", str, sources),
        ("--allow-unverified", bool, "accept data that is not as published"),
    )


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
    """Returns the arguments of `load_dataset` with which to try a checkpoint.

    They are those of its run unless options replace them. Also returns whether
    the dataset is that of the run.
    """
    run = find_run(path)
    request = run.read_config()["request"] if run else {}
    same = args.dataset in (None, request.get("name"))
    request = (request if same else {"name": args.dataset}) | data_options(args)
    if "name" not in request:
        raise InputError(
            f"{path} is not in a run directory: name its --dataset "
            f"({', '.join(DATASETS)})"
        )
    check_known(request["name"], request.get("source"))
    return request, same


def checkpoints(path: Path, which: str = "last") -> list[Path]:
    """Returns the `.keras` files that are meant by a file or run directory.

    `which` of a run is "last", "best" or "all".
    """
    if path.is_file():
        return [path]
    run = newest_run(path)
    files = {"last": [run.last], "best": [run.best]}.get(
        which, [*run.checkpoints(), run.best, run.last]
    )
    if not any(file.is_file() for file in files):
        raise InputError(
            f"{path} has no {files[-1].name}: name a run that has finished an "
            "epoch, or a .keras file"
        )
    return [file for file in files if file.is_file()]


def scores(test: dict[str, Any]) -> str:
    """Returns an `Evaluation`, given as JSON, as one line."""
    return (
        f"top-1 {test['top1']:.2%}, top-5 {test['top5']:.2%}, "
        f"loss {test['loss']:.4f}, calibration error {test['ece']:.4f}"
    )
