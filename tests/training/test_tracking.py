"""Trackers: params, metrics of each epoch, pictures, one run on resume."""

import json
from typing import ClassVar

import pytest
from helpers import refusal
from PIL import Image

import keras_resnet_cifar as krc
from keras_resnet_cifar.training import tracking
from keras_resnet_cifar.training.run_directory import RunDirectory

SHORT = {"recipe": "onecycle", "batch_size": 64, "verbose": False}
SHORT |= {"schedule": "constant"}  # so that more epochs are allowed


class Recorder:
    """A tracker that keeps what it is sent; `fails` names a method."""

    seen: ClassVar[list] = []
    fails = ""

    def __init__(self, folder, params, run):
        self._call("begin", params["recipe.name"], run)
        self.run = run or "run 1"

    def _call(self, *what):
        self.seen.append(what)
        if what[0] == self.fails:
            raise OSError("no\nnetwork")

    def log(self, values, step):
        self._call("log", sorted(values), step)

    def finish(self, pictures, card):
        assert all(path.is_file() for path in (*pictures, card))
        self._call("finish")

    def close(self, failed):
        self._call("close", failed)


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "seen", [])
    monkeypatch.setitem(tracking.TRACKERS, "json", Recorder)  # is installed
    return Recorder


def steps(recorder):
    return [what[-1] for what in recorder.seen if what[0] == "log"]


@pytest.mark.slow
def test_a_run_and_its_continuation(recorder, tiny_model, tiny_data, tmp_path):
    out = {"output_dir": tmp_path / "run", "track": "json"}
    krc.train(tiny_model(), tiny_data, epochs=2, **out, **SHORT)
    kinds = [what[0] for what in recorder.seen]
    assert kinds == ["begin", "log", "log", "log", "finish", "close"]
    assert recorder.seen[0] == ("begin", "onecycle", None)
    first, _, test = (what[1] for what in recorder.seen[1:4])
    assert {"loss", "val_accuracy", "learning_rate"} <= set(first)
    assert test == ["test_ece", "test_loss", "test_top1", "test_top5"]
    assert recorder.seen[-1] == ("close", False)

    recorder.seen.clear()
    krc.train(tiny_model(), tiny_data, epochs=3, resume=True, **out, **SHORT)
    assert recorder.seen[0] == ("begin", "onecycle", "run 1")
    assert steps(recorder) == [3, 3]


@pytest.mark.parametrize("method", ["begin", "log", "finish", "close"])
def test_a_run_goes_on_without_a_tracker_that_fails(
    method, recorder, monkeypatch, tmp_path
):
    monkeypatch.setattr(recorder, "fails", method)
    directory = RunDirectory(tmp_path)
    config = {"recipe": {"name": "fast"}}
    with (
        pytest.warns(UserWarning, match=r"^json failed \(OSError: no network"),
        tracking.Tracking(["json"], directory, config) as run,
    ):
        run.log(0, {"loss": 1.0, "broken": float("nan"), "none": None})
        run.log(1, {"loss": 0.5})
        directory.curves.write_bytes(b"")
        directory.card.write_text("")
        run.finish({}, 2)
    assert [what[0] for what in recorder.seen].count(method) == 1
    assert recorder.seen[-1][0] == method
    if method == "log":
        assert recorder.seen[-1] == ("log", ["loss"], 1)


def test_a_run_that_is_stopped_ends_as_failed(recorder, tmp_path):
    config = {"recipe": {"name": "fast"}}
    with (
        pytest.raises(KeyboardInterrupt),
        tracking.Tracking(["json"], RunDirectory(tmp_path), config),
    ):
        raise KeyboardInterrupt
    assert recorder.seen[-1] == ("close", True)


def test_what_cannot_be_followed(recorder, monkeypatch, tmp_path):
    check = tracking.check_trackers
    check(["json"], tmp_path)
    assert "did you mean tensorboard" in refusal(check, ["tensorbord"], "run")
    assert "output_dir=" in refusal(check, ["json"], None)
    monkeypatch.setitem(tracking.TRACKERS, "no_such_package", None)
    line = refusal(check, ["no_such_package"], "run")
    assert "pip install" in line
    # A folder that a tracker makes is not the tracker.
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal(check, ["no_such_package"], "run") == line


@pytest.fixture
def followed(tmp_path):
    """Follows a run of an epoch, then its continuation, by a tracker."""
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    Image.new("RGB", (8, 8), "red").save(run.curves)
    run.card.write_text("# A card")
    config = {"recipe": {"name": "fast", "epochs": 1}, "seed": 0}

    def follow(tracker):
        for epoch in range(2):
            config["recipe"]["epochs"] = epoch + 1
            with tracking.Tracking([tracker], run, config) as followed:
                followed.log(epoch, {"loss": 1 / (epoch + 1)})
                test = {"top1": 0.5, "top5": 1, "loss": 2, "ece": 0.1}
                followed.finish({"last": {"test": test}}, epoch + 1)
        return run

    return follow


def test_tensorboard(followed):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    run = followed("tensorboard")
    events = event_accumulator.EventAccumulator(
        str(run.path / "tensorboard"), {"images": 0, "tensors": 0}
    ).Reload()
    rows = [(row.step, row.value) for row in events.Scalars("loss")]
    assert rows == [(1, 1.0), (2, 0.5)]
    assert [row.value for row in events.Scalars("test_top1")] == [0.5, 0.5]
    picture = events.Images("curves")[-1].encoded_image_string
    assert picture == run.curves.read_bytes()
    (card,) = events.Tensors("model card")[-1].tensor_proto.string_val
    assert card == b"# A card"
    (params,) = events.Tensors("params")[-1].tensor_proto.string_val
    assert b"| recipe.name | fast |" in params


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy 2.1
def test_mlflow(followed, tmp_path, monkeypatch):
    """In its local store."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    followed("mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs(["0"])
    assert found.info.status == "FINISHED"
    assert found.data.params["recipe.name"] == "fast"
    rows = client.get_metric_history(found.info.run_id, "loss")
    assert [(row.step, row.value) for row in rows] == [(1, 1.0), (2, 0.5)]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"curves.png", "README.md"}


@pytest.mark.slow
def test_wandb_offline(followed, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = followed("wandb")
    name = json.loads((run.path / "tracking.json").read_text())["wandb"]
    parts = list(run.path.glob(f"wandb/offline-run-*-{name}/*.wandb"))
    assert len(parts) == 2
    for part in parts:
        assert list(part.parent.rglob("README.md"))


@pytest.mark.slow
def test_trackio(followed, tmp_path, monkeypatch):
    """In its local store."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    run = followed("trackio")
    name = json.loads((run.path / "tracking.json").read_text())["trackio"]
    (found,) = trackio.Api().runs("keras_resnet_cifar")
    assert found.name == name
    assert found.config["recipe.name"] == "fast"
    store = trackio.SQLiteStorage
    rows = store.get_logs("keras_resnet_cifar", name, run_id=found.id)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert losses == [(1, 1.0), (2, 0.5)]
    assert {"curves", "model card"} <= {key for row in rows for key in row}
