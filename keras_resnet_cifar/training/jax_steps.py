"""Many training steps in one compiled call, under JAX.

TensorFlow loops over `steps_per_execution` inside the graph. Under JAX, Keras
(up to 3.15) loops in Python and dispatches each step separately.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

from keras_resnet_cifar.device import compiler_options, start_cudnn

_MOST_BYTES = 1 << 28  # of the stacked batches of one call


def fuse(step: Callable, count: int, shardings: Any = None) -> Callable:
    """Returns a Keras train or test function that runs up to `count` steps.

    The steps run in one call, or in several if the batches are large or differ
    in shape, as the last batch of a split may. A shorter last group is compiled
    separately: on a GPU, a loop of unknown length would ask the host after each
    step. If the iterator yields `StepNumbers`, an item holds the numbers of all
    steps of the call, and each step gets one as its batch.

    `step` is `(state, batch) -> (logs, state)`, as `Model.train_step`; the
    function is `(state, iterator) -> (logs, state)`. It donates the state, and
    returns the logs of the last step, which hold the means so far.
    """
    run = compiled(step, shardings)

    def function(state, iterator):
        first = next(iterator)
        if len(first) == 1:  # numbers; a batch has images and labels
            return run(state, first)
        batches = itertools.chain(
            [first], itertools.islice(iterator, count - 1)
        )
        for group in _groups(batches):
            logs, state = run(state, group)
        return logs, state

    return function


def compiled(step: Callable, shardings: Any = None) -> Any:
    """Returns the jitted `(state, batches) -> (logs, state)` of `fuse`.

    The batches are a list, or already stacked. `shardings` has one for each
    array of the state, or is `None` for one device.
    """

    def run_steps(state, batches):
        def body(state, batch):
            logs, state = step(state, batch)
            return state, logs

        if isinstance(batches, list):
            batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        elif batches[0].ndim == 2:  # equal rows of numbers, one per device
            batches = (batches[0].max(0),)
        state, logs = lax.scan(body, state, batches)
        return jax.tree.map(lambda leaf: leaf[-1], logs), state

    if jax.default_backend() == "gpu":
        start_cudnn()
    return jax.jit(
        run_steps,
        donate_argnums=0,
        out_shardings=shardings and (None, shardings),
        compiler_options=compiler_options(),
    )


def _groups(batches: Iterable) -> Iterator[list[Any]]:
    """Yields lists of batches of one shape and at most `_MOST_BYTES`."""
    for _, alike in itertools.groupby(batches, _shapes):
        first = next(alike)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
        alike = itertools.chain([first], alike)
        most = max(1, _MOST_BYTES // size)
        while group := list(itertools.islice(alike, most)):
            yield group


def _shapes(batch):
    return [leaf.shape for leaf in jax.tree.leaves(batch)]
