"""`scripts/benchmark.py curve`: accuracy over epochs and seconds."""

import argparse
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import reproduce, results, runs
from benchmarks.manifest import FAMILIES, Row, recipe_for
from keras_resnet_cifar.cli.main import run as run_command
from keras_resnet_cifar.cli.main import script_parser
from keras_resnet_cifar.cli.options import aligned
from keras_resnet_cifar.data.datasets import check_known
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import atomic_write, make_folder, write_json
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.training.recipes import RECIPES

_HEAD = ("recipe", "net", "epochs", "top-1, last epoch", "seeds", "seconds")
_RECIPES = [name for name in ("onecycle", *FAMILIES) if name in RECIPES]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = script_parser(run, "benchmark.py curve")
    go_on = ["python", "scripts/benchmark.py", "curve", *arguments]
    parser.set_defaults(go_on=shlex.join(go_on))
    option = parser.add_argument
    option(
        "--recipes",
        type=reproduce.split,
        default=_RECIPES,
        metavar="A,B,...",
        help="recipes; fast stands for fast, fast-40 or fast-100, depending on "
        f"the number of epochs (default: {','.join(_RECIPES)})",
    )
    epochs = "4,8,12,16,24,40"
    lengths = f"numbers of epochs (default: {epochs})"
    option("--epochs", default=epochs, help=lengths)
    option(
        "--archs",
        type=reproduce.split,
        default=["resnet20"],
        metavar="A,B,...",
        help="nets (default: resnet20)",
    )
    option("--dataset", default="cifar10", help="dataset (default: cifar10)")
    reproduce.add_run_options(parser, "runs/curve", seeds="1")
    option(
        "--show",
        action="store_true",
        help="train nothing; show the finished trainings",
    )
    option("--markdown", action="store_true", help="print a Markdown table")
    option(
        "--picture",
        type=Path,
        metavar="PNG",
        help="draw the curves, and write the numbers to a JSON file beside it",
    )
    return run_command(parser, arguments)


def run(args: argparse.Namespace) -> None:
    """Train recipes for several lengths; plot accuracy over epochs and time."""
    if args.picture is not None and args.picture.suffix != ".png":
        raise InputError(f"picture={args.picture}: name a .png file")
    rows = _rows(args)
    if args.picture is not None:
        make_folder(args.picture.parent)
    jobs = {key: runs.jobs([r], args.seeds, args.output) for key, r in rows}
    if not args.show:
        # `fast` and `fast-40` of 40 epochs are the same training.
        unique = {job.path: job for entry in jobs.values() for job in entry}
        reproduce.train(args, list(unique.values()))
    points = _points(jobs)
    to_do = sum(map(len, jobs.values())) - sum(len(p["seeds"]) for p in points)
    if not points:
        remedy = "train without show=" if args.show else "repeat the command"
        raise InputError(f"no training in {args.output} is finished: {remedy}")
    table = [_HEAD, *map(_cells, points)]
    print((results.markdown if args.markdown else aligned)(table))
    if to_do:
        print(f"\ntrainings not finished: {to_do}")
    make_folder(args.output)
    write_json(args.output / "curve.json", points)
    if args.picture is not None:
        write_json(args.picture.with_suffix(".json"), points)
        draw(points, args.picture)


def _rows(args) -> list[tuple[tuple[str, str, int], Row]]:
    """Returns `((family, net, epochs), row)`, the shortest trainings first."""
    check_known(args.dataset)
    try:
        lengths = sorted({int(text) for text in reproduce.split(args.epochs)})
    except ValueError:
        lengths = []
    if not lengths:
        raise InputError(
            f"epochs={args.epochs}: give whole numbers, such as 4,8,12"
        )
    if not args.recipes or not args.archs:
        raise InputError("give at least one of --recipes and one of --archs")
    rows = []
    for epochs in lengths:
        for family in args.recipes:
            for arch in args.archs:
                recipe = recipe_for(family, epochs)
                data = args.dataset
                net = resolve(arch).name
                name = f"{recipe}-{net}-{Path(data).name}-{epochs}"
                row = Row(name, recipe, arch, data, epochs, seeds=1)
                row.applied()  # raises where it is out of range
                rows.append(((family, arch, epochs), row))
    return rows


def _points(jobs) -> list[dict[str, Any]]:
    """Returns the finished points, of each recipe and net in order."""
    points = []
    for (family, arch, epochs), entry in jobs.items():
        records = [results.record(job) for job in entry]
        done = [r for r in records if r and r["accuracy"] is not None]
        if done:
            point = {"recipe": family, "arch": arch, "epochs": epochs}
            points.append(point | {"seeds": done})
    paces = results.paces(seed for point in points for seed in point["seeds"])
    for point in points:
        pace = paces[results.pace_key(point["seeds"][0])]
        point["seconds"] = point["epochs"] * pace
    return sorted(points, key=lambda p: (p["recipe"], p["arch"], p["epochs"]))


def _cells(point):
    seeds = point["seeds"]
    recipe = seeds[0]["recipe"]["name"]
    seconds = f"{point['seconds']:,.0f}"
    numbers = (results.accuracy(seeds), str(len(seeds)), seconds)
    return (recipe, point["arch"], str(point["epochs"]), *numbers)


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws accuracy against epochs and seconds, one line per recipe and net.

    The points are as in the JSON file; their seconds are the epochs at the
    speed of `results.paces`. Bars show the standard deviation.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    lines: dict[str, list[tuple]] = {}
    for point in points:
        values = [100 * seed["accuracy"] for seed in point["seeds"]]
        mean = statistics.mean(values)
        spread = statistics.stdev(values) if len(values) > 1 else 0
        name = f"{point['recipe']}, {point['arch']}"
        entry = (point["epochs"], point["seconds"], mean, spread)
        lines.setdefault(name, []).append(entry)
    for name, entries in lines.items():
        epochs, seconds, means, spreads = zip(*entries, strict=True)
        for axis, values in zip(axes, (epochs, seconds), strict=True):
            axis.errorbar(
                values, means, spreads, fmt="o-", capsize=3, label=name
            )
    places = sorted({results.place(point["seeds"][0]) for point in points})
    where = " and ".join(places)
    labels = "epochs", f"epochs x the fastest epoch, in seconds on {where}"
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xscale="log", xlabel=label)
        axis.grid(alpha=0.3, which="both")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter("{x:,.0f}")
    lengths = sorted({point["epochs"] for point in points})
    axes[0].set_xticks(lengths, [str(length) for length in lengths])
    axes[0].minorticks_off()
    axes[0].set(ylabel="test accuracy at the last epoch, %")
    axes[0].legend(loc="lower right")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
