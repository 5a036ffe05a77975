"""A partial pipeline as a job shop, compiled: what a planner asks thousands of times a second.

- the jobs are microbatches, the machines are nodes, and the operations are forward passes, losses and backward passes.
  A microbatch's path visits P stages, and it has 2 P + 1 operations
- operation j * (2 P + 1) + k belongs to microbatch j. k = 0 is the forward pass of the data node, k = 1 ... P - 1 are
  those of its relays, k = P is the loss, P + 1 ... 2 P - 1 are the backward passes of the same relays, and 2 P is that
  of the data node. A relay keeps its k when the order of visits changes
- a `State` is the paths, the order of visits, and every node's order of operations as a linked list. `held` counts the
  activations that a node holds before an operation; it shows at once whether two operations may change places
- `start_times` finds all start times in one sweep. `anneal` changes states by two kinds of moves: neighbours on the
  critical path change places, or relays are exchanged between microbatches, reordered, or replaced by ones with room
- all times are ticks (`swarmbook.planning.pipeline.TICK`), so a state's makespan is exact and equals the replay's
- `swap_neighbours`, `_take_place`, `_remove` and `_insert` each write out how neighbours in a list are linked: a shared
  function for it made the search an eighth to a quarter slower

The file is long because state and moves must stay together: numba does not compile a cached function anew when one that
it calls changes in another file.

Serves: the planners "annealing", "blind" and "shortest", and so all of SkipPipe's planning figures.
"""

from collections import namedtuple
from functools import partial

import numpy as np

from swarmbook.records.machine_code import compiled

compiled = partial(compiled, nogil=True)

# Places in `Shop.limits`: stages on a path (P), the four limits on the order of visits
# (`swarmbook.planning.path_rules.PathRules`), ticks that a node stays busy after an operation and after a data node's
# first, and whether the microbatches of a slot share a path (1) or not (0).
VISITS, AHEAD, SWAPS, LAG, LAGS, GAP, LAUNCH_GAP, SHARED = range(8)

# The instance, of N nodes and J microbatches; -1 stands for none.
# - travel [N, N]: ticks of a message; work [3, N]: ticks of forward pass, loss and backward pass; stage [N]
# - start [J]: data node of each microbatch; slot [J]: its slot; before [J], after [J]: the previous and next microbatch
#   of that slot
# - limits [8]: as above; memory [N]: microbatches whose activations fit on each node; capacity [N]: those that may
#   choose each node as a relay
Shop = namedtuple("Shop", "travel work stage start slot before after limits memory capacity")

# What planners change, over O = J (2 P + 1) operations; -1 stands for none.
# - node [O]: where each operation runs; visit [J, P - 1]: the k of the relays in the order of visits
# - earlier, later [O]: neighbours in the node's order; first, last [N]: ends of that order
# - held [O]: activations that the node holds before the operation; chosen [N]: microbatches that chose a relay
# - begin [O]: start times in ticks
# - before, after [O]: the operations before and after it on the microbatch's way, also from one microbatch of a slot to
#   the next; duration, busy (with the gap) and lag (with the message to the next node) [O]: ticks; set by `_lay_out`
State = namedtuple("State", "node visit earlier later first last held chosen begin before after duration busy lag")


@compiled
def _lay_out(shop, state, j):
    """Set the neighbours on its way and the times of microbatch j's operations from its nodes and order of visits."""
    P, gap, launch_gap = shop.limits[VISITS], shop.limits[GAP], shop.limits[LAUNCH_GAP]
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
def lay_out(shop, state):
    """Set neighbours and times of all microbatches' operations; those of a slot follow one another."""
    W = 2 * shop.limits[VISITS] + 1
    for j in range(len(shop.start)):
        _lay_out(shop, state, j)
        last = shop.before[j]
        state.before[j * W] = last * W + W - 1 if last >= 0 else -1
        following = shop.after[j]
        state.after[j * W + W - 1] = following * W if following >= 0 else -1


@compiled
def _sweep(earlier, later, before, after, busy, lag, begin, waits, stack):
    """Compute `start_times` on plain arrays, which is several times as fast as on a named tuple."""
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
def start_times(state, waits, stack):
    """Set the start times of all operations as the nodes' orders demand; returns (makespan, sum of ends of slots).

    Returns (-1, 0) if nodes wait for each other in a circle. waits [O] and stack [O] are working space.
    """
    return _sweep(
        state.earlier, state.later, state.before, state.after, state.busy, state.lag, state.begin, waits, stack
    )


