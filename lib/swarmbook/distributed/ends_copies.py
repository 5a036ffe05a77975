"""Copies of embedding, norm and head on other processes, from which CheckFree+ takes them when a process is lost.

A rank that holds the embedding, or the norm and head, has a keeper beside it in its row of the mesh. It sends its part
there after every step, and a process that takes its place gets it back.

Serves: `swarmbook.distributed` with `--replace` and a recovery that keeps the ends.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from swarmbook.distributed.communicator import Communicator, PendingMessage
from swarmbook.distributed.mesh import Mesh
from swarmbook.distributed.stage_shard import StageShard
from swarmbook.methods.recovery import Lost


class EndsCopies:
    """The copies that one rank keeps for others in its row."""

    def __init__(self, shard: StageShard, mesh: Mesh, comm: Communicator):
        self.shard, self.mesh, self.comm = shard, mesh, comm
        self.copies: dict[int, list[dict[str, Tensor]]] = {}  # by the rank that they belong to, for each replica

    def renew(self) -> None:
        """Send this rank's part of the ends to its keeper, and take those that it keeps."""
        me, coming = self.comm.rank, {}
        for rank in self.mesh.holders(self.shard.rows[0], self.mesh.stages):
            keeper = self.mesh.keeper(rank)
            if rank == me and keeper is not None:
                self._send([self.shard.ends(r) for r in range(self.shard.replicas)], keeper)
            elif keeper == me:
                coming[rank] = [self._receive(rank, rank) for _ in self.shard.rows]
        self.copies = {rank: [_read(messages) for messages in each] for rank, each in coming.items()}
        self.comm.flush()

    def give_back(self, new: Sequence[int], lost: Mapping[tuple[int, int], Lost]) -> None:
        """Send ranks whose process is new their part of the ends, and note in the lost cells what is left of them.

        lost: the lost cells that are here. The part of a rank that is not new is still where it was.
        """
        me, keeper = self.comm.rank, self.mesh.keeper(self.comm.rank)
        for rank in new:
            if self.mesh.keeper(rank) == me and me not in new:
                kept = self.copies.get(rank, [])
                self.comm.send(torch.tensor([len(kept)], device=self.comm.device), rank)
                self._send(kept, rank)
        returned: list[dict[str, PendingMessage]] = []
        if me in new and keeper is not None and keeper not in new:
            like = torch.zeros(1, dtype=torch.int64, device=self.comm.device)
            count = int(self.comm.receive(like, keeper).read())
            returned = [self._receive(me, keeper) for _ in range(count)]
        for replica in self.shard.rows:
            ends = lost.get((replica, self.mesh.stages))
            if ends is not None and me in new:
                ends.kept = (_read(returned[replica - self.shard.rows.start]) if returned else {}) or None
            elif ends is not None and set(self.mesh.row(replica)) & set(new):
                ends.kept = {name: weight.clone() for name, weight in ends.weights.items()}
        self.comm.flush()

    def _send(self, parts: Sequence[dict[str, Tensor]], to: int) -> None:
        for part in parts:
            for tensor in part.values():
                self.comm.send(tensor, to)

    def _receive(self, owner: int, source: int) -> dict[str, PendingMessage]:
        """The part of a replica's ends that belongs to `owner`, on its way from `source`."""
        shapes = self.shard.whole.ends_shapes
        likes = {name: torch.empty(shapes[name], device=self.comm.device) for name in self.mesh.ends(owner)}
        return {name: self.comm.receive(like, source) for name, like in likes.items()}


def _read(messages: Mapping[str, PendingMessage]) -> dict[str, Tensor]:
    return {name: message.read() for name, message in messages.items()}
