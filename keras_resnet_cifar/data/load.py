"""Loads a dataset into memory, verified, with a validation split if asked."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_resnet_cifar.data import folders as image_folders
from keras_resnet_cifar.data import huggingface, readers
from keras_resnet_cifar.data.datasets import (
    DATASETS,
    FINE_TO_COARSE,
    check_known,
)
from keras_resnet_cifar.errors import InputError

DATA_VARIABLE = "KERAS_RESNET_CIFAR_DATA"


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, H, W, 3] (R, G, B) and their labels uint8 [N].

    CIFAR's are 32x32; labels of more than 256 classes are uint16.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset in memory.

    Attributes:
        name: Its name in `DATASETS`, or the folder of one's own images.
        train, validation, test: The splits; `validation` may be `None`.
        class_names: One name per label.
        source: Where the images came from, for people.
        fingerprints: `{"train": hex, "test": hex}` of the splits as loaded,
            before the validation split was taken off, over fine labels.
        verified: Whether they are the published ones; true for a dataset that
            is drawn by code, and for one's own images.
        request: The arguments of `load_dataset` that give it again.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    source: str
    fingerprints: dict[str, str]
    verified: bool
    request: dict

    @property
    def num_classes(self):
        return len(self.class_names)


def load_dataset(
    name,
    data_dir=None,
    validation=0,
    seed=0,
    source=None,
    allow_unverified=False,
):
    """Loads a dataset and verifies that it is the published one.

    Or one's own images, from a folder that holds train/ (and val/, test/), with
    a folder a class in each; see `image_folders.load_folders` for their size.
    Without val/ the argument `validation` counts; without test/ a fifth of the
    train split, the same each time, becomes the test split.

    It looks in `data_dir`, or in `KERAS_RESNET_CIFAR_DATA`, and nowhere else
    if either is given; without them where Keras, torchvision and tfds keep
    theirs; and then has tfds download it.

    Args:
        name: A name of `DATASETS`, or a folder of images.
        data_dir: A folder that holds python batches, binary batches, npz
            files, a tfds directory or an official archive, in itself or in
            the customary subfolder. With `source` `"tfds"` or
            `"huggingface"`: where the download is kept.
        validation: How many images to take off the train split, as a count,
            or as a fraction if a float. The same seed takes the same images
            whatever the source.
        seed: Seed of the validation split.
        source: A name of `SOURCES` to look there alone, or `None`.
        allow_unverified: Go on with images that are not the published ones.

    Returns:
        A `Dataset`.

    Raises:
        InputError: A name is unknown, nothing was found, a file is defective,
            verification failed, or `validation` does not fit.

    Example:

    >>> data = load_dataset("shapes", validation=1000)
    >>> data.train.images.shape
    (9000, 32, 32, 3)
    """
    check_known(name, source)
    if name not in DATASETS:
        return _own_images(name, validation, seed)
    info = DATASETS[name]
    splits, origin = _load(info.family, data_dir, source)
    digests = {split: image_digests(*splits[split]) for split in splits}
    fingerprints = {split: _combine(digests[split]) for split in splits}
    verified = _verify(info, splits, fingerprints, origin, allow_unverified)
    held_out = _stratified(
        splits["train"][1], digests["train"], validation, seed
    )
    if name == "cifar100-coarse":
        coarse = np.array(FINE_TO_COARSE, np.uint8)
        splits = {s: (x, coarse[y]) for s, (x, y) in splits.items()}
    train, held_out = _cut(Split(*splits["train"]), held_out)
    return Dataset(
        name=name,
        train=train,
        validation=held_out,
        test=Split(*splits["test"]),
        class_names=info.class_names,
        source=origin,
        fingerprints=fingerprints,
        verified=verified,
        request={
            "name": name,
            "data_dir": os.path.abspath(data_dir) if data_dir else None,
            "validation": validation,
            "seed": seed,
            "source": source,
            "allow_unverified": allow_unverified,
        },
    )


def _own_images(folder, validation, seed):
    """The `Dataset` of a folder of images."""
    folder = os.path.abspath(folder)
    splits = {
        split: Split(*arrays)
        for split, arrays in image_folders.load_folders(folder).items()
    }
    if "test" not in splits:
        splits["train"], splits["test"] = _hold_out(splits["train"], 0.2, 0)
    fingerprints = {
        split: fingerprint(splits[split].images, splits[split].labels)
        for split in ("train", "test")
    }
    train, held_out = splits["train"], splits.get("validation")
    if held_out is None:
        train, held_out = _hold_out(train, validation, seed)
    return Dataset(
        name=folder,
        train=train,
        validation=held_out,
        test=splits["test"],
        class_names=image_folders.class_names(folder),
        source=f"the images in {folder}",
        fingerprints=fingerprints,
        verified=True,
        request={"name": folder, "validation": validation, "seed": seed},
    )


# --- Where the images come from


def _load(family, data_dir, source):
    """Returns `{split: (images, labels)}` and where they came from."""
    if family == "shapes":
        from keras_resnet_cifar.data import shapes

        draws = {"train": (10_000, 0), "test": (2_000, 1)}
        return {
            split: shapes.draw(count, seed=seed)
            for split, (count, seed) in draws.items()
        }, "drawn by keras_resnet_cifar.data.shapes"
    if source == "huggingface":
        cache = data_dir or keras_home() / "datasets" / "huggingface"
        return huggingface.read(family, cache), f"huggingface in {cache}"
    if source == "tfds":
        return _download_tfds(family, data_dir or tfds_home())

    given = data_dir or os.environ.get(DATA_VARIABLE)
    roots = [_existing(given)] if given else default_roots()
    for root in roots:
        found = readers.find(root, family, bare=bool(given))
        if found:
            origin, read = found
            return read(), origin
    where = ", ".join(map(str, roots))
    remedy = (
        f"point --data-dir or {DATA_VARIABLE} at a copy, or take --source "
        "huggingface"
    )
    if given or source == "disk":
        raise InputError(
            f"no {family} in {where}: looked for "
            f"{readers.looked_for(family)}; {remedy}"
        )
    try:
        return _download_tfds(family, tfds_home())
    except InputError as error:
        raise InputError(
            f"no {family} in {where}; then {error}; {remedy}"
        ) from error


def _download_tfds(family, folder):
    return readers.download_tfds(family, folder), f"tfds in {folder}"


def tfds_home():
    """Returns the folder where tfds keeps its datasets."""
    given = os.environ.get("TFDS_DATA_DIR")
    return Path(given or Path.home() / "tensorflow_datasets")


def keras_home():
    """Returns the folder where Keras keeps its downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def default_roots():
    """Returns the folders where Keras, torchvision and tfds keep datasets."""
    keras_datasets = keras_home() / "datasets"
    return [
        keras_datasets,
        keras_datasets / "cifar-10-batches-py-target",
        keras_datasets / "cifar-100-python-target",
        Path("data"),
        tfds_home(),
    ]


