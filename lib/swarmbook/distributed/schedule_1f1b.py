"""TODO"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from swarmbook.distributed.communicator import Communicator, PendingMessage
from swarmbook.distributed.mesh import Mesh

AHEAD = 4  # messages that are received before they are needed


@dataclass(frozen=True)
class PipelineTask:
    """A piece of task on one microbatch, and from which rank and to which it is passed on; None at both ends.

    slot: when it is due, if every piece took as long as any other. path: (replica, microbatch) that it started as.
    place: in the chain of pieces of that path. cell: (replica, stage) whose weights it needs.
    """

    slot: int
    kind: str  # of the methods of `PipelineExecutor`
    path: tuple[int, int]
    place: int
    cell: tuple[int, int]
    rank: int
    source: int | None
    to: int | None


def tasks_of(cells: np.ndarray, mesh: Mesh, back: bool = True) -> list[PipelineTask]:
    """All that a route [P, R, M, 2] asks for, in an order in which nothing comes before what it needs.

    If every rank does its own part of the list in this order, none waits for another one in a circle. A rank alternates
    between the two directions, so that it holds activations of a few microbatches only. Without `back` the losses are
    the end.
    """
    _, R, M, _ = cells.shape
    tasks = [task for r in range(R) for m in range(M) for task in _chain(cells[:, r, m], (r, m), mesh, back)]
    return sorted(tasks, key=lambda task: (task.slot, -task.place, task.path))


def _chain(visits: np.ndarray, path: tuple[int, int], mesh: Mesh, back: bool) -> list[PipelineTask]:
    """The pieces of task on one microbatch, from its embedding to the loss and all the way back."""
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
    """Do this rank's part of the tasks: `do` takes what the task before gave, and gives what the next one needs.

    like: of the shape of every message. Messages are asked for ahead of time and sent without waiting.
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
