"""PSyncPCN: payments over several channels where the network is asynchronous and every channel is correct.

As the paper's abstract has it, committees of 3 f + 1 delegate to each other the duty of completing a payment; the
messages are our reconstruction. Members hold the balances of their channel, and parties have agreed beforehand that
payments may pass, since nobody can wait for them.

- **forwards**: the sender's signed `Order` goes to C_1; a member that can reserve the amount sends its share of
  LOCK_i to all of C_(i+1), which acts on a quorum of them
- **return**: C_n pays the receiver and sends PAID_n to C_(n-1), whose members turn reservations into transfers and
  send PAID_(n-1) on; shares of PAID_1 are the sender's receipt. ABORT travels the same way and releases
- no timers, except those of the view changes of `ordering="agreed"`
- `ordering` says how members of one committee see competing payments in the same order: not at all (`none`, V1), by
  the payer's numbers (`payer`, V2), or by agreement (`agreed`, V3, `swarmbook.payments.pbft`)
- `relay="party"` lets parties carry certificates; `commit="forward"` transfers from the sender's side once all is
  locked
"""

from collections.abc import Sequence
from typing import NamedTuple

from swarmbook.errors import ConfigError, unknown
from swarmbook.payments.payment_network import LOCKED, NEVER, PAID, REFUNDED, Payment, Topology, World, committee
from swarmbook.payments.pbft import Agreement, Commit, NewView, Prepare, PrePrepare, ViewChange
from swarmbook.payments.signatures import Certificate, Keys, Tally
from swarmbook.payments.simulation import Node, Simulation

LOCK, PAY, ABORT, READY = "LOCK", "PAID", "ABORT", "READY"
ORDERINGS = ("none", "payer", "agreed")
RELAYS = ("committee", "party")
COMMITS = ("return", "forward")


class Order(NamedTuple):
    """What the sender signs: channels and amounts hop by hop, sides of the payers, and a number used once."""

    cids: tuple[int, ...]
    amounts: tuple[int, ...]
    payers: tuple[int, ...]
    sender: str
    receiver: str
    nonce: int
    signature: object = None

    def statement(self) -> tuple:
        return ("order", self.cids, self.amounts, self.payers, self.sender, self.receiver, self.nonce)


class Share(NamedTuple):
    """A member's vote on what its committee decided on one order; shares to other committees bring the order along."""

    what: str
    cid: int
    pid: object
    order: Order | None
    signature: object


class Relay(NamedTuple):
    """A certificate of shares, carried by a party."""

    what: str
    cid: int
    pid: object
    order: Order
    certificate: Certificate


class AskNumber(NamedTuple):
    cid: int
    pid: object


class Number(NamedTuple):
    """The payer's place for an order among those that spend its side of a channel."""

    cid: int
    side: int
    pid: object
    number: int
    signature: object


class Entry:
    """What a member knows of one order. state: new, waiting, reserved, paid or aborted."""

    __slots__ = ("order", "state", "place")

    def __init__(self, order: Order, place: int) -> None:
        self.order, self.state, self.place = order, "new", place


