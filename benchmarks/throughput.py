"""`fit` beside PyTorch and the machine's limit: one machine, one run, in turns.

Machines are noisy, shared ones most. So the contenders are timed A B C, B C A,
and what counts is the ratio of two in the same round: its median, and its least
and most. Images a second of two runs do not compare.

No Keras is imported here: all that computes has a process of its own.
"""

import contextlib
import dataclasses
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import contenders
from benchmarks.contenders import CONTENDERS, Setting
from benchmarks.workers import LeftOut, Worker, take_turns
from keras_resnet_cifar.errors import InputError, unknown
from keras_resnet_cifar.models.architectures import parse
from keras_resnet_cifar.training.recipes import CHOICES

_BUSY = 0.1  # share of the cores: above it others are at work as well
# Steps a turn and rounds: about seven minutes, or under two, on two cores. On
# an accelerator ten epochs of CIFAR-10, for a step may take 0.1 ms.
_STEPS, _ACCELERATED_STEPS, _QUICK_STEPS = 50, 3900, 8
_ROUNDS, _QUICK_ROUNDS = 5, 3
_MOST = 10_000  # of each number


def benchmark(
    arch="resnet20",
    batch_size=128,
    precision="auto",
    steps=None,
    rounds=None,
    names=None,
    dataloader=False,
    quick=False,
    tell=lambda text: None,
):
    """Times the contenders in turns, after a turn each to warm up.

    Args:
        arch: Name of the net, on images of 32x32.
        batch_size: Images a step.
        precision: `"auto"`, `"float32"`, `"mixed_bfloat16"`, ...
        steps: Steps a turn; `None` for a number that suits the device.
        rounds: Turns of each contender.
        names: Which contenders, of `CONTENDERS`; `None` for those that suit
            the device.
        dataloader: Also the PyTorch loop with a DataLoader.
        quick: Fewer contenders, steps and rounds: to see that all works.
        tell: A function that takes a line about the progress.

    Returns:
        A dict for JSON: the machine, its versions and limit; the load average
        before, and the share of the cores that others used before each round;
        for each contender images a second of each round and their median,
        seconds from the start of a process to its first step (cold, and with
        the compile caches that a first process has left), peak memory in
        bytes; the ratios of each pair of a kind; who was left out, and why.

    Raises:
        InputError: An unknown name, a number out of range, or a contender
            that died.
    """
    if rounds is None:
        rounds = _QUICK_ROUNDS if quick else _ROUNDS
    if steps is None and quick:
        steps = _QUICK_STEPS
    _check(arch, precision, names, batch_size, rounds, steps)
    setting = Setting(arch, batch_size, precision, turns=rounds + 1)
    _check_epochs(dataclasses.replace(setting, steps=steps or _STEPS))
    load = os.getloadavg()
    tell("measuring the machine")
    facts = _machine_facts(setting)
    accelerated = facts["accelerator"] is not None
    names = names or default_names(accelerated, dataloader, quick)
    setting = dataclasses.replace(
        setting,
        precision=facts["precision"],
        steps=steps or (_ACCELERATED_STEPS if accelerated else _STEPS),
        accelerated=accelerated,
    )
    with tempfile.TemporaryDirectory() as caches, _Crew() as crew:
        environment = _environment(Path(caches), len(names))
        for name in names:
            tell(f"starting {name}")
            crew.hire(name, setting, environment, not quick or name == "fit")
        if not crew.workers:
            why = "; ".join(f"{k}: {v}" for k, v in crew.left_out.items())
            raise InputError(f"nothing to time ({why}): name other contenders")
        others = []
        speeds = take_turns(
            crew.workers, rounds, lambda: others.append(share_in_use()), tell
        )
        rows = [
            _row(worker, speeds[worker.name], crew.starts[worker.name])
            for worker in crew.workers
        ]
    return {
        "setting": dataclasses.asdict(setting),
        "machine": machine(),
        "load_average": load,
        "others": others,
        "busy": max(others) > _BUSY,
        **facts,
        "contenders": rows,
        "left_out": crew.left_out,
        "ratios": ratios(rows),
    }


def _check(arch, precision, names, batch_size, rounds, steps):
    """Raises `InputError` for what is wrong, before anything is started."""
    parse(arch)
    if precision not in CHOICES["precision"]:
        raise unknown("precision", precision, CHOICES["precision"])
    for name in names or ():
        if name not in CONTENDERS:
            raise unknown("contender", name, CONTENDERS)
        if names.count(name) > 1:
            raise InputError(f"contender {name} twice: name it once")
    numbers = {"batch_size": batch_size, "rounds": rounds, "steps": steps}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: must be at least 1")
        if value is not None and value > _MOST:
            raise InputError(f"{name}={value}: must be at most {_MOST:,}")


