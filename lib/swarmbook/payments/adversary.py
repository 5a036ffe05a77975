"""What faulty parties and members do, made by composition: a node has any number of faults, each a filter.

- A `Fault` sees every message that its node would send, and may send others instead. It also sees every message that
  arrives, and may keep it from the honest code.
- Faults sign with the key of their own node alone. What they forge must be found out by those who receive it.
- `World.corrupt` hands a node over to the adversary.

Serves: claims S1, S2 and S8 to S14, through `attacks`; the drawings of SyncPCN's claim, refund and concession.
"""

from collections.abc import Callable, Iterable

import numpy as np

from swarmbook.payments.channel import lock_digest, prove
from swarmbook.payments.channel_committee import Ack, Announce
from swarmbook.payments.channel_update import Cosign, Propose
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.payment_network import World
from swarmbook.payments.psyncpcn import CarriedCertificate, Order, Share
from swarmbook.payments.psyncpcn.member import OrderState
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn import Claim, RefundRequest, SyncPCNMember, SyncPCNParty, Vote

# What a member that contradicts itself says to others: of a lock in SyncPCN, and of a payment in PSyncPCN.
OPPOSITE_VOTE = {Decision.PAID: Decision.REFUNDED, Decision.REFUNDED: Decision.PAID}
OPPOSITE_SHARE = {Decision.LOCK: Decision.ABORT, Decision.ABORT: Decision.PAID, Decision.PAID: Decision.ABORT}


class Fault:
    """Does nothing wrong; the base of the others."""

    def outgoing(self, node: Node, to: Node, message: object) -> Iterable[tuple[Node, object]]:
        """What is sent, and to whom, where an honest node would send this."""
        return [(to, message)]

    def incoming(self, node: Node, sender: Node, message: object) -> bool:
        """Whether the honest code gets to see this message."""
        return True


class Silent(Fault):
    """Sends nothing after a time, of some kinds of messages (all by default), and for which `when` is true."""

    def __init__(self, after: float = 0.0, kinds: tuple[type, ...] = (), when: Callable[[object], bool] | None = None):
        self.after, self.kinds, self.when = after, kinds, when

    def outgoing(self, node, to, message):
        concerned = not self.kinds or isinstance(message, self.kinds)
        if concerned and node.sim.now >= self.after and (self.when is None or self.when(message)):
            return []
        return [(to, message)]


class Deaf(Fault):
    """Ignores messages for which `when` is true."""

    def __init__(self, when: Callable[[object], bool]):
        self.when = when

    def incoming(self, node, sender, message):
        return not self.when(message)


class Selective(Fault):
    """Sends to the nodes of these names alone; with `kinds`, only messages of these kinds are held back from others."""

    def __init__(self, names: Iterable[str], kinds: tuple[type, ...] = ()):
        self.names, self.kinds = set(names), kinds

    def outgoing(self, node, to, message):
        concerned = not self.kinds or isinstance(message, self.kinds)
        return [] if concerned and to.name not in self.names else [(to, message)]


class Late(Fault):
    """Holds messages of some kinds back, so that they arrive at exactly the time that `arrival` gives.

    arrival: of the receiver and the message; None for a message that is sent as usual. delay: how long a message that
    is held back takes.
    """

    def __init__(self, kinds: type | tuple[type, ...], arrival: Callable[[Node, object], float | None], delay: float):
        self.kinds, self.arrival, self.delay = kinds, arrival, delay

    def outgoing(self, node, to, message):
        time = self.arrival(to, message) if isinstance(message, self.kinds) else None
        if time is None:
            return [(to, message)]
        sim = node.sim
        sim.timer(node, time - self.delay, sim.transmit, (node, to, message, min(self.delay, time - sim.now)))
        return []


class Equivocating(Fault):
    """A member that votes two ways: on a lock to everybody, on an order one way to each half of those who listen."""

    def outgoing(self, node, to, message):
        if isinstance(message, Vote) and message.decision in OPPOSITE_VOTE:
            other = OPPOSITE_VOTE[message.decision]
            signature = node.keys.sign(node.name, ("vote", message.cid, message.about, other))
            return [(to, message), (to, message._replace(decision=other, signature=signature))]
        if isinstance(message, Share) and message.what in OPPOSITE_SHARE and sum(to.name.encode()) % 2:
            other = OPPOSITE_SHARE[message.what]
            signature = node.keys.sign(node.name, ("share", other, message.cid, message.pid))
            return [(to, message._replace(what=other, signature=signature))]
        return [(to, message)]


class Careless(Fault):
    """A member that votes for whatever it is asked, however late, stale or wrong, and locks more than there is."""

    def incoming(self, node, sender, message):
        if isinstance(message, Claim | RefundRequest):
            claims = isinstance(message, Claim)
            decision, key = (Decision.PAID, message.key) if claims else (Decision.REFUNDED, None)
            about = lock_digest(message.proof.lock, node.keys)
            signature = node.keys.sign(node.name, ("vote", message.cid, about, decision))
            for party in node.parties:
                node.send(party, Vote(message.cid, about, decision, key, signature))
            return False
        if isinstance(message, Announce):
            signature = node.keys.sign(node.name, ("ack", message.cid, message.seq, message.root))
            node.send(sender, Ack(message.cid, message.seq, message.root, signature))
        if isinstance(message, Order) and (entry := node.entry(message)) is not None and entry.state == OrderState.NEW:
            entry.state = OrderState.WAITING
            node.decide(entry, True)
            return False
        return True


