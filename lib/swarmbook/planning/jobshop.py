"""A partial pipeline as a job shop, compiled: what a planner asks thousands of times a second.

- microbatch j's 2 P + 1 operations are j * (2 P + 1) + k: k = 0 leaves the data node, k = 1 ... P - 1 are the forwards
  of its relays, P the loss, P + 1 ... 2 P - 1 the backwards of the same relays, 2 P the last one. A relay keeps its k
  when the order of visits changes
- a `State` is paths, the order of visits, and every node's order of operations as a linked list; `held` counts the
  activations that a node holds before an operation, so that whether two may change places is seen at once
- `follow` finds all start times in one sweep; `anneal` changes states by two kinds of moves: neighbours on the critical
  path change places, and relays are exchanged between microbatches, reordered, or replaced by ones with room
- all times are ticks: a state's makespan is exact, and equal to that of the replay
- `swap`, `_take_place`, `_remove` and `_insert` each write out how neighbours in a list are linked: a shared function
  for it made the search an eighth to a quarter slower
"""

from collections import namedtuple

import numba
import numpy as np

compiled = numba.njit(cache=True, nogil=True)

# What does not change. travel [N, N], work [3, N], stage [N]: ticks and stage; start [J]: data node of each microbatch;
# slot [J], before [J], after [J]: its slot, and the slot's previous and next microbatch, -1 for none; limits: P, ahead,
# swaps, lag, lags, memory, gap, launch_gap, capacity of a relay, whether a slot's microbatches share a path.
Shop = namedtuple("Shop", "travel work stage start slot before after limits")
# node [O]: where each operation runs; visit [J, P - 1]: k of the relays by position; earlier, later [O]: neighbours in
# the node's order, -1 for none; first, last [N]; held [O]; chosen [N]: microbatches that chose a relay; begin [O].
# Of the microbatch's way, kept by `_lay`: before, after [O]: the operations before and after it, also from one
# microbatch of a slot to the next, -1 for none; duration, busy (with the gap), lag (duration and message) [O]
State = namedtuple("State", "node visit earlier later first last held chosen begin before after duration busy lag")


@compiled
def _lay(shop, state, j):
    """Work out the way of microbatch j from its nodes and the order of its visits."""
    P, gap, launch_gap = shop.limits[0], shop.limits[6], shop.limits[7]
    W = 2 * P + 1
    op = j * W
    for position in range(2 * P + 1):
        if position == 0 or position == P or position == 2 * P:
            k = position
        elif position < P:
            k = state.visit[j, position - 1]
        else:
            k = P + state.visit[j, 2 * P - 1 - position]
        then = j * W + k
        node = state.node[then]
        state.duration[then] = shop.work[0 if k < P else 1 if k == P else 2, node]
        state.busy[then] = state.duration[then] + (launch_gap if k == 0 else gap)
        if position > 0:
            state.before[then], state.after[op] = op, then
            state.lag[op] = state.duration[op] + shop.travel[state.node[op], node]
        op = then
    state.lag[op] = state.duration[op]


@compiled
def lay(shop, state):
    """Work out the ways of all microbatches, each slot's one after another."""
    W = 2 * shop.limits[0] + 1
    for j in range(len(shop.start)):
        _lay(shop, state, j)
        last = shop.before[j]
        state.before[j * W] = last * W + W - 1 if last >= 0 else -1
        following = shop.after[j]
        state.after[j * W + W - 1] = following * W if following >= 0 else -1


@compiled
def _sweep(earlier, later, before, after, busy, lag, begin, waits, stack):
    """`follow` on plain arrays, which is several times as fast."""
    size = len(begin)
    top = 0
    for op in range(size):
        waits[op] = (earlier[op] >= 0) + (before[op] >= 0)
        begin[op] = 0
        if waits[op] == 0:
            stack[top] = op
            top += 1
    done, makespan, total = 0, 0, 0
    while top > 0:
        top -= 1
        op = stack[top]
        done += 1
        start = begin[op]
        then = later[op]
        if then >= 0:
            if start + busy[op] > begin[then]:
                begin[then] = start + busy[op]
            waits[then] -= 1
            if waits[then] == 0:
                stack[top] = then
                top += 1
        then = after[op]
        end = start + lag[op]
        if then >= 0:
            if end > begin[then]:
                begin[then] = end
            waits[then] -= 1
            if waits[then] == 0:
                stack[top] = then
                top += 1
        else:
            total += end
            if end > makespan:
                makespan = end
    if done < size:
        return -1, 0
    return makespan, total


