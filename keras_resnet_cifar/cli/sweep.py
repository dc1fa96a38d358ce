"""The command `sweep`."""

import argparse
import hashlib
import json
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from keras_resnet_cifar.cli import options, runs, train
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import check_known
from keras_resnet_cifar.errors import InputError, checked_seed
from keras_resnet_cifar.files import make_folder
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.models.weights import find_weights
from keras_resnet_cifar.training import many_runs, recipes, sweeps

_VALIDATION = 0.1  # of the train split, if the recipe holds out no images
# What may differ among the processes of a study.
_OWN = ("trials", "jobs", "storage", "output_dir", "worker")
_OF_A_HOST = ("data_dir", "source", "allow_unverified")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sweep`."""
    add = partial(options.add, parser)
    param = (
        "a field of the recipe to vary, such as learning_rate=log:0.05:0.8, "
        "momentum=linear:0.8:0.95 or batch_size=choice:64,128"
    )
    storage = (
        "URL of the database with the trials, which several processes and "
        "hosts may share (default: sqlite:///OUTPUT_DIR/sweep.db)"
    )
    folder = "folder of the results (default: one in runs/ for these options)"
    param_settings: dict[str, Any] = {"action": "append", "required": True}
    add("--param", str, param, metavar="NAME=RANGE", **param_settings)
    add("--trials", int, "finished trials to reach, in all processes", 40)
    add("--jobs", int, options.JOBS)
    add("--storage", str, storage, metavar="URL")
    add("--output-dir", Path, folder)
    add("--arch", str, "the net (default: the recipe's)")
    add("--weights", str, options.WEIGHTS)
    add("--seed", int, "random seed of every trial", 0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options.add_data_options(parser, "as in train")
    runs.add_recipe_options(parser, recipes.DEFAULT)


def run(args: argparse.Namespace) -> None:
    """Search for the best values of recipe fields by validation accuracy."""
    recipe = train.recipe_of(args)
    net = architectures.resolve(recipe.arch).name
    if args.weights:
        find_weights(args.weights, net)
    if not recipe.validation:
        recipe = replace(recipe, validation=_VALIDATION)
    checked_seed(args.seed)
    space = [sweeps.Parameter.parse(text, recipe) for text in args.param]
    if len({parameter.name for parameter in space}) < len(space):
        raise InputError("param= names a field twice: name it once")
    if args.trials < 1:
        raise InputError(f"trials={args.trials}: give 1 or more")
    jobs = many_runs.checked_jobs(args.jobs)
    check_known(recipe.dataset, args.source, args.data_dir)
    # The same options continue the same study.
    same = options.given(args, *_OWN, *_OF_A_HOST)
    text = json.dumps(same, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    data = Path(recipe.dataset).name
    name = f"sweep-{net}-{data}-{recipe.name}-{digest}"
    folder = args.output_dir or Path("runs", name)
    storage = args.storage or f"sqlite:///{folder / 'sweep.db'}"
    if args.storage is None:
        make_folder(folder)
    with sweeps.using(storage):
        study = sweeps.open_study(storage, name, recipe.epochs)
        if args.worker:
            return _work(args, study, space, recipe)
        make_folder(folder)
        left = max(args.trials - len(sweeps.finished(study)), 0)
        print(
            f"{name} in {sweeps.shown(storage)}: {left} trials to do",
            flush=True,
        )
        words = many_runs.flags(options.given(args))
        worker = [*many_runs.PACKAGE, "sweep", *words, "--worker"]
        tasks = [
            many_runs.Task(f"process {job + 1}", "sweep", iter([worker]))
            for job in range(min(jobs, left))
        ]
        go_on = f"{args.parser.prog} {shlex.join(words)}"
        failed = many_runs.run_all(tasks, go_on, jobs)
        _summarize(args, study, folder)
    options.exit_if(failed, go_on)


def _work(args, study, space, recipe):
    """Trains trials in this process."""
    import_keras()
    from keras_resnet_cifar.data.load import load_dataset

    split: Any = {"validation": recipe.validation, "seed": args.seed}
    split |= options.data_options(args)
    data = load_dataset(recipe.dataset, **split)

    def new_model(applied):
        return train.new_model(args, {"recipe": applied}, data)

    more = args.trials, args.seed, partial(print, flush=True)
    sweeps.run_trials(study, space, recipe, data, new_model, *more)


def _summarize(args, study, folder):
    """Draws a study; prints the command that trains its best recipe."""
    trials = sweeps.finished(study)
    pruned = sum(trial.state.name == "PRUNED" for trial in trials)
    print(f"trials finished: {len(trials)}, {pruned} of them pruned")
    if pruned == len(trials):
        return
    for path in sweeps.draw(study, folder):
        print(f"wrote {path}")
    best = study.best_trial
    print(
        f"best: trial {best.number}, validation {best.value:.4f}; to train it:"
    )
    given = options.given(args, "param", *_OWN) | best.params
    program = args.parser.prog.removesuffix("sweep") + "train"
    print(f"{program} {shlex.join(many_runs.flags(given))}")
