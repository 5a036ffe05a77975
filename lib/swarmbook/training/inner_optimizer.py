"""The inner optimizer over a Fleet, with a learning rate and a step count per (replica, stage).

- what a step does to a weight is a rule of `swarmbook.methods.optimizers`, Adam unless a run names another
- a cell that died starts its buffers and its step count anew, while the others go on
- an elementwise rule works on whole tensors while all cells agree, and on rows where they differ
- a cell has the same bits whatever the other cells do. A kernel of a CPU rounds the end of a tensor otherwise, if it
  does not fill one of its vectors. Where the width is no multiple of a vector it therefore always goes by rows
- weight decay is decoupled, as in AdamW (Loshchilov and Hutter 2019): the weights shrink by lr * decay before the rule

Serves: every trained run.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swarmbook.methods.optimizers import OPTIMIZERS, Update
from swarmbook.training import torch_private
from swarmbook.training.device import moved
from swarmbook.training.stacked_weights import StackedWeights
from swarmbook.training.state_layout import ENDS, LAYERS, WEIGHTS

Row = tuple[str, tuple[Tensor, ...]]  # the name of a parameter, and its weight, gradient and buffers
LANES = 16  # the fp32 numbers of the widest vector of a CPU; the size of every row is a multiple of the width


class InnerOptimizer:
    """An optimizer of `OPTIMIZERS`, for each cell of a fleet on its own.

    lr: learning rate. decay: share of each weight, gains of norms included, that a step at lr = 1 would take away.
    parameters: of the rule's own. `lr_scale` [R, S + 1], a NumPy array to write to, multiplies the learning rate of
    each (replica, stage); its last column, like stage S in the methods, is the ends. `steps` [R, S + 1] counts steps.
    """

    def __init__(self, fleet: StackedWeights, lr: float, name: str = "Adam", decay: float = 0.0, **parameters: Any):
        self.fleet = fleet
        self.lr = lr
        self.decay = decay
        self.optimizer = OPTIMIZERS[name]
        self.parameters = parameters
        cells = (fleet.replicas, fleet.shape.stages + 1)
        self.lr_scale = np.ones(cells)  # [R, S + 1]
        self.steps = np.zeros(cells, dtype=np.int64)  # [R, S + 1]
        gradients = fleet.named_gradients()
        self._tensors = {
            name: (w, gradients[name], *(torch.zeros_like(w) for _ in self.optimizer.buffers))
            for name, w in fleet.named_weights().items()
        }  # weights, gradients and buffers, laid out as `state_layout.WEIGHTS`
        self._found: dict[tuple[int, int], list[Row]] = {}  # views take time to make
        alike = fleet.device.type != "cpu" or fleet.shape.width % LANES == 0  # whole tensors give the bits of rows
        self._whole = alike and self.optimizer.elementwise

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Update all weights from the stored gradients; lr, if given, stands in for the base rate."""
        lr = self.lr if lr is None else lr
        self.steps += 1
        counts = moved(self.steps.astype(np.float32), self.fleet.device)  # [R, S + 1]
        alike = (self.lr_scale == self.lr_scale[0, 0]).all() and (self.steps == self.steps[0, 0]).all()
        if alike and self._whole:
            self._update(self._tensors.items(), [counts[0, 0]] * len(self._tensors), lr * float(self.lr_scale[0, 0]))
            return
        for scale in np.unique(self.lr_scale):
            cells = np.argwhere(self.lr_scale == scale)
            rows = [(row, counts[*cell]) for cell in cells for row in self._rows(*cell)]
            self._update(*zip(*rows, strict=True), lr * float(scale))

    def round_to_bf16(self, replicas: Sequence[int], moments: bool = True) -> None:
        """Round the weights of these replicas to bfloat16, as if they were stored so, and their buffers if asked.

        A second moment of Adam that is stored so never falls: 0.999 of it is nearer to it than to the next smaller
        number.
        """
        rows = slice(replicas[0], replicas[-1] + 1)
        for name, (w, _, *buffers) in self._tensors.items():
            index = WEIGHTS.index(name, rows)
            for tensor in (w, *buffers) if moments else (w,):
                tensor[index] = tensor[index].bfloat16().to(tensor.dtype)

    def reset(self, replica: int, stage: int) -> None:
        """Zero the buffers and the step count of one cell."""
        self.steps[replica, stage] = 0
        for _, (_, _, *buffers) in self._rows(replica, stage):
            for buffer in buffers:
                buffer.zero_()

    def moments(self, replica: int, stage: int) -> dict[str, tuple[Tensor, ...]]:
        """The buffers of one cell by parameter name, such as Adam's two moments: views laid out like `Fleet.stage`."""
        _, _, *each = self._cell(replica, stage)
        return {name: tuple(buffers[name] for buffers in each) for name in self.fleet.stage(replica, stage)}

    def average(self, replica: int, stage: int, sources: Sequence[tuple[Mapping, int]]) -> None:
        """Set the buffers of one cell to the mean of those of other cells, and its step count to the least of theirs.

        sources: of each other cell what `moments` gives, and its step count.
        """
        for name, buffers in self.moments(replica, stage).items():
            for k, buffer in enumerate(buffers):
                buffer.copy_(sum(source[name][k] for source, _ in sources) / len(sources))
        self.steps[replica, stage] = min(steps for _, steps in sources)

    def state_dict(self, replicas: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Copies of buffers, step counts and learning-rate scales, of all replicas or of the given ones.

        The buffers of a weight are stacked in one tensor [number of buffers, ...].
        """
        chosen = slice(None) if replicas is None else list(replicas)
        state = {
            "steps": torch.from_numpy(self.steps[chosen].copy()),
            "lr_scale": torch.from_numpy(self.lr_scale[chosen].copy()),
        }
        for name, (weight, _, *buffers) in self._tensors.items():
            index = WEIGHTS.index(name, chosen)
            kept = [buffer[index] for buffer in buffers]
            state[name] = torch.stack(kept) if kept else weight.new_empty((0, *weight[index].shape))
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
        for name, (_, _, *buffers) in self._tensors.items():
            for buffer, saved in zip(buffers, state[name], strict=True):
                buffer[WEIGHTS.index(name, chosen)] = saved.to(buffer.device)
        self.steps[chosen] = state["steps"].numpy()
        self.lr_scale[chosen] = state["lr_scale"].numpy()

    def _rows(self, replica: int, stage: int) -> list[Row]:
        """The rows of one cell: one for each layer of each parameter, so that all are contiguous."""
        if (replica, stage) not in self._found:
            kinds, ends = self._cell(replica, stage), stage == self.fleet.shape.stages
            cell = {name: [kind[name] for kind in kinds] for name in kinds[0]}
            self._found[replica, stage] = [
                (ENDS + name if ends else LAYERS + name, row)
                for name, tensors in cell.items()
                for row in ([tuple(tensors)] if ends else zip(*tensors, strict=True))
            ]
        return self._found[replica, stage]

    def _cell(self, replica, stage):
        """Weights, gradients and each of the buffers of one cell, each by parameter name."""
        kinds = range(2 + len(self.optimizer.buffers))
        each = ({name: tensors[k] for name, tensors in self._tensors.items()} for k in kinds)
        where = replica, None if stage == self.fleet.shape.stages else stage
        return [WEIGHTS.cell(tensors, *where) for tensors in each]

    def _update(self, rows: Iterable[Row], steps: Sequence[Tensor], lr: float) -> None:
        names, tensors = zip(*rows, strict=True)
        if self.decay:
            for weight, *_ in tensors:
                weight.mul_(1 - lr * self.decay)
        kernel = partial(torch_private.adam_step, tensors, list(steps), lr)
        self.optimizer.rule(Update(tensors, names, steps, lr, kernel), **self.parameters)