class Member(Node):
    """A member of the committee of one channel, with its copy of the balances."""

    __slots__ = (
        *("world", "keys", "cid", "parties", "balances", "reserved", "entries", "shares", "agreements"),
        *("numbers", "next", "backing", "echoed"),
    )

    def __init__(self, name: str, world: "PSyncPCN", cid: int, parties: tuple[Node, Node], balances: list[int]):
        super().__init__(name, world.sim)
        self.world, self.keys, self.cid, self.parties = world, world.keys, cid, parties
        self.balances, self.reserved = list(balances), [0, 0]
        self.entries: dict[object, Entry] = {}
        self.shares: dict[tuple, set[str] | None] = {}  # None once acted upon
        self.agreements: dict[object, Agreement] = {}
        self.numbers: list[dict[int, object]] = [{}, {}]
        self.next = [0, 0]
        self.backing: dict[object, tuple[int, int]] = {}
        self.echoed: set[object] = set()

    # forwards

    def ordered(self, sender: Node, order: Order) -> None:
        entry = self.entry(order)
        if entry is not None and entry.place == 0:
            if self.world.echo and order.nonce not in self.echoed:
                self.echoed.add(order.nonce)
                for other in self.world.members(self.cid):
                    if other is not self:
                        self.send(other, order)
            self.consider(entry)

    def entry(self, order: Order) -> Entry | None:
        """What is known of an order; None if its signature is wrong or this channel is not on its path."""
        pid = self.world.pid(order)
        entry = self.entries.get(pid)
        if entry is None:
            if self.cid not in order.cids or not self.keys.verify(order.sender, order.statement(), order.signature):
                return None
            entry = self.entries[pid] = Entry(order, order.cids.index(self.cid))
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
        if len(names) < self.world.quorum:
            return
        self.shares[key] = None
        entry = self.entry(share.order)
        if entry is not None:
            self.told(entry, share.what, share.cid)

    def relayed(self, sender: Node, m: Relay) -> None:
        key = m.what, m.cid, m.pid
        if self.shares.get(key, ()) is None or self.world.pid(m.order) != m.pid or m.cid not in m.order.cids:
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
            and self.world.pid(order) == share.pid
            and share.cid in order.cids
            and sender.name in self.world.committee(share.cid).members
            and self.keys.verify(sender.name, ("share", share.what, share.cid, share.pid), share.signature)
        )

    def told(self, entry: Entry, what: str, cid: int) -> None:
        """Another committee has decided: the one before has locked, or the one behind has paid or aborted."""
        place = entry.order.cids.index(cid)
        if what == LOCK and self.adjacent(entry, place, -1):
            self.consider(entry)
        elif what == PAY and self.adjacent(entry, place, -1 if self.world.forward else 1):
            self.settle(entry)
        elif what == ABORT and self.adjacent(entry, place, 1):
            self.release(entry)
        elif what == READY and entry.place == 0 and place == len(entry.order.cids) - 1:
            self.settle(entry)

    def adjacent(self, entry: Entry, place: int, step: int) -> bool:
        """Whether a committee of the path is the one before this one (step -1) or behind it (1): no other counts."""
        return place == entry.place + step

    def consider(self, entry: Entry) -> None:
        """Lock or abort, as the way of ordering says."""
        if entry.state != "new":
            return
        entry.state = "waiting"
        pid, side = self.world.pid(entry.order), entry.order.payers[entry.place]
        if self.world.ordering == "payer":
            self.send(self.parties[side], AskNumber(self.cid, pid))
            self.take_turns(side)
        elif self.world.ordering == "agreed":
            agreement = self.agreement(pid)
            agreement.begin()
            if agreement.value is not None:
                self.agreed(pid, agreement.value)
        else:
            self.decide(entry, self.available(entry))

    def available(self, entry: Entry) -> bool:
        side = entry.order.payers[entry.place]
        return self.balances[side] - self.reserved[side] >= entry.order.amounts[entry.place]

    def decide(self, entry: Entry, lock: bool) -> None:
        """Reserve and pass the duty on, or abort."""
        if entry.state != "waiting":
            return
        last = entry.place == len(entry.order.cids) - 1
        if not lock:
            entry.state = "aborted"
            self.sim.note(self, "aborts")
            self.world.mark(self.world.payment_of(self.world.pid(entry.order)), "too little")
            self.share(entry, ABORT, back=True)
            return
        self.reserved[entry.order.payers[entry.place]] += entry.order.amounts[entry.place]
        entry.state = "reserved"
        self.sim.note(self, "reserves")
        if not last:
            self.share(entry, LOCK, back=False)
        elif self.world.forward and entry.place > 0:
            self.share(entry, READY, back=False)
        else:
            self.settle(entry)

    # return

    def settle(self, entry: Entry) -> None:
        """Turn the reservation into a transfer, and say so."""
        if entry.state in ("paid", "aborted"):
            return
        side, amount = entry.order.payers[entry.place], entry.order.amounts[entry.place]
        if entry.state == "reserved":
            self.reserved[side] -= amount
        entry.state = "paid"
        self.balances[side] -= amount
        self.balances[1 - side] += amount
        self.sim.note(self, "pays")
        self.world.mark(self.world.payment_of(self.world.pid(entry.order)), "settled", last=True)
        self.share(entry, PAY, back=not self.world.forward)

    def release(self, entry: Entry) -> None:
        if entry.state in ("paid", "aborted"):
            return
        if entry.state == "reserved":
            self.reserved[entry.order.payers[entry.place]] -= entry.order.amounts[entry.place]
        entry.state = "aborted"
        self.sim.note(self, "releases")
        self.share(entry, ABORT, back=True)

    def share(self, entry: Entry, what: str, back: bool) -> None:
        """Sign what this committee did; send it to the next committee on its way, and results to both parties."""
        world, order, pid = self.world, entry.order, self.world.pid(entry.order)
        signature = self.keys.sign(self.name, ("share", what, self.cid, pid))
        share = Share(what, self.cid, pid, order, signature)
        target = 0 if what == READY else entry.place + (-1 if back else 1)
        send = self.sim.send
        payer, payee = self.parties[order.payers[entry.place]], self.parties[1 - order.payers[entry.place]]
        if world.relay == "party":
            send(self, payer if back else payee, share)
            if what == PAY and entry.place == len(order.cids) - 1:
                send(self, payee, share)  # the receiver's notice
            return
        if 0 <= target < len(order.cids):
            self.sim.send_all(self, world.members(order.cids[target]), share)
        if what in (PAY, ABORT):
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
            if entry is None or entry.state == "new":
                return
            self.next[side] += 1
            self.decide(entry, self.available(entry))

    def agreement(self, pid: object) -> Agreement:
        """V3: this member's part in agreeing on one order."""
        if pid not in self.agreements:
            self.agreements[pid] = Agreement(self, self.world.members(self.cid), pid, self.world.view_timeout)
        return self.agreements[pid]

    def acceptable(self, pid: object, value: str) -> bool:
        """Whether this member may back a value: it can always abort, but lock only what it can reserve."""
        if value == ABORT:
            return True
        entry = self.entries[pid]
        side, amount = entry.order.payers[entry.place], entry.order.amounts[entry.place]
        others = sum(held for key, (of, held) in self.backing.items() if of == side and key != pid)
        return self.balances[side] - self.reserved[side] - others >= amount

    def backed(self, pid: object, value: str) -> None:
        """Keep an amount aside for as long as a LOCK that this member has backed may still be decided."""
        entry = self.entries[pid]
        if value == LOCK:
            self.backing[pid] = entry.order.payers[entry.place], entry.order.amounts[entry.place]

    def agreed(self, pid: object, value: str) -> None:
        entry = self.entries.get(pid)
        self.backing.pop(pid, None)
        if entry is not None:
            if entry.state == "new":
                entry.state = "waiting"
            self.decide(entry, value == LOCK)

    def agreeing(self, sender: Node, m: object) -> None:
        if sender.name in self.world.committee(self.cid).members and m.cid == self.cid:
            self.agreement(m.pid).receive(sender, m)


