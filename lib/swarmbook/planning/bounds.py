"""How short an iteration of a partial pipeline can be: what no plan can beat, whoever finds it.

- `round_trips` and `closed_form` take a moment for any instance. `lower_bound` adds what can be proven of single data
  nodes that have all relays to themselves, and `proven` records it
- `optimum` gives the whole problem, paths and orders, to OR-Tools CP-SAT. It ends on small instances; its lower bound
  holds whenever it stops
- everything is in whole ticks, as in the replay. CP-SAT runs on one thread and counts its own work instead of seconds,
  so that results are repeatable. The functions that need it import it themselves, since it is slow to load

Serves: the bounds and gaps of SkipPipe's iteration times, and its figure of larger swarms.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path as File

import numpy as np
import pandas as pd

from swarmbook.errors import ConfigError
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.pipeline import TICK, Path, Pipeline, Plan
from swarmbook.records.computed import computed

VERSION = 1  # of what `lower_bound` proves: to be raised when the same effort would prove something else


@dataclass(frozen=True)
class Optimum:
    """The shortest makespan is from `lower` to `upper` seconds, equal if it is proven; `plan` takes `upper`."""

    lower: float
    upper: float
    plan: Plan | None


def round_trips(pipeline: Pipeline) -> np.ndarray:
    """Seconds [D] of the shortest round trip of each data node over any relays that the rules allow, without waiting.

    It is found by dynamic programming over those visited stages that a path could still come back to.
    """
    rules, groups = pipeline.rules, [np.array(group) for group in pipeline.groups]
    both, work = pipeline.travel + pipeline.travel.T, pipeline.work
    home = groups[0]

    @cache
    def rest(position: int, stage: int, near: frozenset[int], swaps: int, lags: int) -> np.ndarray:
        """Ticks [k, D] from the end of the forward pass on each node of a stage to the start of its backward pass."""
        here = groups[stage]
        if position == rules.visits - 1:
            return both[np.ix_(here, home)] + work[1, home]
        frontier = max(near)
        least = np.full((len(here), len(home)), np.iinfo(np.int64).max // 4)
        for other, *made in rules.steps(pipeline.stages, frontier, swaps, lags):
            if other in near:
                continue
            there = groups[other]
            lowest = max(frontier, other) - rules.lag
            then = frozenset(s for s in near | {other} if s >= lowest)
            beyond = rest(position + 1, other, then, *made) + (work[0, there] + work[2, there])[:, None]
            step = both[np.ix_(here, there)]
            for k in range(len(there)):
                np.minimum(least, step[:, k, None] + beyond[k], out=least)
        return least

    out = np.diagonal(rest(0, 0, frozenset([0]), 0, 0))
    return TICK * (out + work[0, home] + work[2, home])


def closed_form(pipeline: Pipeline) -> np.ndarray:
    """Seconds [D] that each data node needs at least: launches of its slots, then a slot's round trips in turn."""
    uses = np.array([max(map(len, chains)) for chains in pipeline.chains_of])
    ties = np.array([sum(len(chain) == n for chain in c) for c, n in zip(pipeline.chains_of, uses, strict=True)])
    launch = pipeline.forward[list(pipeline.groups[0])] + pipeline.launch_gap
    return (ties - 1) * launch + uses * round_trips(pipeline) + (uses - 1) * pipeline.gap


def longest_round_trip(pipeline: Pipeline, effort: float = 20.0) -> float:
    """Seconds that the longest round trip of all slots takes at least, if each slot keeps to one path (by CP-SAT)."""
    from ortools.sat.python import cp_model

    model, used, worst = cp_model.CpModel(), {}, _horizon(pipeline)
    longest = model.new_int_var(0, worst, "")
    for start, slots in zip(pipeline.groups[0], pipeline.chains_of, strict=True):
        counts = []
        for order in pipeline.orders:
            for path in _paths_of(pipeline, order):
                seconds = round(pipeline.round_trip(slots[0][0], path) / TICK)
                count = model.new_int_var(0, len(slots), f"{start} {path}")
                chosen = model.new_bool_var("")
                model.add(count == 0).only_enforce_if(~chosen)
                model.add(longest >= seconds).only_enforce_if(chosen)
                counts.append(count)
                for node in path:
                    used.setdefault(node, []).append(count)
        model.add(sum(counts) == len(slots))
    least = min(len(chain) for chain in pipeline.chains)
    for node, counts in used.items():
        model.add(sum(counts) <= int(pipeline.places[node]) // least)
    model.minimize(longest)
    solver = _solver(effort)
    solver.solve(model)
    return TICK * solver.best_objective_bound


def lower_bound(pipeline: Pipeline, effort: float = 20.0, nodes: int = 2) -> float:
    """Seconds that no plan can beat: the largest bound proven of any single data node that has the relays to itself.

    effort: CP-SAT's deterministic time for each of the `nodes` data nodes whose closed form is largest.
    """
    each = closed_form(pipeline)
    bound = float(each.max())
    for d in np.argsort(-each)[:nodes]:
        bound = max(bound, optimum(alone(pipeline, int(d)), effort).lower)
    return bound


def proven(pipeline: Pipeline, effort: float = 20.0, nodes: int = 2, recorded: str | File | None = None) -> float:
    """`lower_bound`, from the record if it is there. It is never below the closed form, which is computed each time."""
    given = {"bound": pipeline.digest, "effort": effort, "nodes": nodes, "version": VERSION}

    def compute(_: list[dict]) -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"lower": [lower_bound(pipeline, effort, nodes)]})

    (table,) = computed([given], compute, recorded)
    return max(float(table["lower"].iloc[0]), float(closed_form(pipeline).max()))


