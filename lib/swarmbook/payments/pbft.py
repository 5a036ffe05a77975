"""How a committee agrees on the order of competing payments, and on LOCK or ABORT for each of them.

This is PBFT (Castro and Liskov, 1999), one place of a sequence after the other. A *slot* is such a place, and what is
decided for it is a value: the name of a payment and LOCK or ABORT.

- The leader of a view proposes a value (`PrePrepare`). The other members say to all that they back it (`Prepare`). Who
  holds a quorum of these says that to all (`Commit`), and a quorum of commits decides. That takes 2 m (m - 1) messages
  and three delays in a committee of m members.
- A member that waits too long asks for the next leader (`ViewChange`). The new leader proposes what may already have
  been decided, or else its own choice, and shows a quorum of requests for its view (`NewView`).
- A member that has decided answers such a request with the commits that decided (`Decided`), so that nobody honest is
  left behind by faulty members that talked to some alone.
- A member votes in a slot when it has decided all slots before. Whoever backs a LOCK has therefore counted all that was
  locked before it, and one honest member among those that back it is enough to keep coins from being spent twice.
- Waiting times double from view to view. Progress needs a network that is eventually synchronous; safety needs nothing.

Why two values never win one slot: two quorums of 2 f + 1 among 3 f + 1 members share f + 1, so at least one honest
member, which backs one value in a view. What a quorum committed, f + 1 honest members had seen prepared, and every
quorum of requests for a later view has one of them, whose proof the new leader must follow.

The file is long because messages and what they do to one member are one protocol, to be read in one go.

Serves: the row "PSyncPCN, V3" of the cost table (S4), and claim S9.
"""

from typing import NamedTuple, Protocol

from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Node

LAST_VIEW = 20  # nobody waits for a later one, so that a simulation with too many faulty members ends

Value = tuple[object, str]  # the name of a payment, and LOCK or ABORT
Votes = tuple[tuple[str, object], ...]  # members, and their signatures


class PrePrepare(NamedTuple):
    """The leader of a view proposes a value for a slot."""

    cid: int
    slot: int
    view: int
    value: Value
    signature: object


class Prepare(NamedTuple):
    """A member backs what the leader of a view has proposed."""

    cid: int
    slot: int
    view: int
    value: Value
    signature: object


class Commit(NamedTuple):
    """A member has seen a quorum back a value."""

    cid: int
    slot: int
    view: int
    value: Value
    signature: object


class ViewChange(NamedTuple):
    """Asks for a view; prepared: (view, value, signatures) that this member saw a quorum prepare, or None."""

    cid: int
    slot: int
    view: int
    prepared: tuple[int, Value, Votes] | None
    signature: object


class NewView(NamedTuple):
    """The leader of a new view proposes a value, and shows a quorum of requests for its view."""

    cid: int
    slot: int
    view: int
    value: Value
    requests: tuple[tuple[str, ViewChange], ...]
    signature: object


class Decided(NamedTuple):
    """Shows that a slot is decided: the signatures of a quorum that committed. It is worth the same from anybody."""

    cid: int
    slot: int
    view: int
    value: Value
    votes: Votes


MESSAGES = PrePrepare, Prepare, Commit, ViewChange, NewView, Decided


class Voter(Protocol):
    """What agreement asks of a member of the committee, which is also a `Node`. slot: the first not done yet."""

    cid: int
    slot: int
    keys: Keys
    others: list[Node]

    def choice(self) -> Value | None:
        """What this member would propose now, or None if no payment waits."""

    def acceptable(self, value: Value) -> bool:
        """Whether the member may back a value now."""

    def decided(self) -> None:
        """A slot is decided."""

    def remind(self) -> None:
        """The member has waited too long: let the others know of the payments that wait here."""

    def tell(self, to: Node, proof: Decided) -> None:
        """Send what was decided to a member that does not know it, and what it needs to act on it."""


