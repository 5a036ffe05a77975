"""Message times are those of the released code's formula, whichever way they are asked for."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmbook.errors import ConfigError, DataError
from swarmbook.simulation import network
from swarmbook.simulation.network import PLACES, SKIPPIPE, SKIPPIPE_FIRST, Network, links

SEVEN = Network.over("seven", 21)
ACTIVATIONS = 8 * 1024 * 1024 * 4  # CheckFree: 8 sequences of 1,024 tokens, width 1,024, fp32
STAGE = 4 * 4 * (16 * 1024**2 + 2 * 1024)
ENDS = 4 * (2 * 32_000 * 1024 + 1024)


def pairs(table: str) -> set[frozenset[str]]:
    locations = sorted(frozenset().union(*links(table)))
    assert len(locations) == 12
    return {frozenset(pair) for pair in itertools.combinations(locations, 2)}


def test_the_tables_are_complete_but_for_the_two_pairs_that_their_authors_left_out():
    assert set(links("google")) == pairs("google")
    assert pairs("aws") - set(links("aws")) == {frozenset(("Ireland", "Sofia")), frozenset(("Ireland", "Amsterdam"))}


def test_the_two_papers_tables_differ_in_one_link():
    ours, theirs = links("google"), links("google with slip")
    assert ours.keys() == theirs.keys()
    (pair,) = (pair for pair in ours if ours[pair] != theirs[pair])
    assert pair == {"NL", "London"}
    assert theirs[pair] == (4.8, 0.2425 / 1024)


def test_the_slip_repaired_is_1024_times_as_fast():
    slip, repaired = links("google with slip"), links("google repaired")
    assert slip.keys() == repaired.keys()
    (pair,) = (pair for pair in slip if slip[pair] != repaired[pair])
    assert repaired[pair] == (slip[pair][0], 1024 * slip[pair][1])
    assert (
        repaired[pair][1] == repaired[frozenset(("NL", "Germany"))][1] == repaired[frozenset(("Belgium", "London"))][1]
    )


def test_named_places_are_in_their_tables():
    for name, (table, locations) in PLACES.items():
        assert len(set(locations)) == len(locations)
        assert Network.over(name, len(locations)).locations == locations
        assert set(locations) <= frozenset().union(*links(table))


def test_a_message_by_hand():
    wire = Network(("Australia", "Belgium"))
    assert wire.seconds(0, 1, 2**30) == pytest.approx(0.1289 + 1 / 0.00982666015625)
    assert wire.seconds(1, 0, 2**20) == pytest.approx(0.1289 + 1 / 1024 / 0.00982666015625)


def test_short_delays_are_not_waited_for():
    assert SEVEN.seconds(1, 5, ACTIVATIONS) == 0  # Belgium to NL: 0.13 s
    patient = Network.over("seven", 21, threshold=0.0)
    assert patient.seconds(1, 5, ACTIVATIONS) == pytest.approx(0.0029 + 0.03125 / 0.2425)


def test_one_place_and_unlisted_pairs_have_the_default_link():
    same = Network(("Iowa", "Iowa"))
    assert same.seconds(0, 1, 2**30) == pytest.approx(0.0099 + 2)
    assert same.seconds(0, 0, 2**30) == 0
    unlisted = Network(("Ireland", "Sofia"), table="aws", default_ms=1, default_gib_per_s=2.0, overhead=0.35)
    assert unlisted.seconds(0, 1, 2**30) == pytest.approx(0.001 + 0.5 + 0.35)


def test_hops_of_skippipes_planner():
    """What its released schedule and its first version have for one microbatch (edge costs of the released runs)."""
    shipped = Network.over("twelve, shipped schedule", 20, **SKIPPIPE)
    assert shipped.locations[:2] == ("Belgium", "Canada") and shipped.locations[11:13] == ("Australia", "Belgium")
    hops = shipped.matrix(2 * 16_777_324)
    assert hops[0, 1] == pytest.approx(1.96156225735717, rel=1e-12)
    assert hops[0, 12] == pytest.approx(0.3666251005828381, rel=1e-12)
    assert hops.max() == hops[6, 10] == pytest.approx(132.3144123449581, rel=1e-12)
    first = Network.over("eleven", 18, **SKIPPIPE_FIRST).matrix(4 * 16_777_324)
    assert first.max() == pytest.approx(1.1696755380195207, rel=1e-12)
    assert first[0, 11] == first[0, 2] == pytest.approx(0.5162510058283806, rel=1e-12)  # one place, and a missing pair


def test_half_the_share_is_twice_the_bytes():
    whole, half = Network.over("eleven", 12, threshold=0.0), Network.over("eleven", 12, threshold=0.0, share=0.5)
    np.testing.assert_allclose(half.matrix(1e9), whole.matrix(2e9), rtol=1e-15)
    np.testing.assert_array_equal(half.latency, whole.latency)


def test_the_ring_and_the_exchanges_of_the_released_set_up():
    rings = [sum(SEVEN.seconds(i % 21, (i + 3) % 21, ACTIVATIONS) for i in range(r, r + 21, 3)) for r in range(3)]
    assert rings == pytest.approx([9.32] * 3, abs=0.005)
    worst = []
    for stage in range(7):
        peers = range(3 * stage, 3 * stage + 3)
        worst.append(max(SEVEN.seconds(a, b, STAGE if stage else ENDS) for a in peers for b in peers))
    assert worst == pytest.approx([25.0, 9.4, 26.7, 9.4, 26.7, 12.6, 11.5], abs=0.05)


@given(st.sampled_from(sorted(PLACES)), st.integers(1, 30), st.floats(0, 1e11), st.floats(0, 1e10))
def test_arrays_give_what_single_messages_give(places, nodes, size, more):
    wires = Network.over(places, nodes)
    times = wires.matrix(size)
    assert times.shape == wires.latency.shape == wires.bandwidth.shape == (nodes, nodes)
    one_by_one = [[wires.seconds(a, b, size) for b in range(nodes)] for a in range(nodes)]
    np.testing.assert_array_equal(times, one_by_one)
    np.testing.assert_array_equal(times, times.T)
    assert (wires.matrix(size + more) >= times).all()
    np.testing.assert_array_equal(np.diag(times), 0)


def test_nodes_are_dealt_over_the_places():
    assert SEVEN.locations[0] == SEVEN.locations[7] == SEVEN.locations[14] == "Australia"
    assert Network.over(["Iowa", "NL"], 3).locations == ("Iowa", "NL", "Iowa")
    assert len(SEVEN) == 21


def test_matrices_are_not_to_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        SEVEN.latency[0, 1] = 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network(("Belgum",)), "unknown location in link table 'google' 'Belgum': did you mean 'Belgium'"),
        (lambda: Network(("Sofia",)), "unknown location in link table 'google' 'Sofia'"),
        (lambda: Network.over("sevn", 3), "unknown list of places 'sevn': did you mean 'seven'"),
        (lambda: Network(("Iowa",), table="gogle"), "unknown link table 'gogle': did you mean 'google'"),
        (lambda: Network(()), "at least one node"),
        (lambda: Network.over([], 3), "one place, not 3 and 0"),
        (lambda: Network.over("seven", 0), "one place, not 0 and 7"),
        (lambda: Network(("Iowa",), default_gib_per_s=0), "default_gib_per_s must be positive"),
        (lambda: Network(("Iowa",), threshold=float("nan")), "threshold not negative"),
        (lambda: Network(("Iowa",), share=0.0), "share must be positive, not 0.0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("text", [None, "table,a,b\ngoogle,Iowa,NL\n", "table,a,b,latency_ms,bandwidth_gib_per_s\nx,y"])
def test_a_missing_or_damaged_table_is_named(tmp_path, monkeypatch, text):
    if text is not None:
        (tmp_path / "links.csv").write_text(text)
    monkeypatch.setenv("SWARMBOOK_DATA", str(tmp_path))
    network.links.cache_clear()
    try:
        with pytest.raises(DataError, match=r"links\.csv.*git checkout"):
            links()
    finally:
        network.links.cache_clear()
