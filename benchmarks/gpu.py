"""Measures speed, training time and accuracy on a GPU.

    export KERAS_BACKEND=jax
    python -m benchmarks.gpu --data-dir DIR

runs the stages below one after the other, each in ten minutes at most, and
prints a table of all results in the output folder. Running a stage again
replaces its results once it has some; a training that ran out of time is
resumed. `--smoke` runs the same code with tiny settings, also on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import results, runs
from benchmarks.manifest import Row
from benchmarks.reproduce import split
from keras_resnet_cifar.cli.main import run as run_command
from keras_resnet_cifar.cli.main import script_parser
from keras_resnet_cifar.cli.options import exit_if
from keras_resnet_cifar.errors import InputError, explained, unknown
from keras_resnet_cifar.files import make_folder, write_json

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 600  # of a stage
_BUFFERS = "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL"
# Of benchmarks.gpu_epochs: XLA_FLAGS, and options.
_VARIANTS = {
    "as it is": ("", ()),
    "without convolutions in CUDA graphs": (f"{_BUFFERS},CUDNN", ()),
    "with loops in CUDA graphs too": (
        f"{_BUFFERS},CUDNN,CONVOLUTION,WHILE,CONDITIONAL",
        (),
    ),
    "with the derived gradient of BatchNorm": ("", ("--derived-gradient",)),
}


def _row(recipe, arch="resnet20", seeds=3):
    return Row(f"{recipe}-{arch}", recipe, arch, "cifar10", seeds=seeds)


_TRAININGS = {
    "cosine": (_row("cosine"),),
    "fast": (_row("fast"), _row("fast-40"), _row("fast-100")),
    "deeper": (_row("cosine", "resnet56", 1), _row("cosine", "resnet110", 1)),
}
_TIME_TO = ("--arch=resnet18", "--recipe=strong", "--epochs=60", "--split=test")
_SMOKE = {"epochs": 1, "seeds": 1, "arch": "resnet8", "dataset": "shapes"}
_SMOKE_OPTIONS = {"validation": 9000}  # of 10,000 images
_SMOKE_TIME_TO = (
    *("--time-to=0.1", "--arch=resnet8", "--recipe=fast", "--epochs=1"),
    "--dataset=shapes",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = script_parser(run)
    option = parser.add_argument
    option(
        "--only",
        type=split,
        metavar="STAGE,...",
        help=f"stages, of {', '.join(STAGES)} (default: all, in this order)",
    )
    smoke = "run with tiny settings, also on a CPU"
    option("--smoke", action="store_true", help=smoke)
    option("--data-dir", type=Path, help="folder with CIFAR, as in train")
    option(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of results and run directories (default: runs/gpu, or "
        "runs/gpu-smoke)",
    )
    return run_command(parser, arguments)


def run(args: argparse.Namespace) -> None:
    """Measure speed, training time and accuracy on a GPU."""
    for name in args.only or ():
        if name not in STAGES:
            raise unknown("stage", name, STAGES)
    if args.only == []:
        raise InputError(f"only= names no stage: give {', '.join(STAGES)}")
    if args.data_dir is not None and not args.data_dir.is_dir():
        raise InputError(f"data_dir={args.data_dir} is not a folder: check it")
    if args.output is None:
        args.output = Path("runs", "gpu-smoke" if args.smoke else "gpu")
    make_folder(args.output)
    failed = {}
    for name in args.only or STAGES:
        print(f"--- {name}", flush=True)
        lines = []
        try:
            for what, result in STAGES[name](args):
                print(f"{what}: {result}", flush=True)
                lines.append([what, result])
        except _Failed as error:
            failed[name] = error.code
        if lines:
            write_json(args.output / f"{name}.json", lines)
    table = [("stage", "what", "result")]
    for name in STAGES:
        path = args.output / f"{name}.json"
        if path.exists():
            with explained(f"cannot read {path}", "remove it"):
                lines = json.loads(path.read_text(encoding="utf-8"))
                table += [(name, what, result) for what, result in lines]
    print(results.markdown(table))
    exit_if(failed, f"python -m benchmarks.gpu --only {','.join(failed)}")


Line = tuple[str, str]


class _Failed(Exception):
    """A stage failed, with the exit code of its command."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def _quick(args: argparse.Namespace) -> Iterator[Line]:
    """`scripts/benchmark.py --quick`, with PyTorch's CUDA graphs."""
    path = args.output / "benchmark.json"
    tiny = ("--arch=resnet8", "--steps=1", "--rounds=1", "--contenders=fit")
    names = "--contenders=fit,step,torch-eager,torch-graphs"
    options = tiny if args.smoke else ("--quick", names)
    _benchmark(*options, f"--output={path}")
    result = json.loads(path.read_text())
    for contender in result["contenders"]:
        yield contender["name"], f"{contender['median']:,.0f} images/s"
    for name, ratio in result["ratios"].items():
        yield name, "{median:.2f} ({least:.2f} to {most:.2f})".format(**ratio)


