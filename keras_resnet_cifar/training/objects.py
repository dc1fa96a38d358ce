"""The user's own Keras optimizer and loss, stored in a recipe as configs.

config.json therefore records them, and a resumed run is compared with them.
"""

import copy
import inspect
from types import FunctionType
from typing import Any

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_resnet_cifar.errors import InputError, explained
from keras_resnet_cifar.training.schedules import Constant

# Losses of Keras that have no `from_logits`, classes and functions alike.
_OF_PROBABILITIES = (
    *("kldivergence", "poisson", "categoricalgeneralizedcrossentropy"),
    *("dice", "tversky"),
)


def serialized(name: str, value: Any) -> dict[str, Any]:
    """Returns an `"optimizer"` or a `"loss"` as JSON.

    The value is an instance of Keras's class, or a loss function `(targets,
    logits) -> losses`. Raises `InputError` if training cannot use it, or if it
    cannot be built from its config.
    """
    kinds: Any = keras.optimizers.Optimizer
    if name == "loss":
        kinds = (keras.losses.Loss, FunctionType)
    if not isinstance(value, kinds):
        example = "optimizers.AdamW(1e-3)"
        if name == "loss":
            example = "losses.CategoricalFocalCrossentropy(from_logits=True)"
        raise InputError(
            f"{name}={value!r}: give an instance, such as keras.{example}"
        )
    remedy = "give it get_config, and use no lambda"
    with explained(f"{name}={value!r} has no config", remedy):
        saved = keras.saving.serialize_keras_object(value)
    _built(name, saved)
    config, kind = saved["config"], _kind(saved)
    if name == "optimizer" and (
        "learning_rate" not in config or config.get("use_ema")
    ):
        raise InputError(
            f"optimizer={kind} wraps another or averages weights: give a plain "
            "one, and use precision= and ema= of the recipe"
        )
    if getattr(value, "_exclude_from_weight_decay_pattern", None) or getattr(
        value, "_exclude_from_weight_decay", None
    ):
        raise InputError(
            f"optimizer={kind} uses exclude_from_weight_decay, which its "
            "config does not record: give one without it"
        )
    if not isinstance(config, dict):  # a function has its defaults
        parameters = inspect.signature(value).parameters.values()
        config = {each.name: each.default for each in parameters}
    plain = kind.replace("_", "").lower()
    if not config.get("from_logits", plain not in _OF_PROBABILITIES):
        raise InputError(
            f"loss={kind} would treat logits as probabilities: give an "
            "instance with from_logits=True, such as CategoricalCrossentropy"
        )
    return saved


def optimizer_of(
    saved: dict[str, Any], rate: Any
) -> keras.optimizers.Optimizer:
    """Returns an optimizer from a config, with another rate or schedule."""
    config = saved["config"] | {"learning_rate": rate}
    return _built("optimizer", saved | {"config": config})


def schedule_of(saved: dict[str, Any]) -> LearningRateSchedule:
    """Returns the schedule of an optimizer, which also takes arrays."""
    rate = saved["config"]["learning_rate"]
    if isinstance(rate, dict):
        return _StepByStep(_built("optimizer", rate))
    return Constant(rate)


class _StepByStep(LearningRateSchedule):
    """Calls a schedule of scalars for each step of an array."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, step: Any) -> Any:
        if not isinstance(step, np.ndarray):
            return self.schedule(step)
        return np.array([float(self.schedule(int(s))) for s in step])


def loss_of(recipe: Any, classes: int) -> Any:
    """Returns the loss of a `Recipe`, a function of one-hot targets and logits.

    Raises `InputError` if it takes other targets, or if both it and the recipe
    smooth labels.
    """
    if recipe.loss is None:
        return keras.losses.CategoricalCrossentropy(from_logits=True)
    loss, kind = _built("loss", recipe.loss), _kind(recipe.loss)
    blank = np.zeros((classes + 1, classes), "float32")
    with explained(
        f"loss={kind} fails on one-hot targets and logits [N, {classes}]",
        "give one that takes these, not a sparse one",
    ):
        loss(blank, blank)
    config = recipe.loss.get("config")
    smooths = isinstance(config, dict) and config.get("label_smoothing")
    if smooths and recipe.label_smoothing:
        raise InputError(
            f"loss={kind} and the recipe both smooth labels: train with "
            "label_smoothing=0"
        )
    return loss


def _built(name, saved):
    with explained(
        f"{name}={_kind(saved)} cannot be built from its config, so the run "
        "could not be resumed",
        "decorate it with keras.saving.register_keras_serializable()",
    ):
        # A copy, since `from_config` changes it.
        return keras.saving.deserialize_keras_object(copy.deepcopy(saved))


def _kind(saved):
    name = saved.get("class_name")
    return saved["config"] if name == "function" else name
