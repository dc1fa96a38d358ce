"""Trains a head on cached features of the frozen backbone."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_resnet_cifar import files
from keras_resnet_cifar.data.batches import StreamedSplit, one_hot
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.errors import Diverged, InputError, explained
from keras_resnet_cifar.evaluation.evaluate import evaluate, logits_of
from keras_resnet_cifar.models import saving
from keras_resnet_cifar.training import run_directory
from keras_resnet_cifar.training.inputs import ClassWeight, class_weights
from keras_resnet_cifar.training.recipes import Recipe
from keras_resnet_cifar.training.train import Run, run_config, write_results

_BATCH_SIZE = 64  # of the backbone: a few hundred MiB at 224x224


def train_head(
    model: keras.Model,
    data: Dataset,
    recipe: Recipe,
    output_dir: Path | None = None,
    *,
    class_weight: ClassWeight = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    resume: bool = False,
    verbose: bool = True,
) -> Run:
    """Trains only the last layer, on features that are computed once.

    The arguments are those of `train`, for a model of `build_finetuned` and
    images in memory. The recipe's augmentation, averaged weights, precision,
    checkpoints and early stopping do not apply. All files of the run are
    written at the end; `resume` returns that run, with its weights in `model`.
    Raises `InputError` and `Diverged`, as `train` does.
    """
    if isinstance(data.train, StreamedSplit):
        raise InputError(
            "cache_features=True needs images in memory: give (images, labels)"
        )
    if recipe.loss is not None:
        raise InputError(
            "loss= cannot be combined with cache_features=True: omit one"
        )
    saving.check_classifier(
        model, data.num_classes, data.train.images.shape[1:]
    )
    config = run_config(model, data, recipe, seed, precision="float32")
    config["cache_features"] = True
    weights = class_weights(class_weight, data)
    if weights is not None:
        config["class_weight"] = weights
    directory = output_dir and run_directory.RunDirectory(output_dir)
    if directory and resume:
        return _read(directory, model, config)
    if directory:
        directory.check_unused()
    options = {
        "class_weight": weights and dict(enumerate(weights)),
        "callbacks": keras.tree.flatten(callbacks or []),
        "verbose": 2 if verbose else 0,
    }
    history = _fit(model, data, recipe, seed, options)
    model.class_names = tuple(data.class_names)
    if not np.isfinite(history["loss"]).all():
        raise Diverged(
            "the loss of the head is not finite: try a lower learning rate"
        )
    rows = [
        {"epoch": epoch} | dict(zip(history, values, strict=True))
        for epoch, values in enumerate(zip(*history.values(), strict=True), 1)
    ]
    metrics = {}
    if data.test is not None:
        result = evaluate(model, data.test, data.class_names, _BATCH_SIZE)
        metrics = {"last": {"epoch": len(rows), "test": result.to_json()}}
    run = Run(model, rows, metrics, config, output_dir)
    if directory:
        _write(directory, run)
    return run


def _fit(model, data, recipe, seed, options):
    """Fits the head; returns the history, one list for each metric."""
    pooled = model.get_layer("head_pool").output
    backbone = keras.Model(model.input, pooled)

    def features(split):
        x = logits_of(backbone, split.images, _BATCH_SIZE)
        return x, one_hot(split.labels, data.num_classes)

    x, y = features(data.train)
    batch_size = min(recipe.batch_size, len(x))
    inputs = keras.Input(x.shape[1:])
    head = keras.Model(inputs, model.get_layer("head_dense")(inputs))
    head.compile(
        recipe.optimizer_for(recipe.schedule_for(-(-len(x) // batch_size))),
        keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        ),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
    )
    keras.utils.set_random_seed(seed)  # `fit` shuffles by the global state
    validation = data.validation and features(data.validation)
    return head.fit(
        x,
        y,
        batch_size,
        epochs=recipe.epochs,
        validation_data=validation,
        **options,
    ).history


def _write(directory, run):
    """Writes a finished run atomically."""
    with files.staged_folder(directory.path.parent) as folder:
        staged = run_directory.RunDirectory(folder)
        saving.save_model(run.model, staged.last)
        run_directory.write_history(staged, run.history)
        write_results(staged, run, len(run.history))
        files.write_json(staged.config, files.with_checksum(run.config))
        with contextlib.suppress(OSError):  # an empty folder is replaced
            directory.path.rmdir()
        files.move_folder(folder, directory.path)


def _read(directory, model, config):
    """Reads what `_write` wrote, if it is the run of a config."""
    saved = directory.read_config()
    run_directory.check_same(saved, run_directory.resume_keys(config))
    model.set_weights(saving.load_model(directory.last).get_weights())
    with explained(
        f"cannot read the finished head in {directory.path}",
        "restore its files, or start a new run",
    ):
        rows = [
            {name: float(value) for name, value in row.items()}
            | {"epoch": int(row["epoch"])}
            for row in run_directory.read_csv(directory.history)
        ]
        metrics = json.loads(directory.metrics.read_text(encoding="utf-8"))
    return Run(model, rows, metrics, saved, directory.path)
