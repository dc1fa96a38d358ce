"""What `fit` costs beside the bare compiled step, on this machine, in one run.

Machines are noisy: the two are timed in turns, A B A B, and what counts is the
ratio of each pair.
"""

import itertools
import platform
import resource
import statistics
import subprocess
import sys
import time

import keras
import numpy as np

from keras_resnet_cifar import callbacks as cb
from keras_resnet_cifar.compilation import compiled
from keras_resnet_cifar.data import Split, load_dataset
from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.feed import ShuffledBatches, one_hot
from keras_resnet_cifar.hardware import resolve_precision
from keras_resnet_cifar.models import build_resnet
from keras_resnet_cifar.recipes import get_recipe
from keras_resnet_cifar.runs import versions


def benchmark(
    arch="resnet20", batch_size=128, precision="auto", steps=100, rounds=5
):
    """Times `fit` and the bare step in turns, after one round to warm up.

    Args:
        arch: Name of the net.
        batch_size: Images a step.
        precision: `"auto"`, `"float32"`, `"mixed_bfloat16"`, ...
        steps: Steps a measurement.
        rounds: Pairs of measurements.

    Returns:
        A dict for JSON: machine, versions, images a second of both for each
        round, the ratio fit / bare of each round with its median, peak memory
        of the process in MiB, and the seconds that importing the package adds
        to importing Keras.
    """
    if steps < 1 or rounds < 1:
        raise InputError(
            f"steps={steps}, rounds={rounds}: both must be at least 1"
        )
    recipe = get_recipe(
        "onecycle", batch_size=batch_size, precision=precision, epochs=1000
    )
    precision = resolve_precision(recipe.precision)
    data = load_dataset("shapes")
    count = steps * batch_size
    split = Split(
        np.resize(data.train.images, (count, 32, 32, 3)),
        np.resize(data.train.labels, count),
    )
    model = build_resnet(arch, normalization="shapes")
    feed = ShuffledBatches(split, 10, batch_size, seed=0)
    fit = _fit_epochs(compiled(model, data, recipe, precision, 0, feed), feed)
    stepped = compiled(model, data, recipe, precision, 0, feed)
    run_bare = _bare_steps(
        stepped,
        split.images[:batch_size],
        one_hot(split.labels[:batch_size], 10),
    )

    def bare():
        begin = time.perf_counter()
        run_bare(steps)
        return count / (time.perf_counter() - begin)

    fit(), bare()
    pairs = [(fit(), bare()) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return {
        "arch": arch,
        "batch_size": batch_size,
        "precision": precision,
        "backend": keras.backend.backend(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": versions(),
        "fit": [round(a, 1) for a, _ in pairs],
        "bare_step": [round(b, 1) for _, b in pairs],
        "ratio": {
            "median": round(statistics.median(ratios), 4),
            "least": round(min(ratios), 4),
            "most": round(max(ratios), 4),
        },
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        // 1024,
        "import_seconds": import_seconds(),
    }


def _fit_epochs(model, feed):
    """A function that fits one epoch and returns its images a second."""
    epochs = itertools.count()
    rows = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: rows.append(logs)
    )

    def fit():
        epoch = next(epochs)
        model.fit(
            feed,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
            verbose=0,
            callbacks=[
                cb.EpochFeed(feed),
                cb.StopOnNaN(),
                cb.EpochRecord(feed, np.zeros(1000 * feed.steps)),
                record,
            ],
        )
        return rows[-1]["images_per_second"]

    return fit


def _bare_steps(model, images, targets):
    """A function that runs so many of Keras's own train steps, to their end.

    Compiled, on one batch that is already there: no augmentation, no feed, no
    callbacks.
    """
    batch = tuple(keras.ops.convert_to_tensor(a) for a in (images, targets))
    if keras.backend.backend() == "jax":
        return _bare_jax_steps(model, batch)

    def step():
        return keras.Model.train_step(model, batch)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        step = tf.function(step, jit_compile=model.jit_compile)

    def run(steps):
        for _ in range(steps):
            step()
        keras.ops.convert_to_numpy(model.network.weights[0])  # waits

    return run


def _bare_jax_steps(model, batch):
    import jax

    model.train_on_batch(*batch)  # makes the metrics' variables
    step = jax.jit(
        lambda state: keras.Model.train_step(model, state, batch)[1],
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
            state = step(state)
        jax.block_until_ready(state)

    return run


def import_seconds(repeats=3):
    """Seconds that importing the whole package adds to importing Keras."""
    modules = "training, evaluation, data, models, prediction"
    code = (
        "import time, keras; b = time.perf_counter(); "
        f"from keras_resnet_cifar import {modules}; "
        "print(time.perf_counter() - b)"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(repeats)
    ]
    return round(statistics.median(times), 3)
