"""Many payments over a network as flows: which paths they take, what becomes of coins, and that messages agree."""

from functools import partial

import networkx
import numpy as np
import pytest

from swarmbook.errors import ConfigError
from swarmbook.payments import network_load
from swarmbook.payments.lightning import Lightning
from swarmbook.payments.network_load import PROFILES, collateral, simulate
from swarmbook.payments.outcomes import Outcome
from swarmbook.payments.payment_network import Topology, line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.simulation import Simulation
from swarmbook.payments.syncpcn import SyncPCN, Timing

WORLDS = {
    "Lightning": Lightning,
    "SyncPCN": partial(SyncPCN, timing=Timing(10.0)),
    "PSyncPCN": partial(PSyncPCN, ordering="none"),
}

every_protocol = pytest.mark.parametrize("name", PROFILES)


def joined(*channels: tuple[int, int, float, float]) -> networkx.MultiGraph:
    """A network of channels (left, right, coins of the left, coins of the right)."""
    network = networkx.MultiGraph()
    for a, b, left, right in channels:
        network.add_edge(a, b, balance={a: left, b: right})
    return network


def network() -> networkx.Graph:
    return network_load.graph(60, np.random.default_rng(0))


# paths


@every_protocol
def test_a_payment_takes_the_path_that_holds_it(name):
    """0 - 1 holds 10 and cannot carry 100; the way round by 2 can."""
    triangle = joined((0, 1, 5, 5), (0, 2, 500, 500), (2, 1, 500, 500))
    done = simulate(triangle, PROFILES[name], [(0.0, 0, 1, 100.0), (10.0, 0, 1, 4.0), (20.0, 0, 1, 1001.0)])
    assert (done.sent, done.routed, done.paid) == (3, 2, 2)
    long, short = (PROFILES[name].receipt(n) * 0.1 for n in (2, 1))
    assert done.seconds.tolist() == pytest.approx([long, short])
    assert done.locked == pytest.approx(
        100 * collateral(PROFILES[name], 2, 0.1, 10, False) + 4 * collateral(PROFILES[name], 1, 0.1, 10, False)
    )


@every_protocol
def test_senders_know_capacities_and_no_balances(name):
    """The short way has the capacity, and nothing on the payer's side: the payment fails there, and is not retried."""
    triangle = joined((0, 1, 0, 100), (0, 2, 500, 500), (2, 1, 500, 500))
    done = simulate(triangle, PROFILES[name], [(0.0, 0, 1, 60.0)])
    assert (done.sent, done.routed, done.paid, done.locked) == (1, 1, 0, 0.0)


@every_protocol
def test_coins_in_flight_do_not_change_what_is_routed(name):
    """A hundred payments at once over a channel that holds three of them: all have a path, three are paid."""
    network = joined((0, 1, 35, 0), (1, 2, 1000, 0))
    for silent in (frozenset(), frozenset({2})):
        done = simulate(network, PROFILES[name], [(0.001 * k, 0, 2, 10.0) for k in range(100)], silent=silent)
        assert (done.sent, done.routed) == (100, 100)
        assert done.paid == (0 if silent and PROFILES[name].stuck else 3)


@every_protocol
def test_channels_between_the_same_parties_are_all_used(name):
    """In turn, of those with the capacity."""
    network = joined((0, 1, 5, 0), (0, 1, 50, 0), (1, 0, 0, 50), (1, 2, 500, 0))
    both = simulate(network, PROFILES[name], [(0.0, 0, 2, 40.0), (0.0, 0, 2, 40.0), (50.0, 0, 2, 40.0)])
    assert (both.routed, both.paid) == (3, 2)
    small = simulate(network, PROFILES[name], [(0.0, 0, 1, 4.0)] * 3)
    assert (small.routed, small.paid) == (3, 3)


def every_path(network: networkx.MultiGraph, a: int, b: int, amount: float) -> list[tuple[list, list]]:
    """Every simple path over channels of the capacity, with each choice among parallel ones, by enumeration."""
    found = []

    def go(path, chosen):
        if path[-1] == b:
            found.append((path, chosen))
            return
        for end, other, data in network.edges(path[-1], data=True):
            if other not in path and sum(data["balance"].values()) >= amount:
                go([*path, other], [*chosen, data["balance"][end]])

    go([a], [])
    return found