def _existing(folder):
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        fault = "is no folder" if folder.exists() else "does not exist"
        raise InputError(
            f"the data folder {folder} {fault}: check --data-dir or "
            f"{DATA_VARIABLE}"
        )
    return folder


# --- Whether they are the published ones


def image_digests(images, labels):
    """Returns the SHA-256 digest of each image with its label.

    Args:
        images: uint8 [N, H, W, 3].
        labels: uint8 or uint16 [N]; of CIFAR-100 the fine ones.

    Returns:
        List of N `bytes`: each over the image's bytes, 3,072 for CIFAR (rows,
        then columns, then R G B), followed by the label as one byte (from 256
        on as two).
    """
    digests = []
    for image, label in zip(images, labels.tolist(), strict=True):
        digest = hashlib.sha256(np.ascontiguousarray(image))
        digest.update(label.to_bytes(1 if label < 256 else 2))
        digests.append(digest.digest())
    return digests


def _combine(digests):
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def fingerprint(images, labels):
    """Returns a SHA-256 (hex) that no order and no file format changes.

    It is over the sorted `image_digests`, so the same images with the same
    labels have one fingerprint, whichever copy they were read from.

    Args:
        images: uint8 [N, 32, 32, 3].
        labels: uint8 [N], fine labels.
    """
    return _combine(image_digests(images, labels))


def _verify(info, splits, fingerprints, origin, allow_unverified):
    faults = [
        f"{split} ({len(splits[split][1]):,} images found, {count:,} expected, "
        f"fingerprint {fingerprints[split][:12]} for {expected[:12]})"
        for split, (count, expected) in info.fingerprints.items()
        if fingerprints[split] != expected
    ]
    if faults and not allow_unverified:
        raise InputError(
            f"{info.family} from {origin} is not the published one: "
            f"{' and '.join(faults)}; if that is meant, --allow-unverified "
            "goes on with it"
        )
    return not faults


# --- The validation split


def _count(validation, total):
    """Returns `validation`, a count or a fraction, as a count."""
    count = validation
    if isinstance(validation, float) and validation:
        count = round(validation * total) if 0 < validation < 1 else -1
    if count < 0 or count >= total or (validation and not count):
        raise InputError(
            f"validation={validation} does not fit a train split of {total:,} "
            "images: give a count below that, or a fraction such as 0.1"
        )
    return int(count)


def _stratified(labels, digests, validation, seed):
    """Returns the indices to hold out, int [count], sorted.

    Every class gives its share, to within one image, and the total is exact.
    """
    count = _count(validation, len(labels))
    # From the order of the digests, not of the file: any copy of the dataset,
    # in any layout, then gives the same validation images.
    order = np.array(sorted(range(len(labels)), key=digests.__getitem__))
    order = order[np.random.default_rng(seed).permutation(len(order))]
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(place[order], kind="stable")][:count])


def _hold_out(split, share, seed):
    """Returns (the rest, what `load_dataset` calls the validation split)."""
    if not share:
        return split, None
    digests = image_digests(split.images, split.labels)
    return _cut(split, _stratified(split.labels, digests, share, seed))


def _cut(split, held_out):
    """Returns (the rest, those at the indices), the latter `None` if none."""
    if not len(held_out):
        return split, None
    rest = np.ones(len(split), bool)
    rest[held_out] = False
    return (
        Split(split.images[rest], split.labels[rest]),
        Split(split.images[held_out], split.labels[held_out]),
    )
