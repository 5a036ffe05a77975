"""Paying the relays of a swarm: a data node pays each relay for each microbatch, when that relay has delivered.

What an iteration asks for comes as plain data, so that nothing here knows of plans: a `Delivery` says which relay has
done its work for which data node, and when the data node knows of it. Amounts are whole coins, one for each delivery.

- `funded` gives any network of channels the coins that an iteration takes; `direct` has a channel from each data node
  to each of its relays, and `hub` one from everybody to a node in the middle.
- `settle` pays all deliveries message by message, with everybody at a place of its own. `flows` pays them by the flow
  model, for big swarms. Both say what it costs, how long it takes and which coins it locks.
- `ends_with_waiting` says when an iteration ends if a relay does nothing more for a data node that owes it something.
- `cheated` runs one data node and one relay, of which one cheats, and says what the other has lost.
- `handled` and `largest_swarm` are the load of committees.

A relay is paid for what it delivers; whether its work is right, no payment can tell. PSyncPCN runs without ordering
(V1), which needs channels that hold enough for all that is paid over them, as those of `funded` do. Payments only go
from data nodes to relays, so that channels have to be filled anew after as many iterations as they have coins for.

The file is long because it is one concept: what a data node and a relay have of each other, from delivery to payment.

Serves: the section on paying the relays of the notebook "One swarm".
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import floor, nan
from typing import NamedTuple

import networkx
import numpy as np

from swarmbook.errors import ConfigError, finite, unknown, whole
from swarmbook.payments import closed_forms
from swarmbook.payments.adversary import Silent
from swarmbook.payments.lightning import Lightning
from swarmbook.payments.network_load import PROFILES, by_messages, simulate
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import Payment, World, line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.simulation import Node, Simulation
from swarmbook.payments.syncpcn import SyncPCN, Timing

FORMS = {  # messages and bytes of a payment, in closed form
    "Lightning": (closed_forms.COSTS["Lightning, on the wire"].messages, lambda n, f: closed_forms.lightning_bytes(n)),
    "SyncPCN": (closed_forms.COSTS["SyncPCN"].messages, closed_forms.sync_bytes),
    "PSyncPCN": (closed_forms.COSTS["PSyncPCN, V1"].messages, closed_forms.psync_bytes),
}


class Delivery(NamedTuple):
    """A relay has delivered its work on a microbatch, and the data node that pays it knows at `time` (seconds)."""

    microbatch: int
    payer: int
    relay: int
    time: float


class Work(NamedTuple):
    """One operation of an iteration as it was executed, times in seconds.

    payer: the data node whose microbatch it is. after: the number of the operation that it needs, -1 for none. ready:
    when what it needs has arrived. free: from when on the node can begin its next operation.
    """

    node: int
    payer: int
    after: int
    ready: float
    start: float
    end: float
    free: float


@dataclass(frozen=True)
class Settled:
    """What it took to pay deliveries.

    payments: how many. safe: seconds from each delivery until its relay is certain of its coins [deliveries], NaN where
    it is not paid. messages, bytes: of all payments. coins: those that relays were paid. locked: coins times seconds.
    peak: the most coins that were locked at once. handled: messages that each member of each committee got or sent
    [channels, m]; by the flow model the mean of members. world: of messages, when all is over.
    """

    payments: int
    safe: np.ndarray
    messages: int
    bytes: int
    coins: int
    locked: float
    peak: float
    handled: np.ndarray
    world: World | None = None


class _Batch(NamedTuple):
    """Deliveries of one relay to one data node that are paid at once, by their places in the list."""

    time: float
    payer: int
    relay: int
    of: tuple[int, ...]


def protocol_of(name: str, delta: float = 1.0):
    """What makes the world of a protocol. delta: the bound in seconds that SyncPCN assumes of a message."""
    worlds = {
        "Lightning": Lightning,
        "SyncPCN": partial(SyncPCN, timing=Timing(delta)),
        "PSyncPCN": partial(PSyncPCN, ordering="none"),
    }
    if name not in worlds:
        raise ConfigError(unknown("protocol", name, worlds))
    return worlds[name]


# channels


def funded(links: Iterable[tuple[int, int]], deliveries: Sequence[Delivery], amount: int = 1) -> networkx.Graph:
    """A network of these channels, each with just the coins on either side that paying all deliveries takes.

    Payments take shortest paths. ConfigError for a relay that no path of channels joins to its data node.
    """
    network = networkx.Graph(list(links))
    for a, b in network.edges:
        network.edges[a, b]["balance"] = {a: 0, b: 0}
    for (payer, relay), count in Counter((each.payer, each.relay) for each in deliveries).items():
        for a, b in pairwise(_path(network, payer, relay)):
            network.edges[a, b]["balance"][a] += count * whole("amount", amount, 1)
    return network


def direct(deliveries: Sequence[Delivery], amount: int = 1) -> networkx.Graph:
    """A channel from each data node to each relay that it pays."""
    return funded(dict.fromkeys((each.payer, each.relay) for each in deliveries), deliveries, amount)


def hub(deliveries: Sequence[Delivery], centre: int, amount: int = 1) -> networkx.Graph:
    """A channel from each data node and each relay to a node in the middle, which may be one of them."""
    others = dict.fromkeys(node for each in deliveries for node in (each.payer, each.relay) if node != centre)
    return funded([(centre, node) for node in others], deliveries, amount)


def _path(network: networkx.Graph, payer: int, relay: int) -> list[int]:
    try:
        if payer != relay:
            return networkx.shortest_path(network, payer, relay)
    except (networkx.NodeNotFound, networkx.NetworkXNoPath):
        pass
    raise ConfigError(
        f"no path of channels leads from data node {payer} to relay {relay}: give channels that join the two"
    )


# paying an iteration


def _batches(deliveries: Sequence[Delivery], network: networkx.Graph, amount: int, every: int) -> list[_Batch]:
    """What is paid at once, in the order of time. Raises ConfigError for what cannot be paid, before anything is."""
    whole("amount", amount, 1), whole("every", every, 1)
    if not deliveries:
        raise ConfigError("no deliveries: give at least one")
    between: dict[tuple[int, int], list[int]] = {}
    for place in sorted(
        range(len(deliveries)), key=lambda place: finite("time", deliveries[place].time, 0, above=True)
    ):
        between.setdefault((deliveries[place].payer, deliveries[place].relay), []).append(place)
    parts: dict[int, dict[int, int]] = {}  # by coins: the part of the network that channels of so many coins join
    found = []
    for (payer, relay), places in between.items():
        _path(network, payer, relay)
        most = amount * min(every, len(places))
        if most not in parts:
            large = [(a, b) for a, b, coins in network.edges(data="balance") if sum(coins.values()) >= most]
            joined = networkx.connected_components(networkx.Graph(large))
            parts[most] = {node: number for number, part in enumerate(joined) for node in part}
        if payer not in parts[most] or parts[most][payer] != parts[most].get(relay):
            raise ConfigError(
                f"no path of channels that hold {most} coins leads from data node {payer} to relay {relay}: pay less "
                "at once, or give the channels more"
            )
        for at in range(0, len(places), every):
            of = tuple(places[at : at + every])
            found.append(_Batch(deliveries[of[-1]].time, payer, relay, of))
    return sorted(found)


def _between(delays: np.ndarray, network: networkx.Graph) -> np.ndarray:
    times, count = np.asarray(delays, dtype=float), max(network) + 1
    if times.ndim != 2 or min(times.shape) < count or not (np.isfinite(times) & (times >= 0)).all():
        raise ConfigError(
            f"delays of shape {times.shape} are refused: give seconds of at least 0 from each of {count} nodes to each"
        )
    return times


def _hosts(network: networkx.Graph, size: int, shared: bool, rng: np.random.Generator) -> np.ndarray:
    """At whose place the members of each committee are [channels, m]: not the two parties', or all alike."""
    nodes = sorted(network)
    if len(nodes) < size + 2:
        raise ConfigError(f"{len(nodes)} nodes have no {size} members beside two parties: give a smaller committee")
    if shared:
        return np.tile(rng.choice(nodes, size, replace=False), (network.number_of_edges(), 1))
    return np.array([rng.choice([n for n in nodes if n not in edge], size, replace=False) for edge in network.edges])


