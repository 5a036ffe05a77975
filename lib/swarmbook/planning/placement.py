"""Which node serves which stage (DT-FM's placement, as SkipPipe's released code has it).

- group 0 are the data nodes, every further group serves one stage; groups are in the order of a closed tour
- a placement's score is DP + 2 PP, seconds: DP is the slowest hop inside a group, PP the length of the tour, on which
  the way between two groups is their bottleneck matching: the slowest hop of the pairing whose slowest hop is fastest
- `place` anneals swaps of two nodes or two groups: it ends below the released genetic search on every released case
  (level with it where all hops are equal), in a hundredth of its time
- `align` pairs neighbouring groups off into pipelines, by their matching or, as released, by its inverse
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from scipy.optimize import linear_sum_assignment

from swarmbook.errors import ConfigError

Groups = Sequence[Sequence[int]]
HOT, COLD = 0.5, 0.02  # first and last temperature over the spread between the fastest hop and the median
EXACT = 12  # groups up to which the shortest tour is found by Held and Karp's program, of 2^S S^2 steps


@dataclass(frozen=True)
class Placement:
    """Groups of nodes in the order of the tour, and what they cost.

    groups: node ids from 0; the first are the data nodes. data: DP, the slowest hop inside a group, seconds. legs: of
    the tour from each group to the next, and from the last to the first, seconds; their sum is PP.
    """

    groups: tuple[tuple[int, ...], ...]
    data: float
    legs: tuple[float, ...]

    @property
    def pipeline(self) -> float:
        """PP: seconds of the closed tour."""
        return math.fsum(self.legs)

    @property
    def score(self) -> float:
        """DP + 2 PP, seconds; lower is better."""
        return self.data + 2 * self.pipeline


def group_sizes(nodes: int, stages: int, path_length: int) -> tuple[int, ...]:
    """Group sizes [n0, k, ..., k] with which every relay is used as much as every data node.

    stages: S, with the data nodes'. path_length: P, stages on a microbatch's path. n0 (P - 1) = (S - 1) k, so that
    skipping frees just the surplus of data nodes. ConfigError with the nearest valid numbers of nodes where there are
    no such sizes.
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
    """The slowest pair, seconds, of the pairing of rows and columns [a, b] whose slowest pair is fastest.

    All of the smaller side are paired; the others count nothing (released code: padded with zeros).
    """
    values, ranks = _ranked(np.asarray(costs, dtype=float))
    if len(ranks) > len(ranks.T):
        ranks = np.ascontiguousarray(ranks.T)
    return float(values[_bottleneck(ranks, np.arange(len(ranks)), np.arange(ranks.shape[1]), len(values) - 1)])


def seconds_between(groups: Groups, hops: np.ndarray, forward: float | np.ndarray = 0.0) -> np.ndarray:
    """Seconds [S, S] from each group to each other: the bottleneck of hop + forward time of the node that sends.

    hops [N, N]: seconds of a message between two nodes. forward: seconds of a stage, one number or one a node [N].
    """
    costs = _costs(hops, forward)
    between = np.zeros((len(groups), len(groups)))
    for a, b in itertools.permutations(range(len(groups)), 2):
        between[a, b] = bottleneck(costs[np.ix_(groups[a], groups[b])])
    return between


def shortest_tour(between: np.ndarray) -> tuple[int, ...]:
    """The shortest closed tour over groups with ways [S, S], from group 0 (Held and Karp).

    Beyond `EXACT` groups the best that moving single groups, and swapping two, leads to from the order given.
    """
    count = len(between)
    if count == 1:
        return (0,)
    if count > EXACT:
        order = np.arange(count)
        _improve_tour(np.ascontiguousarray(between), order)
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
    """What groups cost in the order given. hops, forward: as in `seconds_between`. ConfigError for groups that overlap."""
    _check(groups, hops)
    costs = _costs(hops, forward)
    around = zip(groups, [*groups[1:], groups[0]], strict=True)
    return Placement(
        groups=tuple(tuple(int(node) for node in group) for group in groups),
        data=max(float(hops[np.ix_(group, group)].max()) for group in groups),
        legs=tuple(bottleneck(costs[np.ix_(a, b)]) if len(groups) > 1 else 0.0 for a, b in around),
    )


