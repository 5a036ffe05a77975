"""The planner to use: simulated annealing over paths and orders together (SkipPipe's planning problem).

- `annealing_search` works on the compiled `swarmbook.planning.jobshop`. More moves never give a worse plan, and the
  same moves from the same generator always give the same one
- it begins with short paths (`swarmbook.planning.slot_paths`), whose nodes always take the operation whose microbatch
  has the longest way to its end

Serves: the plans called "ours" in all of SkipPipe's planning figures, and its claims K1, K5 and "planner".
"""

import itertools
import time
from functools import cache

import numpy as np

from swarmbook.errors import PlanError
from swarmbook.planning import jobshop
from swarmbook.planning.encoding import (
    SearchResult,
    longest_rest_priorities,
    makespan_of,
    plan_of,
    relays_if_room,
    shop_of,
    state_of_paths,
    state_of_plan,
)
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import TICK, Pipeline, Plan
from swarmbook.planning.slot_paths import short_paths

HOT, COLD = 0.03, 0.0005  # first and last temperature of a round, in parts of the makespan that it starts with
WEIGHT = 0.3  # of the slots' mean end in the cost, beside the makespan: to help slots that are not the last helps too
PATH_MOVES = 0.5  # share of the moves that change paths
ROUND = 100_000  # moves of the first round; each has half as many again as the one before
SECTION = 10_000  # moves between two looks at the clock


def annealing_search(
    pipeline: Pipeline,
    rng: np.random.Generator,
    moves: int | None = None,
    seconds: float | None = None,
    start: Plan | None = None,
) -> SearchResult:
    """Anneal paths and orders, for so many moves, or so many seconds after compiling.

    Each round has half as many moves again as the one before, and cools down from `HOT` to `COLD`. Every other round
    starts anew from short paths; the others go on from the best plan. Give `moves` where a result must be repeatable.
    start: a plan with orders to begin with, such as one for links as they were before. The first round is then a tenth
    as hot, and the result is never worse than that plan. Raises `PlanError` unless one of moves and seconds is given,
    and if `start` breaks a constraint of this pipeline.
    """
    if (moves is None) == (seconds is None) or not (moves if seconds is None else seconds) > 0:
        raise PlanError(f"give one of moves, at least 1, and seconds, above 0; not {moves} and {seconds}")
    shop = shop_of(pipeline)
    _compiled()
    started, begun, done, history = time.monotonic(), time.thread_time(), 0, []
    best = _begin(pipeline, shop, rng) if start is None else state_of_plan(pipeline, start)
    least = makespan_of(best)
    history.append((0, time.thread_time() - begun, TICK * least))
    for number in itertools.count():
        state = _begin(pipeline, shop, rng) if number % 2 and number > 1 else jobshop.clone(best)
        size = int(ROUND * 1.5**number)
        mild = 0.1 if start is not None and number == 0 else 1.0  # a good plan is not to be melted down at once
        hot, cold = mild * HOT * makespan_of(state), COLD * makespan_of(state)
        for first in range(0, size, SECTION):
            section = min(SECTION, size - first, size if moves is None else moves - done)
            now, then = (hot * (cold / hot) ** (at / size) for at in (first, first + section))
            found = jobshop.anneal(
                shop, state, best, relays_if_room(pipeline, state), section, now, then, WEIGHT, PATH_MOVES, rng
            )
            done += section
            if found < least:
                least = int(found)
                history.append((done, time.thread_time() - begun, TICK * least))
            if done == moves or (seconds is not None and time.monotonic() - started >= seconds):
                return SearchResult(
                    plan_of(pipeline, best), TICK * least, tuple(history), done, time.thread_time() - begun
                )


@cache
def _compiled() -> None:
    """Compile all that a search needs, or load it from the cache, so that its clock does not count it."""
    toy = Pipeline(((0, 1), (2, 3), (4, 5)), np.ones((6, 6)), 1.0, PathRules(2), microbatches=2, memory=1)
    shop, rng = shop_of(toy), np.random.default_rng(0)
    state = _begin(toy, shop, rng)
    jobshop.anneal(shop, state, jobshop.clone(state), relays_if_room(toy, state), 1, 1.0, 0.5, WEIGHT, PATH_MOVES, rng)


def _begin(pipeline: Pipeline, shop: jobshop.Shop, rng: np.random.Generator) -> jobshop.State:
    """A state of short paths, with orders by the longest rest."""
    state = state_of_paths(pipeline, Plan.of_slots(pipeline, short_paths(pipeline, rng)).paths)
    jobshop.dispatch(shop, state, longest_rest_priorities(pipeline, state))
    return state
