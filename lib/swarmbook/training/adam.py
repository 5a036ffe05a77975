"""Adam over a Fleet, with a learning rate and a step count per (replica, stage).

- a cell that died starts its moments and its bias correction anew, while the others go on
- torch's fused kernel does the work: on whole buffers while all cells agree, on rows where they differ
- a cell has the same bits whatever the other cells do. The kernel of a CPU rounds the end of a buffer otherwise, if it
  does not fill one of its vectors. Where the width is no multiple of a vector it therefore always goes by rows
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from swarmbook.training import torch_private
from swarmbook.training.device import moved
from swarmbook.training.stacked_weights import StackedWeights
from swarmbook.training.state_layout import WEIGHTS

LANES = 16  # the fp32 numbers of the widest vector of a CPU; the size of every row is a multiple of the width


class Adam:
    """Adam (Kingma and Ba 2015) as torch.optim.Adam computes it, for each cell of a fleet on its own.

    lr: learning rate. betas, eps: as in torch. `lr_scale` [R, S + 1], a NumPy array to write to, multiplies
    the learning rate of each (replica, stage); its last column, like stage S in the methods, is the ends.
    """

    def __init__(self, fleet: StackedWeights, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.fleet = fleet
        self.lr = lr
        self.betas = betas
        self.eps = eps
        cells = (fleet.replicas, fleet.shape.stages + 1)
        self.lr_scale = np.ones(cells)  # [R, S + 1]
        self.steps = np.zeros(cells, dtype=np.int64)  # [R, S + 1]
        gradients = fleet.named_gradients()
        self._tensors = {
            name: (w, gradients[name], torch.zeros_like(w), torch.zeros_like(w))
            for name, w in fleet.named_weights().items()
        }  # weights, gradients, first and second moments, laid out as `state_layout.WEIGHTS`
        self._found: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}  # views take time to make
        self._whole = fleet.device.type != "cpu" or fleet.shape.width % LANES == 0  # buffers give the bits of rows

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Update all weights from the stored gradients; lr, if given, stands in for the base rate."""
        lr = self.lr if lr is None else lr
        self.steps += 1
        counts = moved(self.steps.astype(np.float32), self.fleet.device)  # [R, S + 1]
        alike = (self.lr_scale == self.lr_scale[0, 0]).all() and (self.steps == self.steps[0, 0]).all()
        if alike and self._whole:
            buffers = list(self._tensors.values())
            self._update(buffers, [counts[0, 0]] * len(buffers), lr * float(self.lr_scale[0, 0]))
            return
        for scale in np.unique(self.lr_scale):
            cells = np.argwhere(self.lr_scale == scale)
            rows = [(row, counts[*cell]) for cell in cells for row in self._rows(*cell)]
            self._update(*zip(*rows, strict=True), lr * float(scale))

    def round_to_bf16(self, replicas: Sequence[int], moments: bool = True) -> None:
        """Round the weights of these replicas to bfloat16, as if they were stored so, and their moments if asked.

        A second moment that is stored so never falls: 0.999 of it is nearer to it than to the next smaller number.
        """
        rows = slice(replicas[0], replicas[-1] + 1)
        for name, (w, _, *both) in self._tensors.items():
            index = WEIGHTS.index(name, rows)
            for tensor in (w, *both) if moments else (w,):
                tensor[index] = tensor[index].bfloat16().to(tensor.dtype)

    def reset(self, replica: int, stage: int) -> None:
        """Zero the moments and the step count of one cell."""
        self.steps[replica, stage] = 0
        for _, _, m, v in self._rows(replica, stage):
            m.zero_()
            v.zero_()

    def moments(self, replica: int, stage: int) -> dict[str, tuple[Tensor, Tensor]]:
        """First and second moments of one cell by parameter name, views laid out like `Fleet.stage`."""
        _, _, m, v = self._cell(replica, stage)
        return {name: (m[name], v[name]) for name in m}

    def average(self, replica: int, stage: int, sources: Sequence[tuple[Mapping, int]]) -> None:
        """Set the moments of one cell to the mean of those of other cells, and its step count to the least of theirs.

        sources: of each other cell what `moments` gives, and its step count.
        """
        for name, pair in self.moments(replica, stage).items():
            for k, moment in enumerate(pair):
                moment.copy_(sum(source[name][k] for source, _ in sources) / len(sources))
        self.steps[replica, stage] = min(steps for _, steps in sources)

    def state_dict(self, replicas: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Copies of moments, step counts and learning-rate scales, of all replicas or of the given ones."""
        chosen = slice(None) if replicas is None else list(replicas)
        state = {
            "steps": torch.from_numpy(self.steps[chosen].copy()),
            "lr_scale": torch.from_numpy(self.lr_scale[chosen].copy()),
        }
        for name, (_, _, *moments) in self._tensors.items():
            state[name] = torch.stack([moment[WEIGHTS.index(name, chosen)] for moment in moments])
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
        for name, (_, _, *moments) in self._tensors.items():
            for moment, saved in zip(moments, state[name], strict=True):
                moment[WEIGHTS.index(name, chosen)] = saved.to(moment.device)
        self.steps[chosen] = state["steps"].numpy()
        self.lr_scale[chosen] = state["lr_scale"].numpy()

    def _rows(self, replica, stage):
        """(weights, gradients, first moments, second moments) of each row of one cell."""
        if (replica, stage) not in self._found:
            cell = list(zip(*(tensors.values() for tensors in self._cell(replica, stage)), strict=True))
            if stage < self.fleet.shape.stages:  # a row for each layer, so that all are contiguous
                cell = [layer for tensors in cell for layer in zip(*tensors, strict=True)]
            self._found[replica, stage] = cell
        return self._found[replica, stage]

    def _cell(self, replica, stage):
        """Weights, gradients, first and second moments of one cell, each by parameter name."""
        each = ({name: tensors[k] for name, tensors in self._tensors.items()} for k in range(4))
        where = replica, None if stage == self.fleet.shape.stages else stage
        return [WEIGHTS.cell(tensors, *where) for tensors in each]

    def _update(self, rows, steps, lr):
        torch_private.adam_step(*map(list, zip(*rows, strict=True)), steps, lr, self.betas, self.eps)
