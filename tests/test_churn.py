"""The failure process."""

import numpy as np

from swarmbook.churn import failures


def trace(rate, seed=0, steps=20_000, stages=6):
    return failures(np.random.default_rng(seed), steps, 1, stages, rate)


def test_the_rate_is_per_stage_and_step():
    for rate in (0.0009, 0.002, 0.004, 0.01):
        expected = 20_000 * 6 * rate
        assert abs(trace(rate).sum() - expected) < 4 * np.sqrt(expected)


def test_a_low_rate_is_part_of_a_higher_one():
    low, high = trace(0.002), trace(0.004)
    assert low.sum() and not (low & ~high).any()


def test_seeds_differ_and_repeat():
    assert (trace(0.01, seed=1) == trace(0.01, seed=1)).all()
    assert (trace(0.01, seed=1) != trace(0.01, seed=2)).any()


def test_no_failures_at_rate_zero():
    assert not trace(0.0).any()
