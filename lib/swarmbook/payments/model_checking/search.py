"""The search for violations: every schedule with few deviations, guided random schedules beyond, and shrinking.

- `exhaustive` plays every set of at most `depth` deviations, from the default schedule on. The deviations that may be
  added are those that a run offers (`moves.alphabet`). A run whose histories (`network`) are those of an earlier run of
  this world is not extended: what could follow has followed there. So "exhaustive to depth k" means: of all sets of at
  most k deviations of the alphabet, each is played, or one that differs in the order of independent events alone, or
  in which of several honest members it names (`symmetries`). Messages that arrive at the very same time are taken in
  the order of sending. The alphabet is finite: it has a few delays, and patterns of messages instead of any set. With
  `fine=False` it has some 60 to 300 deviations, so that depth 2 takes from seconds to minutes a world of one payment:
  each kind of message from a party or a whole committee to another one, and everything that a node says or hears, is
  fast, as slow as allowed, or just at or beside a deadline; faulty nodes withhold, ignore, alter or tell some alone.
- `guided` mutates schedules that reached something new: it adds, drops and exchanges deviations, of which single
  messages, forgeries, strategies of a node and any times are possible, and keeps schedules in which a node held what no
  node of its name had held. What was varied least so far is varied next. An attack often takes one node that acts and
  another that keeps still, so that a third of the schedules have somebody fall silent as well. It can begin with what
  an earlier search has kept, as after a change of a protocol. It proves nothing.
- `shrunk` removes deviations as long as the violation stays.

Serves: the search for violations, and the mutants.
"""

import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

from swarmbook.payments.model_checking.deviations import Deviation, Rush, Schedule, ordered, renamed
from swarmbook.payments.model_checking.moves import SOON, Luck, alphabet, draw, passive
from swarmbook.payments.model_checking.network import Played, kinds
from swarmbook.payments.model_checking.settings import Setting
from swarmbook.payments.model_checking.worlds import play

MOST_DEVIATIONS = 16  # of a guided schedule


class Found(NamedTuple):
    """A violation: the world, a schedule that leads to it and from which nothing can be left out, and what is wrong."""

    setting: Setting
    schedule: Schedule
    violations: tuple[str, ...]

    def __str__(self) -> str:
        lines = [repr(self.setting), *(f"    {deviation}" for deviation in self.schedule)]
        lines += [f"    sent to {to} at {when}: {what}" for when, to, what in play(*self[:2]).sim.forged]
        return "\n".join([*lines, *(f"  {violation}" for violation in self.violations)])