def _check_epochs(setting):
    """Raises `InputError` if a recipe cannot have as many epochs."""
    if setting.epochs > _MOST:
        raise InputError(
            f"{setting.turns - 1} rounds of {setting.steps} steps of "
            f"{setting.batch_size} images are too many: give fewer rounds or "
            "steps"
        )


def default_names(accelerated, dataloader=False, quick=False):
    """Returns the contenders that suit a device.

    A DataLoader, and CUDA graphs, are for accelerators: on a CPU the loader's
    processes take the cores from the training.
    """
    wanted = {"everywhere"}
    if not quick:
        wanted |= {"full", "accelerator"} if accelerated else {"full"}
    return [
        name
        for name, contender in CONTENDERS.items()
        if contender.where in wanted
        or (dataloader and name == "torch-dataloader")
    ]


def _machine_facts(setting):
    worker = Worker("machine", contenders.command("machine", setting))
    try:
        return worker.receive("facts")["facts"]
    finally:
        worker.close()


class _Crew(contextlib.ExitStack):
    """The workers of a benchmark, which end with the context.

    Attributes:
        workers: Those that run, in the order of the turns.
        starts: `{name: {"cold", "again": seconds to the first step}}`.
        left_out: `{name: why}` of the others.
    """

    def __init__(self):
        super().__init__()
        self.workers, self.starts, self.left_out = [], {}, {}

    def hire(self, name, setting, environment, twice):
        """Starts a worker, or notes why it cannot run.

        Args:
            twice: Whether to start it again, its compile caches now filled.
        """
        line = contenders.command(name, setting)

        def start():
            worker = Worker(name, line, environment)
            self.callback(worker.close)
            return worker, worker.first_step()

        try:
            worker, cold = start()
            again = None
            if twice:
                worker.close()
                worker, again = start()
            worker.ready()
        except LeftOut as reason:
            self.left_out[name] = str(reason)
            return
        self.workers.append(worker)
        self.starts[name] = {"cold": cold, "again": again}


def _environment(caches, processes):
    """Variables of the workers: empty compile caches, and room for all.

    Args:
        caches: An empty folder.
        processes: How many share an accelerator's memory.
    """
    folders = {
        "XDG_CACHE_HOME": "xdg",
        "JAX_COMPILATION_CACHE_DIR": "jax",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "CUDA_CACHE_PATH": "cuda",
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folders.pop("JAX_COMPILATION_CACHE_DIR")  # it is in XDG_CACHE_HOME
    return {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.8 / processes:.2f}",
        **{name: str(caches / folder) for name, folder in folders.items()},
    }


def machine():
    """Returns the host's processor, cores and system, for people."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {
        "processor": name,
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cores():
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def share_in_use(seconds=0.5, stat=Path("/proc/stat")):
    """Returns the share of the cores in use, 0 to 1, over so many seconds.

    While all contenders sleep, it is that of the machine's other users. Where
    the system does not tell (it is Linux's), 0.
    """

    def read():
        ticks = [int(t) for t in stat.read_text().split("\n")[0].split()[1:]]
        return sum(ticks[:8]), sum(ticks[3:5])  # all; idle or waiting for I/O

    try:
        total, idle = read()
        time.sleep(seconds)
        total, idle = (
            now - then for now, then in zip(read(), (total, idle), strict=True)
        )
    except OSError:
        return 0.0
    return 1 - idle / total if total else 0.0


def _row(worker, speeds, starts):
    return {
        "name": worker.name,
        "kind": CONTENDERS[worker.name].kind,
        "images_per_second": speeds,
        "median": statistics.median(speeds),
        "first_step_seconds": starts,
        "peak_memory": worker.last["memory"],
        "peak_device_memory": worker.last["device_memory"],
    }


def ratios(rows):
    """Returns the ratio of each pair of a kind, in the rounds' pairs.

    Args:
        rows: Dicts with `name`, `kind` and `images_per_second`, of as many
            rounds each.

    Returns:
        `{"A / B": {"rounds": [...], "median", "least", "most"}}`, for each A
        above a B of its kind.
    """
    found = {}
    for index, above in enumerate(rows):
        for below in rows[index + 1 :]:
            if above["kind"] != below["kind"]:
                continue
            pairs = zip(
                above["images_per_second"],
                below["images_per_second"],
                strict=True,
            )
            each = [a / b for a, b in pairs]
            found[f"{above['name']} / {below['name']}"] = {
                "rounds": each,
                "median": statistics.median(each),
                "least": min(each),
                "most": max(each),
            }
    return found
