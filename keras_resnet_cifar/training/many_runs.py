"""Runs many trainings as processes, several at a time, and stops them.

Each training is a separate process with a run directory that can be resumed.
Keras is not imported here.
"""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from keras_resnet_cifar.errors import (
    InputError,
    Stopped,
    checked_number,
    one_line,
)
from keras_resnet_cifar.training.run_directory import RunDirectory, read_csv

PACKAGE = (sys.executable, "-m", "keras_resnet_cifar")
REFUSED = 2
_STOPPED = (-signal.SIGINT, -signal.SIGTERM, 130, 143)  # exit codes
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def flags(options: Mapping[str, Any]) -> list[str]:
    """Returns named values as options of the command line.

    `{"batch_size": 64, "flip": False}` becomes `--batch-size 64 --no-flip`; a
    list repeats its option.
    """
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", str(item)]
    return words


@dataclass(frozen=True)
class Progress:
    """The progress of a training.

    `state` is "done", "running" (in another process), "stopped", "to do" or
    "unusable", for which `fault` gives the reason. `epoch` counts the epochs
    done; `epochs` is their total, 0 if not known yet. `seconds` includes
    validation. `test` holds the test metrics of the last epoch.
    """

    state: str
    epochs: int
    epoch: int = 0
    seconds: float = 0.0
    test: dict[str, Any] | None = None
    fault: str = ""

    def __str__(self) -> str:
        at = f" at epoch {self.epoch} of {self.epochs}"
        return self.state + at * (self.state in ("running", "stopped"))

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test split at the last epoch, 0 to 1, or `None`."""
        return None if self.test is None else float(self.test["top1"])


def read_progress(
    run: RunDirectory,
    epochs: int = 0,
    check: Callable[[dict[str, Any]], Any] = lambda config: None,
) -> Progress:
    """Reads the progress of a training from its run directory.

    `check` is called with the run's config; if it raises `InputError`, the run
    is unusable.
    """
    if not run.config.exists():
        return Progress("to do", epochs)
    try:
        config = run.read_config()
        check(config)
        epochs = epochs or config["recipe"]["epochs"]
        seconds = epoch_seconds(run, config)
        done = len(seconds), sum(seconds)
        if run.metrics.exists():
            last = json.loads(run.metrics.read_text())["last"]
            if not last["epoch"] == len(seconds) <= epochs:
                raise ValueError(
                    f"metrics.json is of epoch {last['epoch']}, but timing.csv "
                    f"has {len(seconds)} epochs"
                )
            if not 0 <= last["test"]["top1"] <= 1:
                raise ValueError("top1 in metrics.json is not from 0 to 1")
            return Progress("done", epochs, *done, last["test"])
    except InputError as error:
        fault = f"{run.path} is unusable: {error}"
        return Progress("unusable", epochs, fault=fault)
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as e:
        fault = f"{run.path} is unusable ({one_line(e)}): restore its files, "
        return Progress("unusable", epochs, fault=f"{fault}or move it away")
    state = "running" if _is_locked(run) else "stopped"
    return Progress(state, epochs, *done)


def epoch_seconds(run: RunDirectory, config: dict[str, Any]) -> list[float]:
    """Returns the seconds of each epoch of a run.

    For an epoch that was resumed in the middle, a run records the seconds since
    then, and the speed: the epoch counts as all of its images at that speed.
    """
    if not run.timing.exists():
        return []
    batch_size = config["recipe"]["batch_size"]
    images = config["dataset"]["train"] // batch_size * batch_size
    seconds = [
        max(
            float(row["seconds"]),
            images / float(row["images_per_second"] or "inf"),
        )
        for row in read_csv(run.timing)
    ]
    if not all(0 <= s < math.inf for s in seconds):
        raise ValueError(f"seconds in {run.timing.name} are out of range")
    return seconds


def _is_locked(run):
    try:
        with run.locked():
            return False
    except InputError:
        return True


class Task(NamedTuple):
    """A sequence of commands.

    If a command is refused, the other tasks of its `group` are skipped; `after`
    is called after each command.
    """

    name: str
    group: str
    commands: Iterator[Sequence[str]]
    after: Callable[[], Any] = lambda: None


def _gpus() -> list[str]:
    """Returns the NVIDIA GPUs that a process may use, as CUDA names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return chosen.split(",") if chosen else []
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def checked_jobs(jobs: int | None) -> int:
    """Returns how many processes run at a time: one per GPU by default."""
    if jobs is None:
        return max(len(_gpus()), 1)
    return checked_number("jobs", jobs, int, 1, 1000)


