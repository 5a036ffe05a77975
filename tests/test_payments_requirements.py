"""Requirements R1 to R8 and R11 and the invariants, against an adversary."""

import ast
from itertools import product
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from swarmbook.payments import outcomes
from swarmbook.payments.adversary import (
    Careless,
    Deaf,
    Equivocating,
    Erratic,
    Fault,
    Forging,
    Late,
    Replaying,
    Shortcut,
    Silent,
    dispute,
)
from swarmbook.payments.attacks import (
    SAFETY,
    asynchronous_world,
    claim_world,
    last_coins,
    loss_rate,
    names,
    opening,
    skipping,
    split_votes,
    synchronous_world,
)
from swarmbook.payments.channel import prove
from swarmbook.payments.channel_committee import Announce
from swarmbook.payments.channel_update import Cosign, Propose
from swarmbook.payments.closed_forms import COSTS
from swarmbook.payments.lightning import Lightning
from swarmbook.payments.outcomes import Decision, Outcome
from swarmbook.payments.payment_network import Topology, line
from swarmbook.payments.psyncpcn import PSyncPCN, Share
from swarmbook.payments.requirements import CHECKS, REQUIREMENTS, Watch, check, invariants
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Asynchronous, Simulation, at_random, within
from swarmbook.payments.syncpcn import Claim, RefundRequest, Setup, SyncPCN, Timing

