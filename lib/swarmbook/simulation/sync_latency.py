"""How long synchronising takes: when replicas that wait for each other reach an outer step, in seconds.

This is the latency model of NoLoCo (section 5.3) at full scale, with what it leaves out:

- times are log-normal (`Delay`). A message takes a random latency and, beyond the paper, bytes / bandwidth (`Link`)
- `tree`, `ring` and `pair` draw how long one exchange takes. `expected_tree` computes the mean of a tree's without
  drawing. Figure 5A shows tree over pair
- `barrier` says when each outer step ends if all replicas wait for all, and `gossip` if each waits for its own group.
  `blocking_overhead` is their ratio (figure 5B), also at the intervals that the paper trains with
- `wall_clock` puts exchanges and waiting together for the methods in `EXCHANGES`. `seconds_at` and `seconds_to` turn a
  curve of loss over steps into loss over time, and into the time to a loss

Serves: NoLoCo figures 5A and 5B with their claims, and its figure and table of time to perplexity.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from swarmbook.errors import ConfigError, unknown
from swarmbook.methods.gossip_groups import deal

MEGABIT = 125_000.0  # bytes
VERSION = 1  # of what `blocking_overhead` gives: to be raised when the same arguments would give other numbers


@dataclass(frozen=True)
class Delay:
    """A log-normal time with its mean in seconds and its spread, the standard deviation over the mean.

    Without spread it is constant. Raises `ConfigError` unless both are at least 0 and finite.
    """

    mean: float = 1.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mean", "spread"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}={value!r} is not one of a time: give a finite number of at least 0")

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm: sqrt(ln(1 + spread ** 2))."""
        return math.sqrt(math.log1p(self.spread**2))

    def draw(self, rng: np.random.Generator, shape: int | Sequence[int]) -> np.ndarray:
        """Independent times of any shape."""
        if not self.spread:
            return np.full(shape, float(self.mean))
        times = rng.standard_normal(shape)
        times *= self.sigma
        np.exp(times, out=times)
        times *= self.mean * math.exp(-(self.sigma**2) / 2)
        return times

    def mean_of_later(self) -> float:
        """Mean of the later of two such times: mean * (1 + erf(sigma / 2)) (NoLoCo, equation 7)."""
        return self.mean * (1 + math.erf(self.sigma / 2))

    def masses(self, seconds: np.ndarray) -> np.ndarray:
        """Chance [n] that the time is nearest to each of `seconds` [n], which are equally spaced from 0."""
        edges = seconds[1:] - (seconds[1] - seconds[0]) / 2
        if not self.spread:
            below = (edges > self.mean).astype(float)
        else:
            below = special.ndtr((np.log(edges / self.mean) + self.sigma**2 / 2) / self.sigma)
        return np.diff(below, prepend=0.0, append=1.0)


INNER_STEP = Delay(mean=math.exp(1.25), spread=math.sqrt(math.expm1(0.5)))  # mu = 1, sigma^2 = 0.5; section 5.3


@dataclass(frozen=True)
class Link:
    """What a message crosses. Every message draws its own latency and has the bandwidth (bytes per second) to itself.

    The default is the paper's, which counts latency alone. Raises `ConfigError` for a bandwidth that is not positive.
    """

    latency: Delay = Delay()
    bandwidth: float = math.inf

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ConfigError(f"bandwidth={self.bandwidth!r} lets nothing through: give more than 0 bytes per second")

    def draw(self, rng: np.random.Generator, shape: int | Sequence[int], size: float = 0.0) -> np.ndarray:
        """Independent seconds of messages of `size` bytes: latency + size / bandwidth. `ConfigError` for no size."""
        if not 0 <= size < math.inf:
            raise ConfigError(f"size={size!r} is none of a message: give a finite number of bytes, at least 0")
        return self.latency.draw(rng, shape) + size / self.bandwidth


