"""The rows of the results table, and the recipes of the accuracy curve."""

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from keras_resnet_cifar.training.recipes import Recipe, get_recipe


@dataclass(frozen=True)
class Row:
    """One row: a training that is repeated with several seeds.

    Attributes:
        name: Prefix of its run directories, and name of its JSON file.
        epochs: Number of epochs, or `None` for the recipe's.
        weights: Name of the trained weights that are fine-tuned, with all
            layers from the first step; `None` trains from scratch.
        options: Other fields of the recipe to override; each is an option of
            `train`.
        seeds: Number of seeds: 0, 1, ...
        expected: Accuracy that the source reports, 0 to 1, or `None`.
        log: Its accuracies after some epochs, `{epoch: {split: 0 to 1}}`.
    """

    name: str
    recipe: str
    arch: str
    dataset: str
    epochs: int | None = None
    _: KW_ONLY
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    expected: float | None = None
    source: str = ""
    log: dict[int, dict[str, float]] = field(default_factory=dict)

    def applied(self) -> Recipe:
        """Returns the recipe with the changes of this row."""
        changes = {"arch": self.arch, "dataset": self.dataset}
        return get_recipe(
            self.recipe, epochs=self.epochs, **changes, **self.options
        )


# Families of recipes: the largest number of epochs that each is meant for.
FAMILIES = {
    "fast": ((16, "fast"), (40, "fast-40"), (math.inf, "fast-100")),
}


def recipe_for(name: str, epochs: int) -> str:
    """Returns the recipe that a family has for a number of epochs.

    A recipe that is not in `FAMILIES` is its own family.
    """
    members = FAMILIES.get(name, ((math.inf, name),))
    return next(recipe for most, recipe in members if epochs <= most)


_HE = "He et al. 2015, 64k steps"
_CHENYAOFO = "chenyaofo/pytorch-cifar-models, 200 epochs, projection shortcuts"
_PARK = "J. Park's course report"


def _validated(log):
    return {epoch: {"validation": top1} for epoch, top1 in log.items()}


ROWS = (
    Row(
        name="cifar10-resnet20-12",
        recipe="fast",
        arch="resnet20",
        dataset="cifar10",
        epochs=12,
        expected=0.9125,
        source=_HE,
    ),
    Row(
        name="shapes-resnet8-12",
        recipe="fast",
        arch="resnet8",
        dataset="shapes",
        epochs=12,
    ),
    Row(
        name="standard-30",
        recipe="coursework-standard",
        arch="resnet32-projection",
        dataset="cifar10",
        epochs=30,
        seeds=1,
        expected=0.7436,
        source=_PARK,
        log=_validated(
            {5: 0.4630, 10: 0.5370, 15: 0.6412, 20: 0.6914, 30: 0.7414}
        ),
    ),
    Row(
        name="bottleneck-25",
        recipe="coursework-bottleneck",
        arch="resnet47-bottleneck-preact",
        dataset="cifar10",
        epochs=25,
        seeds=1,
        expected=0.7126,
        source=_PARK,
        log=_validated({5: 0.5872, 10: 0.6460, 25: 0.7086}),
    ),
    Row(
        name="cifar10-resnet20-40",
        recipe="fast-40",
        arch="resnet20",
        dataset="cifar10",
        epochs=40,
        expected=0.9125,
        source=_HE,
    ),
    Row(
        name="cifar10-resnet20-100",
        recipe="fast-100",
        arch="resnet20",
        dataset="cifar10",
        epochs=100,
        expected=0.9256,
        source=f"{_CHENYAOFO}, last epoch",
    ),
    Row(
        name="coursework-resnet20-200",
        recipe="coursework-resnet20",
        arch="resnet20-projection",
        dataset="cifar10",
        epochs=200,
        seeds=1,
        expected=0.9207,
        source="S. Kim's course report",
    ),
    Row(
        name="cifar100-resnet20-12",
        recipe="fast",
        arch="resnet20",
        dataset="cifar100",
        epochs=12,
        expected=0.6883,
        source=_CHENYAOFO,
    ),
    Row(
        name="cifar100-resnet20-40",
        recipe="fast-40",
        arch="resnet20",
        dataset="cifar100",
        epochs=40,
        expected=0.6883,
        source=_CHENYAOFO,
    ),
    Row(
        name="cifar100-from-cifar10-12",
        recipe="fast",
        arch="resnet20",
        dataset="cifar100",
        epochs=12,
        weights="cifar10",
        seeds=1,
    ),
    Row(
        name="coursework-cifar100-100",
        recipe="coursework-cifar100",
        arch="resnet26-ie534",
        dataset="cifar100",
        epochs=100,
        options={"checkpoint_every": 5},
        seeds=1,
        expected=0.6331,
        source="Z. Na's course report",
        log={
            5: {"train": 0.3498, "test": 0.3288},
            10: {"train": 0.5004, "test": 0.4535},
            15: {"train": 0.5920, "test": 0.5176},
            20: {"train": 0.6688, "test": 0.5515},
            25: {"train": 0.7162, "test": 0.5716},
            30: {"train": 0.7711, "test": 0.5918},
            40: {"train": 0.8326, "test": 0.5933},
            50: {"train": 0.8971, "test": 0.6149},
            60: {"train": 0.9277, "test": 0.6091},
            70: {"train": 0.9516, "test": 0.6197},
            80: {"train": 0.9662, "test": 0.6214},
            90: {"train": 0.9786, "test": 0.6310},
            100: {"train": 0.9844, "test": 0.6331},
        },
    ),
    Row(
        name="standard-90",
        recipe="coursework-standard",
        arch="resnet32-projection",
        dataset="cifar10",
        epochs=90,
        seeds=1,
        expected=0.7905,
        source=_PARK,
    ),
    Row(
        name="bottleneck-90",
        recipe="coursework-bottleneck",
        arch="resnet47-bottleneck-preact",
        dataset="cifar10",
        epochs=90,
        seeds=1,
        expected=0.8065,
        source=_PARK,
    ),
)
