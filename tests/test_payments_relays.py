"""Paying relays: what it costs and locks, by messages and by flows; who loses what; and what is refused."""

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmbook.errors import ConfigError
from swarmbook.payments import closed_forms, network_load
from swarmbook.payments.relay_payments import (
    FORMS,
    Delivery,
    Work,
    cheated,
    direct,
    ends_with_waiting,
    flows,
    funded,
    handled,
    hub,
    largest_swarm,
    settle,
)
from swarmbook.payments.requirements import CHECKS, check
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline
from swarmbook.planning.replay import replay
from swarmbook.simulation.network import SKIPPIPE, Network

every_protocol = pytest.mark.parametrize("name", FORMS)
TURN = closed_forms.BYTES["Ask"]  # of one message by which a payer of SyncPCN asks for its turn, or gets it


def asked(count: int, gap: float, rng: np.random.Generator, payers: int = 4, relays: int = 10) -> list[Delivery]:
    """Deliveries of random relays (the nodes behind the payers), so many seconds apart."""
    pairs = zip(
        rng.integers(payers, size=count).tolist(), (payers + rng.integers(relays, size=count)).tolist(), strict=True
    )
    return [Delivery(j, payer, relay, 1 + gap * j) for j, (payer, relay) in enumerate(pairs)]


def networks(deliveries: list[Delivery], nodes: int = 14) -> dict[str, networkx.Graph]:
    links = network_load.graph(nodes, np.random.default_rng(1), links=1).edges
    return {"direct": direct(deliveries), "hub": hub(deliveries, nodes - 1), "generated": funded(links, deliveries)}


# what it costs


@every_protocol
@pytest.mark.parametrize("faulty", [1, 2, 3])
def test_counted_messages_and_bytes_are_the_closed_forms(name, faulty):
    """Beside them SyncPCN sends two messages whenever a payer has to ask for its turn."""
    deliveries = asked(25, 2.0, np.random.default_rng(0))
    for kind, network in networks(deliveries).items():
        done = settle(name, deliveries, network, 0.1, faulty=faulty)
        hops = [len(networkx.shortest_path(network, each.payer, each.relay)) - 1 for each in deliveries]
        messages, size = (sum(form(n, faulty) for n in hops) for form in FORMS[name])
        turns = done.messages - messages
        assert (turns, done.bytes - size) == (turns, turns * TURN) and turns % 2 == 0
        assert turns == 0 or name == "SyncPCN" and turns <= 2 * network.number_of_edges()
        assert done.handled.sum() == sum(handled(name, n, faulty) for n in hops)
        assert {"direct": max(hops) == 1, "hub": max(hops) == 2, "generated": max(hops) > 2}[kind]


@every_protocol
def test_bytes_are_those_of_one_payment(name):
    """Lightning's as the fields of BOLT 2 add up: 1,452 + 74 for add and fulfil, 2 x 264 and 2 x 200 for the rest."""
    done = settle(name, [Delivery(0, 0, 1, 1.0)], networkx.Graph([(0, 1, {"balance": {0: 5, 1: 0}})]), 0.1, faulty=0)
    wanted = {"Lightning": 1452 + 74 + 2 * 264 + 2 * 100 + 4 * 99 - 2 * 100, "SyncPCN": 2264, "PSyncPCN": 458}
    assert done.bytes == wanted[name]