def settle(
    protocol: str,
    deliveries: Sequence[Delivery],
    network: networkx.Graph,
    delays: np.ndarray | float,
    amount: int = 1,
    every: int = 1,
    faulty: int = 1,
    shared: bool = False,
    delta: float = 1.0,
    rng: np.random.Generator | None = None,
) -> Settled:
    """Pay all deliveries over a network, message by message, each as soon as its data node knows of it.

    protocol: "Lightning" (on the wire), "SyncPCN" or "PSyncPCN". network: with the edge attribute `balance`, as
    `funded` or `network_load.graph` make it. delays: seconds of a message from node to node [N, N], or one number for
    all. amount: coins for a delivery. every: how many deliveries of a relay to a data node are paid at once; what is
    left of them at the end is paid with the last. faulty: f of every committee. shared: whether all committees have
    the same members. rng: draws at whose place members are, by default from the seed 0.

    Raises ConfigError for an unknown protocol, a time or an amount that is not above 0, a relay that no path of
    channels reaches, and more coins at once than any path holds.
    """
    world_of, batches = protocol_of(protocol, delta), _batches(deliveries, network, amount, every)
    size = closed_forms.size(faulty)
    one = np.ndim(delays) == 0
    times = finite("delays", delays, 0) if one else _between(delays, network).tolist()
    hosts = None if one else _hosts(network, size, shared, rng or np.random.default_rng(0))
    sent = Counter()
    met = np.zeros((network.number_of_edges(), size), int)

    def delay(sender: Node, to: Node, message: object) -> float:
        sent[closed_forms.bytes_of(message)] += 1
        for node in (sender, to):
            if node.name[0] == "C":
                cid, member = map(int, node.name[1:].split("."))
                met[cid - 1, member - 1] += 1
        return times if one else times[sender.site][to.site]

    watched = {}

    def run(world: World) -> None:
        for node in network:
            world.party(f"p{node}").site = node
        for cid in {cid for payment in world.payments for cid in payment.cids}:
            for k, member in enumerate(world.members(cid)):
                member.site = 0 if one else int(hosts[cid, k])
        watched["locked"], watched["peak"] = _watch(world)

    asked = [(batch.time, batch.payer, batch.relay, amount * len(batch.of)) for batch in batches]
    world = by_messages(world_of, network, asked, delay, faulty=faulty, run=run)
    safe, coins = np.full(len(deliveries), nan), 0
    for batch, payment in zip(batches, world.payments, strict=True):
        if payment.time("receiver safe") is not None:
            coins += payment.amounts[-1]
            for place in batch.of:
                safe[place] = payment.times["receiver safe"] - deliveries[place].time
    total = sum(size * count for size, count in sent.items())
    return Settled(len(batches), safe, world.sim.sent, total, coins, **watched, handled=met, world=world)


