"""The command line: what it does, and what it says of bad input."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
FAST = ["--arch", "resnet8", "--epochs", "2", "--batch-size", "64"]


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


# A shell starts its background jobs deaf to Ctrl-C, and the tests with them.
HEARING = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(name, *arguments, **kwargs):
    path = ROOT / "scripts" / f"{name}.py"
    command = [sys.executable, "-c", HEARING, path, *arguments]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        **kwargs,
    )


def finish(process):
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture
def data_options(tiny_cifar):
    return (
        "--dataset",
        "cifar10",
        "--data-dir",
        tiny_cifar,
        "--allow-unverified",
    )


@pytest.fixture
def finished_run(data_options, tmp_path):
    directory = tmp_path / "run"
    options = ["--validation", "56", "--checkpoint-every", "1", "--quiet"]
    code = run(
        "train", *FAST, *data_options, *options, "--output-dir", directory
    )
    assert code == 0
    return directory


def test_train_tells_what_it_does(data_options, tmp_path, capsys):
    options = ["--validation", "56", "--output-dir", tmp_path / "run"]
    assert run("train", *FAST, *data_options, *options) == 0
    out = capsys.readouterr().out
    assert "resnet8 on cifar10 (200 train, 56 validation, 64 test" in out
    assert "NOT verified" in out
    assert "epoch 2/2  loss" in out
    assert "images/s" in out
    assert "last (epoch 2): top-1" in out


def test_train_evaluate_predict(finished_run, tmp_path, capsys):
    """The whole path, each command on what the one before it left."""
    assert run("evaluate", finished_run, "--checkpoint", "all") == 0
    lines = capsys.readouterr().out.splitlines()
    files = [line.split(": ")[0].split("/")[-1] for line in lines]
    assert files == [
        "epoch-0001.keras",
        "epoch-0002.keras",
        "best.keras",
        "last.keras",
    ]
    report = finished_run / "evaluation" / "last-test" / "metrics.json"
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert json.loads(report.read_text()) == metrics["last"]["test"]

    assert run("evaluate", finished_run, "--split", "validation") == 0
    assert "56 images" in capsys.readouterr().out

    image = tmp_path / "a picture.png"
    Image.new("RGB", (40, 50), "red").save(image)
    assert run("predict", finished_run, image, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["image"] == str(image)
    assert len(row["classes"]) == 3
    assert run("predict", finished_run / "best.keras", image, "--top", "1") == 0
    assert capsys.readouterr().out.startswith(f"{image}: ")


def test_ctrl_c_and_resume(data_options, tmp_path):
    directory = tmp_path / "run"
    options = [*data_options, "--output-dir", directory, "--epochs", "40"]
    process = script("train", *FAST, *options)
    for line in process.stdout:
        if line.startswith("epoch  2/40"):
            break
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert f"--resume {directory}" in err
    assert "Traceback" not in err

    code, _, err = finish(script("train", "--resume", directory))
    assert code == 0, err
    rows = (directory / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [
        str(epoch) for epoch in range(1, 41)
    ]
    # One line down to zero from a fifth of the run, as if never interrupted.
    column = rows[0].split(",").index("learning_rate")
    rates = [float(row.split(",")[column]) for row in rows[1:]]
    steps = 4 * np.arange(1, 41) - 1  # the last of each epoch
    expected = np.interp(steps, [0, 32, 160], [0, 0.4, 0])
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    directory = tmp_path / "run"
    slow = ["--arch", "resnet110", "--batch-size", "512", "--quiet"]
    process = script("train", *slow, "--output-dir", directory)
    while not (directory / "config.json").exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    for line in process.stderr:
        if "again to exit at once" in line:
            break
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == -signal.SIGTERM
    assert "Traceback" not in err


BAD_TRAIN = {
    "arch": (["--arch", "resnet21"], "resnet20"),
    "depth": (["--arch", "resnet3"], "resnet8"),
    "dataset": (["--dataset", "mnist"], "cifar10"),
    "recipe": (["--recipe", "papr"], "paper"),
    "source": (["--dataset", "cifar10", "--source", "ftp"], "huggingface"),
    "epochs": (["--epochs", "0"], "at least 1"),
    "batch": (["--batch-size", "-1"], "at least 1"),
    "batch too large": (["--batch-size", "99999"], "training images"),
    "validation": (["--validation", "10000"], "validation=10000"),
    "number": (["--epochs", "many"], "many"),
    "option": (["--epoch", "3"], "--epoch"),
    "data folder": (
        ["--dataset", "cifar10", "--data-dir", "/nowhere"],
        "/nowhere",
    ),
    "output": (["--output-dir", "/proc/run"], "/proc/run"),
    "seed": (["--seed", "-1"], "seed=-1"),
    "huge": (["--epochs", "99999999999"], "at most"),
    "cutmix": (["--cutmix", "5"], "cutmix=5"),
    "no name": (["--arch", ""], "resnet20"),
    "resume": (["--resume", "/nowhere"], "/nowhere"),
}


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_bad_input_is_one_line_and_exit_code_2(name, tmp_path, capfd):
    arguments, word = BAD_TRAIN[name]
    if "--output-dir" not in arguments and "--resume" not in arguments:
        arguments = [*arguments, "--output-dir", tmp_path / "run"]
    assert run("train", *arguments) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
    assert "epoch 1/" not in out
    assert not (tmp_path / "run").exists()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


BAD_DATA = {
    "empty": lambda folder: None,
    "truncated": lambda folder: (folder / "data_batch_1").write_bytes(b"\x80"),
    "malicious": lambda folder: (folder / "data_batch_1").write_bytes(
        pickle.dumps({b"data": Bomb(), b"labels": [0]})
    ),
    "sizes": lambda folder: (folder / "data_batch_1").write_bytes(
        pickle.dumps({b"data": np.zeros((2, 99), "uint8"), b"labels": [0, 1]})
    ),
    "label": lambda folder: (folder / "data_batch_1").write_bytes(
        pickle.dumps({b"data": np.zeros((1, 3072), "uint8"), b"labels": [77]})
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_one_line_and_exit_code_2(
    name, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    BAD_DATA[name](folder)
    code = run(
        "train",
        *FAST,
        *("--dataset", "cifar10", "--data-dir", folder.parent),
        *("--output-dir", tmp_path / "run"),
    )
    assert code == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert str(folder.parent) in err
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_and_not_resumed_as_another(
    finished_run, capfd
):
    before = {p: p.read_bytes() for p in finished_run.glob("*.*")}
    assert run("train", "--output-dir", finished_run) == 2
    assert "another run" in capfd.readouterr().err
    for option in (
        ["--arch", "resnet20"],
        ["--recipe", "paper"],
        ["--dataset", "shapes"],
        ["--seed", "1"],
        ["--output-dir", "elsewhere"],
    ):
        assert run("train", "--resume", finished_run, *option) == 2
        err = capfd.readouterr().err
        assert "cannot resume with another config" in err
        assert err.count("\n") == 1
    assert run("train", "--resume", finished_run, "--epochs", "9") == 2
    assert "one_cycle schedule's rates depend on it" in capfd.readouterr().err
    assert before == {p: p.read_bytes() for p in finished_run.glob("*.*")}


BAD_CONFIGS = {
    "empty": lambda config: {},
    "no object": lambda config: [],
    "recipe": lambda config: config | {"recipe": {"speed": 1}},
    "value": lambda config: (
        config | {"recipe": config["recipe"] | {"epochs": "many"}}
    ),
    "kind": lambda config: config | {"request": None},
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_damaged_config(name, tmp_path, capfd):
    config = {
        "arch": "resnet8",
        "parameters": 1,
        "dataset": {"name": "shapes"},
        "recipe": dataclasses.asdict(RECIPES["onecycle"]),
        "seed": 0,
        "precision": "float32",
        "request": {"name": "shapes"},
        "backend": "tensorflow",
        "versions": {},
    }
    text = json.dumps(BAD_CONFIGS[name](config))
    (tmp_path / "config.json").write_text(text)
    assert run("train", "--resume", tmp_path) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "config" in err


def test_a_run_without_its_backup_is_not_started_over(finished_run, capfd):
    before = (finished_run / "history.csv").read_text()
    for name in ("backup.npz", "backup-previous.npz"):
        (finished_run / name).unlink()
    assert run("train", "--resume", finished_run) == 2
    assert "backup-previous.npz is missing" in capfd.readouterr().err
    assert (finished_run / "history.csv").read_text() == before


def test_two_processes_in_one_run(finished_run, capfd):
    from keras_resnet_cifar.training.run_directory import RunDirectory

    with RunDirectory(finished_run).locked():
        assert run("train", "--resume", finished_run) == 2
    assert "another process" in capfd.readouterr().err
    assert run("train", "--resume", finished_run, "--quiet") == 0


def test_the_source_of_data_is_not_the_source_of_the_recipe(
    data_options, tmp_path
):
    options = ["--source", "disk", "--quiet", "--output-dir", tmp_path / "run"]
    assert run("train", *FAST, *data_options, *options) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["request"]["source"] == "disk"
    assert config["recipe"]["source"] == RECIPES["onecycle"].source
    assert config["recipe"]["arch"] == "resnet8"


def test_reports_of_several_models_lie_apart(finished_run, tmp_path, capsys):
    models = [finished_run / "best.keras", finished_run]
    assert run("evaluate", *models, "--output-dir", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "run-best-test",
        "run-last-test",
    }


def test_an_unknown_backend(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "keras_resnet_cifar", "train"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "theano"},
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "theano" in result.stderr


def test_output_into_a_closed_pipe():
    shell = f"{sys.executable} -m keras_resnet_cifar list | head -1"
    result = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert result.stdout.startswith("architectures")
    assert result.stderr == ""


def test_bad_models_and_images(finished_run, tmp_path, capfd):
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    lonely = tmp_path / "lonely.keras"
    lonely.write_bytes((finished_run / "last.keras").read_bytes())
    cases = [
        (("evaluate", tmp_path / "none"), "none"),
        (("evaluate", tmp_path / "empty"), "last.keras"),
        (("evaluate", tmp_path / "text.keras", "--dataset", "shapes"), "text"),
        (("evaluate", lonely), "--dataset"),
        (("evaluate", lonely, "--dataset", "cifr10"), "cifar10"),
        (("evaluate", finished_run, "--checkpoint", "first"), "first"),
        (("evaluate", finished_run, "--mistakes", "0"), "1 to 100"),
        (("evaluate", finished_run, finished_run), "two models"),
        (("benchmark", "--rounds", "0"), "rounds=0"),
        (("predict", finished_run, tmp_path / "text.png"), "text.png"),
        (("predict", finished_run, tmp_path / "none.png"), "none.png"),
        (("predict", tmp_path / "none.keras", tmp_path / "text.png"), "none"),
        ((), "COMMAND"),
        (("fit",), "fit"),
    ]
    for arguments, word in cases:
        assert run(*arguments) == 2, arguments
        err = capfd.readouterr().err
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert word in err


def test_scripts_and_module_are_the_same(tmp_path):
    asked = ["train", "--arch", "resnet21"]
    commands = (
        [sys.executable, ROOT / "scripts" / "train.py", *asked[1:]],
        [sys.executable, "-m", "keras_resnet_cifar", *asked],
    )
    results = [
        subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        for command in commands
    ]
    assert results[0].stderr == results[1].stderr
    assert {result.returncode for result in results} == {2}


def test_help_and_list_come_from_the_tables(capsys):
    assert run("list") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*RECIPES, "resnet1202", "19,421,274"])
    assert run("list", "--json") == 0
    tables = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in tables["recipes"]] == list(RECIPES)
    with pytest.raises(SystemExit) as stop:
        run("train", "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--label-smoothing" in text
    assert all(name in text for name in RECIPES)


def test_a_rate_far_too_high_exits_with_3(data_options, tmp_path, capfd):
    options = ["--learning-rate", "1e30", "--output-dir", tmp_path / "run"]
    assert run("train", *FAST, *data_options, *options) == 3
    assert "lower learning rate" in capfd.readouterr().err


def test_a_run_repeats_from_its_config(finished_run, data_options, tmp_path):
    """Same options, same seed, same machine: the same weights."""
    again = tmp_path / "again"
    options = ["--validation", "56", "--checkpoint-every", "1", "--quiet"]
    run("train", *FAST, *data_options, *options, "--output-dir", again)
    one, other = (
        keras.saving.load_model(folder / "last.keras").get_weights()
        for folder in (finished_run, again)
    )
    for expected, got in zip(one, other, strict=True):
        np.testing.assert_array_equal(expected, got)
