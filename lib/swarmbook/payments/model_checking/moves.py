"""What may be done next: all single deviations that a run offers, and one drawn at random.

`alphabet` is the finite set from which the exhaustive search takes its deviations. `draw` takes one from a larger set,
with single messages and any times, for the guided search. Both offer only what concerns messages that the run sent.

The file is one concept, the alphabet of network and adversary, once as a list and once by chance.

Serves: the search for violations.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from swarmbook.payments.model_checking.deviations import (
    EVERY,
    Alter,
    Arrive,
    Delay,
    Deviation,
    Forge,
    Ignore,
    Only,
    Pace,
    Rush,
    Schedule,
    Skew,
    Sleep,
    Start,
    Twice,
    Withhold,
)
from swarmbook.payments.model_checking.forging import KINDS
from swarmbook.payments.model_checking.network import TINY, Played, message_kinds
from swarmbook.payments.model_checking.settings import Setting
from swarmbook.payments.pbft import MESSAGES
from swarmbook.payments.psyncpcn.messages import Number
from swarmbook.payments.syncpcn.timing import TICK

SOON = 1e-3
SHARES = (0.001, 0.25, 0.5, 0.75, 1.0)  # of the bound, of a network that has one
WAITS = (0.01, 3.0, 10.0, 30.0, 100.0, 300.0)  # of a network without: from almost none to longer than all else
PLACES = "cid", "slot", "view", "seq", "side", "number", "pid"  # fields that say where something belongs
LARGE = 10**6  # numbers of forgeries are drawn below it


def delays(setting: Setting) -> tuple[float, ...]:
    """The times that a message may take, in the exhaustive search."""
    if setting.protocol == "SyncPCN":
        return tuple(share * setting.bound for share in SHARES)
    return tuple(wait for wait in WAITS if wait <= setting.bound)


def committee(name: str) -> str:
    """The pattern of the committee to which a member belongs, or the name of a party."""
    return name.split(".")[0] + "." if "." in name else name


def instants(setting: Setting, played: Played) -> list[float]:
    """When something may change: timers of honest nodes and deadlines of locks, and a tick beside each."""
    times = set(played.instants)
    if setting.protocol == "SyncPCN":
        times.update(_deadlines(played))
    return sorted({time + step for time in times for step in (-TICK, 0.0, TICK) if time + step > 0})


def moments(played: Played, faulty: frozenset[str]) -> list[float]:
    """When a faulty node received or sent something, just after which it may act."""
    times = {time for time, _, sender, to, _ in played.log if sender in faulty or to in faulty}
    return sorted({time + step for time in times for step in (SOON, played.sim.pace + SOON)})


def forms_of(played: Played) -> list[str]:
    """The classes of message that a faulty node can form, as far as somebody reads them by the rules of this world."""
    known, rules = message_kinds(played.world), getattr(played.world, "rules", None)
    unread: set[type] = set()
    if rules is not None:
        unread |= {*MESSAGES} if rules.ordering != "agreed" else set()
        unread |= {Number} if rules.ordering != "payer" else set()
    return [kind.__name__ for kind in KINDS if kind.__name__ in known and kind not in unread]


def targets_of(kind: str, played: Played) -> list[str]:
    """The nodes that react to a class of message."""
    known = message_kinds(played.world)[kind]
    members = [m for cid in range(len(played.world.topology.channels)) for m in played.world.members(cid)]
    parties = [played.world.party(f"u{i}") for i in range(len(played.world.topology.channels) + 1)]
    return [node.name for node in [*parties, *members] if known in node.on]


def fields_of(kind: str, played: Played) -> list[str]:
    """The fields of a class of message in which a faulty node may say something else, and "lock" if there is one."""
    known = message_kinds(played.world).get(kind)
    fields = [field for field in getattr(known, "_fields", ()) if field not in ("left", "right")]
    return [*fields, "lock"] if kind in ("Setup", "Concede") else fields


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every proper subset of some names."""
    for bits in range(2 ** len(names) - 1):
        yield tuple(name for k, name in enumerate(names) if bits >> k & 1)


