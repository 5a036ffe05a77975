"""Every planner's plan keeps the rules, costs what its replay takes, and is never below the bounds."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skippipe import CASES, instance, instances, released

from swarmbook.errors import ConfigError, PlanError
from swarmbook.planning import bounds, planners
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.bounds import closed_form, lower_bound, proven, round_trips
from swarmbook.planning.conflict_based_search import conflict_search
from swarmbook.planning.encoding import (
    cost,
    dispatched,
    ends_of,
    makespan_of,
    part_of,
    parts_of,
    plan_of,
    put_back,
    shop_of,
    state_of_plan,
)
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import TICK, Pipeline, Plan
from swarmbook.planning.planners import PLANNERS, blind, full_pipelines, planned
from swarmbook.planning.replay import replay
from swarmbook.planning.slot_paths import data_node_paths, short_paths
from swarmbook.records.store import Store

DTFM = [
    *(("C", "event_sim_9", False, 9, 3), ("C", "event_sim_full", False, None, 3)),
    ("C", "event_sim_full_realigned", True, None, 3),
    *(("A", "event_sim_9", False, 9, 3), ("A", "event_sim_full", False, None, 3)),
    ("A", "event_sim_full_realigned", True, None, 3),
    *(("A2", "event_sim_9", False, 9, 3), ("A2", "event_sim_full", False, None, 3)),
    ("A2", "event_sim_full_realigned", True, None, 3),
    *(("B", "event_sim_full", False, None, 3), ("B", "event_sim_full_realigned", True, None, 3)),
    *(("B1", "event_sim_full", False, None, 3), ("B1", "event_sim_full_realigned", True, None, 3)),
    *(("S", "event_sim_full", False, None, 3), ("S", "event_sim_full_realigned", True, None, 3)),
    *((name, "event_sim_full_memory_unlimited", False, None, 10) for name in CASES),
    *((name, "event_sim_full_realigned_memory_unlimited", True, None, 10) for name in CASES),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def full(name: str, realigned: bool, microbatches: int | None = None, memory: int = 3) -> float:
    """Seconds of DT-FM's pipelines on a case's groups, as released or with the matching read the right way round."""
    columns = list(zip(*CASES[name]["results"]["dtfm"]["realigned_partitions"], strict=False)) if realigned else None
    return replay(*full_pipelines(instance(name, memory=memory), columns, microbatches)).makespan


@pytest.mark.parametrize(("name", "item", "realigned", "microbatches", "memory"), DTFM)
def test_full_pipelines_take_the_published_seconds(name, item, realigned, microbatches, memory):
    want = CASES[name]["results"]["dtfm"][item]
    assert full(name, realigned, microbatches, memory) == pytest.approx(want, abs=0.001)


def test_more_memory_is_what_full_pipelines_lack():
    """Case C, 10 microbatches a pipeline, two of which a slot runs for m = 5. Uneven slots as of m = 6 differ: ours
    are 2, 2, 2, 2, 1, 1 long, for which 55.3 s are published.
    """
    assert full("C", False, memory=5) == pytest.approx(56.4, abs=0.05)
    assert full("C", True, memory=5) == pytest.approx(44.2, abs=0.05)
    assert full("C", False, memory=6) == pytest.approx(56.330, abs=0.001)


def test_full_pipelines_are_the_columns_of_the_groups():
    pipeline = instance("C")
    whole, plan = full_pipelines(pipeline)
    assert whole.groups == tuple(group[:3] for group in pipeline.groups) and whole.count == pipeline.count == 30
    assert set(plan.paths) == {(15, 1, 16, 5, 17), (8, 9, 12, 18, 2), (14, 6, 13, 7, 19)}
    round_trips = [whole.round_trip(10 * k, plan.paths[10 * k]) for k in range(3)]
    assert round_trips == pytest.approx([23.42, 25.33, 23.184], abs=0.001)
    assert full_pipelines(instance("B"))[0].count == 36
    assert full_pipelines(instance("C", microbatches=5))[0].microbatches == 9  # none of 25 is lost


@given(instances(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_plan_keeps_the_rules_and_the_bounds(pipeline, seed):
    floor = max(closed_form(pipeline).max(), round_trips(pipeline).max()) - TICK / 2
    for name in ("blind", "shortest"):
        plan = PLANNERS[name](pipeline, rng(seed))
        plan.check(pipeline)
        assert plan == PLANNERS[name](pipeline, rng(seed))
        assert replay(pipeline, plan).makespan >= floor
    found = annealing_search(pipeline, rng(seed), moves=3000)
    found.plan.check(pipeline)
    assert replay(pipeline, found.plan).makespan == cost(pipeline, found.plan) == found.makespan >= floor


@given(instances(), st.integers(0, 99), st.integers(1, 30_000))
@settings(max_examples=12, deadline=None)
def test_more_moves_go_on_from_fewer(pipeline, seed, moves):
    few, many, again = (annealing_search(pipeline, rng(seed), moves=number) for number in (moves, 32_000, 32_000))
    assert (many.plan, many.makespan) == (again.plan, again.makespan) and many.makespan <= few.makespan
    steps = [(done, makespan) for done, _, makespan in many.history]
    assert steps == [(done, makespan) for done, _, makespan in again.history]
    alike, fewer = [step for step in steps if step[0] <= moves], [(done, span) for done, _, span in few.history]
    assert fewer[: len(alike)] == alike
    assert all(done == moves for done, _ in fewer[len(alike) :])  # the round that was cut short


@given(instances(), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_fixed_order_takes_no_longer_if_messages_are_faster(pipeline, seed):
    plan = annealing_search(pipeline, rng(seed), moves=500).plan
    faster = np.floor(8 * pipeline.hops * rng(seed).random(pipeline.hops.shape)) / 8
    assert replay(pipeline, plan, faster).makespan <= replay(pipeline, plan).makespan
    assert cost(replace(pipeline, hops=faster), plan) == replay(pipeline, plan, faster).makespan


@given(instances(), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_search_begins_with_what_nodes_do_by_themselves(pipeline, seed):
    """Its first order is the better one of two dispatching rules, if no two things happen in one tick.

    They do at the start, where a data node has several slots.
    """
    noise = [1e-6 * rng(seed).integers(0, 9999, values.shape) for values in (pipeline.hops, pipeline.forward)]
    pipeline = replace(pipeline, hops=pipeline.hops + noise[0], forward=pipeline.forward + noise[1], memory=1)
    drawn = rng(seed)
    paths = data_node_paths(pipeline, drawn) or short_paths(pipeline, drawn)
    takes = [replay(pipeline, Plan.of_slots(pipeline, paths, rule)).makespan for rule in ("fifo", "longest rest")]
    assert annealing_search(pipeline, rng(seed), moves=1).history[0][2] == min(takes)


@given(instances(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_paths_of_data_nodes_keep_the_rules_and_the_room(pipeline, seed):
    if paths := data_node_paths(pipeline, rng(seed)):
        Plan.of_slots(pipeline, paths).check(pipeline)
        assert all(
            len({paths[d * pipeline.slots + k] for k in range(pipeline.slots)}) == 1
            for d in range(len(pipeline.groups[0]))
        )


def test_parts_of_a_plan_are_annealed_apart():
    """Two data nodes with a relay each: two parts, and what is written back of one leaves the other as it was."""
    pipeline = Pipeline(((0, 1), (2, 3)), 1.0 - np.eye(4), 1.0, PathRules(2), 2, 2)
    plan, _ = dispatched(pipeline, ((2,), (2,), (3,), (3,)), "fifo")
    shop, state = shop_of(pipeline), state_of_plan(pipeline, plan)
    assert len(set(parts_of(shop, state)[:2])) == 1 and len(set(parts_of(shop, state))) == 2
    microbatches, nodes = np.array([2, 3]), np.array([1, 3])
    _, piece = part_of(shop, state, microbatches, nodes)
    assert makespan_of(piece) == makespan_of(state) and ends_of(piece).tolist() == ends_of(state)[2:].tolist()
    put_back(piece, state, microbatches, nodes)
    assert plan_of(pipeline, state) == plan


def test_the_registered_annealing_goes_on_from_a_short_search():
    pipeline = Pipeline(((0, 1), (2,), (3,)), 1.0 - np.eye(4), 1.0, PathRules(2), 2, 2)
    found = annealing_search(pipeline, rng(3), moves=10)
    assert closed_form(pipeline).max() <= cost(pipeline, PLANNERS["annealing"](pipeline, rng(3))) <= found.makespan


def test_a_search_by_the_clock_ends_and_its_plan_is_good():
    pipeline = instance("S")
    found = annealing_search(pipeline, rng(), seconds=0.2)
    assert replay(pipeline, found.plan).makespan == found.makespan == found.history[-1][2]
    assert found.makespan < 66.249  # the released planner's before it avoids collisions


@pytest.mark.parametrize(
    "effort", [{}, {"moves": 5, "seconds": 1.0}, {"moves": 0}, {"moves": -3}, {"seconds": 0.0}, {"seconds": -1.0}]
)
def test_a_search_wants_moves_or_seconds(effort):
    values = f"not {effort.get('moves')} and {effort.get('seconds')}"
    with pytest.raises(PlanError, match=f"one of moves, at least 1, and seconds, above 0; {values}"):
        annealing_search(instance("S"), rng(), **effort)


@pytest.mark.parametrize("name", CASES)
def test_blind_paths_are_within_the_capacity_and_different_each_time(name):
    pipeline = instance(name)
    plans = [blind(pipeline, rng(seed)) for seed in range(5)]
    for plan in plans:
        plan.check(pipeline)
        chosen = np.bincount(np.concatenate(plan.paths), minlength=len(pipeline.hops))
        assert all((chosen[list(group)] == pipeline.capacity).all() for group in pipeline.groups[1:])
    assert len({plan.paths for plan in plans}) == 5


@pytest.mark.parametrize(("name", "mean", "deviation"), [("B", 70.6, 2.4), ("A2", 94.1, 4.3), ("C", 375.7, 308)])
def test_blind_paths_take_as_long_as_others_that_were_drawn(name, mean, deviation):
    """Against 60 draws by another program: the means are within three standard errors of their difference."""
    pipeline = instance(name)
    draws = [replay(pipeline, blind(pipeline, rng(seed))).makespan for seed in range(60)]
    error = np.hypot(deviation, np.std(draws, ddof=1)) / np.sqrt(60)
    assert abs(np.mean(draws) - mean) < 3 * error
    assert 2 / 3 < np.std(draws, ddof=1) / deviation < 3 / 2  # F(59, 59): 0.2 % outside


@pytest.mark.parametrize(("name", "seconds"), [("C", 33.06), ("B", 61.1), ("A", 68.8), ("S", 60.0)])
def test_reference_cases_are_planned_better_than_ever(name, seconds):
    """The best values that are published for these instances, C's the proven optimum; 400,000 moves take seconds."""
    pipeline = instance(name)
    found = annealing_search(pipeline, rng(), moves=400_000)
    assert found.makespan == replay(pipeline, found.plan).makespan <= seconds
    ours = [
        replay(pipeline, Plan.of_slots(pipeline, released(name, method))).makespan
        for method, result in CASES[name]["results"].items()
        if "paths" in result and (name, method) != ("A", "skippipe")
    ]
    assert found.makespan < min(ours)


