"""The command that measures: `benchmark`."""

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from keras_resnet_cifar.cli.main import _data_options
from keras_resnet_cifar.cli.options import data_options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import check_known
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import check_replaceable, write_json
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.training.recipes import DEFAULT, get_recipe

_OF_TURNS = ("steps", "rounds", "contenders", "dataloader", "quick")
_OF_DATA = (
    "recipe",
    "epochs",
    "split",
    "dataset",
    "data_dir",
    "source",
    "allow_unverified",
)


def benchmark(args):
    """Time training beside PyTorch and the machine's limit, in turns."""
    from benchmarks import table as benchmark_table
    from benchmarks.throughput import benchmark as measure

    _check_benchmark(args)
    signal.signal(signal.SIGTERM, _leave)
    if args.time_to is not None:
        return _time_to(args)
    if args.show:
        found = benchmark_table.read(args.show)
    else:
        found = measure(
            **_given(args, "arch", "batch_size", "precision"),
            steps=args.steps,
            rounds=args.rounds,
            names=_names(args.contenders),
            dataloader=args.dataloader,
            quick=args.quick,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
    as_markdown = benchmark_table.markdown_of
    print((as_markdown if args.markdown else benchmark_table.text_of)(found))
    _write_found(found, args.output)


def _check_benchmark(args):
    """Raises `InputError` for options that go with others only."""
    if args.time_to is not None:
        _refuse(args, (*_OF_TURNS, "show", "markdown"), "with --time-to")
    else:
        _refuse(args, _OF_DATA, "without --time-to")
    if args.show:
        setting = ("arch", "batch_size", "precision")
        _refuse(args, (*setting, *_OF_TURNS), "with --show")
    if args.output:
        check_replaceable(args.output)
        if not args.output.parent.is_dir():
            raise InputError(
                f"cannot write {args.output}: there is no folder "
                f"{args.output.parent}; make it first"
            )


def _refuse(args, names, where):
    for name in _given(args, *names):
        raise InputError(
            f"--{name.replace('_', '-')} does not go {where}: leave it out"
        )


def _given(args, *names):
    """The options of these names that were given, as a dict."""
    held = {name: getattr(args, name) for name in names}
    return {k: v for k, v in held.items() if v is not None and v is not False}


def _names(contenders):
    return None if contenders is None else contenders.split(",")


def _leave(number, frame):
    """Ends the workers and removes their caches on the way."""
    sys.exit(128 + number)


def _time_to(args):
    """The part of `benchmark` that trains on the real data."""
    recipe = get_recipe(
        DEFAULT if args.recipe is None else args.recipe,
        batch_size=args.batch_size,
        precision=args.precision,
        epochs=args.epochs,
    )
    arch = architectures.parse(args.arch or recipe.arch).name
    name = args.dataset or recipe.dataset
    check_known(name, args.source)
    split = args.split or "validation"
    import_keras()
    from benchmarks.time_to_accuracy import check_target, time_to
    from keras_resnet_cifar.data.load import load_dataset

    check_target(args.time_to, split)
    held_out = recipe.validation or 5000
    data = load_dataset(
        name,
        validation=held_out if split == "validation" else 0,
        **data_options(args),
    )
    found = time_to(args.time_to, data, arch, recipe, split)
    _write_found(found, args.output)


def _write_found(found, path):
    if path:
        write_json(path, found)


def _benchmark_options(parser):
    parser.add_argument("--arch", help="(default: resnet20)")
    parser.add_argument("--batch-size", type=int, help="(default: 128)")
    parser.add_argument("--precision", help="(default: auto)")
    parser.add_argument(
        "--steps", type=int, help="a turn (default: what suits the device)"
    )
    parser.add_argument("--rounds", type=int, help="of turns (default: 5)")
    parser.add_argument(
        "--contenders",
        metavar="A,B,...",
        help=f"of {', '.join(CONTENDERS)} (default: those that suit the "
        "device)",
    )
    parser.add_argument(
        "--dataloader",
        action="store_true",
        help="also PyTorch with a DataLoader (default: on an accelerator only)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer contenders, short turns: under two minutes",
    )
    parser.add_argument("--markdown", action="store_true", help="for documents")
    parser.add_argument("--output", type=Path, metavar="JSON")
    parser.add_argument(
        "--show",
        type=Path,
        metavar="JSON",
        help="measure nothing, show what --output of an earlier run wrote",
    )
    group = parser.add_argument_group("seconds to an accuracy, on real data")
    group.add_argument(
        "--time-to",
        type=float,
        metavar="SHARE",
        help="train until this accuracy, such as 0.94, cold and warm",
    )
    group.add_argument("--recipe", help=f"(default: {DEFAULT})")
    group.add_argument("--epochs", type=int, help="(default: the recipe's)")
    group.add_argument(
        "--split",
        help="looked at after each epoch: validation or test (default: "
        "validation, 5,000 images unless the recipe says another number)",
    )
    _data_options(group, "the recipe's")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=benchmark.__doc__)
    _benchmark_options(parser)
    benchmark(parser.parse_args(arguments))
