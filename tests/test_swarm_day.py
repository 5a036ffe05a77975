"""A day of training against closed forms, other modules and what is conserved."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmbook.analysis.confidence import estimate
from swarmbook.errors import ConfigError
from swarmbook.methods.failures import any_stage, failures, per_step
from swarmbook.simulation import checkpointing, sync_latency
from swarmbook.simulation.failure_experiments import experiment
from swarmbook.simulation.network import GIB, Network
from swarmbook.simulation.recovery_schemes import Workload
from swarmbook.simulation.training_day import (
    CAUSES,
    DAY,
    OVERLAPPED,
    SLOT,
    Combination,
    day,
    days,
    exchange_seconds,
    iteration_seconds,
    time_to_loss,
)

SMALL = Workload(stages=3, replicas=4, microbatches=2, provision=0.0)
QUIET = Network(("Iowa",) * SMALL.nodes, threshold=math.inf)  # costs nothing
PLACE = Network(("Iowa",) * SMALL.nodes, overhead=0.0, threshold=0.0)  # 10 ms and 0.5 GiB/s between all
SEVEN = Network.over("seven", SMALL.nodes)
STEP = 60.0
PAIRS = Combination("pair, as released", 10, recovery="neighbours", iteration=STEP)
ROLLBACK = Combination("ring all-reduce", period=20, iteration=STEP)

combinations = st.builds(
    lambda every, background, recovery, period, away, replan, **rest: Combination(
        every=every,
        background=min(background, every),
        recovery=recovery,
        period=period if recovery == "checkpoint" else None,
        away=None if recovery == "checkpoint" else away,
        replan=replan if away and recovery != "checkpoint" else 0.0,
        **rest,
    ),
    every=st.integers(1, 12),
    background=st.integers(0, 12),
    recovery=st.sampled_from(["checkpoint", "neighbours", "peer"]),
    period=st.integers(1, 30),
    away=st.none() | st.floats(0.5, 3.0),
    replan=st.floats(0, 100),
    exchange=st.sampled_from([OVERLAPPED, *sync_latency.EXCHANGES]),
    iteration=st.none() | st.floats(20, 500),
)


def seconds_of(size: float) -> float:
    """What a message takes between two nodes of `PLACE`."""
    return 0.01 + size / (0.5 * GIB)


# Closed forms


def test_without_failures_and_messages_a_day_is_steps():
    done = day(ROLLBACK, SMALL, QUIET, draws=3)
    assert (done["progress"] == DAY / STEP).all() and (done["useful"] == DAY).all()


def test_a_step_that_the_day_cuts_counts_in_part():
    assert day(ROLLBACK, SMALL, QUIET, draws=1, seconds=2.5 * STEP)["progress"].item() == pytest.approx(2.5)


def test_steps_are_those_of_one_replica_alone():
    alone = dataclasses.replace(SMALL, replicas=1)
    for r, seconds in enumerate(iteration_seconds(SMALL, SEVEN)):
        there = Network(SEVEN.locations[r :: SMALL.replicas])
        assert seconds == experiment(alone, there, "CheckFree", iterations=5).seconds[-1]


def test_an_overlapped_exchange_makes_iterations_as_long_as_those_of_all_replicas():
    """The medium model over CheckFree's seven places, for which its authors logged 91.3 s."""
    workload = Workload()
    network = Network.over("seven", workload.nodes)
    together = experiment(workload, network, "CheckFree", iterations=40)
    done = day(Combination(period=100), workload, network, draws=1, seconds=40 * together.mean)
    assert done["progress"].item() == pytest.approx(40, rel=0.01)
    assert done["waiting"].item() > 0.2 * 40 * together.mean


def test_progress_is_that_of_checkpointing_under_the_same_failures():
    """A step is as long as a slot of failures here, so that what strikes in one is found at the start of the next."""
    done = day(ROLLBACK, SMALL, QUIET, hourly=0.05, draws=6)
    for draw, progress in enumerate(done["progress"]):
        lost = failures(np.random.default_rng([0, 0, draw]), round(DAY / SLOT), 4, 3, per_step(0.05, SLOT)).any((1, 2))
        seen = np.concatenate([[False], lost[:-1]])
        assert progress == checkpointing.progress(seen, 20)[-1] + 1


@pytest.mark.parametrize("period", [5, 40])
def test_a_rollback_slows_down_as_expected(period):
    done = day(dataclasses.replace(ROLLBACK, period=period), SMALL, QUIET, hourly=0.03, draws=60)
    expected = checkpointing.slowdown(any_stage(per_step(0.03, STEP), 12), period)
    found = estimate(done["progress"])
    assert abs(found.mean - DAY / STEP / expected) < 1.5 * found.half
    assert found.half < 0.05 * found.mean