CI = dict(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", [Lightning, SyncPCN, PSyncPCN])
def test_every_verdict_can_be_asked_of_every_protocol(kind):
    world = kind(line(3))
    watch = Watch(world)
    world.pay(names(3), 10)
    while world.sim.next < float("inf"):
        world.run(world.sim.next)
        assert not watch.look()
    assert not check(world, CHECKS) and not invariants(world)


def test_outcomes_and_decisions_are_spelt_in_one_file():
    words = {word for kind in (Outcome, Decision) for name, word in vars(kind).items() if name.isupper()}
    package = Path(outcomes.__file__).parent
    for path in package.rglob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert path.name == "outcomes.py" or not texts & words, path


# random adversaries, from one seed each


def wrong_in_synchrony(seeds) -> list:
    found = []
    for seed in seeds:
        world = synchronous_world(seed)
        world.run()
        found += [(seed, str(violation)) for violation in check(world, SAFETY)] + invariants(world)
    return found


def wrong_in_asynchrony(seeds) -> list:
    found = []
    for seed in seeds:
        world = asynchronous_world(seed, ("none", "payer", "agreed")[seed % 3])
        world.run()
        found += [(seed, str(violation)) for violation in check(world, SAFETY)] + invariants(world)
        for cid in range(len(world.topology.channels)):  # I11
            found += [f"{m} keeps {m.reserved}" for m in world.honest(cid) if any(m.reserved)]
    return found


def test_syncpcn_withstands_random_adversaries():
    assert not wrong_in_synchrony(range(600))


def test_psyncpcn_withstands_random_adversaries():
    assert not wrong_in_asynchrony(range(450))


def left_too_long(world, payment) -> list[str]:
    """R5 with its bound: lets the world run to T_i + 4 delta, hop by hop from the last; a lock left then is too late.

    world: of a protocol with deadlines (`world.timing`), with this single payment, whose deadlines follow from its
    start. Only hops with an honest party and a correct committee count.
    """
    timing, found = world.timing, []
    sender = world.party(payment.path[0])
    world.run(payment.start)
    while "begun" not in payment.times and world.sim.next < float("inf"):  # it waits for its turn
        world.run(world.sim.next)
    expiries = timing.expiries(payment.times.get("begun", payment.start) + sender.skew, len(payment.cids))
    for i in range(len(payment.cids), 0, -1):
        world.run(expiries[i - 1] + 4 * timing.delta + timing.skew)
        honest = [party for party in payment.path[i - 1 : i + 1] if party not in world.faulty]
        cid = payment.cids[i - 1]
        if honest and world.correct(cid) and world.outcomes(payment)[i - 1] == Outcome.LOCKED:
            found.append(f"hop {i} of {honest[0]} is locked after T_{i} + 4 delta")
    return found


@pytest.mark.parametrize("seed", range(150))
def test_locks_end_in_time(seed):
    world = synchronous_world(seed, single=True)
    assert not left_too_long(world, world.payments[0])


def test_one_faulty_member_too_many_stops_payments():
    """b = f + 1 of random kinds: locks in such channels are left for ever."""
    found = set()
    for seed in range(100):
        world = synchronous_world(seed, extra=1)
        world.run(2000)
        world.correct = lambda cid: True
        found |= {violation.requirement for violation in check(world, SAFETY)}
    assert "R5" in found


@pytest.mark.parametrize("faulty", [1, 2, 3])
def test_opposite_certificates_become_possible_at_one_faulty_member_too_many(faulty):
    opposite = {}
    for bad in range(faulty + 2):
        opposite[bad] = bool(split_votes(faulty, bad).opposite())
    assert opposite == {bad: bad == faulty + 1 for bad in range(faulty + 2)}


@pytest.mark.parametrize("faulty", [1, 2, 3])
def test_the_last_coins_are_spent_twice_at_one_faulty_member_too_many(faulty):
    for bad in range(faulty + 2):
        world = last_coins(faulty, bad)
        paid = sum(world.receipt(payment) for payment in world.payments)
        assert paid == 2 if bad > faulty else paid <= 1
        assert sum(what == "PAID" for what, *_ in world.party("u1").certificates) == paid


# state machines


class Watched(RuleBasedStateMachine):
    @invariant()
    def invariants_hold(self):
        if hasattr(self, "watch"):
            assert not self.watch.look()


class Synchronous(Watched):
    """Payments, updates, time and corruption in any order; I1 to I7 after each, the requirements at the end."""

    @initialize(n=st.integers(1, 4), f=st.integers(1, 2), seed=st.integers(0, 2**16), balance=st.sampled_from([7, 50]))
    def begin(self, n, f, seed, balance):
        self.n, self.rng = n, np.random.default_rng(seed)
        sim = Simulation(within(1.0, self.rng))
        self.world = SyncPCN(line(n, f, balance=balance), sim=sim, seed=seed)
        self.watch = Watch(self.world)

    @rule(amount=st.integers(1, 8), back=st.booleans(), fee=st.integers(0, 1))
    def pay(self, amount, back, fee):
        if len(self.world.payments) < 6:
            self.world.pay(names(self.n)[::-1] if back else names(self.n), amount, fee=fee)

    @rule(time=st.floats(0.01, 8.0))
    def wait(self, time):
        self.world.run(self.world.sim.now + time)

    @rule(who=st.integers(0, 4), kind=st.integers(0, 2))
    def corrupt_party(self, who, kind):
        party = self.world.party(names(self.n)[who % (self.n + 1)])
        faults = [Silent(after=self.world.sim.now), Erratic(self.rng), Silent(kinds=(Cosign,))]
        self.world.corrupt(party, faults[kind])

    @rule(cid=st.integers(0, 3), kind=st.integers(0, 3))
    def corrupt_member(self, cid, kind):
        cid %= self.n
        if self.world.bad_members(cid) < self.world.topology.faulty:
            fault = [Silent(), Equivocating(), Careless(), Erratic(self.rng)][kind]
            member = next(m for m in self.world.members(cid) if m.name not in self.world.faulty)
            self.world.corrupt(member, fault)

    def teardown(self):
        if hasattr(self, "world"):
            self.world.run()
            assert not check(self.world, SAFETY)
            assert not self.watch.look()


class AnySchedule(Watched):
    """PSyncPCN: the machine chooses every message that is delivered."""

    @initialize(n=st.integers(1, 4), seed=st.integers(0, 2**16), echo=st.booleans())
    def begin(self, n, seed, echo):
        self.n, self.pick = n, 0
        self.sim = Asynchronous(lambda candidates: self.pick)
        self.world = PSyncPCN(line(n, 1, balance=20), sim=self.sim, seed=seed, echo=echo, ordering="none")
        self.watch = Watch(self.world)
        self.corrupted = set()

    @precondition(lambda self: not self.world.payments)
    @rule(amount=st.integers(1, 25))
    def pay(self, amount):
        self.world.pay(names(self.n), amount)

    @rule(pick=st.integers(0, 2**16), steps=st.integers(1, 30))
    def deliver(self, pick, steps):
        for k in range(steps):
            self.pick = pick * (k + 1)
            self.sim.step()

    @rule(cid=st.integers(0, 3), kind=st.integers(0, 2))
    def corrupt(self, cid, kind):
        cid %= self.n
        if cid not in self.corrupted:
            self.corrupted.add(cid)
            self.world.corrupt(
                self.world.members(cid)[kind], [Silent(), Equivocating(), Replaying(range(self.n))][kind]
            )

    def teardown(self):
        if hasattr(self, "world"):
            self.world.run()
            assert not check(self.world, SAFETY)
            for cid in range(self.n):
                assert not any(any(member.reserved) for member in self.world.honest(cid))


def test_a_dispute_goes_on_with_the_state_that_was_agreed_on_meanwhile():
    """The payer signs a failed payment late, when the committee has been asked about another lock of the old state."""
    machine = Synchronous()
    machine.begin(n=3, f=1, seed=150, balance=7)
    machine.corrupt_party(who=1, kind=0)
    machine.corrupt_party(who=3, kind=1)
    machine.pay(amount=1, back=True, fee=0)
    machine.wait(3.0)
    machine.corrupt_member(cid=2, kind=0)
    machine.corrupt_party(who=1, kind=1)
    for back in (True, True, False):
        machine.pay(amount=1, back=back, fee=0)
    machine.teardown()


@pytest.mark.parametrize("machine", [Synchronous, AnySchedule])
def test_state_machine(machine):
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=15, **CI))


