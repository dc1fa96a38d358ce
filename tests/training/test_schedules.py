"""Rates at each step, against the definitions and PyTorch's schedulers."""

import keras
import numpy as np
import pytest

from keras_resnet_cifar.errors import InputError
from keras_resnet_cifar.training.optimizers import TabulatedRate
from keras_resnet_cifar.training.recipes import RECIPES
from keras_resnet_cifar.training.schedules import SHAPES, rates_of, tabulate


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
    rates = rates_of(RECIPES[name], 7)
    assert rates.shape == (7 * RECIPES[name].epochs,)
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    # A peak may lie between two steps.
    assert rates.max() == pytest.approx(RECIPES[name].learning_rate, rel=0.01)


def test_an_unknown_shape():
    with pytest.raises(InputError, match="cosine"):
        tabulate(("cosinus", {}), 0.1, 10, 5)


def test_the_optimizer_reads_the_table_by_its_step():
    rates = np.linspace(1, 0.1, 10)
    schedule = TabulatedRate(rates)
    read = [float(schedule(keras.ops.convert_to_tensor(i))) for i in range(12)]
    np.testing.assert_allclose(read, [*rates, 0.1, 0.1], rtol=1e-6)
    again = TabulatedRate.from_config(schedule.get_config())
    np.testing.assert_array_equal(again.rates, schedule.rates)


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
            10,  # stepped once an epoch
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
    read = TabulatedRate(rates).rates  # what the optimizer uses, float32
    np.testing.assert_allclose(read, expected, rtol=0, atol=1e-7)


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


def test_each_shape_has_a_recipe_or_a_test():
    assert set(SHAPES) == {
        "constant",
        "multistep",
        "cosine",
        "exponential",
        "one_cycle",
    }
