"""Trained weights: the table, ours, files, and others' from a server."""

import dataclasses
import functools
import hashlib
import io
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import TINY, refusal, serve

import keras_resnet_cifar as krc
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.downloads import check_digest
from keras_resnet_cifar.evaluation.evaluate import evaluate
from keras_resnet_cifar.models import nets
from keras_resnet_cifar.models.architectures import resolve
from keras_resnet_cifar.models.normalization import describe_normalization
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.torch_checkpoints import save_torch_checkpoint
from keras_resnet_cifar.models.weights import (
    LARGEST,
    LARGEST_TOGETHER,
    SHIPPED,
    WEIGHTS,
    list_weights,
    read_shipped,
)
from keras_resnet_cifar.pytorch.schemes import SCHEMES
from keras_resnet_cifar.training.recipes import RECIPES


def refused(arch=None, **arguments):
    return refusal(functools.partial(build_resnet, arch, **arguments))


def assert_same_weights(model, other):
    for weight, again in zip(
        model.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(weight, again)


# --- The table

OURS = read_shipped()
OTHERS = [row for row in WEIGHTS.values() if "://" in row.where]


def test_list_weights_has_a_row_for_each():
    rows = list_weights()
    assert [(row["name"], row["arch"]) for row in rows] == list(WEIGHTS)
    assert len(rows) == len(OURS) + len(OTHERS)
    for row in rows:
        assert resolve(row["arch"]).name == row["arch"]
        assert 0.5 < row["top1"] <= 1
        assert row["licence"]


def test_the_files_in_the_package_are_those_of_the_table():
    files = {path.name for path in SHIPPED.glob("*.keras")}
    assert files == {row.where for row in OURS}
    for row in OURS:
        assert (SHIPPED / row.where).stat().st_size == row.size <= LARGEST
        check_digest(SHIPPED / row.where, row.digest)
        assert row.recipe in RECIPES
        assert row.dataset in DATASETS
    assert sum(row.size for row in OURS) <= LARGEST_TOGETHER


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row.where[-40:])
def test_the_names_of_others_files_have_their_digits(row):
    algorithm, digits = row.digest.split(":")
    assert f"-{digits[:8]}." in row.where
    assert (
        algorithm
        == {"chenyaofo": "sha256", "imgclsmob": "sha1"}[row.normalization]
    )
    assert row.normalization in SCHEMES


# --- Ours


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[pytest.mark.slow] * (row.dataset != "shapes"))
        for row in OURS
    ],
    ids=lambda row: row.where,
)
def test_loaded_weights_score_as_the_table_says_to_the_image(row, request):
    if row.dataset != "shapes":
        request.getfixturevalue("real_data")  # or skips
    data = krc.load_dataset(row.dataset)
    model = build_resnet(row.arch, weights=row.name)
    result = evaluate(model, data.test, data.class_names)
    # On TensorFlow it is what was measured; elsewhere sums have another order.
    tolerance = 0 if keras.backend.backend() == "tensorflow" else 1
    assert abs(result.top1 - row.top1) * result.n <= tolerance + 1e-6


def test_ours_come_with_their_classes_and_normalization():
    model = build_resnet("resnet8", weights="shapes", input_shape=(48, 40, 3))
    plain = build_resnet("resnet8", normalization="shapes")
    assert model.name == "resnet8"
    assert build_resnet("resnet8", weights="Shapes").pretrained == "shapes"
    assert model.input_shape == (None, 48, 40, 3)
    assert {w.dtype for w in model.weights} == {"float32"}
    assert describe_normalization(model) == describe_normalization(plain)
    other = build_resnet("resnet8", weights="shapes", normalization="imagenet")
    assert describe_normalization(other) != describe_normalization(plain)
    assert_same_weights(model, other)


def test_a_damaged_file_in_the_package_is_refused(monkeypatch):
    row = WEIGHTS["shapes", "resnet8"]
    damaged = dataclasses.replace(row, digest="sha256:0000")
    monkeypatch.setitem(WEIGHTS, ("shapes", "resnet8"), damaged)
    message = refused("resnet8", weights="shapes")
    assert "reinstall the package" in message


