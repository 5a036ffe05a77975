"""What replicas on several ranks exchange: the rules of `swarmbook.methods.sync`, with messages in place of other rows.

- within a group rank to rank, and nobody else takes part; all-reduced where a method connects all replicas
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swarmbook.config import RunConfig
from swarmbook.distributed.communicator import Letter, Peers
from swarmbook.distributed.mesh import Grid
from swarmbook.distributed.stage_shard import Block
from swarmbook.methods.sync import Exchange
from swarmbook.training.outer import Outer


@dataclass
class Meeting(Exchange):
    """An exchange of replicas on several ranks: `tensors` are those of one, `average` asks the others for theirs."""

    average: Callable[["Meeting", Tensor], Tensor] | None = None

    @property
    def size(self) -> int:
        return super().size or 1  # of what this rank has no part in; rules divide by it

    def mean(self, tensor: Tensor) -> Tensor:
        return self.average(self, tensor)

    def send(self, copies: float, hops: int, early: float = 0) -> None:
        if super().size:
            super().send(copies, hops, early)
        else:
            self.costs.add("serial hops", hops)


class SharedOuter(Outer):
    """The outer optimizer of a run for the cells of one rank."""

    def __init__(self, run: RunConfig, block: Block, grid: Grid, peers: Peers):
        super().__init__(run, block, range(block.replicas))
        self.first, self.block, self.grid, self.peers = block.columns.start, block, grid, peers
        self._column = grid.column(peers.rank)

    def _meeting(self, *arguments) -> Meeting:
        average = self._of_group if self.method.groups else self._of_all
        return Meeting(*arguments, held=self.block.rows, average=average)

    def _of_all(self, meeting: Meeting, tensor: Tensor) -> Tensor:
        """The mean over all replicas that are present, for each of ours [n, ...]: an all-reduce."""
        if absent := meeting.absent:
            ours = tensor[[i for i in range(len(tensor)) if i not in absent]].sum(0)
        else:
            ours = tensor.sum(0)
        total = self.peers.sum(ours, self._column)
        return (total / meeting.replicas).expand_as(tensor).clone()

    def _of_group(self, meeting: Meeting, tensor: Tensor) -> Tensor:
        """The mean over the group of each of our replicas [n, ...]: rank to rank, and nobody else takes part."""
        if not tensor.numel():
            return tensor.clone()
        me, first = self.peers.rank, self.block.rows.start
        means = tensor.clone()  # whoever is absent keeps its own
        present = np.ones(self.run.replicas, dtype=bool) if meeting.present is None else meeting.present
        for members in meeting.groups:
            group = members[present[members]].tolist()
            ranks = [self.grid.rank(r, self.block.columns.start) for r in group]
            if me not in ranks:
                continue
            parts: list[Tensor | Letter] = []
            for r, rank in zip(group, ranks, strict=True):
                if rank != me:
                    parts.append(self.peers.receive(tensor[0], rank))
                    continue
                parts.append(tensor[r - first])
                for to in sorted(set(ranks) - {me}):
                    self.peers.send(tensor[r - first], to)
            parts = [part.read() if isinstance(part, Letter) else part for part in parts]
            means[[r - first for r, rank in zip(group, ranks, strict=True) if rank == me]] = torch.stack(parts).mean(0)
        self.peers.flush()
        return means
