"""Publishing a run at the Hugging Face Hub: a server on this machine."""

import base64
import hashlib
import importlib
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import refusal, serve

from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training import hub as training_hub
from keras_resnet_cifar.training.hub import push_to_hub
from keras_resnet_cifar.training.train import train

NAME = "user/name"
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """A finished run of a net that has a name, from weights in a file."""
    folder = tmp_path_factory.mktemp("published")
    start = folder / "start.keras"
    build_resnet("resnet8", normalization="shapes").save(start)
    return train(
        build_resnet("resnet8", weights=start),
        tiny_data,
        output_dir=folder / "run",
        epochs=1,
        batch_size=128,
        verbose=False,
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the Hub.

    Attributes: the `files` of the repository, the paths `requested`, the
    `status` of all answers.
    """
    client = pytest.importorskip("huggingface_hub", reason="its own client")
    state = SimpleNamespace(files={}, requested=[], status=200, client=client)

    def answer(method, path, body):
        state.requested.append(path)
        if state.status != 200:
            return state.status, {}, b"{}"
        if "/resolve/" in path:
            content = state.files.get(path.rpartition("/")[2])
            if content is None:
                missing = {"X-Error-Code": "EntryNotFound"}
                return 404, missing, b""
            digest = hashlib.sha256(content).hexdigest()
            return 200, {"ETag": digest, "X-Repo-Commit": COMMIT}, content
        reply = {"url": f"{state.address}/{NAME}", "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            reply = {"files": [{"path": f["path"]} | mode for f in files]}
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    content = base64.b64decode(value["content"])
                    state.files[value["path"]] = content
            address = f"{state.address}/{NAME}/commit/{COMMIT}"
            reply = {"commitUrl": address, "commitOid": COMMIT}
        return (
            200,
            {"Content-Type": "application/json"},
            json.dumps(reply).encode(),
        )

    with serve(answer) as state.address:
        # The client reads this one when it is first imported.
        constants = importlib.import_module("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", state.address)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield state


def test_a_run_there_and_back(hub, run, capsys):
    assert push_to_hub(run, NAME) == f"{hub.address}/{NAME}"
    assert set(hub.files) == {
        "README.md",
        "config.json",
        "curves.png",
        "history.csv",
        "last.keras",
        "metrics.json",
    }
    config = json.loads(hub.files["config.json"])
    assert config["weights"] == "start.keras"
    assert "data_dir" not in config["request"]
    for name in ("config.json", "metrics.json", "README.md"):
        assert str(run.directory.parent) not in hub.files[name].decode()

    card = hub.client.ModelCard(hub.files["README.md"].decode())
    assert "best.keras" not in card.text
    test = run.metrics["last"]["test"]
    assert card.data.library_name == "keras"
    assert card.data.model_name == "name"
    top1, ece = card.data.eval_results
    assert top1.dataset_name == "shapes"
    assert (top1.metric_type, top1.metric_value) == ("accuracy", test["top1"])
    assert ece.metric_value == test["ece"]
    assert f'weights="hf://{NAME}"' in card.text

    other = run.config | {"arch": "finetuned-resnet8"}
    card = training_hub._card(
        hub.client, other, run.metrics["last"], NAME, "mit"
    )
    assert "load_model" in card.text and "build_resnet" not in card.text

    for _ in range(2):
        model = build_resnet("resnet8", weights=f"hf://{NAME}")
        for one, other in zip(
            model.get_weights(), run.model.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert capsys.readouterr().out == ""


def test_what_the_hub_refuses_is_one_line(hub, run, tmp_path):
    missing = refusal(build_from, f"hf://{NAME}")
    assert missing.startswith(f"cannot download last.keras of {NAME}")
    assert "404" in missing
    hub.status = 401
    line = refusal(push_to_hub, run.directory, NAME)
    assert line.startswith(f"cannot publish {run.directory} as {NAME}")
    assert "HF_TOKEN" in line
    assert "holds no run" in refusal(push_to_hub, tmp_path, NAME)
    assert "such as user/name" in refusal(push_to_hub, run.directory, "name")
    hub.status = 200
    for name, content in (
        ("metrics.json", None),
        ("metrics.json", b"{}"),
        ("last.keras", b"PK"),
    ):
        damaged = shutil.copytree(run.directory, tmp_path / "run")
        (damaged / name).unlink()
        if content is not None:
            (damaged / name).write_bytes(content)
        line = refusal(push_to_hub, damaged, NAME)
        assert line.startswith(f"{damaged} is not a finished run (")
        shutil.rmtree(damaged)
    assert hub.files == {}


def build_from(weights):
    return build_resnet("resnet8", weights=weights)


def test_without_the_client_one_line_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for action, arguments in (
        (build_from, [f"hf://{NAME}"]),
        (push_to_hub, [run, NAME]),
    ):
        assert "keras_resnet_cifar[huggingface]" in refusal(action, *arguments)
