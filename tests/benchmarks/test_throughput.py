"""The benchmark alternates, divides and reports; no test looks at a time."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import refusal

from benchmarks import command, contenders, table, throughput
from benchmarks.setting import Setting
from benchmarks.workers import LeftOut, Worker, run_rounds
from keras_resnet_cifar import device
from keras_resnet_cifar.models.operations import step_operations
from keras_resnet_cifar.models.resnet import build_resnet
from tests.benchmarks import fake_contenders as fakes

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Replaces all contenders by fakes, which write to the file returned."""
    monkeypatch.setattr(contenders, "run", fakes.run)
    monkeypatch.setenv(fakes.LOG, str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def start(log):
    """Starts fake workers by name, and ends them after the test."""
    workers = []

    def start(name):
        workers.append(Worker(fakes.run, name, Setting(), {}))
        workers[-1].first_step()
        workers[-1].receive()
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def test_workers_alternate(start, log):
    rests = []
    workers = [start("fit"), start("step")]
    results = run_rounds(workers, 3, before=lambda: rests.append(0))
    order = ["fit", "step", "step", "fit", "step", "fit"]
    assert log.read_text().split() == order
    assert {name: len(rounds) for name, rounds in results.items()} == {
        "fit": 3,
        "step": 3,
    }
    assert len(rests) == 3
    assert results["fit"][0]["memory"] > 2**20


def test_a_contender_that_cannot_run_says_why(start):
    with pytest.raises(LeftOut, match="no compiler here"):
        start("torch-compile")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torch-graphs", r"MemoryError: no memory left"),
        ("torch-dataloader", "exit code 7"),
    ],
)
def test_a_death_is_one_line_with_its_reason(start, name, reason):
    message = refusal(start(name).measure)
    assert f"{name} died ({reason})" in message


def test_a_death_while_asleep_is_reported(start):
    worker = start("fit")
    worker._process.kill()
    worker._process.join()
    assert "fit died (exit code -9)" in refusal(worker.measure)


def row(name, kind, *speeds):
    return {"name": name, "kind": kind, "images_per_second": speeds}


def test_ratios_are_taken_within_a_round():
    """As speeds jump from round to round, medians of speeds would mislead."""
    rows = [
        row("fit", "train", 10.0, 40.0, 90.0),
        row("step", "train", 20.0, 20.0, 30.0),
        row("evaluate", "evaluate", 1.0, 1.0, 1.0),
    ]
    assert throughput.ratios(rows) == {
        "fit / step": {
            "rounds": [0.5, 2.0, 3.0],
            "median": 2.0,
            "least": 0.5,
            "most": 3.0,
        }
    }


