"""A member of SyncPCN's committees: the base layer's, which also decides disputes.

Serves: SyncPCN in all its figures; the threshold of faulty members (S12) and three of the mutants (S11).
"""

from collections.abc import Callable

from swarmbook.payments.channel import Lock, lock_digest
from swarmbook.payments.channel_committee import Announce, CommitteeMember
from swarmbook.payments.lock_conditions import Points
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.simulation import Node, parsed
from swarmbook.payments.syncpcn.messages import Claim, Concede, NewerState, RefundRequest, Vote
from swarmbook.payments.syncpcn.timing import Timing


class SyncPCNMember(CommitteeMember):
    """Decides the disputed locks of its channel. votes: how it voted on each lock, by the lock's digest."""

    __slots__ = ("timing", "locks", "votes")

    def __init__(self, *args, timing: Timing, locks: Points, **place) -> None:
        super().__init__(*args, **place)
        self.timing, self.locks = timing, locks
        self.votes: dict[object, str] = {}

    @parsed
    def claimed(self, sender: Node, m: Claim) -> None:
        """Vote for the payee if it shows a lock of the newest state, and the key in time."""
        lock = m.proof.lock
        if m.cid != self.cid or sender is not self.parties[1 - lock.payer]:
            return
        if self.clock > lock.expiry or not self.locks.opens(lock.condition, m.key):
            return
        if self.current(sender, m, lambda seq, root: self.signed(Announce(m.cid, seq, root, m.left, m.right))):
            self.vote(lock, Decision.PAID, m.key)

    @parsed
    def refund_asked(self, sender: Node, m: RefundRequest) -> None:
        """Vote for the payer when it is too late for a claim, or at once if the payee itself asks."""
        lock = m.proof.lock
        if m.cid != self.cid or sender not in self.parties:
            return
        gives_up = sender is self.parties[1 - lock.payer]
        if gives_up or self.clock >= self.timing.refund_from(lock.expiry):
            verify = self.keys.verify
            if self.current(sender, m, lambda *state: verify(sender.name, ("state", m.cid, *state), m.signature)):
                self.vote(lock, Decision.REFUNDED, None)

    def current(self, sender: Node, m: Claim | RefundRequest, signed: Callable[[int, object], bool]) -> bool:
        """Whether the newest state that this member knows, or a newer one that is shown to it, holds the lock.

        signed: whether the state of a number and digest that is shown has the signatures that are asked for. A sender
        that shows no more than older states is told of the newer one.
        """
        lock, states = m.proof.lock, []
        for proof in (m.proof, m.pending):
            if proof is not None:
                states.append((proof.seq, proof.root(self.cid, self.keys)))
                if proof.lock != lock or states[-1][1] is None:
                    return False
        if (self.seq, self.root) in states:
            return True
        if self.fresh(m.proof.seq):
            return signed(*states[0])
        self.send(sender, NewerState(self.newest))
        return False

    @parsed
    def conceded(self, sender: Node, m: Concede) -> None:
        """Sign for the payee what its payer gives up."""
        about = lock_digest(m.lock, self.keys)
        statement = ("concede", self.cid, about)
        if m.cid != self.cid or about != m.about or sender is not self.parties[m.lock.payer]:
            return
        if self.keys.verify(sender.name, statement, m.signature):
            payee = self.parties[1 - m.lock.payer]
            signature = self.keys.sign(self.name, ("vote", self.cid, about, Decision.CONCEDED))
            self.send(payee, Vote(self.cid, about, Decision.CONCEDED, m.key, signature))

    def vote(self, lock: Lock, decision: str, key: object) -> None:
        """Vote once on a lock; who asks again for the same gets the same vote again."""
        about = lock_digest(lock, self.keys)
        if self.may_vote(about, decision):
            self.votes[about] = decision
            signature = self.keys.sign(self.name, ("vote", self.cid, about, decision))
            for party in self.parties:
                self.send(party, Vote(self.cid, about, decision, key, signature))

    def may_vote(self, about: object, decision: str) -> bool:
        """Whether this member has not voted otherwise on this lock."""
        return self.votes.get(about, decision) == decision

    def fresh(self, seq: int) -> bool:
        """Whether a state of this number is at least as new as the one accepted last."""
        return seq >= self.seq


SyncPCNMember.on = {
    Announce: SyncPCNMember.announced,
    Claim: SyncPCNMember.claimed,
    RefundRequest: SyncPCNMember.refund_asked,
    Concede: SyncPCNMember.conceded,
}
