"""`train`: trains a model with a recipe in a run directory."""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.callbacks import Callback

from keras_resnet_cifar import files
from keras_resnet_cifar.data.augmentation import check_sizes
from keras_resnet_cifar.data.batches import StreamedSplit
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.device import (
    accelerator_name,
    is_out_of_memory,
    make_deterministic,
    resolve_precision,
)
from keras_resnet_cifar.errors import InputError, OutOfMemory, checked_seed
from keras_resnet_cifar.evaluation.evaluate import evaluate
from keras_resnet_cifar.evaluation.plots import plot_curves
from keras_resnet_cifar.models import saving
from keras_resnet_cifar.training import callbacks as cb
from keras_resnet_cifar.training import (
    data_parallel,
    hosts,
    inputs,
    run_directory,
)
from keras_resnet_cifar.training.checkpointing import (
    Backup,
    check_length,
    checkpoints,
)
from keras_resnet_cifar.training.compilation import compile_for_training
from keras_resnet_cifar.training.fitting import fit
from keras_resnet_cifar.training.model_card import LAST, model_card
from keras_resnet_cifar.training.muon import check_trained_norm
from keras_resnet_cifar.training.objects import loss_of
from keras_resnet_cifar.training.recipes import (
    DEFAULT,
    Recipe,
    checked_steps,
    get_recipe,
)
from keras_resnet_cifar.training.run_directory import RunDirectory
from keras_resnet_cifar.training.tracking import Tracking, check_trackers

