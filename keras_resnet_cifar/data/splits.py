"""A split of images and labels: checks, fingerprint, and holding out a part."""

import hashlib
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_resnet_cifar.errors import InputError, explained


@dataclass(frozen=True, eq=False)
class Split:
    """Images `[N, H, W, 3]` (R, G, B) or `[N, H, W, 1]`, and labels `[N]`.

    Images are from 0 to 255. `load_dataset` returns uint8 images, and uint8
    labels or, for more than 256 classes, uint16. A `Dataset` checks its splits
    (see `checked_split`).
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape[1:]))
        return f"Split({len(self):,} images {size}, {self.images.dtype})"


def paired(name: str, pair: Any) -> tuple[Any, Any]:
    """Returns `(images, labels)`; `InputError` for anything else."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"{name}: give (images, labels) as arrays")
    return pair[0], pair[1]


def checked_split(name: str, images: Any, labels: Any, classes: int) -> Split:
    """Returns arrays as a `Split`, if a net can be trained on them.

    Images are `[N, H, W, 3]` or `[N, H, W, 1]`, from 0 to 255; they keep their
    dtype, but floats become float32. Labels are whole numbers `[N]` or
    `[N, 1]`, or one-hot `[N, classes]`; they become `[N]`. Anything else raises
    `InputError`, as do images that look like 0 to 1.
    """
    with explained(f"{name}: no arrays", "give (images, labels) as arrays"):
        images, labels = np.asarray(images), np.asarray(labels)
    if (
        images.ndim != 4
        or images.shape[3] not in (1, 3)
        or images.dtype.kind not in "uif"
    ):
        grey = "; for grayscale, images[..., None]" if images.ndim == 3 else ""
        raise InputError(
            f"{name}: images are {images.dtype} {images.shape}; give numbers "
            f"[N, H, W, 3] or [N, H, W, 1] from 0 to 255{grey}"
        )
    if labels.ndim == 2 and labels.shape[1] == classes > 1:
        rows = ((labels == 0) | (labels == 1)).all() and labels.sum(1) == 1
        if not np.all(rows):
            raise InputError(f"{name}: give labels [N], or one-hot rows")
        labels = labels.argmax(1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(images) or not images.size:
        raise InputError(
            f"{name}: images are {images.shape} and labels {labels.shape}; "
            "give at least one image, and one label for each: [N], or one-hot "
            f"[N, {classes}]"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"{name}: labels must be whole numbers, not {labels.dtype}"
        )
    first, last = labels.min(), labels.max()
    if not 0 <= first <= last < classes:
        raise InputError(
            f"{name}: labels are from {first} to {last}; for {classes} "
            f"classes, they must be whole numbers from 0 to {classes - 1}"
        )
    if images.dtype.kind == "f":
        images = images.astype("float32", copy=False)
        if not np.isfinite(images).all():
            raise InputError(f"{name}: some images are not finite; remove them")
    check_range(name, images)
    return Split(images, labels)


def check_range(name: str, images: np.ndarray) -> None:
    """Raises `InputError` for images that are not plausibly from 0 to 255."""
    low, high = images.min(), images.max()
    if not (low >= 0 and 1 < high <= 255):  # true of NaN, too
        to_one = low >= 0 and 0 < high <= 1
        remedy = "multiply them by 255" if to_one else "rescale them"
        raise InputError(
            f"{name}: images are {images.dtype} from {low:.4g} to {high:.4g}, "
            f"but models take 0 to 255: {remedy}"
        )


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns a SHA-256 (hex) that depends on neither order nor file format.

    It hashes the sorted SHA-256 digests of the images, each over the bytes of
    an image (rows, then columns, then R G B) and of its label (one byte, two
    from 256 on, and so on). The published fingerprints are those of uint8
    images and, for CIFAR-100, fine labels.
    """
    return hashlib.sha256(
        b"".join(sorted(_digests(images, labels)))
    ).hexdigest()


def _digests(images, labels):
    digests = []
    for image, label in zip(images, labels.tolist(), strict=True):
        size = max(1, -(-label.bit_length() // 8))
        content = image.tobytes() + label.to_bytes(size)
        digests.append(hashlib.sha256(content).digest())
    return digests


def hold_out(
    split: Split, share: int | float, seed: int
) -> tuple[Split, Split | None]:
    """Divides a split in two, independently of the order of its images.

    Returns the rest, and the part held out, which is `None` if `share` is 0.
    `share`, the `validation` of `load_dataset`, is a count, or a fraction if a
    float. The division is stratified by class, to within one image; the total
    is exact.
    """
    if not share:
        return split, None
    if not isinstance(share, numbers.Real):
        raise InputError(f"validation={share!r}: give a count or a fraction")
    count, total = share, len(split)
    if isinstance(share, float | np.floating):
        count = round(share * total) if 0 < share < 1 else 0
    if share is True or not 0 < count < total:
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
