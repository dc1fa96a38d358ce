"""Sweeps: Optuna studies that several processes share.

Optuna, Keras and matplotlib are imported where they are used.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_resnet_cifar.errors import (
    Diverged,
    InputError,
    OutOfMemory,
    check_name,
    explained,
    one_line,
)
from keras_resnet_cifar.files import atomic_write
from keras_resnet_cifar.training.recipes import OPTIONS, Recipe, get_recipe

if TYPE_CHECKING:
    import keras
    import optuna

    from keras_resnet_cifar.data.load import Dataset

# A trial is run again if its process sends no heartbeat for the grace period.
_HEARTBEAT, _GRACE = 5, 60  # seconds
_TRIES = 5  # of a trial whose process ended without a word
_LOCKED = 30  # seconds to wait for another process to unlock SQLite
_VALUES: dict[Any, Callable[[str], Any]] = {  # of a field's type
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: int,
    float: float,
}


@dataclass(frozen=True)
class Parameter:
    """A field of the recipe that a sweep varies.

    `scale` is "log", "linear" or "choice"; `values` are the lowest and highest
    value, or the choices.
    """

    name: str
    scale: str
    values: tuple

    @classmethod
    def parse(cls, text: str, recipe: Recipe) -> "Parameter":
        """Parses `learning_rate=log:0.05:0.8` or `batch_size=choice:64,128`."""
        name, _, rest = text.partition("=")
        scale, _, listed = rest.partition(":")
        kinds = {field.name: field.type for field in OPTIONS}
        check_name("parameter", name, kinds)
        if name == "validation":
            raise InputError(
                "validation= decides between the trials: it cannot vary"
            )
        kind = kinds[name]
        try:
            words = listed.split("," if scale == "choice" else ":")
            values = tuple(map(_VALUES.get(kind, str), words))
            if len({*values}) < len(values):
                raise ValueError
            if scale != "choice":
                low, high = values
                known = scale == "linear" or (scale == "log" and low > 0)
                if kind not in (int, float) or not (known and low < high):
                    raise ValueError
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"param={text}: give NAME=log:LOW:HIGH with LOW above 0, "
                "NAME=linear:LOW:HIGH or NAME=choice:A,B,... with different "
                "values"
            ) from None
        for value in values:
            get_recipe(recipe, **{name: value})
        return cls(name, scale, values)

    def suggest(self, trial: "optuna.Trial") -> Any:
        """Returns the value that a trial should take."""
        if self.scale == "choice":
            return trial.suggest_categorical(self.name, self.values)
        whole = isinstance(self.values[0], int)
        suggest = trial.suggest_int if whole else trial.suggest_float
        return suggest(self.name, *self.values, log=self.scale == "log")


@contextlib.contextmanager
def using(storage: str) -> Iterator[None]:
    """Re-raises database errors as a one-line `InputError`."""
    try:
        from optuna.exceptions import ExperimentalWarning, StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise InputError(
            "sweeps need Optuna: pip install 'keras_resnet_cifar[sweep]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause: Any = error.__cause__ or error
        cause = getattr(cause, "orig", None) or cause
        raise InputError(
            f"storage={shown(storage)}: {one_line(cause)}; wait for the "
            "process that uses it, or give another, such as "
            "sqlite:///sweep.db"
        ) from error


def shown(storage: str) -> str:
    """Returns a URL without its password."""
    return re.sub("(://[^:/@]*):.*@", r"\1:***@", storage)


def open_study(storage: str, name: str, epochs: int) -> "optuna.Study":
    """Opens a study, or creates it.

    A trial has `epochs`; in the first quarter, none is pruned. Raises
    `InputError` if the database holds something else.
    """
    import optuna
    import sqlalchemy

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with explained(
        f"storage={shown(storage)}: no database",
        "give a URL such as sqlite:///sweep.db, or install its driver",
    ):
        url = sqlalchemy.make_url(storage)
        sqlite = url.get_backend_name() == "sqlite"
        arguments = {"connect_args": {"timeout": _LOCKED}} if sqlite else {}
        engine = sqlalchemy.create_engine(url, **arguments)
    tables = {*sqlalchemy.inspect(engine).get_table_names()}
    engine.dispose()
    memory = url.database in (None, "", ":memory:")
    if memory or (tables and not {"studies", "trials"} <= tables):
        raise InputError(
            f"storage={shown(storage)}: not a database of studies; give a new "
            "file, such as sqlite:///sweep.db"
        )
    return optuna.create_study(
        storage=optuna.storages.RDBStorage(
            storage,
            arguments,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
            heartbeat_stale_trial_callback=(
                optuna.storages.RetryHeartbeatStaleTrialCallback(_TRIES)
            ),
        ),
        # No seeded sampler: each process would start with the same trials.
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=epochs // 4),
        study_name=name,
        direction="maximize",
        load_if_exists=True,
    )


def run_trials(
    study: "optuna.Study",
    parameters: Sequence[Parameter],
    recipe: Recipe,
    data: "Dataset",
    new_model: "Callable[[Recipe], keras.Model]",
    trials: int,
    seed: int = 0,
    report: Callable[[str], Any] = print,
) -> None:
    """Runs trials until a study has a number of finished ones.

    A trial's value is the validation accuracy of its last epoch; the test split
    is not used. A trial that diverges or runs out of memory counts as pruned.
    On a signal, raises `Stopped`; the trial in progress will be run again.

    Args:
        trials: Number of finished trials, including those of other processes.
        seed: Seed of the weights, shuffling and augmentation of each trial.
    """
    import keras
    from optuna import TrialPruned
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    from keras_resnet_cifar.training.callbacks import StopOnSignal
    from keras_resnet_cifar.training.train import train

    data = replace(data, test=None)
    stop = StopOnSignal()
    begun, ended = [], []

    def objective(trial):
        begun.append(trial.number)
        changes = {p.name: p.suggest(trial) for p in parameters}

        def prune(epoch, logs):
            trial.report(logs["val_accuracy"], epoch)
            last = epoch + 1 == applied.epochs
            if not last and trial.should_prune():
                accuracy = f"validation {logs['val_accuracy']:.4f}"
                raise TrialPruned(f"{accuracy} after epoch {epoch + 1}")

        pruning = keras.callbacks.LambdaCallback(on_epoch_end=prune)
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed)
        values = ", ".join(f"{k}={v}" for k, v in changes.items())
        line = f"trial {trial.number}, {values}:"
        settings: Any = {"seed": seed, "callbacks": [pruning, stop]}
        try:
            applied = get_recipe(recipe, **changes)
            run = train(
                new_model(applied), data, applied, verbose=False, **settings
            )
        except (Diverged, OutOfMemory, TrialPruned) as error:
            ended.append(f"{line} pruned, {error}")
            raise TrialPruned(str(error)) from error
        accuracy = run.history[-1]["val_accuracy"]
        ended.append(f"{line} validation {accuracy:.4f}")
        return accuracy

    with stop.listening():
        while len(finished(study)) < trials:
            stop.check()
            try:
                study.optimize(objective, n_trials=1)
            except KeyboardInterrupt:
                again = study.trials[begun[-1]]
                RetryHeartbeatStaleTrialCallback()(study, again)
                raise
            report(ended.pop())  # after the study has recorded it


def finished(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Returns the trials that are complete or pruned."""
    from optuna.trial import TrialState

    states = (TrialState.PRUNED, TrialState.COMPLETE)
    return study.get_trials(deepcopy=False, states=states)


def draw(study: "optuna.Study", folder: Path) -> list[Path]:
    """Draws history.png and, if the trials differ, importance.png."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    drawings: dict[str, Any] = {"history.png": plots.plot_optimization_history}
    complete = [t for t in finished(study) if t.state.name == "COMPLETE"]
    if len({trial.value for trial in complete}) > 1:
        drawings["importance.png"] = plots.plot_param_importances
    pyplot.switch_backend("agg")
    for name, plot in drawings.items():
        with pyplot.rc_context():  # Optuna sets a style
            figure = plot(study, target_name="validation accuracy").figure
            with atomic_write(folder / name) as temporary:
                figure.savefig(temporary, dpi=110, bbox_inches="tight")
            pyplot.close(figure)
    return [folder / name for name in drawings]
