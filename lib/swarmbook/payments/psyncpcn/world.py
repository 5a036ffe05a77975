"""PSyncPCN: payments over several channels where the network is asynchronous and every channel is correct.

As the paper's abstract has it, committees of 3 f + 1 members delegate to each other the duty of completing a payment.
The messages are our reconstruction. Members hold the balances of their channel, and parties have agreed beforehand that
payments may pass, since nobody can wait for them.

- **forwards**: The sender's signed `Order` goes to C_1, the committee of hop 1. A member that can reserve the amount
  sends its share of LOCK_1 to all of C_2, which acts on a quorum of them, and so on.
- **return**: C_n pays the receiver and sends PAID_n to C_(n-1), whose members turn reservations into transfers and send
  PAID_(n-1) on. Shares of PAID_1 are the sender's receipt. ABORT travels the same way and releases reservations.
- There are no timers, except those of the view changes of `ordering="agreed"`.
- `Rules` name the variants: how competing payments are ordered, who carries certificates, and when coins move.

These rules keep honest parties from losing coins, and let every payment end, while at most f members of each committee
are faulty. Nobody waits for more than 2 f + 1 of 3 f + 1 members, and two such quorums share an honest one.

- **O1** A member knows only orders that are signed by the sender, follow channels from the sender to the receiver, and
  take from nobody between more than they give. A share counts only with such an order.
- **Q1** A member acts on a quorum of shares of a neighbouring committee, and on none of any other.
- **L1** It sends LOCK_i when it has reserved the coins, for which it has seen a quorum of LOCK_(i-1).
- **L2** One that is told of the end before it has locked locks first, and sends its share: members behind it may have
  too few without.
- **L3** So does one that hears of the end from f + 1 members: one of them is honest, and has seen LOCK_i certified.
- **L4** No more is locked than there is. With "agreed" that is because every slot is voted on by members that have
  counted all slots before; with "payer" because the payer of a channel, which has to be honest, asks for no more; with
  "none" it is an assumption: the coins suffice for all that is asked of them, in any order.
- **B1** A member that is told of payments in another order than they were locked changes its balances when all of them
  together can be paid, so that none is ever negative.
- **A1** Who has decided a slot answers those that ask for another leader with the commits that decided it.
- **A2** Who waits too long passes on what it waits with: the order, and the certificate of the committee before.
- **A3** A slot is decided once, and an order in one slot (`swarmbook.payments.pbft`).

All members that are honest reach the end by them: if one honest member pays, f + 1 honest members of each committee
before have locked (L1), so that the others lock as well (L2, L3), all shares of LOCK are sent, and all of PAID. A
sender that is faulty and tells its order to some members alone can leave reservations behind with "none", unless
`echo=True`; with "agreed" A2 passes its order on.

Serves: PSyncPCN in every figure and table of the notebook; claims S2, S4, S5, S9, S10, S12 and S13.
"""

from collections.abc import Mapping, Sequence

from swarmbook.payments.outcomes import Decision, Outcome
from swarmbook.payments.payment_network import Payment, Topology, World
from swarmbook.payments.psyncpcn.entries import FINAL, OrderState
from swarmbook.payments.psyncpcn.member import PSyncPCNMember
from swarmbook.payments.psyncpcn.messages import Order
from swarmbook.payments.psyncpcn.party import PSyncPCNParty
from swarmbook.payments.psyncpcn.rules import Rules
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Simulation

ENDS = {**FINAL, OrderState.REFUSED: Outcome.REFUNDED}


