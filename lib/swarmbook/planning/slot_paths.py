"""One path for every slot that keeps the rules and the capacity of relays, before there are orders of operations.

- `random_paths` do not look at the network; `short_paths` are annealed to short round trips
- a *wave* is the pipeline with one microbatch a slot, which takes as many places on a relay as its slot has
  microbatches

Serves: the planners "blind" and "shortest" of `swarmbook.planning.planners`, and the start of
`swarmbook.planning.annealing`.
"""

from dataclasses import replace

import numpy as np

from swarmbook.errors import PlanError
from swarmbook.planning import jobshop
from swarmbook.planning.encoding import no_room_message, paths_of, relays_if_room, shop_of, state_of_paths
from swarmbook.planning.pipeline import Path, Pipeline


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
    jobshop.anneal_paths(shop_of(wave), state, places, relays_if_room(wave, state), moves * wave.count, hot, cold, rng)
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