@compiled
def follow(state, waits, stack):
    """Start times of all operations in the nodes' orders; (makespan, sum of ends of slots), or (-1, 0) for a cycle.

    waits [O], stack [O]: room for counting.
    """
    return _sweep(
        state.earlier, state.later, state.before, state.after, state.busy, state.lag, state.begin, waits, stack
    )


def empty(microbatches, visits, nodes):
    """A state without paths or orders, for J microbatches of P visits on N nodes."""
    size = microbatches * (2 * visits + 1)
    none = [np.full(n, -1, np.int64) for n in (size, size, nodes, nodes)]
    visit = np.tile(np.arange(1, visits, dtype=np.int64), (microbatches, 1))
    zero = [np.zeros(n, np.int64) for n in (size, size, nodes, size, size, size, size, size, size)]
    return State(zero[0], visit, *none, *zero[1:])


@compiled
def append(state, node, op, held):
    """Put an operation behind all others in a node's order; `held`: activations that the node has then."""
    last = state.last[node]
    state.earlier[op], state.later[op], state.held[op] = last, -1, held
    if last >= 0:
        state.later[last] = op
    else:
        state.first[node] = op
    state.last[node] = op


@compiled
def _next_choice(state, P, memory, key, ready, busy, held, waiting, link, node):
    """When a node can next begin something, and what it takes then; (-1, -1) if nothing waits that fits."""
    W = 2 * P + 1
    begin, op = np.int64(-1), waiting[node]
    while op >= 0:
        if (op % W >= P or held[node] < memory) and (begin < 0 or ready[op] < begin):
            begin = ready[op]
        op = link[op]
    if begin < 0:
        return np.int64(-1), np.int64(-1)
    begin = max(begin, busy[node])
    best, op = np.int64(-1), waiting[node]
    while op >= 0:
        fits = ready[op] <= begin and (op % W >= P or held[node] < memory)
        if fits and (best < 0 or (key[op], ready[op], op) < (key[best], ready[best], best)):
            best = op
        op = link[op]
    return begin, best


@compiled
def dispatch(shop, state, key):
    """Order all operations as nodes would that take, of what waits and fits, the one with the least key.

    key [O]. Fills the lists of the state, whose nodes and visits are given. Nodes work by the clock, so no order comes
    out in which they wait for each other; memory always suffices, as backwards need none.
    """
    P, memory = shop.limits[0], shop.limits[5]
    W = 2 * P + 1
    N, size = len(shop.stage), len(state.node)
    state.first[:], state.last[:], state.earlier[:], state.later[:] = -1, -1, -1, -1
    ready, link = np.zeros(size, np.int64), np.full(size, -1, np.int64)
    busy, held, waiting = np.zeros(N, np.int64), np.zeros(N, np.int64), np.full(N, -1, np.int64)
    begin, chosen = np.full(N, -1, np.int64), np.full(N, -1, np.int64)
    for j in range(len(shop.start)):
        if shop.before[j] < 0:
            node = shop.start[j]
            link[j * W], waiting[node] = waiting[node], j * W
    for node in range(N):
        begin[node], chosen[node] = _next_choice(state, P, memory, key, ready, busy, held, waiting, link, node)
    for _ in range(size):
        node = -1
        for n in range(N):
            if begin[n] >= 0 and (node < 0 or begin[n] < begin[node]):
                node = n
        op, now = chosen[node], begin[node]
        before, other = np.int64(-1), waiting[node]
        while other != op:
            before, other = other, link[other]
        if before < 0:
            waiting[node] = link[op]
        else:
            link[before] = link[op]
        append(state, node, op, held[node])
        held[node] += (op % W < P) - (op % W > P)
        state.begin[op] = now
        busy[node] = now + state.busy[op]
        then = state.after[op]
        if then >= 0:
            to = state.node[then]
            ready[then] = now + state.lag[op]
            link[then], waiting[to] = waiting[to], then
            begin[to], chosen[to] = _next_choice(state, P, memory, key, ready, busy, held, waiting, link, to)
        begin[node], chosen[node] = _next_choice(state, P, memory, key, ready, busy, held, waiting, link, node)


