"""The search for violations finds what is to be found: attacks, mutants, worlds beyond the promises; and nothing else.

Long searches run where SWARMBOOK_SWEEPS is "all", as in the weekly job.
"""

import os
import random

import pytest

from swarmbook.payments.model_checking.deviations import (
    EVERY,
    Delay,
    Forge,
    Ignore,
    Only,
    Pace,
    Withhold,
    ordered,
    renamed,
)
from swarmbook.payments.model_checking.forging import MEMBERS, PARTIES
from swarmbook.payments.model_checking.network import message_kinds
from swarmbook.payments.model_checking.search import Distinct, Report, exhaustive, guided, replayed, shrunk, symmetries
from swarmbook.payments.model_checking.settings import Pay, Setting, everything, settings
from swarmbook.payments.model_checking.worlds import play
from swarmbook.payments.mutants import MUTANTS, PATCHES, PORTFOLIO, SYNC, mutated, search
from swarmbook.payments.payment_network import line
from swarmbook.payments.psyncpcn import PSyncPCN
from swarmbook.payments.syncpcn import SyncPCN

LONG = os.environ.get("SWARMBOOK_SWEEPS") == "all"
ONE = (Pay(10),)
BOTH = "C1.4", "C2.4"
AGREED = (("ordering", "agreed"),)
SMALLEST = [  # one of each protocol and ordering, without faulty parties and with
    Setting("SyncPCN", 1, ONE, ("C1.4",)),
    Setting("SyncPCN", 1, ONE, ("u0", "C1.4")),
    Setting("PSyncPCN", 1, ONE, ("C1.4",), bound=300.0),
    Setting("PSyncPCN", 2, ONE, BOTH, bound=300.0),
    Setting("PSyncPCN", 1, ONE, ("C1.1",), AGREED, bound=100.0),
]


@pytest.mark.parametrize("setting", SMALLEST, ids=str)
def test_no_schedule_with_one_deviation_breaks_anything(setting):
    report = exhaustive(setting, 1, forgeries=2)
    assert [str(found) for found in report.found] == []
    assert report.schedules > len(report.histories) > 20


@pytest.mark.skipif(not LONG, reason='takes long: run it with SWARMBOOK_SWEEPS="all" pytest')
@pytest.mark.parametrize("setting", [s for s in everything() if s.hops == len(s.payments) == 1 and not s.skew], ids=str)
def test_no_schedule_with_two_deviations_breaks_anything(setting):
    report = exhaustive(setting, 2, fine=False, seconds=100.0)
    assert [str(found) for found in report.found] == []


@pytest.mark.parametrize("protocol", PORTFOLIO)
def test_the_guided_search_finds_nothing_wrong(protocol):
    report = search(protocol, 1000)
    assert [str(found) for found in report.found] == []


@pytest.mark.skipif(not LONG, reason='takes long: run it with SWARMBOOK_SWEEPS="all" pytest')
@pytest.mark.parametrize("protocol", PORTFOLIO)
def test_a_million_events_of_the_guided_search_find_nothing_wrong(protocol):
    worlds = [setting for setting in everything() if setting.protocol == protocol]
    report = Report()
    while report.events < 1_000_000 and not report.found:
        guided(worlds, random.Random(report.events), schedules=5000, report=report)
    assert [str(found) for found in report.found] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name):
    with mutated(name):
        report = search("SyncPCN" if name in SYNC else "PSyncPCN", 3000)
    assert report.found, name
    assert replayed(report.found[0].setting, report.found[0].schedule) != report.found[0].violations  # mended again


def test_mutants_leave_no_trace():
    before = {name: dict(vars(owner)) for name, patches in PATCHES.items() for owner, _, _ in patches}
    for name in PATCHES:
        with mutated(name):
            pass
    after = {name: dict(vars(owner)) for name, patches in PATCHES.items() for owner, _, _ in patches}
    assert before == after
    assert [found for protocol in PORTFOLIO for found in search(protocol, 20).found] == []


