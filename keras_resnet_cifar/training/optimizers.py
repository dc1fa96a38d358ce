"""SGD and Adam with PyTorch's weight decay."""

from typing import Any, TypeAlias

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_resnet_cifar.errors import (
    check_name,
    checked_below_one,
    checked_number,
)

Rate: TypeAlias = float | LearningRateSchedule
_DECAY_ON = ("all", "kernels")


class _CoupledDecay:
    """Adds weight decay to the gradient of a Keras optimizer."""

    def __init__(self, *args, weight_decay=0.0, decay_on="all", **kwargs):
        check_name("decay_on", decay_on, _DECAY_ON)
        weight_decay = checked_number("weight_decay", weight_decay or 0.0)
        super().__init__(*args, **kwargs)
        # Not `self.weight_decay`, which Keras subtracts outside the gradient.
        self.coupled_decay = weight_decay
        self.decay_on = decay_on

    def build(self, variables):
        super().build(variables)
        # By index: TensorFlow passes its own variables to `update_step`.
        self._decayed = [
            bool(self.coupled_decay)
            and (self.decay_on == "all" or variable.name == "kernel")
            and self._use_weight_decay(variable)
            for variable in variables
        ]

    def decayed(self, gradient, variable):
        """Returns the gradient plus decay, in the variable's dtype."""
        gradient = ops.cast(gradient, variable.dtype)
        if self._decayed[self._get_variable_index(variable)]:
            gradient = gradient + self.coupled_decay * variable
        return gradient

    def get_config(self):
        return super().get_config() | {
            "weight_decay": self.coupled_decay,
            "decay_on": self.decay_on,
        }


@keras.saving.register_keras_serializable(package="keras_resnet_cifar")
class CoupledSGD(_CoupledDecay, keras.optimizers.SGD):
    """SGD with momentum whose weight decay is added to the gradient.

    With weights `w`, gradient `g` and momentum buffer `b`, as in
    `torch.optim.SGD`:

        g = g + weight_decay * w
        b = momentum * b + g
        w = w - rate * (g + momentum * b  if nesterov else  b)

    In contrast, `keras.optimizers.SGD(weight_decay=...)` subtracts
    `rate * decay * w` outside the momentum, which is about ten times weaker at
    momentum 0.9. It also includes the rate in the buffer, which makes a
    difference when the rate changes.

    Args:
        learning_rate: A float or a schedule.
        momentum: In [0, 1).
        nesterov: Whether to use Nesterov momentum.
        weight_decay: Coupled weight decay, the same number as in PyTorch.
        decay_on: `"all"` parameters, as PyTorch does by default, or
            `"kernels"`, without biases and BatchNorm.

    Raises:
        InputError: A number is out of range, or `decay_on` is unknown.
    """

    def __init__(
        self,
        learning_rate: Rate = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay_on: str = "all",
        name: str = "coupled_sgd",
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            momentum=checked_below_one("momentum", momentum),
            nesterov=nesterov,
            weight_decay=weight_decay,
            decay_on=decay_on,
            name=name,
            **kwargs,
        )

    def update_step(
        self, gradient: Any, variable: keras.Variable, learning_rate: Any
    ) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        update = self.decayed(gradient, variable)
        if self.momentum:
            buffer = self.momentums[self._get_variable_index(variable)]
            gradient = update
            update = self.momentum * buffer + gradient
            self.assign(buffer, update)
            if self.nesterov:
                update = gradient + self.momentum * update
        self.assign_sub(variable, rate * update)


@keras.saving.register_keras_serializable(package="keras_resnet_cifar")
class CoupledAdam(_CoupledDecay, keras.optimizers.Adam):
    """Adam whose weight decay is added to the gradient, as in PyTorch.

    Args:
        learning_rate: A float or a schedule.
        beta_1: Decay of the mean of the gradients, in [0, 1).
        weight_decay: Coupled weight decay, the same number as in PyTorch.
        decay_on: See `CoupledSGD`.
        epsilon: Added to the denominator; the default is PyTorch's.

    Raises:
        InputError: A number is out of range, or `decay_on` is unknown.
    """

    def __init__(
        self,
        learning_rate: Rate = 1e-3,
        beta_1: float = 0.9,
        weight_decay: float = 0.0,
        decay_on: str = "all",
        epsilon: float = 1e-8,  # as in PyTorch; Keras uses 1e-7
        name: str = "coupled_adam",
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            beta_1=checked_below_one("beta_1", beta_1),
            weight_decay=weight_decay,
            decay_on=decay_on,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )

    def update_step(
        self, gradient: Any, variable: keras.Variable, learning_rate: Any
    ) -> None:
        gradient = self.decayed(gradient, variable)
        super().update_step(gradient, variable, learning_rate)
