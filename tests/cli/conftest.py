"""One trained run for all tests of the commands, and copies of it."""

import contextlib
import io
import shutil

import numpy as np
import pytest

from keras_resnet_cifar.cli.main import main
from keras_resnet_cifar.data import shapes

FAST = ("--arch", "resnet8", "--epochs", "2", "--batch-size", "64")


@pytest.fixture(scope="session")
def run():
    """Runs a command in this process; returns its exit code."""
    return lambda *arguments: main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def data_options(tmp_path_factory):
    """The options of a cifar10 of 256 + 64 drawn images, in npz."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10").mkdir()
    for split, count, seed in (("train", 256, 0), ("test", 64, 1)):
        x, y = shapes.draw(count, seed=seed)
        np.savez(folder / "cifar10" / f"{split}.npz", x=x, y=y)
    return "--dataset", "cifar10", "--data-dir", folder, "--allow-unverified"


@pytest.fixture(scope="session")
def fast(data_options):
    """The options of a training of seconds."""
    return *FAST, *data_options


@pytest.fixture(scope="session")
def trained(run, fast, tmp_path_factory):
    """A finished run, not to be changed, and what the command printed."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    options = ["--validation", 56, "--checkpoint-every", 1, "--source", "disk"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run("train", *fast, *options, "--output-dir", directory) == 0
    return directory, output.getvalue()


@pytest.fixture
def finished_run(trained, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(trained[0], tmp_path / "run")
