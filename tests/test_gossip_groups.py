"""Who meets whom: every matching is a partition, the authors' draws are theirs, and averaging does what is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmbook.errors import ConfigError
from swarmbook.methods.gossip_groups import (
    MATCHINGS,
    deal,
    mixing,
    partners,
    random_groups,
    released_groups,
)
from swarmbook.methods.routing import in_order, permuted_replicas, released_route

RNG = np.random.default_rng(0)


@given(
    st.sampled_from(sorted(MATCHINGS)), st.sampled_from([(2, 8), (2, 16), (4, 16), (3, 9), (8, 8)]), st.integers(0, 9)
)
def test_every_replica_is_in_one_group(name, sizes, step):
    size, replicas = sizes
    groups = MATCHINGS[name](replicas, step, np.random.default_rng(step), size)
    assert groups.shape == (replicas // size, size)
    assert sorted(groups.ravel().tolist()) == list(range(replicas))


# What the released code draws for 8 replicas.
@pytest.mark.parametrize(
    ("step", "pairs"),
    [
        (50, [(3, 5), (1, 2), (0, 7), (6, 4)]),
        (100, [(5, 7), (1, 3), (0, 6), (4, 2)]),
        (150, [(4, 1), (6, 3), (7, 5), (0, 2)]),
    ],
)
def test_released_pairs(step, pairs):
    assert [tuple(pair) for pair in released_groups(8, step).tolist()] == pairs


def test_released_groups_of_four_are_cut_from_the_permutation_with_a_stride():
    order = np.random.default_rng(51).permutation(8)
    np.testing.assert_array_equal(released_groups(8, 50, size=4), [order[0::2], order[1::2]])


# What the released code draws for 4 replicas in 2 stages: where each replica's c-th sequence goes on.
@pytest.mark.parametrize(("c", "to"), [(0, [0, 1, 2, 3]), (1, [3, 2, 1, 0]), (2, [3, 1, 2, 0])])
def test_released_routes(c, to):
    cells = released_route(4, 2, 3)
    assert cells[1, :, c].tolist() == [[replica, 1] for replica in to]
    np.testing.assert_array_equal(released_route(4, 2, 1, processed=c), cells[:, :, c : c + 1])


def test_released_routes_compose_over_stages():
    """At the boundary after stage s it is the replica that holds the microbatch, not its home, that sends it on."""
    cells = released_route(5, 3, 4, processed=7)
    for m in range(4):
        first, second = (np.random.default_rng((7 + m) * 3 + s + 1).permutation(5) for s in (0, 1))
        for home in range(5):
            assert cells[:, home, m].tolist() == [[home, 0], [first[home], 1], [second[first[home]], 2]]


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
def test_random_routes_load_every_cell_alike(replicas, stages, microbatches, seed):
    for cells in (
        permuted_replicas(replicas, stages, microbatches, np.random.default_rng(seed)),
        released_route(replicas, stages, microbatches, processed=seed),
    ):
        assert cells.shape == (stages, replicas, microbatches, 2)
        np.testing.assert_array_equal(cells[0], in_order(replicas, stages, microbatches, RNG)[0])
        np.testing.assert_array_equal(cells[..., 1], in_order(replicas, stages, microbatches, RNG)[..., 1])
        for m in range(microbatches):  # also microbatch by microbatch
            assert (np.sort(cells[:, :, m, 0], axis=1) == np.arange(replicas)).all()


@pytest.mark.parametrize(("replicas", "stages"), [(4, 1), (1, 3)])
def test_without_choice_the_random_route_is_in_order(replicas, stages):
    np.testing.assert_array_equal(permuted_replicas(replicas, stages, 2, RNG), in_order(replicas, stages, 2, RNG))


def test_random_routes_reach_all_replicas_alike():
    cells = permuted_replicas(4, 3, 4000, np.random.default_rng(1))
    for position in (1, 2):
        for home in range(4):
            counts = np.bincount(cells[position, home, :, 0], minlength=4)
            assert (abs(counts - 1000) < 5 * np.sqrt(1000 * 0.75)).all()


def test_all_perfect_matchings_are_equally_likely():
    rng, seen = np.random.default_rng(2), {}
    for _ in range(3000):
        key = frozenset(frozenset(pair) for pair in random_groups(4, 0, rng).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 3 and all(abs(count - 1000) < 5 * np.sqrt(2000 / 3) for count in seen.values())


@pytest.mark.parametrize(("size", "replicas", "rounds"), [(2, 16, 4), (4, 16, 2), (3, 27, 3), (8, 8, 1)])
def test_a_hypercube_of_averages_is_the_exact_mean(size, replicas, rounds):
    """In log R / log size rounds and not before; and again from any round on."""
    steps = [mixing(MATCHINGS["hypercube"](replicas, step, RNG, size)) for step in range(2 * rounds)]
    mean = np.full((replicas, replicas), 1 / replicas)
    for start in range(rounds):
        product = np.eye(replicas)
        for weights in steps[start : start + rounds]:
            assert abs(product - mean).max() > 0.01
            product = weights @ product
        np.testing.assert_allclose(product, mean, atol=1e-12)


def test_random_pairs_halve_the_variance_of_many_replicas():
    """For N of them (N - 2) / (2 (N - 1)) of it are left on average."""
    rng, left = np.random.default_rng(3), []
    for _ in range(2000):
        values = rng.standard_normal(8)
        left.append(np.var(mixing(random_groups(8, 0, rng)) @ values) / np.var(values))
    assert abs(np.mean(left) - (8 - 2) / (2 * (8 - 1))) < 5 * np.std(left) / np.sqrt(len(left))


def test_who_can_hear_of_whom():
    """Two rounds of the ring join four replicas, R / 2 rounds all of them; fixed pairs stay among themselves."""
    for name, rounds, reached in (("ring", 2, 4), ("ring", 4, 8), ("fixed", 20, 2)):
        product = np.eye(8)
        for step in range(rounds):
            product = mixing(MATCHINGS[name](8, step, RNG)) @ product
        assert ((product > 0).sum(1) == reached).all()


@pytest.mark.parametrize("name", MATCHINGS)
def test_partners_are_mutual(name):
    groups = MATCHINGS[name](8, 1, np.random.default_rng(4))
    partner = partners(groups)
    assert (partner[partner] == np.arange(8)).all() and (partner != np.arange(8)).all()
    values = np.random.default_rng(5).standard_normal(8)
    np.testing.assert_allclose(mixing(groups) @ values, (values + values[partner]) / 2)


@pytest.mark.parametrize("name", MATCHINGS)
def test_nobody_is_left_over(name):
    with pytest.raises(ConfigError, match=f"{name}.* 7 replicas into groups of 2: give a number"):
        MATCHINGS[name](7, 0, RNG)
    with pytest.raises(ConfigError, match="2 replicas into groups of 4"):
        MATCHINGS[name](2, 0, RNG, 4)


def test_a_hypercube_has_a_power_of_replicas():
    with pytest.raises(ConfigError, match="6 replicas: .* power of size=2, such as 4 or 8"):
        MATCHINGS["hypercube"](6, 0, RNG)


def test_groups_of_three_have_no_partner():
    with pytest.raises(ValueError, match=r"shape \[2, 3\] are not pairs"):
        partners(MATCHINGS["fixed"](6, 0, RNG, 3))


def test_dealt_groups_are_those_of_each_step():
    dealt = deal("random", 8, 3, np.random.default_rng(6), size=4)
    rng = np.random.default_rng(6)
    np.testing.assert_array_equal(dealt, [random_groups(8, step, rng, 4) for step in range(3)])
    np.testing.assert_array_equal(deal("ring", 4, 3, RNG), [[[0, 1], [2, 3]], [[1, 2], [3, 0]], [[0, 1], [2, 3]]])
    with pytest.raises(ConfigError, match="unknown matching 'rnig': did you mean 'ring'"):
        deal("rnig", 4, 1, RNG)
