"""Many payments over a large network: what locks cost when they hold the coins that other payments need.

Flows stand for messages here: a payment reserves hop after hop at the times at which the protocol would, and settles or
gives back at the times of its closed forms. What counts is which coins are locked for how long.

- `graph` generates a network like Lightning's: preferential attachment, log-normal capacities split at random.
- A `Profile` says when a protocol locks and frees each hop, and what a party that does not respond does to it.
- `simulate` sends payments at a rate and counts which succeed, how fast, and how much was locked.
- `by_messages` runs the same payments over the same paths with a protocol itself.

All protocols choose paths by the same rule. A sender knows the capacities of all channels, and neither balances nor
which coins are in flight. It takes a shortest path among the channels whose capacity is at least the amount; between
two parties with several such channels, one of them in turn. A payment that meets a channel with too little on the
payer's side fails there, and is not tried again.

The file is long because it is one concept: payments as flows, and the same ones by messages.

Serves: the table and figure under load, the table of collateral, the figure of committee sizes; SyncPCN's time line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate, pairwise
from math import ceil
from typing import NamedTuple

import networkx
import numpy as np
from scipy.special import bdtrc

from swarmbook.errors import ConfigError, finite, whole
from swarmbook.payments.payment_network import Topology, World
from swarmbook.payments.simulation import Node, Simulation

BLOCK = 600.0  # seconds
EXPIRY_BLOCKS = 70.9  # mean margin of a hop in a snapshot of Lightning of 2020 (CLoTH)


def graph(nodes: int, rng: np.random.Generator, links: int = 5, median: float = 800.0) -> networkx.Graph:
    """A network of `nodes` parties, each new one with `links` channels. The edge attribute `balance` has coins by end.

    Capacities are log-normal with this median (thousand msat) and quartiles near a quarter and four times of it, as in
    a snapshot of Lightning of 2020. Each is split uniformly between its two ends.
    """
    finite("median", median, 0, above=True)
    if whole("nodes", nodes, 2) <= whole("links", links, 1):
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

    locked: of (n, i), when the hop's coins are set aside. freed: of (n, i), when they move, if all goes well. safe,
    receipt: of n, when the receiver is certain of its coins, and when the sender has its receipt. back: of k, how long
    after a hop was found to have too little the coins of the k-th hop before it are free. stuck: of (n, i, delta), the
    seconds for which the hop stays locked if a party of the path does not respond; None for a protocol that needs no
    response. turn: the messages by which a sender asks for its turn on a channel that the other party has used last.
    """

    name: str
    locked: Callable[[int, int], float]
    freed: Callable[[int, int], float]
    safe: Callable[[int], float]
    receipt: Callable[[int], float]
    back: Callable[[int], float]
    stuck: Callable[[int, int, float], float] | None
    turn: int = 0


PROFILES = {
    "Lightning": Profile(
        "Lightning",
        locked=lambda n, i: 3 * i,
        freed=lambda n, i: 4 * n - i + 2,
        safe=lambda n: 3 * n,
        receipt=lambda n: 4 * n,
        back=lambda k: 3 * k,
        stuck=lambda n, i, delta: (n - i) * EXPIRY_BLOCKS * BLOCK,
    ),
    "SyncPCN": Profile(
        "SyncPCN",
        locked=lambda n, i: 3 * i,
        freed=lambda n, i: 4 * n - i + 3,
        safe=lambda n: 3 * n,
        receipt=lambda n: 4 * n,
        back=lambda k: 3 * k + 1,
        stuck=lambda n, i, delta: (3 * n + 3 + 4 * (n - 1 - i) + 4) * delta,
        turn=2,
    ),
    "PSyncPCN": Profile(
        "PSyncPCN",
        locked=lambda n, i: i + 1,
        freed=lambda n, i: 2 * n - 1 - i,
        safe=lambda n: n + 1,
        receipt=lambda n: 2 * n,
        back=lambda k: k,
        stuck=None,
    ),
}


