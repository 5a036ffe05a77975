"""Exchanges between replicas on several ranks: the rules of `swarmbook.methods.sync`, with means taken over messages.

Members of a group send each other their tensors, rank to rank, and no other rank takes part. Where a method connects
all replicas, the mean is an all-reduce.

Serves: `python -m swarmbook.distributed`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swarmbook.config import RunConfig
from swarmbook.distributed.communicator import Communicator, PendingMessage
from swarmbook.distributed.mesh import Mesh
from swarmbook.distributed.stage_shard import StageShard
from swarmbook.methods.sync import Exchange
from swarmbook.training.outer import OuterOptimizer


@dataclass
class RankExchange(Exchange):
    """An exchange of replicas on several ranks. `tensors` are this rank's.

    average, average_of_all: take the mean with the others of the group, and with all.
    """

    average: Callable[["RankExchange", Tensor], Tensor] | None = None
    average_of_all: Callable[["RankExchange", Tensor], Tensor] | None = None

    @property
    def size(self) -> int:
        return super().size or 1  # of what this rank has no part in; rules divide by it

    def mean(self, tensor: Tensor, everyone: bool = False) -> Tensor:
        return (self.average_of_all if everyone else self.average)(self, tensor)

    def send(self, copies: float, hops: int, early: float = 0) -> None:
        if super().size:
            super().send(copies, hops, early)
        else:
            self.costs.add("serial hops", hops)


class RankOuter(OuterOptimizer):
    """The outer optimizer of a run, for the cells of one rank."""

    def __init__(self, run: RunConfig, shard: StageShard, mesh: Mesh, comm: Communicator):
        super().__init__(run, shard, range(shard.replicas))
        self.first, self.held = shard.columns.start, shard.rows
        self.shard, self.mesh, self.comm = shard, mesh, comm
        self._column = mesh.column(comm.rank)

    def _exchange_of(self, *arguments, names: list[str]) -> RankExchange:
        average = self._of_group if self.method.groups else self._of_all
        return RankExchange(*arguments, self.shard.rows, names, average, self._of_all)

    def _copy(self, sources: dict[int, int]) -> None:
        """As of a run in one process; between ranks weights travel as messages."""
        rows, column, arriving = self.shard.rows, self.shard.columns.start, []
        for to, source in sources.items():
            for weight in self.theta.values():
                if not weight[0].numel():
                    continue
                if to in rows and source in rows:
                    weight[to - rows.start] = weight[source - rows.start]
                elif to in rows:
                    part = weight[to - rows.start]
                    arriving.append((part, self.comm.receive(part, self.mesh.rank(source, column))))
                elif source in rows:
                    self.comm.send(weight[source - rows.start], self.mesh.rank(to, column))
        for part, message in arriving:
            part.copy_(message.read())
        self.comm.flush()

    def _of_all(self, exchange: RankExchange, tensor: Tensor) -> Tensor:
        """The mean over all replicas that are present, once for each of this rank's [n, ...], by an all-reduce."""
        if absent := exchange.absent:
            ours = tensor[[i for i in range(len(tensor)) if i not in absent]].sum(0)
        else:
            ours = tensor.sum(0)
        total = self.comm.all_reduce(ours, self._column)
        return (total / exchange.replicas).expand_as(tensor).clone()

    def _of_group(self, exchange: RankExchange, tensor: Tensor) -> Tensor:
        """The mean over the group of each of this rank's replicas [n, ...], by messages within the group."""
        if not tensor.numel():
            return tensor.clone()
        me, first = self.comm.rank, self.shard.rows.start
        means = tensor.clone()  # whoever is absent keeps its own
        present = np.ones(self.run.replicas, dtype=bool) if exchange.present is None else exchange.present
        for members in exchange.groups:
            group = members[present[members]].tolist()
            ranks = [self.mesh.rank(r, self.shard.columns.start) for r in group]
            if me not in ranks:
                continue
            parts: list[Tensor | PendingMessage] = []
            for r, rank in zip(group, ranks, strict=True):
                if rank != me:
                    parts.append(self.comm.receive(tensor[0], rank))
                    continue
                parts.append(tensor[r - first])
                for to in sorted(set(ranks) - {me}):
                    self.comm.send(tensor[r - first], to)
            parts = [part.read() if isinstance(part, PendingMessage) else part for part in parts]
            means[[r - first for r, rank in zip(group, ranks, strict=True) if rank == me]] = torch.stack(parts).mean(0)
        self.comm.flush()
        return means
