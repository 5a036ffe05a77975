"""For how long coins can be kept locked: the search never finds more than the closed form, and finds as much."""

import random
from functools import partial

import pytest

from swarmbook.errors import ConfigError
from swarmbook.payments.adversary import Silent
from swarmbook.payments.channel_update import Propose
from swarmbook.payments.closed_forms import (
    lock_bound,
    lock_denied_by_member,
    reservation_bound,
    reservation_bound_agreed,
)
from swarmbook.payments.griefing import freed, worst
from swarmbook.payments.lightning import Lightning
from swarmbook.payments.payment_network import line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.requirements import check
from swarmbook.payments.syncpcn import SyncPCN, Timing
from swarmbook.payments.syncpcn.invariants import broken

UNORDERED, BY_PAYERS = partial(PSyncPCN, ordering="none"), partial(PSyncPCN, ordering="payer")


def members(hops: int, place: int) -> list[str]:
    return [f"C{cid + 1}.{place}" for cid in range(hops)]


CASES = {  # the protocol, who is faulty, and the closed form, of hops and hop
    "SyncPCN, a member": (SyncPCN, lambda n, hop: members(n, 4), lambda n, hop: lock_denied_by_member(n, 1, hop)),
    "SyncPCN, the payee": (SyncPCN, lambda n, hop: [f"u{hop}"], lambda n, hop: lock_bound(n, 1, hop)),
    "PSyncPCN without a sequence, a member": (UNORDERED, lambda n, hop: members(n, 1), reservation_bound),
    "PSyncPCN, the leader": (
        *(PSyncPCN, lambda n, hop: members(n, 1)),
        lambda n, hop: reservation_bound_agreed(n, 8, 1, hop),
    ),
    "PSyncPCN, another member": (
        *(PSyncPCN, lambda n, hop: members(n, 4)),
        lambda n, hop: reservation_bound_agreed(n, 8, 0, hop),
    ),
    "PSyncPCN, the payee": (
        *(PSyncPCN, lambda n, hop: [f"u{hop}"]),
        lambda n, hop: reservation_bound_agreed(n, 8, 0, hop),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_worst_that_is_found_is_the_closed_form(name):
    kind, faulty, form = CASES[name]
    for n in (2, 3):
        for hop in range(1, n + (kind is SyncPCN)):
            found = worst(partial(kind, line(n)), faulty(n, hop), hop, random.Random(0), 60)
            assert found == form(n, hop), (n, hop)


def test_a_payee_that_says_nothing_locks_what_waits_for_it_for_ever_where_committees_wait_for_payers_or_chains():
    for kind in (BY_PAYERS, Lightning):
        assert worst(partial(kind, line(2)), ["u1"], 1, random.Random(0), 60) == float("inf")


@pytest.mark.parametrize("faulty", [1, 2])
def test_silent_leaders_cost_their_waiting_times(faulty):
    world = PSyncPCN(line(3, faulty))
    for cid in range(3):
        for member in world.members(cid)[:faulty]:
            world.corrupt(member, Silent())
    payment = world.pay(["u0", "u1", "u2", "u3"], 10)
    assert freed(world, payment) == [*(reservation_bound_agreed(3, 8, faulty, hop) for hop in (1, 2)), 0.0]


def test_no_sender_keeps_the_coins_of_others_locked_by_deadlines_far_away():
    """The colluding receiver takes the lock and stays silent. u1 would wait for a million times delta."""
    world = SyncPCN(line(2))
    world.corrupt(world.party("u2"), Silent(kinds=(Propose,)))
    sender = world.party("u0")
    world.faulty.add("u0")
    real = sender.timing
    sender.timing = type("Far", (Timing,), {"expiries": lambda self, *a: [t + 1e6 for t in real.expiries(*a)]})()
    payment = world.pay(["u0", "u1", "u2"], 10)
    while world.sim.next < float("inf"):
        world.run(world.sim.next)
        assert not broken(world)
    assert world.outcomes(payment)[1] == "never locked" and not check(world)


def test_a_path_longer_than_parties_accept_is_refused():
    world = SyncPCN(line(3), timing=Timing(hops=2))
    with pytest.raises(ConfigError, match="a path of 3 hops is refused, since parties take part in 2 at most"):
        world.pay(["u0", "u1", "u2", "u3"], 10)
    assert world.pay(["u0", "u1", "u2"], 10).cids == (0, 1)
