"""A party of SyncPCN: sender, receiver or in between, by what it has been told. `disputes` has the rest.

Serves: SyncPCN in all its figures; claims S4, S8, S13 and S14, and the mutant "a payee goes on before the certificate"
(S11).
"""

import math

from swarmbook.payments.channel import Change, Lock, Resolved
from swarmbook.payments.channel_update import Awaited, ChannelEnd, Propose
from swarmbook.payments.lock_conditions import Points, path
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.payment_network import Payment, World
from swarmbook.payments.simulation import Node, parsed
from swarmbook.payments.syncpcn.disputes import DisputingParty, Transit
from swarmbook.payments.syncpcn.messages import Setup
from swarmbook.payments.syncpcn.timing import Timing


class SyncPCNParty(DisputingParty):
    """An honest party.

    inbound: its payments by the name of the lock before it. unexplained: certified locks of which the sender has not
    told it yet. invoices: keys and amounts by lock, of payments that it will receive. fee: the least that it takes for
    passing a payment on.
    """

    __slots__ = ("inbound", "unexplained", "invoices", "fee")

    def __init__(self, name: str, world: World, timing: Timing, locks: Points, **place) -> None:
        super().__init__(name, world, timing, locks, **place)
        self.inbound: dict[int, Transit] = {}
        self.unexplained: set[tuple[int, Lock]] = set()
        self.invoices: dict[object, tuple[int, int]] = {}
        self.fee = 0

    def nonce(self) -> int:
        return self.world.random()

    # setup and lock

    def invoice(self, amount: int) -> object:
        """A lock R = r G for one payment of this amount, handed to the sender."""
        (key,) = self.locks.secrets(self.world.rng, 1)
        lock = self.locks.lock(key)
        self.invoices[lock] = key, amount
        return lock

    def prepared(self, payment: Payment) -> Change:
        """The sender's turn has come: tell everybody on the path what will be locked; the sender's own lock.

        Deadlines count from now.
        """
        world, hops = self.world, len(payment.cids)
        world.mark(payment, "begun")
        invoice = world.party(payment.path[-1]).invoice(payment.amounts[-1])
        made = path(self.locks, invoice, hops, world.rng)
        expiries = self.timing.expiries(self.clock, hops)
        locked = []
        for i, (cid, amount) in enumerate(zip(payment.cids, payment.amounts, strict=True)):
            lock = Lock(world.random(), world.side(cid, payment.path[i]), amount, made.locks[i], expiries[i])
            world.register(lock.pid, payment)
            locked.append((cid, lock))
        for i in range(1, hops):
            self.send(world.party(payment.path[i]), Setup(locked[i - 1], locked[i], made.steps[i], None))
        self.send(world.party(payment.path[-1]), Setup(locked[-1], None, made.total, invoice))
        lock = locked[0][1]
        transit = self.outbound[lock.pid] = Transit(payment, None, locked[0], made.steps[0])
        self.at(lock.expiry + self.timing.refund_wait, self.overdue, transit)
        return Change("lock", lock=lock)

    @parsed
    def told(self, sender: Node, m: Setup) -> None:
        """The sender says what passes this party: believe it if the locks, the fee and the deadlines fit."""
        lock = m.incoming[1]
        if lock.pid in self.inbound or not self.locks.is_lock(lock.condition):
            return
        if m.outgoing is None:
            key, amount = self.invoices.get(m.invoice, (None, 0))
            if key is None or lock.amount < amount:
                return
            key = self.locks.upstream(key, -m.step)
            if not self.locks.opens(lock.condition, key):
                return
            transit = Transit(self.world.payment_of(lock.pid), m.incoming, None, m.step, key)
        else:
            out = m.outgoing[1]
            if self.locks.shifted(lock.condition, m.step) != out.condition or lock.amount - out.amount < self.fee:
                return
            if not self.timing.apart(lock.expiry, out.expiry):
                return
            end = self.ends.get(m.outgoing[0])
            if end is None or out.payer != end.side or out.pid in self.outbound or not math.isfinite(out.expiry):
                return
            transit = Transit(self.world.payment_of(lock.pid), m.incoming, m.outgoing, m.step)
            self.outbound[out.pid] = transit
            end.ask()  # the turn is here when the incoming lock is
        self.inbound[lock.pid] = transit
        if m.incoming in self.unexplained:
            self.unexplained.discard(m.incoming)
            self.secured(*m.incoming, self.clock)

    def start(self, transit: Transit) -> None:
        """Lock the outgoing hop; when it is too late, for too long or for too much, fail the incoming one."""
        cid, lock = transit.outgoing
        end, last = self.ends[cid], self.timing.open_by(lock.expiry)
        if self.clock > last or lock.expiry > self.timing.latest(self.clock):  # or its coins would be locked too long
            self.too_late(transit)
            return
        end.want(Change("lock", lock=lock))
        if end.waits(lock):
            self.at(last, self.waited, transit)
        self.at(lock.expiry + self.timing.refund_wait, self.overdue, transit)

    def waited(self, transit: Transit) -> None:
        """The last moment to lock the outgoing hop: give up if its turn has not come."""
        cid, lock = transit.outgoing
        end = self.ends[cid]
        if end.waits(lock):
            end.withdraw(lock)
            self.too_late(transit)

    def too_late(self, transit: Transit) -> None:
        self.world.mark(transit.payment, "too late")
        self.fail(transit)

    def too_little(self, transit: Transit) -> None:
        self.world.mark(transit.payment, "too little")
        self.fail(transit)

    @parsed
    def proposed(self, sender: Node, m: Propose) -> None:
        end = self.ends.get(m.cid)
        if end is None or sender is not end.peer:
            return
        change = m.change
        if change.what == "open":
            self.opened(m.cid, change.pid, change.key)
        for resolved in change.resolved:
            self.shown_decision(end, resolved)
        if self.allowed(m.cid, change):
            self.sign(end, m)

    def sign(self, end: ChannelEnd, m: Propose) -> None:
        """Sign the other party's proposal, and do what follows from it."""
        change = m.change
        if not end.proposed(m):
            return
        if change.what == "lock":
            self.await_certificate(end, m.seq, change)
        else:
            end.awaited[m.seq] = Awaited(change, False, self.clock)

    def await_certificate(self, end: ChannelEnd, seq: int, change: Change) -> None:
        """A payee goes on when it holds the certificate of the lock."""
        end.awaited[seq] = Awaited(change, False, self.clock)

    def agreed(self, end: ChannelEnd, change: Change) -> None:
        if change.what in ("open", "pay"):
            end.awaited[end.state.seq] = Awaited(change, True, self.clock)

    def certified(self, end: ChannelEnd, update: Awaited) -> None:
        change = update.change
        if change.what == "lock":
            self.secured(end.cid, change.lock, update.since)
        elif change.what == "open":
            self.settled(change.pid)
        elif change.what == "fail":
            self.fail(self.outbound[change.pid])
        else:
            self.world.mark(self.world.payment_of(change.pid), "receipt" if update.own else "receiver safe")

    def impossible(self, change: Change) -> None:
        if change.what == "lock":
            self.too_little(self.outbound[change.lock.pid])
        elif change.what == "pay":
            self.world.mark(self.world.payment_of(change.pid), "failed")

    def allowed(self, cid: int, change: Change) -> bool:
        """Whether a change that the other party proposes is right, and in time."""
        if change.what == "lock":
            return change.lock is not None
        if change.what in ("open", "fail"):
            transit = self.outbound.get(change.pid)
            if transit is None or transit.outgoing[0] != cid:
                return False
            lock = transit.outgoing[1]
            if change.what == "fail":
                return True
            return self.clock <= self.timing.key_by(lock.expiry) and self.locks.opens(lock.condition, change.key)
        return change.what == "pay"

    def secured(self, cid: int, lock: Lock, arrived: float) -> None:
        """An incoming lock, which arrived at some time, is certified: go on if it is the one the sender told of.

        The sender tells before any hop is locked, so that this is known at most delta after a lock arrives.
        """
        self.sim.note(self, "lock certified")
        transit = self.inbound.get(lock.pid)
        if transit is None:
            self.unexplained.add((cid, lock))
            self.at(arrived + self.timing.delta, self.untold, cid, lock)
        elif transit.incoming != (cid, lock):
            self.fail(Transit(None, (cid, lock), None, 0))
        elif transit.outgoing is not None:
            self.start(transit)
        else:
            self.world.mark(transit.payment, "receiver safe")
            if self.clock <= self.timing.open_by(lock.expiry):
                self.world.mark(transit.payment, "receipt exists")
                self.open(transit)
            else:
                self.too_late(transit)

    def untold(self, cid: int, lock: Lock) -> None:
        """The sender has not told of a lock in time, or something wrong."""
        if (cid, lock) in self.unexplained:
            self.unexplained.discard((cid, lock))
            transit = Transit(None, (cid, lock), None, 0)
            self.inbound.setdefault(lock.pid, transit)  # what the sender tells from now on is too late
            self.fail(transit)

    # unlock

    def opened(self, cid: int, pid: int, key: object) -> None:
        """The payee of an outgoing lock shows a key: pass it on at once, if it is right and in time."""
        transit = self.outbound.get(pid)
        if transit is None or transit.outgoing[0] != cid:
            return
        lock = transit.outgoing[1]
        if self.clock <= self.timing.key_by(lock.expiry) and self.locks.opens(lock.condition, key):
            self.learn(transit, key)

    def shown_decision(self, end: ChannelEnd, resolved: Resolved) -> None:
        """The payee of an outgoing lock shows that it is decided, and the key with which it asked for that."""
        lock = end.lock_about(resolved.about)
        if lock is None or lock.payer != end.side or resolved.decision == Decision.REFUNDED:
            return
        if self.locks.opens(lock.condition, resolved.key):
            self.learn(self.outbound[lock.pid], resolved.key)

    def learn(self, transit: Transit, key: object) -> None:
        """The key of the outgoing lock gives that of the incoming one; the sender's is its receipt."""
        if transit.key is not None:
            return
        transit.key = self.locks.upstream(key, transit.step)
        if transit.incoming is None:
            self.sim.note(self, "receipt")
            self.world.mark(transit.payment, "receipt")
        elif not transit.late and not transit.done:
            self.open(transit)

    def open(self, transit: Transit) -> None:
        """Show the payer the key of the incoming lock; if it does not answer, the committee decides."""
        cid, lock = transit.incoming
        end = self.ends[cid]
        transit.sent = self.sim.now
        end.want(Change("open", pid=lock.pid, key=transit.key), first=True)
        wait = min(self.clock + 2 * self.timing.delta, self.timing.claim_by(lock.expiry))
        self.at(max(wait, self.clock), self.unanswered, transit)

    def settled(self, pid: int) -> None:
        self.sim.note(self, "hop settled")
        self.world.mark(self.world.payment_of(pid), "settled", last=True)

    def fail(self, transit: Transit) -> None:
        """Nothing more will come of the outgoing hop: give the incoming lock back."""
        if transit.done or transit.sent is not None:  # it has sent the key
            return
        transit.done = True
        if transit.incoming is None:
            self.world.mark(transit.payment, "failed")
            return
        cid, lock = transit.incoming
        end = self.ends[cid]
        end.want(Change("fail", pid=lock.pid))
        self.at(self.clock + 2 * self.timing.delta, self.give_back, end, lock, self.sim.now)

    on = {**DisputingParty.on, Setup: told, Propose: proposed}
