"""What all worlds of payments share: what they refuse, how their clocks run, and that verdicts can be asked of them."""

from itertools import pairwise

import numpy as np
import pytest

from swarmbook.errors import ConfigError
from swarmbook.payments.adversary import Silent
from swarmbook.payments.channel_update import Cosign
from swarmbook.payments.closed_forms import crossover, direct, lock_bound
from swarmbook.payments.lightning import Lightning, loss, margin
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import Payment, Topology, World, line
from swarmbook.payments.privacy import link
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.requirements import CHECKS, Watch, check, invariants
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Asynchronous, Simulation, at_random, stable_after, unit, within
from swarmbook.payments.syncpcn import SyncPCN, Timing
from swarmbook.payments.wan_latency import flows

WORLDS = {
    "Lightning, on the wire": (Lightning, {}),
    "HTLC, abstract": (Lightning, {"wire": False}),
    "SyncPCN": (SyncPCN, {}),
    "PSyncPCN, V1": (PSyncPCN, {"ordering": "none"}),
    "PSyncPCN, V2": (PSyncPCN, {"ordering": "payer"}),
    "PSyncPCN, V3": (PSyncPCN, {"ordering": "agreed"}),
    "PSyncPCN, carried by parties": (PSyncPCN, {"ordering": "none", "relay": "party"}),
    "PSyncPCN, forward": (PSyncPCN, {"ordering": "none", "commit": "forward"}),
}


def made(name: str, topology: Topology | None = None, **more) -> World:
    kind, settings = WORLDS[name]
    return kind(topology or line(2), **settings, **more)


every_world = pytest.mark.parametrize("name", WORLDS)


# what is refused, by all worlds alike and before anything happens


@every_world
@pytest.mark.parametrize(
    "amount", [0, -1, 0.5, 10.0, float("nan"), float("inf"), True, "10", None, np.float64(3)], ids=repr
)
def test_amounts_are_whole_numbers_of_coins(name, amount):
    world = made(name)
    for wrong in ({"amount": amount}, {"amount": 1, "fee": -1 if amount == 0 else amount}):
        with pytest.raises(ConfigError, match=r"(amount|fee)=.* is refused: give a whole number of at least [01]"):
            world.pay(["u0", "u1", "u2"], **wrong)
    assert not world.payments and world.sim.next == float("inf")


@every_world
def test_whole_numbers_of_numpy_are_amounts(name):
    world = made(name, keys=Keys("cached"), **({"lock": "point"} if name == "SyncPCN" else {}))
    payment = world.pay(["u0", "u1", "u2"], np.int64(10), fee=np.int8(1))
    world.run()
    assert payment.amounts == (11, 10) and {type(amount) for amount in payment.amounts} == {int}
    assert set(world.outcomes(payment)) == {Outcome.PAID}


PATHS = [
    ([], "no path: give the names of at least two parties"),
    (["u0"], "no path: give the names of at least two parties"),
    ("u0", "no path: give the names of at least two parties"),
    (["u0", "u7"], "unknown party 'u7': the channels join u0, u1, u2"),
    (["u0", 1], "unknown party 1"),
    (["u0", "u2"], "no channel joins u0 and u2: choose a path along channels"),
    (["u0", "u1", "u0"], "u0 u1 u0 visits u0 twice.*leave the loop out"),
    (["u0", "u0"], "visits u0 twice"),
]


@every_world
@pytest.mark.parametrize(("path", "message"), PATHS, ids=[" ".join(map(str, path)) for path, _ in PATHS])
def test_paths_that_lead_nowhere_are_refused(name, path, message):
    world = made(name)
    with pytest.raises(ConfigError, match=message):
        world.pay(path, 10)
    assert not world.payments and world.sim.next == float("inf")


