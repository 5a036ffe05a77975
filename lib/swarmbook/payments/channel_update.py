"""The base layer: two parties agree on the next state of their channel, and a committee remembers the newest.

As in Brick, members of the committee keep a number and a digest, and talk to the two parties alone. (The base layer of
the paper is unknown to us.) One update takes 2 + 4 m messages, for a committee of m members:

1. proposer to the other party: `Propose`
2. the other party to the proposer: `Cosign`
3. each party to all members: `Announce`
4. each member to the party that announced: `Ack`; a quorum of these is the certificate of the state

A party signs at most one state of a number, since only the party that has the *turn* proposes. Every update passes the
turn on to the other party. Who needs it out of turn asks for it (`Ask`, `Grant`: two more messages).

This is the parties' side; `channel_committee` is the members'. Serves: SyncPCN in all its figures, and the row "one
channel, direct" of the cost table (S4, S5).
"""

from collections import deque
from typing import NamedTuple

from swarmbook.payments.channel import Change, Commitment, Lock, Refused, State, commit, follow
from swarmbook.payments.channel_committee import Ack, Announce
from swarmbook.payments.outcomes import Outcome, outcome_of
from swarmbook.payments.signatures import Certificate, Committee, Keys, Tally
from swarmbook.payments.simulation import Node, Simulation


class Propose(NamedTuple):
    """The proposer's signature on the state of number `seq` that follows from `change` and `nonce`."""

    cid: int
    seq: int
    change: Change
    nonce: int
    signature: object


class Cosign(NamedTuple):
    """The other party's signature on the proposed state."""

    cid: int
    seq: int
    signature: object


class Ask(NamedTuple):
    """Asks the other party for the turn on a channel."""

    cid: int


class Grant(NamedTuple):
    """Gives the turn away, at the state of number `seq`."""

    cid: int
    seq: int


class Awaited(NamedTuple):
    """An update whose certificate a party waits for. own: it proposed the update itself; since: its clock then."""

    change: Change
    own: bool
    since: float


class Dispute(NamedTuple):
    """A lock that a committee has been asked to decide: for the payee who shows a key, or for a refund (key=None)."""

    lock: Lock
    key: object


