"""TODO"""

from dataclasses import replace

import torch
from torch import Tensor

from swarmbook.config import RunConfig
from swarmbook.distributed.communicator import Communicator
from swarmbook.distributed.mesh import Mesh
from swarmbook.methods.model_size import Shape
from swarmbook.training import llama
from swarmbook.training.setup import weight_seeds
from swarmbook.training.stacked_stages import StackedStages
from swarmbook.training.stacked_weights import generator_of


class StageShard(StackedStages):
    """The cells of one rank, as a Fleet of some replicas and stages; of their ends only what this rank holds.

    Replicas and stages count from 0 in its methods, wherever they begin in the run (`rows`, `columns`).
    """

    def __init__(self, run: RunConfig, shape: Shape, mesh: Mesh, comm: Communicator, compile: bool | str):
        self.rows, self.columns = mesh.cells(comm.rank)
        self.comm = comm
        self.whole = shape  # of the run
        seeds = weight_seeds(run)[self.rows.start : self.rows.stop]
        own = replace(shape, stages=len(self.columns))
        super().__init__(own, seeds, str(comm.device), run.precision, compile)
        first, last = 0 in self.columns, shape.stages - 1 in self.columns
        held = mesh.ends(comm.rank)
        self.outer = {name: self.outer[name] for name in held}
        self.outer_gradients = {name: self.outer_gradients[name] for name in held}
        whole = first and last
        self._other_end = None if whole or not held else mesh.rank(self.rows[0], shape.stages - 1 if first else 0)

    def place(self, replica: int, stage: int) -> tuple[int, int]:
        """How the shard counts a cell of the run that it holds; stage S, the ends, is its own last and one more."""
        stage = len(self.columns) if stage == self.whole.stages else stage - self.columns.start
        return replica - self.rows.start, stage

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """As of a Fleet: the same numbers, also for the part of the ends that is here."""
        if stage < len(self.columns):
            super().initialise(replica, stage, seed)
            return
        ends = {name: torch.empty(size) for name, size in self.whole.ends_shapes.items()}
        llama.draw(ends, generator_of(seed))
        for name, weight in self.ends(replica).items():
            weight.copy_(ends[name])

    def norms(self) -> Tensor:
        """As of a Fleet; the ends' norm is that of both ends, wherever they are."""
        layers = [torch.linalg.vector_norm(g.flatten(3), dim=-1) for g in self.layer_gradients.values()]
        stages = torch.linalg.vector_norm(torch.cat(layers), dim=0)  # [S, R]
        ends = [g.flatten(1).square().sum(1) for g in self.outer_gradients.values()]
        ends = sum(ends, torch.zeros(self.replicas, device=self.device))
        if self._other_end is not None:
            message = self.comm.receive(ends, self._other_end)
            self.comm.send(ends, self._other_end)
            ends = ends + message.read()
            self.comm.flush()
        return torch.cat([stages.T, ends.sqrt()[:, None]], 1)

    def draw_replica(self, replica: int, seed: int) -> None:
        """Draw all weights of a replica, one stage at a time, as a Fleet of the whole run does, and keep our own."""
        shape, generator = self.whole, generator_of(seed)
        ends = {name: torch.empty(size) for name, size in shape.ends_shapes.items()}
        llama.draw(ends, generator)
        for name, weight in self.outer.items():
            weight[replica] = ends[name]
        del ends
        for s in range(self.columns.stop):
            stage = {name: torch.empty(shape.layers_per_stage, *size) for name, size in shape.layer_shapes.items()}
            llama.draw(stage, generator)
            if s in self.columns:
                for name, weight in self.stage(replica, s - self.columns.start).items():
                    weight.copy_(stage[name])
