"""What replicas exchange, and when: one small function a method, named in `SYNCS`.

A rule gets an `Exchange`, the weights of one run's N replicas side by side, and changes them in place. What crosses the
network it states by `send`, so that bytes and serial hops are counted.

- theta: weights in training ("fast"), phi: those after the last exchange ("slow"), delta: a buffer of the method's own,
  which starts at 0 and stays where it is; each [N, L, S, ...]: replica, layer of a stage, stage (NoLoCo, section 3.2)
- the outer gradient is theta - phi and points down the slope. NoLoCo's Eq. 2 has it with the wrong sign;
  "NoLoCo, as printed" shows what becomes of that
- every method but those on gradients can go in fragments, late, and mixed with the fast weights, as Streaming DiLoCo
  does (arXiv 2501.18512): that is "DiLoCo" with `fragments`, `delay` and `mixing`
- a stage that is lost and rebuilt keeps its phi and delta: the next exchange pulls it back to where it was
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from swarmbook.methods.costs import Costs

if TYPE_CHECKING:
    from torch import Tensor

    Weights = dict[str, Tensor]  # by parameter, each [N, L, S, ...]; embedding, norm and head have L = S = 1


@dataclass
class Exchange:
    """One exchange among the N replicas of a run, of all their weights or of one fragment.

    tensors: (theta, phi, delta) of every parameter, each [N, L, S, ...], to be changed in place; phi and delta are None
    for methods that keep nothing. groups: int [N / n, n], who meets whom. momentum, lr, consensus, density: alpha,
    beta, gamma of NoLoCo and the share of entries that SparseLoCo sends, as configured. late: training goes on while
    the exchange is on its way. present: bool [N], who takes part; None: all. held: whose the tensors are; None: all's.
    """

    tensors: "Sequence[tuple[Tensor, Tensor | None, Tensor | None]]"
    groups: np.ndarray
    momentum: float = 0.5
    lr: float = 0.7
    consensus: float = 0.7
    density: float = 1.0
    late: bool = False
    costs: Costs = field(default_factory=Costs)
    present: np.ndarray | None = None
    held: range | None = None

    def __iter__(self) -> "Iterator[tuple[Tensor, Tensor | None, Tensor | None]]":
        return iter(self.tensors)

    @property
    def replicas(self) -> int:
        """How many take part."""
        return self.groups.size if self.present is None else int(self.present.sum())

    @property
    def absent(self) -> list[int]:
        """Rows of the tensors whose replicas do not take part."""
        held = self.held or range(self.groups.size)
        return [] if self.present is None else [i for i, replica in enumerate(held) if not self.present[replica]]

    @property
    def size(self) -> int:
        """Bytes of one replica's share of what is exchanged."""
        return sum(theta[0].numel() * theta.element_size() for theta, _, _ in self.tensors)

    def mean(self, tensor: "Tensor") -> "Tensor":
        """For every replica the mean over those of its group who are present, [N, ...]; its own if nobody is."""
        import torch  # here, so that configurations need no torch

        from swarmbook.training.device import moved

        groups = moved(self.groups, tensor.device)
        out = torch.empty_like(tensor)
        if self.present is None:
            out[groups] = tensor[groups].mean(1, keepdim=True).expand(-1, groups.shape[1], *tensor.shape[1:])
            return out
        there = torch.from_numpy(self.present).to(tensor)[groups]  # [N / n, n]
        share = (there / there.sum(1, keepdim=True).clamp(min=1)).view(*there.shape, *[1] * (tensor.dim() - 1))
        means = (tensor[groups] * share).sum(1, keepdim=True)  # [N / n, 1, ...]
        out[groups] = means.expand(-1, groups.shape[1], *tensor.shape[1:])
        nobody = groups[~there.any(1)]
        out[nobody] = tensor[nobody]
        return out

    def send(self, copies: float, hops: int, early: float = 0) -> None:
        """Every replica present sends `copies` times what is exchanged, in `hops` messages that wait for one another.

        early: how many of the copies are known, and sent, before the step of the exchange.
        """
        self.costs.add("sent in training", round(self.replicas * copies * self.size))
        background = copies if self.late else early
        if background:
            self.costs.add("sent in background", round(self.replicas * background * self.size))
        self.costs.add("serial hops", hops)

    def send_to_group(self, copies: float, early: float = 0) -> None:
        """Every replica sends these copies to each other member of its group, all at once."""
        others = self.groups.shape[1] - 1
        if self.present is not None:
            there = self.present[self.groups].sum(1)
            others = (there * (there - 1)).sum() / max(1, there.sum())  # on average
        self.send(copies * others, hops=int(others > 0), early=early * others)

    def send_to_all(self) -> None:
        """An all-reduce, at its best: a ring sends the least, 2 (N - 1) / N copies; a tree waits for 2 log2 N hops."""
        N = max(1, self.replicas)
        self.send(2 * (N - 1) / N, hops=2 * math.ceil(math.log2(N)))


Rule = Callable[[Exchange], None]


