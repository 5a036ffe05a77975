"""Attacks to which an earlier version of SyncPCN lost money, within its promises, each in its smallest form."""

import numpy as np
import pytest

from swarmbook.payments.adversary import Deaf, Fault, Late, Selective, Silent
from swarmbook.payments.attacks import SAFETY, names, opening, synchronous_world
from swarmbook.payments.channel import Change, Lock, Refused, State, follow, lock_digest
from swarmbook.payments.channel_committee import Ack, Announce
from swarmbook.payments.channel_update import Ask, Cosign, Propose
from swarmbook.payments.outcomes import Decision, Outcome
from swarmbook.payments.payment_network import line
from swarmbook.payments.requirements import Watch, check
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Simulation
from swarmbook.payments.syncpcn import Claim, NewerState, RefundRequest, Setup, SyncPCN, Timing, Vote
from swarmbook.payments.syncpcn.invariants import broken


def watched(world, until=float("inf")):
    """Let everything happen; the invariants hold after every moment."""
    watch = Watch(world)
    while world.sim.next <= until and world.sim.next < float("inf"):
        world.run(world.sim.next)
        assert not broken(world) + watch.look()


# SyncPCN


class InsteadOfOpening(Fault):
    """A payee that does something else, `act(node, end, transit)`, where it would propose to open a lock."""

    def __init__(self, act):
        self.act = act

    def outgoing(self, node, to, message):
        if not opening(message):
            return [(to, message)]
        end, transit = node.ends[message.cid], node.inbound[message.change.pid]
        end.pending = None
        self.act(node, end, transit)
        return []


def claims(node, end, transit):
    node.claim(end, transit.incoming[1], transit.key)


def asks_for_a_refund(node, end, transit):
    node.ask_refund(end, transit.incoming[1])


def slow_votes(sender, to, message):
    """Votes to u1 take the longest delay, everything else is fast."""
    return 1.0 if isinstance(message, Vote) and to.name == "u1" else 0.05


def test_a_payer_does_not_sign_a_lock_away_before_it_has_the_key():
    """The receiver's certificate of PAID comes, in its next proposal, before the votes that carry the key."""
    world = SyncPCN(line(2), sim=Simulation(slow_votes))
    world.corrupt(world.party("u2"), InsteadOfOpening(claims))
    payment, back = world.pay(names(2), 10), world.pay(["u2", "u1"], 1, at=0.5)
    watched(world)
    assert not check(world, SAFETY), world.outcomes(payment)
    assert world.outcomes(payment) + world.outcomes(back) == [Outcome.PAID] * 3  # the proposal itself carries the key
    assert world.total("u1") >= world.initial("u1")


class TellsTheCommitteeAlone(Fault):
    """A party that signs one proposal, and lets the committee know of it at a given time; the other party is not told.

    which: of the proposals on a channel, the first for which this is true.
    """

    def __init__(self, cid: int, when: float, which=opening):
        self.cid, self.when, self.which, self.hidden = cid, when, which, None

    def incoming(self, node, sender, message):
        if self.hidden is None and isinstance(message, Propose) and message.cid == self.cid and self.which(message):
            self.hidden = message.seq
        return True

    def outgoing(self, node, to, message):
        if not isinstance(message, Announce | Cosign) or message.cid != self.cid or message.seq != self.hidden:
            return [(to, message)]
        if isinstance(message, Announce):
            node.sim.timer(node, self.when, node.sim.transmit, (node, to, message, 1e-6))
        return []


def far_from_the_committee(sender, to, message):
    """u1 and members are as far from each other as is allowed, everybody else is near."""
    far = "u1" in (sender.name, to.name) and "." in sender.name + to.name
    return 1.0 if far else 1e-3


@pytest.mark.parametrize("arrival", [5.9, 5.99])
def test_a_claim_stands_when_the_payer_has_told_the_committee_alone_of_the_next_state(arrival):
    """Two locks in one channel: the payee has proposed to open the first, and claims both; the claims arrive at 6."""
    world = SyncPCN(line(1), sim=Simulation(far_from_the_committee))
    world.corrupt(world.party("u0"), TellsTheCommitteeAlone(0, arrival))
    payments = [world.pay(names(1), 10), world.pay(names(1), 7, at=0.99)]
    watched(world)
    assert not check(world, SAFETY), [world.outcomes(payment) for payment in payments]
    assert (world.total("u0"), world.total("u1")) == (83, 117)


def test_parties_on_both_sides_cannot_make_a_claim_stale():
    """u0 does the same to u1, whose key comes as late as it can: its accomplice u2 claims at the last moment."""
    world = SyncPCN(line(2), sim=Simulation(far_from_the_committee))
    first, second = world.timing.expiries(0.0, 2)
    world.corrupt(world.party("u0"), TellsTheCommitteeAlone(0, first - 1e-3))
    world.corrupt(world.party("u2"), Silent(kinds=(Propose,)), Late(Claim, lambda to, m: second, 1.0))
    payments = [world.pay(names(2), 10), world.pay(names(1), 7, at=0.01)]
    watched(world)
    assert not check(world, SAFETY), [world.outcomes(payment) for payment in payments]
    assert world.outcomes(payments[0]) == [Outcome.PAID, Outcome.PAID]
    assert world.total("u1") >= world.initial("u1")


