"""Rates at each step, against the definitions and PyTorch's schedulers."""

import math

import keras
import numpy as np
import pytest

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.training import schedules
from keras_resnet_cifar.training.recipes import (
    RECIPES,
    SCHEDULES,
    get_recipe,
)


def rates_of(recipe, steps_per_epoch):
    """The rate at each step of a recipe's run, float64."""
    steps = np.arange(recipe.epochs * steps_per_epoch)
    return recipe.schedule_for(steps_per_epoch)(steps)


def tabulate(schedule, rate, steps, steps_per_epoch):
    recipe = get_recipe(
        "paper",
        schedule=schedule,
        learning_rate=rate,
        epochs=steps // steps_per_epoch,
    )
    return rates_of(recipe, steps_per_epoch)


def test_paper_divides_at_32k_and_48k_of_64k_steps():
    rates = rates_of(RECIPES["paper"], 351)
    assert len(rates) == 63_882  # whole epochs nearest to 64k
    assert np.unique(rates.round(6)).tolist() == [0.001, 0.01, 0.1]
    first, second = np.flatnonzero(np.diff(rates)) + 1
    assert (first, second) == (31_941, 47_912)


def test_resnet110_goes_back_to_the_full_rate():
    rates = rates_of(RECIPES["paper-110"], 351)
    np.testing.assert_allclose(rates[:400], 0.01)
    np.testing.assert_allclose(rates[400:31_941], 0.1)


def test_one_cycle_peaks_once_and_ends_at_zero():
    rates = tabulate(("one_cycle", {"warmup": 0.2}), 0.4, 1000, 100)
    assert rates[0] == 0
    assert rates.argmax() == 200
    assert rates[200] == 0.4
    assert rates[-1] == pytest.approx(0.4 / 800)
    assert (np.diff(rates, 2).round(9) != 0).sum() == 1  # two straight lines


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_has_a_rate_for_each_step(name):
    rates = rates_of(RECIPES[name], 70)
    assert rates.shape == (70 * RECIPES[name].epochs,)
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    # A peak may lie between two steps.
    assert rates.max() == pytest.approx(RECIPES[name].learning_rate, rel=0.01)


def test_an_unknown_schedule():
    with pytest.raises(InputError, match="cosine"):
        get_recipe("paper", schedule=("cosinus", {}))


@pytest.mark.parametrize(
    "arguments", [{"steps": 3}, {"milestone": 1}, {"milestones": 0.5}]
)
def test_arguments_that_do_not_fit(arguments):
    recipe = get_recipe("paper", schedule=("multistep", arguments))
    with pytest.raises(InputError, match=r"schedule=.*multistep"):
        recipe.schedule_for(10)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: schedules.MultiStep(0.1, 200, (100, 150)), "milestones=100"),
        (lambda: schedules.MultiStep(0.1, 200, 0.5), "milestones=0.5: give a"),
        (lambda: schedules.OneCycle(0.1, 200, warmup=5), "warmup=5: must be"),
        (lambda: schedules.OneCycle(0.1, 200, start="a"), "start='a': give"),
        (lambda: schedules.OneCycle(0.1, 200, end=-5), "end=-5: must be"),
        (lambda: schedules.Cosine(0.1, 0), "steps=0: must be at least 1"),
        (lambda: schedules.Cosine(True, 9), "learning_rate=True: give"),
        (lambda: schedules.Cosine(math.inf, 9), "learning_rate=inf: must be"),
        (lambda: schedules.Exponential(0.1, 5, math.nan), "gamma=nan: must be"),
        (
            lambda: schedules.Constant(0.1, warmup_factor=2),
            "warmup_factor=2: must be at most 1",
        ),
    ],
)
def test_numbers_out_of_range(make, text):
    with pytest.raises(InputError, match=text):
        make()


EXAMPLES = [
    schedules.Constant(0.1, warmup_steps=3),
    schedules.MultiStep(0.1, 20, (0.25, 0.5), 0.2),
    schedules.Cosine(0.1, 20),
    schedules.Exponential(0.1, 5, 0.9),
    schedules.OneCycle(0.1, 20, 0.3, 0.04, 4e-6, warmup_steps=2),
]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda s: type(s).__name__)
def test_a_schedule_is_one_of_keras(schedule):
    steps = np.arange(25)  # the last few lie after the end
    expected = schedule(steps)
    assert expected.dtype == np.float64
    serialized = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(serialized)
    optimizer = keras.optimizers.SGD(again)
    rates = []
    variable = keras.Variable(0.0)
    for _ in steps:
        rates.append(float(optimizer.learning_rate))
        optimizer.apply([keras.ops.convert_to_tensor(0.0)], [variable])
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-7)


def test_every_schedule_has_an_example():
    assert {type(s).__name__ for s in EXAMPLES} == set(SCHEDULES.values())


def rates_of_pytorch(make, steps, every=1):
    """The rate at each step, of a scheduler stepped every so many steps."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for step in range(1, steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        if step % every == 0:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("shape", "make", "every"),
    [
        (
            ("multistep", {"milestones": (0.5, 0.75)}),
            lambda lr, o: lr.MultiStepLR(o, [50, 75]),
            1,
        ),
        (("cosine", {}), lambda lr, o: lr.CosineAnnealingLR(o, 100), 1),
        (
            ("exponential", {"gamma": 0.9}),
            lambda lr, o: lr.ExponentialLR(o, 0.9),
            10,  # stepped once per epoch
        ),
        # PyTorch reaches its last rate in the last step, ours would a step
        # after it: no step is wasted on a rate of zero.
        (
            ("one_cycle", {"warmup": 0.3, "start": 0.04, "end": 4e-6}),
            lambda lr, o: lr.OneCycleLR(
                o,
                max_lr=0.1,
                total_steps=101,
                pct_start=31 / 101,
                anneal_strategy="linear",
                cycle_momentum=False,
                div_factor=25,
                final_div_factor=1e4,
            ),
            1,
        ),
    ],
)
def test_against_pytorch(shape, make, every):
    expected = rates_of_pytorch(make, 100, every)
    rates = tabulate(shape, 0.1, 100, 10)
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-9)


def test_paper_110_against_pytorch():
    """All 63,882 steps: at 0.01 for 400, back to 0.1, then divided twice."""
    expected = rates_of_pytorch(
        lambda lr, o: lr.ChainedScheduler(
            [
                lr.ConstantLR(o, factor=0.1, total_iters=400),
                lr.MultiStepLR(o, [31_941, 47_912]),
            ]
        ),
        63_882,
    )
    rates = rates_of(RECIPES["paper-110"], 351)
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-9)
