"""Runs that are interrupted, resumed, or not resumed as another."""

import argparse
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.cli.options import (
    add_data_options,
    data_request,
    newest_run,
)
from keras_resnet_cifar.finetuning.phases import PhasedDirectory
from keras_resnet_cifar.training.recipes import DEFAULT, RECIPES, get_recipe
from keras_resnet_cifar.training.run_directory import (
    RunDirectory,
    check_same,
)

ROOT = Path(__file__).parents[2]
# A shell starts its background jobs deaf to Ctrl-C, and the tests with them.
HEARING = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(name, *arguments):
    path = ROOT / "scripts" / f"{name}.py"
    command = [sys.executable, "-c", HEARING, path, *arguments]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def finish(process):
    out, err = process.communicate()
    return process.returncode, out, err


def history(directory, column):
    rows = (directory / "history.csv").read_text().splitlines()
    place = rows[0].split(",").index(column)
    return [float(row.split(",")[place]) for row in rows[1:]]


class Interrupting(io.StringIO):
    """Output that sends Ctrl-C when the second epoch begins."""

    def write(self, text):
        if text.startswith("Epoch 2/"):
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_and_resume(fast, run, tmp_path, monkeypatch, capfd):
    directory = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Interrupting())
            options = ["--epochs", 3, "--output-dir", directory]
            assert run("train", *fast, *options) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    command = f"python -m keras_resnet_cifar train --resume {directory}"
    assert f"interrupted; to resume: {command}\n" in capfd.readouterr().err
    assert newest_run(directory).path == directory
    with RunDirectory(directory).locked():
        assert run("train", "--resume", directory) == 2
    assert "another process" in capfd.readouterr().err
    assert run("train", "--resume", directory, "--quiet") == 0
    assert history(directory, "epoch") == [1, 2, 3]


@pytest.mark.slow
def test_ctrl_c_and_resume_in_processes(fast, tmp_path):
    directory = tmp_path / "run"
    options = ["--output-dir", directory, "--epochs", "40"]
    process = script("train", *fast, *options)
    for line in process.stdout:
        if line.startswith("Epoch 3/40"):
            break
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert f"--resume {directory}" in err
    assert "Traceback" not in err

    code, out, err = finish(script("train", "--resume", directory))
    assert code == 0, err
    assert "Epoch 3/40" in out or "Epoch 4/40" in out
    assert history(directory, "epoch") == list(range(1, 41))
    # One line down to zero from a twentieth on, as if never interrupted.
    steps = 4 * np.arange(1, 41) - 1  # the last of each epoch
    expected = np.interp(steps, [0, 8, 160], [0, 0.06, 0])
    rates = history(directory, "learning_rate")
    np.testing.assert_allclose(rates, expected, atol=1e-6)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path):
    directory = tmp_path / "run"
    long = ["--arch", "resnet110", "--batch-size", "512", "--quiet"]
    process = script("train", *long, "--output-dir", directory)
    while not (directory / "config.json").exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    for line in process.stderr:
        if "repeat to exit at once" in line:
            break
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == -signal.SIGTERM
    assert "Traceback" not in err


OTHERS = {
    "arch": (["--arch", "resnet20"], "--arch resnet20, which was 'resnet8'"),
    "recipe": (["--recipe", "paper"], "--recipe paper, which was"),
    "field": (["--batch-size", "32"], "--batch-size 32, which was 64"),
    "flag": (["--no-flip"], "--no-flip, which was True"),
    "dataset": (["--dataset", "shapes"], "--dataset shapes, which was"),
    "seed": (["--seed", "1"], "--seed 1, which was 0"),
    "folder": (
        ["--output-dir", "elsewhere"],
        "--output-dir elsewhere, which was",
    ),
    "validation": (["--validation", "0.1"], "--validation 0.1, which was 56"),
}


def refused(run, capfd, *arguments):
    assert run(*arguments) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_is_not_resumed_as_another(name, trained, run, capfd):
    options, word = OTHERS[name]
    err = refused(run, capfd, "train", "--resume", trained[0], *options)
    assert "cannot resume with " in err
    assert word in err


