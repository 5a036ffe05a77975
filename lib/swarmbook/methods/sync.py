"""What replicas exchange: one small function a method, named in `SYNCS`.

It is one concept, longer than most, since methods are read side by side. A rule gets an `Exchange`, which holds the
weights of one run's N replicas side by side, and changes them in place. By `send` it states what crosses the network,
so that bytes and serial hops are counted.

- theta are the fast weights, which are in training. phi are the slow weights, which the last exchange left. A method
  has as many buffers of its own as it names, one called delta if it names none. They start at 0, are never sent, and
  are in every checkpoint. Each is [N, L, S, ...]: replica, layer of a stage, stage (NoLoCo, section 3.2)
- a method has parameters of its own behind a star: `def rule(x, *, beta=0.9)`. `RunConfig.method` sets them
- the outer gradient, or pseudo-gradient, is theta - phi here and points down the slope. NoLoCo prints it in Eq. 2 with
  the wrong sign; "NoLoCo, as printed" shows what becomes of that
- every method but those on gradients can exchange in fragments, with a delay, and mixed with the fast weights. "DiLoCo"
  with these fields is Streaming DiLoCo (arXiv 2501.18512). In torchft's DiLoCo `fragment_sync_delay` is our `delay`,
  `fragment_update_alpha` our `mixing`, and its model fragments are our `fragments`
- the inner optimizer is another choice: MuLoCo (arXiv 2505.23725) is "DiLoCo, Nesterov", or one of the exchanges in few
  bits, with `optimizer="Muon"`; DeMo as published is "DeMo" with `optimizer="signSGD"`
- a stage that is lost and rebuilt keeps its phi and buffers, so that the next exchange pulls it back to where it was,
  unless a run's `slow_weights` says what else becomes of them

Serves: NoLoCo figures 2 and 3, tables 2 and 3, and its comparison with other methods; CheckFree under exchanges.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from swarmbook.errors import ConfigError
from swarmbook.methods import chunked_dct, quantisation
from swarmbook.methods.costs import Costs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Exchange:
    """One exchange among the N replicas of a run, of all their weights or of one fragment. Iterating gives `tensors`.

    tensors: (theta, phi, *buffers) of every parameter, each [N, L, S, ...], to be changed in place. The ends have
    L = S = 1. phi is None for methods that keep no slow weights. groups: the replicas that meet, int [N / n, n].
    momentum, lr, consensus: alpha, beta and gamma of NoLoCo, Eq. 2. density: the share of entries that SparseLoCo
    sends. late: whether training goes on while the result is on its way. costs: where what is sent is counted. present:
    the replicas that take part, bool [N]; None for all. step: the number of this outer step, from 0; of the training
    step, for methods on gradients. held: the replicas whose tensors these are; None for all. names: of each parameter,
    such as "layers.qkv" or "ends.head"; empty where nobody says.
    """

    tensors: "Sequence[tuple[Tensor | None, ...]]"
    groups: np.ndarray
    momentum: float = 0.5
    lr: float = 0.7
    consensus: float = 0.7
    density: float = 1.0
    late: bool = False
    costs: Costs = field(default_factory=Costs)
    present: np.ndarray | None = None
    step: int = 0
    held: range | None = None
    names: Sequence[str] = ()

    def __iter__(self) -> "Iterator[tuple[Tensor | None, ...]]":
        return iter(self.tensors)

    @property
    def replicas(self) -> int:
        """The number of replicas that take part."""
        return self.groups.size if self.present is None else int(self.present.sum())

    @property
    def absent(self) -> list[int]:
        """The rows of the tensors that belong to replicas that do not take part."""
        held = self.held or range(self.groups.size)
        return [] if self.present is None else [i for i, replica in enumerate(held) if not self.present[replica]]

    @property
    def size(self) -> int:
        """The bytes that one replica has of what is exchanged: one copy."""
        return sum(theta[0].numel() * theta.element_size() for theta, *_ in self.tensors)

    def mean(self, tensor: "Tensor", everyone: bool = False) -> "Tensor":
        """For every replica the mean over the present members of its group, [N, ...]; its own value if none is.

        everyone: over all replicas that are present, whatever the groups.
        """
        import torch  # here, so that configurations need no torch

        groups = torch.from_numpy(self.groups).reshape(*(1, -1) if everyone else self.groups.shape)
        if tensor.is_cuda:  # through pinned memory, so that nobody waits until the groups have arrived
            groups = groups.pin_memory().to(tensor.device, non_blocking=True)
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
        """Count that every replica present sends `copies` copies, in `hops` messages that wait for one another.

        early: the copies among these that are known, and sent, before the step of the exchange.
        """
        self.costs.add("sent in training", round(self.replicas * copies * self.size))
        background = copies if self.late else early
        if background:
            self.costs.add("sent in background", round(self.replicas * background * self.size))
        self.costs.add("serial hops", hops)

    def send_to_group(self, copies: float, early: float = 0) -> None:
        """Count that every replica sends `copies` copies to each other member of its group, all at once."""
        others = self.groups.shape[1] - 1
        if self.present is not None:
            there = self.present[self.groups].sum(1)
            others = (there * (there - 1)).sum() / max(1, there.sum())  # on average
        self.send(copies * others, hops=int(others > 0), early=early * others)

    def send_to_all(self, share: float = 1.0, early: bool = False) -> None:
        """Count an all-reduce at its best: 2 (N - 1) / N copies, as in a ring, and 2 log2 N hops, as in a tree.

        share: the bytes that are sent for each byte of a copy. early: whether all is known before the step.
        """
        N = max(1, self.replicas)
        copies = 2 * (N - 1) / N * share
        self.send(copies, hops=2 * math.ceil(math.log2(N)), early=copies * early)

    def send_to_each(self, share: float) -> None:
        """Count an all-gather, for what differs in form from replica to replica: `share` of a copy to each other."""
        others = max(0, self.replicas - 1)
        self.send(others * share, hops=math.ceil(math.log2(others + 1)))


Rule = Callable[..., None]
NOT_BUFFERS = ("theta", "phi", "sync", "fragments", "arriving")  # what a state has besides


@dataclass(frozen=True)
class Method:
    """A rule and what it works on.

    groups: whether it works within the groups of the matching, and not among all replicas. keeps: whether it has slow
    weights. buffers: the names of its buffers; None for "delta" if it has slow weights, and else for none. gradients:
    whether it works on the clipped gradients of every step, given as theta, before the inner optimiser sees them. tied:
    whether it supposes gamma = beta, the consensus equal to the outer learning rate. alike: whether all replicas make
    the same outer step, so that they must start alike because nothing would pull them together.
    """

    rule: Rule
    groups: bool = True
    keeps: bool = True
    gradients: bool = False
    tied: bool = False
    alike: bool = False
    buffers: tuple[str, ...] | None = None

    def __post_init__(self):
        given = (("delta",) if self.keeps else ()) if self.buffers is None else tuple(self.buffers)
        taken = [name for k, name in enumerate(given) if name in (*NOT_BUFFERS, *given[:k])]
        if taken:
            raise ConfigError(f"buffers={given}: {taken[0]!r} is taken; give each buffer a name of its own")
        object.__setattr__(self, "buffers", given)


SYNCS: dict[str, Method | None] = {"none": None}


def sync(name: str, **options) -> Callable[[Rule], Rule]:
    """Register a rule under a name; `options` are the other fields of `Method`."""

    def register(rule: Rule) -> Rule:
        SYNCS[name] = Method(rule, **options)
        return rule

    return register


@sync("all-reduce", groups=False, keeps=False, gradients=True, alike=True)
def all_reduce(x: Exchange) -> None:
    """Data-parallel training: the replicas' clipped gradients are averaged in every step ("FSDP" in NoLoCo)."""
    for gradient, *_ in x:
        gradient.copy_(x.mean(gradient))
    x.send_to_all()


