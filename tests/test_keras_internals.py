"""Guards for what this package uses of Keras without a promise.

When one fails after an upgrade of Keras, it says what to mend; pyproject.toml
pins Keras below the next minor version until then.
"""

import keras
import numpy as np
import pytest


def test_optimizers_find_the_index_of_a_variable():
    """`optimizers._CoupledDecay` asks which variables decay."""
    variables = [keras.Variable(np.zeros(2)) for _ in range(3)]
    optimizer = keras.optimizers.SGD()
    optimizer.build(variables)
    indices = [optimizer._get_variable_index(v) for v in variables]
    assert indices == [0, 1, 2]


def test_optimizers_know_what_is_excluded_from_decay():
    """`optimizers._CoupledDecay` asks for each variable."""
    variables = [keras.Variable(np.zeros(2), name=name) for name in "ab"]
    optimizer = keras.optimizers.SGD()
    optimizer.build(variables)
    optimizer.exclude_from_weight_decay(var_names=["b"])
    assert [optimizer._use_weight_decay(v) for v in variables] == [True, False]


def test_an_optimizer_updates_all_variables_in_one_call():
    """`Muon` takes the gradients of kernels of one shape together there."""
    seen = []

    class Optimizer(keras.optimizers.SGD):
        def _backend_update_step(self, grads, trainable_variables, rate):
            seen.append((len(grads), [v.path for v in trainable_variables]))
            super()._backend_update_step(grads, trainable_variables, rate)

    variables = [keras.Variable(np.zeros(2)) for _ in range(3)]
    ones = [keras.ops.ones(2) for _ in variables]
    Optimizer(1.0).apply(ones, variables)
    assert seen == [(3, [v.path for v in variables])]
    np.testing.assert_array_equal(variables[2], [-1, -1])


def test_a_progress_bar_asks_for_the_seconds_of_a_step(capsys):
    """`fitting._Progress` tells them, without the first call of an epoch."""
    progress = keras.callbacks.ProgbarLogger()
    progress.set_params({"verbose": 1, "epochs": 1, "steps": 10})
    progress._maybe_init_progbar()
    progress.progbar._estimate_step_duration = lambda current, now: 7.0
    progress.on_train_batch_end(3)
    assert "42s" in capsys.readouterr().out


def test_callbacks_hold_their_model():
    """`StopOnDivergence` stops it without waiting for the step in flight."""
    callback = keras.callbacks.Callback()
    callback.set_model(model := keras.Sequential())
    assert callback._model is model


def test_a_layer_that_is_built_is_not_traced():
    """Augmentation layers and `ResidentSplit` declare themselves built."""

    class Untraceable(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.built = True

        def call(self, x):
            raise AssertionError("traced")

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = Untraceable()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = Model()
    model.compile("sgd", "mse")
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0)


def test_async_safe_callbacks_do_not_hold_back_the_next_step():
    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

    class Safe(Callback):
        async_safe = True

    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow dispatches callbacks synchronously")
    assert not keras.callbacks.CallbackList([Callback()])._async_train
    assert keras.callbacks.CallbackList([Safe()])._async_train


def test_the_learning_rate_is_a_variable_of_the_optimizer():
    """`TrainingModel.train_step` sets it, under JAX by its place."""
    optimizer = keras.optimizers.SGD(0.1)
    assert any(v is optimizer.learning_rate for v in optimizer.variables)
