"""Pipelines whose data nodes send different numbers of microbatches, and whose nodes differ in memory and speed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skippipe import instances

from swarmbook.errors import ConfigError, PlanError
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.bounds import assignment_bound, closed_form, lower_bound, optimum
from swarmbook.planning.encoding import cost, dispatched
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline
from swarmbook.planning.planners import PLANNERS
from swarmbook.planning.replay import replay


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def line(microbatches, memory, relays: int = 2, **fields) -> Pipeline:
    """Data nodes 0 and 1, and one stage of relays; hops and forward passes take a second, nothing else takes time."""
    nodes = 2 + relays
    fields = {"head": 0.0, "gap": 0.0, "launch_gap": 0.0} | fields
    groups = ((0, 1), tuple(range(2, nodes)))
    return Pipeline(groups, np.ones((nodes, nodes)), 1.0, PathRules(2), microbatches, memory, **fields)


@pytest.mark.parametrize("name", ["blind", "shortest", "search"])
def test_where_every_microbatch_has_its_own_path_no_slot_needs_several_places_at_once(name):
    """Slots of 2 and 1 microbatches and three relays for one each: one path a slot does not fit, three paths do."""
    one = Pipeline(((0,), (1, 2, 3)), np.ones((4, 4)), 1.0, PathRules(2, shared=False), 3, 2, relay_limit=1)
    plan = annealing_search(one, rng(), moves=200).plan if name == "search" else PLANNERS[name](one, rng())
    plan.check(one)
    assert sorted(plan.paths) == [(1,), (2,), (3,)]
    with pytest.raises(PlanError, match="no paths of"):
        annealing_search(replace(one, rules=PathRules(2)), rng(), moves=200)


def test_data_nodes_send_as_many_microbatches_as_each_is_given():
    pipeline = line((5, 2), 3)
    assert pipeline.chains == ((0, 1), (2, 3), (4,), (5,), (6,))
    assert pipeline.chains_of == (((0, 1), (2, 3), (4,)), ((5,), (6,)))
    assert (pipeline.count, pipeline.sent, pipeline.slots) == (7, (5, 2), 3)
    assert [pipeline.data_node(j) for j in range(7)] == [0] * 5 + [1] * 2
    assert line(4, 3).even and not pipeline.even and not line(4, (3, 2, 3, 3)).even and not line(4, (3, 3, 3, 4)).even
    assert line((4, 4), 3).chains == line(4, 3).chains and line(4, 3).sent == (4, 4)
    assert line((4, 4), 3).digest == line(4, (3, 3, 3, 3)).digest != line((5, 3), 3).digest


def test_a_node_holds_as_many_microbatches_as_its_own_memory():
    """One relay; the trip is 1 + 1 + 1 + 1 forward, then backward 1.5 each: with room for one they go one by one."""
    makespan = {}
    for room in (1, 2):
        pipeline = line((1, 1), (1, 1, room), relays=1, relay_limit=2)
        plan = annealing_search(pipeline, rng(), moves=500).plan
        done = replay(pipeline, plan)
        relay = done.tasks[done.tasks["node"] == 2].sort_values("start")
        held = (relay["kind"] == "forward").cumsum() - (relay["kind"] == "backward").cumsum()
        assert held.max() == room
        makespan[room] = done.makespan
    # data 1, hop 1, relay 1, hop 1, loss 0, hop 1, relay 1.5, hop 1, data 1.5
    assert makespan[2] == pytest.approx(9 + 1.5)  # the second is one backward pass of the relay behind
    # the relay works 1 + hop 1 + hop 1 + 1.5 on the first before it takes the second
    assert makespan[1] == pytest.approx(9 + 4.5)


def test_backward_passes_take_what_each_node_is_given():
    pipeline = line(1, 1, backward=(2.0, 2.0, 3.0, 3.0))
    assert pipeline.duration(4, 0) == 2_000_000 and pipeline.duration(3, 2) == 3_000_000
    assert annealing_search(pipeline, rng(), moves=100).makespan == pytest.approx(1 + 1 + 1 + 1 + 1 + 3 + 1 + 2)
    assert pipeline.digest != line(1, 1, backward=(2.0, 2.0, 3.0, 4.0)).digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"microbatches": (1, 2, 3)},
            r"microbatches must be one whole number or one for each of 2 data nodes.*1, 2, 3",
        ),
        ({"microbatches": (1, 0)}, r"microbatches must be at least 1, not \(1, 0\)"),
        ({"memory": (1, 2)}, r"memory must be one whole number or one for each of 4 nodes.*1, 2"),
        ({"backward": (1.0, 2.0)}, r"backward must be one number or one for each of 4 nodes"),
        ({"backward": (1.0, 2.0, 3.0, np.nan)}, "backward.*nan"),
    ],
)
def test_what_does_not_fit_the_nodes_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        line(**({"microbatches": 2, "memory": 2} | fields))


@given(instances(), st.data())
@settings(max_examples=12, deadline=None)
def test_uneven_instances_are_planned_replayed_and_bounded(pipeline, data):
    """The cost of a plan is its replay, no rule of dispatch or search beats the bound, and memory is kept by node."""
    sent = tuple(data.draw(st.integers(1, 4)) for _ in pipeline.groups[0])
    memory = tuple(data.draw(st.integers(1, 3)) for _ in pipeline.hops)
    pipeline = replace(pipeline, microbatches=sent, memory=memory, relay_limit=sum(sent))
    found, least = annealing_search(pipeline, rng(), moves=300), closed_form(pipeline).max()
    done = replay(pipeline, found.plan)
    assert done.makespan == found.makespan == cost(pipeline, found.plan)
    for most in (2, 1_000_000):
        assert found.makespan + 1e-6 >= assignment_bound(pipeline, effort=0.05, most=most) >= least - 1e-6
    for node, part in done.tasks.groupby("node"):
        held = np.cumsum((part["position"] < pipeline.visits).astype(int) - (part["position"] > pipeline.visits))
        assert held.max() <= memory[node]
    for rule in ("fifo", "backward first", "longest rest"):
        plan, seconds = dispatched(pipeline, found.plan.paths, rule)
        assert replay(pipeline, plan).makespan == seconds >= least - 1e-6


def test_the_optimum_of_an_uneven_instance_is_between_bound_and_plan():
    pipeline = line((2, 1), (2, 1, 1, 2))
    best = optimum(pipeline, effort=5.0, moves=2_000)
    found = annealing_search(pipeline, rng(), moves=2_000).makespan
    assert lower_bound(pipeline, nodes=0) - 1e-6 <= best.upper and closed_form(pipeline).max() - 1e-6 <= best.lower
    assert best.lower <= best.upper <= found + 1e-6


@pytest.mark.parametrize("rule", ["fifo", "backward first", "longest rest"])
def test_relays_that_are_full_of_each_others_microbatches_are_not_waited_for(rule):
    """Paths 2, 3 and 3, 2 with room for one: each relay would hold one and wait for the other; so one goes first."""
    hops, rules = np.ones((4, 4)), PathRules(3, swaps=1)
    pipeline = Pipeline(((0, 1), (2,), (3,)), hops, 1.0, rules, microbatches=1, memory=1, relay_limit=2)
    plan, seconds = dispatched(pipeline, [(2, 3), (3, 2)], rule)
    plan.check(pipeline)
    assert replay(pipeline, plan).makespan == seconds == cost(pipeline, plan)
    found = annealing_search(pipeline, rng(), moves=200)
    assert replay(pipeline, found.plan).makespan == found.makespan <= seconds


def test_a_relay_takes_as_many_microbatches_as_its_own_limit():
    pipeline = line(2, (2, 2, 3, 1))
    assert pipeline.places[2:].tolist() == [3, 1] and pipeline.capacity == 3
    plan = annealing_search(pipeline, rng(), moves=200).plan
    assert np.bincount(np.ravel(plan.paths)).tolist() == [0, 0, 3, 1]
    with pytest.raises(PlanError, match="TC1: 2 microbatches choose node 3, at most 1 may"):
        replace(plan, paths=((2,), (2,), (3,), (3,))).check(pipeline)
    with pytest.raises(ConfigError, match="4 visits of relays do not fit into 3 places"):
        line(2, (2, 2, 2, 1))
    assert line(2, 2, relay_limit=(9, 9, 3, 1)).places.tolist() == [9, 9, 3, 1]
