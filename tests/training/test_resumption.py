"""A run that is stopped anywhere goes on to the same bits."""

import dataclasses
import errno
import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
import supervisor
from helpers import TINY

from keras_resnet_cifar.data.batches import ShuffledBatches
from keras_resnet_cifar.data.load import Split
from keras_resnet_cifar.errors import Diverged, InputError, Stopped
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training import compilation, run_directory
from keras_resnet_cifar.training import train as train_module
from keras_resnet_cifar.training.checkpointing import Backup, Snapshot
from keras_resnet_cifar.training.recipes import get_recipe
from keras_resnet_cifar.training.run_directory import RunDirectory, find_run
from keras_resnet_cifar.training.train import train

SMALL = {"epochs": 3, "batch_size": 16, "precision": "float32"}
# What a resumed run must restore as well.
SMALL |= {"ema": 0.9, "mixup": 0.2, "cutout": 8}


def place(folder):
    """Whole epochs and steps in all, by the backup."""
    snapshot = Snapshot.read(folder / "backup.npz")
    counters = [v for v in snapshot.variables if v.dtype == "int32"]
    return len(snapshot.rows), int(counters[0])


class Fault(RuntimeError):
    pass


def fault():
    raise Fault


def send(number):
    return lambda: os.kill(os.getpid(), number)


class At(keras.callbacks.Callback):
    """Does something once, at a moment of the second epoch."""

    def __init__(self, moment, action):
        super().__init__()
        setattr(self, moment, self._run)
        self.action = action

    def on_epoch_begin(self, epoch, logs=None):
        self.second = epoch == 1

    def _run(self, index=None, logs=None):
        if self.second and self.action:
            action, self.action = self.action, None
            action()