class Forgetful(Fault):
    """A member that acknowledges new states and forgets them."""

    def incoming(self, node, sender, message):
        if isinstance(message, Announce):
            signature = node.keys.sign(node.name, ("ack", message.cid, message.seq, message.root))
            node.send(sender, Ack(message.cid, message.seq, message.root, signature))
            return False
        return True


class Forging(Fault):
    """Puts a signature under everything that is not its own: another's name, or random bytes."""

    def __init__(self, victim: str):
        self.victim = victim

    def outgoing(self, node, to, message):
        if not hasattr(message, "signature"):
            return [(to, message)]
        mock = node.keys.mode == "mock"
        forged = (self.victim, "not what was signed") if mock else bytes(64)
        return [(to, message), (to, message._replace(signature=forged))]


class Replaying(Fault):
    """Sends everything twice, also as if it were of other channels or payments, and votes of others as its own."""

    def __init__(self, cids: Iterable[int] = (), pids: Iterable[object] = ()):
        self.cids, self.pids = list(cids), list(pids)

    def outgoing(self, node, to, message):
        copies = [message, message]
        if hasattr(message, "cid"):
            copies += [message._replace(cid=cid) for cid in self.cids if cid != message.cid]
        if hasattr(message, "pid"):
            copies += [message._replace(pid=pid) for pid in self.pids if pid != message.pid]
        return [(to, copy) for copy in copies if not isinstance(copy, Propose | Cosign) or copy is message]

    def incoming(self, node, sender, message):
        if isinstance(message, Vote | Share) and not sender.faults:  # two of a kind would go on for ever
            node.sim.transmit(node, sender, message)
        return True


class Leaking(Fault):
    """Tells an accomplice what it receives."""

    def __init__(self, listen: Callable[[Node, object], None]):
        self.listen = listen

    def incoming(self, node, sender, message):
        self.listen(node, message)
        return True


class Wormhole(Fault):
    """The downstream party of two around an honest one: it gives the key to its accomplice, and fails its own hop."""

    def __init__(self, accomplice: SyncPCNParty):
        self.accomplice = accomplice

    def outgoing(self, node, to, message):
        if not (isinstance(message, Propose) and message.change.what == "open"):
            return [(to, message)]
        transit = node.inbound[message.change.pid]
        for theirs in self.accomplice.outbound.values():
            known = [transit.key, node.locks.upstream(transit.key, -transit.step)]
            known += [node.locks.upstream(key, theirs.step) for key in known]
            for key in known:
                if node.locks.opens(theirs.outgoing[1].condition, key):
                    self.accomplice.learn(theirs, key)
                    break
        node.ends[message.cid].pending = transit.sent = None  # as if it had never meant to open it
        node.fail(transit)
        return []


class Shortcut(Fault):
    """A party or member that gives what is meant for the next committee to another one, past those between."""

    def __init__(self, members: Iterable[Node]):
        self.members = list(members)

    def outgoing(self, node, to, message):
        if isinstance(message, CarriedCertificate) or isinstance(message, Share) and message.order is not None:
            return [(member, message) for member in self.members]
        return [(to, message)]


class Erratic(Fault):
    """Does anything at random: drops, repeats, delays, forges, and disputes when it should not.

    rng: what it does. horizon: the longest delay, and the time within which it disputes. calm: the chance that it sends
    what an honest node would.
    """

    def __init__(self, rng: np.random.Generator, horizon: float = 60.0, calm: float = 0.5):
        self.rng, self.horizon, self.calm = rng, horizon, calm

    def outgoing(self, node, to, message):
        draw = self.rng.random()
        if draw < self.calm:
            return [(to, message)]
        what = self.rng.integers(5)
        if what == 0:
            return []
        if what == 1:
            return [(to, message), (to, message)]
        if what == 2:
            sim = node.sim
            when = sim.now + self.rng.random() * self.horizon
            sim.timer(node, when, sim.transmit, (node, to, message, 1e-9))
            return []
        if what == 3 and isinstance(message, Vote | Share):
            return Equivocating().outgoing(node, to, message)
        return Forging("u0").outgoing(node, to, message)

    def incoming(self, node, sender, message):
        if isinstance(message, Propose) and message.change.what == "lock":
            node.sim.timer(node, self.rng.random() * self.horizon, dispute, (node, self.rng.random() < 0.5))
        if isinstance(message, Cosign):
            node.sim.timer(node, self.rng.random() * self.horizon, dispute, (node, self.rng.random() < 0.5))
        if isinstance(node, SyncPCNMember) and self.rng.random() < 0.3:
            return Careless().incoming(node, sender, message)
        return True


def dispute(node: Node, claim: bool) -> None:
    """A faulty party asks its committees to decide every lock it has, whether it may or not."""
    for cid, end in node.ends.items():
        for lock in end.state.locks:
            proof = prove(end.state, end.commitment, lock)
            if claim and lock.payer != end.side and lock.pid in node.inbound:
                key = node.inbound[lock.pid].key
                message: object = Claim(cid, proof, *end.signatures, key)
            elif not claim and lock.payer == end.side:
                message = RefundRequest(cid, proof, end.signatures[end.side])
            else:
                continue
            for member in end.members:
                node.sim.transmit(node, member, message)


def double_order(world: World, members: Iterable[Node], first: Order, second: Order) -> None:
    """A faulty sender gives one order to some members of the first committee and another one to the rest."""
    sender = world.party(first.sender)
    chosen = set(members)
    for member in world.members(first.cids[0]):
        sender.send(member, first if member in chosen else second)
