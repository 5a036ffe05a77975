"""R replicas x S stages of a LLaMA in one set of tensors, trained by one stacked forward and backward.

- a parameter is one tensor [layers per stage, S, R, ...]: a cell (replica, stage) is a slice of it, and the
  same stage of all replicas is one batched matmul
- a Route is data: which cell each microbatch visits at each position. Activations are sorted by cell, not
  weights, so swapped stages and hops to other replicas cost one index per position
- gradients have the layout of the weights and are multiplied straight into place
- replicas that no route connects go forward and backward one group after another, so that a group's
  activations stay in the cache and only one group's are held
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from swarmbook.methods.model_size import Shape
from swarmbook.training import llama
from swarmbook.training.cuda_graph import GraphedCall
from swarmbook.training.device import compilable, device_of, keep_freed_memory, moved, precision_of
from swarmbook.training.execution_plan import Group, plan


class Fleet:
    """R replicas x S stages of a LLaMA, every parameter stacked over replicas.

    seeds: one per replica; the initial weights of replica r depend on seeds[r] and `shape` only.
    device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1". precision: "fp32", "bf16" (matmuls
    and attention in bf16 over fp32 weights, norms and residuals), or "auto" (bf16 on CUDA, fp32 on CPU).
    compile: True, False, or "auto" (where a compiler is found): the first step then takes seconds longer.
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
        if len(seeds) == 0:
            raise ValueError("seeds is empty: give one seed per replica")
        self.shape = shape
        self.replicas = len(seeds)
        self.device = device_of(device)
        self.precision = precision_of(precision, self.device)
        self.checkpointing = checkpointing
        self.compiled = compilable(compile, self.device)
        lead = (shape.layers_per_stage, shape.stages, self.replicas)
        self.layers = {
            name: torch.zeros(*lead, *size, device=self.device) for name, size in shape.layer_shapes.items()
        }  # each [layers per stage, S, R, ...]
        self.outer = {
            name: torch.zeros(self.replicas, *size, device=self.device) for name, size in shape.ends_shapes.items()
        }  # each [R, ...]
        self.layer_gradients = {name: torch.zeros_like(w) for name, w in self.layers.items()}
        self.outer_gradients = {name: torch.zeros_like(w) for name, w in self.outer.items()}
        self._type = torch.bfloat16 if self.precision == "bf16" else torch.float32
        rounded = {} if self._type == torch.float32 else self.layers
        self._rounded = {name: torch.empty_like(w, dtype=self._type) for name, w in rounded.items() if w.dim() == 5}
        self._working = self.layers | self._rounded  # what the matmuls take
        self._plans: OrderedDict[tuple, list[Group]] = OrderedDict()
        self._views: dict[tuple, dict[str, Tensor]] = {}
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}
        self._graphed = GraphedCall(self.device)
        steps = (llama.layer, llama.layer_backward, llama.cross_entropy_backward)
        self._layer, self._layer_backward, self._cross_entropy_backward = (
            map(llama.Compiled, steps) if self.compiled else steps
        )
        if self.device.type == "cpu":
            keep_freed_memory()
        for r, seed in enumerate(seeds):
            self._draw(r, seed)

    def stage(self, replica: int, stage: int) -> dict[str, Tensor]:
        """Weights of one cell, views to read or write in place, each [layers_per_stage, ...]; stage S is the ends."""
        self._check(replica, stage)
        if stage == self.shape.stages:
            return self.ends(replica)
        return {name: weight[:, stage, replica] for name, weight in self.layers.items()}

    def ends(self, replica: int) -> dict[str, Tensor]:
        """Views of one replica's embedding [V, D], norm [D] and head [D, V]."""
        self._check(replica)
        return {name: weight[replica] for name, weight in self.outer.items()}

    def stage_gradient(self, replica: int, stage: int) -> dict[str, Tensor]:
        """Gradients of one cell, laid out like `stage`."""
        self._check(replica, stage)
        if stage == self.shape.stages:
            return self.ends_gradient(replica)
        return {name: gradient[:, stage, replica] for name, gradient in self.layer_gradients.items()}

    def ends_gradient(self, replica: int) -> dict[str, Tensor]:
        """Gradients of one replica's ends, laid out like `ends`."""
        self._check(replica)
        return {name: gradient[replica] for name, gradient in self.outer_gradients.items()}

    def replica_views(self, replicas: range, gradients: bool = False) -> dict[str, Tensor]:
        """Weights of consecutive replicas, or their gradients, replica first: views [N, layers per stage, S, ...].

        Named as in `state_dict`. Embedding, norm and head have one layer and one stage.
        """
        layers, ends = (self.layer_gradients, self.outer_gradients) if gradients else (self.layers, self.outer)
        chosen = slice(replicas.start, replicas.stop)
        views = {f"layers.{name}": tensor.movedim(2, 0)[chosen] for name, tensor in layers.items()}
        return views | {f"ends.{name}": tensor[chosen, None, None] for name, tensor in ends.items()}

    def initialise(self, replica: int, stage: int, seed: int) -> None:
        """Draw a fresh random stage, or fresh ends, in place."""
        llama.draw(self.stage(replica, stage), generator_of(seed))

    @torch.no_grad()
    def gradients(self, tokens, cells: np.ndarray | None = None, at_once: int | None = None) -> Tensor:
        """Forward and backward; overwrites the stored gradients with those of each replica's mean loss.

        tokens: int64 [R, M, B, T + 1], array or tensor. cells: int [P, R, M, 2], the (replica, stage) that
        microbatch m of replica r visits at each position, stage -1 to skip; None: all stages in order. Stage S at
        the last position names the replica whose head takes the loss, for all or for none (then their own's), and
        another one for each replica's microbatch m. The embedding is always their own.
        at_once: microbatches whose activations are held at a time; None: all M.
        Returns the mean cross-entropy [R] in nats of what each replica's head took, still on the device.
        """
        tokens = self._tokens(tokens, 4)
        _, M, B, T = tokens[..., 1:].shape
        at_once = at_once or M

        def pass_over(tokens):
            self.round_matrices()
            total = 0.0
            for m in range(0, M, at_once):
                route = None if cells is None else cells[:, :, m : m + at_once]
                total = total + self._accumulate(tokens[:, m : m + at_once], route, M * B * T, first=m == 0)
            return total

        if 6 * self.shape.parameters * self.replicas * M * B * T > _GRAPH[self.device.type]:
            return pass_over(tokens)
        key = tokens.shape, at_once, None if cells is None else np.asarray(cells).tobytes()
        return self._graphed(key, pass_over, tokens, self._plans.values())

    def _accumulate(self, tokens, cells, count, first):
        """Write (the first time) or add the gradients of some microbatches; their share of the mean over `count`."""
        _, M, B, T = tokens[..., 1:].shape
        losses = []
        for group in self._plan(cells, M, M * B * T):
            own = tokens[group.replicas]  # [r, M, B, T + 1]
            kept = []
            x = self._forward(group, own[..., :-1], kept)  # [r, M * B * T, D]
            loss, dx = self._head_backward(group.replicas, x, _labels(group, own), count, first)
            losses.append(loss)
            self._backward(group, own[..., :-1], dx, kept, first)
        return torch.cat(losses)

    @torch.no_grad()
    def loss(self, tokens, cells: np.ndarray | None = None, per_sequence: bool = False) -> Tensor:
        """Mean cross-entropy in nats, [R], or of each sequence, [R, N].

        tokens: int64 [R or 1, N, T + 1]; 1: the same sequences for every replica. cells: as for `gradients`;
        the N sequences are shared out in order over its M microbatches, and counted where their heads are.
        """
        losses = self.nats(tokens, cells).mean(-1)
        return losses if per_sequence else losses.mean(1)

    @torch.no_grad()
    def nats(self, tokens, cells: np.ndarray | None = None) -> Tensor:
        """Cross-entropy in nats of every target, [R, N, T]; arguments as for `loss`."""
        tokens = self._tokens(tokens, 3)
        tokens = self._microbatches(tokens, cells)  # [R, M, B, T + 1]
        self.round_matrices()
        M, T = tokens.shape[1], tokens.shape[3] - 1
        losses = []
        for group in self._plan(cells, M, M * tokens.shape[2] * T):
            own = group.replicas.stop - group.replicas.start
            block = max(1, _BLOCK[self.device.type] // (own * M * T * self.shape.vocabulary))
            parts = []
            for part in tokens[group.replicas].split(block, dim=2):
                x = self._forward(group, part[..., :-1])
                norm, head = self._outer(group.replicas)
                nats = llama.cross_entropy(x, norm, head, _labels(group, part))
                parts.append(nats.view(*part.shape[:3], T))  # [r, M, block, T]
            losses.append(torch.cat(parts, 2).flatten(1, 2))  # [r, N, T]
        return torch.cat(losses)

    @torch.no_grad()
    def logits(self, tokens, cells: np.ndarray | None = None) -> Tensor:
        """Next-token logits [R, N, T, V] after each token of [R or 1, N, T]."""
        tokens = self._tokens(tokens, 3)
        split = self._microbatches(tokens, cells)  # [R, M, B, T]
        self.round_matrices()
        groups = self._plan(cells, split.shape[1], tokens[0].numel())
        x = torch.cat([self._forward(group, split[group.replicas]) for group in groups])
        logits = llama.logits(x, *self._outer(slice(None))).view(self.replicas * split.shape[1], -1)
        for group in groups:
            if group.heads is not None:
                own = logits[group.replicas.start * split.shape[1] :][: len(group.heads)]
                own[group.heads] = own.clone()
        return logits.view(*tokens.shape, -1)

    @torch.no_grad()
    def embed(self, tokens) -> Tensor:
        """What enters the first stage, [R, N, T, D]: the embedded tokens [R or 1, N, T]."""
        tokens = self._tokens(tokens, 3)
        table = self.outer["embedding"].flatten(0, 1)  # [R * V, D]
        return torch.nn.functional.embedding(self._entries(tokens), table).view(*tokens.shape, -1)

    @torch.no_grad()
    def apply(self, stage: int, x: Tensor) -> Tensor:
        """Each replica's `stage` (0-based) on its own activations x [R, N, T, D]: what leaves it, [R, N, T, D].

        Less x, that is the stage's residual update f(x); x need not be what enters this stage in order.
        Raises IndexError for a stage that is not there (the ends are none), ValueError for x of another shape.
        """
        if not 0 <= stage < self.shape.stages:
            raise IndexError(f"stage {stage} is not in this model: it has 0..{self.shape.stages - 1}")
        R, N, T, _ = self._activations(x).shape
        self.round_matrices()
        out = torch.empty_like(x)
        for group in self._plan(None, 1, N * T):
            rows = group.replicas
            cells = slice(stage * R + rows.start, stage * R + rows.stop, 1)
            block = max(1, _BLOCK[self.device.type] // ((rows.stop - rows.start) * T * 2 * self.shape.hidden))
            for part, into in zip(x[rows].split(block, 1), out[rows].split(block, 1), strict=True):
                y = part.flatten(1, 2)  # [r, n, D]
                for j in range(self.shape.layers_per_stage):
                    y = llama.layer(y, *self._weights(j, cells), *self._rotary(T))[0]
                into.copy_(y.view(part.shape))
        return out

    @torch.no_grad()
    def head_loss(self, x: Tensor, targets, per_sequence: bool = False) -> Tensor:
        """Mean cross-entropy in nats of the next tokens [R or 1, N, T] given what left the last stage, x [R, N, T, D].

        [R], or of each sequence, [R, N]. Embed tokens[..., :-1], apply every stage, take this with tokens[..., 1:]:
        `loss(tokens)`.
        """
        targets = self._tokens(targets, 3)
        T = self._activations(x).shape[2]
        losses = []
        for group in self._plan(None, 1, targets[0].numel()):
            rows = group.replicas
            block = max(1, _BLOCK[self.device.type] // ((rows.stop - rows.start) * T * self.shape.vocabulary))
            parts = zip(x[rows].split(block, 1), targets[rows].split(block, 1), strict=True)
            nats = [llama.cross_entropy(y.flatten(1, 2), *self._outer(rows), t.flatten(1)) for y, t in parts]
            losses.append(torch.cat(nats, 1))
        losses = torch.cat(losses)  # [R, N * T]
        return losses.unflatten(1, (-1, T)).mean(2) if per_sequence else losses.mean(1)

    def round_matrices(self) -> None:
        """Round the matrices of the layers to the type of the matmuls, once for all that a pass does with them.

        Every method that computes does so itself.
        """
        for name, rounded in self._rounded.items():
            rounded.copy_(self.layers[name])

    def norms(self) -> Tensor:
        """L2 norm of the gradient of each (replica, stage), last column the ends: [R, S + 1]."""
        layers = [torch.linalg.vector_norm(g.flatten(3), dim=-1) for g in self.layer_gradients.values()]
        ends = [torch.linalg.vector_norm(g.flatten(1), dim=-1) for g in self.outer_gradients.values()]
        stages = torch.linalg.vector_norm(torch.cat(layers), dim=0)  # [S, R]
        ends = torch.linalg.vector_norm(torch.stack(ends), dim=0)  # [R]
        return torch.cat([stages.T, ends[:, None]], 1)

    def clip(self, limit: float) -> Tensor:
        """Scale each cell's gradient to a norm of at most `limit`; returns the norms before, [R, S + 1].

        As torch's clip_grad_norm_ on each cell.
        """
        norms = self.norms()
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)
        for gradient in self.layer_gradients.values():
            gradient.mul_(factor[:, :-1].T.view(1, *gradient.shape[1:3], *[1] * (gradient.dim() - 3)))
        for gradient in self.outer_gradients.values():
            gradient.mul_(factor[:, -1].view(-1, *[1] * (gradient.dim() - 1)))
        return norms

    def state_dict(self, replicas: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Copies of all weights, or of the given replicas' alone."""
        chosen = self._chosen(replicas)
        layers = {f"layers.{name}": weight[:, :, chosen].clone() for name, weight in self.layers.items()}
        return layers | {f"ends.{name}": weight[chosen].clone() for name, weight in self.outer.items()}

    def load_state_dict(self, state: dict[str, Tensor], replicas: Sequence[int] | None = None) -> None:
        """Take over the weights of `state_dict`, into all replicas or into the given ones in that order."""
        chosen = self._chosen(replicas)
        for name, ours in self.state_dict(replicas).items():
            if state[name].shape != ours.shape:
                raise ValueError(
                    f"the state holds {name} {list(state[name].shape)}, this fleet {list(ours.shape)}: "
                    "load it into a fleet of the same shape and as many replicas"
                )
        for name, weight in self.layers.items():
            weight[:, :, chosen] = state[f"layers.{name}"].to(self.device)
        for name, weight in self.outer.items():
            weight[chosen] = state[f"ends.{name}"].to(self.device)

    def _draw(self, r, seed):
        """Initial weights of a replica: its ends, then stage after stage."""
        generator = generator_of(seed)
        llama.draw(self.ends(r), generator)
        for s in range(self.shape.stages):
            llama.draw(self.stage(r, s), generator)

    def _forward(self, group, tokens, kept=None):
        """Embed tokens [r, M, B, T] and send them along the route to the heads: [r, M * B * T, D]."""
        r, M, B, T = tokens.shape
        D, angles = self.shape.width, self._rotary(T)
        table = self.outer["embedding"][group.replicas].flatten(0, 1)
        x = torch.nn.functional.embedding(self._entries(tokens), table).view(r * M, B * T, D)
        for position in group.positions:
            x = x if position.order is None else x[position.order]
            done = []
            for visit, part in zip(position.visits, self._parts(position, x), strict=False):
                y = part.view(-1, visit.microbatches * B * T, D)
                # Odd shapes come and go with the route: compiling each would take longer than it saves.
                run = self._layer if visit.paths == r * M and kept is not None else llama.layer
                for j in range(self.shape.layers_per_stage):
                    before = y
                    y, *activations = run(y, *self._weights(j, visit.cells), *angles)
                    if kept is not None:
                        kept.append(before if self.checkpointing else activations)
                done.append(y.view(part.shape))
            if len(done) == 1 and position.skips == 0:
                x = done[0]
            elif done:
                x = torch.cat([*done, x[len(x) - position.skips :]])
        return x.view(r, M * B * T, D)

    def _backward(self, group, tokens, dx, kept, first):
        """Gradients of all that `_forward` went through, written if `first`, else added; dx [r, M * B * T, D]."""
        r, M, B, T = tokens.shape
        D, angles = self.shape.width, self._rotary(T)
        if first and group.idle is not None:
            for gradient in self.layer_gradients.values():
                gradient.flatten(1, 2).index_fill_(1, group.idle, 0.0)
        dx = dx.view(r * M, B * T, D)
        for position in reversed(group.positions):
            done = []
            for visit, part in reversed(list(zip(position.visits, self._parts(position, dx), strict=False))):
                dy = part.view(-1, visit.microbatches * B * T, D)
                whole = visit.paths == r * M
                run = self._layer_backward if whole else llama.layer_backward
                for j in reversed(range(self.shape.layers_per_stage)):
                    weights = self._weights(j, visit.cells)
                    activations = kept.pop()
                    if self.checkpointing:
                        again = self._layer if whole else llama.layer
                        _, *activations = again(activations, *weights, *angles)
                    dy, *found = run(dy, *activations, *weights, *angles)
                    self._store(j, visit, found, first and visit.first)
                done.append(dy.view(part.shape))
            if len(done) == 1 and position.skips == 0:
                dx = done[0]
            elif done:
                dx = torch.cat([*reversed(done), dx[len(dx) - position.skips :]])
            dx = dx if position.back is None else dx[position.back]
        table = torch.ops.aten.embedding_dense_backward(
            dx.view(-1, D), self._entries(tokens), r * self.shape.vocabulary, -1, False
        )  # unlike index_add_, the same bits each time on CUDA too
        _put(self.outer_gradients["embedding"][group.replicas], table.view(r, -1, D), first)

    def _head_backward(self, replicas, x, targets, count, first):
        """Loss [r], summed over tokens / count, and its gradient by x [r, n, D], a block of tokens at a time."""
        r, n, _ = x.shape
        norm, head = self._outer(replicas)
        block = max(1, _BLOCK[self.device.type] // (r * self.shape.vocabulary))
        total, dx = 0.0, []
        for i in range(0, n, block):
            part = x[:, i : i + block], norm, head, targets[:, i : i + block]
            nats, dpart, dnorm, *factors = self._cross_entropy_backward(*part, 1.0 / count)
            total = total + nats
            dx.append(dpart)
            _put(self.outer_gradients["norm"][replicas], dnorm, first and i == 0)
            _multiply(self.outer_gradients["head"][replicas], *factors, first and i == 0)
        return total / count, dx[0] if len(dx) == 1 else torch.cat(dx, 1)

    def _store(self, j, visit, found, first):
        """Write or add the gradients that `layer_backward` found for layer j of the visited cells."""
        norms, factors = found[:2], found[2:]
        if isinstance(visit.cells, slice):
            into = self._view(self.layer_gradients, j, visit.cells)
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
                rows.index_copy_(0, visit.cells, found[name])
            else:
                rows.index_add_(0, visit.cells, found[name])

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

    def _outer(self, replicas):
        return self.outer["norm"][replicas], self.outer["head"][replicas].to(self._type)

    def _entries(self, tokens):
        """Rows of the replicas' tables, laid end to end, that tokens [r, ...] name."""
        first = self.shape.vocabulary * torch.arange(len(tokens), device=self.device)
        return (tokens.flatten(1) + first[:, None]).flatten()

    def _parts(self, position, x):
        return x.split([visit.paths for visit in position.visits] + [position.skips])

    def _rotary(self, length):
        if length not in self._angles:
            self._angles[length] = llama.rotary(length, self.shape.head_width, self.device)
        return self._angles[length]

    def _chosen(self, replicas):
        return slice(None) if replicas is None else torch.as_tensor(list(replicas), device=self.device)

    def _tokens(self, tokens, dimensions):
        tokens = moved(tokens, self.device)
        replicas = (self.replicas,) if dimensions == 4 else (1, self.replicas)
        if tokens.dim() != dimensions or tokens.shape[0] not in replicas:
            wanted = "[R, M, B, T + 1]" if dimensions == 4 else "[R or 1, N, T + 1]"
            raise ValueError(f"tokens have shape {list(tokens.shape)}: give {wanted} with R = {self.replicas}")
        return tokens.long().expand(self.replicas, *tokens.shape[1:])

    def _activations(self, x):
        if x.dim() != 4 or x.shape[0] != self.replicas or x.shape[3] != self.shape.width:
            wanted = f"[R, N, T, D] with R = {self.replicas} and D = {self.shape.width}"
            raise ValueError(f"activations have shape {list(x.shape)}: give {wanted}")
        return x

    def _microbatches(self, tokens, cells):
        """Share out sequences [R, N, ...] over the microbatches of a route: [R, M, B, ...]."""
        M = 1 if cells is None else cells.shape[2]
        if tokens.shape[1] % M:
            raise ValueError(
                f"{tokens.shape[1]} sequences cannot be shared out over the {M} microbatches of the route: "
                f"give a multiple of {M}"
            )
        return tokens.unflatten(1, (M, -1))

    def _plan(self, cells, microbatches, tokens):
        """Analyse a route, or find it among those seen; `tokens`: of each replica, taken at once."""
        R, S = self.replicas, self.shape.stages
        at_once = max(1, _GROUP[self.device.type] // (tokens * 2 * self.shape.hidden))
        if cells is None:
            place = np.indices((S, R, microbatches))
            cells = np.stack([place[1], place[0]], -1)
        cells = np.ascontiguousarray(cells, dtype=np.int64)
        if cells.ndim != 4 or cells.shape[1:] != (R, microbatches, 2):
            raise ValueError(f"the route has shape {list(cells.shape)}: give [positions, R={R}, M={microbatches}, 2]")
        key = cells.tobytes(), microbatches, at_once
        if key not in self._plans:
            replica, stage = cells[..., 0], cells[..., 1]
            wrong = (stage > S) | (stage < -1) | ((stage >= 0) & ((replica < 0) | (replica >= R)))
            wrong[:-1] |= stage[:-1] == S
            if wrong.any():
                raise ValueError(
                    f"the route visits (replica, stage) {tuple(cells[wrong][0].tolist())}: replicas are 0..{R - 1}, "
                    f"stages 0..{S - 1}, or -1 to skip, or at the last position {S} for the head"
                )
            heads = stage[-1:] == S
            if heads.any() and not (heads.all() and (np.sort(replica[-1], 0) == np.arange(R)[:, None]).all()):
                raise ValueError(
                    f"the route ends at (replica, stage) {cells[-1].tolist()}: give each head of replicas 0..{R - 1} "
                    f"one first microbatch, one second and so on, or leave stage {S} out"
                )
            self._plans[key] = plan(cells, S, at_once, self.device)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _check(self, replica, stage=0):
        if not 0 <= replica < self.replicas:
            raise IndexError(f"replica {replica} is not in this fleet: it has 0..{self.replicas - 1}")
        if not 0 <= stage <= self.shape.stages:
            known = f"0..{self.shape.stages - 1}, and {self.shape.stages} for its ends"
            raise IndexError(f"stage {stage} is not in this model: it has {known}")


_GROUP = {"cpu": 1 << 17, "cuda": 1 << 28}  # widest activations of a group; on the CPU 1 MiB, half its cache
_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 28}  # logits, or widest activations that nobody keeps, computed at a time
_GRAPH = {"cpu": 0, "cuda": 2e13}  # FLOPs of a step, some 50 ms, up to which launching its kernels may take longer
_PLANS = 64  # analysed routes kept


def _labels(group: Group, tokens: Tensor) -> Tensor:
    """Next tokens [r, M * B * T] of tokens [r, M, B, T + 1], at the heads that their paths end at."""
    labels = tokens[..., 1:]
    if group.heads is not None:
        labels = labels.flatten(0, 1)[group.heads].view(labels.shape)
    return labels.flatten(1)


def _put(gradient: Tensor, found: Tensor, first: bool) -> None:
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
    elif first:
        torch.ops.aten.bmm.dtype_out(a.mT, b, gradient.dtype, out=gradient)
    else:
        torch.ops.aten.baddbmm.dtype_out(gradient, a.mT, b, gradient.dtype, out=gradient)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[C, n, in] transposed times [C, n, out], in fp32; on CUDA without rounding sums of bf16 products in between."""
    if a.dtype != torch.float32 and a.is_cuda:
        return torch.ops.aten.bmm.dtype(a.mT, b, torch.float32)
    return torch.bmm(a.mT, b).float()


def generator_of(seed: int) -> torch.Generator:
    """What draws the initial weights of a replica, or of a stage that is drawn anew."""
    # torch's CPU generator reads 32 bits of a seed only; SeedSequence spreads seeds of any size over them.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(int(seed)).generate_state(1)[0]))
