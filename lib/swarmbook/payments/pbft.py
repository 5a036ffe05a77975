"""How a committee agrees on LOCK or ABORT for one payment when its members see competing ones in different orders.

This is PBFT (Castro and Liskov, 1999) with a single decision for each payment:

- The leader of a view proposes a value (`PrePrepare`). The other members say to all that they back it (`Prepare`). Who
  holds a quorum of these says that to all (`Commit`), and a quorum of commits decides. That takes 2 m (m - 1) messages
  and three delays in a committee of m members.
- A member that waits too long asks for the next leader (`ViewChange`). The new leader proposes what may already have
  been decided, or else its own choice, and shows a quorum of requests for its view (`NewView`).
- Waiting times double from view to view. Progress needs a network that is eventually synchronous; safety needs nothing.

Whether a member can back LOCK depends on what else it has backed (`acceptable`). Having backed it once, it keeps the
amount aside until the payment is decided, so that two payments for the same coins never both find a quorum.

Serves: the row "PSyncPCN, V3" of the cost table (S4), and claim S9.
"""

from typing import NamedTuple, Protocol

from swarmbook.payments.outcomes import Decision
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Node

LAST_VIEW = 20  # nobody waits for a later one, so that a simulation with too many faulty members ends


class PrePrepare(NamedTuple):
    """The leader of a view proposes a value."""

    cid: int
    pid: object
    view: int
    value: str
    signature: object


class Prepare(NamedTuple):
    """A member backs what the leader of a view has proposed."""

    cid: int
    pid: object
    view: int
    value: str
    signature: object


class Commit(NamedTuple):
    """A member has seen a quorum back a value."""

    cid: int
    pid: object
    view: int
    value: str
    signature: object


class ViewChange(NamedTuple):
    """Asks for a view; prepared: (view, value, signatures) that this member saw a quorum prepare, or None."""

    cid: int
    pid: object
    view: int
    prepared: tuple | None
    signature: object


class NewView(NamedTuple):
    """The leader of a new view proposes a value, and shows a quorum of requests for its view."""

    cid: int
    pid: object
    view: int
    value: str
    requests: tuple[tuple[str, ViewChange], ...]
    signature: object


class Voter(Protocol):
    """What agreement asks of a member of the committee, which is also a `Node`."""

    cid: int
    keys: Keys

    def acceptable(self, pid: object, value: str) -> bool:
        """Whether the member may back a value now."""

    def backed(self, pid: object, value: str) -> None:
        """The member has backed a value."""

    def agreed(self, pid: object, value: str) -> None:
        """A value is decided."""


