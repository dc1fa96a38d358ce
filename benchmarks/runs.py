"""Trains the rows of a manifest, each with several seeds, and resumes them.

A training is a process of its own, `python -m keras_resnet_cifar train`, with
a run directory that the package itself resumes. No Keras is imported here.
"""

import contextlib
import csv
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.manifest import Row
from benchmarks.throughput import machine
from keras_resnet_cifar.errors import InputError, Stopped, one_line
from keras_resnet_cifar.files import write_json
from keras_resnet_cifar.models.architectures import parse
from keras_resnet_cifar.training.run_directory import Interval, RunDirectory

_PACKAGE = (sys.executable, "-m", "keras_resnet_cifar")
# Fields that say what a recipe is for, or that a run states in another form.
_NOT_COMPARED = ("source", "expected", "arch", "dataset", "validation")
_STOPPED = (-signal.SIGINT, -signal.SIGTERM, 130, 143)  # exit codes of `train`
_REFUSED = 2


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        state: "done", "running" (in another process), "stopped", "to do" or
            "unusable".
        epoch: Epochs done.
        epochs: Epochs in all.
        seconds: Of training, validation included.
        accuracy: On the test split at the last epoch, or `None`.
        fault: Why a run directory is unusable.
    """

    state: str
    epochs: int
    epoch: int = 0
    seconds: float = 0.0
    accuracy: float | None = None
    fault: str = ""

    def __str__(self) -> str:
        at = f" at epoch {self.epoch} of {self.epochs}"
        return self.state + at * (self.state in ("running", "stopped"))


@dataclass(frozen=True)
class Job:
    """One row with one seed.

    Attributes:
        row: What is trained.
        seed: Its seed.
        folder: Where the run directories are.
    """

    row: Row
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.row.name}-seed{self.seed}"

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder / self.name)

    @property
    def machine(self) -> Path:
        """The file that records the machine of the run."""
        return self.run.path / "machine.json"

    def options(self, data_dir: Path | None = None) -> list[str]:
        """Returns the options of `train` that begin this training."""
        row, recipe = self.row, self.row.applied()
        options: dict[str, Any] = {"recipe": recipe.name, "arch": row.arch}
        options |= {"dataset": row.dataset, "epochs": recipe.epochs}
        options |= {**row.options, "seed": self.seed}
        flags = []
        for name, value in options.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                flags += [f"--{flag}", str(value)]
        return [*flags, *self._data(data_dir), "--output-dir", self._path()]

    def command(self, data_dir: Path | None = None) -> list[str]:
        """Returns the command that begins or resumes this training."""
        if self.run.config.exists():
            options = [*self._data(data_dir), "--resume", self._path()]
        else:
            options = self.options(data_dir)
        return [*_PACKAGE, "train", *options]

    def _path(self):
        return str(self.run.path)

    def _data(self, data_dir):
        if data_dir is None or self.row.dataset == "shapes":
            return []
        return ["--data-dir", str(data_dir)]

    def progress(self) -> Progress:
        """Reads how far this training is from its run directory."""
        epochs = self.row.applied().epochs
        if not self.run.config.exists():
            return Progress("to do", epochs)
        try:
            config = self.run.read_config()
            self._check(config)
            seconds = _seconds(self.run, config)
            done = len(seconds), sum(seconds)
            if self.run.metrics.exists():
                last = json.loads(self.run.metrics.read_text())["last"]
                accuracy = float(last["test"]["top1"])
                return Progress("done", epochs, *done, accuracy)
        except (OSError, ValueError, LookupError, TypeError) as error:
            fault = f"{self.run.path} is unusable: {one_line(error)}"
            return Progress("unusable", epochs, fault=fault)
        state = "running" if self._is_locked() else "stopped"
        return Progress(state, epochs, *done)

    def _check(self, config):
        """Raises `InputError` if the run is another one than the row's."""
        recipe = json.loads(json.dumps(asdict(self.row.applied())))
        for name in _NOT_COMPARED:
            del recipe[name]
        wanted = {"arch": parse(self.row.arch).name, "seed": self.seed}
        wanted |= {"dataset": self.row.dataset, **recipe}
        actual = {**config["recipe"], "arch": config["arch"]}
        actual |= {"dataset": config["dataset"]["name"], "seed": config["seed"]}
        different = [
            f"{name} is {actual[name]!r} instead of {value!r}"
            for name, value in wanted.items()
            if name in actual and actual[name] != value
        ]
        if different:
            raise InputError(
                f"{', '.join(different[:3])}; move the folder away, or choose "
                "another output="
            )

    def _is_locked(self):
        try:
            with self.run.locked():
                return False
        except InputError:
            return True

    def unevaluated(self) -> list[Path]:
        """Returns the checkpoints of single epochs without an evaluation."""
        checkpoints = self.run.checkpoints()
        return [path for path in checkpoints if not evaluation(path).exists()]


def evaluation(checkpoint: Path) -> Path:
    """Returns the file in which `evaluate` keeps the metrics."""
    folder = checkpoint.parent / "evaluation" / f"{checkpoint.stem}-test"
    return folder / "metrics.json"


