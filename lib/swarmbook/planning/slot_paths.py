"""One path for every slot that keeps the rules and the capacity of relays, before there are orders of operations.

- `random_paths` do not look at the network; `short_paths` are annealed to short round trips, and so are
  `data_node_paths`, which are the same for all slots of a data node
- a *wave* is the pipeline with one microbatch a slot, which takes as many places on a relay as its slot has
  microbatches

Serves: the planners "blind" and "shortest" of `swarmbook.planning.planners`, and the start of
`swarmbook.planning.annealing`.
"""

from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from swarmbook.errors import ConfigError, PlanError
from swarmbook.planning import jobshop
from swarmbook.planning.encoding import no_room_message, paths_of, relays_if_room, shop_of, state_of_paths
from swarmbook.planning.pipeline import Path, Pipeline

LEAST = 5000  # moves of a round of `data_node_paths`


def random_paths(pipeline: Pipeline, rng: np.random.Generator) -> list[Path]:
    """Random paths, one a slot, that keep the rules and the capacity and do not look at the network (DT-FM-skip).

    Slots take turns in what they skip; then relays are exchanged at random many times. Where the rules allow it and
    nothing else fits, there is one for every microbatch. Raises `PlanError` if no paths were found that fit the relays.
    """
    return _arranged(pipeline, rng, 200, hot=0.0, cold=0.0)


def short_paths(pipeline: Pipeline, rng: np.random.Generator) -> list[Path]:
    """Paths, one a slot, with short round trips for all slots, by simulated annealing; who waits for whom is left out.

    Where the rules allow it and nothing else fits, there is one for every microbatch. Raises `PlanError` if no paths
    were found that fit the relays.
    """
    return _arranged(pipeline, rng, 2000, hot=1.0, cold=0.001)