class Processes:
    """Runs processes from several threads, and stops them.

    At most `jobs` run at a time; if there are several, each gets a GPU, or a
    share of the memory of one. After `seconds` in total, they get a SIGTERM,
    and `spent` is true. `signal` is the signal received, or `None`.
    """

    def __init__(self, jobs: int, seconds: float | None):
        self._end = None if seconds is None else time.monotonic() + seconds
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.RLock()  # a signal may interrupt a signal
        self._places: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        gpus = _gpus() if jobs > 1 else []
        places = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}]
        if jobs > len(gpus) > 0:
            # By default, JAX reserves most of the memory of a GPU.
            share = 0.9 / -(-jobs // len(gpus))
            memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.2f}"}
            memory["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
            places = [memory | os.environ | place for place in places]
        for job in range(jobs):
            self._places.put(places[job % len(places)])
        self.signal: int | None = None
        self.spent = False

    def stop(self, number: int, frame: Any = None) -> None:
        """Sends SIGTERM to the running processes, and starts no others."""
        with self._lock:
            self.signal = number
            for process in self._running:
                process.terminate()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Stops on SIGINT, SIGTERM and SIGHUP; only for the main thread."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:  # nohup has SIGHUP ignored
            if number != signal.SIGHUP or before[number] != signal.SIG_IGN:
                signal.signal(number, self.stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int | None:
        """Runs a command; returns its exit code, or `None` if time is up."""
        place = self._places.get()
        try:
            left = None if self._end is None else self._end - time.monotonic()
            with self._lock:
                self.spent |= left is not None and left <= 0
                if self.spent or self.signal is not None:
                    return None
                # In a new session, it gets Ctrl-C only once, from here.
                process = subprocess.Popen(
                    command, start_new_session=True, env=os.environ | place
                )
                self._running.add(process)
            try:
                return process.wait(left)
            except subprocess.TimeoutExpired:
                self.spent = True
                process.terminate()
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
        finally:
            self._places.put(place)


def run_all(
    tasks: Sequence[Task],
    go_on: str,
    jobs: int = 1,
    seconds: float | None = None,
    report: Callable[[str], Any] = print,
) -> dict[str, int]:
    """Runs tasks, several at a time; one that fails does not stop the others.

    Returns `{name: exit code}` of the tasks that failed. `go_on` is the command
    that continues after a stop; `seconds` is the time budget. On a signal,
    raises `Stopped` after the running processes have stopped.
    """
    processes = Processes(jobs, seconds)
    refused: set[str] = set()
    failed: dict[str, int] = {}

    def work(task):
        if task.group in refused:
            return
        code: int | None = 0
        try:
            for command in task.commands:
                code = processes.run(command)
                if code is not None:
                    task.after()
                if code != 0:
                    break
        except BaseException:
            processes.stop(signal.SIGTERM)
            raise
        if code in _STOPPED:
            if not processes.spent and processes.signal is None:
                processes.stop(signal.SIGTERM)
        elif code:
            failed[task.name] = code
            if code == REFUSED:
                report(f"{task.group}: skipped")
                refused.add(task.group)
            else:
                report(f"{task.name} failed with exit code {code}")

    with processes.listening(), ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, tasks))
    if processes.signal is not None:
        stopped = Stopped(processes.signal)
        stopped.add_note(f"to continue: {go_on}")
        raise stopped
    if processes.spent:
        report(f"the budget is used up; to continue: {go_on}")
    return failed
