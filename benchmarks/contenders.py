"""The table of contenders.

A contender is a function `(setting, rounds)` that runs in a separate process.
It takes a first step, warms up, and then measures rounds until it is killed.
"""

import importlib.util
from typing import NamedTuple

from benchmarks.setting import Setting
from benchmarks.workers import LeftOut, Rounds
from keras_resnet_cifar.cli.start import import_keras


class Contender(NamedTuple):
    """A row of the table.

    Rows of one `kind`, `"train"` or `"evaluate"`, are compared. `runs` says
    when a row runs by default: in `"quick"` and full runs, in `"full"` runs
    only, or in full runs on an `"accelerator"`.
    """

    kind: str
    runs: str


CONTENDERS = {
    "fit": Contender("train", "quick"),
    "step": Contender("train", "quick"),
    "keras": Contender("train", "quick"),
    "keras-step": Contender("train", "full"),
    "torch-eager": Contender("train", "quick"),
    "torch-compile": Contender("train", "full"),
    "torch-graphs": Contender("train", "accelerator"),
    "torch-dataloader": Contender("train", "accelerator"),
    "evaluate": Contender("evaluate", "full"),
    "torch-evaluate": Contender("evaluate", "full"),
}


def run(name: str, setting: Setting, rounds: Rounds) -> None:
    """Runs a contender, or `"machine"`, in this process.

    Raises `LeftOut` if it cannot run here.
    """
    library = "torch" if name.startswith("torch-") else "keras"
    if library == "keras":
        import_keras()
    elif importlib.util.find_spec("torch") is None:
        raise LeftOut("PyTorch is not installed")
    module = importlib.import_module(f"benchmarks.{library}_contenders")
    rounds.device_memory = module.device_memory
    module.RUN[name](setting, rounds)
