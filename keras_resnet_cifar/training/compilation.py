"""Compiles a model for training with a recipe and data."""

import keras

from keras_resnet_cifar.data.augmentation import image_layers, mixing_layers
from keras_resnet_cifar.data.batches import (
    EvenBatches,
    Feed,
    ResidentSplit,
    ShuffledBatches,
    has_even_batches,
)
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.device import jit_compile, steps_per_execution
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

    Args:
        model: From raw images to logits; receives the trained weights.
        data: The dataset; cutout fills with its channel mean.
        recipe: How to train.
        precision: A Keras dtype policy.
        seed: Seed of the augmentation.
        feed: The batches.
        class_weight: Weight of each class in the loss, or `None`.
        devices: Number of devices in the current distribution.
        steps: Steps per compiled call, or `None` to choose a number.
    """
    known = DATASETS.get(data.name)
    mean = known.mean if known else (0.5,)
    source = None
    if isinstance(feed, ShuffledBatches) and feed.resident:
        source = ResidentSplit(feed)
    trained = TrainingModel(
        training_clone(model, precision),
        model,
        feed.steps,
        source,
        _held_out(data, devices),
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
        loss=loss_of(recipe, data.num_classes),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=jit_compile(),
        steps_per_execution=steps
        or steps_per_execution(
            step_operations(model, recipe.batch_size),
            feed.steps,
            source is not None,
        ),
    )
    trained.optimizer.build(trained.trainable_variables)
    _build_metrics(trained, data.num_classes)
    return trained


def _held_out(data, devices):
    """Returns the validation split on the device, if its batches are equal."""
    split = data.validation
    if split is None or not has_even_batches(split):
        return None
    return ResidentSplit(EvenBatches(split, data.num_classes, devices))


def _build_metrics(trained, classes):
    """Creates the variables of loss and metrics, which a resumed epoch sets.

    `fit` would call the net on a batch for this, but gets step numbers.
    """
    blank = keras.ops.zeros((1, classes))
    trained.compute_loss(None, blank, blank)
    trained.compute_metrics(None, blank, blank)
    trained.reset_metrics()