Member.on = {
    Order: Member.ordered,
    Share: Member.shared,
    Relay: Member.relayed,
    Number: Member.numbered,
    **dict.fromkeys((PrePrepare, Prepare, Commit, ViewChange, NewView), Member.agreeing),
}


class Party(Node):
    """A party learns what committees decided, numbers its orders if asked, and carries certificates if it has to."""

    __slots__ = ("world", "keys", "tallies", "certificates", "given", "askers")

    def __init__(self, name: str, world: "PSyncPCN") -> None:
        super().__init__(name, world.sim)
        self.world, self.keys = world, world.keys
        self.tallies: dict[tuple, Tally] = {}
        self.certificates: dict[tuple, Certificate] = {}
        self.given: dict[tuple[int, int], dict[object, int]] = {}
        self.askers: dict[tuple[int, object], list[Node]] = {}

    def shared(self, sender: Node, share: Share) -> None:
        about = share.what, share.cid, share.pid
        tally = self.tallies.get(about)
        if tally is None:
            tally = self.tallies[about] = Tally(self.world.quorum)
        if sender.name not in self.world.committee(share.cid).members:
            return
        if not self.keys.verify(sender.name, ("share", *about), share.signature):
            return
        if not tally.add(about, sender.name, share.signature):
            return
        certificate = self.certificates[about] = tally.certificate(about, ("share", *about))
        self.sim.note(self, f"certificate {share.what}")
        payment = self.world.payment_of(share.pid)
        if payment is not None and share.what == PAY:
            if self.name == payment.path[0] and share.cid == payment.cids[0]:
                self.world.mark(payment, "receipt")
            if self.name == payment.path[-1] and share.cid == payment.cids[-1]:
                self.world.mark(payment, "receiver safe")
        order = share.order
        if self.world.relay == "party" and order is not None and self.world.pid(order) == share.pid:
            self.carry(share, certificate)

    def carry(self, share: Share, certificate: Certificate) -> None:
        """relay="party": hand a certificate to the committee on the other side of this party."""
        order = share.order
        if share.cid not in order.cids:
            return
        place = order.cids.index(share.cid)
        payer = self.world.side(share.cid, self.name) == order.payers[place]
        target = place + (-1 if payer else 1)
        if (share.what == LOCK) is payer or not 0 <= target < len(order.cids):
            return
        message = Relay(share.what, share.cid, share.pid, order, certificate)
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


Party.on = {Share: Party.shared, AskNumber: Party.asked}