def change_config(directory, **entries):
    """Changes entries of config.json as if the run had written them."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.pop("sha256", None)
    path.write_text(json.dumps(config | entries))


def test_a_run_is_resumed_with_the_options_that_started_it(
    finished_run, run, tmp_path, monkeypatch, capfd
):
    """A share of the images, and a folder of them by a relative path."""
    photos = tmp_path / "photos"
    photos.mkdir()
    request = {"name": str(photos), "validation": 0.1, "seed": 0}
    dataset = {"name": str(photos)}
    change_config(finished_run, request=request, dataset=dataset)
    (finished_run / "last.keras").unlink()  # looked at after the options
    monkeypatch.chdir(tmp_path)
    options = ["--dataset", "photos", "--validation", "0.1"]
    err = refused(run, capfd, "train", "--resume", finished_run, *options)
    assert "has no last.keras" in err

    parser = argparse.ArgumentParser()
    add_data_options(parser, "the run's")
    args = parser.parse_args(["--dataset", "photos"])
    assert data_request(finished_run / "best.keras", args) == (request, True)


def test_a_run_on_data_given_in_python(finished_run, run, capfd):
    change_config(finished_run, request={})
    err = refused(run, capfd, "train", "--resume", finished_run)
    assert "data given in Python: resume it with krc.train(..., resume=" in err
    err = refused(run, capfd, "evaluate", finished_run)
    assert "data given in Python (see krc.evaluate): give --dataset" in err


def test_a_run_is_not_overwritten(finished_run, run, capfd):
    before = {p: p.read_bytes() for p in finished_run.glob("*.*")}
    err = refused(run, capfd, "train", "--output-dir", finished_run)
    assert "already holds a run" in err
    assert f"--output-dir {finished_run}" in err
    resume = ["train", "--resume", finished_run]
    err = refused(run, capfd, *resume, "--epochs", 9)
    assert "it changes the rates of the one_cycle schedule" in err
    assert before == {p: p.read_bytes() for p in finished_run.glob("*.*")}


def test_a_run_without_its_backup_is_not_started_over(finished_run, run, capfd):
    before = (finished_run / "history.csv").read_text()
    for name in ("backup.npz", "backup-previous.npz"):
        (finished_run / name).unlink()
    err = refused(run, capfd, "train", "--resume", finished_run)
    assert "backup-previous.npz is missing" in err
    assert (finished_run / "history.csv").read_text() == before


@pytest.mark.slow
def test_a_damaged_backup_is_reported_to_quiet_users_too(
    finished_run, run, capfd
):
    (finished_run / "backup.npz").write_bytes(b"damaged")
    assert run("train", "--resume", finished_run, "--quiet") == 0
    err = capfd.readouterr().err
    assert err.startswith("warning: ")
    assert "resuming from the previous one" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_run_is_resumed_on_its_backend(tmp_path):
    pytest.importorskip("jax", reason="the run's backend")
    run, unset = tmp_path / "run", dict(os.environ)
    unset.pop("KERAS_BACKEND", None)
    first = ["--arch", "resnet8", "--validation", "9000", "--output-dir", run]
    for environment, options, code in (
        (unset | {"KERAS_BACKEND": "jax"}, [*first, "--epochs", "1"], 0),
        (unset | {"KERAS_BACKEND": "tensorflow"}, ["--resume", run], 2),
        (unset, ["--resume", run], 0),
    ):
        command = [sys.executable, ROOT / "scripts" / "train.py", *options]
        assert subprocess.run(command, env=environment).returncode == code


def test_another_backend_is_no_option_to_leave_out():
    message = refusal(check_same, CONFIG, {"backend": "jax"})
    assert "set KERAS_BACKEND=tensorflow" in message
    assert "without the change" not in message


def test_a_run_without_its_net(finished_run, run, capfd):
    (finished_run / "last.keras").unlink()
    err = refused(run, capfd, "train", "--resume", finished_run)
    assert "last.keras" in err


CONFIG = {
    "arch": "resnet8",
    "parameters": 1,
    "dataset": {"name": "shapes"},
    "recipe": dataclasses.asdict(RECIPES[DEFAULT]),
    "seed": 0,
    "precision": "float32",
    "request": {"name": "shapes"},
    "backend": "tensorflow",
    "versions": {},
}
BAD_CONFIGS = {
    "empty": {},
    "no object": [],
    "recipe": CONFIG | {"recipe": {"speed": 1}},
    "value": CONFIG | {"recipe": CONFIG["recipe"] | {"epochs": "many"}},
    "kind": CONFIG | {"request": None},
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_damaged_config(name, run, tmp_path, capfd):
    (tmp_path / "config.json").write_text(json.dumps(BAD_CONFIGS[name]))
    assert "config" in refused(run, capfd, "train", "--resume", tmp_path)


# --- Fine-tuning: the options against the plan

PLAN = {
    "recipe": get_recipe("coursework-finetune"),
    "freeze": "stage1",
    "head_epochs": 2,
    "head_learning_rate": 0.001,
    "train_norm": False,
    "cache_features": False,
    "seed": 0,
    "deterministic": False,
}


@pytest.fixture
def started(tmp_path):
    """The folder of a fine-tuning run whose first phase has started."""
    PhasedDirectory(tmp_path).write_plan(PLAN)
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_fine_tuning_run_on_data_given_in_python(started, run, capfd):
    config = json.dumps(CONFIG | {"request": {}})
    (started / "head" / "config.json").write_text(config)
    err = refused(run, capfd, "finetune", "--resume", started)
    assert "resume it with krc.finetune(..., resume=True)" in err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--freeze", "all"], "--freeze all, which was 'stage1'"),
        (["--head-epochs", "3"], "--head-epochs 3, which was 2"),
        (["--train-norm"], "--train-norm, which was False"),
        (["--deterministic"], "--deterministic, which was False"),
        (["--batch-size", "32"], "--batch-size 32, which was 64"),
        (["--dataset", "cifar10"], "--dataset cifar10, which was"),
        (["--seed", "1"], "--seed 1, which was 0"),
        (["--backbone", "resnet18"], "backbone"),
        (["--weights", "none"], "weights"),
        (["--output-dir", "elsewhere"], "--output-dir elsewhere, which was"),
        (["--head-epochs", "2", "--freeze", "stage1"], "has no last.keras"),
    ],
)
def test_a_fine_tuning_run_is_not_resumed_as_another(
    options, word, started, run, capfd
):
    err = refused(run, capfd, "finetune", "--resume", started, *options)
    assert word in err
