"""The order in which ranks work on microbatches, that of 1F1B (PipeDream-Flush, arXiv 2006.09503).

A route is cut into tasks. Every rank does its own in the order of the whole list, so that no two ranks wait for each
other, and holds the activations of a few microbatches only.

Serves: `python -m swarmbook.distributed`, and `tests/benchmarks/links.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from swarmbook.distributed.communicator import Communicator, PendingMessage
from swarmbook.distributed.mesh import Mesh

AHEAD = 4  # messages


@dataclass(frozen=True)
class PipelineTask:
    """What one rank does at one go with one microbatch.

    slot: when it is due, if every task took as long as any other. kind: the name of a method of
    `swarmbook.distributed.pipeline_executor.PipelineExecutor`. path: the (replica, microbatch) as which it started.
    place: its number among the tasks of that path. cell: the (replica, stage) whose weights it needs. rank: who does
    it. source, to: the ranks that do the tasks before and after it; None at the beginning and at the end of the path.
    """

    slot: int
    kind: str
    path: tuple[int, int]
    place: int
    cell: tuple[int, int]
    rank: int
    source: int | None
    to: int | None


def tasks_of(cells: np.ndarray, mesh: Mesh, back: bool = True, absent: Sequence[int] = ()) -> list[PipelineTask]:
    """All tasks of a route [P, R, M, 2], each after those that it needs.

    If every rank does its own tasks in this order, no ranks wait for each other in a circle. A rank alternates between
    forward and backward passes, so that it holds activations of a few microbatches only. Without `back` each path ends
    with its loss. absent: replicas whose microbatches do not set out.
    """
    _, R, M, _ = cells.shape
    there = [r for r in range(R) if r not in absent]
    tasks = [task for r in there for m in range(M) for task in _chain(cells[:, r, m], (r, m), mesh, back)]
    return sorted(tasks, key=lambda task: (task.slot, -task.place, task.path))


def _chain(visits: np.ndarray, path: tuple[int, int], mesh: Mesh, back: bool) -> list[PipelineTask]:
    """The tasks of one path, from its embedding to its loss and all the way back."""
    (r, m), S, last = path, mesh.stages, len(visits) + 1
    head = int(visits[-1][0]) if visits[-1][1] == S else r
    stops = [(0, "embed", (r, 0))]
    stops += [(p, "forward", (int(q), int(s))) for p, (q, s) in enumerate(visits, 1) if 0 <= s < S]
    stops += [(last, "loss" if back else "measure", (head, S - 1))]
    slots = [2 * m + p for p, _, _ in stops]
    if back:
        slots += [2 * (m + last) - p for p, _, _ in reversed(stops[:-1])]
        stops += [(p, {"embed": "unembed"}.get(kind, "backward"), cell) for p, kind, cell in reversed(stops[:-1])]
    ranks = [None, *(mesh.rank(*cell) for _, _, cell in stops), None]
    return [
        PipelineTask(slot, kind, path, i, cell, ranks[i + 1], ranks[i], ranks[i + 2])
        for i, (slot, (_, kind, cell)) in enumerate(zip(slots, stops, strict=True))
    ]


def perform(
    tasks: Sequence[PipelineTask], do: Callable[[PipelineTask, Tensor | None], Tensor], like: Tensor, comm: Communicator
) -> None:
    """Do this rank's tasks in their order, and pass on what they give.

    do: does one task; it takes what the task before it on the path gave (None at the beginning) and gives what the next
    one needs. like: a tensor of the shape and type of every message. Up to `AHEAD` messages are asked for before they
    are needed, and none is waited for when it is sent.
    """
    coming = [task for task in tasks if task.to == comm.rank and task.rank != comm.rank]  # as they are sent
    turn = {(task.path, task.place): i for i, task in enumerate(coming)}
    messages: list[PendingMessage] = []
    here: dict[tuple, Tensor] = {}
    for task in tasks:
        if task.rank != comm.rank:
            continue
        before = task.path, task.place - 1
        if before in turn:
            for expected in coming[len(messages) : turn[before] + 1 + AHEAD]:
                messages.append(comm.receive(like, expected.rank))
            given = messages[turn[before]].read()
        else:
            given = here.pop(before, None)
        result = do(task, given)
        if task.to == comm.rank:
            here[task.path, task.place] = result
        elif task.to is not None:
            comm.send(result, task.to)
    comm.flush()
