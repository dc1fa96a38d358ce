"""The option `--seeds` of `train`: one recipe, several seeds."""

import argparse
import json
import os
import re
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any

from keras_resnet_cifar.cli import options, runs
from keras_resnet_cifar.errors import InputError, checked_seed, explained
from keras_resnet_cifar.files import make_folder, write_json
from keras_resnet_cifar.training import hosts, many_runs
from keras_resnet_cifar.training.run_directory import RunDirectory, read_csv

_FILE, _MOST = "seeds.json", 1000
_COLUMNS = {
    "top1": "top-1",
    "loss": "loss",
    "ece": "calibration error",
    "seconds": "seconds",
}


def add_options(parser: Any) -> None:
    """Adds `--seeds` and `--jobs`."""
    seeds = "train one run per seed, for seeds such as 0-7 or 0,3,5"
    options.add(parser, "--seeds", str, seeds)
    options.add(parser, "--jobs", int, f"with --seeds: {options.JOBS}")


def are_meant(args: argparse.Namespace) -> bool:
    """Returns whether the options ask for several seeds."""
    saved = args.resume is not None and (args.resume / _FILE).is_file()
    if args.jobs is not None and not (args.seeds or saved):
        raise InputError("jobs= needs several trainings: give seeds=, too")
    return saved or args.seeds is not None


def parse(text: str) -> list[int]:
    """Parses `0-7`, `0,3,5` or `0-2,7`; raises `InputError`."""
    seeds: list[Any] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part.strip())
        low, high = match.groups() if match else ("1", "0")
        low, high = int(low), int(high or low)
        seeds += range(low, min(high, low + _MOST) + 1) or [None]
    if None in seeds or not len({*seeds}) == len(seeds) <= _MOST:
        raise InputError(
            f"seeds={text}: give at most {_MOST} different seeds, such as 0-7 "
            "or 0,3,5"
        )
    return list(map(checked_seed, seeds))


def run(
    args: argparse.Namespace, new: Callable[[argparse.Namespace], runs.Request]
) -> None:
    """Trains or resumes a run for each seed; prints a table, draws curves.

    `new` checks the options, as those of one run.
    """
    place = (args.coordinator, args.num_processes, args.process_id)
    if {*place} != {None} or any(map(os.environ.get, hosts.VARIABLES)):
        raise InputError("seeds= works in one process only: omit coordinator=")
    # Runs on several devices would compete for them.
    alone = args.jobs is None and args.devices is not None
    jobs = many_runs.checked_jobs(1 if alone else args.jobs)
    given = many_runs.flags(options.given(args, "seeds", "jobs", "resume"))
    if args.resume:
        folder, (begin, seeds) = args.resume, _read(args)
    else:
        if args.seed is not None:
            raise InputError("seed= cannot be combined with seeds=: omit one")
        seeds, begin = parse(args.seeds), given
        folder, given = new(args).settings["output_dir"], []
        make_folder(folder)
        write_json(folder / _FILE, {"options": begin, "seeds": args.seeds})
    if jobs > 1:
        given.append("--quiet")  # the lines of several runs would mix
    found = {seed: RunDirectory(folder / f"seed{seed}") for seed in seeds}
    report = partial(print, flush=True)

    def commands(seed, run):
        progress = many_runs.read_progress(run)
        report(progress.fault or f"{run.path.name}: {progress}")
        if progress.state in ("to do", "stopped") or args.epochs:
            path = str(run.path)
            words = [*given, "--resume", path]
            if not run.config.exists():
                words = [*begin, *given, "--seed", str(seed)]
                words += ["--output-dir", path]
            yield [*many_runs.PACKAGE, "train", *words]

    tasks = [  # new runs have the same options: if one is refused, all are
        many_runs.Task(name, name if args.resume else folder.name, words)
        for seed, run in found.items()
        for name, words in [(run.path.name, commands(seed, run))]
    ]
    go_on = f"{args.parser.prog} --resume {shlex.quote(str(folder))}"
    failed = many_runs.run_all(tasks, go_on, jobs, report=report)
    begun = args.resume or any(run.path.exists() for run in found.values())
    if not begun and many_runs.REFUSED in failed.values():
        (folder / _FILE).unlink()
        folder.rmdir()
        raise SystemExit(many_runs.REFUSED)
    done, missing = [], {}
    for run in found.values():
        progress = many_runs.read_progress(run)
        if progress.test is None:
            missing[run.path.name] = max(failed.values(), default=1)
        else:
            done.append((run, progress))
    if done:
        _summarize(done, folder)
    options.exit_if(missing | failed, go_on)


def _read(args):
    """Returns the options and the seeds of the runs to resume."""
    if args.seeds is not None:
        raise InputError("seeds= is fixed by the runs to resume: omit it")
    path = args.resume / _FILE
    remedy = f"resume each of the runs in {args.resume} separately"
    with explained(f"cannot read {path}", remedy):
        saved = json.loads(path.read_text(encoding="utf-8"))
        return list(saved["options"]), parse(str(saved["seeds"]))


def _summarize(done, folder):
    """Prints finished runs, their mean and deviation; draws their curves."""
    from keras_resnet_cifar.evaluation.plots import plot_curves

    columns = [["", *(run.path.name for run, _ in done), "mean"]]
    for key, title in _COLUMNS.items():
        values = [(p.test | {"seconds": p.seconds})[key] for _, p in done]
        digits = 1 if key == "seconds" else 4
        show = partial(options.mean_and_deviation, digits=digits)
        columns.append([title, *(show([v]) for v in values), show(values)])
    rows = [row for run, _ in done for row in read_csv(run.history)]
    plot_curves(rows, folder / "curves.png", folder.name)
    table = options.aligned(list(zip(*columns, strict=True)))
    print(f"test split, last epoch:\n{table}\nwrote {folder / 'curves.png'}")
