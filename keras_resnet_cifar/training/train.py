"""`train`: a recipe, a model and a dataset, to a run directory."""

import contextlib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras

from keras_resnet_cifar.data import policies
from keras_resnet_cifar.data.batches import ShuffledBatches
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.device import (
    is_out_of_memory,
    make_deterministic,
    resolve_precision,
)
from keras_resnet_cifar.errors import Diverged, InputError
from keras_resnet_cifar.evaluation.evaluate import evaluate
from keras_resnet_cifar.evaluation.plots import plot_curves
from keras_resnet_cifar.files import sealed, write_json, write_text
from keras_resnet_cifar.models.saving import check_classifier, load_model
from keras_resnet_cifar.training import callbacks as cb
from keras_resnet_cifar.training.backups import (
    DEFAULT_INTERVAL,
    Backup,
    Interval,
)
from keras_resnet_cifar.training.checkpointing import Checkpoints, publish
from keras_resnet_cifar.training.compilation import compiled
from keras_resnet_cifar.training.fitting import fit
from keras_resnet_cifar.training.interruption import StopOnSignal
from keras_resnet_cifar.training.model_card import model_card
from keras_resnet_cifar.training.recipes import checked_seed, get_recipe
from keras_resnet_cifar.training.resumption import read_backup, read_held
from keras_resnet_cifar.training.run_directory import (
    RunDirectory,
    State,
    identity,
    versions,
)
from keras_resnet_cifar.training.schedules import rates_of


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
    backup_every=DEFAULT_INTERVAL,
    deterministic=False,
    callbacks=(),
    tensorboard=False,
    verbose=True,
    **changes,
):
    """Trains a model by a recipe: `compile` and `fit` with callbacks.

    The model's weights are trained in place. A copy with fused BatchNorm and
    the recipe's precision does the work; what is saved has stock layers only.

    With an `output_dir`, SIGINT and SIGTERM let the step in flight finish, save
    and raise `Stopped`; a second one ends the process at once.

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
        resume: Go on with the run in `output_dir` from its newest backup, in
            the middle of an epoch too. More `epochs` than it had are allowed
            where the schedule gives the steps already done the same rates.
        backup_every: Epochs between backups, or a time such as `"10min"`, as
            `Interval.parse` reads it. What a kill loses is done again alike.
        deterministic: Ask the backend for operations that give the same bits
            each time; slower, and needed on a GPU only.
        callbacks: List of more Keras callbacks. Their model is the
            `TrainingModel`; to keep checkpoints take `checkpoint_every`.
        tensorboard: Also write TensorBoard logs (needs TensorFlow).
        verbose: Print a line an epoch.
        **changes: Fields of the recipe to replace, e.g. `epochs=12`.

    Returns:
        A `Run`.

    Raises:
        InputError: A value out of range, a batch larger than the split, a
            folder that holds another run, a resumption that does not fit, not
            enough memory.
        Diverged: The loss became infinite or NaN.
        Stopped: A signal came; the run is saved.

    Example:
        >>> run = train(model, data, "onecycle", "runs/r20", epochs=12)
        >>> run.metrics["last"]["test"]["top1"]
    """
    recipe = get_recipe(recipe, **changes)
    recipe = _as_used(recipe, model, data)
    seed = checked_seed(seed)
    interval = Interval.parse(backup_every)
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
    say = print if verbose else (lambda line: None)
    say(_where_images_are(feed))
    directory = RunDirectory(Path(output_dir)) if output_dir else None
    config = run_config(model, data, recipe, seed, precision)
    if resume:
        if directory is None:
            raise InputError("resume=True needs the output_dir of a run")
        held = read_held(directory, config, say)
        deterministic = deterministic or held.get("deterministic", False)
    elif directory is not None:
        directory.create()
    if deterministic:
        make_deterministic(seed)
    config["deterministic"] = deterministic
    locked = directory.locked() if directory else contextlib.nullcontext()
    with locked, _out_of_memory_told(recipe):
        trained = compiled(model, data, recipe, precision, seed, feed)
        backup = Backup(State(run=identity(config)))
        if resume:
            directory.sweep()
            backup = read_backup(
                directory, trained, held, recipe, feed.steps, say
            )
        state, keeper = backup.state, None
        if directory is not None:
            every = recipe.checkpoint_every
            keeper = Checkpoints(
                directory, state, model, trained, feed.steps, interval, every
            )
            with _all_or_nothing(directory, resume):
                keeper.begin(backup)
                write_json(directory.config, sealed(config))  # now it is a run
        early = cb.StopEarly(state, recipe.patience)
        with _saving(keeper, trained) as stop:
            chain = _callbacks(recipe, feed, state, early, keeper)
            if tensorboard:
                logs = directory.path / "tensorboard"
                chain.append(keras.callbacks.TensorBoard(logs))
            if verbose:
                chain.append(cb.Progress(recipe.epochs, feed))
            if not early.is_over():
                chain += [*callbacks, stop]
                fit(trained, data, feed, state, recipe.epochs, chain)
            publish(trained, model)
            metrics = _final_metrics(model, data, state, directory, [stop])
            stop.check()
        if directory is not None:
            write_json(directory.metrics, metrics)
            plot_curves(state.rows, directory.curves)
            write_text(directory.card, model_card(config, state, metrics))
    return Run(model, state.rows, metrics, config, directory and directory.path)