def _wave(pipeline: Pipeline) -> tuple[Pipeline, np.ndarray]:
    """The same nodes with one microbatch a slot, and how many places each takes on a relay [D * slots].

    Each takes one place if all slots have equally many microbatches, else as many as its slot has microbatches.
    """
    places = np.array([len(chain) for chain in pipeline.chains], np.int64)
    unit = int(places[0]) if (places == places[0]).all() else 1
    sent = [len(chains) for chains in pipeline.chains_of]
    return replace(pipeline, microbatches=sent, relay_limit=tuple(pipeline.places // unit)), places // unit


def _arranged(pipeline: Pipeline, rng: np.random.Generator, moves: int, hot: float, cold: float) -> list[Path]:
    """A path for every slot, after so many moves of `jobshop.anneal_paths` for each slot."""
    wave, places = _wave(pipeline)
    if (paths := _spread(wave, places, rng)) is None and not pipeline.rules.shared:
        # what does not fit slot by slot may fit microbatch by microbatch
        wave, places = pipeline, np.ones(pipeline.count, np.int64)
        paths = _spread(wave, places, rng)
    if paths is None:
        raise PlanError(no_room_message(pipeline))
    state = state_of_paths(wave, paths)
    state.chosen[:] = np.bincount(np.ravel(paths), np.repeat(places, wave.visits - 1), len(wave.hops))
    trips = np.ones_like(places) if pipeline.even else places  # where data nodes differ, long slots need short paths
    spare, number = relays_if_room(wave, state), moves * wave.count
    jobshop.anneal_paths(shop_of(wave), state, places, trips, spare, number, hot, cold, rng)
    return paths_of(wave, state)


def _spread(wave: Pipeline, places: np.ndarray, rng: np.random.Generator) -> list[Path] | None:
    """Some path for every slot of a wave within the capacity of each relay; None if none were found."""
    room = {node: int(wave.places[node]) for group in wave.groups[1:] for node in group}
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
    """Orders of relay stages [slots]: slots take turns in what they skip, and each spreads its skips evenly."""
    relays, skipped = stages - 1, stages - visits
    orders = []
    for slot in range(slots):
        holes = {(first + slot * max(skipped, 1) + t * relays // skipped) % relays for t in range(skipped)}
        orders.append(tuple(s + 1 for s in range(relays) if s not in holes))
    return orders


def _repaired(
    pipeline: Pipeline, paths: list[Path], places: list[int], room: dict[int, int], rng: np.random.Generator
) -> list[Path] | None:
    """Redraw paths that break a rule or have overfull relays until all are right; None if that was not achieved."""
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


def data_node_paths(pipeline: Pipeline, rng: np.random.Generator, rounds: int = 8) -> list[Path] | None:
    """Paths, one a slot and the same for all slots of a data node, whose longest round trip is short.

    None if relays have no room for that. Each round anneals a little, and then exchanges at once all relays of a stage,
    and all data nodes, for the best assignment of them; the best of so many rounds is taken.
    """
    room = pipeline.capacity // pipeline.sent[0]
    if room < 1 or not pipeline.even:
        return None
    try:
        wave = replace(pipeline, microbatches=1, relay_limit=room)
    except ConfigError:
        return None
    places, shop, least, best = np.ones(wave.count, np.int64), shop_of(wave), (np.inf, np.inf), None
    for number in range(rounds):
        anew = number % 3 == 0
        if (paths := _spread(wave, places, rng) if anew else best.tolist()) is None:
            return None
        state = state_of_paths(wave, paths)
        moves, hot = (500, 1.0) if anew else (200, 0.1)
        moves = max(moves * wave.count, LEAST)
        jobshop.anneal_paths(shop, state, places, places, relays_if_room(wave, state), moves, hot, 0.001, rng)
        now = np.array(paths_of(wave, state))
        for power in (4, 8, 8, 16, 16, 32):
            now = _assigned(wave, now, power)
        ticks = _round_trips(wave, now)
        if (ticks.max(), ticks.mean()) < least:
            least, best = (ticks.max(), ticks.mean()), now
    return [path for path in map(tuple, best.tolist()) for _ in range(pipeline.slots)]


def _round_trips(wave: Pipeline, paths: np.ndarray) -> np.ndarray:
    """Ticks [K] of the round trips of paths [K, P - 1], one for each data node."""
    way = np.c_[wave.groups[0], paths, wave.groups[0]]
    both = wave.travel + wave.travel.T
    return (
        both[way[:, :-1], way[:, 1:]].sum(1)
        + (wave.work[0] + wave.work[2])[way[:, :-1]].sum(1)
        + wave.work[1, way[:, 0]]
    )


def _assigned(wave: Pipeline, paths: np.ndarray, power: int) -> np.ndarray:
    """The paths after the best assignment of each stage's relays, then of data nodes, by the sum of trips ** power."""
    paths, home = paths.copy(), np.array(wave.groups[0])
    both, work = wave.travel + wave.travel.T, wave.work[0] + wave.work[2]
    stage = np.zeros(len(wave.hops), np.int64)
    stage[list(wave.stage_of)] = list(wave.stage_of.values())
    scale = _round_trips(wave, paths).mean()
    for s, group in enumerate(wave.groups[1:], 1):
        j, position = np.nonzero(stage[paths] == s)
        way = np.c_[home, paths, home][j]
        before, here, behind = (way[np.arange(len(j)), position + k] for k in range(3))
        rest = _round_trips(wave, paths)[j] - both[before, here] - both[here, behind] - work[here]
        relays = np.repeat(group, wave.capacity)
        costs = rest[:, None] + both[np.ix_(before, relays)] + both[np.ix_(behind, relays)] + work[relays]
        row, column = linear_sum_assignment((costs / scale) ** power)
        paths[j[row], position[row]] = relays[column]
    first, last = paths[:, 0], paths[:, -1]
    own = work[home] + wave.work[1, home]
    rest = _round_trips(wave, paths) - both[home, first] - both[last, home] - own
    costs = rest + both[np.ix_(home, first)] + both[np.ix_(home, last)] + own[:, None]
    return paths[linear_sum_assignment((costs / scale) ** power)[1]]
