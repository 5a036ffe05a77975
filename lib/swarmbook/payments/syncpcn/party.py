"""TODO"""

from collections.abc import Callable

from swarmbook.payments.channel import CONCEDED, PAID, REFUNDED, Change, Lock, prove
from swarmbook.payments.channel_update import Ack, Ask, Cosign, End, Grant, Propose
from swarmbook.payments.payment_network import Payment, World
from swarmbook.payments.signatures import Certificate, Tally
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn.committee import lock_digest
from swarmbook.payments.syncpcn.messages import Claim, Concede, RefundRequest, Setup, Stale, Vote


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

    def __init__(self, name: str, world: World, **place) -> None:
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
