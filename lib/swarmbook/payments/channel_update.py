"""The base layer: two parties agree on the next state of their channel, and a committee remembers the newest.

As in Brick, members keep a number and a digest, and talk to parties alone (the paper's own base layer is unknown):

1. proposer to other: `Propose`; 2. other to proposer: `Cosign`; 3. each party to all m members: `Announce`;
4. each member to who announced: `Ack`. A quorum of acks is the certificate of that state: 2 + 4 m messages.

A party signs one state a number at most: only who has the *turn* proposes. The turn passes to the other with every
update; who needs it out of turn asks for it (`Ask`, `Grant`; two more messages).
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from swarmbook.payments.channel import REFUNDED, Change, Commitment, Lock, Refused, State, commit, follow
from swarmbook.payments.signatures import Certificate, Committee, Keys, Tally
from swarmbook.payments.simulation import Node

if TYPE_CHECKING:
    pass


class Propose(NamedTuple):
    cid: int
    seq: int
    change: Change
    nonce: int
    signature: object


class Cosign(NamedTuple):
    cid: int
    seq: int
    signature: object


class Ask(NamedTuple):
    """Please give me the turn on this channel."""

    cid: int


class Grant(NamedTuple):
    cid: int
    seq: int


class Announce(NamedTuple):
    """A digest with the signatures of both parties, left and right."""

    cid: int
    seq: int
    root: object
    left: object
    right: object


class Ack(NamedTuple):
    cid: int
    seq: int
    root: object
    signature: object


class Member(Node):
    """A member of a channel's committee, as far as the base layer goes. log: the digest accepted at each number."""

    __slots__ = ("cid", "parties", "keys", "seq", "root", "log", "held", "newest", "last")

    def __init__(self, name: str, sim, cid: int, parties: tuple[Node, Node], keys: Keys, root: object, **place) -> None:
        super().__init__(name, sim, **place)
        self.cid, self.parties, self.keys = cid, parties, keys
        self.seq, self.root, self.log = 0, root, {0: root}
        self.held: dict[int, Announce] | None = None
        self.newest: Announce | None = None
        self.last: Ack | None = None

    def announced(self, sender: Node, m: Announce) -> None:
        if m.cid != self.cid:
            return
        if self.log.get(m.seq) == m.root:
            self._ack(sender, m)
        elif self.next(m.seq) and self.signed(m):
            self._accept(m)
            self._ack(sender, m)
            if self.held:
                self._catch_up()
        elif m.seq > self.seq:  # one before it is still on its way
            self.held = self.held or {}
            self.held[m.seq] = sender, m

    def next(self, seq: int) -> bool:
        """Whether an announcement of this number is to be accepted now."""
        return seq == self.seq + 1

    def signed(self, m: Announce) -> bool:
        """Whether both parties signed what is announced."""
        statement = ("state", m.cid, m.seq, m.root)
        verify, (left, right) = self.keys.verify, self.parties
        return verify(left.name, statement, m.left) and verify(right.name, statement, m.right)

    def _accept(self, m: Announce) -> None:
        self.seq, self.root, self.newest = m.seq, m.root, m
        self.log[m.seq] = m.root
        if len(self.log) > 16:
            del self.log[next(iter(self.log))]  # numbers come in their order

    def _ack(self, sender: Node, m: Announce) -> None:
        ack = self.last
        if ack is None or ack.seq != m.seq or ack.root != m.root:
            signature = self.keys.sign(self.name, ("ack", m.cid, m.seq, m.root))
            ack = self.last = Ack(m.cid, m.seq, m.root, signature)
        self.sim.send(self, sender, ack)

    def _catch_up(self) -> None:
        while self.seq + 1 in self.held:
            sender, m = self.held.pop(self.seq + 1)
            if not self.signed(m):
                return
            self._accept(m)
            self._ack(sender, m)


