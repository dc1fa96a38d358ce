"""The comparisons beside the benchmark still run, and agree."""

import pytest

from benchmarks import crop_formulations, fused_against_single

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_formulations_of_a_crop_agree(dtype):
    times = crop_formulations.compare(dtype, rounds=1, calls=1)
    assert list(times) == ["product", "gather", "slices"]


@pytest.mark.parametrize("count", [1, 8])
def test_an_epoch_runs_so_many_steps_per_call(count, monkeypatch):
    monkeypatch.setattr(fused_against_single, "STEPS", 16)
    train = fused_against_single.epoch_function(count, 8, 2, (4,))
    assert train().epoch == [0]
