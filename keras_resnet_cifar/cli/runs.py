"""Shared by `train` and `finetune`: the options of a run, and its output."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.cli.start import import_keras, silent_stderr
from keras_resnet_cifar.data.datasets import check_known
from keras_resnet_cifar.errors import InputError, checked_seed, spelled
from keras_resnet_cifar.finetuning.phases import newest_run
from keras_resnet_cifar.training import recipes
from keras_resnet_cifar.training.run_directory import (
    DEFAULT_INTERVAL,
    RunDirectory,
    check_same,
    interval,
)

_DEVICES = (
    "number of devices that share each batch, or all; needs JAX (default: 1, "
    "or the number of the resumed run)"
)
_COORDINATOR = (
    "to train in several processes: an address of process 0 and a free port, "
    "or auto under Slurm; needs JAX"
)


@dataclass
class Request:
    """A run to start or to resume.

    `settings` are keyword arguments of `krc.train` or `krc.finetune`, `data`
    those of `krc.load_dataset`.
    """

    settings: dict[str, Any]
    data: dict[str, Any]


def add_run_options(parser: Any, recipe: str, dataset: str) -> None:
    """Adds the options of a run; `recipe` and `dataset` are the defaults."""
    options.add_data_options(parser, dataset)
    often = "time between backups, e.g. 30s, 10min, 1h, or a number of epochs"
    add = partial(options.add, parser)
    add("--output-dir", Path, "run directory to create (default: one in runs/)")
    add("--resume", Path, "run directory to resume")
    add("--backup-every", str, often, DEFAULT_INTERVAL)
    add("--deterministic", bool, "request bit-exact repeats on a GPU; slower")
    add("--devices", str, _DEVICES, type=number_or_all, metavar="N")
    add("--coordinator", str, _COORDINATOR, metavar="HOST:PORT")
    add("--num-processes", int, "number of processes in this run")
    add("--process-id", int, "number of this process, from 0")
    add("--seed", int, "random seed (default: 0)")
    add("--quiet", bool, "do not print progress, such as one line per epoch")
    add_recipe_options(parser, recipe)


def add_recipe_options(parser: Any, recipe: str) -> None:
    """Adds `--recipe`, and an option for each field of a recipe.

    `recipe` is the default; the help shows its values.
    """
    names = f"{', '.join(recipes.RECIPES)} (default: {recipe})"
    known = partial(spelled, known=recipes.RECIPES)
    options.add(parser, "--recipe", str, names, type=known)
    title = f"fields of the recipe to override (defaults of {recipe})"
    group = parser.add_argument_group(title)
    for field in recipes.OPTIONS:
        value = getattr(recipes.RECIPES[recipe], field.name)
        kind: Any = field.type
        settings: dict[str, Any] = {}
        if field.name == "schedule":
            value, _ = value
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
            value = "yes" if value else "no"
        elif kind is float:
            settings["type"] = number
        elif kind is not int:
            kind = recipes.CHOICES.get(field.name, str)
        text = field.metadata["help"] + f" ({value})" * (value is not None)
        flag = "--" + field.name.replace("_", "-")
        options.add(group, flag, kind, text, **settings)


def number_or_all(text: str) -> int | str:
    """Parses a number of devices, or `all`."""
    if text == "all" or text.isdecimal():
        return text if text == "all" else int(text)
    raise argparse.ArgumentTypeError(f"{text} is neither a number nor all")


def number(text: str) -> int | float:
    """Parses a number, as an int if possible, so that counts stay ints."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def recipe_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of the recipe that were given as options."""
    given = {field.name: getattr(args, field.name) for field in recipes.OPTIONS}
    if given["schedule"]:  # as a run records it
        given["schedule"] = (spelled(given["schedule"], recipes.SCHEDULES), {})
    return {name: value for name, value in given.items() if value is not None}


def new_run(
    args: argparse.Namespace,
    recipe: recipes.Recipe,
    net: str,
    directory: type = RunDirectory,
) -> Request:
    """Returns the request for a new run.

    `net` starts the default folder's name; `directory` is its class.
    """
    check_known(recipe.dataset, args.source, args.data_dir)
    stem = f"{net}-{Path(recipe.dataset).name}-{recipe.name}"
    path = args.output_dir or _unused_directory(stem)
    directory(path).check_unused()
    seed = checked_seed(args.seed or 0)
    settings = {"recipe": recipe, "output_dir": path, "seed": seed}
    data = {"validation": recipe.validation, "seed": seed}
    data |= {"name": recipe.dataset} | options.data_options(args)
    return Request(_settings(args) | settings, data)