def test_relays_without_room_are_told():
    narrow = Pipeline(((0, 1, 2), (3,), (4, 5, 6, 7, 8)), np.ones((9, 9)), 1.0, PathRules(3))
    for name in PLANNERS:
        with pytest.raises(PlanError, match="no paths of 3 stages were found that fit 18 microbatches into relays"):
            PLANNERS[name](narrow, rng())
    with pytest.raises(ConfigError, match="36 visits of relays do not fit into 24 places"):
        replace(narrow, groups=((0, 1, 2), (3, 4), (5, 6)))


def test_the_cost_of_a_plan_wants_an_order_that_can_be_kept():
    pipeline = Pipeline(((0,), (1,), (2,)), 1.0 - np.eye(3), 1.0, PathRules(3, shared=False), 2, 2)
    paths = ((1, 2), (2, 1))
    with pytest.raises(PlanError, match="order='fifo' leaves the order to the nodes"):
        cost(pipeline, Plan(paths))
    order = replay(pipeline, Plan(paths)).order()
    assert cost(pipeline, Plan(paths, order)) == replay(pipeline, Plan(paths)).makespan
    crossed = {1: ((1, 2), (0, 1), (1, 4), (0, 5)), 2: ((0, 2), (1, 1), (0, 4), (1, 5))}
    for give in (cost, replay):
        with pytest.raises(PlanError, match="wait for each other for ever"):
            give(pipeline, Plan(paths, order | crossed))
    with pytest.raises(PlanError, match="each stage once"):
        cost(pipeline, Plan(((1, 1), (2, 1)), order))


