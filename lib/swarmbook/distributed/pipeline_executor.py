"""Microbatches on their way through the processes of a run, and back.

- a route is cut into pieces of `Work`; every rank does its own in the order of the whole list, that of 1F1B
  (PipeDream-Flush, arXiv 2006.09503), so that none waits for another in a circle
- activations and their gradients go from rank to rank along the route, one microbatch at a time, while the next are
  computed
- a `Block` is a Fleet of one rank's cells, a `Passage` what it does with one step's microbatches
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from swarmbook.distributed.communicator import Peers
from swarmbook.distributed.schedule_1f1b import Work, perform
from swarmbook.distributed.stage_shard import Block
from swarmbook.training import fleet, llama
from swarmbook.training.execution_plan import Visit


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
        run = block._layer if self.back else llama.layer
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
            self.loss_here += llama.cross_entropy(part, norm, head, targets).sum()

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
