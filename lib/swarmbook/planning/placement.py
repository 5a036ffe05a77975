"""Which node serves which stage (DT-FM's placement, as SkipPipe's released code has it).

- group 0 are the data nodes, and every further group serves one stage. Groups stand in the order of a closed tour
- the bottleneck matching of two groups pairs off their nodes so that the slowest pair is as fast as possible. The
  distance of two groups is the seconds of that slowest pair
- a placement's score is DP + 2 PP in seconds. DP is the slowest hop inside a group, and PP is the length of the tour
- `place` anneals swaps of two nodes or two groups. It ends below the released genetic search on every released case
  (level with it where all hops are equal), in a hundredth of its time
- `align` pairs neighbouring groups off into pipelines, by their matching or, as released, by its inverse

Serves: SkipPipe's repaired DT-FM pipelines, and its deployment of 42 nodes.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from swarmbook.errors import ConfigError
from swarmbook.planning.placement_annealing import anneal_groups, bottleneck_rank, improve_tour

Groups = Sequence[Sequence[int]]
HOT, COLD = 0.5, 0.02  # first and last temperature over the spread between the fastest hop and the median
EXACT = 12  # up to so many groups the shortest tour is found by Held and Karp's program, of 2^S S^2 steps


@dataclass(frozen=True)
class Placement:
    """Groups of nodes in the order of the tour, and what they cost.

    - `groups` have the numbers of their nodes; the first group are the data nodes.
    - `data` is DP, seconds of the slowest hop inside a group.
    - `legs` are the seconds of the tour from each group to the next, and from the last to the first. Their sum is PP.
    """

    groups: tuple[tuple[int, ...], ...]
    data: float
    legs: tuple[float, ...]

    @property
    def pipeline(self) -> float:
        """PP, seconds of the closed tour."""
        return math.fsum(self.legs)

    @property
    def score(self) -> float:
        """DP + 2 PP in seconds; lower is better."""
        return self.data + 2 * self.pipeline


def group_sizes(nodes: int, stages: int, path_length: int) -> tuple[int, ...]:
    """Group sizes [n0, k, ..., k] with which every relay is used as much as every data node.

    stages: S, with that of the data nodes. path_length: P, the stages on a microbatch's path. The sizes have
    n0 (P - 1) = (S - 1) k, so that skipping frees just enough relays for the additional data nodes. Raises
    `ConfigError` with the nearest valid numbers of nodes where there are no such sizes.
    """
    if not 2 <= path_length <= stages:
        raise ConfigError(f"path_length must be from 2 to stages={stages}, not {path_length}")
    step = path_length * (stages - 1) // math.gcd(stages - 1, path_length - 1)
    if nodes < step or nodes % step:
        near = [number for number in (nodes // step * step, (nodes // step + 1) * step) if number]
        raise ConfigError(
            f"{nodes} nodes cannot be split so that {stages} stages carry paths of {path_length} evenly: "
            f"give {' or '.join(map(str, near))} nodes"
        )
    first = nodes // path_length
    return first, *[first * (path_length - 1) // (stages - 1)] * (stages - 1)


def bottleneck(costs: np.ndarray) -> float:
    """Cost of the bottleneck matching of rows and columns [a, b]: that of its dearest pair, as low as can be.

    All of the smaller side are paired. What is left of the larger side costs nothing, as in the released code.
    """
    values, ranks = _ranked(np.asarray(costs, dtype=float))
    if len(ranks) > len(ranks.T):
        ranks = np.ascontiguousarray(ranks.T)
    return float(values[bottleneck_rank(ranks, np.arange(len(ranks)), np.arange(ranks.shape[1]), len(values) - 1)])


def seconds_between(groups: Groups, hops: np.ndarray, forward: float | np.ndarray = 0.0) -> np.ndarray:
    """Distances in seconds [S, S] from each group to each other, by hop plus forward time of the node that sends.

    hops [N, N]: seconds of a message between two nodes. forward: seconds of a stage's forward pass, one number or [N].
    """
    costs = _costs(hops, forward)
    between = np.zeros((len(groups), len(groups)))
    for a, b in itertools.permutations(range(len(groups)), 2):
        between[a, b] = bottleneck(costs[np.ix_(groups[a], groups[b])])
    return between


def shortest_tour(between: np.ndarray) -> tuple[int, ...]:
    """The shortest closed tour from group 0 over groups with distances `between` [S, S] (Held and Karp).

    Beyond `EXACT` groups it is the best that moving single groups, and swapping two, leads to from the order given.
    """
    count = len(between)
    if count == 1:
        return (0,)
    if count > EXACT:
        order = np.arange(count)
        improve_tour(np.ascontiguousarray(between), order)
        return tuple(order.tolist())
    rest = range(1, count)
    best = {(frozenset((last,)), last): (between[0, last], (0, last)) for last in rest}
    for size in range(2, count):
        for chosen in map(frozenset, itertools.combinations(rest, size)):
            for last in chosen:
                before = chosen - {last}
                best[chosen, last] = min(
                    (best[before, mid][0] + between[mid, last], (*best[before, mid][1], last)) for mid in before
                )
    whole = frozenset(rest)
    return min((best[whole, last][0] + between[last, 0], best[whole, last][1]) for last in rest)[1]


def evaluate(groups: Groups, hops: np.ndarray, forward: float | np.ndarray = 0.0) -> Placement:
    """The placement of groups in the order given, with its cost. hops, forward: as in `seconds_between`.

    Raises `ConfigError` for groups that are empty or overlap.
    """
    _check(groups, hops)
    costs = _costs(hops, forward)
    around = zip(groups, [*groups[1:], groups[0]], strict=True)
    return Placement(
        groups=tuple(tuple(int(node) for node in group) for group in groups),
        data=max(float(hops[np.ix_(group, group)].max()) for group in groups),
        legs=tuple(bottleneck(costs[np.ix_(a, b)]) if len(groups) > 1 else 0.0 for a, b in around),
    )


def reorder(groups: Groups, hops: np.ndarray, forward: float | np.ndarray = 0.0) -> Placement:
    """The placement of the same groups along their `shortest_tour`; the data nodes remain the first."""
    return evaluate([groups[i] for i in shortest_tour(seconds_between(groups, hops, forward))], hops, forward)


def place(
    hops: np.ndarray,
    sizes: Sequence[int],
    rng: np.random.Generator,
    forward: float | np.ndarray = 0.0,
    trials: int | None = None,
) -> Placement:
    """Groups of the given sizes with a low score, for all nodes of hops [N, N]; the first are the data nodes.

    forward: as in `seconds_between`. trials: how many swaps are tried; by default 10 million / N and at least 40,000,
    which takes a second for up to 100 nodes and less than a minute for 1,000. Equal generators give equal placements.
    Raises `ConfigError` unless the sizes are positive and add up to N.
    """
    nodes = len(hops)
    if not len(sizes) or min(sizes) < 1 or sum(sizes) != nodes:
        raise ConfigError(f"sizes must be at least 1 and add up to the {nodes} nodes of hops, unlike {list(sizes)}")
    trials = max(40_000, 10_000_000 // nodes) if trials is None else trials
    if trials < 0:
        raise ConfigError(f"trials must be at least 0, not {trials}")
    dealt = np.split(rng.permutation(nodes), np.cumsum(sizes)[:-1])
    within = np.maximum(hops, hops.T)
    pairs = within[~np.eye(nodes, dtype=bool)]
    spread = float(np.median(pairs) - pairs.min()) if pairs.size else 0.0
    if len(sizes) > 1 and trials:
        values, ranks = _ranked(_costs(hops, forward))
        groups = np.zeros((len(sizes), max(sizes)), dtype=np.int64)
        for row, group in zip(groups, dealt, strict=True):
            row[: len(group)] = group
        scale = spread or float(values[-1])
        anneal_groups(within, ranks, values, groups, np.array(sizes), trials, HOT * scale, COLD * scale, rng)
        dealt = [row[:size] for row, size in zip(groups, sizes, strict=True)]
    return reorder([sorted(group.tolist()) for group in dealt], hops, forward)


def align(
    groups: Groups, hops: np.ndarray, forward: float | np.ndarray = 0.0, released: bool = False
) -> tuple[tuple[int, ...], ...]:
    """The groups with their nodes in such an order that the i-th nodes of all groups form a pipeline.

    Each group is paired off with the one before by their bottleneck matching; of several it takes the one with the
    least sum. Nodes without a partner stand last. released: whether to use the inverse of every matching's permutation,
    as the released code does; it makes DT-FM's pipelines slower.
    """
    _check(groups, hops)
    costs = _costs(hops, forward)
    aligned = [list(groups[0])]
    for group in groups[1:]:
        before = aligned[-1]
        order = _matching(costs[np.ix_(before, group)])
        if released:
            order = np.argsort(order)
        elif len(aligned) == 1:  # a data node that feeds no pipeline
            fed = np.argsort(order >= len(group), kind="stable")
            aligned[0], order = [before[i] for i in fed if i < len(before)], order[fed]
        aligned.append([group[j] for j in order if j < len(group)])
    return tuple(map(tuple, aligned))


def pipelines(groups: Groups) -> tuple[tuple[int, ...], ...]:
    """DT-FM's pipelines [k, S] through aligned groups: the i-th nodes of all; k is the size of the smallest group."""
    return tuple(zip(*groups, strict=False))


