"""Learning-rate schedules from the literature, as Keras schedules.

Each is a function of the step alone, so a resumed run needs no other state.
With `warmup_steps`, a run starts at a lower rate, as in He et al. 2015 for
ResNet-110 (0.01 for 400 steps, then 0.1).

Example:

    schedule = krc.schedules.OneCycle(0.4, steps=epochs * steps_per_epoch)
    model.compile(krc.CoupledSGD(schedule), ...)
"""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.errors import InputError

_register = keras.saving.register_keras_serializable("keras_resnet_cifar")
_LEAST = {
    "learning_rate": 0,
    "warmup_steps": 0,
    "steps": 1,
    "steps_per_epoch": 1,
}


@dataclass(eq=False)
class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A base rate times a factor that depends on the step.

    Args:
        learning_rate: The rate at factor 1.
        warmup_steps: Number of first steps at
            `learning_rate * warmup_factor`.
        warmup_factor: See `warmup_steps`.
    """

    learning_rate: float
    warmup_steps: int = field(default=0, kw_only=True)
    warmup_factor: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name, least)
            if not (isinstance(value, numbers.Real) and float(value) >= least):
                raise InputError(f"{name}={value!r}: give {least} or more")

    def factor(self, step: Any, math: Any) -> Any:
        """Returns the factor at steps, before warm-up.

        Args:
            step: Floats of any shape.
            math: The module of their functions, NumPy or `keras.ops`.
        """
        return math.ones_like(step)

    def __call__(self, step: Any) -> Any:
        """Returns the rate: float64 of a NumPy array, else a float32 tensor."""
        math: Any = ops
        if isinstance(step, np.ndarray):
            math, step = np, step.astype("float64")
        else:
            step = ops.cast(step, "float32")
        factor = self.factor(step, math)
        if self.warmup_steps:
            warming = step < self.warmup_steps
            factor = math.where(warming, self.warmup_factor, factor)
        return self.learning_rate * factor

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))


@_register
@dataclass(eq=False)
class Constant(_Schedule):
    """The same rate at every step.

    Args:
        learning_rate: The rate.
        warmup_steps, warmup_factor: First steps, which run at
            `warmup_factor` times the rate.
    """

    warmup_steps: int = 0  # may be positional, here alone
    warmup_factor: float = 0.1


@_register
@dataclass(eq=False)
class MultiStep(_Schedule):
    """Multiplies the rate by `gamma` at each milestone.

    He et al. 2015 divide by 10 at 32k and 48k of 64k steps: milestones 1/2
    and 3/4.

    Args:
        learning_rate: The rate before the first milestone.
        steps: Steps of the whole run.
        milestones: Fractions of `steps`, each 0 to 1.
        gamma: The factor.
        warmup_steps, warmup_factor: First steps, which run at
            `warmup_factor` times the rate.
    """

    steps: int
    milestones: Sequence[float] = (0.5, 0.75)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.milestones = tuple(self.milestones)
        for milestone in self.milestones:
            _check_share("milestones", milestone)

    def factor(self, step: Any, math: Any) -> Any:
        factor = math.ones_like(step)
        for milestone in self.milestones:
            passed = step >= round(milestone * self.steps)
            factor = math.where(passed, factor * self.gamma, factor)
        return factor


@_register
@dataclass(eq=False)
class Cosine(_Schedule):
    """Half a cosine from the full rate to 0 (Loshchilov and Hutter 2016).

    Args:
        learning_rate: The rate at the first step.
        steps: Steps of the whole run.
        warmup_steps, warmup_factor: First steps, which run at
            `warmup_factor` times the rate.
    """

    steps: int

    def factor(self, step: Any, math: Any) -> Any:
        progress = math.minimum(step / self.steps, 1.0)
        return (1 + math.cos(np.pi * progress)) / 2


@_register
@dataclass(eq=False)
class Exponential(_Schedule):
    """Multiplies the rate by `gamma` after every epoch.

    The same as PyTorch's `ExponentialLR`, stepped once per epoch.

    Args:
        learning_rate: The rate of the first epoch.
        steps_per_epoch: Steps of one epoch.
        gamma: The factor.
        warmup_steps, warmup_factor: First steps, which run at
            `warmup_factor` times the rate.
    """

    steps_per_epoch: int
    gamma: float

    def factor(self, step: Any, math: Any) -> Any:
        return math.power(self.gamma, math.floor(step / self.steps_per_epoch))


@_register
@dataclass(eq=False)
class OneCycle(_Schedule):
    """Rises linearly to the full rate, then falls linearly.

    Smith and Topin 2017 without the third phase, as in davidcpage/cifar10-fast.

    Args:
        learning_rate: The rate at the peak.
        steps: Steps of the whole run.
        warmup: Share of the steps before the peak, 0 to 1.
        start: Factor at the first step.
        end: Factor after the last step.
        warmup_steps, warmup_factor: First steps, which run at
            `warmup_factor` times the rate.
    """

    steps: int
    warmup: float = 0.2
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("warmup", self.warmup)

    def factor(self, step: Any, math: Any) -> Any:
        peak = self.warmup * self.steps
        rise = step / max(peak, 1e-6)
        fall = math.minimum((step - peak) / max(self.steps - peak, 1e-6), 1.0)
        return math.where(
            step < peak,
            self.start + (1 - self.start) * rise,
            1 + (self.end - 1) * fall,
        )


def _check_share(name, value):
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise InputError(f"{name}={value}: give fractions of the run, 0 to 1")