@settings(**CI)
@given(n=st.integers(1, 5), f=st.integers(1, 3), seed=st.integers(0, 2**20), exact=st.sampled_from([9, 10, 11, 100]))
def test_honest_payments_succeed_exactly_if_there_is_enough(n, f, seed, exact):
    """R7, and I13: no more messages than the formula."""
    rng = np.random.default_rng(seed)
    for world in (
        SyncPCN(line(n, f, balance=exact), sim=Simulation(within(1.0, rng))),
        PSyncPCN(line(n, f, balance=exact), sim=Asynchronous(at_random(rng)), ordering="none"),
    ):
        payment = world.pay(names(n), 10)
        world.run()
        if exact >= 10:
            assert not check(world, ("R7", *SAFETY)) and world.receipt(payment)
        else:
            assert Outcome.PAID not in world.outcomes(payment) and Outcome.LOCKED not in world.outcomes(payment)
            assert [world.total(u) for u in names(n)] == [world.initial(u) for u in names(n)]
        form = COSTS["PSyncPCN, V1" if world.delegates else "SyncPCN"]
        assert world.sim.sent <= form.messages(n, f)


@settings(**CI)
@given(seed=st.integers(0, 2**20), paths=st.lists(st.booleans(), min_size=2, max_size=6))
def test_competing_honest_payments_end_and_keep_everything(seed, paths):
    world = SyncPCN(line(2, 1, balance=15, other=15), sim=Simulation(within(1.0, np.random.default_rng(seed))))
    for k, back in enumerate(paths):
        world.pay(names(2)[::-1] if back else names(2), 3 + k)
    world.run()
    assert not check(world, SAFETY)
    assert sum(world.total(u) for u in names(2)) == 60
    assert all(Outcome.LOCKED not in world.outcomes(payment) for payment in world.payments)


# directed regressions


SUBSETS = [tuple(k for k in range(4) if mask >> k & 1) for mask in range(16)]


@pytest.mark.parametrize("offset", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("bad", [(), (0,), (3,)])
def test_a_claim_at_the_boundary_hurts_nobody_honest(offset, bad):
    for subset in SUBSETS:
        world, payment = claim_world(offset, subset, bad)
        world.run()
        assert not check(world, SAFETY), (subset, world.outcomes(payment))


def test_members_take_a_claim_at_the_last_moment_and_not_after():
    results = {}
    for offset in (-1.0, 0.0, 1e-6, 1.0):
        world, payment = claim_world(offset, (0, 1, 2, 3))
        world.run()
        results[offset] = world.outcomes(payment)
    assert results == {
        -1.0: [Outcome.PAID, Outcome.PAID],
        0.0: [Outcome.PAID, Outcome.PAID],
        1e-6: [Outcome.REFUNDED, Outcome.REFUNDED],
        1.0: [Outcome.REFUNDED, Outcome.REFUNDED],
    }


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0])
def test_clocks_as_far_apart_as_allowed(skew):
    """Upstream members are ahead, downstream ones behind: the claim comes as late as it can."""
    timing = Timing(1.0, skew)
    for low, high in product((0.0, skew), repeat=2):
        world = SyncPCN(
            line(2),
            timing=timing,
            skews={f"C1.{k}": high for k in range(1, 5)} | {f"C2.{k}": low for k in range(1, 5)},
        )
        world.pay(names(2), 10)
        expiry = timing.expiries(0.0, 2)[1] - low
        receiver = world.party("u2")
        world.corrupt(receiver, Silent(kinds=(Propose,)), Late(Claim, lambda to, m, at=expiry: at, 1.0))
        world.corrupt(world.party("u0"), Silent(kinds=(Cosign,), when=lambda m: m.seq > 1))
        world.run()
        assert not check(world, SAFETY)
        assert world.total("u1") == world.initial("u1")


