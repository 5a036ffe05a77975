"""A member of PSyncPCN's committees: it holds the balances of its channel, and reserves and moves coins.

`psyncpcn.world` lists the rules, to which the names in brackets refer.

Serves: PSyncPCN in all its figures; claims S9, S10 and S12, and the mutant "committees heed any other" (S11).
"""

from swarmbook.payments.encoding import new, well_formed
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.payment_network import World
from swarmbook.payments.pbft import MESSAGES
from swarmbook.payments.psyncpcn.entries import FINAL, UNLOCKED, UNSEEN, Entry, OrderState
from swarmbook.payments.psyncpcn.messages import AskNumber, CarriedCertificate, Number, Order, Share
from swarmbook.payments.psyncpcn.rules import Rules
from swarmbook.payments.psyncpcn.sequence import SequencingMember
from swarmbook.payments.simulation import Node, parsed


class PSyncPCNMember(SequencingMember):
    """A member of the committee of channel `cid`, with its own copy of the balances.

    balances: coins of the left and the right party, after payments that it has been told of and that together can be
    paid. ledger: the same after all of which it has been told; a side is below 0 there while a payment is known before
    the one whose coins it spends. reserved: coins set aside. shares: by what is said of which order, the members that
    have not said it yet; None once a quorum has. spare: how many of these may be left then; hint: how many when f + 1
    have said it. echoed: orders that it has passed on. V2
    (ordering="payer"): numbers: orders and what the payer decided of them, by side and number; next: the number whose
    turn it is.
    """

    __slots__ = (
        *(
            "hint",
            "spare",
            "agrees",
            "forward",
            "parties",
            "balances",
            "ledger",
            "reserved",
            "shares",
            "numbers",
            "next",
        ),
        "echoed",
    )

    def __init__(
        self, name: str, world: World, rules: Rules, cid: int, parties: tuple[Node, Node], balances: list[int]
    ) -> None:
        super().__init__(name, world, rules, cid)
        self.hint, self.spare = world.topology.size - self.few, world.topology.faulty
        self.agrees, self.forward = rules.ordering == "agreed", rules.forward
        self.parties = parties
        self.balances, self.ledger, self.reserved = list(balances), list(balances), [0, 0]
        self.shares: dict[tuple, set[str] | None] = {}
        self.numbers: list[dict[int, tuple[object, str]]] = [{}, {}]
        self.next = [0, 0]
        self.echoed: set[object] = set()

    # forwards

    @parsed
    def ordered(self, sender: Node, order: Order) -> None:
        """The sender's order, at the first committee of its path, or what an agreed decision is about (V3)."""
        entry = self.entry(order)
        if entry is None:
            return
        if entry.place == 0:
            if self.rules.echo and entry.pid not in self.echoed:
                self.echoed.add(entry.pid)
                for other in self.world.members(self.cid):
                    if other is not self:
                        self.send(other, order)
            self.consider(entry)
        if self.agrees and (agreement := self.agreements.get(self.slot)) is not None and agreement.value is not None:
            self.decided()  # which has waited for this order

    def entry(self, order: Order) -> Entry | None:
        """What is known of an order; None if it is not sound and signed, or this channel is not on its path (O1)."""
        pid = order.pid(self.keys)
        return self.entries.get(pid) or self.enter(pid, order)

    def enter(self, pid: object, order: Order) -> Entry | None:
        """Note an order of this name that is new here, if it is sound and signed and this channel is on its path."""
        if self.cid not in order.cids or not self.world.sound(order):
            return None
        if not self.keys.verify(order.sender, order.statement(), order.signature):
            return None
        entry = self.entries[pid] = Entry(order, pid, order.cids.index(self.cid))
        return entry

    def shared(self, sender: Node, share: Share) -> None:
        """A share of another committee: act when a quorum of its members say the same (Q1), or f + 1 do (L3).

        A share counts only with an order that is sound, so that no faulty member can spoil a quorum with another one.
        """
        if self.sim.parses and not well_formed(share):
            return
        what, cid, pid, _, signature = share
        said = "share", what, cid, pid
        missing = self.shares.get(said, UNSEEN)
        if not missing:
            if missing is None or not (missing := self.awaited(share)):
                return
            self.shares[said] = missing
        name = sender.name
        if name not in missing or not self.keys.verify(name, said, signature):
            return
        missing.remove(name)
        if self.agrees and what == Decision.LOCK:
            self.entries[pid].prove(cid, name, signature)
        left = len(missing)
        if left <= self.spare:
            self.shares[said] = None
            self.told(self.entries[pid], what, cid)
        elif left == self.hint:
            entry = self.entries[pid]
            if entry.state in UNLOCKED and self.implies_lock(entry, what, cid):
                self.join(entry)

    def awaited(self, share: Share) -> set[str]:
        """Who has to say what is said first here: nobody, if it is about no sound order with both channels (O1)."""
        entry = self.entries.get(share.pid) or self.introduced(share.pid, share.order)
        if entry is None or share.cid not in entry.order.cids:
            return set()
        return set(self.world.committee(share.cid).members)

    def introduced(self, pid: object, order: Order | None) -> Entry | None:
        """What is known of an order that comes with a message about `pid`, if that is its name."""
        named = order is not None and self.world.sound(order) and order.pid(self.keys) == pid
        return self.enter(pid, order) if named else None

    @parsed
    def carried(self, sender: Node, m: CarriedCertificate) -> None:
        """A certificate of another committee, which a party or another member has carried here."""
        said = "share", m.what, m.cid, m.pid
        if self.shares.get(said, UNSEEN) is None:
            return
        entry = self.entries.get(m.pid) or self.introduced(m.pid, m.order)
        if entry is None or m.cid not in entry.order.cids or m.certificate.statement != said:
            return
        if m.certificate.verify(self.world.committee(m.cid), self.keys):
            self.shares[said] = None
            if m.what == Decision.LOCK and m.cid == entry.before:
                entry.evidence = m.certificate.votes
            self.told(entry, m.what, m.cid)

    def told(self, entry: Entry, what: str, cid: int) -> None:
        """Another committee has decided: the one before has locked, or the one behind has paid or aborted."""
        place = entry.order.cids.index(cid)
        if what == Decision.LOCK and self.adjacent(entry, place, -1):
            self.consider(entry)
        elif what == Decision.PAID and self.adjacent(entry, place, -1 if self.forward else 1):
            self.settle(entry)
        elif what == Decision.ABORT and self.adjacent(entry, place, 1):
            self.release(entry)
        elif what == Decision.READY and entry.place == 0 and place == len(entry.order.cids) - 1:
            self.settle(entry)

    def implies_lock(self, entry: Entry, what: str, cid: int) -> bool:
        """Whether an honest member of that committee says this only when this member's committee has locked."""
        place = entry.order.cids.index(cid)
        if what == Decision.PAID:
            return self.adjacent(entry, place, -1 if self.forward else 1)
        if what == Decision.ABORT:
            return self.adjacent(entry, place, 1)
        return what == Decision.READY and entry.place == 0 and place == len(entry.order.cids) - 1

    def adjacent(self, entry: Entry, place: int, step: int) -> bool:
        """Whether a committee of the path is the one before this one (step -1) or behind it (1): no other counts."""
        return place == entry.place + step

    def consider(self, entry: Entry) -> None:
        """Lock or abort, as the way of ordering says."""
        if self.agrees:
            self.wait_for_slot(entry)
        if entry.state != OrderState.NEW:
            return
        entry.state = OrderState.WAITING
        if self.rules.ordering == "payer":
            self.send(self.parties[entry.side], AskNumber(self.cid, entry.pid, entry.order))
            self.take_turns(entry.side)
        elif self.rules.ordering == "none":
            self.decide(entry, self.available(entry))

    def available(self, entry: Entry) -> bool:
        """Whether the payer's side has the coins."""
        return self.ledger[entry.side] - self.reserved[entry.side] >= entry.amount

    def decide(self, entry: Entry, lock: bool) -> None:
        """Reserve and pass the duty on, or abort."""
        if entry.state != OrderState.WAITING:
            return
        if lock:
            self.lock(entry)
            return
        entry.state = OrderState.REFUSED if self.rules.ordering == "none" else OrderState.ABORTED
        self.sim.note(self, "aborts")
        self.world.mark(self.world.payment_of(entry.pid), "too little")
        self.share(entry, Decision.ABORT, back=True)

    def lock(self, entry: Entry) -> None:
        """Reserve the coins and say so (L1). The last committee of a path pays instead, and says that."""
        self.reserved[entry.side] += entry.amount
        entry.state = OrderState.RESERVED
        if self.sim.trace is not None:
            self.sim.note(self, "reserves")
        if not entry.last:
            self.share(entry, Decision.LOCK, back=False)
        elif self.forward and entry.place > 0:
            self.share(entry, Decision.READY, back=False)
        else:
            self.settle(entry)

    def join(self, entry: Entry) -> None:
        """Lock what the committee has locked without this member, whose share others may need (L2, L3)."""
        if entry.state in UNLOCKED:
            self.lock(entry)

    # return

    def settle(self, entry: Entry) -> None:
        """Turn the reservation into a transfer, and say so."""
        if entry.state != OrderState.RESERVED:
            self.join(entry)
            if entry.state in FINAL:
                return
        side, amount, ledger = entry.side, entry.amount, self.ledger
        self.reserved[side] -= amount
        entry.state = OrderState.PAID
        ledger[side] -= amount
        ledger[1 - side] += amount
        if ledger[0] >= 0 and ledger[1] >= 0:  # together, all that it was told of can be paid (B1)
            self.balances[:] = ledger
        if self.sim.trace is not None:
            self.sim.note(self, "pays")
        self.world.mark(self.world.payment_of(entry.pid), "settled", last=True)
        self.share(entry, Decision.PAID, back=not self.forward)
        if self.rules.ordering != "none":
            self.coins_came(1 - side)

    def release(self, entry: Entry) -> None:
        """Give a reservation back, and say so."""
        self.join(entry)
        if entry.state in FINAL:
            return
        self.reserved[entry.side] -= entry.amount
        entry.state = OrderState.ABORTED
        self.sim.note(self, "releases")
        self.share(entry, Decision.ABORT, back=True)
        if self.rules.ordering != "none":
            self.coins_came(entry.side)

    def share(self, entry: Entry, what: str, back: bool) -> None:
        """Sign what this committee did; send it to the next committee on its way, and results to both parties."""
        order, pid, rules, cid = entry.order, entry.pid, self.rules, self.cid
        signature = self.keys.sign(self.name, ("share", what, cid, pid))
        share = new(Share, (what, cid, pid, order, signature))
        target = 0 if what == Decision.READY else entry.place + (-1 if back else 1)
        payer, payee = self.parties[entry.side], self.parties[1 - entry.side]
        if rules.relay == "party":
            self.send(payer if back else payee, share)
            if what == Decision.PAID and entry.last:
                self.send(payee, share)  # the receiver's notice
            return
        if 0 <= target < len(order.cids):
            self.sim.send_all(self, self.world.members(order.cids[target]), share)
        if what in (Decision.PAID, Decision.ABORT):
            numbers = rules.ordering == "payer"  # a payer that counts its coins has to know the amounts
            notice = share if numbers else new(Share, (what, cid, pid, None, signature))
            self.sim.send_all(self, (payer, payee), notice)

    # ordering

    def coins_came(self, side: int) -> None:
        """What waits for coins of a side may go on."""
        if self.rules.ordering == "payer":
            self.take_turns(side)
        elif self.pending and self.slot in self.agreements:
            self.agreements[self.slot].advance()

    @parsed
    def numbered(self, sender: Node, m: Number) -> None:
        """V2: take orders in the sequence that the payer gave them, and lock those that it wants locked."""
        if self.rules.ordering != "payer":
            return
        statement = ("number", m.cid, m.side, m.pid, m.what, m.number)
        if m.cid != self.cid or not self.keys.verify(self.parties[m.side].name, statement, m.signature):
            return
        self.numbers[m.side].setdefault(m.number, (m.pid, m.what))
        self.take_turns(m.side)

    def take_turns(self, side: int) -> None:
        """V2: members lock exactly what the payer wants, each when it knows of the coins, so that none votes alone."""
        while (turn := self.numbers[side].get(self.next[side])) is not None:
            pid, what = turn
            entry = self.entries.get(pid)
            if entry is None or entry.state == OrderState.NEW:
                return
            if entry.side != side:  # a number of the payee, which decides nothing
                self.next[side] += 1
                continue
            lock = what == Decision.LOCK
            if lock and entry.state == OrderState.WAITING and not self.available(entry):
                return
            self.next[side] += 1
            self.decide(entry, lock)

    on = {
        Order: ordered,
        Share: shared,
        CarriedCertificate: carried,
        Number: numbered,
        **dict.fromkeys(MESSAGES, SequencingMember.agreeing),
    }