@pytest.mark.parametrize(("exchange", "hops", "share"), [("tree all-reduce", 4, 1), ("ring all-reduce", 6, 0.25)])
def test_an_all_reduce_waits_for_its_messages(exchange, hops, share):
    seconds = hops * seconds_of(share * max(SMALL.stage_bytes, SMALL.ends_bytes))
    done = day(dataclasses.replace(ROLLBACK, exchange=exchange), SMALL, PLACE, draws=2)
    whole, rest = divmod(DAY, STEP + seconds)
    assert done["progress"].to_numpy() == pytest.approx(whole + min(1, rest / STEP))
    assert done["waiting"].to_numpy() == pytest.approx(whole * seconds + max(0, rest - STEP))
    link = sync_latency.Link(sync_latency.Delay(0.01), 0.5 * GIB)
    tree = sync_latency.expected_tree(2, link, SMALL.stage_bytes)[-1]
    assert exchange != "tree all-reduce" or tree == pytest.approx(seconds, rel=1e-3)


def test_gossip_keeps_the_pace_of_the_time_model_of_outer_steps():
    """With steps of random length, drawn independently in both; NoLoCo's own spread."""
    spread, outer = sync_latency.INNER_STEP.spread, 144
    for exchange in ("pair, as released", "ring all-reduce"):
        done = day(dataclasses.replace(PAIRS, exchange=exchange), SMALL, QUIET, draws=40, jitter=spread)
        clocks = [
            sync_latency.wall_clock(
                np.random.default_rng(s), exchange, 4, 10, outer, sync_latency.Delay(STEP, spread), sync_latency.Link()
            )[-1]
            - outer * EXCHANGE_SECONDS[exchange]
            for s in range(40)
        ]
        ours, theirs = estimate(done["progress"]), estimate(DAY / np.array(clocks) * 10 * outer)
        assert abs(ours.mean - theirs.mean) < ours.half + theirs.half


EXCHANGE_SECONDS = {"pair, as released": 2.0, "ring all-reduce": 6.0}  # of a `Link`, whose messages take 1 s


@pytest.mark.parametrize("exchange", sync_latency.EXCHANGES)
def test_an_exchange_in_the_background_is_free_while_it_is_shorter_than_the_steps_that_hide_it(exchange):
    hidden = dataclasses.replace(PAIRS, exchange=exchange, background=1)
    assert exchange_seconds(np.random.default_rng(0), 100, hidden, SMALL, PLACE).max() < STEP
    assert (day(hidden, SMALL, PLACE, draws=2)["waiting"] == 0).all()
    assert (day(PAIRS, SMALL, PLACE, draws=2)["waiting"] > 0).all()


def test_an_exchange_in_the_background_costs_what_its_steps_do_not_hide():
    network = dataclasses.replace(PLACE, share=0.01)
    hidden = dataclasses.replace(PAIRS, exchange="ring all-reduce", background=1)
    waits = 6 * (0.01 + SMALL.stage_bytes / 4 / (0.005 * GIB)) - STEP
    whole, rest = divmod(DAY - STEP, 10 * STEP + waits)  # it begins after ten steps, and is waited for one step later
    waiting = day(hidden, SMALL, network, draws=1)["waiting"].item()
    assert waiting == pytest.approx(whole * waits + max(0.0, rest - 10 * STEP))


@pytest.mark.parametrize("recovery", [{"recovery": "neighbours"}, {"recovery": "checkpoint", "period": 1}])
def test_a_lost_stage_halts_its_replica_for_the_replacement_and_its_weights(recovery):
    """One replica, so that nobody else waits; all nodes in one place. A checkpoint in every step undoes none."""
    workload = dataclasses.replace(SMALL, replicas=1, provision=30.0)
    network = Network(("Iowa",) * workload.nodes, overhead=0.0, threshold=0.0)
    alone = dataclasses.replace(PAIRS, exchange="ring all-reduce", **recovery)
    done = day(alone, workload, network, hourly=0.05, draws=5)
    halts = done["recovery"] / (30 + seconds_of(workload.stage_bytes))
    assert halts.to_numpy() == pytest.approx(halts.round())
    assert halts.sum() == pytest.approx(done["failures"].sum(), rel=0.05)  # some strike in one step, or after the last
    assert (halts <= done["failures"] + 1e-9).all() and (done["repeated"] == 0).all()


