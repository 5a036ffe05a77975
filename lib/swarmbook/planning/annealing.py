"""TODO"""

import itertools
import time
from dataclasses import replace
from functools import cache

import numpy as np

from swarmbook.errors import PlanError
from swarmbook.planning import jobshop
from swarmbook.planning.encoding import (
    SearchResult,
    longest_rest_priorities,
    makespan_of,
    no_room_message,
    paths_of,
    plan_of,
    relays_with_room,
    shop_of,
    state_of_paths,
    state_of_plan,
)
from swarmbook.planning.pipeline import TICK, Path, PathRules, Pipeline, Plan

HOT, COLD = 0.03, 0.0005  # first and last temperature of a round, in parts of the makespan that it starts with
WEIGHT = 0.3  # of the mean end of the slots beside the makespan: an order that only helps the others still helps
PATH_MOVES = 0.5  # share of the moves that change paths
ROUND = 100_000  # moves of the first round; each has half as many again as the one before
SECTION = 10_000  # moves between two looks at the clock


def blind(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """Random paths, one a slot, that keep the rules and the capacity and do not look at the network (DT-FM-skip).

    Slots take turns in what they skip, then relays are exchanged at random many times over. Raises `PlanError` if no
    paths were found that fit the relays.
    """
    return Plan.of_slots(pipeline, _arranged(pipeline, rng, 200, hot=0.0, cold=0.0), "backward first")


def shortest(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """Paths, one a slot, with short round trips for all, and no thought of who waits for whom; nodes work fifo.

    What SkipPipe is without its collision constraint TC2, by simulated annealing on the round trips.
    """
    return Plan.of_slots(pipeline, _arranged(pipeline, rng, 2000, hot=1.0, cold=0.001), "fifo")


def annealing_search(
    pipeline: Pipeline,
    rng: np.random.Generator,
    moves: int | None = None,
    seconds: float | None = None,
    start: Plan | None = None,
) -> SearchResult:
    """Simulated annealing over paths and orders, for so many moves, or so many seconds after compiling.

    Rounds grow by half; each cools down from `HOT` to `COLD`. Every other round starts anew from short paths, the
    others go on from the best plan. Give moves where a result must be repeatable. start: a plan with orders to begin
    with, such as one for links as they were before; the first round is a tenth as hot then, and the result is never
    worse. Raises `PlanError` if it breaks a constraint of this pipeline.
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
                shop, state, best, relays_with_room(pipeline, state), section, now, then, WEIGHT, PATH_MOVES, rng
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
    """Compile, or load, all that a search needs, so that its clock does not count it."""
    toy = Pipeline(((0, 1), (2, 3), (4, 5)), np.ones((6, 6)), 1.0, PathRules(2), microbatches=2, memory=1)
    shop, rng = shop_of(toy), np.random.default_rng(0)
    state = _begin(toy, shop, rng)
    jobshop.anneal(
        shop, state, jobshop.clone(state), relays_with_room(toy, state), 1, 1.0, 0.5, WEIGHT, PATH_MOVES, rng
    )


def _wave(pipeline: Pipeline) -> tuple[Pipeline, np.ndarray]:
    """The same nodes with one microbatch a slot, and the places [D * slots] that each takes on a relay.

    Where all slots are equally long, as many as one microbatch; else as many as the slot has microbatches.
    """
    places = np.array([len(chain) for chain in pipeline.chains], np.int64)
    unit = int(places[0]) if (places == places[0]).all() else 1
    return replace(pipeline, microbatches=pipeline.slots, relay_limit=pipeline.capacity // unit), places // unit


def _arranged(pipeline: Pipeline, rng: np.random.Generator, moves: int, hot: float, cold: float) -> list[Path]:
    """A path for every slot, after so many moves of `jobshop.arrange` for each."""
    wave, places = _wave(pipeline)
    if (paths := _spread(wave, places, rng)) is None:
        raise PlanError(no_room_message(pipeline))
    state = state_of_paths(wave, paths)
    state.chosen[:] = np.bincount(np.ravel(paths), np.repeat(places, wave.visits - 1), len(wave.hops))
    jobshop.arrange(shop_of(wave), state, places, relays_with_room(wave, state), moves * wave.count, hot, cold, rng)
    return paths_of(wave, state)


def _spread(wave: Pipeline, places: np.ndarray, rng: np.random.Generator) -> list[Path] | None:
    """Some path for every slot of a wave, so that no relay is chosen by more than may; None if none were found."""
    room = {node: wave.capacity for group in wave.groups[1:] for node in group}
    paths = []
    for slot, order in enumerate(_turns(wave.stages, wave.visits, wave.count, int(rng.integers(wave.stages - 1)))):
        path = []
        for stage in order:
            node = max(wave.groups[stage], key=lambda n: (room[n], -n))
            path.append(node)
            room[node] -= int(places[slot])
        paths.append(tuple(path))
    return _repaired(wave, paths, places.tolist(), room, rng)


def _turns(stages: int, visits: int, slots: int, first: int) -> list[tuple[int, ...]]:
    """Orders of relay stages in which slots take turns at skipping, each in places as even as can be."""
    relays, skipped = stages - 1, stages - visits
    orders = []
    for slot in range(slots):
        holes = {(first + slot * max(skipped, 1) + t * relays // skipped) % relays for t in range(skipped)}
        orders.append(tuple(s + 1 for s in range(relays) if s not in holes))
    return orders


def _repaired(
    pipeline: Pipeline, paths: list[Path], places: list[int], room: dict[int, int], rng: np.random.Generator
) -> list[Path] | None:
    """Move visits from relays that are chosen too often, or out of paths that break a rule, to relays with room."""
    stage_of, groups, rules = pipeline.stage_of, pipeline.groups, pipeline.rules

    def faults() -> list[int]:
        full = {node for node, left in room.items() if left < 0}
        return [
            j
            for j, path in enumerate(paths)
            if full & set(path) or rules.broken([stage_of[node] for node in path]) is not None
        ]

    for _ in range(200 * pipeline.count):
        if not (wrong := faults()):
            return paths
        j = wrong[int(rng.integers(len(wrong)))]
        order = pipeline.rules.draw(pipeline.stages, rng)
        free = [[n for n in groups[stage] if room[n] + places[j] * (n in paths[j]) >= places[j]] for stage in order]
        if not all(free) and rng.random() < 0.9:
            continue
        for node in paths[j]:
            room[node] += places[j]
        paths[j] = tuple(max(groups[stage], key=lambda n: (room[n], rng.random())) for stage in order)
        for node in paths[j]:
            room[node] -= places[j]
    return None


def _begin(pipeline: Pipeline, shop: jobshop.Shop, rng: np.random.Generator) -> jobshop.State:
    """Short paths, and an order by the longest rest."""
    state = state_of_paths(pipeline, shortest(pipeline, rng).paths)
    jobshop.dispatch(shop, state, longest_rest_priorities(pipeline, state))
    return state
