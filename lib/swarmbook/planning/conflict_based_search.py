"""SkipPipe's own planner, rebuilt: conflict-based search, for comparison with `swarmbook.planning.annealing`.

- an agent is a slot, and an arrangement is a path for every agent. Each agent takes its shortest path under what is
  forbidden to it. For the first violation in an arrangement, the search makes a few children. Each forbids one agent
  something more: a stage that too many chose, a relay that too many chose (TC1), or a time at which the relay works for
  another agent (TC2)
- what is known of the released code (a_star_modified.py, CBS.py) is kept: the order of checks and children, the 32
  assignments of stages from which it starts again, and when it stops. How it breaks ties is not known. Here the earlier
  child comes first, so that paths of equal length may differ from the released ones. Nothing is random
- a plan's makespan is that of all its microbatches, with nodes that do backward passes first, then what came first.
  Where slots share a path much arrives in one tick; which of it is first is worth 0.26 s on the shipped schedule of 20
  nodes
- without TC2 the plan is the first arrangement that fits the relays. With TC2 the search rarely ends by itself: it has
  a limit, and gives the best plan found by then

Serves: "rebuilt" in SkipPipe's table of iteration times, the table of the released search, and the claim "planner,
rebuilt".
"""

import heapq
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from swarmbook.errors import PlanError
from swarmbook.planning.encoding import SearchResult, dispatched, no_room_message
from swarmbook.planning.pipeline import TICK, Path, Pipeline

GOAL = 0.88  # a plan below so much of the first plan's makespan ends the search (0.92 in the code's first version)
SOLUTIONS = 8  # so many arrangements without a collision end the search
LOOSE = 5.0  # an arrangement is dropped if its plan takes so many seconds more than the best one
ASSIGNMENTS = 32  # assignments of stages to agents from which the search starts again
STAGE_CHILDREN, RELAY_CHILDREN = 3, 2  # children of an arrangement in which a stage, or a relay, has too many agents
# Arrangements are expanded in the order of their slowest agent's time, plus so many seconds for each agent too many on
# a stage or relay. The released code has 0.01. With that this search, which breaks ties in its own way, wanders among
# arrangements whose slowest agent is the same (case A2, 20 nodes).
PENALTY = 1.0
SLOWEST = 4  # where two forward passes collide, an agent of the slowest quarter does not wait
PATHS = 100_000  # a data node with more paths is refused, as all are listed


@dataclass(frozen=True)
class _Work:
    """An operation of an agent: its node, its times in ticks, and whether it is a backward pass."""

    node: int
    begin: int
    end: int
    backward: bool

    def collides(self, other: "_Work") -> bool:
        """Whether both would run at once, unless both are backward passes, which may wait (TC2)."""
        meet = self.node == other.node and self.begin < other.end and other.begin < self.end
        return meet and not (self.backward and other.backward)


@dataclass(frozen=True)
class _Agent:
    """A slot with its path and what is forbidden to it.

    - `microbatches` are those of the slot; `delay` is when its first may begin, in ticks.
    - `path` and `works` are its relays and the operations of its first microbatch.
    - `banned` has a bit for each node that it must not visit. `windows` are (node, from, to) in which it must not work
      there.
    """

    microbatches: tuple[int, ...]
    delay: int
    path: Path = ()
    works: tuple[_Work, ...] = ()
    banned: int = 0
    windows: tuple[tuple[int, int, int], ...] = ()

    @property
    def weight(self) -> int:
        """How many places it takes on a relay."""
        return len(self.microbatches)

    @property
    def end(self) -> int:
        """The tick at which its first microbatch is back."""
        return self.works[-1].end

    def avoiding(self, work: _Work) -> tuple[tuple[int, int, int], ...]:
        """Its windows, and the one in which a node does another agent's work."""
        return (*self.windows, (work.node, work.begin, work.end))

    @cached_property
    def nodes(self) -> int:
        """The relays of its path as bits."""
        return sum(1 << node for node in self.path)


@dataclass(frozen=True)
class _Excess:
    """Nodes that too many agents chose (as bits), how many agents are too many, and the agents, fastest first."""

    nodes: int
    surplus: int
    agents: tuple[int, ...]