def test_a_peer_is_the_nearest_other_replica():
    """Replicas 0 and 1 stand in one place, and 2 and 3 in another; halts are integer numbers of the fast messages."""
    places = ("Iowa", "Iowa", "Japan", "Japan") * (SMALL.stages + 1)
    network = Network(places, overhead=0.0, threshold=0.0)
    copies = dataclasses.replace(PAIRS, exchange="ring all-reduce", recovery="peer")
    done = day(copies, SMALL, network, hourly=0.02, draws=5)
    halts = 4 * done["recovery"] / seconds_of(SMALL.stage_bytes)  # seconds are means over four replicas
    assert (halts > 0).all() and halts.to_numpy() == pytest.approx(halts.round())


def test_who_goes_on_without_a_lost_stage_pays_for_the_plan_and_for_slower_steps():
    workload = dataclasses.replace(SMALL, provision=600.0)
    plain = dataclasses.replace(PAIRS, away=1.0, replan=7.0)
    done = day(plain, workload, QUIET, hourly=0.02, draws=10)
    assert done["recovery"].sum() == pytest.approx(7 * done["failures"].sum(), rel=0.1)
    assert (done["slower"] == 0).all()
    slow = day(dataclasses.replace(plain, away=1.5), workload, QUIET, hourly=0.02, draws=10)
    # a node is away for ten minutes, in which the swarm does in 1.5 steps what it does in one
    assert slow["slower"].sum() == pytest.approx(slow["failures"].sum() * 600 / 3, rel=0.15)


def test_what_is_away_cannot_be_lost():
    forever = dataclasses.replace(SMALL, provision=DAY)
    done = day(dataclasses.replace(PAIRS, away=1.0, replan=7.0), forever, QUIET, hourly=0.9, draws=3)
    assert (done["failures"] > 100).all()
    assert (done["recovery"] <= 7 * 12).all() and (done["recovery"] > 7).all()  # each of twelve nodes once


# Properties


@settings(max_examples=25)
@given(combinations, st.sampled_from([0.0, 0.05, 0.3]), st.sampled_from([0.0, 0.5]), st.integers(0, 9))
def test_the_seconds_of_a_day_add_up(c, hourly, jitter, seed):
    done = day(c, SMALL, SEVEN, hourly, draws=2, seed=seed, jitter=jitter, seconds=DAY / 6)
    assert done[list(CAUSES)].sum(axis=1).to_numpy() == pytest.approx(DAY / 6)
    assert (done[list(CAUSES)] >= -1e-6).all(axis=None)
    assert (done["progress"] >= 0).all()
    if c.iteration and c.away is None and not jitter:  # what stays in the weights is what its steps took
        assert done["useful"].to_numpy() == pytest.approx(c.iteration * done["progress"].to_numpy())


@settings(max_examples=20)
@given(combinations, st.sampled_from([0.02, 0.3]), st.integers(0, 9))
def test_failures_never_help(c, hourly, seed):
    if c.away is not None:
        c = dataclasses.replace(c, away=max(1.0, c.away))
    without, with_ = (day(c, SMALL, QUIET, h, draws=2, seed=seed, seconds=DAY / 6) for h in (0.0, hourly))
    assert (with_["progress"] <= without["progress"] + 1e-9).all()


@settings(max_examples=15)
@given(combinations, st.sampled_from(sorted(sync_latency.EXCHANGES)))
def test_faster_links_and_the_background_never_hurt(c, exchange):
    c = dataclasses.replace(c, exchange=exchange, iteration=STEP)
    slower, faster = (
        day(c, SMALL, dataclasses.replace(SEVEN, share=share, threshold=0.0), draws=2, seconds=DAY / 6)["progress"]
        for share in (0.5, 1.0)
    )
    assert (slower <= faster + 1e-9).all()
    blocking = day(dataclasses.replace(c, background=0), SMALL, SEVEN, draws=2, seconds=DAY / 6)["progress"]
    assert (blocking <= day(c, SMALL, SEVEN, draws=2, seconds=DAY / 6)["progress"] + 1e-9).all()


@settings(max_examples=15)
@given(combinations, combinations, st.integers(0, 9))
def test_combinations_of_a_seed_lose_the_same_nodes(a, b, seed):
    ours, theirs = (day(c, SMALL, QUIET, 0.1, draws=3, seed=seed, seconds=DAY / 12) for c in (a, b))
    assert (ours["failures"] == theirs["failures"]).all()
    rarer = day(a, SMALL, QUIET, 0.05, draws=3, seed=seed, seconds=DAY / 12)
    assert (rarer["failures"] <= ours["failures"]).all()


# Time to a loss


def test_time_to_a_loss_carries_both_uncertainties():
    """For many draws and seeds it is the interval of a bootstrap over pairs of them."""
    rng = np.random.default_rng(0)
    seconds, steps = rng.normal(90, 9, 200), rng.normal(1.4, 0.3, 300)
    resampled = [rng.choice(seconds, 200).mean() * rng.choice(steps, 300).mean() for _ in range(4000)]
    found = time_to_loss(seconds, steps)
    assert found.mean == pytest.approx(seconds.mean() * steps.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), rel=0.005)
    assert found.n == 200


