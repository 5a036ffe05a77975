"""R replicas x S stages of a LLaMA, trained by one stacked forward and backward pass.

- a Route is data: which cell each microbatch visits at each position. Activations are sorted by cell, not
  weights, so swapped stages and hops to other replicas cost one index per position
- replicas that no route connects go forward and backward one group after another, so that a group's
  activations stay in the cache and only one group's are held

Serves: every trained run and every measurement on one.
"""

from collections import OrderedDict
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from swarmbook.training import llama
from swarmbook.training.cuda_graph import GraphedCall
from swarmbook.training.device import moved
from swarmbook.training.execution_plan import Group, checked_route, plan
from swarmbook.training.stacked_stages import StackedStages


class Fleet(StackedStages):
    """R replicas x S stages of a LLaMA, trained together. Arguments as of `StackedStages`."""

    @cached_property
    def _plans(self) -> OrderedDict[tuple, list[Group]]:
        """The routes analysed last, the latest at the end."""
        return OrderedDict()

    @cached_property
    def _graphed(self) -> GraphedCall:
        return GraphedCall(self.device)

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
            loss, dx = self.head_backward(group.replicas, x, _labels(group, own), count, first)
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
            block = self.at_a_time(own * M * T * self.shape.vocabulary)
            parts = []
            for part in tokens[group.replicas].split(block, dim=2):
                x = self._forward(group, part[..., :-1])
                norm, head = self.norm_and_head(group.replicas)
                nats = self._kernels.cross_entropy(x, norm, head, _labels(group, part))
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
        logits = llama.logits(x, *self.norm_and_head(slice(None))).view(self.replicas * split.shape[1], -1)
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
        return torch.nn.functional.embedding(self.table_rows(tokens), table).view(*tokens.shape, -1)

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
            block = self.at_a_time((rows.stop - rows.start) * T * 2 * self.shape.hidden)
            for part, into in zip(x[rows].split(block, 1), out[rows].split(block, 1), strict=True):
                y = self.stage_forward(cells, part.flatten(1, 2), T, compiled=False)  # [r, n, D]
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
            losses.append(self.head_nats(rows, x[rows].flatten(1, 2), targets[rows].flatten(1), T))
        losses = torch.cat(losses)  # [R, N * T]
        return losses.unflatten(1, (-1, T)).mean(2) if per_sequence else losses.mean(1)

    def _forward(self, group, tokens, kept=None):
        """Embed tokens [r, M, B, T] and send them along the route to the heads: [r, M * B * T, D]."""
        r, M, B, T = tokens.shape
        D = self.shape.width
        table = self.outer["embedding"][group.replicas].flatten(0, 1)
        x = torch.nn.functional.embedding(self.table_rows(tokens), table).view(r * M, B * T, D)
        for position in group.positions:
            x = x if position.order is None else x[position.order]
            done = []
            for visit, part in zip(position.visits, self._parts(position, x), strict=False):
                y = part.view(-1, visit.microbatches * B * T, D)
                # Odd shapes come and go with the route: compiling each would take longer than it saves.
                compiled = visit.paths == r * M and kept is not None
                y = self.stage_forward(visit.cells, y, T, kept, compiled)
                done.append(y.view(part.shape))
            if len(done) == 1 and position.skips == 0:
                x = done[0]
            elif done:
                x = torch.cat([*done, x[len(x) - position.skips :]])
        return x.view(r, M * B * T, D)

    def _backward(self, group, tokens, dx, kept, first):
        """Gradients of all that `_forward` went through, written if `first`, else added; dx [r, M * B * T, D]."""
        r, M, B, T = tokens.shape
        D = self.shape.width
        if first and group.idle is not None:
            for gradient in self.layer_gradients.values():
                gradient.flatten(1, 2).index_fill_(1, group.idle, 0.0)
        dx = dx.view(r * M, B * T, D)
        for position in reversed(group.positions):
            done = []
            for visit, part in reversed(list(zip(position.visits, self._parts(position, dx), strict=False))):
                dy = part.view(-1, visit.microbatches * B * T, D)
                whole = visit.paths == r * M
                dy = self.stage_backward(visit.cells, dy, T, kept, first and visit.first, whole)
                done.append(dy.view(part.shape))
            if len(done) == 1 and position.skips == 0:
                dx = done[0]
            elif done:
                dx = torch.cat([*reversed(done), dx[len(dx) - position.skips :]])
            dx = dx if position.back is None else dx[position.back]
        self.embedding_backward(group.replicas, tokens, dx, first)

    def _parts(self, position, x):
        return x.split([visit.paths for visit in position.visits] + [position.skips])

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
        widest = _GROUP[self.device.type] * (1 if self._kernels is llama else 4)  # kernels need less memory for each
        at_once = max(1, widest // (tokens * 2 * self.shape.hidden))
        if cells is None:
            place = np.indices((self.shape.stages, self.replicas, microbatches))
            cells = np.stack([place[1], place[0]], -1)
        cells = np.ascontiguousarray(cells, dtype=np.int64)
        key = cells.shape, cells.tobytes(), microbatches, at_once
        if key not in self._plans:
            checked_route(cells, self.replicas, self.shape.stages, microbatches)
            self._plans[key] = plan(cells, self.shape.stages, at_once, self.device)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]


_GROUP = {"cpu": 1 << 17, "cuda": 1 << 28}  # widest activations of a group; on the CPU 1 MiB, half its cache
_GRAPH = {"cpu": 0, "cuda": 2e13}  # FLOPs of a step, some 50 ms, up to which launching its kernels may take longer
_PLANS = 64  # analysed routes kept


def _labels(group: Group, tokens: Tensor) -> Tensor:
    """Next tokens [r, M * B * T] of tokens [r, M, B, T + 1], at the heads that their paths end at."""
    labels = tokens[..., 1:]
    if group.heads is not None:
        labels = labels.flatten(0, 1)[group.heads].view(labels.shape)
    return labels.flatten(1)