# Seconds until a shared file system shows a new file everywhere; Gloo lets
# processes wait for each other for 30.
_LATE = 20


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        model: The trained model (last epoch), of stock layers.
        history: One dict per epoch: epoch (from 1), loss, accuracy (0 to 1),
            val_loss, val_accuracy, learning_rate (of the last step),
            images_per_second (of training alone), and seconds (without saving).
        metrics: `{"last": ..., "best": ...}`, each with the epoch and the
            `Evaluation` of the test split as JSON. `best` is chosen on the
            validation split, and is missing without one; both are missing
            without a test split.
        config: Everything needed to repeat the run.
        directory: The run directory, or `None`.
    """

    model: keras.Model
    history: list[dict[str, Any]] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    directory: Path | None


def train(
    model: keras.Model,
    data: inputs.Data,
    recipe: str | Recipe = DEFAULT,
    output_dir: str | Path | None = None,
    *,
    validation_data: tuple | None = None,
    class_weight: inputs.ClassWeight = None,
    seed: int = 0,
    resume: bool = False,
    backup_every: str | int = run_directory.DEFAULT_INTERVAL,
    deterministic: bool = False,
    devices: data_parallel.Devices = None,
    callbacks: Sequence[Callback] | Callback | None = (),
    steps_per_execution: int | None = None,
    track: str | Sequence[str] = (),
    verbose: bool = True,
    **changes: Any,
) -> Run:
    """Trains a model with a recipe, using `compile` and `fit`.

    Training uses a copy with fused BatchNorm and the recipe's precision, and
    updates the model's weights in place. Saved models have stock layers only.

    With an `output_dir`, SIGINT and SIGTERM let the current step finish, save
    the run and raise `Stopped`; a second signal ends the process at once.

    Args:
        model: A model from raw images to logits, such as `build_resnet`'s.
        data: A `Dataset`; or `(images, labels)`, as `Dataset.from_arrays`
            takes them; or a stream, which is a `tf.data.Dataset` or
            `keras.utils.PyDataset` of such batches. The test split of a
            `Dataset` is evaluated once, at the end. A stream is not kept on
            the device, and resumes from its last complete epoch.
        recipe: A name of `RECIPES` or a `Recipe`. The default is for nets
            whose convolutions are followed by a normalization: see `krc.Muon`.
        output_dir: Folder for config.json, history.csv, metrics.json,
            best.keras, last.keras, curves.png and README.md; `None` writes
            no files.
        validation_data: `(images, labels)`, if `data` is not a `Dataset`.
        class_weight: Weights of the classes in the training loss: a dict, or
            `"balanced"` for weights inversely proportional to their counts.
        seed: Seed of shuffling and augmentation. (To seed the initial weights,
            call `keras.utils.set_random_seed` before building the model.)
        resume: Continue the run in `output_dir` from its newest backup, even
            in the middle of an epoch. More `epochs` than before are allowed if
            the rates of the steps already done do not change.
        backup_every: Epochs between backups, or a time such as `"10min"`. After
            a kill, the steps since the backup are repeated, to the same bits.
        deterministic: Request operations that give the same bits each time;
            slower, and only needed on a GPU.
        devices: Number of devices that share each batch under JAX, or `"all"`;
            `batch_size` is the size of the whole batch, and must be divisible
            by their number. `None` uses the distribution set with
            `keras.distribution.set_distribution`, else the number of devices
            of the resumed run, else one. Several processes of
            `keras.distribution.initialize` use all of their devices; the first
            writes `output_dir`, which all must be able to read.
        callbacks: More Keras callbacks, such as `ModelCheckpoint`. Their model
            is a `TrainingModel`, which saves the model of stock layers. In a
            run resumed within an epoch, `on_train_begin` and `on_train_end`
            are called twice. `on_train_batch_end` is called once for each group
            of steps that run as one compiled call, with the number of the last
            step. The recipe sets the learning rate, so `LearningRateScheduler`
            and `ReduceLROnPlateau` are refused, and a run makes its own
            backups, so `BackupAndRestore` is, too. A run that a callback ended
            stays ended when it is resumed.
        steps_per_execution: Steps per compiled call; with 1, which is slower,
            `callbacks` are called after each step. `None` chooses a number
            that takes at most about a second on a CPU, two on an accelerator.
            The results agree up to rounding.
        track: Experiment trackers to log to, one or several of
            `"tensorboard"` (in `output_dir`), `"mlflow"`, `"wandb"` and
            `"trackio"`. If one fails, training continues without it, with a
            warning. A resumed run continues the trackers' runs.
        verbose: Whether to print one line per epoch, or on a terminal a
            progress bar.
        **changes: Fields of the recipe to override, e.g. `epochs=12`,
            including `optimizer` and `loss`, which may be Keras objects: see
            `Recipe`. To resume a run, give the same ones.

    Returns:
        A `Run`.

    Raises:
        InputError: A value is out of range, the data do not fit the model, the
            folder already holds a run, the run cannot be resumed in this way,
            or memory ran out.
        Diverged: The loss became infinite or NaN.
        Stopped: On a signal, after the run was saved.

    Examples:
        >>> run = train(model, data, "fast", "runs/r20")
        >>> run.metrics["last"]["test"]["top1"]
    """
    # Set up.
    with hosts.together():
        more_callbacks = _checked_callbacks(callbacks)
        trackers = [track] if isinstance(track, str) else list(track or ())
        check_trackers(trackers, output_dir)
        data = inputs.as_dataset(model, data, validation_data)
        recipe = _recipe_for(model, data, recipe, changes)
        seed = checked_seed(seed)
        interval = run_directory.interval(backup_every)
        steps_per_execution = checked_steps(steps_per_execution)
        feed = inputs.feed_of(data, recipe, seed)
        schedule = recipe.schedule_for(feed.steps)
        directory = (
            None if output_dir is None else RunDirectory(Path(output_dir))
        )
        written = directory if hosts.is_first() else None
        precision = resolve_precision(recipe.precision)
        config = run_config(model, data, recipe, seed, precision)
        config["deterministic"] = deterministic
        config["class_weight"] = inputs.class_weights(class_weight, data)
        saved = _continued(directory, config) if resume else {}
        spread = _distributed(devices, saved, config, data, feed)
    run = run_directory.identity(config)
    hosts.check_same(run, recipe.epochs, steps_per_execution, resume)
    if config["deterministic"]:
        make_deterministic(seed)
    if verbose:
        print(feed.describe())
    rows: list[dict[str, Any]] = []
    stop = cb.StopOnSignal()

    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_line_if_out_of_memory(recipe))
        scope = stack.enter_context(contextlib.ExitStack())
        stack.enter_context(_occupied(written, resume))
        if spread is not None:
            scope.enter_context(spread.scope())
        if hosts.count() > 1:  # JAX compares even weights that are overwritten
            keras.utils.set_random_seed(seed)
        model.class_names = tuple(data.class_names)
        shared = config["class_weight"], config["devices"], steps_per_execution
        trained = compile_for_training(
            model, data, recipe, precision, seed, feed, *shared
        )
        backup: Backup | None = None
        if directory is not None:
            backup = Backup(directory, trained, run, rows, interval, feed.exact)
        ended = None
        if resume:
            _restore(backup, recipe, saved["recipe"]["epochs"])
            ended = _ended_at(directory, rows, recipe, saved)
        with hosts.together():
            if written:
                _write_start(model, backup, config, resume)
        with hosts.together():
            if directory is not None:
                _check_shared(directory)
        tracking = Tracking(trackers, written, config)
        stack.enter_context(tracking)

        # Fit.
        every, best = recipe.checkpoint_every, data.validation is not None
        callback_list = [
            cb.StopOnDivergence(_advice(precision, directory, data)),
            cb.RunEpoch(feed, schedule, rows, recipe.patience, written),
            *(checkpoints(written, rows, every, best) if written else ()),
            *([backup] if backup else ()),
            cb.ValidateAverages(),
            keras.callbacks.LambdaCallback(on_epoch_end=tracking.log),
            *more_callbacks,
            stop,
        ]
        with _saved_on_the_way(backup, stop):
            if ended is None and not cb.is_over(rows, recipe.patience):
                if written:  # they would be those of a shorter run
                    written.metrics.unlink(missing_ok=True)
                done = len(rows), backup.steps_in_epoch() if backup else 0
                epochs = recipe.epochs
                fit(trained, data, feed, done, epochs, callback_list, verbose)
            scope.close()  # the stock model stays on one device
            trained.update_stock_model()
            if directory and ended is not None and len(rows) < recipe.epochs:
                # A callback may have kept the weights of another epoch.
                kept = saving.load_model(directory.last)
                model.set_weights(kept.get_weights())
            if written and more_callbacks:
                saving.save_model(model, written.last)  # they may change it

            # Evaluate.
            epoch = ended or _epoch_of_weights(rows, more_callbacks)
            metrics = _final_metrics(model, data, rows, epoch, directory, stop)

        # Write.
        path = directory.path if directory else None
        finished = Run(model, rows, metrics, config, path)
        with hosts.together():
            if written:
                steps = np.arange(len(rows) * feed.steps)
                rates = np.reshape(schedule(steps), (-1, feed.steps))
                write_results(written, finished, epoch, rates)
                tracking.finish(metrics, epoch)
    return finished


def run_config(
    model: keras.Model,
    data: Dataset,
    recipe: Recipe,
    seed: int,
    precision: str,
) -> dict[str, Any]:
    """Returns everything needed to repeat a run, as JSON."""
    recipe = replace(
        recipe,
        arch=model.name,
        dataset=data.name,
        validation=len(data.validation or ()),
    )
    return {
        "arch": model.name,
        "weights": getattr(model, "pretrained", None),
        "parameters": sum(math.prod(w.shape) for w in model.trainable_weights),
        "dataset": {
            "name": data.name,
            "class_names": data.class_names,
            "train": len(data.train),
            "validation": len(data.validation or ()),
            "test": len(data.test or ()),
            "fingerprints": data.fingerprints,
            "verified": data.verified,
        },
        "recipe": asdict(recipe),
        "seed": seed,
        "precision": precision,
        "request": data.request,
        "backend": keras.backend.backend(),
        "accelerator": accelerator_name(),
        "versions": run_directory.versions(),
    }


def _recipe_for(model, data, recipe, changes) -> Recipe:
    """Returns the recipe, if the net and the data fit it."""
    for name in ("arch", "dataset", "normalization"):
        if name in changes:
            raise InputError(
                f"{name}= is fixed by the model and the data: omit it"
            )
    recipe = get_recipe(recipe, **changes)
    saving.check_classifier(model, data.num_classes)
    for split in (data.train, data.validation):
        if split is not None and not isinstance(split, StreamedSplit):
            saving.check_classifier(model, image_shape=split.images.shape[1:])
    check_sizes(recipe, model)
    check_trained_norm(model, recipe.optimizer)
    loss_of(recipe, data.num_classes)  # refuse before writing
    if recipe.alternating_flip and isinstance(data.train, StreamedSplit):
        raise InputError(
            "alternating_flip=True needs images as arrays, since those of a "
            "stream have no index: train with alternating_flip=False"
        )
    for name in ("validation", "patience"):
        if getattr(recipe, name) and data.validation is None:
            raise InputError(
                f"{name}={getattr(recipe, name)} needs a validation split: "
                f"load the data with validation={recipe.validation or 5000}, "
                f"or train with {name}=0"
            )
    return recipe


def _advice(precision, directory, data):
    """Returns what to try when the loss is not finite, and what is kept."""
    other = "" if precision == "float32" else " or precision='float32'"
    if isinstance(data.train, StreamedSplit):
        other += f", and check that labels are below {data.num_classes}"
    kept = "; last.keras has the weights before that epoch" if directory else ""
    return f"try a lower learning_rate={other}{kept}"


def _checked_callbacks(callbacks):
    callbacks = keras.tree.flatten(callbacks or [])
    of_rates = (
        keras.callbacks.LearningRateScheduler,
        keras.callbacks.ReduceLROnPlateau,
    )
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise InputError(
                f"callbacks= holds {callback!r}: give instances of "
                "keras.callbacks.Callback"
            )
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise InputError(
                "BackupAndRestore cannot be used, because a run makes its own "
                "backups: give output_dir=, and resume=True to continue"
            )
        if isinstance(callback, of_rates):
            raise InputError(
                f"{type(callback).__name__} cannot be used, because the recipe "
                "sets the rate at each step: give schedule= or learning_rate= "
                "instead, or use plain fit with one of krc.schedules"
            )
    return callbacks


# --- The start of a run


def _continued(directory, config):
    """Returns the saved config of a run, and takes over what it fixes."""
    if directory is None:
        raise InputError("resume=True needs the output_dir= of a run")
    saved = directory.read_config()
    run_directory.check_same(saved, run_directory.resume_keys(config))
    old, new = saved["versions"], config["versions"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            warnings.warn(
                f"{name} was {old.get(name)}, now {new.get(name)}: the run may "
                "not continue to the same bits",
                stacklevel=3,
            )
    config["deterministic"] |= saved.get("deterministic", False)
    for key in ("class_weight", "weights"):
        config[key] = saved.get(key)
    return saved


def _ended_at(directory, rows, recipe, saved):
    """Returns the epoch of the weights of a run that has ended, else `None`.

    The epoch is 0 if it is not known. `saved` is the config of the resumed run,
    and `rows` are those of its backup; a run with more epochs to come, or whose
    newest backup was damaged, has not ended.
    """
    try:
        metrics = json.loads(directory.metrics.read_text("utf-8"))
        epoch = metrics["last"]["epoch"] if metrics else 0
        done = len(run_directory.read_csv(directory.history)) if rows else 0
    except (OSError, ValueError, LookupError, TypeError):
        return None
    over = done == len(rows) and recipe.epochs == saved["recipe"]["epochs"]
    return epoch if over else None


def _distributed(devices, saved, config, data, feed):
    """Returns how a run is distributed; sets it in `config` and `feed`.

    `saved` is the config of the run that is resumed, or empty.
    """
    spread = data_parallel.distribution_of(devices, saved.get("devices"))
    config["devices"] = data_parallel.count(spread)
    config["num_processes"] = hosts.count()
    batch_size = config["recipe"]["batch_size"]
    data_parallel.check_shares(config["devices"], data, batch_size)
    feed.share = hosts.share_of(batch_size)
    for name in ("devices", "num_processes") if saved else ():
        data_parallel.warn_if_changed(name, config[name], saved.get(name, 1))
    return spread


@contextlib.contextmanager
def _occupied(directory, resume):
    """Keeps others out of a run directory, which a new run finds unused."""
    with contextlib.ExitStack() as stack:
        with hosts.together():
            if directory and not resume:
                directory.check_unused()
                files.make_folder(directory.path)
            if directory:
                stack.enter_context(directory.locked())
        yield


def _restore(backup, recipe, planned_epochs):
    """Restores model and history from the newest backup."""
    directory = backup.directory
    if hosts.is_first():
        directory.sweep()
    fault = backup.restore()
    steps = backup.model.steps_per_epoch
    check_length(recipe, planned_epochs, steps, backup.steps_done())
    if fault:
        # Otherwise, the next backup would move the damaged one over the good.
        if hosts.is_first():  # by now, all have read it
            directory.previous_backup.replace(directory.backup)
        warnings.warn(
            f"{fault}: resuming from the previous one, at epoch "
            f"{len(backup.rows) + 1}, step {backup.steps_in_epoch() + 1}",
            stacklevel=3,
        )


def _write_start(model, backup, config, resume):
    """Writes the first files of a run; for a new run, all or none of them."""
    directory = backup.directory
    try:
        if not resume:
            saving.save_model(model, directory.last)
            saving.check_loads(model, directory.last)
            backup.save()
        files.write_json(directory.config, files.with_checksum(config))
    except InputError:
        if not resume:
            directory.last.unlink(missing_ok=True)
            directory.backup.unlink(missing_ok=True)
        raise


# --- Error handling


@contextlib.contextmanager
def _saved_on_the_way(backup: Any, stop: cb.StopOnSignal) -> Iterator[None]:
    """Handles signals, and saves the run when it stops or fails."""
    if backup is None:
        yield
        return
    with stop.listening():
        try:
            yield
            stop.check()
        except BaseException:
            if not backup.model.in_step:
                # The first error is raised. After a device error, even reading
                # the arrays may fail; then the last backup is kept.
                with contextlib.suppress(Exception):
                    backup.save_if_new()
            raise


def _check_shared(directory):
    """Checks that this process sees what the first one has written."""
    end = time.monotonic() + _LATE
    while not directory.config.exists():
        if time.monotonic() > end:
            raise InputError(
                f"output_dir={directory.path}: the process with process_id=0 "
                "has another folder; give all one on a shared file system"
            )
        time.sleep(0.1)


@contextlib.contextmanager
def _one_line_if_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Re-raises an out-of-memory error of any backend as `OutOfMemory`."""
    try:
        yield
    except BaseException as error:
        if is_out_of_memory(error):
            remedies = ["a smaller net"]
            if recipe.precision == "float32":
                remedies.insert(0, "precision='mixed_bfloat16'")
            if recipe.batch_size > 1:
                remedies.insert(0, f"batch_size={recipe.batch_size // 2}")
            raise OutOfMemory(
                f"out of memory with batch_size={recipe.batch_size}: try "
                f"{' or '.join(remedies)}"
            ) from error
        raise


