"""The compiled part of a placement: bottleneck matchings, tours, and annealing of groups.

Costs are kept as ranks: `ranks[a, b]` [N, N] is the place of the cost from node a to node b among the sorted different
costs. The distance of two groups is the rank of the dearest pair in their bottleneck matching, which bisection finds.

These functions stay in one file, since numba does not compile a cached function anew when one that it calls changes in
another file.

Serves: `swarmbook.planning.placement`.
"""

import numpy as np

from swarmbook.records.machine_code import compiled


@compiled
def bottleneck_rank(ranks: np.ndarray, few: np.ndarray, many: np.ndarray, limit: int) -> int:
    """The least rank so that pairs up to it give every node of `few` its own of `many`; limit + 1 if above the limit.

    It is found by bisection over ranks; each step begins with the matching of the one before.
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


@compiled
def _saturates(
    ranks: np.ndarray, few: np.ndarray, many: np.ndarray, limit: int, mate: np.ndarray, taken: np.ndarray
) -> bool:
    """Whether a matching can be extended to cover all of `few` with pairs up to the rank `limit`.

    `mate` has the partners of few and `taken` those of many, -1 for none; both are changed in place, and left as far as
    it got. It finds augmenting paths by breadth-first search.
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


@compiled
def _group_rank(ranks: np.ndarray, turned: np.ndarray, a: np.ndarray, b: np.ndarray, limit: int) -> int:
    """The rank of the distance from group a to group b, or limit + 1 if above the limit; turned: ranks transposed."""
    if len(a) <= len(b):
        return bottleneck_rank(ranks, a, b, limit)
    return bottleneck_rank(turned, b, a, limit)


@compiled
def improve_tour(between: np.ndarray, order: np.ndarray) -> None:
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


@compiled
def _diameter(within: np.ndarray, group: np.ndarray) -> tuple[float, int, int]:
    """Seconds of the slowest hop inside a group, and its two nodes."""
    worst, first, second = 0.0, group[0], group[0]
    for i in range(len(group)):
        for j in range(i):
            if within[group[i], group[j]] > worst:
                worst, first, second = within[group[i], group[j]], group[i], group[j]
    return worst, first, second


@compiled
def _exchanged(
    within: np.ndarray, group: np.ndarray, gone: int, come: int, worst: float, first: int, second: int
) -> tuple[float, int, int, float]:
    """The slowest hop and its nodes after `come` replaced `gone` in a group, and the change of the sum of its hops."""
    added = 0.0
    if gone in (first, second):
        worst, first, second = _diameter(within, group)
    for node in group:
        if node != come:
            added += within[come, node] - within[gone, node]
            if within[come, node] > worst:
                worst, first, second = within[come, node], come, node
    return worst, first, second, added


@compiled
def anneal_groups(
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
    """Anneal groups [S, largest] of `counts` nodes in place, in the order of the tour, and return the best score.

    within [N, N]: seconds of hops inside groups. values: the costs by rank. hot, cold: first and last temperature in
    seconds. A trial swaps two nodes of different groups or, one in ten, two groups of relays on the tour. A swap that
    makes the two nodes' mean hops inside their groups slower is less likely to pass, at any temperature. This leads the
    way while every group has so many slow hops that the score says nothing. A trial is given up as soon as the part of
    the score that is already known is above what the temperature lets pass.
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
        along[g] = _group_rank(ranks, turned, group, groups[h, : counts[h]], top)
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
            way = _group_rank(ranks, turned, groups[g, : counts[g]], groups[h, : counts[h]], limit) if limit >= 0 else 0
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
