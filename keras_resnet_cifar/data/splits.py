"""A split of images and labels: what identifies it, and a part held out."""

import hashlib
from dataclasses import dataclass

import numpy as np

from keras_resnet_cifar.errors import InputError


@dataclass(frozen=True, eq=False)
class Split:
    """Images `[N, H, W, 3]` (R, G, B), 0 to 255, and their labels `[N]`.

    `load_dataset` returns uint8, uint16 for labels of more than 256 classes.
    Arrays given to `train` keep their dtype, for example float32 or int64.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape[1:]))
        return f"Split({len(self):,} images {size}, {self.images.dtype})"


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns a SHA-256 (hex) that depends on neither order nor file format.

    It is over the sorted SHA-256 digests of the images, each over the bytes of
    an image (rows, then columns, then R G B) and of its label (one byte, from
    256 on two).

    Args:
        images: uint8 `[N, H, W, 3]`.
        labels: uint8 or uint16 `[N]`; of CIFAR-100 the fine ones.
    """
    return hashlib.sha256(
        b"".join(sorted(_digests(images, labels)))
    ).hexdigest()


def _digests(images, labels):
    digests = []
    for image, label in zip(images, labels.tolist(), strict=True):
        content = image.tobytes() + label.to_bytes(1 if label < 256 else 2)
        digests.append(hashlib.sha256(content).digest())
    return digests


def hold_out(
    split: Split, share: int | float, seed: int
) -> tuple[Split, Split | None]:
    """Divides a split in two, the same way whatever the order of its images.

    Every class gives its share, to within one image, and the total is exact.

    Args:
        split: The split to take from.
        share: How many images to take, as a count, or as a fraction if a float.
        seed: Chooses the images.

    Returns:
        The rest, and what was taken, `None` if `share` is 0.

    Raises:
        InputError: `share`, the `validation` of `load_dataset`, does not fit.
    """
    if not share:
        return split, None
    count, total = share, len(split)
    if isinstance(share, float):
        count = round(share * total) if 0 < share < 1 else 0
    if not 0 < count < total:
        raise InputError(
            f"validation={share} does not fit a train split of {total:,} "
            "images: give a count below that, or a fraction such as 0.1"
        )
    digests = _digests(split.images, split.labels)
    order = np.array(sorted(range(total), key=digests.__getitem__))
    order = order[np.random.default_rng(seed).permutation(total)]
    labels = split.labels[order]
    rank = np.empty(total)  # of an image in its class, 0 to 1
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    taken = np.zeros(total, bool)
    taken[order[np.argsort(rank, kind="stable")[:count]]] = True
    return (
        Split(split.images[~taken], split.labels[~taken]),
        Split(split.images[taken], split.labels[taken]),
    )