def test_a_claim_of_a_settled_lock_is_stale():
    world = SyncPCN(line(1), sim=Simulation(trace=True))
    payment = world.pay(names(1), 10)
    world.run(until=3.5)
    payer = world.party("u0")
    state, commitment, signed = payer.ends[0].state, payer.ends[0].commitment, payer.ends[0].signatures
    (lock,) = state.locks
    world.run(until=20.0)
    assert world.outcomes(payment) == [Outcome.PAID]
    request = RefundRequest(0, prove(state, commitment, lock), signed[0])
    for member in world.members(0):
        world.sim.transmit(payer, member, request)
    world.run()
    assert not any(member.votes for member in world.members(0))
    assert (world.total("u0"), world.total("u1")) == (90, 110)


def test_forged_and_replayed_messages_are_refused():
    """With real signatures: another payment's lock, another channel, another name, another statement."""
    keys = Keys("real")
    world = SyncPCN(line(2), keys=keys, lock="point")
    world.corrupt(world.members(0)[0], Forging("C1.2"))
    world.corrupt(world.members(1)[0], Replaying([0, 1], [1, 2]))
    payment = world.pay(names(2), 10)
    world.run()
    assert world.outcomes(payment) == [Outcome.PAID, Outcome.PAID] and not check(world, SAFETY)
    member = world.members(0)[1]
    newest = member.newest
    for forged in (
        newest._replace(seq=newest.seq + 1),
        newest._replace(seq=newest.seq + 1, left=newest.right),
        newest._replace(cid=1, seq=newest.seq + 1),
    ):
        world.sim.transmit(world.party("u0"), member, forged)
    world.run()
    assert member.newest == newest


def test_an_order_given_to_two_halves_is_paid_at_most_once_and_conserves():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sim = Asynchronous(at_random(rng))
        world = PSyncPCN(line(2, 1, balance=10), sim=sim, echo=bool(seed % 2), ordering="none")
        (_, first), (_, second) = world.order(names(2), 8), world.order(names(2), 9)
        world.faulty.add("u0")
        for k, member in enumerate(world.members(0)):
            world.party("u0").send(member, first if k < 1 + seed % 3 else second)
        world.run()
        assert sum("Paid" in world.outcomes(payment) for payment in world.payments) <= 1
        assert not [v for v in check(world, ("R1", "R2", "R3", "R6"))]


@pytest.mark.parametrize("crashed", [0, 1])
def test_a_leader_that_crashes_is_replaced(crashed):
    world = PSyncPCN(line(2), ordering="agreed")
    for cid in range(2):
        world.corrupt(world.members(cid)[crashed], Silent())
    payment = world.pay(names(2), 10)
    world.run()
    assert world.outcomes(payment) == [Outcome.PAID, Outcome.PAID]
    assert (payment.time("receipt") > 10) == (crashed == 0)


def test_two_payments_for_the_last_coin_from_both_sides():
    for seed in range(30):
        sim = Simulation(within(1.0, np.random.default_rng(seed)))
        world = PSyncPCN(line(2, 1, balance=10, other=10), sim=sim, ordering="agreed")
        payments = [world.pay(path, 10) for path in (names(2), names(2)[::-1], names(2), names(2)[::-1])]
        world.run()
        assert not check(world, SAFETY)
        assert all(Outcome.LOCKED not in world.outcomes(payment) for payment in payments)


def test_a_receiver_does_not_open_late():
    """The lock is certified too late for a claim to be in time (announcements take longer than delta)."""
    world = SyncPCN(line(1))
    payment = world.pay(names(1), 10)
    for party in ("u0", "u1"):
        world.party(party).faults = (Late(Announce, lambda to, m: 6.5 if m.seq == 1 else None, 1.0),)
    world.run()
    assert world.outcomes(payment) == [Outcome.REFUNDED]
    assert "receipt exists" not in payment.times