def test_a_search_that_begins_with_a_plan_is_never_worse_than_it():
    pipeline = instance("S")
    before = annealing_search(pipeline, np.random.default_rng(0), moves=20_000)
    slower = instance("S", hops=1.5 * pipeline.hops)
    kept = annealing_search(slower, np.random.default_rng(1), moves=1, start=before.plan)
    assert kept.history[0][2] == cost(slower, before.plan) >= kept.makespan
    assert replay(slower, kept.plan).makespan == kept.makespan
    with pytest.raises(PlanError, match="shared: "):
        annealing_search(instance("S", memory=2), np.random.default_rng(0), moves=1, start=before.plan)
    with pytest.raises(PlanError, match="leaves the order to the nodes"):
        annealing_search(pipeline, np.random.default_rng(0), moves=1, start=replace(before.plan, order="fifo"))


def smallest(pipeline: Pipeline) -> dict:
    """What searches find, small enough to compare to the last digit."""
    annealed, by_conflicts = annealing_search(pipeline, rng(), moves=2000), conflict_search(pipeline, expand=300)
    return {
        "versions": [*planners.VERSION.values(), bounds.VERSION],
        "annealing": [annealed.makespan, annealed.plan.paths],
        "conflict-based": [by_conflicts.makespan, by_conflicts.plan.paths],
        "bound": lower_bound(pipeline, effort=0.2, nodes=1),
    }