# --- Files


@pytest.fixture
def trained(tiny_model):
    """A net with weights and statistics that are not those of a new one."""
    model = tiny_model(num_classes=7)
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()]
    )
    return model


@pytest.mark.parametrize("grouped", [False, True])
def test_a_keras_file(grouped, monkeypatch, tiny_model, tmp_path):
    if grouped:
        monkeypatch.setattr(nets, "FLAT_BLOCKS", 2)
        monkeypatch.setattr(nets, "GROUP_BLOCKS", 2)
    trained, path = tiny_model(seed=1, num_classes=7), tmp_path / "net.keras"
    trained.save(path)
    model = build_resnet(**TINY, weights=path)
    assert model.output_shape == (None, 7)
    assert describe_normalization(model) == describe_normalization(trained)
    assert_same_weights(model, trained)
    assert model.pretrained == str(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pytorch_file(suffix, trained, tmp_path):
    pytest.importorskip("safetensors", reason="one of the formats")
    pytest.importorskip("torch", reason="the other")
    path = tmp_path / f"net{suffix}"
    save_torch_checkpoint(trained, path, "akamaster")
    assert "no normalization" not in refused(**TINY, weights=tmp_path / "a.pth")
    model = build_resnet(**TINY, weights=path)
    assert_same_weights(model, trained)
    plain = build_resnet(**TINY, normalization="imagenet")
    assert describe_normalization(model) == describe_normalization(plain)


def test_bad_weights_are_one_line(trained, tmp_path):
    path = tmp_path / "net.keras"
    trained.save(path)
    (tmp_path / "bad.keras").write_bytes(b"no zip")
    (tmp_path / "net.KERAS").touch()
    inputs = keras.Input((32, 32, 3))
    flat = keras.layers.Flatten()(inputs)
    other = keras.Model(inputs, keras.layers.Dense(3)(flat), name="other")
    other.save(tmp_path / "other.keras")
    renamed = keras.Model(other.inputs, other.outputs, name="resnet20")
    renamed.save(tmp_path / "renamed.keras")
    for words, arch, weights, arguments in (
        ("did you mean", "resnet20", "cifar11", {}),
        ("such as last.keras", "resnet20", tmp_path, {}),
        ("unknown weights ''", "resnet20", "", {}),
        ("the suffix must be", "resnet20", tmp_path / "net.KERAS", {}),
        ("download the file", "resnet20", "https://host/net.keras", {}),
        ("such as user/name", "resnet20", "hf://name", {}),
        (
            "are for 3 channels, not for input_shape=(32, 32, 1)",
            "resnet8",
            "Shapes",
            {"input_shape": (32, 32, 1)},
        ),
        ("num_classes='10'", "resnet8", "shapes", {"num_classes": "10"}),
        ("only for resnet8", "resnet20", "shapes", {}),
        (
            "only for resnet20-projection, resnet32",
            "resnet20",
            "chenyaofo/cifar10",
            {},
        ),
        ("have 10 classes, not 100", "resnet8", "shapes", {"num_classes": 100}),
        ("are for resnet8-custom, not for resnet20", "resnet20", path, {}),
        ("no model at", "resnet20", tmp_path / "absent.keras", {}),
        ("bad.keras is damaged", "resnet20", tmp_path / "bad.keras", {}),
        ("are for other", "resnet20", tmp_path / "other.keras", {}),
        (
            "have no layer named normalization",
            "resnet20",
            tmp_path / "renamed.keras",
            {},
        ),
        (
            "stem_conv/kernel has shape (3, 3, 3, 4), not (3, 3, 3, 8)",
            None,
            path,
            {"depth": 8, "widths": (8, 8, 16)},
        ),
    ):
        assert words in refused(arch, weights=weights, **arguments)


# --- Others', from a server


def pytorch_file(scheme):
    """A net of ours, and the content of its file in PyTorch's format."""
    torch = pytest.importorskip("torch", reason="the files are PyTorch's")
    references = pytest.importorskip("torch_references")
    shape = {"widths": (16, 32, 64), "blocks": (3, 3, 3)}
    net = references.randomized(references.Net(scheme, **shape))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    return net, file.getvalue()


@pytest.fixture(params=["chenyaofo", "imgclsmob"])
def host(request, tmp_path, monkeypatch):
    """A stand-in for GitHub with a file of the form of one project's.

    Attributes: the PyTorch `net` in it, the `content` that is served, the
    `status`, how many bytes to `cut` off, and the paths `requested`.
    """
    net, content = pytorch_file(request.param)
    row = WEIGHTS[f"{request.param}/cifar10", "resnet20-projection"]
    algorithm = row.digest.partition(":")[0]
    digits = hashlib.new(algorithm, content).hexdigest()
    if algorithm == "sha256":
        digits = digits[:8]
    if row.where.endswith(".zip"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            name = row.where.rpartition("/")[2].removesuffix(".zip")
            archive.writestr(name, content)
        content = file.getvalue()
    state = SimpleNamespace(
        name=row.name, net=net, content=content, status=200, cut=0, requested=[]
    )

    def answer(method, path, body):
        state.requested.append(path)
        whole = {"Content-Length": len(state.content)}
        kept = len(state.content) - state.cut
        return state.status, whole, state.content[:kept]

    with serve(answer) as address:
        there = dataclasses.replace(
            row,
            where=row.where.replace("https://github.com", address),
            digest=f"{algorithm}:{digits}",
        )
        monkeypatch.setitem(WEIGHTS, (row.name, row.arch), there)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        state.row, state.cache = there, tmp_path / "models"
        yield state


def load(host):
    return build_resnet("resnet20-projection", weights=host.name)


def test_a_published_checkpoint_is_fetched_once_and_converted(host, capsys):
    import torch
    import torch_references as references

    model = load(host)
    assert load(host).name == "resnet20-projection"
    assert len(host.requested) == 1
    assert capsys.readouterr().out == ""
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    with torch.no_grad():
        expected = host.net(references.normalized(images, mean, std)).numpy()
    # Another order of sums in float32, over 20 layers.
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(images)),
        expected,
        rtol=0,
        atol=1e-4 * abs(expected).max(),
    )