def _watch(world: World) -> tuple[float, int]:
    """Let everything happen; coins times seconds that were locked, and the most coins locked at once."""
    waiting = sorted(world.payments, key=lambda payment: -payment.start)
    active: list[Payment] = []
    locked, peak, held = 0.0, 0, 0
    while world.sim.next < float("inf"):
        locked += held * (world.sim.next - world.sim.now)
        world.run(world.sim.next)
        while waiting and waiting[-1].start <= world.sim.now:
            active.append(waiting.pop())
        held, still = 0, []
        for payment in active:
            hops = [hop for hop in range(len(payment.cids)) if set_aside(world, payment, hop)]
            held += sum(payment.amounts[hop] for hop in hops)
            if hops or not payment.times.keys() & {"receipt", "failed"}:
                still.append(payment)
        active, peak = still, max(peak, held)
    return locked, peak


def set_aside(world: World, payment: Payment, hop: int) -> bool:
    """Whether neither party of a hop can use its coins: from the proposal until both hold the state after it."""
    cid, ends = payment.cids[hop], payment.path[hop : hop + 2]
    if isinstance(world, PSyncPCN):
        return world.reserved(cid, payment.pids[0])
    if isinstance(world, Lightning):
        name, parties = (payment.number, hop), [world.party(end) for end in ends]
        moving = any(("fulfil", *name) in party.updates for party in parties)
        return moving or any(party.hops.get(name) == Outcome.LOCKED for party in parties)
    if len(payment.pids) <= hop:
        return False
    pid = payment.pids[hop]
    for end in (world.party(name).ends[cid] for name in ends):
        states = [end.state, end.pending[0]] if end.pending else [end.state]
        if any(state.lock(pid) for state in states) or any(wait.change.pid == pid for wait in end.awaited.values()):
            return True
    return False


