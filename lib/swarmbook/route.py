"""Which (replica, stage) cells a microbatch visits, and in what order.

A route is an int array [P, R, M, 2]: at position p, microbatch m that started on replica r visits cell
(replica, stage); stage -1 passes it on unchanged. Gradients travel home the same way.
"""

from collections.abc import Callable

import numpy as np

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