def alone(pipeline: Pipeline, data_node: int) -> Pipeline:
    """The same pipeline with one data node, by its position in group 0, which has all relays to itself."""
    groups = (pipeline.groups[0][data_node : data_node + 1], *pipeline.groups[1:])
    return replace(pipeline, groups=groups, microbatches=pipeline.sent[data_node], relay_limit=tuple(pipeline.places))


def optimum(pipeline: Pipeline, effort: float = 60.0, moves: int = 100_000) -> Optimum:
    """The shortest makespan over all paths and orders, by CP-SAT.

    effort: CP-SAT's deterministic time; if the proof takes more, lower and upper differ. moves: those of the annealing
    whose plan CP-SAT has to beat.
    """
    from ortools.sat.python import cp_model

    found = annealing_search(pipeline, np.random.default_rng(0), moves=moves)
    model, P = cp_model.CpModel(), pipeline.visits
    relays = [node for group in pipeline.groups[1:] for node in group]
    horizon = round(found.makespan / TICK) - 1
    least = int(np.ceil(closed_form(pipeline).max() / TICK - 0.5))
    if least > horizon:
        return Optimum(found.makespan, found.makespan, found.plan)
    busy: dict[int, list] = {node: [] for node in pipeline.stage_of}
    held: dict[int, list] = {node: [] for node in relays}
    visited: dict[int, list] = {node: [] for node in relays}
    gap, launch_gap = round(pipeline.gap / TICK), round(pipeline.launch_gap / TICK)
    ends, arcs_of, begins = {}, {}, {}

    def operation(node: int, position: int, present=None):
        duration = pipeline.duration(position, node)
        begin = model.new_int_var(0, horizon, "")
        size = duration + (launch_gap if position == 0 else gap)
        interval = (
            model.new_fixed_size_interval_var(begin, size, "")
            if present is None
            else model.new_optional_fixed_size_interval_var(begin, size, present, "")
        )
        busy[node].append(interval)
        return begin, duration

    for home, slots in zip(pipeline.groups[0], pipeline.chains_of, strict=True):
        for chain in slots:
            for previous, j in zip((None, *chain), chain, strict=False):
                first, loss, last = (operation(home, position) for position in (0, P, 2 * P))
                present = {node: model.new_bool_var("") for node in relays}
                forward = {node: operation(node, 1, present[node]) for node in relays}
                backward = {node: operation(node, P + 1, present[node]) for node in relays}
                begins[j] = {(home, 0): first, (home, 1): loss, (home, 2): last}
                arcs = [(node, node, ~present[node]) for node in relays]
                pairs: dict[tuple[int, int], list] = {}
                if previous is None or not pipeline.rules.shared:
                    taken: dict[tuple[int, int], object] = {}
                for a in (home, *relays):
                    for b in (home, *relays):
                        if a == b:
                            continue
                        arc = taken.setdefault((a, b), model.new_bool_var(""))
                        arcs.append((a, b, arc))
                        pairs.setdefault((pipeline.stage_of[a], pipeline.stage_of[b]), []).append(arc)
                        out, to = first if a == home else forward[a], loss if b == home else forward[b]
                        model.add(to[0] >= out[0] + out[1] + int(pipeline.travel[a, b])).only_enforce_if(arc)
                        out, to = loss if b == home else backward[b], last if a == home else backward[a]
                        model.add(to[0] >= out[0] + out[1] + int(pipeline.travel[b, a])).only_enforce_if(arc)
                model.add_circuit([(_at(a, home, relays), _at(b, home, relays), arc) for a, b, arc in arcs])
                orders = {order: model.new_bool_var("") for order in pipeline.orders}
                model.add_exactly_one(orders.values())
                for (s, t), literals in pairs.items():
                    steps = [lit for order, lit in orders.items() if (s, t) in _steps(order)]
                    model.add(sum(literals) == sum(steps))
                for node in relays:
                    span = model.new_int_var(0, horizon, "")
                    until = model.new_int_var(0, horizon, "")
                    model.add(until == backward[node][0] + backward[node][1])
                    held[node].append(model.new_optional_interval_var(forward[node][0], span, until, present[node], ""))
                    visited[node].append(present[node])
                if previous is not None:
                    model.add(first[0] >= ends[previous])
                ends[j] = last[0] + last[1]
                travels = (((first, loss), 0, pipeline.travel), ((loss, last), P + 1, pipeline.travel.T))
                for between, position, travel in travels:
                    moving = sum(int(travel[a, b]) * arc for a, b, arc in arcs if a != b)
                    working = sum(pipeline.duration(max(position, 1), node) * present[node] for node in relays)
                    model.add(between[1][0] >= between[0][0] + between[0][1] + moving + working)
                arcs_of[j] = arcs
                begins[j] |= {(n, 3): forward[n] for n in relays} | {(n, 4): backward[n] for n in relays}
        for a, b in itertools.pairwise(slots):  # those of equal length are alike
            if len(a) == len(b):
                model.add(begins[a[0]][home, 0][0] <= begins[b[0]][home, 0][0])
    for intervals in busy.values():
        model.add_no_overlap(intervals)
    for node in relays:
        model.add_cumulative(held[node], [1] * len(held[node]), int(pipeline.room[node]))
        model.add(sum(visited[node]) <= int(pipeline.places[node]))
    makespan = model.new_int_var(least, horizon, "")
    for chain in pipeline.chains:
        model.add(makespan >= ends[chain[-1]])
    model.minimize(makespan)
    solver = _solver(effort)
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Optimum(found.makespan, found.makespan, found.plan)
    lower = TICK * round(solver.best_objective_bound)
    if status == cp_model.UNKNOWN:
        return Optimum(lower, found.makespan, found.plan)
    return Optimum(lower, TICK * round(solver.objective_value), _solution(pipeline, solver, arcs_of, begins))


