"""Delays of the world, and what can be linked."""

from statistics import NormalDist

import numpy as np
import pytest

from swarmbook.errors import ConfigError, DataError
from swarmbook.payments import privacy, wan_latency
from swarmbook.payments.lightning import loss
from swarmbook.payments.payment_network import line
from swarmbook.payments.signatures import Keys
from swarmbook.payments.simulation import Simulation
from swarmbook.payments.syncpcn import SyncPCN, Timing


def test_tables_of_delays():
    places, aws = wan_latency.delays("aws")
    assert aws.shape == (11, 11) and (aws == aws.T).all()
    assert aws[places.index("Oregon"), places.index("Virginia")] == 81 / 2
    assert aws[places.index("Frankfurt"), places.index("Sydney")] == 282 / 2
    assert (np.diag(aws) == 0.5).all()
    assert wan_latency.delays("azure")[1].shape == (48, 48) and (wan_latency.delays("azure")[1] > 0).all()
    with pytest.raises(ConfigError, match="did you mean 'azure'"):
        wan_latency.delays("azur")


def test_a_damaged_table_is_named(tmp_path, monkeypatch):
    (tmp_path / "wan_delays.csv").write_text("table,place,rtt_ms\naws,Oregon,0 1\n")
    monkeypatch.setattr(wan_latency, "data_folder", lambda: tmp_path)
    with pytest.raises(DataError, match="restore it with git checkout"):
        wan_latency._measured("aws")


def test_with_everybody_at_one_place_latency_is_the_closed_form(monkeypatch):
    monkeypatch.setattr(wan_latency, "delays", lambda table: (("here",), np.array([[2.0]])))
    times = wan_latency.latencies("aws", 3, 1, 2, np.random.default_rng(0))
    expected = {"Lightning": (9, 12), "SyncPCN": (9, 12), "PSyncPCN": (4, 6)}
    for kind, (safe, receipt) in expected.items():
        assert (times[kind, "receiver safe"] == 2 * safe).all() and (times[kind, "receipt"] == 2 * receipt).all()


def test_a_receipt_over_one_hop_of_lightning_is_two_round_trips():
    """Independent of the simulation: four one-way delays between two random places."""
    times = wan_latency.latencies("aws", 1, 1, 300, np.random.default_rng(0))["Lightning", "receipt"]
    matrix = wan_latency.delays("aws")[1]
    assert set(times) <= {4 * value for value in matrix.ravel()}
    assert abs(np.median(times) / np.median(4 * matrix) - 1) < 0.1


@pytest.mark.parametrize(("table", "hops", "faulty"), [("aws", 1, 1), ("aws", 4, 2), ("azure", 3, 1), ("google", 2, 3)])
def test_flows_across_the_world_take_what_messages_take(table, hops, faulty):
    """Order statistics against messages, one payment after the other, of 1,000 in all."""
    messages = wan_latency.latencies(table, hops, faulty, 250, np.random.default_rng(7))
    flows = wan_latency.flows(table, hops, faulty, 250, np.random.default_rng(7))
    assert flows.keys() == messages.keys()
    for key, times in messages.items():
        np.testing.assert_allclose(flows[key], times, rtol=1e-12, err_msg=str(key))


# Medians of 400 payments in ms by an independent earlier program: a receipt by Lightning, by SyncPCN, the receiver safe
# by PSyncPCN, and a receipt by it.
MEDIANS = {
    ("aws", 1, 1): (282, 307, 152, 164),
    ("aws", 2, 1): (544, 592, 233, 330),
    ("aws", 3, 1): (780, 884, 320, 484),
    ("aws", 3, 3): (802, 915, 331, 507),
    ("aws", 5, 3): (1374, 1528, 507, 862),
    ("azure", 3, 1): (886, 959, 338, 512),
    ("azure", 5, 3): (1430, 1598, 528, 893),
}
WHAT = [("Lightning", "receipt"), ("SyncPCN", "receipt"), ("PSyncPCN", "receiver safe"), ("PSyncPCN", "receipt")]


@pytest.mark.parametrize("setting", MEDIANS, ids=str)
def test_medians_of_an_independent_program_are_such_as_400_draws_give(setting):
    """Each lies between two quantiles of ours, where all 28 medians of 400 lie with a probability of 95 %."""
    times = wan_latency.flows(*setting, 20_000, np.random.default_rng(0))
    wide = NormalDist().inv_cdf(1 - 0.025 / (len(MEDIANS) * len(WHAT))) * 0.5 / 400**0.5
    for key, theirs in zip(WHAT, MEDIANS[setting], strict=True):
        assert (times[key] < theirs).mean() < 0.5 + wide and (times[key] <= theirs).mean() > 0.5 - wide, key


def test_flows_in_chunks_are_the_same(monkeypatch):
    whole = wan_latency.flows("aws", 2, 1, 50, np.random.default_rng(0))
    monkeypatch.setattr(wan_latency, "CHUNK", 7)
    parts = wan_latency.flows("aws", 2, 1, 50, np.random.default_rng(0))
    assert all((parts[key] == whole[key]).all() for key in whole)


def test_jitter_is_heavy_tailed_and_capped():
    values = wan_latency.jitter(np.random.default_rng(0), 100_000)
    assert values.min() == 0 and values.max() <= 500 and np.median(values) < 1 < np.quantile(values, 0.995)


def numbers(value: object) -> set[int]:
    """All numbers in a message."""
    if isinstance(value, tuple):
        return set().union(*map(numbers, value))
    return {value} if isinstance(value, int) else set()


def shown(world, amount: int) -> set[str]:
    """The members that received a message with the amount, in a payment of it over the whole path."""
    return {member for _, member, _, message in privacy.views(world, amount) if amount in numbers(message)}


@pytest.mark.parametrize(("kind", "shows"), [("SyncPCN", False), ("PSyncPCN", True)])
def test_members_learn_amounts_in_psyncpcn_alone(kind, shows):
    world = privacy.REAL[kind](line(2, balance=1000), sim=Simulation(trace=True), keys=Keys("cached"))
    assert bool(shown(world, 123)) == shows
    assert privacy.same_views(kind, (123, 457)) != shows


def test_a_dispute_shows_the_amount_of_its_hop():
    from swarmbook.payments.adversary import Silent
    from swarmbook.payments.channel_committee import Announce
    from swarmbook.payments.channel_update import Cosign

    world = SyncPCN(line(2, balance=1000), sim=Simulation(trace=True))
    world.corrupt(world.party("u0"), Silent(kinds=(Cosign, Announce), when=lambda m: m.seq > 1))
    assert shown(world, 123) == {f"C1.{k}" for k in range(1, 5)}


def test_payments_are_linked_by_one_hash_and_not_by_points():
    rng = np.random.default_rng(0)
    assert privacy.link("hash", 30, rng).all()
    points = privacy.link("mock", 300, rng).mean()
    assert abs(points - 0.5) < 0.1


def test_congestion_defeats_a_fixed_margin():
    rng = np.random.default_rng(0)
    losses = [loss(34, mean, 20_000, rng) for mean in (1, 12, 50, 200)]
    assert losses[0] == 0 and losses == sorted(losses) and losses[-1] > 0.8
    assert loss(144, 50, 20_000, rng) < loss(34, 50, 20_000, rng)


def test_the_bound_on_delays_is_a_parameter_of_safety():
    assert Timing(2.0).expiries(0.0, 3)[0] == 2 * Timing(1.0).expiries(0.0, 3)[0] == 40
