"""For how long a faulty party or member can keep coins of honest ones locked: measured, and searched for the worst.

- `freed` runs a world and notes when each hop's coins came free again.
- `worst` searches: the network chooses the shortest or the longest delay for each link and kind of message, and a
  faulty node says or keeps back each kind of message to each node, or sends it late. Habits under which coins are free
  no earlier are kept, and a part of them is drawn anew. What is said is what an honest node would say;
  `model_checking` has the adversary that says anything, for safety.

Closed forms are in `closed_forms`, with their derivations. A lock counts until it is decided; the coins then enter the
next state, or what a close gives. A faulty peer can still refuse every next state, so that the channel has to be
closed.

Serves: the table of griefing.
"""

import random
from collections.abc import Callable, Hashable, Iterable

from swarmbook.errors import whole
from swarmbook.payments.adversary import Fault
from swarmbook.payments.lightning import Lightning
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import Payment, World
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.simulation import Node, Simulation

FAST = 1e-3  # of a message that takes almost no time; the longest takes 1
LATE = (2.0, 5.0, 10.0, 20.0)  # by how much a faulty node sends later
SENT = (0.0, 0.0, 0.0, None, None, *LATE)  # what becomes of a message: it is sent at once, never, or late


def held(world: World, payment: Payment, hop: int) -> bool:
    """Whether coins of an honest payer are locked in a hop (from 0) of a payment, and nothing is decided about them."""
    payer, cid = payment.path[hop], payment.cids[hop]
    if payer in world.faulty or not world.correct(cid):
        return False
    if isinstance(world, PSyncPCN):
        return world.reserved(cid, payment.pids[0])
    if isinstance(world, Lightning):
        return world.party(payer).hops.get((payment.number, hop)) == Outcome.LOCKED
    transit = world.party(payer).outbound.get(payment.pids[hop]) if len(payment.pids) > hop else None
    if transit is None:
        return False
    end, lock = world.party(payer).ends[cid], transit.outgoing[1]
    return lock.pid not in end.past and lock.pid not in end.resolved and bool(end.proofs(lock))


def freed(world: World, payment: Payment, until: float = 1e4) -> list[float]:
    """When the coins of each hop came free for good, after the payment's start.

    0 if they were never locked, infinite if they still are at the time `until`.
    """
    hops = range(len(payment.cids))
    since, locked = [0.0] * len(hops), [False] * len(hops)
    while world.sim.next <= until:
        world.run(world.sim.next)
        for hop in hops:
            before, locked[hop] = locked[hop], held(world, payment, hop)
            if before and not locked[hop]:
                since[hop] = world.sim.now - payment.start
    return [float("inf") if locked[hop] else since[hop] for hop in hops]


class Hindering(Fault):
    """A faulty node by habit: what becomes of each kind of message to each node is drawn once."""

    def __init__(self, habits: dict[Hashable, object], rng: random.Random) -> None:
        self.habits, self.rng = habits, rng

    def outgoing(self, node: Node, to: Node, message: object) -> Iterable[tuple[Node, object]]:
        key = node.name, to.name, *kind(message)
        if key not in self.habits:
            self.habits[key] = self.rng.choice(SENT)
        later = self.habits[key]
        if later:
            node.sim.timer(node, node.sim.now + later, node.sim.transmit, (node, to, message))
        return [(to, message)] if later == 0 else []


def kind(message: object) -> tuple[str, str]:
    """The class of a message, and what it says of those that have several things to say."""
    what = getattr(message, "what", getattr(getattr(message, "change", None), "what", ""))
    return type(message).__name__, what


def worst(
    make: Callable[[Simulation], World], faulty: Iterable[str], hop: int, rng: random.Random, trials: int
) -> float:
    """The latest time at which coins of a hop (from 1) came free, over so many habits of faulty nodes and the network.

    make: the world of a network, whose parties stand in a line; the payment is over all hops. faulty: the names of
    parties and members. In the first trial every message takes 1.
    """
    best: dict[Hashable, object] | None = None
    longest = 0.0
    for trial in range(whole("trials", trials, 1)):
        habits = {key: habit for key, habit in (best or {}).items() if rng.random() > 0.15}
        time = _hindered(make, tuple(faulty), hop, habits, rng, 0.7 if trial else 1.0)
        if best is None or time >= longest:
            best, longest = habits, time
    return longest


def _hindered(
    make: Callable, faulty: tuple[str, ...], hop: int, habits: dict, rng: random.Random, slow: float
) -> float:
    def delay(sender: Node, to: Node, message: object) -> float:
        key = "delay", sender.name, to.name, *kind(message)
        if key not in habits:
            habits[key] = 1.0 if rng.random() < slow else FAST
        return habits[key]

    world = make(Simulation(delay))
    for cid in range(len(world.topology.channels)):
        world.members(cid)
    nodes = {m.name: m for cid in range(len(world.topology.channels)) for m in world.members(cid)}
    for name in faulty:
        fault = Hindering(habits, rng)
        world.corrupt(nodes.get(name) or world.party(name), fault)
    payment = world.pay([*world.names], 10)
    return freed(world, payment)[hop - 1]
