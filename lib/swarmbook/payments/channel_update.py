"""The base layer: two parties agree on the next state of their channel, and a committee remembers the newest.

As in Brick, members of the committee keep a number and a digest, and talk to the two parties alone. (The base layer of
the paper is unknown to us.) One update takes 2 + 4 m messages, for a committee of m members:

1. proposer to the other party: `Propose`
2. the other party to the proposer: `Cosign`
3. each party to all members: `Announce`
4. each member to the party that announced: `Ack`; a quorum of these is the certificate of the state

A party signs at most one state of a number, since only the party that has the *turn* proposes. Every update passes the
turn on to the other party. Who needs it out of turn asks for it (`Ask`, `Grant`: two more messages).

What a party signs, and what it relies on:

- A proposal that overtakes the signature before it is kept until that arrives, since messages may change their order.
- A lock leaves a state against a party's interest only if that party has what makes up for it. The payer signs that a
  lock is paid if it has the key, and has not given its incoming lock back (`ChannelParty.may_pay`). The payee signs
  that a lock is refunded if a quorum says so, and it has no certificate that says otherwise: a concession, which only
  the payer can make, outweighs a refund. What the other party gives up needs no certificate.
- A lock's name is used once in a channel, so that a decision about a lock is never one about a later lock.
- While a committee is asked to decide a lock, its party signs nothing beyond what it has proposed already. So there
  are two states at most that members can know as the newest, and the party can prove the lock in both (`proofs`).

The file is long because it is one concept: one end of a channel, whose rules hold together or not at all.

This is the parties' side; `channel_committee` is the members'. Serves: SyncPCN in all its figures, and the row "one
channel, direct" of the cost table (S4, S5).
"""

from collections import deque
from typing import NamedTuple

from swarmbook.payments.channel import Change, Commitment, Lock, Proof, Refused, Resolved, State, commit, follow, prove
from swarmbook.payments.channel_committee import Ack, Announce
from swarmbook.payments.encoding import new, well_formed
from swarmbook.payments.outcomes import Decision, Outcome, outcome_of
from swarmbook.payments.signatures import Committee, Keys, Tally
from swarmbook.payments.simulation import Node, Simulation, parsed


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
    """Asks the other party for the turn on a channel, at the state of number `seq`."""

    cid: int
    seq: int