@sync("DiLoCo", groups=False, alike=True)
def diloco(x: Exchange) -> None:
    """Outer gradients averaged over all replicas, then heavy-ball momentum, as in NoLoCo's released baseline."""
    for theta, phi, delta in x:
        delta.mul_(x.momentum).add_(x.mean(theta - phi), alpha=x.lr)
        phi.add_(delta)
        theta.copy_(phi)
    x.send_to_all()


@sync("DiLoCo, Nesterov", groups=False, alike=True)
def diloco_nesterov(x: Exchange) -> None:
    """DiLoCo as in its own paper (arXiv 2311.08105), with Nesterov's momentum, which looks one step ahead."""
    for theta, phi, delta in x:
        _nesterov(x, phi, delta, x.mean(theta - phi))
        theta.copy_(phi)
    x.send_to_all()


def _few_bits(bits: int) -> Rule:
    """DiLoCo whose outer gradients are sent in so many bits an entry, with error feedback (arXiv 2505.23725).

    Each tensor of a layer is quantised on its own (`methods.quantisation`), on its way to the others and, as their
    mean, on its way back. "error" is what the first did not say, which decays by `error_decay` and goes with the next
    outer gradient. The released code multiplies by the outer learning rate before and after; here it is done once.
    """

    def rule(x: Exchange, *, error_decay: float = 0.95) -> None:
        sent = 0
        for theta, phi, momentum, error in x:
            owed = error.mul_(error_decay).add_(theta - phi).flatten(3)
            said = quantisation.quantised(owed, bits)
            said[x.absent] = 0  # what an absent replica does not send, it keeps
            error.sub_(said.view_as(error))
            gradient = quantisation.quantised(x.mean(said), bits).view_as(theta)
            _nesterov(x, phi, momentum, gradient)
            theta.copy_(phi)
            sent += owed[0, ..., 0].numel() * quantisation.bytes_sent(owed.shape[3], bits)
        x.send_to_all(share=sent / x.size)

    return rule


