"""Learning-rate schedules from the literature, as Keras schedules.

Each is a function of the step alone, so a resumed run needs no other state.
With `warmup_steps`, a run starts at a lower rate, as in He et al. 2015 for
ResNet-110 (0.01 for 400 steps, then 0.1).

Example:

    schedule = krc.schedules.OneCycle(0.4, steps=epochs * steps_per_epoch)
    model.compile(krc.CoupledSGD(schedule), ...)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.errors import InputError, checked_number

_register = keras.saving.register_keras_serializable("keras_resnet_cifar")
_AT_LEAST = {"steps": 1, "steps_per_epoch": 1}
_AT_MOST = {"warmup_factor": 1, "warmup": 1}


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
        for name, value in list(vars(self).items()):
            if name != "milestones":
                range_ = _AT_LEAST.get(name, 0), _AT_MOST.get(name, np.inf)
                value = checked_number(name, value, float, *range_)
                setattr(self, name, value)

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
        shares = self.milestones
        if isinstance(shares, str) or not isinstance(shares, Iterable):
            raise InputError(f"milestones={shares!r}: give a list of fractions")
        self.milestones = tuple(
            checked_number("milestones", share, most=1) for share in shares
        )

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

    def factor(self, step: Any, math: Any) -> Any:
        peak = self.warmup * self.steps
        rise = step / max(peak, 1e-6)
        fall = math.minimum((step - peak) / max(self.steps - peak, 1e-6), 1.0)
        return math.where(
            step < peak,
            self.start + (1 - self.start) * rise,
            1 + (self.end - 1) * fall,
        )
