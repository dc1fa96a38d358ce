"""The model that `fit` trains: augmentation, the net, averaged weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.files import atomic_write
from keras_resnet_cifar.models.cloning import clone_with
from keras_resnet_cifar.models.saving import save_model
from keras_resnet_cifar.training.data_parallel import shared
from keras_resnet_cifar.training.layers import faster_class
from keras_resnet_cifar.training.variables import arrays, assign, copies

_BACKEND = keras.backend.backend()
_MOST_DRAWS = 64  # of one layer in one step; the layers here draw 1 to 5 times

# Layers that stay float32 under any policy: pixels, the head, and the logits.
_FLOAT32 = (
    keras.layers.Normalization,
    keras.layers.LayerNormalization,
    keras.layers.Rescaling,
    keras.layers.Resizing,
    keras.layers.Cropping2D,
    keras.layers.Concatenate,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Dense,
)


def training_clone(model: keras.Model, policy: str) -> keras.Model:
    """Returns a faster copy of `model` that computes under a dtype policy.

    Its variables have the order and shapes of `model`'s, so weights can be
    copied with `get_weights` and `set_weights`. If the model resizes its
    images, the copy takes images of any size, since augmentation may have
    resized them already.
    """

    def change(layer, config):
        if not isinstance(layer, (*_FLOAT32, keras.layers.InputLayer)):
            config["dtype"] = policy
        return faster_class(layer), config

    resizes = any(isinstance(x, keras.layers.Resizing) for x in model.layers)
    shape = (None, None, model.input_shape[-1])
    inputs = keras.Input(shape) if resizes else None
    return clone_with(model, change, inputs)


class TrainingModel(keras.Model):
    """A net with augmentation, averaged weights and other needs of training.

    For callbacks, it represents the trained model: `save`, `save_weights`,
    `get_weights` and `set_weights` are those of the model of stock layers, with
    the trained weights, or the averaged weights if the recipe averages them.
    `keras.callbacks.ModelCheckpoint` therefore writes files that load without
    this package.

    Args:
        network: From images `[N, H, W, C]` to logits.
        stock: The model of stock layers that receives the weights.
        source: A `ResidentSplit`, if `fit` is to feed step numbers.
        held_out: The same for the validation split.
        image_layers: Layers that draw from a `SeedGenerator` `generator`.
        mixing_layers: The same for `{"images", "labels"}`.
        label_smoothing: In training only, so that losses of the splits are
            comparable.
        ema: Momentum of the averaged weights and BatchNorm statistics, which
            warms up as (1 + t) / (10 + t); 0 averages nothing.
        devices: Number of devices in the current distribution.
    """

    def __init__(
        self,
        network: keras.Model,
        stock: keras.Model,
        steps_per_epoch: int,
        source: keras.layers.Layer | None = None,
        held_out: keras.layers.Layer | None = None,
        image_layers: Sequence[keras.layers.Layer] = (),
        mixing_layers: Sequence[keras.layers.Layer] = (),
        label_smoothing: float = 0.0,
        class_weight: Sequence[float] | None = None,
        ema: float = 0.0,
        devices: int = 1,
        **kwargs: Any,
    ):
        # Augmented images need not be whole numbers: the net's normalization
        # takes them in float32.
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self._stock = lambda: stock  # a function, so that Keras does not track
        self.steps_per_epoch = steps_per_epoch
        self.source = source
        self.held_out = held_out
        self.image_layers = list(image_layers)
        self.mixing_layers = list(mixing_layers)
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.ema = ema
        self.devices = devices
        self.steps_done = self._state("steps_done", (), "int32")
        # Those with a finite loss.
        self.steps_finite = self._state("steps_finite", (), "int32")
        # The rates of the current epoch. They are a variable, not a compiled-in
        # constant, so that runs of any length share one compilation.
        self.rates = self._state("rates", (steps_per_epoch,))
        self.averages: list[keras.Variable] = []
        if ema:
            self.average_count = self._state("average_count", ())
            self.averages = [
                self._state(f"average_{index}", variable.shape)
                for index, variable in enumerate(network.weights)
            ]
            assign(self.averages, network.get_weights())
        for layer in self._random_layers:
            layer.built = True  # without weights; else `fit` would trace them
        self._raw_weights: list | None = None  # while averages are in the net
        self.in_step = False  # stays true if a step fails half-way
        self.built = True

    def _state(self, name, shape, dtype="float32"):
        return self.add_weight(
            shape=shape,
            initializer="zeros",
            trainable=False,
            dtype=dtype,
            name=name,
        )

    def call(self, images: Any, training: bool | None = None) -> Any:
        return self.network(images, training=training)

    # --- A train step

    @property
    def _random_layers(self):
        return (*self.image_layers, *self.mixing_layers)

    def augment(self, images: Any, targets: Any) -> tuple:
        """Augments a batch: images 0 to 255, targets `[N, classes]`.

        The draws are a function of each layer's seed and of `steps_done`. If
        classes have weights, sample weights `[N]` are returned as well.
        """
        for layer in self._random_layers:
            state = layer.generator.state
            step = ops.cast(self.steps_done, state.dtype)
            # The seed is not compiled in: it is the first part of the state.
            state.assign(ops.stack([state[0], step * _MOST_DRAWS]))
        for layer in self.image_layers:
            images = layer(images, training=True)
        for layer in self.mixing_layers:
            mixed = layer({"images": images, "labels": targets}, training=True)
            images, targets = mixed["images"], mixed["labels"]
        weights: tuple = ()
        if self.class_weight is not None:
            class_weight = ops.convert_to_tensor(self.class_weight, "float32")
            weights = (ops.sum(targets * class_weight, axis=-1),)
        if self.label_smoothing:
            share = self.label_smoothing
            targets = (1 - share) * targets + share / targets.shape[-1]
        return images, targets, *weights

    def random_states(self) -> list[keras.Variable]:
        """Returns the variables that `augment` sets from the step."""
        return [layer.generator.state for layer in self._random_layers]

    def _augmented(self, data):
        images, targets, *given = self.source(data[0]) if self.source else data
        images, targets, *weights = self.augment(
            shared(images), shared(self._one_hot(targets))
        )
        weights += [w for w in given if w is not None]
        if len(weights) == 2:
            weights = [weights[0] * ops.cast(weights[1], "float32")]
        return shared(images), shared(targets), *weights

    def _held_out_batch(self, data):
        if self.held_out and len(data) == 1:  # the number of a step
            return tuple(shared(part) for part in self.held_out(data[0]))
        images, targets, *weights = data
        return images, self._one_hot(targets), *weights

    def _one_hot(self, targets):
        """Returns one-hot targets `[N, classes]` of targets or labels `[N]`."""
        classes = self.network.output_shape[-1]
        if len(targets.shape) == 2 and targets.shape[1] == classes:
            return targets
        labels = ops.cast(ops.reshape(targets, (-1,)), "int32")
        known = ops.logical_and(labels >= 0, labels < classes)
        rows = ops.one_hot(
            ops.where(known, labels, 0), classes, dtype="float32"
        )
        # Else a label out of range would cost nothing under some backends.
        return ops.where(known[:, None], rows, np.nan)

    @property
    def within_epoch(self) -> bool:
        """Whether the epoch in progress has steps left."""
        return bool(int(self.steps_done) % self.steps_per_epoch)

    def _rate(self):
        return ops.take(self.rates, self.steps_done % self.steps_per_epoch)

    def after_step(self, logs: dict[str, Any]) -> None:
        """Counts the step, and updates the averages.

        The loss in the logs is the mean of the epoch so far. Once it is not
        finite, it stays so, and `steps_finite` counts the steps before that.
        """
        self.steps_done.assign(self.steps_done + 1)
        finite = ops.cast(ops.isfinite(logs["loss"]), "int32")
        self.steps_finite.assign(self.steps_finite + finite)
        if not self.ema:
            return
        count = self.average_count + 1
        keep = ops.minimum(self.ema, (1 + count) / (10 + count))
        self.average_count.assign(count)
        for average, variable in zip(
            self.averages, self.network.weights, strict=True
        ):
            average.assign(keep * average + (1 - keep) * variable)

    def make_train_function(self, force: bool = False) -> None:
        if self.train_function is not None and not force:
            return
        if self.fused_steps > 1:
            function = self._fuse(
                self.train_step,
                self.trainable_variables,
                self.non_trainable_variables,
                self.optimizer.variables,
                self.metrics_variables,
            )
        else:
            super().make_train_function(force)
            function = self.train_function

        def watched(*arguments):
            self.in_step = True
            result = function(*arguments)
            self.in_step = False
            return result

        self.train_function: Callable | None = watched

    def make_test_function(self, force: bool = False) -> None:
        if self.fused_steps == 1:
            super().make_test_function(force)
        elif self.test_function is None or force:
            self.test_function: Callable | None = self._fuse(
                self.test_step,
                self.trainable_variables,
                self.non_trainable_variables,
                self.metrics_variables,
            )

    def _fuse(self, step, *groups):
        """Returns `jax_steps.fuse` for a state of these groups of variables."""
        from keras_resnet_cifar.training.jax_steps import fuse

        shardings = None
        if self.devices > 1:
            shardings = tuple([v.value.sharding for v in g] for g in groups)
        return fuse(step, self.steps_per_execution, shardings)

    @property
    def fused_steps(self) -> int:
        """Steps in one call of `jax_steps.fuse`; 1 where it is not used."""
        compiled = self.jit_compile and not self.run_eagerly
        return self.steps_per_execution if _BACKEND == "jax" and compiled else 1

    if _BACKEND == "jax":

        def train_step(self, state: tuple, data: tuple) -> tuple:
            trainable, other, optimizer, metrics = state
            (data, rate), (_, other) = self._stateless(
                lambda: (self._augmented(data), self._rate()),
                (trainable, other),
            )
            optimizer = [
                rate if variable is self.optimizer.learning_rate else value
                for variable, value in zip(
                    self.optimizer.variables, optimizer, strict=True
                )
            ]
            state = (trainable, other, optimizer, metrics)
            logs, state = super().train_step(state, data)
            trainable, other, optimizer, metrics = state
            _, (_, other) = self._stateless(
                lambda: self.after_step(logs), (trainable, other)
            )
            return logs, (trainable, other, optimizer, metrics)

        def test_step(self, state: tuple, data: tuple) -> tuple:
            trainable, other, _ = state
            data, _ = self._stateless(
                lambda: self._held_out_batch(data), (trainable, other)
            )
            return super().test_step(state, data)

        def _stateless(self, function, values):
            """Returns `function()` for given values, and the new values."""
            variables = (self.trainable_variables, self.non_trainable_variables)
            mapping = [
                pair
                for group, group_values in zip(variables, values, strict=True)
                for pair in zip(group, group_values, strict=True)
            ]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                result = function()
            return result, tuple(
                [scope.get_current_value(variable) for variable in group]
                for group in variables
            )

    else:

        def train_step(self, data: tuple) -> dict:  # type: ignore[misc]
            self.optimizer.learning_rate.assign(self._rate())
            logs = super().train_step(self._augmented(data))
            self.after_step(logs)
            return logs

        def test_step(self, data: tuple) -> dict:  # type: ignore[misc]
            return super().test_step(self._held_out_batch(data))

    # --- The weights to keep

    def swap_in_averages(self) -> None:
        """Puts the averaged weights into the net, if there are any."""
        if self.ema and self._raw_weights is None:
            self._raw_weights = copies(self.network.weights)
            assign(self.network.weights, copies(self.averages))

    def swap_out_averages(self) -> None:
        """Undoes `swap_in_averages`."""
        if self._raw_weights is not None:
            assign(self.network.weights, self._raw_weights)
            self._raw_weights = None

    def update_stock_model(self) -> keras.Model:
        """Copies the trained (or averaged) weights to the stock model."""
        kept = self.averages or self.network.weights
        # Copied via the host, the stock model stays on its own device.
        values = arrays(kept) if self.devices > 1 else copies(kept)
        assign(self._stock().weights, values)
        return self._stock()

    def get_weights(self) -> list:
        """Returns the trained (or averaged) weights of the net."""
        return arrays(self.averages or self.network.weights)

    def set_weights(self, weights: Sequence) -> None:
        """Sets the net's weights, and its averages to the same."""
        self.network.set_weights(weights)
        if self.averages:
            assign(self.averages, weights)

    def save(
        self, filepath: str | Path, overwrite: bool = True, **kwargs: Any
    ) -> None:
        """Saves the stock model atomically, or raises `InputError`."""
        self._check_new(filepath, overwrite)
        save_model(self.update_stock_model(), filepath, **kwargs)

    def save_weights(
        self, filepath: str | Path, overwrite: bool = True, **kwargs: Any
    ) -> None:
        """Saves the stock model's weights, as `save` does the model."""
        self._check_new(filepath, overwrite)
        with atomic_write(filepath) as temporary:
            self.update_stock_model().save_weights(temporary, **kwargs)

    def _check_new(self, path, overwrite):
        if not overwrite and Path(path).exists():
            raise InputError(f"{path} exists: give overwrite=True")

    def load_weights(self, filepath: str | Path, **kwargs: Any) -> None:
        """Loads weights that `save_weights` or the stock model wrote."""
        self._stock().load_weights(filepath, **kwargs)
        self.set_weights(self._stock().get_weights())