def tree(rng: np.random.Generator, trials: int, nodes: int, link: Link = Link(), size: float = 0.0) -> np.ndarray:
    """Seconds [trials] of all-reducing `size` bytes over a binary tree with `nodes` leaves (NoLoCo, section 5.3).

    On the way up a parent goes on when the messages of both its children are there; on the way down a child goes on
    when its own message is there. Every edge draws its own time, and no level waits for another as a whole. With
    constant times it takes 2 log2(nodes) messages (equation 5). Raises `ConfigError` unless `nodes` is a power of 2.
    """
    levels = _levels(nodes)
    at = np.zeros((trials, nodes))
    for _ in range(levels):
        at = (at + link.draw(rng, at.shape, size)).reshape(trials, -1, 2).max(-1)
    for _ in range(levels):
        at = at.repeat(2, axis=1)
        at += link.draw(rng, at.shape, size)
    return at.max(1)


def expected_tree(levels: int, link: Link = Link(), size: float = 0.0, cells: int = 2**17) -> np.ndarray:
    """Mean seconds [levels + 1] of `tree` over 1, 2, 4 ... 2 ** levels leaves, computed without drawing.

    The time of a node is the later of two independent sums T + t, where T is the time of a child and t that of its
    message. That is one convolution and one square a level, on a grid of `cells` times. The ways up and down have the
    same mean. The grid makes the result wrong by less than 0.01 % for a spread of up to 2.5.
    """
    delay, transfer = link.latency, size / link.bandwidth
    if not delay.mean:
        return 2 * transfer * np.arange(levels + 1)
    # Beyond 6.5 standard deviations of the logarithm lies less than 1e-10 of a message; the mean is on the grid.
    spacing = delay.mean / max(1, int(cells / (4 * levels + math.exp(6.5 * delay.sigma))))
    seconds = spacing * np.arange(cells)
    message = delay.masses(seconds)
    spectrum, means, at = np.fft.rfft(message, 2 * cells), [0.0], np.zeros(cells)
    at[0] = 1.0
    for level in range(1, levels + 1):
        both = np.fft.irfft(np.fft.rfft(at, 2 * cells) * spectrum)
        below = np.cumsum(both[:cells]).clip(0, 1) ** 2
        at = np.diff(below, prepend=0.0)
        means.append(2 * (float((1 - below).sum()) * spacing + level * transfer))
    return np.array(means)


def ring(rng: np.random.Generator, trials: int, nodes: int, link: Link = Link(), size: float = 0.0) -> np.ndarray:
    """Seconds [trials] of all-reducing `size` bytes around a ring, which the paper does not consider.

    There are 2 (nodes - 1) rounds of messages of size / nodes. A node sends its next message when the last one of its
    neighbour has arrived. A trial draws 2 nodes ** 2 times.
    """
    at = np.zeros((trials, nodes))
    for _ in range(2 * (nodes - 1)):
        at = np.maximum(at, np.roll(at, 1, axis=1) + link.draw(rng, at.shape, size / nodes))
    return at.max(1)


def pair(rng: np.random.Generator, trials: int, link: Link = Link(), size: float = 0.0, hops: int = 2) -> np.ndarray:
    """Seconds [trials] until two replicas have averaged: `hops` exchanges, each as long as the later of two messages.

    The paper has two exchanges (equation 7, doubled), as a tree over two leaves; swapping weights takes one.
    """
    return link.draw(rng, (trials, hops, 2), size).max(-1).sum(-1)


def barrier(work: np.ndarray, exchange: ArrayLike = 0.0) -> np.ndarray:
    """Seconds [..., steps] at which each outer step is over, if all wait for the slowest and then for the exchange.

    work: seconds [..., steps, nodes] of the inner steps before each exchange. exchange: seconds of an exchange, one
    number or [steps].
    """
    return np.cumsum(work.max(-1) + exchange, axis=-1)


