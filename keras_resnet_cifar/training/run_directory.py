"""A run directory: its files, its config, and comparing configs."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import check_checksum, is_temporary, write_text

DEFAULT_INTERVAL = "1min"
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}
_PACKAGES = (
    "keras_resnet_cifar",
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "numpy",
    "keras-cv",  # its RandAugment
)
# Entries of config.json by their types.
_CONFIG = {
    str: ("arch", "precision", "backend"),
    int: ("parameters", "seed"),
    dict: ("dataset", "recipe", "request", "versions"),
}
# Entries on which a run and its continuation must agree. The number of epochs
# may differ: `checkpointing` decides whether the schedule allows it.
_RESUME_KEYS = (
    "arch",
    "dataset",
    "recipe",
    "seed",
    "precision",
    "backend",
    "class_weight",
)
# The number of epochs, and descriptions without effect.
_MAY_CHANGE = ("recipe.epochs", "recipe.source", "recipe.expected")
_TIMING = ("images_per_second", "seconds")  # not reproducible


def interval(text: str | int) -> tuple[int, float]:
    """Returns the epochs or the seconds between backups; the other is 0.

    `text` is like `5` (epochs), `"30s"`, `"10min"` or `"1h"`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(text).strip())
    number, unit = match.groups() if match else ("0", "")
    if not unit and number.isdigit() and int(number):
        return int(number), 0.0
    if unit in _SECONDS and float(number):
        return 0, float(number) * _SECONDS[unit]
    raise InputError(
        f"backup_every={text}: give a number of epochs, or a time such as "
        "30s, 10min or 1h"
    )


def _file(name: str) -> Any:
    return property(lambda self: self.path / name, doc=f"Path of {name}.")


