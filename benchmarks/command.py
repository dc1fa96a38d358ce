"""The command line of `scripts/benchmark.py`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import curve, table
from benchmarks.contenders import CONTENDERS
from keras_resnet_cifar.cli.main import run as run_command
from keras_resnet_cifar.cli.main import script_parser
from keras_resnet_cifar.cli.options import add_data_options, data_options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import check_known
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import check_replaceable, write_json
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.training.recipes import CHOICES, DEFAULT, get_recipe

_SETTING = ("arch", "batch_size", "precision")
_ROUNDS = ("steps", "rounds", "contenders", "dataloader", "quick")
_TRAINING = (
    "recipe",
    "epochs",
    "split",
    "dataset",
    "data_dir",
    "source",
    "allow_unverified",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["curve"]:
        return curve.main(arguments[1:])
    parser = script_parser(run)
    parser.epilog = (
        "accuracy over epochs and seconds: benchmark.py curve --help"
    )
    _add_options(parser)
    return run_command(parser, arguments)


def _add_options(parser):
    option = parser.add_argument
    option("--arch", help="the net (default: resnet20, or the recipe's)")
    size = "images per step (default: 128, or the recipe's)"
    option("--batch-size", type=int, help=size)
    precision = f"one of {', '.join(CHOICES['precision'])} (default: auto, or "
    option("--precision", help=precision + "the recipe's)")
    steps = "steps per round (default: 50; on an accelerator, 3,900)"
    option("--steps", type=int, help=steps)
    option("--rounds", type=int, help="number of rounds (default: 5)")
    option(
        "--contenders",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="A,B,...",
        help=f"contenders to time, of {', '.join(CONTENDERS)} (default: those "
        "that suit the device)",
    )
    option(
        "--dataloader",
        action="store_true",
        help="add PyTorch with a DataLoader (default: on an accelerator only)",
    )
    option(
        "--quick",
        action="store_true",
        help="few contenders and steps, to check that everything works",
    )
    option("--markdown", action="store_true", help="print a Markdown table")
    option("--output", type=Path, metavar="JSON", help="write the result")
    option(
        "--show",
        type=Path,
        metavar="JSON",
        help="print a result written by --output instead of measuring",
    )
    group = parser.add_argument_group("seconds to an accuracy, on real data")
    option = group.add_argument
    option(
        "--time-to",
        type=float,
        metavar="SHARE",
        help="train until this accuracy, such as 0.94, cold and warm",
    )
    option("--recipe", help=f"recipe to train with (default: {DEFAULT})")
    epochs = "maximum number of epochs (default: the recipe's)"
    option("--epochs", type=int, help=epochs)
    option(
        "--split",
        help="split to evaluate after each epoch: validation (5,000 images "
        "unless the recipe says otherwise) or test (default: validation)",
    )
    add_data_options(group, "the recipe's")


def run(args: argparse.Namespace) -> None:
    """Compare the speed of training with stock Keras and PyTorch."""
    _check(args)
    # A plain exit ends the workers and removes their caches.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if args.time_to is not None:
        result: Any = _time_to(args)
    else:
        result = table.read(args.show) if args.show else _benchmark(args)
        print((table.as_markdown if args.markdown else table.as_text)(result))
    if args.output:
        write_json(args.output, result)


def _check(args: argparse.Namespace) -> None:
    """Raises `InputError` for options that cannot be combined."""
    if args.time_to is not None:
        _refuse(args, (*_ROUNDS, "show", "markdown"), "with --time-to")
    else:
        _refuse(args, _TRAINING, "without --time-to")
    if args.show:
        _refuse(args, (*_SETTING, *_ROUNDS), "with --show")
    if args.output:
        check_replaceable(args.output)
        if not args.output.parent.is_dir():
            raise InputError(
                f"cannot write {args.output}: there is no folder "
                f"{args.output.parent}; create it first"
            )


def _refuse(args: argparse.Namespace, names: Sequence[str], where: str) -> None:
    for name in _given(args, names):
        raise InputError(f"{name}= cannot be used {where}: omit it")


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in names}
    return {k: v for k, v in values.items() if v is not None and v is not False}


def _benchmark(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.throughput import benchmark

    return benchmark(
        **_given(args, _SETTING),
        steps=args.steps,
        rounds=args.rounds,
        names=args.contenders,
        dataloader=args.dataloader,
        quick=args.quick,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )


def _time_to(args: argparse.Namespace) -> list[dict[str, Any]]:
    changes = _given(args, ("batch_size", "precision", "epochs"))
    recipe = get_recipe(args.recipe or DEFAULT, **changes)
    arch = architectures.resolve(args.arch or recipe.arch).name
    name = args.dataset or recipe.dataset
    check_known(name, args.source)
    import_keras()
    from benchmarks.time_to_accuracy import check_target, time_to
    from keras_resnet_cifar.data.load import load_dataset

    split = args.split or "validation"
    check_target(args.time_to, split)
    held_out = (recipe.validation or 5000) if split == "validation" else 0
    data = load_dataset(name, validation=held_out, **data_options(args))
    return time_to(args.time_to, data, arch, recipe, split)