@pytest.mark.parametrize(("lock", "found"), [("hash", True), ("mock", False), ("point", False)])
def test_a_wormhole_works_with_one_hash_and_not_with_points(lock, found):
    world = skipping(SyncPCN, lock=lock)
    (payment,) = world.payments
    assert bool(check(world, ("R11",))) == found
    assert world.total("u2") == world.initial("u2")  # it loses no coins, but its fee
    if found:
        assert world.outcomes(payment) == [Outcome.PAID, Outcome.REFUNDED, Outcome.REFUNDED, Outcome.PAID]
        assert world.total("u1") + world.total("u3") == 400 + 3  # all fees


@pytest.mark.parametrize(
    "more", [{}, {"commit": "forward"}, {"ordering": "payer"}, {"ordering": "agreed"}, {"relay": "party"}], ids=str
)
def test_nobody_between_is_skipped_in_psyncpcn(more):
    """R11: u_1, u_3 and f members of every committee hand all they have past u_2, whose fee they want."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        sim = Simulation(within(1.0, rng)) if "ordering" in more else Asynchronous(at_random(rng))
        world = PSyncPCN(line(4), sim=sim, **{"ordering": "none", **more})
        payment = world.pay(names(4), 10, fee=1)
        for cid, other in enumerate((3, 3, 0, 0)):
            world.corrupt(world.members(cid)[rng.integers(4)], Shortcut(world.members(other)))
        for party, other in (("u1", 3), ("u3", 0)):
            world.corrupt(world.party(party), Shortcut(world.members(other)))
        world.run()
        assert not check(world, ("R1", "R2", "R3", "R6", "R8", "R11"))
        if "relay" not in more:  # committees need nobody to carry anything
            assert set(world.outcomes(payment)) == {Outcome.PAID} and world.total("u2") == world.initial("u2") + 1


def test_a_certified_payment_that_too_few_members_know_of_is_found():
    """R8 of PSyncPCN can fail: the members forget."""
    world = PSyncPCN(line(1))
    world.pay(names(1), 10)
    world.run()
    assert not check(world, ("R8",))
    for member in world.members(0)[:3]:
        member.entries.clear()
    assert [v.requirement for v in check(world, ("R8",))] == ["R8", "R8"]


def busy(delta: float, payments: int = 150):
    """Honest payments over three hops of a ring of 12 parties, every message taking 1; what share of them succeeds."""
    rng = np.random.default_rng(0)
    ring = [(f"p{i}", f"p{(i + step) % 12}", 100, 100) for i in range(12) for step in (1, 2)]
    world = SyncPCN(Topology(tuple(ring)), timing=Timing(delta))
    for k in range(payments):
        places = np.cumsum([rng.integers(12), *rng.integers(1, 3, 3)]) % 12
        path = [f"p{i}" for i in places]
        world.pay(path if k % 2 else path[::-1], 1, at=1.37 * k)
    world.run()
    return world, np.mean(["receipt" in payment.times for payment in world.payments])


@pytest.mark.parametrize(("delta", "least"), [(1.0, 0.1), (10.0, 1.0)])
def test_busy_channels_between_honest_parties_stay_usable(delta, least):
    """However many payments compete, no proposal is left without an answer; with time to wait all of them succeed."""
    world, share = busy(delta)
    assert share >= least
    assert all({"receipt", "too late"} & set(payment.times) for payment in world.payments)
    ends = [end for i in range(12) for end in world.party(f"p{i}").ends.values()]
    assert not any(end.pending or end.wanted or end.disputes or end.held for end in ends)
    assert not check(world, SAFETY)
    before = len(world.payments)
    for left, right, *_ in world.topology.channels:
        for path in ([left, right], [right, left]):  # the second one out of turn
            world.pay(path, 1)
            world.run()
    assert all("receipt" in payment.times for payment in world.payments[before:])


@pytest.mark.parametrize("start", [0.0, 0.1, 1 / 3, 1e5 + 0.7])
@pytest.mark.parametrize("timing", [Timing(), Timing(10.0), Timing(0.1), Timing(1.0, 0.3)], ids=str)
def test_rounding_refuses_no_deadlines(start, timing):
    """A lock's deadlines are accepted whenever a payment starts, and the margin is not a bit too small."""
    for hops in (1, 2, 3, 7):
        expiries = timing.expiries(start, hops)
        assert all(timing.apart(a, b) for a, b in zip(expiries, expiries[1:], strict=False))
        assert not any(timing.apart(a - 1e-6, b) for a, b in zip(expiries, expiries[1:], strict=False))
        last = start + 3 * (hops + 1) * timing.delta + 2 * timing.skew
        assert -1e-9 < expiries[-1] - last < 1e-6 + 1e-9
        assert expiries[0] - expiries[-1] == pytest.approx((hops - 1) * timing.margin)
    world = SyncPCN(line(3), timing=timing, sim=Simulation(lambda *_: timing.delta * (1 - 1e-12)))
    payment = world.pay(names(3), 10, at=start)
    world.run()
    assert set(world.outcomes(payment)) == {Outcome.PAID}


