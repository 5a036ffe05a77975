"""Plausible mistakes in the protocols, one for each rule, and what the search for violations makes of each.

A mutant replaces a few attributes of the protocols' classes. `search` plays the same worlds for each of them
(`settings.PORTFOLIO`), with the same seed, and knows nothing of what the mutant is. A mistake comes with a change of a
protocol. So the search may begin with what it has kept on the protocol before the change (`kept`), and goes on from
there at random.

A rule that another rule covers can be left out alone without harm, by our reasoning. Such a mutant names what covers
it, and `both` searches with both left out, for a schedule that breaks something then and in neither case alone.

All mistakes are in one file, as one list.

Serves: the table of mutants; claim S11.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import Any, NamedTuple

from swarmbook.payments import channel_update
from swarmbook.payments.channel_committee import CommitteeMember
from swarmbook.payments.channel_update import ChannelEnd, ChannelParty
from swarmbook.payments.model_checking.deviations import Schedule
from swarmbook.payments.model_checking.network import kinds
from swarmbook.payments.model_checking.search import Report, guided, replayed
from swarmbook.payments.model_checking.settings import PORTFOLIO, everything
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.pbft import Agreement, Commit
from swarmbook.payments.psyncpcn import PSyncPCN, PSyncPCNMember, PSyncPCNParty
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


class Anything:
    """Equals everything."""

    __hash__ = None

    def __eq__(self, other):
        return True


def with_locks(name: str, value: object) -> Callable:
    """A method that asks a way to lock of which one method returns this."""

    def change(original, self, *arguments):
        scheme = self.locks
        self.locks = type("Broken", (type(scheme),), {name: lambda *_: value})()
        try:
            return original(self, *arguments)
        finally:
            self.locks = scheme

    return change


def trusting(original, self, *arguments):
    """A method that takes every signature for right."""
    node = getattr(self, "party", None) or self.member
    keys, node.keys = node.keys, copy(node.keys)
    node.keys.verify = lambda *_: True
    try:
        return original(self, *arguments)
    finally:
        node.keys = keys


def with_newest(original, self, sender, m):
    """A party that takes every message about turns as if it were about its present state."""
    original(self, sender, m._replace(seq=self.ends[m.cid].state.seq) if m.cid in self.ends else m)


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


def take_less(original, self, sender, m):
    if m.invoice in self.invoices:
        self.invoices[m.invoice] = self.invoices[m.invoice][0], 1
    original(self, sender, m)


def believe_the_lock(original, self, cid, lock, arrived):
    if lock.pid in self.inbound:
        self.inbound[lock.pid].incoming = cid, lock
    original(self, cid, lock, arrived)


def take_late_keys(original, self, transit, key):
    kept, transit.late, transit.done = (transit.late, transit.done), False, False
    original(self, transit, key)
    transit.late, transit.done = kept


def fail_after_all(original, self, transit):
    sent, transit.sent = transit.sent, None
    original(self, transit)
    transit.sent = sent


def keep_failures(original, self, end, update):
    if update.own or update.change.what != "fail":
        original(self, end, update)


def ask_for_what_both_signed(original, self, end, lock):
    if end.holds(lock):
        original(self, end, lock)


def number_unsigned(original, self, sender, m):
    statement = ("number", m.cid, m.side, m.pid, m.what, m.number)
    original(self, sender, m._replace(signature=self.keys.sign(self.parties[m.side].name, statement)))


def count_anybody(original, self, sender, share):
    committee, self.world.committee = self.world.committee, lambda cid: Committee((sender.name,))
    try:
        original(self, sender, share)
    finally:
        self.world.committee = committee


def believe_commits(original, self, sender, m):
    trusting(original, self, sender, m) if m.__class__ is Commit else original(self, sender, m)


def licence_for_all(original, self):
    proposal = self.proposals.get(self.view)
    if self.view and proposal is not None:
        self.licences.setdefault(self.view, (proposal.value, False))
    original(self)


def help_nobody(original, self, proof):
    self.committed.add(proof.view)
    original(self, proof)


def commit_unnoticed(original, self, *arguments):
    faulty, self.faulty = self.faulty, len(self.members)
    try:
        original(self, *arguments)
    finally:
        self.faulty = faulty


def pay_at_once(original, self, entry):
    original(self, entry)
    self.balances[:] = self.ledger


class Mutant(NamedTuple):
    """One mistake. rule: what the protocol says instead.

    cover: which other rule makes up for it, and why, if one does; covering: the patches that leave that one out.
    """

    protocol: str
    rule: str
    patches: list[Patch]
    cover: str = ""
    covering: tuple[Patch, ...] = ()


def _sync(rule: str, *patches: Patch, cover: str = "", covering: tuple[Patch, ...] = ()) -> Mutant:
    return Mutant("SyncPCN", rule, list(patches), cover, covering)


def _psync(rule: str, *patches: Patch, cover: str = "", covering: tuple[Patch, ...] = ()) -> Mutant:
    return Mutant("PSyncPCN", rule, list(patches), cover, covering)


PAYS_WITHOUT_KEY = returns(SyncPCNParty, "may_pay", True)
DISPUTES_HOLD_NOTHING = around(ChannelEnd, "proposed", without("disputes"))
ANYBODY_CONCEDES = around(SyncPCNMember, "conceded", concede_for_anybody)
KEY_LATE = (Timing, "key_by", lambda self, expiry: expiry + ALWAYS)
OPEN_LATE = (Timing, "open_by", lambda self, expiry: expiry)
SIGNS_EVERY_OPENING = around(
    SyncPCNParty, "allowed", lambda original, self, cid, change: change.what == "open" or original(self, cid, change)
)
CERTIFICATE_WITHOUT_KEY = returns(SyncPCNParty, "shown_decision", None)
VOTE_WITHOUT_KEY = around(
    SyncPCNParty, "voted", lambda original, self, sender, m: original(self, sender, m._replace(key=None))
)
BALANCES_AT_ONCE = around(PSyncPCNMember, "settle", pay_at_once)
TELLS_NOBODY = returns(PSyncPCNMember, "tell", None)

MUTANTS: dict[str, Mutant] = {
    # members of SyncPCN
    "members vote as often as they are asked": _sync(
        "A member votes once on a lock.", returns(SyncPCNMember, "may_vote", True)
    ),
    "members never vote": _sync("Members decide disputes.", returns(SyncPCNMember, "vote", None)),
    "members refund at any time": _sync(
        "A member votes for a refund when no claim can come any more.",
        with_clock(SyncPCNMember, "refund_asked", ALWAYS),
    ),
    "refunds begin at T_i": _sync(
        "A payer waits for the key of a claim made in time.", (Timing, "refund_wait", property(lambda self: 0.0))
    ),
    "members accept late claims": _sync(
        "A claim counts until T_i by a member's clock.", with_clock(SyncPCNMember, "claimed", NEVER)
    ),
    "members accept claims without the key": _sync(
        "A claim shows the key of the lock.", around(SyncPCNMember, "claimed", with_locks("opens", True))
    ),
    "members do not ask for the newest state": _sync(
        "A dispute is about a lock of the newest state.", returns(SyncPCNMember, "current", True)
    ),
    "members ignore numbers": _sync(
        "A member's state has the next number, never an earlier one.",
        returns(CommitteeMember, "next", True),
        returns(SyncPCNMember, "fresh", True),
    ),
    "members accept one signature of two": _sync(
        "A member accepts what both parties have signed.", returns(CommitteeMember, "signed", True)
    ),
    "the quorum is 2 f": _sync(
        "A quorum has 2 f + 1 members.", (Committee, "quorum", property(lambda self: 2 * self.faulty))
    ),
    "members let anybody concede": _sync(
        "Only the payer concedes.",
        ANYBODY_CONCEDES,
        cover="A payer signs no lock away without its key, whoever has conceded it.",
        covering=(PAYS_WITHOUT_KEY,),
    ),
    # certificates
    "certificates are not verified": _sync(
        "A decision needs the certificate of a quorum.", returns(Certificate, "verify", True)
    ),
    "certificates of states need one signature fewer": _sync(
        "A party's certificate has a quorum's signatures.", fewer("quorum", Tally)
    ),
    "a payee goes on before the certificate": _sync(
        "A payee goes on when a quorum holds the state with its lock.",
        (
            *(SyncPCNParty, "await_certificate"),
            lambda self, end, seq, change: self.secured(end.cid, change.lock, self.clock),
        ),
    ),
    # parties of SyncPCN
    "a key is not passed upstream": _sync(
        "Who learns a key opens the hop before.", returns(SyncPCNParty, "learn", None)
    ),
    "a key from a vote is not passed on": _sync("Votes carry the key to the payer.", VOTE_WITHOUT_KEY),
    "a key beside a certificate is not taken": _sync(
        "A decision that pays carries the key, so that the payer need not wait for votes to sign it.",
        CERTIFICATE_WITHOUT_KEY,
    ),
    "what the committee decided is not heeded": _sync(
        "A quorum's votes decide a lock.", returns(SyncPCNParty, "decided", None)
    ),
    "what the other party removed is not noticed": _sync(
        "A decided lock that the other party removed is passed on.", returns(SyncPCNParty, "left", None)
    ),
    "nobody asks for what the payer does not take back": _sync(
        "A payee asks for the refund that its payer does not sign.", returns(SyncPCNParty, "give_back", None)
    ),
    "a failed hop is not passed back": _sync(
        "Who cannot go on gives its incoming lock back.", returns(SyncPCNParty, "fail", None)
    ),
    "a payee never claims": _sync("A payee whose payer does not sign claims.", returns(SyncPCNParty, "claim", None)),
    "a payer never asks for its coins": _sync(
        "A payer asks for a refund at T_i + 2 delta.", returns(SyncPCNParty, "ask_refund", None)
    ),
    "a payer never concedes": _sync("A payer that has the key concedes.", returns(SyncPCNParty, "concede", None)),
    "a payer signs a paid lock away without its key": _sync(
        "A payer signs no lock away without its key.", PAYS_WITHOUT_KEY
    ),
    "a payer signs every opening": _sync(
        "A payer checks an opening's key and time.",
        SIGNS_EVERY_OPENING,
        cover="A payer signs no lock away without its key, and a wrong one teaches it none.",
        covering=(PAYS_WITHOUT_KEY,),
    ),
    "deadlines of two hops are not compared": _sync(
        "The outgoing hop expires the margin before the incoming one.", returns(Timing, "apart", True)
    ),
    "amounts of two hops are not compared": _sync(
        "The outgoing hop carries no more than the incoming one.",
        (SyncPCNParty, "fee", property(lambda self: -100, lambda self, fee: None)),
    ),
    "hops expire delta apart": _sync(
        "Hops expire 4 delta and twice the skew apart.", (Timing, "margin", property(lambda self: self.delta))
    ),
    # deadlines of SyncPCN
    "a claim is sent at T_i": _sync(
        "A claim is sent early enough to arrive by T_i.", (Timing, "claim_by", lambda self, expiry: expiry)
    ),
    "a lock is opened until T_i": _sync("A key is sent while a claim can still follow.", OPEN_LATE),
    "a key is taken at any time": _sync(
        "A payer takes a key until T_i + delta and the skew.",
        KEY_LATE,
        cover="In a dispute nothing is signed; until it begins there is time to claim upstream.",
        covering=(DISPUTES_HOLD_NOTHING,),
    ),
    # states of channels
    "a state may hold more than the channel": _sync("No balance is negative.", (channel_update, "follow", generous)),
    "a claim proves one state alone": _sync(
        "A claim proves the lock in the proposed state as well.",
        around(ChannelEnd, "proofs", lambda original, self, lock: original(self, lock)[:1]),
    ),
    "a lock's name is used twice": _sync(
        "A lock's name is used once in a channel.", around(ChannelEnd, "_followed", without("past"))
    ),
    "nothing is held back during a dispute": _sync("In a dispute nothing is signed.", DISPUTES_HOLD_NOTHING),
    "what had to wait is never signed": _sync(
        "What waited is signed when the wait is over.", returns(ChannelEnd, "release", None)
    ),
    "the step between two locks is not checked": _sync(
        "The key of the outgoing lock gives that of the incoming one.",
        around(SyncPCNParty, "told", with_locks("shifted", Anything())),
    ),
    "a lock is not compared with what the sender told": _sync(
        "A party goes on with the very lock of which the sender told it.",
        around(SyncPCNParty, "secured", believe_the_lock),
    ),
    "a receiver takes less than its invoice says": _sync(
        "A receiver gives its receipt for the whole amount of its invoice.",
        around(SyncPCNParty, "told", take_less),
    ),
    "a lock that nobody explains is kept": _sync(
        "A party fails a lock of which the sender has not told it.", returns(SyncPCNParty, "untold", None)
    ),
    "a key that comes too late is passed on": _sync(
        "Who has asked for a refund, or has given its incoming lock back, sends no key.",
        around(SyncPCNParty, "learn", take_late_keys),
    ),
    "who has sent the key gives the lock back": _sync(
        "Who has sent a key does not give the lock back.", around(SyncPCNParty, "fail", fail_after_all)
    ),
    "what the payee gives up is not passed back": _sync(
        "A payer whose payee gives a lock up gives its incoming one back.",
        around(SyncPCNParty, "certified", keep_failures),
    ),
    "a newer state is not learned from members": _sync(
        "Who is shown its own proposal with the other party's signature takes it.", returns(ChannelEnd, "learned", None)
    ),
    "a party forgets what was decided for it": _sync(
        "A payee that has a certificate of PAID signs no refund.", around(ChannelEnd, "decided", without("resolved"))
    ),
    "whoever asks at any state gets the turn": _sync(
        "A party gives its turn to who has asked at this very state.", around(ChannelParty, "asked", with_newest)
    ),
    "the other party's signature is not verified": _sync(
        "A state counts when both have signed it.", around(ChannelEnd, "cosigned", trusting)
    ),
    "no refund is asked for what was only proposed": _sync(
        "A payer asks for the refund of a lock that perhaps it alone has signed.",
        around(SyncPCNParty, "ask_refund", ask_for_what_both_signed),
    ),
    # members of PSyncPCN
    "members lock more than there is": _psync(
        "No more is locked than there is (L4).", returns(PSyncPCNMember, "available", True)
    ),
    "orders are not verified": _psync(
        "An order is signed by its sender (O1).", around(PSyncPCNMember, "entry", order_unsigned)
    ),
    "orders need not be sound": _psync(
        "An order takes nothing from those between (O1).", returns(PSyncPCN, "sound", True)
    ),
    "carried certificates are not verified": _psync(
        "A certificate has a quorum's signatures (Q1).", returns(Certificate, "verify", True)
    ),
    "one share is a quorum": _psync("A member acts on a quorum of shares (Q1).", lower("spare", 3, PSyncPCNMember)),
    "committees heed any other": _psync(
        "A member heeds the committees next to its own (Q1).", returns(PSyncPCNMember, "adjacent", True)
    ),
    "one share shows that others locked": _psync(
        "A member joins when f + 1 say that its committee has locked (L3).", lower("hint", 3, PSyncPCNMember)
    ),
    "members locked without do not join": _psync(
        "Who is told of the end first locks, and says so (L2, L3).",
        returns(PSyncPCNMember, "implies_lock", False),
        around(PSyncPCNMember, "settle", settle_silently),
    ),
    "a member aborts after it has reserved": _psync(
        "A member says one thing of an order (L1).",
        around(
            *(PSyncPCNMember, "decide"),
            lambda original, self, entry, lock: (
                original(self, entry, lock),
                self.share(entry, Decision.ABORT, back=True),
            ),
        ),
    ),
    "a member reserves twice": _psync(
        "A member reserves once for an order (L1).", around(PSyncPCNMember, "decide", act_twice)
    ),
    "a payment's coins do not arrive": _psync(
        "What the payer pays the payee gets (B1).", around(PSyncPCNMember, "settle", keep_from_payee)
    ),
    "members keep to themselves what they did": _psync(
        "A member says what it did (L1).", returns(PSyncPCNMember, "share", None)
    ),
    "a party's certificate needs one signature fewer": _psync(
        "A party's certificate has a quorum's signatures.", fewer("quorum", Tally)
    ),
    "coins set aside count as available": _psync(
        "What is reserved cannot be reserved again (L4).",
        (PSyncPCNMember, "available", lambda self, entry: self.ledger[entry.side] >= entry.amount),
    ),
    "numbers are not verified": _psync(
        "A number is signed by the payer (L4).", around(PSyncPCNMember, "numbered", number_unsigned)
    ),
    "members do not wait for the coins that a payer counts on": _psync(
        "What the payer has locked waits here for its coins (L4).",
        around(
            *(PSyncPCNMember, "available"),
            lambda original, self, entry: self.rules.ordering == "payer" or original(self, entry),
        ),
        cover="The coins come, and balances do not change before (B1).",
        covering=(BALANCES_AT_ONCE,),
    ),
    "a party counts anybody's shares": _psync(
        "A party's certificate has signatures of that committee.", around(PSyncPCNParty, "shared", count_anybody)
    ),
    "balances follow what is told at once": _psync(
        "Balances change when all that is known can be paid (B1).", BALANCES_AT_ONCE
    ),
    # agreement
    "commits are not verified": _psync(
        "A member counts commits whose signatures others can check (A1).",
        around(Agreement, "receive", believe_commits),
    ),
    "a later leader needs no new view": _psync(
        "In a later view a member backs what a NewView allows (A3).", around(Agreement, "_consider", licence_for_all)
    ),
    "who decides alone helps nobody": _psync(
        "Who has decided what it had not committed says so (A1).",
        around(Agreement, "_decide", help_nobody),
        cover="Those that wait for its commit ask for another leader, and are told.",
        covering=(TELLS_NOBODY,),
    ),
    "who waits tells nobody for what": _psync(
        "Who waits too long passes on what it waits with (A2).", returns(PSyncPCNMember, "remind", None)
    ),
    "a member that is behind does not notice": _psync(
        "Who hears of f + 1 commits, which a decided slot has, asks (A1).",
        returns(Agreement, "supported", False),
        around(Agreement, "_commit_vote", commit_unnoticed),
    ),
    "agreement needs one vote fewer": _psync("A quorum agrees (A3).", fewer("quorum", Agreement)),
    "a member commits what few prepared": _psync(
        "A member commits what a quorum has prepared (A3).", around(Agreement, "_commit", quorum_of(1))
    ),
    "a commit of one member decides": _psync(
        "A quorum of commits decides (A3).", around(Agreement, "_commit_vote", quorum_of(1))
    ),
    "what was decided is not proved": _psync(
        "Who shows a decision shows a quorum's commits (A1).", around(Agreement, "_told", quorum_of(0))
    ),
    "a member backs two values in a view": _psync(
        "A member backs one value in a view (A3).", around(Agreement, "_consider", back_again)
    ),
    "any value is acceptable": _psync(
        "A member backs a LOCK only if there are the coins (L4).", returns(PSyncPCNMember, "acceptable", True)
    ),
    "a new leader is free to choose": _psync(
        "A new leader proposes what may be decided (A3).", returns(Agreement, "_must", None)
    ),
    "what was prepared is not verified": _psync(
        "What was prepared is shown with a quorum's signatures (A3).", returns(Agreement, "_proven", True)
    ),
    "what was prepared is forgotten": _psync(
        "A member shows what it saw prepared to the next leader (A3).", around(Agreement, "_move", forget_prepared)
    ),
    "a new view needs no requests": _psync(
        "A new leader shows a quorum of requests (A3).", around(Agreement, "_new_view", trust_the_leader)
    ),
    "nobody waits for a leader": _psync(
        "Who waits too long asks for another leader.", returns(Agreement, "_timeout", None)
    ),
    "who is left behind is not told": _psync("Who has decided tells those that ask (A1).", TELLS_NOBODY),
}
VERSION = 7  # of what `noticed` gives: to be raised with every change of a protocol, of a mutant or of the search


@contextmanager
def patched(patches: Iterable[Patch]) -> Iterator[None]:
    """The protocols with some rules left out, and as they were afterwards. AttributeError if a rule is gone."""
    kept: list[tuple[Any, str, object]] = []
    handlers: list[tuple[dict, type, Callable]] = []
    try:
        for owner, attribute, value in patches:
            original = getattr(owner, attribute)
            kept.append((owner, attribute, vars(owner).get(attribute)))
            setattr(owner, attribute, value)
            for table in handled_by(owner):
                changed = [(kind, call) for kind, call in table.items() if call is original]
                handlers += [(table, kind, call) for kind, call in changed]
                table.update({kind: value for kind, _ in changed})
        yield
    finally:
        for table, kind, call in reversed(handlers):
            table[kind] = call
        for owner, attribute, value in reversed(kept):
            delattr(owner, attribute) if value is None else setattr(owner, attribute, value)


def mutated(name: str):
    """The protocols with one mistake."""
    return patched(MUTANTS[name].patches)


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


Start = Iterable[tuple[int, Schedule]]  # worlds by their number, and schedules


def search(protocol: str, schedules: int = 4000, seed: int = 0, start: Start = ()) -> Report:
    """Search the worlds of the portfolio, by at most so many schedules, until something is wrong (`guided`)."""
    return guided(PORTFOLIO[protocol], random.Random(seed), schedules=schedules, start=start)


@cache
def kept(protocol: str, schedules: int, seed: int = 0) -> Start:
    """The schedules that reached something new, of so many that were played on the protocol as it is."""
    return tuple(search(protocol, schedules, seed).kept)


def both(name: str, schedules: int = 4000, seed: int = 0, start: Start = ()) -> Report:
    """Search with a mutant's rule and the one that covers it left out.

    Stops with a schedule that breaks something then, and nothing where either of the two is left out alone.
    """
    mutant, report, start = MUTANTS[name], Report(), iter(start)
    while report.schedules < schedules and not report.found:
        with patched((*mutant.patches, *mutant.covering)):
            rng = random.Random(seed + report.schedules)
            left = schedules - report.schedules
            guided(PORTFOLIO[mutant.protocol], rng, schedules=left, report=report, start=start)
        for patches in (mutant.patches, mutant.covering):
            with patched(patches):
                report.found = [one for one in report.found if not replayed(one.setting, one.schedule)]
    return report


def noticed(mutant: str, schedules: int, seed: int = 0) -> dict[str, Any]:
    """What the search finds with a mutant: requirements and invariants by name, and how much it has played.

    mutant: one of `MUTANTS`, or a protocol's name for the protocol as it is, in all worlds of `settings.everything`.
    schedules: how many are played at most; the search of a mutant ends with the first violation, and begins with what
    was kept of as many that were played on the protocol as it is. The keys are "mutant", "protocol", "rule", "cover",
    "found", "both" (what is found if the covering rule is left out as well), "worlds", "kept" (with how many schedules
    it may begin), "schedules" and "events".
    """
    pair, start = Report(), ()
    if mutant in PORTFOLIO:
        one = Mutant(mutant, "", [])
        worlds = [setting for setting in everything() if setting.protocol == mutant]
        report = guided(worlds, random.Random(seed), schedules=schedules, first=False)
    else:
        one = MUTANTS[mutant]
        start = kept(one.protocol, schedules, seed)
        with mutated(mutant):
            report = search(one.protocol, schedules, seed + 1, start)
        if one.cover:
            pair = both(mutant, schedules, seed + 1, start)
    broken, broken_by_both = (
        ", ".join(sorted({kind for violation in found for kind in kinds(violation.violations)}))
        for found in (report.found, pair.found)
    )
    return {
        **{"mutant": mutant, "protocol": one.protocol, "rule": one.rule, "cover": one.cover},
        **{"found": broken, "both": broken_by_both},
        **{"worlds": report.worlds, "kept": len(start), "schedules": report.schedules + pair.schedules},
        "events": report.events + pair.events,
    }
