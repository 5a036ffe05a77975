"""The failure process."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarmbook.methods.failures import (
    any_stage,
    events,
    failures,
    implied_seconds,
    losses,
    per_hour,
    per_step,
    released_failures,
    released_schedule,
)


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


HOURLY = np.array([0.05, 0.10, 0.16, 0.33])
RATES = np.array([0.0009, 0.002, 0.004, 0.01])  # released code, medium model


def test_released_rates_imply_iterations_of_about_a_minute():
    seconds = implied_seconds(HOURLY, RATES)
    np.testing.assert_allclose(seconds, [63.2, 68.4, 82.8, 90.3], atol=0.05)
    np.testing.assert_allclose(per_step(HOURLY, 91.32), [0.00130, 0.00267, 0.00441, 0.0101], atol=5e-5)
    np.testing.assert_allclose(per_hour(RATES, 91.32), [0.035, 0.076, 0.146, 0.327], atol=5e-4)
    small, large = implied_seconds([0.10, 0.16], [0.0006, 0.008])
    assert small == pytest.approx(20.5, abs=0.05) and large == pytest.approx(165.8, abs=0.05)


@given(st.floats(1e-9, 0.999), st.floats(0.01, 36_000))
def test_conversions_undo_each_other(hourly, seconds):
    rate = per_step(hourly, seconds)
    assume(rate < 0.999)  # nearer to 1 the digits run out
    assert per_hour(rate, seconds) == pytest.approx(hourly, rel=1e-9)
    assert implied_seconds(hourly, rate) == pytest.approx(seconds, rel=1e-9)


def test_conversions_follow_the_definition_and_broadcast():
    hourly, seconds = np.array([[0.0], [0.05], [0.9]]), np.array([1.0, 60.0, 3600.0, 7200.0])
    rates = per_step(hourly, seconds)
    assert rates.shape == (3, 4)
    np.testing.assert_allclose(rates, 1 - (1 - hourly) ** (seconds / 3600), rtol=1e-9)
    np.testing.assert_allclose(rates[:, 2], hourly[:, 0])  # a step of an hour


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda: per_step(5, 91.32), "hourly=5 .*5 % is 0.05"),
        (lambda: per_step([0.1, 1.0], 91.32), "hourly=1 "),
        (lambda: per_step(-0.1, 91.32), "hourly=-0.1 .*at least 0"),
        (lambda: per_step(np.nan, 91.32), "hourly=nan"),
        (lambda: per_step(0.05, 0), "seconds=0 "),
        (lambda: per_step(0.05, np.inf), "seconds=inf"),
        (lambda: per_hour(1.0, 60), "rate=1 "),
        (lambda: per_hour(0.1, [60, -1]), "seconds=-1 "),
        (lambda: implied_seconds(0.1, 0.0), "rate=0 .*more than 0"),
        (lambda: implied_seconds(0.0, 0.1), "hourly=0 .*more than 0"),
        (lambda: any_stage(0.1, 0), "stages=0 "),
        (lambda: released_failures(2, 10, 6), "rate=2 "),
        (lambda: released_schedule(12), "rate_percent=12 .*5, 10, 16, 33"),
        (lambda: events(np.zeros((4, 2, 6), bool)), r"\(4, 2, 6\)"),
    ],
)
def test_impossible_chances_are_refused(convert, message):
    with pytest.raises(ValueError, match=message):
        convert()


def test_any_stage_is_how_often_a_trace_fails():
    lost = trace(0.01, steps=50_000).any((1, 2)).mean()
    assert lost == pytest.approx(float(any_stage(0.01, 6)), abs=4 * np.sqrt(0.06 / 50_000))
    assert any_stage(0.3, 1) == pytest.approx(0.3) and any_stage(0.0, 6) == 0


# What the released script prints with its seed of 42: counted once from its draws.
@pytest.mark.parametrize(
    ("rate", "first_half", "whole", "double", "adjacent", "first"),
    [
        (0.0009, 52, 103, 0, 0, [(33, 1), (86, 4), (148, 6), (218, 5)]),
        (0.002, 117, 226, 2, 0, [(33, 1), (42, 2), (86, 3), (148, 5)]),
        (0.004, 238, 472, 2, 0, [(14, 3), (15, 6), (32, 5), (41, 6)]),
        (0.01, 620, 1213, 27, 7, [(14, 3), (15, 6), (24, 5), (32, 4)]),
    ],
)
def test_released_trace_of_the_medium_model(rate, first_half, whole, double, adjacent, first):
    lost = released_failures(rate, 20_000, 6)
    counted = losses(lost)
    assert (losses(lost[:10_000]).stages, counted.stages) == (first_half, whole)
    assert (counted.double, counted.adjacent) == (double, adjacent)
    assert events(lost)[:4] == first


def test_released_traces_of_the_small_and_large_model():
    assert losses(released_failures(0.0006, 4_000, 4)).stages == 10
    large = losses(released_failures(0.008, 30_000, 6))
    assert (large.stages, large.double, large.adjacent) == (1375, 23, 8)


def test_a_short_released_trace_is_the_beginning_of_a_long_one():
    np.testing.assert_array_equal(released_failures(0.01, 300, 6), released_failures(0.01, 900, 6)[:300])


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        (5, []),
        (10, [(395, 4)]),
        (16, [(395, 3)]),
        (33, [(39, 1), (128, 1), (148, 6), (176, 4), (395, 1), (481, 4), (482, 2)]),
    ],
)
def test_released_throughput_schedule(percent, expected):
    lost = released_schedule(percent)
    assert lost.shape == (500, 1, 6)
    assert events(lost) == expected


def test_no_failure_is_scheduled_while_a_checkpoint_is_saved():
    lost = released_schedule(33, 100_000).any((1, 2)).reshape(-1, 100)
    assert lost.any(0).tolist() == [i != 1 for i in range(100)]


def test_losses_count_each_replica_for_itself():
    lost = np.zeros((4, 2, 6), bool)
    lost[0, 0, 2] = lost[0, 1, 3] = True  # neighbours, but of different replicas
    lost[1, 0, [0, 2]] = True  # two, apart
    lost[2, 1, [3, 4, 5]] = True  # three in a row
    assert losses(lost) == (7, 4, 2, 1)


@given(hnp.arrays(bool, st.tuples(st.integers(0, 20), st.just(1), st.integers(1, 8))))
def test_events_say_all_of_a_trace(lost):
    again = np.zeros_like(lost)
    for step, stage in events(lost):
        again[step, 0, stage - 1] = True
    np.testing.assert_array_equal(again, lost)
    counted = losses(lost)
    steps = Counter(step for step, _ in events(lost))
    assert (counted.stages, counted.iterations) == (sum(steps.values()), len(steps))
    assert counted.double == sum(n > 1 for n in steps.values())
    assert counted.adjacent <= counted.double <= counted.iterations <= counted.stages
