"""What a run prints of its progress, with and without a terminal."""

import pytest

from keras_resnet_cifar.training import fitting


@pytest.fixture
def clock(monkeypatch):
    """A clock to be set: a list with the time."""
    time = [1000.0]
    monkeypatch.setattr(fitting.time, "time", lambda: time[0])
    return time


def progress_of(verbose, steps=100):
    progress = fitting._Progress(epochs=3)
    progress.set_params({"verbose": verbose, "epochs": 1, "steps": steps})
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    return progress


def test_a_bar_begins_at_once_and_tells_the_time_left(clock, capsys):
    """Without the first call, which takes a minute to compile."""
    progress = progress_of(verbose=1)
    assert capsys.readouterr().out.endswith("Epoch 1/3\n0/100 preparing")
    clock[0] += 60
    progress.on_train_batch_end(9, {"loss": 2.0})
    out = capsys.readouterr().out
    assert "10/100" in out
    assert "loss: 2.0" in out
    for done in (20, 30):
        clock[0] += 20
        progress.on_train_batch_end(done - 1, {"loss": 1.5})
    out = capsys.readouterr().out
    assert "30/100" in out
    assert "2:20" in out  # 70 steps of 2 seconds
    clock[0] += 140
    progress.on_epoch_end(0, {"loss": 1.0})
    capsys.readouterr()
    progress.on_epoch_begin(1)
    out = capsys.readouterr().out
    assert "Epoch 2/3" in out
    assert "3:20" in out  # all steps again


def test_without_a_terminal_a_line_comes_now_and_then(clock, capsys):
    progress = progress_of(verbose=2)
    for done in range(5, 100, 5):
        clock[0] += 10
        progress.on_train_batch_end(done - 1, {"loss": 2.0, "accuracy": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Epoch 1/3"
    assert len(lines) == 1 + 6  # in 190 seconds
    assert lines[1] == "15/100 - 170s left - loss: 2.0000 - accuracy: 0.5000"
    progress.on_epoch_end(0, {"loss": 1.0})
    assert capsys.readouterr().out.startswith("100/100 - 190s")


def test_a_quiet_run_prints_nothing(clock, capsys):
    progress = progress_of(verbose=0)
    clock[0] += 100
    progress.on_train_batch_end(9, {"loss": 2.0})
    assert capsys.readouterr().out == ""
