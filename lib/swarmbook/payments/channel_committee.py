"""The committee's side of the base layer: members remember the newest state that both parties of a channel signed.

`channel_update` describes the whole exchange, and is the parties' side of it. Serves: SyncPCN in all its figures, and
the mutant "members ignore numbers" (S11).
"""

from typing import NamedTuple

from swarmbook.payments.encoding import new, well_formed
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Node, Simulation


class Announce(NamedTuple):
    """Shows members the digest `root` of a state, with the signatures of the left and the right party."""

    cid: int
    seq: int
    root: object
    left: object
    right: object


class Ack(NamedTuple):
    """A member's signature on the state that it has accepted."""

    cid: int
    seq: int
    root: object
    signature: object


class CommitteeMember(Node):
    """A member of the committee of channel `cid`, as far as the base layer goes.

    seq, root: number and digest of the newest state that it has accepted; newest: its announcement. log: the digests of
    the last 16 states, by number. early: announcements that came before the one with the preceding number, with all
    who sent them.
    """

    __slots__ = ("cid", "parties", "keys", "seq", "root", "log", "early", "newest", "last")

    def __init__(
        self, name: str, sim: Simulation, cid: int, parties: tuple[Node, Node], keys: Keys, root: object, **place
    ) -> None:
        super().__init__(name, sim, **place)
        self.cid, self.parties, self.keys = cid, parties, keys
        self.seq, self.root, self.log = 0, root, {0: root}
        self.early: dict[int, tuple[Announce, tuple[Node, ...]]] = {}
        self.newest: Announce | None = None
        self.last: Ack | None = None

    def announced(self, sender: Node, m: Announce) -> None:
        """Accept and acknowledge the state with the next number, and acknowledge again what was accepted before."""
        if m.cid != self.cid or self.sim.parses and not well_formed(m):
            return
        seq, root = m.seq, m.root
        if self.log.get(seq) == root:
            self._ack(sender, seq, root)
        elif self.next(seq) and self.signed(m):
            self._accept(m, seq, root)
            self._ack(sender, seq, root)
            if self.early:
                self._catch_up()
        elif seq > self.seq and self.signed(m):  # one before it is still on its way
            known, senders = self.early.get(seq, (m, ()))
            self.early[seq] = known, (*senders, sender)

    def next(self, seq: int) -> bool:
        """Whether an announcement of this number is to be accepted now."""
        return seq == self.seq + 1

    def signed(self, m: Announce) -> bool:
        """Whether both parties signed what is announced."""
        cid, seq, root, left, right = m
        statement, verify = ("state", cid, seq, root), self.keys.verify
        return verify(self.parties[0].name, statement, left) and verify(self.parties[1].name, statement, right)

    def _accept(self, m: Announce, seq: int, root: object) -> None:
        self.seq, self.root, self.newest = seq, root, m
        self.log[seq] = root
        self.log.pop(seq - 16, None)

    def _ack(self, sender: Node, seq: int, root: object) -> None:
        ack = self.last
        if ack is None or ack.seq != seq or ack.root != root:
            signature = self.keys.sign(self.name, ("ack", self.cid, seq, root))
            ack = self.last = new(Ack, (self.cid, seq, root, signature))
        self.sim.send(self, sender, ack)

    def _catch_up(self) -> None:
        while self.seq + 1 in self.early:
            m, senders = self.early.pop(self.seq + 1)
            self._accept(m, m.seq, m.root)
            for sender in senders:  # each waits for its own certificate
                self._ack(sender, m.seq, m.root)
