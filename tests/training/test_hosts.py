"""Two processes train as one does, and stop, end and resume together."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.data.batches import ShuffledBatches, StepNumbers
from keras_resnet_cifar.training import hosts, train
from keras_resnet_cifar.training.run_directory import RunDirectory

ON_JAX = keras.backend.backend() == "jax"
TESTS = Path(__file__).parents[1]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(folder, action, devices, *place, **variables):
    """Starts tests/two_processes.py."""
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",  # compiles faster
        "--xla_llvm_disable_expensive_passes=true",
    )
    settings = {
        "KERAS_BACKEND": "jax",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": " ".join(flags),
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)]),
    }
    command = [sys.executable, TESTS / "two_processes.py", folder, action]
    return subprocess.Popen(
        [*command, *map(str, place)],
        env=os.environ | settings | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """Returns (exit code, output, errors) of each process."""
    ended = []
    try:
        for process in processes:
            output = process.communicate(timeout=600)
            ended.append((process.returncode, *output))
    finally:
        for process in processes:
            process.kill()
    return ended


def pair(folder, action):
    address = f"127.0.0.1:{free_port()}"
    return finish(*(start(folder, action, 2, address, i) for i in range(2)))


def slurm_pair(folder, action):
    """As srun starts them. JAX makes a port of the job's number."""

    def variables(number):
        return {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
        }

    return finish(
        *(start(folder, action, 2, "auto", i, **variables(i)) for i in range(2))
    )


def results(ended):
    for code, _, errors in ended:
        assert code == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for _, output, _ in ended]


def weights(folder, name):
    with np.load(folder / f"{name}.npz") as file:
        return [file[key] for key in file.files]


def difference(folder, one, other):
    pairs = zip(weights(folder, one), weights(folder, other), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if not ON_JAX:
        pytest.skip("several processes need JAX: KERAS_BACKEND=jax")
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder):
    """What two processes print that train without a stop."""
    return results(pair(folder, "whole"))


# Sums over a batch have another order in two processes.
@pytest.mark.slow
def test_two_processes_train_as_one(whole, folder):
    (alone,) = results(finish(start(folder, "alone", 4)))
    assert difference(folder, "whole-0", "whole-1") == 0.0
    assert difference(folder, "whole-0", "alone-0") <= 1e-6
    for found in whole:
        assert found["devices"] == 4
        for one, other in zip(found["history"], alone["history"], strict=True):
            assert one == pytest.approx(other, abs=1e-4)
        assert found["metrics"] == whole[0]["metrics"]
        for name, result in found["metrics"].items():
            expected = alone["metrics"][name]["test"]["loss"]
            assert result["test"]["loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_a_killed_process_ends_the_others(whole, folder):
    """Then all stop at a signal to one, and resume to the same bits."""
    (first, _, errors), (second, *_) = pair(folder, "killed")
    assert second == -signal.SIGKILL
    assert first != 0
    assert errors
    resumed = results(slurm_pair(folder, "resumed"))
    for process, found in enumerate(resumed):
        assert found["signal"] == signal.SIGTERM
        assert found["steps"] == 6
        assert found["metrics"] == whole[0]["metrics"]
        assert difference(folder, "whole-0", f"killed-{process}") == 0.0


@pytest.mark.slow
def test_the_first_process_may_die(folder):
    """It writes the run, and the others are connected through it."""
    (first, *_), (second, _, errors) = pair(folder, "first-killed")
    assert first == -signal.SIGKILL
    assert second > 0 or second == -signal.SIGABRT
    assert errors
    run = RunDirectory(folder / "first-killed")
    assert run.config.exists() and not run.metrics.exists()


@pytest.mark.slow
def test_processes_that_are_not_alike_are_refused(folder):
    for action, devices, text in (
        ("seeded", (2, 2), "the processes differ in an option"),
        ("whole", (1, 3), "give each process the same number"),
    ):
        address = f"127.0.0.1:{free_port()}"
        ended = finish(
            *(
                start(folder / "refused", action, count, address, process)
                for process, count in enumerate(devices)
            )
        )
        for code, _, errors in ended:
            assert code == 1
            assert text in errors.splitlines()[-1]
    assert not (folder / "refused").exists()


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer(folder):
    """Nor does JAX find a cluster here."""
    program = f"""
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.training import hosts
hosts.WAIT = 1
try:
    hosts.join("auto")
except InputError as error:
    print(error, flush=True)
hosts.join("127.0.0.1:{free_port()}", 2, 1)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stdout.startswith("coordinator=auto: JAX finds no cluster")
    assert ended.stderr.startswith("error: not all processes connected to the")
    assert "within 1 s" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (("host", 2, 0), "coordinator=host, num_processes=2, process_id=0: "),
        ((None, 2, 0), "coordinator=, num_processes=2"),
        (("host:1", 2, 2), "process_id=2: give HOST:PORT"),
        (("host:1", 2, None), "num_processes=2, process_id="),
        (("host:1", "two", 0), "num_processes=two"),
        (("host:65536", 2, 0), "coordinator=host:65536"),
        (("auto", 2, 0), "or only auto under Slurm"),
    ],
)
@pytest.mark.parametrize("by_variables", [False, True])
def test_bad_values_are_refused(values, text, by_variables, monkeypatch):
    if by_variables:
        for variable, value in zip(hosts.VARIABLES, values, strict=True):
            monkeypatch.setenv(variable, str("" if value is None else value))
        values = ()
    line = refusal(hosts.join, *values)
    assert text in line if ON_JAX else line.startswith("several processes need")


@pytest.mark.skipif(not ON_JAX, reason="JAX alone connects processes")
def test_a_port_that_is_in_use():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        line = refusal(hosts.join, f"127.0.0.1:{port}", 2, 0)
    assert f":{port}: choose another port" in line


def test_one_process_needs_no_others(monkeypatch):
    for variable in hosts.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    hosts.join()
    assert hosts.count() == 1
    assert hosts.is_first()
    assert hosts.largest(3) == 3
    with hosts.together():
        pass


def test_values_of_all_processes_are_compared(monkeypatch):
    hosts.check_same("one process", None)
    monkeypatch.setattr(hosts, "largest", lambda number: max(number, 5))
    assert "the processes differ" in refusal(hosts.check_same, "another's is 5")


def test_a_folder_that_is_not_shared_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "_LATE", 0)
    line = refusal(train._check_shared, RunDirectory(tmp_path))
    assert "on a shared file system" in line


def test_a_fault_elsewhere_ends_all(monkeypatch):
    monkeypatch.setattr(hosts, "largest", lambda number: 1)
    with pytest.raises(KeyError), hosts.together():
        raise KeyError
    with pytest.raises(ValueError, match="another process"), hosts.together():
        pass


def test_a_process_feeds_its_share(tiny_data, monkeypatch):
    feed = ShuffledBatches(tiny_data.train, 10, 8, seed=0, resident_bytes=0)
    images, labels = feed[1]
    parts = []
    for process in range(2):
        monkeypatch.setattr(hosts, "_place", lambda p=process: (2, p))
        feed.share = hosts.share_of(8)
        parts.append(feed[1])
    assert np.array_equal(np.concatenate([p[0] for p in parts]), images)
    assert np.array_equal(np.concatenate([p[1] for p in parts]), labels)
    # One device of a process has a row, which is not the whole batch.
    assert StepNumbers(0, 4, 2, devices=1)[0][0].shape == (1, 2)
