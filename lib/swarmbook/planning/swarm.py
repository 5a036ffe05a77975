"""A swarm of a user's own: what its nodes take for each stage, which stage each serves, and the pipeline that gives.

- a `Swarm` is what `swarmbook.planning.swarm_file` reads, in seconds and bytes. Unlike a `Pipeline` it does not say yet
  which node serves which stage
- `placed` deals nodes to stages: as many to each as its work asks for, near each other as `planning.placement` finds,
  and only where their memory allows it. `dealt` does so for large swarms, in clusters of nodes that are near each other
- messages between two nodes follow one another on their link, unless `duplex` is "unlimited" (the paper's model)

Serves: `swarmbook plan`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from swarmbook.errors import ConfigError
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import TICK, Pipeline
from swarmbook.planning.placement import place

Bound = Callable[[Pipeline], np.ndarray]  # seconds that each source needs at least, `bounds.closed_form`
NEVER = 1e6  # cost of a node at a stage that it cannot serve
TRIALS, EFFORT = 400, 20_000  # exchanges of two nodes that are tried, and that number of nodes times those
ROUNDS = 4  # assignments of `dealt`
MEAN = 0.3  # of the mean over data nodes in what a placement promises: to help one that is not the last helps too


@dataclass(frozen=True)
class NodeSpec:
    """A node: seconds of each stage's forward and backward pass [S], and how many microbatches fit beside it [S].

    `stage` is the stage that it must serve, if one is given; `microbatches` is how many it sends if it serves stage 0.
    """

    name: str
    region: str | None
    stage: int | None
    microbatches: int | None
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    holds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Swarm:
    """Nodes and links as measured, and what is to be trained on them.

    - `latency` [N, N] is in seconds, `bandwidth` [N, N] in bytes a second, `message` in bytes.
    - `visits` is P; `loss` is its time in forward passes of stage 0; `gap` is seconds after each operation.
    - `sources` is how many nodes serve stage 0, and `microbatches` is how many each of them sends if it says nothing.
    - `TC1` lets all stages have about as many microbatches. Without `TC2` paths are short, and nodes take what
      came first.
    """

    name: str
    nodes: tuple[NodeSpec, ...]
    stages: int
    latency: np.ndarray
    bandwidth: np.ndarray
    message: float
    visits: int
    loss: float
    gap: float
    duplex: Literal["full", "half", "unlimited"]
    sources: int | None
    microbatches: int
    swaps: int
    ahead: int
    lag: int
    lags: int
    shared: bool
    TC1: bool
    TC2: bool

    @property
    def transmission(self) -> np.ndarray:
        """Seconds [N, N] for which a message occupies the link from node to node."""
        return self.message / self.bandwidth

    @property
    def hops(self) -> np.ndarray:
        """Seconds [N, N] of a message from node to node."""
        return self.latency + self.transmission

    @cached_property
    def fits(self) -> np.ndarray:
        """Whether a node may serve a stage [N, S], by its memory and by what it is given."""
        return np.array([[h > 0 and node.stage in (None, s) for s, h in enumerate(node.holds)] for node in self.nodes])

    @property
    def line(self) -> dict:
        """How messages share links, as arguments of `replay`."""
        return (
            {} if self.duplex == "unlimited" else {"occupied": self.transmission, "half_duplex": self.duplex == "half"}
        )

    def pipeline(self, groups: Sequence[Sequence[int]]) -> Pipeline:
        """The pipeline in which these nodes serve the stages. Raises `ConfigError` where their relays are too few."""
        stage = {node: s for s, group in enumerate(groups) for node in group}
        served = [(self.nodes[n], stage.get(n, 0)) for n in range(len(self.nodes))]
        forward = np.array([spec.forward[s] for spec, s in served])
        sent = [self.nodes[node].microbatches or self.microbatches for node in groups[0]]
        return Pipeline(
            groups=tuple(tuple(group) for group in groups),
            hops=self.hops,
            forward=forward,
            rules=PathRules(self.visits, self.ahead, self.swaps, self.lag, self.lags, self.shared),
            microbatches=tuple(sent),
            memory=tuple(max(1, spec.holds[s]) for spec, s in served),
            head=self.loss,
            backward=tuple(float(spec.backward[s]) / spec.forward[s] for spec, s in served),
            gap=self.gap,
            launch_gap=self.gap,
            relay_limit=self._shares(groups, sent) if self.TC1 else sum(sent),
        )

    def _shares(self, groups: Sequence[Sequence[int]], sent: Sequence[int]) -> tuple[int, ...]:
        """How many microbatches may choose each node [N], so that all stages are trained alike and fast nodes do more.

        Each relay stage gets as many visits, shared out by speed and rounded up to whole slots. With equal nodes it is
        the paper's limit (TC1).
        """
        slots = [min(max(1, self.nodes[n].holds[0]), count) for n, count in zip(groups[0], sent, strict=True)]
        uses = max(-(-count // of) for count, of in zip(sent, slots, strict=True))
        need = sum(sent) * (self.visits - 1) / (self.stages - 1) / uses
        limit = np.zeros(len(self.nodes), dtype=np.int64)
        for s, group in enumerate(groups[1:], 1):
            rate = np.array([1 / (self.nodes[n].forward[s] + self.nodes[n].backward[s]) for n in group])
            limit[list(group)] = uses * np.ceil(need * rate / rate.sum() - 1e-9)
        return tuple(int(n) or int(limit.max()) for n in limit)


def group_counts(swarm: Swarm) -> list[int]:
    """How many nodes serve each stage [S]: in proportion to its work, a share of which relays are spared by skipping.

    With equal stages these are the sizes of `planning.placement.group_sizes`. Raises `ConfigError` if nodes with
    a given stage leave too few for the others.
    """
    S, N = swarm.stages, len(swarm.nodes)
    fixed = np.bincount([node.stage for node in swarm.nodes if node.stage is not None], minlength=S)
    free = N - int(fixed.sum())
    work = np.mean([np.add(node.forward, node.backward) for node in swarm.nodes], axis=0)
    share = work * np.where(np.arange(S) == 0, 1.0, (swarm.visits - 1) / (S - 1))
    counts, open_to = fixed.copy(), np.ones(S, dtype=bool)
    if swarm.sources is not None or any(node.stage == 0 for node in swarm.nodes):
        counts[0], open_to[0] = max(int(fixed[0]), swarm.sources or 0), False
    free -= int(counts[0] - fixed[0])
    for s in np.flatnonzero(counts == 0):  # every stage needs a node
        counts[s], free = 1, free - 1
    if free < 0:
        raise ConfigError(
            f"{N} nodes do not reach for {S} stages and {counts[0]} sources: add {-free}, or give fewer a stage"
        )
    least, fits = counts.copy(), swarm.fits
    for _ in range(free):
        counts[int(np.argmax(np.where(open_to, share / counts, -np.inf)))] += 1
    if len(_seated(fits, counts)) == counts.sum():
        return counts.tolist()
    if len(_seated(fits, least)) < least.sum():
        raise ConfigError(
            f"memory is too small for any placement: stages of {least.tolist()} nodes find no nodes that hold them; "
            "give nodes more memory, or make the stages smaller"
        )
    counts = least  # node by node, where memory leaves no more to a stage
    for _ in range(free):
        for s in np.argsort(-np.where(open_to, share / counts, -np.inf), kind="stable")[: open_to.sum()]:
            counts[s] += 1
            if len(_seated(fits, counts)) == counts.sum():
                break
            counts[s] -= 1
    return counts.tolist()


def _seated(fits: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """As many nodes as can be dealt to the seats of all stages at once."""
    seats = csr_array(fits[:, np.repeat(np.arange(len(counts)), counts)])
    mates = maximum_bipartite_matching(seats, perm_type="row")
    return np.sort(mates[mates >= 0])


def placed(swarm: Swarm, rng: np.random.Generator, bound: Bound) -> list[list[int]]:
    """Which nodes serve which stage [S], the sources first. Nodes are near their neighbours, and their memory suffices.

    `place` looks at the network alone. What it finds is changed as little as memory and given stages demand, by an
    assignment in which fast nodes are drawn to heavy stages; then nodes change places while that promises more.
    bound: what a placement is judged by. Raises `ConfigError` if memory leaves no placement. Nodes that memory leaves
    without a seat serve no stage.
    """
    counts, N = group_counts(swarm), len(swarm.nodes)
    if all(node.stage is not None for node in swarm.nodes):
        return [[n for n, node in enumerate(swarm.nodes) if node.stage == s] for s in range(swarm.stages)]
    work = np.array([np.add(node.forward, node.backward) for node in swarm.nodes])  # [N, S]
    wish = 1.0 + work / (len(counts) * work.max())
    chosen = _seated(swarm.fits, counts)
    queues: dict[int, list[Sequence[int]]] = {}
    trials = max(40_000, 2_000_000 // N)
    found = place(
        swarm.hops[np.ix_(chosen, chosen)],
        counts,
        rng,
        np.mean([n.forward for n in swarm.nodes], axis=1)[chosen],
        trials,
    )
    for group in found.groups[1:]:  # the tour may visit groups of different sizes in another order
        queues.setdefault(len(group), []).append(group)
    for s, group in enumerate([found.groups[0], *(queues[count].pop(0) for count in counts[1:])]):
        wish[chosen[list(group)], s] -= 1.0
    seats = np.repeat(np.arange(swarm.stages), counts)
    rows, columns = linear_sum_assignment(np.where(swarm.fits, wish, NEVER)[:, seats])
    groups = [sorted(int(n) for n in rows[seats[columns] == s]) for s in range(swarm.stages)]
    return _improved(swarm, groups, rng, bound)


def dealt(swarm: Swarm, clusters: int, rng: np.random.Generator) -> list[list[int]]:
    """Which nodes serve which stage [S], the sources first, for swarms of which `placed` would take too long.

    Nodes are dealt to so many clusters, each with its share of every stage, by assignments in turn with the clusters'
    medoids (k-medoids with seats). A seat costs the message to the medoid and back, the work there, and what a source
    of little memory takes longer.
    """
    counts, both = group_counts(swarm), swarm.hops + swarm.hops.T
    stage = np.repeat(np.arange(swarm.stages), counts)
    cluster = np.arange(len(stage)) % clusters
    work = np.array([np.add(node.forward, node.backward) for node in swarm.nodes])
    turns = [-(-(node.microbatches or swarm.microbatches) // max(1, node.holds[0])) for node in swarm.nodes]
    wait = np.outer(turns, np.arange(swarm.stages) == 0) * swarm.visits * work.mean()
    costs = np.where(swarm.fits, work + wait, NEVER)
    middle = [int(rng.integers(len(both)))]
    while len(middle) < clusters:  # far from those before
        middle.append(int(np.argmax(both[:, middle].min(1))))
    for _ in range(ROUNDS):
        rows, seats = linear_sum_assignment(2 * both[:, np.array(middle)[cluster]] + costs[:, stage])
        members = [rows[cluster[seats] == k] for k in range(clusters)]
        middle = [int(nodes[np.argmin(both[np.ix_(nodes, nodes)].sum(1))]) for nodes in members]
    return [sorted(rows[stage[seats] == s].tolist()) for s in range(swarm.stages)]


def _improved(swarm: Swarm, groups: list[list[int]], rng: np.random.Generator, bound: Bound) -> list[list[int]]:
    """Groups after two nodes at a time changed places where memory and given stages allow it, while that promised more.

    Promised is what no plan can beat: the shortest round trips with the slots that memory allows, and the work of the
    relays shared out evenly.
    """
    where = [(s, i) for s, group in enumerate(groups) for i in range(len(group))]
    best = _promise(swarm, groups, bound)
    for _ in range(min(TRIALS, EFFORT // len(swarm.nodes))):
        (s, i), (t, j) = (where[int(rng.integers(len(where)))] for _ in range(2))
        a, b = groups[s][i], groups[t][j]
        if s == t or not (swarm.fits[a, t] and swarm.fits[b, s]):
            continue
        groups[s][i], groups[t][j] = b, a
        if (new := _promise(swarm, groups, bound)) <= best:
            best = new
        else:
            groups[s][i], groups[t][j] = a, b
    return [sorted(group) for group in groups]


def _promise(swarm: Swarm, groups: Sequence[Sequence[int]], bound: Bound) -> float:
    """Seconds that no plan of a placement can beat, and a part of their mean over sources; infinite if it has none."""
    try:
        pipeline = swarm.pipeline(groups)
    except ConfigError:  # the relays have too little room
        return np.inf
    each, relays = bound(pipeline), [node for group in groups[1:] for node in group]
    rate = (1 / (pipeline.work[0, relays] + pipeline.work[2, relays] + 2 * pipeline.gap / TICK)).sum()
    return max(float(each.max()), TICK * pipeline.count * (swarm.visits - 1) / rate) + MEAN * float(each.mean())


def link_name(swarm: Swarm, a: int, b: int) -> str:
    """A link by its two nodes, in an order that does not depend on the direction."""
    return " - ".join(sorted(swarm.nodes[n].name for n in (a, b)))
