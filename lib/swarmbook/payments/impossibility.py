"""The impossibility, shown on a finite class: every protocol of two channels that decide by what they saw last.

Channels 1 (upstream) and 2 are processes joined by FIFO links, with messages L (locked), P (paid, a certificate) and R
(refunded). Channel 1 starts locked and has sent L. Channel 2 locks on L and answers L, or is refunded on R. A
*protocol* is a table for each channel, which is applied after every input: the last message received (none, L, P, R)
and whether its timer has fired (no, yes) give an action (stay, pay, refund). Paying sends P, refunding sends R. These
are 3 ** 16 = 43,046,721 protocols.

- In the asynchronous model a timer may fire at any moment. In the synchronous one it fires only when nothing is in
  flight, and channel 1's only after channel 2's has fired, or channel 2 is resolved or faulty.
- A faulty channel sends up to three messages of its choice, at most two of them in flight. In the count that we compare
  with, what it leaves behind is judged once it has sent all three; with `silence` it may stop at any time.
- `count_protocols` counts the protocols that satisfy everything. It explores all runs with a table of which nothing is
  fixed, and branches on an entry only when a run reads it, so that a leaf with k entries stands for 3 ** (16 - k)
  protocols.
- `judge` explores one full table, and gives the shortest run to what is wrong with it.

This illustrates the theorem on a class; the argument in the notebook is what covers all protocols.

Serves: the tables and the map of the impossibility; claims S1 and S2.
"""

import functools
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from swarmbook.payments.outcomes import Outcome

NONE, L, P, R = "none", "L", "P", "R"
INIT = "Init"  # of a channel that has not locked; else one of `Outcome`
STAY, PAY, REFUND = "stay", "pay", "refund"
ACTIONS = STAY, PAY, REFUND
ENTRIES = tuple(product((1, 2), (NONE, L, P, R), (False, True)))  # (channel, last message, timer fired)
PROTOCOLS = 3 ** len(ENTRIES)
FAULTS = {
    "no fault": (),
    "channel 2 may be faulty": (2,),
    "channel 1 may be faulty": (1,),
    "either may be faulty": (1, 2),
}
MESSAGES = 3  # that a faulty channel may send
IN_FLIGHT = 2
SATISFIED = "satisfies everything"
U1_LOSES, SENDER_LOSES, IMPOSSIBLE = "u_1 loses", "sender loses", "success impossible"
ENDLESS, NO_RECEIPT = "termination (fault-free)", "pays without receipt"
NEXT_TO = {2: "termination next to a faulty channel 2", 1: "termination next to a faulty channel 1"}

Table = Mapping[tuple[int, str, bool], str]


class Missing(Exception):
    """A run reads an entry that the table does not fix."""


class Side(NamedTuple):
    """One channel: its state, the last message it received while locked, and whether its timer has fired."""

    state: str
    last: str
    fired: bool


class Run(NamedTuple):
    """One state of both channels. down, up: the messages in flight to channel 2 and to channel 1."""

    one: Side
    two: Side
    down: tuple[str, ...]
    up: tuple[str, ...]
    sent: int = 0  # by the faulty channel
    certified: bool = False  # channel 1 has received a P