@pytest.mark.parametrize("seed", [34697, 36206, 50566, 56025, 59855])
def test_claims_of_honest_parties_stand_whatever_the_delays(seed):
    """Everybody is honest; these are the schedules among 60,000 random ones in which the receiver lost a payment."""
    rng = np.random.default_rng(seed)
    delays = [0.001, 0.25, 0.5, 0.75, 1.0]
    world = SyncPCN(line(1), sim=Simulation(lambda sender, to, message: delays[int(rng.integers(5))]))
    payments = [world.pay(names(1), 10), world.pay(names(1), 7, at=0.7)]
    watched(world)
    assert not check(world, SAFETY), [world.outcomes(payment) for payment in payments]


def test_a_refund_request_stands_when_the_payee_has_told_the_committee_alone_of_the_next_state():
    """The payer has proposed to pay another coin; its refund still comes by T_1 + 4 delta."""
    disputes = RefundRequest, Vote, NewerState
    world = SyncPCN(line(1), sim=Simulation(lambda sender, to, m: 1.0 if isinstance(m, disputes) else 0.05))
    expiry = world.timing.expiries(0.0, 1)[0]
    hides = TellsTheCommitteeAlone(0, expiry + 2.5, lambda m: m.change.what == "pay")
    world.corrupt(world.party("u1"), Silent(kinds=(Claim,)), InsteadOfOpening(lambda *_: None), hides)
    payment = world.pay(names(1), 10)
    world.run(0.5)
    world.update("u0", "u1", 1)
    world.run(expiry + 4.0)
    assert hides.hidden is not None and world.outcomes(payment) == [Outcome.REFUNDED]
    watched(world)
    assert not check(world, SAFETY)


def test_a_lock_is_decided_once_in_a_state():
    """A payee that folds one certificate twice into its proposal does not get the amount twice."""
    state = State(0, 4, 50, 20, (Lock(11, 0, 30, 5, 9.0),), 99)
    for decision in (Decision.PAID, Decision.REFUNDED):
        assert follow(state, 1, Change("pay", amount=1), 1, [(11, decision)]).capacity == state.capacity
        with pytest.raises(Refused, match="no lock 11"):
            follow(state, 1, Change("pay", amount=1), 1, [(11, decision), (11, decision)])


def test_a_payer_does_not_pay_what_the_committee_has_refunded():
    """The receiver lets the committee refund the lock, so that u1 gives its own back, and opens it then."""

    def refunds_and_opens(node, end, transit):
        node.ask_refund(end, transit.incoming[1])
        node.at(node.clock + 3.0, opens, node, end, transit)

    def opens(node, end, transit):
        node.faults = ()
        end.resolved.clear()
        end.want(Change("open", pid=transit.incoming[1].pid, key=transit.key))

    world = SyncPCN(line(2))
    world.corrupt(world.party("u2"), InsteadOfOpening(refunds_and_opens))
    payment = world.pay(names(2), 10)
    watched(world)
    assert not check(world, SAFETY), world.outcomes(payment)
    assert world.total("u1") == world.initial("u1")


def test_a_refund_that_the_payee_folds_into_its_proposal_is_passed_on():
    """The votes come when the lock is gone; u0 asks for nothing, so that u1 has to give the first lock back."""
    world = SyncPCN(line(2), sim=Simulation(slow_votes))
    world.corrupt(world.party("u2"), InsteadOfOpening(asks_for_a_refund))
    world.corrupt(world.party("u0"), Silent(kinds=(RefundRequest,)))
    payment = world.pay(names(2), 10)
    world.pay(["u2", "u1"], 1, at=0.5)
    watched(world)
    assert world.outcomes(payment) == [Outcome.REFUNDED, Outcome.REFUNDED]
    assert not check(world, SAFETY)


def test_a_lock_is_not_made_again_under_a_name_that_was_used():
    """The committee has refunded a lock of which u1 was not told; u0 locks it again, and tells u1."""
    world = SyncPCN(line(1))
    payer = world.party("u0")
    payer.timing = Timing(3.0)  # so that the lock expires late
    kept = []

    class Keeps(Fault):
        def outgoing(self, node, to, message):
            return kept.append((node, to, message)) or [] if isinstance(message, Setup) else [(to, message)]

        def incoming(self, node, sender, message):
            return kept.append((sender, node, message)) if isinstance(message, Propose) else True

    world.corrupt(payer, Keeps())
    payment = world.pay(names(1), 10)
    world.run(8.0)
    end = payer.ends[0]
    (lock,), refund = end.state.locks, dict(end.resolved)
    assert refund and {type(message) for *_, message in kept} == {Setup, Propose}
    payer.faults = (Deaf(opening),)
    for sender, to, message in kept:
        world.sim.transmit(sender, to, message)
    world.run(11.0)
    end.past.clear()
    end.want(Change("lock", lock=lock))
    world.run(14.0)
    end.resolved.update(refund)
    watched(world, until=60.0)
    assert "receipt exists" not in payment.times and not world.receipt(payment)
    assert not check(world, SAFETY), world.outcomes(payment)


