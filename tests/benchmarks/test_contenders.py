"""Each contender measures its rounds, in this process, on a small net."""

from dataclasses import replace

import keras
import pytest

from benchmarks import contenders
from benchmarks.setting import Setting
from benchmarks.workers import LeftOut, Rounds, Worker
from keras_resnet_cifar.device import has_accelerator

SMALL = Setting("resnet8", 16, "float32", 2, 2, has_accelerator())


class Enough(Exception):
    """Two rounds have been measured."""


class RecordedRounds(Rounds):
    """Records what a contender reports, and stops it after two rounds."""

    def __init__(self):
        self.reports = []

    def send(self, message):
        if message == "ready" and self.reports.count("result") == 2:
            raise Enough
        self.reports.append("result" if isinstance(message, dict) else message)

    def _wait(self):
        self.reports.append("go")


def check_contender(name):
    rounds = RecordedRounds()
    with pytest.raises(Enough):
        contenders.run(name, SMALL, rounds)
    assert rounds.reports == ["first step", *["ready", "go", "result"] * 2]


@pytest.mark.parametrize("name", ["fit", "step", "keras-step", "evaluate"])
def test_keras_contenders(name):
    check_contender(name)


@pytest.mark.slow
def test_the_pipeline_of_keras_users_is_of_tensorflow():
    if keras.backend.backend() == "tensorflow":
        check_contender("keras")
    else:
        with pytest.raises(LeftOut, match="KERAS_BACKEND=tensorflow"):
            contenders.run("keras", SMALL, RecordedRounds())


@pytest.mark.parametrize("name", ["torch-eager", "torch-evaluate"])
def test_torch_contenders(name):
    pytest.importorskip("torch", reason="it is PyTorch that is timed")
    check_contender(name)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_facts_of_the_machine(precision):
    class Facts(RecordedRounds):
        def send(self, message):
            self.facts = message

    rounds = Facts()
    setting = replace(SMALL, precision=precision)
    contenders.run("machine", setting, rounds)
    assert rounds.facts["backend"] == keras.backend.backend()
    assert rounds.facts["precision"] == precision
    assert (rounds.facts["accelerator"] is not None) == SMALL.accelerated
    assert rounds.facts["operations_per_second"] > 1e6


@pytest.mark.slow
def test_a_contender_in_a_process_of_its_own():
    """It forks, so it must have one: JAX forbids it in this process."""
    pytest.importorskip("torch", reason="it is PyTorch that is timed")
    worker = Worker(contenders.run, "torch-dataloader", SMALL, {})
    try:
        worker.first_step()
        worker.receive()
        assert worker.measure()["images_per_second"] > 0
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"accelerated": not SMALL.accelerated}, "device"),
        ({"precision": "mixed_float16"}, "does not support mixed_float16"),
        ({"arch": "resnet20-preact"}, "resnet20-preact has no counterpart"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_pytorch_cannot_be_compared_in_is_left_out(change, reason):
    pytest.importorskip("torch", reason="it is PyTorch that is timed")
    with pytest.raises(LeftOut, match=reason):
        setting = replace(SMALL, **change)
        contenders.run("torch-eager", setting, RecordedRounds())
