"""Microbatches on their way through the processes of a run, and back.

- a route is cut into pieces of `Work`; every rank does its own in the order of the whole list, that of 1F1B
  (PipeDream-Flush, arXiv 2006.09503), so that none waits for another in a circle
- activations and their gradients go from rank to rank along the route, one microbatch at a time, while the next are
  computed
- a `Block` is a Fleet of one rank's cells, a `Passage` what it does with one step's microbatches
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from swarmbook import fleet, model
from swarmbook import train as training
from swarmbook.config import RunConfig
from swarmbook.fleet import Fleet
from swarmbook.grid import Grid
from swarmbook.model import Shape
from swarmbook.paths import Visit
from swarmbook.peers import Letter, Peers

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


class Block(Fleet):
    """The cells of one rank, as a Fleet of some replicas and stages; of their ends only what this rank holds.

    Replicas and stages count from 0 in its methods, wherever they begin in the run (`rows`, `columns`).
    """

    def __init__(self, run: RunConfig, shape: Shape, grid: Grid, peers: Peers, compile: bool | str):
        self.rows, self.columns = grid.cells(peers.rank)
        self.peers = peers
        self.whole = shape  # of the run
        seeds = training.weight_seeds(run)[self.rows.start : self.rows.stop]
        own = replace(shape, stages=len(self.columns))
        super().__init__(own, seeds, str(peers.device), run.precision, compile)
        first, last = 0 in self.columns, shape.stages - 1 in self.columns
        held = grid.ends(peers.rank)
        self.outer = {name: self.outer[name] for name in held}
        self.outer_gradients = {name: self.outer_gradients[name] for name in held}
        whole = first and last
        self._other_end = None if whole or not held else grid.rank(self.rows[0], shape.stages - 1 if first else 0)

    def place(self, replica: int, stage: int) -> tuple[int, int]:
        """How the block counts a cell of the run that it holds; stage S, the ends, is its own last and one more."""
        stage = len(self.columns) if stage == self.whole.stages else stage - self.columns.start
        return replica - self.rows.start, stage

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """As of a Fleet: the same numbers, also for the part of the ends that is here."""
        if stage < len(self.columns):
            super().initialise(replica, stage, seed)
            return
        ends = {name: torch.empty(size) for name, size in self.whole.ends_shapes.items()}
        model.draw(ends, fleet.generator_of(seed))
        for name, weight in self.ends(replica).items():
            weight.copy_(ends[name])

    def norms(self) -> Tensor:
        """As of a Fleet; the ends' norm is that of both ends, wherever they are."""
        layers = [torch.linalg.vector_norm(g.flatten(3), dim=-1) for g in self.layer_gradients.values()]
        stages = torch.linalg.vector_norm(torch.cat(layers), dim=0)  # [S, R]
        ends = [g.flatten(1).square().sum(1) for g in self.outer_gradients.values()]
        ends = sum(ends, torch.zeros(self.replicas, device=self.device))
        if self._other_end is not None:
            letter = self.peers.receive(ends, self._other_end)
            self.peers.send(ends, self._other_end)
            ends = ends + letter.read()
            self.peers.flush()
        return torch.cat([stages.T, ends.sqrt()[:, None]], 1)

    def _draw(self, r: int, seed: int) -> None:
        """Draw all weights of a replica, one stage at a time, as a Fleet of the whole run does, and keep our own."""
        shape, generator = self.whole, fleet.generator_of(seed)
        ends = {name: torch.empty(size) for name, size in shape.ends_shapes.items()}
        model.draw(ends, generator)
        for name, weight in self.outer.items():
            weight[r] = ends[name]
        del ends
        for s in range(self.columns.stop):
            stage = {name: torch.empty(shape.layers_per_stage, *size) for name, size in shape.layer_shapes.items()}
            model.draw(stage, generator)
            if s in self.columns:
                for name, weight in self.stage(r, s - self.columns.start).items():
                    weight.copy_(stage[name])