# who is paid


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(list(FORMS)),
    kind=st.sampled_from(["direct", "hub", "generated"]),
    every=st.integers(1, 4),
    amount=st.integers(1, 3),
    gap=st.sampled_from([0.05, 1.0]),
)
def test_each_delivery_is_paid_exactly_once_and_no_coin_is_lost(seed, name, kind, every, amount, gap):
    rng = np.random.default_rng(seed)
    deliveries = asked(int(rng.integers(1, 20)), gap, rng)
    network = networks(deliveries)[kind]
    for _, _, coins in network.edges(data="balance"):
        for end in coins:
            coins[end] *= amount
    done = settle(name, deliveries, network, 0.1, amount=amount, every=every, delta=20.0)
    counts = {}
    for each in deliveries:
        counts.setdefault((each.payer, each.relay), []).append(each)
    assert done.payments == sum(-(-len(part) // every) for part in counts.values()) == len(done.world.payments)
    assert np.isfinite(done.safe).all() and (done.safe > 0).all() and done.coins == amount * len(deliveries)
    assert not check(done.world, (*CHECKS,))
    for node in network:
        gains = sum(each.relay == node for each in deliveries) - sum(each.payer == node for each in deliveries)
        assert done.world.total(f"p{node}") - done.world.initial(f"p{node}") == amount * gains


@every_protocol
def test_relays_of_one_data_node_are_certain_after_the_closed_form(name):
    """In message delays, from the moment at which the data node knows; a batch waits for its last delivery."""
    deliveries = [Delivery(0, 0, 1, 1.0), Delivery(1, 0, 1, 3.0), Delivery(2, 0, 1, 4.0)]
    network = networkx.Graph([(0, 1, {"balance": {0: 3, 1: 0}}), (1, 2, {"balance": {1: 1, 2: 0}})])
    form = {"Lightning": "Lightning, on the wire", "PSyncPCN": "PSyncPCN, V1"}.get(name, name)
    seconds = 0.1 * closed_forms.COSTS[form].receiver_safe(1)
    for every, wanted in ((1, [0, 0, 0]), (2, [2, 0, 0]), (3, [3, 1, 0]), (9, [3, 1, 0])):
        for pay in (settle, flows):
            done = pay(name, deliveries, network, 0.1, every=every)
            assert done.safe.tolist() == pytest.approx([extra + seconds for extra in wanted])
            assert done.payments == -(-3 // every) and done.coins == 3


# messages and flows


@every_protocol
@pytest.mark.parametrize("kind", ["direct", "hub", "generated"])
def test_flows_are_messages_where_channels_are_idle(name, kind):
    deliveries = asked(60, 2.0, np.random.default_rng(0))
    network = networks(deliveries)[kind]
    exact, flow = settle(name, deliveries, network, 0.1), flows(name, deliveries, network, 0.1)
    np.testing.assert_allclose(flow.safe, exact.safe, rtol=1e-9)
    assert flow.locked == pytest.approx(exact.locked, rel=1e-9) and flow.peak == exact.peak
    assert (flow.payments, flow.coins) == (exact.payments, exact.coins)
    assert flow.messages == pytest.approx(exact.messages, rel=0.02)
    assert flow.bytes == pytest.approx(exact.bytes, rel=0.01)
    assert flow.handled.sum() == pytest.approx(exact.handled.sum())


# waiting


def executed(nodes: int = 12) -> tuple[Pipeline, list[Work], list[float]]:
    """A small plan as `Work`: in the order of time, with what each operation needs and who pays."""
    hops = Network.over("twelve repaired", nodes, **SKIPPIPE).matrix(2**24)
    groups = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    pipeline = Pipeline(groups, hops, 0.44, PathRules(2), microbatches=4)
    tasks = replay(pipeline, annealing_search(pipeline, np.random.default_rng(0), moves=500).plan).tasks
    return pipeline, *work_of(pipeline, tasks)


def work_of(pipeline, tasks):
    number = {(m, p): i for i, (m, p) in enumerate(zip(tasks["microbatch"], tasks["position"], strict=True))}
    before = {chain[k + 1]: chain[k] for chain in pipeline.chains for k in range(len(chain) - 1)}
    work = []
    for t in tasks.itertuples():
        last = (t.microbatch, t.position - 1) if t.position else (before.get(t.microbatch), 2 * pipeline.visits)
        gap = pipeline.gap if t.position else pipeline.launch_gap
        payer = pipeline.data_node(t.microbatch)
        work.append(Work(t.node, payer, number.get(last, -1), t.ready, t.start, t.end, t.end + gap))
    return work, [i for i, t in enumerate(tasks.itertuples()) if t.kind == "backward" and t.stage]


def test_without_waiting_operations_end_as_they_did():
    pipeline, work, paid = executed()
    assert len(paid) == pipeline.count * (pipeline.visits - 1)
    np.testing.assert_allclose(ends_with_waiting(work, {}), [each.end for each in work], atol=1e-9)
    np.testing.assert_allclose(
        ends_with_waiting(work, dict.fromkeys(paid, 0.0)), [each.end for each in work], atol=1e-9
    )
    waited = ends_with_waiting(work, dict.fromkeys(paid, 1.0))
    assert (waited >= [each.end - 1e-9 for each in work]).all() and waited.max() > max(each.end for each in work)


def test_a_waiting_relay_delays_what_needs_it():
    """Two microbatches of node 0 at node 1, one after the other: the second waits for the coins of the first."""
    work = [Work(1, 0, -1, 0.5, 0.5, 1.5, 1.6), Work(1, 0, -1, 1.0, 1.6, 2.6, 2.7), Work(2, 0, 1, 3.0, 3.0, 3.5, 3.5)]
    assert ends_with_waiting(work, {0: 0.05}).tolist() == pytest.approx([1.5, 2.6, 3.5])
    assert ends_with_waiting(work, {0: 0.3}).tolist() == pytest.approx([1.5, 2.8, 3.7])
    other = [work[0], work[1]._replace(payer=3), work[2]]
    assert ends_with_waiting(other, {0: 0.3}).tolist() == pytest.approx([1.5, 2.6, 3.5])
    late = [work[0]._replace(after=2), *work[1:]]
    with pytest.raises(ConfigError, match="operation 0 needs 2, which starts no earlier"):
        ends_with_waiting(late, {})


# cheating

JOBS = [(float(j), j + 0.5) for j in range(12)]


@every_protocol
@pytest.mark.parametrize("every", [1, 2, 3, 5, 12])
def test_who_is_cheated_loses_what_is_settled_at_once(name, every):
    """A relay that is paid afterwards can lose `every` microbatches, a data node that pays before as many coins."""
    after, before = (cheated(name, JOBS, "payer", before=before, every=every, amount=7) for before in (False, True))
    assert (after.served, after.coins, after.loss, before.served, before.loss) == (every, 0, 7 * every, 0, 0)
    after, before = (cheated(name, JOBS, "relay", before=before, every=every, amount=7) for before in (False, True))
    assert (after.coins, after.loss, before.coins, before.loss) == (0, 0, 7 * every, 7 * every)
    for before in (False, True):
        done = cheated(name, JOBS, "nobody", before=before, every=every, amount=7)
        assert (done.served, done.coins, done.loss, done.payments) == (12, 84, 0, -(-12 // every))
        assert done.messages == done.payments * FORMS[name][0](1, 1)


@every_protocol
def test_who_does_not_wait_risks_what_it_does_meanwhile(name):
    """A payment is overdue 2.6 s after its microbatch ended; three more have begun by then, a second apart."""
    assert cheated(name, JOBS, patience=2.6).loss == 1 + 3
    assert cheated(name, JOBS, every=3, patience=2.6).loss == 3 + 3
    together = [(0.1 * j, 5.0 + j) for j in range(12)]  # all have begun before the first is paid
    assert cheated(name, together).loss == 12


@every_protocol
def test_silence_in_the_middle_of_a_payment(name):
    """Committees pay what is begun, so that two microbatches are lost, settled two at a time, whenever it begins.

    In Lightning a relay can have given the key away by then, and would need the chain, which is not run.
    """
    losses = {cheated(name, JOBS, every=2, silent_from=0.05 * k).loss for k in range(80)}
    assert losses == ({2, 4} if name == "Lightning" else {2})


# committees


@every_protocol
@pytest.mark.parametrize("hops", [1, 2, 4])
def test_the_largest_swarm_is_one_that_a_committee_can_just_serve(name, hops):
    for faulty in (1, 2, 3):
        rate, most = 0.13, largest_swarm(name, hops, faulty, 0.13, 1000.0)
        if name == "Lightning":
            assert most == float("inf")
            continue
        load = rate * handled(name, hops, faulty) / closed_forms.size(faulty)  # of a member for each node
        assert most * load <= 1000.0 < (most + 1) * load
        own = handled(name, hops, faulty) * rate  # of a node that sits in m committees for each channel that it has
        assert largest_swarm(name, hops, faulty, rate, own * 1.01, shared=False) == float("inf")
        assert largest_swarm(name, hops, faulty, rate, own * 0.99, shared=False) == 0


# what is refused

ONE = [Delivery(0, 0, 1, 1.0)]
PAIR = direct(ONE)
REFUSED = {
    "an unknown protocol": (
        lambda: settle("SyncPC", ONE, PAIR, 0.1),
        "unknown protocol 'SyncPC': did you mean 'SyncPCN'",
    ),
    "an unknown flow": (lambda: flows("Bitcoin", ONE, PAIR, 0.1), "unknown protocol 'Bitcoin'"),
    "the time 0": (lambda: settle("SyncPCN", [Delivery(0, 0, 1, 0.0)], PAIR, 0.1), "time=0.0 is refused"),
    "no time": (lambda: flows("SyncPCN", [Delivery(0, 0, 1, float("nan"))], PAIR, 0.1), "time=nan is refused"),
    "no amount": (lambda: settle("SyncPCN", ONE, PAIR, 0.1, amount=0), "amount=0 is refused"),
    "half a batch": (lambda: settle("SyncPCN", ONE, PAIR, 0.1, every=0.5), "every=0.5 is refused"),
    "nothing": (lambda: settle("SyncPCN", [], PAIR, 0.1), "no deliveries"),
    "a relay that is not there": (
        lambda: settle("PSyncPCN", [Delivery(0, 0, 9, 1.0)], PAIR, 0.1),
        "no path of channels leads from data node 0 to relay 9",
    ),
    "a relay that none reaches": (
        lambda: funded([(0, 1), (2, 3)], [Delivery(0, 0, 3, 1.0)]),
        "no path of channels leads from data node 0 to relay 3",
    ),
    "paying oneself": (lambda: direct([Delivery(0, 4, 4, 1.0)]), "from data node 4 to relay 4"),
    "more than any path holds": (
        lambda: settle("Lightning", ONE, PAIR, 0.1, amount=2),
        "no path of channels that hold 2 coins leads from data node 0 to relay 1: pay less",
    ),
    "more at once in flows": (lambda: flows("SyncPCN", ONE, PAIR, 0.1, amount=2), "that hold 2 coins"),
    "places for some": (lambda: settle("SyncPCN", ONE, PAIR, np.zeros((1, 1))), "of shape .1, 1. are refused"),
    "delays back in time": (lambda: settle("SyncPCN", ONE, PAIR, -np.ones((6, 6))), "give seconds of at least 0"),
    "no place for a committee": (lambda: settle("SyncPCN", ONE, PAIR, np.ones((6, 6))), "2 nodes have no 4 members"),
    "another cheat": (lambda: cheated("SyncPCN", JOBS, "member"), "unknown cheat 'member'"),
    "no patience": (lambda: cheated("SyncPCN", JOBS, patience=-1.0), "patience=-1.0 is refused"),
    "no capacity": (lambda: largest_swarm("SyncPCN", 1, 1, 0.1, 0.0), "capacity=0.0 is refused"),
    "no rate": (lambda: largest_swarm("SyncPCN", 1, 1, 0.0, 9.0), "rate=0.0 is refused"),
    "no hop": (lambda: handled("SyncPCN", 0), "hops=0 is refused"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_settings_are_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        call()