def _horizon(pipeline: Pipeline) -> int:
    """Ticks that are enough to do everything one after another."""
    hop, work = int(pipeline.travel.max()), int(pipeline.work.sum(0).max())
    return pipeline.count * (2 * pipeline.visits * (hop + work + round(pipeline.gap / TICK)) + work)


def _solver(effort: float):
    """CP-SAT on one thread, for so much deterministic time; ConfigError unless it is above 0."""
    from ortools.sat.python import cp_model

    if not effort > 0:
        raise ConfigError(f"effort={effort} gives the solver no time: give more than 0")

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = effort
    return solver


def _at(node: int, home: int, relays: list[int]) -> int:
    """The number of a node in the circuit of a path, 0 for the data node."""
    return 0 if node == home else 1 + relays.index(node)


def _steps(order: tuple[int, ...]) -> set[tuple[int, int]]:
    """The pairs of successive stages on a path out and back to stage 0."""
    stages = (0, *order, 0)
    return set(itertools.pairwise(stages))


def _paths_of(pipeline: Pipeline, order: tuple[int, ...]) -> list[Path]:
    """All paths whose relays are of these stages, in this order."""
    return list(itertools.product(*(pipeline.groups[stage] for stage in order)))


def _solution(pipeline: Pipeline, solver, arcs_of: dict, begins: dict) -> Plan:
    """The plan that CP-SAT found, from the arcs and start times of its variables."""
    paths, timed = [], []
    for j in range(pipeline.count):
        after = {a: b for a, b, arc in arcs_of[j] if a != b and solver.boolean_value(arc)}
        home, path = pipeline.data_node(j), []
        while (node := after[path[-1] if path else home]) != home:
            path.append(node)
        paths.append(tuple(path))
        keys = [(home, 0), *((n, 3) for n in path), (home, 1), *((n, 4) for n in reversed(path)), (home, 2)]
        timed += [(solver.value(begins[j][key][0]), key[0], (j, position)) for position, key in enumerate(keys)]
    order: dict[int, list] = {}
    for _, node, operation in sorted(timed):
        order.setdefault(node, []).append(operation)
    return Plan(tuple(paths), {node: tuple(line) for node, line in order.items()})
