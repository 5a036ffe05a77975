"""Seeded worlds behave event by event as they did when these digests were written down.

A digest covers every event of a world's trace (time, node, peer, number, and all that a message says), how payments
ended and when, and what the requirements and invariants say of it. Names of classes and of timers' methods are left
out.
"""

import hashlib

import numpy as np
import pytest

from swarmbook.payments.adversary import Equivocating, Silent
from swarmbook.payments.attacks import (
    asynchronous_world,
    claim_world,
    late_world,
    skipping,
    split_votes,
    synchronous_world,
)
from swarmbook.payments.channel_committee import Announce
from swarmbook.payments.channel_update import Cosign
from swarmbook.payments.lightning import Lightning
from swarmbook.payments.payment_network import line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.requirements import CHECKS, check, invariants
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Simulation, within
from swarmbook.payments.syncpcn import SyncPCN, Vote


def names(hops):
    return [f"u{i}" for i in range(hops + 1)]


def plain(value):
    """What a message says, without the names of its classes."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return str(value) if isinstance(value, str) else value


def traced(world):
    world.sim.trace = []
    return world


def busy(kind, **more):
    """Five payments over three hops, both ways, some of more coins than there are."""
    sim = Simulation(within(1.0, np.random.default_rng(7)), trace=True)
    world = kind(line(3, balance=20, other=15), sim=sim, seed=3, **more)
    for k, amount in enumerate((3, 9, 4, 12, 30)):
        world.pay(names(3)[:: -1 if k % 2 else 1], amount, at=2.5 * k, fee=k % 2)
    return world


def unsigned():
    """A payer that takes the lock and then signs nothing more."""
    world = SyncPCN(line(2), sim=Simulation(trace=True))
    world.pay(names(2), 10)
    world.corrupt(world.party("u1"), Silent(kinds=(Cosign, Announce), when=lambda m: m.cid == 1 and m.seq > 1))
    return world


WORLDS = {
    "SyncPCN": lambda: [busy(SyncPCN)],
    "SyncPCN, signed": lambda: [busy(SyncPCN, keys=Keys("cached", 2), lock="point")],
    "SyncPCN, one hash": lambda: [busy(SyncPCN, lock="hash")],
    "SyncPCN, a claim": lambda: [unsigned(), claim_world(0.0, (0, 1), (3,), trace=True)[0]],
    "SyncPCN, random adversaries": lambda: [traced(synchronous_world(seed)) for seed in range(40)],
    "PSyncPCN, none": lambda: [busy(PSyncPCN, ordering="none")],
    "PSyncPCN, payer": lambda: [busy(PSyncPCN, ordering="payer")],
    "PSyncPCN, agreed": lambda: [busy(PSyncPCN, ordering="agreed")],
    "PSyncPCN, carried by parties": lambda: [busy(PSyncPCN, ordering="none", relay="party")],
    "PSyncPCN, forward": lambda: [busy(PSyncPCN, ordering="none", commit="forward", echo=True, keys=Keys("cached"))],
    "PSyncPCN, random adversaries": lambda: [
        traced(asynchronous_world(seed, ("none", "payer", "agreed")[seed % 3])) for seed in range(30)
    ],
    "Lightning": lambda: [busy(Lightning), busy(Lightning, wire=False)],
    "attacks": lambda: [
        split_votes(1, 2),
        late_world(SyncPCN, 0.4, 5, attacked=True),
        skipping(SyncPCN, lock="hash", sim=Simulation(trace=True)),
        skipping(PSyncPCN, ordering="none", relay="party", sim=Simulation(trace=True)),
    ],
}

GOLDEN = {
    "SyncPCN": "0450bbd9da2e884de7ca75f66ea285f7",
    "SyncPCN, signed": "ea4d939575f3767d635741ad222fabcd",
    "SyncPCN, one hash": "6f724cfe03205706fc4b572c60a40c40",
    "SyncPCN, a claim": "f45bb48c7c0bb5eebe9ae0610dd22a24",
    "SyncPCN, random adversaries": "cf900da467f869951ba9afc78e45c8a1",
    "PSyncPCN, none": "af980f819388c4535460a5f87b673b0d",
    "PSyncPCN, payer": "7bea827210810b6e861b443c9cb457c3",
    "PSyncPCN, agreed": "613f49ae7ee4868fc3ca77ef4956cdec",
    "PSyncPCN, carried by parties": "b096222a65960bec95d53310246e38a3",
    "PSyncPCN, forward": "2662c72094a10fca5e6c4bdc530c2f4d",
    "PSyncPCN, random adversaries": "83e86271ff3cc6f24885ee229b00f407",
    "Lightning": "add69e5988afcb202a1929e60c5ab3df",
    "attacks": "bf80c92ddd199c0f12908f1f6384aaed",
}


def digest(worlds):
    total = hashlib.sha256()
    for world in worlds:
        world.run()
        for event in world.sim.trace or ():
            what = "" if event.what == "timer" else plain(event.message)
            total.update(repr((event.time, event.what, event.node, event.peer, what, event.number)).encode())
        parties = sorted({party for channel in world.topology.channels for party in channel[:2]})
        total.update(
            repr(
                (
                    *(world.sim.now, world.sim.sent, world.sim.events),
                    *(plain(tuple(world.outcomes(payment))) for payment in world.payments),
                    *(sorted(payment.times.items()) for payment in world.payments),
                    *(world.receipt(payment) for payment in world.payments),
                    *(world.total(party) for party in parties),
                    *sorted(map(str, check(world, CHECKS))),
                    *sorted(invariants(world)),
                )
            ).encode()
        )
    return total.hexdigest()[:32]


@pytest.mark.parametrize("decision, other", [("PAID", "REFUNDED"), ("REFUNDED", "PAID")])
def test_a_member_that_contradicts_itself_says_the_opposite_of_a_lock(decision, other):
    """Not ABORT, which no vote of SyncPCN knows: whoever hears it would take it for silence."""
    world = SyncPCN(line(1))
    member, party = world.members(0)[0], world.party("u0")
    vote = Vote(cid=0, about="lock", decision=decision, key=None, signature=None)
    said = [message.decision for _, message in Equivocating().outgoing(member, party, vote)]
    assert said == [decision, other]


@pytest.mark.parametrize("name", WORLDS)
def test_a_seeded_world_behaves_as_it_did(name):
    assert digest(WORLDS[name]()) == GOLDEN[name]