@dataclass(frozen=True)
class Model:
    """Whether the network is synchronous, which channel is faulty (0 for none), and whether it may stop early."""

    synchronous: bool
    faulty: int = 0
    silence: bool = False

    def start(self) -> Run:
        return Run(Side(Outcome.LOCKED, NONE, False), Side(INIT, NONE, False), () if self.faulty else (L,), ())

    def moves(self, run: Run) -> list["Move"]:
        """What the correct channels and the network can do next."""
        moves = []
        if run.up and self.faulty != 1:
            moves.append(Move(f"deliver {run.up[0]} to 1", *self._deliver_up(run)))
        if run.down and self.faulty != 2:
            moves.append(Move(f"deliver {run.down[0]} to 2", *self._deliver_down(run)))
        quiet = not run.up and not run.down
        late = run.two.fired or run.two.state in (Outcome.PAID, Outcome.REFUNDED) or self.faulty == 2
        if self.faulty != 1 and self._waits(run.one) and (not self.synchronous or quiet and late):
            moves.append(Move("timeout 1", *self._act(1, run, run.one._replace(fired=True))))
        if self.faulty != 2 and self._waits(run.two) and (not self.synchronous or quiet):
            moves.append(Move("timeout 2", *self._act(2, run, run.two._replace(fired=True))))
        return moves

    def injections(self, run: Run) -> list["Move"]:
        """What a faulty channel can send."""
        link = {0: None, 1: "down", 2: "up"}[self.faulty]
        if link is None or run.sent == MESSAGES or len(getattr(run, link)) == IN_FLIGHT:
            return []
        queue, sent = getattr(run, link), run.sent + 1
        return [
            Move(f"{self.faulty} sends {message}", None, (run._replace(**{link: (*queue, message)}, sent=sent),))
            for message in (L, P, R)
        ]

    def over(self, run: Run) -> bool:
        """Whether the faulty channel may have done all it does."""
        return not self.faulty or self.silence or run.sent == MESSAGES

    @staticmethod
    def _waits(side: Side) -> bool:
        return side.state == Outcome.LOCKED and not side.fired

    def _act(self, channel: int, run: Run, side: Side) -> tuple[tuple, tuple[Run, ...]]:
        """What becomes of a channel that has just got an input, for each action that the protocol may take."""
        name, link = ("one", "down") if channel == 1 else ("two", "up")
        stays = run._replace(**{name: side})
        ends = []
        for state, message in ((Outcome.PAID, P), (Outcome.REFUNDED, R)):
            sent = () if self.faulty else (*getattr(run, link), message)
            ends.append(run._replace(**{name: side._replace(state=state), link: sent}))
        return (channel, side.last, side.fired), (stays, *ends)

    def _deliver_up(self, run: Run) -> tuple[tuple | None, tuple[Run, ...]]:
        message, rest = run.up[0], run._replace(up=run.up[1:])
        if run.one.state != Outcome.LOCKED:
            return None, (rest,)
        rest = rest._replace(certified=run.certified or message == P)
        return self._act(1, rest, run.one._replace(last=message))

    def _deliver_down(self, run: Run) -> tuple[tuple | None, tuple[Run, ...]]:
        message, rest = run.down[0], run._replace(down=run.down[1:])
        if run.two.state == INIT and message == L:
            rest = rest._replace(up=() if self.faulty else (*rest.up, L))
            return self._act(2, rest, Side(Outcome.LOCKED, L, run.two.fired))
        if run.two.state == INIT and message == R:
            return None, (rest._replace(two=run.two._replace(state=Outcome.REFUNDED)),)
        if run.two.state == Outcome.LOCKED:
            return self._act(2, rest, run.two._replace(last=message))
        return None, (rest,)


class Move(NamedTuple):
    """A step: the entry of the table that it reads, or None if there is no choice, and what comes after each action."""

    name: str
    entry: tuple | None
    after: tuple[Run, ...]


class Graph:
    """All runs of a model, whatever the protocol, numbered and expanded when first met.

    marks[i]: what is wrong in run i, or SATISFIED. moves[i]: (name, entry, numbers of the runs after each action).
    """

    def __init__(self, model: Model) -> None:
        self.model, self.numbers, self.runs = model, {}, []
        self.moves: list[list[tuple] | None] = []
        self.marks: list[frozenset[str]] = []
        self.number(model.start())

    def number(self, run: Run) -> int:
        if run not in self.numbers:
            self.numbers[run] = len(self.runs)
            self.runs.append(run)
            self.moves.append(None)
            self.marks.append(frozenset())
        return self.numbers[run]

    def expand(self, number: int) -> list[tuple]:
        if self.moves[number] is None:
            run, model = self.runs[number], self.model
            moves = model.moves(run)
            self.marks[number] = self._marks(run, not moves and model.over(run))
            self.moves[number] = [
                (move.name, move.entry, tuple(map(self.number, move.after))) for move in moves + model.injections(run)
            ]
        return self.moves[number]

    def _marks(self, run: Run, rest: bool) -> frozenset[str]:
        states, faulty = (run.one.state, run.two.state), self.model.faulty
        marks = set()
        if not faulty:
            marks |= {U1_LOSES} if states == (Outcome.REFUNDED, Outcome.PAID) else set()
            marks |= {SENDER_LOSES} if states == (Outcome.PAID, Outcome.REFUNDED) else set()
            marks |= {SATISFIED} if states == (Outcome.PAID, Outcome.PAID) else set()
        concerned = {0: states, 1: states[1:], 2: states[:1]}[faulty]
        marks |= {ENDLESS} if rest and Outcome.LOCKED in concerned else set()
        marks |= {NO_RECEIPT} if faulty == 2 and states[0] == Outcome.PAID and not run.certified else set()
        return frozenset(marks)