def test_what_is_recorded_is_what_would_be_found_now():
    """Where this differs on purpose, raise the `VERSION` of what differs and write the file anew: see its name."""
    golden = Path(__file__).with_name("golden_planner.json")
    assert json.loads(json.dumps(smallest(instance("S")))) == json.loads(golden.read_text())


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """An empty store, and nothing recorded."""
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "store")


def never(*_, **__):
    raise AssertionError("searched although it was stored")


@pytest.mark.parametrize("how", ["annealing", "conflict-based"])
def test_a_plan_is_searched_once(how, store, monkeypatch):
    pipeline, limits = instance("S"), {"moves": 500} if how == "annealing" else {"expand": 200}
    found = planned(pipeline, how, **limits)
    direct = (
        annealing_search(pipeline, rng(), moves=500) if how == "annealing" else conflict_search(pipeline, expand=200)
    )
    assert (found.plan, found.makespan, found.moves, found.ended) == (
        direct.plan, direct.makespan, direct.moves, direct.ended,
    )  # fmt: skip
    assert [(moves, span) for moves, _, span in found.history] == [(moves, span) for moves, _, span in direct.history]
    monkeypatch.setattr("swarmbook.planning.planners.annealing_search", never)
    monkeypatch.setattr("swarmbook.planning.planners.conflict_search", never)
    assert planned(instance("S"), how, **limits) == found
    other = [{"seed": 1}, {"start": direct.plan}, {"moves": 501}] if how == "annealing" else [{"expand": 201}]
    for more in other:
        with pytest.raises(AssertionError, match="although"):
            planned(pipeline, how, **{**limits, **more})
    for changed in (instance("S", gap=0.14), instance("S", hops=pipeline.hops + 1e-6), instance("B")):
        with pytest.raises(AssertionError, match="although"):
            planned(changed, how, **limits)


def other_relay(table: pd.DataFrame) -> pd.DataFrame:
    node = int(table.loc[table["position"] == 1, "node"].iloc[0])
    return table.assign(node=table["node"].where(table["node"] != node, 99))