# --- The results


def _epoch_of_weights(rows, callbacks):
    """Returns the epoch whose weights the model has in the end."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.EarlyStopping) and (
            callback.restore_best_weights and callback.best_weights is not None
        ):
            return callback.best_epoch + 1
    return len(rows)


def _final_metrics(model, data, rows, epoch, directory, stop):
    """Returns test metrics of the last epoch, and of the best by validation."""
    if data.test is None or not rows:
        return {}

    def row(model, epoch):
        test = evaluate(model, data.test, data.class_names, callbacks=[stop])
        return {"epoch": epoch, "test": test.to_json()}

    metrics = {"last": row(model, epoch)}
    if directory is not None and "val_accuracy" in rows[-1]:
        best = max(rows, key=lambda row: row["val_accuracy"])  # first of equals
        metrics["best"] = row(saving.load_model(directory.best), best["epoch"])
        metrics["best"]["val_accuracy"] = best["val_accuracy"]
    return metrics


def write_results(
    directory: RunDirectory, run: Run, epoch: int, rates: Any = None
) -> None:
    """Writes metrics.json, curves.png and the model card, README.md."""
    files.write_json(directory.metrics, run.metrics)
    title = f"{run.model.name} on {Path(run.config['dataset']['name']).name}"
    if run.metrics:
        title += f", top-1 {run.metrics['last']['test']['top1']:.2%}"
    plot_curves(run.history, directory.curves, title, rates)
    kept = "" if directory.best.exists() else LAST
    card = model_card(run.config, epoch, run.metrics, files=kept)
    files.write_text(directory.card, card)
