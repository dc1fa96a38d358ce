"""Batches of the train split, in the form that `fit` takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.errors import InputError

_FLIPS = 2**31  # used with the seed in place of an epoch
RESIDENT_BYTES = 2 * 1024**3  # CIFAR's 50,000 images take 0.15 GB


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns float32 `[N, num_classes]` of integer labels `[N]`."""
    return np.eye(num_classes, dtype="float32")[labels]


@dataclass(eq=False)
class ShuffledBatches(keras.utils.PyDataset):
    """Batches of a split in memory, in a new order in each epoch.

    The order is a function of `(seed, epoch)` alone, so that a resumed run
    sees the same batches as an uninterrupted one, on any backend. So are the
    images that `alternating_flip` mirrors: half of them in the first epoch, the
    other half in the second, and so on (KellerJordan/cifar10-airbench). Each
    epoch drops the images that do not fill a batch, different ones each time,
    so that all steps have the same shape and compile once.

    A batch is `(images [B, H, W, C], targets [B, classes])`, in the dtype of
    the split and float32. If the images are resident on the device (see
    `ResidentSplit`), it is the step number instead, int32 `[1]`.

    Args:
        transform: `(images, epoch, step) -> images` of a batch, on the host,
            for policies that no backend compiles.
        resident_bytes: Largest split to keep on the device.

    Attributes:
        steps: Steps of a whole epoch.
        order: Indices of the images of this epoch, int32 `[steps, B]`;
            `-1 - index` where the image is mirrored.
        start: Step at which a resumed epoch continues.
        share: The part of a batch that this process feeds.
        exact: Whether an epoch can be resumed in the middle.
    """

    split: Any
    num_classes: int
    batch_size: int
    seed: int
    transform: Callable | None = None
    alternating_flip: bool = False
    resident_bytes: int = RESIDENT_BYTES
    exact = True

    def __post_init__(self) -> None:
        super().__init__()
        count, size = len(self.split), self.split.images.nbytes
        if self.batch_size > count:
            raise InputError(
                f"batch_size={self.batch_size} is larger than the {count} "
                f"training images: give at most {count}"
            )
        self.steps = count // self.batch_size
        self.start = 0
        self.share = slice(None)
        self.resident = self.transform is None and size <= self.resident_bytes
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Draws the order of an epoch (0-based)."""
        self.epoch = epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(
            len(self.split)
        )
        order = order[: self.steps * self.batch_size].astype("int32")
        if self.alternating_flip:
            first = np.random.default_rng([self.seed, _FLIPS])
            mirrored = first.integers(0, 2, len(self.split)) ^ (epoch % 2)
            order = np.where(mirrored[order], -1 - order, order)
        self.order = order.reshape(self.steps, self.batch_size)

    def source(self, fused_steps: int = 1, devices: int = 0) -> Any:
        """Returns what `fit` iterates over in an epoch; see `step_numbers`."""
        if not self.resident:
            return self
        return step_numbers(self.start, self.steps, fused_steps, devices)

    def describe(self) -> str:
        """Returns one line on where the images are."""
        size = self.split.images.nbytes / 2**20
        place = (
            "kept on the device"
            if self.resident
            else "fed by the host batch by batch"
        )
        return f"training images: {size:,.0f} MiB, {place}"

    def __len__(self) -> int:
        return self.steps - self.start

    def __getitem__(self, index: int) -> tuple:
        step = self.start + index
        if self.resident:
            return (np.array([step], "int32"),)
        picked, mirrored = _decoded(self.order[step], np)
        images = self.split.images[picked]
        if self.alternating_flip:
            images = _mirror(images, mirrored, np)
        if self.transform is not None:
            images = self.transform(images, self.epoch, step)
        targets = one_hot(self.split.labels[picked], self.num_classes)
        return images[self.share], targets[self.share]


def step_numbers(
    start: int, stop: int, fused_steps: int = 1, devices: int = 0
) -> Any:
    """Returns what `fit` or `evaluate` iterates over for resident images.

    TensorFlow counts the steps itself, since Keras would call Python for each.
    Autotuning is off: its thread keeps sleeping when an iterator ends
    (TensorFlow 2.21), which delays the next epoch after a pause such as
    validation.

    Args:
        fused_steps: Steps in a call of `jax_steps.fuse`; 1 without it.
        devices: Devices of this process in the distribution; 0 without one.
    """
    if keras.backend.backend() != "tensorflow":
        return StepNumbers(start, stop, fused_steps, devices)
    import tensorflow as tf

    steps = tf.data.Dataset.range(start, stop, output_type="int32")
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.zip((steps.batch(1),)).with_options(options)


class StepNumbers(keras.utils.PyDataset):
    """The numbers of an epoch's steps, grouped by calls of `count` steps.

    Its length counts steps, as `fit` does, but item `i` is for call `i`: int32
    `[steps of the call]`. The last items are empty. (Moving one item per step
    to the device would cost more than a step's share of a call.)

    Keras splits each item among the `devices` of this process in a
    distribution (0 without one). With one, an item is
    `[devices, steps of the call]`, with equal rows.
    """

    def __init__(self, start: int, stop: int, count: int, devices: int = 0):
        super().__init__()
        self.numbers = np.arange(start, stop, dtype="int32")
        self.count = count
        self.devices = devices

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple:
        first = index * self.count
        numbers = self.numbers[first : first + self.count]
        if self.devices:
            numbers = np.tile(numbers, (self.devices, 1))
        return (numbers,)


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """A train split that is not in memory.

    `batches` is a `tf.data.Dataset` or `keras.utils.PyDataset` of known length,
    with batches `(images, labels)`: images `[B, H, W, 3]` from 0 to 255, labels
    integer `[B]` or one-hot `[B, classes]`.
    """

    batches: Any

    def __len__(self) -> int:
        """Returns the number of batches, not of images."""
        return len(self.batches)


class StreamedBatches:
    """The batches of a `StreamedSplit`, with the interface of a feed.

    Their order is the user's, so an epoch can only be resumed from its start.
    `batch_size` serves to compute the speed if the stream does not state its
    own.
    """

    exact = False
    resident = False
    start = 0
    share = slice(None)

    def __init__(self, split: StreamedSplit, batch_size: int):
        self.batches = split.batches
        self.batch_size = _stream_batch_size(split.batches) or batch_size
        self.steps = len(split)

    def begin(self, epoch: int) -> None:
        """Does nothing: the user's data has its own order."""

    def source(self, fused_steps: int = 1, devices: int = 0) -> Any:
        """Returns what `fit` iterates over in an epoch."""
        return self.batches

    def describe(self) -> str:
        """Returns one line on where the images are and how a run resumes."""
        return (
            "training images: streamed, not kept on the device; a stopped run "
            "resumes from its last complete epoch, to the same bits only if "
            "the stream yields the same batches again"
        )

    def __len__(self) -> int:
        return self.steps


def _stream_batch_size(batches):
    """Returns the images of the first batch of a stream, `None` if unknown."""
    if isinstance(batches, keras.utils.PyDataset):
        return len(batches[0][0])
    shape = keras.tree.flatten(batches.element_spec)[0].shape
    return shape[0] if shape.rank else None


Feed = ShuffledBatches | StreamedBatches


class ResidentSplit(keras.layers.Layer):
    """A layer that holds a split in device memory: step number to batch.

    The images are variables, so a compiled step takes them as arguments, and
    they are neither copied nor compiled in.
    """

    def __init__(
        self,
        split: Any,
        num_classes: int,
        order: np.ndarray,
        alternating_flip: bool = False,
    ):
        super().__init__(trainable=False)
        self.num_classes = num_classes
        self.alternating_flip = alternating_flip
        self.images = _variable(split.images, "images")
        self.labels = _variable(split.labels.astype("int32"), "labels")
        self.order = _variable(order, "order")
        self.built = True

    def call(self, step: Any) -> tuple:
        """Takes an int32 number; returns images and float32 targets."""
        step = ops.max(step)  # of equal ones, one for each device
        picked, mirrored = _decoded(ops.take(self.order, step, axis=0), ops)
        images = ops.take(self.images, picked, axis=0)
        if self.alternating_flip:
            images = _mirror(images, mirrored, ops)
        labels = ops.take(self.labels, picked, axis=0)
        return images, ops.one_hot(labels, self.num_classes, dtype="float32")


def _decoded(order, math):
    """Returns indices of images, and which of these are to be mirrored."""
    mirrored = order < 0
    return math.where(mirrored, -1 - order, order), mirrored


def _mirror(images, mirrored, math):
    mirrored = mirrored[:, None, None, None]
    return math.where(mirrored, math.flip(images, 2), images)


def _variable(array, name):
    return keras.Variable(
        array, dtype=array.dtype.name, trainable=False, name=name
    )


def even_batch_size(count: int, devices: int = 1) -> int:
    """Returns the largest batch up to 512 that divides `count`, if over 63.

    Sizes that are divisible by `devices` come first. A smaller last batch would
    be compiled separately.
    """
    divisors = [size for size in range(64, 513) if count % size == 0]
    return max(
        divisors,
        key=lambda size: (size % devices == 0, size),
        default=min(count, 512),
    )


def has_even_batches(split: Any) -> bool:
    """Returns whether a held-out split can be a `ResidentSplit`."""
    fits = split.images.nbytes <= RESIDENT_BYTES
    return fits and len(split) % even_batch_size(len(split)) == 0