def test_the_interval_of_a_time_to_loss_covers_the_truth_for_few_seeds():
    rng = np.random.default_rng(1)
    found = [time_to_loss(rng.normal(90, 9, 20), rng.normal(1.4, 0.3, 5)) for _ in range(2000)]
    assert np.mean([e.low < 90 * 1.4 < e.high for e in found]) == pytest.approx(0.95, abs=0.015)


def test_certain_seconds_leave_the_interval_of_the_curve_and_the_other_way_round():
    steps = [1.0, 1.2, 1.5]
    assert time_to_loss([2.0] * 20, steps) == dataclasses.replace(estimate(steps) * 2, n=3)
    assert time_to_loss(steps, [2.0] * 20) == dataclasses.replace(estimate(steps) * 2, n=3)
    assert time_to_loss([math.inf, 1.0, 1.0], steps).half == math.inf


# Bad input


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"exchange": "telepathy", "period": 5}, "telepathy"),
        ({"recovery": "prayer"}, "prayer"),
        ({"route": "uphill", "period": 5}, "uphill"),
        ({"every": 0, "period": 5}, "every=0"),
        ({"background": 2, "period": 5}, "background=2"),
        ({"period": 0}, "period=0"),
        ({}, "period=None"),
        ({"recovery": "peer", "period": 5}, "period=5"),
        ({"iteration": 0.0, "period": 5}, "iteration=0.0"),
        ({"away": 2.0, "period": 5}, "away=2.0"),
        ({"recovery": "peer", "away": math.nan}, "away=nan"),
        ({"recovery": "peer", "replan": 1.0}, "replan=1.0"),
        ({"recovery": "peer", "away": 1.0, "replan": -1.0}, "replan=-1.0"),
    ],
)
def test_a_combination_without_meaning_is_refused(fields, named):
    with pytest.raises(ConfigError, match=named):
        Combination(**fields)


@pytest.mark.parametrize(
    ("combination", "values", "named"),
    [
        (ROLLBACK, {"network": Network(("Iowa",) * 3)}, "need 16 nodes"),
        (PAIRS, {"workload": dataclasses.replace(SMALL, replicas=3), "network": Network(("Iowa",) * 12)}, "3"),
        (
            Combination("tree all-reduce", period=5),
            {"workload": dataclasses.replace(SMALL, replicas=3), "network": Network(("Iowa",) * 12)},
            "nodes=3",
        ),
        (
            Combination(recovery="peer"),
            {"workload": dataclasses.replace(SMALL, replicas=1), "network": Network(("Iowa",) * 4)},
            "recovery='peer'",
        ),
        (
            Combination(recovery="neighbours"),
            {"workload": dataclasses.replace(SMALL, stages=1), "network": Network(("Iowa",) * 8)},
            "recovery='neighbours'",
        ),
        (ROLLBACK, {"hourly": 1.0}, "hourly=1"),
        (ROLLBACK, {"draws": 0}, "draws=0"),
        (ROLLBACK, {"jitter": -1.0}, "jitter=-1.0"),
        (ROLLBACK, {"seconds": 0.0}, "seconds=0.0"),
    ],
)
def test_a_day_that_cannot_be_is_refused_before_any_work(combination, values, named, monkeypatch):
    monkeypatch.setattr("swarmbook.simulation.training_day.experiment", None)
    monkeypatch.setattr("swarmbook.simulation.training_day.failures", None)
    with pytest.raises((ConfigError, ValueError), match=named):
        day(combination, **{"workload": SMALL, "network": QUIET, **values})


def test_days_are_refused_before_any_is_simulated(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path))
    monkeypatch.setattr("swarmbook.simulation.training_day.day", None)
    with pytest.raises(ValueError, match="hourly=2"):
        days({"a": ROLLBACK}, SMALL, QUIET, [0.1, 2.0], draws=2)


def test_days_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path))
    ours = days({"a": ROLLBACK, "b": PAIRS}, SMALL, QUIET, [0.0, 0.1], draws=2)
    one = day(PAIRS, SMALL, QUIET, 0.1, draws=2).assign(combination="b", hourly=0.1)
    both = ours[(ours["combination"] == "b") & (ours["hourly"] == 0.1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, one, check_dtype=False)
    monkeypatch.setattr("swarmbook.simulation.training_day.day", None)
    pd.testing.assert_frame_equal(days({"a": ROLLBACK, "b": PAIRS}, SMALL, QUIET, [0.0, 0.1], draws=2), ours)