@functools.cache
def graph(model: Model) -> Graph:
    return Graph(model)


class Verdict(NamedTuple):
    """What is wrong with a protocol in one model, or None, and the shortest run to it."""

    wrong: str | None
    run: tuple[str, ...] = ()


def judge(table: Table, model: Model) -> Verdict:
    """Explore all runs, breadth first. Raises Missing if the table does not fix what they read.

    A loss (R1, R2) counts before a lock that is never resolved (R5), this before paying without receipt (R2), and that
    before never being able to succeed (R7, where nobody is faulty).
    """
    runs = graph(model)
    came: dict[int, tuple[int, str] | None] = {0: None}
    todo = deque([0])
    first: dict[str, int] = {}
    while todo:
        number = todo.popleft()
        moves = runs.expand(number)
        for mark in runs.marks[number]:
            if mark in (U1_LOSES, SENDER_LOSES):
                return Verdict(mark, _way(came, number))
            first.setdefault(mark, number)
        for name, entry, after in moves:
            if entry is None:
                following = after[0]
            elif entry in table:
                following = after[ACTIONS.index(table[entry])]
            else:
                raise Missing(entry)
            if following not in came:
                came[following] = number, name
                todo.append(following)
    if ENDLESS in first:
        return Verdict(NEXT_TO.get(model.faulty, ENDLESS), _way(came, first[ENDLESS]))
    if NO_RECEIPT in first:
        return Verdict(NO_RECEIPT, _way(came, first[NO_RECEIPT]))
    return Verdict(None if SATISFIED in first or model.faulty else IMPOSSIBLE)


def judge_all(table: Table, synchronous: bool, faults: Iterable[int], silence: bool = False) -> Verdict:
    """The first thing wrong with a protocol: without faults, then with each channel of `faults` faulty."""
    for faulty in (0, *faults):
        verdict = judge(table, Model(synchronous, faulty, silence))
        if verdict.wrong:
            return verdict
    return Verdict(None)


def count_protocols(synchronous: bool, faults: Iterable[int], silence: bool = False) -> Counter:
    """How many of all protocols satisfy everything (SATISFIED), and how many fail first by what."""
    models = [Model(synchronous, faulty, silence) for faulty in (0, *faults)]
    counts: Counter = Counter()
    tables: list[tuple[dict, int]] = [({}, 0)]  # and the models it has passed, whose runs read nothing else
    while tables:
        table, passed = tables.pop()
        try:
            wrong = judge(table, models[passed]).wrong
        except Missing as missing:
            tables += [({**table, missing.args[0]: action}, passed) for action in ACTIONS]
            continue
        if wrong is None and passed + 1 < len(models):
            tables.append((table, passed + 1))
        else:
            counts[wrong or SATISFIED] += 3 ** (len(ENTRIES) - len(table))
    return counts


def _way(came: Mapping, number: int) -> tuple[str, ...]:
    moves = []
    while came[number] is not None:
        number, move = came[number]
        moves.append(move)
    return tuple(moves[::-1])


def named(
    pays_on: Mapping[int, Iterable[str]], refunds_on: Mapping[int, Iterable[str]], timers: Iterable[int]
) -> Table:
    """A table that pays or refunds a channel on some last messages, and refunds it when its timer fires (if listed)."""
    table = {}
    for channel, last, fired in ENTRIES:
        if last in pays_on.get(channel, ()):
            table[channel, last, fired] = PAY
        elif last in refunds_on.get(channel, ()) or fired and channel in timers:
            table[channel, last, fired] = REFUND
        else:
            table[channel, last, fired] = STAY
    return table


NAMED = {
    "HTLC-like": named({1: (P,), 2: (L,)}, {1: (R,)}, (1, 2)),
    "wait for ever": named({1: (P,), 2: (L,)}, {1: (R,)}, ()),
    "pay on lock": named({1: (L, P), 2: (L,)}, {1: (R,)}, (1, 2)),
    "always refund": dict.fromkeys(ENTRIES, REFUND),
}
