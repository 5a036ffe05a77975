"""The impossibility by exhaustive search: its counts, and an independent way to judge a table."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from swarmbook.payments.impossibility import (
    ACTIONS,
    ENDLESS,
    ENTRIES,
    FAULTS,
    IMPOSSIBLE,
    NAMED,
    NEXT_TO,
    NO_RECEIPT,
    PROTOCOLS,
    SATISFIED,
    SENDER_LOSES,
    U1_LOSES,
    Graph,
    Missing,
    Model,
    count_protocols,
    judge,
    judge_all,
)

# Of an independent earlier program for the same class.
COUNTS = {
    True: (9_920_232, 192_456, 8_728_317, 182_358),
    False: (3_803_193, 0, 3_423_627, 0),
}


@pytest.mark.parametrize("synchronous", COUNTS)
@pytest.mark.parametrize(("column", "faults"), list(enumerate(FAULTS.values())))
def test_counts_of_protocols(synchronous, column, faults):
    counts = count_protocols(synchronous, faults)
    assert counts.total() == PROTOCOLS == 43_046_721
    assert counts[SATISFIED] == COUNTS[synchronous][column]


def test_what_is_wrong_where_nothing_is_left():
    assert count_protocols(False, (1, 2)) == Counter(
        {
            U1_LOSES: 16_395_939,
            SENDER_LOSES: 16_395_939,
            IMPOSSIBLE: 3_715_713,
            ENDLESS: 2_735_937,
            NO_RECEIPT: 2_064_150,
            NEXT_TO[2]: 1_359_477,
            NEXT_TO[1]: 379_566,
        }
    )


def test_a_faulty_channel_that_may_fall_silent_leaves_fewer_protocols():
    """The adversary is stronger, so the counts can only fall; where there were none there are none."""
    assert count_protocols(True, (2,), silence=True)[SATISFIED] == 139_968
    assert count_protocols(False, (1, 2), silence=True)[SATISFIED] == 0


VERDICTS = {  # (synchronous, faults): what is wrong
    "HTLC-like": (None, None, U1_LOSES, U1_LOSES),
    "wait for ever": (None, NEXT_TO[2], None, NEXT_TO[2]),
    "pay on lock": (None, NO_RECEIPT, U1_LOSES, U1_LOSES),
    "always refund": (IMPOSSIBLE,) * 4,
}


@pytest.mark.parametrize("name", VERDICTS)
def test_named_protocols(name):
    cells = [(True, ()), (True, (1, 2)), (False, ()), (False, (1, 2))]
    assert tuple(judge_all(NAMED[name], *cell).wrong for cell in cells) == VERDICTS[name]


def test_the_shortest_run_to_a_loss():
    assert set(judge(NAMED["HTLC-like"], Model(False)).run) == {"timeout 1", "deliver L to 2"}


def replay(table, model, moves):
    """The state after a run, by its names."""
    graph, number = Graph(model), 0
    for name in moves:
        entry, after = next((entry, after) for move, entry, after in graph.expand(number) if move == name)
        number = after[0 if entry is None else ACTIONS.index(table[entry])]
    graph.expand(number)
    return graph.marks[number]


tables = st.lists(st.sampled_from(ACTIONS), min_size=len(ENTRIES), max_size=len(ENTRIES)).map(
    lambda actions: dict(zip(ENTRIES, actions, strict=True))
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables, st.booleans(), st.sampled_from([0, 1, 2]))
def test_a_run_that_is_named_leads_to_what_is_wrong(table, synchronous, faulty):
    model = Model(synchronous, faulty)
    verdict = judge(table, model)
    if verdict.wrong and verdict.wrong != IMPOSSIBLE:
        wrong = ENDLESS if verdict.wrong in NEXT_TO.values() else verdict.wrong
        assert wrong in replay(table, model, verdict.run)


def test_random_walks_find_nothing_wrong_with_what_is_satisfied():
    """Another way to explore: 2,000 random runs of each protocol that is said to be right."""
    rng = np.random.default_rng(0)
    for name, synchronous, faults in (("HTLC-like", True, (0, 1, 2)), ("wait for ever", False, (0,))):
        for _ in range(2000):
            graph, number = Graph(Model(synchronous, int(rng.choice(faults)))), 0
            while moves := graph.expand(number):
                assert not graph.marks[number] & {U1_LOSES, SENDER_LOSES, NO_RECEIPT}
                _, entry, after = moves[rng.integers(len(moves))]
                number = after[0 if entry is None else ACTIONS.index(NAMED[name][entry])]
            assert not graph.marks[number] & {U1_LOSES, SENDER_LOSES, ENDLESS, NO_RECEIPT}


def test_no_sampled_protocol_survives_asynchrony_and_faults():
    rng = np.random.default_rng(1)
    for _ in range(500):
        table = dict(zip(ENTRIES, rng.choice(ACTIONS, len(ENTRIES)), strict=True))
        assert judge_all(table, False, (1, 2)).wrong


def test_an_incomplete_table_is_refused():
    with pytest.raises(Missing):
        judge({}, Model(True))
