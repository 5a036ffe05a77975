"""Attacks on PSyncPCN that earlier versions lost money or payments to, each in its smallest form.

In all of them at most f members of a committee are faulty, and every message arrives in the end. What is checked after
every event are the invariants of `requirements` and the protocol's own (`psyncpcn.invariants`).
"""

import numpy as np
import pytest

from swarmbook.payments.adversary import Fault, Selective, Silent
from swarmbook.payments.attacks import SAFETY, asynchronous_world, names
from swarmbook.payments.outcomes import Decision, Outcome
from swarmbook.payments.payment_network import line
from swarmbook.payments.psyncpcn import PSyncPCN, Share
from swarmbook.payments.requirements import Watch, check
from swarmbook.payments.simulation import Simulation, within

COMMITS = ("return", "forward")


def watched(world):
    """Run a world event by event, and return what is wrong with it on the way and in the end."""
    watch, wrong = Watch(world), []
    while world.sim.next < float("inf"):
        world.run(world.sim.next)
        wrong += watch.look()
    return sorted(set(wrong)) + [str(violation) for violation in check(world, SAFETY)]


def late_order(to: str, after: float):
    """Every message takes 1, but what the sender of the payment says to one member takes longer."""
    return lambda sender, node, message: after if sender.name == "u0" and node.name == to else 1.0


# committees that agree


@pytest.mark.parametrize("hops", [1, 2])
def test_a_member_that_the_leader_leaves_out_learns_what_was_decided(hops):
    """The leader talks to two others alone: they decide with it, and the fourth has to be told."""
    world = PSyncPCN(line(hops), ordering="agreed")
    committee = world.members(hops - 1)
    world.corrupt(committee[0], Selective([committee[1].name, committee[3].name]))
    payment = world.pay(names(hops), 10)
    assert not watched(world)
    assert set(world.outcomes(payment)) == {Outcome.PAID} and world.receipt(payment)
    assert [world.total(party) for party in names(hops)] == [90, *[200] * (hops - 1), 110]


# members that learn the outcome early


@pytest.mark.parametrize("ordering", ["none", "payer"])
@pytest.mark.parametrize("commit", COMMITS)
def test_a_member_that_is_told_the_outcome_before_it_locked_still_sends_its_share(ordering, commit):
    """C2.3 lacks the share of C1.3, to whom the order comes last, and C1.1 and C1.2 lack that of C2.3."""
    world = PSyncPCN(line(2), sim=Simulation(late_order("C1.3", 100.0)), ordering=ordering, commit=commit)
    world.corrupt(world.members(0)[3], Selective(["u0", "C2.1", "C2.2", "C2.4"]))
    world.corrupt(world.members(1)[3], Selective(["u1", "C1.3"]))
    payment = world.pay(names(2), 10)
    assert not watched(world)
    assert set(world.outcomes(payment)) == {Outcome.PAID} and world.receipt(payment)
    assert world.total("u1") == 200
