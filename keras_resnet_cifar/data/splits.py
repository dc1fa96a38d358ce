"""Takes a stratified split off another one, the same from any copy."""

from dataclasses import dataclass

import numpy as np

from keras_resnet_cifar.data.verification import image_digests
from keras_resnet_cifar.errors import InputError


@dataclass(frozen=True, eq=False)
class Split:
    """Images `[N, H, W, 3]` (R, G, B), 0 to 255, and their labels `[N]`.

    `load_dataset` returns images and labels as uint8, labels of more than 256
    classes as uint16. Arrays given to `train` keep their dtype, for example
    float32 images or int64 labels.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


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
    count = _count(share, len(split))
    if not count:
        return split, None
    digests = image_digests(split.images, split.labels)
    order = np.array(sorted(range(len(split)), key=digests.__getitem__))
    order = order[np.random.default_rng(seed).permutation(len(order))]
    rank = np.empty(len(split))  # of an image in its class, 0 to 1
    for label in np.unique(split.labels):
        members = order[split.labels[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    taken = np.zeros(len(split), bool)
    taken[order[np.argsort(rank[order], kind="stable")][:count]] = True
    return (
        Split(split.images[~taken], split.labels[~taken]),
        Split(split.images[taken], split.labels[taken]),
    )


def _count(share, total):
    """`share`, a count or a fraction, as a count of `total` images."""
    count = share
    if isinstance(share, float) and share:
        count = round(share * total) if 0 < share < 1 else -1
    if count < 0 or count >= total or (share and not count):
        raise InputError(
            f"validation={share} does not fit a train split of {total:,} "
            "images: give a count below that, or a fraction such as 0.1"
        )
    return int(count)
