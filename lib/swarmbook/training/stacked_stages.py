"""Forward and backward passes of single stages, heads and embeddings, each of several cells at once.

- gradients are multiplied straight into where they are stored
- what goes through which stage, and when, is decided elsewhere: for all stages in one process by
  `swarmbook.training.fleet`, on many processes by `swarmbook.distributed.pipeline_executor`

Serves: every trained run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from swarmbook.methods.model_size import Shape
from swarmbook.training import llama, torch_private
from swarmbook.training.compilation import Compiled, compilable
from swarmbook.training.device import device_of, keep_freed_memory, precision_of
from swarmbook.training.stacked_weights import StackedWeights

_plain = False  # whether layers on a CPU do without the kernels of `cpu_layers`


@contextmanager
def plain_layers() -> Iterator[None]:
    """Fleets that are made in here take torch's own operations on a CPU, as all did before there were kernels.

    It is for `swarmbook.reproduction.verify`: a run is made again with the rounding of its record.
    """
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


class StackedStages(StackedWeights):
    """R replicas x S stages of a LLaMA, every parameter stacked over replicas, and what a stage computes.

    seeds: one per replica; the initial weights of replica r depend on seeds[r] and `shape` only.
    device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1". precision: "fp32", "bf16" (matmuls
    and attention in bf16 over fp32 weights, norms and residuals), or "auto" (bf16 on CUDA, fp32 on CPU).
    compile: True, False, or "auto" (on CUDA, with Triton): the first step then takes seconds longer.
    checkpointing: keep only the input of each layer for the backward pass and compute the rest again.
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
        place = device_of(device)
        self.precision = precision_of(precision, place)
        self.checkpointing = checkpointing
        self.compiled: bool | str = compilable(compile, place)  # or what compiled the kernels of a CPU
        if place.type == "cpu":
            keep_freed_memory()
        super().__init__(shape, seeds, place)
        self._type = torch.bfloat16 if self.precision == "bf16" else torch.float32
        rounded = {} if self._type == torch.float32 else self.layers
        self._rounded = {name: torch.empty_like(w, dtype=self._type) for name, w in rounded.items() if w.dim() == 5}
        self._working = self.layers | self._rounded  # what the matmuls take
        self._views: dict[tuple, dict[str, Tensor]] = {}
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}
        self._kernels = llama
        if place.type == "cpu" and self.precision == "fp32" and not _plain:
            from swarmbook.training import cpu_layers  # numba, wanted only here

            self._kernels, self.compiled = cpu_layers, cpu_layers.COMPILER
        steps = (llama.layer, llama.layer_backward, self._kernels.cross_entropy_backward)
        self._layer, self._layer_backward, self._cross_entropy_backward = (
            map(Compiled, steps) if self.compiled is True else steps
        )

    def round_matrices(self) -> None:
        """Round the matrices of the layers to the type of the matmuls, once for all that a pass does with them.

        Every method that computes does so itself.
        """
        for name, rounded in self._rounded.items():
            rounded.copy_(self.layers[name])

    def stage_forward(
        self, cells: slice | Tensor, x: Tensor, length: int, kept: list | None = None, compiled: bool = True
    ) -> Tensor:
        """Take activations x [C, n, D] through all layers of C cells; what leaves them, [C, n, D].

        cells: their flat numbers, stage * R + replica. length: tokens of each of the sequences that n consists of.
        kept: a list to which what `stage_backward` needs of each layer is appended; None for a loss alone.
        compiled: use compiled kernels, if the fleet has any. `round_matrices` must have been called since the weights
        were last written.
        """
        layer, _ = self._layer_and_backward(length, compiled)
        for j in range(self.shape.layers_per_stage):
            before = x
            x, *activations = layer(x, *self._weights(j, cells), *self._rotary(length))
            if kept is not None:
                kept.append(before if self.checkpointing else activations)
        return x

    def stage_backward(
        self, cells: slice | Tensor, dx: Tensor, length: int, kept: list, first: bool, compiled: bool = True
    ) -> Tensor:
        """Take a gradient dx [C, n, D] back through all layers of C cells; that of what entered them, [C, n, D].

        The gradients of their weights are written if `first`, else added to those that are stored. kept: as
        `stage_forward` left it; what belongs to these cells is taken off its end. Other arguments as there.
        """
        layer, backward = self._layer_and_backward(length, compiled)
        for j in reversed(range(self.shape.layers_per_stage)):
            weights, activations, angles = self._weights(j, cells), kept.pop(), self._rotary(length)
            if self.checkpointing:
                _, *activations = layer(activations, *weights, *angles)
            dx, *found = backward(dx, *activations, *weights, *angles)
            self._store(j, cells, found, first)
        return dx

    def head_nats(self, replicas: slice, x: Tensor, targets: Tensor, unit: int = 1) -> Tensor:
        """Cross-entropy in nats, [r, n], of targets [r, n] given what left the last stage of r replicas, x [r, n, D].

        It is computed a block of tokens at a time, a multiple of `unit`.
        """
        norm, head = self.norm_and_head(replicas)
        block = self.at_a_time(len(x) * unit * self.shape.vocabulary) * unit
        parts = zip(x.split(block, 1), targets.split(block, 1), strict=True)
        return torch.cat([self._kernels.cross_entropy(part, norm, head, wanted) for part, wanted in parts], 1)

    def head_backward(self, replicas: slice, x: Tensor, targets: Tensor, count: int, first: bool):
        """Loss [r] of r replicas, nats summed over targets [r, n] / count, and its gradient by x [r, n, D].

        The gradients of norm and head are written if `first`, else added. It goes a block of tokens at a time.
        """
        r, n, _ = x.shape
        norm, head = self.norm_and_head(replicas)
        block = self.at_a_time(r * self.shape.vocabulary)
        total, dx = 0.0, []
        for i in range(0, n, block):
            part = x[:, i : i + block], norm, head, targets[:, i : i + block]
            nats, dpart, dnorm, *factors = self._cross_entropy_backward(*part, 1.0 / count)
            total = total + nats
            dx.append(dpart)
            _put(self.outer_gradients["norm"][replicas], dnorm, first and i == 0)
            _multiply(self.outer_gradients["head"][replicas], *factors, first and i == 0)
        return total / count, dx[0] if len(dx) == 1 else torch.cat(dx, 1)

    def embedding_backward(self, replicas: slice, tokens: Tensor, dx: Tensor, first: bool) -> None:
        """Write (if `first`) or add the gradients of r embeddings, given dx [..., D] of embedded tokens [r, ...]."""
        r, D = len(tokens), self.shape.width
        table = torch_private.embedding_backward(dx.view(-1, D), self.table_rows(tokens), r * self.shape.vocabulary)
        _put(self.outer_gradients["embedding"][replicas], table.view(r, -1, D), first)

    def at_a_time(self, numbers: int) -> int:
        """How many rows of so many numbers, which nobody keeps, are computed at a time."""
        return max(1, _BLOCK[self.device.type] // numbers)

    def norm_and_head(self, replicas):
        """Last norm and head of some replicas, the head in the type of the matmuls."""
        return self.outer["norm"][replicas], self.outer["head"][replicas].to(self._type)

    def table_rows(self, tokens):
        """Rows of the replicas' tables, laid end to end, that tokens [r, ...] name."""
        first = self.shape.vocabulary * torch.arange(len(tokens), device=self.device)
        return (tokens.flatten(1) + first[:, None]).flatten()

    def _layer_and_backward(self, length, compiled):
        """What computes a layer of sequences of this length, forward and backward."""
        if self._kernels is not llama and length <= llama.ATTENTION_KEPT[self.device.type]:
            return self._kernels.layer, self._kernels.layer_backward
        return (self._layer, self._layer_backward) if compiled else (llama.layer, llama.layer_backward)

    def _store(self, j, cells, found, first):
        """Write or add the gradients that `layer_backward` found for layer j of these cells."""
        norms, factors = found[:2], found[2:]
        if isinstance(cells, slice):
            into = self._view(self.layer_gradients, j, cells)
            for name, gradient in zip(("attention_norm", "mlp_norm"), norms, strict=True):
                _put(into[name], gradient, first)
            for i, name in enumerate(("down", "gate_up", "output", "qkv")):
                _multiply(into[name], factors[2 * i], factors[2 * i + 1], first)
            return
        found = dict(zip(("attention_norm", "mlp_norm"), norms, strict=True))
        for i, name in enumerate(("down", "gate_up", "output", "qkv")):
            found[name] = _product(factors[2 * i], factors[2 * i + 1])
        for name, gradient in self.layer_gradients.items():
            rows = gradient[j].flatten(0, 1)  # [S * R, ...]
            if first:
                rows.index_copy_(0, cells, found[name])
            else:
                rows.index_add_(0, cells, found[name])

    def _weights(self, j, cells):
        """Layer j's weights of the cells, matrices in the type of the matmuls."""
        return self._view(self._working, j, cells).values()

    def _view(self, tensors, j, cells):
        """Layer j of the cells, by name: [C, ...]."""
        if not isinstance(cells, slice):
            return {name: tensor[j].flatten(0, 1)[cells] for name, tensor in tensors.items()}
        key = tensors is self._working, j, cells.start, cells.stop, cells.step
        if key not in self._views:
            self._views[key] = {name: tensor[j].flatten(0, 1)[cells] for name, tensor in tensors.items()}
        return self._views[key]

    def _rotary(self, length):
        if length not in self._angles:
            self._angles[length] = llama.rotary(length, self.shape.head_width, self.device)
        return self._angles[length]


_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 28}  # logits, or widest activations that nobody keeps, computed at a time


def _put(gradient: Tensor, found: Tensor, first: bool) -> None:
    """Write (if `first`) or add what was found."""
    if first:
        gradient.copy_(found)
    else:
        gradient.add_(found)


def _multiply(gradient: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """gradient [C, in, out] = or += a [C, n, in] transposed times b [C, n, out]."""
    if not gradient.is_contiguous() or a.dtype != gradient.dtype and not a.is_cuda:
        _put(gradient, _product(a, b), first)
    elif a.dtype == gradient.dtype:
        torch.bmm(a.mT, b, out=gradient) if first else torch.baddbmm(gradient, a.mT, b, out=gradient)
    else:
        torch_private.product_into(gradient, a.mT, b, add=not first)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[C, n, in] transposed times [C, n, out], in fp32; on CUDA without rounding sums of bf16 products in between."""
    if a.dtype != torch.float32 and a.is_cuda:
        return torch_private.fp32_product(a.mT, b)
    return torch.bmm(a.mT, b).float()