def _variants(args: argparse.Namespace) -> Iterator[Line]:
    """Epochs of `fit`, compiled in several ways, in two rounds."""
    tiny = ("--arch=resnet8", "--images=256", "--epochs=1")
    failed = 0
    for turn in (1,) if args.smoke else (1, 2):
        for name, (flags, options) in _VARIANTS.items():
            # XLA takes a value that begins with a space for a file's name.
            flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
            command = ("-m", "benchmarks.gpu_epochs", *options)
            code, output = _run(
                *command,
                *(tiny if args.smoke else ()),
                seconds=_SECONDS if args.smoke else _SECONDS / 8,
                XLA_FLAGS=flags,
            )
            last = (output.splitlines() or [""])[-1]
            failed = failed or code
            fault = f"failed: exit code {code}" if code else ""
            yield f"{name}, round {turn}", fault or last
    if failed:
        raise _Failed(failed)


def _trainings(name: str) -> Callable:
    def stage(args: argparse.Namespace) -> Iterator[Line]:
        """Trains rows; seconds are of the epochs, validation included."""
        rows = _TRAININGS[name]
        if args.smoke:
            rows = (_tiny(rows[0]),)
        jobs = runs.jobs(rows, None, args.output / "trainings")
        again = f"python -m benchmarks.gpu --only {name}"
        failed = runs.train_all(jobs, again, args.data_dir, _SECONDS)
        for row in rows:
            records = [results.record(job) for job in jobs if job.row is row]
            begun = [record for record in records if record is not None]
            seconds = results.mean_of(begun, "seconds")
            done = sum(r["accuracy"] is not None for r in begun)
            result = f"seeds done: {done} of {len(records)}"
            if seconds is not None:
                result = (
                    f"{results.accuracy(begun)}, {seconds:,.1f} s; {result}"
                )
            yield (
                f"{row.recipe}, {row.arch}, epochs: {row.applied().epochs}",
                result,
            )
        if failed:
            raise _Failed(next(iter(failed.values())))

    return stage


def _tiny(row):
    options = {**row.options, **_SMOKE_OPTIONS}
    return replace(row, name=f"smoke-{row.name}", options=options, **_SMOKE)


def _time_to(args: argparse.Namespace) -> Iterator[Line]:
    """Seconds of ResNet-18 to 96 % of the test split, cold and warm."""
    path = args.output / "time-to.json"
    data = () if args.data_dir is None else (f"--data-dir={args.data_dir}",)
    options = _SMOKE_TIME_TO
    if not args.smoke:
        options = ("--time-to=0.96", *_TIME_TO, *data)
    _benchmark(*options, f"--output={path}")
    for entry in json.loads(path.read_text()):
        reached = "not reached"
        if entry["seconds"] is not None:
            reached = f"{entry['seconds']:,.1f} s"
        best = f"{entry['accuracy']:.2%}, epochs: {entry['epochs']}"
        yield entry["run"], f"{reached} ({best})"


STAGES: dict[str, Callable] = {
    "quick": _quick,
    "variants": _variants,
    **{name: _trainings(name) for name in _TRAININGS},
    "time-to": _time_to,
}


def _benchmark(*options: str) -> None:
    code, output = _run(str(ROOT / "scripts" / "benchmark.py"), *options)
    print(output, flush=True)
    if code:
        raise _Failed(code)


def _run(*command: str, seconds: float = _SECONDS, **environment: Any) -> tuple:
    """Returns the exit code and the standard output of a Python process."""
    process = subprocess.Popen(
        (sys.executable, *command),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
    return process.returncode, output


if __name__ == "__main__":
    sys.exit(main())