def _seconds(run, config):
    """Returns the seconds of each epoch.

    Of an epoch that was resumed in the middle, a run records the seconds since
    then, and the speed: it counts as all of its images at that speed.
    """
    if not run.timing.exists():
        return []
    batch_size = config["recipe"]["batch_size"]
    images = config["dataset"]["train"] // batch_size * batch_size
    with run.timing.open(newline="") as file:
        return [
            max(
                float(row["seconds"]),
                images / float(row["images_per_second"] or "inf"),
            )
            for row in csv.DictReader(file)
        ]


def jobs(rows: Sequence[Row], seeds: int | None, folder: Path) -> list[Job]:
    """Returns the jobs of some rows; `seeds` replaces the rows' number."""
    if seeds is not None and seeds < 1:
        raise InputError(f"seeds={seeds}: give 1 or more")
    return [
        Job(row, seed, folder)
        for row in rows
        for seed in range(seeds or row.seeds)
    ]


def budget(text: str | None) -> float | None:
    """Returns a time such as `"2h"` in seconds."""
    if text is None:
        return None
    with contextlib.suppress(InputError):
        if seconds := Interval.parse(text).seconds:
            return seconds
    raise InputError(f"budget={text}: give a time such as 30s, 10min or 2h")


def seconds_left(progresses: Sequence[Progress]) -> float | None:
    """Estimates the seconds that the seeds of a row still take.

    An epoch takes as long as those of the same run, or where there are none,
    those of the other seeds; `None` where no seed has finished an epoch.
    """
    speeds = [p.seconds / p.epoch for p in progresses if p.epoch]
    if not speeds:
        return None
    usual = statistics.median(speeds)
    return sum(
        (p.epochs - p.epoch) * (p.seconds / p.epoch if p.epoch else usual)
        for p in progresses
        if p.state not in ("done", "unusable")
    )


class Processes:
    """Runs processes one after the other, and stops them.

    Args:
        seconds: For all of them; then the one that runs gets a SIGTERM.

    Attributes:
        signal: The signal that came, or `None`.
    """

    def __init__(self, seconds: float | None):
        self._end = None if seconds is None else time.monotonic() + seconds
        self._process: subprocess.Popen | None = None
        self.signal: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Passes SIGINT and SIGTERM on, as SIGTERM, to the one that runs."""

        def stop(number, frame):
            self.signal = number
            if self._process is not None:
                self._process.terminate()

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def is_over(self) -> bool:
        """Returns whether the time is spent."""
        return self._end is not None and time.monotonic() >= self._end

    def run(self, command: Sequence[str]) -> int:
        """Runs a command; returns its exit code."""
        # In a session of its own it gets Ctrl-C once, from here.
        self._process = subprocess.Popen(command, start_new_session=True)
        if self.signal is not None:  # it came before there was a process
            self._process.terminate()
        left = None if self._end is None else self._end - time.monotonic()
        try:
            return self._process.wait(left)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            return self._process.wait()
        finally:
            self._process = None


def train_all(
    jobs: Sequence[Job],
    go_on: str,
    data_dir: Path | None = None,
    seconds: float | None = None,
    report: Callable[[str], Any] = print,
) -> list[str]:
    """Trains what is not done; evaluates checkpoints that a recipe keeps.

    A run that another process is training is passed over, and so are the other
    seeds of a row whose training is refused.

    Args:
        jobs: In their order.
        go_on: The command that goes on after a stop.
        data_dir: Option of `train`.
        seconds: The budget.
        report: Called with a line about each training.

    Returns:
        The names of the trainings that failed; none of them was refused.

    Raises:
        Stopped: A signal came; the training has been saved.
    """
    processes = Processes(seconds)
    refused, failed = set(), []
    with processes.listening():
        for job in jobs:
            if job.row.name in refused:
                continue
            code = 0
            for command in _commands(job, data_dir, report):
                if processes.is_over():
                    code = -signal.SIGTERM
                    break
                code = processes.run(command)
                if job.run.config.exists():
                    write_json(job.machine, machine())
                if code:
                    break
            if processes.is_over() and code in _STOPPED:
                report(f"the budget is spent; to go on: {go_on}")
                break
            if processes.signal is not None or code in _STOPPED:
                stopped = Stopped(processes.signal or signal.SIGTERM)
                stopped.add_note(f"to go on: {go_on}")
                raise stopped
            if code == _REFUSED:
                report(f"{job.row.name}: skipped")
                refused.add(job.row.name)
            elif code:
                report(f"{job.name}: skipped, it ended with exit code {code}")
                failed.append(job.name)
    return failed


def _commands(job, data_dir, report):
    """Yields the commands that a job needs, each once the last has ended."""
    progress = job.progress()
    if progress.state in ("running", "unusable"):
        report(progress.fault or f"{job.name}: {progress}, in another process")
        return
    if progress.state != "done":
        report(f"{job.name}: {progress}")
        yield job.command(data_dir)
    if checkpoints := job.unevaluated():
        report(f"{job.name}: evaluating {len(checkpoints)} checkpoints")
        yield [*_PACKAGE, "evaluate", *map(str, checkpoints)]
