"""SyncPCN: payments over several channels where the network is synchronous and channels may be faulty.

The paper's abstract says as much, and that committees replace the blockchain in disputes, with privacy; messages,
locks and timeouts are our reconstruction:

- **setup**: when it is the sender's turn on its channel, it tells each party its two locks (`Setup`), so that those
  between can ask for their turn in time; hop i expires at T_i, `Timing.margin` before T_(i-1)
- **lock**, hop by hop: an update of the base layer that adds the lock; a payee signs every one, since a lock is in its
  favour, and holds the certificate before it goes on; a lock of which it has not been told, or too late, it fails
- **unlock**, backwards: the payee's update carries the key, and the payer opens its own hop at once
- **failure**: the payee's update removes the lock
- **claim**: if the payer does not sign, members that get the key by T_i on their clock vote PAID, once
- **refund**: at T_i + 2 delta the payer asks; members that have not voted vote REFUNDED, once
- **concession**: a payer that learned the key from a vote, but sees no certificate, concedes
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, repeat
from typing import NamedTuple

from swarmbook.errors import ConfigError
from swarmbook.payments import locks as locking
from swarmbook.payments.channel import CONCEDED, PAID, REFUNDED, Change, Lock, Proof, State, commit, prove
from swarmbook.payments.signatures import Certificate, Keys, Tally
from swarmbook.payments.simulation import Node, Simulation
from swarmbook.payments.updates import Ack, Announce, Ask, Cosign, End, Grant, Member, Propose
from swarmbook.payments.world import LOCKED, NEVER, Payment, Topology, World, committee
from swarmbook.payments.world import PAID as HOP_PAID
from swarmbook.payments.world import REFUNDED as HOP_REFUNDED

TICK = 2.0**-20  # the last deadline is a whole number of ticks, so that no rounding error makes a message late


@dataclass(frozen=True)
class Timing:
    """Deadlines, from the bound delta on delays and the bound skew on the difference of any two clocks.

    They leave no time to wait for one's turn on a busy channel if messages really take delta: choose delta well above
    what messages take where payments compete.

    ConfigError unless 0 <= skew <= delta and delta > 0.
    """

    delta: float = 1.0
    skew: float = 0.0

    def __post_init__(self) -> None:
        if not self.delta > 0 or not 0 <= self.skew <= self.delta:
            raise ConfigError(f"delta={self.delta}, skew={self.skew}: give delta > 0 and 0 <= skew <= delta")

    @property
    def margin(self) -> float:
        """Theta = 4 delta + 2 skew, by which a hop expires before the one upstream."""
        return 4 * self.delta + 2 * self.skew

    @property
    def refund_wait(self) -> float:
        """How long after T_i the payer waits for the key of a claim made in time."""
        return 2 * self.delta

    def expiries(self, start: float, hops: int) -> list[float]:
        """T_1 ... T_n: T_n = start + 3 n delta + 3 delta (+ 2 skew), T_i = T_n + (n - i) margin.

        T_(i+1) is T_i less the margin to the last bit, as those who check it compute it (`apart`).
        """
        last = start + 3 * hops * self.delta + 3 * self.delta + 2 * self.skew
        first = math.ceil(last / TICK) * TICK + (hops - 1) * self.margin
        return list(accumulate(repeat(self.margin, hops - 1), lambda expiry, margin: expiry - margin, initial=first))

    def apart(self, incoming: float, outgoing: float) -> bool:
        """Whether the outgoing hop expires early enough before the incoming one."""
        return outgoing <= incoming - self.margin

    def open_by(self, expiry: float) -> float:
        """Latest time to send a key so that, if it is ignored, a claim still arrives in time."""
        return expiry - 3 * self.delta - self.skew

    def lock_by(self, expiry: float) -> float:
        """Latest time at which the lock of an honest payer, who proposes it by `open_by`, can arrive."""
        return expiry - 2 * self.delta

    def claim_by(self, expiry: float) -> float:
        return expiry - self.delta - self.skew

    def key_by(self, expiry: float) -> float:
        """Latest time at which a payer can hear of a claim made in time; it does not take a key after that."""
        return expiry + self.delta + self.skew

    def refund_from(self, expiry: float) -> float:
        """From when on a member votes for a refund, by its own clock."""
        return expiry + self.refund_wait - self.skew


class Setup(NamedTuple):
    """What the sender tells the party between two hops, or the receiver (outgoing is None). Encrypted.

    step: y of the outgoing lock; for the receiver the sum of all steps.
    """

    incoming: tuple[int, Lock]
    outgoing: tuple[int, Lock] | None
    step: int
    invoice: object


class Claim(NamedTuple):
    """The payee shows the newest signed state with the lock, and the key."""

    cid: int
    proof: Proof
    left: object
    right: object
    key: object


class RefundRequest(NamedTuple):
    """A party shows a state with the lock, and its own signature alone.

    A payer whose payee never co-signed has no other; the vote is about this very lock, so that an invented one decides
    nothing. A payee asks when its payer does not take a failed payment back.
    """

    cid: int
    proof: Proof
    signature: object


class Concede(NamedTuple):
    cid: int
    about: object
    lock: Lock
    key: object
    signature: object


class Vote(NamedTuple):
    cid: int
    about: object
    outcome: str
    key: object
    signature: object


class Stale(NamedTuple):
    """A member has a newer state than the one shown."""

    announcement: Announce


class Warden(Member):
    """A member of a committee that also decides disputes. votes: how it voted on each lock, by the lock's digest."""

    __slots__ = ("timing", "locks", "votes")

    def __init__(self, *args, timing: Timing, locks: locking.Points, **place) -> None:
        super().__init__(*args, **place)
        self.timing, self.locks = timing, locks
        self.votes: dict[object, str] = {}

    def claimed(self, sender: Node, m: Claim) -> None:
        lock, root = m.proof.lock, m.proof.root(self.cid, self.keys)
        if m.cid != self.cid or root is None or sender is not self.parties[1 - lock.payer]:
            return
        shown = Announce(m.cid, m.proof.seq, root, m.left, m.right)
        if not self.fresh(m.proof.seq):
            self.send(sender, Stale(self.newest))
        elif self.signed(shown) and self.locks.opens(lock.condition, m.key) and self.clock <= lock.expiry:
            self.vote(lock, PAID, m.key)

    def refund_asked(self, sender: Node, m: RefundRequest) -> None:
        lock, root = m.proof.lock, m.proof.root(self.cid, self.keys)
        if m.cid != self.cid or root is None or sender not in self.parties:
            return
        if not self.fresh(m.proof.seq):
            self.send(sender, Stale(self.newest))
        elif self.keys.verify(sender.name, ("state", self.cid, m.proof.seq, root), m.signature):
            gives_up = sender is self.parties[1 - lock.payer]
            if gives_up or self.clock >= self.timing.refund_from(lock.expiry):
                self.vote(lock, REFUNDED, None)

    def conceded(self, sender: Node, m: Concede) -> None:
        about = lock_digest(m.lock, self.keys)
        statement = ("concede", self.cid, about)
        if m.cid != self.cid or about != m.about or sender is not self.parties[m.lock.payer]:
            return
        if self.keys.verify(sender.name, statement, m.signature):
            payee = self.parties[1 - m.lock.payer]
            signature = self.keys.sign(self.name, ("vote", self.cid, about, CONCEDED))
            self.send(payee, Vote(self.cid, about, CONCEDED, m.key, signature))

    def vote(self, lock: Lock, outcome: str, key: object) -> None:
        """Vote once on a lock; who asks again for the same gets the same vote again."""
        about = lock_digest(lock, self.keys)
        if self.may_vote(about, outcome):
            self.votes[about] = outcome
            signature = self.keys.sign(self.name, ("vote", self.cid, about, outcome))
            for party in self.parties:
                self.send(party, Vote(self.cid, about, outcome, key, signature))

    def may_vote(self, about: object, outcome: str) -> bool:
        return self.votes.get(about, outcome) == outcome

    def fresh(self, seq: int) -> bool:
        """Whether a state of this number is at least as new as the one accepted last."""
        return seq >= self.seq


