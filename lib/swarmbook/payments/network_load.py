"""Many payments over a large network: what locks cost when they hold the coins that other payments need.

Flows stand for messages here: a payment reserves hop after hop at the times at which the protocol would, and settles or
gives back at the times of its closed forms. What counts is which coins are locked for how long.

- `graph` generates a network like Lightning's: preferential attachment, log-normal capacities split at random.
- A `Profile` says when a protocol locks and frees each hop, and what a party that does not respond does to it.
- `simulate` sends payments at a rate and counts which succeed, how fast, and how much was locked.

Serves: the table and figure under load, the table of collateral, the figure of committee sizes; SyncPCN's time line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import networkx
import numpy as np
from scipy.stats import binom

from swarmbook.errors import ConfigError

BLOCK = 600.0  # seconds
EXPIRY_BLOCKS = 70.9  # mean margin of a hop in a snapshot of Lightning of 2020 (CLoTH)


def graph(nodes: int, rng: np.random.Generator, links: int = 5, median: float = 800.0) -> networkx.Graph:
    """A network of `nodes` parties, each new one with `links` channels. The edge attribute `balance` has coins by end.

    Capacities are log-normal with this median (thousand msat) and quartiles near a quarter and four times of it, as in
    a snapshot of Lightning of 2020. Each is split uniformly between its two ends.
    """
    if nodes <= links:
        raise ConfigError(f"{nodes} nodes cannot have {links} channels each: give more nodes")
    network = networkx.barabasi_albert_graph(nodes, links, seed=int(rng.integers(2**31)))
    for a, b in network.edges:
        capacity = median * np.exp(2.06 * rng.standard_normal())
        share = rng.random()
        network.edges[a, b]["balance"] = {a: capacity * share, b: capacity * (1 - share)}
    return network


@dataclass(frozen=True)
class Profile:
    """A protocol's times in message delays, for hop i (from 0) of n.

    locked: of (n, i), when the hop's coins are set aside. freed: of (n, i), when they move, if all goes well. receipt:
    of n. stuck: of (n, i, delta), the seconds for which the hop stays locked if a party of the path does not respond;
    None for a protocol that needs no response. turn: the messages by which a sender asks for its turn on a channel that
    the other party has used last.
    """

    name: str
    locked: Callable[[int, int], float]
    freed: Callable[[int, int], float]
    receipt: Callable[[int], float]
    stuck: Callable[[int, int, float], float] | None
    turn: int = 0


PROFILES = {
    "Lightning": Profile(
        "Lightning",
        lambda n, i: 3 * i,
        lambda n, i: 4 * n - i + 2,
        lambda n: 4 * n,
        lambda n, i, delta: (n - i) * EXPIRY_BLOCKS * BLOCK,
    ),
    "SyncPCN": Profile(
        "SyncPCN",
        lambda n, i: 3 * i,
        lambda n, i: 4 * n - i + 3,
        lambda n: 4 * n,
        lambda n, i, delta: (3 * n + 3 + 4 * (n - 1 - i) + 4) * delta,
        turn=2,
    ),
    "PSyncPCN": Profile("PSyncPCN", lambda n, i: i + 1, lambda n, i: 2 * n - 1 - i, lambda n: 2 * n, None),
}


@dataclass(frozen=True)
class LoadResult:
    """How many payments were sent, found a path (routed), and were paid; and what they locked.

    seconds: until the receipt, of those paid [paid]. locked: coins times seconds. coins: in all channels at the end.
    """

    sent: int
    routed: int
    paid: int
    seconds: np.ndarray
    locked: float
    coins: float


def simulate(
    network: networkx.Graph,
    profile: Profile,
    payments: list[tuple[float, int, int, float]],
    message: float = 0.1,
    delta: float = 10.0,
    silent: frozenset[int] = frozenset(),
    paths: dict[tuple[int, int], list[int]] | None = None,
) -> LoadResult:
    """Run payments (time, from, to, amount) over a network, which stays as it is.

    message: the seconds that one takes. delta: the bound in seconds that SyncPCN assumes. silent: parties that do not
    respond; hops before one stay locked until their deadline. A payment takes a shortest path, if its channels have the
    capacity. paths: those found so far by (from, to), to be shared among simulations of one network. It is left out
    that a channel can be busy with another payment.
    """
    events: list[tuple] = []
    number = 0

    def later(time: float, call: Callable, *arguments: object) -> None:
        nonlocal number
        number += 1
        heappush(events, (time, number, call, arguments))

    balance = {}
    for a, b in network.edges:
        both = dict(network.edges[a, b]["balance"])
        balance[a, b] = balance[b, a] = both
    turn = {frozenset(edge): edge[0] for edge in network.edges}
    paths = {} if paths is None else paths
    seconds, counts, locked = [], {"sent": 0, "routed": 0}, 0.0

    def begin(time: float, sender: int, receiver: int, amount: float) -> None:
        counts["sent"] += 1
        if (sender, receiver) not in paths:
            paths[sender, receiver] = networkx.shortest_path(network, sender, receiver)
        path = paths[sender, receiver]
        hops = list(zip(path, path[1:], strict=False))
        if any(sum(balance[hop].values()) < amount for hop in hops):
            return
        counts["routed"] += 1
        start = time + (turn[frozenset(hops[0])] != sender) * profile.turn * message
        later(start, lock, time, start, hops, amount, 0, start)

    def lock(sent: float, start: float, hops: list, amount: float, i: int, now: float) -> None:
        nonlocal locked
        turn[frozenset(hops[i])] = hops[i][0]
        n, payer = len(hops), hops[i][0]
        mute = profile.stuck is not None and hops[i][1] in silent
        if balance[hops[i]][payer] < amount:
            for k in range(i):  # fail backwards, hop by hop
                back = now + (i - k) * message
                locked += amount * (back - start - profile.locked(n, k) * message)
                later(back, free, hops[k], hops[k][0], amount)
            return
        balance[hops[i]][payer] -= amount
        if mute:
            for k in range(i + 1):
                end = start + profile.stuck(n, k, delta)
                locked += amount * (end - start - profile.locked(n, k) * message)
                later(end, free, hops[k], hops[k][0], amount)
        elif i + 1 < n:
            after = start + profile.locked(n, i + 1) * message
            later(after, lock, sent, start, hops, amount, i + 1, after)
        else:
            seconds.append(start - sent + profile.receipt(n) * message)
            for k in range(n):
                held = (profile.freed(n, k) - profile.locked(n, k)) * message
                locked += amount * held
                later(start + profile.freed(n, k) * message, free, hops[k], hops[k][1], amount)

    def free(hop: tuple[int, int], party: int, amount: float) -> None:
        balance[hop][party] += amount

    for payment in payments:
        later(payment[0], begin, *payment)
    while events:
        _, _, call, arguments = heappop(events)
        call(*arguments)
    coins = sum(sum(balance[edge].values()) for edge in network.edges)
    return LoadResult(counts["sent"], counts["routed"], len(seconds), np.array(seconds), locked, coins)


def poisson(
    rate: float, duration: float, nodes: int, rng: np.random.Generator, median: float = 20.0
) -> list[tuple[float, int, int, float]]:
    """Payments (time, from, to, amount) at a rate per second, between random nodes, of log-normal amounts."""
    count = int(rng.poisson(rate * duration))
    times = np.sort(rng.uniform(0, duration, count))
    pairs = [tuple(map(int, rng.choice(nodes, 2, replace=False))) for _ in range(count)]
    amounts = median * np.exp(1.2 * rng.standard_normal(count))
    return [(float(t), a, b, float(x)) for t, (a, b), x in zip(times, pairs, amounts, strict=True)]


def collateral(profile: Profile, hops: int, message: float, delta: float, worst: bool) -> float:
    """Coins x seconds locked by a payment of 1 over n hops: if it succeeds, or if the receiver never answers."""
    if not worst:
        return sum((profile.freed(hops, i) - profile.locked(hops, i)) * message for i in range(hops))
    if profile.stuck is None:
        return float("nan")  # committees do not wait for the receiver
    return sum(profile.stuck(hops, i, delta) - profile.locked(hops, i) * message for i in range(hops))


def committee_breaks(size: int, share: float) -> float:
    """Chance that more than f = (m - 1) // 3 of m members are faulty, each with this chance."""
    return float(binom.sf((size - 1) // 3, size, share))
