"""The results table: trainings are resumed or skipped, and written down."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import supervisor
from helpers import refusal

from benchmarks import curve, manifest, reproduce, results, runs
from benchmarks.manifest import ROWS, Row
from keras_resnet_cifar.files import with_checksum, write_json
from keras_resnet_cifar.finetuning.phases import PhasedDirectory
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.training import many_runs
from keras_resnet_cifar.training.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
ROW = Row(
    name="tiny",
    recipe="onecycle",
    arch="resnet8",
    dataset="shapes",
    epochs=2,
    options={"validation": 9000, "flip": False},
    seeds=2,
    expected=0.5,
    source="a paper",
)


def fake_run(row, seed, folder, accuracy=None, epochs=None, seconds=(10, 10)):
    """Writes the files of a run, finished where an accuracy is given."""
    run = RunDirectory(folder / f"{row.name}-seed{seed}")
    run.path.mkdir(parents=True)
    recipe = asdict(row.applied()) | {"epochs": epochs or row.applied().epochs}
    config = {
        "arch": row.arch,
        "parameters": 77,
        "weights": None,
        "dataset": {
            "name": row.dataset,
            "train": 1000,
            "test": 2000,
            "verified": True,
        },
        "recipe": recipe,
        "seed": seed,
        "class_weight": None,
        "precision": "float32",
        "request": {},
        "backend": "tensorflow",
        "versions": {"keras": "3.15.1"},
    }
    write_json(run.config, with_checksum(config))
    with run.timing.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "images_per_second", "seconds"])
        for epoch, value in enumerate(seconds, 1):
            writer.writerow([epoch, 89.6, value])
    rows = [f"{epoch},0.{epoch}\n" for epoch, _ in enumerate(seconds, 1)]
    run.history.write_text("epoch,accuracy\n" + "".join(rows))
    if accuracy is not None:
        test = {"epoch": len(seconds), "test": {"top1": accuracy}}
        write_json(run.metrics, {"last": test})
    return run


@pytest.fixture
def root(tmp_path):
    """A folder with a README that has a place for the table."""
    text = f"before\n\n{results.BEGIN}\nold\n{results.END}\n\nafter\n"
    (tmp_path / "README.md").write_text(text)
    return tmp_path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_can_be_trained(row, tmp_path):
    recipe = row.applied()
    assert resolve(row.arch).name == row.arch
    assert row.expected is None or (0 < row.expected < 1 and row.source)
    command = runs.Job(row, 0, tmp_path).command(tmp_path)
    assert command[command.index("--epochs") + 1] == str(recipe.epochs)
    assert ("--data-dir" in command) == (row.dataset != "shapes")
    assert ("--backbone" in command) == (row.weights is not None)


@pytest.mark.slow
def test_a_row_with_weights_is_fine_tuned(tmp_path):
    options = {"validation": 9500}
    tiny = {"epochs": 1, "weights": "shapes", "seeds": 1, "options": options}
    row = Row("tuned", "fast", "resnet8", "shapes", **tiny)
    (job,) = runs.jobs([row], None, tmp_path)
    assert runs.train_all([job], "again") == {}
    assert job.progress().state == "done"
    record = results.record(job)
    assert record["accuracy"] == job.progress().accuracy
    assert "finetune.py --recipe fast --backbone resnet8" in record["command"]


def test_a_refused_row_is_an_error(tmp_path, monkeypatch, capfd):
    row = replace(ROW, weights="nobody")
    monkeypatch.setattr(reproduce, "ROWS", (row,))
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(["--output", str(tmp_path)])
    output, errors = capfd.readouterr()
    assert "tiny: skipped" in output
    assert "unknown weights 'nobody'" in errors
    assert "tiny-seed0 (exit code 2); to continue" in errors


def test_row_names_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("epochs", "recipe"),
    [
        (4, "fast"),
        (16, "fast"),
        (17, "fast-40"),
        (40, "fast-40"),
        (41, "fast-100"),
    ],
)
def test_a_family_has_a_recipe_for_each_length(epochs, recipe):
    assert manifest.recipe_for("fast", epochs) == recipe
    assert manifest.recipe_for("paper-110", epochs) == "paper-110"


def test_a_row_becomes_a_command_of_train(tmp_path):
    job = runs.Job(ROW, 1, tmp_path)
    text = " ".join(job.command())
    assert text.endswith(
        "-m keras_resnet_cifar train --recipe onecycle --arch resnet8 "
        "--dataset shapes --epochs 2 --validation 9000 --no-flip --seed 1 "
        f"--output-dir {tmp_path}/tiny-seed1"
    )
    fake_run(ROW, 1, tmp_path)
    assert job.command()[-2:] == ["--resume", f"{tmp_path}/tiny-seed1"]


def test_the_status_shows_state_and_time_left(tmp_path):
    fake_run(ROW, 0, tmp_path, 0.6)
    fake_run(ROW, 1, tmp_path, seconds=[600])
    jobs = runs.jobs([ROW, replace(ROW, name="other")], 3, tmp_path)
    head, tiny, other = results.status(jobs).splitlines()
    assert head.split("  ")[0] == "row"
    assert "1 of 3" in tiny
    assert "seed 1 stopped at epoch 1 of 2" in tiny
    # 10 minutes of seed 1, and twice the median of 10 s and 600 s of seed 2.
    assert tiny.endswith("20 min")
    assert other.split() == ["other", "0", "of", "3", "to", "do", "unknown"]
    with RunDirectory(tmp_path / "tiny-seed1").locked():
        assert "seed 1 running at epoch 1 of 2" in results.status(jobs)


def test_an_epoch_resumed_in_the_middle_counts_whole(tmp_path):
    fake_run(ROW, 0, tmp_path, seconds=[10.5, 2])
    # 7 steps of 128 images at 89.6 a second.
    assert runs.Job(ROW, 0, tmp_path).progress().seconds == 20.5


@pytest.mark.parametrize(
    "damage",
    [
        *("length", "rate", "config", "metrics", "timing", "start", "top1"),
        *("speed", "nan"),
    ],
)
def test_an_unusable_run_is_neither_resumed_nor_reported(damage, tmp_path):
    row = ROW
    run = fake_run(row, 0, tmp_path, 0.6, epochs=9 if damage == "length" else 2)
    if damage == "rate":
        row = replace(row, options=ROW.options | {"learning_rate": 0.7})
    elif damage == "start":
        config = run.read_config() | {"weights": "shapes"}
        write_json(run.config, with_checksum(config))
    elif damage == "top1":
        last = {"epoch": 2, "test": {"top1": 60.0}}
        write_json(run.metrics, {"last": last})
    elif damage in ("speed", "nan"):
        line = "1,0,10" if damage == "speed" else "1,89.6,nan"
        run.timing.write_text(f"epoch,images_per_second,seconds\n{line}\n")
    elif damage != "length":
        getattr(run, damage).write_text("{")
    job, lines = runs.Job(row, 0, tmp_path), []
    assert job.progress().state == "unusable"
    failed = runs.train_all([job], "again", report=lines.append)
    assert failed == {job.name: 2}
    assert len(lines) == 1 and str(run.path) in lines[0]
    assert results.record(job) is None
    text = f"{results.BEGIN}{results.END}"
    (tmp_path / "README.md").write_text(text)
    job_alone = [job], [row], tmp_path, lines.append
    assert "no training has finished" in refusal(results.write, *job_alone)
    assert lines[1] == lines[0]
    assert lines[0] in results.status([job])


def test_fine_tuning_with_other_settings_is_another_row(tmp_path):
    row = replace(ROW, weights="shapes")
    (job,) = runs.jobs([row], 1, tmp_path)
    run = fake_run(row, 0, tmp_path, 0.6)
    run.path.rename(tmp_path / "tuned")
    job.path.mkdir()
    (tmp_path / "tuned").rename(job.run.path)
    config = job.run.read_config()
    config |= {"arch": "finetuned-resnet8", "weights": "shapes"}
    write_json(job.run.config, with_checksum(config))
    plan = {"head_epochs": 0, "train_norm": True, "freeze": "none"}
    directory = PhasedDirectory(job.path)
    directory.write_plan(plan | {"recipe": row.applied()})
    assert job.progress().state == "done"
    plan |= {"head_epochs": 2, "recipe": row.applied()}
    directory.write_plan(plan)
    assert "head_epochs is 2 instead of 0" in job.progress().fault


def test_only_what_trains_records_its_machine(tmp_path, monkeypatch):
    run = fake_run(ROW, 0, tmp_path, seconds=[10])
    (job,) = runs.jobs([ROW], 1, tmp_path)
    write_json(job.machine, {"processor": "elsewhere", "cores": 2})
    for rows, processor in (("", "elsewhere"), ("2,89.6,10\n", "here")):

        def train(processes, command, rows=rows):
            with run.timing.open("a") as file:
                file.write(rows)
            return 1

        monkeypatch.setattr(many_runs.Processes, "run", train)
        monkeypatch.setattr(runs, "machine", lambda: {"processor": "here"})
        assert runs.train_all([job], "again") == {job.name: 1}
        assert json.loads(job.machine.read_text())["processor"] == processor


def test_the_results_are_written(root):
    folder = root / "runs"
    fake_run(ROW, 0, folder, 0.60, seconds=[10, 20])
    run = fake_run(ROW, 1, folder, 0.62, seconds=[20, 30])
    write_json(run.path / "machine.json", {"processor": "a CPU", "cores": 2})
    checkpoint = run.path / "checkpoints" / "epoch-0001.keras"
    runs.evaluation(checkpoint).parent.mkdir(parents=True)
    checkpoint.touch()
    write_json(runs.evaluation(checkpoint), {"top1": 0.3})
    long = replace(ROW, name="long", expected=None, seeds=1)
    fake_run(long, 0, folder, seconds=[10])
    unborn = replace(ROW, name="unborn")
    row = replace(ROW, log={1: {"test": 0.25}, 2: {"train": 0.9}})
    rows = (unborn, row, long)
    results.write(runs.jobs(rows, None, folder), rows, root)

    saved = json.loads((root / "docs/results/tiny.json").read_text())
    assert [s["accuracy"] for s in saved["seeds"]] == [0.6, 0.62]
    assert [s["seconds"] for s in saved["seeds"]] == [30, 50]
    assert saved["seeds"][1]["log"]["1"]["test"] == 0.3
    assert saved["seeds"][1]["machine"]["processor"] == "a CPU"
    assert not (root / "docs/results/unborn.json").exists()
    readme = (root / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("\nafter\n")
    assert "old" not in readme
    assert (
        "| tiny | resnet8 | shapes | 2 | 61.00 ± 1.41 % | 2 | 10; 20 | "
        "an unknown machine; a CPU | 50.00 %, a paper | +11.00 |" in readme
    )
    to_do = "| seed 0: 1 of 2 epochs done | 0 |  | an unknown machine |  |  |"
    page = (root / "docs/results.md").read_text()
    assert to_do in page and to_do not in readme
    assert "python scripts/train.py --recipe onecycle" in page
    assert "a CPU, cores: 2 (keras 3.15.1)" in page
    assert "| epoch | train | train, source | test | test, source |" in page
    assert "| 1 | 10.00% |  | 30.00% | 25.00% |" in page
    assert "| 2 | 20.00% | 90.00% |  |  |" in page
    assert "Not trained yet: unborn." in page

    # The table comes from the JSON files, and is the same the second time.
    results.write([], rows, root)
    assert (root / "README.md").read_text() == readme

    # A seed trained elsewhere stays until a run has as many epochs.
    again = root / "again"
    fake_run(ROW, 0, again, seconds=[10])
    results.write([runs.Job(row, 0, again)], rows, root)
    assert accuracies(root) == {0: 0.6, 1: 0.62}
    fake_run(ROW, 1, again, 0.7)
    lines = []
    results.write([runs.Job(row, 1, again)], rows, root, lines.append)
    assert accuracies(root) == {0: 0.6, 1: 0.7}
    (line,) = lines
    assert line.startswith("tiny, seed 1: 70.00% on an unknown machine repl")

    # A damaged file is left out, and the rest is written.
    damaged = fake_run(ROW, 2, again, 0.9)
    damaged.history.write_text("accuracy\n0.5\n")
    results.write([runs.Job(row, 2, again)], rows, root, lines.append)
    assert accuracies(root) == {0: 0.6, 1: 0.7}
    assert f"{damaged.path} is unusable (KeyError: 'epoch')" in lines[1]

    # Seeds trained elsewhere stay, unless the recipe has changed.
    elsewhere = root / "elsewhere"
    fake_run(ROW, 2, elsewhere, 0.64)
    results.write([runs.Job(row, 2, elsewhere)], rows, root)
    assert accuracies(root) == {0: 0.6, 1: 0.7, 2: 0.64}
    changed = replace(ROW, options=ROW.options | {"learning_rate": 0.7})
    fake_run(changed, 3, elsewhere, 0.66)
    results.write([runs.Job(changed, 3, elsewhere)], [changed], root)
    assert accuracies(root) == {3: 0.66}


def accuracies(root):
    saved = json.loads((root / "docs/results/tiny.json").read_text())
    return {seed["seed"]: seed["accuracy"] for seed in saved["seeds"]}


def test_nothing_is_written_without_results_or_markers(root):
    assert "train first, without write=" in refusal(
        results.write, [], ROWS, root
    )
    saved = root / "docs" / "results" / f"{ROWS[0].name}.json"
    saved.parent.mkdir(parents=True)
    finished = Path(ROOT, "docs", "results", saved.name)
    first = json.loads(finished.read_text())["seeds"][0]
    for seed in ({}, first | {"accuracy": 7}, first | {"epoch_seconds": None}):
        write_json(saved, {"seeds": [seed]})
        assert "holds no results" in refusal(results.write, [], ROWS, root)
    saved.write_text("{}")
    assert "holds no results" in refusal(results.write, [], ROWS, root)
    assert not (root / "docs" / "results.md").exists()
    (root / "README.md").write_text("no place")
    assert results.END in refusal(results.write, [], ROWS, root)
    assert (root / "README.md").read_text() == "no place"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "cifar10-resnet20-2"], "did you mean"),
        (["--budget", "5"], "--budget 5: give a time such as"),
        (["--seeds", "0"], "--seeds 0"),
        (["--only", ","], "--only names no row"),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--status", "--write"], "--status cannot be combined with --write"),
        (["--rows", "1"], "--help"),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments, text, tmp_path, capsys):
    arguments += ["--output", str(tmp_path)]
    assert reproduce.main(arguments) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--epochs", "4,x"], "--epochs 4,x: give whole numbers"),
        (["--recipes", "none"], "unknown recipe"),
        (["--recipes", ","], "give at least one of --recipes"),
        (["--archs", "resnet21"], "depth 21"),
        (["--picture", "curve.jpg"], "--picture curve.jpg"),
        (["--show"], "is finished: train without --show"),
        (["--dataset", "shapes", "--budget", "0.01s"], "repeat the command"),
    ],
)
def test_a_curve_of_bad_input_is_refused(arguments, text, tmp_path, capsys):
    assert curve.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_finished_trainings_become_a_curve(tmp_path, capsys):
    for epochs, accuracies in ((4, (0.5, 0.6)), (8, (0.7,))):
        name = f"onecycle-resnet8-shapes-{epochs}"
        row = Row(name, "onecycle", "resnet8", "shapes", epochs)
        for seed, accuracy in enumerate(accuracies):
            fake_run(row, seed, tmp_path / "runs", accuracy)
    arguments = ["--recipes", "onecycle", "--archs", "resnet8", "--seeds", "2"]
    arguments += ["--dataset", "shapes", "--epochs", "8,4", "--show"]
    arguments += ["--output", str(tmp_path / "runs")]
    picture = tmp_path / "docs" / "curve.png"
    assert curve.main([*arguments, "--picture", str(picture)]) == 0
    _, four, eight, _, rest = capsys.readouterr().out.splitlines()
    assert "55.00 ± 7.07 %" in four and four.split()[-2:] == ["2", "40"]
    assert "70.00 %" in eight and eight.split()[-2:] == ["1", "80"]
    assert rest == "trainings not finished: 1"
    assert picture.read_bytes().startswith(b"\x89PNG")
    points = json.loads(picture.with_suffix(".json").read_text())
    assert [point["epochs"] for point in points] == [4, 8]


def test_two_recipes_that_are_one_training_are_trained_once(
    tmp_path, monkeypatch
):
    trained = []
    monkeypatch.setattr(
        reproduce, "train", lambda args, jobs: trained.extend(jobs)
    )
    arguments = ["--recipes", "fast,fast-40", "--epochs", "40", "--dataset"]
    curve.main([*arguments, "shapes", "--output", str(tmp_path)])
    assert [job.name for job in trained] == ["fast-40-resnet20-shapes-40-seed0"]


# What the script does, on one row of 1,000 images.
PROGRAM = """
import sys
from benchmarks import reproduce
from benchmarks.manifest import Row
tiny = {"validation": 9000, "precision": "float32"}
reproduce.ROWS = (
    Row("tiny", "onecycle", "resnet8", "shapes", 6, options=tiny, seeds=1),
)
sys.exit(reproduce.main())
"""


def start(folder, *arguments):
    command = [sys.executable, "-c", PROGRAM, "--output", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child_of(process):
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    return int(" ".join(path.read_text() for path in threads).split()[0])


def await_epoch(run, epoch, process):
    """Waits until an epoch is in the history."""
    while process.poll() is None:
        if run.history.exists():
            with run.history.open() as file:
                if len(list(csv.DictReader(file))) >= epoch:
                    return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
def test_kills_and_stops_leave_the_same_bits(tmp_path):
    undisturbed = start(tmp_path / "one")
    output, errors = undisturbed.communicate()
    assert undisturbed.returncode == 0, errors
    assert "1 of 1" in output

    folder = tmp_path / "other"
    run = RunDirectory(folder / "tiny-seed0")
    killed = start(folder)
    await_epoch(run, 1, killed)
    child = child_of(killed)
    os.kill(child, signal.SIGKILL)
    assert "failed with exit code -9" in killed.communicate()[0]
    assert killed.returncode == 1

    stopped = start(folder)
    await_epoch(run, 3, stopped)
    stopped.send_signal(signal.SIGTERM)
    output, errors = stopped.communicate()
    assert stopped.returncode == 143
    assert "to continue: python scripts/reproduce.py --output" in errors
    assert not run.metrics.exists()
    assert "stopped at epoch" in start(folder, "--status").communicate()[0]

    last = start(folder)
    assert last.communicate()[0].count("tiny-seed0: stopped at epoch") == 1
    assert last.returncode == 0
    before = run.metrics.stat().st_mtime_ns
    again = start(folder)
    again.communicate()
    assert again.returncode == 0
    assert run.metrics.stat().st_mtime_ns == before
    one = tmp_path / "one" / "tiny-seed0"
    assert supervisor.differences(one, run.path) == []


@pytest.mark.slow
def test_the_budget_stops_a_training(tmp_path):
    process = start(tmp_path, "--budget", "1s")
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "the budget is used up; to continue: python scripts/rep" in output
