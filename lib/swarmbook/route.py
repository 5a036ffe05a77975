"""Which (replica, stage) cells a microbatch visits, and in what order.

A route is an int array [P, R, M, 2]: at position p, microbatch m that started on replica r visits cell
(replica, stage); stage -1 passes it on unchanged. Stage S at the last position names the replica whose head takes the
loss; without it, that is its own. Gradients travel home the same way.
"""

from collections.abc import Callable, Sequence

import numpy as np

from swarmbook import matching

Rule = Callable[[int, int, int, np.random.Generator], np.ndarray]
ROUTES: dict[str, Rule] = {}


def route(name: str) -> Callable[[Rule], Rule]:
    """Register a rule (replicas, stages, microbatches, generator) -> cells [P, R, M, 2] under a name."""

    def register(rule: Rule) -> Rule:
        ROUTES[name] = rule
        return rule

    return register


@route("in order")
def in_order(replicas: int, stages: int, microbatches: int, rng: np.random.Generator) -> np.ndarray:
    """Every microbatch visits the stages of its own replica one after another."""
    cells = np.empty((stages, replicas, microbatches, 2), dtype=np.int64)
    cells[..., 0] = np.arange(replicas)[None, :, None]
    cells[..., 1] = np.arange(stages)[:, None, None]
    return cells


@route("swapped ends")
def swapped_ends(replicas: int, stages: int, microbatches: int, rng: np.random.Generator) -> np.ndarray:
    """Odd microbatches visit the first two stages, and the last two, in reverse (CheckFree+, section 4.3)."""
    if stages < 4 or microbatches % 2:
        raise ValueError(
            f"route 'swapped ends' needs at least 4 stages and an even number of microbatches, "
            f"not stages={stages}, microbatches={microbatches}"
        )
    cells = in_order(replicas, stages, microbatches, rng)
    order = np.arange(stages)
    order[[0, 1, -2, -1]] = order[[1, 0, -1, -2]]
    cells[:, :, 1::2, 1] = order[:, None, None]
    return cells


@route("random replicas")
def random_replicas(replicas: int, stages: int, microbatches: int, rng: np.random.Generator) -> np.ndarray:
    """At every boundary each microbatch goes on to a random replica, no two to the same (NoLoCo, section 3.1).

    The replica that runs the last stage takes the loss, for which the labels travel along (released code). There a
    microbatch is one sequence: `batch=1`. What a routed step sends is what a pipeline sends anyway.
    """
    cells = matching.random_replicas(replicas, stages, microbatches, rng)
    heads = cells[-1:].copy()
    heads[..., 1] = stages
    return np.concatenate([cells, heads])


def side_by_side(routes: Sequence[np.ndarray], stages: int) -> np.ndarray:
    """Routes of several runs, each [P, R, M, 2] with replicas from 0, as one route of all their replicas.

    Shorter ones wait for the others before the heads.
    """
    bodies = [cells[:-1] if (cells[-1, ..., 1] == stages).all() else cells for cells in routes]
    whole, first = [], 0
    for cells, body in zip(routes, bodies, strict=True):
        R = cells.shape[1]
        own = np.full((max(map(len, bodies)) + 1, *cells.shape[1:]), -1)
        own[..., 0] = np.arange(R)[:, None]
        own[-1, ..., 1] = stages
        own[: len(body)] = body
        own[-1:] = cells[len(body) :] if len(body) < len(cells) else own[-1:]
        own[..., 0] += first
        whole.append(own)
        first += R
    return np.concatenate(whole, axis=1)