def without_a_launch(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(index=table["position"].eq(0).idxmax()).reset_index(drop=True)


def crossed(table: pd.DataFrame) -> pd.DataFrame:
    """The same paths, the first node's first two operations in the other order."""
    return table.iloc[[1, 0, *range(2, len(table))]].reset_index(drop=True)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            lambda table: table.assign(makespan=table["makespan"] - 1),
            "takes .* s where its record says .* delete the file",
        ),
        (
            lambda table: table[table.index != table["position"].eq(0).idxmax()].reset_index(drop=True),
            "order: node .* is given other operations",
        ),
        (other_relay, "relays: node 99 on the path"),
        (crossed, "takes .* s where its record says|order: nodes wait for each other|memory: node"),
        (lambda table: table.assign(microbatch=table["microbatch"].clip(upper=16)), "paths for 18 microbatches"),
    ],
)
def test_a_tampered_plan_is_caught(tamper, message, store):
    planned(instance("S"), moves=500)
    (path,) = (store.root).glob("*.parquet")
    record = store.get(path.stem)
    store.put(record.key, record.config, tamper(record.metrics), record.provenance)
    with pytest.raises(PlanError, match=message):
        planned(instance("S"), moves=500)


def test_a_bound_is_proven_once(store, monkeypatch):
    pipeline = instance("S", microbatches=2)
    bound = proven(pipeline, effort=0.2, nodes=1)
    assert bound == lower_bound(pipeline, effort=0.2, nodes=1) >= closed_form(pipeline).max()
    monkeypatch.setattr("swarmbook.planning.bounds.lower_bound", never)
    assert proven(pipeline, effort=0.2, nodes=1) == bound
    with pytest.raises(AssertionError, match="although"):
        proven(pipeline, effort=0.3, nodes=1)


def uneven(relays: int, microbatches: int, data_nodes: int = 1) -> Pipeline:
    """Slots of which some have more microbatches than others; one stage of relays, all of which are needed."""
    nodes = data_nodes + relays
    groups = (tuple(range(data_nodes)), tuple(range(data_nodes, nodes)))
    return Pipeline(groups, np.ones((nodes, nodes)), 1.0, PathRules(2), microbatches, memory=3)


@pytest.mark.parametrize("name", [name for name in PLANNERS if name != "annealing"] + ["search"])
def test_uneven_slots_use_all_the_room_there_is(name):
    """Slots of 2, 1 and 1 microbatches of three data nodes: 12 into 12 places, which one slot a place would not do."""
    pipeline = uneven(2, 4, data_nodes=3)
    plan = annealing_search(pipeline, rng(), moves=2000).plan if name == "search" else PLANNERS[name](pipeline, rng())
    plan.check(pipeline)
    assert np.bincount(np.concatenate(plan.paths)).tolist() == [0, 0, 0, 6, 6]


@given(instances(), st.integers(0, 9), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_slots_that_fit_are_fitted(pipeline, seed, microbatches):
    """Whether one path for every slot can keep to the capacity, by trying all ways to fill relays slot by slot."""
    pipeline = replace(pipeline, microbatches=1, memory=1, relay_limit=pipeline.count)
    limit = int(rng(seed).integers(1, microbatches * len(pipeline.groups[0]) + 1))
    try:
        pipeline = replace(pipeline, microbatches=microbatches, memory=3, relay_limit=limit)
    except ConfigError:
        return  # refused for any paths
    paths = [p for order in pipeline.orders for p in itertools.product(*(pipeline.groups[s] for s in order))]
    sets = sorted({tuple(sorted(path)) for path in paths})
    assume(len(sets) ** len(pipeline.chains) <= 3_000)
    fills = {(0,) * len(pipeline.hops)}
    for chain in pipeline.chains:
        fills = {
            tuple(count + len(chain) * (node in path) for node, count in enumerate(fill))
            for fill in fills
            for path in sets
        }
        fills = {fill for fill in fills if max(fill) <= limit}
    for name in ("blind", "shortest"):
        if fills:
            PLANNERS[name](pipeline, rng(seed)).check(pipeline)
        else:
            with pytest.raises(PlanError, match="no paths of"):
                PLANNERS[name](pipeline, rng(seed))
