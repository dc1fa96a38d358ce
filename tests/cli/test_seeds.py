"""The option `--seeds` of `train`."""

import json

import pytest
from helpers import refusal

from keras_resnet_cifar.cli import seeds
from keras_resnet_cifar.training.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-3", [0, 1, 2, 3]),
        ("0,3,5", [0, 3, 5]),
        ("7", [7]),
        ("0-1, 5-6", [0, 1, 5, 6]),
    ],
)
def test_seeds_are_parsed(text, expected):
    assert seeds.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "0,0", "0-2,1", "-1", "0--1", "0-1000", "1,"]
)
def test_other_seeds_are_refused(text):
    line = f"seeds={text}: give at most 1000 different seeds"
    assert line in refusal(seeds.parse, text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--seeds", "3-1"], "--seeds 3-1: give at most 1000 different"),
        (["--seeds", "0-9999999999"], "--seeds 0-9999999999"),
        (["--seeds", "0-1", "--seed", "1"], "--seed cannot be combined with"),
        (["--seeds", "0-1", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--seeds", "0-1", "--epochs", "0"], "--epochs 0"),
        (["--seeds", "0", "--coordinator", "h:1"], "omit --coordinator"),
        (["--seeds", "0", "--process-id", "0"], "omit --coordinator"),
        (["--seeds", "0", "--steps-per-execution", "0"], "must be at"),
        (["--jobs", "2"], "give --seeds, too"),
    ],
)
def test_bad_input_is_a_line_and_leaves_nothing(
    options, text, run, tmp_path, capfd
):
    folder = tmp_path / "set"
    assert run("train", *options, "--output-dir", folder) == 2
    error = capfd.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"options": [], "seeds": "x"}']
)
def test_a_damaged_set_is_refused(content, run, tmp_path, capfd):
    (tmp_path / "seeds.json").write_text(content)
    options = ["--seeds", "0-1"] if content == "{" else []
    assert run("train", "--resume", tmp_path, *options) == 2
    text = "--seeds is fixed" if options else f"cannot read {tmp_path}"
    error = capfd.readouterr().err
    assert text in error and error.count("\n") == 1


@pytest.mark.slow
def test_seeds_are_trained_resumed_and_summarized(fast, run, tmp_path, capfd):
    folder = tmp_path / "set"
    options = [*fast, "--validation", 56, "--output-dir", folder]
    assert run("train", *options, "--seeds", "0-1", "--jobs", 2) == 0
    head, *rows = capfd.readouterr().out.split("last epoch:\n")[1].splitlines()
    assert head.split() == ["top-1", "loss", "calibration", "error", "seconds"]
    assert [row.split()[0] for row in rows[:3]] == ["seed0", "seed1", "mean"]
    assert rows[2].count("±") == 4
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    scores = [
        json.loads(RunDirectory(folder / name).metrics.read_text())
        for name in ("seed0", "seed1")
    ]
    assert scores[0] != scores[1]

    # One cannot be resumed, or cannot be read: it does not stop the other.
    first, second = (RunDirectory(folder / name) for name in ("seed0", "seed1"))
    first.metrics.unlink()
    first.previous_backup.unlink()
    for damaged, code in ((first.backup, 2), (first.config, 1)):
        damaged.write_text("{")
        second.metrics.unlink()
        with pytest.raises(SystemExit) as end:
            run("train", "--resume", folder)
        assert end.value.code == code
        output = capfd.readouterr()
        text = f"not finished: seed0 (exit code {code}); to continue:"
        assert text in output.err
        assert "seed1: stopped at epoch 2 of 2" in output.out
        assert json.loads(second.metrics.read_text()) == scores[1]


@pytest.mark.slow
def test_a_set_that_is_refused_leaves_nothing(run, fast, tmp_path, capfd):
    folder = tmp_path / "set"
    options = [*fast, "--output-dir", folder, "--seeds", "0-1"]
    with pytest.raises(SystemExit) as end:
        run("train", *options, "--batch-size", 257)  # of 256 images
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert "--batch-size 257 is larger" in error and error.count("\n") == 1
    assert not folder.exists()