def cut(host):
    host.cut = 100


def change(host):
    middle = len(host.content) // 2
    flipped = bytes([host.content[middle] ^ 1])
    host.content = host.content[:middle] + flipped + host.content[middle + 1 :]


def serve_a_page(host):
    host.content = b"<html>Sign in</html>"


def forget(host):
    host.status, host.content = 404, b""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (cut, "got only"),
        (change, "its sha256 is|does not match its checksum|invalid zip file"),
        (serve_a_page, "its sha256 is|invalid zip file"),
        (forget, "404"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(fault, message, host):
    fault(host)
    line = refusal(load, host)
    assert line.startswith(f"cannot download {host.row.where}")
    assert re.search(message, line)
    assert list(host.cache.iterdir()) == []


def test_a_wrong_digest_is_refused(host, monkeypatch):
    algorithm = host.row.digest.partition(":")[0]
    other = dataclasses.replace(host.row, digest=f"{algorithm}:00000000")
    monkeypatch.setitem(WEIGHTS, (other.name, other.arch), other)
    assert f"its {algorithm} is" in refusal(load, host)
    assert list(host.cache.iterdir()) == []


def test_a_damaged_copy_in_the_cache_is_fetched_again(host):
    load(host)
    (copy,) = host.cache.iterdir()
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1])
    load(host)
    assert copy.read_bytes() == whole
    assert len(host.requested) == 2


def test_a_folder_that_is_not_writable_needs_no_download(host, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    line = refusal(load, host)
    assert line.startswith(f"cannot write {host.cache}")
    assert "Permission denied; choose a writable folder" in line
    assert host.requested == []


def test_a_zip_bomb_is_refused(host):
    if not host.row.where.endswith(".zip"):
        pytest.skip("the file is no zip")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"{i}", bytes(100_000_000))
    host.content = file.getvalue()
    assert "refused: it decompresses to" in refusal(load, host)
    assert list(host.cache.iterdir()) == []
