"""Batches of the train split: shuffled by seed and epoch, nothing else."""

import keras
import numpy as np

from keras_resnet_cifar.errors import InputError


def one_hot(labels, num_classes):
    """float32 `[N, num_classes]` of integer labels `[N]`."""
    return np.eye(num_classes, dtype="float32")[labels]


class ShuffledBatches(keras.utils.PyDataset):
    """Batches `(uint8 [B, H, W, C], float32 [B, classes])` of one split.

    The order of an epoch is a function of `(seed, epoch)` alone, so that a
    resumed run sees the batches it would have seen. Each epoch drops the
    images that fill no batch, other ones each time: all steps have one shape
    and one compilation.

    Args:
        split: A `Split`.
        num_classes: Width of the labels.
        batch_size: Images a batch.
        seed: Integer.
        transform: Optional function of a batch of images, applied on the host
            (for policies that no backend compiles).
    """

    def __init__(self, split, num_classes, batch_size, seed, transform=None):
        super().__init__()
        if batch_size > len(split):
            raise InputError(
                f"batch_size={batch_size} is larger than the {len(split)} "
                f"training images: give at most {len(split)}"
            )
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.transform = transform
        self.epoch = 0  # set by `callbacks.EpochFeed`
        self._targets = one_hot(split.labels, num_classes)
        self._order = (None, None)

    def __len__(self):
        return len(self.split) // self.batch_size

    def __getitem__(self, step):
        start = step * self.batch_size
        picked = self.order(self.epoch)[start : start + self.batch_size]
        images = self.split.images[picked]
        if self.transform is not None:
            images = self.transform(images)
        return images, self._targets[picked]

    def order(self, epoch):
        """The permutation of the split in this epoch, int64 `[N]`."""
        key, order = self._order
        if key != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(len(self.split))
            self._order = (epoch, order)
        return order


def even_batch_size(count, limit=512):
    """The largest batch up to `limit` that divides `count`, if over 63.

    A ragged last batch would be compiled a second time.
    """
    divisors = [size for size in range(64, limit + 1) if count % size == 0]
    return max(divisors, default=min(count, limit))
