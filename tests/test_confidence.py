"""Means over seeds, their intervals, and pairs of runs of one seed."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from swarmbook.analysis.confidence import Estimate, estimate, paired


def test_interval_is_students():
    measured = estimate([1.0, 2.0, 3.0])
    assert measured.mean == 2.0
    assert measured.half == pytest.approx(4.302652729911275 * 1.0 / math.sqrt(3))  # t(0.975, 2)


def test_interval_covers_the_mean_about_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 4))
    share = np.mean([e.low < 0 < e.high for e in map(estimate, draws)])
    assert 0.935 < share < 0.965


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_interval_is_that_of_the_t_test(n):
    values = np.random.default_rng(n).normal(4.0, 0.01, n)
    measured, interval = estimate(values), stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (measured.low, measured.high) == pytest.approx((interval.low, interval.high), rel=1e-12)


def test_another_unit_scales_mean_and_interval_alike():
    seconds, tenths = estimate([1.0, 2.0, 4.0]), estimate([10.0, 20.0, 40.0])
    assert vars(seconds * 10) == pytest.approx(vars(tenths))


def test_paired_differences_cancel_what_a_seed_shares():
    seeds = np.arange(4)
    table = pd.DataFrame(
        {
            "seed": np.tile(seeds, 2),
            "route": np.repeat(["a", "b"], 4),
            "value": np.concatenate([10.0 * seeds + 1, 10.0 * seeds]),
        }
    )
    measured = paired(table, "route", "a", "b")
    assert (measured.mean, measured.half) == (1.0, 0.0)
    with pytest.raises(KeyError, match="'c' is not in the table"):
        paired(table, "route", "a", "c")


@pytest.mark.parametrize(
    ("mean", "half", "text"), [(1.23456, 0.0123, "1.235 ± 0.012"), (123.4, 12.3, "123 ± 12"), (0.5, 3.2, "0.5 ± 3.2")]
)
def test_numbers_are_rounded_to_what_the_spread_justifies(mean, half, text):
    assert str(Estimate(mean, half, 5)) == text


def test_only_seeds_of_both_sides_are_paired_but_a_missing_value_counts():
    rows = [("a", 0, 5.0), ("a", 1, 7.0), ("b", 1, 3.0), ("b", 0, 2.0), ("b", 2, 9.0)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "value"])
    assert paired(table, "arm", "a", "b") == estimate([3.0, 4.0])
    table.loc[0, "value"] = np.nan  # this seed never got there
    assert paired(table, "arm", "a", "b").half == np.inf
    with pytest.raises(ValueError, match="'a' has several values of a seed"):
        paired(pd.concat([table, table]), "arm", "a", "b")