@dataclass
class _Problem:
    """The instance as plain numbers, and the paths of each data node, shortest first."""

    pipeline: Pipeline
    listed: dict[int, list[tuple[int, int, Path]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.travel, self.work = self.pipeline.travel.tolist(), self.pipeline.work.tolist()
        count = sum(np.prod([len(self.pipeline.groups[s]) for s in order]) for order in self.pipeline.orders)
        if count > PATHS:
            raise PlanError(
                f"{count:,} paths of a data node are more than the {PATHS:,} that the conflict-based search lists: "
                "take the planner 'annealing'"
            )

    def paths(self, home: int) -> list[tuple[int, int, Path]]:
        """All paths that the rules allow, as (ticks of the round trip, nodes as bits, path), shortest first."""
        if home not in self.listed:
            groups = self.pipeline.groups
            microbatch = self.pipeline.chains_of[groups[0].index(home)][0][0]
            options = (p for o in self.pipeline.orders for p in itertools.product(*(groups[s] for s in o)))
            rows = [(self.timed(microbatch, p, 0, ())[-1].end, sum(1 << n for n in p), p) for p in options]
            self.listed[home] = sorted(rows, key=lambda row: row[0])
        return self.listed[home]

    def timed(self, microbatch: int, path: Path, begin: int, windows: Sequence[tuple[int, int, int]]) -> list[_Work]:
        """A microbatch's operations from tick `begin`, each begun as soon as the windows allow."""
        way, P, works, now = self.pipeline.itinerary(microbatch, path), self.pipeline.visits, [], begin
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

    def excess(self, agents: Sequence[_Agent], nodes: Sequence[int]) -> _Excess | None:
        """The excess of microbatches that go through some nodes; None if they fit."""
        bits = sum(1 << node for node in nodes)
        there = [i for i, agent in enumerate(agents) if agent.nodes & bits]
        over = sum(agents[i].weight for i in there) - int(self.pipeline.places[list(nodes)].sum())
        there.sort(key=lambda i: agents[i].end)
        return _Excess(bits, -(-over // max(agents[i].weight for i in there)), tuple(there)) if over > 0 else None

    def full_stages(self, agents: Sequence[_Agent]) -> list[_Excess]:
        """The stages that too many agents chose."""
        stages = (self.excess(agents, group) for group in self.pipeline.groups[1:])
        return list(filter(None, stages))

    def full_relays(self, agents: Sequence[_Agent]) -> list[_Excess]:
        """The relays that too many agents chose."""
        relays = (self.excess(agents, [node]) for group in self.pipeline.groups[1:] for node in group)
        return list(filter(None, relays))

    def relieved(self, agents: tuple[_Agent, ...], excess: _Excess, children: int) -> Iterator[tuple[_Agent, ...]]:
        """Children that each forbid the nodes to one agent; the fastest agents that have another path come first."""
        found = (self.changed(agents, i, banned=agents[i].banned | excess.nodes) for i in excess.agents)
        return itertools.islice(filter(None, found), children)

    def changed(self, agents: tuple[_Agent, ...], i: int, **prohibitions) -> tuple[_Agent, ...] | None:
        """The arrangement with other prohibitions for agent i and a new path for it; None if it has no path left."""
        agent = self.routed(replace(agents[i], **prohibitions))
        return None if agent is None else (*agents[:i], agent, *agents[i + 1 :])

    def apart(self, agents: tuple[_Agent, ...]) -> list[tuple[_Agent, ...]] | None:
        """Children that each let an agent wait at the first collision of the slowest agent; None if none collide."""
        slowest = sorted(range(len(agents)), key=lambda i: -agents[i].end)
        there: dict[int, list[tuple[int, _Work]]] = {}
        for i in slowest:
            for work in agents[i].works:
                there.setdefault(work.node, []).append((i, work))
        for rank, i in enumerate(slowest):
            for mine in agents[i].works:
                for j, other in there[mine.node]:
                    if i == j or not mine.collides(other):
                        continue
                    waits = [(j, mine), (i, other)]  # who, for what
                    if mine.backward or other.backward:
                        waits = waits[:1] if other.begin >= mine.begin else waits[1:]
                    elif rank < len(agents) / SLOWEST:
                        waits = waits[:1]
                    children = (self.changed(agents, k, windows=agents[k].avoiding(work)) for k, work in waits)
                    return list(filter(None, children))
        return None


class _Tree:
    """Arrangements that wait to be expanded, each once; the one whose slowest agent is fastest comes first."""

    def __init__(self, expand: int | None, seconds: float | None):
        self.expand, self.seconds, self.expanded = expand, seconds, 0
        self.started, self.begun = time.monotonic(), time.thread_time()
        self.heap: list[tuple[float, int, tuple[_Agent, ...]]] = []
        self.seen: set[tuple] = set()

    @property
    def clock(self) -> float:
        """Seconds of processor time since the start."""
        return time.thread_time() - self.begun

    def push(self, agents: tuple[_Agent, ...], full: Sequence[_Excess]) -> None:
        """Add an arrangement unless its prohibitions were seen; `full`: the stages and relays that too many chose."""
        prohibitions = tuple((agent.banned, agent.windows) for agent in agents)
        if prohibitions not in self.seen:
            self.seen.add(prohibitions)
            slowest = max(agent.end for agent in agents) + PENALTY / TICK * sum(over.surplus for over in full)
            heapq.heappush(self.heap, (slowest, len(self.seen), agents))

    def over(self, share: float = 1.0) -> bool:
        """Whether that share of the limits on expansions and seconds is used up."""
        late = self.seconds is not None and time.monotonic() - self.started >= share * self.seconds
        return late or (self.expand is not None and self.expanded >= share * self.expand)

    def pop(self, share: float = 1.0) -> tuple[_Agent, ...] | None:
        """The next arrangement to expand; None if there is none, or if that share of the limits is used up."""
        if not self.heap or self.over(share):
            return None
        self.expanded += 1
        return heapq.heappop(self.heap)[-1]


def conflict_search(
    pipeline: Pipeline,
    collisions: bool = True,
    expand: int | None = 10_000,
    seconds: float | None = None,
    together: bool = False,
) -> SearchResult:
    """Search for one path a slot by conflicts. The result's `ended` is goal, solutions, all seen, first or limit.

    collisions: whether microbatches must not meet on a node (TC2). expand, seconds: the most arrangements to expand,
    and the most seconds to search. together: whether all slots of a data node are one agent with one path, as in the
    released schedule of 20 nodes. Raises `PlanError` if no plan was found by then, if there is none, and if a data node
    has too many paths to list.
    """
    if (expand is not None and expand < 1) or (seconds is not None and not seconds > 0):
        raise PlanError(f"expand must be at least 1 and seconds above 0, not {expand} and {seconds}")
    problem, tree = _Problem(pipeline), _Tree(expand, seconds)
    best, history, makespans = None, [], {}

    def weigh(agents: tuple[_Agent, ...]) -> float:
        """The makespan of an arrangement; the best is kept."""
        nonlocal best
        paths = {j: agent.path for agent in agents for j in agent.microbatches}
        paths = tuple(paths[j] for j in range(pipeline.count))
        if paths not in makespans:
            plan, makespans[paths] = dispatched(pipeline, paths, "backward first")
            if best is None or makespans[paths] < best[1]:
                best = plan, makespans[paths]
                history.append((tree.expanded, tree.clock, best[1]))
        return makespans[paths]

    def finish(ended: str) -> SearchResult:
        """The result with the best plan so far."""
        if best is None:
            if tree.heap:
                given = f"expanded {tree.expanded} arrangements in {tree.clock:.1f} s"
                remedy = "raise `expand` and `seconds`, or take the planner 'annealing'"
                raise PlanError(f"the conflict-based search {given} and did not finish: {remedy}")
            raise PlanError(no_room_message(pipeline))
        return SearchResult(*best, tuple(history), tree.expanded, tree.clock, ended)

    for agents in _assignments(problem, tree, together):
        tree.push(agents, problem.full_relays(agents))
    goal, free = None, 0
    while agents := tree.pop():
        if full := problem.full_stages(agents):
            children = problem.relieved(agents, full[0], STAGE_CHILDREN)
        elif full := problem.full_relays(agents):
            children = problem.relieved(agents, full[0], RELAY_CHILDREN)
        else:
            makespan = weigh(agents)
            if not collisions:
                return finish("first")
            goal = GOAL * makespan if goal is None else goal
            children = problem.apart(agents)
            free += children is None
            if free == SOLUTIONS:
                return finish("solutions")
        for child in children or ():
            full = problem.full_stages(child) + problem.full_relays(child)
            if full or not collisions or weigh(child) <= best[1] + LOOSE:
                tree.push(child, full)
        if goal is not None and best[1] < goal:
            return finish("goal")
    return finish("limit" if tree.heap else "all seen")


def _assignments(problem: _Problem, tree: _Tree, together: bool) -> list[tuple[_Agent, ...]]:
    """Arrangements that differ in the stages of their agents, and in which no stage is chosen by too many."""
    pipeline = problem.pipeline
    agents = [
        problem.routed(_Agent(chain, number * problem.work[0][pipeline.data_node(chain[0])]))
        for of_node in pipeline.chains_of
        for number, chain in enumerate([tuple(itertools.chain(*of_node))] if together else of_node)
    ]
    tree.push(tuple(agents), problem.full_stages(agents))
    found: dict[tuple, tuple[_Agent, ...]] = {}
    while len(found) < ASSIGNMENTS and (arrangement := tree.pop(share=0.5)):
        if full := problem.full_stages(arrangement):
            for child in problem.relieved(arrangement, full[0], STAGE_CHILDREN):
                tree.push(child, problem.full_stages(child))
        else:
            stages = tuple(tuple(pipeline.stage_of[node] for node in agent.path) for agent in arrangement)
            found.setdefault(stages, arrangement)
    if found:
        tree.heap.clear()
        tree.seen.clear()
    return list(found.values())
