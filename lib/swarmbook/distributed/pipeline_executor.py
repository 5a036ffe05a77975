"""Microbatches on their way through the processes of a run, and back.

- a route is cut into pieces of `PipelineTask`; every rank does its own in the order of the whole list, that of 1F1B
  (PipeDream-Flush, arXiv 2006.09503), so that none waits for another in a circle
- activations and their gradients go from rank to rank along the route, one microbatch at a time, while the next are
  computed
- a `StageShard` is a Fleet of one rank's cells, a `PipelineExecutor` what it does with one step's microbatches
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from swarmbook.distributed.communicator import Communicator
from swarmbook.distributed.schedule_1f1b import PipelineTask, perform
from swarmbook.distributed.stage_shard import StageShard
from swarmbook.training import fleet, llama
from swarmbook.training.execution_plan import Visit


class PipelineExecutor:
    """What this rank does in one passage of a run's microbatches, one method for each kind of `PipelineTask`.

    tokens: int64 [R, M, B, T + 1] of the whole run. `loss_here`: nats summed over the targets that the heads of this
    rank took; with a way back, over `count`, so that the sum over ranks is that of the replicas' mean losses.
    """

    def __init__(self, shard: StageShard, tokens: Tensor, back: bool):
        self.shard, self.tokens, self.back = shard, tokens, back
        _, M, B, T = tokens[..., 1:].shape
        self.count, self.length = M * B * T, T
        self.loss_here = torch.zeros((), device=shard.device)
        self._kept: dict[tuple, list] = defaultdict(list)  # by path, visit after visit: activations of each layer
        self._entered: dict[int, list] = defaultdict(list)  # by replica: tokens and gradient of what they entered as
        shard.round_matrices()
        for gradient in (*shard.layer_gradients.values(), *shard.outer_gradients.values()) if back else ():
            gradient.zero_()

    @torch.no_grad()
    def run(self, tasks: Sequence[PipelineTask], comm: Communicator) -> Tensor:
        """Take all microbatches through this rank's tasks; `loss_here`."""
        like = torch.empty(1, self.tokens.shape[2] * self.length, self.shard.shape.width, device=self.shard.device)
        perform(tasks, lambda task, given: getattr(self, task.kind)(task, given), like, comm)
        for r, parts in self._entered.items():
            tokens, dx = (torch.cat(part) for part in zip(*parts, strict=True))
            vocabulary = self.shard.shape.vocabulary
            table = torch.ops.aten.embedding_dense_backward(dx, tokens, vocabulary, -1, False)
            self.shard.outer_gradients["embedding"][r].copy_(table)
        return self.loss_here

    def embed(self, task: PipelineTask, _: None) -> Tensor:
        """[1, B * T, D]"""
        r, _ = self._own(task)
        return torch.nn.functional.embedding(self._inputs(task), self.shard.outer["embedding"][r])[None]

    def forward(self, task: PipelineTask, x: Tensor) -> Tensor:
        shard, visit = self.shard, self._visit(task)
        layer = shard._layer if self.back else llama.layer
        for j in range(shard.shape.layers_per_stage):
            x, *activations = layer(x, *shard._weights(j, visit.cells), *shard._rotary(self.length))
            if self.back:
                self._kept[task.path].append(activations)
        return x

    def loss(self, task: PipelineTask, x: Tensor) -> Tensor:
        """Adds to the loss and to the gradients of norm and head; the gradient of x."""
        r, _ = self._own(task)
        loss, dx = self.shard._head_backward(slice(r, r + 1), x, self._targets(task), self.count, False)
        self.loss_here += loss[0]
        return dx

    def backward(self, task: PipelineTask, dx: Tensor) -> Tensor:
        shard, visit = self.shard, self._visit(task)
        for j in reversed(range(shard.shape.layers_per_stage)):
            activations = self._kept[task.path].pop()
            weights = shard._weights(j, visit.cells)
            dx, *found = shard._layer_backward(dx, *activations, *weights, *shard._rotary(self.length))
            shard._store(j, visit, found, False)
        return dx

    def unembed(self, task: PipelineTask, dx: Tensor) -> None:
        self._entered[self._own(task)[0]].append((self._inputs(task), dx[0]))

    def measure(self, task: PipelineTask, x: Tensor) -> None:
        norm, head = self.shard._outer(slice(self._own(task)[0], self._own(task)[0] + 1))
        step = max(1, fleet._BLOCK[self.shard.device.type] // self.shard.shape.vocabulary)
        for part, targets in zip(x.split(step, 1), self._targets(task).split(step, 1), strict=True):
            self.loss_here += llama.cross_entropy(part, norm, head, targets).sum()

    def _own(self, task: PipelineTask) -> tuple[int, int]:
        """The cell as the shard counts."""
        return task.cell[0] - self.shard.rows.start, task.cell[1] - self.shard.columns.start

    def _visit(self, task: PipelineTask) -> Visit:
        r, s = self._own(task)
        cell = s * self.shard.replicas + r
        return Visit(1, 1, slice(cell, cell + 1, 1), first=False)

    def _inputs(self, task: PipelineTask) -> Tensor:
        return self.tokens[task.path][..., :-1].flatten()

    def _targets(self, task: PipelineTask) -> Tensor:
        return self.tokens[task.path][..., 1:].reshape(1, -1)