def patterns(played: Played) -> list[tuple[str, str, str]]:
    """(kind, sender, to) of what was sent: between nodes or committees, from or to one, of one kind or of any."""
    found = {}
    for _, kind, sender, to, _ in played.log:
        for what in (kind, ""):
            for origin in (sender, committee(sender), ""):
                for target in (to, committee(to), ""):
                    if origin or target:
                        found.setdefault((what, origin, target))
    return list(found)


def coarse(pattern: tuple[str, str, str]) -> bool:
    """Whether a pattern means messages of a kind between parties and whole committees, or any of or to one node."""
    kind, sender, to = pattern
    single = [name for name in (sender, to) if "." in name and not name.endswith(".")]
    return not single and sender and to and kind or not kind and (not sender or not to)


def alphabet(setting: Setting, played: Played, forgeries: int = 0, fine: bool = True) -> list[Deviation]:
    """All single deviations of the exhaustive search that a run offers.

    fine=False leaves out patterns that are not `coarse`, delays other than the shortest and the longest, and faulty
    nodes that choose by kind of message.

    Delays of all messages of a pattern (`patterns`) at each of `delays`; arrivals at each of `instants` that the bound
    allows; a second payment at other times; clocks ahead by their bound; a faster pace; faulty nodes that withhold or
    ignore what a pattern means, talk to one subset of a committee alone, of one kind or of any, or say in one field
    something else than they should. forgeries: how many candidates of each class a faulty node sends at each of
    `moments`, to a whole committee, to one member or a party.
    """
    faulty = frozenset(setting.faulty)
    found: list[Deviation] = []
    meant = [pattern for pattern in patterns(played) if fine or coarse(pattern)]
    waits = delays(setting) if fine else (delays(setting)[0], delays(setting)[-1])
    for pattern in meant:
        found += [Delay(*pattern, EVERY, delay) for delay in waits]
        if setting.protocol == "PSyncPCN":
            found += [Twice(*pattern, EVERY, 30.0)]
        if pattern[1] in faulty:
            found.append(Withhold(*pattern, EVERY))
        if pattern[2] in faulty:
            found.append(Ignore(*pattern, EVERY))
    for sender in setting.faulty:
        kinds = {kind for _, kind, origin, _, _ in played.log if origin == sender}
        for kind in (sorted(kinds) if fine else []) + [""]:
            receivers = sorted({to for _, what, o, to, _ in played.log if o == sender and kind in ("", what)})
            groups = {committee(name): [n for n in receivers if committee(n) == committee(name)] for name in receivers}
            for group, names in groups.items():
                rest = tuple(g for g in groups if g != group)
                found += [Only(kind, sender, (*rest, *names_)) for names_ in subsets(names) if names_ or len(names) > 1]
        for kind in sorted(kinds):
            groups = {committee(to) for _, what, o, to, _ in played.log if o == sender and what == kind} | {""}
            if fine:
                groups |= {to for _, what, o, to, _ in played.log if o == sender and what == kind}
            for field in fields_of(kind, played):
                if field not in PLACES:
                    values, ways = (3 if fine else 2) if field == "lock" else 1, 3 if fine else 2
                    ways = 1 if field == "signature" else ways
                    found += [
                        Alter(kind, sender, to, EVERY, field, which, how)
                        for to in sorted(groups)
                        for which in range(values)
                        for how in range(ways)
                    ]
    times = instants(setting, played) if setting.protocol == "SyncPCN" else []
    for kind, sender, to in meant:
        if kind and sender and to:
            sent = [time for time, what, o, t, _ in played.log if what == kind and o == sender and t == to]
            for time in times:
                if any(s < time <= s + setting.bound or sender in faulty and s < time for s in sent[:1]):
                    found.append(Arrive(kind, sender, to, EVERY, time))
    if len(setting.payments) > 1:
        found += [Start(1, time) for time in (0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0)]
    found += [Pace(delay) for delay in ((0.05, 0.25, 0.5) if setting.protocol == "SyncPCN" else (0.05,))]
    if setting.skew:
        found += [Skew(name, setting.skew) for name in sorted({committee(s) for _, _, s, _, _ in played.log})]
    if forgeries:
        for sender in setting.faulty:
            for kind in forms_of(played):
                names = targets_of(kind, played)
                groups = sorted({committee(n) for n in names} | set(names) - {sender})
                found += [
                    Forge(kind, sender, (group,), time, index)
                    for time in moments(played, faulty)
                    for group in groups
                    for index in range(forgeries)
                ]
    return list(dict.fromkeys(found))


