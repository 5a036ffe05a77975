"""SkipPipe's own planner, rebuilt: conflict-based search, for comparison with the planner that one would use.

- a microbatch's slot is an agent; each takes its shortest path under what is forbidden to it. Of the first violation in
  an arrangement of all paths the search makes a few children, each of which forbids some agent something more: a stage
  that too many chose, a relay that too many chose (TC1), or a time at which the relay works for another (TC2)
- what is known of the released code (a_star_modified.py, CBS.py) is kept: the order of checks and children, the 32
  assignments of stages from which it starts again, and when it stops. Its ties are not known; here the earlier child is
  the first, so that paths of equal length may differ from the released ones. Nothing is random
- a plan's makespan is that of all its microbatches, nodes doing backward passes first, then what came first, which is
  within a thousandth of a second of the released simulator on the shipped schedule
- without TC2 the first arrangement that fits the relays is the plan. With it the search rarely ends by itself: it has a
  limit, and gives the best plan by then
"""

import heapq
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from swarmbook.errors import PlanError
from swarmbook.pipeline import TICK, Path, Pipeline, Plan
from swarmbook.planner import Search, dispatched, no_room

GOAL = 0.88  # of the first plan's makespan: a plan below that ends the search (0.92 in the code's first version)
SOLUTIONS = 8  # arrangements without a collision after which it ends
LOOSE = 5.0  # seconds above the best plan at which an arrangement is dropped
ASSIGNMENTS = 32  # of stages, from which the search starts again
STAGE_CHILDREN, RELAY_CHILDREN = 3, 2
PENALTY = 0.01  # seconds for each agent too many on a relay
SLOWEST = 4  # of two forward passes that collide, those of this part (a quarter) of the agents do not wait
PATHS = 100_000  # of a data node, above which they are not listed


@dataclass(frozen=True)
class ConflictSearch(Search):
    """What the search found; `history` counts expanded arrangements.

    expanded: arrangements that were branched on ("pops"). ended: why it stopped: "goal", "solutions", "all seen",
    "first" (without TC2), or "limit".
    """

    expanded: int
    ended: str


@dataclass(frozen=True)
class _Work:
    """An operation of an agent, in ticks."""

    node: int
    begin: int
    end: int
    backward: bool


@dataclass(frozen=True)
class _Agent:
    """A slot with its path so far.

    banned: nodes as bits. windows: (node, from, to) in which it must not work there. works: its first microbatch.
    """

    microbatches: tuple[int, ...]
    delay: int
    path: Path = ()
    works: tuple[_Work, ...] = ()
    banned: int = 0
    windows: tuple[tuple[int, int, int], ...] = ()

    @property
    def weight(self) -> int:
        """Places that it takes on a relay."""
        return len(self.microbatches)

    @cached_property
    def end(self) -> int:
        return self.works[-1].end


@dataclass(frozen=True)
class _Excess:
    """Agents that chose the same nodes, fastest first, and by how many places there are too many."""

    nodes: int  # as bits
    places: int
    agents: tuple[int, ...]


