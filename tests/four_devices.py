"""Trains a small net on four virtual CPU devices, and prints what it found.

    export XLA_FLAGS=--xla_force_host_platform_device_count=4 KERAS_BACKEND=jax
    PYTHONPATH=.:tests python tests/four_devices.py FOLDER

JAX fixes the number of CPU devices when it starts: `test_data_parallel.py` runs
this as a process of its own. It prints one JSON object; FOLDER receives the
runs.
"""

import contextlib
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import jax
import keras
import numpy as np
from helpers import TINY

from keras_resnet_cifar.data import shapes
from keras_resnet_cifar.data.batches import ShuffledBatches
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.load import Dataset, Split
from keras_resnet_cifar.finetuning.finetune import build_finetuned, finetune
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training import compilation
from keras_resnet_cifar.training.compilation import compile_for_training
from keras_resnet_cifar.training.jax_steps import compiled
from keras_resnet_cifar.training.recipes import get_recipe
from keras_resnet_cifar.training.train import train

DEVICES = 4
RECIPES = sys.argv[2:] or ["fast"]


class Fault(RuntimeError):
    pass


class FailAt(keras.callbacks.Callback):
    """Fails before a group of steps."""

    def __init__(self, group):
        super().__init__()
        self.left = group

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise Fault


def data_of(train_images, validation=0, test=0):
    counts = (train_images, validation, test)
    images, labels = shapes.draw(sum(counts), seed=0)
    parts = np.split(np.arange(len(images)), np.cumsum(counts)[:2])
    train_split, *held_out = (Split(images[i], labels[i]) for i in parts)
    validation, test = (split if len(split) else None for split in held_out)
    return Dataset(
        name="shapes",
        train=train_split,
        validation=validation,
        test=test,
        class_names=DATASETS["shapes"].class_names,
        source="drawn for the tests",
        fingerprints={},
        verified=True,
        request={},
    )


def run(data, folder=None, **settings):
    keras.utils.set_random_seed(0)
    settings = {
        "recipe": "strong",  # mixes images of the batch, averages weights
        "batch_size": 32,
        "epochs": 2,
        "learning_rate": 0.01,
        "precision": "float32",
        "verbose": False,
    } | settings
    model = build_resnet(**TINY, normalization="shapes")
    return train(model, data, output_dir=folder, **settings)


def tuned(devices):
    """A small backbone at 224 pixels: a step of the head, a step of all."""
    keras.utils.set_random_seed(0)
    model = build_finetuned("resnet8", 10, weights="shapes", image_size=224)
    settings = {"head_epochs": 1, "epochs": 1, "batch_size": 32}
    settings |= {"precision": "float32", "devices": devices, "verbose": False}
    return finetune(model, data_of(32), **settings)


def difference(one, other):
    """Largest difference between the weights of two runs."""
    pairs = zip(one.model.get_weights(), other.model.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def collectives(recipe):
    """`[(operation, result), ...]` of the compiled group of train steps."""
    data = data_of(64)
    chosen = get_recipe(recipe, batch_size=32, precision="float32")
    feed = ShuffledBatches(data.train, 10, 32, seed=0)
    net = build_resnet(**TINY, normalization="shapes")
    with keras.distribution.DataParallel().scope():
        model = compile_for_training(
            net, data, chosen, "float32", 0, feed, devices=DEVICES
        )
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        state = tuple([v.value for v in group] for group in groups)
        shardings = jax.tree.map(lambda array: array.sharding, state)
        run = compiled(model.train_step, shardings)
        lowered = run.lower(state, feed.source(2, DEVICES)[0])
    names = "all-reduce|all-gather|all-to-all|collective-permute"
    pattern = rf"= (.+?) ({names})(?:-start)?\("
    found = re.findall(pattern, lowered.compile().as_text())
    return [(name, result) for result, name in found]


def main(folder):
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation.steps_per_execution = lambda *_: 2
    found = {}

    # One step at a rate that moves the weights.
    step = {"epochs": 1, "learning_rate": 0.1}
    one, four = (run(data_of(32), devices=n, **step) for n in (1, DEVICES))
    found["after one step"] = difference(one, four)
    found["distribution after a run"] = str(keras.distribution.distribution())
    found["devices of the model"] = len(four.model.weights[0].value.devices())

    # Two epochs of four steps; stopped before the third group of two.
    data = data_of(128, validation=64, test=64)
    one = run(data)
    four = run(data, folder / "four", devices="all")
    found["config"] = four.config["devices"]
    found["after a run"] = difference(one, four)
    found["losses"] = max(
        abs(a[name] - b[name])
        for a, b in zip(one.history, four.history, strict=True)
        for name in ("loss", "val_loss")
    )
    with contextlib.suppress(Fault):
        run(data, folder / "same", devices=DEVICES, callbacks=[FailAt(3)])
    shutil.copytree(folder / "same", folder / "other")
    for name, devices in (("same", None), ("other", 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resumed = run(data, folder / name, resume=True, devices=devices)
        found[f"resumed on {name}"] = difference(resumed, four)
        found[f"warnings on {name}"] = [
            str(w.message) for w in caught if w.category is UserWarning
        ]

    found["fine-tuned"] = difference(tuned(1), tuned(DEVICES))

    # The user's own distribution.
    keras.distribution.set_distribution(
        own := keras.distribution.DataParallel()
    )
    found["own"] = difference(run(data), four)
    found["own kept"] = keras.distribution.distribution() is own
    keras.distribution.set_distribution(None)

    for recipe in RECIPES:
        found[f"collectives of {recipe}"] = collectives(recipe)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
