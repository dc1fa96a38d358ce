"""The benchmark takes turns, divides and tells; no test looks at a time."""

import dataclasses
import json
import re
import sys

import pytest

from benchmarks import contenders, roofline
from benchmarks import table as benchmark_table
from benchmarks import throughput as benchmark
from benchmarks import time_to_accuracy as time_to
from benchmarks.workers import LeftOut, Worker, take_turns
from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.operations import forward_operations
from keras_resnet_cifar.models.resnet import build_resnet

# A worker that computes nothing: it writes down each turn in a file.
FAKE = """
import sys
from benchmarks.workers import LeftOut, serve
log, name = sys.argv[1:]

def work(turns):
    print("what a library prints gets in nobody's way")
    if name == "torch-compile":
        raise LeftOut("no compiler here")
    if name == "machine":
        limit = dict.fromkeys(
            ["images_per_second", "step_operations", "step_bytes",
             "operations_per_second", "bytes_per_second"], 2e9)
        turns.tell(facts={
            "backend": "jax", "precision": "float32", "accelerator": None,
            "versions": {"keras": "3"}, "limit": limit | {"bound": "memory"}})
        return
    turns.first_step()
    while True:
        turns.begin()
        if name == "torch-graphs":
            raise MemoryError("no memory left")
        with open(log, "a") as file:
            file.write(name + " ")
        turns.end(images=1)

serve(work)
"""


@pytest.fixture
def fake_command(tmp_path, monkeypatch):
    """`command(name)` of fake workers, in the place of the real ones."""

    def command(name, setting=None):
        return [sys.executable, "-c", FAKE, str(tmp_path / "log"), name]

    monkeypatch.setattr(contenders, "command", command)
    return command


@pytest.fixture
def hired(fake_command):
    """Starts fake workers by name, and ends them after the test."""
    workers = []

    def hire(name):
        workers.append(Worker(name, fake_command(name)))
        workers[-1].first_step()
        workers[-1].ready()
        return workers[-1]

    yield hire
    for worker in workers:
        worker.close()


def test_workers_take_turns(hired, tmp_path):
    rests = []
    workers = [hired("fit"), hired("step")]
    found = take_turns(workers, 3, before=lambda: rests.append(0))
    order = ["fit", "step", "step", "fit", "fit", "step"]
    assert (tmp_path / "log").read_text().split() == order
    assert {name: len(speeds) for name, speeds in found.items()} == {
        "fit": 3,
        "step": 3,
    }
    assert len(rests) == 3
    assert workers[0].last["memory"] > 2**20


def test_who_cannot_run_says_why(hired):
    with pytest.raises(LeftOut, match="no compiler here"):
        hired("torch-compile")


def test_a_death_is_one_line_with_its_reason(hired):
    worker = hired("torch-graphs")
    with pytest.raises(InputError, match=r"torch-graphs died.*no memory left"):
        worker.go()


def row(name, kind, *speeds):
    return {"name": name, "kind": kind, "images_per_second": speeds}


def test_ratios_are_those_of_a_round():
    """As speeds jump from round to round, medians of speeds would mislead."""
    rows = [
        row("fit", "train", 10.0, 40.0, 90.0),
        row("step", "train", 20.0, 20.0, 30.0),
        row("evaluate", "evaluate", 1.0, 1.0, 1.0),
    ]
    found = benchmark.ratios(rows)
    assert list(found) == ["fit / step"]
    assert found["fit / step"] == {
        "rounds": [0.5, 2.0, 3.0],
        "median": 2.0,
        "least": 0.5,
        "most": 3.0,
    }


