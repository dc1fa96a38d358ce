"""The model that `fit` sees: augmentation, the net, averaged weights."""

import contextlib

import keras
from keras import ops

from keras_resnet_cifar.training.batch_normalization import (
    FusedBatchNormalization,
    is_replaceable,
)

if keras.backend.backend() == "jax":
    from keras_resnet_cifar.training import convolution
    from keras_resnet_cifar.training.jax_steps import fuse

_MOST_DRAWS = 64  # of one layer in one step; the layers here draw 3 to 8 times

# These stay float32 under any policy: pixels, the head, and the logits.
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


def training_clone(model, policy):
    """A copy of `model` that computes under `policy` with fused BatchNorm.

    Its variables have the order and shapes of `model`'s, so that weights go
    back and forth with `get_weights` and `set_weights`. Where the model resizes
    its images, the copy takes them of any size: augmentation may have resized
    them already.
    """

    def clone(layer):
        config = layer.get_config()
        if not isinstance(layer, (*_FLOAT32, keras.layers.InputLayer)):
            config["dtype"] = policy
        return _faster_class(layer).from_config(config)

    resizes = any(isinstance(x, keras.layers.Resizing) for x in model.layers)
    network = keras.models.clone_model(
        model,
        input_tensors=keras.Input((None, None, 3)) if resizes else None,
        clone_function=clone,
        recursive=True,
    )
    network.set_weights(model.get_weights())
    return network


def _faster_class(layer):
    """The class of `layer`, or one that computes the same in less time."""
    if is_replaceable(layer):
        return FusedBatchNormalization
    on_jax = keras.backend.backend() == "jax"
    if on_jax and convolution.is_replaceable(layer):
        return convolution.CanonicalConv2D
    return type(layer)