@dataclass(frozen=True)
class RunDirectory:
    """The files of one training run."""

    path: Path

    config = _file("config.json")
    history = _file("history.csv")
    timing = _file("timing.csv")
    metrics = _file("metrics.json")
    best = _file("best.keras")
    last = _file("last.keras")
    backup = _file("backup.npz")
    previous_backup = _file("backup-previous.npz")
    curves = _file("curves.png")
    card = _file("README.md")
    checkpoint = _file("checkpoints/epoch-{epoch:04d}.keras")  # a pattern

    def checkpoints(self) -> list[Path]:
        """Returns the checkpoints of single epochs, in order."""
        return sorted((self.path / "checkpoints").glob("epoch-*.keras"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder, or raises `InputError` if another process has it.

        The lock ends with the process.
        """
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another process is using {self.path}: wait for it, or "
                    f"choose a folder other than output_dir={self.path}"
                ) from error
            except OSError as error:
                raise InputError(
                    f"cannot lock {self.path} ({error.strerror}): choose a "
                    "folder on a file system with locks"
                ) from error
            yield
        finally:
            os.close(handle)

    def check_unused(self) -> None:
        """Raises `InputError` if the folder holds anything."""
        if self.config.exists():
            raise InputError(
                f"{self.path} already holds a run: choose a new folder instead "
                f"of output_dir={self.path}, or resume that run"
            )
        # A kill before config.json is written may leave these files.
        leftovers = (self.last, self.backup)
        if self.path.exists() and not (
            self.path.is_dir()
            and all(
                p in leftovers or is_temporary(p) for p in self.path.iterdir()
            )
        ):
            raise InputError(
                f"output_dir={self.path} is a file or not empty: choose a new "
                "folder"
            )

    def sweep(self) -> None:
        """Removes temporary files that a killed process left behind."""
        for path in [*self.path.iterdir(), *self.path.glob("checkpoints/*")]:
            if is_temporary(path):
                path.unlink(missing_ok=True)

    def read_config(self) -> dict[str, Any]:
        """Returns the content of config.json, or raises `InputError`."""
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("it does not hold a JSON object")
            config = check_checksum(config)
            for kind, keys in _CONFIG.items():
                for key in keys:
                    if not isinstance(config.get(key), kind):
                        raise ValueError(f"{key} is missing or of another type")
            if "name" not in config["dataset"]:
                raise ValueError("the dataset has no name")
            return config
        except FileNotFoundError:
            raise InputError(
                f"{self.path} holds no run (no {self.config.name}): give the "
                "folder of one"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"cannot read {self.config}: {error}; restore it, or start a "
                "new run"
            ) from error


def find_run(path: Path) -> RunDirectory | None:
    """Returns the run that a checkpoint belongs to, or `None`."""
    for folder in (path.parent, path.parent.parent):
        run = RunDirectory(folder)
        with contextlib.suppress(
            OSError, ValueError, TypeError, RecursionError
        ):
            if "recipe" not in json.loads(run.config.read_text("utf-8")):
                continue  # of another program
        if run.config.is_file():  # if it is damaged, `read_config` reports it
            return run
    return None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def resume_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a config that a resumed run must share."""
    present = (key for key in _RESUME_KEYS if config.get(key) is not None)
    return {key: config[key] for key in present}


def check_same(config: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises `InputError` unless a run is resumed with the same config.

    `changes` are entries of the config to resume with, nested in the same way.
    `None` is ignored, except in place of an object, such as a loss. The number
    of epochs may differ.
    """
    began = config.get("backend")
    if changes.get("backend") not in (None, began):
        raise InputError(
            f"cannot resume on {changes['backend']}: the run started on "
            f"{began}; set KERAS_BACKEND={began}, or start a new run in "
            "another folder"
        )
    arguments = {
        "recipe.name": "recipe",
        "dataset.name": "dataset",
        "request.image_size": "image_size",
    }
    data = changes.get("dataset", {})
    if "fingerprints" in data and data["name"] == config["dataset"]["name"]:
        check_data(config, data["fingerprints"])
    old, new = flattened(config), flattened(changes)
    objects = {key: old.get(f"{key}.class_name") for key in new}
    different = [
        f"{arguments.get(key, key.removeprefix('recipe.'))}={value!r}, which "
        f"was {old.get(key, objects[key])!r}"
        for key, value in new.items()
        if key not in _MAY_CHANGE
        and value != old.get(key, objects[key])
        and (value is not None or objects[key])
    ]
    if different:
        raise InputError(
            f"cannot resume with {', '.join(different[:3])}: resume without "
            "the change, or start a new run in another folder"
        )


def check_data(
    config: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    allow_changed_data: bool | None = None,
) -> str:
    """Returns words for changed data; `""` if they are those of the training.

    `fingerprints` are those of the data now. Changed data raise `InputError`
    unless they are allowed; with `None`, they can never be.
    """
    old = config["dataset"].get("fingerprints", {})
    changed = {split for split in old if old[split] != fingerprints.get(split)}
    if changed and not allow_changed_data:
        remedy = "give allow_changed_data=True to use the changed images"
        if allow_changed_data is None:
            remedy = "start a new run in another folder"
        raise InputError(
            f"the images of {config['dataset']['name']} "
            f"({', '.join(sorted(changed))}) have changed since the run was "
            f"trained: restore them, or {remedy}"
        )
    return ", changed since the training" if changed else ""


def identity(config: Mapping[str, Any]) -> str:
    """Returns a hash of all that a run and its continuation must share."""
    shared = flattened(resume_keys(config))
    for key in _MAY_CHANGE:
        shared.pop(key, None)
    if shared.get("recipe.loss", "") is None:  # for runs without the field
        del shared["recipe.loss"]
    text = json.dumps(shared, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{"a.b": value}`, with values after a round trip through JSON."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(tree)).items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of history.csv or timing.csv, with values as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_history(
    directory: RunDirectory, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes history.csv, which is reproducible to the byte, and timing.csv.

    The columns have the order of the newest row.
    """
    columns = [name for name in rows[-1] if name not in _TIMING]
    _write_csv(directory.history, columns, rows)
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