@pytest.mark.parametrize("setup", ["none", "another amount", "too close"])
def test_a_sender_that_tells_wrong_things_does_not_break_other_peoples_channels(setup):
    """u_2 takes the lock of hop 2 and gives it back; the channel between u_1 and u_2 works as before."""

    class Misleading(Fault):
        def outgoing(self, node, to, message):
            if not (isinstance(message, Setup) and to.name == "u2"):
                return [(to, message)]
            cid, lock = message.incoming
            wrong = {
                "none": [],
                "another amount": [message._replace(incoming=(cid, lock._replace(amount=lock.amount + 1)))],
                "too close": [message._replace(incoming=(cid, lock._replace(expiry=lock.expiry - 1)))],
            }
            return [(to, copy) for copy in wrong[setup]]

    world = SyncPCN(line(3))
    world.corrupt(world.party("u0"), Misleading())
    payment = world.pay(names(3), 10)
    world.run()
    assert world.outcomes(payment) == [Outcome.REFUNDED, Outcome.REFUNDED, "never locked"] and not check(world, SAFETY)
    for path in (["u1", "u2"], ["u2", "u1"]):
        payment = world.pay(path, 10)
        world.run()
        assert world.outcomes(payment) == [Outcome.PAID]


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_payments_out_of_turn_succeed_when_messages_take_as_long_as_they_may(hops):
    """R7 back and forth over one path: the sender asks for its turn first, the others while it locks."""
    world = SyncPCN(line(hops))
    for path in (names(hops)[::-1], names(hops), names(hops), names(hops)[::-1]):
        payment = world.pay(path, 10)
        world.run()
        assert set(world.outcomes(payment)) == {Outcome.PAID} and payment.time("receipt") <= 4 * hops + 2


def test_a_leaked_key_opens_nothing_else():
    seen = []

    class Leaking(Fault):
        """Tells an accomplice what it receives."""

        def incoming(self, node, sender, message):
            seen.append(message)
            return True

    world = SyncPCN(line(3))
    world.corrupt(world.party("u2"), Leaking())
    world.pay(names(3), 10)
    world.run()
    keys = [m.change.key for m in seen if isinstance(m, Propose) and m.change.what == "open"]
    locks = [lock for _, lock in world.hops(world.payments[0])]
    assert [world.locks.opens(lock.condition, keys[0]) for lock in locks] == [False, False, True]


def test_a_faulty_channel_harms_its_own_parties_alone():
    """F2: all of C_2 is faulty and u_2 takes part; everybody else is safe."""
    for fault in (Silent(), Equivocating(), Careless()):
        world = SyncPCN(line(4))
        payment = world.pay(names(4), 10)
        for member in world.members(1):
            world.corrupt(member, fault)
        world.corrupt(world.party("u2"), Silent(kinds=(Cosign,), after=2.0))
        world.run()
        assert not [v for v in check(world, SAFETY) if v.who not in ("u1", "u2", "C2")], world.outcomes(payment)


def test_psyncpcn_next_to_a_faulty_committee_is_stuck_or_loses():
    stuck = PSyncPCN(line(3))
    payment = stuck.pay(names(3), 10)
    for member in stuck.members(1):
        stuck.corrupt(member, Silent())
    stuck.run()
    assert {v.requirement for v in check(stuck, SAFETY)} == {"R5"} and stuck.outcomes(payment)[0] == Outcome.LOCKED

    class TwoFaced(Fault):
        """PAID downstream is swallowed; upstream hears ABORT."""

        def outgoing(self, node, to, message):
            if isinstance(message, Share) and message.what == "PAID" and to.name.startswith("C1"):
                signature = node.keys.sign(node.name, ("share", "ABORT", message.cid, message.pid))
                return [(to, message._replace(what="ABORT", signature=signature))]
            return [(to, message)]

    lost = PSyncPCN(line(3))
    payment = lost.pay(names(3), 10)
    for member in lost.members(1):
        lost.corrupt(member, TwoFaced())
    lost.run()
    assert (lost.outcomes(payment)[0], lost.outcomes(payment)[2]) == (Outcome.REFUNDED, Outcome.PAID)
    assert lost.total("u1") < lost.initial("u1")


