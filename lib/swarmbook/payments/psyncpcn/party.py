"""A party of PSyncPCN: committees do its work, so that it has little to do itself.

Serves: PSyncPCN in all its figures; the variants "V2" and "carried by parties" of the cost table (S4).
"""

from swarmbook.payments.encoding import well_formed
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.payment_network import World
from swarmbook.payments.psyncpcn.messages import AskNumber, CarriedCertificate, Number, Order, Share
from swarmbook.payments.psyncpcn.rules import Rules
from swarmbook.payments.signatures import Certificate, Tally
from swarmbook.payments.simulation import Node, parsed


class PSyncPCNParty(Node):
    """A party learns what committees decided, numbers its orders if asked, and carries certificates if it has to.

    tallies, certificates: by decision, channel and order. orders: those that it has been told of, by their names; it
    needs them if it carries certificates or numbers orders. given: what it has decided of orders, in the sequence of
    their numbers, by channel and side; coins: those that it has not given away there, with what it was certainly paid.
    askers: the members that asked for a number, by channel and order.
    """

    __slots__ = (
        "world",
        "rules",
        "keys",
        "tallies",
        "certificates",
        "orders",
        "given",
        "coins",
        "askers",
        "needs_orders",
    )

    def __init__(self, name: str, world: World, rules: Rules) -> None:
        super().__init__(name, world.sim)
        self.world, self.rules, self.keys = world, rules, world.keys
        self.tallies: dict[tuple, Tally] = {}
        self.certificates: dict[tuple, Certificate] = {}
        self.orders: dict[object, Order] = {}
        self.given: dict[tuple[int, int], dict[object, Number]] = {}
        self.coins: dict[tuple[int, int], int] = {}
        self.askers: dict[tuple[int, object], list[Node]] = {}
        self.needs_orders = rules.relay == "party" or rules.ordering == "payer"

    def begin(self, order: Order) -> None:
        """Send a signed order to the first committee of its path."""
        for member in self.world.members(order.cids[0]):
            self.send(member, order)

    def shared(self, sender: Node, share: Share) -> None:
        """Count a member's share; a quorum of them is a certificate.

        A party that carries certificates or numbers orders counts a share only with a sound order: it needs the order.
        """
        if self.sim.parses and not well_formed(share):
            return
        what, cid, pid, order, signature = share
        about = what, cid, pid
        tally = self.tallies.get(about)
        if tally is None:
            if not self.world.has(cid):
                return
            if self.needs_orders:
                order = self.order(pid, order)
                if order is None or cid not in order.cids:
                    return
            tally = self.tallies[about] = Tally(self.world.topology.quorum)
        name, statement = sender.name, ("share", what, cid, pid)
        if name not in self.world.committee(cid).members or not self.keys.verify(name, statement, signature):
            return
        if not tally.add(about, name, signature):
            return
        certificate = self.certificates[about] = tally.certificate(about, statement)
        if self.sim.trace is not None:
            self.sim.note(self, f"certificate {what}")
        payment = self.world.payment_of(pid)
        if payment is not None and what == Decision.PAID:
            if self.name == payment.path[0] and cid == payment.cids[0]:
                self.world.mark(payment, "receipt")
            if self.name == payment.path[-1] and cid == payment.cids[-1]:
                self.world.mark(payment, "receiver safe")
        if self.rules.relay == "party":
            self.carry(share, self.orders[pid], certificate)
        if self.rules.ordering == "payer":
            self.count(share, self.orders[pid])

    def order(self, pid: object, order: Order | None) -> Order | None:
        """The order of this name, if this party has been told of it now or before, and it is sound and signed."""
        if pid in self.orders or order is None:
            return self.orders.get(pid)
        named = self.world.sound(order) and order.pid(self.keys) == pid
        if named and self.keys.verify(order.sender, order.statement(), order.signature):
            self.orders[pid] = order
            return order
        return None

    def carry(self, share: Share, order: Order, certificate: Certificate) -> None:
        """relay="party": hand a certificate to the committee on the other side of this party."""
        place = order.cids.index(share.cid)
        payer = self.world.side(share.cid, self.name) == order.payers[place]
        target = place + (-1 if payer else 1)
        if (share.what == Decision.LOCK) is payer or not 0 <= target < len(order.cids):
            return
        message = CarriedCertificate(share.what, share.cid, share.pid, order, certificate)
        for member in self.world.members(order.cids[target]):
            self.send(member, message)

    @parsed
    def asked(self, sender: Node, m: AskNumber) -> None:
        """V2: number an order for which an honest member asks, which is sure once f + 1 members did."""
        members, order = self.world.committee(m.cid).members, self.order(m.pid, m.order)
        if sender.name not in members or order is None or m.cid not in order.cids:
            return
        side = order.payers[order.cids.index(m.cid)]
        if self.world.topology.channels[m.cid][side] != self.name:
            return
        asked = self.askers.setdefault((m.cid, m.pid), [])
        if sender in asked:
            return
        asked.append(sender)
        needed = self.world.topology.faulty + 1
        for member in asked if len(asked) == needed else [sender] * (len(asked) > needed):
            self.send(member, self.number(m.cid, side, m.pid))

    def number(self, cid: int, side: int, pid: object) -> Number:
        """V2: the next number, and LOCK if this party has the coins by all that it can prove; once for each order."""
        given = self.given.setdefault((cid, side), {})
        if pid not in given:
            amount, coins = self.amount(cid, pid), self.coins.setdefault((cid, side), self.initial(cid, side))
            what = Decision.LOCK if amount <= coins else Decision.ABORT
            self.coins[cid, side] -= amount * (what == Decision.LOCK)
            signature = self.keys.sign(self.name, ("number", cid, side, pid, what, len(given)))
            given[pid] = Number(cid, side, pid, what, len(given), signature)
        return given[pid]

    def count(self, share: Share, order: Order) -> None:
        """V2: coins that a certificate gives this party: those paid to it, and those of what it locked in vain."""
        cid, pid = share.cid, share.pid
        payer, side = order.payers[order.cids.index(cid)], self.world.side(cid, self.name)
        number = self.given.get((cid, side), {}).get(pid)
        paid = share.what == Decision.PAID and payer != side
        back = share.what == Decision.ABORT and number is not None and number.what == Decision.LOCK
        if paid or back:
            coins = self.coins.setdefault((cid, side), self.initial(cid, side))
            self.coins[cid, side] = coins + self.amount(cid, pid)

    def initial(self, cid: int, side: int) -> int:
        return self.world.topology.channels[cid][2 + side]

    def amount(self, cid: int, pid: object) -> int:
        order = self.orders[pid]
        return order.amounts[order.cids.index(cid)]

    on = {Share: shared, AskNumber: asked}
