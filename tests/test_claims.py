"""Estimates, verdicts, and the claims table."""

import math

import numpy as np
import pandas as pd
import pytest

from swarmbook.analysis.claims import FAILS, HOLDS, MIMETYPE, UNDECIDED, Claims, all_of, decided, verdict
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


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [(1.5, 0.2, HOLDS), (0.5, 0.2, FAILS), (1.1, 0.2, UNDECIDED), (1.5, np.inf, UNDECIDED)],
)
def test_verdict_needs_the_whole_interval_on_one_side(mean, half, expected):
    assert verdict(Estimate(mean, half, 3), above=1.0) == expected
    mirrored = {HOLDS: FAILS, FAILS: HOLDS, UNDECIDED: UNDECIDED}[expected]
    assert verdict(Estimate(mean, half, 3), below=1.0) == mirrored


@pytest.mark.parametrize(
    ("parts", "whole"),
    [((HOLDS, HOLDS), HOLDS), ((HOLDS, UNDECIDED), UNDECIDED), ((UNDECIDED, FAILS), FAILS), ((HOLDS, FAILS), FAILS)],
)
def test_a_claim_of_several_parts_is_as_good_as_its_worst(parts, whole):
    assert all_of(*parts) == all_of(*reversed(parts)) == whole


def test_arithmetic_decides_without_spread():
    assert (decided(2 > 1), decided(1 > 2)) == (HOLDS, FAILS)


def test_another_unit_scales_mean_and_interval_alike():
    seconds, tenths = estimate([1.0, 2.0, 4.0]), estimate([10.0, 20.0, 40.0])
    assert vars(seconds * 10) == pytest.approx(vars(tenths))


def test_two_seeds_decide_nothing():
    assert verdict(Estimate(1.5, 0.0, 2), above=1.0) == UNDECIDED


def test_a_target_never_reached_decides_nothing():
    measured = estimate([1.0, float("nan"), 2.0])
    assert verdict(measured, above=0.0) == UNDECIDED
    assert str(measured) == "not reached"


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


def test_claims_show_and_tell():
    claims = Claims()
    claims.add("C1", "first", 1.0, Estimate(1.0, 0.1, 3), HOLDS)
    claims.add("C1", "again", 1.0, Estimate(2.0, 0.1, 3), FAILS)
    bundle = claims._repr_mimebundle_()
    assert bundle[MIMETYPE] == [{"id": "C1", "text": "again", "paper": "1.0", "ours": "2.00 ± 0.10", "verdict": FAILS}]
    assert "does not hold" in bundle["text/plain"]
    with pytest.raises(ValueError, match="maybe"):
        claims.add("C2", "text", 1, 2, "maybe")


def test_only_seeds_of_both_sides_are_paired_but_a_missing_value_counts():
    rows = [("a", 0, 5.0), ("a", 1, 7.0), ("b", 1, 3.0), ("b", 0, 2.0), ("b", 2, 9.0)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "value"])
    assert paired(table, "arm", "a", "b") == estimate([3.0, 4.0])
    table.loc[0, "value"] = np.nan  # this seed never got there
    assert paired(table, "arm", "a", "b").half == np.inf
    with pytest.raises(ValueError, match="'a' has several values of a seed"):
        paired(pd.concat([table, table]), "arm", "a", "b")