@every_protocol
def test_paths_are_those_of_an_enumeration(name):
    """Single payments over small random networks: routed if any path holds them, over as few hops as possible."""
    rng, seen = np.random.default_rng(0), set()
    for _ in range(120):
        nodes, paths = int(rng.integers(2, 6)), {}
        channels = [
            (*map(int, rng.choice(nodes, 2, replace=False)), *rng.integers(0, 40, 2).tolist())
            for _ in range(int(rng.integers(1, 9)))
        ]
        network = joined(*channels)
        network.add_nodes_from(range(nodes))
        for _ in range(6):
            a, b = map(int, rng.choice(nodes, 2, replace=False))
            amount = float(rng.integers(1, 60))
            done = simulate(network, PROFILES[name], [(0.0, a, b, amount)], paths=paths)
            possible = every_path(network, a, b, amount)
            assert done.routed == bool(possible), (channels, a, b, amount)
            least = min((len(path) for path, _ in possible), default=0)
            enough = {min(coins) >= amount for path, coins in possible if len(path) == least}
            assert done.paid in enough if possible else not done.paid
            if done.paid:
                assert done.locked == pytest.approx(amount * collateral(PROFILES[name], least - 1, 0.1, 10.0, False))
            seen.add((done.routed, done.paid))
    assert seen == {(0, 0), (1, 0), (1, 1)}


def test_shared_paths_do_not_depend_on_what_was_asked_before():
    net, paths = network(), {}
    payments = network_load.poisson(50, 20, 60, np.random.default_rng(1))
    alone = [simulate(net, profile, payments) for profile in PROFILES.values()]
    simulate(net, PROFILES["PSyncPCN"], payments[::-1], paths=paths)
    for profile, wanted in zip(PROFILES.values(), alone, strict=True):
        done = simulate(net, profile, payments, paths=paths)
        assert done.seconds.tolist() == wanted.seconds.tolist() and done.locked == wanted.locked


def test_all_protocols_route_alike():
    """As many as have their receiver within reach of large enough channels, however busy these are."""
    payments, net = network_load.poisson(100, 20, 60, np.random.default_rng(1), median=1000.0), network()
    silent, connected = frozenset(range(5)), 0
    routed = {simulate(net, profile, payments, silent=silent).routed for profile in PROFILES.values()}
    capacities = [(u, v, sum(coins.values())) for u, v, coins in net.edges(data="balance")]
    for _, a, b, amount in payments:
        holding = networkx.Graph((u, v) for u, v, capacity in capacities if capacity >= amount)
        connected += a in holding and b in networkx.node_connected_component(holding, a)
    assert routed == {connected} and 0 < connected < len(payments)


@every_protocol
def test_success_at_the_setting_of_the_notebook(name):
    """All of 600 payments have a path, and three in four find the coins on it."""
    net = network_load.graph(300, np.random.default_rng([0, 7]))
    done = simulate(net, PROFILES[name], network_load.poisson(10, 60, 300, np.random.default_rng([0, 10])))
    assert done.routed == done.sent == 600 and 0.74 < done.paid / done.sent < 0.76


# what becomes of coins


def test_times_of_flows_are_those_of_messages():
    """Between lock and settlement of each hop of SyncPCN, as its parties note them."""
    world = SyncPCN(line(3), sim=Simulation(trace=True))
    world.pay(["u0", "u1", "u2", "u3"], 10)
    world.run()
    for i in range(3):
        sends = [e for e in world.sim.trace if e.what == "send" and e.kind == "Propose" and e.message.cid == i]
        notes = [e.time for e in world.sim.trace if e.what == "note" and e.message == "hop settled"]
        profile = PROFILES["SyncPCN"]
        assert sends[0].time == profile.locked(3, i)
        assert profile.freed(3, i) in notes
    last = world.timing.expiries(0.0, 3)
    for i in range(3):
        assert PROFILES["SyncPCN"].stuck(3, i, 1.0) == last[i] + 4


PLACES = {  # where a failed payment's coins are free again, and from when on, message by message
    "Lightning": lambda world, hop: world.party(f"u{hop}").channel(hop)[0] == 100,
    "SyncPCN": lambda world, hop: all(
        (end := world.party(f"u{k}").ends[hop]).certified == 2 and not end.state.locks for k in (hop, hop + 1)
    ),
    "PSyncPCN": lambda world, hop: all(
        [e.state for e in m.entries.values()] == ["aborted"] for m in world.members(hop)
    ),
}


