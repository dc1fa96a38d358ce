"""`scripts/ship_weights.py`: finished runs to a file, a row and a card."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import refusal

from benchmarks import shipping
from keras_resnet_cifar.data.load import Split, load_dataset
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.weights import read_shipped
from keras_resnet_cifar.training.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in their seed, on a few images."""
    folder = tmp_path_factory.mktemp("runs")
    data = load_dataset("shapes")
    train_split = Split(data.train.images[:256], data.train.labels[:256])
    few = dataclasses.replace(data, train=train_split)
    for seed in (0, 1):
        train(
            build_resnet("resnet8", normalization="shapes"),
            few,
            output_dir=folder / str(seed),
            seed=seed,
            epochs=1,
            batch_size=128,
            verbose=False,
        )
    return [folder / "0", folder / "1"]


@pytest.fixture
def folders(tmp_path):
    """An empty package's folder, and that of the cards."""
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "weights.json").write_text("[]")
    return {"shipped": tmp_path / "shipped", "cards": tmp_path / "cards"}


@pytest.mark.slow
def test_runs_are_shipped(runs, folders, tmp_path):
    row = shipping.ship(runs, "few", **folders)
    assert (row.name, row.arch, row.dataset) == ("few", "resnet8", "shapes")
    path = folders["shipped"] / row.where
    assert path.stat().st_size == row.size < 300_000  # float32 has 417,000
    metrics = [json.loads((r / "metrics.json").read_text()) for r in runs]
    scores = [m["last"]["test"]["top1"] for m in metrics]
    assert row.top1_mean == pytest.approx(np.mean(scores))
    assert row.top1 == pytest.approx(scores[0], abs=0.01)
    assert row.seeds == 2
    model = build_resnet("resnet8", weights=path)
    last = build_resnet("resnet8", weights=runs[0] / "last.keras")
    for one, other in zip(model.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other.astype("float16"))
    card = (folders["cards"] / "few-resnet8.md").read_text()
    for words in (row.digest, f"{row.top1:.2%}", "| crescent | 200 |"):
        assert words in card
    # Once more: the row is replaced. What a recipe says of itself may change.
    other = shutil.copytree(runs[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["recipe"]["expected"] = "more by now"
    del config["sha256"]
    (other / "config.json").write_text(json.dumps(config))
    again = shipping.ship([runs[0], other], "few", **folders, replace=True)
    assert read_shipped(folders["shipped"]) == [again]


@pytest.mark.slow
def test_what_is_not_shipped(runs, folders, tmp_path, monkeypatch):
    assert "same seed" in refused([runs[0], runs[0]], folders)
    unfinished = shutil.copytree(runs[1], tmp_path / "unfinished")
    (unfinished / "metrics.json").unlink()
    assert "is not finished" in refused([unfinished], folders)
    other = shutil.copytree(runs[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    del config["sha256"]
    for field, value in (("momentum", 0.8), ("epochs", 9)):
        changed = config | {"recipe": config["recipe"] | {field: value}}
        (other / "config.json").write_text(json.dumps(changed))
        assert "more than its seed" in refused([runs[0], other], folders)
    monkeypatch.setattr(shipping, "LARGEST", 100_000)
    assert "ship a smaller net" in refused(runs, folders)
    assert {p.name for p in folders["shipped"].iterdir()} == {"weights.json"}
    (folders["shipped"] / "few-resnet8.keras").write_text("shipped")
    assert "or give replace=True" in refused(runs, folders)


def refused(runs, folders):
    return refusal(lambda: shipping.ship(runs, "few", **folders))


def test_each_shipped_file_has_a_card():
    for row in read_shipped():
        card = (shipping.CARDS / row.where).with_suffix(".md").read_text()
        assert row.digest in card
        assert f"{row.top1:.2%}" in card
