"""How a schedule differs from the default one: the moves of the network and of the adversary, as plain values.

A schedule is a set of deviations from a run in which every message takes the same time and nobody misbehaves. Networks
deliver early, late, twice, or just beside a deadline. Faulty nodes withhold, hold back, ignore, hear late, sleep, run
by another clock, say one thing to some and another to others, and send what they form (`forging`). Deviations are
tuples of text and numbers, so that a schedule can be printed, hashed, replayed and shrunk.

A deviation names messages by (kind, sender, to, nth). An empty kind, sender or receiver means any, a name that ends in
"." means the whole committee, and nth = -1 means every such message, otherwise the nth from 0 between these two nodes.

Serves: the search for violations, and its tests.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

EVERY = -1


class Delay(NamedTuple):
    """These messages take this long; at most the network's bound, unless the sender or the receiver is faulty."""

    kind: str
    sender: str
    to: str
    nth: int
    delay: float


class Arrive(NamedTuple):
    """These messages arrive at this time, as far as the network's bound lets them.

    A faulty sender holds them back, and a faulty receiver acts on them when it likes.
    """

    kind: str
    sender: str
    to: str
    nth: int
    time: float


class Twice(NamedTuple):
    """These messages arrive once more, this long after they were sent. Only where the network repeats messages."""

    kind: str
    sender: str
    to: str
    nth: int
    delay: float


class Withhold(NamedTuple):
    """A faulty node does not send these messages."""

    kind: str
    sender: str
    to: str
    nth: int


class Only(NamedTuple):
    """A faulty node sends messages of a kind to these nodes alone."""

    kind: str
    sender: str
    names: tuple[str, ...]


class Alter(NamedTuple):
    """A faulty node says something else in these messages: variant `how` of value `which` of a field (`forging`)."""

    kind: str
    sender: str
    to: str
    nth: int
    field: str
    which: int
    how: int


class Ignore(NamedTuple):
    """A faulty node acts as if it had not received these messages; it still knows what they say."""

    kind: str
    sender: str
    to: str
    nth: int


class Sleep(NamedTuple):
    """A faulty node acts between these times on nothing that it hears, and on no timer; on all of it afterwards.

    It still knows what it was told, and what it forges is sent. until: infinite if it never acts again.
    """

    name: str
    since: float
    until: float


class Forge(NamedTuple):
    """At a time a faulty node sends what it can form: the candidate of this number (`forging`), to these nodes."""

    kind: str
    sender: str
    names: tuple[str, ...]
    time: float
    index: int


class Skew(NamedTuple):
    """The clock of a node, or of a whole committee, is ahead by this much; that of a faulty node by any amount."""

    name: str
    ahead: float


class Start(NamedTuple):
    """The payment of this number starts at this time."""

    payment: int
    time: float


class Pace(NamedTuple):
    """Every message takes this long, unless another deviation says otherwise."""

    delay: float


class Rush(NamedTuple):
    """What faulty nodes say and hear takes this long, unless another deviation says otherwise."""

    delay: float


Deviation = Delay | Arrive | Twice | Withhold | Only | Alter | Ignore | Sleep | Forge | Skew | Start | Pace | Rush
Schedule = tuple[Deviation, ...]


def matches(pattern: str, name: str) -> bool:
    """Whether a name, or the empty one of any node, or a committee's, means this node."""
    return not pattern or pattern == name or (pattern[-1] == "." and name.startswith(pattern))


def concerns(deviation: Deviation, kind: str, sender: str, to: str) -> bool:
    """Whether a deviation is about messages of this kind between these nodes."""
    if deviation.kind and deviation.kind != kind or not matches(deviation.sender, sender):
        return False
    return isinstance(deviation, Only) or matches(deviation.to, to)


def renamed(schedule: Schedule, names: Mapping[str, str]) -> Schedule:
    """A schedule with nodes exchanged for others."""

    def new(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(sorted(names.get(name, name) for name in value))
        return names.get(value, value) if isinstance(value, str) else value

    return ordered(type(deviation)(*map(new, deviation)) for deviation in schedule)


def ordered(deviations: Iterable[Deviation]) -> Schedule:
    """The schedule with these deviations, each once and in an order of their own."""
    return tuple(sorted(set(deviations), key=lambda d: (type(d).__name__, *map(repr, d))))