class Agreement:
    """One member's part in deciding one slot. value: what was decided, or None; proof: shows it to others.

    members: of the committee, in the order in which they lead; the first to lead a slot is that of its number. timeout:
    the waiting time of the first view, in the simulation's unit of time.
    """

    __slots__ = (
        *("member", "members", "slot", "timeout", "faulty", "quorum", "view", "waiting", "value", "proof", "backs"),
        *("proposals", "licences", "prepared", "committed", "prepares", "commits", "requests", "wanted"),
    )

    def __init__(self, member: Voter, members: list[Node], slot: int, timeout: float) -> None:
        self.member, self.members, self.slot, self.timeout = member, members, slot, timeout
        self.faulty = (len(members) - 1) // 3
        self.quorum = len(members) - self.faulty
        self.view, self.waiting = 0, -1  # waiting: the last view for which it has set a timer
        self.value: Value | None = None
        self.proof: Decided | None = None
        self.backs: Value | None = None  # what this member has backed in the present view
        self.proposals: dict[int, PrePrepare] = {}
        self.licences: dict[int, tuple[Value, bool]] = {}  # what a later leader may propose, and whether it must
        self.prepared: tuple | None = None
        self.committed: set[int] = set()
        self.prepares: dict[tuple[int, Value], dict[str, object]] = {}
        self.commits: dict[tuple[int, Value], dict[str, object]] = {}
        self.requests: dict[int, dict[str, ViewChange]] = {}
        self.wanted: dict[str, int] = {}  # the latest view for which each member has asked

    @property
    def open(self) -> bool:
        """Whether this is the slot that the member is at: it has done all before, and not this one."""
        return self.member.slot == self.slot

    def leader(self, view: int) -> Node:
        """The member that proposes in a view."""
        return self.members[(self.slot + view) % len(self.members)]

    def wake(self) -> None:
        """There is something to decide: wait for the leader of this view, but not for ever."""
        if self.open and self.waiting < self.view < LAST_VIEW:
            self.waiting = self.view
            self.member.at(self.member.clock + self.timeout * 2**self.view, self._timeout, self.view)

    def supported(self) -> bool:
        """Whether f + 1 members, so an honest one, have committed to a value: it may be decided without this member."""
        return any(len(votes) > self.faulty for votes in self.commits.values())

    def advance(self) -> None:
        """Do what this member now can: follow others to a later view, lead, back a proposal, commit."""
        if self.open and self.value is None:
            if self.wanted:
                self._follow()
            self._lead()
            self._consider()
            for view, value in [*self.prepares]:
                if view == self.view:
                    self._commit(view, value)

    def receive(self, sender: Node, m: object) -> None:
        """Take a message of another member, if its signature is right."""
        kind = m.__class__
        if kind is Decided:
            self._told(m)
        elif not self.member.keys.verify(sender.name, self._statement(kind, m), m.signature):
            return
        elif kind is Commit:
            self._commit_vote(sender.name, m.view, m.value, m.signature)
        elif kind is Prepare:
            if sender is not self.leader(m.view):
                self._prepare_vote(sender.name, m.view, m.value, m.signature)
        elif kind is PrePrepare:
            if sender is self.leader(m.view) and m.view not in self.proposals:
                self.proposals[m.view] = m
                self._prepare_vote(sender.name, m.view, m.value, m.signature)
                self._consider()
        elif kind is ViewChange:
            self._requested(sender, m)
        else:
            self._new_view(sender, m)

    @staticmethod
    def _statement(kind: type, m: object) -> tuple:
        return (kind.__name__, m.cid, m.slot, m.view, m.prepared if kind is ViewChange else m.value)

    def _signed(self, kind: type, view: int, value: Value) -> object:
        statement = (kind.__name__, self.member.cid, self.slot, view, value)
        return kind(self.member.cid, self.slot, view, value, self.member.keys.sign(self.member.name, statement))

    def _others(self, message: object) -> None:
        self.member.sim.send_all(self.member, self.member.others, message)

    def _consider(self) -> None:
        """Back what the leader of this view proposes, if it may, and if this member can.

        What a leader must propose, because a quorum has prepared it before, honest members have checked already.
        """
        m = self.proposals.get(self.view)
        if m is None or self.backs is not None or self.value is not None or not self.open:
            return
        value, must = self.licences.get(self.view, (None, False)) if self.view else (m.value, False)
        if value == m.value and (must or self.member.acceptable(value)):
            self.backs = value
            message = self._signed(Prepare, self.view, value)
            self._others(message)
            self._prepare_vote(self.member.name, self.view, value, message.signature)

    def _propose(self, value: Value) -> None:
        message = self._signed(PrePrepare, self.view, value)
        self._others(message)
        self.backs = value
        self.proposals[self.view] = message
        self._prepare_vote(self.member.name, self.view, value, message.signature)

    def _prepare_vote(self, name: str, view: int, value: Value, signature: object) -> None:
        votes = self.prepares.setdefault((view, value), {})
        votes[name] = signature
        if len(votes) >= self.quorum:
            self._commit(view, value)

    def _commit(self, view: int, value: Value) -> None:
        """Say that a quorum backs a value in this view, also if this member could not back it itself."""
        votes = self.prepares[view, value]
        if len(votes) < self.quorum or view != self.view or view in self.committed or not self.open:
            return
        self.committed.add(view)
        self.prepared = view, value, tuple(votes.items())
        message = self._signed(Commit, view, value)
        self._others(message)
        self._commit_vote(self.member.name, view, value, message.signature)

    def _commit_vote(self, name: str, view: int, value: Value, signature: object) -> None:
        votes = self.commits.setdefault((view, value), {})
        votes[name] = signature
        if len(votes) == self.faulty + 1:
            self.wake()  # `supported`: this member will ask, unless it decides in time
        if len(votes) >= self.quorum and self.value is None:
            self._decide(Decided(self.member.cid, self.slot, view, value, tuple(votes.items())))

    def _decide(self, proof: Decided) -> None:
        self.value, self.proof = proof.value, proof
        if proof.view not in self.committed:  # faulty members may have told this one alone: help the others
            self.committed.add(proof.view)
            self._others(self._signed(Commit, proof.view, proof.value))
        for other in self.member.others:
            if self.wanted.get(other.name, 0) > proof.view:
                self.member.tell(other, proof)
        self.member.decided()

    def _told(self, m: Decided) -> None:
        """Another member shows what was decided."""
        if self.value is None:
            statement = ("Commit", self.member.cid, self.slot, m.view, m.value)
            if self._signers(m.votes, lambda name: statement) >= self.quorum:
                self._decide(m)

    def _signers(self, votes: tuple, statement) -> int:
        """How many distinct members signed `statement(name)`."""
        verify, names = self.member.keys.verify, [member.name for member in self.members]
        return len({name for name, signature in votes if name in names and verify(name, statement(name), signature)})

    # view change

    def _timeout(self, view: int) -> None:
        if self.open and view == self.view:
            self.member.remind()
            self._move(view + 1)

    def _move(self, view: int) -> None:
        self.view, self.backs = view, None
        statement = ("ViewChange", self.member.cid, self.slot, view, self.prepared)
        signature = self.member.keys.sign(self.member.name, statement)
        request = ViewChange(self.member.cid, self.slot, view, self.prepared, signature)
        self.wake()
        self._others(request)
        self._note(self.member.name, request)
        self.advance()

    def _requested(self, sender: Node, m: ViewChange) -> None:
        if m.prepared is None or self._proven(m.prepared):
            self._note(sender.name, m)
            if self.proof is not None:
                self.member.tell(sender, self.proof)
            self.advance()

    def _note(self, name: str, m: ViewChange) -> None:
        self.requests.setdefault(m.view, {})[name] = m
        self.wanted[name] = max(m.view, self.wanted.get(name, 0))

    def _follow(self) -> None:
        """Enter the latest view that f + 1 members have asked for or passed: an honest one is among them."""
        views = sorted(self.wanted.values(), reverse=True)
        if len(views) > self.faulty and views[self.faulty] > self.view:
            self._move(views[self.faulty])

    def _lead(self) -> None:
        """Propose, if this member leads its view and has not yet; in a later one if it holds a quorum of requests."""
        if self.leader(self.view) is not self.member or self.backs is not None or self.value is not None:
            return
        must = None
        if self.view > 0:
            requests = tuple(self.requests.get(self.view, {}).items())
            if len(requests) < self.quorum:
                return
            must = self._must(request for _, request in requests)
        value = must or self.member.choice()
        if value is None:
            return
        if self.view > 0:
            statement = ("NewView", self.member.cid, self.slot, self.view, value)
            signature = self.member.keys.sign(self.member.name, statement)
            self._others(NewView(self.member.cid, self.slot, self.view, value, requests, signature))
        self._propose(value)

    def _new_view(self, sender: Node, m: NewView) -> None:
        """Enter a view whose leader shows that a quorum asked for it, and that it keeps what may be decided."""
        if sender is not self.leader(m.view) or m.view < self.view or m.view in self.licences:
            return
        names = [member.name for member in self.members]
        valid = {
            name: request
            for name, request in m.requests
            if (request.cid, request.slot, request.view) == (self.member.cid, self.slot, m.view)
            and name in names
            and self.member.keys.verify(name, self._statement(ViewChange, request), request.signature)
            and (request.prepared is None or self._proven(request.prepared))
        }
        must = self._must(valid.values())
        if len(valid) < self.quorum or must not in (None, m.value):
            return
        self.licences[m.view] = m.value, must is not None
        if m.view > self.view:
            self.view, self.backs = m.view, None
            self.wake()
        self.advance()

    def _must(self, requests) -> Value | None:
        """What the new leader has to propose: what was prepared in the latest view, of all that is shown."""
        prepared = [request.prepared for request in requests if request.prepared is not None]
        return max(prepared, key=lambda proof: proof[0])[1] if prepared else None

    def _proven(self, prepared: tuple) -> bool:
        """Whether a quorum really prepared this: the leader by its proposal, the others by theirs."""
        view, value, votes = prepared
        leader = self.leader(view).name

        def statement(name: str) -> tuple:
            kind = "PrePrepare" if name == leader else "Prepare"
            return (kind, self.member.cid, self.slot, view, value)

        return self._signers(votes, statement) >= self.quorum
