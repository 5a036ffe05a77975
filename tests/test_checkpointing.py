"""What rolling back costs: the trainer's rule, the released simulation, and their closed forms."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarmbook.config import run_config
from swarmbook.methods.failures import any_stage, released_failures
from swarmbook.simulation.checkpointing import (
    break_even,
    hours,
    iterations_to_progress,
    losses_with_rollbacks,
    progress,
    released_progress,
    runs_with_rollbacks,
    slowdown,
    wall_slowdown,
    wall_steps_to,
)

PERIODS = (10, 50, 100)
traces = hnp.arrays(bool, st.integers(0, 200))
periods = st.integers(1, 30)


def trained(failing, every):
    """A trainer that really keeps copies: its weights are the list of steps it has learnt."""
    weights, copy, held = [], [], []
    for fails in failing:
        if fails:
            weights = list(copy)
        held.append(len(weights))
        weights.append(len(weights))
        if len(weights) % every == 0:
            copy = list(weights)
    return held


@given(traces, periods)
def test_progress_is_that_of_a_trainer_that_keeps_copies(failing, every):
    assert progress(failing, every).tolist() == trained(failing, every)


@given(traces, periods)
def test_without_failures_or_with_a_copy_a_step_nothing_is_lost(failing, every):
    steps = np.arange(len(failing))
    np.testing.assert_array_equal(progress(np.zeros_like(failing), every), steps)
    np.testing.assert_array_equal(released_progress(np.zeros_like(failing), every), steps)
    np.testing.assert_array_equal(progress(failing, 1), steps)


@given(traces, periods, st.integers(1, 4), st.data())
def test_fewer_failures_and_more_copies_never_set_back(failing, every, times, data):
    actual = progress(failing, every)
    assert (progress(failing, every * times) <= actual).all()
    fewer = failing & data.draw(hnp.arrays(bool, failing.shape))
    assert (progress(fewer, every) >= actual).all()


@given(traces, periods)
def test_a_failure_costs_less_than_a_period(failing, every):
    change = np.diff(progress(failing, every))
    assert (change[~failing[1:]] == 1).all()
    assert (change > 1 - every).all() and (change <= 1).all()


def test_rollback_step_by_step():
    failing = np.zeros(12, bool)
    failing[[2, 7, 10]] = True  # with 2 steps held, then 5, then 6: just copied
    assert progress(failing, 3).tolist() == [0, 1, 0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    # as released: copies at wall iterations 3, 6 and 9, which then held 1, 4 and 6 steps
    assert released_progress(failing, 3).tolist() == [0, 1, 0, 1, 2, 3, 4, 4, 5, 6, 6, 7]


def test_released_simulation_loses_the_copy_of_a_failing_iteration():
    failing = np.arange(9) == 6
    assert progress(failing, 3).tolist() == list(range(9))
    assert released_progress(failing, 3).tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_released_simulation_can_go_below_the_start():
    failing = np.isin(np.arange(6), [2, 3])
    assert released_progress(failing, 3).tolist() == [0, 1, 0, -2, -1, 0]


# The authors' simulation on their seed-42 traces: wall iterations until 10,000 and 14,500 steps are held.
@pytest.mark.parametrize(
    ("rate", "to_10_000", "to_14_500"),
    [
        (0.0009, [10_322, 11_615, 12_895], [14_928, 16_545, 18_549]),
        (0.002, [10_614, 13_514, 16_367], [15_390, 19_292, 24_133]),
        (0.004, [11_485, 17_477, 26_796], [16_672, 25_455, 39_878]),
    ],
)
def test_released_simulation_on_released_failures(rate, to_10_000, to_14_500):
    failing = released_failures(rate, 40_000, 6).any((1, 2))
    actual = [released_progress(failing, every) for every in PERIODS]
    assert [iterations_to_progress(held, 10_000) for held in actual] == to_10_000
    assert [iterations_to_progress(held, 14_500) for held in actual] == to_14_500


def measured(simulate, chance, every, runs=100, steps=50_000):
    """Progress an iteration, as mean and standard error over random traces, of what a whole trace holds at its end."""
    failing = np.random.default_rng(7).random((runs, steps)) < chance
    shares = np.array([simulate(row, every)[-1] / (steps - 1) for row in failing])
    return shares.mean(), shares.std(ddof=1) / np.sqrt(runs)


@pytest.mark.parametrize("every", PERIODS)
def test_closed_forms_are_the_mean_of_simulations(every):
    chance = float(any_stage(0.002, 6))
    share, error = measured(progress, chance, every)
    slack = 4 * error + 1e-3  # a trace ends between two copies
    assert 1 / slowdown(chance, every) == pytest.approx(share, abs=slack)
    released, error = measured(released_progress, chance, every)
    f = wall_slowdown(chance, every)
    slack = 4 * error + 1e-3
    assert 1 / f - chance == pytest.approx(released, abs=slack)
    assert abs(1 / f - released) > slack  # the copies lost with their own iteration do show


def test_wall_slowdown_is_the_mean_over_the_failures_of_one_period():
    every, chance = 4, 0.3
    mean = 0.0
    for outcome in range(2**every):
        failing = [bool(outcome >> i & 1) for i in range(every)]
        last = max((i for i in range(every) if failing[i]), default=0)  # steps since the last failure are kept
        mean += (every - last) * np.prod([chance if fails else 1 - chance for fails in failing])
    assert wall_slowdown(chance, every) == pytest.approx(every / mean)


@given(st.floats(0, 0.2), st.integers(1, 100))
def test_slowdowns_are_ordered(chance, every):
    ours, wall = slowdown(chance, every), wall_slowdown(chance, every)
    assert 1 - 1e-9 <= wall <= ours * (1 + 1e-9)
    assert slowdown(0.0, every) == wall_slowdown(0.0, every) == 1
    assert slowdown(chance, 1) == pytest.approx(1) == wall_slowdown(chance, 1)


def test_slowdowns_take_arrays():
    chances = np.array([0.0, 0.0054, 0.024])
    for form in (slowdown, wall_slowdown):
        np.testing.assert_allclose(form(chances, 50), [form(chance, 50) for chance in chances])


def test_replay_reads_the_curve_at_the_progress_held():
    failing = np.isin(np.arange(8), [5])
    actual = progress(failing, 4)  # 0 1 2 3 4 4 5 6
    curve = losses_with_rollbacks([4.0, 2.0, 1.0], [0, 4, 6], actual)
    np.testing.assert_allclose(curve, [4, 3.5, 3, 2.5, 2, 2, 1.5, 1])
    assert np.isnan(losses_with_rollbacks([4.0, 2.0], [0, 4], np.array([3, 5]))).tolist() == [False, True]


def test_reached_counts_wall_iterations():
    actual = progress(np.isin(np.arange(20), [7]), 5)
    assert iterations_to_progress(actual, 0) == 0
    assert iterations_to_progress(actual, 6) == 6
    assert iterations_to_progress(actual, 7) == 9  # the failure at 7 goes back to 5
    with pytest.raises(ValueError, match="steps=18 are not reached: 20 iterations come to 17"):
        iterations_to_progress(actual, 18)


def test_hours_add_what_the_paper_ignores():
    assert hours(14_500, 91.32) == pytest.approx(367.81, abs=0.01)  # table 2
    recoveries = hours(14_500, 91.32, failures=174, recovery_seconds=30) - hours(14_500, 91.32)
    assert recoveries == pytest.approx(1.45)
    assert hours(0, 91.32, saves=145, save_seconds=36) == pytest.approx(1.45)
    np.testing.assert_allclose(hours([100, 200], 36), [1, 2])


def test_break_even_is_where_the_hours_are_equal():
    ratio = break_even([14_000, 14_500, 18_000], 10_000)
    np.testing.assert_allclose(ratio, [1.40, 1.45, 1.80])
    np.testing.assert_allclose(hours(10_000, ratio * 91.32), hours([14_000, 14_500, 18_000], 91.32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: progress(np.zeros(3, bool), 0), "every=0 "),
        (lambda: released_progress(np.zeros(3, bool), 2.5), "every=2.5 "),
        (lambda: slowdown(1.0, 10), "chance=1 "),
        (lambda: wall_slowdown(0.1, -1), "every=-1 "),
        (lambda: losses_with_rollbacks([1.0, 2.0], [0], np.arange(2)), "one step for each loss"),
        (lambda: losses_with_rollbacks([1.0, 2.0], [1, 1], np.arange(2)), "do not ascend"),
        (lambda: hours(-1, 91.32), "iterations=-1 "),
        (lambda: hours(1, 91.32, saves=2, save_seconds=-3.0), "save_seconds=-3.0 "),
        (lambda: break_even(14_000, 0), "redundant_iterations=0.0 "),
    ],
)
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Falling:
    """Stands for `Runs` of two seeds whose validation loss falls by 1 in every 10 steps, from 10."""

    configs = [run_config(data="stories_toy", steps=60, evaluate_every=10, seed=seed) for seed in (3, 4)]
    rows = [{"step": step, "metric": "validation loss", "value": 10 - step / 10} for step in range(0, 61, 10)]
    records = [SimpleNamespace(metrics=pd.DataFrame(rows))] * 2

    def steps_to(self, target):
        return pd.DataFrame({"seed": [3, 4], "value": [(10 - target) * 10] * 2})


def test_replayed_losses_are_those_of_the_progress_held():
    rate, every = 0.01, 20
    table = runs_with_rollbacks(Falling(), rate, every, times=2)
    assert set(table["seed"]) == {3, 4} and table["step"].max() > 60
    behind = 0
    for config in Falling.configs:
        dying = config.model_copy(update={"steps": 120, "failure_rate": rate}).failures().any((1, 2))
        after = np.concatenate([[0], progress(dying, every) + 1])
        part = table[table["seed"] == config.seed].set_index("step")["value"]
        for step, value in part.items():
            assert value == pytest.approx(10 - after[step] / 10)
            behind += after[step] < step
    assert behind > 0  # something was rolled back


def test_wall_steps_are_where_replayed_losses_reach_the_target():
    target, rate, every = 6.0, 0.01, 20
    steps = wall_steps_to(Falling(), target, rate, every).set_index("seed")["value"]
    table = runs_with_rollbacks(Falling(), rate, every, times=10)
    for seed, part in table.groupby("seed"):
        below = part.set_index("step")["value"] <= target
        assert below.idxmax() - 10 < steps[seed] <= below.idxmax()
    assert (steps >= 40).all()
    assert wall_steps_to(Falling(), target, 0.0, every)["value"].tolist() == [40.0, 40.0]


def test_what_is_never_reached_takes_nan_steps():
    assert wall_steps_to(Falling(), 6.0, 1.0, 20)["value"].isna().all()
