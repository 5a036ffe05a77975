"""The best plan for a user's swarm, how near it is to a bound, and what limits it.

- `plan_swarm` deals the nodes to stages several times, anneals each for a while, and goes on with the best. Plans are
  judged with messages that follow one another on their links, if the swarm says so
- with `conditions` it chooses among several plans the one with the least 95th percentile (`planning.robustness`)
- `roomier` plans anew for nodes with room for one microbatch more, to say whether memory limits the plan

Serves: `swarmbook plan`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from swarmbook.errors import ConfigError, PlanError
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.bounds import closed_form, lower_bound
from swarmbook.planning.encoding import dispatched
from swarmbook.planning.pipeline import Pipeline, Plan
from swarmbook.planning.planners import PLANNERS
from swarmbook.planning.replay import replay
from swarmbook.planning.robustness import Conditions, choose, compare
from swarmbook.planning.swarm import Swarm, dealt, placed
from swarmbook.planning.swarm_plan import USUAL, WORST, SwarmPlan

PLACEMENTS = 4  # whose plans are compared, unless every node is given its stage
LARGE = 200  # nodes beyond which `placed` takes longer than a search
CLUSTERS = (1, 2, 12)  # of the placements that are compared then
TRIES = 4  # placements that are tried for each of them, as some may lack room for the paths
FIRST, REST, ROOM = 0.4, 0.5, 0.1  # shares of the search: for all placements, for the best, for the question of memory


def plan_swarm(
    swarm: Swarm,
    seconds: float | None = None,
    moves: int | None = None,
    seed: int = 0,
    conditions: Conditions | None = None,
    tell: Callable[[float, str], object] = lambda share, what: None,
) -> SwarmPlan:
    """Search for so many seconds, or so many moves where the result must be repeatable; one of them is given.

    tell: is called with the share that is done and with what is done next. Raises `ConfigError` if memory or rules
    leave no placement or no paths.
    """

    given = partial(_part, seconds, moves)
    streams = (np.random.default_rng([seed, number]) for number in itertools.count())
    given_all = all(node.stage is not None for node in swarm.nodes)
    large = len(swarm.nodes) > LARGE and not given_all
    placements = 1 if given_all else len(CLUSTERS) if large else PLACEMENTS
    first: list[tuple[Pipeline, Plan]] = []
    try:
        for number in range(TRIES * placements):
            tell(FIRST * len(first) / placements, f"placement {number + 1}")
            try:
                rng, clusters = next(streams), CLUSTERS[number % len(CLUSTERS)]
                groups = dealt(swarm, clusters, rng) if large else placed(swarm, rng, closed_form)
                pipeline = swarm.pipeline(groups)
                first.append((pipeline, _searched(swarm, pipeline, next(streams), None, given(FIRST / placements))))
            except (ConfigError, PlanError):  # the relays of this placement have too little room
                if number + 1 == TRIES * placements and not first:
                    raise
            if len(first) == placements:
                break
        pipeline, best = min(first, key=lambda pair: replay(*pair, **swarm.line).makespan)
        tell(FIRST, "the best placement")
        plans = {USUAL: best}
        if conditions is None:
            plans["longer"] = _searched(swarm, pipeline, next(streams), best, given(REST))
            name, table = min(plans, key=lambda p: replay(pipeline, plans[p], **swarm.line).makespan), None
        else:
            share = given(REST / 3)
            plans[USUAL] = _searched(swarm, pipeline, next(streams), best, share)
            plans["planned anew"] = _searched(swarm, pipeline, next(streams), None, share)
            plans[WORST] = _searched(swarm, conditions.worst(pipeline), next(streams), None, share)
            table = compare(pipeline, plans, conditions, seed, **swarm.line)
            name = choose(table)
    except PlanError as error:
        raise ConfigError(f"no plan for {swarm.name}: {error}") from error
    tell(1 - ROOM, "what limits it")
    done = replay(pipeline, plans[name], **swarm.line)
    bound = lower_bound(pipeline, nodes=0)
    return SwarmPlan(swarm, pipeline, Plan(plans[name].paths, done.order()), done, bound, name, table)


def _part(seconds: float | None, moves: int | None, share: float) -> dict:
    """What a search is given of so many seconds, or of so many moves."""
    return {"seconds": share * seconds} if moves is None else {"moves": max(1, int(share * moves))}


def _searched(swarm: Swarm, pipeline: Pipeline, rng: np.random.Generator, start: Plan | None, given: dict) -> Plan:
    """A plan with orders: by annealing, or without TC2 by short paths and the order of arrival."""
    if swarm.TC2:
        return annealing_search(pipeline, rng, start=start, **given).plan
    return dispatched(pipeline, PLANNERS["shortest"](pipeline, rng).paths, "fifo")[0]


def roomier(found: SwarmPlan, seconds: float | None = None, moves: int | None = None, seed: int = 0) -> float:
    """The makespan of a plan for nodes with room for one microbatch more; infinite if none was found.

    seconds or moves: of the whole search, a part of which goes into this.
    """
    pipeline = replace(found.pipeline, memory=tuple(int(room) + 1 for room in found.pipeline.room))
    effort = _part(seconds, moves, ROOM)
    try:
        plan = _searched(found.swarm, pipeline, np.random.default_rng([seed, 0, 1]), None, effort)
    except PlanError:  # the slots are dealt anew, and their paths may not fit the relays
        return math.inf
    return replay(pipeline, plan, **found.swarm.line).makespan
