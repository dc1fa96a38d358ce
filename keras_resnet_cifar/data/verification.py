"""Verifies the form of images and labels, and that they are published ones."""

import hashlib

import numpy as np

from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.errors import InputError

# Images uint8 [N, H, W, 3] and labels uint8 or uint16 [N], per split.
Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def check_form(
    images: np.ndarray, labels: np.ndarray, family: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels that can be a split, the labels as uint8 `[N]`.

    Raises:
        InputError: Images are not uint8 `[N, 32, 32, 3]` or labels not integers
            `[N]` or `[N, 1]` below the number of classes. The caller names the
            file.
    """
    classes = DATASETS[family].num_classes
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
    for label in (labels.min(), labels.max()):
        if not 0 <= label < classes:
            raise InputError(f"label {label} is not in 0..{classes - 1}")
    return images, labels.astype(np.uint8)


def image_digests(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    """Returns the SHA-256 digest of each image with its label.

    It is over the image's bytes (rows, then columns, then R G B), followed by
    the label (of CIFAR-100 the fine one) as one byte, from 256 on as two.
    """
    digests = []
    for image, label in zip(images, labels.tolist(), strict=True):
        digest = hashlib.sha256(image.tobytes())
        digest.update(label.to_bytes(1 if label < 256 else 2))
        digests.append(digest.digest())
    return digests


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns a SHA-256 (hex) that depends on neither order nor file format.

    It is over the sorted `image_digests`: the same images with the same labels
    have one fingerprint, whichever copy they come from.

    Args:
        images: uint8 `[N, H, W, 3]`.
        labels: uint8 or uint16 `[N]`; of CIFAR-100 the fine ones.
    """
    digests = image_digests(images, labels)
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