BEYOND = {
    "SyncPCN, one faulty member too many": Setting("SyncPCN", 1, ONE, ("u0", "C1.3", "C1.4"), trusted=True),
    "PSyncPCN, one faulty member too many": Setting(
        "PSyncPCN", 2, ONE, ("C1.3", "C1.4", "C2.3", "C2.4"), bound=300.0, trusted=True
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_beyond_the_promises_the_search_finds_a_violation(name):
    """With more than f faulty members: this shows that the search can find what there is."""
    report = guided([BEYOND[name]], random.Random(0), schedules=4000)
    assert report.found
    found = report.found[0]
    assert found.violations == replayed(found.setting, found.schedule, watched=False)
    for left_out in found.schedule:  # nothing can be left out
        rest = [deviation for deviation in found.schedule if deviation is not left_out]
        kinds = {text.split(" ")[0] for text in found.violations}
        assert not kinds & {text.split(" ")[0] for text in replayed(found.setting, rest, watched=False)}


def test_the_adversary_can_form_every_message_that_somebody_reads():
    """No class of message is left out, whatever the protocols send."""
    for world in (SyncPCN(line(1)), PSyncPCN(line(1)), PSyncPCN(line(1), ordering="agreed")):
        assert set(message_kinds(world).values()) <= {*MEMBERS, *PARTIES}


def test_a_schedule_is_played_alike_every_time():
    setting = Setting("SyncPCN", 2, ONE, ("u0", *BOTH))
    schedule = (Forge("Propose", "u0", ("u1",), 3.0, 1), Pace(0.05), Delay("Vote", "", "u1", EVERY, 1.0))
    one, two = play(setting, schedule), play(setting, schedule)
    assert one.sim.history == two.sim.history and one.log == two.log


def test_faulty_nodes_alone_misbehave():
    """Moves of the adversary do nothing where the node is honest, and honest messages keep to the bound."""
    setting = Setting("SyncPCN", 1, ONE)
    plain = play(setting, ()).sim.history
    moves = (
        Withhold("", "u0", "", EVERY),
        Only("", "C1.1", ()),
        Ignore("", "", "u1", EVERY),
        Forge("Ask", "u0", ("u1",), 1.0, 0),
    )
    for move in moves:
        assert play(setting, (move,)).sim.history == plain
    late = play(setting, (Delay("Propose", "u0", "u1", EVERY, 50.0),))
    assert max(time for time, *_ in late.log) < 20


def test_shrinking_keeps_what_is_needed():
    setting = BEYOND["SyncPCN, one faulty member too many"]
    found = guided([setting], random.Random(0), schedules=4000).found[0]
    more = (*found.schedule, Delay("Ask", "u1", "u0", EVERY, 0.25))
    kinds = {text.split(" ")[0] for text in found.violations}
    assert len(shrunk(setting, more, kinds).schedule) <= len(found.schedule)


def test_symmetry_exchanges_honest_members_of_one_committee():
    ways = symmetries(Setting("SyncPCN", 2, ONE, BOTH))
    assert len(ways) == 36 and ways[0] == {name: name for name in ways[0]}
    assert symmetries(Setting("PSyncPCN", 1, ONE, ("C1.1",), AGREED)) == [{}]
    schedule = ordered([Delay("Ack", "C1.1", "", 0, 1.0), Only("", "C1.4", ("C1.1", "u0"))])
    assert renamed(schedule, {"C1.1": "C1.2"}) == ordered(
        [Delay("Ack", "C1.2", "", 0, 1.0), Only("", "C1.4", ("C1.2", "u0"))]
    )


def test_worlds_have_every_choice_of_faulty_parties():
    chosen = {tuple(n for n in s.faulty if n.startswith("u")) for s in settings("SyncPCN", 2, 1)}
    assert chosen == {(), ("u0",), ("u1",), ("u2",), ("u0", "u1"), ("u0", "u2"), ("u1", "u2")}
    assert len(set(everything())) == len(everything())


def test_distinct_hashes_are_counted():
    distinct = Distinct()
    for number in range(100_000):
        distinct.add(hash((number % 50_000, "state")))
    assert abs(len(distinct) - 50_000) < 100
