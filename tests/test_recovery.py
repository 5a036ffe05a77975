"""What each rule writes into a lost stage."""

import numpy as np
import pytest
import torch

from swarmbook.fleet import Fleet
from swarmbook.model import Shape
from swarmbook.recovery import RULES, Lost

STAGES = 6
SHAPE = Shape(stages=STAGES, layers_per_stage=2, width=16, heads=2, hidden=32, vocabulary=64)


@pytest.fixture
def fleet():
    return Fleet(SHAPE, [1, 2], device="cpu", compile=False)


def weights(fleet, stage, replica=1):
    return {name: weight.clone() for name, weight in fleet.stage(replica, stage).items()}


def rebuild(fleet, rule, stage, dead=(), norms=None, seed=0):
    norms = torch.ones(2, STAGES + 1) if norms is None else norms
    for s in {stage, *dead}:  # nothing of a dead stage may be read
        for weight in fleet.stage(1, s).values():
            weight.fill_(float("nan"))
    lost = Lost(1, stage, frozenset({stage, *dead}), STAGES, np.random.default_rng(seed))
    RULES[rule](fleet, lost, norms)
    return weights(fleet, stage)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("stage", "dead", "neighbours"),
    [(2, (), [1, 3]), (0, (), [1]), (5, (), [4]), (2, (3,), [1, 4]), (0, (1,), [2]), (3, (2, 4), [1, 5])],
)
def test_neighbours_are_the_nearest_survivors(stage, dead, neighbours):
    lost = Lost(0, stage, frozenset({stage, *dead}), STAGES, None)
    assert lost.neighbours == neighbours


def test_copy_previous_copies(fleet):
    assert same(rebuild(fleet, "copy previous", 3), weights(fleet, 2))
    assert same(rebuild(fleet, "copy previous", 0), weights(fleet, 1))


def test_uniform_average_is_the_mean(fleet):
    rebuilt = rebuild(fleet, "uniform average", 2)
    below, above = weights(fleet, 1), weights(fleet, 3)
    for name, weight in rebuilt.items():
        torch.testing.assert_close(weight, (below[name] + above[name]) / 2)


def test_checkfree_weighs_by_squared_norms_of_its_own_replica(fleet):
    norms = torch.ones(2, STAGES + 1)
    norms[1, 1], norms[1, 3] = 3.0, 1.0
    rebuilt = rebuild(fleet, "CheckFree", 2, norms=norms)
    below, above = weights(fleet, 1), weights(fleet, 3)
    for name, weight in rebuilt.items():
        torch.testing.assert_close(weight, 0.9 * below[name] + 0.1 * above[name])
    scaled = rebuild(fleet, "CheckFree", 2, norms=norms * 7)
    for name, weight in scaled.items():
        torch.testing.assert_close(weight, rebuilt[name])


def test_checkfree_copies_at_the_ends(fleet):
    assert same(rebuild(fleet, "CheckFree", 0), weights(fleet, 1))
    assert same(rebuild(fleet, "CheckFree", 5), weights(fleet, 4))


@pytest.mark.parametrize("rule", [name for name in RULES if name != "none"])
def test_rules_use_survivors_only_and_touch_nothing_else(fleet, rule):
    before = {(r, s): weights(fleet, s, r) for r in (0, 1) for s in range(STAGES)}
    rebuilt = rebuild(fleet, rule, 2, dead=(3,))
    assert all(torch.isfinite(weight).all() for weight in rebuilt.values())
    for (r, s), old in before.items():
        if (r, s) not in ((1, 2), (1, 3)):
            assert same(old, weights(fleet, s, r))


@pytest.mark.parametrize("rule", [name for name in RULES if name != "none"])
def test_a_replica_without_survivors_starts_afresh(fleet, rule):
    rebuilt = rebuild(fleet, rule, 2, dead=range(STAGES))
    assert all(torch.isfinite(weight).all() for weight in rebuilt.values())


def test_random_repeats_by_seed(fleet):
    first = rebuild(fleet, "random", 2, seed=5)
    assert same(first, rebuild(fleet, "random", 2, seed=5))
    assert not same(first, rebuild(fleet, "random", 2, seed=6))
