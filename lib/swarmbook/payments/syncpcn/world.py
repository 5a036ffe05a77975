"""SyncPCN: payments over several channels where the network is synchronous and channels may be faulty.

The paper's abstract says as much, and that committees replace the blockchain in disputes, with privacy; messages,
locks and timeouts are our reconstruction:

- **setup**: when it is the sender's turn on its channel, it tells each party its two locks (`Setup`), so that those
  between can ask for their turn in time; hop i expires at T_i, `Timing.margin` before T_(i-1)
- **lock**, hop by hop: an update of the base layer that adds the lock; a payee signs every one, since a lock is in its
  favour, and holds the certificate before it goes on; a lock of which it has not been told, or too late, it fails
- **unlock**, backwards: the payee's update carries the key, and the payer opens its own hop at once
- **failure**: the payee's update removes the lock
- **claim**: if the payer does not sign, members that get the key by T_i on their clock vote PAID, once
- **refund**: at T_i + 2 delta the payer asks; members that have not voted vote REFUNDED, once
- **concession**: a payer that learned the key from a vote, but sees no certificate, concedes
"""

from collections.abc import Sequence
from functools import partial

from swarmbook.payments import lock_conditions as locking
from swarmbook.payments.channel import PAID, REFUNDED, Change, Lock, State, commit
from swarmbook.payments.channel_update import End
from swarmbook.payments.payment_network import LOCKED, NEVER, Payment, Topology, World, committee
from swarmbook.payments.payment_network import PAID as HOP_PAID
from swarmbook.payments.payment_network import REFUNDED as HOP_REFUNDED
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Simulation
from swarmbook.payments.syncpcn.committee import Warden
from swarmbook.payments.syncpcn.messages import Setup
from swarmbook.payments.syncpcn.party import Party, Transit
from swarmbook.payments.syncpcn.timing import Timing


