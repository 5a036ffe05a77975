"""R replicas x S stages of a LLaMA in one set of tensors, trained by one batched forward and backward.

- layer j of every stage of every replica is one tensor [S, R, P], so that a cell (replica, stage) is a slice and
  stages at the same place of the pipeline are one batched matmul
- a Route is data: which cell each microbatch visits at each position. Activations are sorted by cell, not weights,
  so that swapped stages and hops to other replicas cost one index per position
- gradients are written in place next to the weights, in the same layout
"""

import functools
import os
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swarmbook import model
from swarmbook.model import Shape


@dataclass(frozen=True)
class Visit:
    """Cells that work at one position, each on `microbatches` of the paths."""

    paths: int  # how many paths, taken in order from the position's sorted activations
    microbatches: int  # per cell
    cells: slice | Tensor  # flat cell numbers, stage * R + replica, ascending


@dataclass(frozen=True)
class Position:
    """One position of a pipeline: sort the paths, let the visits work on the first of them; the rest skip."""

    order: Tensor | None  # [R * M], index into the previous position's order; None: unchanged
    visits: tuple[Visit, ...]


@dataclass(frozen=True)
class Plan:
    positions: tuple[Position, ...]
    home: Tensor | None  # brings the last position's order back to (replica, microbatch); None: already there


def plan(cells: np.ndarray, replicas: int, stages: int, device: torch.device) -> Plan:
    """Group the paths of a route [P, R, M, 2] by the cell that they visit, and by how many share a cell."""
    order = np.arange(cells.shape[1] * cells.shape[2])  # the paths, as they lie
    positions = []

    def index(wanted):
        if np.array_equal(wanted, order):
            return None
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return torch.from_numpy(place[wanted]).to(device)

    for replica, stage in cells.reshape(len(cells), -1, 2).transpose(0, 2, 1):
        cell = np.where(stage < 0, replicas * stages, stage * replicas + replica)  # skips sort last
        visited, inverse, count = np.unique(cell, return_inverse=True, return_counts=True)
        count[visited == replicas * stages] = len(cell) + 1
        wanted = np.lexsort((np.arange(len(cell)), cell, count[inverse]))
        visits = []
        for k in np.unique(count[count <= len(cell)]):
            members = visited[count == k]
            run = members[-1] - members[0] == len(members) - 1
            chosen = slice(int(members[0]), int(members[-1]) + 1) if run else torch.from_numpy(members).to(device)
            visits.append(Visit(int(k) * len(members), int(k), chosen))
        positions.append(Position(index(wanted), tuple(visits)))
        order = wanted
    return Plan(tuple(positions), index(np.arange(len(order))))


