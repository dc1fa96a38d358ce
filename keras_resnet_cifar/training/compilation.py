"""Compiles a model for training with a recipe and data."""

import keras
import numpy as np

from keras_resnet_cifar.data.augmentation import image_layers, mixing_layers
from keras_resnet_cifar.data.batches import (
    Feed,
    ResidentSplit,
    ShuffledBatches,
    even_batch_size,
    has_even_batches,
)
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.device import steps_per_execution
from keras_resnet_cifar.models.operations import step_operations
from keras_resnet_cifar.training.objects import loss_of
from keras_resnet_cifar.training.recipes import Recipe
from keras_resnet_cifar.training.training_model import (
    TrainingModel,
    training_clone,
)


def compile_for_training(
    model: keras.Model,
    data: Dataset,
    recipe: Recipe,
    precision: str,
    seed: int,
    feed: Feed,
    class_weight: list[float] | None = None,
    devices: int = 1,
    steps: int | None = None,
) -> TrainingModel:
    """Returns the compiled `TrainingModel` around a clone of `model`.

    `model`, from raw images to logits, receives the trained weights. Cutout
    fills with the channel mean of a dataset in `DATASETS`, else with mid-gray.
    `steps` is the number per compiled call; `None` chooses one.
    """
    known, classes = DATASETS.get(data.name), data.num_classes
    mean = known.mean if known else (0.5,)
    source = held_out = None
    if isinstance(feed, ShuffledBatches) and feed.resident:
        flip = feed.alternating_flip
        source = ResidentSplit(data.train, classes, feed.order, flip)
    if data.validation is not None and has_even_batches(data.validation):
        count = len(data.validation)
        shape = (-1, even_batch_size(count, devices))
        order = np.arange(count, dtype="int32").reshape(shape)
        held_out = ResidentSplit(data.validation, classes, order)
    trained = TrainingModel(
        training_clone(model, precision),
        model,
        feed.steps,
        source,
        held_out,
        image_layers(recipe, mean, seed),
        mixing_layers(recipe, seed),
        label_smoothing=recipe.label_smoothing,
        class_weight=class_weight,
        ema=recipe.ema,
        devices=devices,
        dtype=precision,
    )
    trained.compile(
        # The rate of each step is set by `TrainingModel.train_step`.
        optimizer=recipe.optimizer_for(float(recipe.learning_rate)),
        loss=loss_of(recipe, classes),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        steps_per_execution=steps
        or steps_per_execution(
            step_operations(model, recipe.batch_size),
            feed.steps,
            source is not None,
        ),
    )
    trained.optimizer.build(trained.trainable_variables)
    # A resumed epoch sets the variables of loss and metrics. `fit` would create
    # them by calling the net on a batch, but gets step numbers.
    blank = keras.ops.zeros((1, classes))
    trained.compute_loss(None, blank, blank)
    trained.compute_metrics(None, blank, blank)
    trained.reset_metrics()
    return trained
