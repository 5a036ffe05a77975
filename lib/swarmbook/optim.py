"""Adam over a Fleet, with a learning rate and a step count per (replica, stage), and learning-rate schedules.

- a cell that died starts its moments and its bias correction anew, while the others go on
- torch's fused kernel does the work: on whole buffers while all cells agree, on rows where they differ
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from swarmbook import model
from swarmbook.fleet import Fleet


class Adam:
    """Adam (Kingma and Ba 2015) as torch.optim.Adam computes it, for each cell of a fleet on its own.

    lr: learning rate. betas, eps: as in torch. `lr_scale` [R, S + 1], a NumPy array to write to, multiplies the
    learning rate of each (replica, stage); its last column, like stage S in the methods below, is the ends.
    """

    def __init__(self, fleet: Fleet, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.fleet = fleet
        self.lr = lr
        self.betas = betas
        self.eps = eps
        cells = (fleet.replicas, fleet.shape.stages + 1)
        self.lr_scale = np.ones(cells)  # [R, S + 1]
        self.steps = np.zeros(cells, dtype=np.int64)  # [R, S + 1]
        self._buffers = [
            (
                fleet.layers,
                fleet.layer_gradients,
                torch.zeros_like(fleet.layers),
                torch.zeros_like(fleet.layers),
            ),
            (fleet.ends_rows, fleet.ends_gradients) + tuple(torch.zeros_like(fleet.ends_rows) for _ in range(2)),
        ]  # (weights, gradients, first moments, second moments) of the layers and of the ends

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Update all weights from the stored gradients; lr, if given, stands in for the base rate."""
        lr = self.lr if lr is None else lr
        self.steps += 1
        counts = torch.tensor(self.steps, dtype=torch.float32, device=self.fleet.device)  # [R, S + 1]
        if (self.lr_scale == self.lr_scale[0, 0]).all() and (self.steps == self.steps[0, 0]).all():
            self._update(self._buffers, [counts[0, 0]] * 2, lr * float(self.lr_scale[0, 0]))
            return
        for scale in np.unique(self.lr_scale):
            cells = np.argwhere(self.lr_scale == scale)
            rows = [row for cell in cells for row in self._rows(*cell)]
            steps = [counts[*cell] for cell in cells for _ in self._rows(*cell)]
            self._update(rows, steps, lr * float(scale))

    def reset(self, replica: int, stage: int) -> None:
        """Zero the moments and the step count of one cell."""
        self.steps[replica, stage] = 0
        for _, _, m, v in self._rows(replica, stage):
            m.zero_()
            v.zero_()

    def moments(self, replica: int, stage: int) -> dict[str, tuple[Tensor, Tensor]]:
        """First and second moments of one cell by parameter name, views laid out like `Fleet.stage`."""
        if stage == self.fleet.shape.stages:
            shapes, (m, v) = self.fleet.shape.ends_shapes, (b[replica] for b in self._buffers[1][2:])
        else:
            shapes, (m, v) = (
                self.fleet.shape.layer_shapes,
                (b[:, stage, replica] for b in self._buffers[0][2:]),
            )
        m, v = model.unpack(m, shapes), model.unpack(v, shapes)
        return {name: (m[name], v[name]) for name in m}

    def state_dict(self, replicas: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Copies of moments, step counts and learning-rate scales, of all replicas or of the given ones."""
        chosen = slice(None) if replicas is None else list(replicas)
        (_, _, *layers), (_, _, *ends) = self._buffers
        return {
            "layers": torch.stack([b[:, :, chosen] for b in layers]),
            "ends": torch.stack([b[chosen] for b in ends]),
            "steps": torch.from_numpy(self.steps[chosen].copy()),
            "lr_scale": torch.from_numpy(self.lr_scale[chosen].copy()),
        }

    def load_state_dict(self, state: dict[str, Tensor], replicas: Sequence[int] | None = None) -> None:
        """Take over what `state_dict` gave, for all replicas or for the given ones in that order."""
        chosen = slice(None) if replicas is None else list(replicas)
        if state["steps"].shape != self.steps[chosen].shape:
            raise ValueError(
                f"the state holds {list(state['steps'].shape)} cells, this optimiser {list(self.steps[chosen].shape)}: "
                "load it for a fleet of the same shape and as many replicas"
            )
        (_, _, *layers), (_, _, *ends) = self._buffers
        for buffer, saved in zip(layers, state["layers"], strict=True):
            buffer[:, :, chosen] = saved.to(buffer.device)
        for buffer, saved in zip(ends, state["ends"], strict=True):
            buffer[chosen] = saved.to(buffer.device)
        self.steps[chosen] = state["steps"].numpy()
        self.lr_scale[chosen] = state["lr_scale"].numpy()

    def _rows(self, replica, stage):
        """(weights, gradients, first moments, second moments) of each row of one cell."""
        layers, ends = self._buffers
        if stage == self.fleet.shape.stages:
            return [tuple(b[replica] for b in ends)]
        return [tuple(b[j, stage, replica] for b in layers) for j in range(self.fleet.shape.layers_per_stage)]

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

    Linear warm-up over the first `warmup` steps, base * (step + 1) / warmup; then "constant", or "cosine" down to
    final * base at step `steps`. Raises ValueError for another kind or a warm-up longer than the run.
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
