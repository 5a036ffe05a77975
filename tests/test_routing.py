"""Routes as arrays of cells; paths that skip and swap keep their constraints and are drawn evenly."""

from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from swarmbook.methods.routing import (
    ROUTES,
    blind_paths,
    deal,
    in_order,
    layer_drop,
    planned,
    random_paths,
    side_by_side,
    swapped_ends,
)

RNG = np.random.default_rng(0)


def test_in_order_stays_on_its_replica():
    cells = in_order(3, 4, 2, RNG)
    assert cells.shape == (4, 3, 2, 2)
    assert (cells[:, 1, :, 0] == 1).all()
    assert cells[:, 2, 1, 1].tolist() == [0, 1, 2, 3]


def test_swapped_ends_is_the_papers_order():
    cells = swapped_ends(2, 6, 4, RNG)[..., 1]
    for m in (0, 2):
        assert cells[:, 0, m].tolist() == [0, 1, 2, 3, 4, 5]
    for m in (1, 3):  # released code: 0,2,1,3,...,s,s-1,head with stages counted from 1
        assert cells[:, 1, m].tolist() == [1, 0, 2, 3, 5, 4]


@pytest.mark.parametrize("name", sorted(set(ROUTES) - {"planned", "LayerDrop"}))
def test_every_cell_is_visited_equally_often(name):
    cells = ROUTES[name](2, 6, 4, RNG).reshape(-1, 2)
    found, counts = np.unique(cells[cells[:, 1] >= 0], axis=0, return_counts=True)
    assert (counts == 4).all() and (found[:, 1] < 6).sum() == 12


def test_random_replicas_end_at_the_head_of_the_last_stage():
    cells = ROUTES["random replicas"](8, 3, 2, np.random.default_rng(1))
    assert cells.shape == (4, 8, 2, 2) and (cells[..., 1] == np.arange(4)[:, None, None]).all()
    assert (cells[3, ..., 0] == cells[2, ..., 0]).all() and (cells[0, ..., 0] == np.arange(8)[:, None]).all()
    for s in (1, 2):
        for m in range(2):
            assert sorted(cells[s, :, m, 0]) == list(range(8))
        assert (cells[s, :, 0, 0] != cells[s, :, 1, 0]).any() and (cells[s, ..., 0] != cells[s - 1, ..., 0]).any()


def test_routes_of_several_runs_lie_side_by_side():
    order, hops = (ROUTES[name](3, 2, 2, RNG) for name in ("in order", "random replicas"))
    longer = np.concatenate([order, order])  # twice through all stages
    cells = side_by_side([order, hops, longer], 2)
    assert cells.shape == (5, 9, 2, 2)
    for i, (own, P) in enumerate([(order, 2), (hops, 2), (longer, 4)]):
        part = cells[:, 3 * i : 3 * i + 3] - [3 * i, 0]
        assert np.array_equal(part[:P], own[:P]) and (part[P:4, ..., 1] == -1).all()
        assert (part[4, ..., 1] == 2).all()
        assert np.array_equal(part[4, ..., 0], own[-1, ..., 0])


@pytest.mark.parametrize(("stages", "microbatches"), [(3, 4), (6, 3)])
def test_swapped_ends_refuses_what_it_cannot_swap(stages, microbatches):
    with pytest.raises(ValueError, match=f"stages={stages}, microbatches={microbatches}"):
        swapped_ends(1, stages, microbatches, RNG)


def paths_of(cells, replica=0):
    """The stages that each microbatch of a replica visits, in order."""
    stages = cells[:, replica, :, 1]
    assert (cells[:, replica, :, 0] == replica).all()
    return [tuple(column[column >= 0].tolist()) for column in stages.T]


def jumps(path):
    """Lags of the visits below the highest stage so far, and steps above it of the others; the start is at stage 0."""
    lags, steps, frontier = [], [], 0
    for stage in path:
        (lags if stage < frontier else steps).append(abs(stage - frontier))
        frontier = max(frontier, stage)
    return lags, steps


def allowed(stages, visits, swaps, reach, keep_first=True):
    """All paths under the rules of SkipPipe's released code, by trying every order of every choice."""
    found = set()
    for path in permutations(range(stages), visits):
        lags, steps = jumps(path)
        if (path[0] == 0 or not keep_first) and len(lags) <= swaps and max([0, *lags]) <= 1 and max(steps) <= reach:
            found.add(path)
    return found