class ChannelEnd:
    """One party's end of a channel.

    peer: the other party; members, committee: of the channel. turn: whether this party may propose; asked, peer_asked:
    who has asked for the turn.

    state: the newest one that both parties have signed, with its commitment and both signatures. certified: the newest
    number that has a certificate. pending: what this party has proposed: state, commitment, signature and change.
    wanted: what waits for this party's turn. awaited: updates by number, of which the party is told when they are
    certified. heard: when the other party last signed.

    disputes: locks that the committee has been asked to decide; meanwhile nothing new is signed, and a proposal of the
    other party is kept in `held`. resolved: decisions of the committee, with certificates, of locks that are still in
    the state. past: how locks ended that are no longer in it.
    """

    __slots__ = (
        *("party", "cid", "side", "peer", "members", "committee", "state", "commitment", "signatures", "certified"),
        *("pending", "held", "wanted", "turn", "asked", "peer_asked", "tally", "heard", "disputes", "resolved"),
        *("awaited", "past"),
    )

    def __init__(
        self, party: "ChannelParty", side: int, peer: Node, members: list, committee: Committee, state: State
    ) -> None:
        self.party, self.cid, self.side, self.peer = party, state.cid, side, peer
        self.members, self.committee, self.state = members, committee, state
        self.commitment: Commitment = commit(state, party.keys)
        self.signatures: tuple = (None, None)
        self.certified = 0
        self.pending: tuple[State, Commitment, object, Change] | None = None
        self.held: Propose | None = None
        self.wanted: deque[object] = deque()
        self.turn, self.asked, self.peer_asked = side == 0, False, False
        self.tally = Tally(committee.quorum)
        self.heard = -1.0
        self.disputes: dict[int, Dispute] = {}
        self.resolved: dict[int, tuple[str, Certificate]] = {}
        self.awaited: dict[int, Awaited] = {}
        self.past: dict[int, str] = {}

    @property
    def balance(self) -> int:
        """The coins on this party's side that are not locked."""
        return self.state[2 + self.side]

    def want(self, wanted: object, first: bool = False) -> None:
        """Propose this as soon as it is this party's turn, before everything else that waits if `first`.

        wanted: a Change, or something of which `ChannelParty.prepared` makes one when the turn has come.
        """
        (self.wanted.appendleft if first else self.wanted.append)(wanted)
        self.advance()

    def waits(self, lock: Lock) -> bool:
        """Whether a lock that is wanted has not been proposed yet."""
        return any(isinstance(wanted, Change) and wanted.lock == lock for wanted in self.wanted)

    def withdraw(self, lock: Lock) -> None:
        """Want a lock no more."""
        self.wanted = deque(w for w in self.wanted if not (isinstance(w, Change) and w.lock == lock))

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
            change = self.wanted.popleft()
            change = change if isinstance(change, Change) else self.party.prepared(change)
            folded = tuple(c for pid, (_, c) in self.resolved.items() if self.state.lock(pid))
            change = change._replace(resolved=folded) if folded else change
            nonce = self.party.nonce()
            try:
                state = self._followed(self.side, change, nonce)
            except Refused:
                self.party.impossible(change)
                continue
            commitment = commit(state, self.party.keys)
            signature = self._sign(state, commitment)
            self.pending = state, commitment, signature, change
            self.party.send(self.peer, Propose(self.cid, state.seq, change, nonce, signature))
            return
        if self.turn and self.peer_asked and self.pending is None and not self.disputes:
            self.peer_asked = self.turn = False
            self.party.send(self.peer, Grant(self.cid, self.state.seq))

    def proposed(self, m: Propose) -> bool:
        """Sign a proposal of the other party if it follows from the state here; during a dispute hold it.

        Returns whether it is signed.
        """
        if m.seq != self.state.seq + 1 or self.pending is not None:
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
        """The other party has signed what this one proposed: both hold the new state."""
        if self.pending is None or m.seq != self.pending[0].seq:
            return
        state, commitment, ours, change = self.pending
        if not self.party.keys.verify(self.peer.name, ("state", self.cid, state.seq, commitment.root), m.signature):
            return
        self.pending, self.turn, self.peer_asked = None, False, False
        self.heard = self.party.sim.now
        self._agree(state, commitment, ours, m.signature, change)
        self.party.agreed(self, change)
        self.announce()
        for dispute in list(self.disputes.values()):  # members decide by the newest state alone
            self.party.dispute(self, dispute)

    def announce(self) -> None:
        """Show the newest state to all members."""
        self.party.sim.send_all(self.party, self.members, self.announcement())

    def announcement(self) -> Announce:
        """The newest state, as members are shown it."""
        return Announce(self.cid, self.state.seq, self.commitment.root, *self.signatures)

    def acked(self, sender: Node, m: Ack) -> None:
        """Count a member's signature; a quorum certifies the state, and the next update may begin."""
        if m.seq != self.state.seq or m.root != self.commitment.root or m.seq == self.certified:
            return
        if sender.name not in self.committee.members:
            return
        if not self.party.keys.verify(sender.name, ("ack", m.cid, m.seq, m.root), m.signature):
            return
        if self.tally.add(m.seq, sender.name, m.signature):
            self.certified = m.seq
            self.tally.votes.clear()
            for seq in [seq for seq in self.awaited if seq <= m.seq]:
                self.party.certified(self, self.awaited.pop(seq))
            self.advance()

    def learned(self, m: Announce) -> None:
        """A member shows a state that the other party has signed, and which this one knows as its own proposal."""
        if self.pending is not None and m.seq == self.pending[0].seq and m.root == self.pending[1].root:
            self.cosigned(Cosign(m.cid, m.seq, (m.left, m.right)[1 - self.side]))

    def _agree(self, state: State, commitment: Commitment, ours: object, theirs: object, change: Change) -> None:
        self.state, self.commitment = state, commitment
        self.signatures = (ours, theirs) if self.side == 0 else (theirs, ours)
        if change.what in ("open", "fail"):
            self.past[change.pid] = Outcome.PAID if change.what == "open" else Outcome.REFUNDED
        for pid in [pid for pid in self.disputes if state.lock(pid) is None]:
            del self.disputes[pid]
        for pid in [pid for pid in self.resolved if state.lock(pid) is None]:
            self.past.setdefault(pid, outcome_of(self.resolved.pop(pid)[0]))

    def _sign(self, state: State, commitment: Commitment) -> object:
        return self.party.keys.sign(self.party.name, ("state", self.cid, state.seq, commitment.root))

    def _followed(self, side: int, change: Change, nonce: int) -> State:
        decided = []
        for certificate in change.resolved:
            lock, decision = self.decided(certificate)
            decided.append((lock.pid, decision))
            self.resolved.setdefault(lock.pid, (decision, certificate))
        return follow(self.state, side, change, nonce, decided)

    def decided(self, certificate: Certificate) -> tuple[Lock, str]:
        """The lock of this state that a certificate decides, and how. Raises Refused if it proves nothing."""
        kind, cid, about, decision = certificate.statement
        for lock, digest in zip(self.state.locks, self.commitment.locks, strict=True):
            if (kind, cid, about) == ("vote", self.cid, digest):
                if not certificate.verify(self.committee, self.party.keys):
                    break
                return lock, decision
        raise Refused(f"{certificate.statement} decides no lock of channel {self.cid}")


class ChannelParty(Node):
    """A party as far as the base layer goes. ends: its end of each of its channels, by the channel's number.

    Subclasses say what follows from updates; here nothing does.
    """

    __slots__ = ("keys", "ends")

    def __init__(self, name: str, sim: Simulation, keys: Keys, **place) -> None:
        super().__init__(name, sim, **place)
        self.keys = keys
        self.ends: dict[int, ChannelEnd] = {}

    def nonce(self) -> int:
        """A random number, to hide the balances of a new state."""
        raise NotImplementedError

    def prepared(self, wanted: object) -> Change:
        """The change to be made, now that this party's turn has come."""
        raise NotImplementedError

    def impossible(self, change: Change) -> None:
        """The state does not allow a change that this party wanted."""

    def agreed(self, end: ChannelEnd, change: Change) -> None:
        """Both parties have signed a change that this party wanted."""

    def certified(self, end: ChannelEnd, update: Awaited) -> None:
        """An update for which this party waited has a certificate."""

    def dispute(self, end: ChannelEnd, dispute: Dispute) -> None:
        """Ask the committee, again, to decide a lock."""

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

    on = {Cosign: cosigned, Ack: acked, Ask: asked, Grant: granted}
