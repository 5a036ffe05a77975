"""A member of PSyncPCN's committees: it holds the balances of its channel, and reserves and moves coins.

Serves: PSyncPCN in all its figures; claims S9, S10 and S12, and the mutant "committees heed any other" (S11).
"""

from swarmbook.payments.outcomes import Decision, Outcome
from swarmbook.payments.payment_network import World
from swarmbook.payments.pbft import Agreement, Commit, NewView, Prepare, PrePrepare, ViewChange
from swarmbook.payments.psyncpcn.messages import AskNumber, CarriedCertificate, Number, Order, Share
from swarmbook.payments.psyncpcn.rules import Rules
from swarmbook.payments.simulation import Node


class OrderState:
    """What a member has made of an order: WAITING for its turn or for agreement; PAID and ABORTED are final."""

    NEW = "new"
    WAITING = "waiting"
    RESERVED = "reserved"
    PAID = "paid"
    ABORTED = "aborted"


FINAL = {OrderState.PAID: Outcome.PAID, OrderState.ABORTED: Outcome.REFUNDED}


class Entry:
    """What a member knows of one order.

    pid: its name. place: of the member's channel on the order's path, from 0. side, amount: who pays in that channel,
    and how much.
    """

    __slots__ = ("order", "pid", "state", "place", "side", "amount")

    def __init__(self, order: Order, pid: object, place: int) -> None:
        self.order, self.pid, self.state, self.place = order, pid, OrderState.NEW, place
        self.side, self.amount = order.payers[place], order.amounts[place]


