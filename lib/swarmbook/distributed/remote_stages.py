"""Stages of other ranks, for recovery rules: what a rule asks for is sent point to point, and nothing else is.

Serves: `python -m swarmbook.distributed` for runs with a recovery.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from swarmbook.distributed.communicator import Communicator
from swarmbook.distributed.mesh import Mesh
from swarmbook.distributed.stage_shard import StageShard
from swarmbook.training.inner_optimizer import InnerOptimizer
from swarmbook.training.outer import OuterCells

DONE, MOMENTS, WEIGHTS = range(3)  # what a request asks for; from WEIGHTS + 1 on, what the exchange keeps, by kind


class RemoteStages:
    """All cells of a run as one rank sees them: its own at hand, those of other ranks on request.

    It is what `swarmbook.methods.recovery.Cells` asks for. Replicas and stages count as in the whole run, stage S is
    the ends, and `shape` is that of the run.
    """

    def __init__(
        self,
        shard: StageShard,
        optimizer: InnerOptimizer,
        kept: Mapping[str, OuterCells],
        mesh: Mesh,
        comm: Communicator,
        peers: bool,
    ):
        """kept: slow weights and buffers here. peers: whether a rule may ask for the same stage of other replicas."""
        self.shard, self.optimizer, self.kept = shard, optimizer, dict(kept)
        self.mesh, self.comm, self.peers = mesh, comm, peers
        self.shape = shard.whole

    def holds(self, replica: int, stage: int) -> bool:
        """Whether this rank has the cell; of the ends, whether it has a part of them."""
        return self.comm.rank in self.mesh.holders(replica, stage)

    def stage(self, replica: int, stage: int, kind: int = 0) -> dict[str, Tensor]:
        """Weights of a cell by parameter: views if they are here (of the ends, of the part here), else copies sent
        here. kind: 0 for weights in training, from 1 on the kinds of `kept`.
        """
        if self.holds(replica, stage):
            return (self.shard, *self.kept.values())[kind].stage(*self.shard.place(replica, stage))
        return dict(zip(self._names(stage), self._asked(WEIGHTS + kind, replica, stage), strict=True))

    def moments(self, replica: int, stage: int) -> tuple[dict[str, tuple[Tensor, ...]], int]:
        """The inner optimizer's buffers of a cell by parameter, here or sent here, and its count of steps."""
        if self.holds(replica, stage):
            place = self.shard.place(replica, stage)
            return self.optimizer.moments(*place), int(self.optimizer.steps[place])
        *buffers, steps = self._asked(MOMENTS, replica, stage)
        each, names = len(self.optimizer.optimizer.buffers), self._names(stage)
        return {name: tuple(buffers[k * each : (k + 1) * each]) for k, name in enumerate(names)}, int(steps)

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """Draw fresh weights of the part of a cell that is here."""
        self.shard.initialise(*self.shard.place(replica, stage), seed)

    def dismiss(self, cell: tuple[int, int]) -> None:
        """Tell the ranks that `serve` this rank's rule for a lost cell that it needs nothing more."""
        for rank in self._servers(cell) - {self.comm.rank}:
            self.comm.send(torch.tensor([DONE, 0, 0], device=self.comm.device), rank)
        self.comm.flush()

    def serve(self, cell: tuple[int, int], rank: int) -> None:
        """Send a rank what its rule for a lost cell asks for, until it is done. All ranks but this one call it."""
        if self.comm.rank not in self._servers(cell):
            return
        like = torch.zeros(3, dtype=torch.int64, device=self.comm.device)
        while True:
            what, replica, stage = self.comm.receive(like, rank).read().tolist()
            if what == DONE:
                return
            if what >= WEIGHTS:
                answer = list(self.stage(replica, stage, what - WEIGHTS).values())
            else:
                moments, steps = self.moments(replica, stage)
                steps = torch.tensor(float(steps), device=self.comm.device)
                answer = [buffer for buffers in moments.values() for buffer in buffers] + [steps]
            for tensor in answer:
                self.comm.send(tensor, rank)
            self.comm.flush()

    def _asked(self, what: int, replica: int, stage: int) -> list[Tensor]:
        likes = [torch.empty(size, device=self.comm.device) for size in self._names(stage).values()]
        if what == MOMENTS:
            likes = [like for like in likes for _ in self.optimizer.optimizer.buffers]
            likes.append(torch.zeros((), device=self.comm.device))
        # a part of the ends lies where ours does
        rank = self.mesh.rank(replica, stage if stage < self.shape.stages else self.shard.columns.start)
        self.comm.send(torch.tensor([what, replica, stage], device=self.comm.device), rank)
        messages = [self.comm.receive(like, rank) for like in likes]
        answer = [message.read() for message in messages]
        self.comm.flush()
        return answer

    def _names(self, stage: int) -> dict[str, tuple[int, ...]]:
        """The parameters of a stage and their shapes; of the ends, of the part that lies here and with each peer.

        KeyError where no part does: no rule rebuilds a stage from the ends.
        """
        if stage < self.shape.stages:
            return {name: (self.shape.layers_per_stage, *size) for name, size in self.shape.layer_shapes.items()}
        held = self.mesh.ends(self.comm.rank)
        if not held:
            raise KeyError("the ends lie on other processes: a stage cannot be made of them")
        return {name: self.shape.ends_shapes[name] for name in held}

    def _servers(self, cell: tuple[int, int]) -> set[int]:
        """The ranks that a rule may ask when it rebuilds a cell: of its replica, and of the same stage of others."""
        replica, stage = cell
        others = range(self.mesh.replicas if self.peers else 0)
        return {*self.mesh.row(replica), *(rank for peer in others for rank in self.mesh.holders(peer, stage))}


class RemoteSlow:
    """What the exchange of a run keeps of one kind, slow weights or a buffer, of all cells as one rank sees them."""

    def __init__(self, stages: RemoteStages, kind: str):
        self.stages, self.shape, self.own = stages, stages.shape, stages.kept[kind]
        self.kind = 1 + list(stages.kept).index(kind)

    def stage(self, replica: int, stage: int) -> dict[str, Tensor]:
        """As of `RemoteStages`."""
        return self.stages.stage(replica, stage, self.kind)

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """As of `OuterCells`."""
        self.own.initialise(*self.stages.shard.place(replica, stage), seed)