Warden.on = {
    Announce: Warden.announced,
    Claim: Warden.claimed,
    RefundRequest: Warden.refund_asked,
    Concede: Warden.conceded,
}


def lock_digest(lock: Lock, keys: Keys) -> object:
    return hash(lock) if keys.mode == "mock" else keys.digest(lock.statement())


class Transit:
    """What a party knows of one payment. key: of its incoming lock, once known."""

    __slots__ = ("payment", "incoming", "outgoing", "step", "key", "sent", "done")

    def __init__(self, payment: Payment | None, incoming, outgoing, step: int, key: object = None) -> None:
        self.payment, self.incoming, self.outgoing, self.step, self.key = payment, incoming, outgoing, step, key
        self.sent: float | None = None
        self.done = False


class Party(Node):
    """An honest party: sender, receiver or in between, by what it has been told."""

    __slots__ = (
        *("world", "keys", "timing", "locks", "ends", "inbound", "outbound", "unexplained", "invoices", "fee"),
        "votes",
    )

    def __init__(self, name: str, world: "SyncPCN", **place) -> None:
        super().__init__(name, world.sim, **place)
        self.world, self.keys, self.timing, self.locks = world, world.keys, world.timing, world.locks
        self.ends: dict[int, End] = {}
        self.inbound: dict[int, Transit] = {}
        self.outbound: dict[int, Transit] = {}
        self.unexplained: set[tuple[int, Lock]] = set()  # certified locks of which the sender has not told yet
        self.invoices: dict[object, int] = {}
        self.fee = 0  # least that this party takes for passing a payment on
        self.votes: dict[tuple, Tally] = {}

    def nonce(self) -> int:
        return self.world.random()

    # setup and lock

    def invoice(self) -> object:
        """A lock R = r G for one payment, handed to the sender."""
        key = self.locks.secret(self.world.rng)
        lock = self.locks.lock(key)
        self.invoices[lock] = key
        return lock

    def told(self, sender: Node, m: Setup) -> None:
        lock = m.incoming[1]
        if lock.pid in self.inbound:
            return
        if m.outgoing is None:
            key = self.invoices.get(m.invoice)
            if key is None:
                return
            key = self.locks.upstream(key, -m.step)
            if not self.locks.opens(lock.condition, key):
                return
            transit = Transit(self.world.payment_of(lock.pid), m.incoming, None, m.step, key)
        else:
            out = m.outgoing[1]
            if self.locks.shifted(lock.condition, m.step) != out.condition or lock.amount - out.amount < self.fee:
                return
            if not self.timing.apart(lock.expiry, out.expiry):
                return
            if m.outgoing[0] not in self.ends or out.pid in self.outbound:
                return
            transit = Transit(self.world.payment_of(lock.pid), m.incoming, m.outgoing, m.step)
            self.outbound[out.pid] = transit
            self.ends[m.outgoing[0]].ask()  # the turn is here when the incoming lock is
        self.inbound[lock.pid] = transit
        if m.incoming in self.unexplained:
            self.unexplained.discard(m.incoming)
            self.secured(*m.incoming, self.clock)

    def start(self, transit: Transit) -> None:
        """Lock the outgoing hop; when it is too late, or there is not enough, fail the incoming one."""
        cid, lock = transit.outgoing
        end, last = self.ends[cid], self.timing.open_by(lock.expiry)
        if self.clock > last:
            self.too_late(transit)
            return
        end.want(Change("lock", lock=lock), lambda: None, lambda: self.too_little(transit))
        if end.waits(lock):
            self.at(last, self.waited, transit)
        self.at(lock.expiry + self.timing.refund_wait, self.overdue, transit)

    def waited(self, transit: Transit) -> None:
        """The last moment to lock the outgoing hop: give up if its turn has not come."""
        cid, lock = transit.outgoing
        end = self.ends[cid]
        if end.waits(lock):
            end.withdraw(lock)
            self.too_late(transit)

    def too_late(self, transit: Transit) -> None:
        self.world.mark(transit.payment, "too late")
        self.fail(transit)

    def too_little(self, transit: Transit) -> None:
        self.world.mark(transit.payment, "too little")
        self.fail(transit)

    def proposed(self, sender: Node, m: Propose) -> None:
        end = self.ends.get(m.cid)
        if end is None or sender is not end.peer:
            return
        change = m.change
        if change.what == "open":
            self.opened(m.cid, change.pid, change.key)
        self.sign(end, m, lambda change: self.allowed(m.cid, change))

    def sign(self, end: End, m: Propose, allowed: Callable[[Change], bool]) -> None:
        """Sign the other party's proposal, if it is allowed, and do what follows from it."""
        change = m.change
        if not end.proposed(m, allowed):
            return
        if change.what == "lock":
            self.await_certificate(end, m.seq, change.lock)
        elif change.what == "fail":
            self.fail(self.outbound[change.pid])
        if change.what == "open":
            end.then[m.seq] = lambda: self.settled(change.pid)

    def await_certificate(self, end: End, seq: int, lock: Lock) -> None:
        """A payee goes on when it holds the certificate of the lock."""
        arrived = self.clock
        end.then[seq] = lambda: self.secured(end.cid, lock, arrived)

    def allowed(self, cid: int, change: Change) -> bool:
        if change.what == "lock":
            return self.clock <= self.timing.lock_by(change.lock.expiry)
        if change.what in ("open", "fail"):
            transit = self.outbound.get(change.pid)
            if transit is None or transit.outgoing[0] != cid:
                return False
            lock = transit.outgoing[1]
            if change.what == "fail":
                return True
            return self.clock <= self.timing.key_by(lock.expiry) and self.locks.opens(lock.condition, change.key)
        return True

    def secured(self, cid: int, lock: Lock, arrived: float) -> None:
        """An incoming lock, which arrived at some time, is certified: go on if it is the one the sender told of.

        The sender tells before any hop is locked, so that this is known at most delta after a lock arrives.
        """
        self.sim.note(self, "lock certified")
        transit = self.inbound.get(lock.pid)
        if transit is None:
            self.unexplained.add((cid, lock))
            self.at(arrived + self.timing.delta, self.untold, cid, lock)
        elif transit.incoming != (cid, lock):
            self.fail(Transit(None, (cid, lock), None, 0))
        elif transit.outgoing is not None:
            self.start(transit)
        else:
            self.world.mark(transit.payment, "receiver safe")
            if self.clock <= self.timing.open_by(lock.expiry):
                self.world.mark(transit.payment, "receipt exists")
                self.open(transit)
            else:
                self.too_late(transit)

    def untold(self, cid: int, lock: Lock) -> None:
        """The sender has not told of a lock in time, or something wrong."""
        if (cid, lock) in self.unexplained:
            self.unexplained.discard((cid, lock))
            self.fail(Transit(None, (cid, lock), None, 0))

    # unlock

    def opened(self, cid: int, pid: int, key: object) -> None:
        """The payee of an outgoing lock shows a key: pass it on at once, if it is right and in time."""
        transit = self.outbound.get(pid)
        if transit is None or transit.outgoing[0] != cid:
            return
        lock = transit.outgoing[1]
        if self.clock <= self.timing.key_by(lock.expiry) and self.locks.opens(lock.condition, key):
            self.learn(transit, key)

    def learn(self, transit: Transit, key: object) -> None:
        """The key of the outgoing lock gives that of the incoming one; the sender's is its receipt."""
        if transit.key is not None:
            return
        transit.key = self.locks.upstream(key, transit.step)
        if transit.incoming is None:
            self.sim.note(self, "receipt")
            self.world.mark(transit.payment, "receipt")
        else:
            self.open(transit)

    def open(self, transit: Transit) -> None:
        cid, lock = transit.incoming
        end = self.ends[cid]
        transit.sent = self.sim.now
        change = Change("open", pid=lock.pid, key=transit.key)
        end.want(change, lambda: self.cosigned_open(end, lock.pid), lambda: None, first=True)
        wait = min(self.clock + 2 * self.timing.delta, self.timing.claim_by(lock.expiry))
        self.at(max(wait, self.clock), self.unanswered, transit)

    def cosigned_open(self, end: End, pid: int) -> None:
        end.then[end.state.seq] = lambda: self.settled(pid)

    def settled(self, pid: int) -> None:
        self.sim.note(self, "hop settled")
        self.world.mark(self.world.payment_of(pid), "settled", last=True)

    def fail(self, transit: Transit) -> None:
        """Nothing more will come of the outgoing hop: give the incoming lock back."""
        if transit.done:
            return
        transit.done = True
        if transit.incoming is None:
            self.world.mark(transit.payment, "failed")
            return
        cid, lock = transit.incoming
        end = self.ends[cid]
        end.want(Change("fail", pid=lock.pid), lambda: None, lambda: None)
        self.at(self.clock + 2 * self.timing.delta, self.give_back, end, lock, self.sim.now)

    # disputes

    def unanswered(self, transit: Transit) -> None:
        """The payer has not signed: claim. If it was merely busy, wait for as long as that is safe."""
        cid, lock = transit.incoming
        end = self.ends[cid]
        if end.state.lock(lock.pid) is None or lock.pid in end.resolved:
            return
        last = self.timing.claim_by(lock.expiry)
        if end.heard >= transit.sent and self.clock < last:
            transit.sent = self.sim.now
            self.at(min(self.clock + 2 * self.timing.delta, last), self.unanswered, transit)
            return
        self.claim(end, lock, transit.key)

    def claim(self, end: End, lock: Lock, key: object) -> None:
        if end.state.lock(lock.pid) is None:
            return
        self.sim.note(self, "claims")
        end.disputes[lock.pid] = lambda: self.claim(end, lock, key)
        claim = Claim(end.cid, prove(end.state, end.commitment, lock), *end.signatures, key)
        for member in end.members:
            self.send(member, claim)

    def give_back(self, end: End, lock: Lock, since: float) -> None:
        """The payer has not taken a failed payment back: let the committee do it, unless the payer is merely busy."""
        if end.state.lock(lock.pid) is None or lock.pid in end.resolved:
            return
        if end.heard >= since and self.clock < lock.expiry:
            self.at(self.clock + 2 * self.timing.delta, self.give_back, end, lock, self.sim.now)
        else:
            self.ask_refund(end, lock)

    def ask_refund(self, end: End, lock: Lock) -> None:
        """Ask with the newest state that holds the lock, which may be one that the other party has not signed."""
        state, commitment = end.state, end.commitment
        if state.lock(lock.pid) is None and end.pending is not None:
            state, commitment = end.pending[:2]
        if state.lock(lock.pid) is None:
            return
        self.sim.note(self, "asks for a refund")
        end.disputes[lock.pid] = lambda: self.ask_refund(end, lock)
        signature = self.keys.sign(self.name, ("state", end.cid, state.seq, commitment.root))
        request = RefundRequest(end.cid, prove(state, commitment, lock), signature)
        for member in end.members:
            self.send(member, request)

    def concede(self, end: End, lock: Lock, key: object) -> None:
        self.sim.note(self, "concedes")
        about = lock_digest(lock, self.keys)
        end.resolved[lock.pid] = CONCEDED, Certificate(("vote", end.cid, about, CONCEDED), ())
        signature = self.keys.sign(self.name, ("concede", end.cid, about))
        for member in end.members:
            self.send(member, Concede(end.cid, about, lock, key, signature))

    def overdue(self, transit: Transit) -> None:
        """T_i + 2 delta: the outgoing lock is still there."""
        cid, lock = transit.outgoing
        end = self.ends[cid]
        if lock.pid in end.past or lock.pid in end.resolved:
            return
        proposed = end.pending is not None and end.pending[0].lock(lock.pid) is not None
        if end.state.lock(lock.pid) is None and not proposed:  # there was not enough, or its turn did not come
            return
        if transit.key is not None:
            self.concede(end, lock, self.locks.upstream(transit.key, -transit.step))
        else:
            self.ask_refund(end, lock)

    def voted(self, sender: Node, m: Vote) -> None:
        end = self.ends.get(m.cid)
        if end is None or sender.name not in end.committee.members:
            return
        statement = ("vote", m.cid, m.about, m.outcome)
        lock = self.lock_about(end, m.about)
        if lock is None or not self.keys.verify(sender.name, statement, m.signature):
            return
        if m.outcome == PAID and lock.payer == end.side and self.locks.opens(lock.condition, m.key):
            self.learn(self.outbound[lock.pid], m.key)
        tally = self.votes.setdefault((m.cid, m.about, m.outcome), Tally(end.committee.quorum))
        if tally.add(m.about, sender.name, m.signature):
            self.decided(end, lock, m.outcome, tally.certificate(m.about, statement))

    def decided(self, end: End, lock: Lock, outcome: str, certificate: Certificate) -> None:
        """The committee has decided a lock; the outcome enters the next state, or the close."""
        earlier = end.resolved.get(lock.pid)
        if earlier is None or outcome == CONCEDED:
            end.resolved[lock.pid] = outcome, certificate
        end.disputes.pop(lock.pid, None)
        self.sim.note(self, f"certificate {outcome}")
        if outcome == REFUNDED and lock.payer == end.side:
            self.fail(self.outbound[lock.pid])
        elif outcome != REFUNDED:
            self.settled(lock.pid)
        end.advance()
        if end.held is not None and not end.disputes:
            held, end.held = end.held, None
            self.sign(end, held, lambda change: True)  # it was allowed when it came

    def lock_about(self, end: End, about: object) -> Lock | None:
        """The lock with this digest, in the newest state or in the one that this party has proposed."""
        states = [(end.state, end.commitment)] + ([end.pending[:2]] if end.pending else [])
        for state, commitment in states:
            for lock, digest in zip(state.locks, commitment.locks, strict=True):
                if digest == about:
                    return lock
        return None

    # the base layer

    def cosigned(self, sender: Node, m: Cosign) -> None:
        end = self.ends.get(m.cid)
        if end is not None and sender is end.peer:
            end.cosigned(m)

    def acked(self, sender: Node, m: Ack) -> None:
        end = self.ends.get(m.cid)
        if end is not None:
            end.acked(sender, m)

    def asked(self, sender: Node, m: Ask) -> None:
        end = self.ends.get(m.cid)
        if end is not None and sender is end.peer:
            end.peer_asked = True
            end.advance()

    def granted(self, sender: Node, m: Grant) -> None:
        end = self.ends.get(m.cid)
        if end is not None and sender is end.peer:
            end.asked = False
            end.turn |= m.seq == end.state.seq
            end.advance()

    def stale(self, sender: Node, m: Stale) -> None:
        end = self.ends.get(m.announcement.cid) if m.announcement is not None else None
        if end is not None:
            end.learned(m.announcement)