def flows(
    protocol: str,
    deliveries: Sequence[Delivery],
    network: networkx.Graph,
    message: float,
    amount: int = 1,
    every: int = 1,
    faulty: int = 1,
) -> Settled:
    """What `settle` says, by the flow model: every message takes `message` seconds, and costs are closed forms.

    The model leaves out that a channel of SyncPCN can be busy with another payment. A payment that meets too few coins
    is not sent again. Raises ConfigError as `settle` does.
    """
    protocol_of(protocol)
    batches = _batches(deliveries, network, amount, every)
    asked = [(batch.time, batch.payer, batch.relay, float(amount * len(batch.of))) for batch in batches]
    done = simulate(network, PROFILES[protocol], asked, message)
    safe = np.full(len(deliveries), nan)
    messages = total = coins = theirs = 0
    for batch, seconds, hops in zip(batches, done.safe, done.hops.tolist(), strict=True):
        if hops:
            coins += amount * len(batch.of)
            theirs += handled(protocol, hops, faulty)
            messages, total = messages + FORMS[protocol][0](hops, faulty), total + FORMS[protocol][1](hops, faulty)
            for place in batch.of:
                safe[place] = batch.time + seconds - deliveries[place].time
    size = closed_forms.size(faulty)
    each = np.tile(done.carried[:, None] * theirs / max(done.hops.sum(), 1) / size, size)
    return Settled(len(batches), safe, messages, total, coins, done.locked, done.peak, each)


# waiting


def ends_with_waiting(work: Sequence[Work], until_safe: Mapping[int, float]) -> np.ndarray:
    """When operations end [operations] if relays wait for their coins before they do more for the same data node.

    work: operations of an iteration in any order. until_safe: for those that are paid, the seconds from their end until
    the relay is certain of its coins. A node keeps the order in which it worked, so that what stands behind a waiting
    operation waits too. ConfigError for an operation that needs a later one.
    """
    ends = np.full(len(work), nan)
    free: dict[int, float] = {}
    owed: dict[tuple[int, int], float] = {}
    for i in sorted(range(len(work)), key=lambda i: work[i].start):
        each = work[i]
        ready = each.ready
        if each.after >= 0:
            ready += ends[each.after] - work[each.after].end
        if not ready < float("inf"):
            raise ConfigError(f"operation {i} needs {each.after}, which starts no earlier: give them as they ran")
        start = max(ready, free.get(each.node, 0.0), owed.get((each.node, each.payer), 0.0))
        ends[i] = start + each.end - each.start
        free[each.node] = ends[i] + each.free - each.end
        if i in until_safe:
            paid = ends[i] + finite("until_safe", until_safe[i], 0)
            owed[each.node, each.payer] = max(paid, owed.get((each.node, each.payer), 0.0))
    return ends


# cheating


@dataclass(frozen=True)
class Cheated:
    """What one data node and one relay have of each other. served: microbatches; coins: those that the relay got.

    loss: coins that the honest one of them is short of. payments: that were begun.
    """

    served: int
    coins: int
    loss: int
    payments: int
    messages: int


