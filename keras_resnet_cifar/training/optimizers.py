"""SGD and Adam as PyTorch defines them, and their rate by the step."""

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.errors import unknown
from keras_resnet_cifar.training.recipes import CHOICES


class _CoupledDecay:
    """Weight decay that enters the gradient, for a Keras optimizer.

    Args:
        decay: PyTorch's number as it is.
        decay_on: `"all"` parameters, as PyTorch does by default, or
            `"kernels"`, which spares biases and BatchNorm.
    """

    def __init__(self, *args, decay=0.0, decay_on="all", **kwargs):
        if decay_on not in CHOICES["decay_on"]:
            raise unknown("decay_on", decay_on, CHOICES["decay_on"])
        super().__init__(*args, **kwargs)
        self.decay = decay
        self.decay_on = decay_on

    def build(self, variables):
        super().build(variables)
        # By index, for TensorFlow hands `update_step` variables of its own.
        self._decayed = [
            bool(self.decay)
            and (self.decay_on == "all" or variable.name == "kernel")
            for variable in variables
        ]

    def decayed(self, gradient, variable):
        """The gradient with the decay in it, in the variable's dtype."""
        gradient = ops.cast(gradient, variable.dtype)
        if self._decayed[self._get_variable_index(variable)]:
            gradient = gradient + self.decay * variable
        return gradient

    def get_config(self):
        return super().get_config() | {
            "decay": self.decay,
            "decay_on": self.decay_on,
        }


@keras.saving.register_keras_serializable(package="keras_resnet_cifar")
class CoupledSGD(_CoupledDecay, keras.optimizers.SGD):
    """SGD with momentum whose weight decay enters the gradient.

    For weights `w`, gradient `g` and momentum buffer `b`, as
    `torch.optim.SGD`:

        g = g + decay * w
        b = momentum * b + g
        w = w - rate * (g + momentum * b  if nesterov else  b)

    `keras.optimizers.SGD(weight_decay=...)` subtracts `rate * decay * w`
    outside the momentum instead, about ten times weaker at momentum 0.9, and
    folds the rate into the buffer, which differs as soon as the rate changes.

    Args:
        learning_rate: A float or a schedule.
        momentum: In [0, 1).
        nesterov: Whether to look ahead.
        decay: Coupled weight decay; PyTorch's number as it is.
        decay_on: `"all"` parameters, as PyTorch does by default, or
            `"kernels"`, which spares biases and BatchNorm.
    """

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        nesterov=False,
        decay=0.0,
        decay_on="all",
        name="coupled_sgd",
        **kwargs,
    ):
        super().__init__(
            learning_rate=learning_rate,
            momentum=float(momentum),
            nesterov=nesterov,
            decay=decay,
            decay_on=decay_on,
            name=name,
            **kwargs,
        )

    def update_step(self, gradient, variable, learning_rate):
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
    """Adam whose weight decay enters the gradient, as `torch.optim.Adam`.

    Args:
        learning_rate: A float or a schedule.
        beta_1: Decay of the mean of the gradients, in [0, 1).
        decay: Coupled weight decay; PyTorch's number as it is.
        decay_on: As of `CoupledSGD`.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1=0.9,
        decay=0.0,
        decay_on="all",
        epsilon=1e-8,  # PyTorch's; Keras has 1e-7
        name="coupled_adam",
        **kwargs,
    ):
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            decay=decay,
            decay_on=decay_on,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )

    def update_step(self, gradient, variable, learning_rate):
        gradient = self.decayed(gradient, variable)
        super().update_step(gradient, variable, learning_rate)


def optimizer_of(recipe, learning_rate):
    """Returns a recipe's optimizer.

    Args:
        recipe: A `Recipe`.
        learning_rate: A float or a schedule; the recipe's own is a function
            of the steps of the run.
    """
    decay = {"decay": recipe.weight_decay, "decay_on": recipe.decay_on}
    if recipe.optimizer == "adam":
        return CoupledAdam(learning_rate, recipe.momentum, **decay)
    return CoupledSGD(learning_rate, recipe.momentum, recipe.nesterov, **decay)


@keras.saving.register_keras_serializable(package="keras_resnet_cifar")
class TabulatedRate(keras.optimizers.schedules.LearningRateSchedule):
    """The rate at each step from a table; after its end the last one."""

    def __init__(self, rates):
        self.rates = np.asarray(rates, "float32")

    def __call__(self, step):
        last = len(self.rates) - 1
        index = ops.minimum(ops.cast(step, "int32"), last)
        return ops.take(ops.convert_to_tensor(self.rates), index)

    def get_config(self):
        return {"rates": self.rates.tolist()}
