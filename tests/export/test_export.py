"""Exports: where they go, what is in them, what is left when one fails."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess

import keras
import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.cli import main as cli
from keras_resnet_cifar.data.load import load_dataset
from keras_resnet_cifar.errors import ExportFailed, InputError
from keras_resnet_cifar.evaluation import metrics
from keras_resnet_cifar.evaluation.calibration import fit_temperature
from keras_resnet_cifar.evaluation.evaluate import logits_of
from keras_resnet_cifar.export import export
from keras_resnet_cifar.export.export import export_model, export_saved_model
from keras_resnet_cifar.export.verify import open_saved_model
from keras_resnet_cifar.models.saving import save_model
from keras_resnet_cifar.training.train import Run

needs_tensorflow = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"),
    reason="TensorFlow, which writes exports, is not installed",
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


def command(*arguments):
    return cli.main(["export", *map(str, arguments)])


@pytest.fixture
def run_directory(model, tiny_cifar, tmp_path):
    """What `train` leaves, as far as an export reads it."""
    folder = tmp_path / "run"
    folder.mkdir()
    request = {
        "name": "cifar10",
        "data_dir": str(tiny_cifar),
        "allow_unverified": True,
    }
    prints = load_dataset(**request).fingerprints
    config = {
        "arch": "resnet8",
        "parameters": 1,
        "dataset": {"name": "cifar10", "fingerprints": prints},
        "recipe": {},
        "seed": 0,
        "precision": "float32",
        "request": request,
        "backend": "tensorflow",
        "versions": {},
    }
    (folder / "config.json").write_text(json.dumps(config))
    model.save(folder / "last.keras")
    return folder


# --- The real thing, verified in a process of its own


@needs_tensorflow
def test_a_saved_model_from_any_backend(exported):
    folder, _, result = exported("saved_model")
    assert result.path == folder / "1"
    names = files(result.path)
    assert "saved_model.pb" in names
    warmup = "assets.extra/tf_serving_warmup_requests"
    assert (warmup in names) == bool(
        importlib.util.find_spec("tensorflow_serving")
    )
    assert result.size == sum(os.path.getsize(result.path / f) for f in names)
    assert (result.count, result.same_class) == (64, 64)
    assert result.difference <= 1e-5
    assert result.top1 == result.keras_top1
    assert files(folder.parent) == [f"net/1/{name}" for name in names]


@on_tensorflow
@pytest.mark.parametrize(
    ("format", "name"), [("onnx", "model.onnx"), ("litert", "model.tflite")]
)
def test_onnx_and_litert(format, name, exported, tiny_data):
    folder, _, result = exported(format)
    assert result.path == folder / format / "1"
    assert files(result.path) == ["labels.txt", name]
    labels = (result.path / "labels.txt").read_text().splitlines()
    assert tuple(labels) == tiny_data.class_names
    assert result.same_class == 64


@on_tensorflow
def test_an_onnx_graph_has_one_input_and_any_batch(exported):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    _, _, result = exported("onnx")
    graph = onnx.load(result.path / "model.onnx").graph
    shapes = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"image": "batch", "probabilities": "batch"}


@on_tensorflow
@pytest.mark.slow
def test_int8_of_a_run_by_command(run_directory, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert", reason="it is not installed")
    out = tmp_path / "net"
    options = ["--format", "litert", "--int8", "--out", out]
    assert command(run_directory, *options) == 0
    assert files(out) == [
        "litert-int8/1/labels.txt",
        "litert-int8/1/model.tflite",
    ]
    assert b"airplane" in (out / "litert-int8/1/labels.txt").read_bytes()
    printed = capsys.readouterr().out
    assert f"wrote {out}/litert-int8/1: litert int8, " in printed
    assert "verified on 64 test images of cifar10" in printed
    assert "images/s" in printed
    interval = r"top-1 [\d.]+% \([\d.]+% to [\d.]+%\); "
    assert len(re.findall(interval, printed)) == 2


@on_tensorflow
@pytest.mark.slow
def test_a_deep_net_stays_within_the_tolerance(tiny_data, tmp_path):
    from keras_resnet_cifar.models.resnet import build_resnet

    keras.utils.set_random_seed(0)
    deep = build_resnet("resnet56", num_classes=10)
    result = export_saved_model(deep, tmp_path / "net", data=tiny_data)
    assert result.same_class == 64


@pytest.mark.slow
@on_tensorflow
def test_the_model_is_left_as_it_was_and_nothing_printed(
    model, tiny_data, tmp_path, monkeypatch, capfd
):
    def state():
        return {
            layer: dict(vars(layer)) for layer in (model, *model.layers)
        }, model.get_weights()

    assert model.jit_compile in (True, False)  # Keras stores it when it saves
    nodes = [len(layer._inbound_nodes) for layer in (model, *model.layers)]
    before, weights = state()
    unverified(monkeypatch)
    export_saved_model(model, tmp_path / "net", data=tiny_data)
    assert capfd.readouterr() == ("", "")
    after, new_weights = state()
    assert before == after
    assert nodes == [len(x._inbound_nodes) for x in (model, *model.layers)]
    for one, other in zip(weights, new_weights, strict=True):
        np.testing.assert_array_equal(one, other)


@on_tensorflow
@pytest.mark.slow
def test_a_sequential_model(tmp_path, monkeypatch):
    sequential = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    unverified(monkeypatch)
    export_saved_model(sequential, tmp_path / "net")
    assert "1/saved_model.pb" in files(tmp_path / "net")


@pytest.mark.slow
@on_tensorflow
def test_a_file_that_cannot_be_written_whole(run_directory, tmp_path):
    """As on a full disk: the system refuses TensorFlow's writes."""
    resource = pytest.importorskip("resource", reason="Windows has no limits")
    out = tmp_path / "models" / "net"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        line = refusal(lambda: export_saved_model(run_directory, out, images=8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.startswith(f"cannot write {out}: ")
    assert not (tmp_path / "models").exists()


@on_tensorflow
def test_a_damaged_model(run_directory, tmp_path):
    (run_directory / "last.keras").write_text("no model")
    line = refusal(export_saved_model, run_directory, tmp_path / "net")
    assert "last.keras is damaged" in line
    assert not (tmp_path / "net").exists()


def softmax_of(model, images, temperature=1.0):
    return metrics.softmax(logits_of(model, images) / temperature)


@pytest.mark.slow
@needs_tensorflow
def test_a_calibrated_graph_divides_by_the_temperature(
    model, tiny_data, tmp_path
):
    held_out, images = tiny_data.validation, tiny_data.test.images
    temperature = fit_temperature(
        logits_of(model, held_out.images), held_out.labels
    )
    result = export_saved_model(
        model,
        tmp_path / "net",
        data=tiny_data,
        calibrated=True,
        batch_sizes=(1, 3),
    )
    assert result.same_class == 64
    for latencies in (result.latency_ms, result.keras_latency_ms):
        assert len(latencies) == 2
        assert min(latencies) > 0
    run, _ = open_saved_model(str(result.path))
    np.testing.assert_allclose(
        run(images)["probabilities"],
        softmax_of(model, images, temperature),
        atol=1e-5,
    )
    apart = softmax_of(model, images) - softmax_of(model, images, temperature)
    assert np.abs(apart).max() > 1e-3
    card = (result.path / "README.md").read_text()
    assert f"divides the logits by {temperature:.4f}" in card
    assert "fitted on the 64 images" in card


# --- Where it goes: with a writer and a check that do nothing


MEASURES = {
    "count": 64,
    "same_class": 1,
    "difference": 0.0,
    "images_per_second": 1.0,
}
run_python = export._run_python


def unverified(monkeypatch, convert=run_python):
    """Replaces the check and, if given, the conversion."""

    def run(failure, flag, module, format, folder, *arguments):
        if flag == "-m":
            convert(failure, flag, module, format, folder, *arguments)
        else:
            path = arguments[0] / "measures.json"
            path.write_text(json.dumps(MEASURES))

    monkeypatch.setattr(export, "_run_python", run)


@pytest.fixture
def quick(monkeypatch):
    """Replaces conversion and check; returns the requests for conversion."""
    requests = []

    def convert(failure, flag, module, format, folder, target, scratch):
        with np.load(scratch / "sample.npz") as arrays:
            requests.append({"format": format, "target": target, **arrays})
        (folder / "model").write_text("model")

    unverified(monkeypatch, convert)
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    return requests


def test_versions(quick, model, tiny_data, tmp_path):
    out = tmp_path / "net"

    def version(path=out, format="saved_model", **kwargs):
        result = export_model(model, path, format, data=tiny_data, **kwargs)
        return str(result.path.relative_to(tmp_path))

    assert version() == "net/1"
    assert version() == "net/2"
    assert version(out / "7") == "net/7"
    (out / "tmp").mkdir()
    assert version() == "net/8"
    assert version(format="onnx") == "net/onnx/1"
    assert version(format="litert") == "net/litert/1"
    assert version(format="litert", int8=True) == "net/litert-int8/1"
    assert version(out / "9", "onnx") == "net/9"
    with pytest.raises(InputError, match="net/8 already exists"):
        version(out / "8")
    assert all(not path.name.startswith(".") for path in out.iterdir())


def test_a_version_taken_in_the_meantime(quick, model, tmp_path, monkeypatch):
    """Two exports at once get two numbers."""
    move_folder = export.move_folder

    def move_second(staged, place):
        if place.name == "1":
            place.mkdir()
            (place / "model").write_text("another's")
        move_folder(staged, place)

    monkeypatch.setattr(export, "move_folder", move_second)
    result = export_saved_model(model, tmp_path / "net")
    assert result.path == tmp_path / "net" / "2"
    assert (tmp_path / "net" / "1" / "model").read_text() == "another's"


def test_a_model_without_a_run(quick, model, tmp_path):
    """Drawn images, and numbers for names; nothing to calibrate on."""
    result = export_saved_model(model, tmp_path / "net")
    assert result.images == "drawn images"
    assert result.top1 is None
    assert list(quick[-1]["class_names"]) == [str(i) for i in range(10)]
    assert len(repr(result)) < 400
    with pytest.raises(InputError, match="needs training images to calibrate"):
        export_model(model, tmp_path / "net", "litert", int8=True)


def test_a_file_names_its_classes(quick, tiny_model, tmp_path):
    model, names = tiny_model(), tuple("abcdefghij")
    model.class_names = names
    save_model(model, tmp_path / "net.keras")
    export_saved_model(tmp_path / "net.keras", tmp_path / "net")
    export_model(model, tmp_path / "net", "tflite")
    for request in quick:
        assert tuple(request["class_names"]) == names
    assert quick[-1]["format"] == "litert"


def test_classes_with_other_numbers_are_refused(
    quick, tiny_model, tiny_data, tmp_path
):
    model = tiny_model()
    model.class_names = tiny_data.class_names[::-1]
    line = refusal(
        lambda: export_model(model, tmp_path / "net", data=tiny_data)
    )
    assert "is class" in line


def test_batch_sizes_below_1_are_refused(quick, model, tmp_path):
    with pytest.raises(InputError, match="batch_sizes=0: must be at least 1"):
        export_saved_model(model, tmp_path / "net", batch_sizes=(8, 0))
    assert not (tmp_path / "net").exists()


def test_a_run_object(quick, model, run_directory, tmp_path):
    config = json.loads((run_directory / "config.json").read_text())
    run = Run(model, [], {}, config, None)
    result = export_saved_model(run, tmp_path / "net")
    assert result.images == "test images of cifar10"


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_run_on_arrays(from_disk, quick, run_directory, tiny_model, tmp_path):
    """The names of its config; drawn images of the size that its net takes."""
    names = [f"kind {index}" for index in range(10)]
    path = run_directory / "config.json"
    config = json.loads(path.read_text())
    config |= {"request": {}, "dataset": {"name": "own", "class_names": names}}
    path.write_text(json.dumps(config))
    model = tiny_model(input_shape=(48, 40, 3))
    model.save(run_directory / "last.keras")
    run = Run(model, [], {}, config, None)
    result = export_saved_model(
        run_directory if from_disk else run, tmp_path / "net"
    )
    assert result.images == "drawn images"
    assert quick[-1]["images"].shape == (256, 48, 40, 3)
    assert list(quick[-1]["class_names"]) == names


def test_data_without_a_test_split(quick, model, tiny_data, tmp_path):
    data = dataclasses.replace(tiny_data, test=None)
    act = functools.partial(export_saved_model, data=data)
    assert "no test split" in refusal(act, model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_data_of_the_run_and_instead_of_it(
    quick, run_directory, tiny_data, tmp_path, monkeypatch
):
    requests = []

    def load(**request):
        requests.append(request)
        return tiny_data

    monkeypatch.setattr(export, "load_dataset", load)
    own = json.loads((run_directory / "config.json").read_text())["request"]
    for data, request in (
        (None, own),
        ({"data_dir": "/elsewhere"}, own | {"data_dir": "/elsewhere"}),
        ({"name": "shapes"}, {"name": "shapes"}),
    ):
        export_saved_model(
            run_directory, tmp_path / "net", data=data, allow_changed_data=True
        )
        assert requests[-1] == request
        assert tuple(quick[-1]["class_names"]) == tiny_data.class_names
    line = refusal(export_saved_model, run_directory, tmp_path / "net")
    assert "(test, train) have changed since the run was trained" in line


def test_the_card_of_a_calibrated_export(
    quick, run_directory, tiny_data, tmp_path
):
    """It is the run's, and says what was measured."""
    (run_directory / "README.md").write_text("# A card\n")
    options = {"data": tiny_data, "calibrated": True}
    result = export_saved_model(run_directory, tmp_path / "net", **options)
    card = (result.path / "README.md").read_text()
    assert card.startswith("# A card\n\n## Temperature\n\nThe exported model")
    assert (
        "On the 64 images of the test split, the expected calibration" in card
    )
    without = dataclasses.replace(tiny_data, validation=None)
    act = functools.partial(export_saved_model, data=without, calibrated=True)
    assert "validation=5000" in refusal(act, run_directory, tmp_path / "net")


def test_calibration_images_are_of_the_train_split(
    quick, model, tiny_data, tmp_path
):
    export_model(
        model, tmp_path / "net", "litert", int8=True, data=tiny_data, images=3
    )
    assert len(quick[-1]["images"]) == 3
    train = {image.tobytes() for image in tiny_data.train.images}
    calibration = {image.tobytes() for image in quick[-1]["calibration"]}
    assert calibration == train  # of 256 images; 500 would be the most


def test_a_check_that_fails_exits_with_1_and_leaves_nothing(
    quick, run_directory, tmp_path, capfd, monkeypatch
):
    def fail(command, **_):
        code, message = 0, ""
        if "-P" in command:
            code, message = 1, "1 of 64 images get another class\n"
        return subprocess.CompletedProcess(command, code, "", message)

    monkeypatch.setattr(export, "_run_python", run_python)
    monkeypatch.setattr(subprocess, "run", fail)
    out = tmp_path / "models" / "net"
    assert command(run_directory, "--out", out) == 1
    err = capfd.readouterr().err
    assert err == (
        f"error: {out}: the saved_model model failed its check and was "
        "removed: 1 of 64 images get another class\n"
    )
    assert not (tmp_path / "models").exists()


def test_interrupted(quick, run_directory, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_run_python", interrupt)
    assert command(run_directory, "--out", tmp_path / "net") == 130
    assert not (tmp_path / "net").exists()


ENDINGS = {
    "crash": (-6, "LLVM ERROR", ExportFailed, "cannot export to onnx: LLVM"),
    "silent crash": (-9, "", ExportFailed, r"no message \(exit code -9\)"),
    "exception": (1, "KeyError: 1\n", ExportFailed, "KeyError: 1"),
    "bad input": (2, "notice\nno space left\n", InputError, "^no space left$"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_converter_that_fails(ending, model, tmp_path, monkeypatch):
    """However its process ends: one line, and no files."""
    code, stderr, error, message = ENDINGS[ending]
    process = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: process)
    with pytest.raises(error, match=message) as caught:
        export_model(model, tmp_path / "net", "onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net").exists()


@keras.saving.register_keras_serializable()
class Custom(keras.layers.Layer):
    def call(self, x):
        return x


class Unsaved(Custom):
    def get_config(self):
        raise KeyError("no\nconfig")


@needs_tensorflow
@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        pytest.param(
            Custom,
            InputError,
            "^give a model of Keras's own layers; ",
            marks=pytest.mark.slow,
        ),
        (Unsaved, ExportFailed, "^cannot export to saved_model: KeyError"),
    ],
)
def test_a_model_that_cannot_be_converted(layer, error, message, tmp_path):
    model = keras_model()
    model = keras.Model(model.inputs, layer()(model.output))
    with pytest.raises(error, match=message) as caught:
        export_saved_model(model, tmp_path / "net")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net").exists()


def keras_model(**head):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, **head)(x))


# --- Bad input


@pytest.mark.parametrize("missing", ["tensorflow", "onnxruntime", "tf2onnx"])
def test_a_missing_package(missing, model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: name != missing)
    with pytest.raises(InputError, match=f"onnx needs.*install {missing}"):
        export_model(model, tmp_path / "net", "onnx")
    assert not (tmp_path / "net").exists()


def test_a_model_with_probabilities_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    model = keras_model(activation="softmax")
    assert "softmax" in refusal(export_saved_model, model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


BAD = {
    "checkpoint": ("remove_last", {}, "last.keras"),
    "no run": ("", {"model_or_run": "{folder}/none"}, "{folder}/none"),
    "format": ("", {"format": "tfjs"}, "saved_model"),
    "int8": ("", {"int8": True}, "litert"),
    "images": ("", {"images": 0}, "images=0"),
    "target exists": ("", {"path": "{folder}/run/3"}, "already exists"),
    "target is a file": ("", {"path": "{folder}/file"}, "is a file"),
    "unwritable": ("", {"path": "/proc/net/x"}, "/proc/net"),
    "unwritable folder": ("", {"path": "/proc/self"}, "/proc/self"),
    "dataset": ("", {"data": {"name": "mnist"}}, "cifar10"),
    "data": ("", {"data": {"data_dir": "/nowhere"}}, "/nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    name, run_directory, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    action, changes, word = BAD[name]
    (tmp_path / "file").touch()
    (run_directory / "3").mkdir()
    if action == "remove_last":
        (run_directory / "last.keras").unlink()
    before = files(tmp_path)
    request = {"model_or_run": run_directory, "path": tmp_path / "net"}
    request |= {
        key: value.format(folder=tmp_path) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    line = refusal(lambda: export_model(**request))
    assert word.format(folder=tmp_path) in line
    assert files(tmp_path) == before