@dataclass(frozen=True)
class LoadResult:
    """How many payments were sent, found a path of large enough channels (routed), and were paid; what they locked.

    seconds: until the receipt, of those paid [paid]. locked: coins times seconds. coins: in all channels at the end.
    safe: seconds until the receiver is certain of its coins [sent], NaN where it is not paid. peak: the most coins that
    were locked at once. hops: of the paths of those paid [sent], 0 for others. carried: how many of those paid went
    over each channel, in the order of the network's edges.
    """

    sent: int
    routed: int
    paid: int
    seconds: np.ndarray
    locked: float
    coins: float
    safe: np.ndarray
    peak: float
    hops: np.ndarray
    carried: np.ndarray


class _Hop(NamedTuple):
    """A hop of one payment: who pays whom, and over which channel of the network."""

    payer: int
    payee: int
    channel: int


class _Channels:
    """The channels of a network: coins by end, capacity, and who used each last; which lie between two parties."""

    def __init__(self, network: networkx.Graph) -> None:
        if network.is_directed():
            raise ConfigError("the network is directed, and coins move both ways: give a Graph or a MultiGraph")
        self.network = network
        self.coins: list[dict[int, float]] = []
        self.last: list[int] = []
        self.between: dict[tuple[int, int], list[int]] = {}
        self.passed: dict[frozenset[int], int] = {}  # payments so far between two parties with several channels
        for a, b, data in network.edges(data=True):
            balance = data.get("balance", {})
            if a == b or set(balance) != {a, b}:
                raise ConfigError(f"the channel {a} - {b} has balance={balance}: give the coins of each of two ends")
            for end in (a, b):
                finite(f"the coins of {end} in the channel {a} - {b}", balance[end], 0)
            both = self.between[b, a] = self.between.setdefault((a, b), [])
            both.append(len(self.coins))
            self.coins.append({a: balance[a], b: balance[b]})
            self.last.append(a)
        self.capacity = [sum(coins.values()) for coins in self.coins]
        self.largest = {pair: max(self.capacity[c] for c in both) for pair, both in self.between.items()}

    def path(self, found: list[tuple[float, list[int] | None]], ends: tuple[int, int], amount: float) -> list | None:
        """A shortest path between two ends, of channels with the capacity for an amount; None if there is none.

        found: paths of ever larger channels as far as they are known: the capacity of its smallest channel, and the
        path, which is a shortest of all whose channels are larger than the capacity before it. More are added to it.
        """
        while not found or (found[-1][1] is not None and found[-1][0] < amount):
            found.append(self._larger(found[-1][0] if found else -1.0, ends))
        return next(path for capacity, path in found if path is None or capacity >= amount)

    def _larger(self, than: float, ends: tuple[int, int]) -> tuple[float, list[int] | None]:
        """A shortest path of channels of a larger capacity than this one."""
        larger = networkx.subgraph_view(self.network, filter_edge=lambda a, b, *_: self.largest[a, b] > than)
        try:
            path = networkx.shortest_path(larger, *ends)
        except networkx.NetworkXNoPath:
            return than, None
        return min(self.largest[pair] for pair in pairwise(path)), path

    def hops(self, path: list[int], amount: float) -> list[_Hop]:
        """The channels that a payment over this path takes: between two parties, those with the capacity in turn."""
        hops = []
        for a, b in pairwise(path):
            both = self.between[a, b]
            if len(both) > 1:
                passed = self.passed[frozenset((a, b))] = self.passed.get(frozenset((a, b)), -1) + 1
                both = [channel for channel in both if self.capacity[channel] >= amount]
                both = both[passed % len(both) :]
            hops.append(_Hop(a, b, both[0]))
        return hops


