"""Routes as arrays of cells."""

import numpy as np
import pytest

from swarmbook.route import ROUTES, in_order, side_by_side, swapped_ends

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


@pytest.mark.parametrize("name", ROUTES)
def test_every_cell_is_visited_equally_often(name):
    cells = ROUTES[name](2, 6, 4, RNG).reshape(-1, 2)
    found, counts = np.unique(cells, axis=0, return_counts=True)
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
