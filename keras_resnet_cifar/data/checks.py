"""Checks the form of the arrays that readers return."""

import numpy as np

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError

# Images uint8 [N, H, W, 3] and labels uint8 or uint16 [N], per split.
Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def check_form(
    images: np.ndarray, labels: np.ndarray, family: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels that can be a split, the labels as uint8 `[N]`.

    Raises `InputError` unless images are uint8 `[N, 32, 32, 3]` and labels
    integers `[N]` or `[N, 1]` below the number of classes.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        form = f"{images.dtype} {list(images.shape)}"
        raise InputError(f"images are {form}, not uint8 [N, 32, 32, 3]")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        form = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"labels are {form}, not integers [N]")
    if len(images) != len(labels) or not len(images):
        raise InputError(f"{len(images)} images but {len(labels)} labels")
    last = DATASETS[family].num_classes - 1
    for label in (labels.min(), labels.max()):
        if not 0 <= label <= last:
            raise InputError(f"label {label} is not in 0..{last}")
    return images, labels.astype(np.uint8)
