"""Compares training with Keras's and PyTorch's own, in alternating rounds.

Machines are noisy, especially shared ones. The contenders are therefore timed
in changing order (A B C, C B A, B C A, ...), and compared by the ratios within
a round: median, minimum and maximum. Images per second of two runs cannot be
compared.

Keras is not imported here: everything that computes runs in separate processes.
"""

import contextlib
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import contenders
from benchmarks.contenders import CONTENDERS
from benchmarks.setting import Setting, cores
from benchmarks.workers import LeftOut, Worker, run_rounds
from keras_resnet_cifar.errors import InputError, spelled, unknown
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.training.recipes import CHOICES

_BUSY = 0.1  # share of the cores in use above which the machine is busy
# Steps per round, in full and quick runs; on an accelerator, whose steps are
# short, ten epochs and two.
_STEPS, _ACCELERATED_STEPS = (50, 4), (3900, 780)
_ROUNDS, _QUICK_ROUNDS = 5, 3
_MOST = 10_000  # steps, rounds, images per step, and epochs of a recipe


def benchmark(
    arch: str = "resnet20",
    batch_size: int = 128,
    precision: str = "auto",
    steps: int | None = None,
    rounds: int | None = None,
    names: Sequence[str] | None = None,
    dataloader: bool = False,
    quick: bool = False,
    report: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Times the contenders in alternation, after a warm-up.

    By default, the steps per round and the `names`, of `CONTENDERS`, suit the
    device. `dataloader` adds the PyTorch loop with a `DataLoader`; `quick` has
    fewer contenders, steps and rounds, to check that all works. `report` is
    called with one line about each stage and round. Raises `InputError` for a
    bad argument, and if a contender dies.

    Returns a dict for JSON: the machine, its versions and limit; the share of
    the cores that other programs used before each round; for each contender,
    images per second in each round and their median, seconds from the start of
    a process to its first step (cold, and again with the compile caches of the
    first) and peak memory in bytes; the ratios of each pair of a kind; the
    contenders left out, with reasons.
    """
    usual = _QUICK_ROUNDS if quick else _ROUNDS
    setting = Setting(
        arch,
        batch_size,
        spelled(precision, CHOICES["precision"]),
        steps=_STEPS[quick] if steps is None else steps,
        rounds=usual if rounds is None else rounds,
    )
    _check(setting, names)
    report("measuring the machine")
    worker = Worker(contenders.run, "machine", setting, {})
    with contextlib.closing(worker):
        facts = worker.receive()
    accelerated = facts["accelerator"] is not None
    if accelerated and steps is None:
        setting = replace(setting, steps=_ACCELERATED_STEPS[quick])
    setting = replace(
        setting, precision=facts["precision"], accelerated=accelerated
    )
    names = names or default_names(accelerated, dataloader, quick)
    workers, starts, left_out, others = [], {}, {}, []
    with contextlib.ExitStack() as stack:
        caches = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = _environment(caches, len(names))
        for name in names:
            report(f"starting {name}")
            try:
                worker, starts[name] = _start(
                    name, setting, environment, not quick, stack
                )
            except LeftOut as reason:
                left_out[name] = str(reason)
            else:
                workers.append(worker)
        if not workers:
            why = "; ".join(f"{k}: {v}" for k, v in left_out.items())
            raise InputError(f"nothing to time ({why}): give other contenders")
        results = run_rounds(
            workers,
            setting.rounds,
            lambda: others.append(share_in_use()),
            report,
        )
    rows = [_row(k, measured, starts[k]) for k, measured in results.items()]
    return {
        "setting": asdict(setting),
        "machine": machine(),
        "others": others,
        "busy": max(others) > _BUSY,
        **facts,
        "contenders": rows,
        "left_out": left_out,
        "ratios": ratios(rows),
    }


def default_names(
    accelerated: bool, dataloader: bool = False, quick: bool = False
) -> list[str]:
    """Returns the contenders that suit a device.

    A `DataLoader` and CUDA graphs are for accelerators: on a CPU, the loader's
    processes would compete with training for the cores.
    """
    runs = {"quick"} if quick else {"quick", "full"}
    if accelerated and not quick:
        runs.add("accelerator")
    return [
        name
        for name, contender in CONTENDERS.items()
        if contender.runs in runs or (dataloader and name == "torch-dataloader")
    ]


def machine() -> dict[str, Any]:
    """Returns the host's processor, cores and system."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {
        "processor": processor,
        "cores": len(cores()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def share_in_use(seconds: float = 0.5) -> float:
    """Returns the share of this process's cores in use, from 0 to 1.

    While all contenders sleep, it is that of other programs. On systems other
    than Linux, it is 0.
    """

    def ticks() -> tuple[int, int]:
        names = {f"cpu{core}" for core in cores()}
        lines = map(str.split, Path("/proc/stat").read_text().splitlines())
        mine = [[*map(int, n)] for name, *n in lines if name in names]
        idle = sum(sum(core[3:5]) for core in mine)  # or waiting
        return sum(sum(core[:8]) for core in mine), idle

    try:
        total, idle = ticks()
        time.sleep(seconds)
        total_after, idle_after = ticks()
    except OSError:
        return 0.0
    return 1 - (idle_after - idle) / max(total_after - total, 1)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the ratio of each pair of a kind, taken within each round.

    The keys are `"A / B"`, for each row A above a row B of its kind.
    """
    table = {}
    for above, below in itertools.combinations(rows, 2):
        if above["kind"] == below["kind"]:
            speeds = (row["images_per_second"] for row in (above, below))
            each = [a / b for a, b in zip(*speeds, strict=True)]
            table[f"{above['name']} / {below['name']}"] = {
                "rounds": each,
                "median": statistics.median(each),
                "least": min(each),
                "most": max(each),
            }
    return table


def _check(setting: Setting, names: Sequence[str] | None) -> None:
    """Raises `InputError` for bad input before anything is started."""
    resolve(setting.arch)
    if setting.precision not in CHOICES["precision"]:
        raise unknown("precision", setting.precision, CHOICES["precision"])
    names = names or ()
    for name in names:
        if name not in CONTENDERS:
            raise unknown("contender", name, CONTENDERS)
        if names.count(name) > 1:
            raise InputError(f"contenders: {name} is given twice: give it once")
    for name in ("batch_size", "rounds", "steps"):
        value = getattr(setting, name)
        if not 1 <= value <= _MOST:
            raise InputError(f"{name}={value}: must be from 1 to {_MOST:,}")
    if setting.epochs > _MOST:
        raise InputError(
            f"{setting.rounds} rounds of {setting.steps} steps of "
            f"{setting.batch_size} images are too many: give fewer rounds or "
            "steps"
        )


def _start(
    name: str,
    setting: Setting,
    environment: Mapping[str, str],
    twice: bool,
    stack: contextlib.ExitStack,
) -> tuple[Worker, dict[str, float | None]]:
    """Starts a worker, `twice` if requested, and waits until it is ready.

    Returns the worker, which `stack` closes, and its seconds to the first step:
    `cold`, and `again` with the compile caches of the first start.
    """
    worker = Worker(contenders.run, name, setting, environment)
    stack.callback(worker.close)
    seconds = {"cold": worker.first_step(), "again": None}
    if twice:
        worker.close()
        worker, start = _start(name, setting, environment, False, stack)
        return worker, {**seconds, "again": start["cold"]}
    worker.receive()
    return worker, seconds


def _environment(caches: Path, processes: int) -> dict[str, str]:
    """Environment of the workers: empty compile caches, and shared memory.

    `caches` is an empty folder; `processes` is the number of processes that
    share an accelerator's memory.
    """
    folders = {
        "XDG_CACHE_HOME": "xdg",  # of JAX, unless the next one is set
        "JAX_COMPILATION_CACHE_DIR": "jax",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "CUDA_CACHE_PATH": "cuda",
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        del folders["JAX_COMPILATION_CACHE_DIR"]
    return {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.8 / processes:.2f}",
        **{name: str(caches / folder) for name, folder in folders.items()},
    }


def _row(
    name: str,
    results: Sequence[Mapping[str, Any]],
    starts: Mapping[str, float | None],
) -> dict[str, Any]:
    speeds = [result["images_per_second"] for result in results]
    return {
        "name": name,
        "kind": CONTENDERS[name].kind,
        "images_per_second": speeds,
        "median": statistics.median(speeds),
        "first_step_seconds": starts,
        "peak_memory": results[-1]["memory"],
        "peak_device_memory": results[-1]["device_memory"],
    }
