"""Several devices share a batch, and train as one does."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import refusal

from keras_resnet_cifar.data.batches import StreamedSplit
from keras_resnet_cifar.data.load import Split
from keras_resnet_cifar.training import data_parallel
from keras_resnet_cifar.training.train import train

ON_JAX = keras.backend.backend() == "jax"
TESTS = Path(__file__).parents[1]
PROGRAM = TESTS / "four_devices.py"
SETTINGS = {
    "KERAS_BACKEND": "jax",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)]),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What tests/four_devices.py prints."""
    if not ON_JAX:
        pytest.skip("several devices need JAX: KERAS_BACKEND=jax")
    process = subprocess.run(
        [sys.executable, PROGRAM, tmp_path_factory.mktemp("runs")],
        env=os.environ | SETTINGS,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


# Sums over a batch have another order on four devices: float32 rounds them
# apart by some 1e-7, and each step adds to that.
@pytest.mark.slow
def test_four_devices_train_as_one(found):
    assert found["after one step"] <= 1e-6
    assert found["after a run"] <= 1e-4
    assert found["losses"] <= 1e-4
    assert found["config"] == 4


@pytest.mark.slow
def test_four_devices_fine_tune_as_one(found):
    assert found["fine-tuned"] <= 1e-4


@pytest.mark.slow
def test_a_run_on_four_devices_resumes_to_the_same_bits(found):
    assert found["resumed on same"] == 0.0
    assert found["warnings on same"] == []


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices(found):
    (line,) = found["warnings on other"]
    assert "devices=1, which was 4" in line
    assert "last digits" in line
    assert found["resumed on other"] <= 1e-4


@pytest.mark.slow
def test_a_distribution_ends_with_the_run(found):
    assert found["distribution after a run"] == "None"
    assert found["devices of the model"] == 1


@pytest.mark.slow
def test_a_distribution_of_the_user_is_respected(found):
    assert found["own"] == 0.0
    assert found["own kept"]


@pytest.mark.slow
def test_a_step_sums_and_moves_no_images(found):
    """Two sums for each BatchNorm, one each way; all gradients are one."""
    collectives = found["collectives of fast"]
    assert {name for name, _ in collectives} == {"all-reduce"}
    assert len(collectives) == 2 * 7 + 1


def split_of(count, side=2):
    images = np.full((count, side, side, 3), 128, "uint8")
    return Split(images, np.zeros(count, "int64"))


def with_splits(data, **splits):
    return dataclasses.replace(data, **splits)


def test_each_device_gets_the_same_share(tiny_data):
    data_parallel.check_shares(4, tiny_data, 32)
    data_parallel.check_shares(1, tiny_data, 33)
    line = refusal(data_parallel.check_shares, 4, tiny_data, 126)
    assert "batch_size=124 or batch_size=128" in line
    line = refusal(data_parallel.check_shares, 4, tiny_data, 3)
    assert "such as batch_size=4" in line
    prime = with_splits(tiny_data, validation=split_of(4999))
    data_parallel.check_shares(1, prime, 32)
    line = refusal(data_parallel.check_shares, 4, prime, 32)
    assert "validation=4998" in line
    stream = with_splits(tiny_data, train=StreamedSplit([]))
    assert "stream" in refusal(data_parallel.check_shares, 4, stream, 32)


@pytest.mark.skipif(not ON_JAX, reason="JAX counts its devices")
@pytest.mark.parametrize("devices", [0, -1, True, "two", 1.5])
def test_a_wrong_number_of_devices_is_refused(devices):
    line = refusal(data_parallel.distribution_of, devices, None)
    assert "devices=" in line
    assert "give" in line


@pytest.mark.skipif(not ON_JAX, reason="JAX counts its devices")
def test_more_devices_than_there_are():
    there = len(keras.distribution.list_devices())
    line = refusal(data_parallel.distribution_of, 999, None)
    assert line.endswith(f"give devices={there}")


@pytest.mark.skipif(ON_JAX, reason="JAX has several devices")
def test_other_backends_name_jax(tiny_model, tiny_data, tmp_path):
    with pytest.raises(ValueError, match="devices=2 needs JAX"):
        train(tiny_model(), tiny_data, output_dir=tmp_path / "run", devices=2)
    assert not (tmp_path / "run").exists()
    assert data_parallel.distribution_of(1, None) is None


@pytest.mark.skipif(not ON_JAX, reason="distributions are JAX's")
def test_a_distribution_and_a_number_exclude_each_other():
    with keras.distribution.DataParallel().scope():
        line = refusal(data_parallel.distribution_of, 2, None)
    assert "set_distribution" in line


@pytest.mark.skipif(not ON_JAX, reason="distributions are JAX's")
def test_several_processes_use_all_devices(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("keras.distribution.list_devices", lambda: [None] * 6)
    line = refusal(data_parallel.distribution_of, 2, None)
    assert "devices=2: 2 processes always use all of their 6 devices" in line


def test_another_number_of_devices_is_told():
    with pytest.warns(UserWarning, match="which was 4.*last digits"):
        data_parallel.warn_if_changed("devices", 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data_parallel.warn_if_changed("devices", 4, 4)
