"""Verdicts, and the claims table."""

import numpy as np
import pytest

from swarmbook.analysis.claims import FAILS, HOLDS, MIMETYPE, UNDECIDED, Claims, all_of, decided, verdict
from swarmbook.analysis.confidence import Estimate, estimate


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


def test_two_seeds_decide_nothing():
    assert verdict(Estimate(1.5, 0.0, 2), above=1.0) == UNDECIDED


def test_a_target_never_reached_decides_nothing():
    measured = estimate([1.0, float("nan"), 2.0])
    assert verdict(measured, above=0.0) == UNDECIDED
    assert str(measured) == "not reached"


def test_claims_show_and_tell():
    claims = Claims()
    claims.add("C1", "first", 1.0, Estimate(1.0, 0.1, 3), HOLDS)
    claims.add("C1", "again", 1.0, Estimate(2.0, 0.1, 3), FAILS)
    bundle = claims._repr_mimebundle_()
    assert bundle[MIMETYPE] == [{"id": "C1", "text": "again", "paper": "1.0", "ours": "2.00 ± 0.10", "verdict": FAILS}]
    assert "does not hold" in bundle["text/plain"]
    with pytest.raises(ValueError, match="maybe"):
        claims.add("C2", "text", 1, 2, "maybe")
