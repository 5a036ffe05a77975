"""What a party of SyncPCN does when the other party of a channel does not answer: committees decide the lock.

A payee claims with its key. A payer asks for a refund, or concedes if it has learned the key. Members vote, and the
decision of a quorum enters the next state, or the close. Until it is decided, the party that asked signs nothing new.
Votes about a lock that is gone are dropped: it was paid, and its payer had the key, or it was given back.

Serves: the drawings of SyncPCN's claim, refund and concession; claims S1, S8, S12 and S13.
"""

from swarmbook.payments.channel import Lock, Resolved, lock_digest
from swarmbook.payments.channel_update import ChannelEnd, ChannelParty, Dispute
from swarmbook.payments.lock_conditions import Points
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.payment_network import Payment, World
from swarmbook.payments.signatures import Certificate, Tally
from swarmbook.payments.simulation import Node, parsed
from swarmbook.payments.syncpcn.messages import Claim, Concede, NewerState, RefundRequest, Vote
from swarmbook.payments.syncpcn.timing import Timing


class Transit:
    """What a party knows of one payment that passes it.

    incoming, outgoing: channel and lock of the hop before and after it, where there is one. step: y of the outgoing
    lock. key: of the incoming lock, once known; the sender's is its receipt. sent: when the key was last sent. done:
    the payment has failed here. late: the committee has been asked for a refund of the outgoing lock, so that a key
    comes too late.

    A party gives an incoming lock back (done) or sends its key (sent), and never both.
    """

    __slots__ = ("payment", "incoming", "outgoing", "step", "key", "sent", "done", "late")

    def __init__(self, payment: Payment | None, incoming, outgoing, step: int, key: object = None) -> None:
        self.payment, self.incoming, self.outgoing, self.step, self.key = payment, incoming, outgoing, step, key
        self.sent: float | None = None
        self.done = self.late = False


