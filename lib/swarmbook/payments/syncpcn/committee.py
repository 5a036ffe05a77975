"""TODO"""

from swarmbook.payments import lock_conditions as locking
from swarmbook.payments.channel import CONCEDED, PAID, REFUNDED, Lock
from swarmbook.payments.channel_update import Announce, Member
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn.messages import Claim, Concede, RefundRequest, Stale, Vote
from swarmbook.payments.syncpcn.timing import Timing


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
