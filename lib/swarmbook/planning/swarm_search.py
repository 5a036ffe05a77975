"""The best plan for a user's swarm, how near it is to a bound, and what limits it.

- `plan_swarm` deals the nodes to stages several times, anneals each for a while, and goes on with the best. Plans are
  judged with messages that follow one another on their links, if the swarm says so
- with `conditions` it chooses among several plans the one with the least 95th percentile (`planning.robustness`)
- `limits` follows the critical path back from the end, and asks what would be gained by faster links, faster nodes or
  room for one microbatch more

Serves: `swarmbook plan`.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from swarmbook.errors import ConfigError, PlanError
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.bounds import closed_form
from swarmbook.planning.pipeline import TICK, Pipeline, Plan
from swarmbook.planning.planners import PLANNERS
from swarmbook.planning.replay import Replay, replay
from swarmbook.planning.robustness import Conditions, choose, compare
from swarmbook.planning.swarm import Swarm, link_name, placed

PLACEMENTS = 4  # whose plans are compared, unless every node is given its stage
TRIES = 4  # placements that are tried for each of them, as some may lack room for the paths
FIRST, REST, ROOM = 0.4, 0.5, 0.1  # shares of the search: for all placements, for the best, for the question of memory


@dataclass(frozen=True)
class Found:
    """A plan for a swarm.

    - `pipeline` says which node serves which stage; `plan` has the orders, and `done` is what happens.
    - `bound` is what no plan of this pipeline can beat, in seconds.
    - `table` compares the candidates (`robustness.compare`) by name, if conditions were given; `name` is the one chosen.
    """

    swarm: Swarm
    pipeline: Pipeline
    plan: Plan
    done: Replay
    bound: float
    name: str = ""
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class Limits:
    """What an iteration's time is made of, and what would shorten it, in seconds.

    - `computing`, `sending` and `queueing` are the parts of the critical path in passes, in messages and in waiting for
      a link; they add up to the makespan. `nodes` and `links` share out the first two by name, the largest first.
    - `slots` counts how often the path waits for a microbatch to come back before the next may start.
    - `busy` [N] is the share of the time in which each node computes.
    - `instead` is the makespan if links or nodes were twice as fast, with the same plan, or if every node had room for
      one microbatch more, with another plan; the last is None where none was found that is shorter.
    """

    computing: float
    sending: float
    queueing: float
    nodes: dict[str, float]
    links: dict[str, float]
    slots: int
    busy: np.ndarray
    instead: dict[str, float | None]

    @property
    def most(self) -> str:
        """What would gain most."""
        return min(self.instead, key=lambda name: self.instead[name] or float("inf"))


def plan_swarm(
    swarm: Swarm,
    seconds: float | None = None,
    moves: int | None = None,
    seed: int = 0,
    conditions: Conditions | None = None,
    tell: Callable[[float, str], object] = lambda share, what: None,
) -> Found:
    """Search for so many seconds, or so many moves where the result must be repeatable; one of them is given.

    tell: is called with the share that is done and with what is done next. Raises `ConfigError` if memory or rules leave
    no placement or no paths.
    """

    def given(share: float) -> dict:
        return {"seconds": share * seconds} if moves is None else {"moves": max(1, int(share * moves))}

    streams = (np.random.default_rng([seed, number]) for number in itertools.count())
    placements = 1 if all(node.stage is not None for node in swarm.nodes) else PLACEMENTS
    first: list[tuple[Pipeline, Plan]] = []
    try:
        for number in range(TRIES * placements):
            tell(FIRST * len(first) / placements, f"placement {number + 1}")
            try:
                pipeline = swarm.pipeline(placed(swarm, next(streams)))
                first.append((pipeline, _searched(swarm, pipeline, next(streams), None, given(FIRST / placements))))
            except (ConfigError, PlanError):  # the relays of this placement have too little room
                if number + 1 == TRIES * placements and not first:
                    raise
            if len(first) == placements:
                break
        pipeline, best = min(first, key=lambda pair: replay(*pair, **swarm.line).makespan)
        tell(FIRST, "the best placement")
        plans = {"planned": best}
        if conditions is None:
            plans["longer"] = _searched(swarm, pipeline, next(streams), best, given(REST))
            name, table = min(plans, key=lambda p: replay(pipeline, plans[p], **swarm.line).makespan), None
        else:
            share = given(REST / 3)
            plans["planned"] = _searched(swarm, pipeline, next(streams), best, share)
            plans["planned anew"] = _searched(swarm, pipeline, next(streams), None, share)
            plans["for the worst"] = _searched(swarm, conditions.worst(pipeline), next(streams), None, share)
            table = compare(pipeline, plans, conditions, seed, **swarm.line)
            name = choose(table)
    except PlanError as error:
        raise ConfigError(f"no plan for {swarm.name}: {error}") from error
    tell(1 - ROOM, "what limits it")
    done = replay(pipeline, plans[name], **swarm.line)
    bound = float(closed_form(pipeline).max())
    return Found(swarm, pipeline, Plan(plans[name].paths, done.order()), done, bound, name, table)


def _searched(swarm: Swarm, pipeline: Pipeline, rng: np.random.Generator, start: Plan | None, given: dict) -> Plan:
    """A plan with orders: by annealing, or without TC2 by short paths and the order of arrival."""
    if swarm.TC2:
        return annealing_search(pipeline, rng, start=start, **given).plan
    plan = PLANNERS["shortest"](pipeline, rng)
    return Plan(plan.paths, replay(pipeline, plan, **swarm.line).order())


def limits(
    found: Found, seconds: float | None = None, moves: int | None = None, seed: int = 0
) -> Limits:
    """What limits a plan. seconds or moves: of the whole search, a tenth of which goes into the question of memory."""
    swarm, pipeline, done = found.swarm, found.pipeline, found.done
    at = {(m, position): row for row in done.rows for m, position in [row[2:4]]}
    before = {b: a for line in done.order().values() for a, b in zip(line, line[1:], strict=False)}
    follows = {b: a for chain in pipeline.chains for a, b in zip(chain, chain[1:], strict=False)}
    nodes, links, queueing, slots, gaps = Counter(), Counter(), 0, 0, 0
    now = max(done.rows, key=lambda row: row[-1])
    while now is not None:
        node, _, m, position, _, ready, start, end = now
        nodes[node] += end - start
        if start > ready:  # the node was busy
            then = at[before[m, position]]
            gaps += start - then[-1]
        elif position:
            then = at[m, position - 1]
            travel = int(pipeline.travel[then[0], node])
            links[link_name(swarm, then[0], node)] += travel
            queueing += ready - then[-1] - travel
        else:
            then = at[follows[m], 2 * pipeline.visits] if m in follows else None
            slots += then is not None
        now = then
    busy = done.tasks.assign(took=done.tasks["end"] - done.tasks["start"]).groupby("node")["took"].sum()
    twice = {
        "links twice as fast": replace(pipeline, hops=pipeline.hops / 2),
        "nodes twice as fast": replace(pipeline, forward=pipeline.forward / 2),
    }
    line = dict(swarm.line)
    instead: dict[str, float | None] = {}
    for name, other in twice.items():
        sharing = line | ({"occupied": line["occupied"] / 2} if line and name.startswith("links") else {})
        instead[name] = replay(other, found.plan, **sharing).makespan
    roomier = replace(pipeline, memory=tuple(int(room) + 1 for room in pipeline.room))
    given = {"seconds": ROOM * seconds} if moves is None else {"moves": max(1, int(ROOM * moves))}
    another = replay(roomier, _searched(swarm, roomier, np.random.default_rng([seed, 99]), None, given), **line).makespan
    instead["room for one microbatch more"] = another if another < done.makespan else None
    named = {swarm.nodes[node].name: TICK * ticks for node, ticks in nodes.most_common()}
    return Limits(
        computing=TICK * (sum(nodes.values()) + gaps),
        sending=TICK * sum(links.values()),
        queueing=TICK * queueing,
        nodes=named,
        links={name: TICK * ticks for name, ticks in links.most_common()},
        slots=slots,
        busy=busy.reindex(range(len(swarm.nodes)), fill_value=0.0).to_numpy() / done.makespan,
        instead=instead,
    )