class PSyncPCNMember(Node):
    """A member of the committee of channel `cid`, with its own copy of the balances.

    balances, reserved: coins of the left and the right party. entries: what it knows of orders, by their names. shares:
    who said what of which order; None once acted upon. V2 (ordering="payer"): numbers: orders by side and number; next:
    the number whose turn it is. V3 (ordering="agreed"): agreements: its part in each; backing: side and amount that it
    keeps aside for an order on which it has voted LOCK. echoed: orders that it has passed on.
    """

    __slots__ = (
        *("world", "rules", "quorum", "keys", "cid", "parties", "balances", "reserved", "entries", "shares"),
        *("agreements", "numbers", "next", "backing", "echoed"),
    )

    def __init__(
        self, name: str, world: World, rules: Rules, cid: int, parties: tuple[Node, Node], balances: list[int]
    ) -> None:
        super().__init__(name, world.sim)
        self.world, self.rules, self.quorum, self.keys = world, rules, world.topology.quorum, world.keys
        self.cid, self.parties = cid, parties
        self.balances, self.reserved = list(balances), [0, 0]
        self.entries: dict[object, Entry] = {}
        self.shares: dict[tuple, set[str] | None] = {}
        self.agreements: dict[object, Agreement] = {}
        self.numbers: list[dict[int, object]] = [{}, {}]
        self.next = [0, 0]
        self.backing: dict[object, tuple[int, int]] = {}
        self.echoed: set[object] = set()

    # forwards

    def ordered(self, sender: Node, order: Order) -> None:
        """The sender's order, at the first committee of its path."""
        entry = self.entry(order)
        if entry is not None and entry.place == 0:
            if self.rules.echo and order.nonce not in self.echoed:
                self.echoed.add(order.nonce)
                for other in self.world.members(self.cid):
                    if other is not self:
                        self.send(other, order)
            self.consider(entry)

    def entry(self, order: Order) -> Entry | None:
        """What is known of an order; None if its signature is wrong or this channel is not on its path."""
        pid = order.pid(self.keys)
        entry = self.entries.get(pid)
        if entry is None:
            if self.cid not in order.cids or not self.keys.verify(order.sender, order.statement(), order.signature):
                return None
            entry = self.entries[pid] = Entry(order, pid, order.cids.index(self.cid))
        return entry

    def shared(self, sender: Node, share: Share) -> None:
        """A share of another committee: act when a quorum of its members say the same."""
        key = share.what, share.cid, share.pid
        names = self.shares.get(key, ())
        if names is None or sender.name in names or not self.valid(sender, share):
            return
        if not names:
            names = self.shares[key] = set()
        names.add(sender.name)
        if len(names) < self.quorum:
            return
        self.shares[key] = None
        entry = self.entry(share.order)
        if entry is not None:
            self.told(entry, share.what, share.cid)

    def carried(self, sender: Node, m: CarriedCertificate) -> None:
        """A certificate of another committee, which a party has carried here."""
        key = m.what, m.cid, m.pid
        if self.shares.get(key, ()) is None or m.order.pid(self.keys) != m.pid or m.cid not in m.order.cids:
            return
        if m.certificate.statement == ("share", *key) and m.certificate.verify(self.world.committee(m.cid), self.keys):
            self.shares[key] = None
            entry = self.entry(m.order)
            if entry is not None:
                self.told(entry, m.what, m.cid)

    def valid(self, sender: Node, share: Share) -> bool:
        """Whether this member of that committee signed this share, of an order that names both channels."""
        order = share.order
        return (
            order is not None
            and order.pid(self.keys) == share.pid
            and share.cid in order.cids
            and sender.name in self.world.committee(share.cid).members
            and self.keys.verify(sender.name, ("share", share.what, share.cid, share.pid), share.signature)
        )

    def told(self, entry: Entry, what: str, cid: int) -> None:
        """Another committee has decided: the one before has locked, or the one behind has paid or aborted."""
        place = entry.order.cids.index(cid)
        if what == Decision.LOCK and self.adjacent(entry, place, -1):
            self.consider(entry)
        elif what == Decision.PAID and self.adjacent(entry, place, -1 if self.rules.forward else 1):
            self.settle(entry)
        elif what == Decision.ABORT and self.adjacent(entry, place, 1):
            self.release(entry)
        elif what == Decision.READY and entry.place == 0 and place == len(entry.order.cids) - 1:
            self.settle(entry)

    def adjacent(self, entry: Entry, place: int, step: int) -> bool:
        """Whether a committee of the path is the one before this one (step -1) or behind it (1): no other counts."""
        return place == entry.place + step

    def consider(self, entry: Entry) -> None:
        """Lock or abort, as the way of ordering says."""
        if entry.state != OrderState.NEW:
            return
        entry.state = OrderState.WAITING
        pid, side = entry.pid, entry.side
        if self.rules.ordering == "payer":
            self.send(self.parties[side], AskNumber(self.cid, pid))
            self.take_turns(side)
        elif self.rules.ordering == "agreed":
            agreement = self.agreement(pid)
            agreement.begin()
            if agreement.value is not None:
                self.agreed(pid, agreement.value)
        else:
            self.decide(entry, self.available(entry))

    def available(self, entry: Entry) -> bool:
        """Whether the payer's side has the coins."""
        return self.balances[entry.side] - self.reserved[entry.side] >= entry.amount

    def decide(self, entry: Entry, lock: bool) -> None:
        """Reserve and pass the duty on, or abort."""
        if entry.state != OrderState.WAITING:
            return
        last = entry.place == len(entry.order.cids) - 1
        if not lock:
            entry.state = OrderState.ABORTED
            self.sim.note(self, "aborts")
            self.world.mark(self.world.payment_of(entry.pid), "too little")
            self.share(entry, Decision.ABORT, back=True)
            return
        self.reserved[entry.side] += entry.amount
        entry.state = OrderState.RESERVED
        self.sim.note(self, "reserves")
        if not last:
            self.share(entry, Decision.LOCK, back=False)
        elif self.rules.forward and entry.place > 0:
            self.share(entry, Decision.READY, back=False)
        else:
            self.settle(entry)

    # return

    def settle(self, entry: Entry) -> None:
        """Turn the reservation into a transfer, and say so."""
        if entry.state in FINAL:
            return
        side, amount = entry.side, entry.amount
        if entry.state == OrderState.RESERVED:
            self.reserved[side] -= amount
        entry.state = OrderState.PAID
        self.balances[side] -= amount
        self.balances[1 - side] += amount
        self.sim.note(self, "pays")
        self.world.mark(self.world.payment_of(entry.pid), "settled", last=True)
        self.share(entry, Decision.PAID, back=not self.rules.forward)

    def release(self, entry: Entry) -> None:
        """Give a reservation back, and say so."""
        if entry.state in FINAL:
            return
        if entry.state == OrderState.RESERVED:
            self.reserved[entry.side] -= entry.amount
        entry.state = OrderState.ABORTED
        self.sim.note(self, "releases")
        self.share(entry, Decision.ABORT, back=True)

    def share(self, entry: Entry, what: str, back: bool) -> None:
        """Sign what this committee did; send it to the next committee on its way, and results to both parties."""
        world, order, pid = self.world, entry.order, entry.pid
        signature = self.keys.sign(self.name, ("share", what, self.cid, pid))
        share = Share(what, self.cid, pid, order, signature)
        target = 0 if what == Decision.READY else entry.place + (-1 if back else 1)
        send = self.sim.send
        payer, payee = self.parties[entry.side], self.parties[1 - entry.side]
        if self.rules.relay == "party":
            send(self, payer if back else payee, share)
            if what == Decision.PAID and entry.place == len(order.cids) - 1:
                send(self, payee, share)  # the receiver's notice
            return
        if 0 <= target < len(order.cids):
            self.sim.send_all(self, world.members(order.cids[target]), share)
        if what in (Decision.PAID, Decision.ABORT):
            notice = Share(what, self.cid, pid, None, signature)
            send(self, payer, notice)
            send(self, payee, notice)

    # ordering

    def numbered(self, sender: Node, m: Number) -> None:
        """V2: take orders in the sequence that the payer gave them."""
        statement = ("number", m.cid, m.side, m.pid, m.number)
        if m.cid != self.cid or not self.keys.verify(self.parties[m.side].name, statement, m.signature):
            return
        self.numbers[m.side].setdefault(m.number, m.pid)
        self.take_turns(m.side)

    def take_turns(self, side: int) -> None:
        while (pid := self.numbers[side].get(self.next[side])) is not None:
            entry = self.entries.get(pid)
            if entry is None or entry.state == OrderState.NEW:
                return
            self.next[side] += 1
            self.decide(entry, self.available(entry))

    def agreement(self, pid: object) -> Agreement:
        """V3: this member's part in agreeing on one order."""
        if pid not in self.agreements:
            self.agreements[pid] = Agreement(self, self.world.members(self.cid), pid, self.rules.view_timeout)
        return self.agreements[pid]

    def acceptable(self, pid: object, value: str) -> bool:
        """Whether this member may back a value: it can always abort, but lock only what it can reserve."""
        if value == Decision.ABORT:
            return True
        entry = self.entries[pid]
        side, amount = entry.side, entry.amount
        others = sum(held for key, (of, held) in self.backing.items() if of == side and key != pid)
        return self.balances[side] - self.reserved[side] - others >= amount

    def backed(self, pid: object, value: str) -> None:
        """Keep an amount aside for as long as a LOCK that this member has backed may still be decided."""
        entry = self.entries[pid]
        if value == Decision.LOCK:
            self.backing[pid] = entry.side, entry.amount

    def agreed(self, pid: object, value: str) -> None:
        """V3: the committee has agreed on an order."""
        entry = self.entries.get(pid)
        self.backing.pop(pid, None)
        if entry is not None:
            if entry.state == OrderState.NEW:
                entry.state = OrderState.WAITING
            self.decide(entry, value == Decision.LOCK)

    def agreeing(self, sender: Node, m: object) -> None:
        """V3: a message of another member's part in agreeing."""
        if sender.name in self.world.committee(self.cid).members and m.cid == self.cid:
            self.agreement(m.pid).receive(sender, m)

    on = {
        Order: ordered,
        Share: shared,
        CarriedCertificate: carried,
        Number: numbered,
        **dict.fromkeys((PrePrepare, Prepare, Commit, ViewChange, NewView), agreeing),
    }