def simulate(
    network: networkx.Graph,
    profile: Profile,
    payments: list[tuple[float, int, int, float]],
    message: float = 0.1,
    delta: float = 10.0,
    silent: frozenset[int] = frozenset(),
    paths: dict[tuple[int, int], list] | None = None,
) -> LoadResult:
    """Run payments (time, from, to, amount) over a network, which stays as it is.

    network: with the edge attribute `balance`, the coins by end; a MultiGraph has several channels between two parties.
    message: the seconds that one takes. delta: the bound in seconds that SyncPCN assumes. silent: parties that do not
    respond; hops before one stay locked until their deadline. paths: those found so far by (from, to), to be shared
    among simulations of one network. How paths are chosen is said above. It is left out that a channel can be busy with
    another payment, for which SyncPCN has to wait where many payments meet (`by_messages` does not leave it out).

    Raises ConfigError for a payment from nobody, to nobody or to its sender, times, amounts or balances that are no
    numbers of at least 0, and silent parties that the network does not have.
    """
    finite("message", message, 0), finite("delta", delta, 0, above=True)
    for time, sender, receiver, amount in payments:
        if sender == receiver or sender not in network or receiver not in network:
            raise ConfigError(f"no payment can go from {sender} to {receiver}: give two parties of the network")
        finite("time", time, 0), finite("amount", amount, 0, above=True)
    if strangers := sorted(map(str, set(silent) - set(network))):
        raise ConfigError(f"silent={', '.join(strangers)}: give parties of the network")
    channels, paths = _Channels(network), {} if paths is None else paths
    coins, last = channels.coins, channels.last
    events: list[tuple] = []
    number = 0

    def later(time: float, call: Callable, *arguments: object) -> None:
        nonlocal number
        number += 1
        heappush(events, (time, number, call, arguments))

    seconds, routed, locked = [], 0, 0.0
    safe, lengths = np.full(len(payments), np.nan), np.zeros(len(payments), int)
    carried, held = np.zeros(len(coins), int), []  # held: (from, to, amount) of coins that are locked

    def hold(amount: float, since: float, until: float, lasts: float) -> None:
        nonlocal locked
        locked += amount * lasts
        held.extend([(since, amount), (until, -amount)] if lasts > 0 else [])

    def begin(which: int, time: float, sender: int, receiver: int, amount: float) -> None:
        nonlocal routed
        path = channels.path(paths.setdefault((sender, receiver), []), (sender, receiver), amount)
        if path is None:
            return
        routed += 1
        hops = channels.hops(path, amount)
        start = time + (last[hops[0].channel] != sender) * profile.turn * message
        later(start, lock, which, time, start, hops, amount, 0, start)

    def lock(which: int, sent: float, start: float, hops: list[_Hop], amount: float, i: int, now: float) -> None:
        payer, payee, channel = hops[i]
        last[channel] = payer
        n = len(hops)
        mute = profile.stuck is not None and payee in silent
        if coins[channel][payer] < amount:
            for k in range(i):  # fail backwards, hop by hop
                back = now + profile.back(i - k) * message
                since = profile.locked(n, k) * message
                hold(amount, start + since, back, back - start - since)
                later(back, free, hops[k].channel, hops[k].payer, amount)
            return
        coins[channel][payer] -= amount
        if mute:
            for k in range(i + 1):
                end = start + profile.stuck(n, k, delta)
                since = profile.locked(n, k) * message
                hold(amount, start + since, end, end - start - since)
                later(end, free, hops[k].channel, hops[k].payer, amount)
        elif i + 1 < n:
            after = start + profile.locked(n, i + 1) * message
            later(after, lock, which, sent, start, hops, amount, i + 1, after)
        else:
            seconds.append(start - sent + profile.receipt(n) * message)
            safe[which], lengths[which] = start - sent + profile.safe(n) * message, n
            for k in range(n):
                lasts = (profile.freed(n, k) - profile.locked(n, k)) * message
                hold(amount, start + profile.locked(n, k) * message, start + profile.freed(n, k) * message, lasts)
                carried[hops[k].channel] += 1
                later(start + profile.freed(n, k) * message, free, hops[k].channel, hops[k].payee, amount)

    def free(channel: int, party: int, amount: float) -> None:
        coins[channel][party] += amount

    for which, payment in enumerate(payments):
        later(payment[0], begin, which, *payment)
    while events:
        _, _, call, arguments = heappop(events)
        call(*arguments)
    total = sum(sum(balance.values()) for balance in coins)
    peak = max(accumulate((amount for _, amount in sorted(held)), initial=0.0))
    paid = len(seconds)
    return LoadResult(len(payments), routed, paid, np.array(seconds), locked, total, safe, peak, lengths, carried)


