"""What the benchmark times: one small function each, in a process of its own.

A contender is a function `(setting, turns)`: it takes its first step, warms
up, and then measures a turn whenever it is told to, until its process ends.
`python -m benchmarks.contenders NAME SETTING` is such a process.
"""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass

import numpy as np

from benchmarks.workers import LeftOut, serve
from keras_resnet_cifar.cli.start import import_keras
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.models import architectures
from keras_resnet_cifar.training.recipes import get_recipe

_INFO = DATASETS["cifar10"]
_LONGEST_EPOCH = 50_000  # images, as of CIFAR-10


@dataclass(frozen=True)
class Setting:
    """What all contenders of a run have in common.

    Attributes:
        arch: Name of the net.
        batch_size: Images a step.
        precision: A Keras dtype policy, or `"auto"` for `machine` to resolve.
        steps: Steps a turn.
        turns: How many turns there will be, with the warm-up.
        accelerated: Whether Keras's backend has a GPU or TPU.
    """

    arch: str = "resnet20"
    batch_size: int = 128
    precision: str = "auto"
    steps: int = 50
    turns: int = 6
    accelerated: bool = False

    @property
    def epochs_per_turn(self):
        """One, or as many as keep an epoch no longer than CIFAR-10's."""
        return -(-self.steps * self.batch_size // _LONGEST_EPOCH)

    @property
    def epoch_steps(self):
        return max(self.steps // self.epochs_per_turn, 1)

    @property
    def turn_steps(self):
        """Steps a turn in whole epochs: `steps`, or a few less."""
        return self.epochs_per_turn * self.epoch_steps

    @property
    def images(self):
        """Images a turn."""
        return self.turn_steps * self.batch_size

    @property
    def epochs(self):
        return (self.turns + 2) * self.epochs_per_turn  # never the last

    def recipe(self):
        """The recipe of all training contenders: crops, flips, SGD."""
        return get_recipe(
            "onecycle",
            batch_size=self.batch_size,
            precision=self.precision,
            epochs=self.epochs,
        )

    def noise(self):
        """Images and labels of an epoch: what is in them costs nothing."""
        generator = np.random.default_rng(0)
        count = self.epoch_steps * self.batch_size
        images = generator.integers(0, 256, (count, 32, 32, 3), "uint8")
        return images, (np.arange(count) % _INFO.num_classes).astype("uint8")

    def data(self):
        """The same as a `Dataset`, for `train`."""
        from keras_resnet_cifar.data.load import Dataset, Split

        split = Split(*self.noise())
        return Dataset(
            name=_INFO.name,
            train=split,
            validation=None,
            test=split,
            class_names=_INFO.class_names,
            source="random numbers",
            fingerprints={},
            verified=False,
            request={},
        )

    def model(self):
        from keras_resnet_cifar.models.resnet import build_resnet

        return build_resnet(self.arch, input_shape=(32, 32, 3))


# --- Keras


def fit(setting, turns):
    """`train` as users call it: feed, augmentation, metrics, callbacks."""
    import_keras()
    import keras

    from keras_resnet_cifar.training.train import train

    per_turn = setting.epochs_per_turn

    class TakeTurns(keras.callbacks.Callback):
        """Holds `fit` back before a turn's first epoch."""

        async_safe = True  # it reads the logs once
        stepped = False

        def on_epoch_begin(self, epoch, logs=None):
            if epoch >= per_turn and epoch % per_turn == 0:
                turns.begin()

        def on_train_batch_end(self, batch, logs=None):
            if not self.stepped:
                float(logs["loss"])  # waits
                turns.first_step()
                self.stepped = True

        def on_epoch_end(self, epoch, logs=None):
            if epoch >= per_turn and (epoch + 1) % per_turn == 0:
                turns.end(setting.images)

    turns.memory = _keras_device_memory
    train(
        setting.model(),
        setting.data(),
        setting.recipe(),
        callbacks=[TakeTurns()],
        verbose=False,
    )


def step(setting, turns):
    """The compiled train step alone, on one batch that is already there."""
    import_keras()
    from keras_resnet_cifar.data.batches import ShuffledBatches, one_hot
    from keras_resnet_cifar.training.compilation import compiled

    data, size = setting.data(), setting.batch_size
    feed = ShuffledBatches(data.train, data.num_classes, size, seed=0)
    model = compiled(
        setting.model(), data, setting.recipe(), setting.precision, 0, feed
    )
    turns.memory = _keras_device_memory
    targets = one_hot(data.train.labels[:size], data.num_classes)
    run = _bare_steps(model, data.train.images[:size], targets)
    _take_turns(setting, turns, run)


def _bare_steps(model, images, targets):
    """A function that runs so many of Keras's own train steps, to their end.

    There is no augmentation, no feed and no callback.
    """
    import keras

    batch = tuple(keras.ops.convert_to_tensor(a) for a in (images, targets))
    if keras.backend.backend() == "jax":
        return _bare_jax_steps(model, batch)

    def one():
        return keras.Model.train_step(model, batch)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        one = tf.function(one, jit_compile=model.jit_compile)

    def run(steps):
        for _ in range(steps):
            one()
        keras.ops.convert_to_numpy(model.network.weights[0])  # waits

    return run


def _bare_jax_steps(model, batch):
    import jax
    import keras

    one = jax.jit(
        lambda state, batch: keras.Model.train_step(model, state, batch)[1],
        donate_argnums=0,
    )
    state = tuple(
        [jax.numpy.copy(variable.value) for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state = one(state, batch)
        jax.block_until_ready(state)

    return run


def evaluate(setting, turns):
    """`evaluate` as users call it, on the model of stock layers."""
    import_keras()
    from keras_resnet_cifar.evaluation.evaluate import evaluate as evaluation_of

    model, data = setting.model(), setting.data()
    turns.memory = _keras_device_memory

    def run(steps):
        for _ in range(-(-steps // setting.epoch_steps)):
            evaluation_of(model, data.test, data.class_names)

    _take_turns(setting, turns, run)


def _take_turns(setting, turns, run):
    """Runs the first step, the warm-up, and then a turn at a time."""
    run(1)
    turns.first_step()
    run(setting.turn_steps)
    while True:
        turns.begin()
        run(setting.turn_steps)
        turns.end(setting.images)


def _keras_device_memory():
    """Bytes that Keras's backend has held on its accelerator at the peak."""
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        return _torch_device_memory()
    if backend == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


# --- PyTorch


def torch_eager(setting, turns):
    """A plain PyTorch loop, channels_last, its data on the device."""
    _torch_training(setting, turns)


def torch_compile(setting, turns):
    """The same with `torch.compile`."""
    _torch_training(setting, turns, compiler="default")


def torch_graphs(setting, turns):
    """The same with `torch.compile(mode="reduce-overhead")`: CUDA graphs."""
    _torch_training(setting, turns, compiler="reduce-overhead")


def torch_dataloader(setting, turns):
    """The plain loop, its batches made image by image by a DataLoader."""
    loop = _torch_loop(setting, turns)
    batches = loop.loaded(workers=min(os.cpu_count(), 8))
    _take_turns(setting, turns, lambda steps: loop.train(batches, steps))


def _torch_training(setting, turns, compiler=None):
    loop = _torch_loop(setting, turns, compiler)
    batches = loop.batches()
    if compiler:
        try:
            loop.train(batches, 1)
        except Exception as error:  # no C++ compiler, no Triton, ...
            raise LeftOut(f"torch.compile fails: {one_line(error)}") from error
    _take_turns(setting, turns, lambda steps: loop.train(batches, steps))


def torch_evaluate(setting, turns):
    """The test split through the same net in PyTorch, float32, eager."""
    setting = dataclasses.replace(setting, precision="float32")
    loop = _torch_loop(setting, turns)

    def run(steps):
        for _ in range(-(-steps // setting.epoch_steps)):
            loop.evaluate()

    _take_turns(setting, turns, run)


def _torch_loop(setting, turns, compiler=None):
    try:
        import torch
    except ImportError:
        raise LeftOut("PyTorch is not installed") from None
    if torch.cuda.is_available() != setting.accelerated:
        raise LeftOut("PyTorch's device is not of the kind of Keras's")
    from benchmarks.torch_loop import TorchLoop

    if setting.precision not in ("float32", "mixed_bfloat16"):
        raise LeftOut(f"the PyTorch loop has no {setting.precision}")
    turns.memory = _torch_device_memory
    try:
        return TorchLoop(
            architectures.parse(setting.arch),
            setting.recipe(),
            *setting.noise(),
            _INFO.mean,
            _INFO.std,
            setting.precision,
            compiler,
        )
    except InputError as error:
        raise LeftOut(str(error)) from error


def _torch_device_memory():
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated()


# --- The machine itself


def machine(setting, turns):
    """What is here, and the least time that a train step can take on it."""
    import_keras()
    from benchmarks import roofline
    from keras_resnet_cifar.device import resolve_precision
    from keras_resnet_cifar.training.run_directory import versions

    precision = resolve_precision(setting.precision)
    device = _accelerator()
    costs = roofline.step_costs(setting.model(), setting.batch_size, precision)
    rates = roofline.measured_rates(precision, accelerated=bool(device))
    speed, bound = roofline.limit(*costs, *rates, setting.batch_size)
    turns.tell(
        facts={
            "backend": _backend(),
            "precision": precision,
            "accelerator": device,
            "versions": versions(),
            "limit": {
                "images_per_second": speed,
                "bound": bound,
                "step_operations": costs[0],
                "step_bytes": costs[1],
                "operations_per_second": rates[0],
                "bytes_per_second": rates[1],
            },
        }
    )


def _backend():
    import keras

    return keras.backend.backend()


def _accelerator():
    """The name of the device that Keras's backend runs on; `None`: a CPU."""
    backend = _backend()
    if backend == "jax":
        import jax

        device = jax.local_devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    if backend == "torch":
        import torch

        cuda = torch.cuda.is_available()
        return torch.cuda.get_device_name() if cuda else None
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return None
    details = tf.config.experimental.get_device_details(devices[0])
    return details.get("device_name", "GPU")


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        run: The function.
        kind: `"train"` or `"evaluate"`: rows of a kind are compared.
        where: It runs unasked `"everywhere"`, in a `"full"` benchmark (one
            that is not quick), or in a full one on an `"accelerator"`.
    """

    run: callable
    kind: str
    where: str


CONTENDERS = {
    "fit": Contender(fit, "train", "everywhere"),
    "step": Contender(step, "train", "everywhere"),
    "torch-eager": Contender(torch_eager, "train", "everywhere"),
    "torch-compile": Contender(torch_compile, "train", "full"),
    "torch-graphs": Contender(torch_graphs, "train", "accelerator"),
    "torch-dataloader": Contender(torch_dataloader, "train", "accelerator"),
    "evaluate": Contender(evaluate, "evaluate", "everywhere"),
    "torch-evaluate": Contender(torch_evaluate, "evaluate", "full"),
}


def command(name, setting):
    """The command line of a contender's process, or of `machine`'s."""
    request = json.dumps(dataclasses.asdict(setting))
    return [sys.executable, "-m", __name__, name, request]


def _main(name, request):
    setting = Setting(**json.loads(request))
    run = machine if name == "machine" else CONTENDERS[name].run
    serve(lambda turns: run(setting, turns))


if __name__ == "__main__":
    _main(*sys.argv[1:])