@dataclass
class _Problem:
    """The instance as plain numbers, and the paths of each data node, shortest first."""

    pipeline: Pipeline
    listed: dict[int, list[tuple[int, int, Path]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.travel, self.work = self.pipeline.travel.tolist(), self.pipeline.work.tolist()
        self.stages = [sum(1 << node for node in group) for group in self.pipeline.groups]
        count = sum(np.prod([len(self.pipeline.groups[s]) for s in order]) for order in self.pipeline.orders)
        if count > PATHS:
            raise PlanError(
                f"{count:,} paths of a data node are more than the {PATHS:,} that the conflict-based search lists: "
                "take the planner 'annealing'"
            )

    def paths(self, home: int) -> list[tuple[int, int, Path]]:
        """(ticks of the round trip, nodes as bits, path) of all that the rules allow, by round trip."""
        if home not in self.listed:
            groups, microbatch = self.pipeline.groups, self.pipeline.groups[0].index(home) * self.pipeline.microbatches
            options = (p for o in self.pipeline.orders for p in itertools.product(*(groups[s] for s in o)))
            rows = [(self.timed(microbatch, p, 0, ())[-1].end, sum(1 << n for n in p), p) for p in options]
            self.listed[home] = sorted(rows, key=lambda row: row[0])
        return self.listed[home]

    def timed(self, microbatch: int, path: Path, begin: int, windows: Sequence[tuple[int, int, int]]) -> list[_Work]:
        """A microbatch's operations, each begun as soon as it may be."""
        way, P, works, now = self.pipeline.way(microbatch, path), self.pipeline.visits, [], begin
        for position, node in enumerate(way):
            length = self.work[(position >= P) + (position > P)][node]
            there = [window for window in windows if window[0] == node]
            while late := [end for _, start, end in there if now < end and now + length > start]:
                now = max(late)
            works.append(_Work(node, now, now + length, position > P))
            if position < 2 * P:
                now += length + self.travel[node][way[position + 1]]
        return works

    def routed(self, agent: _Agent) -> _Agent | None:
        """The agent on the path on which it is back first, or None if everything is forbidden."""
        best, first = None, agent.microbatches[0]
        for trip, nodes, path in self.paths(self.pipeline.data_node(first)):
            if best is not None and agent.delay + trip >= best.end:
                break
            if not nodes & agent.banned:
                found = replace(agent, path=path, works=tuple(self.timed(first, path, agent.delay, agent.windows)))
                best = found if best is None or found.end < best.end else best
        return best

    def excess(self, agents: Sequence[_Agent], nodes: Sequence[int], places: int) -> _Excess | None:
        """Whether more agents than there are `places` for a node go through any of some nodes."""
        bits = sum(1 << node for node in nodes)
        there = [i for i, agent in enumerate(agents) if any(bits >> node & 1 for node in agent.path)]
        over = sum(agents[i].weight for i in there) - places * len(nodes)
        there.sort(key=lambda i: agents[i].end)
        return _Excess(bits, over, tuple(there)) if over > 0 else None

    def full_stages(self, agents: Sequence[_Agent]) -> _Excess | None:
        """The first stage that too many chose."""
        found = (self.excess(agents, group, self.pipeline.capacity) for group in self.pipeline.groups[1:])
        return next(filter(None, found), None)

    def full_relays(self, agents: Sequence[_Agent]) -> list[_Excess]:
        """Relays that too many chose."""
        relays = (node for group in self.pipeline.groups[1:] for node in group)
        return list(filter(None, (self.excess(agents, [node], self.pipeline.capacity) for node in relays)))

    def relieved(self, agents: tuple[_Agent, ...], excess: _Excess, children: int) -> Iterator[tuple[_Agent, ...]]:
        """Children in which the nodes are forbidden to as many agents as are too many, the fastest ones first."""
        for first in range(min(children, len(excess.agents))):
            chosen, places = [], 0
            for i in excess.agents[first:]:
                if places < excess.places:
                    chosen.append(i)
                    places += agents[i].weight
            if places >= excess.places:
                yield from self.changed(agents, {i: {"banned": agents[i].banned | excess.nodes} for i in chosen})

    def changed(self, agents: tuple[_Agent, ...], fields: dict[int, dict]) -> Iterator[tuple[_Agent, ...]]:
        """The arrangement with some agents' prohibitions replaced and their paths found anew; none if one has none."""
        new = {i: self.routed(replace(agents[i], **more)) for i, more in fields.items()}
        if all(new.values()):
            yield tuple(new.get(i, agent) for i, agent in enumerate(agents))

    def apart(self, agents: tuple[_Agent, ...]) -> list[tuple[_Agent, ...]] | None:
        """Children that let one agent wait where two collide first, seen from the slowest; None if none collide."""
        slowest = sorted(range(len(agents)), key=lambda i: -agents[i].end)
        for rank, i in enumerate(slowest):
            for mine in agents[i].works:
                for j in slowest:
                    for other in agents[j].works if i != j else ():
                        both = mine.backward and other.backward
                        if mine.node == other.node and mine.begin < other.end and other.begin < mine.end and not both:
                            sides = [(j, mine), (i, other)]  # who waits, for what
                            if mine.backward or other.backward:
                                sides = sides[:1] if other.begin >= mine.begin else sides[1:]
                            elif rank < len(agents) / SLOWEST:
                                sides = sides[:1]
                            waits = ({k: self.waiting(agents[k], busy)} for k, busy in sides)
                            return [child for fields in waits for child in self.changed(agents, fields)]
        return None

    @staticmethod
    def waiting(agent: _Agent, busy: _Work) -> dict:
        """That an agent keeps off a node while it works for another."""
        return {"windows": (*agent.windows, (busy.node, busy.begin, busy.end))}


def conflict_search(
    pipeline: Pipeline,
    collisions: bool = True,
    expand: int | None = 3000,
    seconds: float | None = None,
    together: bool = False,
) -> ConflictSearch:
    """Conflict-based search for one path a slot.

    collisions: whether microbatches must not meet on a node (TC2). expand, seconds: when to stop at the latest, after
    so many arrangements or so long. together: all slots of a data node are one agent, with one path, as in the released
    schedule of 20 nodes. Raises `PlanError` if no plan was found by then, if there is none, and if a data node has too
    many paths to list.
    """
    if (expand is not None and expand < 1) or (seconds is not None and not seconds > 0):
        raise PlanError(f"expand must be at least 1 and seconds above 0, not {expand} and {seconds}")
    problem, started = _Problem(pipeline), time.monotonic()
    chains = iter(pipeline.chains)
    slots = [list(itertools.islice(chains, pipeline.slots)) for _ in pipeline.groups[0]]
    if together:
        slots = [[tuple(itertools.chain(*of_node))] for of_node in slots]
    agents = [
        _Agent(chain, number * problem.work[0][pipeline.data_node(chain[0])])
        for of_node in slots
        for number, chain in enumerate(of_node)
    ]
    root = [problem.routed(agent) for agent in agents]
    best, history, expanded, free, loosest = None, [], 0, 0, 0
    makespans: dict[tuple[Path, ...], float] = {}

    def over() -> bool:
        late = seconds is not None and time.monotonic() - started >= seconds
        return late or (expand is not None and expanded >= expand)

    def plan_of(agents: tuple[_Agent, ...]) -> tuple[Plan, float]:
        paths = {j: agent.path for agent in agents for j in agent.microbatches}
        return dispatched(pipeline, [paths[j] for j in range(pipeline.count)], "backward first")

    def weigh(agents: tuple[_Agent, ...]) -> float:
        """The makespan of an arrangement; the best one is kept."""
        nonlocal best
        paths = tuple(agent.path for agent in agents)
        if paths not in makespans:
            plan, makespans[paths] = plan_of(agents)
            if best is None or makespans[paths] < best[1]:
                best = plan, makespans[paths]
                history.append((expanded, time.monotonic() - started, best[1]))
        return makespans[paths]
