"""Sweeps: their parameters, and what becomes of their trials."""

import signal
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from helpers import refusal

from keras_resnet_cifar.errors import (
    Diverged,
    InputError,
    OutOfMemory,
    Stopped,
)
from keras_resnet_cifar.training import sweeps
from keras_resnet_cifar.training.recipes import get_recipe
from keras_resnet_cifar.training.sweeps import Parameter

optuna = pytest.importorskip("optuna", reason="sweeps need the extra sweep")
pytestmark = [
    # `sweeps.using` ignores it too.
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    # The tests ask for trials by themselves.
    pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning"),
]
RECIPE = get_recipe("onecycle", epochs=1, batch_size=64, precision="float32")
RATE = Parameter("learning_rate", "log", (0.05, 0.8))

PARAMETERS = {
    "learning_rate=log:0.05:0.8": RATE,
    "epochs=linear:4:12": Parameter("epochs", "linear", (4, 12)),
    "batch_size=choice:64,128": Parameter("batch_size", "choice", (64, 128)),
    "flip=choice:true,false": Parameter("flip", "choice", (True, False)),
    "nesterov=choice:True,False": Parameter(
        "nesterov", "choice", (True, False)
    ),
    "optimizer=choice:sgd,muon": Parameter(
        "optimizer", "choice", ("sgd", "muon")
    ),
}


@pytest.mark.parametrize("text", PARAMETERS)
def test_parameters_are_parsed_and_suggested(text):
    parameter = Parameter.parse(text, RECIPE)
    assert parameter == PARAMETERS[text]
    study = optuna.create_study()
    value = parameter.suggest(study.ask())
    assert type(value) is type(parameter.values[0])
    get_recipe(RECIPE, **{parameter.name: value})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rate=log:1:2", "unknown parameter 'rate'"),
        ("name=choice:a,b", "unknown parameter 'name'"),
        ("validation=choice:1,2", "it cannot vary"),
        ("learning_rate", "give NAME=log:LOW:HIGH"),
        ("learning_rate=log:0.8:0.05", "give NAME=log:LOW:HIGH"),
        ("learning_rate=log:0:1", "with LOW above 0"),
        ("learning_rate=log:1", "give NAME="),
        ("learning_rate=log:1:nan", "give NAME="),
        ("learning_rate=cubic:1:2", "give NAME="),
        ("epochs=linear:1.5:2", "give NAME="),
        ("batch_size=choice:", "give NAME="),
        ("batch_size=choice:64,64", "with different values"),
        ("flip=choice:yes", "give NAME="),
        ("flip=linear:false:true", "give NAME="),
        ("optimizer=linear:adam:sgd", "give NAME="),
        ("optimizer=choice:sgd,sdg", "unknown optimizer 'sdg'"),
        ("batch_size=linear:0:9", "batch_size=0: must be at least 1"),
        ("learning_rate=linear:1:inf", "must be finite"),
    ],
)
def test_other_parameters_are_refused(text, fault):
    assert fault in refusal(Parameter.parse, text, RECIPE)


@pytest.fixture
def storage(tmp_path):
    """The URL of a new database."""
    return f"sqlite:///{tmp_path / 'sweep.db'}"


def test_a_password_is_not_shown():
    storage = "postgresql://me:se@cret@host/sweeps"
    with pytest.raises(InputError) as error, sweeps.using(storage):
        sweeps.open_study(storage.replace("postgresql", "nosuch"), "study", 1)
    assert "storage=nosuch://me:***@host/sweeps" in str(error.value)
    assert "cret" not in str(error.value)


def states(study):
    return [trial.state.name for trial in study.trials]


