"""What `train` and `finetune` share: the options of a run, and its output."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import check_known
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.training import recipes
from keras_resnet_cifar.training.run_directory import (
    DEFAULT_INTERVAL,
    Interval,
    RunDirectory,
)


def add_run_options(parser: Any, recipe: str, dataset: str) -> None:
    """Adds the options of a run; the help names the defaults given here."""
    options.add_data_options(parser, dataset)
    often = "epochs between backups, or a time such as 30s, 10min or 1h"
    options.add(
        parser,
        ("--recipe", str, f"{', '.join(recipes.RECIPES)} (default: {recipe})"),
        ("--output-dir", Path, "where to write (default: a folder in runs/)"),
        ("--resume", Path, "continue the run in this folder"),
        ("--backup-every", str, often, DEFAULT_INTERVAL),
        ("--deterministic", bool, "repeat exactly on a GPU too; slower"),
        ("--seed", int, "random seed (default: 0)"),
        ("--quiet", bool, "do not print one line per epoch"),
    )
    group = parser.add_argument_group(
        "fields of the recipe to replace (the list command shows them)"
    )
    for field in recipes.OPTIONS:
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction)
        else:
            kinds: dict[Any, Any] = {int: int, float: number}
            kind = kinds.get(field.type, str)
            group.add_argument(flag, type=kind, metavar="VALUE")


def number(text: str) -> int | float:
    """Parses an int where it is one, so that counts stay counts."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def recipe_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of the recipe that were given as options."""
    given = {field.name: getattr(args, field.name) for field in recipes.OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def config_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what the options say of a resumed run, for `check_same`."""
    return {
        "output_dir": args.output_dir and str(args.output_dir),
        "recipe": {"name": args.recipe, **recipe_changes(args)},
        "dataset": {"name": args.dataset},
        "seed": args.seed,
    }


def settings_of(
    args: argparse.Namespace, recipe: recipes.Recipe, **settings: Any
) -> dict[str, Any]:
    """Returns the arguments of `train`; those not given are options."""
    Interval.parse(args.backup_every)
    return {
        "recipe": recipe,
        "deterministic": args.deterministic,
        "resume": bool(args.resume),
        "backup_every": args.backup_every,
        "verbose": not args.quiet,
    } | settings


def new_run(
    args: argparse.Namespace, recipe: recipes.Recipe, net: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments of `train` and of `load_dataset` for a new run.

    `net` is how the default directory's name begins.
    """
    check_known(recipe.dataset, args.source)
    stem = f"{net}-{Path(recipe.dataset).name}-{recipe.name}"
    path = args.output_dir or _unused_directory(stem)
    RunDirectory(path).check_unused()
    seed = recipes.checked_seed(args.seed or 0)
    settings = settings_of(args, recipe, output_dir=path, seed=seed)
    request = {"validation": recipe.validation, "seed": seed}
    request |= {"name": recipe.dataset} | options.data_options(args)
    return settings, request


def _unused_directory(stem: str) -> Path:
    """Returns runs/STEM, or the first of runs/STEM-2, ... that is free."""
    path, count = Path("runs", stem), 1
    while path.exists():
        count += 1
        path = Path("runs", f"{stem}-{count}")
    return path


@contextlib.contextmanager
def loaded(
    args: argparse.Namespace, settings: dict, request: dict, new_model: Callable
) -> Iterator[tuple[Any, Any]]:
    """Starts Keras; loads the model and the data, and prints what they are.

    An interruption is given a note on how to resume, once there is a run.
    """
    import_keras(settings["deterministic"])
    import keras

    from keras_resnet_cifar.data.load import load_dataset
    from keras_resnet_cifar.models.saving import load_model

    recipe, path = settings["recipe"], settings["output_dir"]
    data: Any = load_dataset(**request)
    if args.resume:
        model = load_model(*options.checkpoints(args.resume))
    else:
        keras.utils.set_random_seed(settings["seed"])
        model = new_model(args, recipe, data)
    head = f"{settings['head_epochs']} + " if "head_epochs" in settings else ""
    print(
        f"{model.name} on {data.name} ({len(data.train):,} train, "
        f"{len(data.validation or ()):,} validation, {len(data.test):,} test "
        f"images; {'verified' if data.verified else 'NOT verified'}; "
        f"{data.source})\nrecipe {recipe.name}, epochs: {head}{recipe.epochs}, "
        f"run directory {path}"
    )
    try:
        yield model, data
    except KeyboardInterrupt as interrupt:
        if newest_run(path).config.is_file():
            command = f"python -m {args.parser.prog} --resume {path}"
            interrupt.add_note(f"to resume: {command}")
        raise


def print_results(run: Any) -> None:
    """Prints the metrics of a finished run, and the files it wrote."""
    for name, result in run.metrics.items():
        test = options.scores(result["test"])
        print(f"{name} (epoch {result['epoch']}): {test}")
    files = sorted(path.name for path in run.directory.iterdir())
    print(f"wrote {run.directory}: {', '.join(files)}")