def test_two_refused_locks():
    """A lock without an end, and one that ends a moment later, which is another lock."""
    state = State(0, 4, 50, 20, (), 99)
    for expiry in (float("inf"), float("nan")):
        with pytest.raises(Refused):
            follow(state, 0, Change("lock", lock=Lock(11, 0, 30, 5, expiry)), 1)
    keys = Keys("real")
    digests = {lock_digest(Lock(11, 0, 30, 5, expiry), keys) for expiry in (9.0, 9.0 + 2.0**-20, 9.0004)}
    assert len(digests) == 3


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_invariants_hold_after_every_event_against_random_adversaries(first):
    for seed in range(1000 + first, 1010 + first):
        world = synchronous_world(seed)
        watched(world)
        assert not check(world, SAFETY)


# liveness among honest parties, whatever the order in which messages arrive


def by_kind(slow, otherwise=0.01):
    """Delays of 1 for messages of which `slow(sender, to, message)` is true."""
    return Simulation(lambda sender, to, message: 1.0 if slow(sender, to, message) else otherwise)


def test_a_proposal_may_overtake_the_signature_before_it():
    world = SyncPCN(line(1), sim=by_kind(lambda sender, to, m: isinstance(m, Cosign)))
    world.update("u0", "u1", 5)
    world.run(0.1)
    world.update("u1", "u0", 3)
    watched(world)
    assert (world.total("u0"), world.total("u1")) == (98, 102)


def test_a_turn_that_is_given_away_is_not_lost():
    """u1's question for the turn, and u0's signature, are slow; the question has been answered when it arrives."""
    world = SyncPCN(line(1), sim=by_kind(lambda sender, to, m: isinstance(m, Ask | Cosign) and m.seq != 1))
    for payer, payee, amount in (("u1", "u0", 3), ("u0", "u1", 5), ("u1", "u0", 1), ("u0", "u1", 2)):
        world.update(payer, payee, amount)
        world.run(world.sim.now + 0.02)
    watched(world)
    for payer, payee, amount in (("u0", "u1", 10), ("u1", "u0", 20)):
        world.update(payer, payee, amount)
        watched(world)
    assert (world.total("u0"), world.total("u1")) == (107, 93)


def test_a_lock_is_certified_under_a_stream_of_updates():
    """Acknowledgements reach u1 late, when u0 has made many more updates; the payment succeeds all the same."""
    world = SyncPCN(line(1, balance=1000), sim=by_kind(lambda sender, to, m: isinstance(m, Ack) and to.name == "u1"))
    payment = world.pay(names(1), 10)
    for k in range(100):
        world.run(0.2 + 0.04 * k)
        world.update("u0", "u1", 1)
    watched(world)
    assert world.outcomes(payment) == [Outcome.PAID]


def test_what_a_payer_concedes_needs_no_certificate():
    """The next update of the payer pays the conceded lock out."""
    world = SyncPCN(line(2))
    last = world.timing.expiries(0.0, 2)[1] - 1.0
    late = InsteadOfOpening(lambda node, end, transit: node.at(last, claims, node, end, transit))
    world.corrupt(world.party("u2"), late, Selective(["C2.1"], kinds=(Claim,)))
    payment = world.pay(names(2), 10)
    watched(world)
    assert world.outcomes(payment) == [Outcome.PAID, Outcome.PAID]
    world.update("u1", "u2", 1)
    watched(world)
    assert not world.party("u1").ends[1].state.locks and world.total("u2") == 111


def test_members_answer_everybody_who_announced_early_and_heed_no_forgery():
    world = SyncPCN(line(1), sim=Simulation(trace=True))
    states = []
    for amount in (1, 2):
        world.update("u0", "u1", amount)
        watched(world)
        states.append(world.party("u0").ends[0].announcement())
    left, right = world.party("u0"), world.party("u1")
    member = SyncPCN(line(1)).members(0)[0]
    member.parties, member.sim, member.keys = (left, right), world.sim, world.keys
    first, second = states
    for sender, m in ((left, second), (right, second), (left, second._replace(right=second.left)), (right, first)):
        member.announced(sender, m)
    sent = [(e.peer, e.message.seq) for e in world.sim.trace if e.what == "send" and e.node == "C1.1"][-3:]
    assert sent == [("u1", 1), ("u0", 2), ("u1", 2)]
