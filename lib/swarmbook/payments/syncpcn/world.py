"""SyncPCN: payments over several channels where the network is synchronous and channels may be faulty.

The paper's abstract says as much, and that committees replace the blockchain in disputes, with privacy. Messages, locks
and timeouts are our reconstruction:

- **setup**: When it is the sender's turn on its channel, it tells each party its two locks (`Setup`), so that those in
  between can ask for their turn in time. Hop i expires at T_i, `Timing.margin` before T_(i-1).
- **lock**, hop by hop: An update of the base layer adds the lock. A payee signs every one, since a lock is in its
  favour, and goes on when it holds the certificate. It fails a lock that comes too late, or of which it has not been
  told.
- **receipt**: The receiver sends the key of its lock, which is the receipt, for no less than its invoice says.
- **unlock**, backwards: The payee's update carries the key, and the payer opens its own hop at once.
- **failure**: The payee's update removes the lock. The payer gives its own incoming lock back when a quorum holds that
  state. Who has sent the key of a lock never gives it back, and who has given it back never sends its key.
- **claim**: If the payer does not sign, members that get the key by T_i on their clock vote PAID, once. The payee
  proves that the newest state holds the lock, both of the state that it knows as the newest and of the one that it has
  proposed, which the payer may have signed and shown to members alone. Votes carry the key to the payer.
- **griefing**: A party locks no coins for longer than the longest path takes (`Timing.hops`), whatever deadline it is
  told.
- **refund**: At T_i + 2 delta the payer asks with the same two proofs; members that have not voted vote REFUNDED, once.
  A key that it learns later is not passed on.
- **concession**: A payer that has learned the key from a vote, but sees no certificate, concedes.
- **decisions** enter the next update. One that pays the payee carries the key, and the payer signs it only if it then
  has the key, and has not given its incoming lock back.

`invariants` has what follows from these rules, as code.

Serves: SyncPCN in every figure and table of the notebook; claims S1, S2, S4, S5, S8 and S11 to S15.
"""

from collections.abc import Mapping, Sequence

from swarmbook.errors import ConfigError
from swarmbook.payments.channel import Change, Lock, State, close, commit
from swarmbook.payments.channel_update import ChannelEnd
from swarmbook.payments.lock_conditions import scheme
from swarmbook.payments.outcomes import Decision, Outcome, outcome_of
from swarmbook.payments.payment_network import Payment, Topology, World
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Simulation
from swarmbook.payments.syncpcn.member import SyncPCNMember
from swarmbook.payments.syncpcn.party import SyncPCNParty
from swarmbook.payments.syncpcn.timing import Timing


