"""V3: how members of one committee agree on the sequence of orders, slot by slot (ordering="agreed").

`pbft` decides what is in a slot. Here is what a member asks of it and makes of it: which orders wait, what it may back,
and what it does and says when a slot is decided. The names in brackets are rules of `psyncpcn.world`.

Serves: the row "PSyncPCN, V3" of the cost table (S4), and claim S9.
"""

from swarmbook.payments.outcomes import Decision
from swarmbook.payments.payment_network import World
from swarmbook.payments.pbft import Agreement, Decided, Value
from swarmbook.payments.psyncpcn.entries import Entry, OrderState
from swarmbook.payments.psyncpcn.messages import CarriedCertificate
from swarmbook.payments.psyncpcn.rules import Rules
from swarmbook.payments.signatures import Certificate, Keys
from swarmbook.payments.simulation import Node, parsed


class SequencingMember(Node):
    """A member of the committee of channel `cid`, as far as the sequence of its orders goes.

    entries: what it knows of orders, by their names. few: f + 1. colleagues: the names of all members; others: those
    that are not this one. slot: the first that it has not done; agreements: its part in each; pending: orders that wait
    for a slot.
    """

    __slots__ = (
        "world",
        "rules",
        "keys",
        "cid",
        "few",
        "colleagues",
        "others",
        "entries",
        "slot",
        "agreements",
        "pending",
    )

    def __init__(self, name: str, world: World, rules: Rules, cid: int) -> None:
        super().__init__(name, world.sim)
        self.world, self.rules, self.cid, self.few = world, rules, cid, world.topology.faulty + 1
        self.keys: Keys = world.keys
        self.colleagues = world.committee(cid).members
        self.others: list[Node] = []
        self.entries: dict[object, Entry] = {}
        self.slot = 0
        self.agreements: dict[int, Agreement] = {}
        self.pending: dict[object, Entry] = {}

    def available(self, entry: Entry) -> bool:
        """Whether the payer's side has the coins."""
        raise NotImplementedError

    def decide(self, entry: Entry, lock: bool) -> None:
        """Reserve and pass the duty on, or abort."""
        raise NotImplementedError

    def wait_for_slot(self, entry: Entry) -> None:
        """This member has a reason to lock: the order, or a certificate of the committee before."""
        if entry.placed or entry.pid in self.pending:
            return
        if entry.state == OrderState.NEW:
            entry.state = OrderState.WAITING
        self.pending[entry.pid] = entry
        agreement = self.agreement(self.slot)
        agreement.wake()
        agreement.advance()

    def agreement(self, slot: int) -> Agreement:
        """This member's part in deciding a slot."""
        if slot not in self.agreements:
            members = self.world.members(self.cid)
            if not self.others:
                self.others = [other for other in members if other is not self]
            self.agreements[slot] = Agreement(self, members, slot, self.rules.view_timeout)
        return self.agreements[slot]

    def choice(self) -> Value | None:
        """The first order that waits, and LOCK if this member has the coins or knows that it is locked."""
        for pid, entry in self.pending.items():
            lock = entry.state != OrderState.WAITING or self.available(entry)
            return pid, Decision.LOCK if lock else Decision.ABORT
        return None

    def acceptable(self, value: Value) -> bool:
        """Whether this member may back a value: an order that waits, and LOCK only if there are the coins.

        It may back ABORT although it knows from elsewhere that its committee has locked: f + 1 honest members have
        decided that then, and vote no more, so that ABORT cannot win (A3).
        """
        pid, what = value
        entry = self.pending.get(pid)
        if entry is None or what not in (Decision.LOCK, Decision.ABORT):
            return False
        return what == Decision.ABORT or entry.state != OrderState.WAITING or self.available(entry)

    def decided(self) -> None:
        """Do what the committee has decided, slot after slot, as soon as the orders are known."""
        while (agreement := self.agreements.get(self.slot)) is not None and agreement.value is not None:
            pid, what = agreement.value
            entry = self.entries.get(pid)
            if entry is None:  # it asks for the order if that does not come by itself
                agreement.wake()
                return
            self.slot += 1
            self.pending.pop(pid, None)
            if not entry.placed:
                entry.placed = True
                if entry.state == OrderState.NEW:
                    entry.state = OrderState.WAITING
                self.decide(entry, what == Decision.LOCK)
        if self.pending or agreement is not None:
            agreement = self.agreement(self.slot)
            if self.pending or agreement.supported():
                agreement.wake()
            agreement.advance()

    def remind(self) -> None:
        """Pass on what waits here for too long, so that all honest members wait for it (A2)."""
        for pid, entry in self.pending.items():
            message: object = entry.order
            if entry.before is not None:
                about = Decision.LOCK, entry.before, pid
                certificate = Certificate(("share", *about), entry.evidence)
                message = CarriedCertificate(*about, entry.order, certificate)
            for other in self.others:
                self.send(other, message)

    def tell(self, to: Node, proof: Decided) -> None:
        """Show a member that was left behind what was decided (A1), and the order, if this one has it."""
        entry = self.entries.get(proof.value[0])
        if entry is not None:
            self.send(to, entry.order)
        self.send(to, proof)

    @parsed
    def agreeing(self, sender: Node, m: object) -> None:
        """A message of another member's part in agreeing."""
        if not self.agrees or m.cid != self.cid or sender.name not in self.colleagues:
            return
        (self.agreements.get(m.slot) or self.agreement(m.slot)).receive(sender, m)
