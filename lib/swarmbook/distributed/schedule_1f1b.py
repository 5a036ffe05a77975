"""TODO"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from swarmbook.distributed.communicator import Letter, Peers
from swarmbook.distributed.mesh import Grid

AHEAD = 4  # messages that are received before they are needed


@dataclass(frozen=True)
class Work:
    """A piece of work on one microbatch, and from which rank and to which it is passed on; None at both ends.

    slot: when it is due, if every piece took as long as any other. path: (replica, microbatch) that it started as.
    place: in the chain of pieces of that path. cell: (replica, stage) whose weights it needs.
    """

    slot: int
    kind: str  # of the methods of `Passage`
    path: tuple[int, int]
    place: int
    cell: tuple[int, int]
    rank: int
    source: int | None
    to: int | None


def works_of(cells: np.ndarray, grid: Grid, back: bool = True) -> list[Work]:
    """All that a route [P, R, M, 2] asks for, in an order in which nothing comes before what it needs.

    If every rank does its own part of the list in this order, none waits for another one in a circle. A rank alternates
    between the two directions, so that it holds activations of a few microbatches only. Without `back` the losses are
    the end.
    """
    _, R, M, _ = cells.shape
    works = [work for r in range(R) for m in range(M) for work in _chain(cells[:, r, m], (r, m), grid, back)]
    return sorted(works, key=lambda work: (work.slot, -work.place, work.path))


def _chain(visits: np.ndarray, path: tuple[int, int], grid: Grid, back: bool) -> list[Work]:
    """The pieces of work on one microbatch, from its embedding to the loss and all the way back."""
    (r, m), S, last = path, grid.stages, len(visits) + 1
    head = int(visits[-1][0]) if visits[-1][1] == S else r
    stops = [(0, "embed", (r, 0))]
    stops += [(p, "forward", (int(q), int(s))) for p, (q, s) in enumerate(visits, 1) if 0 <= s < S]
    stops += [(last, "loss" if back else "measure", (head, S - 1))]
    slots = [2 * m + p for p, _, _ in stops]
    if back:
        slots += [2 * (m + last) - p for p, _, _ in reversed(stops[:-1])]
        stops += [(p, {"embed": "unembed"}.get(kind, "backward"), cell) for p, kind, cell in reversed(stops[:-1])]
    ranks = [None, *(grid.rank(*cell) for _, _, cell in stops), None]
    return [
        Work(slot, kind, path, i, cell, ranks[i + 1], ranks[i], ranks[i + 2])
        for i, (slot, (_, kind, cell)) in enumerate(zip(slots, stops, strict=True))
    ]


def perform(works: Sequence[Work], do: Callable[[Work, Tensor | None], Tensor], like: Tensor, peers: Peers) -> None:
    """Do this rank's part of the works: `do` takes what the work before gave, and gives what the next one needs.

    like: of the shape of every message. Messages are asked for ahead of time and sent without waiting.
    """
    coming = [work for work in works if work.to == peers.rank and work.rank != peers.rank]  # as they are sent
    turn = {(work.path, work.place): i for i, work in enumerate(coming)}
    letters: list[Letter] = []
    here: dict[tuple, Tensor] = {}
    for work in works:
        if work.rank != peers.rank:
            continue
        before = work.path, work.place - 1
        if before in turn:
            for expected in coming[len(letters) : turn[before] + 1 + AHEAD]:
                letters.append(peers.receive(like, expected.rank))
            given = letters[turn[before]].read()
        else:
            given = here.pop(before, None)
        result = do(work, given)
        if work.to == peers.rank:
            here[work.path, work.place] = result
        elif work.to is not None:
            peers.send(result, work.to)
    peers.flush()