for _bits in (4, 2):
    sync(f"DiLoCo, {_bits} bits", groups=False, alike=True, buffers=("momentum", "error"))(_few_bits(_bits))


@sync("Decoupled DiLoCo", groups=False, alike=True)
def decoupled_diloco(x: Exchange) -> None:
    """DiLoCo through one synchronizer that merges norms and directions apart (arXiv 2604.21428).

    The merged outer gradient of a tensor has the mean of the replicas' norms as its norm, and the mean of their unit
    directions as its direction, so that it does not shrink with the number of replicas whose gradients are orthogonal.
    Embedding and head are averaged as they are. Learners are weighted by their tokens there; here all have as many. Of
    what else the paper has, `fragments`, `delay` and `mixing` are the fragments and the overlap, and `absent` with
    rejoin="own" is a learner that misses the quorum; how long the synchronizer waits for more than a quorum costs time
    and is not modelled. Known from accounts of the paper by others and from code that follows it.
    """
    for name, (theta, phi, delta) in zip(x.names or [""] * len(x.tensors), x, strict=True):
        gradient = theta - phi
        merged = x.mean(gradient)
        if name not in ("ends.embedding", "ends.head"):
            norm = gradient.flatten(3).norm(dim=3).view(*gradient.shape[:3], *[1] * (gradient.dim() - 3))
            direction = x.mean(gradient / norm.where(norm > 0, 1.0))
            length = direction.flatten(3).norm(dim=3).view_as(norm)
            scaled = direction * (x.mean(norm) / length.where(length > 0, 1.0))
            merged = scaled.where(length > 1e-12, merged)
        _nesterov(x, phi, delta, merged)
        theta.copy_(phi)
    x.send(copies=2 * (x.replicas > 1), hops=2 * (x.replicas > 1))  # to the synchronizer and back


def _nesterov(x: Exchange, phi: "Tensor", delta: "Tensor", gradient: "Tensor") -> None:
    """An outer step with Nesterov's momentum, as torch.optim.SGD makes it; delta is the momentum."""
    delta.mul_(x.momentum).add_(gradient)
    phi.add_(gradient + x.momentum * delta, alpha=x.lr)


@sync("NoLoCo")
def noloco(x: Exchange) -> None:
    """Outer gradients and slow weights averaged within a group (NoLoCo, Eq. 1 to 3, its sign corrected)."""
    _noloco(x, slope=1)
    x.send_to_group(copies=2)


@sync("NoLoCo, prefetched")
def noloco_prefetched(x: Exchange) -> None:
    """NoLoCo's numbers, but the slow weights, known since the last exchange, are sent early (NoLoCo, section 3.2)."""
    _noloco(x, slope=1)
    x.send_to_group(copies=2, early=1)


@sync("NoLoCo, one tensor", tied=True)
def noloco_one_tensor(x: Exchange) -> None:
    """NoLoCo with gamma = beta, as released: there only fast weights need to be sent, which are half the bytes."""
    for theta, phi, delta in x:
        delta.mul_(x.momentum).add_(x.mean(theta).sub_(phi), alpha=x.lr)
        phi.add_(delta)
        theta.copy_(phi)
    x.send_to_group(copies=1)


@sync("NoLoCo, as printed")
def noloco_as_printed(x: Exchange) -> None:
    """NoLoCo with the sign that Eq. 2 prints: it climbs."""
    _noloco(x, slope=-1)
    x.send_to_group(copies=2)


def _noloco(x: Exchange, slope: int) -> None:
    for theta, phi, delta in x:
        pull = x.mean(phi).sub_(phi)
        delta.mul_(x.momentum).add_(x.mean(theta - phi), alpha=slope * x.lr).add_(pull, alpha=x.consensus)
        phi.add_(delta)
        theta.copy_(phi)