def train_small(data, folder, seed=0, steps=6, **kwargs):
    """Trains a small net, its epochs of 16 steps in calls of up to 6."""
    keras.utils.set_random_seed(seed)
    model = build_resnet(**TINY, normalization="shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "steps_per_execution", lambda *_: steps)
        return train(
            model, data, output_dir=folder, verbose=False, **(SMALL | kwargs)
        )


@pytest.fixture
def run_of(tiny_data, tmp_path):
    """Trains into a folder of a name."""

    def run(name, **kwargs):
        return train_small(tiny_data, tmp_path / name, **kwargs)

    return run


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train_small(tiny_data, folder)
    return folder


@pytest.fixture
def listening_to_sigint():
    """Where the tests run in the background, the shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("on_test_begin", signal.SIGTERM),
        ("on_epoch_end", signal.SIGTERM),
        ("on_train_batch_end", signal.SIGTERM),
        ("on_train_batch_end", signal.SIGINT),
    ],
)
def test_a_signal_saves_the_step_in_flight(
    moment, number, run_of, whole, tmp_path, listening_to_sigint
):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as stopped:
        run_of("parts", callbacks=[At(moment, send(number))])
    assert stopped.value.number == number
    now = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert now == handlers
    resumed = run_of("parts", seed=5, resume=True)
    assert len(resumed.history) == 3
    assert supervisor.differences(whole, tmp_path / "parts") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["on_train_batch_end", "on_test_begin", "on_epoch_end"]
)
def test_a_fault_in_a_callback_does_not_lose_the_epoch(
    moment, run_of, whole, tmp_path
):
    with pytest.raises(Fault):
        run_of("parts", callbacks=[At(moment, fault)])
    expected = {
        "on_train_batch_end": (1, 16 + 6),
        "on_test_begin": (1, 16 + 16),
        "on_epoch_end": (2, 32),
    }
    assert place(tmp_path / "parts") == expected[moment]
    run_of("parts", resume=True)
    assert supervisor.differences(whole, tmp_path / "parts") == []


@pytest.mark.slow
def test_a_fault_after_the_last_step_without_validation(tiny_data, tmp_path):
    data = dataclasses.replace(tiny_data, validation=None)
    options = {"epochs": 2, "steps": 16}
    whole = train_small(data, tmp_path / "whole", **options).directory
    with pytest.raises(Fault):
        train_small(
            data,
            tmp_path / "parts",
            callbacks=[At("on_train_batch_end", fault)],
            **options,
        )
    parts = train_small(data, tmp_path / "parts", resume=True, **options)
    assert supervisor.differences(whole, parts.directory) == []


def test_a_backup_in_the_middle_of_an_epoch(
    run_of, whole, tmp_path, monkeypatch
):
    # Each group of steps is late for a backup, and nothing is rescued: as if
    # the process had been killed at step 12 of 16.
    monkeypatch.setattr(Backup, "save_if_new", lambda self: None)
    third = iter([None, None, Fault])
    act = At("on_train_batch_begin", None)
    act.action = lambda: _raise_at(act, third)
    with pytest.raises(Fault):
        run_of("parts", backup_every="0.001s", callbacks=[act])
    monkeypatch.undo()
    assert place(tmp_path / "parts") == (1, 16 + 12)
    run_of("parts", resume=True)
    assert supervisor.differences(whole, tmp_path / "parts") == []


def _raise_at(callback, faults):
    error = next(faults)
    if error is not None:
        raise error
    callback.action = lambda: _raise_at(callback, faults)


@pytest.mark.slow
def test_images_on_the_device_or_fed_by_the_host(
    run_of, whole, monkeypatch, tmp_path
):
    monkeypatch.setattr(ShuffledBatches.__init__, "__defaults__", (None, 0))
    run_of("fed")
    assert supervisor.differences(whole, tmp_path / "fed") == []


@pytest.mark.slow
def test_fused_steps_equal_single_ones(tiny_data, tmp_path):
    # Few steps at a low rate: training amplifies what rounding does.
    images, labels = tiny_data.train.images[:112], tiny_data.train.labels[:112]
    data = dataclasses.replace(tiny_data, train=Split(images, labels))
    low = {"epochs": 1, "learning_rate": 0.01, "mixup": 0.2}
    runs = [  # 7 steps: 3 + 3 + 1
        train_small(data, tmp_path / f"{steps}", steps=steps, **low).directory
        for steps in (1, 3)
    ]
    pairs = zip(
        *(supervisor.weights(run / "last.keras") for run in runs), strict=True
    )
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-6)
    a, b = (np.load(run / "backup.npz") for run in runs)
    for name in set(a.files) - {"state"}:  # random state and momentum as well
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX alone: KERAS_BACKEND=jax"
)
def test_a_seed_is_not_compiled_in(tiny_data):
    import jax

    def lowered(seed):
        model = build_resnet(**TINY, normalization="shapes")
        recipe = get_recipe("strong", batch_size=16, epochs=1)
        feed = ShuffledBatches(tiny_data.train, 10, 16, seed)
        trained = compilation.compile_for_training(
            model, tiny_data, recipe, "float32", seed, feed
        )
        state = tuple(
            [variable.value for variable in held]
            for held in (
                trained.trainable_variables,
                trained.non_trainable_variables,
                trained.optimizer.variables,
                trained.metrics_variables,
            )
        )
        return jax.jit(trained.train_step).lower(state, feed[0]).as_text()

    assert lowered(seed=1) == lowered(seed=2)


@pytest.mark.slow
def test_a_last_batch_of_validation_may_be_shorter(tiny_data, tmp_path):
    images = np.resize(tiny_data.train.images, (521, 32, 32, 3))  # a prime
    labels = np.resize(tiny_data.train.labels, 521)
    data = dataclasses.replace(tiny_data, validation=Split(images, labels))
    once, fused = (
        train_small(data, tmp_path / f"{steps}", steps=steps, epochs=1)
        for steps in (1, 6)
    )
    for name in ("val_loss", "val_accuracy"):
        expected = once.history[0][name]
        np.testing.assert_allclose(fused.history[0][name], expected, rtol=1e-4)


@pytest.mark.slow
def test_more_epochs_where_the_schedule_permits(run_of, tmp_path):
    constant = {"schedule": ("constant", {}), "learning_rate": 0.01}
    whole = run_of("whole", **constant).directory
    run_of("longer", **constant, epochs=1)
    longer = run_of("longer", **constant, resume=True).directory
    assert supervisor.differences(whole, longer) == []
    with pytest.raises(InputError, match="the run is already in epoch 4"):
        run_of("longer", **constant, resume=True, epochs=2)
    run_of("cycle", epochs=1)
    with pytest.raises(
        InputError, match=r"rates of the one_cycle schedule.*init_from="
    ):
        run_of("cycle", resume=True, epochs=2)


@pytest.mark.slow
def test_early_stopping_looks_at_the_history(run_of, tmp_path):
    # Muon normalizes kernels even at a rate of zero.
    still = {"learning_rate": 0.0, "patience": 2, "epochs": 9, "ema": 0.0}
    still |= {"optimizer": "sgd", "mixup": 0.0, "cutout": 0}
    whole = run_of("whole", **still)
    assert len(whole.history) == 3  # none better than the first
    with pytest.raises(Fault):
        run_of("parts", **still, callbacks=[At("on_train_batch_end", fault)])
    parts = run_of("parts", **still, resume=True)
    assert supervisor.differences(whole.directory, parts.directory) == []
    assert len(run_of("parts", **still, resume=True).history) == 3


@pytest.mark.slow
def test_what_diverged_is_not_saved(run_of, tmp_path):
    with pytest.raises(Diverged, match=r"from step \d+ of epoch 1: try"):
        run_of("run", learning_rate=1e30, backup_every="0.001s")
    with np.load(tmp_path / "run" / "backup.npz") as backup:
        for name in backup.files:
            if name.startswith(("variables", "metrics")):
                assert np.isfinite(backup[name]).all()


@pytest.mark.slow
def test_an_ignored_signal_stays_ignored(run_of, listening_to_sigint):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = At("on_train_batch_end", send(signal.SIGINT))
    assert len(run_of("run", epochs=2, callbacks=[stop]).history) == 2
    with pytest.raises(Stopped):
        terminate = At("on_train_batch_end", send(signal.SIGTERM))
        run_of("other", callbacks=[terminate])
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_run_keeps_the_files_of_whole_epochs(run_of, tmp_path):
    started = At("on_test_begin", send(signal.SIGTERM))
    with pytest.raises(Stopped):  # in the second epoch, well within a minute
        run_of("run", callbacks=[started])
    run = RunDirectory(tmp_path / "run")
    assert len(run.history.read_text().splitlines()) == 2
    best, last = (supervisor.weights(path) for path in (run.best, run.last))
    assert all(map(np.array_equal, best, last))  # of the first epoch


@pytest.mark.slow
def test_a_signal_in_the_last_evaluation(run_of, whole, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        run_of("parts", callbacks=[Stop()])
    assert not (tmp_path / "parts" / "metrics.json").exists()
    run_of("parts", resume=True)
    assert supervisor.differences(whole, tmp_path / "parts") == []


@pytest.mark.slow
def test_what_a_kill_leaves_is_in_nobodys_way(run_of, whole, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in (".0123abcd-backup.npz", "last.keras", "backup.npz"):
        (parts / name).write_text("half")  # killed before it was a run
    run_of("parts")
    assert supervisor.differences(whole, parts) == []
    (parts / ".0123abcd-best.keras").write_text("half")
    run_of("parts", resume=True)
    assert not list(parts.glob(".*"))


def test_a_backup_of_another_run(run_of, whole, tmp_path):
    run = RunDirectory(shutil.copytree(whole, tmp_path / "one"))
    snapshot = Snapshot.read(run.backup)
    dataclasses.replace(snapshot, run="another").write(run)
    with pytest.raises(InputError, match="belongs to another run"):
        run_of("one", resume=True)


def exhaust(*_):
    raise MemoryError


def test_out_of_memory_is_one_line(run_of, monkeypatch):
    remedies = "try batch_size=8 or precision='mixed_bfloat16' or a smaller net"
    with pytest.raises(InputError, match=remedies):
        run_of("run", callbacks=[At("on_train_batch_end", exhaust)])
    monkeypatch.setattr(train_module, "compile_for_training", exhaust)
    with pytest.raises(InputError, match="try batch_size=8"):
        run_of("other")


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    refused = pytest.raises(
        InputError, match=r"cannot lock .* system with locks"
    )
    with refused, RunDirectory(tmp_path).locked():
        pass


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        (5, (5, 0)),
        ("2", (2, 0)),
        ("30s", (0, 30)),
        ("10min", (0, 600)),
        ("1.5m", (0, 90)),
        ("1.5h", (0, 5400)),
    ],
)
def test_intervals(text, interval):
    assert run_directory.interval(text) == interval


@pytest.mark.parametrize("text", ["", "0", "-1", "0s", "1.5", "5days", "min"])
def test_what_is_no_interval(text):
    with pytest.raises(InputError, match="number of epochs, or a time"):
        run_directory.interval(text)


def test_patience_needs_a_validation_split(tiny_model, tiny_data):
    data = dataclasses.replace(tiny_data, validation=None)
    with pytest.raises(InputError, match="patience=2 needs a validation"):
        train(tiny_model(), data, patience=2)


@pytest.mark.slow
def test_kills(tmp_path):
    options = ("--dataset", "shapes", "--arch", "resnet8", "--epochs", "2")
    one, other = tmp_path / "undisturbed", tmp_path / "disturbed"
    supervisor.undisturbed(one, *options)
    supervisor.disturbed(other, 2, 2.0, 0, *options)
    assert supervisor.differences(one, other) == []


def test_a_foreign_config_makes_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert find_run(tmp_path / "model.keras") is None
    (tmp_path / "config.json").write_text("half")
    assert find_run(tmp_path / "model.keras") is not None


def test_resuming_a_finished_run_only_evaluates(run_of, whole, tmp_path):
    run = RunDirectory(shutil.copytree(whole, tmp_path / "run"))
    written = run.backup.stat().st_mtime_ns
    again = run_of("run", resume=True)
    assert len(again.history) == 3
    assert again.metrics == json.loads((whole / "metrics.json").read_text())
    assert run.backup.stat().st_mtime_ns == written
    assert supervisor.differences(whole, tmp_path / "run") == []


@pytest.mark.slow
def test_a_damaged_backup_falls_back_to_the_one_before(run_of, tmp_path):
    whole = run_of("whole", backup_every=1).directory
    run = RunDirectory(shutil.copytree(whole, tmp_path / "run"))
    run.backup.write_bytes(run.backup.read_bytes()[:1000])
    line = "cannot read the backup .*: resuming .* at epoch 3, step 1"
    with pytest.warns(UserWarning, match=line):
        run_of("run", resume=True)
    assert supervisor.differences(whole, tmp_path / "run") == []

    run.backup.write_bytes(b"")
    run.previous_backup.unlink()
    missing = r"backup\.npz .*-previous\.npz is mis"
    with pytest.raises(InputError, match=missing):
        run_of("run", resume=True)


def test_a_damaged_backup_does_not_replace_the_good_one(
    run_of, whole, tmp_path
):
    run = RunDirectory(shutil.copytree(whole, tmp_path / "run"))
    shutil.copy(run.backup, run.previous_backup)
    run.backup.write_text("damaged")
    with pytest.warns(UserWarning, match="resuming from the previous one"):
        run_of("run", resume=True)
    assert len(Snapshot.read(run.backup).rows) == 3
    assert not run.previous_backup.exists()