@pytest.mark.parametrize(
    ("stages", "visits", "reach", "count", "ascending"),
    [(4, 3, 4, 5, 3), (6, 4, 4, 22, 10), (6, 4, 3, 20, 10), (8, 6, 4, 111, 21)],
)
def test_all_paths_that_the_released_rules_allow_are_drawn_and_no_others(stages, visits, reach, count, ascending):
    drawn = {swaps: set() for swaps in (0, 1, 2)}
    for seed in range(60):
        for swaps, paths in drawn.items():
            rng = np.random.default_rng(seed)
            paths |= set(paths_of(random_paths(1, stages, 60, rng, visits=visits, swaps=swaps, reach=reach)))
    assert len(drawn[0]) == ascending and all(list(path) == sorted(path) for path in drawn[0])
    union = drawn[0] | drawn[1] | drawn[2]
    assert union == allowed(stages, visits, 2, reach) and len(union) == count


@given(st.data())
def test_random_paths_keep_their_constraints(data):
    stages = data.draw(st.integers(2, 9))
    visits = data.draw(st.integers(2, stages))
    swaps, lag = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    keep_first = data.draw(st.booleans())
    reach = data.draw(st.sampled_from([None, stages - visits + 1]))  # as far as the last of `visits` stages may be
    microbatches = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    limits = {"visits": visits, "swaps": swaps, "swap_lag": lag, "reach": reach, "keep_first": keep_first}
    paths = paths_of(random_paths(1, stages, microbatches, rng, **limits))
    assert len(paths) == microbatches
    for path in paths:
        assert len(set(path)) == len(path) == visits and set(path) <= set(range(stages))
        assert path[0] == 0 or not keep_first
        lags, steps = jumps(path)
        assert len(lags) <= swaps and set(lags) <= {lag} and max(steps) <= (reach or stages)
        others = [stage for i, stage in enumerate(path) if stage >= max(path[: i + 1])]
        assert others == sorted(others)
    used = Counter(stage for path in paths for stage in path)
    counts = {used[stage] for stage in range(int(keep_first), stages)}
    assert max(counts) - min(counts) <= 1


@given(st.integers(2, 8), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2**32))
def test_a_path_swaps_as_often_as_it_has_room_for(stages, lag, swaps, seed):
    """Whole paths: disjoint stretches of lag + 1 of the relays."""
    paths = paths_of(random_paths(1, stages, 3, np.random.default_rng(seed), swaps=swaps, swap_lag=lag))
    for path in paths:
        assert len(jumps(path)[0]) == min(swaps, (stages - 1) // (lag + 1))


@pytest.mark.parametrize(("swaps", "lag"), [(1, 1), (2, 1), (1, 3)])
def test_all_swaps_are_equally_likely(swaps, lag):
    paths = Counter(paths_of(random_paths(1, 7, 3000, np.random.default_rng(1), swaps=swaps, swap_lag=lag)))
    wanted = [path for path in permutations(range(7)) if path[0] == 0 and jumps(path)[0] == [lag] * swaps]
    wanted = [path for path in wanted if len([i for i in range(6) if path[i] > path[i + 1]]) == swaps]  # one stage late
    assert set(paths) == set(wanted) and chisquare(list(paths.values())).pvalue > 1e-3


@pytest.mark.parametrize(("sizes", "members"), [([3] * 5, 5), ([2, 3] * 4, 5), ([0, 4], 4), ([1] * 7, 3), ([], 3)])
def test_hands_are_dealt_evenly(sizes, members):
    used = Counter()
    for seed in range(20):
        hands = deal(range(10, 10 + members), sizes, np.random.default_rng(seed))
        assert [len(hand) for hand in hands] == list(sizes)
        count = Counter(stage for hand in hands for stage in hand)
        assert max(count.values(), default=0) - min(count[10 + i] for i in range(members)) <= 1
        used += count
    assert set(used) <= set(range(10, 10 + members))


def test_every_hand_of_a_deal_is_equally_likely_to_be_any_set():
    deals = [deal(range(5), [3] * 4, np.random.default_rng(seed)) for seed in range(2000)]
    for k in range(4):
        sets = Counter(frozenset(hands[k]) for hands in deals)
        assert len(sets) == 10 and chisquare(list(sets.values())).pvalue > 1e-3


def test_a_fraction_of_a_visit_is_a_mean():
    paths = paths_of(random_paths(1, 6, 30, RNG, visits=4.5))
    assert Counter(map(len, paths)) == {4: 15, 5: 15}
    assert Counter(stage for path in paths for stage in path) == {0: 30} | dict.fromkeys(range(1, 6), 21)


def test_blind_paths_know_no_order_and_no_first_stage():
    paths = paths_of(blind_paths(1, 4, 4000, np.random.default_rng(2), visits=2))
    counts = Counter(paths)
    assert set(counts) == set(permutations(range(4), 2)) and chisquare(list(counts.values())).pvalue > 1e-3
    assert set(Counter(stage for path in paths for stage in path).values()) == {2000}


def test_the_first_stage_is_one_like_any_other_if_it_need_not_be_kept():
    paths = paths_of(random_paths(1, 4, 600, np.random.default_rng(3), visits=2, keep_first=False))
    assert set(paths) == set(combinations(range(4), 2))
    swapped = paths_of(random_paths(1, 4, 60, np.random.default_rng(3), swaps=1, keep_first=False))
    assert set(swapped) == {(1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)}


def kept_by_layer_drop(stages, **chances):
    """Which stages the microbatches of 500 steps visit, bool [N, S]; each path goes up and stays on its replica."""
    rng, kept = np.random.default_rng(5), []
    for _ in range(500):
        cells = layer_drop(2, stages, 4, rng, **chances)
        assert (cells[..., 0] == np.arange(2)[:, None]).all()
        for path in np.moveaxis(cells[..., 1], 0, -1).reshape(8, -1):
            visited = path[path >= 0]
            assert len(visited) and (np.diff(visited) > 0).all()
            kept.append(np.isin(np.arange(stages), visited))
    return np.array(kept)


@pytest.mark.parametrize(("rising", "chances"), [(False, [0.3] * 5), (True, [0.06, 0.12, 0.18, 0.24, 0.3])])
def test_layer_drop_skips_each_stage_by_its_chance_and_apart_from_the_others(rising, chances):
    kept = kept_by_layer_drop(5, drop=0.3, rising=rising)
    assert abs((~kept).mean(0) - chances).max() < 4 * np.sqrt(0.3 * 0.7 / len(kept))
    assert abs(np.corrcoef(kept.T) - np.eye(5)).max() < 4 / np.sqrt(len(kept))


def test_layer_drop_leaves_every_microbatch_a_stage():
    kept = kept_by_layer_drop(2, drop=0.9)
    alone = 0.81  # of the microbatches skip both, and visit one of them
    expected = len(kept) * np.array([0.01, 0.09 + alone / 2, 0.09 + alone / 2])
    found = [kept.all(1).sum(), (kept == [True, False]).all(1).sum(), (kept == [False, True]).all(1).sum()]
    assert sum(found) == len(kept) and chisquare(found, expected).pvalue > 0.001
    assert kept_by_layer_drop(3, drop=0.0).all()
    for drop in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"drop={drop} must be at least 0 and below 1"):
            layer_drop(1, 4, 2, RNG, drop=drop)