@dataclass(frozen=True)
class Method:
    """A rule and what it works on.

    groups: it connects the groups of the matching, otherwise all replicas. keeps: it has slow weights and a buffer.
    gradients: it works on the clipped gradients of every step, as theta, before the inner optimizer does.
    tied: it takes the consensus for the learning rate, gamma = beta. alike: all replicas make the same outer step and
    nothing pulls them together, so that they have to start alike.
    """

    rule: Rule
    groups: bool = True
    keeps: bool = True
    gradients: bool = False
    tied: bool = False
    alike: bool = False


SYNCS: dict[str, Method | None] = {"none": None}


def sync(name: str, **options) -> Callable[[Rule], Rule]:
    """Register a rule under a name; `options` are the fields of `Method`."""

    def register(rule: Rule) -> Rule:
        SYNCS[name] = Method(rule, **options)
        return rule

    return register


@sync("all-reduce", groups=False, keeps=False, gradients=True, alike=True)
def all_reduce(x: Exchange) -> None:
    """Data-parallel training: gradients, each clipped on its own, are averaged in every step ("FSDP" in NoLoCo)."""
    for gradient, _, _ in x:
        gradient.copy_(x.mean(gradient))
    x.send_to_all()


@sync("DiLoCo", groups=False, alike=True)
def diloco(x: Exchange) -> None:
    """Outer gradients averaged over all, then heavy-ball momentum, as NoLoCo's released baseline has it."""
    for theta, phi, delta in x:
        delta.mul_(x.momentum).add_(x.mean(theta - phi), alpha=x.lr)
        phi.add_(delta)
        theta.copy_(phi)
    x.send_to_all()


@sync("DiLoCo, Nesterov", groups=False, alike=True)
def diloco_nesterov(x: Exchange) -> None:
    """DiLoCo as its own paper has it (arXiv 2311.08105): Nesterov's momentum, which looks one step ahead."""
    for theta, phi, delta in x:
        gradient = x.mean(theta - phi)
        delta.mul_(x.momentum).add_(gradient)
        phi.add_(gradient + x.momentum * delta, alpha=x.lr)
        theta.copy_(phi)
    x.send_to_all()


@sync("NoLoCo")
def noloco(x: Exchange) -> None:
    """Outer gradients and slow weights averaged within a group (NoLoCo Eq. 1 to 3, sign of the gradient corrected)."""
    _noloco(x, slope=1)
    x.send_to_group(copies=2)


@sync("NoLoCo, prefetched")
def noloco_prefetched(x: Exchange) -> None:
    """The same numbers; slow weights, known since the last exchange, went ahead to the next partner (section 3.2)."""
    _noloco(x, slope=1)
    x.send_to_group(copies=2, early=1)


@sync("NoLoCo, one tensor", tied=True)
def noloco_one_tensor(x: Exchange) -> None:
    """The same for gamma = beta, as released, where fast weights are all that must be sent: half the bytes."""
    for theta, phi, delta in x:
        delta.mul_(x.momentum).add_(x.mean(theta).sub_(phi), alpha=x.lr)
        phi.add_(delta)
        theta.copy_(phi)
    x.send_to_group(copies=1)


@sync("NoLoCo, as printed")
def noloco_as_printed(x: Exchange) -> None:
    """Eq. 2 with the sign that the paper prints: it climbs."""
    _noloco(x, slope=-1)
    x.send_to_group(copies=2)


def _noloco(x: Exchange, slope: int) -> None:
    for theta, phi, delta in x:
        pull = x.mean(phi).sub_(phi)
        delta.mul_(x.momentum).add_(x.mean(theta - phi), alpha=slope * x.lr).add_(pull, alpha=x.consensus)
        phi.add_(delta)
        theta.copy_(phi)


@sync("gossip", keeps=False)
def gossip(x: Exchange) -> None:
    """Weights averaged within a group, and no momentum (epidemic learning, arXiv 2310.01972)."""
    for theta, _, _ in x:
        theta.copy_(x.mean(theta))
    x.send_to_group(copies=1)


@sync("SparseLoCo", groups=False, alike=True)
def sparse_loco(x: Exchange) -> None:
    """DiLoCo that sends the largest entries of each matrix's outer gradient and keeps the rest (arXiv 2508.15706).

    delta is the error feedback, which decays by `momentum`. A sent entry costs its value and a 4-byte place, and
    reaches all others by an all-gather, since places differ.
    """
    sent = 0
    for theta, phi, delta in x:
        delta.mul_(x.momentum).add_(theta - phi)
        flat = delta.flatten(3)  # [N, L, S, k]
        kept = max(1, round(x.density * flat.shape[3]))
        places = flat.abs().topk(kept, dim=3).indices
        sparse = flat.new_zeros(flat.shape).scatter_(3, places, flat.gather(3, places)).view(delta.shape)
        sparse[x.absent] = 0  # what an absent replica does not send, it keeps
        delta.sub_(sparse)
        phi.add_(x.mean(sparse), alpha=x.lr)
        theta.copy_(phi)
        sent += places[0].numel() * (theta.element_size() + 4)
    others = max(0, x.replicas - 1)
    x.send(others * sent / x.size, hops=math.ceil(math.log2(others + 1)))


OURS = dict(SYNCS)  # whose numbers `NUMERICS` stands for; of any other the key of a run holds the code