class PSyncPCN(World):
    """The protocol over a topology. rules: the options of `Rules`, by name."""

    name, delegates = "PSyncPCN", True

    def __init__(
        self,
        topology: Topology,
        sim: Simulation | None = None,
        keys: Keys | None = None,
        seed: int = 0,
        **rules: object,
    ) -> None:
        super().__init__(topology, sim, keys, seed)
        self.rules = Rules(**rules)
        self._members: dict[int, list[PSyncPCNMember]] = {}
        self._sound: dict[int, tuple[Order, bool]] = {}  # by identity, since all members get to see the same object

    def new_party(self, name: str) -> PSyncPCNParty:
        return PSyncPCNParty(name, self, self.rules)

    def members(self, cid: int) -> list[PSyncPCNMember]:
        if cid not in self._members:
            left, right, *balances = self.topology.channels[cid]
            parties = self.party(left), self.party(right)
            names = self.committee(cid).members
            self._members[cid] = [PSyncPCNMember(name, self, self.rules, cid, parties, balances) for name in names]
        return self._members[cid]

    def order(self, path: Sequence[str], amount: int, fee: int = 0) -> tuple[Payment, Order]:
        """A payment and its signed order, not sent yet."""
        payment = self.new_payment(path, amount, fee, self.sim.now)
        payers = tuple(self.side(cid, who) for cid, who in zip(payment.cids, path, strict=False))
        order = Order(payment.cids, payment.amounts, payers, path[0], path[-1], self.random())
        order = order._replace(signature=self.keys.sign(path[0], order.statement()))
        self.register(order.pid(self.keys), payment)
        return payment, order

    def pay(self, path: Sequence[str], amount: int, at: float | None = None, fee: int = 0) -> Payment:
        """Start a payment, now or at a time."""
        at = self.starts(at)
        payment, order = self.order(path, amount, fee)
        payment.start = at
        sender = self.party(path[0])
        self.sim.timer(sender, at, sender.begin, (order,))
        return payment

    def sound(self, order: Order) -> bool:
        """Whether an order takes nothing from anybody who does not get it back (O1).

        Its channels lead from the sender to the receiver, none twice, and no hop carries more than the one before.
        """
        known = self._sound.get(id(order))
        if known is None:
            known = self._sound[id(order)] = order, self._follows_channels(order)
        return known[1]

    def has(self, cid: int) -> bool:
        """Whether there is a channel of this number."""
        return 0 <= cid < len(self.topology.channels)

    def _follows_channels(self, order: Order) -> bool:
        channels, who, left = self.topology.channels, order.sender, None
        if not len(order.cids) == len(order.amounts) == len(order.payers) == len(set(order.cids)) > 0:
            return False
        for cid, amount, payer in zip(order.cids, order.amounts, order.payers, strict=True):
            if not 0 <= cid < len(channels) or payer not in (0, 1) or channels[cid][payer] != who:
                return False
            if amount < 1 or left is not None and amount > left:
                return False
            who, left = channels[cid][1 - payer], amount
        return who == order.receiver

    def outcome(self, cid: int, pid: object) -> str:
        """How a hop stands, as most honest members of its committee have it."""
        states = [m.entries[pid].state if pid in m.entries else OrderState.NEW for m in self.honest(cid)]
        if not states:
            return Outcome.NEVER_LOCKED
        ends = [ENDS.get(state, state) for state in states]
        common = max(sorted(set(ends)), key=ends.count)
        if common in ENDS.values():
            return common
        if OrderState.RESERVED in states or OrderState.WAITING in states:
            return Outcome.LOCKED
        return Outcome.NEVER_LOCKED

    def reserved(self, cid: int, pid: object) -> bool:
        """Whether an honest member of a hop's committee has set coins aside for a payment, and not yet decided."""
        entries = (member.entries.get(pid) for member in self.honest(cid))
        return any(entry is not None and entry.state == OrderState.RESERVED for entry in entries)

    def outcomes(self, payment: Payment) -> list[str]:
        return [self.outcome(cid, payment.pids[0]) for cid in payment.cids]

    def balances(self, cid: int) -> tuple[int, ...]:
        """Both balances, after all payments of which most honest members know."""
        views = [tuple(m.ledger) for m in self.honest(cid) or self.members(cid)]
        return max(sorted(set(views)), key=views.count)

    def total(self, party: str) -> int:
        channels = enumerate(self.topology.channels)
        return sum(self.balances(cid)[c.index(party)] for cid, c in channels if party in c[:2])

    def receipt(self, payment: Payment) -> bool:
        sender = self.party(payment.path[0])
        return any(
            what == Decision.PAID and cid == payment.cids[0] and self.payment_of(pid) is payment
            for what, cid, pid in sender.certificates
        )

    # what verdicts ask of the committees

    def opposite(self) -> list[tuple]:
        """Orders on which a committee's members gave two opposite quorums, among all shares that any party received."""
        found: dict[tuple, dict[str, set[str]]] = {}
        for party in self._parties.values():
            for (what, cid, pid), tally in party.tallies.items():
                votes = tally.votes.get((what, cid, pid), ())
                found.setdefault((cid, pid), {}).setdefault(what, set()).update(votes)
        opposite = Decision.PAID, Decision.ABORT
        return [
            (*key, *opposite)
            for key, votes in found.items()
            if all(len(votes.get(decision, ())) >= self.topology.quorum for decision in opposite)
        ]

    def stale_closes(self, cid: int) -> list[tuple[str, str]]:
        """Certified payments that fewer than f + 1 honest members know of, so that a quorum may close without them."""
        missed = []
        for name in sorted({name for channel in self.topology.channels for name in channel[:2]} - self.faulty):
            for what, of, pid in self.party(name).certificates:
                if what != Decision.PAID or of != cid:
                    continue
                known = sum(m.entries[pid].state == OrderState.PAID for m in self.honest(cid) if pid in m.entries)
                if known <= self.topology.faulty:
                    missed.append((name, f"{known} honest members of C{cid + 1} know of a payment"))
        return missed

    def invariants(self, cid: int) -> list[str]:
        wrong, capacity = [], sum(self.topology.channels[cid][2:])
        for member in self.honest(cid):
            wrong += [f"I1: {member} {member.balances}"] * (sum(member.balances) != capacity)
            wrong += [f"I2: {member} {member.balances}"] * (min(member.balances) < 0)
        return wrong

    def progress(self, member: PSyncPCNMember) -> tuple[int, Mapping[object, str]]:
        return 0, {pid: entry.state for pid, entry in member.entries.items() if entry.state in FINAL}