class Luck(Counter):
    """How often a forgery of each class reached something new, beside how often it was tried: those are drawn more."""

    def chosen(self, rng: random.Random, kinds: Sequence[str]) -> str:
        """One of these classes, by its luck so far; at first all alike."""
        return rng.choices(kinds, [(1 + self["new", kind]) / (4 + self["tried", kind]) for kind in kinds])[0]

    def learn(self, schedule: Schedule, new: bool) -> None:
        for kind in {deviation.kind for deviation in schedule if isinstance(deviation, Forge)}:
            self["tried", kind] += 1
            self["new", kind] += new


def draw(rng: random.Random, setting: Setting, played: Played, luck: Luck) -> list[Deviation]:
    """A move at random: of the network, or twice as often of the faulty nodes, if there are any.

    One move in eight is of two deviations: all messages are fast, and some are as slow as the bound allows. Of those of
    faulty nodes one in six is a strategy of one (`_strategy`) or of all of them (`_selective`).
    """
    if rng.random() < 0.125 and (pattern := _pattern(rng, played)) is not None:
        times = delays(setting)
        return [Pace(0.05), Delay(*pattern, times[-1] if rng.random() < 0.7 else rng.choice(times))]
    bad = setting.faulty and rng.random() < 2 / 3
    if bad and rng.random() < 1 / 6:
        found = (_strategy if rng.random() < 0.6 else _selective)(rng, setting, played)
        if found:
            return found
    while True:
        move = _faulty_move(rng, setting, played, luck) if bad else _network_move(rng, setting, played)
        if isinstance(move, Forge) and len(setting.faulty) > 1 and rng.random() < 0.25:  # all say the same
            return [move._replace(sender=name) for name in setting.faulty]
        if move is not None:
            return [move]


def passive(rng: random.Random, setting: Setting, played: Played) -> Deviation | None:
    """What a faulty node may do beside somebody else's attack: it falls silent, or withholds a kind."""
    name = _somebody(rng, setting)
    if rng.random() < 0.5:
        return _sleep(rng, setting, played, name)
    kinds = sorted({kind for _, kind, origin, _, _ in played.log if origin == name})
    return Withhold(rng.choice(kinds), name, "", EVERY) if kinds else None


def _somebody(rng: random.Random, setting: Setting) -> str:
    """A faulty node: a party if there is one, more often than a member."""
    parties = [name for name in setting.faulty if "." not in name]
    return rng.choice(parties if parties and rng.random() < 0.6 else setting.faulty)


def _pattern(rng: random.Random, played: Played, sender: str = "", to: str = "") -> tuple[str, str, str, int] | None:
    log = played.log
    wanted = rng.choice(sorted({kind for _, kind, o, _, _ in log if not sender or o == sender} or {""}))
    even = rng.random() < 0.5  # each kind alike, or each message
    for _ in range(60):
        _, kind, origin, target, nth = log[int(rng.random() * len(log))]
        if even and wanted and kind != wanted:
            continue
        if (not sender or origin == sender) and (not to or target == to):
            break
    else:
        return None
    number = nth if rng.random() < 0.35 else EVERY
    if number == EVERY:
        draw = rng.random()
        if draw < 0.2:
            kind = ""
        if not sender and rng.random() < 0.5:
            origin = committee(origin) if rng.random() < 0.5 else ""
        if not to and rng.random() < 0.4:
            target = committee(target) if rng.random() < 0.6 else ""
    return kind, origin, target, number


