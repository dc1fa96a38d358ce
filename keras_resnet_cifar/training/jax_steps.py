"""Many steps in one compiled call, under JAX.

TensorFlow loops over `steps_per_execution` inside the graph. Keras (up to 3.15)
loops in Python under JAX, so that each step is dispatched by itself.
"""

import functools
import itertools

import jax
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