class SyncPCN(World):
    """The protocol over a topology.

    timing: what parties and members believe of the network. lock: "point", "mock" or "hash" (`lock_conditions`). skews:
    by how much the clocks of parties and members, by name, are ahead.
    """

    name = "SyncPCN"

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
        self.timing, self.locks, self.skews = timing or Timing(), scheme(lock), skews or {}
        members = (name for cid in range(len(topology.channels)) for name in self.committee(cid).members)
        if self.skews and (strangers := set(self.skews) - {*self.names, *members}):
            raise ConfigError(f"skews of {', '.join(map(repr, strangers))}: give names of parties and members, as C1.2")
        self._members: dict[int, list[SyncPCNMember]] = {}

    def new_party(self, name: str) -> SyncPCNParty:
        return SyncPCNParty(name, self, self.timing, self.locks, skew=self.skews.get(name, 0.0))

    def members(self, cid: int) -> list[SyncPCNMember]:
        if cid not in self._members:
            left, right, *balances = self.topology.channels[cid]
            parties = self.party(left), self.party(right)
            state = State(cid, 0, *balances, (), self.random())
            names = self.committee(cid)
            members = [
                SyncPCNMember(
                    *(name, self.sim, cid, parties, self.keys, commit(state, self.keys).root),
                    timing=self.timing,
                    locks=self.locks,
                    skew=self.skews.get(name, 0.0),
                )
                for name in names.members
            ]
            self._members[cid] = members
            for side, party in enumerate(parties):
                party.ends[cid] = ChannelEnd(party, side, parties[1 - side], members, names, state)
        return self._members[cid]

    def pay(self, path: Sequence[str], amount: int, at: float | None = None, fee: int = 0) -> Payment:
        """Start a payment, now or at a time. The receiver has handed its invoice to the sender before."""
        at = self.starts(at)
        if len(path) > self.timing.hops + 1:
            raise ConfigError(
                f"a path of {len(path) - 1} hops is refused, since parties take part in {self.timing.hops} at most: "
                "choose a shorter one, or give timing=Timing(hops=...)"
            )
        payment = self.new_payment(path, amount, fee, at)
        for cid in payment.cids:
            self.members(cid)
        self.sim.timer(self.party(path[0]), at, self._begin, (payment,))
        return payment

    def _begin(self, payment: Payment) -> None:
        """The sender waits for its turn on the first channel; then it makes the locks (`SyncPCNParty.prepared`)."""
        self.party(payment.path[0]).ends[payment.cids[0]].want(payment)

    def update(self, payer: str, payee: str, amount: int) -> Payment:
        """A direct payment inside one channel: one update of the base layer."""
        payment = self.new_payment((payer, payee), amount, 0, self.sim.now)
        self.register(-1 - payment.number, payment)  # names of locks are positive
        self.members(payment.cids[0])
        end = self.party(payer).ends[payment.cids[0]]
        end.want(Change("pay", amount=payment.amounts[0], pid=-1 - payment.number))
        return payment

    def direct(self, payment: Payment) -> bool:
        """Whether a payment is an `update`, which has no lock."""
        return bool(payment.pids) and payment.pids[0] == -1 - payment.number

    def updated(self, payment: Payment) -> str:
        """How an update stands: paid by its certificate, which an honest party holds, and open once it is proposed."""
        marks = dict(zip(payment.path, ("receipt", "receiver safe"), strict=True))
        honest = [party for party in marks if party not in self.faulty] or payment.path
        if any(marks[party] in payment.times for party in honest):
            return Outcome.PAID
        wanted = (w for w in self.party(payment.path[0]).ends[payment.cids[0]].wanted if isinstance(w, Change))
        waits = "failed" in payment.times or any(change.pid == payment.pids[0] for change in wanted)
        return Outcome.NEVER_LOCKED if waits else Outcome.LOCKED

    def hops(self, payment: Payment) -> list[tuple[int, Lock]]:
        """Channel and lock of each hop that was begun, as an honest one of its two parties knows it."""
        found = []
        for payer, payee, pid in zip(payment.path, payment.path[1:], payment.pids, strict=False):
            given, taken = self.party(payer).outbound.get(pid), self.party(payee).inbound.get(pid)
            known = [transit.outgoing for transit in (given,) if transit is not None]
            known += [transit.incoming for transit in (taken,) if transit is not None]
            found += known[-1:] if payer in self.faulty else known[:1]
        return found

    def outcomes(self, payment: Payment) -> list[str]:
        if self.direct(payment):
            return [self.updated(payment)]
        ends = dict.fromkeys(payment.cids, Outcome.NEVER_LOCKED)
        for cid, lock in self.hops(payment):
            amount = payment.amounts[payment.pids.index(lock.pid)]
            if cid in ends and lock.amount >= amount:  # else it is another lock of this name
                ends[cid] = self.hop(cid, lock)
        return [ends[cid] for cid in payment.cids]

    def hop(self, cid: int, lock: Lock) -> str:
        """How a lock ended, as an honest one of its two parties sees it; a certificate of PAID weighs more."""
        views = []
        for party in self.topology.channels[cid][:2]:
            end = self.party(party).ends[cid]
            if lock.pid in end.past:
                view = end.outcome(lock) or Outcome.NEVER_LOCKED
            elif lock.pid in end.resolved:
                same = end.state.lock(lock.pid) in (None, lock)  # else another lock of this name was decided
                view = outcome_of(end.resolved[lock.pid].decision) if same else Outcome.NEVER_LOCKED
            elif end.state.lock(lock.pid) is not None or (end.pending and end.pending[3].lock == lock):
                view = Outcome.LOCKED
            else:
                view = Outcome.NEVER_LOCKED
            views.append((party in self.faulty, view))
        honest = [view for bad, view in views if not bad] or [view for _, view in views]
        weights = Outcome.PAID, Outcome.REFUNDED, Outcome.LOCKED, Outcome.NEVER_LOCKED
        return next(outcome for outcome in weights if outcome in honest)

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
            state = end.state
            if end.pending is not None and any(state.lock(pid) is None for pid in end.resolved):
                state = end.pending[0]  # members decided a lock in it, so the other party has signed it too
            total += state[2 + end.side]
            for lock in state.locks:
                decided = end.resolved.get(lock.pid)
                refunded = decided is None or decided.decision == Decision.REFUNDED  # undecided, it is its payer's
                total += lock.amount * (refunded == (lock.payer == end.side))
        return total

    def receipt(self, payment: Payment) -> bool:
        sender = self.party(payment.path[0])
        if self.direct(payment):
            return "receipt" in payment.times
        return any(t.payment is payment and t.incoming is None and t.key is not None for t in sender.outbound.values())

    def opposite(self) -> list[tuple]:
        """Locks with certificates of both PAID and REFUNDED, among all votes that any party has received."""
        found: dict[tuple, dict[str, set[str]]] = {}
        for party in self._parties.values():
            for (cid, about, decision), tally in party.votes.items():
                found.setdefault((cid, about), {}).setdefault(decision, set()).update(tally.votes.get(about, ()))
        quorum = self.committee(0).quorum
        opposite = Decision.PAID, Decision.REFUNDED
        return [
            (*key, *opposite)
            for key, votes in found.items()
            if all(len(votes.get(decision, ())) >= quorum for decision in opposite)
        ]

    # what verdicts ask of the committees

    def balances(self, cid: int) -> tuple[int, ...]:
        left, right = self.topology.channels[cid][:2]
        end = self.party(left if left not in self.faulty else right).ends.get(cid)
        if end is None:
            return super().balances(cid)
        return (end.state.left, end.state.right, *(lock.amount for lock in end.state.locks))

    def stale_closes(self, cid: int) -> list[tuple[str, str]]:
        """Whether a quorum can answer a close with an old state, if its faulty members answer with the oldest."""
        ends = [self.party(name).ends.get(cid) for name in self.honest_parties(cid)]
        ends = [end for end in ends if end is not None]
        if not ends:
            return []
        certified, quorum = max(end.certified for end in ends), ends[0].committee.quorum
        published = [(0 if m.name in self.faulty else m.seq, m.root) for m in self.members(cid)]
        worst, _ = close(sorted(published, key=lambda claim: claim[0]), quorum)  # the quorum with the oldest
        if worst >= certified:
            return []
        return [(self.topology.channels[cid][0], f"a close of C{cid + 1} gives {worst} < {certified}")]

    def invariants(self, cid: int) -> list[str]:
        wrong, capacity, members = [], sum(self.topology.channels[cid][2:]), self.honest(cid)
        ends = [self.party(name).ends[cid] for name in self.honest_parties(cid)]
        for state in (end.state for end in ends):
            wrong += [f"I1: {state}"] * (state.capacity != capacity)
            wrong += [f"I2: {state}"] * (min(state.left, state.right) < 0)
        for end in ends:
            statement = "state", cid, end.state.seq, end.commitment.root
            if end.state.seq and not self.keys.verify(end.peer.name, statement, end.signatures[1 - end.side]):
                wrong.append(f"I7: {end.party} holds {end.state}, which {end.peer} has not signed")
        for seq in {seq for member in members for seq in member.log}:
            roots = [member.log[seq] for member in members if seq in member.log]
            enough = self.topology.quorum - self.bad_members(cid)  # faulty ones sign whatever is asked of them
            certified = {root for root in roots if roots.count(root) >= enough}
            wrong += [f"I3: C{cid + 1} has two states {seq}"] * (len(certified) > 1 and bool(ends))
        return wrong + [f"I7: {m} holds {m.newest}" for m in members if m.newest and not m.signed(m.newest)]

    def progress(self, member: SyncPCNMember) -> tuple[int, Mapping[object, str]]:
        return member.seq, member.votes
