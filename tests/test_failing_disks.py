"""Disks that are full or read-only: one line, and what was there is there."""

import contextlib
import errno
import itertools
import os
import resource
import signal
import stat
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import TINY, refusal

from benchmarks import command as benchmark_command
from benchmarks import table, throughput
from keras_resnet_cifar import files
from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.data.load import Split
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation import plots
from keras_resnet_cifar.evaluation.metrics import Mistakes
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.saving import load_model, save_model
from keras_resnet_cifar.models.torch_checkpoints import save_torch_checkpoint
from keras_resnet_cifar.pytorch.files import write_tensors
from keras_resnet_cifar.training.checkpointing import Snapshot
from keras_resnet_cifar.training.run_directory import (
    RunDirectory,
    write_history,
)
from keras_resnet_cifar.training.train import train

NOBODY = 65534
TENSORS = {"a": np.ones((100, 100), "float32")}
IMAGES = Split(np.zeros((2, 32, 32, 3), "uint8"), np.array([0, 1]))
MISTAKES = Mistakes(*np.array([[0, 1], [1, 0]]), np.array([0.6, 0.7]))
# File name -> what writes it: (path, a small model).
WRITERS = {
    "text.md": lambda path, model: files.write_text(path, "text\n" * 100),
    "config.json": lambda path, model: files.write_json(path, {"a": 1}),
    "net.keras": lambda path, model: save_model(model, path),
    "net.safetensors": lambda path, model: write_tensors(TENSORS, path),
    "net.pth": lambda path, model: write_tensors(TENSORS, path),
    "curves.png": lambda path, model: plots.plot_curves(
        [{"epoch": 1, "loss": 2.0}], path
    ),
    "confusion.png": lambda path, model: plots.plot_confusion(
        np.eye(2, dtype=int), ("cat", "dog"), path
    ),
    "mistakes.png": lambda path, model: plots.plot_mistakes(
        IMAGES, MISTAKES, ("cat", "dog"), path
    ),
    "history.csv": lambda path, model: write_history(
        RunDirectory(path.parent), [{"epoch": 1, "loss": 0.5}]
    ),
    "backup.npz": lambda path, model: Snapshot(
        "a run", [], list(TENSORS.values())
    ).write(RunDirectory(path.parent)),
}
LIBRARIES = {".pth": "torch", ".safetensors": "safetensors"}
SLOW = ("net.pth", "curves.png", "confusion.png", "mistakes.png")


def cases(names, slow):
    """Names as parameters, some of them marked slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name in slow))
        for name in names
    ]


@contextlib.contextmanager
def disk_of(size):
    """A disk on which no file can have more than so many bytes."""
    old, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (old, most))


@contextlib.contextmanager
def read_only(folder):
    """A folder in which nothing may be written, for root either."""
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build_resnet(**TINY, normalization="shapes")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", cases(WRITERS, SLOW))
def test_a_file_that_does_not_fit_leaves_the_older_one(name, model, tmp_path):
    path = tmp_path / name
    if path.suffix in LIBRARIES:
        pytest.importorskip(LIBRARIES[path.suffix])
    WRITERS[name](path, model)
    before = contents(tmp_path)
    size = path.stat().st_size
    for most in (0, 1, size // 2, size - 1):
        with disk_of(most):
            line = refusal(WRITERS[name], path, model)
        assert line.startswith(f"cannot write {path}: File too large")
        assert contents(tmp_path) == before
    with read_only(tmp_path):
        line = refusal(WRITERS[name], path, model)
    assert line.startswith(f"cannot write {path}: Permission denied")
    assert contents(tmp_path) == before


def test_the_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """And the name before `atomic_write` returns; a reader sees no half."""
    target = tmp_path / "best.keras"
    target.write_text("old")
    events = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle):
        status = os.fstat(handle)
        fsync(handle)
        of = "folder" if stat.S_ISDIR(status.st_mode) else status.st_size
        events.append(("fsync", of, target.read_text()))

    def recorded_replace(source, destination):
        events.append(("replace", str(destination), target.read_text()))
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    files.write_text(target, "a newer one")
    assert events == [
        ("fsync", 11, "old"),
        ("replace", str(target), "old"),
        ("fsync", "folder", "a newer one"),
    ]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_without_fsync_of_folders(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refuse_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    if number == errno.EINVAL:
        files.write_text(tmp_path / "a.txt", "text")
    else:  # the disk is failing
        refusal(files.write_text, tmp_path / "a.txt", "text")
    assert contents(tmp_path) == {"a.txt": b"text"}


# --- Every write of a command, or of a run, in turn


class DiskFull:
    """Refuses the n-th file that is moved into place, of a name if given."""

    def __init__(self, monkeypatch):
        self.replace = os.replace
        self.fill(0)
        monkeypatch.setattr(os, "replace", self)

    def fill(self, at, name=None):
        self.at, self.name, self.count, self.refused = at, name, 0, None

    def __call__(self, source, destination):
        if self.name in (None, os.path.basename(destination)):
            self.count += 1
            if self.count == self.at:
                self.refused = os.fspath(destination)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.replace(source, destination)


@pytest.fixture
def disk(monkeypatch):
    return DiskFull(monkeypatch)


@pytest.fixture
def place(model, tiny_cifar, tmp_path, monkeypatch):
    """A folder with a model, a checkpoint and data, to run commands in."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    save_model(model, folder / "net.keras")
    save_torch_checkpoint(model, folder / "net.safetensors", "akamaster")
    monkeypatch.setattr(throughput, "benchmark", lambda *_, **__: {"a": 1})
    monkeypatch.setattr(table, "as_text", str)
    terminate = signal.getsignal(signal.SIGTERM)
    yield folder
    signal.signal(signal.SIGTERM, terminate)


