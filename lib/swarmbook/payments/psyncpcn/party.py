"""A party of PSyncPCN: committees do its work, so that it has little to do itself.

Serves: PSyncPCN in all its figures; the variants "V2" and "carried by parties" of the cost table (S4).
"""

from swarmbook.payments.outcomes import Decision
from swarmbook.payments.payment_network import World
from swarmbook.payments.psyncpcn.messages import AskNumber, CarriedCertificate, Number, Order, Share
from swarmbook.payments.psyncpcn.rules import Rules
from swarmbook.payments.signatures import Certificate, Tally
from swarmbook.payments.simulation import Node


class PSyncPCNParty(Node):
    """A party learns what committees decided, numbers its orders if asked, and carries certificates if it has to.

    tallies, certificates: by decision, channel and order. given: the numbers that it gave to orders, by channel and
    side. askers: the members that asked for a number, by channel and order.
    """

    __slots__ = ("world", "rules", "keys", "tallies", "certificates", "given", "askers")

    def __init__(self, name: str, world: World, rules: Rules) -> None:
        super().__init__(name, world.sim)
        self.world, self.rules, self.keys = world, rules, world.keys
        self.tallies: dict[tuple, Tally] = {}
        self.certificates: dict[tuple, Certificate] = {}
        self.given: dict[tuple[int, int], dict[object, int]] = {}
        self.askers: dict[tuple[int, object], list[Node]] = {}

    def begin(self, order: Order) -> None:
        """Send a signed order to the first committee of its path."""
        for member in self.world.members(order.cids[0]):
            self.send(member, order)

    def shared(self, sender: Node, share: Share) -> None:
        """Count a member's share; a quorum of them is a certificate."""
        about = share.what, share.cid, share.pid
        tally = self.tallies.get(about)
        if tally is None:
            tally = self.tallies[about] = Tally(self.world.topology.quorum)
        if sender.name not in self.world.committee(share.cid).members:
            return
        if not self.keys.verify(sender.name, ("share", *about), share.signature):
            return
        if not tally.add(about, sender.name, share.signature):
            return
        certificate = self.certificates[about] = tally.certificate(about, ("share", *about))
        self.sim.note(self, f"certificate {share.what}")
        payment = self.world.payment_of(share.pid)
        if payment is not None and share.what == Decision.PAID:
            if self.name == payment.path[0] and share.cid == payment.cids[0]:
                self.world.mark(payment, "receipt")
            if self.name == payment.path[-1] and share.cid == payment.cids[-1]:
                self.world.mark(payment, "receiver safe")
        order = share.order
        if self.rules.relay == "party" and order is not None and order.pid(self.keys) == share.pid:
            self.carry(share, certificate)

    def carry(self, share: Share, certificate: Certificate) -> None:
        """relay="party": hand a certificate to the committee on the other side of this party."""
        order = share.order
        if share.cid not in order.cids:
            return
        place = order.cids.index(share.cid)
        payer = self.world.side(share.cid, self.name) == order.payers[place]
        target = place + (-1 if payer else 1)
        if (share.what == Decision.LOCK) is payer or not 0 <= target < len(order.cids):
            return
        message = CarriedCertificate(share.what, share.cid, share.pid, order, certificate)
        for member in self.world.members(order.cids[target]):
            self.send(member, message)

    def asked(self, sender: Node, m: AskNumber) -> None:
        """V2: number an order for which an honest member asks, which is sure once f + 1 members did."""
        members = self.world.committee(m.cid).members
        if sender.name not in members or self.name not in self.world.topology.channels[m.cid][:2]:
            return
        asked = self.askers.setdefault((m.cid, m.pid), [])
        if sender in asked:
            return
        asked.append(sender)
        needed = self.world.topology.faulty + 1
        for member in asked if len(asked) == needed else [sender] * (len(asked) > needed):
            side = self.world.side(m.cid, self.name)
            given = self.given.setdefault((m.cid, side), {})
            number = given.setdefault(m.pid, len(given))
            signature = self.keys.sign(self.name, ("number", m.cid, side, m.pid, number))
            self.send(member, Number(m.cid, side, m.pid, number, signature))

    on = {Share: shared, AskNumber: asked}
