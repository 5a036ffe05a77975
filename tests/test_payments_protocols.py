"""The protocols message by message: what they cost, how they sign, and that everything can be repeated."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from swarmbook.errors import ConfigError
from swarmbook.payments import lock_conditions
from swarmbook.payments.adversary import Silent
from swarmbook.payments.channel import Change, Lock, Refused, State, close, commit, follow, prove
from swarmbook.payments.channel_committee import Announce
from swarmbook.payments.channel_update import Cosign
from swarmbook.payments.closed_forms import COSTS, cost, crossover, direct, lock_bound
from swarmbook.payments.encoding import encode
from swarmbook.payments.lightning import Lightning, margin
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import Topology, line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.signatures import Certificate, Committee, Keys, Tally
from swarmbook.payments.simulation import Asynchronous, Node, Simulation, at_random, causal_past, replayed, unit, within
from swarmbook.payments.syncpcn import SyncPCN, Timing

MAKERS = {
    "Lightning, on the wire": lambda topology, **more: Lightning(topology, **more),
    "HTLC, abstract": lambda topology, **more: Lightning(topology, wire=False, **more),
    "SyncPCN": lambda topology, **more: SyncPCN(topology, **more),
    "PSyncPCN, V1": lambda topology, **more: PSyncPCN(topology, ordering="none", **more),
    "PSyncPCN, V2": lambda topology, **more: PSyncPCN(topology, ordering="payer", **more),
    "PSyncPCN, V3": lambda topology, **more: PSyncPCN(topology, ordering="agreed", **more),
    "PSyncPCN, carried by parties": lambda topology, **more: PSyncPCN(topology, ordering="none", relay="party", **more),
}


def names(hops: int) -> list[str]:
    return [f"u{i}" for i in range(hops + 1)]


def paid(world, hops: int, amount: int = 10):
    payment = world.pay(names(hops), amount)
    world.run()
    assert set(world.outcomes(payment)) == {Outcome.PAID}
    return payment


@pytest.mark.parametrize("faulty", [1, 2, 5])
@pytest.mark.parametrize("hops", [1, 2, 3, 5])
@pytest.mark.parametrize("name", MAKERS)
def test_messages_and_delays_are_the_closed_forms(name, hops, faulty):
    world = MAKERS[name](line(hops, faulty))
    payment = paid(world, hops)
    expected = cost(name)
    assert world.sim.sent == expected.messages(hops, faulty)
    assert payment.time("receiver safe") == expected.receiver_safe(hops)
    assert payment.time("receipt") == expected.receipt(hops)
    assert payment.time("settled") == expected.settled(hops)
    totals = [world.total(party) for party in names(hops)]
    assert totals == [90] + [200] * (hops - 1) + [110]


@pytest.mark.parametrize(("hops", "faulty", "messages"), [(3, 1, (30, 108, 92)), (3, 5, (30, 396, 1136))])
def test_worked_values(hops, faulty, messages):
    forms = [COSTS[name] for name in ("Lightning, on the wire", "SyncPCN", "PSyncPCN, V1")]
    counted = [form.messages(hops, faulty) for form in forms]
    counted[1] -= hops  # setup
    assert tuple(counted) == messages
    assert crossover(3) == 2


@pytest.mark.parametrize("faulty", [1, 2])
def test_an_update_of_one_channel(faulty):
    world = SyncPCN(line(1, faulty))
    world.update("u0", "u1", 30)
    world.run()
    assert world.sim.sent == direct(faulty)
    assert world.payments[0].times == {"receiver safe": 3.0, "receipt": 4.0}
    assert (world.total("u0"), world.total("u1")) == (70, 130)


def test_claims_at_every_hop_cost_three_messages_a_member_and_end_in_time():
    """Payers take the lock and then sign nothing more: n (2 + 4 m) to lock, n (1 + 3 m) to unlock, and setup."""
    hops, size = 3, 4
    world = SyncPCN(line(hops))
    payment = world.pay(names(hops), 10)
    for party in names(hops)[:-1]:
        mute = Silent(kinds=(Cosign, Announce), when=lambda m: m.seq > 1)
        world.corrupt(world.party(party), mute)
    world.run()
    assert set(world.outcomes(payment)) == {Outcome.PAID}
    assert world.sim.sent == hops * (2 + 4 * size) + hops * (1 + 3 * size) + hops
    assert payment.times["settled"] <= lock_bound(hops, 1.0)


@pytest.mark.parametrize("kind", ["SyncPCN", "PSyncPCN"])
def test_two_hundred_payments_with_every_signature_real(kind):
    keys = Keys("real", seed=3)
    world = (SyncPCN if kind == "SyncPCN" else PSyncPCN)(line(2, 1, 1000), keys=keys)
    payments = [world.pay(names(2), 1, at=30.0 * k) for k in range(100)]
    world.run()
    assert all(set(world.outcomes(payment)) == {Outcome.PAID} for payment in payments)
    assert [world.total(party) for party in names(2)] == [900, 1100, 200]
    assert keys.checked == keys.verified >= 100 * 30


@pytest.mark.parametrize("mode", ["cached", "real"])
def test_real_signatures_and_point_locks_change_nothing_that_is_counted(mode):
    worlds = [SyncPCN(line(3)), SyncPCN(line(3), keys=Keys(mode), lock="point")]
    payments = [paid(world, 3) for world in worlds]
    assert payments[0].times == payments[1].times
    assert worlds[0].sim.sent == worlds[1].sim.sent
    assert worlds[1].keys.checked == (worlds[1].keys.verified if mode == "real" else worlds[1].keys.checked)


def test_cached_signatures_are_checked_once():
    keys = {mode: Keys(mode) for mode in ("cached", "real")}
    for each in keys.values():
        paid(PSyncPCN(line(2), keys=each), 2)
    assert keys["cached"].verified == keys["real"].verified
    assert keys["cached"].checked < keys["real"].checked / 2


# encoding, signatures, certificates

parts = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)
statements = st.lists(parts, max_size=4).map(tuple)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(statements, statements)
def test_the_encoding_is_injective(a, b):
    assert (encode(a) == encode(b)) == (repr(a) == repr(b))


def test_the_encoding_refuses_what_has_no_canonical_form():
    for value in (1.5, True, [1], {"a": 1}):
        with pytest.raises(TypeError, match="cannot hold"):
            encode(("x", value))


@pytest.mark.parametrize("mode", ["real", "cached", "mock"])
def test_signatures_are_of_one_name_and_one_statement(mode):
    keys = Keys(mode, seed=1)
    statement = ("vote", 0, 7, "PAID")
    signature = keys.sign("a", statement)
    assert keys.verify("a", statement, signature)
    assert not keys.verify("b", statement, signature)
    assert not keys.verify("a", ("vote", 0, 7, "REFUNDED"), signature)
    assert not keys.verify("a", statement, b"\0" * 64) and not keys.verify("a", statement, None)
    other = Keys(mode, seed=2).sign("a", statement)
    assert mode == "mock" or not keys.verify("a", statement, other)


def test_a_certificate_needs_a_quorum_of_distinct_members():
    keys, committee = Keys("real"), Committee(("a", "b", "c", "d"))
    statement = ("vote", 1)
    votes = {name: (name, keys.sign(name, statement)) for name in ("a", "b", "c", "x")}
    assert committee.quorum == 3 and committee.faulty == 1

    def valid(*who):
        return Certificate(statement, tuple(votes[name] for name in who)).verify(committee, keys)

    assert valid("a", "b", "c") and valid("a", "b", "c", "x")
    assert not valid("a", "b") and not valid("a", "b", "b", "a") and not valid("a", "b", "x")
    assert not Certificate(("vote", 2), tuple(votes.values())).verify(committee, keys)
    with pytest.raises(ConfigError, match="distinct members"):
        Committee(("a", "a"))


@pytest.mark.parametrize("size", range(1, 40))
def test_quorums_meet_in_an_honest_member_and_can_do_without_the_faulty(size):
    committee = Committee(tuple(map(str, range(size))))
    q, f = committee.quorum, committee.faulty
    assert 2 * q - size >= f + 1
    assert size - f >= q == 2 * size // 3 + 1


def test_a_tally_tells_once():
    tally = Tally(2)
    assert [tally.add("x", name, b"") for name in ("a", "a", "b", "c")] == [False, False, True, False]


# locks and states


@pytest.mark.parametrize("name", ["point", "mock", "hash"])
def test_keys_of_a_path_open_it_backwards(name):
    scheme, rng = lock_conditions.scheme(name), np.random.default_rng(0)
    (r,) = scheme.secrets(rng, 1)
    path = lock_conditions.path(scheme, scheme.lock(r), 4, rng)
    key = scheme.upstream(r, -path.total)
    for i in (3, 2, 1, 0):
        assert scheme.opens(path.locks[i], key)
        key = scheme.upstream(key, path.steps[i])
    assert key == r
    assert len(set(path.locks)) == (1 if name == "hash" else 4)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, lock_conditions.ORDER - 1), st.integers(0, lock_conditions.ORDER - 1))
def test_adding_points_is_adding_keys(a, b):
    points = lock_conditions.Points()
    assert points.shifted(points.lock(a), b) == points.lock(a + b)


def test_adding_points_at_the_edges():
    points = lock_conditions.Points()
    assert points.shifted(points.lock(5), 5) == points.lock(10)
    assert points.shifted(points.lock(5), lock_conditions.ORDER - 5) is None
    assert points.shifted(None, 3) == points.lock(3)


LOCK = Lock(11, 0, 30, 5, 9.0)
STATE = State(0, 4, 50, 20, (LOCK, Lock(12, 1, 5, 6, 9.0)), 99)


@pytest.mark.parametrize(
    ("side", "change"),
    [
        (0, Change("lock", lock=Lock(13, 0, 51, 1, 1.0))),
        (1, Change("lock", lock=Lock(13, 0, 1, 1, 1.0))),
        (0, Change("lock", lock=LOCK)),
        (0, Change("open", pid=11)),
        (1, Change("open", pid=12)),
        (1, Change("fail", pid=77)),
        (0, Change("pay", amount=0)),
        (1, Change("pay", amount=21)),
    ],
)
def test_changes_that_a_state_does_not_allow(side, change):
    with pytest.raises(Refused):
        follow(STATE, side, change, 1)


changes = st.one_of(
    st.builds(lambda a, p: Change("lock", lock=Lock(100, p, a, 1, 1.0)), st.integers(1, 60), st.integers(0, 1)),
    st.builds(lambda what, pid: Change(what, pid=pid), st.sampled_from(["open", "fail"]), st.sampled_from([11, 12])),
    st.builds(lambda a: Change("pay", amount=a), st.integers(1, 60)),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(changes, st.integers(0, 1))
def test_a_change_keeps_the_capacity(change, side):
    try:
        after = follow(STATE, side, change, 1)
    except Refused:
        return
    assert after.capacity == STATE.capacity == 105
    assert min(after.left, after.right) >= 0 and after.seq == 5


@pytest.mark.parametrize("mode", ["real", "mock"])
def test_a_proof_shows_one_lock_and_hides_the_rest(mode):
    keys = Keys(mode)
    commitment = commit(STATE, keys)
    proof = prove(STATE, commitment, LOCK)
    assert proof.root(0, keys) == commitment.root
    assert proof._replace(lock=LOCK._replace(amount=31)).root(0, keys) is None
    assert proof.root(1, keys) != commitment.root
    other = STATE._replace(left=STATE.left + 1, right=STATE.right - 1)
    assert commit(other, keys).root != commitment.root
    assert STATE.left not in proof and STATE.locks[1] not in proof


def test_a_close_takes_the_newest_of_the_first_quorum():
    assert close([(1, "a"), (3, "b"), (2, "c"), (9, "d")], 3) == (3, "b")
    with pytest.raises(ValueError, match="needs the announcements of 3"):
        close([(1, "a")], 3)


# the simulation


def rows(world) -> list:
    return [(e.time, e.what, e.node, e.peer, str(e.message)) for e in world.sim.trace]


@pytest.mark.parametrize("kind", [SyncPCN, PSyncPCN])
def test_the_same_seed_gives_the_same_trace(kind):
    traces = []
    for seed in (1, 1, 2):
        sim = Simulation(within(1.0, np.random.default_rng(seed)), trace=True)
        world = kind(line(2), sim=sim, seed=seed)
        paid(world, 2)
        traces.append(rows(world))
    assert traces[0] == traces[1] != traces[2]


def test_a_schedule_can_be_replayed():
    rng = np.random.default_rng(5)
    first = PSyncPCN(line(3), sim=Asynchronous(at_random(rng), trace=True), ordering="none")
    paid(first, 3)
    again = PSyncPCN(line(3), sim=Asynchronous(replayed(first.sim.choices), trace=True), ordering="none")
    paid(again, 3)
    assert rows(first) == rows(again)


def test_patience_makes_the_last_message_wait_no_longer():
    waits = []
    for patience in (5, 1000):
        sim = Asynchronous(lambda n: n - 1, patience=patience, trace=True)
        paid(PSyncPCN(line(2), sim=sim, ordering="none"), 2)
        sent = {e.number: i for i, e in enumerate(sim.trace) if e.what == "send"}
        order = [e.number for e in sim.trace if e.what == "deliver"]
        waits.append(max(abs(order.index(number) - k) for k, number in enumerate(sorted(sent, key=sent.get))))
    assert waits[0] < waits[1]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("hops", [1, 3])
def test_messages_that_wait_once_for_several_nodes_arrive_as_if_each_waited_for_itself(name, hops):
    """Delays that are known to be equal, delays that merely are, and the same with a trace."""
    seen = []
    for delay, trace in ((unit, False), (lambda *_: 1.0, False), (unit, True)):
        world = MAKERS[name](line(hops), sim=Simulation(delay, trace=trace), seed=7)
        payments = [world.pay(names(hops), 10), world.pay(names(hops)[::-1], 95), world.pay(names(hops), 3, at=4.5)]
        world.run()
        totals = [world.total(party) for party in names(hops)]
        counts = world.sim.sent, world.sim.events, world.keys.signed, world.keys.verified, world.random()
        seen.append((world.sim.now, totals, counts, [(world.outcomes(p), p.times) for p in payments]))
    assert seen[0] == seen[1] == seen[2]


def test_whoever_comes_after_a_node_that_fails_still_gets_the_message():
    heard = []

    class Listener(Node):
        def hear(self, sender, message):
            heard.append((self.name, message))
            if (self.name, message) == ("b", "first"):
                raise RuntimeError("b fails")

        on = {str: hear}

    sim = Simulation()
    speaker, *others = (Listener(name, sim) for name in "sabcd")
    sim.send_all(speaker, others, "first")
    sim.send(speaker, others[0], "second")
    with pytest.raises(RuntimeError, match="b fails"):
        sim.run()
    assert heard == [("a", "first"), ("b", "first")] and sim.events == 2
    sim.run()
    assert heard[2:] == [("c", "first"), ("d", "first"), ("a", "second")] and sim.events == sim.sent == 5


def test_messages_may_come_twice_and_nothing_changes():
    rng = np.random.default_rng(0)
    sim = Asynchronous(at_random(rng), duplicate=0.4, rng=rng)
    world = PSyncPCN(line(3), sim=sim, ordering="none")
    paid(world, 3)
    assert sim.events > sim.sent * 1.2
    assert [world.total(party) for party in names(3)] == [90, 200, 200, 110]


def test_the_causal_past_holds_what_an_event_depends_on_alone():
    world = SyncPCN(line(3), sim=Simulation(trace=True))
    paid(world, 3)
    trace = world.sim.trace
    at = next(i for i, event in enumerate(trace) if event.node == "u3" and event.message == "lock certified")
    past = causal_past(trace, at)
    assert len(past) < at and past[-1] == trace[at]
    sent = {event.number for event in past if event.what == "send"}
    assert all(event.number in sent for event in past if event.what == "deliver")


def test_ten_thousand_schedules_end_alike():
    """One final state, whatever the order in which messages arrive (payments that do not compete)."""
    ends = set()
    for seed in range(300):  # the notebook takes 10,000
        rng = np.random.default_rng(seed)
        sim = Asynchronous(at_random(rng), patience=int(rng.integers(5, 200)))
        world = PSyncPCN(line(3), sim=sim, ordering="none")
        payments = [world.pay(names(3), 10), world.pay(["u3", "u2", "u1"], 5)]
        world.run()
        ends.add((*(tuple(world.outcomes(p)) for p in payments), *(world.total(party) for party in names(3))))
    assert len(ends) == 1


def test_orderings_let_one_of_two_payments_for_the_last_coins_through():
    for ordering in ("payer", "agreed"):
        for seed in range(40):
            sim = Simulation(within(1.0, np.random.default_rng(seed)))
            world = PSyncPCN(line(1, 1, balance=10, other=0), sim=sim, ordering=ordering)
            payments = [world.pay(["u0", "u1"], 7), world.pay(["u0", "u1"], 7)]
            world.run()
            assert sorted(world.outcomes(p)[0] for p in payments) == ["Paid", "Refunded"]


def test_without_ordering_two_such_payments_can_both_be_stuck():
    stuck = 0
    for seed in range(40):
        sim = Simulation(within(1.0, np.random.default_rng(seed)))
        world = PSyncPCN(line(1, 1, balance=10, other=0), sim=sim, ordering="none")
        payments = [world.pay(["u0", "u1"], 7), world.pay(["u0", "u1"], 7)]
        world.run()
        certificates = [what for what, *_ in world.party("u0").certificates]
        stuck += len(certificates) < len(payments)
        assert certificates.count("PAID") <= 1
    assert stuck > 0


# what is refused


def test_wrong_settings_are_refused():
    for call, message in [
        (lambda: Timing(0.0), "delta > 0"),
        (lambda: Timing(1.0, 2.0), "skew <= delta"),
        (lambda: Topology((("a", "a", 1, 1),)), "two parties"),
        (lambda: line(0), "at least 1"),
        (lambda: Keys("fast"), "mode of signatures"),
        (lambda: PSyncPCN(line(1), ordering="best"), "ordering"),
        (lambda: PSyncPCN(line(1), relay="party", commit="forward"), "needs relay"),
        (lambda: SyncPCN(line(1), lock="scrypt"), "lock"),
        (lambda: SyncPCN(line(2)).pay(["u0", "u2"], 1), "no channel joins"),
        (lambda: SyncPCN(line(1)).pay(["u0", "u1"], 0), "at least 1"),
        (lambda: cost("Raiden"), "protocol"),
        (lambda: Asynchronous(lambda n: 0, duplicate=0.1), "rng"),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()


def test_the_margin_of_bolt_2():
    assert margin() == 34
