"""Routes as arrays of cells."""

import numpy as np
import pytest

from swarmbook.route import ROUTES, in_order, swapped_ends

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
    _, counts = np.unique(cells, axis=0, return_counts=True)
    assert (counts == 4).all() and len(counts) == 12


@pytest.mark.parametrize(("stages", "microbatches"), [(3, 4), (6, 3)])
def test_swapped_ends_refuses_what_it_cannot_swap(stages, microbatches):
    with pytest.raises(ValueError, match=f"stages={stages}, microbatches={microbatches}"):
        swapped_ends(1, stages, microbatches, RNG)
