"""The contenders that run on PyTorch; none of them imports Keras."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks.setting import Setting, cores
from benchmarks.torch_loop import TorchLoop
from benchmarks.workers import LeftOut, Rounds
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.models.architectures import resolve


def train(
    setting: Setting, rounds: Rounds, compiler: str | None = None
) -> None:
    """A plain PyTorch loop, channels_last, all images on the device.

    `compiler` is a mode of `torch.compile`; `"reduce-overhead"` uses CUDA
    graphs. By default, the loop runs eagerly.
    """
    loop = _loop(setting, compiler)
    batches = loop.batches()
    if compiler:
        try:
            loop.train(batches, 1)
        except Exception as error:  # no C++ compiler, no Triton, ...
            raise LeftOut(f"torch.compile fails: {one_line(error)}") from error
    rounds.measure(lambda steps: loop.train(batches, steps), setting)


def train_dataloader(setting: Setting, rounds: Rounds) -> None:
    """The eager loop, fed image by image by a `DataLoader`."""
    loop = _loop(setting)
    batches = loop.loaded(workers=min(len(cores()), 8))
    rounds.measure(lambda steps: loop.train(batches, steps), setting)


def evaluate(setting: Setting, rounds: Rounds) -> None:
    """The same images through the same net, float32, eager."""
    loop = _loop(replace(setting, precision="float32"))

    def run(steps):
        for _ in range(-(-steps // setting.epoch_steps)):
            loop.evaluate()

    rounds.measure(run, setting)


RUN: dict[str, Callable[[Setting, Rounds], None]] = {
    "torch-eager": train,
    "torch-compile": partial(train, compiler="default"),
    "torch-graphs": partial(train, compiler="reduce-overhead"),
    "torch-dataloader": train_dataloader,
    "torch-evaluate": evaluate,
}


def device_memory() -> int | None:
    """Peak bytes that PyTorch has used on its GPU."""
    cuda = torch.cuda.is_available()
    return torch.cuda.max_memory_allocated() if cuda else None


def _loop(setting: Setting, compiler: str | None = None) -> TorchLoop:
    if torch.cuda.is_available() != setting.accelerated:
        raise LeftOut("PyTorch and Keras use different kinds of device")
    if setting.precision not in ("float32", "mixed_bfloat16"):
        raise LeftOut(f"the PyTorch loop does not support {setting.precision}")
    info, arch = DATASETS["cifar10"], resolve(setting.arch)
    data = (*setting.noise(), info.mean, info.std)
    try:
        return TorchLoop(
            arch, setting.recipe(), *data, setting.precision, compiler
        )
    except InputError as error:
        raise LeftOut(str(error)) from error