@every_protocol
@pytest.mark.parametrize("hops", [2, 3, 5])
def test_times_of_failures_are_those_of_messages(name, hops):
    """The last channel has too little: the hops before it are given back one by one."""
    channels = [(f"u{i}", f"u{i + 1}", 100 if i + 1 < hops else 1, 100) for i in range(hops)]

    world, free = WORLDS[name](Topology(tuple(channels))), {}
    payment = world.pay([f"u{i}" for i in range(hops + 1)], 10)
    world.run(PROFILES[name].locked(hops, hops - 1) - 0.5)
    while world.sim.next < float("inf"):
        world.run(world.sim.next)
        for hop in range(hops - 1):
            if PLACES[name](world, hop):
                free.setdefault(hop, world.sim.now)
    assert set(world.outcomes(payment)[:-1]) == {Outcome.REFUNDED}
    found = PROFILES[name].locked(hops, hops - 1)
    assert free == {hops - 1 - k: found + PROFILES[name].back(k) for k in range(1, hops)}


@every_protocol
def test_flows_keep_all_coins(name):
    """Also over several channels between two parties, and with parties that do not respond."""
    double = networkx.MultiGraph(network())
    double.add_edges_from(network_load.graph(60, np.random.default_rng(5)).edges(data=True))
    payments = network_load.poisson(50, 20, 60, np.random.default_rng(1))
    for net in (network(), double):
        coins = sum(sum(balance.values()) for _, _, balance in net.edges(data="balance"))
        for silent in (frozenset(), frozenset(range(5))):
            outcome = simulate(net, PROFILES[name], payments, silent=silent)
            assert outcome.coins == pytest.approx(coins)
            assert 0 < outcome.paid <= outcome.routed <= outcome.sent == len(payments)


def test_paths_are_searched_once_for_all_simulations_of_a_network(monkeypatch):
    net, payments, paths = network(), network_load.poisson(50, 20, 60, np.random.default_rng(1)), {}
    alone = [simulate(net, profile, payments) for profile in PROFILES.values()]
    simulate(net, PROFILES["Lightning"], payments, paths=paths)
    monkeypatch.setattr(network_load.networkx, "shortest_path", None)
    for profile, wanted in zip(PROFILES.values(), alone, strict=True):
        outcome = simulate(net, profile, payments, paths=paths)
        assert outcome.seconds.tolist() == wanted.seconds.tolist() and outcome.locked == wanted.locked


def test_a_single_flow_takes_what_one_payment_takes():
    net = network()
    edge = next((a, b) for a, b in net.edges if net.edges[a, b]["balance"][a] > 5)
    for name, receipt in (("Lightning", 0.4), ("PSyncPCN", 0.2)):
        outcome = simulate(net, PROFILES[name], [(0.0, *edge, 1.0)])
        assert outcome.seconds.tolist() == [pytest.approx(receipt)]
        assert outcome.locked == pytest.approx(collateral(PROFILES[name], 1, 0.1, 10.0, False))


def both_ways(name: str, rate: float, parallel: bool = False) -> tuple[network_load.LoadResult, np.ndarray, int]:
    """1,000 common payments that compete for coins: as flows, and message by message, the seconds of those paid."""
    one = network_load.graph(30, np.random.default_rng(3), links=2, median=60.0)
    network = networkx.MultiGraph(one)
    network.add_edges_from(one.edges(data=True) if parallel else ())
    for *_, data in network.edges(data=True):
        data["balance"] = {end: max(1, int(coins)) for end, coins in data["balance"].items()}
    drawn = network_load.poisson(rate, 1000 / rate, 30, np.random.default_rng(4), 10.0)
    payments = [(time, a, b, max(1, int(amount))) for time, a, b, amount in drawn]
    flow = simulate(network, PROFILES[name], payments)
    world = network_load.by_messages(WORLDS[name], network, payments)
    seconds = [payment.time("receipt") for payment in world.payments if "receipt" in payment.times]
    return flow, np.array(seconds), len(world.payments)


@pytest.mark.parametrize("parallel", [False, True], ids=["one channel", "several channels"])
@pytest.mark.parametrize(("name", "rate"), [("Lightning", 2.0), ("SyncPCN", 0.5), ("PSyncPCN", 2.0)])
def test_flows_over_a_network_are_those_of_messages(name, rate, parallel):
    """Nearly the same succeed, and the median latency is within 2 %. SyncPCN's channels have to be idle for that."""
    flow, seconds, routed = both_ways(name, rate, parallel)
    assert routed == flow.routed
    assert 0.2 < flow.paid / flow.sent < 0.9  # they do compete
    assert len(seconds) / flow.sent == pytest.approx(flow.paid / flow.sent, abs=0.02)
    assert np.median(seconds) == pytest.approx(np.median(flow.seconds), rel=0.02)