@pytest.mark.slow
def test_the_whole_command(log, tmp_path, capsys):
    names = "fit,torch-eager,torch-compile,evaluate"
    output = tmp_path / "result.json"
    options = ["--contenders", names, "--rounds", "2", "--steps", "7"]
    options += ["--precision", "bfloat16"]
    assert command.main([*options, "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^torch-eager .* fit / this: \d", text, re.MULTILINE)
    assert "limit of training: 10 images/s" in text
    assert "torch-compile left out: no compiler here" in text
    order = log.read_text().split()
    names = ["fit", "torch-eager", "evaluate"]
    assert order == names + names[::-1]

    result = json.loads(output.read_text())
    assert [row["name"] for row in result["contenders"]] == names
    assert all(
        len(row["images_per_second"]) == 2 for row in result["contenders"]
    )
    assert all(
        row["first_step_seconds"]["again"] for row in result["contenders"]
    )
    assert len(result["others"]) == 2

    assert command.main(["--show", str(output)]) == 0
    assert capsys.readouterr().out == text
    assert command.main(["--show", str(output), "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "KERAS_BACKEND=jax .venv/bin/python scripts/benchmark.py" in shown
    assert "--steps 7 --rounds 2 --contenders fit,torch-eager,eval" in shown
    cells = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(cells) == 2 + 3
    assert {line.count("|") for line in cells} == {8}


def test_nothing_to_time_is_refused(log):
    with pytest.raises(ValueError, match=r"nothing .*no compiler here"):
        throughput.benchmark(names=["torch-compile"], rounds=1, quick=True)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A result of the fakes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "run", fakes.run)
        patch.setattr(throughput, "share_in_use", lambda: 0.5)
        patch.setenv(fakes.LOG, str(tmp_path_factory.mktemp("log") / "log"))
        return throughput.benchmark(names=["fit"], rounds=1, quick=True)


@pytest.mark.parametrize(
    "spoil",
    [
        {"contenders": []},
        {"left_out": []},
        {"others": []},
        {"operations_per_image": None},
    ],
    ids=lambda spoil: next(iter(spoil)),
)
def test_other_json_is_refused(spoil, result, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(result | spoil))
    assert f"{path} holds no benchmark" in refusal(table.read, path)


def test_a_busy_machine_is_reported(result):
    text = table.as_text(result)
    assert "others used up to 50% of the cores" in text
    assert "BUSY" in text


def test_default_contenders():
    on_cpu = throughput.default_names(accelerated=False)
    quick = throughput.default_names(accelerated=False, quick=True)
    assert quick == ["fit", "step", "keras", "torch-eager"]
    assert set(quick) < set(on_cpu) < set(contenders.CONTENDERS)
    assert {"keras", "keras-step"} <= set(on_cpu)
    assert "torch-dataloader" not in on_cpu
    assert "torch-dataloader" in throughput.default_names(False, True)
    everything = throughput.default_names(accelerated=True)
    assert everything == list(contenders.CONTENDERS)


BAD = [
    (["--arch", "resnet21"], "resnet20"),
    (["--precision", "float8"], "mixed_bfloat16"),
    (["--rounds", "0"], "--rounds 0"),
    (["--steps", "0"], "--steps 0"),
    (["--batch-size", "-1"], "--batch-size -1"),
    (["--batch-size", "0"], "--batch-size 0"),
    (["--batch-size", "many"], "--help"),
    (["--rounds", "9999", "--steps", "9999"], "give fewer rounds or steps"),
    (["--contenders", "fit,torch-eagr"], "torch-eager"),
    (["--contenders", ""], "torch-eager"),
    (["--contenders", "fit,step,fit"], "fit is given twice"),
    (
        ["--show", "none.json", "--arch", "resnet20"],
        "cannot be used with --show",
    ),
    (["--show", "none.json"], "none.json"),
    (["--output", "none/found.json"], "no folder none"),
    (["--output", "."], "cannot write .: it is a folder"),
    (["--output", "/dev/null"], "or a device; name a file"),
    (["--split", "test"], "--split cannot be used without --time-to"),
    (["--epochs", "0"], "--epochs cannot be used without --time-to"),
    (["--recipe", "cosine"], "--recipe cannot be used without --time-to"),
    (["--time-to", "0.9", "--quick"], "--quick cannot be used with --time-to"),
    (["--time-to", "94"], "--time-to 94"),
    (["--time-to", "0.9", "--split", "train"], "validation or test"),
    (["--time-to", "0.9", "--recipe", "papr"], "paper"),
    (["--time-to", "0.9", "--dataset", "mnist"], "cifar10"),
]


@pytest.mark.parametrize(("options", "word"), BAD, ids=lambda v: v[0])
def test_bad_input_is_one_line(options, word, capfd):
    assert command.main(options) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err


def test_the_script_runs_from_anywhere(tmp_path):
    """Its workers find `benchmarks`: one of them refuses the backend."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": "", "KERAS_BACKEND": "none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: Keras cannot start on the backend none")


@pytest.mark.parametrize(
    ("steps", "batch_size", "epochs"),
    [(50, 128, 1), (3900, 128, 10), (401, 128, 2)],
)
def test_an_epoch_is_no_longer_than_that_of_cifar(steps, batch_size, epochs):
    setting = Setting(steps=steps, batch_size=batch_size)
    assert setting.round_epochs == epochs
    assert setting.round_steps == epochs * setting.epoch_steps
    assert steps - epochs < setting.round_steps <= steps
    assert setting.epoch_steps * batch_size <= 50_000


def test_operations_of_resnet20():
    """He et al.'s net by hand: 40.55 million multiply-adds per image."""
    by_hand = 3 * 16 * 9 * 1024 + 6 * 16 * 16 * 9 * 1024
    by_hand += 16 * 32 * 9 * 256 + 5 * 32 * 32 * 9 * 256
    by_hand += 32 * 64 * 9 * 64 + 5 * 64 * 64 * 9 * 64 + 64 * 10
    operations = step_operations(build_resnet("resnet20"), 128)
    assert operations == 128 * (6 * by_hand - 2 * 3 * 16 * 9 * 1024)


def test_operations_of_a_net_for_any_size():
    net = build_resnet("resnet8", input_shape=(None, None, 3))
    assert step_operations(net, 128) == math.inf
    assert device.steps_per_execution(math.inf, 100) == 1