def test_a_violation_carries_the_events_that_led_to_it():
    world, payment = claim_world(0.0, (0, 1, 2, 3), trace=True)
    world.members(1)[0].faults = ()
    for member in world.members(1)[1:]:
        world.corrupt(member, Equivocating())
    world.run()
    world.correct = lambda cid: True
    violations = check(world, ("R1", "R4", "R5", "R6"))
    assert violations and all(v.requirement in REQUIREMENTS for v in violations)
    assert all(len(v.trace) < len(world.sim.trace) for v in violations)
    assert any(v.trace for v in violations)


# directed attacks


def _refund_asked(after: float):
    """A payer that signs no opening, and asks for its refund at T_1 + after."""
    world = SyncPCN(line(1))
    world.pay(names(1), 10)
    payer = world.party("u0")
    world.corrupt(payer, Deaf(opening))
    world.sim.timer(payer, world.timing.expiries(0.0, 1)[0] + after, dispute, (payer, False))
    world.run()
    return check(world, SAFETY)


def early_refund():
    """A payer that signs no opening, and asks for its refund so that this arrives with the claim, at T_1."""
    return _refund_asked(-1.0)


def double_dispute():
    """A payer that signs no opening, and asks for its refund after the payee's claim has succeeded."""
    return _refund_asked(5.0)


def late_claim():
    """A receiver that claims at T_2, and a sender that signs no opening."""
    world, _ = claim_world(0.0, (0, 1, 2, 3))
    world.corrupt(world.party("u0"), Silent(kinds=(Cosign,)))
    world.run()
    return check(world, SAFETY)


def votes_are_split():
    """The same with f faulty members: no two opposite certificates."""
    world = split_votes(1, 1)
    return check(world, SAFETY) + world.opposite()


def old_announcement():
    """A party that announces an earlier state again after a later one."""
    world = SyncPCN(line(1))
    watch = Watch(world)
    world.pay(names(1), 10)
    world.run(until=4.0)
    old = world.party("u0").ends[0].announcement()
    world.pay(names(1), 20, at=30.0)
    world.run()
    wrong = watch.look()
    for member in world.members(0):
        member.log.clear()  # as after many updates
        world.sim.transmit(world.party("u0"), member, old)
    world.run()
    return wrong + watch.look() + check(world, SAFETY)


def forwards_too_early():
    """Every party between waits for the certificate of its incoming lock before it locks the next hop."""
    world = SyncPCN(line(3), sim=Simulation(trace=True))
    world.pay(names(3), 10)
    world.run()
    wrong = []
    for party in ("u1", "u2"):
        events = [e for e in world.sim.trace if e.node == party]
        acks = 0
        for event in events:
            acks += event.what == "deliver" and event.kind == "Ack"
            if event.what == "send" and event.kind == "Propose" and event.message.change.what == "lock":
                wrong += [f"{party} forwards with {acks} acknowledgements"] * (acks < 3)
    return wrong


def certificates_skip_a_party():
    """Colluding parties around an honest one carry certificates past it and its committees (PSyncPCN)."""
    return check(skipping(PSyncPCN, relay="party"), ("R1", "R6", "R11"))  # without live parties a lock may stay (R5)


@pytest.mark.parametrize(
    "attack",
    [
        *(early_refund, double_dispute, late_claim, votes_are_split, old_announcement, forwards_too_early),
        certificates_skip_a_party,
    ],
)
def test_a_directed_attack_finds_nothing_wrong(attack):
    assert attack() == []


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_late_messages_hurt_syncpcn_alone(late):
    """Without late messages nobody honest loses, attacked or not; with them only SyncPCN is unsafe."""
    assert loss_rate(PSyncPCN, late, range(60), attacked=False) == (0, 0)
    losses = {attacked: loss_rate(SyncPCN, late, range(150), attacked)[0] for attacked in (False, True)}
    assert (max(losses.values()) > 0) == (late > 0), losses
