"""The convert command and the files it reads: what works, what is refused."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import TINY

from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.torch_checkpoints import (
    load_torch_checkpoint,
    save_torch_checkpoint,
)
from keras_resnet_cifar.pytorch.schemes import SCHEMES


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small net and its weights under akamaster's names."""
    pytest.importorskip("safetensors", reason="it is the format of the test")
    keras.utils.set_random_seed(0)
    model = build_resnet(**TINY)
    path = tmp_path_factory.mktemp("exported") / "net.safetensors"
    save_torch_checkpoint(model, path, "akamaster")
    return model, path


@pytest.fixture
def exported(written, tmp_path):
    """The same, in a folder of the test's own."""
    model, path = written
    return model, Path(shutil.copy(path, tmp_path))


def assert_same_weights(model, other):
    for ours, theirs in zip(
        model.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_there_and_back_by_the_command(exported, tiny_cifar, tmp_path, capsys):
    model, path = exported
    there, back = tmp_path / "net.keras", tmp_path / "back.safetensors"
    options = ["--dataset", "cifar10", "--data-dir", tiny_cifar]
    options += ["--allow-unverified", "--evaluate"]
    assert run("convert", path, "-o", there, *options) == 0
    out = capsys.readouterr().out
    assert f"wrote {there}: resnet8-custom, 10 classes" in out
    assert "mean (0.485, 0.456, 0.406)" in out
    assert "(64 images)" in out
    assert_same_weights(model, keras.saving.load_model(there))

    assert run("convert", there, "-o", back, "--to-torch", "akamaster") == 0
    assert "mean (0.485, 0.456, 0.406)" in capsys.readouterr().out
    assert back.read_bytes() == path.read_bytes()


def test_normalization_by_the_command(exported, tmp_path, capsys):
    _, path = exported
    for name, words in (
        ("cifar100", "mean (0.5071, 0.4865, 0.4409)"),
        ("per_image", "normalized per image"),
    ):
        output = tmp_path / f"{name}.keras"
        assert run("convert", path, "-o", output, "--normalization", name) == 0
        assert words in capsys.readouterr().out


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="the backend is PyTorch itself"
)
def test_safetensors_need_no_pytorch(exported, tmp_path, monkeypatch):
    model, path = exported
    monkeypatch.setitem(sys.modules, "torch", None)  # as if not installed
    assert_same_weights(model, load_torch_checkpoint(path))
    (tmp_path / "net.pth").write_bytes(b"something")
    for action in (
        lambda: load_torch_checkpoint(tmp_path / "net.pth"),
        lambda: save_torch_checkpoint(model, tmp_path / "a.pth", "akamaster"),
    ):
        with pytest.raises(InputError, match="pip install torch"):
            action()
    assert not (tmp_path / "a.pth").exists()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def truncated(path, torch, **_):
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    path.write_bytes(path.read_bytes()[:1000])


# What lies at CHECKPOINT -> a word of the refusal.
BAD_FILES = {
    "absent.pth": (lambda path, **_: None, "no checkpoint at"),
    "empty.pth": (lambda path, **_: path.write_bytes(b""), "empty"),
    "folder.pth": (lambda path, **_: path.mkdir(), "folder"),
    "text.pth": (lambda path, **_: path.write_text("hello"), "damaged"),
    "text.safetensors": (
        lambda path, **_: path.write_text("some text"),
        "safetensors",
    ),
    "name.ckpt": (lambda path, **_: path.write_text("hello"), ".safetensors"),
    "truncated.pth": (truncated, "damaged"),
    "pickle.pth": (
        lambda path, **_: path.write_bytes(pickle.dumps({"a": Bomb()}, 2)),
        "posix.system",
    ),
    "protocol.pth": (
        lambda path, **_: path.write_bytes(pickle.dumps({"a": Bomb()}, 4)),
        "damaged",
    ),
    "zipped.pth": (
        lambda path, torch: torch.save({"net": {"a": Bomb()}}, path),
        "posix.system",
    ),
    "module.pth": (
        lambda path, torch: torch.save(torch.nn.Linear(2, 2), path),
        "Linear",
    ),
    "expanded.pth": (  # 36 TB by its shape
        lambda path, torch: torch.save(
            {"conv1.weight": torch.zeros(1).expand(10**6, 10**6, 3, 3)}, path
        ),
        "a tensor is larger than its data",
    ),
    "list.pth": (
        lambda path, torch: torch.save([torch.zeros(2)], path),
        "no named tensors",
    ),
    "none.pth": (lambda path, torch: torch.save({}, path), "no named tensors"),
    "vgg.pth": (
        lambda path, torch: torch.save(
            {f"features.{i}.weight": torch.zeros(2) for i in range(30)}, path
        ),
        "features.0.weight, features.1.weight",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_and_exit_code_2(
    name, tmp_path, monkeypatch, capfd
):
    write, word = BAD_FILES[name]
    torch = None
    if "no checkpoint" not in word and name.endswith(".pth"):
        torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    write(path, torch=torch)
    assert run("convert", path, "-o", tmp_path / "net.keras") == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert str(path) in err
    assert word in err
    assert set(os.listdir(tmp_path)) <= {name}  # nothing written, nothing run


# Arguments after CHECKPOINT -> a word of the refusal.
BAD_OPTIONS = {
    "no output": ([], "-o"),
    "output": (["-o", "net.h5"], "net.h5"),
    "existing": (["-o", "there.keras"], "there.keras"),
    "arch": (["-o", "a.keras", "--arch", "resnet21"], "resnet20"),
    "another arch": (["-o", "a.keras", "--arch", "resnet20"], "not resnet20"),
    "normalization": (["-o", "a.keras", "--normalization", "x"], "imagenet"),
    "no dataset": (["-o", "a.keras", "--evaluate"], "--dataset"),
    "dataset": (["-o", "a.keras", "--dataset", "cifr10"], "cifar10"),
    "data without evaluation": (
        ["-o", "a.keras", "--data-dir", "x"],
        "need --evaluate",
    ),
    "folder": (["-o", "nowhere/a.keras"], "nowhere"),
    "scheme": (["-o", "a.pth", "--to-torch", "kuanglu"], "kuangliu"),
    "suffix": (["-o", "a.keras", "--to-torch", "akamaster"], "a.keras"),
    "both ways": (
        ["-o", "a.pth", "--to-torch", "akamaster", "--arch", "resnet8"],
        "--arch",
    ),
    "no model": (["-o", "a.pth", "--to-torch", "akamaster"], "net.safetensors"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_one_line_and_exit_code_2(
    name, exported, monkeypatch, capfd
):
    _, path = exported
    arguments, word = BAD_OPTIONS[name]
    monkeypatch.chdir(path.parent)
    (path.parent / "there.keras").write_text("kept")
    before = set(os.listdir())
    assert run("convert", path, *arguments) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
    assert set(os.listdir()) == before
    assert (path.parent / "there.keras").read_text() == "kept"


def test_help_names_the_schemes(capsys):
    with pytest.raises(SystemExit) as stop:
        run("convert", "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in SCHEMES)
