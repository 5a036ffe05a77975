"""A member of SyncPCN's committees: the base layer's, which also decides disputes.

Serves: SyncPCN in all its figures; the threshold of faulty members (S12) and three of the mutants (S11).
"""

from swarmbook.payments.channel import Lock, lock_digest
from swarmbook.payments.channel_committee import Announce, CommitteeMember
from swarmbook.payments.lock_conditions import Points
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn.messages import Claim, Concede, NewerState, RefundRequest, Vote
from swarmbook.payments.syncpcn.timing import Timing


class SyncPCNMember(CommitteeMember):
    """Decides the disputed locks of its channel. votes: how it voted on each lock, by the lock's digest."""

    __slots__ = ("timing", "locks", "votes")

    def __init__(self, *args, timing: Timing, locks: Points, **place) -> None:
        super().__init__(*args, **place)
        self.timing, self.locks = timing, locks
        self.votes: dict[object, str] = {}

    def claimed(self, sender: Node, m: Claim) -> None:
        """Vote for the payee if it shows the newest state, and the key in time."""
        lock, root = m.proof.lock, m.proof.root(self.cid, self.keys)
        if m.cid != self.cid or root is None or sender is not self.parties[1 - lock.payer]:
            return
        shown = Announce(m.cid, m.proof.seq, root, m.left, m.right)
        if not self.fresh(m.proof.seq):
            self.send(sender, NewerState(self.newest))
        elif self.signed(shown) and self.locks.opens(lock.condition, m.key) and self.clock <= lock.expiry:
            self.vote(lock, Decision.PAID, m.key)

    def refund_asked(self, sender: Node, m: RefundRequest) -> None:
        """Vote for the payer when it is too late for a claim, or at once if the payee itself asks."""
        lock, root = m.proof.lock, m.proof.root(self.cid, self.keys)
        if m.cid != self.cid or root is None or sender not in self.parties:
            return
        if not self.fresh(m.proof.seq):
            self.send(sender, NewerState(self.newest))
        elif self.keys.verify(sender.name, ("state", self.cid, m.proof.seq, root), m.signature):
            gives_up = sender is self.parties[1 - lock.payer]
            if gives_up or self.clock >= self.timing.refund_from(lock.expiry):
                self.vote(lock, Decision.REFUNDED, None)

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
