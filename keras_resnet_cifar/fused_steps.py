"""Many steps in one compiled call, under JAX.

TensorFlow loops over `steps_per_execution` inside the graph. Keras (up to 3.15)
loops in Python under JAX, so that each step is dispatched by itself.
"""

import functools
import itertools

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

_MOST_BYTES = 1 << 28  # of the batches of a call: they lie side by side


def fuse(step, count):
    """Returns a Keras train or test function of up to `count` steps.

    They are one call, or several where the batches are large or of different
    shapes, as a split's last one may be. How many steps a call has is compiled
    in: XLA for GPUs asks the host at each turn of a loop whose end it does not
    know. So a shorter last group is another compilation.

    Args:
        step: `(state, batch) -> (logs, state)`, as `Model.train_step`.
        count: Most steps.

    Returns:
        `(state, iterator) -> (logs, state)`. The state is donated; the logs
        are those of the last step, which hold the means so far.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state, batches):
        def body(state, batch):
            logs, state = step(state, batch)
            return state, logs

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        state, logs = lax.scan(body, state, stacked)
        return jax.tree.map(lambda leaf: leaf[-1], logs), state

    def function(state, iterator):
        logs = None
        for batches in _groups(itertools.islice(iterator, count)):
            logs, state = run(state, batches)
        if logs is None:
            raise StopIteration
        return logs, state

    return function


def _groups(batches):
    """Yields lists of batches of one shape, none of too many bytes."""
    for _, alike in itertools.groupby(batches, _shapes):
        first = next(alike)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
        alike = itertools.chain([first], alike)
        while group := list(itertools.islice(alike, 1 + _MOST_BYTES // size)):
            yield group


def _shapes(batch):
    return [leaf.shape for leaf in jax.tree.leaves(batch)]


def predict(model, images, batch_size):
    """Returns the outputs of a model for all images, in one call.

    Args:
        model: A Keras model. What is compiled for it stays with it.
        images: `[N, H, W, C]`; a copy goes to the device, whole.
        batch_size: Images a step.

    Returns:
        A NumPy array `[N, ...]`.
    """
    count = len(images)
    padding = -count % batch_size
    batches = np.concatenate([images, images[:1].repeat(padding, axis=0)])
    batches = batches.reshape(-1, batch_size, *images.shape[1:])
    if not hasattr(model, "fused_predict_function"):
        model.fused_predict_function = _predict_function(model)
    variables = [
        [variable.value for variable in held]
        for held in (model.trainable_variables, model.non_trainable_variables)
    ]
    outputs = np.asarray(model.fused_predict_function(*variables, batches))
    return outputs.reshape(-1, *outputs.shape[2:])[:count]


def _predict_function(model):
    @jax.jit
    def run(trainable, other, batches):
        def outputs(batch):
            return model.stateless_call(trainable, other, batch)[0]

        return lax.map(outputs, batches)

    return run