class End:
    """One party's end of a channel.

    state: the newest that both have signed; commitment and signatures are its; certified: the newest number with a
    certificate; pending: what this party has proposed; held: what the other has, during a dispute. wanted: changes that
    wait for the turn, with what to call when they are agreed on, or turn out to be impossible.
    """

    __slots__ = (
        *("party", "cid", "side", "peer", "members", "committee", "state", "commitment", "signatures", "certified"),
        *("pending", "held", "wanted", "turn", "asked", "peer_asked", "tally", "heard", "disputes", "resolved"),
        *("then", "past"),
    )

    def __init__(self, party: Node, side: int, peer: Node, members: list, committee: Committee, state: State):
        self.party, self.cid, self.side, self.peer = party, state.cid, side, peer
        self.members, self.committee, self.state = members, committee, state
        self.commitment: Commitment = commit(state, party.keys)
        self.signatures: tuple = (None, None)
        self.certified = 0
        self.pending: tuple | None = None
        self.held: Propose | None = None
        self.wanted: deque[tuple[Change | Callable[[], Change], Callable, Callable]] = deque()
        self.turn, self.asked, self.peer_asked = side == 0, False, False
        self.tally = Tally(committee.quorum)
        self.heard = -1.0
        self.disputes: dict[int, Callable] = {}  # locks under dispute, meanwhile nothing new is signed; to ask again
        self.resolved: dict[int, tuple[str, Certificate]] = {}
        self.then: dict[int, Callable] = {}  # what to do when a number is certified
        self.past: dict[int, str] = {}  # what became of locks that are gone

    @property
    def balance(self) -> int:
        return self.state[2 + self.side]

    def want(self, change, agreed: Callable, impossible: Callable, first: bool = False) -> None:
        """Propose this as soon as it is this party's turn. agreed(): both signed; impossible(): it cannot be done.

        change: a Change, or what makes one when the turn has come.
        """
        (self.wanted.appendleft if first else self.wanted.append)((change, agreed, impossible))
        self.advance()

    def waits(self, lock: Lock) -> bool:
        """Whether a lock that is wanted has not been proposed yet."""
        return any(isinstance(want[0], Change) and want[0].lock == lock for want in self.wanted)

    def withdraw(self, lock: Lock) -> None:
        """Want a lock no more."""
        self.wanted = deque(w for w in self.wanted if not (isinstance(w[0], Change) and w[0].lock == lock))

    def ask(self) -> None:
        """Ask for the turn, unless this party has it, or has asked."""
        if not self.turn and not self.asked:
            self.asked = True
            self.party.send(self.peer, Ask(self.cid))

    def advance(self) -> None:
        """Propose what is wanted next, or ask for the turn."""
        while self.wanted and self.pending is None and not self.disputes and self.certified == self.state.seq:
            if not self.turn:
                self.ask()
                return
            change, agreed, impossible = self.wanted.popleft()
            change = change if isinstance(change, Change) else change()
            folded = tuple(c for pid, (_, c) in self.resolved.items() if self.state.lock(pid))
            change = change._replace(resolved=folded) if folded else change
            nonce = self.party.nonce()
            try:
                state = self._followed(self.side, change, nonce)
            except Refused:
                impossible()
                continue
            commitment = commit(state, self.party.keys)
            signature = self._sign(state, commitment)
            self.pending = state, commitment, signature, change, agreed
            self.party.send(self.peer, Propose(self.cid, state.seq, change, nonce, signature))
            return
        if self.turn and self.peer_asked and self.pending is None and not self.disputes:
            self.peer_asked = self.turn = False
            self.party.send(self.peer, Grant(self.cid, self.state.seq))

    def proposed(self, m: Propose, allowed: Callable[[Change], bool]) -> bool:
        """Sign a proposal that follows from the state here, and that the party allows; during a dispute hold it."""
        if m.seq != self.state.seq + 1 or self.pending is not None or not allowed(m.change):
            return False
        if self.disputes:
            self.held = m
            return False
        try:
            state = self._followed(1 - self.side, m.change, m.nonce)
        except Refused:
            return False
        keys = self.party.keys
        commitment = commit(state, keys)
        if not keys.verify(self.peer.name, ("state", self.cid, state.seq, commitment.root), m.signature):
            return False
        ours = self._sign(state, commitment)
        self.heard = self.party.sim.now
        self._agree(state, commitment, ours, m.signature, m.change)
        self.turn, self.asked = True, False
        self.party.send(self.peer, Cosign(self.cid, state.seq, ours))
        self.announce()
        return True

    def cosigned(self, m: Cosign) -> None:
        if self.pending is None or m.seq != self.pending[0].seq:
            return
        state, commitment, ours, change, agreed = self.pending
        if not self.party.keys.verify(self.peer.name, ("state", self.cid, state.seq, commitment.root), m.signature):
            return
        self.pending, self.turn, self.peer_asked = None, False, False
        self.heard = self.party.sim.now
        self._agree(state, commitment, ours, m.signature, change)
        agreed()
        self.announce()
        for again in list(self.disputes.values()):  # members decide by the newest state alone
            again()

    def announce(self) -> None:
        self.party.sim.send_all(self.party, self.members, self.announcement())

    def announcement(self) -> Announce:
        return Announce(self.cid, self.state.seq, self.commitment.root, *self.signatures)

    def acked(self, sender: Node, m: Ack) -> None:
        if m.seq != self.state.seq or m.root != self.commitment.root or m.seq == self.certified:
            return
        if sender.name not in self.committee.members:
            return
        if not self.party.keys.verify(sender.name, ("ack", m.cid, m.seq, m.root), m.signature):
            return
        if self.tally.add(m.seq, sender.name, m.signature):
            self.certified = m.seq
            self.tally.votes.clear()
            for seq in [seq for seq in self.then if seq <= m.seq]:
                self.then.pop(seq)()
            self.advance()

    def learned(self, m: Announce) -> None:
        """A member shows a newer state than the one this party held: its own proposal, with the other's signature."""
        if self.pending is not None and m.seq == self.pending[0].seq and m.root == self.pending[1].root:
            self.cosigned(Cosign(m.cid, m.seq, (m.left, m.right)[1 - self.side]))

    def _agree(self, state: State, commitment: Commitment, ours: object, theirs: object, change: Change) -> None:
        self.state, self.commitment = state, commitment
        self.signatures = (ours, theirs) if self.side == 0 else (theirs, ours)
        if change.what in ("open", "fail"):
            self.past[change.pid] = "Paid" if change.what == "open" else "Refunded"
        for pid in [pid for pid in self.disputes if state.lock(pid) is None]:
            del self.disputes[pid]
        for pid in [pid for pid in self.resolved if state.lock(pid) is None]:
            self.past.setdefault(pid, "Refunded" if self.resolved.pop(pid)[0] == REFUNDED else "Paid")

    def _sign(self, state: State, commitment: Commitment) -> object:
        return self.party.keys.sign(self.party.name, ("state", self.cid, state.seq, commitment.root))

    def _followed(self, side: int, change: Change, nonce: int) -> State:
        outcomes = []
        for certificate in change.resolved:
            lock, outcome = self.verdict(certificate)
            outcomes.append((lock.pid, outcome))
            self.resolved.setdefault(lock.pid, (outcome, certificate))
        return follow(self.state, side, change, nonce, outcomes)

    def verdict(self, certificate: Certificate) -> tuple:
        """The lock of this state that a certificate decides, and how. Refused for one that proves nothing."""
        kind, cid, about, outcome = certificate.statement
        for lock, digest in zip(self.state.locks, self.commitment.locks, strict=True):
            if (kind, cid, about) == ("vote", self.cid, digest):
                if not certificate.verify(self.committee, self.party.keys):
                    break
                return lock, outcome
        raise Refused(f"{certificate.statement} decides no lock of channel {self.cid}")
