"""Learning rates: plain functions of progress, tabulated once for a run.

A shape is a function `(steps, steps_per_epoch, **parameters) -> factors`: it
returns float64 `[steps]`, the factor on the base rate at each step. A run's
whole schedule is then a table that the optimizer indexes by its step count: it
needs no state, so that a resumed run cannot lose its place in it.
"""

import numpy as np

from keras_resnet_cifar.errors import unknown


def constant(steps, steps_per_epoch):
    del steps_per_epoch
    return np.ones(steps)


def multistep(steps, steps_per_epoch, milestones, gamma=0.1):
    """Times `gamma` at each milestone, a fraction of all steps.

    He et al. 2015 divide by 10 at 32k and 48k of 64k steps: 1/2 and 3/4.
    """
    del steps_per_epoch
    boundaries = np.round(np.multiply(milestones, steps))
    passed = np.searchsorted(boundaries, np.arange(steps), side="right")
    return gamma**passed


def cosine(steps, steps_per_epoch):
    """From 1 to 0 along half a cosine (Loshchilov and Hutter 2016)."""
    del steps_per_epoch
    return (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def exponential(steps, steps_per_epoch, gamma):
    """Times `gamma` after each epoch, as PyTorch's ExponentialLR."""
    return gamma ** (np.arange(steps) // steps_per_epoch).astype("float64")


def one_cycle(steps, steps_per_epoch, warmup=0.2, start=0.0, end=0.0):
    """Linear from `start` to 1 over the share `warmup`, linear to `end`.

    Smith and Topin 2017, without the third phase.
    """
    del steps_per_epoch
    peak = warmup * steps
    return np.interp(np.arange(steps), [0, peak, steps], [start, 1.0, end])


SHAPES = {
    shape.__name__: shape
    for shape in (constant, multistep, cosine, exponential, one_cycle)
}


def tabulate(
    shape, base, steps, steps_per_epoch, warmup_steps=0, warmup_factor=0.1
):
    """Returns the rate at each step, float64 `[steps]`.

    Args:
        shape: `(name, parameters)`, the name one of `SHAPES`.
        base: The rate that the shape's factor 1 means.
        steps: Steps of the whole run.
        steps_per_epoch: Steps of one epoch.
        warmup_steps: For so many first steps the rate is
            `base * warmup_factor`; from then on it is the shape's in full.
            (He et al. 2015 start ResNet-110 at 0.01 for about 400 steps, then
            go *back* to 0.1.)
        warmup_factor: See `warmup_steps`.
    """
    name, parameters = shape
    if name not in SHAPES:
        raise unknown("schedule", name, SHAPES)
    rates = base * SHAPES[name](steps, steps_per_epoch, **parameters)
    rates[:warmup_steps] = base * warmup_factor
    return rates


def rates_of(recipe, steps_per_epoch):
    """Returns a recipe's rate at each step of its run, float64 `[steps]`."""
    return tabulate(
        recipe.schedule,
        recipe.learning_rate,
        recipe.epochs * steps_per_epoch,
        steps_per_epoch,
        recipe.warmup_steps,
        recipe.warmup_factor,
    )