def empty_state(microbatches, visits, nodes):
    """A state without paths or orders, for so many microbatches, visits of each (P) and nodes."""
    size = microbatches * (2 * visits + 1)
    none = [np.full(n, -1, np.int64) for n in (size, size, nodes, nodes)]
    visit = np.tile(np.arange(1, visits, dtype=np.int64), (microbatches, 1))
    zero = [np.zeros(n, np.int64) for n in (size, size, nodes, size, size, size, size, size, size)]
    return State(zero[0], visit, *none, *zero[1:])


@compiled
def append(state, node, op, held):
    """Put an operation behind all others in a node's order; `held`: the activations that the node holds before it."""
    last = state.last[node]
    state.earlier[op], state.later[op], state.held[op] = last, -1, held
    if last >= 0:
        state.later[last] = op
    else:
        state.first[node] = op
    state.last[node] = op


@compiled
def _fits(state, P, memory, held, reserved, op):
    """Whether a node has room for an operation; with reservations, the relays of one that begins must too."""
    k = op % (2 * P + 1)
    if k >= P:
        return True
    if k == 0 and reserved[0] >= 0:
        for relay in range(op + 1, op + P):
            if reserved[state.node[relay]] >= memory[state.node[relay]]:
                return False
    return held[state.node[op]] < memory[state.node[op]]


@compiled
def _next_choice(state, P, memory, key, ready, busy, held, reserved, waiting, link, node):
    """When a node can next begin an operation, and which it takes then; (-1, -1) if nothing that waits fits."""
    begin, op = np.int64(-1), waiting[node]
    while op >= 0:
        if _fits(state, P, memory, held, reserved, op) and (begin < 0 or ready[op] < begin):
            begin = ready[op]
        op = link[op]
    if begin < 0:
        return np.int64(-1), np.int64(-1)
    begin = max(begin, busy[node])
    best, op = np.int64(-1), waiting[node]
    while op >= 0:
        fits = ready[op] <= begin and _fits(state, P, memory, held, reserved, op)
        if fits and (best < 0 or (key[op], ready[op], op) < (key[best], ready[best], best)):
            best = op
        op = link[op]
    return begin, best


@compiled
def dispatch(shop, state, key):
    """Order all operations as nodes would that take, of what waits and fits into memory, the one with the least key.

    key [O]: the priorities. Fills the orders of the state, whose nodes and visits are given. As nodes work by the
    clock, they never wait for each other in a circle. Where more microbatches are under way than a relay has room for,
    two full relays may each wait for the other, if paths visit them in both orders. Then all is ordered anew, and a
    microbatch begins only when all relays of its path have room for it.
    """
    if not _dispatch(shop, state, key, False):
        _dispatch(shop, state, key, True)


@compiled
def _dispatch(shop, state, key, reserve):
    """Order all operations; False if nodes wait for room for ever, which they never do if microbatches reserve it."""
    P, memory = shop.limits[VISITS], shop.memory
    W = 2 * P + 1
    N, size = len(shop.stage), len(state.node)
    state.first[:], state.last[:], state.earlier[:], state.later[:] = -1, -1, -1, -1
    ready, link = np.zeros(size, np.int64), np.full(size, -1, np.int64)
    busy, held, waiting = np.zeros(N, np.int64), np.zeros(N, np.int64), np.full(N, -1, np.int64)
    begin, chosen = np.full(N, -1, np.int64), np.full(N, -1, np.int64)
    reserved = np.full(N, 0 if reserve else -1, np.int64)
    for j in range(len(shop.start)):
        if shop.before[j] < 0:
            node = shop.start[j]
            link[j * W], waiting[node] = waiting[node], j * W
    for node in range(N):
        begin[node], chosen[node] = _next_choice(
            state, P, memory, key, ready, busy, held, reserved, waiting, link, node
        )
    for _ in range(size):
        node = -1
        for n in range(N):
            if begin[n] >= 0 and (node < 0 or begin[n] < begin[node]):
                node = n
        if node < 0:
            return False
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
            begin[to], chosen[to] = _next_choice(state, P, memory, key, ready, busy, held, reserved, waiting, link, to)
        begin[node], chosen[node] = _next_choice(
            state, P, memory, key, ready, busy, held, reserved, waiting, link, node
        )
        if reserve and (op % W == 0 or P < op % W < 2 * P):
            for relay in range(op + 1, op + P if op % W == 0 else op + 1):
                reserved[state.node[relay]] += 1
            if op % W > P:
                reserved[node] -= 1
            for j in range(len(shop.start)):  # microbatches that may begin now, or may no longer
                n = shop.start[j]
                if op % W > P:
                    ready[j * W] = max(ready[j * W], busy[node])
                begin[n], chosen[n] = _next_choice(state, P, memory, key, ready, busy, held, reserved, waiting, link, n)
    return True