class Fleet:
    """R replicas x S stages of a LLaMA, every parameter stacked over replicas.

    seeds: one per replica; the initial weights of replica r depend on seeds[r] and `shape` only.
    device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1". precision: "fp32", "bf16" (matmuls and
    attention in bf16 over fp32 weights, norms and residuals), or "auto" (bf16 on CUDA, fp32 on CPU). compile: True,
    False, or "auto" (where a compiler is found; the first step then takes seconds longer). checkpointing: keep only
    the input of each layer for the backward pass and compute the rest again.
    Raises ValueError for an argument outside of these, RuntimeError for a device that is not there.
    """

    def __init__(
        self,
        shape: Shape,
        seeds: Sequence[int],
        device: str = "auto",
        precision: str = "auto",
        compile: bool | str = "auto",
        checkpointing: bool = False,
    ):
        if len(seeds) == 0:
            raise ValueError("seeds is empty: give one seed per replica")
        self.shape = shape
        self.replicas = len(seeds)
        self.device = _device(device)
        self.precision = _precision(precision, self.device)
        self.checkpointing = checkpointing
        self.compiled = _compilable(compile, self.device)
        self.layers = torch.zeros(
            shape.layers_per_stage, shape.stages, self.replicas, shape.layer_parameters, device=self.device
        )  # [layers per stage, S, R, P]
        self.ends_rows = torch.zeros(self.replicas, shape.ends_parameters, device=self.device)  # [R, E]
        self.layer_gradients = torch.zeros_like(self.layers)
        self.ends_gradients = torch.zeros_like(self.ends_rows)
        self._dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._layer = torch.compile(model.layer) if self.compiled else model.layer
        self._losses = torch.compile(model.losses) if self.compiled else model.losses
        for r, seed in enumerate(seeds):
            generator = _generator(seed)
            model.draw(self.ends(r), generator)
            for s in range(shape.stages):
                model.draw(self.stage(r, s), generator)

    def stage(self, replica: int, stage: int) -> dict[str, Tensor]:
        """Weights of one cell, views to read or write in place, each [layers_per_stage, ...]."""
        self._check(replica, stage)
        return model.unpack(self.layers[:, stage, replica], self.shape.layer_shapes)

    def ends(self, replica: int) -> dict[str, Tensor]:
        """Views of one replica's embedding [V, D], norm [D] and head [D, V]."""
        self._check(replica)
        return model.unpack(self.ends_rows[replica], self.shape.ends_shapes)

    def stage_gradient(self, replica: int, stage: int) -> dict[str, Tensor]:
        """Gradients of one cell, laid out like `stage`."""
        self._check(replica, stage)
        return model.unpack(self.layer_gradients[:, stage, replica], self.shape.layer_shapes)

    def ends_gradient(self, replica: int) -> dict[str, Tensor]:
        """Gradients of one replica's ends, laid out like `ends`."""
        self._check(replica)
        return model.unpack(self.ends_gradients[replica], self.shape.ends_shapes)

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """Draw a fresh random stage in place."""
        model.draw(self.stage(replica, stage), _generator(seed))

    def gradients(self, tokens, cells: np.ndarray | None = None) -> Tensor:
        """Forward and backward; overwrites the stored gradients with those of each replica's mean loss.

        tokens: int64 [R, M, B, T + 1], array or tensor. cells: int [P, R, M, 2], the (replica, stage) that
        microbatch m of replica r visits at each position, stage -1 to skip; None: the stages in order, at home.
        Returns the mean cross-entropy [R] in nats, still on the device.
        """
        tokens = self._tokens(tokens, 4)  # [R, M, B, T + 1]
        gathered: list[tuple[Tensor, int, Tensor]] = []
        self.layer_gradients.zero_()
        self.ends_gradients.zero_()
        ends = self.ends_rows.detach().requires_grad_()
        ends.grad = self.ends_gradients

        def rows(j, cells):
            weights, gradient = self.layers[j].flatten(0, 1), self.layer_gradients[j].flatten(0, 1)
            leaf = weights[cells].detach().requires_grad_()
            if isinstance(cells, slice):
                leaf.grad = gradient[cells]
            else:
                gathered.append((leaf, j, cells))
            return leaf

        with torch.enable_grad():
            x = self._through(ends, tokens[..., :-1], cells, rows)
            loss = self._losses(ends, x, tokens[..., 1:].flatten(1), self.shape, self._dtype).mean(1)
            loss.sum().backward()
        for leaf, j, index in gathered:
            self.layer_gradients[j].flatten(0, 1).index_add_(0, index, leaf.grad)
        return loss.detach()

    @torch.no_grad()
    def loss(self, tokens, cells: np.ndarray | None = None, per_sequence: bool = False) -> Tensor:
        """Mean cross-entropy in nats, [R], or of each sequence, [R, N].

        tokens: int64 [R or 1, N, T + 1]; 1: the same sequences for every replica. cells: as for `gradients`; the N
        sequences are shared out in order over its M microbatches.
        """
        tokens = self._tokens(tokens, 3)  # [R, N, T + 1]
        tokens = self._microbatches(tokens, cells)  # [R, M, B, T + 1]
        block = max(1, _BLOCK // (self.replicas * tokens.shape[1] * tokens.shape[3] * self.shape.vocabulary))
        parts = []
        for part in tokens.split(block, dim=2):
            x = self._through(self.ends_rows, part[..., :-1], cells, self._rows)
            loss = self._losses(self.ends_rows, x, part[..., 1:].flatten(1), self.shape, self._dtype)
            parts.append(loss.view(*part.shape[:3], -1).mean(-1))  # [R, M, block]
        losses = torch.cat(parts, 2).flatten(1)  # [R, N]
        return losses if per_sequence else losses.mean(1)

    @torch.no_grad()
    def logits(self, tokens, cells: np.ndarray | None = None) -> Tensor:
        """Next-token logits [R, N, T, V] after each token of [R or 1, N, T]."""
        tokens = self._tokens(tokens, 3)
        x = self._through(self.ends_rows, self._microbatches(tokens, cells), cells, self._rows)
        return model.logits(self.ends_rows, x, self.shape, self._dtype).view(*tokens.shape, -1)

    def norms(self) -> Tensor:
        """L2 norm of the gradient of each (replica, stage), last column the ends: [R, S + 1]."""
        stages = torch.linalg.vector_norm(self.layer_gradients, dim=-1)  # [layers per stage, S, R]
        ends = torch.linalg.vector_norm(self.ends_gradients, dim=-1)  # [R]
        return torch.cat([torch.linalg.vector_norm(stages, dim=0).T, ends[:, None]], 1)

    def clip(self, limit: float) -> Tensor:
        """Scale each cell's gradient to at most `limit`, as torch's clip_grad_norm_; norms before, [R, S + 1]."""
        norms = self.norms()
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)
        self.layer_gradients.mul_(factor[:, :-1].T[None, :, :, None])
        self.ends_gradients.mul_(factor[:, -1:])
        return norms

    def state_dict(self, replicas: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Copies of all weights, or of the given replicas' alone."""
        chosen = self._chosen(replicas)
        return {"layers": self.layers[:, :, chosen].clone(), "ends": self.ends_rows[chosen].clone()}

    def load_state_dict(self, state: dict[str, Tensor], replicas: Sequence[int] | None = None) -> None:
        """Take over the weights of `state_dict`, into all replicas or into the given ones in that order."""
        chosen = self._chosen(replicas)
        for name, rows in (("layers", self.layers[:, :, chosen]), ("ends", self.ends_rows[chosen])):
            if state[name].shape != rows.shape:
                raise ValueError(
                    f"the state holds {name} {list(state[name].shape)}, this fleet {list(rows.shape)}: "
                    "load it into a fleet of the same shape and as many replicas"
                )
        self.layers[:, :, chosen] = state["layers"].to(self.device)
        self.ends_rows[chosen] = state["ends"].to(self.device)

    def _chosen(self, replicas):
        return slice(None) if replicas is None else torch.as_tensor(list(replicas), device=self.device)

    def _through(self, ends, tokens, cells, rows):
        """Embed tokens [R, M, B, T] and send them along the route: [R, M * B * T, D]."""
        R, M, B, T = tokens.shape
        cos, sin = self._angles(T)
        layer = functools.partial(self._layer, cos=cos, sin=sin, shape=self.shape, dtype=self._dtype)
        x = model.embed(ends, tokens.flatten(1), self.shape).view(R * M, B * T, -1)
        route = self._plan(cells, M)
        for position in route.positions:
            x = x if position.order is None else x[position.order]
            blocks = x.split([v.paths for v in position.visits] + [len(x) - sum(v.paths for v in position.visits)])
            done = []
            for visit, block in zip(position.visits, blocks, strict=False):
                y = block.view(-1, visit.microbatches * B * T, self.shape.width)
                for j in range(self.shape.layers_per_stage):
                    if self.checkpointing and torch.is_grad_enabled():
                        y = checkpoint(layer, rows(j, visit.cells), y, use_reentrant=False)
                    else:
                        y = layer(rows(j, visit.cells), y)
                done.append(y.view(block.shape))
            x = done[0] if len(done) == 1 and len(done[0]) == len(x) else torch.cat([*done, blocks[-1]])
        x = x if route.home is None else x[route.home]
        return x.view(R, M * B * T, -1)

    def _rows(self, j, cells):
        return self.layers[j].flatten(0, 1)[cells]

    def _angles(self, length):
        if length not in self._rotary:
            self._rotary[length] = model.rotary(length, self.shape.head_width, self.device)
        return self._rotary[length]

    def _tokens(self, tokens, dimensions):
        tokens = torch.as_tensor(tokens, device=self.device)
        if tokens.dim() != dimensions or tokens.shape[0] not in (
            {self.replicas} if dimensions == 4 else {1, self.replicas}
        ):
            wanted = "[R, M, B, T + 1]" if dimensions == 4 else "[R or 1, N, T]"
            raise ValueError(f"tokens have shape {list(tokens.shape)}: give {wanted} with R = {self.replicas}")
        return tokens.long().expand(self.replicas, *tokens.shape[1:])

    def _microbatches(self, tokens, cells):
        """Share out sequences [R, N, ...] over the microbatches of a route: [R, M, B, ...]."""
        M = 1 if cells is None else cells.shape[2]
        if tokens.shape[1] % M:
            raise ValueError(f"{tokens.shape[1]} sequences cannot be shared out over {M} microbatches of the route")
        return tokens.unflatten(1, (M, -1))

    def _plan(self, cells, microbatches):
        if cells is None:
            place = np.indices((self.shape.stages, self.replicas, microbatches))
            cells = np.stack([place[1], place[0]], -1)
        cells = np.ascontiguousarray(cells, dtype=np.int64)
        R, S = self.replicas, self.shape.stages
        if cells.ndim != 4 or cells.shape[1:] != (R, microbatches, 2):
            raise ValueError(f"the route has shape {list(cells.shape)}: give [positions, R={R}, M={microbatches}, 2]")
        key = cells.tobytes()
        if key not in self._plans:
            replica, stage = cells[..., 0], cells[..., 1]
            wrong = (stage >= S) | (stage < -1) | ((stage >= 0) & ((replica < 0) | (replica >= R)))
            if wrong.any():
                raise ValueError(
                    f"the route visits (replica, stage) {tuple(cells[wrong][0].tolist())}: replicas are 0..{R - 1}, "
                    f"stages 0..{S - 1}, or -1 to skip"
                )
            self._plans[key] = plan(cells, R, S, self.device)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _check(self, replica, stage=0):
        if not 0 <= replica < self.replicas:
            raise IndexError(f"replica {replica} is not in this fleet: it has 0..{self.replicas - 1}")
        if not 0 <= stage < self.shape.stages:
            raise IndexError(f"stage {stage} is not in this model: it has 0..{self.shape.stages - 1}")


_BLOCK = 1 << 24  # logits computed at a time without gradients
_PLANS = 64  # analysed routes kept


def _generator(seed: int) -> torch.Generator:
    # torch's CPU generator reads 32 bits of a seed only; SeedSequence spreads seeds of any size over them.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(int(seed)).generate_state(1)[0]))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is unknown: give 'auto', 'cpu', 'cuda' or 'cuda:<number>'")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RuntimeError(
            f"device={name!r}, but torch {torch.__version__} sees {count} CUDA devices here: "
            "give device='cpu' or 'auto', or install a CUDA build of torch and its driver"
        )
    return device


def _precision(name: str, device: torch.device) -> str:
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision={name!r} is unknown: give 'auto', 'fp32' or 'bf16'")
    return name if name != "auto" else "bf16" if device.type == "cuda" else "fp32"


def _compilable(wanted: bool | str, device: torch.device) -> bool:
    if wanted not in (True, False, "auto"):
        raise ValueError(f"compile={wanted!r} is unknown: give True, False or 'auto'")
    if device.type == "cuda":
        found = torch.utils._triton.has_triton()
    else:
        found = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    if wanted is True and not found:
        raise RuntimeError(
            "compile=True needs a C++ compiler (on CUDA: Triton) and none was found: "
            "install g++, name one in CXX, or give compile=False"
        )
    return found if wanted == "auto" else wanted
