"""The backup of a run: all that a resumed run needs, in one file.

The newest is `backup.npz`; the one before stays beside it, for the day when the
newest turns out to be damaged.
"""

import json
import re
from dataclasses import dataclass, field

import numpy as np

from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.files import atomic_write, check_zip
from keras_resnet_cifar.training.run_directory import State

DEFAULT_INTERVAL = "1min"
_SECONDS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Interval:
    """How often a run is backed up: by epochs or by time, the other is 0.

    Attributes:
        epochs: Write after each so many epochs.
        seconds: Write when so many seconds have passed since the last time,
            within an epoch as well.
    """

    epochs: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text):
        """From `5` (epochs) or `"30s"`, `"10min"`, `"1h"`."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(text).strip())
        number, unit = match.groups() if match else ("0", "")
        if not unit and number.isdigit() and int(number):
            return cls(epochs=int(number))
        if unit in _SECONDS and float(number):
            return cls(seconds=float(number) * _SECONDS[unit])
        raise InputError(
            f"backup_every={text}: give a number of epochs, or a time such as "
            "30s, 10min or 1h"
        )


@dataclass
class Backup:
    """What is saved, and what a resumed run starts from.

    Attributes:
        state: The `State`.
        variables: Arrays of all that changes in training: weights, averages,
            counters, optimizer.
        metrics: Arrays of the metrics of the epoch in progress.
        best: Weights of best.keras, if there is one.
    """

    state: State
    variables: list = field(default_factory=list)
    metrics: list = field(default_factory=list)
    best: list = field(default_factory=list)


_GROUPS = ("variables", "metrics", "best")


def save_backup(directory, backup):
    """Writes a backup whole; the one before becomes the previous one."""
    arrays = {
        f"{group}-{index}": np.asarray(array)
        for group in _GROUPS
        for index, array in enumerate(getattr(backup, group))
    }
    state = json.dumps(vars(backup.state))
    with atomic_write(directory.backup, keep=directory.previous) as temporary:
        np.savez(temporary, state=state, **arrays)


def load_backup(directory, variables, metrics):
    """Returns the newest `Backup` that can be read.

    Args:
        directory: A `RunDirectory`.
        variables: Shapes of the variables, in order.
        metrics: Likewise of the metrics.

    Returns:
        The backup, and `None` or one line that says what is wrong with a newer
        one.

    Raises:
        InputError: None can be read, or it is of another net or optimizer.
    """
    faults = []
    for path in (directory.backup, directory.previous):
        try:
            backup = _read(path)
        except FileNotFoundError:
            faults.append(f"{path} is missing")
            continue
        except Exception as error:  # zipfile, numpy and json raise their own
            faults.append(f"cannot read the backup {path} ({one_line(error)})")
            continue
        for arrays, shapes in (
            (backup.variables, variables),
            (backup.metrics, metrics),
        ):
            if [a.shape for a in arrays] != [tuple(s) for s in shapes]:
                raise InputError(
                    f"the backup {path} is of another net or optimizer: resume "
                    "with the config of the run"
                )
        return backup, faults[0] if faults else None
    raise InputError(f"{'; '.join(faults)}: start a new run")


def _read(path):
    if path.exists():
        check_zip(path)
    # NumPy leaves a file open that it cannot read; this `open` does not.
    with open(path, "rb") as opened:
        file = np.load(opened, allow_pickle=False)
        state = State(**json.loads(str(file["state"])))
        held = {name: file[name] for name in file.files if name != "state"}
    if not isinstance(state.epoch, int) or not isinstance(state.step, int):
        raise ValueError("its state is not one")
    groups = {
        group: [
            held.pop(f"{group}-{index}")
            for index in range(sum(n.startswith(f"{group}-") for n in held))
        ]
        for group in _GROUPS
    }
    return Backup(state, **groups)