@compiled
def keeps_rules(shop, state, j):
    """Whether the order of stages of microbatch j keeps the rules."""
    P, ahead, swaps, lag, lags = (
        shop.limits[VISITS],
        shop.limits[AHEAD],
        shop.limits[SWAPS],
        shop.limits[LAG],
        shop.limits[LAGS],
    )
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
    P = shop.limits[VISITS]
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
def swap_neighbours(shop, state, a, b):
    """Let b, which follows a on the same node, run before it. False, with nothing changed, if memory forbids it."""
    P, memory = shop.limits[VISITS], shop.memory
    W = 2 * P + 1
    held = state.held[a]
    more = (b % W < P) - (b % W > P)
    if held + more > memory[state.node[a]] or held + more < 0:
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
def exchange_relays(shop, state, i, u, j, v):
    """Exchange the relay that microbatch i visits as k = u for the one that j visits as k = v, places included."""
    P = shop.limits[VISITS]
    W = 2 * P + 1
    _take_place(state, i * W + u, j * W + v)
    _take_place(state, i * W + P + u, j * W + P + v)


@compiled
def _remove(state, op):
    """Take an operation out of its node's order."""
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
    """Put an operation into a node's order before the first one that begins later than `begin`."""
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
    """Count anew what a node holds before each operation; False if that is ever more than fits."""
    P, memory = shop.limits[VISITS], shop.memory
    W = 2 * P + 1
    held, op, fits = 0, state.first[node], True
    while op >= 0:
        state.held[op] = held
        held += (op % W < P) - (op % W > P)
        fits = fits and 0 <= held <= memory[node]
        op = state.later[op]
    return fits


@compiled
def _replace(shop, state, j, u, node):
    """Let microbatch j visit another relay as k = u, about when it visited the old one. False if memory forbids it."""
    P = shop.limits[VISITS]
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
    """Write pairs of neighbours on a node that are on a critical path to arcs [:, 2]; returns how many there are.

    slot [J]: the slots of the microbatches, which have `width` operations each; two of one slot cannot change places.
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
    """A random whole number from 0 to limit - 1."""
    return int(rng.random() * limit)


@compiled
def _path_move(shop, state, arcs, count, spare, rng):
    """Change the path of a microbatch; False if rules or memory forbid it.

    Half of the time it is one on the critical path. Where the microbatches of a slot share a path, it changes that of
    all of them. On False the caller restores the state.
    """
    P, capacity, shared = shop.limits[VISITS], shop.capacity, shop.limits[SHARED] > 0
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
            if not keeps_rules(shop, state, i):
                return False
            _lay_out(shop, state, i)
            i = shop.after[i] if shared else -1
        return True
    u, v = 1 + _below(rng, P - 1), 1 + _below(rng, P - 1)
    if len(spare) > 0 and dice < 0.4:  # a relay with room
        node = spare[_below(rng, len(spare))]
        while i >= 0:
            if state.chosen[node] >= capacity[node] or node == state.node[i * W + u]:
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
                exchange_relays(shop, state, i, u, j, v)
            elif tail == 1:
                return False
        if not _settled(shop, state, i) or not _settled(shop, state, j):
            return False
        i, j = (shop.after[i], shop.after[j]) if shared else (-1, -1)
    return i == j  # slots of the same length


@compiled
def _imitate(shop, state, i, like, rng):
    """Let microbatch i take the path of another, preferably of its data node, in exchange with whoever is there."""
    P, shared = shop.limits[VISITS], shop.limits[SHARED] > 0
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
            exchange_relays(shop, state, a, u, b, v)
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
    """Bring a changed path into an order that the rules allow; False if none was found."""
    if not keeps_rules(shop, state, j):
        _ascend(shop, state, j)
        if not keeps_rules(shop, state, j):
            return False
    _lay_out(shop, state, j)
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
    """Ticks of microbatch j's round trip without waiting."""
    total = 0
    for op in range(j * width, j * width + width):
        total += state.lag[op]
    return total