def test_planned_paths_are_followed_in_turn_on_every_replica():
    paths = ((0, 1, 2, 3), (0, 1, 5, 4), (0, 4, 3, 5))
    cells = planned(2, 6, 7, RNG, paths=paths)
    for r in range(2):
        assert paths_of(cells, r) == [paths[m % 3] for m in range(7)]


def test_microbatches_visit_a_stage_together_where_they_can():
    for stages in (6, 12):
        cells = random_paths(1, stages, 30, RNG, visits=stages / 2)
        assert all(set(cells[p, 0, :, 1]) <= {p, -1} for p in range(stages))
    cells = planned(1, 4, 3, RNG, paths=((3, 0), (3, 1), (2, 0)))  # where it lies by stage, stage 0 is visited twice
    assert cells[..., 1].squeeze(1).tolist() == [[3, 3, 2], [0, 1, 0]]


def test_paths_that_visit_all_in_order_are_the_route_in_order():
    for cells in (planned(2, 5, 3, RNG, paths=[range(5)]), random_paths(2, 5, 3, RNG)):
        assert np.array_equal(cells, in_order(2, 5, 3, RNG))


@pytest.mark.parametrize(
    ("rule", "limits", "message"),
    [
        (planned, {}, "route 'planned' needs paths"),
        (planned, {"paths": ((0, 1), ())}, r"the path \(\) is not one of stages=4"),
        (planned, {"paths": ((0, 4),)}, r"the path \(0, 4\) is not one of stages=4: give some of the stages 0..3"),
        (planned, {"paths": ((0, -1),)}, r"the path \(0, -1\)"),
        (planned, {"paths": ((0, 2, 2),)}, "each once at most"),
        (random_paths, {"visits": 5}, "visits=5 must be from 1 to stages=4"),
        (blind_paths, {"visits": 4.5}, "visits=4.5 must be from 1 to stages=4"),
        (random_paths, {"visits": 2, "reach": 1}, "reach=1 leaves no paths that visit all stages equally often"),
    ],
)
def test_paths_that_cannot_be_are_refused(rule, limits, message):
    with pytest.raises(ValueError, match=message):
        rule(1, 4, 6, RNG, **limits)