def gossip(work: np.ndarray, groups: np.ndarray, exchange: ArrayLike = 0.0) -> np.ndarray:
    """Seconds [..., steps, nodes] at which each outer step is over on each node, if each waits for its own group alone.

    work: seconds [..., steps, nodes] of the inner steps before each exchange, for any number of cases that meet in the
    same groups. groups: the nodes of each group [steps, nodes / n, n]. exchange: seconds of an exchange, one number or
    [steps, nodes / n].
    """
    exchange = np.broadcast_to(exchange, groups.shape[:2])
    now, ends = np.zeros_like(work[..., 0, :]), np.empty(work.shape)
    for step, group in enumerate(groups):
        ready = (now + work[..., step, :])[..., group].max(-1) + exchange[step]
        now = ends[..., step, :]
        now[..., group] = ready[..., None]
    return ends


def blocking_overhead(
    rng: np.random.Generator,
    nodes: int,
    inner: Sequence[int],
    outer: int = 500,
    split: int | Sequence[int] = 1,
    step: Delay = INNER_STEP,
    matching: str = "random",
) -> np.ndarray:
    """Time of all-reduce over that of gossip [len(inner)], from waiting alone, without messages (NoLoCo, figure 5B).

    For each m in `inner`, both do the same `outer` * m inner steps, each of an independent time. All-reduce waits every
    m steps for the slowest of all nodes. Gossip waits `split` times as often, each node for its partner. The time is
    that at which the last node is done.

    The paper has split=1. It is 2 at the paper's own settings (section 4), where NoLoCo synchronises every 50 steps and
    DiLoCo every 100. Give several splits to get [len(split), len(inner)] from the same steps, which take most of the
    time to draw. Raises `ConfigError` if some m in `inner` is not a positive multiple of every split.
    """
    inner, splits = list(inner), [split] if isinstance(split, int) else list(split)
    for times in splits:
        if times < 1 or any(m < 1 or m % times for m in inner):
            raise ConfigError(f"inner={inner} cannot be split: give positive multiples of split={times}")
    ends = [np.array([[m * part // times for part in range(1, times + 1)] for m in inner]) for times in splits]
    works = [np.empty((len(inner), outer, times, nodes)) for times in splits]
    for k in range(outer):  # one stream of steps for all m
        done = np.cumsum(step.draw(rng, (max(inner), nodes)), axis=0)
        for end, work in zip(ends, works, strict=True):
            work[:, k] = np.diff(done[end - 1], axis=1, prepend=0.0)
    ratios = []
    for times, work in zip(splits, works, strict=True):
        groups = deal(matching, nodes, outer * times, copy.deepcopy(rng))  # as if it were the only one
        last = gossip(work.reshape(len(inner), -1, nodes), groups)[:, -1].max(-1)
        ratios.append(barrier(work.sum(2))[:, -1] / last)
    return np.array(ratios[0] if isinstance(split, int) else ratios)


@dataclass(frozen=True)
class ExchangeLatency:
    """How long the exchange of an outer step takes, and what it sends.

    - `draw` gives seconds [trials] from (generator, trials, nodes, link, bytes of the model).
    - `hops` gives the number of messages one after another, from the number of nodes.
    - `sent` gives how many models' bytes a replica sends on average, from the number of nodes.
    - `pairs` says whether two replicas wait for each other, or all for all.
    """

    draw: Callable[[np.random.Generator, int, int, Link, float], np.ndarray]
    hops: Callable[[int], int]
    sent: Callable[[int], float]
    pairs: bool = True


# A tree's inner nodes count as nodes of their own, as in the paper's model. A partner in NoLoCo needs the other's slow
# weights and outer gradient. In the released code one of the two sends both and then gets both means. The paper sends
# the slow weights during the inner steps, where they cost no time. Where gamma equals beta, as in the released code,
# it would be enough to swap the fast weights.
EXCHANGES = {
    "ring all-reduce": ExchangeLatency(
        ring, lambda nodes: 2 * (nodes - 1), lambda nodes: 2 * (nodes - 1) / nodes, False
    ),
    "tree all-reduce": ExchangeLatency(
        tree, lambda nodes: 2 * _levels(nodes), lambda nodes: 4 * (nodes - 1) / nodes, False
    ),
    "pair, as released": ExchangeLatency(
        lambda rng, trials, nodes, link, size: link.draw(rng, (trials, 2), 2 * size).sum(-1),
        lambda nodes: 2,
        lambda nodes: 2.0,
    ),
    "pair, slow weights ahead": ExchangeLatency(
        lambda rng, trials, nodes, link, size: pair(rng, trials, link, size, 1), lambda nodes: 1, lambda nodes: 2.0
    ),
    "pair, fast weights": ExchangeLatency(
        lambda rng, trials, nodes, link, size: pair(rng, trials, link, size, 1), lambda nodes: 1, lambda nodes: 1.0
    ),
}


def wall_clock(
    rng: np.random.Generator,
    exchange: str,
    nodes: int,
    inner: int,
    outer: int,
    step: Delay = INNER_STEP,
    link: Link = Link(),
    size: float = 0.0,
    matching: str = "random",
) -> np.ndarray:
    """Seconds [outer + 1] at which the last replica is done with 0, 1, ... `outer` outer steps.

    exchange: a name in `EXCHANGES`; all-reducing gradients is "ring all-reduce" with inner=1. inner: the number of
    inner steps between exchanges, each of a time drawn from `step`. size: bytes of the model, or of one stage of it.
    matching: a name in `swarmbook.methods.gossip_groups.MATCHINGS`, for exchanges in pairs. Raises `ConfigError` for an
    unknown name.
    """
    if exchange not in EXCHANGES:
        raise ConfigError(unknown("exchange", exchange, EXCHANGES))
    kind = EXCHANGES[exchange]
    work = np.array([step.draw(rng, (inner, nodes)).sum(0) for _ in range(outer)]).reshape(outer, nodes)
    if kind.pairs:
        groups = deal(matching, nodes, outer, rng)
        seconds = kind.draw(rng, outer * (nodes // 2), nodes, link, size)
        ends = gossip(work, groups, seconds.reshape(groups.shape[:2])).max(1)
    else:
        ends = barrier(work, kind.draw(rng, outer, nodes, link, size))
    return np.concatenate([[0.0], ends])


def seconds_at(steps: ArrayLike, clock: np.ndarray, inner: int) -> np.ndarray:
    """Seconds [n] at which inner `steps` [n] are done: linear between the outer steps of a `wall_clock` [outer + 1].

    Raises `ValueError` for a step that the clock does not reach.
    """
    steps, last = np.asarray(steps, float), inner * (len(clock) - 1)
    bad = steps[~((steps >= 0) & (steps <= last))]
    if bad.size:
        raise ValueError(f"steps={bad[0]:g} lies outside the clock, which has 0 to {last} inner steps: run it longer")
    return np.interp(steps, inner * np.arange(len(clock)), clock)


def seconds_to(target: float, losses: ArrayLike, seconds: ArrayLike) -> float:
    """Seconds until a curve of losses [n] at ascending `seconds` [n] first reaches `target`; NaN if it never does.

    Losses are taken as linear between measurements; for perplexities give their logarithms. Raises `ValueError` for
    times that do not ascend or are not as many as the losses.
    """
    losses, seconds = np.asarray(losses, float), np.asarray(seconds, float)
    if losses.shape != seconds.shape or losses.ndim != 1:
        raise ValueError(f"losses {losses.shape} and seconds {seconds.shape} differ: give one time for each loss")
    if not (np.diff(seconds) > 0).all():
        raise ValueError(f"seconds={seconds.tolist()} do not ascend: sort the measurements and drop repeated ones")
    there = np.flatnonzero(losses <= target)
    if not there.size:
        return float("nan")
    i = int(there[0])
    if i == 0 or losses[i] == target:
        return float(seconds[i])
    part = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return float(seconds[i - 1] + part * (seconds[i] - seconds[i - 1]))


def _levels(nodes: int) -> int:
    if nodes < 1 or nodes & (nodes - 1):
        raise ConfigError(f"nodes={nodes} do not fill a binary tree: give a power of 2")
    return nodes.bit_length() - 1