class TrainingModel(keras.Model):
    """A net with what only training needs around it.

    Args:
        network: The net to train, images `[N, H, W, C]` to logits.
        source: Optional `ResidentSplit`; `fit` then feeds step numbers.
        image_layers: Layers on images, applied in each train step; they have
            an integer `seed` and draw from a `SeedGenerator` `generator`.
        mixing_layers: Layers on `{"images", "labels"}`, likewise.
        label_smoothing: Share of the target spread over all classes, in
            training only, so that losses of splits compare.
        ema: Momentum of the averaged weights and BatchNorm statistics; 0
            averages nothing. The momentum warms up as (1 + t) / (10 + t).
    """

    def __init__(
        self,
        network,
        source=None,
        image_layers=(),
        mixing_layers=(),
        label_smoothing=0.0,
        ema=0.0,
        **kwargs,
    ):
        # Augmented images are not whole numbers any more: the net's own
        # normalisation takes them in float32.
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.source = source
        self.image_layers = list(image_layers)
        self.mixing_layers = list(mixing_layers)
        self.label_smoothing = label_smoothing
        self.ema = ema
        self.steps_done = self._counter("steps_done")
        self.steps_finite = self._counter("steps_finite")  # of loss so far
        self.averages = []
        if ema:
            self.average_count = self._average("count", (), "zeros")
            self.averages = [
                self._average(f"{index}", variable.shape, variable)
                for index, variable in enumerate(network.weights)
            ]
        for layer in (*self.image_layers, *self.mixing_layers):
            layer.built = True  # without weights; else `fit` would trace them
        self.in_step = False  # stays true if a step fails: half of it is done
        self.built = True

    def _counter(self, name):
        return self.add_weight(
            shape=(),
            initializer="zeros",
            trainable=False,
            dtype="int32",
            name=name,
        )

    def _average(self, name, shape, initial):
        if not isinstance(initial, str):
            value = keras.ops.convert_to_numpy(initial)
            initial = keras.initializers.Constant(value)
        return self.add_weight(
            shape=shape,
            initializer=initial,
            trainable=False,
            dtype="float32",
            name=f"average_{name}",
        )

    def call(self, images, training=None):
        return self.network(images, training=training)

    def augment(self, images, targets):
        """Augments a batch: images 0 to 255, targets `[N, classes]`.

        What it draws is a function of the layer's seed and of `steps_done`.
        """
        self._reseed()
        for layer in self.image_layers:
            images = layer(images, training=True)
        for layer in self.mixing_layers:
            mixed = layer({"images": images, "labels": targets}, training=True)
            images, targets = mixed["images"], mixed["labels"]
        if self.label_smoothing:
            share = self.label_smoothing
            targets = (1 - share) * targets + share / targets.shape[-1]
        return images, targets

    @property
    def _random_layers(self):
        return (*self.image_layers, *self.mixing_layers)

    def _reseed(self):
        for layer in self._random_layers:
            state = layer.generator.state
            step = ops.cast(self.steps_done, state.dtype)
            # The seed is not compiled in: it is what the state begins with.
            state.assign(ops.stack([state[0], step * _MOST_DRAWS]))

    def random_states(self):
        """Variables that `augment` sets from the step: a backup needs none."""
        return [layer.generator.state for layer in self._random_layers]

    def _augmented(self, data):
        if self.source is not None:
            data = self.source(data[0])
        images, targets, *sample_weight = data
        return *self.augment(images, targets), *sample_weight

    def after_step(self, logs):
        """Counts the step, and moves the averages towards the weights.

        The loss in the logs is the mean of the epoch so far: once it is not
        finite it stays so, and `steps_finite` tells at which step it happened.
        """
        self.steps_done.assign(self.steps_done + 1)
        finite = ops.cast(ops.isfinite(logs["loss"]), "int32")
        self.steps_finite.assign(self.steps_finite + finite)
        self._update_averages()

    def _update_averages(self):
        if not self.ema:
            return
        count = self.average_count + 1
        keep = ops.minimum(self.ema, (1 + count) / (10 + count))
        self.average_count.assign(count)
        for average, variable in zip(
            self.averages, self.network.weights, strict=True
        ):
            average.assign(keep * average + (1 - keep) * variable)

    @contextlib.contextmanager
    def averaged(self):
        """The net with its averaged weights, for the time of the context."""
        if not self.ema:
            yield
            return
        raw = self.network.get_weights()
        self.network.set_weights(
            [ops.convert_to_numpy(average) for average in self.averages]
        )
        try:
            yield
        finally:
            self.network.set_weights(raw)

    def make_train_function(self, force=False):
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        function = self.train_function
        if keras.backend.backend() == "jax" and self.steps_per_execution > 1:
            function = fuse(self.train_step, self.steps_per_execution)

        def watched(*arguments):
            self.in_step = True
            result = function(*arguments)
            self.in_step = False
            return result

        self.train_function = watched

    if keras.backend.backend() == "jax":

        def make_test_function(self, force=False):
            if self.test_function is None or force:
                super().make_test_function(force)
                if self.steps_per_execution > 1:
                    self.test_function = fuse(
                        self.test_step, self.steps_per_execution
                    )

        def train_step(self, state, data):
            trainable, other, optimizer, metrics = state
            data, (_, other) = self._stateless(
                lambda: self._augmented(data), (trainable, other)
            )
            state = (trainable, other, optimizer, metrics)
            logs, state = super().train_step(state, data)
            trainable, other, optimizer, metrics = state
            _, (_, other) = self._stateless(
                lambda: self.after_step(logs), (trainable, other)
            )
            return logs, (trainable, other, optimizer, metrics)

        def _stateless(self, function, values):
            """Runs `function` on given values of the variables.

            Returns its result and the values as it leaves them.
            """
            variables = (self.trainable_variables, self.non_trainable_variables)
            mapping = [
                pair
                for names, held in zip(variables, values, strict=True)
                for pair in zip(names, held, strict=True)
            ]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                result = function()
            return result, tuple(
                [scope.get_current_value(name) for name in names]
                for names in variables
            )

    else:

        def train_step(self, data):
            logs = super().train_step(self._augmented(data))
            self.after_step(logs)
            return logs