Party.on = {
    Setup: Party.told,
    Propose: Party.proposed,
    Cosign: Party.cosigned,
    Ack: Party.acked,
    Vote: Party.voted,
    Ask: Party.asked,
    Grant: Party.granted,
    Stale: Party.stale,
}


class SyncPCN(World):
    """The protocol over a topology. lock: point, mock or hash. timing: what the parties believe of the network."""

    name, private = "SyncPCN", True

    def __init__(
        self,
        topology: Topology,
        sim: Simulation | None = None,
        keys: Keys | None = None,
        seed: int = 0,
        timing: Timing = Timing(),
        lock: str = "mock",
        skews: dict[str, float] | None = None,
    ) -> None:
        super().__init__(topology, sim, keys, seed)
        self.timing, self.locks, self.skews = timing, locking.scheme(lock), skews or {}
        self._wardens: dict[int, list[Warden]] = {}
        self._payments: dict[int, tuple[Payment, int]] = {}

    def new_party(self, name: str) -> Party:
        return Party(name, self, skew=self.skews.get(name, 0.0))

    def members(self, cid: int) -> list[Warden]:
        if cid not in self._wardens:
            left, right, *balances = self.topology.channels[cid]
            parties = self.party(left), self.party(right)
            state = State(cid, 0, *balances, (), self.random())
            names = committee(cid, self.topology.size)
            members = [
                Warden(
                    *(name, self.sim, cid, parties, self.keys, commit(state, self.keys).root),
                    timing=self.timing,
                    locks=self.locks,
                    skew=self.skews.get(name, 0.0),
                )
                for name in names.members
            ]
            self._wardens[cid] = members
            for side, party in enumerate(parties):
                party.ends[cid] = End(party, side, parties[1 - side], members, names, state)
        return self._wardens[cid]

    def payment_of(self, pid: int) -> Payment | None:
        found = self._payments.get(pid)
        return found and found[0]

    def pay(self, path: Sequence[str], amount: int, at: float | None = None, fee: int = 0) -> Payment:
        """Start a payment, now or at a time. The receiver has handed its invoice to the sender before."""
        at = self.sim.now if at is None else at
        payment = self.new_payment(path, amount, fee, at)
        for cid in payment.cids:
            self.members(cid)
        self.sim.timer(self.party(path[0]), at, self._begin, (payment,))
        return payment

    def _begin(self, payment: Payment) -> None:
        """The sender waits for its turn on the first channel; deadlines count from then."""
        sender, transit = self.party(payment.path[0]), Transit(payment, None, None, 0)
        change = partial(self._prepared, payment, transit)
        sender.ends[payment.cids[0]].want(change, lambda: None, lambda: sender.too_little(transit))

    def _prepared(self, payment: Payment, transit: Transit) -> Change:
        """Tell everybody on the path what will be locked; the sender's own lock."""
        self.mark(payment, "begun")
        sender, hops = self.party(payment.path[0]), len(payment.cids)
        invoice = self.party(payment.path[-1]).invoice()
        made = locking.path(self.locks, invoice, hops, self.rng)
        expiries = self.timing.expiries(sender.clock, hops)
        locked = []
        for i, (cid, amount) in enumerate(zip(payment.cids, payment.amounts, strict=True)):
            pid = self.random()
            self._payments[pid] = payment, i
            locked.append((cid, Lock(pid, self.side(cid, payment.path[i]), amount, made.locks[i], expiries[i])))
        for i in range(1, hops):
            told = Setup(locked[i - 1], locked[i], made.steps[i], None)
            sender.send(self.party(payment.path[i]), told)
        sender.send(self.party(payment.path[-1]), Setup(locked[-1], None, made.total, invoice))
        transit.outgoing, transit.step = locked[0], made.steps[0]
        lock = locked[0][1]
        sender.outbound[lock.pid] = transit
        sender.at(lock.expiry + self.timing.refund_wait, sender.overdue, transit)
        return Change("lock", lock=lock)

    def update(self, payer: str, payee: str, amount: int) -> None:
        """A direct payment inside one channel: one update of the base layer."""
        cid = self.new_payment((payer, payee), amount, 0, self.sim.now).cids[0]
        self.members(cid)
        payment, end = self.payments[-1], self.party(payer).ends[cid]

        def certified(what: str):
            return lambda: self.mark(payment, what)

        def agreed() -> None:
            end.then[end.state.seq] = certified("receipt")
            other = self.party(payee).ends[cid]
            other.then[end.state.seq] = certified("receiver safe")

        end.want(Change("pay", amount=amount), agreed, lambda: self.mark(payment, "failed"))

    def hops(self, payment: Payment) -> list[tuple[int, Lock]]:
        """Channel and lock of each hop that was begun."""
        found = {}
        for pid, (other, i) in self._payments.items():
            if other is payment:
                found[i] = pid
        locks = []
        for i in sorted(found):
            transit = self._transit(payment, i, found[i])
            if transit is not None:
                locks.append(transit)
        return locks

    def _transit(self, payment: Payment, i: int, pid: int) -> tuple[int, Lock] | None:
        payer, payee = self.party(payment.path[i]), self.party(payment.path[i + 1])
        if pid in payer.outbound:
            return payer.outbound[pid].outgoing
        return payee.inbound[pid].incoming if pid in payee.inbound else None

    def outcomes(self, payment: Payment) -> list[str]:
        ends = dict(zip(payment.cids, [NEVER] * len(payment.cids), strict=True))
        for cid, lock in self.hops(payment):
            ends[cid] = self.hop(cid, lock)
        return [ends[cid] for cid in payment.cids]

    def hop(self, cid: int, lock: Lock) -> str:
        """How a lock ended, as an honest one of its two parties sees it; a certificate of PAID weighs more."""
        views = []
        for party in self.topology.channels[cid][:2]:
            end = self.party(party).ends[cid]
            if lock.pid in end.past:
                view = end.past[lock.pid]
            elif lock.pid in end.resolved:
                view = HOP_REFUNDED if end.resolved[lock.pid][0] == REFUNDED else HOP_PAID
            elif end.state.lock(lock.pid) is not None or (end.pending and end.pending[3].lock == lock):
                view = LOCKED
            else:
                view = NEVER
            views.append((party in self.faulty, view))
        honest = [view for bad, view in views if not bad] or [view for _, view in views]
        return next(outcome for outcome in (HOP_PAID, HOP_REFUNDED, LOCKED, NEVER) if outcome in honest)

    def total(self, party: str) -> int:
        total = 0
        node = self.party(party)
        for cid, channel in enumerate(self.topology.channels):
            if party not in channel[:2]:
                continue
            end = node.ends.get(cid)
            if end is None:
                total += channel[2 + channel.index(party)]
                continue
            total += end.balance
            for lock in end.state.locks:
                outcome = end.resolved.get(lock.pid, (None,))[0]
                if outcome is None:
                    total += lock.amount * (lock.payer == end.side)
                else:
                    total += lock.amount * ((outcome == REFUNDED) == (lock.payer == end.side))
        return total

    def receipt(self, payment: Payment) -> bool:
        sender = self.party(payment.path[0])
        return any(t.payment is payment and t.incoming is None and t.key is not None for t in sender.outbound.values())

    def opposite(self) -> list[tuple]:
        """Locks with certificates of both PAID and REFUNDED, among all votes that any party has received."""
        found: dict[tuple, dict[str, set[str]]] = {}
        for party in self._parties.values():
            for (cid, about, outcome), tally in party.votes.items():
                found.setdefault((cid, about), {}).setdefault(outcome, set()).update(tally.votes.get(about, ()))
        quorum = committee(0, self.topology.size).quorum
        return [
            (*key, PAID, REFUNDED)
            for key, votes in found.items()
            if len(votes.get(PAID, ())) >= quorum and len(votes.get(REFUNDED, ())) >= quorum
        ]