class PSyncPCN(World):
    """The protocol over a topology; see the module for `ordering`, `relay` and `commit`.

    echo: members of the first committee pass a sender's order on among themselves, so that one that reaches only some
    cannot leave a reservation behind. view_timeout: first waiting time of `ordering="agreed"`.
    """

    name = "PSyncPCN"

    def __init__(
        self,
        topology: Topology,
        sim: Simulation | None = None,
        keys: Keys | None = None,
        seed: int = 0,
        ordering: str = "none",
        relay: str = "committee",
        commit: str = "return",
        echo: bool = False,
        view_timeout: float = 8.0,
    ) -> None:
        super().__init__(topology, sim, keys, seed)
        for what, value, known in (
            ("ordering", ordering, ORDERINGS),
            ("relay", relay, RELAYS),
            ("commit", commit, COMMITS),
        ):
            if value not in known:
                raise ConfigError(unknown(what, value, known))
        if relay == "party" and commit == "forward":
            raise ConfigError('commit="forward" needs relay="committee": no party sits between C_n and C_1')
        self.ordering, self.relay, self.forward, self.echo = ordering, relay, commit == "forward", echo
        self.view_timeout = view_timeout
        self.quorum = topology.size - topology.faulty
        self._members: dict[int, list[Member]] = {}
        self._committees: dict[int, object] = {}
        self._payments: dict[object, Payment] = {}
        self._pids: dict[Order, object] = {}

    def new_party(self, name: str) -> Party:
        return Party(name, self)

    def members(self, cid: int) -> list[Member]:
        if cid not in self._members:
            left, right, *balances = self.topology.channels[cid]
            parties = self.party(left), self.party(right)
            self._members[cid] = [Member(name, self, cid, parties, balances) for name in self.committee(cid).members]
        return self._members[cid]

    def committee(self, cid: int):
        if cid not in self._committees:
            self._committees[cid] = committee(cid, self.topology.size)
        return self._committees[cid]

    def pid(self, order: Order) -> object:
        """H(order), so that a sender cannot give two meanings to one payment. In mock mode its nonce."""
        if self.keys.mode == "mock":
            return order.nonce
        if order not in self._pids:
            self._pids[order] = self.keys.digest(order.statement())
        return self._pids[order]

    def payment_of(self, pid: object) -> Payment | None:
        return self._payments.get(pid)

    def order(self, path: Sequence[str], amount: int, fee: int = 0) -> tuple[Payment, Order]:
        """A payment and its signed order, not sent yet."""
        payment = self.new_payment(path, amount, fee, self.sim.now)
        payers = tuple(self.side(cid, who) for cid, who in zip(payment.cids, path, strict=False))
        order = Order(payment.cids, payment.amounts, payers, path[0], path[-1], self.random())
        order = order._replace(signature=self.keys.sign(path[0], order.statement()))
        self._payments[self.pid(order)] = payment
        return payment, order

    def pay(self, path: Sequence[str], amount: int, at: float | None = None, fee: int = 0) -> Payment:
        """Start a payment, now or at a time."""
        payment, order = self.order(path, amount, fee)
        at = payment.start = self.sim.now if at is None else at
        sender = self.party(path[0])

        def begin() -> None:
            for member in self.members(order.cids[0]):
                sender.send(member, order)

        self.sim.timer(sender, at, begin)
        return payment

    def honest(self, cid: int) -> list[Member]:
        return [member for member in self.members(cid) if member.name not in self.faulty]

    def state(self, cid: int, pid: object) -> str:
        """What a quorum less the faulty of the honest members say of an order."""
        states = [m.entries[pid].state if pid in m.entries else "new" for m in self.honest(cid)]
        if not states:
            return NEVER
        common = max(sorted(set(states)), key=states.count)
        if common in ("paid", "aborted"):
            return PAID if common == "paid" else REFUNDED
        if "reserved" in states or "waiting" in states:
            return LOCKED
        return NEVER

    def outcomes(self, payment: Payment) -> list[str]:
        pid = next(pid for pid, other in self._payments.items() if other is payment)
        return [self.state(cid, pid) for cid in payment.cids]

    def balances(self, cid: int) -> tuple[int, int]:
        """Both balances, as most honest members have them."""
        views = [tuple(m.balances) for m in self.honest(cid)] or [tuple(m.balances) for m in self.members(cid)]
        return max(sorted(set(views)), key=views.count)

    def total(self, party: str) -> int:
        channels = enumerate(self.topology.channels)
        return sum(self.balances(cid)[c.index(party)] for cid, c in channels if party in c[:2])

    def receipt(self, payment: Payment) -> bool:
        sender = self.party(payment.path[0])
        return any(
            what == PAY and cid == payment.cids[0] and self._payments[pid] is payment
            for what, cid, pid in sender.certificates
        )

    def opposite(self) -> list[tuple]:
        """Orders on which a committee's members gave two opposite quorums, among all shares that anybody received."""
        found: dict[tuple, dict[str, set[str]]] = {}
        for party in self._parties.values():
            for (what, cid, pid), tally in party.tallies.items():
                votes = tally.votes.get((what, cid, pid), ())
                found.setdefault((cid, pid), {}).setdefault(what, set()).update(votes)
        return [
            (*key, PAY, ABORT)
            for key, votes in found.items()
            if len(votes.get(PAY, ())) >= self.quorum and len(votes.get(ABORT, ())) >= self.quorum
        ]
