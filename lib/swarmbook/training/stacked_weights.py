"""The weights and gradients of R replicas x S stages of a LLaMA, every parameter stacked in one tensor.

- a parameter of the layers is one tensor [layers per stage, S, R, ...]: a cell (replica, stage) is a slice of it, and
  the same stage of all replicas is one batched matmul
- gradients have the layout of the weights
- "the ends" are a replica's embedding, last norm and head; wherever a stage is asked for, stage S is the ends

Serves: every trained run, as the base of `swarmbook.training.fleet.Fleet`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from swarmbook.methods.model_size import Shape
from swarmbook.training import llama
from swarmbook.training.state_layout import WEIGHTS, named, replica_first


class StackedWeights:
    """R replicas of a model of S stages: their weights `layers` and `outer` (the ends), and gradients of both.

    seeds: one per replica; the initial weights of replica r depend on seeds[r] and `shape` only. ValueError for none.
    """

    def __init__(self, shape: Shape, seeds: Sequence[int], device: torch.device):
        if len(seeds) == 0:
            raise ValueError("seeds is empty: give one seed per replica")
        self.shape = shape
        self.replicas = len(seeds)
        self.device = device
        lead = (shape.layers_per_stage, shape.stages, self.replicas)
        self.layers = {
            name: torch.zeros(*lead, *size, device=self.device) for name, size in shape.layer_shapes.items()
        }  # each [layers per stage, S, R, ...]
        self.outer = {
            name: torch.zeros(self.replicas, *size, device=self.device) for name, size in shape.ends_shapes.items()
        }  # each [R, ...]
        self.layer_gradients = {name: torch.zeros_like(w) for name, w in self.layers.items()}
        self.outer_gradients = {name: torch.zeros_like(w) for name, w in self.outer.items()}
        for replica, seed in enumerate(seeds):
            self.draw_replica(replica, seed)

    def named_weights(self) -> dict[str, Tensor]:
        """All weights themselves, under the names of `state_dict`."""
        return named(self.layers, self.outer)

    def named_gradients(self) -> dict[str, Tensor]:
        """All gradients themselves, under the names of `state_dict`."""
        return named(self.layer_gradients, self.outer_gradients)

    def stage(self, replica: int, stage: int) -> dict[str, Tensor]:
        """Weights of one cell, views to read or write in place, each [layers_per_stage, ...]; stage S is the ends."""
        return self._cell(self.named_weights(), replica, stage)

    def ends(self, replica: int) -> dict[str, Tensor]:
        """Views of one replica's embedding [V, D], norm [D] and head [D, V]."""
        return self.stage(replica, self.shape.stages)

    def stage_gradient(self, replica: int, stage: int) -> dict[str, Tensor]:
        """Gradients of one cell, laid out like `stage`."""
        return self._cell(self.named_gradients(), replica, stage)

    def ends_gradient(self, replica: int) -> dict[str, Tensor]:
        """Gradients of one replica's ends, laid out like `ends`."""
        return self.stage_gradient(replica, self.shape.stages)

    def replica_views(self, replicas: range, gradients: bool = False) -> dict[str, Tensor]:
        """Weights of consecutive replicas, or their gradients, replica first: views [N, layers per stage, S, ...].

        Named as in `state_dict`. Embedding, norm and head have one layer and one stage.
        """
        tensors = self.named_gradients() if gradients else self.named_weights()
        return {name: replica_first(name, t)[replicas.start : replicas.stop] for name, t in tensors.items()}

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """Draw a fresh random stage, or fresh ends, in place."""
        llama.draw(self.stage(replica, stage), generator_of(seed), self.shape.init_std)

    def draw_replica(self, replica: int, seed: int) -> None:
        """Draw the initial weights of a replica in place: its ends, then stage after stage, from one generator."""
        generator = generator_of(seed)
        for stage in (self.shape.stages, *range(self.shape.stages)):
            llama.draw(self.stage(replica, stage), generator, self.shape.init_std)

    def norms(self) -> Tensor:
        """L2 norm of the gradient of each (replica, stage), last column the ends: [R, S + 1]."""
        layers = [torch.linalg.vector_norm(g.flatten(3), dim=-1) for g in self.layer_gradients.values()]
        ends = [torch.linalg.vector_norm(g.flatten(1), dim=-1) for g in self.outer_gradients.values()]
        stages = torch.linalg.vector_norm(torch.cat(layers), dim=0)  # [S, R]
        ends = torch.linalg.vector_norm(torch.stack(ends), dim=0)  # [R]
        return torch.cat([stages.T, ends[:, None]], 1)

    def clip(self, limit: float, workers: bool = False) -> Tensor:
        """Scale each cell's gradient to a norm of at most `limit`; returns the norms of cells before, [R, S + 1].

        As torch's clip_grad_norm_ on each cell. workers: on each stage with the ends that lie beside it instead, the
        embedding with the first one, norm and head with the last.
        """
        norms = self.norms()
        if workers:
            self._clip_workers(limit, norms[:, :-1])
            return norms
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)
        for gradient in self.layer_gradients.values():
            gradient.mul_(factor[:, :-1].T.view(1, *gradient.shape[1:3], *[1] * (gradient.dim() - 3)))
        for gradient in self.outer_gradients.values():
            gradient.mul_(factor[:, -1].view(-1, *[1] * (gradient.dim() - 1)))
        return norms

    def _clip_workers(self, limit: float, stages: Tensor) -> None:
        """Scale each stage's gradient and that of the ends beside it as one; stages: norms of stages alone, [R, S]."""
        squares, beside = stages.square(), {name: 0 if name == "embedding" else -1 for name in self.outer_gradients}
        for name, gradient in self.outer_gradients.items():
            squares[:, beside[name]] += gradient.flatten(1).square().sum(1)
        factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # [R, S]
        for gradient in self.layer_gradients.values():
            gradient.mul_(factor.T.view(1, *gradient.shape[1:3], *[1] * (gradient.dim() - 3)))
        for name, gradient in self.outer_gradients.items():
            gradient.mul_(factor[:, beside[name]].view(-1, *[1] * (gradient.dim() - 1)))

    def state_dict(self, replicas: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Copies of all weights, or of the given replicas' alone, named as `swarmbook.training.state_layout` says."""
        chosen = self._chosen(replicas)
        return {name: weight[WEIGHTS.index(name, chosen)].clone() for name, weight in self.named_weights().items()}

    def load_state_dict(self, state: Mapping[str, Tensor], replicas: Sequence[int] | None = None) -> None:
        """Take over the weights of `state_dict`, into all replicas or into the given ones in that order.

        Raises ValueError, before anything is written, unless all have the shapes that they have here.
        """
        chosen = self._chosen(replicas)
        places = {name: (weight, WEIGHTS.index(name, chosen)) for name, weight in self.named_weights().items()}
        for name, (weight, index) in places.items():
            if state[name].shape != weight[index].shape:
                raise ValueError(
                    f"the state holds {name} {list(state[name].shape)}, this fleet {list(weight[index].shape)}: "
                    "load it into a fleet of the same shape and as many replicas"
                )
        for name, (weight, index) in places.items():
            weight[index] = state[name].to(self.device)

    def _chosen(self, replicas):
        return slice(None) if replicas is None else torch.as_tensor(list(replicas), device=self.device)

    def _cell(self, tensors, replica, stage):
        if not 0 <= replica < self.replicas:
            raise IndexError(f"replica {replica} is not in this fleet: it has 0..{self.replicas - 1}")
        if not 0 <= stage <= self.shape.stages:
            known = f"0..{self.shape.stages - 1}, and {self.shape.stages} for its ends"
            raise IndexError(f"stage {stage} is not in this model: it has {known}")
        return WEIGHTS.cell(tensors, replica, None if stage == self.shape.stages else stage)


def generator_of(seed: int) -> torch.Generator:
    """What draws the initial weights of a replica, or of a stage that is drawn anew."""
    # torch's CPU generator reads 32 bits of a seed only; SeedSequence spreads seeds of any size over them.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(int(seed)).generate_state(1)[0]))
