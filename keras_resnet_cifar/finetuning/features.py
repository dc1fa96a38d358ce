"""A head trained on features that the frozen backbone computed once."""

import csv
import json
from dataclasses import replace

import keras
import numpy as np

from keras_resnet_cifar.data.batches import one_hot
from keras_resnet_cifar.device import jit_compile
from keras_resnet_cifar.errors import Diverged, InputError, one_line
from keras_resnet_cifar.evaluation.evaluate import evaluate, logits_of
from keras_resnet_cifar.files import sealed, write_json
from keras_resnet_cifar.models.saving import load_model, save_model
from keras_resnet_cifar.training.optimizers import TabulatedRate, optimizer_of
from keras_resnet_cifar.training.run_directory import write_history
from keras_resnet_cifar.training.schedules import rates_of
from keras_resnet_cifar.training.train import Run, run_config

# Features are of the images as they are: nothing is drawn anew each epoch.
_UNAUGMENTED = {
    "padding": 0,
    "random_resized_crop": 0,
    "flip": False,
    "cutout": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "rand_augment": 0,
    "ema": 0.0,
    "precision": "float32",
    "checkpoint_every": 0,
}
_BATCH_SIZE = 64  # of the backbone, at 224x224 some hundred MiB


def train_head(model, data, recipe, directory, seed=0, verbose=True):
    """Trains the last layer alone, on features that are computed once.

    Args:
        model: Of `build_finetuned`; its head is trained in place.
        data: A `Dataset`.
        recipe: A `Recipe`; its augmentation and averaging do not apply.
        directory: A new `RunDirectory`, which gets config.json, history.csv,
            metrics.json and last.keras at the end; or `None`.
        seed: Of the order of the images.
        verbose: Print a line an epoch.

    Returns:
        A `Run`.

    Raises:
        InputError: The folder is in use.
        Diverged: The loss became infinite or NaN.
    """
    if directory is not None:
        directory.check_unused()
    recipe = replace(
        recipe,
        arch=model.name,
        dataset=data.name,
        validation=len(data.validation or ()),
        **_UNAUGMENTED,
    )
    rows = _fit(model, data, recipe, seed, verbose)
    result = evaluate(model, data.test, data.class_names, _BATCH_SIZE)
    metrics = {"last": {"epoch": recipe.epochs, "test": result.to_json()}}
    config = run_config(model, data, recipe, seed, recipe.precision)
    if directory is not None:
        directory.create()
        save_model(model, directory.last)
        write_history(directory, rows)
        write_json(directory.metrics, metrics)
        write_json(directory.config, sealed(config))  # last: now it is a run
    return Run(model, rows, metrics, config, directory and directory.path)


def finished_head(model, directory):
    """Returns the `Run` that `train_head` left, its weights in `model`."""
    model.set_weights(load_model(directory.last).get_weights())
    config = directory.read_config()
    try:
        with open(directory.history, newline="", encoding="utf-8") as file:
            rows = [
                {name: float(value) for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
        metrics = json.loads(directory.metrics.read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot read the finished head in {directory.path} "
            f"({one_line(error)}): restore its files, or start a new run"
        ) from error
    return Run(model, rows, metrics, config, directory.path)


def _fit(model, data, recipe, seed, verbose):
    """Fits the head; returns the history, a dict an epoch."""
    backbone = keras.Model(model.input, model.get_layer("head_pool").output)
    images, labels = _features(backbone, data.train, data.num_classes)
    size = min(recipe.batch_size, len(images))
    rates = rates_of(recipe, -(-len(images) // size))
    inputs = keras.Input(images.shape[1:])
    head = keras.Model(inputs, model.get_layer("head_dense")(inputs))
    head.compile(
        optimizer=optimizer_of(recipe, TabulatedRate(rates)),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        ),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=jit_compile(),
    )
    held_out = data.validation and _features(
        backbone, data.validation, data.num_classes
    )
    keras.utils.set_random_seed(seed)  # `fit` shuffles by the global state
    history = head.fit(
        images,
        labels,
        batch_size=size,
        epochs=recipe.epochs,
        validation_data=held_out,
        verbose=2 if verbose else 0,
    ).history
    if not np.isfinite(history["loss"]).all():
        raise Diverged("the head's loss is not finite: try a lower rate")
    return [
        {"epoch": epoch} | dict(zip(history, values, strict=True))
        for epoch, values in enumerate(
            zip(*history.values(), strict=True), start=1
        )
    ]


def _features(backbone, split, num_classes):
    """float32 `[N, features]` and one-hot labels of a split."""
    features = logits_of(backbone, split.images, _BATCH_SIZE)
    return features, one_hot(split.labels, num_classes)
