"""Processes that measure one at a time.

Two frameworks in one process compete for its threads and memory, and two busy
processes compete for the cores. Each contender therefore runs in its own
process, which sleeps on a pipe except when it measures.
"""

import contextlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.setting import Setting
from keras_resnet_cifar.errors import InputError, one_line


class LeftOut(Exception):
    """A contender that cannot run here; the message says why."""


class Rounds:
    """The worker's end of the pipe; its process ends when the other end closes.

    A contender sets `device_memory`, which returns the peak bytes used on an
    accelerator, or `None` without one.
    """

    def __init__(self, pipe: Connection) -> None:
        self.send = pipe.send
        self._wait = pipe.recv
        self.device_memory: Callable[[], int | None] = lambda: None

    def first_step(self) -> None:
        """Reports that the first step is done; the warm-up may follow."""
        self.send("first step")

    def begin(self) -> None:
        """Waits for the next round and starts the clock."""
        self.send("ready")
        self._wait()
        self._begin = time.perf_counter()

    def end(self, images: int) -> None:
        """Reports the speed of the round that ends now."""
        seconds = time.perf_counter() - self._begin
        # Without child processes, such as those of a DataLoader.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.send(
            {
                "images_per_second": images / seconds,
                "memory": peak if sys.platform == "darwin" else 1024 * peak,
                "device_memory": self.device_memory(),
            }
        )

    def measure(self, run: Callable[[int], None], setting: Setting) -> None:
        """Takes a first step, warms up, and then measures rounds.

        `run` takes a number of steps and waits for the last.
        """
        run(1)
        self.first_step()
        run(setting.round_steps)
        while True:
            self.begin()
            run(setting.round_steps)
            self.end(setting.round_images)


class Worker:
    """The parent's end of the pipe.

    `work` is a module's function `(name, setting, rounds)`. `environment` has
    variables to set before it imports anything heavy.
    """

    def __init__(
        self,
        work: Callable[[str, Setting, Rounds], None],
        name: str,
        setting: Setting,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self._begin = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(pipe, work, name, setting, environment)
        )
        self._process.start()
        pipe.close()

    def first_step(self) -> float:
        """Waits for the first step; returns the seconds since the start."""
        self.receive()
        return time.perf_counter() - self._begin

    def measure(self) -> dict[str, Any]:
        """Lets the ready worker measure a round."""
        with contextlib.suppress(BrokenPipeError):  # `receive` says why
            self._pipe.send("go")
        result = self.receive()
        self.receive()  # it is ready again
        return result

    def receive(self) -> Any:
        """Waits for the next message.

        Raises `LeftOut` if the worker cannot run here, and `InputError` if it
        refused its input or died.
        """
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            message = _died(self.name, f"exit code {self._process.exitcode}")
        if isinstance(message, Exception):
            raise message
        return message

    def close(self) -> None:
        """Kills the process, which has no state to save."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe, work, name, setting, environment):
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries print notices
        os.dup2(nowhere, stream)
    try:
        work(name, setting, Rounds(pipe))
    except EOFError:  # the parent has gone
        return
    except (LeftOut, InputError) as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(_died(name, one_line(error)))


def _died(name: str, reason: str) -> InputError:
    return InputError(
        f"the contender {name} died ({reason}): leave it out, or give a "
        "smaller batch size"
    )


def run_rounds(
    workers: Sequence[Worker],
    rounds: int,
    before: Callable[[], Any] = lambda: None,
    report: Callable[[str], Any] = lambda line: None,
) -> dict[str, list[dict[str, Any]]]:
    """Lets each worker measure once per round: A B C, C B A, B C A, A C B, ...

    The order rotates because the first after a rest may be slow, and turns
    around because one may slow down the next. The workers must be ready;
    `before` is called before each round, while all sleep. Returns the results
    of the rounds by name.
    """
    results: dict[str, list] = {worker.name: [] for worker in workers}
    for number in range(rounds):
        before()
        first = number // 2 % len(workers)
        order = [*workers[first:], *workers[:first]]
        for worker in order[:: -1 if number % 2 else 1]:
            results[worker.name].append(worker.measure())
        speeds = ", ".join(
            f"{name} {measured[-1]['images_per_second']:,.0f}"
            for name, measured in results.items()
        )
        report(f"round {number + 1} of {rounds}: {speeds}")
    return results