@every_world
def test_paths_that_visit_a_party_twice_are_refused_with_the_reason(name):
    ring = Topology((("a", "b", 100, 100), ("b", "c", 100, 100), ("c", "a", 100, 100), ("c", "d", 100, 100)))
    world = made(name, ring)
    for path in (["a", "b", "c", "a"], ["d", "c", "a", "b", "c"], ["a", "b", "a", "b"]):
        with pytest.raises(ConfigError, match="twice, and locks and orders name a party's place by its name"):
            world.pay(path, 40)
    payment = world.pay(["a", "b", "c"], 40)
    back = world.pay(["c", "a"], 40)
    world.run()
    assert {*world.outcomes(payment), *world.outcomes(back)} == {Outcome.PAID} and not check(world, CHECKS)


@every_world
def test_more_than_a_channel_holds_is_refused(name):
    world = made(name, Topology((("u0", "u1", 100, 100), ("u1", "u2", 30, 20))))
    with pytest.raises(
        ConfigError, match="the hop from u1 to u2 would carry 51 .* no channel of theirs holds more than 50"
    ):
        world.pay(["u0", "u1", "u2"], 51)
    with pytest.raises(ConfigError, match="the hop from u0 to u1 would carry 201 coins.*pay less"):
        world.pay(["u0", "u1", "u2"], 50, fee=151)
    payment = world.pay(["u0", "u1", "u2"], 50)  # as much as the channel holds, but not on the payer's side
    world.run()
    assert Outcome.PAID not in world.outcomes(payment) and not check(world)


@every_world
@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1.0, "soon", True], ids=repr)
def test_payments_start_at_a_time_that_is_to_come(name, at):
    world = made(name)
    with pytest.raises(ConfigError, match="at=.* is refused"):
        world.pay(["u0", "u1"], 1, at=at)
    world.run(5.0)
    with pytest.raises(ConfigError, match="at=4.5 is refused: give a finite number of at least 5"):
        world.pay(["u0", "u1"], 1, at=4.5)
    assert not world.payments and world.pay(["u0", "u1"], 1).start == 5.0


@every_world
def test_parties_without_a_channel_are_unknown(name):
    with pytest.raises(ConfigError, match="unknown party 'u9': the channels join u0, u1, u2"):
        made(name).party("u9")


