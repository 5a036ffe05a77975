"""The released simulator gives what the released code printed, loses what it lost, and agrees with the replay where
nobody waits."""

from dataclasses import replace

import numpy as np
import pytest
import skippipe
from hypothesis import given, settings
from hypothesis import strategies as st
from released_simulator import LATER_IN_FULL, simulate_released

from swarmbook.errors import PlanError
from swarmbook.planning.bounds import alone
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline, Plan
from swarmbook.planning.planners import full_pipelines
from swarmbook.planning.replay import replay

RESULTS = [
    (name, method)
    for name, case in skippipe.CASES.items()
    for method, result in case["results"].items()
    if "authors_simulator" in result
]


def simulate(name: str, method: str):
    result = skippipe.CASES[name]["results"][method]
    # four slots of SkipPipe's paths on A choose node 4, although a relay has memory for three (TC1)
    limit = 8 if (name, method) == ("A", "skippipe") else None
    pipeline = skippipe.instance(name, relay_limit=limit, hops=skippipe.hops_as_released(name))
    if method == "dtfm":
        each = result["authors_microbatches"] // len(pipeline.groups[1])
        whole, plan = full_pipelines(pipeline, microbatches=each)
        return simulate_released(whole, plan.paths[::each], 0, LATER_IN_FULL)
    paths = skippipe.released(name, method)
    shared = (name, method) == ("C", "skippipe")  # planned with one path a data node
    return simulate_released(pipeline, paths[:: pipeline.slots] if shared else paths)


@pytest.mark.parametrize(("name", "method"), RESULTS)
def test_released_results(name, method):
    result = skippipe.CASES[name]["results"][method]
    found = simulate(name, method)
    assert found.makespan == pytest.approx(result["authors_simulator"], abs=1e-9)
    default = result.get("authors_microbatches", skippipe.instance(name).count)
    assert found.finished == (result.get("microbatches_finished") or default)


def test_lost_microbatches_halve_the_makespan_of_case_a():
    pipeline, paths = skippipe.instance("A"), skippipe.released("A", "dtfm_skip")
    found = simulate_released(pipeline, paths)
    assert found.finished == pipeline.count - 2
    assert 1.9 < replay(pipeline, Plan.of_slots(pipeline, paths)).makespan / found.makespan < 2.1


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["C", "B", "A2", "S"]), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_one_slot_alone_takes_its_round_trips_as_in_the_replay(name, seed, uses):
    rng = np.random.default_rng(seed)
    whole = skippipe.instance(name, memory=1, microbatches=uses)
    pipeline = alone(whole, int(rng.integers(len(whole.groups[0]))))
    order = pipeline.rules.draw(pipeline.stages, rng)
    path = tuple(int(rng.choice(pipeline.groups[stage])) for stage in order)
    found = simulate_released(pipeline, [path])
    expected = uses * pipeline.round_trip(0, path) + (uses - 1) * pipeline.gap
    assert found.makespan == pytest.approx(expected, abs=1e-4)
    assert found.makespan == pytest.approx(replay(pipeline, Plan.of_slots(pipeline, [path])).makespan, abs=1e-4)
    assert found.finished == uses


def two_slots(far: float) -> Pipeline:
    """A data node with two slots of two microbatches and two relays, of which the second is `far` seconds away."""
    hops = np.ones((3, 3))
    hops[0, 2] = hops[2, 0] = far
    return Pipeline(((0,), (1, 2)), hops, 0.5, PathRules(2), microbatches=4, memory=2)


def test_a_launch_is_lost_once_its_node_has_memory_to_spare():
    paths = [(1,), (2,)]
    assert simulate_released(two_slots(1.0), paths).finished == 4
    assert simulate_released(two_slots(30.0), paths).finished == 3
    assert (
        simulate_released(two_slots(30.0), paths).makespan
        < replay(two_slots(30.0), Plan.of_slots(two_slots(30.0), paths)).makespan
    )


def test_spacing_moves_the_first_launches():
    pipeline = replace(two_slots(1.0), microbatches=2)
    close, wide = (simulate_released(pipeline, [(1,), (2,)], spacing).makespan for spacing in (0.1, 5.0))
    assert wide == pytest.approx(5.0 + pipeline.round_trip(1, (2,)))
    assert close < wide
    assert simulate_released(pipeline, [(1,), (2,)]).makespan == close  # the node is busy with the first until then


def test_broken_paths_are_refused():
    with pytest.raises(PlanError, match="relays: node 0"):
        simulate_released(two_slots(1.0), [(1,), (0,)])
    with pytest.raises(PlanError, match="paths"):
        simulate_released(two_slots(1.0), [(1,), (2,), (1,)])


def test_a_deadlock_is_reported():
    hops = np.ones((4, 4))
    rules = PathRules(3, swaps=1)
    pipeline = Pipeline(((0, 1), (2,), (3,)), hops, 0.5, rules, microbatches=1, memory=1, relay_limit=2)
    with pytest.raises(PlanError, match="memory: nodes wait for each other"):
        simulate_released(pipeline, [(2, 3), (3, 2)])
