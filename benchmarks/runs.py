"""Trains the rows of a manifest, each with several seeds, and resumes them.

Keras is not imported here.
"""

import contextlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.manifest import Row
from benchmarks.throughput import machine
from keras_resnet_cifar.errors import InputError, checked_number
from keras_resnet_cifar.files import write_json
from keras_resnet_cifar.finetuning.phases import PhasedDirectory
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.training import many_runs
from keras_resnet_cifar.training.many_runs import Progress
from keras_resnet_cifar.training.run_directory import RunDirectory, interval

# Fields that only describe a recipe, or that a run records elsewhere.
_NOT_COMPARED = ("source", "expected", "arch", "dataset")
# All layers are trained from the first step.
_FINE_TUNING = {"head_epochs": 0, "train_norm": True}


@dataclass(frozen=True)
class Job:
    """One row with one seed; its run directory is in `folder`."""

    row: Row
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.row.name}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """The folder of the training."""
        return self.folder / self.name

    @property
    def run(self) -> RunDirectory:
        """The run directory, which is within `path` for fine-tuning."""
        if self.row.weights:
            return PhasedDirectory(self.path).phase("tuned")
        return RunDirectory(self.path)

    @property
    def script(self) -> str:
        """The command of the package that trains it."""
        return "finetune" if self.row.weights else "train"

    @property
    def machine(self) -> Path:
        """The file that records the machine of the run."""
        return self.run.path / "machine.json"

    def options(self, data_dir: Path | None = None) -> list[str]:
        """Returns the options of the command that begins this training."""
        row, recipe = self.row, self.row.applied()
        options: dict[str, Any] = {"recipe": recipe.name}
        if row.weights:
            options |= {"backbone": row.arch, "weights": row.weights}
            options |= _FINE_TUNING
        else:
            options["arch"] = row.arch
        options |= {"dataset": row.dataset, "epochs": recipe.epochs}
        flags = many_runs.flags(options | row.options | {"seed": self.seed})
        return [*flags, *self._data(data_dir), "--output-dir", str(self.path)]

    def command(self, data_dir: Path | None = None) -> list[str]:
        """Returns the command that begins or resumes this training."""
        if self.run.config.exists():
            options = [*self._data(data_dir), "--resume", str(self.path)]
        else:
            options = self.options(data_dir)
        return [*many_runs.PACKAGE, self.script, *options]

    def _data(self, data_dir):
        if data_dir is None or self.row.dataset == "shapes":
            return []
        return ["--data-dir", str(data_dir)]

    def progress(self) -> Progress:
        """Reads the progress of this training from its run directory."""
        epochs = self.row.applied().epochs
        return many_runs.read_progress(self.run, epochs, self._check)

    def _check(self, config):
        """Raises `InputError` if the run does not have the row's settings."""
        recipe = json.loads(json.dumps(asdict(self.row.applied())))
        for name in _NOT_COMPARED:
            del recipe[name]
        net = resolve(self.row.arch).name
        net = f"finetuned-{net}" if self.row.weights else net
        data = config["dataset"]
        wanted = {"arch": net, "seed": self.seed, "class_weight": None}
        wanted |= {"dataset": self.row.dataset, "verified": True, **recipe}
        actual = {**config["recipe"], "dataset": data["name"]}
        actual["verified"] = data["verified"]
        actual |= {key: config[key] for key in ("arch", "seed", "class_weight")}
        if config["weights"] or not self.row.weights:
            # At first, a fine-tuned run did not record its weights.
            wanted["weights"] = self.row.weights
            actual["weights"] = config["weights"]
        if self.row.weights:
            wanted |= _FINE_TUNING | {"freeze": "none"}
            actual |= PhasedDirectory(self.path).read_plan()
        different = [
            f"{name} is {actual.get(name)!r} instead of {value!r}"
            for name, value in wanted.items()
            if actual.get(name) != value
        ]
        if different:
            raise InputError(
                f"{', '.join(different[:3])}; move the folder away, or choose "
                "another one with --output"
            )

    def unevaluated(self) -> list[Path]:
        """Returns the checkpoints of single epochs without an evaluation."""
        checkpoints = self.run.checkpoints()
        return [path for path in checkpoints if not evaluation(path).exists()]


def evaluation(checkpoint: Path) -> Path:
    """Returns the file in which `evaluate` keeps the metrics."""
    folder = checkpoint.parent / "evaluation" / f"{checkpoint.stem}-test"
    return folder / "metrics.json"


def jobs(rows: Sequence[Row], seeds: int | None, folder: Path) -> list[Job]:
    """Returns the jobs of some rows; `seeds` replaces the rows' number."""
    if seeds is not None:
        checked_number("seeds", seeds, int, 1, 1000)
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
        if seconds := interval(text)[1]:
            return seconds
    raise InputError(f"budget={text}: give a time such as 30s, 10min or 2h")


def seconds_left(progresses: Sequence[Progress]) -> float | None:
    """Estimates the seconds left for the seeds of a row.

    An epoch is assumed to take as long as those of the same run or, if there
    are none, those of the other seeds. Returns `None` if no seed has finished
    an epoch.
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


def train_all(
    jobs: Sequence[Job],
    go_on: str,
    data_dir: Path | None = None,
    seconds: float | None = None,
    report: Callable[[str], Any] = print,
    processes: int = 1,
) -> dict[str, int]:
    """Trains unfinished jobs; evaluates the checkpoints that a recipe saves.

    A run that another process is training is skipped, and so are the other
    seeds of a row whose training is refused. `seconds` is the time budget, and
    `go_on` the command that continues after a stop. Returns the exit codes of
    the trainings that failed, by name. On a signal, raises `Stopped` after the
    trainings have been saved.
    """
    quiet = ["--quiet"] * (processes > 1)  # lines of several runs would mix

    def task(job):
        epoch = job.progress().epoch

        def record_machine():
            if job.progress().epoch > epoch:  # not refused, or only evaluated
                write_json(job.machine, machine())

        commands = _commands(job, data_dir, report, quiet)
        return many_runs.Task(job.name, job.row.name, commands, record_machine)

    tasks = list(map(task, jobs))
    failed = many_runs.run_all(tasks, go_on, processes, seconds, report)
    unusable = [job.name for job in jobs if job.progress().fault]
    return failed | dict.fromkeys(unusable, many_runs.REFUSED)


def _commands(job, data_dir, report, quiet):
    """Yields the commands that a job needs, each once the last has ended."""
    progress = job.progress()
    if progress.state in ("running", "unusable"):
        report(progress.fault or f"{job.name}: {progress}, in another process")
        return
    if progress.state != "done":
        report(f"{job.name}: {progress}")
        yield [*job.command(data_dir), *quiet]
    if checkpoints := job.unevaluated():
        report(f"{job.name}: evaluating {len(checkpoints)} checkpoints")
        yield [*many_runs.PACKAGE, "evaluate", *map(str, checkpoints)]