class DisputingParty(ChannelParty):
    """A party as far as disputes go.

    outbound: its payments by the name of the lock after it. votes: members' votes by channel, lock and decision.
    """

    __slots__ = ("world", "timing", "locks", "outbound", "votes")

    def __init__(self, name: str, world: World, timing: Timing, locks: Points, **place) -> None:
        super().__init__(name, world.sim, world.keys, **place)
        self.world, self.timing, self.locks = world, timing, locks
        self.outbound: dict[int, Transit] = {}
        self.votes: dict[tuple, Tally] = {}

    def learn(self, transit: Transit, key: object) -> None:
        """The key of a payment's outgoing lock is known."""
        raise NotImplementedError

    def fail(self, transit: Transit) -> None:
        """Nothing more will come of the outgoing hop of a payment."""
        raise NotImplementedError

    def settled(self, pid: int) -> None:
        """A lock has been decided for its payee."""
        raise NotImplementedError

    def unanswered(self, transit: Transit) -> None:
        """The payer has not signed: claim. If it was merely busy, wait for as long as that is safe."""
        cid, lock = transit.incoming
        end = self.ends[cid]
        if not end.holds(lock) or lock.pid in end.resolved:
            return
        last = self.timing.claim_by(lock.expiry)
        if end.heard >= transit.sent and self.clock < last:
            transit.sent = self.sim.now
            self.at(min(self.clock + 2 * self.timing.delta, last), self.unanswered, transit)
            return
        self.claim(end, lock, transit.key)

    def claim(self, end: ChannelEnd, lock: Lock, key: object) -> None:
        """Show members the key, so that they decide for this payee."""
        if not end.holds(lock):
            return
        self.sim.note(self, "claims")
        end.disputes[lock.pid] = Dispute(lock, key)
        (proof, _), *pending = end.proofs(lock)
        claim = Claim(end.cid, proof, *end.signatures, key, *(newer for newer, _ in pending))
        for member in end.members:
            self.send(member, claim)

    def give_back(self, end: ChannelEnd, lock: Lock, since: float) -> None:
        """The payer has not taken a failed payment back: let the committee do it, unless the payer is merely busy."""
        if not end.holds(lock) or lock.pid in end.resolved:
            return
        if end.heard >= since and self.clock < lock.expiry:
            self.at(self.clock + 2 * self.timing.delta, self.give_back, end, lock, self.sim.now)
        else:
            self.ask_refund(end, lock)

    def ask_refund(self, end: ChannelEnd, lock: Lock) -> None:
        """Ask members for a refund, of a lock that perhaps only this party has signed."""
        proofs = end.proofs(lock)
        if not proofs:
            return
        self.sim.note(self, "asks for a refund")
        end.disputes[lock.pid] = Dispute(lock, None)
        (proof, signature), *pending = proofs
        request = RefundRequest(end.cid, proof, signature, *(newer for newer, _ in pending))
        for member in end.members:
            self.send(member, request)

    def concede(self, end: ChannelEnd, lock: Lock, key: object) -> None:
        """Give a lock up to its payee, through the members."""
        self.sim.note(self, "concedes")
        about = lock_digest(lock, self.keys)
        end.resolved[lock.pid] = Resolved(Certificate(("vote", end.cid, about, Decision.CONCEDED), ()), key)
        signature = self.keys.sign(self.name, ("concede", end.cid, about))
        for member in end.members:
            self.send(member, Concede(end.cid, about, lock, key, signature))

    def overdue(self, transit: Transit) -> None:
        """T_i + 2 delta: the outgoing lock is still there."""
        cid, lock = transit.outgoing
        end = self.ends[cid]
        if lock.pid in end.past or lock.pid in end.resolved or not end.proofs(lock):  # gone, decided, or never proposed
            return
        if transit.key is not None:
            self.concede(end, lock, self.locks.upstream(transit.key, -transit.step))
        else:
            transit.late = True
            self.ask_refund(end, lock)

    @parsed
    def voted(self, sender: Node, m: Vote) -> None:
        """Count a member's vote, and learn the key from it; a quorum decides the lock."""
        end = self.ends.get(m.cid)
        if end is None or sender.name not in end.committee.members:
            return
        statement = ("vote", m.cid, m.about, m.decision)
        lock = end.lock_about(m.about)
        if lock is None or not self.keys.verify(sender.name, statement, m.signature):
            return
        if m.decision == Decision.PAID and lock.payer == end.side and self.locks.opens(lock.condition, m.key):
            self.learn(self.outbound[lock.pid], m.key)
        tally = self.votes.setdefault((m.cid, m.about, m.decision), Tally(end.committee.quorum))
        if tally.add(m.about, sender.name, m.signature):
            self.decided(end, lock, m.decision, tally.certificate(m.about, statement))

    def decided(self, end: ChannelEnd, lock: Lock, decision: str, certificate: Certificate) -> None:
        """The committee has decided a lock; the decision enters the next state, or the close."""
        dispute = end.disputes.pop(lock.pid, None)
        self.sim.note(self, f"certificate {decision}")
        if lock.pid not in end.resolved or decision == Decision.CONCEDED:
            end.resolved[lock.pid] = Resolved(certificate, None if dispute is None else dispute.key)
        if decision != Decision.REFUNDED:
            self.settled(lock.pid)
        elif lock.payer == end.side and end.resolved[lock.pid].decision == decision:  # it has not been conceded before
            self.fail(self.outbound[lock.pid])
        end.advance()
        end.release()

    def left(self, end: ChannelEnd, lock: Lock, decision: str) -> None:
        if decision != Decision.REFUNDED:
            self.settled(lock.pid)
        elif lock.payer == end.side:
            self.fail(self.outbound[lock.pid])

    def may_pay(self, lock: Lock) -> bool:
        transit = self.outbound.get(lock.pid)
        return transit is not None and transit.key is not None and not transit.done

    @parsed
    def shown_newer(self, sender: Node, m: NewerState) -> None:
        """A member knows a newer state than the one with which this party asked for a decision."""
        end = self.ends.get(m.announcement.cid) if m.announcement is not None else None
        if end is not None:
            end.learned(m.announcement)

    on = {**ChannelParty.on, Vote: voted, NewerState: shown_newer}