def resumed_run(
    args: argparse.Namespace,
    config: Mapping[str, Any],
    recipe: recipes.Recipe,
    changes: Mapping[str, Any],
) -> Request:
    """Returns the request to resume a run.

    `config` and `recipe` are the run's; `changes` are the options that only
    this command has, as entries of a config.
    """
    data = config["request"]
    if "name" not in data:
        raise InputError(
            f"{args.resume} was trained on data given in Python: resume it "
            f"with krc.{args.command}(..., resume=True)"
        )
    # The config counts validation images; the options may give a fraction.
    asked = {"validation": data.get("validation")}
    run = {"output_dir": str(args.resume), "recipe": asdict(recipe) | asked}
    shared = {
        "output_dir": args.output_dir and str(args.output_dir),
        "recipe": {"name": args.recipe, **recipe_changes(args)},
        "dataset": {"name": options.dataset_name(args)},
        "seed": args.seed,
    }
    check_same({**config, **run}, {**changes, **shared})
    options.checkpoints(args.resume)
    # A run goes on with the same bits only on its own backend.
    os.environ.setdefault("KERAS_BACKEND", config["backend"])
    settings = _settings(args) | {
        "recipe": recipes.get_recipe(recipe, epochs=args.epochs),
        "output_dir": args.resume,
        "seed": config["seed"],
    }
    settings["deterministic"] |= config.get("deterministic", False)
    return Request(settings, data | options.data_options(args))


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    interval(args.backup_every)
    return {
        "deterministic": args.deterministic,
        "devices": args.devices,
        "resume": bool(args.resume),
        "backup_every": args.backup_every,
        "verbose": not args.quiet,
    }


def _unused_directory(stem: str) -> Path:
    """Returns runs/STEM, or the first of runs/STEM-2, ... that is free."""
    path, count = Path("runs", stem), 1
    while path.exists():
        count += 1
        path = Path("runs", f"{stem}-{count}")
    return path


def carry_out(
    args: argparse.Namespace,
    request: Request,
    new_model: Callable[[argparse.Namespace, dict[str, Any], Any], Any],
) -> None:
    """Starts Keras, runs the command's function, and prints the results.

    If there is a run to resume, an interruption gets a note with the command.
    """
    settings = request.settings
    recipe, path = settings["recipe"], settings["output_dir"]
    import_keras(settings["deterministic"])
    import keras

    import keras_resnet_cifar as krc
    from keras_resnet_cifar.models.saving import load_model
    from keras_resnet_cifar.training import hosts

    hosts.join(args.coordinator, args.num_processes, args.process_id)
    if not hosts.is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    with hosts.together():
        data: Any = krc.load_dataset(**request.data)
        if args.resume:
            model = load_model(*options.checkpoints(args.resume))
        else:
            with silent_stderr():  # it imports TensorFlow, on any backend
                keras.utils.set_random_seed(settings["seed"])
            model = new_model(args, settings, data)
    head = f"{settings['head_epochs']} + " if "head_epochs" in settings else ""
    print(
        f"{model.name} on {data.name} ({len(data.train):,} train, "
        f"{len(data.validation or ()):,} validation, {len(data.test):,} test "
        f"images; {'verified' if data.verified else 'NOT verified'}; "
        f"{data.source})\nrecipe {recipe.name}, epochs: {head}{recipe.epochs}, "
        f"run directory {path}"
    )
    try:
        run = getattr(krc, args.command)(model, data, **settings)
    except KeyboardInterrupt as interrupt:
        if newest_run(path).config.is_file():
            command = f"{args.parser.prog} --resume {shlex.quote(str(path))}"
            interrupt.add_note(f"to resume: {command}")
        raise
    for name, result in run.metrics.items():
        test = options.scores(result["test"])
        print(f"{name} (epoch {result['epoch']}): {test}")
    files = sorted(path.name for path in run.directory.iterdir())
    print(f"wrote {run.directory}: {', '.join(files)}")
