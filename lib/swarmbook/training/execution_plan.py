"""From a route to work: which cells run together at each position, and how the activations are sorted for them.

Serves: every trained run.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swarmbook.training.device import moved


@dataclass(frozen=True)
class Visit:
    """Cells that work at one position, each on the same number of paths.

    paths: how many paths they take together, in order, from the sorted activations of the position. microbatches: of
    each cell. cells: their flat numbers, stage * R + replica. first: whether they are the first to write the gradients
    of their cells on the way back.
    """

    paths: int
    microbatches: int
    cells: slice | Tensor
    first: bool


@dataclass(frozen=True)
class Position:
    """One position of a pipeline: the paths are sorted, the visits work on the first of them, and the rest skip.

    order: index into the order of the position before; None if it stays. back: the inverse of it. skips: how many skip.
    """

    order: Tensor | None
    back: Tensor | None
    visits: tuple[Visit, ...]
    skips: int


@dataclass(frozen=True)
class Group:
    """Replicas start..stop-1, which share no cell with others, and where their paths go.

    positions: the last of them brings the paths to the heads and has no visits. heads: the path at each place of the
    heads [r * M]; None where each path ends at the head of its own replica. idle: cells whose gradients must be set to
    zero before the way back; None for none.
    """

    replicas: slice
    positions: tuple[Position, ...]
    heads: Tensor | None
    idle: Tensor | None


def checked_route(cells: np.ndarray, R: int, S: int, M: int) -> None:
    """Raise ValueError, with what to give instead, unless cells [P, R, M, 2] is a route for `Fleet.gradients`."""
    if cells.ndim != 4 or cells.shape[1:] != (R, M, 2):
        raise ValueError(f"the route has shape {list(cells.shape)}: give [positions, R={R}, M={M}, 2]")
    replica, stage = cells[..., 0], cells[..., 1]
    wrong = (stage > S) | (stage < -1) | ((stage >= 0) & ((replica < 0) | (replica >= R)))
    wrong[:-1] |= stage[:-1] == S
    if wrong.any():
        raise ValueError(
            f"the route visits (replica, stage) {tuple(cells[wrong][0].tolist())}: replicas are 0..{R - 1}, "
            f"stages 0..{S - 1}, or -1 to skip, or at the last position {S} for the head"
        )
    heads = stage[-1:] == S
    if heads.any() and not (heads.all() and (np.sort(replica[-1], 0) == np.arange(R)[:, None]).all()):
        raise ValueError(
            f"the route ends at (replica, stage) {cells[-1].tolist()}: give each head of replicas 0..{R - 1} "
            f"one first microbatch, one second and so on, or leave stage {S} out"
        )


def plan(cells: np.ndarray, stages: int, at_once: int, device: torch.device) -> list[Group]:
    """Split the replicas of a route [P, R, M, 2] into groups of `at_once`, or more where the route connects them.

    A last position at stage `stages` names the head [R, M] that takes the loss of each path; without one it is the head
    of the path's own replica.
    """
    R = cells.shape[1]
    visited = np.where(cells[..., 1] < 0, np.arange(R)[None, :, None], cells[..., 0])  # [P, R, M]
    high = np.maximum.accumulate(visited.max((0, 2), initial=0))
    low = np.minimum.accumulate(visited.min((0, 2), initial=R)[::-1])[::-1]
    groups, start = [], 0
    for stop in range(1, R + 1):
        alone = stop == R or (high[stop - 1] < stop <= low[stop])
        if stop == R or (alone and stop - start >= at_once):
            groups.append(_group(cells[:, start:stop], start, R, stages, device))
            start = stop
    scattered = any(isinstance(v.cells, Tensor) for g in groups for p in g.positions for v in p.visits)
    if scattered and at_once > 1 and device.type == "cpu":  # weights as views are worth more than large groups
        return plan(cells, stages, 1, device)
    return groups


def _group(cells, start, R, stages, device):
    _, r, M, _ = cells.shape
    order = home = np.arange(r * M)  # the paths, as they lie
    if len(cells) and cells[-1, 0, 0, 1] == stages:
        home = np.argsort((cells[-1, ..., 0] * M + np.arange(M)).flatten())
        cells = cells[:-1]
    P = len(cells)
    sorted_paths = []
    for replica, stage in cells.reshape(P, -1, 2).transpose(0, 2, 1):
        cell = np.where(stage < 0, R * stages, stage * R + replica)  # skips sort last
        members, inverse, count = np.unique(cell, return_inverse=True, return_counts=True)
        count[members == R * stages] = r * M + 1
        sorted_paths.append((np.lexsort((cell, count[inverse])), members, count))
    visits: list[list[Visit]] = [[] for _ in range(P)]
    touched: set[int] = set()
    idle: set[int] = set()
    for p in reversed(range(P)):  # as the way back meets them
        _, members, count = sorted_paths[p]
        for k in np.unique(count[count <= r * M]):
            chosen = members[count == k]
            first = touched.isdisjoint(chosen.tolist())
            if not first:
                idle |= set(chosen.tolist()) - touched
            touched |= set(chosen.tolist())
            visits[p].append(Visit(int(k) * len(chosen), int(k), _slice(chosen, device), first))
    idle |= {s * R + start + i for s in range(stages) for i in range(r)} - touched
    positions = []
    for (wanted, _, _), seen in zip(sorted_paths, visits, strict=True):
        skips = r * M - sum(v.paths for v in seen)
        positions.append(Position(*_moves(order, wanted, device), tuple(seen), skips))
        order = wanted
    positions.append(Position(*_moves(order, home, device), (), r * M))
    heads, _ = _moves(np.arange(r * M), home, device)
    silent = moved(sorted(idle), device) if idle else None
    return Group(slice(start, start + r), tuple(positions), heads, silent)


def _moves(order, wanted, device):
    """Index that brings paths lying in `order` into the order `wanted`, and its inverse."""
    if np.array_equal(order, wanted):
        return None, None
    place = np.argsort(order)[wanted]
    return moved(place, device), moved(np.argsort(place), device)


def _slice(cells, device):
    """Evenly spaced cells as a slice, whose weights are a view; others as an index."""
    step = int(cells[1] - cells[0]) if len(cells) > 1 else 1
    if (np.diff(cells) == step).all():
        return slice(int(cells[0]), int(cells[-1]) + 1, step)
    return moved(cells, device)
