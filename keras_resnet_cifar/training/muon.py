"""Muon: SGD with orthogonalized updates of kernels."""

import math
import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_resnet_cifar.errors import (
    InputError,
    checked_below_one,
    checked_number,
    explained,
)
from keras_resnet_cifar.models.nets import leaf_layers
from keras_resnet_cifar.training.optimizers import CoupledSGD, Rate

# The quintic of KellerJordan/Muon: it maximizes the slope at zero, so that
# few steps bring all singular values near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_EPSILON = 1e-7
_DIMENSIONS = (2, 4, 5)  # of dense layers, and of 2-D and 3-D convolutions


@keras.saving.register_keras_serializable(package="keras_resnet_cifar")
class Muon(CoupledSGD):
    """Momentum orthogonalized by Newton-Schulz for kernels; SGD for the rest.

    The kernel `w` of a dense layer or of a 2-D or 3-D convolution is treated as
    a matrix `[inputs, outputs]`, e.g. `[kh * kw * in, out]`. With its gradient
    `g` and momentum buffer `b`:

        b = momentum * b + g
        u = g + momentum * b  if nesterov else  b
        x = u / norm(u), then `newton_schulz_steps` times
            a = x @ x.T
            x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
        w = sqrt(outputs) * w / norm(w)  for convolutions
        w = w - rate * x

    where `norm` is the Frobenius norm, and `x` is transposed so that `a` is
    small. Kernels of convolutions are rescaled, so a convolution must be
    followed by a normalization, which makes its scale irrelevant, and which
    must not be frozen. Kernels of dense layers keep their scale, and decay as
    `w - rate * weight_decay * w`.

    Everything else is trained with `CoupledSGD` at `sgd_ratio` times the rate:
    biases, BatchNorm, kernels that match `exclude`, three-dimensional kernels
    (of attention and `Conv1D`), and variables with other names, such as
    `pointwise_kernel`. In a model of your own, also exclude the output layer,
    and depthwise and transposed convolutions, whose kernels are not
    `[..., inputs, outputs]`.

    The formulas are those of `airbench94_muon.py` in
    KellerJordan/cifar10-airbench; dense kernels decay as in KellerJordan/Muon,
    but do not get its factor `max(1, outputs / inputs) ** 0.5`. In contrast,
    `keras.optimizers.Muon` trains all kernels that are not 2-D with AdamW,
    including those of convolutions, and does not rescale kernels.

    Args:
        learning_rate: A float or a schedule. For convolutions, it is the
            relative change of a kernel in one step.
        momentum: Momentum of the kernels, in [0, 1).
        nesterov: Whether to use Nesterov momentum, in both parts.
        newton_schulz_steps: Number of iterations; cifar10-airbench uses 3, Muon
            5.
        sgd_ratio: Rate of the SGD part, as a multiple of `learning_rate`.
        sgd_momentum: Momentum of the SGD part, in (0, 1).
        weight_decay: Coupled weight decay of the SGD part, the same number as
            in PyTorch, and decay of dense kernels as above.
        decay_on: Parameters of the SGD part that decay; see `CoupledSGD`.
        exclude: Regular expressions to search in paths of variables, or one;
            kernels that match are trained with SGD. By default, the head of
            `build_resnet`.

    Raises:
        InputError: A number is out of range, or `decay_on` is unknown.
    """

    def __init__(
        self,
        learning_rate: Rate = 0.08,
        momentum: float = 0.6,
        nesterov: bool = True,
        newton_schulz_steps: int = 3,
        sgd_ratio: float = 5.0,
        sgd_momentum: float = 0.9,
        weight_decay: float = 0.0,
        decay_on: str = "all",
        exclude: str | Sequence[str] = ("head_dense",),
        name: str = "muon",
        **kwargs: Any,
    ):
        momentum = checked_below_one("momentum", momentum)
        if not 0 < checked_number("sgd_momentum", sgd_momentum) < 1:
            raise InputError(f"sgd_momentum={sgd_momentum}: must be in (0, 1)")
        steps = checked_number(
            "newton_schulz_steps", newton_schulz_steps, int, 1
        )
        with explained(f"exclude={exclude!r}", "give regular expressions"):
            exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
            for pattern in exclude:
                re.compile(pattern)
        super().__init__(
            learning_rate,
            sgd_momentum,
            nesterov,
            weight_decay,
            decay_on,
            name=name,
            **kwargs,
        )
        self.kernel_momentum = momentum
        self.newton_schulz_steps = steps
        self.sgd_ratio = checked_number("sgd_ratio", sgd_ratio)
        self.exclude = exclude

    def build(self, variables: Sequence[keras.Variable]) -> None:
        super().build(variables)
        self._kernels = {
            index
            for index, variable in enumerate(variables)
            if variable.name == "kernel"
            and len(variable.shape) in _DIMENSIONS
            and not any(re.search(e, variable.path) for e in self.exclude)
        }

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # Kernels of the same shape share one product: many small products would
        # leave an accelerator idle.
        grads = list(grads)
        groups: dict = {}
        for place, variable in enumerate(trainable_variables):
            if self._get_variable_index(variable) in self._kernels:
                *inputs, outputs = variable.shape
                shape = (math.prod(inputs), outputs)
                groups.setdefault(shape, []).append(place)
        for shape, places in groups.items():
            updates = ops.stack(
                [
                    ops.reshape(
                        self._with_momentum(grads[p], trainable_variables[p]),
                        shape,
                    )
                    for p in places
                ]
            )
            updates = orthogonalized(updates, self.newton_schulz_steps)
            for index, place in enumerate(places):
                grads[place] = ops.reshape(
                    updates[index], trainable_variables[place].shape
                )
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def _with_momentum(self, gradient, variable):
        buffer = self.momentums[self._get_variable_index(variable)]
        gradient = ops.cast(gradient, buffer.dtype)
        update = self.kernel_momentum * buffer + gradient
        self.assign(buffer, update)
        if self.nesterov:
            update = gradient + self.kernel_momentum * update
        return update

    def update_step(
        self, gradient: Any, variable: keras.Variable, learning_rate: Any
    ) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        if self._get_variable_index(variable) not in self._kernels:
            super().update_step(gradient, variable, self.sgd_ratio * rate)
            return
        kernel = ops.convert_to_tensor(variable)
        if len(variable.shape) > 2:
            norm = ops.sqrt(ops.sum(ops.square(kernel))) + _EPSILON
            kernel = kernel * (math.sqrt(variable.shape[-1]) / norm)
        elif self._decayed[self._get_variable_index(variable)]:
            kernel = kernel * (1 - rate * self.coupled_decay)
        self.assign(variable, kernel - rate * gradient)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "momentum": self.kernel_momentum,
            "newton_schulz_steps": self.newton_schulz_steps,
            "sgd_ratio": self.sgd_ratio,
            "sgd_momentum": self.momentum,
            "exclude": self.exclude,
        }


