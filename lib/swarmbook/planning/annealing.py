"""The planner to use: simulated annealing over paths and orders together, some parts of the swarm at a time (SkipPipe).

- a *part* of a plan is a set of microbatches together with the nodes that they visit, which no other microbatch visits.
  What happens in one part changes nothing in another, so that a move costs the time of its own part's operations alone
- `annealing_search` begins with one path a data node (`swarmbook.planning.slot_paths`), so that there are many parts.
  Each round takes the part that ends last and some others, and anneals them with the compiled
  `swarmbook.planning.jobshop`. More moves never give a worse plan, and the same moves from the same generator always
  give the same one

Serves: the plans called "ours" in all of SkipPipe's planning figures, and its claims K1, K5 and "planner".
"""

import time
from functools import cache

import numpy as np

from swarmbook.errors import PlanError
from swarmbook.planning import jobshop
from swarmbook.planning.encoding import (
    SearchResult,
    ends_of,
    longest_rest_priorities,
    makespan_of,
    part_of,
    parts_of,
    plan_of,
    put_back,
    relays_if_room,
    shop_of,
    state_of_paths,
    state_of_plan,
)
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import TICK, Pipeline, Plan
from swarmbook.planning.slot_paths import data_node_paths, short_paths

HOT, LEAST, MOST = 0.7, 0.01, 0.3  # most first temperature of a round: in parts of the makespan, over the microbatches
COLD = 0.0005  # last temperature of a round, in parts of the makespan
WEIGHT = 0.3  # of the slots' mean end in the cost, beside the makespan: to help slots that are not the last helps too
PATH_MOVES = 0.5  # share of the moves that change paths
ROUND, EACH = 10_000, 500  # moves of a round at most, and for each microbatch; after failures up to ten times as many
PATIENCE = 12  # rounds without success, beside one for each part, after which the search starts anew
TOGETHER = 24  # microbatches that are annealed together, if parts are no larger


def annealing_search(
    pipeline: Pipeline,
    rng: np.random.Generator,
    moves: int | None = None,
    seconds: float | None = None,
    start: Plan | None = None,
) -> SearchResult:
    """Anneal paths and orders, for so many moves, or so many seconds of processor time after compiling.

    Each round cools down from a random temperature to `COLD`. It goes on from the best plan, and
    is longer after rounds that found nothing better; after `PATIENCE` of these the search starts anew,
    in turns from one path a slot and one a data node. Give `moves`
    where a result must be repeatable. start: a plan with orders to begin with, such as one for links as they were
    before; the result is never worse than that plan. Raises `PlanError` unless one of moves and seconds is given, and
    if `start` breaks a constraint of this pipeline.
    """
    if (moves is None) == (seconds is None) or not (moves if seconds is None else seconds) > 0:
        raise PlanError(f"give one of moves, at least 1, and seconds, above 0; not {moves} and {seconds}")
    shop = shop_of(pipeline)
    _compiled()
    begun, done, failed, anew = time.thread_time(), 0, 0, 0
    state = _begin(pipeline, shop, rng) if start is None else state_of_plan(pipeline, start)
    least, label = makespan_of(state), parts_of(shop, state)
    kept = jobshop.clone(state)
    history = [(0, time.thread_time() - begun, TICK * least)]
    while (done < moves) if seconds is None else (time.thread_time() - begun < seconds or not done):
        chosen = _together(label, ends_of(state), rng)
        visited = np.isin(np.arange(len(shop.stage)), state.node.reshape(len(label), -1)[chosen])
        nodes = np.flatnonzero(visited | ((shop.stage > 0) & (state.chosen == 0)))
        piece, now = part_of(shop, state, chosen, nodes)
        before, ends = makespan_of(now), ends_of(now).sum()
        best, relays = jobshop.clone(now), np.flatnonzero(piece.stage > 0)
        spare = relays if (now.chosen[relays] < piece.capacity[relays]).any() else relays[:0]
        size = min(ROUND, EACH * len(chosen)) * (4 + min(failed, 36)) // 4
        hot = np.clip(HOT / len(chosen), LEAST, MOST) * 0.1 ** rng.random()
        for first in range(0, size, ROUND):
            section = min(ROUND, size - first, size if moves is None else moves - done)
            if section <= 0 or (seconds is not None and first and time.thread_time() - begun >= seconds):
                break
            warm, cool = (before * hot * (COLD / hot) ** (at / size) for at in (first, first + section))
            jobshop.anneal(piece, now, best, spare, section, warm, cool, WEIGHT, PATH_MOVES, rng)
            done += section
        after = makespan_of(best)
        failed = 0 if after < before else failed + 1
        if after < before or (after == before and ends_of(best).sum() < ends):
            put_back(best, state, chosen, nodes)
            label[chosen] = label.max() + 1 + parts_of(piece, best)
            if (takes := int(ends_of(state).max())) < least:
                least = takes
                jobshop.copy(state, kept)
                history.append((done, time.thread_time() - begun, TICK * least))
        if failed >= PATIENCE + len(np.unique(label)):
            state, failed, anew = _begin(pipeline, shop, rng, together=anew % 2 > 0), 0, anew + 1
            makespan_of(state)  # sets the start times
            label = parts_of(shop, state)
    return SearchResult(plan_of(pipeline, kept), TICK * least, tuple(history), done, time.thread_time() - begun)


def _together(label: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Microbatches of the part that ends last and of others at random, at most `TOGETHER` if that part is no larger.

    label [J], ends [J]: the part of each microbatch, and the ticks at which it ends.
    """
    worst = label[np.argmax(ends)]
    numbers, sizes = np.unique(label, return_counts=True)
    size = dict(zip(numbers.tolist(), sizes.tolist(), strict=True))
    chosen, total = [worst], size[worst]
    for other in rng.permutation(numbers[numbers != worst]).tolist():
        if total + size[other] <= TOGETHER:
            chosen.append(other)
            total += size[other]
    return np.flatnonzero(np.isin(label, chosen))


@cache
def _compiled() -> None:
    """Compile all that a search needs, or load it from the cache, so that its clock does not count it."""
    toy = Pipeline(((0, 1), (2, 3), (4, 5)), np.ones((6, 6)), 1.0, PathRules(2), microbatches=2, memory=1)
    shop, rng = shop_of(toy), np.random.default_rng(0)
    state = _begin(toy, shop, rng)
    jobshop.anneal(shop, state, jobshop.clone(state), relays_if_room(toy, state), 1, 1.0, 0.5, WEIGHT, PATH_MOVES, rng)


def _begin(pipeline: Pipeline, shop: jobshop.Shop, rng: np.random.Generator, together: bool = True) -> jobshop.State:
    """A state of one short path a data node, or a slot if those do not fit, with the better of two rules' orders."""
    paths = (together and data_node_paths(pipeline, rng)) or short_paths(pipeline, rng)
    state = state_of_paths(pipeline, Plan.of_slots(pipeline, paths).paths)
    other = jobshop.clone(state)
    jobshop.dispatch(shop, state, longest_rest_priorities(pipeline, state))
    jobshop.dispatch(shop, other, np.zeros(len(other.node), np.int64))  # in the order of arrival
    return min(state, other, key=makespan_of)
