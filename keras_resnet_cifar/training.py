"""`train`: a recipe, a model and a dataset, to a run directory."""

import contextlib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras

from keras_resnet_cifar import callbacks as cb
from keras_resnet_cifar import policies
from keras_resnet_cifar.data import Dataset
from keras_resnet_cifar.datasets import DATASETS
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.evaluation import check_classifier, evaluate
from keras_resnet_cifar.feed import ShuffledBatches, even_batch_size, one_hot
from keras_resnet_cifar.files import write_json, write_text
from keras_resnet_cifar.hardware import (
    jit_compile,
    resolve_precision,
    steps_per_execution,
)
from keras_resnet_cifar.model_card import model_card
from keras_resnet_cifar.optimizers import TabulatedRate, optimizer_of
from keras_resnet_cifar.plots import plot_curves
from keras_resnet_cifar.recipes import checked_seed, get_recipe
from keras_resnet_cifar.runs import (
    RunDirectory,
    State,
    check_same,
    load_backup,
    save_backup,
    versions,
)
from keras_resnet_cifar.schedules import rates_of
from keras_resnet_cifar.training_model import TrainingModel, training_clone


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        model: The trained model (last epoch), of stock layers.
        history: A dict an epoch: epoch, loss, accuracy, val_loss,
            val_accuracy, learning_rate, images_per_second, seconds.
        metrics: `{"last": ..., "best": ...}`, each with the epoch and the
            `Evaluation` of the test split as JSON. `best` was chosen on the
            validation split; it is absent without one.
        config: What repeats the run.
        directory: Where it lies, or `None`.
    """

    model: keras.Model
    history: list
    metrics: dict
    config: dict
    directory: Path | None


def train(
    model,
    data,
    recipe="onecycle",
    output_dir=None,
    *,
    seed=0,
    resume=False,
    callbacks=(),
    tensorboard=False,
    verbose=True,
    **changes,
):
    """Trains a model by a recipe: `compile` and `fit` with callbacks.

    The model's weights are trained in place. A copy with fused BatchNorm and
    the recipe's precision does the work; what is saved has stock layers only.

    Args:
        model: A model from raw images to logits, as of `build_resnet`.
        data: A `Dataset`. The test split is evaluated once, at the end. Its
            validation split, taken by `load_dataset`, chooses best.keras.
        recipe: A name of `RECIPES` or a `Recipe`.
        output_dir: Folder for config.json, history.csv, metrics.json,
            best.keras, last.keras, curves.png and README.md; `None` keeps
            nothing.
        seed: Of shuffling and augmentation. (Seed the weights before building
            the model, with `keras.utils.set_random_seed`.)
        resume: Go on with the run in `output_dir` from its last epoch.
        callbacks: List of more Keras callbacks. Their model is the
            `TrainingModel`; to keep checkpoints take `checkpoint_every`.
        tensorboard: Also write TensorBoard logs (needs TensorFlow).
        verbose: Print a line an epoch.
        **changes: Fields of the recipe to replace, e.g. `epochs=12`.

    Returns:
        A `Run`.

    Raises:
        InputError: A value out of range, a batch larger than the split, a
            folder that holds another run, a resumption that does not fit.
        Diverged: The loss became infinite or NaN.

    Example:
        >>> run = train(model, data, "onecycle", "runs/r20", epochs=12)
        >>> run.metrics["last"]["test"]["top1"]
    """
    recipe = get_recipe(recipe, **changes)
    recipe = _as_used(recipe, model, data)
    seed = checked_seed(seed)
    precision = resolve_precision(recipe.precision)
    feed = ShuffledBatches(
        data.train,
        data.num_classes,
        recipe.batch_size,
        seed,
        transform=policies.host_transform(recipe, seed),
    )
    if tensorboard:
        _check_tensorboard(output_dir)
    directory = RunDirectory(Path(output_dir)) if output_dir else None
    config = run_config(model, data, recipe, seed, precision)
    if resume:
        if directory is None:
            raise InputError("resume=True needs the output_dir of a run")
        check_same(directory.read_config(), config)
    elif directory is not None:
        directory.create()
    with directory.locked() if directory else contextlib.nullcontext():
        trained = compiled(model, data, recipe, precision, seed, len(feed))
        state = _begin(directory, trained, model, config, resume)
        chain = _callbacks(
            model, recipe, feed, state, directory, tensorboard, verbose
        )
        trained.fit(
            feed,
            epochs=recipe.epochs,
            initial_epoch=state.epoch,
            shuffle=False,  # the feed shuffles
            verbose=0,
            callbacks=[*chain, *callbacks],
            **_validation(data),
        )
        cb.publish(trained, model)
        metrics = _final_metrics(model, data, state, directory)
        if directory is not None:
            write_json(directory.metrics, metrics)
            plot_curves(state.rows, directory.curves)
            write_text(directory.card, model_card(config, state, metrics))
    return Run(model, state.rows, metrics, config, directory and directory.path)


def _as_used(recipe, model, data):
    """The recipe with the net, the data and the split that it is used on."""
    if not isinstance(data, Dataset):
        raise InputError(
            f"data is {type(data).__name__}: give a Dataset, as load_dataset "
            "returns"
        )
    check_classifier(model, data.num_classes, data.train.images.shape[1:])
    policies.check_crop(recipe, model)
    if recipe.validation and data.validation is None:
        raise InputError(
            f"{recipe.name} holds out {recipe.validation} images for "
            f"validation and the data has none: load_dataset(..., "
            f"validation={recipe.validation}), or train with validation=0"
        )
    return replace(
        recipe,
        arch=model.name,
        dataset=data.name,
        validation=len(data.validation or ()),
    )


def _begin(directory, trained, model, config, resume):
    """Returns the state to start from; a new run is on disk from here on."""
    if directory is None:
        return State()
    if resume:
        return _restore(directory, trained)
    state = State()
    cb.save_model(model, directory.last)
    save_backup(directory.backup, state, cb.training_state(trained))
    write_json(directory.config, config)  # last: now it is a run
    return state


def _check_tensorboard(output_dir):
    if not output_dir:
        raise InputError("tensorboard=True needs an output_dir for its logs")
    try:
        import tensorboard  # noqa: F401
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise InputError(
            "TensorBoard logs need TensorFlow and TensorBoard: pip install "
            "tensorflow tensorboard, or leave --tensorboard out"
        ) from error


def run_config(model, data, recipe, seed, precision):
    """Everything needed to repeat the run, as JSON."""
    return {
        "arch": model.name,
        "parameters": sum(math.prod(w.shape) for w in model.trainable_weights),
        "dataset": {
            "name": data.name,
            "class_names": data.class_names,
            "train": len(data.train),
            "validation": len(data.validation or ()),
            "test": len(data.test),
            "fingerprints": data.fingerprints,
            "verified": data.verified,
        },
        "recipe": asdict(recipe),
        "seed": seed,
        "precision": precision,
        "request": data.request,
        "backend": keras.backend.backend(),
        "versions": versions(),
    }


def compiled(model, data, recipe, precision, seed, steps_per_epoch):
    """Returns the compiled `TrainingModel` around a clone of `model`."""
    known = DATASETS.get(data.name)
    mean = known.mean if known else (0.5, 0.5, 0.5)
    trained = TrainingModel(
        training_clone(model, precision),
        policies.image_layers(recipe, mean, seed),
        policies.mixing_layers(recipe, seed),
        label_smoothing=recipe.label_smoothing,
        ema=recipe.ema,
        dtype=precision,
    )
    trained.compile(
        optimizer=optimizer_of(
            recipe, TabulatedRate(rates_of(recipe, steps_per_epoch))
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=jit_compile(),
        steps_per_execution=steps_per_execution(),
    )
    trained.optimizer.build(trained.trainable_variables)
    return trained


def _restore(directory, trained):
    """Puts a backup's arrays in place and returns its state."""
    variables = cb.training_variables(trained)
    state, arrays = load_backup(directory.backup, [v.shape for v in variables])
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return state


