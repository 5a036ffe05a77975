"""Bounds are what enumeration finds, the optimum is that of all orders of small instances, and nothing beats either."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from skippipe import instance, instances

from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.bounds import (
    alone,
    assignment_bound,
    closed_form,
    lower_bound,
    optimum,
    own_machine,
    round_trips,
)
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import TICK, Pipeline, Plan
from swarmbook.planning.replay import replay


def every_path(pipeline: Pipeline) -> list[tuple[int, ...]]:
    orders = itertools.permutations(range(1, pipeline.stages), pipeline.visits - 1)
    kept = [order for order in orders if pipeline.rules.broken(order) is None]
    return [path for order in kept for path in itertools.product(*(pipeline.groups[stage] for stage in order))]


def merges(lines: list[tuple]) -> Iterator[tuple]:
    """All orders of the operations of several microbatches on a node, each in its own order."""
    lines = [line for line in lines if line]
    if not lines:
        yield ()
    for k, line in enumerate(lines):
        for others in merges([*lines[:k], line[1:], *lines[k + 1 :]]):
            yield (line[0], *others)


def end(pipeline: Pipeline, ways: list[tuple], order: dict[int, tuple], least: float) -> float:
    """Makespan of given orders, by start times that rise until nothing moves; `least` if it is no less than that."""
    P, begin = pipeline.visits, {(j, k): 0.0 for j, way in enumerate(ways) for k in range(len(way))}

    def duration(operation: tuple) -> float:
        j, k = operation
        factor = 1.0 if k < P else pipeline.head if k == P else pipeline.backward
        return factor * pipeline.forward[ways[j][k]]

    before = [((j, k - 1), (j, k), pipeline.hops[ways[j][k - 1], ways[j][k]]) for j, k in begin if k]
    before += [((a, 2 * P), (b, 0), 0.0) for chain in pipeline.chains for a, b in itertools.pairwise(chain)]
    for line in order.values():
        before += [(a, b, pipeline.launch_gap if a[1] == 0 else pipeline.gap) for a, b in itertools.pairwise(line)]
    before = [(a, b, duration(a) + more) for a, b, more in before]
    changed = True
    while changed:
        changed = False
        for a, b, seconds in before:
            if begin[a] + seconds > begin[b]:
                begin[b], changed = begin[a] + seconds, True
                if begin[b] >= least:  # also if the orders are a cycle
                    return least
    return min(least, max(begin[j, 2 * P] + duration((j, 2 * P)) for j in range(len(ways))))


def exhaustive(pipeline: Pipeline) -> float:
    """The least makespan of all paths and all orders."""
    P, least, paths = pipeline.visits, 100.0, every_path(pipeline)
    for chosen in itertools.product(paths, repeat=pipeline.count):
        ways = [pipeline.itinerary(j, path) for j, path in enumerate(chosen)]
        shares = not pipeline.rules.shared or all(len({chosen[j] for j in chain}) == 1 for chain in pipeline.chains)
        if not shares or any(sum(n in path for path in chosen) > most for n, most in enumerate(pipeline.places)):
            continue
        nodes = sorted({node for way in ways for node in way})
        lines = [
            [tuple((j, k) for k, other in enumerate(way) if other == node) for j, way in enumerate(ways)]
            for node in nodes
        ]
        for orders in itertools.product(*(list(merges(each)) for each in lines)):
            held = [np.cumsum([(k < P) - (k > P) for _, k in line]).max() for line in orders]
            if all(held <= pipeline.room[nodes]):
                least = end(pipeline, ways, dict(zip(nodes, orders, strict=True)), least)
    return least


def tiny(seed: int, sizes=(1, 2, 1), **fields) -> Pipeline:
    """One data node and few relays, of unequal speeds, hops different in either direction."""
    rng, nodes, first = np.random.default_rng(seed), iter(range(9)), {"microbatches": 2, "memory": 2}
    groups = tuple(tuple(next(nodes) for _ in range(size)) for size in sizes)
    hops, forward = rng.integers(0, 12, (sum(sizes),) * 2) / 8, rng.integers(1, 12, sum(sizes)) / 8
    return Pipeline(groups, hops, forward, **{"rules": PathRules(3, shared=False), **first, **fields})


@given(instances())
@settings(max_examples=40, deadline=None)
def test_round_trips_are_the_shortest_of_all_paths(pipeline):
    shortest = [
        min(pipeline.round_trip(d * pipeline.microbatches, path) for path in every_path(pipeline))
        for d in range(len(pipeline.groups[0]))
    ]
    assert round_trips(pipeline).tolist() == pytest.approx(shortest, abs=1e-9)


@pytest.mark.parametrize("name", ["C", "A", "B"])
def test_round_trips_of_the_reference_cases_are_the_shortest_of_all_paths(name):
    pipeline = instance(name)
    d = int(np.argmax(closed_form(pipeline)))
    paths = every_path(pipeline)
    want = min(pipeline.round_trip(d * pipeline.microbatches, path) for path in paths)
    assert round_trips(pipeline)[d] == pytest.approx(want, abs=1e-9)
    if name in "CA":
        assert len(paths) == 594 and want == pytest.approx({"C": 15.142, "A": 27.235}[name], abs=0.001)
    launches = 2 * (pipeline.forward[0] + 0.09)
    assert closed_form(pipeline)[d] == pytest.approx(2 * want + launches + 0.13, abs=1e-9)


def test_closed_form_of_uneven_slots():
    """Of slots with 2, 1 and 1 microbatches the first can be the one that goes first; two with 2 share the launches."""
    pipeline = tiny(0, (1, 3, 3), microbatches=4, memory=3, rules=PathRules(3))
    once = round_trips(pipeline)[0]
    launch = pipeline.forward[0] + pipeline.launch_gap
    assert closed_form(pipeline)[0] == pytest.approx(2 * once + pipeline.gap)
    assert closed_form(replace(pipeline, microbatches=5))[0] == pytest.approx(2 * once + pipeline.gap + launch)
    assert closed_form(replace(pipeline, microbatches=3))[0] == pytest.approx(once + 2 * launch)


@pytest.mark.parametrize(
    ("sizes", "fields"),
    [
        ((1, 2, 1), {}),
        ((1, 1, 1), {}),
        ((1, 1, 1), {"memory": 1}),
        ((1, 2, 1), {"memory": 1, "rules": PathRules(3, shared=True)}),
        ((1, 1, 2), {"rules": PathRules(2), "relay_limit": 1}),
        ((1, 2, 2), {"rules": PathRules(3, swaps=0), "gap": 0.0, "launch_gap": 0.0}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_optimum_is_the_best_of_all_orders(sizes, fields, seed):
    pipeline = tiny(seed, sizes, **fields)
    best, found = exhaustive(pipeline), optimum(pipeline, moves=100)
    assert found.lower == found.upper == pytest.approx(best, abs=2 * TICK)
    assert replay(pipeline, found.plan).makespan == found.upper
    assert closed_form(pipeline).max() <= found.lower + TICK
    assert annealing_search(pipeline, np.random.default_rng(0), moves=20_000).makespan == found.upper


@pytest.mark.parametrize(("seed", "shared", "memory"), [(0, True, 1), (1, False, 2), (2, True, 2)])
def test_nothing_beats_the_bounds(seed, shared, memory):
    pipeline = tiny(seed, (2, 2, 2), memory=memory, rules=PathRules(3, shared=shared))
    found = optimum(pipeline, effort=0.3, moves=10)
    assert closed_form(pipeline).max() - TICK <= found.lower <= found.upper
    assert replay(pipeline, found.plan).makespan == found.upper
    other = annealing_search(pipeline, np.random.default_rng(seed), moves=20_000).makespan
    assert found.lower <= other
    assert closed_form(pipeline).max() <= lower_bound(pipeline, effort=0.3) <= other + TICK


@pytest.mark.parametrize(("microbatches", "seconds"), [(1, 21.677348), (2, 43.406424)])
def test_small_optima_of_case_s(microbatches, seconds):
    """One microbatch in flight, of which the second may go another way than the first: published as 21.678, 43.406."""
    pipeline = instance("S", memory=1, microbatches=microbatches)
    pipeline = replace(pipeline, rules=replace(pipeline.rules, shared=False))
    found = optimum(pipeline)
    assert found.lower == found.upper == pytest.approx(seconds, abs=TICK / 2)
    assert replay(pipeline, found.plan).makespan == found.upper


def test_an_optimum_that_is_not_proven_is_a_bracket():
    """Published: 25.556 for two microbatches at once."""
    pipeline = instance("S", memory=2, microbatches=2)
    pipeline = replace(pipeline, rules=replace(pipeline.rules, shared=False))
    found = optimum(pipeline, effort=0.3, moves=1000)
    assert found.lower < 25.5553 <= found.upper + TICK
    assert closed_form(pipeline).max() <= found.lower + TICK
    assert replay(pipeline, found.plan).makespan == found.upper
    assert found == optimum(pipeline, effort=0.3, moves=1000)


@given(instances())
@settings(max_examples=25, deadline=None)
def test_no_plan_beats_the_bounds_of_whole_instances(pipeline):
    found = annealing_search(pipeline, np.random.default_rng(0), moves=3000).makespan
    machines = [own_machine(pipeline, d, effort=0.2) for d in range(len(pipeline.groups[0]))]
    assert max(machines) <= found + TICK
    exact, merged = (assignment_bound(pipeline, effort=0.2, most=most) for most in (1_000_000, 1))
    assert merged <= exact * 1.001 and max(exact, merged) <= found + TICK
    assert (closed_form(pipeline) <= np.array(machines) + TICK).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shared", [True, False])
def test_bounds_of_uneven_instances_are_below_the_best_of_all_orders(seed, shared):
    """Data nodes that send two and one, relays with room for unequal numbers, of which one may be chosen only once."""
    fields = {"microbatches": (2, 1), "memory": (1, 2, 1, 2), "relay_limit": (9, 9, 1 + shared, 2)}
    pipeline = tiny(seed, (2, 2), rules=PathRules(2, shared=shared), **fields)
    best = exhaustive(pipeline)
    assert lower_bound(pipeline, nodes=0) <= best + 2 * TICK
    assert assignment_bound(pipeline, most=1) <= best + 2 * TICK


def test_a_relay_takes_no_more_than_there_is_time_for():
    """One relay for four sources works 4 s on each microbatch; the way there and back takes 2 s each: 2 + 16 + 2."""
    hops, forward = np.ones((5, 5)), [1.0, 1.0, 1.0, 1.0, 2.0]
    each = {"head": 0.0, "backward": 1.0, "gap": 0.0, "launch_gap": 0.0, "relay_limit": 4}
    pipeline = Pipeline(((0, 1, 2, 3), (4,)), hops, forward, PathRules(2), microbatches=1, memory=4, **each)
    best = optimum(pipeline)
    assert best.lower == best.upper == pytest.approx(20)
    assert 19.97 <= assignment_bound(pipeline) <= 20 + TICK


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shared", [True, False])
def test_bounds_of_whole_instances_are_below_the_best_of_all_orders(seed, shared):
    """One relay has room for one microbatch alone, so that the other has to go elsewhere."""
    pipeline = tiny(seed, (1, 2, 2), rules=PathRules(3, swaps=0, shared=shared), relay_limit=1)
    best = exhaustive(pipeline)
    assert own_machine(pipeline, 0) <= best + 2 * TICK and assignment_bound(pipeline) <= best + 2 * TICK


def test_a_data_node_of_which_all_relays_are_free_is_bound_by_its_own_machine():
    """Three slots of two microbatches, each away for one round trip r: by hand, 2 r + 2 (launch + backward) + gaps."""
    pipeline = instance("C")
    d = int(np.argmax(closed_form(pipeline)))
    away, work = round_trips(pipeline)[d], pipeline.forward[0]
    want = 2 * away + 2 * (work + pipeline.launch_gap) + 2 * (1.5 * work + pipeline.gap) + pipeline.gap
    assert own_machine(pipeline, d) == pytest.approx(want, abs=TICK) == pytest.approx(33.053792, abs=TICK)


def test_relays_that_few_can_use_raise_the_assignment_bound():
    """Two data nodes want the one near relay; it has room for one, and the other's round trip is 40 s longer."""
    hops = np.array([[0, 0, 1, 21], [0, 0, 1, 21], [1, 1, 0, 0], [21, 21, 0, 0]], float)
    rules = PathRules(2, shared=True)
    pipeline = Pipeline(((0, 1), (2, 3)), hops, 0.1, rules, microbatches=1, memory=1, relay_limit=1)
    best = optimum(pipeline).upper
    assert max(closed_form(pipeline)) == pytest.approx(best - 40 * 2)
    assert best - best / 500 <= assignment_bound(pipeline) <= best + TICK


def test_a_data_node_alone_has_all_relays():
    pipeline = instance("C")
    one = alone(pipeline, 4)
    assert one.groups == ((11,), *pipeline.groups[1:]) and one.count == 6
    assert round_trips(one)[0] == round_trips(pipeline)[4] and closed_form(one)[0] == closed_form(pipeline)[4]
    Plan.of_slots(one, [(8, 16, 9)]).check(one)


def test_no_plan_of_case_c_beats_the_proven_bound():
    """33.054 s: the data node in Australia, by its own machine, which is what the best plan takes."""
    pipeline = instance("C")
    bound = lower_bound(pipeline, nodes=0)
    found = annealing_search(pipeline, np.random.default_rng(0), moves=20_000)
    assert bound == pytest.approx(found.makespan, abs=TICK / 2) == pytest.approx(33.053792, abs=TICK / 2)
