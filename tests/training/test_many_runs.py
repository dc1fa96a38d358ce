"""Many processes: how many at a time, on which GPU, and how they end."""

import os
import signal
import sys

import pytest
from helpers import refusal

from keras_resnet_cifar.errors import Stopped
from keras_resnet_cifar.training import many_runs
from keras_resnet_cifar.training.many_runs import Task, flags, run_all


def python(program, *arguments):
    return [sys.executable, "-c", program, *map(str, arguments)]


def ends_with(code):
    return python(f"raise SystemExit({code})")


def test_values_become_flags():
    options = {"batch_size": 64, "flip": False, "param": ["a=1", "b=2"]}
    words = "--batch-size 64 --no-flip --param a=1 --param b=2"
    assert " ".join(flags(options)) == words


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_that_fails_does_not_stop_the_others(jobs, tmp_path):
    ended, lines = [], []
    touch = python("import sys; open(sys.argv[1], 'w')", tmp_path / "done")
    tasks = [
        Task("bad", "a", iter([ends_with(3), touch]), lambda: ended.append(1)),
        Task("good", "b", iter([ends_with(0), ends_with(0)])),
    ]
    failed = run_all(tasks, "again", jobs, report=lines.append)
    assert failed == {"bad": 3}
    assert lines == ["bad failed with exit code 3"]
    assert ended == [1] and not (tmp_path / "done").exists()


def test_what_is_alike_is_not_tried_once_refused():
    lines = []
    tasks = [Task(str(n), "row", iter([ends_with(2)])) for n in range(3)]
    assert run_all(tasks, "again", report=lines.append) == {"0": 2}
    assert lines == ["row: skipped"]


def test_processes_at_a_time_share_the_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert many_runs.checked_jobs(None) == 2
    write = "import os, sys; open(sys.argv[1], 'w').write(os.environ['{}'])"
    write = write.format("CUDA_VISIBLE_DEVICES")
    files = [tmp_path / "a", tmp_path / "b"]
    tasks = [Task(f.name, "", iter([python(write, f)])) for f in files]
    assert run_all(tasks, "again", jobs=2) == {}
    assert sorted(f.read_text() for f in files) == ["3", "5"]
    run_all([Task("one", "", iter([python(write, files[0])]))], "again")
    assert files[0].read_text() == "3,5"  # it has them all


@pytest.mark.parametrize(("gpus", "first"), [("0", "0.30"), ("0,1", "0.45")])
def test_processes_on_a_gpu_share_its_memory(
    gpus, first, monkeypatch, tmp_path
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    name, file = "XLA_PYTHON_CLIENT_MEM_FRACTION", tmp_path / "share"
    code = f"import os; open({str(file)!r}, 'w').write(os.environ['{name}'])"
    for share in first, "0.1":
        assert run_all([Task("", "", iter([python(code)]))], "", jobs=3) == {}
        assert file.read_text() == share
        monkeypatch.setenv(name, "0.1")  # the user's own value stays


def test_without_gpus_trainings_take_turns(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert many_runs.checked_jobs(None) == 1
    assert "jobs=0: must be at least 1" in refusal(many_runs.checked_jobs, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all(number):
    """The second process sends it to this one; the third does not begin."""
    wait = "import signal; signal.pause()"
    send = f"import os; os.kill({os.getpid()}, {int(number)})"
    commands = [python(wait), python(f"{send}; {wait}"), python(wait)]
    tasks = [Task(str(n), "", iter([c])) for n, c in enumerate(commands)]
    before = signal.signal(number, signal.SIG_DFL)  # pytest under nohup
    try:
        with pytest.raises(Stopped) as stopped:
            run_all(tasks, "python again", jobs=2)
    finally:
        signal.signal(number, before)
    assert stopped.value.number == number
    assert stopped.value.__notes__ == ["to continue: python again"]


def test_a_closed_terminal_is_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send = f"import os; os.kill({os.getpid()}, {int(signal.SIGHUP)})"
        assert run_all([Task("a", "", iter([python(send)]))], "again") == {}
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_of_a_task_ends_the_others():
    def commands():
        raise ZeroDivisionError
        yield

    tasks = [Task("a", "", commands()), Task("b", "", iter([ends_with(0)]))]
    with pytest.raises(ZeroDivisionError):
        run_all(tasks, "again")