def test_the_whole_command(fake_command, tmp_path, capsys):
    names = "fit,torch-eager,torch-compile,evaluate"
    output = tmp_path / "found.json"
    options = ["--contenders", names, "--rounds", "2", "--steps", "7"]
    options += ["--output", str(output)]
    assert cli.main(["benchmark", *options]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^torch-eager .* fit / this: \d", text, re.MULTILINE)
    assert "torch-compile left out: no compiler here" in text
    turns = (tmp_path / "log").read_text().split()
    names = ["fit", "torch-eager", "evaluate"]
    assert turns == names + names[1:] + names[:1]

    found = json.loads(output.read_text())
    assert [row["name"] for row in found["contenders"]] == turns[:3]
    assert all(
        len(row["images_per_second"]) == 2 for row in found["contenders"]
    )
    assert all(
        row["first_step_seconds"]["again"] for row in found["contenders"]
    )
    assert len(found["others"]) == 2

    assert cli.main(["benchmark", "--show", str(output)]) == 0
    assert capsys.readouterr().out == text
    assert cli.main(["benchmark", "--show", str(output), "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "KERAS_BACKEND=jax .venv/bin/python scripts/benchmark.py" in shown
    assert "--steps 7 --rounds 2 --contenders fit,torch-eager,eval" in shown
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert {line.count("|") for line in table} == {8}


def test_nothing_to_time_is_told(fake_command):
    with pytest.raises(InputError, match=r"nothing .*no compiler here"):
        benchmark.benchmark(names=["torch-compile"], rounds=1, quick=True)


@pytest.mark.parametrize(
    "spoil",
    [
        {"contenders": []},
        {"left_out": []},
        {"others": []},
        {"limit": {}},
    ],
    ids=lambda spoil: next(iter(spoil)),
)
def test_what_holds_no_benchmark(spoil, fake_command, tmp_path):
    found = benchmark.benchmark(names=["fit"], rounds=1, quick=True)
    (tmp_path / "found.json").write_text(json.dumps(found | spoil))
    with pytest.raises(InputError, match=r"found\.json holds no benchmark"):
        benchmark_table.read(tmp_path / "found.json")


def test_a_busy_machine_is_told(fake_command, monkeypatch):
    monkeypatch.setattr(benchmark, "share_in_use", lambda: 0.5)
    found = benchmark.benchmark(names=["fit"], rounds=1, quick=True)
    text = benchmark_table.text_of(found)
    assert "others used up to 50% of the cores" in text
    assert "BUSY" in text


def test_default_contenders():
    on_cpu = benchmark.default_names(accelerated=False)
    quick = benchmark.default_names(accelerated=False, quick=True)
    assert set(quick) < set(on_cpu) < set(contenders.CONTENDERS)
    assert "torch-dataloader" not in on_cpu
    assert "torch-dataloader" in benchmark.default_names(False, True)
    everything = benchmark.default_names(accelerated=True)
    assert everything == list(contenders.CONTENDERS)


BAD = [
    (["--arch", "resnet21"], "resnet20"),
    (["--precision", "bf16"], "mixed_bfloat16"),
    (["--rounds", "0"], "rounds=0"),
    (["--steps", "0"], "steps=0"),
    (["--batch-size", "-1"], "batch_size=-1"),
    (["--batch-size", "0"], "batch_size=0"),
    (["--rounds", "9999", "--steps", "9999"], "give fewer rounds or steps"),
    (["--contenders", "fit,torch-eagr"], "torch-eager"),
    (["--contenders", ""], "torch-eager"),
    (["--contenders", "fit,step,fit"], "contender fit twice"),
    (["--show", "none.json", "--arch", "resnet20"], "not go with --show"),
    (["--show", "none.json"], "none.json"),
    (["--output", "none/found.json"], "no folder none"),
    (["--output", "."], "cannot write .: there is a folder"),
    (["--output", "/dev/null"], "or a device; name a file"),
    (["--split", "test"], "--split does not go without --time-to"),
    (["--epochs", "0"], "--epochs does not go without --time-to"),
    (["--recipe", "cosine"], "--recipe does not go without --time-to"),
    (["--time-to", "0.9", "--quick"], "--quick does not go with --time-to"),
    (["--time-to", "94"], "0.94"),
    (["--time-to", "0.9", "--split", "train"], "validation or test"),
    (["--time-to", "0.9", "--recipe", "papr"], "paper"),
    (["--time-to", "0.9", "--dataset", "mnist"], "cifar10"),
]


@pytest.mark.parametrize(("options", "word"), BAD, ids=lambda v: v[0])
def test_bad_input_is_one_line(options, word, capfd):
    assert cli.main(["benchmark", *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err


# --- The contenders themselves, in this process, on a small net

SMALL = contenders.Setting("resnet8", 16, "float32", steps=2, turns=3)


class Enough(Exception):
    """Two turns have been taken."""


class RecordedTurns:
    """Takes note of what a contender says, and stops it after two turns."""

    def __init__(self):
        self.said = []

    def first_step(self):
        self.said.append("first step")

    def begin(self):
        if self.said.count("end") == 2:
            self.memory()
            raise Enough
        self.said.append("begin")

    def end(self, images):
        assert images == SMALL.images
        self.said.append("end")


def check_contender(name):
    turns = RecordedTurns()
    with pytest.raises(Enough):
        contenders.CONTENDERS[name].run(SMALL, turns)
    assert turns.said == ["first step", *["begin", "end"] * 2]


@pytest.mark.parametrize("name", ["fit", "step", "evaluate"])
def test_keras_contenders(name):
    check_contender(name)


@pytest.mark.parametrize("name", ["torch-eager", "torch-evaluate"])
def test_torch_contenders(name):
    pytest.importorskip("torch", reason="it is PyTorch that is timed")
    check_contender(name)


def test_a_contender_in_a_process_of_its_own():
    """It forks, so that it must have one: JAX forbids it in this process."""
    pytest.importorskip("torch", reason="it is PyTorch that is timed")
    name = "torch-dataloader"
    worker = Worker(name, contenders.command(name, SMALL))
    try:
        worker.first_step()
        worker.ready()
        assert worker.go() > 0
    finally:
        worker.close()


def test_another_kind_of_device_is_no_opponent():
    torch = pytest.importorskip("torch", reason="it is PyTorch that is timed")
    other = dataclasses.replace(
        SMALL, accelerated=not torch.cuda.is_available()
    )
    with pytest.raises(LeftOut, match="device"):
        contenders.CONTENDERS["torch-eager"].run(other, RecordedTurns())


def test_what_has_no_counterpart_is_left_out():
    pytest.importorskip("torch", reason="it is PyTorch that is timed")
    setting = contenders.Setting("resnet20-preact", precision="float32")
    with pytest.raises(LeftOut, match="resnet20-preact has no counterpart"):
        contenders.torch_eager(setting, RecordedTurns())


@pytest.mark.parametrize(
    ("steps", "batch_size", "epochs"),
    [(50, 128, 1), (3900, 128, 10), (401, 128, 2)],
)
def test_an_epoch_is_no_longer_than_that_of_cifar(steps, batch_size, epochs):
    setting = contenders.Setting(steps=steps, batch_size=batch_size)
    assert setting.epochs_per_turn == epochs
    assert setting.turn_steps == epochs * setting.epoch_steps
    assert steps - epochs < setting.turn_steps <= steps
    assert setting.epoch_steps * batch_size <= 50_000


# --- The limit


def test_operations_of_resnet20():
    """He et al.'s net by hand: 40.55 million multiply-adds an image."""
    model = build_resnet("resnet20")
    by_hand = 3 * 16 * 9 * 1024 + 6 * 16 * 16 * 9 * 1024
    by_hand += 16 * 32 * 9 * 256 + 5 * 32 * 32 * 9 * 256
    by_hand += 32 * 64 * 9 * 64 + 5 * 64 * 64 * 9 * 64 + 64 * 10
    assert sum(forward_operations(model).values()) == 2 * by_hand
    operations, in_float32 = roofline.step_costs(model, 128, "float32")
    _, in_bfloat16 = roofline.step_costs(model, 128, "mixed_bfloat16")
    assert operations == 128 * (6 * by_hand - 2 * 3 * 16 * 9 * 1024)
    assert 0.5 < in_bfloat16 / in_float32 < 0.6  # parameters stay float32


@pytest.mark.parametrize(
    ("bandwidth", "speed", "bound"),
    [(1e9, 50.0, "arithmetic"), (1e6, 5.0, "memory")],
)
def test_the_longer_time_is_the_limit(bandwidth, speed, bound):
    found = roofline.limit(2e9, 2e7, 1e9, bandwidth, batch_size=100)
    assert found == (pytest.approx(speed), bound)


# --- Seconds to an accuracy


def test_time_to_an_accuracy(tiny_data):
    lines = []
    changes = {"epochs": 2, "batch_size": 64, "precision": "float32"}
    found = time_to.time_to(
        0.01, tiny_data, "resnet8", "onecycle", tell=lines.append, **changes
    )
    assert [run["run"] for run in found] == ["cold", "warm"]
    for run in found:
        assert run["epochs"] == 1  # it stopped
        assert 0 < run["first_step"] < run["seconds"]
        assert run["accuracy"] >= 0.01
    assert all("on the validation split" in line for line in lines)


def test_time_to_tells_what_was_not_reached():
    run = {"run": "cold", "seconds": None, "epochs": 3, "accuracy": 0.5}
    line = time_to.told(run, 0.94, "test")
    assert "94.00% on the test split not reached in 3 epochs" in line


def test_time_to_looks_at_the_split_that_is_asked(tiny_data):
    looking_at = time_to._looking_at
    assert looking_at(tiny_data, "test").validation is tiny_data.test
    assert looking_at(tiny_data, "validation") is tiny_data
