"""What the commands do, and what they say of bad input."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from keras_resnet_cifar.cli import demo as cli_demo
from keras_resnet_cifar.cli import runs
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.models.saving import load_model, names_of
from keras_resnet_cifar.training.recipes import DEFAULT, RECIPES

# --- The whole path, each command on what the one before it left


def test_train_prints_what_it_does(trained):
    _, output = trained
    assert "resnet8 on cifar10 (200 train, 56 validation, 64 test" in output
    assert "NOT verified" in output
    assert "Epoch 2/2" in output
    assert " - val_loss: " in output
    assert "last (epoch 2): top-1" in output


def test_the_source_of_data_is_not_the_source_of_the_recipe(trained):
    config = json.loads((trained[0] / "config.json").read_text())
    assert config["request"]["source"] == "disk"
    assert config["recipe"]["source"] == RECIPES[DEFAULT].source
    assert config["recipe"]["arch"] == "resnet8"


def test_evaluate_all_checkpoints(finished_run, run, capsys):
    assert (
        run("evaluate", finished_run, "--checkpoint", "all", "--mistakes", 1)
        == 0
    )
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


def test_reports_of_several_models_lie_apart(trained, run, tmp_path, capsys):
    models = [trained[0] / "best.keras", trained[0]]
    options = ["--split", "validation", "--mistakes", 1]
    options += ["--output-dir", tmp_path]
    assert run("evaluate", *models, *options) == 0
    assert capsys.readouterr().out.count("56 images") == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        "run-best-validation",
        "run-last-validation",
    }


def test_calibration(trained, run, tmp_path, capsys):
    options = ["--mistakes", 1, "--output-dir", tmp_path, "--calibrate"]
    assert run("evaluate", trained[0], *options) == 0
    assert ", calibration error 0." in capsys.readouterr().out
    assert (tmp_path / "run-last-test" / "reliability.png").exists()
    assert run("evaluate", trained[0], *options, "--tta", "flip") == 0
    page = (tmp_path / "run-last-test-flip" / "calibration.json").read_text()
    assert json.loads(page)["fitted_on"] == 56


@pytest.mark.slow
def test_corruptions_and_a_report(trained, run, tmp_path, capsys):
    page = tmp_path / "report.html"
    options = ["--mistakes", 1, "--output-dir", tmp_path, "--calibrate"]
    options += ["--corruptions", "--corruption-images", 20, "--report", page]
    assert run("evaluate", trained[0], trained[0] / "best.keras", *options) == 0
    output = capsys.readouterr().out
    assert output.count("\ngaussian_noise ") == 2
    assert "(20 images of each corruption and severity" in output
    html = page.read_text("utf-8")
    assert html.count("data:image/png;base64,") == 8
    for text in ("Temperature", "Mean corruption error", "numpy", "recipe"):
        assert text in html
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)


def test_flips_at_test_time_are_reported_apart(trained, run, tmp_path, capsys):
    options = ["--mistakes", 1, "--output-dir", tmp_path, "--tta", "flip"]
    assert run("evaluate", trained[0], *options) == 0
    assert ": test with --tta flip top-1" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["run-last-test-flip"]


def test_predict(trained, run, tmp_path, capsys):
    image = tmp_path / "a picture.png"
    Image.new("RGB", (40, 50), "red").save(image)
    picture = tmp_path / "why.png"
    options = ["--json", "--explain", picture]
    assert run("predict", trained[0], image, *options) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert row["image"] == str(image)
    assert len(row["classes"]) == 3
    model = trained[0] / "best.keras"
    assert run("predict", model, image, "--top", 1, "--dataset", "shapes") == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{image}: ")
    assert line.count("%") == 1


def test_a_moved_model_names_its_classes(trained, run, tmp_path, capsys):
    """Of single pictures and of those in a folder."""
    lonely = tmp_path / "moved.keras"
    lonely.write_bytes((trained[0] / "last.keras").read_bytes())
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / "photos" / name)
    assert run("predict", lonely, tmp_path / "photos", "--top", 10) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0][-5:] for line in lines] == ["a.png", "b.jpg"]
    for name in DATASETS["cifar10"].class_names:
        assert f" {name} " in lines[0]


def test_convert_names_the_classes(trained, run, tmp_path, capsys):
    pytest.importorskip("safetensors", reason="it is the file's format")
    checkpoint, out = tmp_path / "net.safetensors", tmp_path / "net.keras"
    to_torch = ("-o", checkpoint, "--to-torch", "akamaster")
    assert run("convert", trained[0], *to_torch) == 0
    assert run("convert", checkpoint, "-o", out, "--dataset", "CIFAR-10") == 0
    assert load_model(out).class_names == DATASETS["cifar10"].class_names
    out.unlink()
    assert run("convert", checkpoint, "-o", out) == 0
    assert "(--dataset names them)" in capsys.readouterr().out
    assert names_of(load_model(out)) == tuple("0123456789")
    options = ["-o", tmp_path / "b.keras", "--dataset", "cifar100"]
    assert run("convert", checkpoint, *options) == 2
    assert not (tmp_path / "b.keras").exists()


def test_names_may_be_spelled_in_several_ways(run, monkeypatch, tmp_path):
    requests = []
    monkeypatch.setattr(runs, "carry_out", lambda *a: requests.append(a[1]))
    options = ["--arch", "ResNet_8", "--dataset", "CIFAR-10"]
    options += ["--recipe", "Paper_110", "--schedule", "cosine"]
    options += ["--precision", "bf16", "--padding-mode", "Reflect"]
    out = tmp_path / "run"
    assert run("train", *options, "--output-dir", out) == 0
    (request,) = requests
    recipe = request.settings["recipe"]
    assert request.data["name"] == recipe.dataset == "cifar10"
    assert (recipe.name, recipe.schedule) == ("paper-110", ("cosine", {}))
    assert recipe.precision == "mixed_bfloat16"
    assert recipe.padding_mode == "reflect"


@pytest.mark.slow
def test_a_run_repeats_from_its_config(trained, fast, run, tmp_path):
    """Same options, same seed, same machine: the same weights."""
    import keras

    options = ["--validation", 56, "--quiet", "--output-dir", tmp_path / "run"]
    assert run("train", *fast, *options) == 0
    one, other = (
        keras.saving.load_model(folder / "last.keras").get_weights()
        for folder in (trained[0], tmp_path / "run")
    )
    for expected, got in zip(one, other, strict=True):
        np.testing.assert_array_equal(expected, got)


def test_train_starts_from_weights(fast, run, tmp_path, capsys):
    """And the run knows them."""
    options = ["--weights", "shapes", "--learning-rate", 1e-9, "--epochs", 1]
    assert run("train", *fast, *options, "--output-dir", tmp_path / "run") == 0
    # The data of these tests are shapes, whatever they are called.
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["last"]["test"]["top1"] > 0.9
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["weights"] == "shapes"
    resume = ["train", "--resume", tmp_path / "run", "--weights", "other"]
    assert run(*resume) == 2
    assert "which was 'shapes'" in capsys.readouterr().err


@pytest.mark.slow
def test_train_starts_from_a_run(trained, data_options, run, tmp_path, capsys):
    """From its net and weights, whatever they are called."""
    still = ["--learning-rate", 0, "--epochs", 1, "--batch-size", 256]
    folder = tmp_path / "run"
    options = [*still, *data_options, "--output-dir", folder]
    options += ["--init-from", trained[0], "--steps-per-execution", 1]
    assert run("train", *options) == 0
    assert "resnet8 on cifar10" in capsys.readouterr().out
    import keras

    kernels = (
        keras.saving.load_model(path / "last.keras").get_layer("head_dense")
        for path in (trained[0], folder)
    )
    one, other = (layer.get_weights()[0] for layer in kernels)
    np.testing.assert_array_equal(one, other)
    config = json.loads((folder / "config.json").read_text())
    assert config["weights"] == str(trained[0])
    assert config["recipe"]["arch"] == "resnet8"
    resume = ["--resume", folder, "--init-from", folder / "best.keras"]
    assert run("train", *resume) == 2
    assert f"which was '{trained[0]}'" in capsys.readouterr().err


def test_a_longer_run_starts_from_the_finished_one(trained, run, capfd):
    """Where the schedule has used rates that a longer one has not."""
    assert run("train", "--resume", trained[0], "--epochs", 40) == 2
    err = capfd.readouterr().err
    assert "--epochs 40, which was 2" in err
    assert "--init-from of the command train" in err


@pytest.mark.slow
def test_finetune_starts_from_weights(data_options, run, tmp_path):
    options = ["--backbone", "resnet8", "--weights", "shapes"]
    options += ["--head-epochs", 0, "--epochs", 1, "--batch-size", 64]
    options += ["--random-resized-crop", 0, *data_options]
    options += ["--output-dir", tmp_path / "run"]
    assert run("finetune", *options) == 0
    assert (tmp_path / "run" / "tuned" / "last.keras").is_file()


# --- Bad input

TINY = "the data of this test"  # stands for its options
BAD_TRAIN = {
    "arch": (["--arch", "resnet21"], "resnet20"),
    "depth": (["--arch", "resnet3"], "resnet8"),
    "init": (["--init-from", "nowhere"], "nowhere does not exist"),
    "steps": (["--steps-per-execution", "0"], "--steps-per-execution 0: must"),
    "arch and init": (
        ["--init-from", "x", "--arch", "resnet8"],
        "--arch cannot be combined with --init-from",
    ),
    "dataset": (["--dataset", "mnist"], "cifar10"),
    "recipe": (["--recipe", "papr"], "paper"),
    "source": (["--dataset", "cifar10", "--source", "ftp"], "huggingface"),
    "needless folder": (
        ["--dataset", "shapes", "--data-dir", "/tmp"],
        "--data-dir /tmp is for CIFAR",
    ),
    "epochs": (["--epochs", "0"], "--epochs 0: must be at least 1"),
    "batch": (["--batch-size", "-1"], "--batch-size -1"),
    "batch too large": ([TINY, "--batch-size", "99999"], "--batch-size 99999"),
    "validation": ([TINY, "--validation", "256"], "--validation 256"),
    "number": (["--epochs", "many"], "many"),
    "fraction": (["--mixup", "much"], "invalid number value: 'much'"),
    "option": (
        ["--epoch", "3"],
        "--epoch 3; did you mean --epochs? (see python -m keras_resnet_cifar "
        "train --help)",
    ),
    "initials": (["--lr", "0.1"], "did you mean --learning-rate?"),
    "folder of images": (
        ["--dataset", "./nowhere"],
        "./nowhere is not an existing folder: check it",
    ),
    "cutout": ([TINY, "--cutout", "33"], "--cutout 33: must be at most 32"),
    "operations": (["--rand-augment", "99"], "--rand-augment 99: must be at"),
    "patience": (
        [TINY, "--patience", "2", "--validation", "0"],
        "--patience 2 needs a validation split: load the data with "
        "--validation 5000, ",
    ),
    "line break": (["--epoch", "3\n4"], "--epoch 3 4"),
    "data folder": (
        ["--dataset", "cifar10", "--data-dir", "/nowhere"],
        "/nowhere",
    ),
    "output": ([TINY, "--output-dir", "/proc/run"], "/proc/run"),
    "seed": (["--seed", "-1"], "--seed -1"),
    "huge": (["--epochs", "99999999999"], "at most"),
    "cutmix": (["--cutmix", "5"], "--cutmix 5"),
    "no name": (["--arch", ""], "resnet20"),
    "weights": (["--weights", "cifar11"], "hf://user/name"),
    "weights of another net": (["--weights", "shapes"], "only for resnet8"),
    "resume": (["--resume", "/nowhere"], "/nowhere"),
    "backup": (["--backup-every", "often"], "--backup-every often"),
    "tracker": (["--track", "tensorbord"], "tensorboard"),
    "schedule": (["--schedule", "cosinus"], "did you mean cosine"),
    "devices": (["--devices", "two"], "neither a number nor all"),
}


def refused(run, capfd, *arguments):
    """The line with which a command refuses its arguments."""
    assert run(*arguments) == 2, arguments
    out, err = capfd.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert "Epoch 1/" not in out
    assert ": test top-1 " not in out
    return err


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_bad_options(name, run, data_options, tmp_path, capfd):
    arguments, word = BAD_TRAIN[name]
    if arguments[0] == TINY:
        arguments = [*data_options, *arguments[1:]]
    if "--output-dir" not in arguments and "--resume" not in arguments:
        arguments = [*arguments, "--output-dir", tmp_path / "run"]
    assert word in refused(run, capfd, "train", *arguments)
    assert not (tmp_path / "run").exists()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def batch(data, labels):
    return pickle.dumps({b"data": data, b"labels": labels})


BAD_DATA = {
    "empty": None,
    "truncated": b"\x80",
    "malicious": batch(Bomb(), [0]),
    "sizes": batch(np.zeros((2, 99), "uint8"), [0, 1]),
    "label": batch(np.zeros((1, 3072), "uint8"), [77]),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name, run, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    if BAD_DATA[name]:
        (folder / "data_batch_1").write_bytes(BAD_DATA[name])
    data = ["--dataset", "cifar10", "--data-dir", folder.parent]
    out = ["--output-dir", tmp_path / "run"]
    assert str(folder.parent) in refused(run, capfd, "train", *data, *out)
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "run").exists()


def test_bad_models_and_images(trained, run, data_options, tmp_path, capfd):
    directory, _ = trained
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    lonely = tmp_path / "lonely.keras"
    lonely.write_bytes((directory / "last.keras").read_bytes())
    for arguments, word in (
        (("evaluate", tmp_path / "none"), "none"),
        (("evaluate", tmp_path / "empty"), "last.keras"),
        (("evaluate", tmp_path / "text.keras", *data_options), "text.keras"),
        (("evaluate", lonely), "--dataset"),
        (("evaluate", lonely, "--dataset", "cifr10"), "cifar10"),
        (
            ("evaluate", lonely, *data_options, "--split", "validation"),
            f"the data for {lonely} has no validation split",
        ),
        (("evaluate", directory, "--checkpoint", "first"), "first"),
        (("evaluate", directory, "--mistakes", "0"), "--mistakes 0: give 1 to"),
        (
            ("evaluate", directory, "--corruptions", "--corruption-images", 0),
            "--corruption-images 0",
        ),
        (
            ("evaluate", directory, "--corruption-images", 10),
            "--corruption-images needs --corruptions",
        ),
        (
            ("evaluate", directory, "--report", tmp_path / "report.txt"),
            "name a .html file",
        ),
        (
            ("evaluate", directory, "--report", tmp_path / "none" / "a.html"),
            "its folder does not exist",
        ),
        (("evaluate", directory, "--report", tmp_path), "it is a folder"),
        (
            ("evaluate", directory, "--corruptions", tmp_path / "empty"),
            "labels.npy",
        ),
        (
            ("evaluate", lonely, *data_options, "--calibrate"),
            "no validation split to fit",
        ),
        (("evaluate", directory, directory), "two models"),
        (("predict", directory, tmp_path / "text.png"), "text.png"),
        (("predict", directory, tmp_path / "none.png"), "none.png"),
        (("predict", tmp_path / "none.keras", tmp_path / "text.png"), "none"),
        (("predict", directory, "a.png", "--dataset", "cifr10"), "cifar10"),
        (("export", lonely, "--out", tmp_path / "out"), "--dataset"),
        (("convert", lonely, "-o", tmp_path / "a.txt"), ".keras file"),
        (("convert", lonely, "-o", lonely), "another file"),
        (
            ("convert", "a.th", "-o", tmp_path / "a.keras", "--evaluate"),
            "needs a --dataset",
        ),
        (
            ("convert", "a.th", "-o", tmp_path / "a.keras", "--dataset", "c10"),
            "cifar10",
        ),
        ((), "COMMAND"),
        (("fit",), "fit"),
        (("benchmark",), "benchmark"),
    ):
        assert word in refused(run, capfd, *arguments)


def test_a_run_on_arrays_needs_a_dataset(finished_run, run, capfd):
    config = json.loads((finished_run / "config.json").read_text())
    del config["sha256"]
    config["request"] = {}
    (finished_run / "config.json").write_text(json.dumps(config))
    line = refused(run, capfd, "evaluate", finished_run)
    assert "was trained on data given in Python (see krc.evaluate)" in line
    assert "not in a run directory" not in line


def test_what_demo_refuses(trained, run, tmp_path, capfd, monkeypatch):
    """In one line, before Keras starts; Gradio need not be there for it."""
    monkeypatch.setattr(cli_demo, "find_spec", lambda name: name)
    lonely = tmp_path / "lonely.keras"
    lonely.write_bytes((trained[0] / "last.keras").read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for arguments, word in (
            ([], "--weights"),
            ([tmp_path], "last.keras"),
            ([tmp_path / "none"], "none does not exist"),
            ([lonely], "--dataset"),
            (["--weights", "cifar11"], "cifar10"),
            ([trained[0], "--port", port], f"--port {port} is not available"),
            ([trained[0], "--port", "99999"], "--port 99999"),
        ):
            assert word in refused(run, capfd, "demo", *arguments)
    monkeypatch.setattr(cli_demo, "find_spec", lambda name: None)
    assert "pip install" in refused(run, capfd, "demo", trained[0])


@pytest.mark.slow
def test_demo_of_a_run(trained, run, capfd, monkeypatch, tmp_path):
    """All but the page: Gradio need not be there."""
    served = []
    page = SimpleNamespace(serve=lambda explorers, port: served.append(port))
    monkeypatch.setitem(sys.modules, "keras_resnet_cifar.demo.page", page)
    monkeypatch.setattr(cli_demo, "find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = ["demo", "--port", port]
    row = dataclasses.replace(cli_demo._SHIPPED["shapes"], digest="sha256:0")
    monkeypatch.setitem(cli_demo._SHIPPED, "shapes", row)
    options = ["--weights", "shapes"]
    assert "is damaged" in refused(run, capfd, *command, *options)
    assert run(*command, trained[0]) == 0
    assert served == [port]
    assert ": evaluating on cifar10\n" in capfd.readouterr().out
    changed = shutil.copytree(trained[0], tmp_path / "run")
    config = json.loads((changed / "config.json").read_text())
    del config["sha256"]
    config["dataset"]["fingerprints"]["test"] = "0"
    (changed / "config.json").write_text(json.dumps(config))
    assert "--allow-changed-data" in refused(run, capfd, *command, changed)
    assert run(*command, changed, "--allow-changed-data") == 0
    assert "cifar10, changed since the" in capfd.readouterr().out


@pytest.mark.slow
def test_a_rate_far_too_high_exits_with_3(fast, run, tmp_path, capfd):
    options = ["--learning-rate", "1e30", "--output-dir", tmp_path / "run"]
    assert run("train", *fast, *options) == 3
    assert "lower --learning-rate" in capfd.readouterr().err