NAN, INFINITY = float("nan"), float("inf")
REFUSED = {
    "half a coin": (lambda: line(1, balance=1.5), "the coins of u0=1.5"),
    "true coins": (lambda: line(1, other=True), "the coins of u1=True"),
    "no coins": (lambda: line(1, balance=0, other=0), "has no coins: give at least one"),
    "negative coins": (lambda: line(1, balance=-1), "the coins of u0=-1"),
    "text for coins": (lambda: line(1, balance="9"), "the coins of u0='9'"),
    "half a hop": (lambda: line(1.5), "hops=1.5"),
    "half a member": (lambda: line(1, 0.5), "faulty=0.5"),
    "f below 0": (lambda: line(1, -1), "faulty=-1"),
    "f is NaN": (lambda: line(1, NAN), "faulty=nan"),
    "one party": (lambda: Topology((("a", "a", 1, 1),)), "two parties"),
    "three entries": (lambda: Topology((("a", "b", 1),)), "give two parties, and the coins of each"),
    "a party that is a number": (lambda: Topology(((1, "b", 1, 1),)), "1 cannot be a party"),
    "a party like a member": (lambda: Topology((("C1.1", "b", 1, 1),)), "'C1.1' cannot be a party.*name of a member"),
    "delta is 0": (lambda: Timing(0.0), "delta > 0"),
    "delta is NaN": (lambda: Timing(NAN), "delta=nan"),
    "delta is infinite": (lambda: Timing(INFINITY), "delta=inf"),
    "delta is text": (lambda: Timing("1"), "delta='1'"),
    "skew is NaN": (lambda: Timing(1.0, NAN), "skew=nan"),
    "skew is negative": (lambda: Timing(1.0, -0.1), "0 <= skew"),
    "a clock off by NaN": (lambda: SyncPCN(line(1), skews={"u0": NAN}).party("u0"), "skew=nan"),
    "no delay at most": (lambda: within(0.0, np.random.default_rng(0)), "delta=0.0 is refused.*above 0"),
    "stable after NaN": (lambda: stable_after(NAN, 1.0, 1.0, np.random.default_rng(0)), "time=nan"),
    "wild delays below 0": (lambda: stable_after(1.0, 1.0, -1.0, np.random.default_rng(0)), "wild=-1.0"),
    "patience below 0": (lambda: Asynchronous(at_random(np.random.default_rng(0)), patience=-1), "patience=-1"),
    "half a patience": (lambda: Asynchronous(at_random(np.random.default_rng(0)), patience=1.5), "patience=1.5"),
    "always again": (lambda: Asynchronous(unit, duplicate=1.0, rng=np.random.default_rng(0)), "deliver for ever"),
    "again with NaN": (lambda: Asynchronous(unit, duplicate=NAN, rng=np.random.default_rng(0)), "duplicate=nan"),
    "no time for a leader": (lambda: PSyncPCN(line(1), view_timeout=0.0), "view_timeout=0.0"),
    "clocks of strangers": (lambda: SyncPCN(line(1), skews={"C2.1": 0.1, "u1": 0.1}), "skews of 'C2.1': give names"),
    "a wire that is a text": (lambda: Lightning(line(1), wire="no"), "wire='no' is refused: give True or False"),
    "no crossover over one hop": (lambda: crossover(1), "hops=1 is refused.*at least 2"),
    "a committee of half a fault": (lambda: direct(0.5), "faulty=0.5"),
    "a bound of NaN": (lambda: lock_bound(3, NAN), "delta=nan"),
    "half a block": (lambda: margin(grace=0.5), "grace=0.5"),
    "no trials": (lambda: loss(34, 12, 0, np.random.default_rng(0)), "trials=0"),
    "blocks of NaN": (lambda: loss(34, NAN, 9, np.random.default_rng(0)), "mean=nan"),
    "latencies of nothing": (lambda: flows("aws", 0, 1, 9, np.random.default_rng(0)), "hops=0"),
    "no games": (lambda: link("mock", 0, np.random.default_rng(0)), "trials=0"),
    "an echo that is a text": (lambda: PSyncPCN(line(1), echo="no"), "echo='no' is refused: give True or False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_world_can_be_made_of_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        make()


@every_world
@pytest.mark.parametrize("delay", [-1.0, NAN, INFINITY])
def test_delays_do_not_turn_time_back(name, delay):
    world = made(name, sim=Simulation(lambda *_: delay))
    world.pay(["u0", "u1", "u2"], 1, at=3.0)
    with pytest.raises(ConfigError, match="of time 3.0 is due at .*: delays are finite numbers of at least 0"):
        world.run()
    assert world.sim.now == 3.0


# clocks


@every_world
def test_a_clock_shows_the_time_until_which_it_ran(name):
    world = made(name)
    assert world.run(2.5) == world.sim.now == 2.5  # with nothing to do
    payment = world.pay(["u0", "u1", "u2"], 10)
    assert payment.start == 2.5
    assert world.run(2.75) == 2.75  # between two events
    assert world.run(1.0) == 2.75  # a time that is past changes nothing
    end = world.run()
    assert end == world.sim.now < float("inf") and payment.time("receipt") == payment.times["receipt"] - 2.5
    assert world.run() == end and world.run(1000) == 1000
    with pytest.raises(ConfigError, match="until=nan is refused"):
        world.run(NAN)


def test_a_clock_without_delays_shows_it_as_well():
    world = PSyncPCN(line(2), sim=Asynchronous(at_random(np.random.default_rng(0))), ordering="none")
    payment = world.pay(["u0", "u1", "u2"], 10, at=3.0)
    assert world.run(2.0) == 2.0 and world.outcomes(payment) == [Outcome.NEVER_LOCKED] * 2
    assert world.run(4.0) == 4.0 and world.outcomes(payment) == [Outcome.PAID] * 2
    with pytest.raises(ConfigError, match="until='5' is refused"):
        world.run("5")


# every requirement can be asked of every world


def moments(name):
    """A world at rest after nothing, a success, a failure for want of coins, and with parties that do not answer."""
    yield "nothing", made(name), set()
    for what, balances in (("success", (100, 100)), ("failure", (5, 195))):
        world = made(name, Topology((("u0", "u1", 100, 100), ("u1", "u2", *balances))))
        world.pay(["u0", "u1", "u2"], 10, fee=1)
        world.run()
        yield what, world, {"R7"} if what == "failure" else set()
    for who in ("u0", "u1", "u2"):
        world = made(name)
        world.corrupt(world.party(who), Silent())
        world.pay(["u0", "u1", "u2"], 10)
        world.run()
        yield f"silent {who}", world, None


@every_world
def test_every_requirement_can_be_asked_of_every_world(name):
    for what, world, broken in moments(name):
        for requirement in CHECKS:
            violations = check(world, [requirement])
            assert {v.requirement for v in violations} <= {requirement} and all(map(str, violations)), what
            assert broken is None or bool(violations) == (requirement in broken), (what, violations)
        assert not invariants(world) and not Watch(world).look()
        for cid, channel in enumerate(world.topology.channels):
            assert sum(world.balances(cid)) == sum(channel[2:]) and min(world.balances(cid)) >= 0


# Lightning keeps accounts


def test_lightning_pays_nothing_that_is_not_there():
    """The channel holds 100, all of it on one side."""
    for wire in (True, False):
        world = Lightning(line(1, balance=0, other=100), wire=wire)
        with pytest.raises(ConfigError, match="would carry 1000 coins, and no channel of theirs holds more than 100"):
            world.pay(["u0", "u1"], 1000)
        payment = world.pay(["u0", "u1"], 60)
        world.run()
        assert world.outcomes(payment) == [Outcome.NEVER_LOCKED] and not world.receipt(payment)
        assert set(payment.times) == {"too little", "failed"}
        back = world.pay(["u1", "u0"], 60)
        world.run()
        again = world.pay(["u0", "u1"], 60)
        world.run()
        assert world.outcomes(back) == world.outcomes(again) == [Outcome.PAID]
        assert world.balances(0) == (0, 100) and not check(world)


@pytest.mark.parametrize(("wire", "messages", "failed"), [(True, 2 * 2 * 5, 12), (False, 2 * 2, 4)])
def test_a_lightning_payment_that_cannot_go_on_fails_backwards(wire, messages, failed):
    """Two hops are locked and given back by an update each, one after the other (BOLT 2)."""
    channels = (("u0", "u1", 100, 0), ("u1", "u2", 100, 0), ("u2", "u3", 9, 100))
    world = Lightning(Topology(channels), wire=wire)
    payment = world.pay(["u0", "u1", "u2", "u3"], 10)
    world.run()
    assert world.outcomes(payment) == [Outcome.REFUNDED, Outcome.REFUNDED, Outcome.NEVER_LOCKED]
    assert world.sim.sent == messages and payment.times["failed"] == failed and "receipt" not in payment.times
    assert [world.balances(cid) for cid in range(3)] == [channel[2:] for channel in channels]
    assert [world.total(f"u{i}") for i in range(4)] == [100, 100, 9, 100] and not check(world)


@pytest.mark.parametrize("wire", [True, False])
def test_a_lightning_receiver_that_does_not_answer_leaves_locks(wire):
    world = Lightning(line(2), wire=wire)
    world.corrupt(world.party("u2"), Silent())
    payment = world.pay(["u0", "u1", "u2"], 10)
    world.run()
    assert world.outcomes(payment) == [Outcome.LOCKED, Outcome.LOCKED]
    assert {v.requirement for v in check(world, ("R1", "R2", "R4", "R5", "R6"))} == {"R5"}
    assert (world.total("u0"), world.total("u1")) == (100, 200)  # what is locked is still its payer's
    assert [world.balances(cid) for cid in range(2)] == [(90, 100, 10)] * 2


@pytest.mark.parametrize("wire", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_no_balance_of_lightning_is_ever_negative(wire, seed):
    """Payments both ways that compete for few coins, over messages that overtake each other and are sent again."""

    class Again(Silent):
        def outgoing(self, node, to, message):
            return [(to, message)] * int(rng.integers(1, 3))

    rng = np.random.default_rng(seed)
    world = Lightning(line(3, balance=15, other=int(rng.integers(0, 15))), sim=Simulation(within(1.0, rng)), wire=wire)
    if seed % 2:
        for name in world.names:
            world.corrupt(world.party(name), Again())
            world.faulty.clear()  # whoever says the same twice breaks no promise
    for _ in range(12):
        first, last = sorted(rng.choice(4, 2, replace=False).tolist())
        path = [f"u{i}" for i in range(first, last + 1)]
        world.pay(path[:: rng.choice([-1, 1])], int(rng.integers(1, 15)), at=float(rng.uniform(0, 30)))
    while world.sim.next < INFINITY:
        world.run(world.sim.next)
        assert not invariants(world)
    ends = {outcome for payment in world.payments for outcome in world.outcomes(payment)}
    assert Outcome.PAID in ends and Outcome.LOCKED not in ends and not check(world)
    assert sum(map(world.total, world.names)) == sum(map(world.initial, world.names))
    for name in world.names:  # as the payments that succeeded say
        moved = sum(
            p.amounts[0] * ((p.path[-1] == name) - (p.path[0] == name)) for p in world.payments if "receipt" in p.times
        )
        assert world.total(name) - world.initial(name) == moved
    for cid in range(3):  # both parties end with the same account
        left, right, *_ = world.topology.channels[cid]
        assert world.party(left).channel(cid) == world.party(right).channel(cid)


# an update of one channel is a payment as well


def test_an_update_that_succeeds_is_paid():
    world = SyncPCN(line(1))
    world.update("u0", "u1", 30)
    (payment,) = world.payments
    world.run()
    assert world.outcomes(payment) == [Outcome.PAID] and world.receipt(payment) and not check(world, CHECKS)


def test_an_update_for_which_there_is_too_little_changes_nothing():
    world = SyncPCN(line(1, balance=20))
    payment = world.update("u0", "u1", 30)
    world.run()
    assert world.outcomes(payment) == [Outcome.NEVER_LOCKED] and "failed" in payment.times
    assert [v.requirement for v in check(world, CHECKS)] == ["R7"] and world.total("u0") == 20
    with pytest.raises(ConfigError, match="no channel of theirs holds more than 120"):
        world.update("u0", "u1", 121)


def test_an_update_that_is_not_answered_is_open():
    world = SyncPCN(line(1))
    world.corrupt(world.party("u1"), Silent(kinds=(Cosign,)))
    payment = world.update("u0", "u1", 30)
    assert world.outcomes(payment) == [Outcome.LOCKED]
    world.run()
    assert world.outcomes(payment) != [Outcome.NEVER_LOCKED]
    waiting = world.update("u0", "u1", 1)
    assert world.outcomes(waiting) == [Outcome.NEVER_LOCKED]


# verdicts on paths that visit a party or a channel twice: hop by hop


class Told(World):
    """A world whose payments ended as it is told."""

    name, lost = "told", {}  # lost: coins that parties miss

    def __init__(self, path: str, ends: str, faulty: str = "", receipt: bool = True):
        pairs = list(dict.fromkeys(tuple(sorted(pair)) for pair in pairwise(path.split())))
        super().__init__(Topology(tuple((*pair, 100, 100) for pair in pairs)))
        words = {"P": Outcome.PAID, "R": Outcome.REFUNDED, "L": Outcome.LOCKED, "N": Outcome.NEVER_LOCKED}
        self.ends, self.has_receipt, self.faulty = [words[end] for end in ends], receipt, set(faulty.split())
        cids = tuple(pairs.index(tuple(sorted(pair))) for pair in pairwise(path.split()))
        self.payments = [Payment(0, tuple(path.split()), cids, tuple(range(9 + len(cids), 9, -1)), 0.0)]

    def outcomes(self, payment):
        return self.ends

    def receipt(self, payment):
        return self.has_receipt

    def total(self, party):
        """Nobody lost coins, and receivers have what their hop brought."""
        (payment,) = self.payments
        paid = [k for k, end in enumerate(self.ends) if end == Outcome.PAID]
        moved = sum(payment.amounts[k] * ((payment.path[k + 1] == party) - (payment.path[k] == party)) for k in paid)
        return self.initial(party) + max(0, moved) - self.lost.get(party, 0)


LOOPS = [  # path, ends of its hops, who has a receipt, and the violations: requirement and party
    ("a b c a", "PPP", True, []),
    ("a b c a", "PPR", True, ["R3 a", "R4 a"]),
    ("a b c a", "PRP", True, ["R1 c", "R4 a"]),
    ("a b c a", "RRR", False, []),
    ("a b c a", "PPP", False, ["R2 a"]),
    ("a b c d b e", "PPPPP", True, []),
    ("a b c d b e", "PPPRP", True, ["R1 b", "R4 a"]),
    ("a b c d b e", "RPPPP", True, ["R1 b", "R4 a"]),
    ("a b c d b e", "PRPPP", True, ["R1 c", "R4 a"]),
    ("a b c d b e", "PPRRP", True, ["R1 b", "R4 a", "R11 d"]),
    ("a b c d b e", "PPPPL", False, ["R2 a", "R4 a", "R5 b"]),
    ("a b a b", "PPP", True, []),
    ("a b a b", "PRP", True, ["R1 a", "R4 a"]),
    ("a b a b", "RPR", False, ["R1 b", "R4 a"]),
    ("a b a b", "PPL", True, ["R3 b", "R4 a", "R5 a"]),
]


@pytest.mark.parametrize(("path", "ends", "receipt", "wanted"), LOOPS, ids=[f"{a}, {b}, {c}" for a, b, c, _ in LOOPS])
def test_requirements_are_judged_hop_by_hop(path, ends, receipt, wanted):
    world = Told(path, ends, receipt=receipt)
    found = [f"{v.requirement} {v.who}" for v in check(world, [name for name in CHECKS if name != "R7"])]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize(
    ("party", "requirement", "ends"),
    [("a", "R2", "PPP"), ("b", "R1", "PPP"), ("d", "R3", "PPP"), ("a", "R2", "RRN"), ("b", "R1", "RRN")],
)
def test_a_party_that_holds_less_than_its_hops_say_is_found(party, requirement, ends):
    """However its hops ended: with the fee if both are paid, with what it had if none is."""
    world = Told("a b c d", ends, receipt="P" in ends)
    assert not check(world, ("R1", "R2", "R3"))
    world.lost = {party: 13 if party == "a" and "P" in ends else 1}
    (violation,) = check(world, ("R1", "R2", "R3"))
    assert (violation.requirement, violation.who) == (requirement, party) and "holds" in violation.what


def test_verdicts_on_a_loop_are_those_on_a_path_with_other_names():
    """Renaming every visit of a party changes no verdict but the name in it."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        hops = int(rng.integers(2, 7))
        places = [int(rng.integers(4))]
        while len(places) <= hops:
            places.append(int(rng.choice([k for k in range(4) if k != places[-1]])))
        loop, path = " ".join("abcd"[k] for k in places), " ".join(f"x{i}{'abcd'[k]}" for i, k in enumerate(places))
        ends, receipt = "".join(rng.choice(list("PRLN"), hops)), bool(rng.integers(2))
        requirements = [name for name in CHECKS if name != "R7"]
        found = [
            sorted((v.requirement, v.who[-1], v.what) for v in check(Told(text, ends, receipt=receipt), requirements))
            for text in (loop, path)
        ]
        assert found[0] == found[1], (loop, ends)


# several channels between two parties

PARALLEL = Topology((("a", "b", 5, 5), ("a", "b", 50, 0), ("b", "a", 0, 50), ("b", "c", 500, 0)))


@every_world
def test_all_channels_between_two_parties_are_used(name):
    """In turn, of those with the capacity for the amount."""
    world = made(name, PARALLEL)
    payments = [world.pay(["a", "b", "c"], 40, at=100.0 * k) for k in range(2)]
    small = world.pay(["a", "b"], 3, at=200.0)
    world.run()
    assert [payment.cids for payment in payments] == [(1, 3), (2, 3)] and small.cids == (2,)
    assert all(set(world.outcomes(payment)) == {Outcome.PAID} for payment in (*payments, small))
    assert not check(world, CHECKS) and world.total("a") == 105 - 83