def reorder(groups: Groups, hops: np.ndarray, forward: float | np.ndarray = 0.0) -> Placement:
    """The same groups along the shortest `shortest_tour`; the data nodes remain the first."""
    return evaluate([groups[i] for i in shortest_tour(seconds_between(groups, hops, forward))], hops, forward)


def place(
    hops: np.ndarray,
    sizes: Sequence[int],
    rng: np.random.Generator,
    forward: float | np.ndarray = 0.0,
    trials: int | None = None,
) -> Placement:
    """Groups of the given sizes with a low score, for all nodes of hops [N, N]; the first are the data nodes.

    forward: as in `seconds_between`. trials: swaps tried, after which it ends; by default 10 million / N, at least 40,000, which
    is a second for up to 100 nodes and less than a minute for 1,000. Equal generators give equal placements.
    ConfigError unless the sizes are positive and add up to N.
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
        _anneal(within, ranks, values, groups, np.array(sizes), trials, HOT * scale, COLD * scale, rng)
        dealt = [row[:size] for row, size in zip(groups, sizes, strict=True)]
    return reorder([sorted(group.tolist()) for group in dealt], hops, forward)


def align(
    groups: Groups, hops: np.ndarray, forward: float | np.ndarray = 0.0, released: bool = False
) -> tuple[tuple[int, ...], ...]:
    """The groups with their nodes in such an order that the i-th nodes of all groups are a pipeline.

    Each group is paired off with the one before by their bottleneck matching, of several the one of least sum; nodes
    that get no partner stand last. released: every matching is read the wrong way round, which makes of its
    permutation the inverse (as in the released code, whose full pipelines, DT-FM's, are slower for it).
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
    """DT-FM's pipelines [k, S] through aligned groups: the i-th nodes of all, as many as the smallest group has."""
    return tuple(zip(*groups, strict=False))


def dtfm_score(groups: Groups, exchange: np.ndarray, hops: np.ndarray) -> float:
    """What DT-FM itself minimises, seconds: groups of one size, an open tour, gradients' time instead of a hop's.

    exchange [N, N]: seconds between two nodes for the part of the gradient that one of a group's k nodes reduces,
    2 (latency + gradient bytes / (k bandwidth)), both ways. ConfigError for groups of different sizes.
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
    """The column of each row in the bottleneck matching of least sum, padded to a square [max(a, b)]."""
    rows, columns = linear_sum_assignment(np.where(costs <= bottleneck(costs), costs, costs.sum() + 1))
    size = max(costs.shape)
    order = np.empty(size, dtype=np.int64)
    order[rows] = columns
    order[np.setdiff1d(np.arange(size), rows)] = np.setdiff1d(np.arange(size), columns)
    return order


def _costs(hops: np.ndarray, forward: float | np.ndarray) -> np.ndarray:
    return hops + np.broadcast_to(forward, len(hops))[:, None]


def _ranked(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different costs in ascending order, and the place of each cost in them."""
    values, ranks = np.unique(costs, return_inverse=True)
    return values, ranks.reshape(costs.shape)


def _check(groups: Groups, hops: np.ndarray) -> None:
    nodes = [node for group in groups for node in group]
    if not all(len(group) for group in groups) or len(set(nodes)) < len(nodes):
        raise ConfigError(f"groups must not be empty nor share a node, unlike {groups}")
    if not nodes or not 0 <= min(nodes) <= max(nodes) < len(hops):
        raise ConfigError(f"groups must hold nodes from 0 to {len(hops) - 1}, unlike {groups}")


@numba.njit(cache=True)
def _bottleneck(ranks: np.ndarray, few: np.ndarray, many: np.ndarray, limit: int) -> int:
    """The least rank up to which every node of `few` has its own of `many`; limit + 1 if it is above the limit.

    Bisection over ranks; a matching that falls short at one rank is where the next begins.
    """
    low = 0
    for u in few:
        nearest = ranks[u, many[0]]
        for v in many:
            nearest = min(nearest, ranks[u, v])
        low = max(low, nearest)
    if len(few) == len(many):
        for v in many:
            nearest = ranks[few[0], v]
            for u in few:
                nearest = min(nearest, ranks[u, v])
            low = max(low, nearest)
    if low > limit:
        return limit + 1
    mate = np.full(len(few), -1)
    taken = np.full(len(many), -1)
    if _saturates(ranks, few, many, low, mate, taken):
        return low
    if not _saturates(ranks, few, many, limit, mate, taken):
        return limit + 1
    high = low
    for i in range(len(few)):
        high = max(high, ranks[few[i], many[mate[i]]])
    low += 1
    while low < high:
        middle = (low + high) // 2
        for i in range(len(few)):
            if mate[i] >= 0 and ranks[few[i], many[mate[i]]] > middle:
                taken[mate[i]] = -1
                mate[i] = -1
        if _saturates(ranks, few, many, middle, mate, taken):
            high = low
            for i in range(len(few)):
                high = max(high, ranks[few[i], many[mate[i]]])
        else:
            low = middle + 1
    return low


@numba.njit(cache=True)
def _saturates(
    ranks: np.ndarray, few: np.ndarray, many: np.ndarray, limit: int, mate: np.ndarray, taken: np.ndarray
) -> bool:
    """Whether the matching `mate` of few, `taken` of many, can be made to cover few with pairs up to a rank.

    Augmenting paths, breadth first; the matching is changed in place, and left as far as it got.
    """
    for i in range(len(few)):
        if mate[i] < 0:
            for j in range(len(many)):
                if taken[j] < 0 and ranks[few[i], many[j]] <= limit:
                    mate[i] = j
                    taken[j] = i
                    break
    came = np.empty(len(many), dtype=np.int64)
    queue = np.empty(len(few), dtype=np.int64)
    for root in range(len(few)):
        if mate[root] >= 0:
            continue
        came[:] = -1
        queue[0] = root
        begin, end, free = 0, 1, -1
        while begin < end and free < 0:
            i = queue[begin]
            begin += 1
            for j in range(len(many)):
                if came[j] < 0 and ranks[few[i], many[j]] <= limit:
                    came[j] = i
                    if taken[j] < 0:
                        free = j
                        break
                    queue[end] = taken[j]
                    end += 1
        if free < 0:
            return False
        while free >= 0:
            i = came[free]
            before = mate[i]
            mate[i] = free
            taken[free] = i
            free = before
    return True


@numba.njit(cache=True)
def _way(ranks: np.ndarray, turned: np.ndarray, a: np.ndarray, b: np.ndarray, limit: int) -> int:
    """The rank of the way from group a to group b, limit + 1 if above the limit; turned: the ranks transposed."""
    if len(a) <= len(b):
        return _bottleneck(ranks, a, b, limit)
    return _bottleneck(turned, b, a, limit)


@numba.njit(cache=True)
def _improve_tour(between: np.ndarray, order: np.ndarray) -> None:
    """Swap two groups, or move one, other than the first, while that shortens the closed tour [S], in place."""
    count = len(order)
    best = np.inf  # the first trial swaps a group with itself
    trial = np.empty_like(order)
    better = True
    while better:
        better = False
        for move in range(2):
            for a in range(1, count):
                for b in range(1, count):
                    if move == 0:
                        trial[:] = order
                        trial[a], trial[b] = order[b], order[a]
                    else:
                        at = 0
                        for i in range(count):
                            if i == a:
                                continue
                            if at == b:
                                at += 1
                            trial[at] = order[i]
                            at += 1
                        trial[b] = order[a]
                    length = 0.0
                    for i in range(count):
                        length += between[trial[i], trial[(i + 1) % count]]
                    if length < best - 1e-12:
                        best = length
                        order[:] = trial
                        better = True


@numba.njit(cache=True)
def _diameter(within: np.ndarray, group: np.ndarray) -> tuple[float, int, int]:
    """The slowest hop inside a group, and its ends."""
    worst, first, second = 0.0, group[0], group[0]
    for i in range(len(group)):
        for j in range(i):
            if within[group[i], group[j]] > worst:
                worst, first, second = within[group[i], group[j]], group[i], group[j]
    return worst, first, second


@numba.njit(cache=True)
def _exchanged(
    within: np.ndarray, group: np.ndarray, gone: int, come: int, worst: float, first: int, second: int
) -> tuple[float, int, int, float]:
    """Slowest hop and its ends in a group in which `come` now stands for `gone`, and what that adds to all its hops."""
    added = 0.0
    if gone in (first, second):
        worst, first, second = _diameter(within, group)
    for node in group:
        if node != come:
            added += within[come, node] - within[gone, node]
            if within[come, node] > worst:
                worst, first, second = within[come, node], come, node
    return worst, first, second, added


@numba.njit(cache=True)
def _anneal(
    within: np.ndarray,
    ranks: np.ndarray,
    values: np.ndarray,
    groups: np.ndarray,
    counts: np.ndarray,
    trials: int,
    hot: float,
    cold: float,
    rng: np.random.Generator,
) -> float:
    """Anneal groups [S, largest] of `counts` nodes, in the order of the tour and in place, and return the best score.

    A trial swaps two nodes of different groups or, one in ten, two groups of relays on the tour. At any temperature
    it is as much less likely to pass as the swap makes the two nodes' mean hops inside their groups slower: this leads
    the way while every group has so many slow hops that the score says nothing. A trial is given up as soon as the
    part of the score already known is above what the temperature lets pass.
    """
    count = len(counts)
    turned = ranks.T.copy()
    top = len(values) - 1
    inner = np.empty(count)
    ends = np.empty((count, 2), dtype=np.int64)
    along = np.empty(count, dtype=np.int64)
    for g in range(count):
        group = groups[g, : counts[g]]
        inner[g], ends[g, 0], ends[g, 1] = _diameter(within, group)
        h = (g + 1) % count
        along[g] = _way(ranks, turned, group, groups[h, : counts[h]], top)
    score = inner.max()
    for g in range(count):
        score += 2 * values[along[g]]
    best = score
    kept = groups.copy()
    touched = np.empty(4, dtype=np.int64)
    old = np.empty(4, dtype=np.int64)
    for trial in range(trials):
        heat = hot * (cold / hot) ** (trial / trials)
        a = int(rng.random() * count)
        b = int(rng.random() * (count - 1))
        b += b >= a
        i = int(rng.random() * counts[a])
        j = int(rng.random() * counts[b])
        nodes = rng.random() < 0.9 or a == 0 or b == 0 or counts[a] != counts[b]
        allowed = score - heat * np.log(1 - rng.random())
        old_a, first_a, second_a = inner[a], ends[a, 0], ends[a, 1]
        old_b, first_b, second_b = inner[b], ends[b, 0], ends[b, 1]
        change = 0.0
        if nodes:
            u, v = groups[a, i], groups[b, j]
            groups[a, i], groups[b, j] = v, u
            inner[a], ends[a, 0], ends[a, 1], more = _exchanged(
                within, groups[a, : counts[a]], u, v, old_a, first_a, second_a
            )
            inner[b], ends[b, 0], ends[b, 1], less = _exchanged(
                within, groups[b, : counts[b]], v, u, old_b, first_b, second_b
            )
            change = more / counts[a] + less / counts[b]
        else:
            for k in range(counts[a]):
                groups[a, k], groups[b, k] = groups[b, k], groups[a, k]
            inner[a], ends[a, 0], ends[a, 1] = old_b, first_b, second_b
            inner[b], ends[b, 0], ends[b, 1] = old_a, first_a, second_a
        allowed -= change * heat / hot
        number = 0
        for g in ((a - 1) % count, a, (b - 1) % count, b):
            new = True
            for k in range(number):
                new = new and touched[k] != g
            if new:
                touched[number] = g
                old[number] = along[g]
                number += 1
        total = inner.max()
        for g in range(count):
            total += 2 * values[along[g]]
        for k in range(number):
            total -= 2 * values[old[k]]
        done = 0
        while done < number and total <= allowed:
            g = touched[done]
            h = (g + 1) % count
            limit = np.searchsorted(values, (allowed - total) / 2, side="right") - 1
            way = _way(ranks, turned, groups[g, : counts[g]], groups[h, : counts[h]], limit) if limit >= 0 else 0
            if way > limit:
                break
            along[g] = way
            total += 2 * values[way]
            done += 1
        if done == number and total <= allowed:
            score = total
            if score < best - 1e-12:
                best = score
                kept[:] = groups
            continue
        inner[a], ends[a, 0], ends[a, 1] = old_a, first_a, second_a
        inner[b], ends[b, 0], ends[b, 1] = old_b, first_b, second_b
        for k in range(number):
            along[touched[k]] = old[k]
        if nodes:
            groups[a, i], groups[b, j] = u, v
        else:
            for k in range(counts[a]):
                groups[a, k], groups[b, k] = groups[b, k], groups[a, k]
    groups[:] = kept
    return best