class Grant(NamedTuple):
    """Gives the turn away, at the state at which it was asked for: nobody can propose until this arrives."""

    cid: int


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
    number that has a certificate. roots: the digests of the states after it. pending: what this party has proposed:
    state, commitment, signature, change, and the locks that a committee has decided in it. wanted: what waits for this
    party's turn. awaited: updates by number, of which the party is told when they are certified; and gone: decided
    locks that the other party removed in them. heard: when the other party last signed.

    disputes: locks that the committee has been asked to decide; meanwhile nothing new is signed. held: a proposal of
    the other party that has to wait for that, or for the signature before it. resolved: decisions of the committee
    about locks that are still in the state. past: locks that are no longer in it, by name, and how they ended.
    """

    __slots__ = (
        *("party", "cid", "side", "peer", "members", "committee", "state", "commitment", "signatures", "certified"),
        *("pending", "held", "wanted", "turn", "asked", "peer_asked", "tally", "heard", "disputes", "resolved"),
        *("awaited", "gone", "roots", "past"),
    )

    def __init__(
        self, party: "ChannelParty", side: int, peer: Node, members: list, committee: Committee, state: State
    ) -> None:
        self.party, self.cid, self.side, self.peer = party, state.cid, side, peer
        self.members, self.committee, self.state = members, committee, state
        self.commitment: Commitment = commit(state, party.keys)
        self.signatures: tuple = (None, None)
        self.certified = 0
        self.pending: tuple[State, Commitment, object, Change, list] | None = None
        self.held: Propose | None = None
        self.wanted: deque[object] = deque()
        self.turn, self.asked, self.peer_asked = side == 0, False, False
        self.tally = Tally(committee.quorum)
        self.heard = -1.0
        self.disputes: dict[int, Dispute] = {}
        self.resolved: dict[int, Resolved] = {}
        self.awaited: dict[int, Awaited] = {}
        self.gone: dict[int, list[tuple[Lock, str]]] = {}
        self.roots: dict[int, object] = {}
        self.past: dict[int, tuple[Lock | None, str]] = {}

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
            self.party.send(self.peer, Ask(self.cid, self.state.seq))

    def advance(self) -> None:
        """Propose what is wanted next, or ask for the turn."""
        while self.wanted and self.pending is None and not self.disputes and self.certified == self.state.seq:
            if not self.turn:
                self.ask()
                return
            change = self.wanted.popleft()
            change = change if isinstance(change, Change) else self.party.prepared(change)
            if self.resolved:
                change = change._replace(resolved=tuple(r for pid, r in self.resolved.items() if self.state.lock(pid)))
            nonce = self.party.nonce()
            try:
                state, gone = self._followed(self.side, change, nonce)
            except Refused:
                self.party.impossible(change)
                continue
            commitment = commit(state, self.party.keys)
            signature = self._sign(state, commitment)
            self.pending = state, commitment, signature, change, gone
            self.party.send(self.peer, new(Propose, (self.cid, state.seq, change, nonce, signature)))
            return
        if self.turn and self.peer_asked and self.pending is None and not self.disputes:
            self.peer_asked = self.turn = False
            self.party.send(self.peer, Grant(self.cid))

    def proposed(self, m: Propose) -> bool:
        """Sign a proposal of the other party if it follows from the state here.

        During a dispute, or if the other party's signature on the state before is still on its way, hold it. Returns
        whether it is signed.
        """
        if m.seq != self.state.seq + 1 + (self.pending is not None):
            return False
        if self.disputes or self.pending is not None:
            self.held = m
            return False
        try:
            state, gone = self._followed(1 - self.side, m.change, m.nonce)
        except Refused:
            return False
        keys = self.party.keys
        commitment = commit(state, keys)
        if not keys.verify(self.peer.name, ("state", self.cid, state.seq, commitment.root), m.signature):
            return False
        ours = self._sign(state, commitment)
        self.heard = self.party.sim.now
        news = [(lock, decision) for lock, decision in gone if lock.pid not in self.resolved] if gone else gone
        if news:
            self.gone[state.seq] = news
        self._agree(state, commitment, ours, m.signature, m.change, gone)
        self.turn, self.asked = True, False
        self.party.send(self.peer, new(Cosign, (self.cid, state.seq, ours)))
        self.announce()
        return True

    def cosigned(self, m: Cosign) -> None:
        """The other party has signed what this one proposed: both hold the new state."""
        if self.pending is None or m.seq != self.pending[0].seq:
            return
        state, commitment, ours, change, gone = self.pending
        if not self.party.keys.verify(self.peer.name, ("state", self.cid, state.seq, commitment.root), m.signature):
            return
        self.pending, self.turn, self.peer_asked = None, False, False
        self.heard = self.party.sim.now
        self._agree(state, commitment, ours, m.signature, change, gone)
        self.party.agreed(self, change)
        self.announce()
        self.release()

    def release(self) -> None:
        """Sign what had to wait, unless it still has to. It was allowed when it came."""
        if self.held is not None and self.pending is None and not self.disputes:
            held, self.held = self.held, None
            self.party.sign(self, held)

    def announce(self) -> None:
        """Show the newest state to all members."""
        self.party.sim.send_all(self.party, self.members, self.announcement())

    def announcement(self) -> Announce:
        """The newest state, as members are shown it."""
        return new(Announce, (self.cid, self.state.seq, self.commitment.root, *self.signatures))

    def acked(self, sender: Node, m: Ack) -> None:
        """Count a member's signature; a quorum certifies the state, and the next update may begin.

        A state is certified even if there is a newer one by then, or else the other party could keep this one from
        ever seeing a certificate.
        """
        cid, newest, root, signature = m
        name = sender.name
        if self.roots[newest] != root or name not in self.committee.members:
            return
        if not self.party.keys.verify(name, ("ack", cid, newest, root), signature):
            return
        if self.tally.add(newest, name, signature):
            self.certified = newest
            while self.roots and (seq := next(iter(self.roots))) <= newest:  # they stand in their order
                del self.roots[seq]
                self.tally.votes.pop(seq, None)
                if seq in self.gone:
                    for lock, decision in self.gone.pop(seq):
                        self.party.left(self, lock, decision)
                if seq in self.awaited:
                    self.party.certified(self, self.awaited.pop(seq))
            self.advance()

    def learned(self, m: Announce) -> None:
        """A member shows a state that the other party has signed, and which this one knows as its own proposal."""
        if self.pending is not None and m.seq == self.pending[0].seq and m.root == self.pending[1].root:
            self.cosigned(Cosign(m.cid, m.seq, (m.left, m.right)[1 - self.side]))

    def holds(self, lock: Lock) -> bool:
        """Whether the newest state that both have signed holds this very lock."""
        return self.state.lock(lock.pid) == lock

    def outcome(self, lock: Lock) -> str | None:
        """How this very lock ended, or None if it has not, or if another one of its name has."""
        ended, outcome = self.past.get(lock.pid, (None, None))
        return outcome if ended in (None, lock) else None

    def proofs(self, lock: Lock) -> list[tuple[Proof, object]]:
        """Proofs that the states that members may know as the newest hold a lock, each with this party's signature.

        First of the state that both have signed, then of the one that this party has proposed, as far as they hold it.
        The other party may have signed that one, and shown it to members alone.
        """
        states = [(self.state, self.commitment, self.signatures[self.side])]
        states += [self.pending[:3]] if self.pending is not None else []
        return [
            (prove(state, commitment, lock), signature)
            for state, commitment, signature in states
            if state.lock(lock.pid) == lock
        ]

    def lock_about(self, about: object) -> Lock | None:
        """The lock with this digest, in the newest state or in the one that this party has proposed."""
        states = [(self.state, self.commitment)] + ([self.pending[:2]] if self.pending else [])
        for state, commitment in states:
            for lock, digest in zip(state.locks, commitment.locks, strict=True):
                if digest == about:
                    return lock
        return None

    def _agree(
        self, state: State, commitment: Commitment, ours: object, theirs: object, change: Change, gone: list
    ) -> None:
        if change.what in ("open", "fail"):
            ended = Outcome.PAID if change.what == "open" else Outcome.REFUNDED
            self.past[change.pid] = self.state.lock(change.pid), ended
        self.state, self.commitment = state, commitment
        self.signatures = (ours, theirs) if self.side == 0 else (theirs, ours)
        self.roots[state.seq] = commitment.root
        for lock, decision in gone:
            self.past[lock.pid] = lock, outcome_of(decision)
        if self.disputes:
            self.disputes = {pid: dispute for pid, dispute in self.disputes.items() if state.lock(pid) is not None}
        if self.resolved:
            for pid in [pid for pid in self.resolved if state.lock(pid) is None]:
                self.past.setdefault(pid, (None, outcome_of(self.resolved.pop(pid).decision)))

    def _sign(self, state: State, commitment: Commitment) -> object:
        return self.party.keys.sign(self.party.name, ("state", self.cid, state.seq, commitment.root))

    def _followed(self, side: int, change: Change, nonce: int) -> tuple[State, list[tuple[Lock, str]]]:
        """The state after a change, and the locks that a committee has decided in it. Raises Refused."""
        if change.what == "lock" and (change.lock.pid in self.past or self.state.lock(change.lock.pid) is not None):
            raise Refused(f"the name of {change.lock} was used before")  # though this update removes the other lock
        gone = [self.decided(side, resolved) for resolved in change.resolved] if change.resolved else []
        opened = self.state.lock(change.pid) if change.what == "open" and side != self.side else None
        if opened is not None and not self.party.may_pay(opened):
            raise Refused(f"{opened} is not to be paid any more")
        decided = [(lock.pid, decision) for lock, decision in gone] if gone else ()
        return follow(self.state, side, change, nonce, decided), gone

    def decided(self, side: int, resolved: Resolved) -> tuple[Lock, str]:
        """The lock of this state of which `side` says that it is decided, and how.

        Raises Refused unless the state holds it, and this party may agree.
        """
        kind, cid, about, decision = resolved.certificate.statement
        lock = next((o for o, d in zip(self.state.locks, self.commitment.locks, strict=True) if d == about), None)
        if lock is None or (kind, cid) != ("vote", self.cid):
            raise Refused(f"{resolved.certificate.statement} decides no lock of channel {self.cid}")
        pays = decision != Decision.REFUNDED
        if side != self.side and (lock.payer == self.side) == pays:  # this party loses the lock
            known = self.resolved.get(lock.pid)
            if known is not None and (known.decision != Decision.REFUNDED) != pays:
                raise Refused(f"{lock} is {known.decision}")  # a payer may concede a lock and ask for its refund later
            if pays and not self.party.may_pay(lock):
                raise Refused(f"{lock} is not to be paid")
            if not resolved.certificate.verify(self.committee, self.party.keys):
                raise Refused(f"{resolved.certificate.statement} has not enough votes")
        return lock, decision


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

    def left(self, end: ChannelEnd, lock: Lock, decision: str) -> None:
        """A certified state no longer holds a lock, which the other party removed as decided."""

    def may_pay(self, lock: Lock) -> bool:
        """Whether this party, the payer, may sign a lock away to its payee."""
        raise NotImplementedError

    def sign(self, end: ChannelEnd, m: Propose) -> None:
        """Sign the other party's proposal, and do what follows from it."""
        raise NotImplementedError

    @parsed
    def cosigned(self, sender: Node, m: Cosign) -> None:
        end = self.ends.get(m.cid)
        if end is not None and sender is end.peer:
            end.cosigned(m)

    def acked(self, sender: Node, m: Ack) -> None:
        if self.sim.parses and not well_formed(m):
            return
        end = self.ends.get(m.cid)
        if end is not None and m.seq in end.roots:  # else a quorum was there before
            end.acked(sender, m)

    @parsed
    def asked(self, sender: Node, m: Ask) -> None:
        end = self.ends.get(m.cid)
        if end is not None and sender is end.peer and m.seq == end.state.seq:  # else it has had its turn since
            end.peer_asked = True
            end.advance()

    @parsed
    def granted(self, sender: Node, m: Grant) -> None:
        end = self.ends.get(m.cid)
        if end is not None and sender is end.peer:
            end.asked, end.turn = False, True
            end.advance()

    on = {Cosign: cosigned, Ack: acked, Ask: asked, Grant: granted}
