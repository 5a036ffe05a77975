"""A replay gives the times of the released paths and of timelines known in closed form; a broken plan is named."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skippipe import CASES, instance, instances, released

from swarmbook.errors import ConfigError, PlanError
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import DISPATCH_RULES, Pipeline, Plan
from swarmbook.planning.planners import blind
from swarmbook.planning.replay import replay

NAMES = dict(zip(("fifo", "bwd", "rem"), DISPATCH_RULES, strict=True))
TIES = {  # values of another simulator that it gets by rounding: see the tests of ties
    *(("C", method, "bwd") for method in ("skippipe_no_tc2", "skippipe")),
    *(("B1", "skippipe_no_tc2", rule) for rule in ("bwd", "rem")),
}
REFERENCES = [
    (name, method, rule, seconds)
    for name, case in CASES.items()
    for method, result in case["results"].items()
    if "paths" in result
    for rule, seconds in result["event_sim"].items()
    if (name, method, rule) not in TIES
]


def small(**fields) -> Pipeline:
    """Two data nodes 0 and 1, and relays 2, 3 of stage 1, 4, 5 of stage 2, 6, 7 of stage 3; node 8 takes no part."""
    values = {"groups": ((0, 1), (2, 3), (4, 5), (6, 7)), "hops": np.ones((9, 9)), "forward": 1.0}
    values |= {"rules": PathRules(3, swaps=1, lags=1), "microbatches": 2, "memory": 2}
    return Pipeline(**{**values, **fields})


def ring(microbatches: int, memory: int, hop: float, gap: float, forward: float) -> Pipeline:
    """One data node and one relay of each of two stages, all hops equal."""
    times = {"head": 0.25, "gap": gap, "launch_gap": gap}
    return Pipeline(((0,), (1,), (2,)), np.full((3, 3), hop), forward, PathRules(3), microbatches, memory, **times)


@pytest.mark.parametrize(
    ("stages", "rules", "ascending", "all_of_them"),
    [
        (4, PathRules(3), 3, 5),
        (6, PathRules(4), 10, 22),
        (6, PathRules(4, ahead=3, swaps=1), None, 20),
        (8, PathRules(6), 21, 111),
    ],
)
def test_the_released_rules_allow_so_many_orders(stages, rules, ascending, all_of_them):
    orders = rules.orders(stages)
    assert len(orders) == len(set(orders)) == all_of_them
    assert ascending in (None, sum(list(order) == sorted(order) for order in orders))


@given(st.integers(2, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_orders_are_the_permutations_that_break_no_rule(stages, data):
    small_number = st.integers(0, 3)
    visits = data.draw(st.integers(2, stages))
    rules = PathRules(visits, data.draw(st.integers(1, 4)), *(data.draw(small_number) for _ in range(3)))
    every = itertools.permutations(range(1, stages), visits - 1)
    assert rules.orders(stages) == tuple(order for order in every if rules.broken(order) is None)
    assert rules.draw(stages, np.random.default_rng(0)) in rules.orders(stages)


@pytest.mark.parametrize(("name", "method", "rule", "seconds"), REFERENCES)
def test_released_paths_take_the_published_seconds(name, method, rule, seconds):
    # The released search leaves node 4 of case A chosen by four slots of two microbatches, where three may.
    pipeline = instance(name, relay_limit=8 if (name, method) == ("A", "skippipe") else None)
    plan = Plan.of_slots(pipeline, released(name, method), NAMES[rule])
    assert replay(pipeline, plan).makespan == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize(
    ("method", "exact", "rounded"), [("skippipe_no_tc2", 35.695, 35.435), ("skippipe", 33.574, 33.314)]
)
def test_ties_of_equal_slots_decide_two_values_of_case_c(method, exact, rounded):
    """Slots that share a path come to a relay just as it gets free of the one before, when a backward pass comes too.

    In sums of floating-point seconds rounding decides which is first, to the published value; in whole ticks the
    message that was sent first. Speeds of nodes that differ by millionths give either value, and no other.
    """
    pipeline = instance("C")
    plan = Plan.of_slots(pipeline, released("C", method), "backward first")
    assert replay(pipeline, plan).makespan == pytest.approx(exact, abs=0.001)
    speeds = [0.44 + np.random.default_rng(seed).uniform(-3e-6, 3e-6, 20) for seed in range(6)]
    makespans = {round(replay(replace(pipeline, forward=speed), plan).makespan, 3) for speed in speeds}
    assert makespans == {exact, rounded}


def test_ties_decide_everything_where_all_hops_are_equal():
    """Why two values of case B1, all of whose nodes are at one place, are no reference: microseconds move seconds."""
    pipeline = instance("B1")
    for rule, seconds in (("bwd", 72.233), ("rem", 66.264)):
        plan = Plan.of_slots(pipeline, released("B1", "skippipe_no_tc2"), NAMES[rule])
        noise = [np.random.default_rng(seed).integers(0, 9, pipeline.hops.shape) * 1e-6 for seed in range(10)]
        makespans = [replay(pipeline, plan, pipeline.hops + each).makespan for each in noise]
        assert min(makespans) < seconds < max(makespans) and max(makespans) - min(makespans) > 3


def test_the_released_paths_of_case_a_break_the_capacity_of_a_relay():
    pipeline = instance("A")
    plan = Plan.of_slots(pipeline, released("A", "skippipe"))
    with pytest.raises(PlanError, match="TC1: 8 microbatches choose node 4, at most 6 may"):
        plan.check(pipeline)
    chosen = Counter(node for path in plan.paths for node in path)
    assert {node for node, count in chosen.items() if count > 6} == {4}


def test_the_shipped_schedule_of_case_c():
    """One path a data node, which its three slots share; with m = 6 all microbatches are in flight at once."""
    pipeline, shipped = instance("C"), released("C", "skippipe")[::3]
    assert shipped == [(14, 6, 12), (15, 17, 5), (7, 13, 19), (1, 18, 2), (8, 16, 9)]
    round_trips = [pipeline.round_trip(6 * d, path) for d, path in enumerate(shipped)]
    assert round_trips == pytest.approx([8.137, 9.504, 14.374, 12.296, 15.142], abs=0.001)
    plan = Plan.of_slots(pipeline, shipped)
    assert plan == Plan.of_slots(pipeline, released("C", "skippipe"))
    assert replay(pipeline, plan).makespan == pytest.approx(33.314, abs=0.001)
    roomy = instance("C", memory=6)
    assert replay(roomy, Plan.of_slots(roomy, shipped)).makespan == pytest.approx(19.1, abs=0.05)


@given(instances(), st.sampled_from(DISPATCH_RULES))
@settings(max_examples=30, deadline=None)
def test_a_microbatch_that_is_alone_takes_its_round_trip(pipeline, rule):
    """Nor does it wait for itself, if nodes are not busy after an operation, when it may come back at once."""
    groups = (pipeline.groups[0][:1], *pipeline.groups[1:])
    pipeline = replace(pipeline, groups=groups, microbatches=1, gap=0.0, launch_gap=0.0)
    plan = replace(blind(pipeline, np.random.default_rng(0)), order=rule)
    start, path = pipeline.groups[0][0], plan.paths[0]
    way = (start, *path, start)
    hops = sum(pipeline.hops[a, b] + pipeline.hops[b, a] for a, b in itertools.pairwise(way))
    work = (1 + pipeline.head + 1.5) * pipeline.forward[start] + 2.5 * pipeline.forward[list(path)].sum()
    played = replay(pipeline, plan)
    assert played.makespan == pytest.approx(hops + work, abs=1e-9)
    assert played.makespan == pipeline.round_trip(0, path)
    assert played.waiting == 0


WHOLE = st.integers(1, 8).map(lambda n: n / 8)


@given(st.integers(1, 5), WHOLE, WHOLE, st.sampled_from([0.0, 0.125]), st.sampled_from(DISPATCH_RULES))
@settings(max_examples=30, deadline=None)
def test_far_nodes_in_closed_form(microbatches, hop, forward, gap, rule):
    """Hops so long that nothing that moves out meets what comes back: backward passes queue, once for all nodes."""
    hop += 50
    wide = ring(microbatches, microbatches, hop, gap, forward)
    round_trip = 6 * hop + (2.75 + 2 * 2.5) * forward
    want = round_trip + (microbatches - 1) * (1.5 * forward + gap)
    assert replay(wide, Plan.of_slots(wide, [(1, 2)], rule)).makespan == pytest.approx(want, abs=1e-9)
    narrow = ring(microbatches, 1, hop, gap, forward)
    want = microbatches * round_trip + (microbatches - 1) * gap
    assert replay(narrow, Plan.of_slots(narrow, [(1, 2)], rule)).makespan == pytest.approx(want, abs=1e-9)


@given(instances(), st.sampled_from(DISPATCH_RULES), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_what_happens_in_a_replay_is_possible(pipeline, rule, seed):
    plan = replace(blind(pipeline, np.random.default_rng(seed)), order=rule)
    played = replay(pipeline, plan)
    tasks, P = played.tasks, pipeline.visits
    ends = tasks.set_index(["microbatch", "position"])["end"]
    assert sorted(ends.index) == [(j, k) for j in range(pipeline.count) for k in range(2 * P + 1)]
    assert played.makespan == ends.max()
    previous = {b: a for chain in pipeline.chains for a, b in itertools.pairwise(chain)}
    for task in tasks.itertuples():
        way = pipeline.itinerary(task.microbatch, plan.paths[task.microbatch])
        factor = 1.0 if task.position < P else pipeline.head if task.position == P else 1.5
        assert task.node == way[task.position]
        assert task.kind == ("forward" if task.position < P else "loss" if task.position == P else "backward")
        assert task.end - task.start == pytest.approx(factor * pipeline.forward[task.node], abs=1e-9)
        if task.position:
            came = ends[task.microbatch, task.position - 1] + pipeline.hops[way[task.position - 1], task.node]
        else:
            came = ends[previous[task.microbatch], 2 * P] if task.microbatch in previous else 0.0
        assert task.ready == pytest.approx(came, abs=1e-9) and task.start >= task.ready
    for _, line in tasks.groupby("node"):
        line = line.sort_values("start", kind="stable")
        gaps = np.where(line["position"] == 0, pipeline.launch_gap, pipeline.gap)[:-1]
        assert (line["start"].to_numpy()[1:] >= line["end"].to_numpy()[:-1] + gaps - 1e-9).all()
        held = line["position"].map(lambda k: (k < P) - (k > P)).cumsum()
        assert held.between(0, pipeline.memory).all()


@given(instances(), st.sampled_from(DISPATCH_RULES))
@settings(max_examples=20, deadline=None)
def test_the_order_of_a_replay_replays_it(pipeline, rule):
    first = replay(pipeline, replace(blind(pipeline, np.random.default_rng(0)), order=rule))
    paths = blind(pipeline, np.random.default_rng(0)).paths
    again = replay(pipeline, Plan(paths, first.order()))
    assert again.makespan == first.makespan
    keys = ["microbatch", "position"]
    assert again.tasks.sort_values(keys, ignore_index=True).equals(first.tasks.sort_values(keys, ignore_index=True))


def test_other_hops_than_the_planned_ones_take_another_time():
    pipeline = small()
    plan = blind(pipeline, np.random.default_rng(0))
    assert replay(pipeline, plan, pipeline.hops).makespan == replay(pipeline, plan).makespan
    slower = replay(pipeline, plan, 3 * pipeline.hops)
    assert slower.makespan == replay(replace(pipeline, hops=3 * pipeline.hops), plan).makespan
    assert slower.makespan > replay(pipeline, plan).makespan


def test_slots_take_the_microbatches_by_turns_of_neighbours():
    pipeline = small(microbatches=5, memory=3)
    assert pipeline.chains == ((0, 1), (2, 3), (4,), (5, 6), (7, 8), (9,))
    assert [pipeline.data_node(j) for j in (0, 4, 5, 9)] == [0, 0, 1, 1]
    assert (pipeline.slots, pipeline.capacity, pipeline.count) == (3, 6, 10)
    assert small(microbatches=2, memory=3).slots == 2
    assert pipeline.skipped == 0.25 and pipeline.itinerary(5, (2, 6)) == (1, 2, 6, 1, 6, 2, 1)


GOOD = ((2, 4), (2, 4), (3, 6), (3, 6))


@pytest.mark.parametrize(
    ("constraint", "paths", "fields"),
    [
        ("visits", ((2,), *GOOD[1:]), {}),
        ("each stage once", ((2, 3), *GOOD[1:]), {}),
        ("ahead", GOOD, {"rules": PathRules(3, ahead=1)}),
        ("lag", ((6, 2), *GOOD[1:]), {}),
        ("swaps", ((4, 2), *GOOD[1:]), {"rules": PathRules(3, swaps=0)}),
        ("lags", ((6, 2), *GOOD[1:]), {"rules": PathRules(3, lag=2, lags=1)}),
        ("shared", ((2, 4), (2, 6), *GOOD[2:]), {"memory": 1}),
        ("TC1", ((2, 4), (2, 4), (2, 6), (3, 6)), {}),
        ("TC1", GOOD, {"relay_limit": 1, "memory": 4, "microbatches": 1}),
        ("relays", ((2, 1), *GOOD[1:]), {}),
        ("relays", ((2, 8), *GOOD[1:]), {}),
        ("3 paths for 4 microbatches", GOOD[:3], {}),
    ],
)
def test_a_broken_constraint_is_named(constraint, paths, fields):
    pipeline = small(**fields)
    if fields.get("microbatches") == 1:
        paths = ((2, 4), (2, 6))
    with pytest.raises(PlanError, match=rf"^{constraint}\b"):
        Plan(paths).check(pipeline)
    with pytest.raises(PlanError, match=rf"^{constraint}\b"):
        replay(pipeline, Plan(paths))


def test_what_breaks_no_constraint_is_accepted():
    Plan(GOOD).check(small())
    Plan(((4, 2), (6, 4), (2, 7), (3, 6))).check(small(rules=PathRules(3, swaps=1, lags=1)))
    Plan(((2, 4), (2, 7), *GOOD[2:])).check(small(memory=1, rules=PathRules(3, swaps=1, shared=False)))


def ordered() -> dict[int, tuple]:
    pipeline = small()
    return replay(pipeline, Plan(GOOD)).order()


def test_orders_that_break_a_constraint_are_named():
    pipeline, order = small(memory=2), ordered()
    Plan(GOOD, order).check(pipeline)
    faults = [
        ({**order, 2: order[2][:-1]}, "order: node 2 is given other operations than its 4"),
        ({**order, 2: (*order[2][:-1], order[2][0])}, "order: node 2"),
        ({node: line for node, line in order.items() if node != 4}, "order: node 4"),
        ({**order, 5: order[4]}, "order: node 5 is given other operations than its 0"),
        ({**order, 8: order[4][:1]}, "order: node 8"),
        ("lifo", "unknown rule 'lifo'"),
    ]
    for wrong, message in faults:
        with pytest.raises(PlanError, match=message):
            Plan(GOOD, wrong).check(pipeline)
    one = small(memory=1, rules=PathRules(3, shared=False))
    forwards_first = {**order, 0: ((0, 0), (1, 0), (0, 3), (1, 3), (0, 6), (1, 6))}
    with pytest.raises(PlanError, match="memory: node 0 would hold 2 microbatches when it takes 1, at most 1 fit"):
        Plan(GOOD, forwards_first).check(one)


def test_an_order_in_which_nodes_wait_for_each_other_is_refused():
    paths = ((2, 4), (4, 2), (3, 6), (3, 6))
    pipeline = small()
    order = replay(pipeline, Plan(paths)).order()
    crossed = {  # relay 2 waits for microbatch 1 to come from relay 4, which waits for microbatch 0 to come from 2
        2: ((1, 2), (0, 1), (1, 4), (0, 5)),
        4: ((0, 2), (1, 1), (0, 4), (1, 5)),
    }
    plan = Plan(paths, order | crossed)
    plan.check(pipeline)
    with pytest.raises(PlanError, match=r"wait for each other.*\{.*2: \(1, 2\).*4: \(0, 2\).*\}"):
        replay(pipeline, plan)
    back_to_front = Plan(paths, order | {2: tuple(reversed(order[2]))})
    with pytest.raises(PlanError, match="wait for each other"):
        replay(pipeline, back_to_front)


def test_as_many_paths_as_slots_or_data_nodes():
    pipeline = small()
    assert Plan.of_slots(pipeline, [(2, 4), (3, 6)]).paths == GOOD
    assert Plan.of_slots(pipeline, GOOD).paths == GOOD
    with pytest.raises(PlanError, match="3 paths: give one for each of 4 slots or 2 nodes"):
        Plan.of_slots(pipeline, GOOD[:3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"microbatches": 0}, "microbatches must be at least 1, not 0"),
        ({"memory": -1}, "memory must be at least 1, not -1"),
        ({"gap": -0.5}, "must not be negative, not .*-0.5"),
        ({"forward": 0.0}, "forward must be positive seconds.*0.0"),
        ({"forward": np.ones(8)}, "one number or one of 9 nodes"),
        ({"forward": np.nan}, "forward.*nan"),
        ({"hops": np.ones((9, 8))}, r"hops.*\(9, 8\)"),
        ({"hops": np.full((9, 9), np.inf)}, "hops"),
        ({"hops": -np.ones((9, 9))}, "hops"),
        ({"groups": ((0, 1), (2, 2))}, "different nodes 0 to 8.*2, 2"),
        ({"groups": ((0, 1), (2, 9))}, "different nodes 0 to 8.*9"),
        ({"groups": ((0, 1), (2, -1))}, "different nodes 0 to 8.*-1"),
        ({"groups": ((0, 1),)}, "two or more groups"),
        ({"groups": ((0, 1), ())}, "two or more groups"),
        ({"rules": PathRules(5)}, "visits=5 must be at most the number of stages, 4"),
        ({"relay_limit": 1}, "8 visits of relays do not fit into 6 places"),
    ],
)
def test_wrong_instances_name_the_value(fields, message):
    with pytest.raises(ConfigError, match=message):
        small(**fields)


@pytest.mark.parametrize("fields", [{"visits": 1}, {"visits": 3, "ahead": 0}, {"visits": 3, "lag": -1}])
def test_wrong_rules_name_the_values(fields):
    name, value = list(fields.items())[-1]
    with pytest.raises(ConfigError, match=f"{name} .*must be at least 1|{name}={value}"):
        PathRules(**fields)


def test_rules_that_no_order_keeps_draw_none():
    with pytest.raises(PlanError, match="no order of 4 of 3 stages"):
        PathRules(4).draw(3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("hops", "message"),
    [
        (
            np.ones((2, 2)),
            r"hops must be a square matrix of seconds, from each of 3 nodes to each, not of shape \(2, 2\)",
        ),
        (np.ones(3), r"not of shape \(3,\)"),
        (np.ones((3, 3, 1)), "not of shape"),
        ([[0, 1, 1], [1, 0, -2], [1, 1, 0]], r"hops must be finite seconds, 0 or more, .*, not -2.0 from 1 to 2"),
        ([[0, 1, 1], [1, 0, 1], [np.inf, 1, 0]], "not inf from 2 to 0"),
        ([[0, np.nan, 1], [1, 0, 1], [1, 1, 0]], "not nan from 0 to 1"),
    ],
)
def test_hops_that_are_no_seconds_are_refused(hops, message):
    pipeline = Pipeline(((0,), (1,), (2,)), 1.0 - np.eye(3), 1.0, PathRules(3), 2, 2)
    plan = Plan(((1, 2), (1, 2)))
    with pytest.raises(ConfigError, match=message):
        replay(pipeline, plan, hops)
    if np.shape(hops) == (3, 3):
        with pytest.raises(ConfigError, match=message):
            replace(pipeline, hops=hops)
    assert replay(pipeline, plan, pipeline.hops.tolist()).makespan == replay(pipeline, plan).makespan


def test_the_digest_changes_with_all_that_decides_and_nothing_else():
    pipeline = Pipeline(((0,), (1,), (2,)), 1.0 - np.eye(3), 1.0, PathRules(3), 2, 2)
    same = replace(pipeline, groups=([0], [1], [2]), hops=pipeline.hops + 1e-9, forward=np.ones(3))
    assert same.digest == pipeline.digest and len(pipeline.digest) == 20
    changes = [{"microbatches": 3}, {"memory": 1}, {"head": 0.5}, {"backward": 1.0}, {"gap": 0.2}, {"launch_gap": 0.1}]
    changes += [{"relay_limit": 6}, {"forward": 1.1}, {"hops": pipeline.hops + 2e-6}, {"groups": ((0,), (2,), (1,))}]
    changes += [
        {"rules": PathRules(3, **more)} for more in ({"ahead": 3}, {"swaps": 1}, {"lags": 1}, {"shared": False})
    ]
    assert len({pipeline.digest, *(replace(pipeline, **change).digest for change in changes)}) == 1 + len(changes)
