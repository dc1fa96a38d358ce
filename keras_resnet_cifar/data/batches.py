"""Batches of the train split: shuffled by seed and epoch, nothing else.

Where the images are few enough (`RESIDENT_BYTES`) they live on the device once,
and an epoch ships its order; else the host picks each batch.
"""

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.errors import InputError

RESIDENT_BYTES = 2 * 1024**3  # CIFAR's 50,000 images take 0.15 GB


def one_hot(labels, num_classes):
    """float32 `[N, num_classes]` of integer labels `[N]`."""
    return np.eye(num_classes, dtype="float32")[labels]


class ShuffledBatches(keras.utils.PyDataset):
    """Batches of one split, in an order of its own for each epoch.

    The order of an epoch is a function of `(seed, epoch)` alone, so that a
    resumed run sees the batches it would have seen, on any backend. Each epoch
    drops the images that fill no batch, other ones each time: all steps have
    one shape and one compilation.

    A batch is `(uint8 [B, H, W, C], float32 [B, classes])`; where the images
    are resident (see `ResidentSplit`) it is the number of the step instead,
    int32 `[1]`.

    Args:
        split: A `Split`.
        num_classes: Width of the labels.
        batch_size: Images a batch.
        seed: Integer.
        transform: Optional function `(images, epoch, step)` of a batch of
            images, applied on the host (for policies that no backend
            compiles).
        resident_bytes: Largest split that is kept on the device.
    """

    def __init__(
        self,
        split,
        num_classes,
        batch_size,
        seed,
        transform=None,
        resident_bytes=RESIDENT_BYTES,
    ):
        super().__init__()
        if batch_size > len(split):
            raise InputError(
                f"batch_size={batch_size} is larger than the {len(split)} "
                f"training images: give at most {len(split)}"
            )
        self.split = split
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.seed = seed
        self.transform = transform
        self.steps = len(split) // batch_size  # of a whole epoch
        self.start = 0  # step at which a resumed epoch goes on
        self.resident = (
            transform is None and split.images.nbytes <= resident_bytes
        )
        self._targets = one_hot(split.labels, num_classes)
        self.begin(0)

    def begin(self, epoch):
        """Draws the order of an epoch (0-based)."""
        self.epoch = epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(
            len(self.split)
        )
        order = order[: self.steps * self.batch_size].astype("int32")
        self.order = order.reshape(self.steps, self.batch_size)

    def source(self):
        """What `fit` iterates over in an epoch: this, or what equals it.

        TensorFlow counts the steps of resident images by itself; Keras would
        call Python for each. Without autotuning: its thread sleeps on when an
        iterator ends (TensorFlow 2.21), and after a pause, as for validation,
        the next epoch began late by up to as long.
        """
        if not self.resident or keras.backend.backend() != "tensorflow":
            return self
        import tensorflow as tf

        steps = tf.data.Dataset.range(
            self.start, self.steps, output_type="int32"
        )
        options = tf.data.Options()
        options.autotune.enabled = False
        return tf.data.Dataset.zip((steps.batch(1),)).with_options(options)

    def __len__(self):
        return self.steps - self.start

    def __getitem__(self, index):
        step = self.start + index
        if self.resident:
            return (np.array([step], "int32"),)
        picked = self.order[step]
        images = self.split.images[picked]
        if self.transform is not None:
            images = self.transform(images, self.epoch, step)
        return images, self._targets[picked]


class ResidentSplit(keras.layers.Layer):
    """The images of a split in device memory: number of a step to its batch.

    Variables, not constants: a compiled step takes them as arguments, and the
    images are neither copied nor compiled in.

    Args:
        feed: The `ShuffledBatches` whose `order` it follows.
    """

    def __init__(self, feed):
        super().__init__(name="resident_split", trainable=False)
        self.num_classes = feed.num_classes
        self.images = self._hold(feed.split.images, "images")
        self.labels = self._hold(feed.split.labels.astype("int32"), "labels")
        self.order = self._hold(feed.order, "order")
        self.built = True

    def _hold(self, array, name):
        return keras.Variable(
            array, dtype=array.dtype.name, trainable=False, name=name
        )

    def call(self, step):
        """Takes int32 `[1]`; returns images uint8, targets float32."""
        picked = ops.take(self.order, step[0], axis=0)
        labels = ops.take(self.labels, picked, axis=0)
        return (
            ops.take(self.images, picked, axis=0),
            ops.one_hot(labels, self.num_classes, dtype="float32"),
        )


def even_batch_size(count, limit=512):
    """The largest batch up to `limit` that divides `count`, if over 63.

    A ragged last batch would be compiled a second time.
    """
    divisors = [size for size in range(64, limit + 1) if count % size == 0]
    return max(divisors, default=min(count, limit))
