"""Placements score what the released code prints, and the search is never behind it nor behind exhaustion."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from swarmbook.errors import ConfigError
from swarmbook.planning.placement import (
    EXACT,
    align,
    bottleneck,
    dtfm_score,
    evaluate,
    group_sizes,
    pipelines,
    place,
    reorder,
    seconds_between,
    shortest_tour,
)
from swarmbook.planning.placement_annealing import anneal_groups
from swarmbook.simulation.network import SKIPPIPE, SKIPPIPE_FIRST, Network

CASES = json.loads((Path(__file__).parents[1] / "papers/skippipe/released.json").read_text())["cases"]
TABLES = {"gcp": "google with slip", "gcp_nl_london_fixed": "google repaired"}


def hops_of(case: dict) -> np.ndarray:
    table = TABLES.get(case["network"], "aws")
    network = Network(tuple(case["node_places"]), table=table, **(SKIPPIPE_FIRST if table == "aws" else SKIPPIPE))
    return network.matrix(case["samples_per_microbatch"] * case["bytes_per_sample"])


def random_hops(nodes: int, seed: int) -> np.ndarray:
    """Symmetric, of few different values as between places."""
    hops = np.random.default_rng(seed).integers(1, 12, (nodes, nodes)) / 4
    hops = np.maximum(hops, hops.T)
    np.fill_diagonal(hops, 0)
    return hops


def slow_bottleneck(costs: np.ndarray) -> float:
    """By trying all pairings of the smaller side."""
    costs = costs if costs.shape[0] <= costs.shape[1] else costs.T
    rows = range(len(costs))
    return min(
        max(costs[i, j] for i, j in zip(rows, p, strict=True))
        for p in itertools.permutations(range(costs.shape[1]), len(costs))
    )


def slow_tour(between: np.ndarray) -> float:
    rest = itertools.permutations(range(1, len(between)))
    return min(sum(between[a, b] for a, b in zip((0, *p), (*p, 0), strict=True)) for p in rest)


def length(between: np.ndarray, order: tuple[int, ...]) -> float:
    return sum(between[a, b] for a, b in zip(order, order[1:] + order[:1], strict=True))


@pytest.fixture(params=CASES)
def case(request) -> dict:
    return CASES[request.param]


def test_released_groups_score_what_the_released_code_prints(case):
    released = evaluate(case["partitions"], hops_of(case), case["forward_s"])
    assert released.score == pytest.approx(case["gcma_score"], rel=1e-13)
    assert released.score == released.data + 2 * released.pipeline


@pytest.mark.parametrize(("name", "score"), [("A", 37.970), ("A2", 38.111), ("C", None), ("B", None), ("S", None)])
def test_the_released_order_is_the_shortest_tour_but_for_two_cases(name, score):
    case = CASES[name]
    best = reorder(case["partitions"], hops_of(case), case["forward_s"])
    assert best.score == pytest.approx(score or case["gcma_score"], abs=5e-4)
    assert best.groups[0] == tuple(case["partitions"][0])
    assert sorted(best.groups) == sorted(map(tuple, case["partitions"]))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_is_never_behind_the_released_one(case, seed):
    hops = hops_of(case)
    ours = place(hops, case["partition_sizes"], np.random.default_rng(seed), case["forward_s"], trials=20_000)
    assert ours.score <= case["gcma_score"] + 1e-9
    assert [len(group) for group in ours.groups] == case["partition_sizes"]
    assert sorted(itertools.chain(*ours.groups)) == list(range(case["nodes"]))
    assert ours == evaluate(ours.groups, hops, case["forward_s"])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hundred_nodes_keep_clear_of_a_link_that_every_group_holds_at_first(seed):
    """Eight nodes at either end of a link of 132 s: hardly a swap frees all groups of it, so the score is blind."""
    hops = Network.over("twelve", 100, **SKIPPIPE).matrix(8 * 4_194_304)
    shape = group_sizes(100, 6, 4)
    dealt = place(hops, shape, np.random.default_rng(seed), trials=0)
    assert dealt.data == hops.max() > 130
    placed = place(hops, shape, np.random.default_rng(seed), trials=20_000)
    assert placed.data < 5 and max(placed.legs) < 5


def test_equal_generators_place_equally_and_others_otherwise():
    hops = hops_of(CASES["C"])
    first, again, other = (
        place(hops, [5, 3, 3, 3, 3, 3], np.random.default_rng(seed), trials=500) for seed in (0, 0, 1)
    )
    assert first == again and first.groups != other.groups


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 2, 2), (4, 1, 1, 1)])
def test_the_search_finds_the_best_of_all_placements(shape, seed):
    hops, nodes = random_hops(sum(shape), seed), range(sum(shape))
    bounds = np.cumsum((0, *shape))
    everything = {
        tuple(tuple(sorted(p[a:b])) for a, b in itertools.pairwise(bounds.tolist()))
        for p in itertools.permutations(nodes)
    }
    best = min(
        max(hops[np.ix_(group, group)].max() for group in groups)
        + 2 * sum(slow_bottleneck(hops[np.ix_(a, b)]) for a, b in zip(groups, groups[1:] + groups[:1], strict=True))
        for groups in everything
    )
    assert place(hops, shape, np.random.default_rng(seed), trials=5000).score == pytest.approx(best)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 99), st.booleans())
def test_what_the_search_keeps_count_of_is_the_score(shape, seed, slow_first):
    """The best score that annealing reports, kept up to date swap by swap, against the score from scratch."""
    rng = np.random.default_rng(seed)
    nodes = sum(shape)
    hops, forward = random_hops(nodes, seed), np.arange(nodes) * (0.5 if slow_first else 0.0)
    values, ranks = np.unique(hops + forward[:, None], return_inverse=True)
    groups = np.zeros((len(shape), max(shape)), dtype=np.int64)
    for row, dealt in zip(groups, np.split(rng.permutation(nodes), np.cumsum(shape)[:-1]), strict=True):
        row[: len(dealt)] = dealt
    best = anneal_groups(hops, ranks, values, groups, np.array(shape), 300, 1.0, 0.1, rng)
    kept = [row[:size].tolist() for row, size in zip(groups, shape, strict=True)]
    assert sorted(itertools.chain(*kept)) == list(range(nodes))
    assert best == pytest.approx(evaluate(kept, hops, forward).score)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6), st.integers(1, 30))
def test_the_bottleneck_is_that_of_all_pairings(rows, columns, seed, different):
    costs = np.random.default_rng(seed).integers(0, different, (rows, columns)) / 8
    assert bottleneck(costs) == slow_bottleneck(costs)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 10**6))
def test_no_pair_slower_than_the_bottleneck_is_needed_and_none_faster_suffices(rows, columns, seed):
    costs = np.random.default_rng(seed).random((rows, columns)) ** 3
    worst = bottleneck(costs)
    pairs = [
        int((maximum_bipartite_matching(csr_array(allowed), perm_type="column") >= 0).sum())
        for allowed in (costs <= worst, costs < worst)
    ]
    assert pairs[0] == min(rows, columns) > pairs[1]


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_the_tour_is_the_shortest_of_all(count, seed):
    between = np.random.default_rng(seed).integers(0, 40, (count, count)) / 8
    order = shortest_tour(between)
    assert order[0] == 0 and sorted(order) == list(range(count))
    assert length(between, order) == (slow_tour(between) if count > 1 else between[0, 0])


@settings(deadline=None, max_examples=10)
@given(st.integers(EXACT + 1, 17), st.integers(0, 10**6))
def test_tours_of_many_groups_cannot_be_shortened_by_one_change(count, seed):
    between = np.random.default_rng(seed).random((count, count))
    order = shortest_tour(between)
    assert order[0] == 0 and sorted(order) == list(range(count))
    reached = length(between, order)
    assert reached <= length(between, tuple(range(count)))
    for a, b in itertools.permutations(range(1, count), 2):
        moved = [*order[:a], *order[a + 1 :]]
        moved.insert(b, order[a])
        swapped = list(order)
        swapped[a], swapped[b] = order[b], order[a]
        assert min(length(between, tuple(moved)), length(between, tuple(swapped))) >= reached - 1e-9


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 3), st.integers(1, 4), st.integers(2, 5), st.integers(0, 10**6))
def test_aligned_neighbours_are_at_their_bottleneck(surplus, k, stages, seed):
    nodes = k * stages + surplus
    hops = random_hops(nodes, seed)
    dealt = np.random.default_rng(seed).permutation(nodes).tolist()
    groups = [dealt[: k + surplus], *(dealt[surplus + s * k : surplus + (s + 1) * k] for s in range(1, stages))]
    columns = align(groups, hops, 0.5)
    assert list(map(sorted, columns)) == list(map(sorted, groups))
    between = seconds_between(groups, hops, 0.5)
    routes = pipelines(columns)
    assert len(routes) == k and all(len(route) == stages for route in routes)
    for stage, (a, b) in enumerate(itertools.pairwise(zip(*routes, strict=True))):
        assert max(hops[x, y] + 0.5 for x, y in zip(a, b, strict=True)) == between[stage, stage + 1]
    wrong = align(groups, hops, 0.5, released=True)
    assert list(map(sorted, wrong)) == list(map(sorted, groups)) and wrong[0] == tuple(groups[0])


def columns_of(case: dict, groups: list[list[int]]) -> list[float]:
    """Slowest hop between neighbours in each pair of stages of the pipelines, without the way back."""
    hops = hops_of(case)
    steps = itertools.pairwise(zip(*pipelines(groups), strict=True))
    return [max(hops[a, b] for a, b in zip(left, right, strict=True)) for left, right in steps]


@pytest.mark.parametrize("name", ["A", "B1", "S"])
def test_released_and_repaired_pipelines_are_the_reference_ones_where_these_are_unambiguous(name):
    case = CASES[name]
    groups, hops = [sorted(group) for group in case["partitions"]], hops_of(case)
    as_lists = [[list(group) for group in align(groups, hops, case["forward_s"], flag)] for flag in (True, False)]
    assert as_lists == [case["partitions"], case["results"]["dtfm"]["realigned_partitions"]]


@pytest.mark.parametrize(("name", "faster"), [(name, name in ("C", "A2", "B")) for name in CASES])
def test_our_pipelines_are_never_slower_at_any_stage_than_the_reference_ones(name, faster):
    """The released matching is drawn up after its bottleneck was struck out, and can hold a slower pair than that."""
    case = CASES[name]
    realigned = case["results"]["dtfm"]["realigned_partitions"]
    ours = columns_of(case, align(case["partitions"], hops_of(case), case["forward_s"]))
    theirs, released = columns_of(case, realigned), columns_of(case, case["partitions"])
    assert (np.array(ours) <= np.array(theirs) + 1e-12).all()
    assert max(theirs) <= max(released) + 1e-12
    assert (np.array(ours) < np.array(theirs) - 1e-12).any() == faster


def test_the_inverse_of_a_rotation_by_hand():
    """Three places in a circle of fast links 0-4, 1-5, 2-3: a rotation, of which the inverse fits nowhere."""
    hops = np.full((6, 6), 9.0)
    for a, b in ((0, 4), (1, 5), (2, 3)):
        hops[a, b] = hops[b, a] = 1.0
    groups = [[0, 1, 2], [3, 4, 5]]
    assert align(groups, hops) == ((0, 1, 2), (4, 5, 3))
    assert align(groups, hops, released=True) == ((0, 1, 2), (5, 3, 4))
    assert pipelines(align(groups, hops)) == ((0, 4), (1, 5), (2, 3))


def test_forward_times_count_at_the_node_that_sends():
    hops = np.array([[0, 1, 4], [1, 0, 2], [4, 2, 0]], dtype=float)
    between = seconds_between([[0], [1], [2]], hops, np.array([10.0, 20.0, 30.0]))
    np.testing.assert_array_equal(between, [[0, 11, 14], [21, 0, 22], [34, 32, 0]])
    assert evaluate([[0], [1], [2]], hops, np.array([10.0, 20.0, 30.0])).legs == (11.0, 22.0, 34.0)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_dtfms_own_score_is_the_shortest_open_tour_and_the_slowest_exchange(seed, stages, k):
    hops, exchange = random_hops(stages * k, seed), random_hops(stages * k, seed + 1)
    groups = np.arange(stages * k).reshape(stages, k).tolist()
    paths = [
        sum(slow_bottleneck(hops[np.ix_(groups[a], groups[b])]) for a, b in itertools.pairwise(p))
        for p in itertools.permutations(range(stages))
    ]
    slowest = max(sum(exchange[a, b] for b in group) for group in groups for a in group)
    assert dtfm_score(groups, exchange, hops) == pytest.approx(slowest + 2 * min(paths))


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ((18, 4, 3), (6, 4, 4, 4)),
        ((20, 6, 4), (5, 3, 3, 3, 3, 3)),
        ((42, 8, 6), (7, *[5] * 7)),
        ((12, 4, 4), (3, 3, 3, 3)),
    ],
)
def test_published_sizes(given_, wanted):
    assert group_sizes(*given_) == wanted


@given(st.integers(1, 400), st.integers(2, 12), st.integers(2, 12))
def test_sizes_carry_all_paths_evenly_or_the_nearest_numbers_are_named(nodes, stages, path_length):
    if path_length > stages:
        with pytest.raises(ConfigError, match="path_length must be from 2 to"):
            group_sizes(nodes, stages, path_length)
        return
    valid = {
        n0 + (stages - 1) * k
        for n0 in range(1, 2000)
        for k in [n0 * (path_length - 1) // (stages - 1)]
        if k and n0 * (path_length - 1) == (stages - 1) * k
    }
    if nodes in valid:
        first, *rest = group_sizes(nodes, stages, path_length)
        assert first + sum(rest) == nodes and len(rest) == stages - 1 and len(set(rest)) == 1
        assert first * (path_length - 1) == (stages - 1) * rest[0]
    else:
        near = [*sorted(n for n in valid if n < nodes)[-1:], min(n for n in valid if n > nodes)]
        with pytest.raises(ConfigError, match=f"give {' or '.join(map(str, near))} nodes"):
            group_sizes(nodes, stages, path_length)


def test_one_group_has_nowhere_to_go():
    hops = random_hops(3, 0)
    assert place(hops, [3], np.random.default_rng(0)) == evaluate([[0, 1, 2]], hops)
    assert evaluate([[0, 1, 2]], hops).score == hops.max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda hops: place(hops, [2, 1], np.random.default_rng(0)), r"add up to the 4 nodes of hops, unlike \[2, 1\]"),
        (lambda hops: place(hops, [4, 0], np.random.default_rng(0)), r"at least 1 .* unlike \[4, 0\]"),
        (lambda hops: place(hops, [2, 2], np.random.default_rng(0), trials=-1), "trials must be at least 0, not -1"),
        (lambda hops: evaluate([[0, 1], [1, 2]], hops), "not be empty nor share a node"),
        (lambda hops: evaluate([[0, 1], []], hops), r"share a node, unlike \[\[0, 1\], \[\]\]"),
        (lambda hops: align([[0, 1], [2, 4]], hops), "nodes from 0 to 3"),
        (lambda hops: dtfm_score([[0], [1, 2]], hops, hops), r"of one size, not of \[1, 2\]"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call(random_hops(4, 0))