@compiled
def allowed(shop, state, j):
    """Whether the order of stages of a microbatch keeps the rules."""
    P, ahead, swaps, lag, lags = shop.limits[0], shop.limits[1], shop.limits[2], shop.limits[3], shop.limits[4]
    W = 2 * P + 1
    frontier, swapped, lagged = 0, 0, 0
    for position in range(P - 1):
        s = shop.stage[state.node[j * W + state.visit[j, position]]]
        for other in range(position):
            if shop.stage[state.node[j * W + state.visit[j, other]]] == s:
                return False
        if s > frontier + ahead or frontier - s > lag:
            return False
        if s < frontier:
            swapped += 1
            lagged += frontier - s
        else:
            frontier = s
    return swapped <= swaps and lagged <= lags


@compiled
def _ascend(shop, state, j):
    """Put the visits of a microbatch in the order of their stages."""
    P = shop.limits[0]
    W = 2 * P + 1
    for i in range(1, P - 1):
        visit = state.visit[j, i]
        s = shop.stage[state.node[j * W + visit]]
        position = i
        while position > 0 and shop.stage[state.node[j * W + state.visit[j, position - 1]]] > s:
            state.visit[j, position] = state.visit[j, position - 1]
            position -= 1
        state.visit[j, position] = visit


@compiled
def swap(shop, state, a, b):
    """b, which follows a on the same node, runs before it. False, with nothing changed, if memory does not allow it."""
    P, memory = shop.limits[0], shop.limits[5]
    W = 2 * P + 1
    held = state.held[a]
    more = (b % W < P) - (b % W > P)
    if held + more > memory or held + more < 0:
        return False
    node = state.node[a]
    earlier, later = state.earlier[a], state.later[b]
    if earlier >= 0:
        state.later[earlier] = b
    else:
        state.first[node] = b
    if later >= 0:
        state.earlier[later] = a
    else:
        state.last[node] = a
    state.earlier[b], state.later[b] = earlier, a
    state.earlier[a], state.later[a] = b, later
    state.held[b], state.held[a] = held, held + more
    return True


@compiled
def _take_place(state, a, b):
    """Exchange the places of operations a and b in the orders of two different nodes."""
    x, y = state.node[a], state.node[b]
    ea, la, eb, lb = state.earlier[a], state.later[a], state.earlier[b], state.later[b]
    state.earlier[b], state.later[b], state.earlier[a], state.later[a] = ea, la, eb, lb
    if ea >= 0:
        state.later[ea] = b
    else:
        state.first[x] = b
    if la >= 0:
        state.earlier[la] = b
    else:
        state.last[x] = b
    if eb >= 0:
        state.later[eb] = a
    else:
        state.first[y] = a
    if lb >= 0:
        state.earlier[lb] = a
    else:
        state.last[y] = a
    state.held[a], state.held[b] = state.held[b], state.held[a]
    state.node[a], state.node[b] = y, x


@compiled
def exchange(shop, state, i, u, j, v):
    """Microbatch i gets the relay that j visits as v, in the places that j had there, for the one it visits as u."""
    P = shop.limits[0]
    W = 2 * P + 1
    _take_place(state, i * W + u, j * W + v)
    _take_place(state, i * W + P + u, j * W + P + v)


@compiled
def _remove(state, op):
    earlier, later, node = state.earlier[op], state.later[op], state.node[op]
    if earlier >= 0:
        state.later[earlier] = later
    else:
        state.first[node] = later
    if later >= 0:
        state.earlier[later] = earlier
    else:
        state.last[node] = earlier


@compiled
def _insert(state, op, node, begin):
    """Before the first operation of a node that begins later."""
    later = state.first[node]
    while later >= 0 and state.begin[later] <= begin:
        later = state.later[later]
    earlier = state.last[node] if later < 0 else state.earlier[later]
    state.earlier[op], state.later[op], state.node[op] = earlier, later, node
    if earlier >= 0:
        state.later[earlier] = op
    else:
        state.first[node] = op
    if later >= 0:
        state.earlier[later] = op
    else:
        state.last[node] = op