def _callbacks(model, recipe, feed, state, directory, tensorboard, verbose):
    """The callbacks of a run, in the order in which they depend."""
    chain = [
        cb.EpochFeed(feed),
        cb.StopOnNaN(),
        cb.AverageForValidation(),
        cb.EpochRecord(recipe.batch_size, rates_of(recipe, len(feed))),
        cb.HistoryRows(state),
    ]
    if directory is not None:
        chain.append(
            cb.Checkpoints(directory, state, model, recipe.checkpoint_every)
        )
        if tensorboard:
            chain.append(
                keras.callbacks.TensorBoard(directory.path / "tensorboard")
            )
    if verbose:
        chain.append(cb.Progress(recipe.epochs, recipe.batch_size))
    return chain


def _validation(data):
    """Keyword arguments of `fit` for the validation split, if there is one."""
    if data.validation is None:
        return {}
    split = data.validation
    return {
        "validation_data": (
            split.images,
            one_hot(split.labels, data.num_classes),
        ),
        "validation_batch_size": even_batch_size(len(split)),
    }


def _final_metrics(model, data, state, directory):
    """Test metrics of the last epoch, and of the best by validation."""
    metrics = {"last": _tested(model, data, state.epoch)}
    best = state.best
    if directory is not None and best.get("val_accuracy") is not None:
        chosen = keras.saving.load_model(directory.best)
        metrics["best"] = _tested(chosen, data, best["epoch"]) | {
            "val_accuracy": best["val_accuracy"]
        }
    return metrics


def _tested(model, data, epoch):
    evaluation = evaluate(model, data.test, data.class_names)
    return {"epoch": epoch, "test": evaluation.to_json()}
