"""One rank's forward and backward passes of the microbatches of a step.

Activations and their gradients go from rank to rank along the route, one microbatch at a time, while the next
microbatches are computed. In which order is said by `swarmbook.distributed.schedule_1f1b`.

Serves: `python -m swarmbook.distributed`.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from swarmbook.distributed.communicator import Communicator
from swarmbook.distributed.schedule_1f1b import PipelineTask, perform
from swarmbook.distributed.stage_shard import StageShard


class PipelineExecutor:
    """Carries out the tasks of one rank for all microbatches of a step, with one method for each kind of task.

    tokens: int64 [R, M, B, T + 1] of the whole run. back: whether there is a backward pass. `loss_here`: nats, summed
    over the targets whose heads this rank has, a tensor []. With a backward pass it is divided by `count`, the number
    of targets of a replica, so that the sum over ranks is the sum of the replicas' mean losses.
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
        """Carry out this rank's part of the tasks; gives `loss_here`. A backward pass overwrites all gradients."""
        like = torch.empty(1, self.tokens.shape[2] * self.length, self.shard.shape.width, device=self.shard.device)
        perform(tasks, lambda task, given: getattr(self, task.kind)(task, given), like, comm)
        for r, parts in self._entered.items():
            tokens, dx = (torch.cat(part) for part in zip(*parts, strict=True))
            self.shard.embedding_backward(slice(r, r + 1), tokens[None], dx, first=True)
        return self.loss_here

    def embed(self, task: PipelineTask, _: None) -> Tensor:
        """The embedded tokens of a microbatch, [1, B * T, D]."""
        r, _ = self._own(task)
        return torch.nn.functional.embedding(self._inputs(task), self.shard.outer["embedding"][r])[None]

    def forward(self, task: PipelineTask, x: Tensor) -> Tensor:
        """One stage forward, x [1, B * T, D]; its output."""
        kept = self._kept[task.path] if self.back else None
        return self.shard.stage_forward(self._cell(task), x, self.length, kept, compiled=self.back)

    def loss(self, task: PipelineTask, x: Tensor) -> Tensor:
        """The loss and the gradients of norm and head, added to what is there; the gradient of x."""
        targets = self._targets(task)
        loss, dx = self.shard.head_backward(self._replica(task), x, targets, self.count, first=False)
        self.loss_here += loss[0]
        return dx

    def backward(self, task: PipelineTask, dx: Tensor) -> Tensor:
        """One stage backward; the gradient of its input."""
        return self.shard.stage_backward(self._cell(task), dx, self.length, self._kept[task.path], first=False)

    def unembed(self, task: PipelineTask, dx: Tensor) -> None:
        """Keep the gradient of the embedded tokens, for one backward pass of the embedding at the end."""
        self._entered[self._own(task)[0]].append((self._inputs(task), dx[0]))

    def measure(self, task: PipelineTask, x: Tensor) -> None:
        """The loss alone, in nats, added to what is there."""
        self.loss_here += self.shard.head_nats(self._replica(task), x, self._targets(task)).sum()

    def _own(self, task: PipelineTask) -> tuple[int, int]:
        """The cell of a task, as the shard counts its replicas and stages."""
        return task.cell[0] - self.shard.rows.start, task.cell[1] - self.shard.columns.start

    def _replica(self, task: PipelineTask) -> slice:
        r, _ = self._own(task)
        return slice(r, r + 1)

    def _cell(self, task: PipelineTask) -> slice:
        """The flat number of the cell in the shard, as a slice."""
        r, s = self._own(task)
        cell = s * self.shard.replicas + r
        return slice(cell, cell + 1, 1)

    def _inputs(self, task: PipelineTask) -> Tensor:
        return self.tokens[task.path][..., :-1].flatten()

    def _targets(self, task: PipelineTask) -> Tensor:
        return self.tokens[task.path][..., 1:].reshape(1, -1)
