"""Loads a dataset into memory, verifies it and holds out a validation split."""

import contextlib
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet_cifar.data import folders, huggingface, readers, shapes, tfds
from keras_resnet_cifar.data.datasets import (
    DATASETS,
    FINE_TO_COARSE,
    check_known,
    spelled_dataset,
)
from keras_resnet_cifar.data.splits import (
    Split,
    checked_split,
    fingerprint,
    hold_out,
    paired,
)
from keras_resnet_cifar.errors import InputError, checked_seed, explained

DATA_VARIABLE = "KERAS_RESNET_CIFAR_DATA"
_LAST_CLASS = 2**16  # if no names tell how many classes there are


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A dataset in memory; its splits are checked on creation.

    Attributes:
        name: Its name in `DATASETS`, or the folder of your own images.
        train, validation, test: The splits; all but `train` may be `None`.
        class_names: One name per label.
        source: Description of where the images come from.
        fingerprints: `{split: hex}` of the splits on disk, over fine labels;
            a validation split that is held out later is part of `"train"`.
        verified: Whether the images are the published ones; true for drawn
            images and for folders of your own.
        request: The arguments of `load_dataset` that load it again.
        test_files: The files of the test split, if it was read from a folder
            of images.

    Raises:
        InputError: A split cannot be trained on; see `from_arrays`.
    """

    name: str = "arrays"
    train: Split
    validation: Split | None = None
    test: Split | None = None
    class_names: tuple[str, ...] = field(repr=False)
    source: str = "memory"
    fingerprints: dict[str, str] = field(default_factory=dict, repr=False)
    verified: bool = True
    request: dict = field(default_factory=dict, repr=False)
    test_files: Sequence[Path] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if len(set(self.class_names)) < self.num_classes:
            raise InputError(
                f"class_names={tuple(self.class_names)}: give each class a "
                "different name"
            )
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            if isinstance(split, Split):
                arrays = split.images, split.labels
                split = checked_split(name, *arrays, self.num_classes)
                object.__setattr__(self, name, split)

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        *,
        class_names: Sequence[object] | None = None,
        validation: tuple | int | float | None = None,
        test: tuple | None = None,
        seed: int = 0,
    ) -> "Dataset":
        """Returns a `Dataset` of your own arrays.

        Args:
            images: `[N, H, W, 3]` (R, G, B) or `[N, H, W, 1]`, from 0 to 255;
                integers, or floats, which become float32.
            labels: Whole numbers `[N]` or `[N, 1]`, or one-hot `[N, classes]`.
            class_names: One name per class; by default the numbers up to the
                largest label.
            validation: `(images, labels)`, or the number of images to hold out
                of the train split: a count, or a fraction if a float.
            test: `(images, labels)`, or `None`.
            seed: Seed of a validation split that is held out.

        Raises:
            InputError: The arrays do not fit, or hold images from 0 to 1.

        Examples:

        >>> (x, y), test = keras.datasets.cifar10.load_data()
        >>> data = Dataset.from_arrays(x, y, validation=0.1, test=test)
        """
        if class_names is None:
            class_names = range(1)
            with contextlib.suppress(TypeError, ValueError):  # refused below
                given: Any = np.asarray(labels)
                if given.ndim == 2 and given.shape[1] > 1:
                    class_names = range(given.shape[1])
                elif given.dtype.kind in "iu":
                    last = min(max(int(given.max()), 0), _LAST_CLASS)
                    class_names = range(last + 1)
        elif isinstance(class_names, str) or not hasattr(
            class_names, "__len__"
        ):
            raise InputError(
                f"class_names={class_names!r}: give a list, one name per class"
            )
        classes = len(class_names)
        train = checked_split("train", images, labels, classes)
        splits: dict = {}
        for name, pair in (("validation", validation), ("test", test)):
            if pair is None or isinstance(pair, numbers.Real):
                continue
            splits[name] = checked_split(name, *paired(name, pair), classes)
        fingerprints = {
            name: fingerprint(split.images, split.labels)
            for name, split in {"train": train, **splits}.items()
        }
        if isinstance(validation, numbers.Real):
            train, splits["validation"] = hold_out(train, validation, seed)
        return cls(
            train=train,
            **splits,
            class_names=tuple(map(str, class_names)),
            source="arrays",
            fingerprints=fingerprints,
            verified=False,
        )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load_dataset(
    name: str,
    data_dir: str | os.PathLike | None = None,
    validation: int | float = 0,
    seed: int = 0,
    source: str | None = None,
    allow_unverified: bool = False,
    image_size: int | Sequence[int] | None = None,
) -> Dataset:
    """Loads a dataset and verifies that it is the published one.

    It also loads your own images from a folder with train/ (and val/, test/),
    each with one folder per class. Images are cropped to a common aspect ratio
    and resized. Without test/, about a fifth of the train split becomes the
    test split; a file stays in its split when others are added or removed.

    Args:
        name: A name of `DATASETS`, or a folder of images.
        data_dir: For CIFAR: the only folder to search for python batches,
            binary batches, npz files, a tfds directory or an official archive,
            in the folder itself or its usual subfolder. By default,
            `KERAS_RESNET_CIFAR_DATA`, else the caches of Keras, torchvision
            and tfds, else a download by tfds. With `source` `"tfds"` or
            `"huggingface"`, the folder to download to.
        validation: Number of images to hold out of the train split: a count,
            or a fraction if a float; unused if a folder has val/. The same
            seed selects the same images whatever the source. In a folder, a
            fraction is approximate, and a file stays in its split when others
            are added or removed.
        seed: Seed of the validation split.
        source: For CIFAR: a name of `SOURCES` to use it alone, or `None`.
        allow_unverified: Accept images that are not the published ones.
        image_size: For a folder of images: `(height, width)`, or the side of
            squares, in pixels; by default, the median of the shorter sides, at
            most 256.

    Returns:
        A `Dataset`.

    Raises:
        InputError: A name is unknown, no copy exists, a file is damaged,
            verification fails, or an argument does not fit the dataset.

    Examples:

    >>> data = load_dataset("shapes", validation=1000)
    >>> data.train.images.shape
    (9000, 32, 32, 3)
    """
    check_known(name, source, data_dir, image_size)
    seed = checked_seed(seed)
    name = spelled_dataset(name)
    data_dir = data_dir and os.path.abspath(os.path.expanduser(data_dir))
    published: dict[str, tuple[int, str]] = {}
    test_files: Sequence[Path] = ()
    if name in DATASETS:
        info = DATASETS[name]
        arrays, origin = _read(info.family, data_dir, source)
        class_names, published = info.class_names, info.fingerprints
    else:
        name = os.path.abspath(name)
        share = validation if isinstance(validation, float) else 0
        found = folders.load_folders(name, image_size, share, seed)
        arrays, image_size = found.splits, found.size
        test_files, origin = found.files["test"], f"the images in {name}"
        class_names = folders.class_names(name)
    splits: dict = {split: Split(*pair) for split, pair in arrays.items()}
    fingerprints = {
        split: fingerprint(images, labels)
        for split, (images, labels) in arrays.items()
    }
    faults = " and ".join(
        f"{split} ({len(splits[split]):,} images found, {count:,} expected, "
        f"fingerprint {fingerprints[split][:12]} instead of {expected[:12]})"
        for split, (count, expected) in published.items()
        if fingerprints[split] != expected
    )
    if faults and not allow_unverified:
        raise InputError(
            f"{name} from {origin} is not the published dataset: {faults}; "
            "allow_unverified=True accepts it"
        )
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(
            splits["train"], validation, seed
        )
    if name == "cifar100-coarse":
        coarse = np.array(FINE_TO_COARSE, np.uint8)
        splits = {
            key: split and Split(split.images, coarse[split.labels])
            for key, split in splits.items()
        }
    return Dataset(
        name=name,
        **splits,
        class_names=class_names,
        source=origin,
        fingerprints=fingerprints,
        verified=not faults,
        request={
            "name": name,
            "data_dir": data_dir,
            "validation": validation,
            "seed": seed,
            "source": source,
            "allow_unverified": allow_unverified,
            "image_size": image_size,
        },
        test_files=test_files,
    )


def at_input_size(
    request: Mapping[str, Any], input_shape: Sequence[int | None]
) -> dict[str, Any]:
    """Returns a request that reads a folder's images at the size a net takes.

    A request consists of the arguments of `load_dataset`. If they state a size,
    as a run's do, they are unchanged.
    """
    size = list(input_shape[1:3])
    if request["name"] in DATASETS or None in size:
        return dict(request)
    return dict(request) | {"image_size": request.get("image_size") or size}


def _read(family, data_dir, source):
    """Returns `{split: (images, labels)}` and where they come from."""
    if family == "shapes":
        splits = {
            "train": shapes.draw(10_000, seed=0),
            "test": shapes.draw(2_000, seed=1),
        }
        return splits, "drawn by keras_resnet_cifar.data.shapes"
    if source == "huggingface":
        cache = data_dir or keras_home() / "datasets" / "huggingface"
        return huggingface.read(family, cache), f"huggingface in {cache}"
    if source == "tfds":
        folder = data_dir or tfds.home()
        return tfds.download(family, folder), f"tfds in {folder}"

    given = data_dir or os.environ.get(DATA_VARIABLE)
    roots = [Path(given).expanduser()] if given else _customary_roots()
    if given and not roots[0].is_dir():
        fault = "is not a folder" if roots[0].exists() else "does not exist"
        raise InputError(
            f"the data folder {roots[0]} {fault}: check data_dir= or "
            f"{DATA_VARIABLE}"
        )
    for root in roots:
        for origin, read in readers.copies(root, family, bool(given)):
            return read(), origin
    missing = f"no {family} in {', '.join(map(str, roots))}"
    remedy = (
        f"point data_dir= or {DATA_VARIABLE} at a copy, or use "
        "source='huggingface'"
    )
    if given or source == "disk":
        looked_for = readers.looked_for(family)
        raise InputError(f"{missing}: looked for {looked_for}; {remedy}")
    with explained(missing, remedy):
        return tfds.download(family, tfds.home()), f"tfds in {tfds.home()}"


def keras_home() -> Path:
    """Returns the folder where Keras keeps its downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def _customary_roots():
    """Where Keras, torchvision and tfds keep datasets."""
    home = keras_home() / "datasets"
    targets = ("cifar-10-batches-py-target", "cifar-100-python-target")
    return [home, *(home / x for x in targets), Path("data"), tfds.home()]
