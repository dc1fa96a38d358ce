"""Recipes for training, each with its source and expected result."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet_cifar.errors import (
    InputError,
    check_name,
    checked_below_one,
    checked_number,
    spelled,
)

if TYPE_CHECKING:
    from keras.optimizers import Optimizer
    from keras.optimizers.schedules import LearningRateSchedule

# Names in recipes, and the classes of `schedules`.
SCHEDULES = {
    "constant": "Constant",
    "multistep": "MultiStep",
    "cosine": "Cosine",
    "exponential": "Exponential",
    "one_cycle": "OneCycle",
}


def _field(default: Any, text: str) -> Any:
    """Returns a field that is also an option of the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """A training configuration without the net, the data and the seed.

    Rate, weight decay and momentum have the same meaning as in PyTorch: weight
    decay is coupled. Expected results are accuracies on the test split after
    the last epoch.

    `schedule` is a name and arguments: `("one_cycle", {"warmup": 0.2})`.
    `padding`, `cutout` and `random_resized_crop` are in pixels; 0 switches them
    off. `validation` is a number of images, or, as a float, a fraction.

    Instead of a name, `optimizer` may be a `keras.optimizers.Optimizer`, whose
    own rate or schedule replaces the recipe's. `loss` may be a Keras loss or a
    function of one-hot targets `[N, classes]`, mixed and smoothed as the recipe
    says, and logits; by default, it is cross-entropy. `get_recipe` replaces
    both by their configs.
    """

    name: str
    source: str = "not stated"
    expected: str = "not stated"
    arch: str = "resnet20"  # the net of the source
    dataset: str = "cifar10"  # the dataset of the source
    epochs: int = _field(200, "passes over the train split")
    batch_size: int = _field(128, "images per step")
    learning_rate: float = _field(0.1, "full rate, scaled by the schedule")
    optimizer: Any = _field("sgd", "optimizer")  # noqa: RUF009
    momentum: float = _field(0.9, "momentum, or beta_1 of Adam; below 1")
    sgd_ratio: float = _field(
        5.0, "for muon: rate of its SGD part, as a multiple of the rate"
    )
    nesterov: bool = _field(False, "use Nesterov momentum")
    weight_decay: float = _field(1e-4, "weight decay, coupled as in PyTorch")
    decay_on: str = _field("all", "parameters that weight decay applies to")
    schedule: tuple = _field(  # a key of SCHEDULES, its arguments
        ("cosine", {}), f"schedule of the rate: {', '.join(SCHEDULES)}"
    )
    warmup_steps: int = _field(0, "number of first steps at a lower rate")
    warmup_factor: float = _field(
        0.1, "rate of the warm-up steps, as a fraction of the full rate"
    )
    padding: int = _field(4, "pixels added to each side before a random crop")
    padding_mode: str = _field("zero", "what to pad with")
    random_resized_crop: int = _field(
        0, "side in pixels; replaces the padded crop; 0: off"
    )
    flip: bool = _field(True, "mirror images, each with probability 1/2")
    alternating_flip: bool = _field(
        False, "with flip: in every other epoch instead of at random"
    )
    cutout: int = _field(0, "side of the blanked square in pixels; 0: off")
    mixup: float = _field(0.0, "alpha of MixUp's Beta distribution; 0: off")
    cutmix: float = _field(0.0, "upper end of CutMix's alpha, up to 1; 0: off")
    rand_augment: int = _field(0, "RandAugment operations per image; 0: off")
    label_smoothing: float = _field(0.0, "label smoothing, below 1")
    ema: float = _field(
        0.0, "momentum of the averaged weights, such as 0.999; 0: off"
    )
    precision: str = _field("float32", "dtype policy of the computation")
    validation: float = _field(0, "images to hold out, a count or a fraction")
    checkpoint_every: int = _field(0, "epochs between checkpoints; 0: none")
    patience: int = _field(
        0, "epochs without better validation accuracy to stop after; 0: off"
    )
    normalization: str | tuple | None = _field(
        None,
        "imagenet, per_image or a dataset's (if unset: that of the dataset, "
        "imagenet for a folder)",
    )
    loss: Any = None

    def schedule_for(self, steps_per_epoch: int) -> "LearningRateSchedule":
        """Returns the learning-rate schedule of a run with this recipe.

        Args:
            steps_per_epoch: Steps of one epoch, 1 or more.

        Returns:
            One of `krc.schedules`, or the schedule of your own optimizer.

        Raises:
            InputError: The schedule's arguments do not fit.
        """
        from keras_resnet_cifar.training import objects, schedules

        if isinstance(self.optimizer, dict):
            return objects.schedule_of(self.optimizer)
        name, arguments = self.schedule
        schedule_class = getattr(schedules, SCHEDULES[name])
        length = {"steps": self.epochs * steps_per_epoch}
        if name == "exponential":
            length = {"steps_per_epoch": steps_per_epoch}
        try:
            schedule = schedule_class(
                self.learning_rate,
                warmup_steps=self.warmup_steps,
                warmup_factor=self.warmup_factor,
                **({} if name == "constant" else length),
                **arguments,
            )
            schedule(np.zeros(1))
            return schedule
        except (TypeError, ValueError) as error:
            raise InputError(
                f"schedule={self.schedule!r}: check its arguments ({error})"
            ) from error

    def optimizer_for(
        self, learning_rate: "float | LearningRateSchedule"
    ) -> "Optimizer":
        """Returns a new optimizer for a run with this recipe.

        Args:
            learning_rate: A float, or a schedule such as `schedule_for`'s.

        Returns:
            `krc.CoupledSGD`, `krc.CoupledAdam` or `krc.Muon`, or a copy of your
            own optimizer.
        """
        from keras_resnet_cifar.training import muon, objects, optimizers

        if isinstance(self.optimizer, dict):
            return objects.optimizer_of(self.optimizer, learning_rate)
        options: dict[str, Any] = {
            "weight_decay": self.weight_decay,
            "decay_on": self.decay_on,
        }
        if self.optimizer == "adam":
            return optimizers.CoupledAdam(
                learning_rate, self.momentum, **options
            )
        options |= {"momentum": self.momentum, "nesterov": self.nesterov}
        if self.optimizer == "sgd":
            return optimizers.CoupledSGD(learning_rate, **options)
        return muon.Muon(learning_rate, sgd_ratio=self.sgd_ratio, **options)