class Passage:
    """What this rank does in one passage of a run's microbatches, one method for each kind of `Work`.

    tokens: int64 [R, M, B, T + 1] of the whole run. `loss_here`: nats summed over the targets that the heads of this
    rank took; with a way back, over `count`, so that the sum over ranks is that of the replicas' mean losses.
    """

    def __init__(self, block: Block, tokens: Tensor, back: bool):
        self.block, self.tokens, self.back = block, tokens, back
        _, M, B, T = tokens[..., 1:].shape
        self.count, self.length = M * B * T, T
        self.loss_here = torch.zeros((), device=block.device)
        self._kept: dict[tuple, list] = defaultdict(list)  # by path, visit after visit: activations of each layer
        self._entered: dict[int, list] = defaultdict(list)  # by replica: tokens and gradient of what they entered as
        block.round_matrices()
        for gradient in (*block.layer_gradients.values(), *block.outer_gradients.values()) if back else ():
            gradient.zero_()

    @torch.no_grad()
    def through(self, works: Sequence[Work], peers: Peers) -> Tensor:
        """Take all microbatches through this rank's works; `loss_here`."""
        like = torch.empty(1, self.tokens.shape[2] * self.length, self.block.shape.width, device=self.block.device)
        perform(works, lambda work, given: getattr(self, work.kind)(work, given), like, peers)
        for r, parts in self._entered.items():
            tokens, dx = (torch.cat(part) for part in zip(*parts, strict=True))
            vocabulary = self.block.shape.vocabulary
            table = torch.ops.aten.embedding_dense_backward(dx, tokens, vocabulary, -1, False)
            self.block.outer_gradients["embedding"][r].copy_(table)
        return self.loss_here

    def embed(self, work: Work, _: None) -> Tensor:
        """[1, B * T, D]"""
        r, _ = self._own(work)
        return torch.nn.functional.embedding(self._inputs(work), self.block.outer["embedding"][r])[None]

    def forward(self, work: Work, x: Tensor) -> Tensor:
        block, visit = self.block, self._visit(work)
        run = block._layer if self.back else model.layer
        for j in range(block.shape.layers_per_stage):
            x, *activations = run(x, *block._weights(j, visit.cells), *block._rotary(self.length))
            if self.back:
                self._kept[work.path].append(activations)
        return x

    def loss(self, work: Work, x: Tensor) -> Tensor:
        """Adds to the loss and to the gradients of norm and head; the gradient of x."""
        r, _ = self._own(work)
        loss, dx = self.block._head_backward(slice(r, r + 1), x, self._targets(work), self.count, False)
        self.loss_here += loss[0]
        return dx

    def backward(self, work: Work, dx: Tensor) -> Tensor:
        block, visit = self.block, self._visit(work)
        for j in reversed(range(block.shape.layers_per_stage)):
            activations = self._kept[work.path].pop()
            weights = block._weights(j, visit.cells)
            dx, *found = block._layer_backward(dx, *activations, *weights, *block._rotary(self.length))
            block._store(j, visit, found, False)
        return dx

    def unembed(self, work: Work, dx: Tensor) -> None:
        self._entered[self._own(work)[0]].append((self._inputs(work), dx[0]))

    def measure(self, work: Work, x: Tensor) -> None:
        norm, head = self.block._outer(slice(self._own(work)[0], self._own(work)[0] + 1))
        step = max(1, fleet._BLOCK[self.block.device.type] // self.block.shape.vocabulary)
        for part, targets in zip(x.split(step, 1), self._targets(work).split(step, 1), strict=True):
            self.loss_here += model.cross_entropy(part, norm, head, targets).sum()

    def _own(self, work: Work) -> tuple[int, int]:
        """The cell as the block counts."""
        return work.cell[0] - self.block.rows.start, work.cell[1] - self.block.columns.start

    def _visit(self, work: Work) -> Visit:
        r, s = self._own(work)
        cell = s * self.block.replicas + r
        return Visit(1, 1, slice(cell, cell + 1, 1), first=False)

    def _inputs(self, work: Work) -> Tensor:
        return self.tokens[work.path][..., :-1].flatten()

    def _targets(self, work: Work) -> Tensor:
        return self.tokens[work.path][..., 1:].reshape(1, -1)