@compiled
def _recount(shop, state, node):
    """Count anew what a node holds; False if that is ever more than fits."""
    P, memory = shop.limits[0], shop.limits[5]
    W = 2 * P + 1
    held, op, fits = 0, state.first[node], True
    while op >= 0:
        state.held[op] = held
        held += (op % W < P) - (op % W > P)
        fits = fits and 0 <= held <= memory
        op = state.later[op]
    return fits


@compiled
def _replace(shop, state, j, u, node):
    """Microbatch j visits another relay as u, about when it visited the old one. False if memory does not allow."""
    P = shop.limits[0]
    W = 2 * P + 1
    old = state.node[j * W + u]
    for op in (j * W + u, j * W + P + u):
        _remove(state, op)
        _insert(state, op, node, state.begin[op])
    state.chosen[old] -= 1
    state.chosen[node] += 1
    _recount(shop, state, old)
    return _recount(shop, state, node)


@compiled
def copy(source, target):
    """Make one state like another."""
    target.node[:] = source.node
    target.visit[:] = source.visit
    target.earlier[:] = source.earlier
    target.later[:] = source.later
    target.first[:] = source.first
    target.last[:] = source.last
    target.held[:] = source.held
    target.chosen[:] = source.chosen
    target.begin[:] = source.begin
    target.before[:] = source.before
    target.after[:] = source.after
    target.duration[:] = source.duration
    target.busy[:] = source.busy
    target.lag[:] = source.lag


