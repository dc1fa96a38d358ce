"""Contenders that compute nothing, for processes of the tests' own."""

import os
from pathlib import Path

from benchmarks.setting import Setting
from benchmarks.workers import LeftOut, Rounds

LOG = "BENCHMARK_TEST_LOG"  # names a file that gets one word per measurement
FACTS = {
    "backend": "jax",
    "precision": "float32",
    "accelerator": None,
    "versions": {"keras": "3"},
    "operations_per_second": 2e9,
    "operations_per_image": 2e8,
}


def run(name: str, setting: Setting, rounds: Rounds) -> None:
    """Behaves by its name, in the place of `contenders.run`."""
    print("what a library prints disturbs nobody")
    if name == "machine":
        rounds.send(FACTS)
    if name == "torch-compile":
        raise LeftOut("no compiler here")
    rounds.first_step()
    while True:
        rounds.begin()
        if name == "torch-graphs":
            raise MemoryError("no memory left")
        if name == "torch-dataloader":
            os._exit(7)
        with Path(os.environ[LOG]).open("a") as file:
            file.write(f"{name} ")
        rounds.end(images=1)
