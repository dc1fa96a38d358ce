"""The command `sweep`."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from keras_resnet_cifar.training import many_runs, sweeps

pytest.importorskip("optuna", reason="sweeps need the extra sweep")
ROOT = Path(__file__).parents[2]
PARAM = ("--param", "learning_rate=log:0.05:0.8")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--param", "rate=log:0.05:0.8"], "unknown parameter 'rate'"),
        (["--param", "momentum=log:0.9:0.1"], "--param momentum=log:0.9:0.1"),
        (["--param", "momentum=linear:0:1"], "--momentum 1.0: must be below 1"),
        ([*PARAM, *PARAM], "--param names a field twice"),
        ([*PARAM, "--trials", "0"], "--trials 0: give 1 or more"),
        ([*PARAM, "--jobs", "0"], "--jobs 0: must be at least 1"),
        ([*PARAM, "--arch", "resnet21"], "depth 21"),
        ([*PARAM, "--storage", "x"], "--storage x: no database (ArgumentError"),
        ([*PARAM, "--storage", "x://a/b"], "give a URL such as sqlite:///"),
        ([*PARAM, "--storage", "sqlite://"], "not a database of studies"),
        ([*PARAM, "--storage", "sqlite:////no/where"], "unable to open"),
        ([], "required: --param"),
    ],
)
def test_bad_input_is_a_line_and_leaves_nothing(
    options, text, run, tmp_path, capfd
):
    folder = tmp_path / "sweep"
    given = ["--dataset", "shapes", "--output-dir", folder]
    assert run("sweep", *options, *given) == 2
    error = capfd.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not folder.exists()


def test_a_study_has_the_name_of_its_options(run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(many_runs, "run_all", lambda *_: {})
    given = ("--dataset", "shapes", "--output-dir", tmp_path)

    def name(*options):
        assert run("sweep", *PARAM, *given, *map(str, options)) == 0
        return capfd.readouterr().out.split()[0]

    first = name("--epochs", 2, "--seed", 3)
    assert first == name("--seed", 3, "--epochs", 2, "--jobs", 2)
    assert first != name("--epochs", 3, "--seed", 2)


def locked(path):
    database = sqlite3.connect(path)
    database.execute("create table studies (a)")
    database.execute("begin exclusive")
    return database


def foreign(path):
    database = sqlite3.connect(path)
    database.execute("create table photos (a)")
    return database


def text(path):
    path.write_text("these are not the bytes of a database")


STORAGES = {
    locked: "database is locked",
    foreign: "not a database of studies",
    text: "file is not a database",
}


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_no_free_storage_is_refused(
    storage, run, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(sweeps, "_LOCKED", 0)
    path = tmp_path / "a.db"
    held = storage(path)
    before = path.read_bytes()
    folder = tmp_path / "sweep"
    options = ["--storage", f"sqlite:///{path}", "--output-dir", folder]
    assert run("sweep", *PARAM, *options, "--dataset", "shapes") == 2
    error = capfd.readouterr().err
    assert STORAGES[storage] in error and error.count("\n") == 1
    assert path.read_bytes() == before and not folder.exists()
    if held is not None:
        held.close()


def start(folder):
    command = [sys.executable, ROOT / "scripts" / "sweep.py", *PARAM]
    command += ["--param", "batch_size=choice:64,128", "--trials", "5"]
    command += ["--arch", "resnet8", "--dataset", "shapes", "--epochs", "2"]
    command += ["--validation", "9000", "--output-dir", folder]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def kill(process):
    """Kills a sweep and the process that trains for it."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = " ".join(path.read_text() for path in threads).split()
    for number in (process.pid, *map(int, children)):
        os.kill(number, signal.SIGKILL)
    process.communicate()


def finished(folder):
    """The finished trials: {number: (state, value)}."""
    query = """select number, state, value from trials left join trial_values
        using (trial_id) where state in ('COMPLETE', 'PRUNED')"""
    with closing(sqlite3.connect(folder / "sweep.db", timeout=30)) as database:
        return {number: rest for number, *rest in database.execute(query)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
def test_a_sweep_that_is_killed_loses_no_finished_trial(tmp_path):
    kept = {}
    for _ in range(2):
        process = start(tmp_path)
        for line in process.stdout:
            if re.match(r"trial \d+", line):
                break
        kill(process)
        before, kept = kept, finished(tmp_path)
        assert len(kept) > len(before)
        assert before.items() <= kept.items()
    process = start(tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"{5 - len(kept)} trials to do" in output
    last = finished(tmp_path)
    assert len(last) == 5 and kept.items() <= last.items()
    for name in ("history", "importance"):
        png = tmp_path / f"{name}.png"
        assert png.read_bytes().startswith(b"\x89PNG")
    best = max(v for state, v in last.values() if state == "COMPLETE")
    assert f"validation {best:.4f}; to train it" in output
    command = output.splitlines()[-1]
    assert command.startswith("python -m keras_resnet_cifar train --arch")
    assert "--learning-rate 0." in command and "--param" not in command
