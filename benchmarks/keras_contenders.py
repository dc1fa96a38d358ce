"""The contenders that run on Keras, and the facts about the machine."""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.setting import Setting
from benchmarks.workers import LeftOut, Rounds
from keras_resnet_cifar import device
from keras_resnet_cifar.data.batches import ShuffledBatches, one_hot
from keras_resnet_cifar.data.load import Split
from keras_resnet_cifar.evaluation.evaluate import evaluate
from keras_resnet_cifar.models.operations import step_operations
from keras_resnet_cifar.models.resnet import build_resnet
from keras_resnet_cifar.training.compilation import compile_for_training
from keras_resnet_cifar.training.inputs import as_dataset
from keras_resnet_cifar.training.run_directory import versions
from keras_resnet_cifar.training.train import train


def fit(setting: Setting, rounds: Rounds) -> None:
    """`train` as users call it: feed, augmentation, metrics, callbacks."""
    train(
        _net(setting),
        setting.noise(),
        setting.recipe(),
        callbacks=[_Timer(setting, rounds)],
        verbose=False,
    )


def fit_step(setting: Setting, rounds: Rounds) -> None:
    """Keras's train step on the net that `fit` trains, one step per call.

    There is no augmentation, and one batch, which is on the device.
    """
    net, size = _net(setting), setting.batch_size
    data = as_dataset(net, setting.noise())
    feed = ShuffledBatches(data.train, data.num_classes, size, seed=0)
    model = compile_for_training(
        net, data, setting.recipe(), setting.precision, 0, feed
    )
    targets = one_hot(data.train.labels[:size], data.num_classes)
    rounds.measure(
        _bare_steps(model, data.train.images[:size], targets), setting
    )


def stock_fit(setting: Setting, rounds: Rounds) -> None:
    """Usual Keras training: `tf.data`, stock layers, `model.fit`."""
    if keras.backend.backend() != "tensorflow":
        raise LeftOut("its tf.data pipeline needs KERAS_BACKEND=tensorflow")
    import tensorflow as tf

    def augmented(image, label):
        image = tf.image.resize_with_crop_or_pad(image, 40, 40)
        image = tf.image.random_crop(image, (32, 32, 3))
        return tf.image.random_flip_left_right(image), label

    images, labels = setting.noise()
    batches = (
        tf.data.Dataset.from_tensor_slices((images, labels))
        .shuffle(len(labels))
        .repeat()
        .map(augmented, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(setting.batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    model = _stock_model(setting)

    # A single call, as users make: when an iterator with autotuning ends, it
    # waits for its tuner, which may sleep for 10 s by then.
    model.fit(
        batches,
        epochs=setting.epochs,
        steps_per_epoch=setting.epoch_steps,
        shuffle=False,
        verbose=0,
        callbacks=[_Timer(setting, rounds)],
    )


def stock_step(setting: Setting, rounds: Rounds) -> None:
    """The train step of the same model alone, on one batch on the device."""
    model = _stock_model(setting)
    images, labels = (part[: setting.batch_size] for part in setting.noise())
    model.optimizer.build(model.trainable_variables)
    logits = ops.zeros((len(labels), model.output_shape[-1]))
    model.compute_loss(None, labels, logits)  # makes its metric
    model.compute_metrics(None, labels, logits)
    rounds.measure(_bare_steps(model, images, labels), setting)


def evaluation(setting: Setting, rounds: Rounds) -> None:
    """`evaluate` as users call it, on the model of stock layers."""
    model, split = _net(setting), Split(*setting.noise())
    names = [str(label) for label in range(model.output_shape[-1])]

    def run(steps):
        for _ in range(-(-steps // setting.epoch_steps)):
            evaluate(model, split, names)

    rounds.measure(run, setting)


def machine(setting: Setting, rounds: Rounds) -> None:
    """Describes the machine, and measures its operations per second.

    The rate is that of a large matrix product. Convolutions with few channels
    do not reach it on any hardware.
    """
    precision = device.resolve_precision(setting.precision)
    side = 8192 if device.has_accelerator() else 2048
    matrix = ops.ones((side, side), precision.removeprefix("mixed_"))
    times: list[float] = []
    while sum(times) < 0.5 or len(times) < 3:
        begin = time.perf_counter()
        ops.convert_to_numpy(ops.matmul(matrix, matrix)[:1, :1])
        times.append(time.perf_counter() - begin)
    rounds.send(
        {
            "backend": keras.backend.backend(),
            "precision": precision,
            "accelerator": device.accelerator_name(),
            "versions": versions(),
            "operations_per_second": 2 * side**3 / min(times),
            "operations_per_image": step_operations(_net(setting), 1),
        }
    )


RUN: dict[str, Callable[[Setting, Rounds], None]] = {
    "fit": fit,
    "step": fit_step,
    "keras": stock_fit,
    "keras-step": stock_step,
    "evaluate": evaluation,
    "machine": machine,
}


def device_memory() -> int | None:
    """Peak bytes that Keras's backend has used on its accelerator."""
    backend = keras.backend.backend()
    if not device.has_accelerator():
        return None
    if backend == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


class _Timer(keras.callbacks.Callback):
    """Holds `fit` back between rounds.

    The epochs of the first round are the warm-up.
    """

    async_safe = True  # it does not read the logs

    def __init__(self, setting: Setting, rounds: Rounds) -> None:
        super().__init__()
        self._rounds = rounds
        self._per_round = setting.round_epochs
        self._images = setting.round_images
        self._stepped = False

    def on_train_batch_end(self, batch, logs=None):
        if not self._stepped:
            self._stepped = True
            self._rounds.first_step()

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self._per_round:
            return
        if epoch >= self._per_round:
            self._rounds.end(self._images)
        self._rounds.begin()  # a round includes what `fit` does between epochs


def _net(setting: Setting) -> keras.Model:
    return build_resnet(setting.arch, input_shape=(32, 32, 3))


def _stock_model(setting: Setting) -> keras.Model:
    keras.config.set_dtype_policy(setting.precision)
    model = _net(setting)
    model.compile(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _bare_steps(
    model: keras.Model, images: np.ndarray, targets: np.ndarray
) -> Callable[[int], None]:
    """Returns a function that takes a number of Keras's own train steps.

    There is no augmentation, no feed and no callback.
    """
    batch = ops.convert_to_tensor(images), ops.convert_to_tensor(targets)
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
        ops.convert_to_numpy(model.trainable_variables[0])  # waits

    return run


def _bare_jax_steps(
    model: keras.Model, batch: tuple[Any, Any]
) -> Callable[[int], None]:
    import jax

    def one(state, batch):
        return keras.Model.train_step(model, state, batch)[1]

    compiled = jax.jit(one, donate_argnums=0)
    state = [
        [jax.numpy.copy(variable.value) for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    ]

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state = compiled(state, batch)
        jax.block_until_ready(state)

    return run
