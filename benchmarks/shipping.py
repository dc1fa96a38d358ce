"""Puts the weights of a finished run into the package, as float16."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet_cifar.data.downloads import file_digest
from keras_resnet_cifar.data.load import load_dataset
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation.evaluate import evaluate
from keras_resnet_cifar.files import make_folder, write_json, write_text
from keras_resnet_cifar.models.cloning import clone_with
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.models.saving import load_model, save_model
from keras_resnet_cifar.models.weights import (
    LARGEST,
    LARGEST_TOGETHER,
    SHIPPED,
    Weights,
    read_shipped,
)
from keras_resnet_cifar.training.model_card import model_card
from keras_resnet_cifar.training.recipes import RECIPES
from keras_resnet_cifar.training.run_directory import RunDirectory, identity

CARDS = Path(__file__).parents[1] / "docs" / "weights"


def ship(
    runs: Sequence[Path],
    name: str,
    data_dir: Path | None = None,
    shipped: Path = SHIPPED,
    cards: Path = CARDS,
    replace: bool = False,
) -> Weights:
    """Ships the last epoch of the first run; the others only add to the mean.

    Writes the file, its row in weights.json and its model card. Their accuracy
    is that of the file as loaded by `build_resnet`. `data_dir` is the folder of
    the dataset, if it has moved. Raises `InputError` if a run is not finished,
    the runs differ in more than their seed, the file is too large, or it exists
    and `replace` is false.
    """
    run, config, metrics = _read(runs)
    recipe, arch = config["recipe"], config["arch"]
    if (shipped / f"{name}-{arch}.keras").exists() and not replace:
        raise InputError(
            f"name={name} exists for {arch}: choose another, or give "
            "replace=True"
        )
    moved = {"data_dir": str(data_dir)} if data_dir else {}
    data = load_dataset(**config["request"] | moved)
    make_folder(cards)
    path = shipped / f"{name}-{arch}.keras"
    clone = clone_with(load_model(run.last), _as_float16)
    clone.class_names = data.class_names
    with tempfile.TemporaryDirectory(dir=shipped) as folder:
        staged = Path(folder, path.name)
        save_model(clone, staged)
        size = _checked_size(staged, path)
        model = build_resnet(arch, weights=staged)
        result = evaluate(model, data.test, data.class_names)
        staged.replace(path)
    row = Weights(
        name=name,
        arch=arch,
        dataset=data.name,
        recipe=recipe["name"],
        epochs=recipe["epochs"],
        top1=result.top1,
        top1_mean=float(np.mean([m["last"]["test"]["top1"] for m in metrics])),
        seeds=len(runs),
        normalization=recipe["normalization"] or data.name,
        size=size,
        digest=f"sha256:{file_digest(path, 'sha256')}",
        licence="Apache-2.0",
        where=path.name,
    )
    key = (row.name, row.arch)
    rows = [r for r in read_shipped(shipped) if (r.name, r.arch) != key]
    rows = sorted([*rows, row], key=lambda row: row.where)
    write_json(shipped / "weights.json", [asdict(row) for row in rows])
    if known := RECIPES.get(recipe["name"]):
        recipe["expected"] = known.expected  # newer than the run's
    epoch = metrics[0]["last"]["epoch"]
    measured = {path.stem: {"epoch": epoch, "test": result.to_json()}}
    files = "These are the weights of the last epoch, as float16."
    card = model_card(config, epoch, measured, _use(row), files)
    write_text(cards / f"{path.stem}.md", card)
    return row


def _read(runs):
    """Returns the first run, its config, and the metrics of all runs."""
    configs, metrics = [], []
    for path in runs:
        run = RunDirectory(path)
        configs.append(run.read_config())
        if not (run.metrics.is_file() and run.last.is_file()):
            raise InputError(f"{path} is not finished: resume it first")
        metrics.append(json.loads(run.metrics.read_text("utf-8")))
        keys = {
            (identity(config | {"seed": 0}), config["recipe"]["epochs"])
            for config in configs
        }
        if len(keys) > 1:
            raise InputError(
                f"{path} differs from {runs[0]} in more than its seed: omit it"
            )
    if len({config["seed"] for config in configs}) < len(runs):
        raise InputError("two runs have the same seed: omit one of them")
    return RunDirectory(runs[0]), configs[0], metrics


def _as_float16(
    layer: keras.layers.Layer, config: dict[str, Any]
) -> tuple[type, dict]:
    return type(layer), config | ({"dtype": "float16"} if layer.weights else {})


def _checked_size(staged, path):
    """Returns the bytes of a file that will replace the one at `path`."""
    size = staged.stat().st_size
    others = {*path.parent.glob("*.keras")} - {path}
    total = size + sum(file.stat().st_size for file in others)
    if size > LARGEST or total > LARGEST_TOGETHER:
        raise InputError(
            f"{path} has {size:,} bytes, and all together {total:,}: ship a "
            f"smaller net (limits: {LARGEST:,} and {LARGEST_TOGETHER:,})"
        )
    return size


def _use(row):
    return f"""\
    import keras_resnet_cifar as krc
    model = krc.build_resnet("{row.arch}", weights="{row.name}")
    logits = model.predict(images)

The file {row.where}, {row.size:,} bytes, {row.digest}, licence {row.licence},
is part of the package. The mean top-1 of runs by this recipe, before
rounding to float16, is {row.top1_mean:.2%} (seeds: {row.seeds}).
"""