@sync("GASLoC")
def gasloc(x: Exchange, *, gossip: float = 1.0) -> None:
    """Gossip that the outer momentum accelerates (arXiv 2606.11081).

    With y = phi + beta (theta - phi), the weights after the local update, the next slow weights are y, drawn towards
    the group by `gossip` times the way to its mean, plus momentum times the change of y since the last exchange. With
    pairs, the paper's gossip step alpha and weight lambda are gossip = 2 alpha lambda here. delta is the last y less
    the slow weights that followed. The mean over replicas is that of DiLoCo with Nesterov's momentum. The update is
    known from a transcription by others; the paper itself could not be had.
    """
    for theta, phi, delta in x:
        step = (theta - phi).mul_(x.lr)
        change = step - delta
        y = phi + step
        phi.copy_(y).add_(x.mean(y).sub_(y), alpha=gossip).add_(change, alpha=x.momentum)
        delta.copy_(y).sub_(phi)
        theta.copy_(phi)
    x.send_to_group(copies=1)


@sync("Factored Gossip DiLoCo")
def factored_gossip_diloco(x: Exchange) -> None:
    """DiLoCo in two mixing steps, of which the larger one hides behind the inner steps (arXiv 2606.22768).

    The slow weights are averaged over all replicas while the inner steps go on from each replica's own, and outer
    gradients within a group, for which all wait. With group=1 nothing blocks. Momentum is each replica's own. Known
    from accounts of the paper by others; its choice of groups is not, so that it is the run's matching here.
    """
    for theta, phi, delta in x:
        gradient = x.mean(theta - phi)
        phi.copy_(x.mean(phi, everyone=True))
        _nesterov(x, phi, delta, gradient)
        theta.copy_(phi)
    x.send_to_all(early=True)
    x.send_to_group(copies=1)


@sync("gossip", keeps=False)
def gossip(x: Exchange) -> None:
    """Weights averaged within a group, without momentum (epidemic learning, arXiv 2310.01972)."""
    for theta, *_ in x:
        theta.copy_(x.mean(theta))
    x.send_to_group(copies=1)


@sync("SparseLoCo", groups=False, alike=True)
def sparse_loco(x: Exchange) -> None:
    """DiLoCo that sends the largest entries of each matrix's outer gradient and keeps the rest (arXiv 2508.15706).

    delta is the error feedback: what was not sent, which decays by the factor `momentum`. A sent entry costs its value
    and 4 bytes for its place. Entries reach all other replicas by an all-gather, since their places differ.
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
    x.send_to_each(sent / x.size)


@sync("DeMo", groups=False, keeps=False, gradients=True, alike=True, buffers=("momentum",))
def demo(x: Exchange, *, decay: float = 0.999, chunk: int = 64, kept: int = 32) -> None:
    """In every step the fastest part of each replica's momentum, and no more (DeMo, arXiv 2411.19870, Algorithm 1).

    The momentum is seen in chunks of at most chunk x chunk entries, as frequencies (`methods.chunked_dct`). The `kept`
    largest of each chunk are sent and taken off the momentum. A frequency arrives as the mean over those who sent it.
    What they are together takes the place of the gradient; with `optimizer="signSGD"` its sign is the step, as
    published. A gradient counts alike whatever the learning rate of its step, by which the paper multiplies it.
    Of a chunk that gets no more gradients all is sent in the end, and then the sign is that of rounding errors.
    """
    sent = 0
    for gradient, _, momentum in x:
        matrices = gradient.dim() > 4
        found = chunked_dct.frequencies(momentum.mul_(decay).add_(gradient), matrices, chunk)
        said = chunked_dct.largest(found, kept)
        said[x.absent] = False
        found = found.where(said, 0.0)
        momentum.sub_(chunked_dct.from_frequencies(found, momentum, matrices, chunk))
        senders = x.mean(said.to(found))
        heard = x.mean(found) / senders.where(senders > 0, 1.0)
        gradient.copy_(chunked_dct.from_frequencies(heard, gradient, matrices, chunk))
        chunks = found[0].numel() // found.shape[-1] if found.numel() else 0
        sent += chunks * min(max(1, kept), found.shape[-1]) * (gradient.element_size() + 4)
    x.send_to_each(sent / x.size)


OURS = dict(SYNCS)  # `NUMERICS` stands for the numbers of these; the key of a run holds the code of any other rule
