"""Attacks to which an earlier version of SyncPCN lost money, within its promises, each in its smallest form."""

import pytest

from swarmbook.payments.adversary import Fault, Late, Silent
from swarmbook.payments.attacks import SAFETY, names, opening
from swarmbook.payments.channel_committee import Announce
from swarmbook.payments.channel_update import Cosign, Propose
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import line
from swarmbook.payments.requirements import check
from swarmbook.payments.simulation import Simulation
from swarmbook.payments.syncpcn import Claim, SyncPCN, Vote

# SyncPCN


class ClaimsAtOnce(Fault):
    """A payee that never proposes to open a lock, and asks the committee at once."""

    def outgoing(self, node, to, message):
        if not opening(message):
            return [(to, message)]
        end = node.ends[message.cid]
        end.pending = None
        transit = node.inbound[message.change.pid]
        node.claim(end, transit.incoming[1], transit.key)
        return []


def test_a_payer_does_not_sign_a_lock_away_before_it_has_the_key():
    """The receiver's certificate of PAID comes, in its next proposal, before the votes that carry the key."""

    def delay(sender, to, message):
        return 1.0 if isinstance(message, Vote) and to.name == "u1" else 0.05

    world = SyncPCN(line(2), sim=Simulation(delay))
    world.corrupt(world.party("u2"), ClaimsAtOnce())
    payment = world.pay(names(2), 10)
    world.pay(["u2", "u1"], 1, at=0.5)
    world.run()
    assert not check(world, SAFETY), world.outcomes(payment)
    assert world.total("u1") >= world.initial("u1")


class TellsTheCommitteeAlone(Fault):
    """A payer that signs an opening, and lets the committee know of it at a given time; the payee is not told."""

    def __init__(self, cid: int, when: float):
        self.cid, self.when, self.hidden = cid, when, None

    def incoming(self, node, sender, message):
        if opening(message) and message.cid == self.cid and self.hidden is None:
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


@pytest.mark.parametrize("arrival", [5.9, 5.99, 6.1])
def test_a_claim_stands_when_the_payer_has_told_the_committee_alone_of_the_next_state(arrival):
    """Two locks in one channel: the payee has proposed to open the first, and claims both; the claims arrive at 6."""
    world = SyncPCN(line(1), sim=Simulation(far_from_the_committee))
    world.corrupt(world.party("u0"), TellsTheCommitteeAlone(0, arrival))
    payments = [world.pay(names(1), 10), world.pay(names(1), 7, at=0.99)]
    world.run()
    assert not check(world, SAFETY), [world.outcomes(payment) for payment in payments]
    assert (world.total("u0"), world.total("u1")) == (83, 117)


def test_parties_on_both_sides_cannot_make_a_claim_stale():
    """u0 does the same to u1, whose key comes as late as it can: its accomplice u2 claims at the last moment."""
    world = SyncPCN(line(2), sim=Simulation(far_from_the_committee))
    first, second = world.timing.expiries(0.0, 2)
    world.corrupt(world.party("u0"), TellsTheCommitteeAlone(0, first - 1e-3))
    world.corrupt(world.party("u2"), Silent(kinds=(Propose,)), Late(Claim, lambda to, m: second, 1.0))
    payments = [world.pay(names(2), 10), world.pay(names(1), 7, at=0.01)]
    world.run()
    assert not check(world, SAFETY), [world.outcomes(payment) for payment in payments]
    assert world.outcomes(payments[0]) == [Outcome.PAID, Outcome.PAID]
    assert world.total("u1") >= world.initial("u1")