def orthogonalized(matrices: Any, steps: int) -> Any:
    """Returns matrices `[..., m, n]` with all singular values near 1."""
    a, b, c = _COEFFICIENTS
    dtype = keras.backend.standardize_dtype(matrices.dtype)
    if dtype == "float16":  # the squares of small gradients would be 0
        matrices = ops.cast(matrices, "float32")
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = ops.swapaxes(matrices, -1, -2) if tall else matrices
    squares = ops.sum(ops.square(x), axis=(-2, -1), keepdims=True)
    x = x / (ops.sqrt(squares) + _EPSILON)
    for _ in range(steps):
        gram = ops.matmul(x, ops.swapaxes(x, -1, -2))
        x = a * x + ops.matmul(b * gram + c * ops.matmul(gram, gram), x)
    return ops.cast(ops.swapaxes(x, -1, -2) if tall else x, dtype)


def check_trained_norm(model: keras.Model, optimizer: Any) -> None:
    """Raises `InputError` if Muon trains convolutions, but no BatchNorm.

    It rescales the convolutions, which a frozen BatchNorm does not undo.
    `optimizer` is that of a recipe.
    """
    if optimizer != "muon":
        return
    norms = [
        layer.trainable
        for layer in leaf_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    kernels = [w for w in model.trainable_weights if len(w.shape) > 2]
    if kernels and norms and not any(norms):
        raise InputError(
            "optimizer=muon rescales convolutions, which a frozen BatchNorm "
            "does not undo: train BatchNorm (train_norm=True to fine-tune), or "
            "give optimizer=sgd"
        )
