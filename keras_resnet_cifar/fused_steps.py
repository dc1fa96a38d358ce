"""Many steps in one compiled call, under JAX.

TensorFlow loops over `steps_per_execution` inside the graph. Keras (up to 3.15)
loops in Python under JAX, so that each step is dispatched by itself.
"""

import itertools

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp


def fuse(step, count):
    """Returns a Keras train or test function of up to `count` steps a call.

    Args:
        step: `(state, batch) -> (logs, state)`, as `Model.train_step`.
        count: Most steps a call. A shorter last group is run by the same
            compiled code: how many steps there are is an argument of it.

    Returns:
        `(state, iterator) -> (logs, state)`. The state is donated; the logs
        are those of the last step, which hold the means so far.
    """

    @jax.jit(donate_argnums=0)
    def run(state, batches, number):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

        def body(index, carry):
            _, state = carry
            batch = jax.tree.map(lambda leaves: leaves[index], stacked)
            return step(state, batch)

        logs, _ = jax.eval_shape(step, state, batches[0])
        logs = jax.tree.map(jnp.zeros_like, logs)
        return lax.fori_loop(0, number, body, (logs, state))

    def function(state, iterator):
        batches = list(itertools.islice(iterator, count))
        if not batches:
            raise StopIteration
        number = len(batches)
        return run(state, batches + batches[:1] * (count - number), number)

    return function


def predict(model, images, batch_size):
    """Returns the outputs of a model for all images, in one call.

    Args:
        model: A Keras model.
        images: `[N, H, W, C]`; a copy goes to the device, whole.
        batch_size: Images a step.

    Returns:
        A NumPy array `[N, ...]`.
    """
    count = len(images)
    padding = -count % batch_size
    batches = np.concatenate([images, images[:1].repeat(padding, axis=0)])
    batches = batches.reshape(-1, batch_size, *images.shape[1:])

    @jax.jit
    def run(trainable, other, batches):
        def outputs(batch):
            return model.stateless_call(trainable, other, batch)[0]

        return lax.map(outputs, batches)

    variables = [
        [variable.value for variable in held]
        for held in (model.trainable_variables, model.non_trainable_variables)
    ]
    outputs = np.asarray(run(*variables, batches))
    return outputs.reshape(-1, *outputs.shape[2:])[:count]