def by_messages(
    protocol: Callable[..., World],
    network: networkx.Graph,
    payments: list[tuple[float, int, int, float]],
    message: float | Callable[[Node, Node, object], float] = 0.1,
    coin: float = 1.0,
    paths: dict[tuple[int, int], list] | None = None,
    faulty: int = 1,
    run: Callable[[World], object] = World.run,
) -> World:
    """The world in which a protocol has made these payments of `simulate`, with a Payment for each that found a path.

    protocol: makes the world of a topology and a `sim`. message: the seconds that one takes, or the delay of a
    Simulation. coin: what a coin of the world is worth; balances are rounded up to whole coins, and amounts down, to 1
    at least. paths: as of `simulate`. faulty: f of every committee. run: lets everything happen, and may put nodes at
    their places before. The node k of the network is the party "pk", and channels have its edges' order.
    """
    channels, paths = _Channels(network), {} if paths is None else paths
    pairs = []
    for (a, left), (b, right) in (coins.items() for coins in channels.coins):
        pairs.append((f"p{a}", f"p{b}", max(1, ceil(left / coin)), max(1, ceil(right / coin))))
    delay = message if callable(message) else lambda *_: message
    world = protocol(Topology(tuple(pairs), faulty), sim=Simulation(delay))
    for time, sender, receiver, amount in payments:
        path = channels.path(paths.setdefault((sender, receiver), []), (sender, receiver), amount)
        if path is not None:
            world.pay([f"p{node}" for node in path], max(1, int(amount / coin)), at=time)
    run(world)
    return world


def poisson(
    rate: float, duration: float, nodes: int, rng: np.random.Generator, median: float = 20.0
) -> list[tuple[float, int, int, float]]:
    """Payments (time, from, to, amount) at a rate per second, between random nodes, of log-normal amounts."""
    finite("rate", rate, 0), finite("duration", duration, 0), finite("median", median, 0, above=True)
    whole("nodes", nodes, 2)
    count = int(rng.poisson(rate * duration))
    times = np.sort(rng.uniform(0, duration, count))
    pairs = [tuple(map(int, rng.choice(nodes, 2, replace=False))) for _ in range(count)]
    amounts = median * np.exp(1.2 * rng.standard_normal(count))
    return [(float(t), a, b, float(x)) for t, (a, b), x in zip(times, pairs, amounts, strict=True)]


def collateral(profile: Profile, hops: int, message: float, delta: float, worst: bool) -> float:
    """Coins x seconds locked by a payment of 1 over n hops: if it succeeds, or if the receiver never answers."""
    whole("hops", hops, 1), finite("message", message, 0), finite("delta", delta, 0, above=True)
    if not worst:
        return sum((profile.freed(hops, i) - profile.locked(hops, i)) * message for i in range(hops))
    if profile.stuck is None:
        return float("nan")  # committees do not wait for the receiver
    return sum(profile.stuck(hops, i, delta) - profile.locked(hops, i) * message for i in range(hops))


def committee_breaks(size: int, share: float) -> float:
    """Chance that more than f = (m - 1) // 3 of m members are faulty, each with this chance."""
    whole("size", size, 1), finite("share", share, 0, 1)
    return float(bdtrc((size - 1) // 3, size, share))
