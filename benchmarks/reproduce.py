"""The command line of `scripts/reproduce.py`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results, runs
from benchmarks.manifest import ROWS
from keras_resnet_cifar.cli.main import run as run_command
from keras_resnet_cifar.cli.main import script_parser
from keras_resnet_cifar.cli.options import JOBS, exit_if
from keras_resnet_cifar.errors import InputError, unknown
from keras_resnet_cifar.training.many_runs import checked_jobs

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = script_parser(run)
    go_on = shlex.join(["python", "scripts/reproduce.py", *arguments])
    parser.set_defaults(go_on=go_on)
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument(
        "--only",
        type=split,
        metavar="ROW,...",
        help=f"rows, of {names} (default: all, in this order)",
    )
    add_run_options(parser, "runs/reproduce")
    parser.add_argument(
        "--status",
        action="store_true",
        help="train nothing; show what is done and the time left",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="train nothing; write docs/results/, docs/results.md and the "
        "table in README.md from the runs",
    )
    return run_command(parser, arguments)


def add_run_options(parser: Any, output: str, seeds: str = "the row's") -> None:
    """Adds the options of everything that trains rows."""
    option = parser.add_argument
    option(
        "--seeds",
        type=int,
        metavar="N",
        help=f"number of seeds per training (default: {seeds})",
    )
    option(
        "--budget",
        metavar="TIME",
        help="save and stop after a time such as 30s, 10min or 2h",
    )
    option("--data-dir", type=Path, help="folder with CIFAR, as in train")
    option("--jobs", type=int, metavar="N", help=JOBS)
    option(
        "--output",
        type=Path,
        default=Path(output),
        metavar="DIR",
        help=f"folder of the run directories (default: {output})",
    )


def split(text: str) -> list[str]:
    """Returns the names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def train(args: argparse.Namespace, jobs: Sequence[runs.Job]) -> None:
    """Trains jobs by the options of the command line."""
    failed = runs.train_all(
        jobs,
        args.go_on,
        args.data_dir,
        runs.budget(args.budget),
        report=lambda line: print(line, flush=True),
        processes=checked_jobs(args.jobs),
    )
    exit_if(failed, args.go_on)


def run(args: argparse.Namespace) -> None:
    """Train the rows of the results table, or resume them."""
    if args.status and args.write:
        raise InputError("status= cannot be combined with write=: omit one")
    rows = {row.name: row for row in ROWS}
    for name in args.only or ():
        if name not in rows:
            raise unknown("row", name, rows)
    if args.only == []:
        raise InputError(f"only= names no row: give some of {', '.join(rows)}")
    chosen = [rows[name] for name in rows if name in (args.only or rows)]
    jobs = runs.jobs(chosen, args.seeds, args.output)
    if args.write:
        for path in results.write(jobs, ROWS, ROOT):
            print(f"wrote {path}")
        return
    if not args.status:
        train(args, jobs)
    print(results.status(jobs))