@compiled
def _critical(slot, width, state, arcs):
    """Pairs of neighbours on a node, in arcs [:, 2], that a longest path to the makespan goes through; how many.

    slot [J] of microbatches of `width` operations each; those of one slot cannot change places.
    """
    earlier, before, begin, busy = state.earlier, state.before, state.begin, state.busy
    op, latest = -1, -1
    for j in range(len(slot)):
        last = j * width + width - 1
        if begin[last] + state.duration[last] > latest:
            op, latest = last, begin[last] + state.duration[last]
    count = 0
    while op >= 0:
        a = earlier[op]
        if a >= 0 and begin[a] + busy[a] == begin[op]:
            if slot[a // width] != slot[op // width]:
                arcs[count, 0], arcs[count, 1] = a, op
                count += 1
            op = a
        else:
            op = before[op]
    return count


@compiled
def _below(rng, limit):
    return int(rng.random() * limit)


@compiled
def _path_move(shop, state, arcs, count, spare, rng):
    """Change the path of a microbatch on the critical path, or of any; False if the rules or the memory forbid it."""
    P, capacity, shared = shop.limits[0], shop.limits[8], shop.limits[9] > 0
    W = 2 * P + 1
    J = len(shop.start)
    i = arcs[_below(rng, count), _below(rng, 2)] // W if count > 0 and rng.random() < 0.5 else _below(rng, J)
    j = _below(rng, J)
    while shared and shop.before[i] >= 0:
        i = shop.before[i]
    while shared and shop.before[j] >= 0:
        j = shop.before[j]
    dice = rng.random()
    if P > 2 and dice < 0.15:  # another order of visits
        position = _below(rng, P - 2)
        while i >= 0:
            a, b = state.visit[i, position], state.visit[i, position + 1]
            state.visit[i, position], state.visit[i, position + 1] = b, a
            if not allowed(shop, state, i):
                return False
            _lay(shop, state, i)
            i = shop.after[i] if shared else -1
        return True
    u, v = 1 + _below(rng, P - 1), 1 + _below(rng, P - 1)
    if len(spare) > 0 and dice < 0.4:  # a relay with room
        node = spare[_below(rng, len(spare))]
        while i >= 0:
            if state.chosen[node] >= capacity or node == state.node[i * W + u]:
                return False
            if not _replace(shop, state, i, u, node) or not _settled(shop, state, i):
                return False
            i = shop.after[i] if shared else -1
        return True
    if dice < 0.6:  # the path of another slot
        return _imitate(shop, state, i, j, rng)
    tail = 1
    if rng.random() < 0.3:  # the same positions from here on
        tail = 1 + _below(rng, P - 1)
    while i >= 0 and j >= 0:
        if i == j:
            return False
        for step in range(tail):
            if tail > 1:
                u, v = state.visit[i, P - 1 - tail + step], state.visit[j, P - 1 - tail + step]
            if state.node[i * W + u] != state.node[j * W + v]:
                exchange(shop, state, i, u, j, v)
            elif tail == 1:
                return False
        if not _settled(shop, state, i) or not _settled(shop, state, j):
            return False
        i, j = (shop.after[i], shop.after[j]) if shared else (-1, -1)
    return i == j  # slots of the same length


@compiled
def _imitate(shop, state, i, like, rng):
    """Microbatch i goes the way of another, if may be of the same data node, in exchange with whoever is there."""
    P, shared = shop.limits[0], shop.limits[9] > 0
    W = 2 * P + 1
    J = len(shop.start)
    for step in range(J if rng.random() < 0.7 else 0):
        other = (like + step) % J
        sibling = shop.start[other] == shop.start[i] and shop.slot[other] != shop.slot[i]
        if sibling and (not shared or shop.before[other] < 0):
            like = other
            break
    if shop.slot[like] == shop.slot[i]:
        return False
    partners = np.full(P - 1, -1, np.int64)
    for position in range(P - 1):
        there = state.node[like * W + state.visit[like, position]]
        own = position
        while own < P - 1 and state.node[i * W + state.visit[i, own]] != there:
            own += 1
        if own < P - 1:  # on the path already, behind
            a = i
            while a >= 0:
                state.visit[a, own], state.visit[a, position] = state.visit[a, position], state.visit[a, own]
                a = shop.after[a] if shared else -1
            continue
        op, skip = state.first[there], _below(rng, state.chosen[there])
        while op >= 0 and (op % W >= P or skip > 0 or shop.slot[op // W] == shop.slot[like]):
            skip -= op % W < P
            op = state.later[op]
        if op < 0 or shop.slot[op // W] == shop.slot[i]:
            return False
        a, b, u, v = i, op // W, state.visit[i, position], op % W
        while shared and shop.before[b] >= 0:
            b = shop.before[b]
        partners[position] = b
        while a >= 0 and b >= 0:
            exchange(shop, state, a, u, b, v)
            a, b = (shop.after[a], shop.after[b]) if shared else (-1, -1)
        if a != b:
            return False
    a = i
    while a >= 0:
        if not _settled(shop, state, a):
            return False
        a = shop.after[a] if shared else -1
    for position in range(P - 1):
        b = partners[position]
        while b >= 0:
            if not _settled(shop, state, b):
                return False
            b = shop.after[b] if shared else -1
    return True


@compiled
def _settled(shop, state, j):
    """Bring a changed path into an order that the rules allow; False if there is none."""
    if not allowed(shop, state, j):
        _ascend(shop, state, j)
        if not allowed(shop, state, j):
            return False
    _lay(shop, state, j)
    return True


@compiled
def clone(state):
    """A state of its own with the same paths and orders."""
    return State(
        state.node.copy(), state.visit.copy(), state.earlier.copy(), state.later.copy(), state.first.copy(),
        state.last.copy(), state.held.copy(), state.chosen.copy(), state.begin.copy(), state.before.copy(),
        state.after.copy(), state.duration.copy(), state.busy.copy(), state.lag.copy(),
    )  # fmt: skip


@compiled
def _round_trip(state, width, j):
    total = 0
    for op in range(j * width, j * width + width):
        total += state.lag[op]
    return total


@compiled
def arrange(shop, state, places, spare, moves, hot, cold, rng):
    """Change paths alone, before there are orders: anneal the fourth powers of the round trips over their mean.

    Those mind the longest. places [J]: that each takes on a relay. hot = 0 takes every change that the rules allow,
    whatever the network.
    """
    P, capacity = shop.limits[0], shop.limits[8]
    W = 2 * P + 1
    J = len(shop.start)
    visits = np.zeros((2, P - 1), np.int64)
    scale = 0.0
    for j in range(J):
        scale += _round_trip(state, W, j) / J
    temperature, cooling = hot, (cold / hot) ** (1.0 / moves) if hot > 0 else 1.0
    for _ in range(moves):
        temperature *= cooling
        i, j = _below(rng, J), _below(rng, J)
        u, v = 1 + _below(rng, P - 1), 1 + _below(rng, P - 1)
        x, y = state.node[i * W + u], state.node[j * W + v]
        dice = rng.random()
        reorder, replace = P > 2 and dice < 0.15, len(spare) > 0 and dice < 0.5
        if reorder or replace:
            j = i
        if replace and not reorder:
            y = spare[_below(rng, len(spare))]
            if state.chosen[y] + places[i] > capacity:
                continue
        if not reorder and (x == y or (i == j and not replace)):
            continue
        more = places[i] - places[j]  # for y
        if not reorder and (state.chosen[y] + more > capacity or state.chosen[x] - more > capacity):
            continue
        was = (_round_trip(state, W, i) / scale) ** 4 + (0 if i == j else (_round_trip(state, W, j) / scale) ** 4)
        visits[0], visits[1] = state.visit[i], state.visit[j]
        if reorder:
            position = _below(rng, P - 2)
            state.visit[i, position], state.visit[i, position + 1] = visits[0, position + 1], visits[0, position]
            ok = allowed(shop, state, i)
        else:
            state.node[i * W + u] = state.node[i * W + P + u] = y
            if i != j:
                state.node[j * W + v] = state.node[j * W + P + v] = x
            ok = True
            for k in (i, j):
                if not allowed(shop, state, k):
                    _ascend(shop, state, k)
                    ok = ok and allowed(shop, state, k)
        _lay(shop, state, i)
        _lay(shop, state, j)
        if ok and hot > 0:
            new = (_round_trip(state, W, i) / scale) ** 4 + (0 if i == j else (_round_trip(state, W, j) / scale) ** 4)
            ok = new <= was or rng.random() < np.exp((was - new) / temperature)
        if not ok:
            if not reorder:
                state.node[i * W + u] = state.node[i * W + P + u] = x
                if i != j:
                    state.node[j * W + v] = state.node[j * W + P + v] = y
            state.visit[i], state.visit[j] = visits[0], visits[1]
            _lay(shop, state, i)
            _lay(shop, state, j)
        elif not reorder:
            moved = places[i] if i == j else more
            state.chosen[x] -= moved
            state.chosen[y] += moved


@compiled
def anneal(shop, state, best, spare, moves, hot, cold, weight, paths, rng):
    """Simulated annealing from a state; the best seen goes to `best`, which holds a valid one. Returns its makespan.

    moves: how many to try. hot, cold: first and last temperature, in ticks. weight: of the mean end of the slots beside
    the makespan, in the cost. paths: share of the moves that change paths.
    """
    P = shop.limits[0]
    size = len(state.node)
    slots = 0
    for j in range(len(shop.start)):
        slots += shop.after[j] < 0
    waits, stack = np.zeros(size, np.int8), np.zeros(size, np.int64)
    arcs = np.zeros((size, 2), np.int64)
    kept = clone(state)
    makespan, total = follow(state, waits, stack)
    cost = makespan + weight * total / slots
    least, _ = follow(best, waits, stack)
    if makespan < least:
        least = makespan
        copy(state, best)
    begin = state.begin.copy()
    count = _critical(shop.slot, 2 * P + 1, state, arcs)
    cooling = (cold / hot) ** (1.0 / moves)
    temperature = hot
    for _ in range(moves):
        temperature *= cooling
        if count > 0 and rng.random() >= paths:
            which = _below(rng, count)
            a, b = arcs[which, 0], arcs[which, 1]
            if not swap(shop, state, a, b):
                continue
            makespan, total = follow(state, waits, stack)
            new = makespan + weight * total / slots
            if makespan >= 0 and (new <= cost or rng.random() < np.exp((cost - new) / temperature)):
                cost = new
                begin[:] = state.begin
                count = _critical(shop.slot, 2 * P + 1, state, arcs)
            else:
                swap(shop, state, b, a)
                state.begin[:] = begin
                continue
        else:
            copy(state, kept)
            done = _path_move(shop, state, arcs, count, spare, rng)
            if done:
                makespan, total = follow(state, waits, stack)
                new = makespan + weight * total / slots
                done = makespan >= 0 and (new <= cost or rng.random() < np.exp((cost - new) / temperature))
            if not done:
                copy(kept, state)
                continue
            cost = new
            begin[:] = state.begin
            count = _critical(shop.slot, 2 * P + 1, state, arcs)
        if makespan < least:
            least = makespan
            copy(state, best)
    return least