def test_a_trial_of_a_dead_process_is_tried_again(storage, tmp_path):
    study = sweeps.open_study(storage, "study", 1)
    dead = study.ask()
    RATE.suggest(dead)
    study._storage.record_heartbeat(dead._trial_id)
    optuna.storages.fail_stale_trials(study)
    assert states(study) == ["RUNNING"]
    with closing(sqlite3.connect(tmp_path / "sweep.db")) as database:
        long_ago = "update trial_heartbeats set heartbeat = '2000-01-01'"
        database.execute(long_ago)
        database.commit()
    other = sweeps.open_study(storage, "study", 1)
    optuna.storages.fail_stale_trials(other)
    assert states(other) == ["FAIL", "WAITING"]
    assert RATE.suggest(other.ask()) == dead.params["learning_rate"]


def run(study, data, new_model, trials, recipe=RECIPE):
    lines = []
    sweeps.run_trials(
        study, [RATE], recipe, data, new_model, trials, report=lines.append
    )
    return lines


def test_trials_are_judged_without_the_test_split(
    storage, tiny_data, tiny_model
):
    study = sweeps.open_study(storage, "study", 1)
    data = replace(tiny_data, test="not to be touched")
    (line,) = run(study, data, lambda recipe: tiny_model(), 1)
    (trial,) = study.trials
    assert trial.state.name == "COMPLETE"
    assert line == (
        f"trial 0, learning_rate={trial.params['learning_rate']}: validation "
        f"{trial.value:.4f}"
    )
    assert trial.intermediate_values == {0: trial.value}
    assert run(study, data, None, 1) == []  # there are enough


@pytest.mark.parametrize("error", [Diverged, OutOfMemory])
def test_a_trial_that_cannot_end_counts_as_pruned(error, storage, tiny_data):
    def new_model(recipe):
        raise error("the loss is nan")

    study = sweeps.open_study(storage, "study", 1)
    lines = run(study, tiny_data, new_model, 2)
    assert states(study) == ["PRUNED", "PRUNED"]
    assert len(lines) == 2 and "pruned, the loss is nan" in lines[1]


def test_bad_input_ends_the_sweep(storage, tiny_data, tiny_model):
    recipe = replace(RECIPE, batch_size=257)  # of 256 images
    study = sweeps.open_study(storage, "study", 1)
    with pytest.raises(InputError, match="batch_size=257 is larger"):
        run(study, tiny_data, lambda _: tiny_model(), 2, recipe)
    assert states(study) == ["FAIL"]


@pytest.mark.slow
def test_a_trial_that_a_signal_stops_is_tried_again(
    storage, tiny_data, tiny_model
):
    def new_model(recipe):
        signal.raise_signal(signal.SIGTERM)
        return tiny_model()

    study = sweeps.open_study(storage, "study", 1)
    with pytest.raises(Stopped):
        run(study, tiny_data, new_model, 1)
    assert states(study) == ["FAIL", "WAITING"]
    first, again = study.trials
    assert again.params == first.params


@pytest.mark.slow
def test_a_trial_that_is_worse_than_others_is_pruned(
    storage, tiny_data, tiny_model
):
    study = sweeps.open_study(storage, "study", 1)
    for _ in range(5):
        values = {0: 1.0, 1: 1.0}
        study.add_trial(
            optuna.create_trial(value=1.0, intermediate_values=values)
        )
    two = replace(RECIPE, epochs=2)
    (line,) = run(study, tiny_data, lambda recipe: tiny_model(), 6, two)
    assert states(study)[-1] == "PRUNED"
    assert line.endswith("after epoch 1")
    # After its last epoch, a trial has its value.
    run(study, tiny_data, lambda recipe: tiny_model(), 7)
    assert states(study)[-1] == "COMPLETE"


def test_pictures_of_a_study(storage, tmp_path):
    study = sweeps.open_study(storage, "study", 1)
    names = []
    for value in (0.5, 0.6, 0.7):
        trial = study.ask()
        RATE.suggest(trial)
        study.tell(trial, value)
        names.append([path.name for path in sweeps.draw(study, tmp_path)])
    assert names[0] == ["history.png"]
    assert names[2] == ["history.png", "importance.png"]
    for name in names[2]:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