@compiled
def anneal_paths(shop, state, places, trips, spare, moves, hot, cold, rng):
    """Change paths alone, before there are orders, by annealing the sum of (round trips / their mean) ** 4.

    The fourth power makes the longest count most. places, trips [J]: how many places each microbatch takes on a relay,
    and for how many round trips it stands. spare: relays with room. hot, cold: first and last temperature. With hot = 0
    every change that the rules allow is taken, whatever the network.
    """
    P, capacity = shop.limits[VISITS], shop.capacity
    W = 2 * P + 1
    J = len(shop.start)
    visits = np.zeros((2, P - 1), np.int64)
    scale = 0.0
    for j in range(J):
        scale += trips[j] * _round_trip(state, W, j) / J
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
            if state.chosen[y] + places[i] > capacity[y]:
                continue
        if not reorder and (x == y or (i == j and not replace)):
            continue
        more = places[i] - places[j]  # for y
        if not reorder and (state.chosen[y] + more > capacity[y] or state.chosen[x] - more > capacity[x]):
            continue
        was = (trips[i] * _round_trip(state, W, i) / scale) ** 4
        was += 0 if i == j else (trips[j] * _round_trip(state, W, j) / scale) ** 4
        visits[0], visits[1] = state.visit[i], state.visit[j]
        if reorder:
            position = _below(rng, P - 2)
            state.visit[i, position], state.visit[i, position + 1] = visits[0, position + 1], visits[0, position]
            ok = keeps_rules(shop, state, i)
        else:
            state.node[i * W + u] = state.node[i * W + P + u] = y
            if i != j:
                state.node[j * W + v] = state.node[j * W + P + v] = x
            ok = True
            for k in (i, j):
                if not keeps_rules(shop, state, k):
                    _ascend(shop, state, k)
                    ok = ok and keeps_rules(shop, state, k)
        _lay_out(shop, state, i)
        _lay_out(shop, state, j)
        if ok and hot > 0:
            new = (trips[i] * _round_trip(state, W, i) / scale) ** 4
            new += 0 if i == j else (trips[j] * _round_trip(state, W, j) / scale) ** 4
            ok = new <= was or rng.random() < np.exp((was - new) / temperature)
        if not ok:
            if not reorder:
                state.node[i * W + u] = state.node[i * W + P + u] = x
                if i != j:
                    state.node[j * W + v] = state.node[j * W + P + v] = y
            state.visit[i], state.visit[j] = visits[0], visits[1]
            _lay_out(shop, state, i)
            _lay_out(shop, state, j)
        elif not reorder:
            moved = places[i] if i == j else more
            state.chosen[x] -= moved
            state.chosen[y] += moved


@compiled
def anneal(shop, state, best, spare, moves, hot, cold, weight, paths, rng):
    """Anneal a state in place; `best`, a valid state, becomes the best one seen. Returns the ticks that `best` takes.

    moves: how many to try. spare: relays with room. hot, cold: first and last temperature, in ticks. The cost of a
    state is its makespan plus `weight` times the mean end of the slots. paths: the share of moves that change paths.
    """
    P = shop.limits[VISITS]
    size = len(state.node)
    slots = 0
    for j in range(len(shop.start)):
        slots += shop.after[j] < 0
    waits, stack = np.zeros(size, np.int8), np.zeros(size, np.int64)
    arcs = np.zeros((size, 2), np.int64)
    kept = clone(state)
    makespan, total = start_times(state, waits, stack)
    cost = makespan + weight * total / slots
    least, _ = start_times(best, waits, stack)
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
            if not swap_neighbours(shop, state, a, b):
                continue
            makespan, total = start_times(state, waits, stack)
            new = makespan + weight * total / slots
            if makespan >= 0 and (new <= cost or rng.random() < np.exp((cost - new) / temperature)):
                cost = new
                begin[:] = state.begin
                count = _critical(shop.slot, 2 * P + 1, state, arcs)
            else:
                swap_neighbours(shop, state, b, a)
                state.begin[:] = begin
                continue
        else:
            copy(state, kept)
            done = _path_move(shop, state, arcs, count, spare, rng)
            if done:
                makespan, total = start_times(state, waits, stack)
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
