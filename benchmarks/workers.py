"""Processes that live side by side and work in turns, one at a time.

Two frameworks in one process fight over its threads and its memory, and two
processes at once fight over the cores. Here each has a process of its own,
which sleeps on a pipe until it is its turn. Messages are lines of JSON.

The worker's side is a `Turns`, the other side a `Worker`. A worker says
`first_step` once its first step is done, warms up, says `ready`, and then
answers each `go` with what it has measured.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

from keras_resnet_cifar.errors import InputError


class LeftOut(Exception):
    """A contender that cannot run here; the message says why."""


class Turns:
    """A worker's side of the pipe.

    Args:
        read: The stream that says `go`; its end ends the process.
        write: The stream to answer on.

    Attributes:
        memory: A function without arguments that the worker may set: bytes of
            its device's memory at the peak, or `None` if it has no device.
    """

    def __init__(self, read, write):
        self._read, self._write = read, write
        self.memory = lambda: None

    def first_step(self):
        """Tells that the first step is done; the warm-up may follow."""
        self._send({"first_step": True})

    def begin(self):
        """Waits for the next turn, and starts the clock."""
        self._send({"ready": True})  # and idle from here on
        if not self._read.readline():
            raise SystemExit  # the other side has seen enough
        self._begin = time.perf_counter()

    def end(self, images):
        """Tells how fast the turn was that ends now."""
        seconds = time.perf_counter() - self._begin
        self._send(
            {
                "images_per_second": images / seconds,
                "memory": peak_memory(),
                "device_memory": self.memory(),
            }
        )

    def tell(self, **facts):
        """Sends a message of one's own."""
        self._send(facts)

    def _send(self, message):
        self._write.write(json.dumps(message) + "\n")
        self._write.flush()


def serve(work):
    """Runs `work(turns)` as a worker process, its pipes on stdin and stdout.

    What libraries print goes to stderr, so that it cannot get in between.
    """
    write = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    turns = Turns(sys.stdin, write)
    try:
        work(turns)
    except LeftOut as reason:
        turns.tell(left_out=str(reason))
    except InputError as error:
        turns.tell(error=str(error))


def peak_memory():
    """Bytes of memory that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class Worker:
    """A process that works when it is told to.

    Args:
        name: What to call it in errors.
        command: Its command line, a list.
        environment: Variables to set on top of this process's.

    Attributes:
        last: Its newest answer to `go`.
    """

    def __init__(self, name, command, environment=()):
        self.name = name
        self.last = {}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._begin = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **dict(environment)},
        )

    def first_step(self):
        """Waits for the first step; returns the seconds since the start."""
        self.receive("first_step")
        return time.perf_counter() - self._begin

    def ready(self):
        """Waits until it has warmed up and sleeps."""
        self.receive("ready")

    def go(self):
        """Gives it a turn; returns its images a second."""
        with contextlib.suppress(BrokenPipeError):  # then `receive` tells why
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        self.last = self.receive("images_per_second")
        self.ready()
        return self.last["images_per_second"]

    def receive(self, key):
        """Waits for the message that has this key, and returns it.

        Raises:
            LeftOut: The worker cannot run here.
            InputError: The worker refused its input, or has died.
        """
        line = self._process.stdout.readline()
        message = json.loads(line) if line else {"error": self._death()}
        if "left_out" in message:
            raise LeftOut(message["left_out"])
        if "error" in message:
            raise InputError(message["error"])
        return message if key in message else self.receive(key)

    def _death(self):
        code = self._process.wait()
        self._errors.seek(0)
        told = self._errors.read().strip().splitlines()[-1:]
        return (
            f"the worker {self.name} died (exit code {code}"
            f"{''.join(f': {line}' for line in told)}); leave it out of "
            "--contenders, or take a smaller --batch-size"
        )

    def close(self):
        """Ends the process, whatever it does; it has nothing to lose."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()


def take_turns(workers, rounds, before=lambda: None, tell=lambda text: None):
    """Gives each worker a turn in each round: A B C, B C A, C A B, ...

    Who comes first changes, for the first turn after a rest may be slow.

    Args:
        workers: A list of `Worker`s.
        rounds: How many turns each has.
        before: A function called before each round, while all of them sleep.
        tell: A function that takes a line about each round.

    Returns:
        `{name: [images a second of each round]}`.
    """
    found = {worker.name: [] for worker in workers}
    for number in range(rounds):
        before()
        first = number % len(workers)
        for worker in [*workers[first:], *workers[:first]]:
            found[worker.name].append(worker.go())
        speeds = ", ".join(f"{k} {v[-1]:,.0f}" for k, v in found.items())
        tell(f"round {number + 1} of {rounds}: {speeds}")
    return found