class Agreement:
    """One member's part in agreeing on the payment `pid`. value: what was decided, or None.

    members: of the committee, in the order in which they lead. timeout: the waiting time of the first view, in the
    simulation's unit of time.
    """

    def __init__(self, member: Voter, members: list[Node], pid: object, timeout: float) -> None:
        self.member, self.members, self.pid, self.timeout = member, members, pid, timeout
        self.names = [other.name for other in members]
        self.quorum = len(members) - (len(members) - 1) // 3
        self.view, self.value, self.begun = 0, None, False
        self.backs: str | None = None  # what this member has backed in the present view
        self.proposals: dict[int, PrePrepare] = {}
        self.licences: dict[int, str] = {}  # what the leader of a later view has shown that it may propose
        self.prepared: tuple | None = None
        self.committed: set[int] = set()
        self.votes: dict[tuple, dict[str, object]] = {}
        self.requests: dict[int, dict[str, ViewChange]] = {}

    def leader(self, view: int) -> Node:
        """The member that proposes in a view."""
        return self.members[view % len(self.members)]

    def begin(self) -> None:
        """This member has a reason to decide: the order, or a certificate of the committee before."""
        if self.begun or self.value is not None:
            return
        self.begun = True
        self._wait()
        if self.leader(self.view) is self.member:
            if self.view == 0:
                self._propose(self._choice())
            else:
                self._lead()
        self._consider()

    def receive(self, sender: Node, m: object) -> None:
        """Take a message of another member, if its signature is right."""
        kind = type(m)
        if not self.member.keys.verify(sender.name, self._statement(m), m.signature):
            return
        if kind is PrePrepare:
            if sender is self.leader(m.view):
                self.proposals.setdefault(m.view, m)
                self._consider()
        elif kind is Prepare:
            if sender is not self.leader(m.view):
                self._prepare_vote(sender.name, m.view, m.value, m.signature)
        elif kind is Commit:
            self._commit_vote(sender.name, m.view, m.value, m.signature)
        elif kind is ViewChange:
            self._requested(sender.name, m)
        else:
            self._new_view(sender, m)

    def _statement(self, m: object) -> tuple:
        if isinstance(m, ViewChange):
            return ("ViewChange", m.cid, m.pid, m.view, m.prepared)
        return (type(m).__name__, m.cid, m.pid, m.view, m.value)

    def _signed(self, kind: type, value: str) -> object:
        statement = (kind.__name__, self.member.cid, self.pid, self.view, value)
        return kind(self.member.cid, self.pid, self.view, value, self.member.keys.sign(self.member.name, statement))

    def _others(self, message: object) -> None:
        for other in self.members:
            if other is not self.member:
                self.member.send(other, message)

    def _choice(self) -> str:
        return Decision.LOCK if self.member.acceptable(self.pid, Decision.LOCK) else Decision.ABORT

    def _consider(self) -> None:
        """Back what the leader of this view proposes, if it may, and if this member has begun and can."""
        m = self.proposals.get(self.view)
        if m is None or not self.begun or self.backs is not None or self.value is not None:
            return
        if self.view > 0 and self.licences.get(self.view) != m.value:
            return
        if self.member.acceptable(self.pid, m.value):
            self._back(m.value, m.signature)

    def _propose(self, value: str) -> None:
        message = self._signed(PrePrepare, value)
        self._others(message)
        self.backs = value
        self.member.backed(self.pid, value)
        self._prepare_vote(self.member.name, self.view, value, message.signature)

    def _back(self, value: str, signature: object) -> None:
        """Back the leader's value: its proposal counts as its own vote."""
        self.backs = value
        self.member.backed(self.pid, value)
        leader = self.leader(self.view).name
        message = self._signed(Prepare, value)
        self._others(message)
        self._prepare_vote(self.member.name, self.view, value, message.signature)
        self._prepare_vote(leader, self.view, value, signature)

    def _prepare_vote(self, name: str, view: int, value: str, signature: object) -> None:
        votes = self.votes.setdefault(("prepare", view, value), {})
        votes[name] = signature
        if len(votes) >= self.quorum and view == self.view and self.backs == value and view not in self.committed:
            self.committed.add(view)
            self.prepared = view, value, tuple(votes.items())
            message = self._signed(Commit, value)
            self._others(message)
            self._commit_vote(self.member.name, view, value, message.signature)

    def _commit_vote(self, name: str, view: int, value: str, signature: object) -> None:
        votes = self.votes.setdefault(("commit", view, value), {})
        votes[name] = signature
        if len(votes) < self.quorum or self.value is not None:
            return
        self.value = value
        if view not in self.committed:  # faulty members may have told this one alone: help the others
            self.committed.add(view)
            statement = ("Commit", self.member.cid, self.pid, view, value)
            signature = self.member.keys.sign(self.member.name, statement)
            self._others(Commit(self.member.cid, self.pid, view, value, signature))
        self.member.agreed(self.pid, value)

    # view change

    def _wait(self) -> None:
        if self.view < LAST_VIEW:
            self.member.at(self.member.clock + self.timeout * 2**self.view, self._timeout, self.view)

    def _timeout(self, view: int) -> None:
        if self.value is None and view == self.view:
            self._move(view + 1)

    def _move(self, view: int) -> None:
        self.view, self.backs = view, None
        statement = ("ViewChange", self.member.cid, self.pid, view, self.prepared)
        signature = self.member.keys.sign(self.member.name, statement)
        request = ViewChange(self.member.cid, self.pid, view, self.prepared, signature)
        self._wait()
        self._others(request)
        self._requested(self.member.name, request)

    def _requested(self, name: str, m: ViewChange) -> None:
        if m.prepared is not None and not self._proven(m.prepared):
            return
        requests = self.requests.setdefault(m.view, {})
        requests[name] = m
        faulty = (len(self.members) - 1) // 3
        if m.view > self.view and len(requests) > faulty and self.value is None:
            self._move(m.view)  # an honest member is among them
        self._lead()

    def _lead(self) -> None:
        """Propose in a later view, if this member is to lead it, has begun, and holds a quorum of requests."""
        if self.leader(self.view) is not self.member or not self.begun or self.backs is not None or self.view == 0:
            return
        requests = tuple(self.requests.get(self.view, {}).items())
        if len(requests) < self.quorum or self.value is not None:
            return
        value = self._must(requests) or self._choice()
        statement = ("NewView", self.member.cid, self.pid, self.view, value)
        signature = self.member.keys.sign(self.member.name, statement)
        self._others(NewView(self.member.cid, self.pid, self.view, value, requests, signature))
        self._propose(value)

    def _new_view(self, sender: Node, m: NewView) -> None:
        """Enter a view whose leader shows that a quorum asked for it, and that it keeps what may be decided."""
        if sender is not self.leader(m.view) or m.view < self.view or self.value is not None:
            return
        valid = {
            name
            for name, request in m.requests
            if request.view == m.view
            and request.pid == self.pid
            and name in self.names
            and self.member.keys.verify(name, self._statement(request), request.signature)
            and (request.prepared is None or self._proven(request.prepared))
        }
        if len(valid) < self.quorum or self._must(m.requests) not in (None, m.value):
            return
        self.licences.setdefault(m.view, m.value)
        if m.view > self.view:
            self.view, self.backs = m.view, None
            self._wait()
        self._consider()

    def _must(self, requests: tuple) -> str | None:
        prepared = [request.prepared for _, request in requests if request.prepared is not None]
        return max(prepared)[1] if prepared else None

    def _proven(self, prepared: tuple) -> bool:
        """Whether a quorum really prepared this: the leader by its proposal, the others by theirs."""
        view, value, votes = prepared
        leader = self.leader(view).name
        valid = set()
        for name, signature in votes:
            kind = "PrePrepare" if name == leader else "Prepare"
            statement = (kind, self.member.cid, self.pid, view, value)
            if name in self.names and self.member.keys.verify(name, statement, signature):
                valid.add(name)
        return len(valid) >= self.quorum
