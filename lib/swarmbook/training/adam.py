"""Adam over a Fleet, with a learning rate and a step count per (replica, stage), and learning-rate schedules.

- a cell that died starts its moments and its bias correction anew, while the others go on
- torch's fused kernel does the work: on whole buffers while all cells agree, on rows where they differ
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from swarmbook.training.device import moved
from swarmbook.training.fleet import Fleet


class Adam:
    """Adam (Kingma and Ba 2015) as torch.optim.Adam computes it, for each cell of a fleet on its own.

    lr: learning rate. betas, eps: as in torch. `lr_scale` [R, S + 1], a NumPy array to write to, multiplies
    the learning rate of each (replica, stage); its last column, like stage S in the methods, is the ends.
    """

    def __init__(self, fleet: Fleet, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.fleet = fleet
        self.lr = lr
        self.betas = betas
        self.eps = eps
        cells = (fleet.replicas, fleet.shape.stages + 1)
        self.lr_scale = np.ones(cells)  # [R, S + 1]
        self.steps = np.zeros(cells, dtype=np.int64)  # [R, S + 1]
        self._layers = {
            name: (w, fleet.layer_gradients[name], torch.zeros_like(w), torch.zeros_like(w))
            for name, w in fleet.layers.items()
        }  # weights, gradients, first and second moments, each [layers per stage, S, R, ...]
        self._ends = {
            name: (w, fleet.outer_gradients[name], torch.zeros_like(w), torch.zeros_like(w))
            for name, w in fleet.outer.items()
        }  # the same, each [R, ...]
        self._found: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}  # views take time to make

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Update all weights from the stored gradients; lr, if given, stands in for the base rate."""
        lr = self.lr if lr is None else lr
        self.steps += 1
        counts = moved(self.steps.astype(np.float32), self.fleet.device)  # [R, S + 1]
        if (self.lr_scale == self.lr_scale[0, 0]).all() and (self.steps == self.steps[0, 0]).all():
            buffers = [*self._layers.values(), *self._ends.values()]
            self._update(buffers, [counts[0, 0]] * len(buffers), lr * float(self.lr_scale[0, 0]))
            return
        for scale in np.unique(self.lr_scale):
            cells = np.argwhere(self.lr_scale == scale)
            rows = [(row, counts[*cell]) for cell in cells for row in self._rows(*cell)]
            self._update(*zip(*rows, strict=True), lr * float(scale))

    def round_to_bf16(self, replicas: Sequence[int]) -> None:
        """Round the weights and moments of these replicas to bfloat16, as if they were stored so."""
        rows = slice(replicas[0], replicas[-1] + 1)
        for w, _, *moments in self._layers.values():
            for tensor in (w, *moments):
                tensor[:, :, rows] = tensor[:, :, rows].bfloat16().to(tensor.dtype)
        for w, _, *moments in self._ends.values():
            for tensor in (w, *moments):
                tensor[rows] = tensor[rows].bfloat16().to(tensor.dtype)

    def reset(self, replica: int, stage: int) -> None:
        """Zero the moments and the step count of one cell."""
        self.steps[replica, stage] = 0
        for _, _, m, v in self._rows(replica, stage):
            m.zero_()
            v.zero_()

    def moments(self, replica: int, stage: int) -> dict[str, tuple[Tensor, Tensor]]:
        """First and second moments of one cell by parameter name, views laid out like `Fleet.stage`."""
        if stage == self.fleet.shape.stages:
            return {name: (m[replica], v[replica]) for name, (_, _, m, v) in self._ends.items()}
        return {name: (m[:, stage, replica], v[:, stage, replica]) for name, (_, _, m, v) in self._layers.items()}

    def state_dict(self, replicas: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Copies of moments, step counts and learning-rate scales, of all replicas or of the given ones."""
        chosen = slice(None) if replicas is None else list(replicas)
        state = {
            "steps": torch.from_numpy(self.steps[chosen].copy()),
            "lr_scale": torch.from_numpy(self.lr_scale[chosen].copy()),
        }
        for name, (_, _, *moments) in self._layers.items():
            state[f"layers.{name}"] = torch.stack([moment[:, :, chosen] for moment in moments])
        for name, (_, _, *moments) in self._ends.items():
            state[f"ends.{name}"] = torch.stack([moment[chosen] for moment in moments])
        return state

    def load_state_dict(self, state: dict[str, Tensor], replicas: Sequence[int] | None = None) -> None:
        """Take over what `state_dict` gave, for all replicas or for the given ones in that order."""
        chosen = slice(None) if replicas is None else list(replicas)
        if state["steps"].shape != self.steps[chosen].shape:
            raise ValueError(
                f"the state holds {list(state['steps'].shape)} cells, "
                f"this optimiser {list(self.steps[chosen].shape)}: "
                "load it for a fleet of the same shape and as many replicas"
            )
        for name, (_, _, *moments) in self._layers.items():
            for moment, saved in zip(moments, state[f"layers.{name}"], strict=True):
                moment[:, :, chosen] = saved.to(moment.device)
        for name, (_, _, *moments) in self._ends.items():
            for moment, saved in zip(moments, state[f"ends.{name}"], strict=True):
                moment[chosen] = saved.to(moment.device)
        self.steps[chosen] = state["steps"].numpy()
        self.lr_scale[chosen] = state["lr_scale"].numpy()

    def _rows(self, replica, stage):
        """(weights, gradients, first moments, second moments) of each row of one cell."""
        if (replica, stage) not in self._found:
            if stage == self.fleet.shape.stages:
                rows = [tuple(t[replica] for t in tensors) for tensors in self._ends.values()]
            else:
                layers = range(self.fleet.shape.layers_per_stage)
                rows = [tuple(t[j, stage, replica] for t in ts) for ts in self._layers.values() for j in layers]
            self._found[replica, stage] = rows
        return self._found[replica, stage]

    def _update(self, rows, steps, lr):
        weights, gradients, m, v = map(list, zip(*rows, strict=True))
        torch._fused_adam_(
            weights,
            gradients,
            m,
            v,
            [],
            steps,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


def schedule(kind: str, base: float, warmup: int, steps: int, final: float = 0.1) -> Callable[[int], float]:
    """Learning rate at each step, counted from 0.

    Linear warm-up over the first `warmup` steps, base * (step + 1) / warmup; then "constant", or "cosine"
    down to final * base at step `steps`. Raises ValueError for another kind or a warm-up longer than the run.
    """
    if kind not in ("constant", "cosine"):
        raise ValueError(f"schedule {kind!r} is unknown: give 'constant' or 'cosine'")
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup={warmup} does not fit into steps={steps}: give 0 <= warmup <= steps")

    def rate(step: int) -> float:
        if step < warmup:
            return base * (step + 1) / warmup
        if kind == "constant":
            return base
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return base * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    return rate