class Distinct:
    """How many different hashes were added, by the zeros left in a bitmap (linear counting; 0.1 % off at 10**8)."""

    SIZE = 2**26

    def __init__(self) -> None:
        self.bits, self.ones = bytearray(self.SIZE // 8), 0

    def add(self, number: int) -> bool:
        """Note a hash; whether it is certainly a new one."""
        place = number & (self.SIZE - 1)
        byte, bit = place >> 3, 1 << (place & 7)
        if self.bits[byte] & bit:
            return False
        self.bits[byte] |= bit
        self.ones += 1
        return True

    def __len__(self) -> int:
        return round(-self.SIZE * math.log1p(-self.ones / self.SIZE))


@dataclass
class Report:
    """What a search has seen. schedules: played; states, histories: different ones; seconds: of CPU time.

    kept: the schedules that reached something new in a guided search, each with the number of its world.
    """

    worlds: int = 0
    schedules: int = 0
    events: int = 0
    states: Distinct = field(default_factory=Distinct)
    histories: Distinct = field(default_factory=Distinct)
    seconds: float = 0.0
    found: list[Found] = field(default_factory=list)
    kept: list[tuple[int, Schedule]] = field(default_factory=list)

    def add(self, played: Played, world: int) -> bool:
        """Count a run; whether its histories are new in this world."""
        self.schedules += 1
        self.events += played.sim.events
        for state in played.sim.states:
            self.states.add(hash((world, state)))
        return self.histories.add(hash((world, played.sim.history)))

    def __str__(self) -> str:
        return (
            f"{self.worlds} worlds, {self.schedules:,} schedules, {len(self.histories):,} histories, "
            f"{len(self.states):,} states, {self.events:,} events, {len(self.found)} violations, "
            f"{self.seconds:.1f} s of CPU time"
        )


def symmetries(setting: Setting) -> list[dict[str, str]]:
    """All ways to exchange honest members of each committee, the identity first; only that where members lead."""
    if ("ordering", "agreed") in setting.rules:
        return [{}]
    found: list[dict[str, str]] = [{}]
    for cid in range(setting.hops):
        honest = [name for k in range(1, 5) if (name := f"C{cid + 1}.{k}") not in setting.faulty]
        ways = [dict(zip(honest, other, strict=True)) for other in permutations(honest)]
        found = [{**one, **two} for one in found for two in ways]
    return found


def shrunk(setting: Setting, schedule: Schedule, kinds: Iterable[str]) -> Found:
    """The schedule without the deviations that the violation of one of these requirements does not need."""
    wanted, left = set(kinds), list(schedule)
    smaller = True
    while smaller:
        smaller = False
        for deviation in list(left):
            rest = [other for other in left if other is not deviation]
            if play(setting, tuple(rest)).kinds & wanted:
                left, smaller = rest, True
    played = play(setting, tuple(left))
    return Found(setting, tuple(left), played.violations)


def exhaustive(
    setting: Setting,
    depth: int,
    report: Report | None = None,
    forgeries: int = 0,
    fine: bool = True,
    first: bool = True,
    seconds: float = float("inf"),
) -> Report:
    """Play every schedule with at most `depth` deviations of the alphabet (`forgeries`, `fine`: `moves.alphabet`).

    first: stop at the first violation. seconds: give up after so much CPU time.
    """
    report = report or Report()
    begun, world = time.process_time(), report.worlds
    report.worlds += 1
    root = play(setting, ())
    report.add(root, world)
    if root.violations:
        report.found.append(Found(setting, (), root.violations))
    level: list[tuple[Schedule, Played]] = [((), root)]
    tried: set[Schedule] = {()}
    alike = symmetries(setting)
    for size in range(1, depth + 1):
        following: list[tuple[Schedule, Played]] = []
        for schedule, played in level:
            for deviation in alphabet(setting, played, forgeries, fine):
                longer = ordered((*schedule, deviation))
                if len(longer) < size or longer in tried:
                    continue
                tried.update(renamed(longer, names) for names in alike)
                run = play(setting, longer)
                new = report.add(run, world)
                if run.violations:
                    report.found.append(shrunk(setting, longer, run.kinds))
                if (run.violations and first) or time.process_time() - begun > seconds:
                    report.seconds += time.process_time() - begun
                    return report
                if new and size < depth and not run.violations:
                    following.append((longer, run))
        level = following
    report.seconds += time.process_time() - begun
    return report


@dataclass
class Reached:
    """A schedule that reached something new, its run, and how often it was varied."""

    schedule: Schedule
    played: Played
    varied: int = 0


def varied(rng: random.Random, setting: Setting, corpus: Sequence[Reached], luck: Luck) -> Schedule:
    """A schedule made from one that reached something new: of a few at random, the one that was varied least so far."""
    recent = corpus[-20:] if rng.random() < 0.4 else corpus
    parent = min(rng.choices(recent, k=3), key=lambda reached: reached.varied)
    parent.varied += 1
    schedule, played = parent.schedule, parent.played
    deviations = list(schedule)
    if deviations and rng.random() < 0.35:
        deviations.pop(rng.randrange(len(deviations)))
    if rng.random() < 0.25:
        deviations += rng.sample(other := rng.choice(corpus).schedule, rng.randint(0, len(other)))
    few, many = (0, 1, 1, 1, 2, 2, 3), (4, 5, 6, 7)
    for _ in range(rng.choice(few if rng.random() < 0.75 else many) or not deviations):
        deviations += draw(rng, setting, played, luck)
    if setting.faulty and rng.random() < 0.3 and (more := passive(rng, setting, played)) is not None:
        deviations.append(more)
    return ordered(deviations[-MOST_DEVIATIONS:])


def guided(
    settings: Sequence[Setting],
    rng: random.Random,
    seconds: float = float("inf"),
    schedules: float = float("inf"),
    first: bool = True,
    report: Report | None = None,
    start: Iterable[tuple[int, Schedule]] = (),
) -> Report:
    """Play mutated schedules in all these worlds by turns, for so many seconds of CPU time or so many schedules.

    start: schedules to be played before, as an earlier search of these worlds has kept them (`Report.kept`). first:
    stop at the first violation; otherwise go on, and report each set of broken requirements once a world.
    """
    report = report or Report()
    begun, base, count = time.process_time(), report.worlds, 0
    corpora: list[list[Reached]] = []
    covered: list[set[int]] = []
    lucks, start = [Luck() for _ in settings], iter(start)
    known: set[tuple] = set()
    for number, setting in enumerate(settings):
        corpora.append([])
        covered.append(set())
        for schedule in ((), (Rush(SOON),)) if setting.faulty else ((),):
            root = play(setting, schedule)
            report.add(root, base + number)
            corpora[number].append(Reached(schedule, root))
            covered[number] |= root.sim.coverage
            if root.violations:
                report.found.append(Found(setting, schedule, root.violations))
    report.worlds += len(settings)
    while count < schedules and time.process_time() - begun < seconds and not (first and report.found):
        number, schedule = next(start, (count % len(settings), None))
        count += 1
        setting, corpus = settings[number], corpora[number]
        schedule = schedule or varied(rng, setting, corpus, lucks[number])
        run = play(setting, schedule)
        report.add(run, base + number)
        if run.violations:
            if (number, run.kinds) not in known:
                smallest = shrunk(setting, schedule, run.kinds)
                broken = kinds(smallest.violations)
                if (number, broken) not in known:
                    report.found.append(smallest)
                known |= {(number, broken), (number, run.kinds)}
            continue
        new = bool(run.log) and not run.sim.coverage <= covered[number]  # where nobody speaks nothing can follow
        lucks[number].learn(schedule, new)
        if new:
            covered[number] |= run.sim.coverage
            corpus.append(Reached(schedule, _light(run)))
            report.kept.append((number, schedule))
    report.seconds += time.process_time() - begun
    return report


def _light(played: Played) -> Played:
    """A run without what is not needed to go on from it."""
    played.sim.states, played.sim.histories = set(), {}
    return played


def replayed(setting: Setting, schedule: Iterable[Deviation]) -> tuple[str, ...]:
    """What is wrong after a schedule."""
    return play(setting, tuple(schedule)).violations
