"""The weights and gradients that one rank holds of a run.

Serves: `python -m swarmbook.distributed`.
"""

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
    """The cells of one rank: some stages of some replicas, and of their ends only what this rank holds.

    rows, columns: which replicas and stages of the run these are. The methods count both from 0. whole: the shape of
    the run. compile: as of `StackedStages`.
    """

    def __init__(self, run: RunConfig, shape: Shape, mesh: Mesh, comm: Communicator, compile: bool | str):
        self.rows, self.columns = mesh.cells(comm.rank)
        self.comm = comm
        self.whole = shape
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
        """A cell of the run that is here, as the shard counts it; the ends, stage S, come after its own last stage."""
        stage = len(self.columns) if stage == self.whole.stages else stage - self.columns.start
        return replica - self.rows.start, stage

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """Draw a fresh stage, or the part of fresh ends that is here: the numbers that a Fleet draws from this seed."""
        if stage < len(self.columns):
            super().initialise(replica, stage, seed)
            return
        ends = {name: torch.empty(size) for name, size in self.whole.ends_shapes.items()}
        llama.draw(ends, generator_of(seed), self.whole.init_std)
        for name, weight in self.ends(replica).items():
            weight.copy_(ends[name])

    def norms(self) -> Tensor:
        """Gradient norms of the cells here, [r, s + 1]; the last is of all of the ends, wherever their parts are."""
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
        """Draw the weights of a replica as a Fleet of the whole run does, one stage at a time, and keep those held
        here.
        """
        shape, generator = self.whole, generator_of(seed)
        ends = {name: torch.empty(size) for name, size in shape.ends_shapes.items()}
        llama.draw(ends, generator, shape.init_std)
        for name, weight in self.outer.items():
            weight[replica] = ends[name]
        del ends
        for s in range(self.columns.stop):
            stage = {name: torch.empty(shape.layers_per_stage, *size) for name, size in shape.layer_shapes.items()}
            llama.draw(stage, generator, shape.init_std)
            if s in self.columns:
                for name, weight in self.stage(replica, s - self.columns.start).items():
                    weight.copy_(stage[name])