def dtfm_score(groups: Groups, exchange: np.ndarray, hops: np.ndarray) -> float:
    """What DT-FM itself minimises, in seconds: for groups of one size, the time of gradients plus twice an open tour.

    exchange [N, N]: seconds in which two nodes exchange, both ways, the part of the gradient that one of a group's k
    nodes reduces: 2 (latency + gradient bytes / (k bandwidth)). Raises `ConfigError` for groups of different sizes.
    """
    _check(groups, hops)
    if len(set(map(len, groups))) > 1:
        raise ConfigError(f"DT-FM's groups are of one size, not of {[len(group) for group in groups]}")
    data = max(float(exchange[np.ix_(group, group)].sum(axis=1).max()) for group in groups)
    # An open tour is a closed one through one more stop that is next to everything.
    between = np.pad(seconds_between(groups, hops), ((1, 0), (1, 0)))
    order = shortest_tour(between)
    return data + 2 * sum(float(between[a, b]) for a, b in itertools.pairwise(order))


def _matching(costs: np.ndarray) -> np.ndarray:
    """The column of each row in the bottleneck matching with the least sum, padded to a permutation [max(a, b)]."""
    rows, columns = linear_sum_assignment(np.where(costs <= bottleneck(costs), costs, costs.sum() + 1))
    size = max(costs.shape)
    order = np.empty(size, dtype=np.int64)
    order[rows] = columns
    order[np.setdiff1d(np.arange(size), rows)] = np.setdiff1d(np.arange(size), columns)
    return order


def _costs(hops: np.ndarray, forward: float | np.ndarray) -> np.ndarray:
    """Seconds [N, N] from node to node: the sender's forward pass and the hop. `ConfigError` for what is not finite."""
    for name, seconds in (("hops", hops), ("forward", forward)):
        if not np.isfinite(seconds).all():
            raise ConfigError(f"{name} must be finite seconds, not {seconds}")
    return hops + np.broadcast_to(forward, len(hops))[:, None]


def _ranked(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different costs in ascending order, and the rank of each cost among them."""
    values, ranks = np.unique(costs, return_inverse=True)
    return values, ranks.reshape(costs.shape)


def _check(groups: Groups, hops: np.ndarray) -> None:
    """Raise `ConfigError` for groups that are empty, overlap, or have nodes that are not in `hops`."""
    nodes = [node for group in groups for node in group]
    if not all(len(group) for group in groups) or len(set(nodes)) < len(nodes):
        raise ConfigError(f"groups must not be empty nor share a node, unlike {groups}")
    if not nodes or not 0 <= min(nodes) <= max(nodes) < len(hops):
        raise ConfigError(f"groups must hold nodes from 0 to {len(hops) - 1}, unlike {groups}")