class SyncPCN(World):
    """The protocol over a topology. lock: point, mock or hash. timing: what the parties believe of the network."""

    name, private = "SyncPCN", True

    def __init__(
        self,
        topology: Topology,
        sim: Simulation | None = None,
        keys: Keys | None = None,
        seed: int = 0,
        timing: Timing | None = None,
        lock: str = "mock",
        skews: dict[str, float] | None = None,
    ) -> None:
        super().__init__(topology, sim, keys, seed)
        self.timing, self.locks, self.skews = timing or Timing(), locking.scheme(lock), skews or {}
        self._wardens: dict[int, list[Warden]] = {}
        self._payments: dict[int, tuple[Payment, int]] = {}

    def new_party(self, name: str) -> Party:
        return Party(name, self, skew=self.skews.get(name, 0.0))

    def members(self, cid: int) -> list[Warden]:
        if cid not in self._wardens:
            left, right, *balances = self.topology.channels[cid]
            parties = self.party(left), self.party(right)
            state = State(cid, 0, *balances, (), self.random())
            names = committee(cid, self.topology.size)
            members = [
                Warden(
                    *(name, self.sim, cid, parties, self.keys, commit(state, self.keys).root),
                    timing=self.timing,
                    locks=self.locks,
                    skew=self.skews.get(name, 0.0),
                )
                for name in names.members
            ]
            self._wardens[cid] = members
            for side, party in enumerate(parties):
                party.ends[cid] = End(party, side, parties[1 - side], members, names, state)
        return self._wardens[cid]

    def payment_of(self, pid: int) -> Payment | None:
        found = self._payments.get(pid)
        return found and found[0]

    def pay(self, path: Sequence[str], amount: int, at: float | None = None, fee: int = 0) -> Payment:
        """Start a payment, now or at a time. The receiver has handed its invoice to the sender before."""
        at = self.sim.now if at is None else at
        payment = self.new_payment(path, amount, fee, at)
        for cid in payment.cids:
            self.members(cid)
        self.sim.timer(self.party(path[0]), at, self._begin, (payment,))
        return payment

    def _begin(self, payment: Payment) -> None:
        """The sender waits for its turn on the first channel; deadlines count from then."""
        sender, transit = self.party(payment.path[0]), Transit(payment, None, None, 0)
        change = partial(self._prepared, payment, transit)
        sender.ends[payment.cids[0]].want(change, lambda: None, lambda: sender.too_little(transit))

    def _prepared(self, payment: Payment, transit: Transit) -> Change:
        """Tell everybody on the path what will be locked; the sender's own lock."""
        self.mark(payment, "begun")
        sender, hops = self.party(payment.path[0]), len(payment.cids)
        invoice = self.party(payment.path[-1]).invoice()
        made = locking.path(self.locks, invoice, hops, self.rng)
        expiries = self.timing.expiries(sender.clock, hops)
        locked = []
        for i, (cid, amount) in enumerate(zip(payment.cids, payment.amounts, strict=True)):
            pid = self.random()
            self._payments[pid] = payment, i
            locked.append((cid, Lock(pid, self.side(cid, payment.path[i]), amount, made.locks[i], expiries[i])))
        for i in range(1, hops):
            told = Setup(locked[i - 1], locked[i], made.steps[i], None)
            sender.send(self.party(payment.path[i]), told)
        sender.send(self.party(payment.path[-1]), Setup(locked[-1], None, made.total, invoice))
        transit.outgoing, transit.step = locked[0], made.steps[0]
        lock = locked[0][1]
        sender.outbound[lock.pid] = transit
        sender.at(lock.expiry + self.timing.refund_wait, sender.overdue, transit)
        return Change("lock", lock=lock)

    def update(self, payer: str, payee: str, amount: int) -> None:
        """A direct payment inside one channel: one update of the base layer."""
        cid = self.new_payment((payer, payee), amount, 0, self.sim.now).cids[0]
        self.members(cid)
        payment, end = self.payments[-1], self.party(payer).ends[cid]

        def certified(what: str):
            return lambda: self.mark(payment, what)

        def agreed() -> None:
            end.then[end.state.seq] = certified("receipt")
            other = self.party(payee).ends[cid]
            other.then[end.state.seq] = certified("receiver safe")

        end.want(Change("pay", amount=amount), agreed, lambda: self.mark(payment, "failed"))

    def hops(self, payment: Payment) -> list[tuple[int, Lock]]:
        """Channel and lock of each hop that was begun."""
        found = {}
        for pid, (other, i) in self._payments.items():
            if other is payment:
                found[i] = pid
        locks = []
        for i in sorted(found):
            transit = self._transit(payment, i, found[i])
            if transit is not None:
                locks.append(transit)
        return locks

    def _transit(self, payment: Payment, i: int, pid: int) -> tuple[int, Lock] | None:
        payer, payee = self.party(payment.path[i]), self.party(payment.path[i + 1])
        if pid in payer.outbound:
            return payer.outbound[pid].outgoing
        return payee.inbound[pid].incoming if pid in payee.inbound else None

    def outcomes(self, payment: Payment) -> list[str]:
        ends = dict(zip(payment.cids, [NEVER] * len(payment.cids), strict=True))
        for cid, lock in self.hops(payment):
            ends[cid] = self.hop(cid, lock)
        return [ends[cid] for cid in payment.cids]

    def hop(self, cid: int, lock: Lock) -> str:
        """How a lock ended, as an honest one of its two parties sees it; a certificate of PAID weighs more."""
        views = []
        for party in self.topology.channels[cid][:2]:
            end = self.party(party).ends[cid]
            if lock.pid in end.past:
                view = end.past[lock.pid]
            elif lock.pid in end.resolved:
                view = HOP_REFUNDED if end.resolved[lock.pid][0] == REFUNDED else HOP_PAID
            elif end.state.lock(lock.pid) is not None or (end.pending and end.pending[3].lock == lock):
                view = LOCKED
            else:
                view = NEVER
            views.append((party in self.faulty, view))
        honest = [view for bad, view in views if not bad] or [view for _, view in views]
        return next(outcome for outcome in (HOP_PAID, HOP_REFUNDED, LOCKED, NEVER) if outcome in honest)

    def total(self, party: str) -> int:
        total = 0
        node = self.party(party)
        for cid, channel in enumerate(self.topology.channels):
            if party not in channel[:2]:
                continue
            end = node.ends.get(cid)
            if end is None:
                total += channel[2 + channel.index(party)]
                continue
            total += end.balance
            for lock in end.state.locks:
                outcome = end.resolved.get(lock.pid, (None,))[0]
                if outcome is None:
                    total += lock.amount * (lock.payer == end.side)
                else:
                    total += lock.amount * ((outcome == REFUNDED) == (lock.payer == end.side))
        return total

    def receipt(self, payment: Payment) -> bool:
        sender = self.party(payment.path[0])
        return any(t.payment is payment and t.incoming is None and t.key is not None for t in sender.outbound.values())

    def opposite(self) -> list[tuple]:
        """Locks with certificates of both PAID and REFUNDED, among all votes that any party has received."""
        found: dict[tuple, dict[str, set[str]]] = {}
        for party in self._parties.values():
            for (cid, about, outcome), tally in party.votes.items():
                found.setdefault((cid, about), {}).setdefault(outcome, set()).update(tally.votes.get(about, ()))
        quorum = committee(0, self.topology.size).quorum
        return [
            (*key, PAID, REFUNDED)
            for key, votes in found.items()
            if len(votes.get(PAID, ())) >= quorum and len(votes.get(REFUNDED, ())) >= quorum
        ]