@contextlib.contextmanager
def _all_or_nothing(directory, resume):
    """Takes a new run's first files away again if one cannot be written."""
    try:
        yield
    except InputError:
        if not resume:
            directory.last.unlink(missing_ok=True)
            directory.backup.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _saving(keeper, trained):
    """Gives a `StopOnSignal`; on a stop or a fault saves what there is."""
    stop = StopOnSignal()
    with stop.listening() if keeper else contextlib.nullcontext():
        try:
            yield stop
        except Diverged:
            if keeper is not None:
                keeper.write_files()
            raise
        except BaseException:
            if keeper is not None and not trained.in_step:
                with contextlib.suppress(InputError):  # the first one counts
                    keeper.rescue()
            raise


@contextlib.contextmanager
def _out_of_memory_told(recipe):
    """Turns any backend's word for it into a line with the remedy."""
    try:
        yield
    except BaseException as error:
        if is_out_of_memory(error):
            raise InputError(
                f"out of memory with batch_size={recipe.batch_size}: try "
                f"--batch-size {max(recipe.batch_size // 2, 1)}, "
                "--precision mixed_bfloat16 or a smaller net"
            ) from error
        raise


def _where_images_are(feed):
    size = feed.split.images.nbytes / 2**20
    if feed.resident:
        return f"training images: {size:,.0f} MiB, kept on the device"
    return f"training images: {size:,.0f} MiB, fed by the host batch by batch"


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
    if recipe.patience and data.validation is None:
        raise InputError(
            f"patience={recipe.patience} needs a validation split: give "
            "--validation, load_dataset(..., validation=...) in Python, or "
            "train without patience"
        )
    return replace(
        recipe,
        arch=model.name,
        dataset=data.name,
        validation=len(data.validation or ()),
    )


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


def _callbacks(recipe, feed, state, early, keeper):
    """The callbacks of a run, in the order in which they depend."""
    return [
        cb.EpochFeed(feed),
        cb.StopOnNaN(),
        cb.EpochRecord(feed, rates_of(recipe, feed.steps)),
        cb.HistoryRows(state),
        early,
        # It looks at the weights as they are, before they are averaged.
        *([keeper] if keeper else []),
        cb.AverageForValidation(),
    ]


def _final_metrics(model, data, state, directory, callbacks):
    """Test metrics of the last epoch, and of the best by validation."""
    metrics = {"last": _tested(model, data, state.epoch, callbacks)}
    best = state.best
    if directory is not None and best.get("val_accuracy") is not None:
        chosen = load_model(directory.best)
        metrics["best"] = _tested(chosen, data, best["epoch"], callbacks) | {
            "val_accuracy": best["val_accuracy"]
        }
    return metrics


def _tested(model, data, epoch, callbacks):
    evaluation = evaluate(
        model, data.test, data.class_names, callbacks=callbacks
    )
    return {"epoch": epoch, "test": evaluation.to_json()}