DATA = "--dataset cifar10 --data-dir ../data --allow-unverified"
# Command -> how many files it writes.
COMMANDS = {
    f"evaluate net.keras {DATA} --mistakes 1 --output-dir {{}}out": 3,
    "convert net.safetensors -o {}out.keras": 1,
    "convert net.keras --to-torch akamaster -o {}out.safetensors": 1,
    "benchmark --output {}out.json": 1,
}


def run(command):
    name, *options = command.split()
    if name == "benchmark":
        return benchmark_command.main(options)
    return cli.main([name, *options])


def error_of(capfd):
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("command", COMMANDS)
def test_every_write_of_a_command_in_turn(command, place, disk, capfd):
    pytest.importorskip("safetensors", reason="it is the file's format")
    written = {}
    for at in range(1, COMMANDS[command] + 1):
        disk.fill(at)
        before = contents(place)
        assert run(command.format("")) == 2
        assert "No space left" in error_of(capfd)
        written = contents(place)
        assert before.items() <= written.items()
        assert not [name for name in written if "/." in f"/{name}"]
        assert len(written) == len(contents(place).keys() | before.keys())
    assert len(written) == 2 + COMMANDS[command] - 1
    disk.fill(0)
    assert run(command.format("")) == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="has no /proc")
@pytest.mark.parametrize(
    "command", [*COMMANDS, f"train --arch resnet8 {DATA} --output-dir {{}}run"]
)
def test_a_place_where_even_root_cannot_write(command, place, capfd):
    pytest.importorskip("safetensors", reason="it is the file's format")
    before = contents(place)
    assert run(command.format("/proc/")) == 2
    assert "/proc/" in error_of(capfd)
    assert contents(place) == before


def trained(model, data, folder, **options):
    """A run of two epochs that writes each of its files twice."""
    return train(
        model,
        data,
        output_dir=folder,
        epochs=2,
        batch_size=64,
        precision="float32",
        checkpoint_every=1,
        backup_every=1,
        verbose=False,
        **options,
    )


def check_refused_run(model, data, folder, disk):
    """A run that meets a full disk leaves whole files; `False` if it ends."""
    try:
        trained(model, data, folder)
        return False
    except InputError as error:
        # The older backup is kept on the way to the newer one.
        named = str(disk.refused).replace("backup-previous", "backup")
        assert str(error).startswith(f"cannot write {named}: No space")
    assert not list(folder.rglob(".*"))
    for path in folder.rglob("*.keras"):
        load_model(path)
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at"),
    [("history.csv", 2), ("config.json", 1), ("metrics.json", 1)],
)
def test_a_write_of_a_run(name, at, tiny_model, tiny_data, tmp_path, disk):
    folder = tmp_path / "run"
    disk.fill(at, name)
    assert check_refused_run(tiny_model(), tiny_data, folder, disk)
    if name == "history.csv":  # the epoch before goes on where there is space
        disk.fill(0)
        run = trained(tiny_model(), tiny_data, folder, resume=True)
        assert [row["epoch"] for row in run.history] == [1, 2]


@pytest.mark.slow
def test_every_write_of_a_run_in_turn(tiny_model, tiny_data, tmp_path, disk):
    refused = []
    for at in itertools.count(1):
        disk.fill(at)
        folder = tmp_path / str(at)
        if not check_refused_run(tiny_model(), tiny_data, folder, disk):
            break
        refused.append(os.path.basename(disk.refused))
    print(f"{len(refused)} writes refused: {', '.join(refused)}")
    assert set(contents(folder)) == {
        "checkpoints/" * ("epoch" in name) + name for name in refused
    }


PRINTER = """
import sys
from keras_resnet_cifar.cli import main as cli
sys.stdout = open(1, "w", buffering=int(sys.argv[1]), closefd=False)
sys.exit(cli.main(["list"]))
"""


@pytest.mark.parametrize("buffer", [1, 1 << 20], ids=["at once", "at the end"])
def test_output_onto_a_full_disk(buffer):
    if not os.path.exists("/dev/full"):
        pytest.skip("has no /dev/full")
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", PRINTER, str(buffer)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "No space left" in result.stderr
    assert result.stderr.count("\n") == 1