def cheated(
    protocol: str,
    jobs: Sequence[tuple[float, float]],
    cheat: str = "payer",
    before: bool = False,
    every: int = 1,
    patience: float = 0.0,
    amount: int = 1,
    message: float = 0.1,
    faulty: int = 1,
    silent_from: float = 0.0,
) -> Cheated:
    """Let a data node ("payer") or a relay ("relay") cheat the other, message by message over one channel.

    jobs: (start, end) in seconds of the microbatches that the relay serves for the data node. every: how many are paid
    at once. before: whether they are paid before the relay begins with the first of them, or after the last. patience:
    how many seconds after a payment is due the honest one goes on serving without it; at 0 a relay waits for each
    payment. silent_from: from when on a cheating data node says nothing more, by default it never pays. A cheating
    relay takes what it is paid, and delivers nothing. nobody: cheat="nobody". ConfigError for other words and times.

    Lightning's chain is not run: what it would have to settle counts as lost.
    """
    if cheat not in ("payer", "relay", "nobody"):
        raise ConfigError(unknown("cheat", cheat, ("payer", "relay", "nobody")))
    whole("every", every, 1), finite("patience", patience, 0), finite("message", message, 0, above=True)
    coins = whole("amount", amount, 1) * len(jobs)
    topology = line(1, faulty, balance=max(coins, 1), other=0)
    world = protocol_of(protocol, 10 * message)(topology, sim=Simulation(lambda *_: message))
    if cheat == "payer":
        world.corrupt(world.party("u0"), Silent(after=silent_from))
    served, late = 0, 0.0
    payments: list[Payment] = []

    def pay(count: int, time: float) -> None:
        payments.append(world.pay(["u0", "u1"], amount * count, at=max(time, world.sim.now)))

    def certain(begin: float, patience: float) -> bool:
        """Wait for what has been due for so long; whether it came."""
        world.run(begin)
        while (missing := _overdue(payments, world.sim.now - patience)) and world.sim.next < float("inf"):
            world.run(world.sim.next)
        return not missing

    for place, (start, end) in enumerate(jobs):
        ends_batch = place + 1 == len(jobs) or (place + 1) % every == 0
        if before and place % every == 0:
            pay(len(jobs[place : place + every]), start + late)
        if not certain(start + late, 0.0 if before else patience) or cheat == "relay":
            break
        late = max(late, world.sim.now - start)
        served += 1
        if ends_batch and not before:
            pay(place % every + 1, end + late)
    world.run()
    got = world.total("u1")
    short = amount * served - got
    return Cheated(served, got, max(0, -short if cheat == "relay" else short), len(payments), world.sim.sent)


def _overdue(payments: Iterable[Payment], since: float) -> list[Payment]:
    """Those that were due by then, and of which the relay is not certain."""
    return [payment for payment in payments if payment.start <= since and "receiver safe" not in payment.times]


# committees


def handled(protocol: str, hops: int, faulty: int = 1) -> int:
    """Messages that all members of a payment's committees get or send; a message between two members counts twice."""
    protocol_of(protocol)
    n, m = whole("hops", hops, 1), closed_forms.size(faulty)
    return {"Lightning": 0, "SyncPCN": 8 * m * n, "PSyncPCN": m * (2 * n + 1) + 4 * (n - 1) * m * m}[protocol]


def largest_swarm(protocol: str, hops: int, faulty: int, rate: float, capacity: float, shared: bool = True) -> float:
    """The most nodes that committees can serve if a member handles `capacity` messages a second.

    rate: payments a second for each node of the swarm. shared: whether one committee watches over all channels, so that
    each of its members takes part in every hop of every payment. Else each channel has a committee of its own whose
    members are nodes of the swarm, drawn evenly: what a node handles does not depend on how many there are, and either
    fits in its capacity or does not.
    """
    finite("rate", rate, 0, above=True), finite("capacity", capacity, 0, above=True)
    load = rate * handled(protocol, hops, faulty)
    if not shared:
        return float("inf") if load <= capacity else 0
    return floor(capacity * closed_forms.size(faulty) / load) if load else float("inf")
