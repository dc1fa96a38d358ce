"""The datasets: names, classes, channel statistics and fingerprints."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from keras_resnet_cifar.errors import InputError, spelled, unknown

# Where images may come from; by default from disk, else from tfds.
SOURCES = {
    "disk": "a copy in the data folder or in the caches of Keras, torchvision "
    "and tfds",
    "tfds": "a download by tensorflow_datasets from the university's host",
    "huggingface": "a download of the parquet files of uoft-cs",
}


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset of 32x32 RGB images.

    Attributes:
        family: The dataset with the same images: `"cifar100"` for
            `"cifar100-coarse"`.
        mean, std: Per channel R, G, B of the train split, in 0..1.
        summary: One line for help texts.
        fingerprints: `{split: (images, fingerprint)}` of the published splits;
            empty for images drawn by code.
    """

    name: str
    family: str
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    summary: str
    fingerprints: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def _words(text):
    return tuple(text.split())


def _published(train, test):
    return {"train": (50_000, train), "test": (10_000, test)}


_SHAPES = DatasetInfo(
    name="shapes",
    family="shapes",
    class_names=_words(
        "circle ring square triangle pentagon star cross crescent heart arrow"
    ),
    mean=(0.5003, 0.5005, 0.5004),
    std=(0.2745, 0.2747, 0.2748),
    summary="ten drawn shapes, 10,000 + 2,000 images, no download",
)

_CIFAR10 = DatasetInfo(
    name="cifar10",
    family="cifar10",
    class_names=_words(
        "airplane automobile bird cat deer dog frog horse ship truck"
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    summary="ten classes of photos, 50,000 + 10,000 (Krizhevsky 2009)",
    fingerprints=_published(
        "6a3b2c04d0a79ce272dcdacaf0bc440275db5a8cbe3717521a28fada2ea0d2ed",
        "65a6ffe079453e514083f99356b35e02cbfd581b4951e3937fae188974b79f39",
    ),
)

_CIFAR100 = DatasetInfo(
    name="cifar100",
    family="cifar100",
    class_names=_words(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
        bowl boy bridge bus butterfly camel can castle caterpillar cattle chair
        chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
        motorcycle mountain mouse mushroom oak_tree orange orchid otter
        palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
        rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper
        table tank telephone television tiger tractor train trout tulip turtle
        wardrobe whale willow_tree wolf woman worm"""
    ),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    summary="a hundred fine classes of photos, 50,000 + 10,000",
    fingerprints=_published(
        "640c97a4012a8aebfcaf57fd82a33dd43b37d2e397a02cb9b0a3d89e6d6d936d",
        "a6a97df7b61bc7420bc44268696e8963d33129bc050978f2a63d8fe3420989fa",
    ),
)

_CIFAR100_COARSE = replace(
    _CIFAR100,
    name="cifar100-coarse",
    class_names=_words(
        """aquatic_mammals fish flowers food_containers fruit_and_vegetables
        household_electrical_devices household_furniture insects
        large_carnivores large_man-made_outdoor_things
        large_natural_outdoor_scenes large_omnivores_and_herbivores
        medium_mammals non-insect_invertebrates people reptiles small_mammals
        trees vehicles_1 vehicles_2"""
    ),
    summary="the images of cifar100 with twenty coarse classes",
)

DATASETS = {
    info.name: info for info in (_SHAPES, _CIFAR10, _CIFAR100, _CIFAR100_COARSE)
}

# The coarse label of each of CIFAR-100's fine labels.
FINE_TO_COARSE = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
    *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
    *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
    *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
    *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)


def spelled_dataset(name: str) -> str:
    """Returns a name as `DATASETS` spells it; a folder's name is unchanged."""
    return name if os.path.isdir(str(name)) else spelled(name, DATASETS)


def check_known(
    name: str,
    source: str | None = None,
    data_dir: str | os.PathLike | None = None,
    image_size: int | Sequence[int] | None = None,
) -> None:
    """Raises `InputError` for arguments that fit no dataset or source."""
    name = spelled_dataset(name)
    if name not in DATASETS and not os.path.isdir(str(name)):
        if os.sep in str(name):
            raise InputError(f"{name} is not an existing folder: check it")
        raise unknown("dataset", name, [*DATASETS, "a folder of images"])
    if source not in (None, *SOURCES):
        raise unknown("source", source, SOURCES)
    if image_size and name in DATASETS:
        raise InputError(
            f"image_size={image_size} is for a folder of images; {name} has a "
            "fixed size: omit image_size="
        )
    is_cifar = name in DATASETS and name != "shapes"
    for argument, value in (("data_dir", data_dir), ("source", source)):
        if value and not is_cifar:
            raise InputError(
                f"{argument}={str(value)!r} is for CIFAR; {name} has no other "
                f"source: omit {argument}="
            )
