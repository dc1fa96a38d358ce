"""Converts the data that `train` accepts to a common form."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_resnet_cifar.data.augmentation import host_transform
from keras_resnet_cifar.data.batches import (
    Feed,
    ShuffledBatches,
    StreamedBatches,
    StreamedSplit,
)
from keras_resnet_cifar.data.load import Dataset
from keras_resnet_cifar.data.splits import Split, checked_split, paired
from keras_resnet_cifar.errors import InputError, explained
from keras_resnet_cifar.models.saving import check_classifier, names_of
from keras_resnet_cifar.training.recipes import Recipe

Data = Any  # a Dataset, (images, labels), a tf.data.Dataset or a PyDataset
ClassWeight = str | Mapping[int, float] | None


def as_dataset(
    model: keras.Model, data: Data, validation_data: tuple | None = None
) -> Dataset:
    """Returns the data of `train` as a `Dataset`, or raises `InputError`.

    A stream yields batches `(images, labels)`, and its length must be known.
    """
    if isinstance(data, Dataset):
        if validation_data is not None:
            raise InputError(
                "validation_data= is for arrays or a stream: a Dataset has its "
                "own, as from load_dataset(..., validation=5000)"
            )
        return data
    check_classifier(model)
    names = names_of(model)
    held_out = validation_data
    if held_out is not None:
        held_out = paired("validation_data", validation_data)
    if isinstance(data, tuple) and len(data) == 2:
        return Dataset.from_arrays(
            *data, class_names=names, validation=held_out
        )
    return Dataset(
        name="stream",
        train=_stream(data, len(names)),
        validation=held_out and Split(*held_out),
        class_names=names,
        source="given to train",
        verified=False,
    )


def _stream(data, classes):
    """Returns a stream as a split, if its first batch can be trained on."""
    is_keras = isinstance(data, keras.utils.PyDataset)
    if not is_keras and not hasattr(data, "element_spec"):
        raise InputError(
            f"data is {type(data).__name__}: give a Dataset, (images, labels), "
            "a tf.data.Dataset or a keras.utils.PyDataset"
        )
    try:
        steps = len(data)
    except TypeError as error:
        raise InputError(
            "data has an unknown length: set it with take(n) or "
            "tf.data.experimental.assert_cardinality(n)"
        ) from error
    if steps < 1:
        raise InputError("data has no batches: give at least one")
    remedy = "give (images, labels) batches"
    with explained("the first batch of data cannot be read", remedy):
        batch = data[0] if is_keras else next(iter(data))
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise InputError("data: give batches (images, labels)")
    checked_split("the first batch of data", *batch[:2], classes)
    return StreamedSplit(data)


def feed_of(data: Dataset, recipe: Recipe, seed: int) -> Feed:
    """Returns the batches of a train split.

    Raises `InputError` if a batch is larger than the split, or if RandAugment
    cannot be applied to the images.
    """
    transform = host_transform(recipe, seed)
    if not isinstance(data.train, StreamedSplit):
        if transform is not None and data.train.images.shape[-1] != 3:
            raise InputError(
                f"rand_augment={recipe.rand_augment} is for RGB images: train "
                "with rand_augment=0"
            )
        return ShuffledBatches(
            data.train,
            data.num_classes,
            recipe.batch_size,
            seed,
            transform,
            recipe.flip and recipe.alternating_flip,
        )
    if transform is not None:
        raise InputError(
            f"rand_augment={recipe.rand_augment} needs images in memory: give "
            "(images, labels), or rand_augment=0"
        )
    return StreamedBatches(data.train, recipe.batch_size)


def class_weights(
    class_weight: ClassWeight, data: Dataset
) -> list[float] | None:
    """Returns the weight of each class in the loss, or `None`.

    A dict is as in `keras.Model.fit`, 1 for missing classes. `"balanced"` gives
    weights inversely proportional to the counts in the train split, 1 on
    average over its images; a stream cannot be balanced.
    """
    classes = data.num_classes
    if class_weight is None:
        return None
    if isinstance(class_weight, str) and class_weight == "balanced":
        if isinstance(data.train, StreamedSplit):
            raise InputError(
                "class_weight='balanced' needs labels in memory: give a dict, "
                "or (images, labels)"
            )
        counts = np.bincount(data.train.labels, minlength=classes)
        present = counts > 0
        weights = np.zeros(classes)
        weights[present] = counts.sum() / (present.sum() * counts[present])
        return weights.tolist()
    weights = np.ones(classes)
    try:
        for label, weight in dict(class_weight).items():  # type: ignore
            number = int(label)  # JSON has text as keys
            known = number == float(label) and 0 <= number < classes
            if not (known and 0 <= float(weight) < math.inf):
                raise ValueError
            weights[number] = weight
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"class_weight={class_weight!r}: give 'balanced', or a dict from "
            f"classes 0 to {classes - 1} to weights of 0 or more"
        ) from None
    return weights.tolist()