def _time(rng: random.Random, setting: Setting, played: Played) -> float:
    """A time that may matter, or any of the run's."""
    if rng.random() < 0.5 and played.instants:
        times = played.instants
        if setting.protocol == "SyncPCN" and rng.random() < 0.7:
            times = _deadlines(played) or times
        return max(0.0, times[int(rng.random() * len(times))] + rng.choice((-TICK, 0.0, 0.0, TICK, -0.5, 0.5, 1.0)))
    time = played.log[int(rng.random() * len(played.log))][0]
    return time + rng.choice((TINY, SOON, 0.3, 0.6, 1.0 + SOON))


def _network_move(rng: random.Random, setting: Setting, played: Played) -> Deviation | None:
    what = rng.random()
    if what < 0.08:
        return Pace(rng.choice((0.05, 0.25, 0.5, 0.75)))
    if what < 0.14 and len(setting.payments) > 1:
        return Start(rng.randrange(len(setting.payments)), round(rng.random() * 12, 2))
    if what < 0.2 and setting.skew:
        names = sorted({name for _, _, s, t, _ in played.log for name in (s, t)})
        return Skew(rng.choice(names), setting.skew * rng.choice((0.5, 1.0)))
    pattern = _pattern(rng, played)
    if pattern is None:
        return None
    if what > 0.75 and setting.protocol == "SyncPCN":
        return Arrive(*pattern, _time(rng, setting, played))
    if what > 0.9 and setting.protocol == "PSyncPCN":
        return Twice(*pattern, rng.choice(WAITS))
    shortest, *others, longest = delays(setting)  # the extremes more often
    return Delay(*pattern, rng.choice((shortest, longest, longest, *others)))


def _strategy(rng: random.Random, setting: Setting, played: Played) -> list[Deviation]:
    """What one faulty node, a party if there is one, does with a few kinds of message that it sends.

    It withholds a kind, holds it back to a time that matters, the same for all, or gives it to one node, or to all but
    one.
    """
    name, when = _somebody(rng, setting), _time(rng, setting, played)
    kinds = sorted({kind for _, kind, origin, _, _ in played.log if origin == name})
    found: list[Deviation] = []
    for kind in rng.sample(kinds, min(len(kinds), rng.choice((1, 2, 2, 3)))):
        what = rng.random()
        receivers = sorted({to for _, sent, origin, to, _ in played.log if origin == name and sent == kind})
        if what < 0.4:
            found.append(Withhold(kind, name, "", EVERY))
        elif what < 0.8:
            found.append(Arrive(kind, name, "", EVERY, when))
        elif len(receivers) > 1:
            one = rng.choice(receivers)
            chosen = [one] if rng.random() < 0.5 else [to for to in receivers if to != one]
            found.append(Only(kind, name, tuple(chosen)))
    return found


def _selective(rng: random.Random, setting: Setting, played: Played) -> list[Deviation]:
    """Every faulty node talks to some of the others alone; often something is slow on its way to an honest one."""
    found: list[Deviation] = []
    for name in setting.faulty:
        receivers = sorted({to for _, _, origin, to, _ in played.log if origin == name})
        if receivers:
            found.append(Only("", name, tuple(sorted(rng.sample(receivers, rng.randint(0, len(receivers)))))))
    _, kind, sender, to, _ = played.log[int(rng.random() * len(played.log))]
    if rng.random() < 0.7:
        whom = committee(sender) if rng.random() < 0.5 else sender
        found.append(Delay(kind if rng.random() < 0.5 else "", whom, to, EVERY, delays(setting)[-1]))
    return found


def _sleep(rng: random.Random, setting: Setting, played: Played, name: str) -> Sleep:
    """A faulty node that falls silent, for good or for a time."""
    since = _time(rng, setting, played)
    return Sleep(name, since, float("inf") if rng.random() < 0.5 else since + rng.choice((1.0, 3.0, 10.0, 30.0)))


ACTS = {  # how often a faulty node does what
    "forge": 6,
    "alter": 4,
    "only": 2,
    "withhold": 2,
    "ignore": 1,
    "hold back": 2,
    "hear late": 1,
    "sleep": 2,
    "clock": 0.5,
    "rush": 0.5,
}


