"""A run directory: what is in it, what repeats it, what resumes it."""

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import (
    is_temporary,
    make_folder,
    unsealed,
    write_text,
)

_PACKAGES = (
    "keras_resnet_cifar",
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "numpy",
)
# What must agree between a run and its resumption; the rest is for the record.
_CONFIG = {
    "arch": str,
    "parameters": int,
    "dataset": dict,
    "recipe": dict,
    "seed": int,
    "precision": str,
    "request": dict,
    "backend": str,
    "versions": dict,
}
_TIMING = ("images_per_second", "seconds")  # of a row: never twice the same
_BINDING = ("arch", "dataset", "recipe", "seed", "precision", "backend")


@dataclass(frozen=True)
class RunDirectory:
    """The files of one training run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self):
        return self.path / "config.json"

    @property
    def history(self):
        return self.path / "history.csv"

    @property
    def timing(self):
        return self.path / "timing.csv"

    @property
    def metrics(self):
        return self.path / "metrics.json"

    @property
    def best(self):
        return self.path / "best.keras"

    @property
    def last(self):
        return self.path / "last.keras"

    @property
    def backup(self):
        return self.path / "backup.npz"

    @property
    def previous(self):
        return self.path / "backup-previous.npz"

    @property
    def curves(self):
        return self.path / "curves.png"

    @property
    def card(self):
        return self.path / "README.md"

    def checkpoint(self, epoch):
        return self.path / "checkpoints" / f"epoch-{epoch:04d}.keras"

    def checkpoints(self):
        """The checkpoints kept by epoch, in order."""
        return sorted((self.path / "checkpoints").glob("epoch-*.keras"))

    @contextlib.contextmanager
    def locked(self):
        """Keeps other processes out; the lock dies with its process.

        Raises:
            InputError: Another process is at work in the folder.
        """
        if fcntl is None:  # Windows has no lock on folders
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise InputError(
                f"another process is at work in {self.path}: wait for it, or "
                "name another --output-dir"
            ) from error
        finally:
            os.close(handle)

    def check_unused(self):
        """Raises `InputError` if the folder holds anything."""
        if self.config.exists():
            raise InputError(
                f"{self.path} holds another run: name a new --output-dir, or "
                f"go on with --resume {self.path}"
            )
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: name a new --output-dir")
        # A kill may have come before the config, which makes it a run.
        begun = {self.last.name, self.backup.name, self.previous.name}
        if self.path.is_dir() and any(
            path.name not in begun and not is_temporary(path)
            for path in self.path.iterdir()
        ):
            raise InputError(
                f"{self.path} is not empty: name a new --output-dir"
            )

    def create(self):
        """Makes the folder; raises `InputError` if it is in use."""
        self.check_unused()
        make_folder(self.path)

    def sweep(self):
        """Removes what a killed process was still writing."""
        for path in [*self.path.iterdir(), *self.path.glob("checkpoints/*")]:
            if is_temporary(path):
                path.unlink(missing_ok=True)

    def read_config(self):
        """Returns the config of the run.

        Raises:
            InputError: There is no run here, or its config cannot be read.
        """
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("it holds no object")
            config = unsealed(config)
            for key, kind in _CONFIG.items():
                if not isinstance(config.get(key), kind):
                    raise ValueError(f"{key} is missing or of another kind")
            if "name" not in config["dataset"]:
                raise ValueError("the dataset has no name")
            return config
        except FileNotFoundError:
            raise InputError(
                f"{self.path} holds no run (no {self.config.name}): name the "
                "--output-dir of an earlier one"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"cannot read {self.config}: {error}; restore it or start a "
                "new run"
            ) from error


@dataclass
class State:
    """What a run has reached: everything but arrays.

    Attributes:
        epoch: Epochs completed.
        step: Steps done of the epoch in progress.
        rows: The history, a dict an epoch.
        best: Best validation accuracy so far, and its epoch.
        run: The `identity` of the run.
    """

    epoch: int = 0
    step: int = 0
    rows: list = field(default_factory=list)
    best: dict = field(default_factory=dict)
    run: str = ""


def find_run(path):
    """Returns the `RunDirectory` that a checkpoint lies in, or `None`."""
    for folder in (path.parent, path.parent.parent):
        run = RunDirectory(folder)
        if run.config.is_file():
            return run
    return None


def versions():
    """Versions of what a run depends on, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def check_same(config, resumed):
    """Raises `InputError` if a run is resumed as something else.

    The number of epochs may differ: whether it can depends on how far the run
    got (`training.py` decides).
    """
    old, new = (_flat({k: c[k] for k in _BINDING}) for c in (config, resumed))
    different = [
        key
        for key in old
        if old[key] != new.get(key) and key != "recipe.epochs"
    ]
    if different:
        told = "; ".join(
            f"{key} was {old[key]!r}, now {new.get(key)!r}"
            for key in different[:3]
        )
        raise InputError(
            f"cannot resume with another config: {told}; leave these options "
            "out, or start a new run in another --output-dir"
        )


def identity(config):
    """A hash of all that must agree between a run and its resumption."""
    held = _flat({key: config[key] for key in _BINDING})
    held.pop("recipe.epochs")
    text = json.dumps(held, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def other_versions(config, resumed):
    """Returns what differs in the versions of two configs, for people."""
    old, new = config["versions"], resumed["versions"]
    return [
        f"{name} was {old.get(name)}, now {new.get(name)}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _flat(tree, prefix=""):
    """One level of `{"a.b": value}`, values as JSON gives them back."""
    tree = json.loads(json.dumps(tree))
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_history(directory, rows):
    """Writes history.csv, which repeats to the byte, and beside it timing.csv.

    Columns are in the order of the newest row.
    """
    told = [name for name in rows[-1] if name not in _TIMING]
    _write_csv(directory.history, told, rows)
    if set(_TIMING) <= set(rows[-1]):
        _write_csv(directory.timing, ["epoch", *_TIMING], rows)


def _write_csv(path, columns, rows):
    text = io.StringIO()
    writer = csv.DictWriter(
        text, columns, extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
