"""Exports: where they go, what is in them, what is left when one fails."""

import importlib.util
import json
import os

import keras
import numpy as np
import pytest
from helpers import TINY

from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.errors import ExportFailed, InputError
from keras_resnet_cifar.export import export
from keras_resnet_cifar.export import verify as verification
from keras_resnet_cifar.export.export import export_model, export_saved_model
from keras_resnet_cifar.models.resnet import build_resnet

TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(
    not TENSORFLOW, reason="TensorFlow, which writes exports, is not installed"
)
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the same on all backends: tested on TensorFlow",
)


def files(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
    )


def run(*arguments):
    return cli.main(["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build_resnet(**TINY, normalization="shapes")


@pytest.fixture
def mixed_model():
    """Computes in bfloat16, which phones and ONNX runtimes do not."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield build_resnet(**TINY, normalization="per_image")
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def run_directory(model, tiny_cifar, tmp_path):
    """What `train` leaves, as far as an export reads it."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "arch": "resnet8",
        "parameters": 1,
        "dataset": {"name": "cifar10"},
        "recipe": {},
        "seed": 0,
        "precision": "float32",
        "request": {
            "name": "cifar10",
            "data_dir": str(tiny_cifar),
            "allow_unverified": True,
        },
        "backend": "tensorflow",
        "versions": {},
    }
    (folder / "config.json").write_text(json.dumps(config))
    model.save(folder / "last.keras")
    return folder


# --- The real thing: three processes each


@needs_tensorflow
def test_a_saved_model_from_any_backend(model, tiny_data, tmp_path):
    found = export_saved_model(model, tmp_path / "net", data=tiny_data)
    assert found.path == tmp_path / "net" / "1"
    held = files(found.path)
    assert "saved_model.pb" in held
    warmup = "assets.extra/tf_serving_warmup_requests"
    assert (warmup in held) == bool(
        importlib.util.find_spec("tensorflow_serving")
    )
    assert found.size == sum(os.path.getsize(found.path / f) for f in held)
    check = found.verification
    assert (check.images, check.alike) == (64, 64)
    assert check.difference <= 1e-5
    assert found.top1 == found.keras_top1
    assert files(tmp_path) == [f"net/1/{name}" for name in held]


FORMATS = {
    "onnx": ("onnx", "model.onnx", ("tf2onnx", "onnx", "onnxruntime")),
    "litert": ("litert", "model.tflite", ("ai_edge_litert",)),
}


@on_tensorflow
@pytest.mark.parametrize("format", FORMATS)
def test_onnx_and_litert(format, mixed_model, tiny_data, tmp_path):
    folder, name, modules = FORMATS[format]
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is not installed")
    found = export_model(mixed_model, tmp_path / "net", format, data=tiny_data)
    assert found.path == tmp_path / "net" / folder / "1"
    assert files(found.path) == ["labels.txt", name]
    labels = (found.path / "labels.txt").read_text().splitlines()
    assert tuple(labels) == tiny_data.class_names
    assert found.verification.alike == 64


@on_tensorflow
def test_int8_of_a_run_by_command(run_directory, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert", reason="it is not installed")
    out = tmp_path / "net"
    options = ["--format", "litert", "--int8", "--out", out]
    assert run(run_directory, *options) == 0
    assert files(out) == [
        "litert-int8/1/labels.txt",
        "litert-int8/1/model.tflite",
    ]
    assert b"airplane" in (out / "litert-int8/1/labels.txt").read_bytes()
    told = capsys.readouterr().out
    assert f"wrote {out}/litert-int8/1: litert int8, " in told
    assert "verified on 64 test images of cifar10" in told
    assert "images/s" in told


@on_tensorflow
def test_a_file_that_cannot_be_written_whole(run_directory, tmp_path, capfd):
    """As on a full disk: the system refuses TensorFlow in the child."""
    resource = pytest.importorskip("resource", reason="Windows has no limits")
    out = tmp_path / "models" / "net"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        code = run(run_directory, "--images", "8", "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert f"cannot write {out}: " in err
    assert not (tmp_path / "models").exists()


# --- Where it goes: with a writer and a check that do nothing


@pytest.fixture
def quick(monkeypatch):
    """Replaces the two other processes; returns what they were asked."""
    jobs = []

    def write(job, sample, scratch):
        jobs.append(job)
        with open(os.path.join(job["folder"], "model"), "w") as file:
            file.write("model")
        return np.eye(10, dtype="float32")[sample.images[:, 0, 0, 0] % 10]

    def agree(folder, format, images, reference, *_):
        return verification.Verification(reference, 1, 1, 0.0, 1.0)

    monkeypatch.setattr(export, "_run_job", write)
    monkeypatch.setattr(export, "verify", agree)
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    return jobs


def test_versions(quick, model, tiny_data, tmp_path):
    out = tmp_path / "net"

    def version(path=out, format="saved_model", **kwargs):
        found = export_model(model, path, format, data=tiny_data, **kwargs)
        return str(found.path.relative_to(tmp_path))

    assert version() == "net/1"
    assert version() == "net/2"
    assert version(out / "7") == "net/7"
    (out / "tmp").mkdir()
    assert version() == "net/8"
    assert version(format="onnx") == "net/onnx/1"
    assert version(format="litert") == "net/litert/1"
    assert version(format="litert", int8=True) == "net/litert-int8/1"
    assert version(out / "9", "onnx") == "net/9"
    assert {job["model_name"] for job in quick} == {"net"}
    with pytest.raises(InputError, match="net/8 is there already"):
        version(out / "8")
    assert all(not path.name.startswith(".") for path in out.iterdir())


def test_a_version_taken_in_the_meantime(quick, model, tmp_path, monkeypatch):
    """Two exports at once get two numbers."""
    numbers = iter([1, 2])
    monkeypatch.setattr(export, "_next_version", lambda _: next(numbers))
    (tmp_path / "net" / "1").mkdir(parents=True)
    (tmp_path / "net" / "1" / "model").write_text("another's")
    found = export_saved_model(model, tmp_path / "net")
    assert found.path == tmp_path / "net" / "2"
    assert (tmp_path / "net" / "1" / "model").read_text() == "another's"


def test_a_model_outside_of_runs(quick, model, tmp_path):
    """Drawn images, and numbers for names; nothing to calibrate on."""
    found = export_saved_model(model, tmp_path / "net")
    assert found.images == "drawn images"
    assert found.top1 is None
    with pytest.raises(InputError, match="calibrated on images of the train"):
        export_model(model, tmp_path / "net", "litert", int8=True)


def test_data_of_the_run_and_instead_of_it(quick, run_directory, tmp_path):
    def asked(**kwargs):
        export_saved_model(run_directory, tmp_path / "net", **kwargs)
        return quick[-1]["class_names"]

    assert asked()[0] == "airplane"
    assert asked(data={"name": "shapes"})[0] == "circle"
    with pytest.raises(InputError, match="/nowhere"):
        asked(data={"data_dir": "/nowhere"})


def test_a_check_that_fails_exits_with_1_and_leaves_nothing(
    quick, run_directory, tmp_path, capfd, monkeypatch
):
    def disagree(*_):
        raise ExportFailed("1 of 64 images get another class")

    monkeypatch.setattr(export, "verify", disagree)
    out = tmp_path / "models" / "net"
    assert run(run_directory, "--out", out) == 1
    err = capfd.readouterr().err
    assert err == (
        f"error: {out}: the saved_model model failed its check and was "
        "removed: 1 of 64 images get another class\n"
    )
    assert not (tmp_path / "models").exists()


def test_interrupted(quick, run_directory, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "verify", interrupt)
    assert run(run_directory, "--out", tmp_path / "net") == 130
    assert not (tmp_path / "net").exists()


def test_a_converter_that_crashes(model, tmp_path, monkeypatch):
    """A child killed by a signal is told in a line, with nothing left."""
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    monkeypatch.setattr(export.sys, "executable", "false")
    with pytest.raises(ExportFailed, match="cannot export to saved_model"):
        export_saved_model(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


# --- Bad input


@pytest.mark.parametrize("missing", ["tensorflow", "onnxruntime", "tf2onnx"])
def test_a_missing_package(missing, model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: name != missing)
    with pytest.raises(InputError, match=f"onnx needs.*install {missing}"):
        export_model(model, tmp_path / "net", "onnx")
    assert not (tmp_path / "net").exists()


def remove_last(folder):
    (folder / "last.keras").unlink()


def take_out(folder):
    (folder.parent / "net" / "3").mkdir(parents=True)


def make_out_a_file(folder):
    (folder.parent / "net").touch()


def nothing(folder):
    pass


BAD = {
    "no checkpoint": (remove_last, [], "last.keras"),
    "no best": (nothing, ["--checkpoint", "best"], "best.keras"),
    "format": (nothing, ["--format", "tfjs"], "saved_model"),
    "int8": (nothing, ["--int8"], "litert"),
    "images": (nothing, ["--images", "0"], "images=0"),
    "target exists": (take_out, ["--out", "{net}/3"], "is there already"),
    "target is a file": (make_out_a_file, [], "is a file"),
    "unwritable": (nothing, ["--out", "/proc/net"], "/proc/net"),
    "unwritable folder": (nothing, ["--out", "/proc/self"], "/proc/self"),
    "dataset": (nothing, ["--dataset", "mnist"], "cifar10"),
    "data": (nothing, ["--data-dir", "/nowhere"], "/nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name, run_directory, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    spoil, options, word = BAD[name]
    spoil(run_directory)
    before = files(tmp_path)
    options = [option.format(net=tmp_path / "net") for option in options]
    if "--out" not in options:
        options += ["--out", tmp_path / "net"]
    assert run(run_directory, *options) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["none", "lonely.keras"])
def test_no_model_and_no_data(name, model, tmp_path, capfd):
    model.save(tmp_path / "lonely.keras")
    assert run(tmp_path / name, "--out", tmp_path / "net") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert ("--dataset" if name == "lonely.keras" else "no run") in err


@on_tensorflow
def test_what_only_the_child_can_tell(run_directory, tmp_path, capfd):
    (run_directory / "last.keras").write_text("no model")
    assert run(run_directory, "--out", tmp_path / "net") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "last.keras is damaged" in err
    assert not (tmp_path / "net").exists()