def test_flows_leave_out_that_channels_of_syncpcn_are_busy():
    """A channel makes one update at a time: at four times that rate as many succeed, and take a tenth longer."""
    flow, seconds, _ = both_ways("SyncPCN", 2.0)
    assert len(seconds) / flow.sent == pytest.approx(flow.paid / flow.sent, abs=0.02)
    assert 1.05 < seconds.mean() / flow.seconds.mean() < 1.15


def test_silent_parties_lock_coins_for_hours_in_lightning_and_not_at_all_in_psyncpcn():
    net, payments = network(), network_load.poisson(20, 20, 60, np.random.default_rng(1))
    silent = frozenset(range(3))
    locked = {n: simulate(net, p, payments, silent=silent).locked for n, p in PROFILES.items()}
    assert locked["Lightning"] > 100 * locked["SyncPCN"] > 100 * locked["PSyncPCN"]


def test_committee_sizes_of_a_population():
    """The binomial tail, summed by hand for m = 4."""
    p = 0.1
    by_hand = 1 - (1 - p) ** 4 - 4 * p * (1 - p) ** 3
    assert network_load.committee_breaks(4, p) == pytest.approx(by_hand)
    assert network_load.committee_breaks(61, 0.05) < 1e-12


# what is refused

ONE = networkx.Graph([(0, 1, {"balance": {0: 5.0, 1: 5.0}})])
NAN = float("nan")
REFUSED = {
    "to nobody": (lambda: simulate(ONE, PROFILES["SyncPCN"], [(0.0, 0, 7, 1.0)]), "from 0 to 7: give two parties"),
    "to oneself": (lambda: simulate(ONE, PROFILES["SyncPCN"], [(0.0, 0, 0, 1.0)]), "from 0 to 0: give two parties"),
    "nothing": (lambda: simulate(ONE, PROFILES["SyncPCN"], [(0.0, 0, 1, 0.0)]), "amount=0.0 is refused"),
    "NaN coins": (lambda: simulate(ONE, PROFILES["SyncPCN"], [(0.0, 0, 1, NAN)]), "amount=nan is refused"),
    "at NaN": (lambda: simulate(ONE, PROFILES["SyncPCN"], [(NAN, 0, 1, 1.0)]), "time=nan is refused"),
    "messages back in time": (lambda: simulate(ONE, PROFILES["SyncPCN"], [], message=-1.0), "message=-1.0"),
    "no delta": (lambda: simulate(ONE, PROFILES["SyncPCN"], [], delta=0.0), "delta=0.0"),
    "silent strangers": (lambda: simulate(ONE, PROFILES["SyncPCN"], [], silent=frozenset({1, 9})), "silent=9: give"),
    "negative coins": (
        lambda: simulate(joined((0, 1, -1, 2)), PROFILES["SyncPCN"], []),
        "the coins of 0 in the channel",
    ),
    "no coins": (lambda: simulate(networkx.path_graph(2), PROFILES["SyncPCN"], []), "the channel 0 - 1 has balance={}"),
    "one way": (lambda: simulate(networkx.DiGraph([(0, 1)]), PROFILES["SyncPCN"], []), "directed"),
    "too few nodes": (lambda: network_load.graph(5, np.random.default_rng(0)), "give more nodes"),
    "half a node": (lambda: network_load.graph(9.5, np.random.default_rng(0)), "nodes=9.5"),
    "no median": (lambda: network_load.graph(9, np.random.default_rng(0), median=0), "median=0"),
    "a negative rate": (lambda: network_load.poisson(-1, 1, 9, np.random.default_rng(0)), "rate=-1"),
    "payments of one node": (lambda: network_load.poisson(1, 1, 1, np.random.default_rng(0)), "nodes=1"),
    "collateral of no hop": (lambda: collateral(PROFILES["SyncPCN"], 0, 0.1, 1.0, True), "hops=0"),
    "a committee of none": (lambda: network_load.committee_breaks(0, 0.1), "size=0"),
    "a share above all": (lambda: network_load.committee_breaks(4, 1.5), "share=1.5.*at most 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_settings_are_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        call()
