"""A recipe, a model and a feed, to the model that `fit` trains."""

import keras

from keras_resnet_cifar.data import policies
from keras_resnet_cifar.data.batches import ResidentSplit
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.device import jit_compile, steps_per_execution
from keras_resnet_cifar.models.operations import step_operations
from keras_resnet_cifar.training.optimizers import TabulatedRate, optimizer_of
from keras_resnet_cifar.training.schedules import rates_of
from keras_resnet_cifar.training.training_model import (
    TrainingModel,
    training_clone,
)


def compiled(model, data, recipe, precision, seed, feed):
    """Returns the compiled `TrainingModel` around a clone of `model`."""
    known = DATASETS.get(data.name)
    mean = known.mean if known else (0.5, 0.5, 0.5)
    trained = TrainingModel(
        training_clone(model, precision),
        ResidentSplit(feed) if feed.resident else None,
        policies.image_layers(recipe, mean, seed),
        policies.mixing_layers(recipe, seed),
        label_smoothing=recipe.label_smoothing,
        ema=recipe.ema,
        dtype=precision,
    )
    trained.compile(
        optimizer=optimizer_of(
            recipe, TabulatedRate(rates_of(recipe, feed.steps))
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=jit_compile(),
        steps_per_execution=steps_per_execution(
            step_operations(model, recipe.batch_size), feed.steps
        ),
    )
    trained.optimizer.build(trained.trainable_variables)
    _build_metrics(trained, data.num_classes)
    return trained


def _build_metrics(trained, classes):
    """Makes the variables of loss and metrics: a resumed epoch sets them.

    `fit` would do it by calling the net on a batch, which step numbers are not.
    """
    blank = keras.ops.zeros((1, classes))
    trained.compute_loss(None, blank, blank)
    trained.compute_metrics(None, blank, blank)
    trained.reset_metrics()
