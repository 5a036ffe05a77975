"""Plausible mistakes in the protocols: those that the search notices within seconds, and those that it does not.

A mutant replaces a few attributes of the protocols' classes. `search` plays the same worlds for each of them
(`PORTFOLIO`), with the same seed, and knows nothing of what the mutant is.

All mistakes are in one file, as one list.

Serves: the table of mutants; claim S11.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from swarmbook.payments import channel_update
from swarmbook.payments.channel_committee import CommitteeMember
from swarmbook.payments.channel_update import ChannelEnd
from swarmbook.payments.model_checking.network import kinds
from swarmbook.payments.model_checking.search import Report, guided
from swarmbook.payments.model_checking.settings import Pay, Setting, everything
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.pbft import Agreement
from swarmbook.payments.psyncpcn import PSyncPCN, PSyncPCNMember
from swarmbook.payments.psyncpcn.entries import FINAL, OrderState
from swarmbook.payments.signatures import Certificate, Committee, Tally
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn import SyncPCNMember, SyncPCNParty, Timing

Patch = tuple[Any, str, Any]  # class or module, attribute, what it becomes

ALWAYS, NEVER = 1e6, -1e6  # shifts of a clock that let every deadline pass, or none


def around(owner: Any, name: str, change: Callable) -> Patch:
    """Replace a method by change(original, self, ...)."""
    original = getattr(owner, name)

    def changed(self, *arguments):
        return change(original, self, *arguments)

    return owner, name, changed


def with_clock(owner: type, name: str, shift: float) -> Patch:
    """A method that reads a clock which is wrong by so much."""

    def change(original, self, *arguments):
        skew, self.skew = self.skew, self.skew + shift
        try:
            return original(self, *arguments)
        finally:
            self.skew = skew

    return around(owner, name, change)


def returns(owner: Any, name: str, value: object) -> Patch:
    return owner, name, lambda *arguments, **more: value


def fewer(number: str, owner: type) -> Patch:
    """Objects of a class that are content with one signature fewer."""

    def change(original, self, *arguments):
        original(self, *arguments)
        setattr(self, number, getattr(self, number) - 1)

    return around(owner, "__init__", change)


def lower(number: str, to: int, owner: type) -> Patch:
    """Objects of a class that count with another number of members."""

    def change(original, self, *arguments):
        original(self, *arguments)
        setattr(self, number, to)

    return around(owner, "__init__", change)


def claim_any_key(original, self, sender, m):
    scheme = self.locks

    class Open(type(scheme)):
        def opens(self, lock, key):
            return True

    self.locks = Open()
    try:
        original(self, sender, m)
    finally:
        self.locks = scheme


def without(name: str) -> Callable:
    """A method that does not know of what an attribute holds."""

    def change(original, self, *arguments):
        kept = getattr(self, name)
        setattr(self, name, {})
        try:
            return original(self, *arguments)
        finally:
            setattr(self, name, {**kept, **getattr(self, name)})

    return change


def concede_for_anybody(original, self, sender, m):
    payer = self.parties[m.lock.payer] if m.lock is not None else sender
    signature = self.keys.sign(payer.name, ("concede", self.cid, m.about))
    original(self, payer, m._replace(signature=signature))


def order_unsigned(original, self, order):
    return original(self, order._replace(signature=self.keys.sign(order.sender, order.statement())))


def trust_the_leader(original, self, sender, m):
    if sender is self.leader(m.view) and m.view >= self.view:
        self.licences[m.view] = m.value, True
        self.view = m.view
        self.advance()
    original(self, sender, m)


def back_again(original, self):
    self.backs = None
    original(self)


def quorum_of(size: int) -> Callable:
    """A method of an agreement that is content with so few votes."""

    def change(original, self, *arguments):
        quorum, self.quorum = self.quorum, size
        try:
            return original(self, *arguments)
        finally:
            self.quorum = quorum

    return change


def forget_prepared(original, self, view):
    self.prepared = None
    original(self, view)


def settle_silently(original, self, entry):
    """Pay what was not reserved here, without saying that it is locked."""
    if entry.state not in FINAL and entry.state != OrderState.RESERVED:
        entry.state = OrderState.RESERVED
        self.reserved[entry.side] += entry.amount
    original(self, entry)


def keep_from_payee(original, self, entry):
    before = self.ledger[1 - entry.side]
    original(self, entry)
    self.ledger[1 - entry.side] = self.balances[1 - entry.side] = before


def act_twice(original, self, entry, lock):
    if entry.state in (OrderState.RESERVED, OrderState.ABORTED):
        entry.state = OrderState.WAITING
    original(self, entry, lock)


def generous(state, side, change, nonce, decided=(), follow=channel_update.follow):
    """The next state, with a limit for balances that is 50 coins too low."""
    richer = follow(state._replace(left=state.left + 50, right=state.right + 50), side, change, nonce, decided)
    return richer._replace(left=richer.left - 50, right=richer.right - 50)


SYNC: dict[str, list[Patch]] = {
    "members vote as often as they are asked": [returns(SyncPCNMember, "may_vote", True)],
    "refunds begin at T_i": [(Timing, "refund_wait", property(lambda self: 0.0))],
    "a key is not passed upstream": [returns(SyncPCNParty, "learn", None)],
    "what the committee decided is not heeded": [returns(SyncPCNParty, "decided", None)],
    "members never vote": [returns(SyncPCNMember, "vote", None)],
    "nobody asks for what the payer does not take back": [returns(SyncPCNParty, "give_back", None)],
    "a payee never claims": [returns(SyncPCNParty, "claim", None)],
    "a payer never asks for its coins": [returns(SyncPCNParty, "ask_refund", None)],
    "a payer never concedes": [returns(SyncPCNParty, "concede", None)],
    "a key from a vote is not passed on": [
        around(SyncPCNParty, "voted", lambda original, self, sender, m: original(self, sender, m._replace(key=None)))
    ],
    "a failed hop is not passed back": [returns(SyncPCNParty, "fail", None)],
    "certificates are not verified": [returns(Certificate, "verify", True)],
    "a state may hold more than the channel": [(channel_update, "follow", generous)],
    "a claim proves one state alone": [
        around(ChannelEnd, "proofs", lambda original, self, lock: original(self, lock)[:1])
    ],
    "a lock's name is used twice": [around(ChannelEnd, "_followed", without("past"))],
    "hops expire delta apart": [(Timing, "margin", property(lambda self: self.delta))],
    "members accept one signature of two": [returns(CommitteeMember, "signed", True)],
    "what the other party removed is not noticed": [returns(SyncPCNParty, "left", None)],
}
PSYNC: dict[str, list[Patch]] = {
    "members lock more than there is": [returns(PSyncPCNMember, "available", True)],
    "orders are not verified": [around(PSyncPCNMember, "entry", order_unsigned)],
    "carried certificates are not verified": [returns(Certificate, "verify", True)],
    "a member aborts after it has reserved": [
        around(
            *(PSyncPCNMember, "decide"),
            lambda original, self, entry, lock: (
                original(self, entry, lock),
                self.share(entry, Decision.ABORT, back=True),
            ),
        )
    ],
    "a member commits what few prepared": [around(Agreement, "_commit", quorum_of(1))],
    "a member backs two values in a view": [around(Agreement, "_consider", back_again)],
    "nobody waits for a leader": [returns(Agreement, "_timeout", None)],
    "who is left behind is not told": [returns(PSyncPCNMember, "tell", None)],
    "a payment's coins do not arrive": [around(PSyncPCNMember, "settle", keep_from_payee)],
    "members keep to themselves what they did": [returns(PSyncPCNMember, "share", None)],
    "orders need not be sound": [returns(PSyncPCN, "sound", True)],
}
# Mistakes that the search does not notice within seconds: another rule makes up for them, or a rarer schedule is
# needed.
UNNOTICED_SYNC: dict[str, list[Patch]] = {
    "members refund at any time": [with_clock(SyncPCNMember, "refund_asked", ALWAYS)],
    "the quorum is 2 f": [(Committee, "quorum", property(lambda self: 2 * self.faulty))],
    "members ignore numbers": [returns(CommitteeMember, "next", True), returns(SyncPCNMember, "fresh", True)],
    "a payee goes on before the certificate": [
        (
            *(SyncPCNParty, "await_certificate"),
            lambda self, end, seq, change: self.secured(end.cid, change.lock, self.clock),
        )
    ],
    "members accept late claims": [with_clock(SyncPCNMember, "claimed", NEVER)],
    "members accept claims without the key": [around(SyncPCNMember, "claimed", claim_any_key)],
    "members let anybody concede": [around(SyncPCNMember, "conceded", concede_for_anybody)],
    "a claim is sent at T_i": [(Timing, "claim_by", lambda self, expiry: expiry)],
    "a lock is opened until T_i": [(Timing, "open_by", lambda self, expiry: expiry)],
    "a lock is accepted until T_i": [(Timing, "lock_by", lambda self, expiry: expiry)],
    "a key is taken at any time": [(Timing, "key_by", lambda self, expiry: expiry + ALWAYS)],
    "deadlines of two hops are not compared": [returns(Timing, "apart", True)],
    "amounts of two hops are not compared": [
        (SyncPCNParty, "fee", property(lambda self: -100, lambda self, fee: None))
    ],
    "a payer signs every opening": [returns(SyncPCNParty, "allowed", True)],
    "certificates of states need one signature fewer": [fewer("quorum", Tally)],
    "nothing is held back during a dispute": [around(ChannelEnd, "proposed", without("disputes"))],
    "a payer signs a paid lock away without its key": [returns(SyncPCNParty, "may_pay", True)],
    "members do not ask for the newest state": [returns(SyncPCNMember, "current", True)],
    "a key beside a certificate is not taken": [returns(SyncPCNParty, "shown_decision", None)],
    "what had to wait is never signed": [returns(ChannelEnd, "release", None)],
}
UNNOTICED_PSYNC: dict[str, list[Patch]] = {
    "a member reserves twice": [around(PSyncPCNMember, "decide", act_twice)],
    "one share is a quorum": [lower("spare", 3, PSyncPCNMember)],
    "one share shows that others locked": [lower("few", 1, PSyncPCNMember)],
    "committees heed any other": [returns(PSyncPCNMember, "adjacent", True)],
    "a party's certificate needs one signature fewer": [fewer("quorum", Tally)],
    "agreement needs one vote fewer": [fewer("quorum", Agreement)],
    "a commit of one member decides": [around(Agreement, "_commit_vote", quorum_of(1))],
    "what was decided is not proved": [around(Agreement, "_told", quorum_of(0))],
    "a new leader is free to choose": [returns(Agreement, "_must", None)],
    "what was prepared is not verified": [returns(Agreement, "_proven", True)],
    "what was prepared is forgotten": [around(Agreement, "_move", forget_prepared)],
    "a new view needs no requests": [around(Agreement, "_new_view", trust_the_leader)],
    "any value is acceptable": [returns(PSyncPCNMember, "acceptable", True)],
    "members locked without do not join": [
        returns(PSyncPCNMember, "implies_lock", False),
        around(PSyncPCNMember, "settle", settle_silently),
    ],
}
MUTANTS: dict[str, list[Patch]] = {**SYNC, **PSYNC}
PATCHES: dict[str, list[Patch]] = {**MUTANTS, **UNNOTICED_SYNC, **UNNOTICED_PSYNC}
VERSION = 1  # of what `noticed` gives: to be raised with every change of a protocol, of a mutant or of the search
MEMBERS = "C1.4", "C2.4"
ONE, TWO = (Pay(10),), (Pay(10), Pay(10, 0.7))
AGREED = (("ordering", "agreed"),)
PORTFOLIO = {
    "SyncPCN": [
        Setting("SyncPCN", 1, TWO, ("u0", "C1.4"), balance=15),
        Setting("SyncPCN", 2, ONE, ("u1", *MEMBERS)),
        Setting("SyncPCN", 2, ONE, ("u0", "u2", *MEMBERS)),
        Setting("SyncPCN", 2, (Pay(10), Pay(4, 0.7, backwards=True)), ("u2", *MEMBERS), skew=0.5),
    ],
    "PSyncPCN": [
        Setting("PSyncPCN", 2, ONE, ("u0", *MEMBERS), (("echo", True),), bound=300.0),
        Setting("PSyncPCN", 2, ONE, ("u2", *MEMBERS), (("commit", "forward"),), balance=9, bound=300.0),
        Setting("PSyncPCN", 1, ONE, ("C1.1",), AGREED, bound=100.0),
        Setting("PSyncPCN", 1, TWO, ("C1.2",), AGREED, balance=15, bound=100.0),
    ],
}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """The protocols with one mistake, and as they were afterwards. AttributeError if a rule is no longer there."""
    kept: list[tuple[Any, str, object]] = []
    handlers: list[tuple[dict, type, Callable]] = []
    try:
        for owner, attribute, value in PATCHES[name]:
            original = getattr(owner, attribute)
            kept.append((owner, attribute, vars(owner).get(attribute)))
            setattr(owner, attribute, value)
            for table in handled_by(owner):
                handlers += [(table, kind, call) for kind, call in table.items() if call is original]
        for table, kind, call in handlers:
            table[kind] = next(value for owner, attribute, value in PATCHES[name] if attribute == call.__name__)
        yield
    finally:
        for table, kind, call in handlers:
            table[kind] = call
        for owner, attribute, value in reversed(kept):
            delattr(owner, attribute) if value is None else setattr(owner, attribute, value)


def handled_by(owner: Any) -> list[dict]:
    """The tables of a class and of those made from it, which say what is called for a message (`Node.on`)."""
    if not isinstance(owner, type) or not issubclass(owner, Node):
        return []
    classes, found = [owner], []
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        found += [one.on] if "on" in vars(one) else []
    return found


def search(protocol: str, schedules: int = 4000, seed: int = 0) -> Report:
    """Search the worlds of the portfolio until something is wrong, or so many schedules are played."""
    return guided(PORTFOLIO[protocol], random.Random(seed), schedules=schedules)


def noticed(mutant: str, schedules: int, seed: int = 0) -> dict[str, Any]:
    """What the search finds with a mutant: requirements and invariants by name, and how much it has played.

    mutant: one of `PATCHES`, or a protocol's name for the protocol as it is, in all worlds of `settings.everything`.
    schedules: how many are played at most; the search of a mutant ends with the first violation. The keys are "mutant",
    "protocol", "found", "worlds", "schedules" and "events".
    """
    if mutant in PORTFOLIO:
        protocol = mutant
        worlds = [setting for setting in everything() if setting.protocol == protocol]
        report = guided(worlds, random.Random(seed), schedules=schedules, first=False)
    else:
        protocol = "SyncPCN" if mutant in SYNC or mutant in UNNOTICED_SYNC else "PSyncPCN"
        with mutated(mutant):
            report = search(protocol, schedules, seed)
    found = sorted(kinds(text for one in report.found for text in one.violations))
    counts = {"worlds": report.worlds, "schedules": report.schedules, "events": report.events}
    return {"mutant": mutant, "protocol": protocol, "found": ", ".join(found), **counts}