def _faulty_move(rng: random.Random, setting: Setting, played: Played, luck: Luck) -> Deviation | None:
    name, act = _somebody(rng, setting), rng.choices(list(ACTS), list(ACTS.values()))[0]
    if act == "forge":
        return _forgery(rng, setting, played, luck, name)
    if act == "sleep":
        return _sleep(rng, setting, played, name)
    if act == "rush":
        return Rush(SOON)
    if act == "clock":
        return Skew(name, rng.choice((-30.0, -10.0, -3.0, -1.0, 1.0, 3.0, 10.0)))
    if act in ("ignore", "hear late"):
        pattern = _pattern(rng, played, to=name)
        if pattern is None or act == "ignore":
            return pattern and Ignore(*pattern)
        return Arrive(*pattern, _time(rng, setting, played))
    sent = [(kind, to) for _, kind, origin, to, _ in played.log if origin == name]
    if not sent:
        return None
    if act in ("withhold", "hold back"):
        pattern = _pattern(rng, played, sender=name)
        return pattern and (Withhold(*pattern) if act == "withhold" else Arrive(*pattern, _time(rng, setting, played)))
    kind = rng.choice(sorted({kind for kind, _ in sent}))  # each alike
    to = rng.choice([target for what, target in sent if what == kind])
    if act == "alter":
        fields = fields_of(kind, played)
        if "lock" in fields and rng.random() < 1 / 3:
            fields = ["lock"]
        elif rng.random() < 0.8:
            fields = [field for field in fields if field not in PLACES] or fields
        if not fields:
            return None
        target = rng.choice(("", "", committee(to), to))
        which, how = rng.choice((0, 0, 1, 1, 2, 3)), rng.choice((0, 0, 1, 1, 2, 3, 4, 5, 6))
        return Alter(rng.choice((kind, "")), name, target, EVERY, rng.choice(fields), which, how)
    kind = rng.choice((kind, ""))
    receivers = sorted({target for what, target in sent if kind in ("", what)})
    if rng.random() < 0.6:  # all others, and of this committee one, or all but one
        group = [n for n in receivers if committee(n) == committee(to)]
        few = [to] if rng.random() < 0.5 else [n for n in group if n != to]
        rest = [n for n in receivers if n not in group] if rng.random() < 0.6 else []
        return Only(kind, name, tuple(sorted([*rest, *few])))
    return Only(kind, name, tuple(sorted(rng.sample(receivers, rng.randint(0, len(receivers) - 1)))))


def _forgery(rng: random.Random, setting: Setting, played: Played, luck: Luck, name: str) -> Forge | None:
    """Something formed, more often about one lock or order than of any values, to a committee or to some of it."""
    kinds = forms_of(played)
    kind = luck.chosen(rng, kinds)
    names = [n for n in targets_of(kind, played) if n != name]
    if not names:
        return None
    one = rng.choice(names)
    group = [n for n in names if committee(n) == committee(one)]
    chosen = (committee(one),) if rng.random() < 0.5 else tuple(sorted(rng.sample(group, rng.randint(1, len(group)))))
    way = rng.choices(range(4), (2, 2, 4, 1))[0]
    if rng.random() < 0.6:  # just after somebody said something, or when it arrives; each time alike
        time = rng.choice(sorted({time for time, *_ in played.log})) + rng.choice((SOON, SOON, 0.3, 1.0 + SOON))
    else:
        time = _time(rng, setting, played)
    return Forge(kind, name, chosen, time, 4 * rng.randrange(LARGE) + way)


def _deadlines(played: Played) -> list[float]:
    """The deadlines of all locks of a run of SyncPCN."""
    timing, limits = played.world.timing, ("open_by", "claim_by", "key_by", "refund_from")
    locks = [lock for payment in played.world.payments for _, lock in played.world.hops(payment)]
    return [lock.expiry for lock in locks] + [getattr(timing, limit)(lock.expiry) for lock in locks for limit in limits]