_HE = "He et al. 2015, arXiv:1512.03385, section 4.2"
_PAPER = Recipe(
    name="paper",
    source=f"{_HE}: 64k steps of 128, rate / 10 at 32k and 48k",
    expected="CIFAR-10: resnet20 91.25, 32 92.49, 44 92.83, 56 93.03, "
    "1202 92.07 %",
    epochs=182,  # 64k steps of 351 an epoch of 45,000 images
    schedule=("multistep", {"milestones": (0.5, 0.75), "gamma": 0.1}),
    validation=5000,
)
_COSINE = Recipe(
    name="cosine",
    source="chenyaofo/pytorch-cifar-models, kuangliu/pytorch-cifar",
    expected="CIFAR-10: resnet20-projection 92.56, 56 94.21, resnet18 "
    "95.3 to 95.7 %; CIFAR-100: 20 68.8, 56 72.4 % (last epoch)",
    arch="resnet20-projection",
    nesterov=True,
    weight_decay=5e-4,
)
_ONECYCLE = Recipe(
    name="onecycle",
    source="Smith and Topin 2017, arXiv:1708.07120, in the linear form of "
    "davidcpage/cifar10-fast",
    expected="CIFAR-10 in 12 epochs: resnet20 88.5 %",
    epochs=12,
    learning_rate=0.4,
    nesterov=True,
    weight_decay=5e-4,
    decay_on="kernels",
    schedule=("one_cycle", {"warmup": 0.2}),
    padding_mode="reflect",
    label_smoothing=0.1,
    precision="auto",
)
_FAST = replace(
    _ONECYCLE,
    name="fast",
    source="Muon for convolutions as in KellerJordan/cifar10-airbench, its "
    "settings searched on validation images: docs/recipe_search.md",
    expected="resnet20 in 12 epochs: CIFAR-10 90.5, CIFAR-100 65.7 %",
    optimizer="muon",
    learning_rate=0.06,
    momentum=0.6,
    schedule=("one_cycle", {"warmup": 0.05}),
    padding=1,
)
_STRONG = replace(
    _COSINE,
    name="strong",
    source="the cosine recipe with cutout (arXiv:1708.04552), mixup "
    "(arXiv:1710.09412), label smoothing and averaged weights",
    expected="CIFAR-10: nets of the size of ResNet-20 94.45, of ResNet-56 "
    "95.0, resnet18 96.0 %; CIFAR-100: resnet18 78.0 % (best published "
    "results of this kind)",
    epochs=300,
    cutout=16,
    mixup=0.2,
    label_smoothing=0.1,
    ema=0.999,
)
_COURSEWORK = replace(
    _PAPER,
    name="coursework-standard",
    source="J. Park's course report, n = 5: the paper's settings, "
    "checkpoints every 5 epochs, validated one by one",
    expected="CIFAR-10: 74.36 % after 30 epochs, 79.05 % after 90",
    arch="resnet32-projection",
    epochs=30,
    checkpoint_every=5,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _FAST,
        replace(
            _FAST,
            name="fast-40",
            expected="resnet20 in 40 epochs: CIFAR-10 92.1, CIFAR-100 69.2 %",
            epochs=40,
        ),
        replace(
            _FAST,
            name="fast-100",
            expected="resnet20 in 100 epochs: CIFAR-10 92.4 %",
            epochs=100,
        ),
        _ONECYCLE,
        _PAPER,
        replace(
            _PAPER,
            name="paper-110",
            source=f"{_HE}: 400 steps at 0.01, then back to 0.1",
            expected="CIFAR-10: resnet110 93.39 % (+- 0.16)",
            arch="resnet110",
            warmup_steps=400,
        ),
        replace(
            _PAPER,
            name="wide",
            source="Zagoruyko and Komodakis 2016, arXiv:1605.07146: rate / 5 "
            "after 60, 120 and 160 epochs",
            expected="WRN-28-10: CIFAR-10 96.00, CIFAR-100 80.75 %; "
            "wideresnet16-4 not measured yet",
            arch="wideresnet16-4",
            epochs=200,
            nesterov=True,
            weight_decay=5e-4,
            schedule=(
                "multistep",
                {"milestones": (0.3, 0.6, 0.8), "gamma": 0.2},
            ),
            padding_mode="reflect",
            validation=0,
        ),
        _COSINE,
        _STRONG,
        replace(
            _STRONG,
            name="randaugment",
            source="the strong recipe with RandAugment (arXiv:1909.13719) "
            "and CutMix (arXiv:1905.04899) for cutout and mixup",
            expected="not measured yet",
            arch="resnet18",
            cutout=0,
            mixup=0.0,
            cutmix=1.0,
            rand_augment=2,
        ),
        replace(
            _COSINE,
            name="coursework-resnet20",
            source="S. Kim's course report on kuangliu/pytorch-cifar, cut "
            "down to ResNet-20",
            expected="CIFAR-10: 92.07 %",
            nesterov=False,
            weight_decay=1e-4,
        ),
        _COURSEWORK,
        replace(
            _COURSEWORK,
            name="coursework-bottleneck",
            expected="CIFAR-10: 71.26 % after 25 epochs, 80.65 % after 90",
            arch="resnet47-bottleneck-preact",
            epochs=25,
        ),
        Recipe(
            name="coursework-cifar100",
            source="Z. Na's course report and blog: IE 534, homework 4",
            expected="CIFAR-100: 63.31 % after 100 epochs (98.4 % on train)",
            arch="resnet26-ie534",
            dataset="cifar100",
            epochs=100,
            batch_size=256,
            learning_rate=0.01,
            weight_decay=1e-5,
            schedule=("constant", {}),
            normalization=((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
        ),
        Recipe(
            name="coursework-finetune",
            source="Z. Na's course report, part 2: an ImageNet ResNet-18 "
            "fine-tuned; it does not state the gamma of its ExponentialLR",
            expected="CIFAR-100: 71.23 % after 14 epochs",
            arch="resnet18-imagenet",
            dataset="cifar100",
            epochs=14,
            batch_size=64,
            optimizer="adam",
            learning_rate=1e-3,
            weight_decay=1e-5,
            schedule=("exponential", {"gamma": 0.9}),
            padding=0,
            random_resized_crop=224,
            normalization="imagenet",
        ),
    )
}
"""The recipes by name. `get_recipe` also takes those of your own."""
DEFAULT = "fast"  # of `train`
FINETUNING = "coursework-finetune"  # the default of `finetune`

# Fields with an option on the command line, and their choices.
OPTIONS = [option for option in fields(Recipe) if "help" in option.metadata]
CHOICES = {
    "optimizer": ("sgd", "adam", "muon"),
    "decay_on": ("all", "kernels"),
    "padding_mode": ("zero", "reflect"),
    "precision": ("auto", "float32", "mixed_bfloat16", "mixed_float16"),
}
_AT_LEAST = {"epochs": 1, "batch_size": 1}
_AT_MOST = {
    "epochs": 10_000,
    "padding": 16,
    "random_resized_crop": 1024,
    "cutmix": 1,
    "rand_augment": 10,  # compilation takes longer with each
    "warmup_factor": 1,
}
_BELOW_ONE = ("momentum", "label_smoothing", "ema")
# Fields that the user's own optimizer replaces.
_OF_OPTIMIZER = {
    *("learning_rate", "momentum", "sgd_ratio", "nesterov", "weight_decay"),
    *("decay_on", "schedule", "warmup_steps", "warmup_factor"),
}


def get_recipe(recipe: str | Recipe, **changes: Any) -> Recipe:
    """Returns a `Recipe` by name (or as given), with some fields overridden.

    Args:
        recipe: A name of `RECIPES` or a `Recipe`.
        **changes: Fields to override; `None` leaves a field unchanged.

    Returns:
        A `Recipe`.

    Raises:
        InputError: A name or field is unknown, or a value is out of range.
    """
    if not isinstance(recipe, Recipe):
        recipe = RECIPES[_known("recipe", recipe, RECIPES)]
    known = {entry.name: entry.type for entry in fields(Recipe)}
    for name in changes:
        check_name("recipe field", name, known)
    changes = {k: v for k, v in changes.items() if v is not None}
    recipe = replace(recipe, **changes)
    checked = {
        name: _checked(name, kind, getattr(recipe, name))
        for name, kind in known.items()
    }
    unused = sorted(_OF_OPTIMIZER & changes.keys())
    if unused and isinstance(checked["optimizer"], dict):
        kind = checked["optimizer"]["class_name"]
        raise InputError(
            f"{unused[0]}={changes[unused[0]]!r} has no effect on the "
            f"optimizer {kind}: pass it to {kind} itself"
        )
    return replace(recipe, **checked)


def checked_steps(steps: int | None) -> int | None:
    """Returns steps per execution; `InputError` unless `None` or above 0."""
    if steps is None:
        return None
    return checked_number("steps_per_execution", steps, int, 1)


def _checked(name, kind, value):
    """Returns a field's value as plain Python, if it is in range."""
    if name == "loss" and value is None:
        return None
    if name == "loss" or (name == "optimizer" and not isinstance(value, str)):
        if isinstance(value, dict):  # of a saved run
            return value
        from keras_resnet_cifar.training.objects import serialized

        return serialized(name, value)
    if name in CHOICES:
        return _known(name, value, CHOICES[name])
    if name == "schedule":
        return _checked_schedule(value)
    if kind is bool and not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: give True or False")
    if kind not in (int, float):
        return value
    least, most = _AT_LEAST.get(name, 0), _AT_MOST.get(name, math.inf)
    if name in _BELOW_ONE:
        return checked_below_one(name, value)
    return checked_number(name, value, kind, least, most)


def _checked_schedule(schedule):
    """Returns `(name, arguments)`; a name alone has no arguments."""
    try:
        if isinstance(schedule, str):
            schedule = (schedule, {})
        name, arguments = schedule
        arguments = dict(arguments)
    except (TypeError, ValueError):
        raise InputError(
            f"schedule={schedule!r}: give one of {', '.join(SCHEDULES)} and a "
            "dict of its arguments"
        ) from None
    return _known("schedule", name, SCHEDULES), arguments


def _known(kind, name, table):
    """Returns a name as a table spells it, or raises `InputError`."""
    name = spelled(name, table)
    check_name(kind, name, table)
    return name
