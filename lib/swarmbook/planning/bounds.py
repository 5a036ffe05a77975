"""How short an iteration of a partial pipeline can be: what no plan can beat, whoever finds it.

- `round_trips` and `closed_form` take a moment for any instance. `own_machine` adds that the microbatches of a data
  node wait for each other there, and `assignment_bound` that they share relays, by a linear program over all paths
- `lower_bound` is the largest of these and of what can be proven of single data nodes that have all relays to
  themselves, and `proven` records it
- `optimum` gives the whole problem, paths and orders, to OR-Tools CP-SAT. It ends on small instances; its lower bound
  holds whenever it stops
- everything is in whole ticks, as in the replay. CP-SAT runs on one thread and counts its own work instead of seconds,
  so that results are repeatable. The functions that need it import it themselves, since it is slow to load

The file is long because the exact model and its relaxations are one concept, and share round trips and solver.

Serves: the bounds and gaps of SkipPipe's iteration times, and its figure of larger swarms.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path as File

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

from swarmbook.errors import ConfigError
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.pipeline import TICK, Pipeline, Plan
from swarmbook.records.computed import computed

MACHINES = 4  # data nodes whose own machine is looked at
ROUND = 200  # paths of each slot that a round of `assignment_bound` adds
VERSION = 2  # of what `lower_bound` proves: to be raised when the same effort would prove something else


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


def own_machine(pipeline: Pipeline, data_node: int, effort: float = 1.0) -> float:
    """Seconds that one data node, by its position in group 0, needs for its own operations, wherever relays are free.

    Its slots' microbatches are away for the shortest round trip each, and the node does one thing at a time.
    effort: CP-SAT's deterministic time.
    """
    away = round(round_trips(pipeline)[data_node] / TICK)
    lengths = [len(chain) for chain in pipeline.chains_of[data_node]]
    return TICK * _one_machine(pipeline, pipeline.work[:, pipeline.groups[0][data_node]], lengths, effort, away=away)


def _one_machine(pipeline: Pipeline, work: np.ndarray, lengths: list[int], effort: float, away: int) -> int:
    """Ticks that slots of so many microbatches take on their data node at least, if each is away for `away` ticks.

    work [3]: ticks of its forward pass, loss and backward pass.
    """
    from ortools.sat.python import cp_model

    model, work = cp_model.CpModel(), [int(each) for each in work]
    gap, launch_gap = round(pipeline.gap / TICK), round(pipeline.launch_gap / TICK)
    worst = sum(lengths) * (away + sum(work) + 3 * (gap + launch_gap))
    end, busy, firsts = model.new_int_var(0, worst, ""), [], {}
    for length in lengths:
        before = None
        for number in range(length):
            starts = [model.new_int_var(0, worst, "") for _ in work]
            for start, ticks, idle in zip(starts, work, (launch_gap, gap, gap), strict=True):
                busy.append(model.new_fixed_size_interval_var(start, ticks + idle, ""))
            model.add(starts[1] >= starts[0] + work[0])
            model.add(starts[2] >= starts[1] + work[1])
            model.add(starts[2] + work[2] >= starts[0] + away)
            if before is not None:
                model.add(starts[0] >= before)
            elif number == 0:
                firsts.setdefault(length, []).append(starts[0])
            before = starts[2] + work[2]
        model.add(end >= before)
    for alike in firsts.values():  # slots of one length are alike
        for a, b in itertools.pairwise(alike):
            model.add(a <= b)
    model.add_no_overlap(busy)
    model.minimize(end)
    solver = _solver(effort)
    solver.solve(model)
    return math.ceil(solver.best_objective_bound - 1e-6)


def _longest_away(pipeline: Pipeline, work: np.ndarray, lengths: list[int], until: int, effort: float) -> int:
    """Ticks; slots of one length that are all away for longer would end after `until` on their data node's machine."""
    away = until // lengths[0] + 1
    while (less := away - (_one_machine(pipeline, work, lengths, effort, away) - until - 1) // lengths[0]) < away:
        if _one_machine(pipeline, work, lengths, effort, less) <= until:
            break
        away = less
    return away - 1


def assignment_bound(pipeline: Pipeline, effort: float = 1.0, most: int = 1_000_000) -> float:
    """Seconds that no plan can beat, since good relays are few: a linear program over the paths of all slots.

    Nodes of a stage that are alike in links and times are one type, with the room of all. While there are more than
    `most` pairs of a data node's type and a path, types that differ little become one that is as fast as the fastest.
    A makespan T is possible only if a fraction of a path for each slot fits into the room of the relays (`_room`),
    where at most k - 1 slots of a data node have round trips with which k of them would not end on their data node's
    own machine by T. Bisection finds the largest T for which that fails to a thousandth. What the program denies is
    checked by weak duality, so that the bound does not rest on the tolerance of HiGHS.
    """
    types = _types(pipeline, most)
    paths, trips, holds = types.paths(pipeline)
    homes, shared, gap = np.flatnonzero(types.stage == 0), pipeline.rules.shared, round(pipeline.gap / TICK)
    # one row of the program for each home and number of microbatches in its slots: home, number, slots of one data node
    rows = [
        (at, u, types.lengths[h].count(u) if shared else sum(types.lengths[h]))
        for at, h in enumerate(homes)
        for u in (sorted(set(types.lengths[h])) if shared else [1])
    ]
    need = np.array([slots * types.count[homes[at]] for at, _, slots in rows], dtype=float)
    known: dict[tuple, int] = {}  # by what a data node does, since most are alike

    def away(h: int, u: int, k: int, until: int) -> int:
        key = (*types.work[:, h].tolist(), u, k, until)
        if key not in known:
            known[key] = _longest_away(pipeline, types.work[:, h], [u] * k, until, effort)
        return known[key]

    def shortest(row: np.ndarray, value: np.ndarray, number: int) -> np.ndarray:
        """Whether each is among so many of its row with the least values."""
        order = np.lexsort((value, row))
        place = np.empty(len(row), np.int64)
        place[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
        return place < number

    def possible(until: int) -> bool:
        limits = [
            [away(homes[at], u, k, until) for k in range(1, slots + 1)]
            if shared and u == max(types.lengths[homes[at]])
            else [(until - (u - 1) * gap) // u]
            for at, u, slots in rows
        ]
        fits = [np.flatnonzero(trips[at] <= limits[r][0]) for r, (at, _, _) in enumerate(rows)]
        row, path = np.repeat(np.arange(len(rows)), [len(fit) for fit in fits]), np.concatenate(fits)
        if not len(path):
            return False
        size, every = len(path), np.arange(len(path))
        at, use = np.array([(at, u) for at, u, _ in rows]).T
        trip = trips[at[row], path]
        uses = np.tile(use[row], len(paths))
        visits = (uses, (paths[:, path].ravel(), np.tile(every, len(paths))))
        relays, (turns, spans) = types.stage > 0, types.room(pipeline, until)
        held = (uses * holds(at[row], path).ravel() / until, visits[1])
        matrix = [csr_array(each, shape=(len(types.stage), size))[relays] for each in (visits, held)]
        matrix.append(csr_array((np.ones(size), (row, every)), shape=(len(rows), size)))
        room = [turns[relays], spans[relays] / until, need]
        if shared:
            for k in range(1, max(map(len, limits))):
                limit = np.array([each[k] if k < len(each) else np.inf for each in limits])
                beyond = np.flatnonzero(trip > limit[row])
                matrix.append(csr_array((np.ones(len(beyond)), (row[beyond], beyond)), shape=(len(rows), size)))
                room.append(k * types.count[homes[at]])
        else:
            matrix.append(csr_array((trip / until, (at[row], every)), shape=(len(homes), size)))
            idle = [sum(1 - (u - 1) * gap / until for u in types.lengths[h]) for h in homes]
            room.append(types.count[homes] * np.array(idle))
        matrix, limit = vstack(matrix).tocsc(), np.concatenate(room).astype(float)
        chosen, whole = shortest(row, trip, ROUND), need.sum()
        while True:  # column generation: a few paths of each slot decide
            found = linprog(-np.ones(chosen.sum()), A_ub=matrix[:, chosen], b_ub=limit, method="highs")
            if found.status != 0 or -found.fun >= whole - 1e-6:
                return True
            price = np.maximum(-found.ineqlin.marginals, 0)  # any prices give a bound on how many slots have a path
            gain, most_of = np.maximum(1 - matrix.T @ price, 0), np.zeros(len(rows))
            np.maximum.at(most_of, row, gain)
            if limit @ price + need @ most_of < whole - 1e-4:
                return False
            better = (gain > 1e-9) & ~chosen
            if not better.any():
                return True
            chosen[better] = shortest(row[better], -gain[better], ROUND)

    low = round(float(closed_form(pipeline).max()) / TICK)
    if possible(low):
        return TICK * low
    high = 2 * low
    while not possible(high):
        low, high = high, 2 * high
    while high - low > low / 1000:
        middle = (low + high) // 2
        low, high = (low, middle) if possible(middle) else (middle, high)
    return TICK * low


@dataclass(frozen=True)
class _Types:
    """Nodes that are alike as one: stage [K], how many nodes [K], ticks of work [3, K] and of messages [K, K].

    `members` are the nodes of each, `lengths` the microbatches in the slots of one of its data nodes (none for relays).
    """

    members: list[list[int]]
    stage: np.ndarray
    work: np.ndarray
    travel: np.ndarray
    lengths: list[tuple[int, ...]]

    @property
    def count(self) -> np.ndarray:
        return np.array([len(nodes) for nodes in self.members])

    def paths(self, pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray, Callable]:
        """All paths over types [P - 1, n], and the ticks of their round trips from each type of data nodes.

        Last, a function from data nodes [k] and paths [k], as numbers of those, to the ticks [P - 1, k] for which each
        relay holds a microbatch at least, from its forward pass to the end of its backward pass.
        """
        at = [np.flatnonzero(self.stage == s) for s in range(pipeline.stages)]
        ways = np.concatenate(
            [
                np.stack(np.meshgrid(*(at[s] for s in order), indexing="ij")).reshape(len(order), -1)
                for order in pipeline.orders
            ],
            axis=1,
        )
        both, relay, home = self.travel + self.travel.T, self.work[0] + self.work[2], self.work.sum(0)
        inside = both[ways[:-1], ways[1:]].sum(0) + relay[ways].sum(0)
        first = at[0][:, None]
        steps = np.concatenate([relay[ways[:1]], both[ways[:-1], ways[1:]] + relay[ways[1:]]])
        rest = np.cumsum(steps[::-1], 0)[::-1] - steps + relay[ways]

        def holds(data: np.ndarray, path: np.ndarray) -> np.ndarray:
            back = at[0][data]
            return rest[:, path] + both[back, ways[-1, path]] + self.work[1, back]

        return ways, inside + both[first, ways[0]] + both[first, ways[-1]] + home[first], holds

    def room(self, pipeline: Pipeline, until: int) -> tuple[np.ndarray, np.ndarray]:
        """How many microbatches the nodes of each type can take [K], and for how many ticks they can hold them [K].

        They are as many as may choose the nodes, and can end by then. A relay cannot begin before a first message
        reaches it, nor end later than a last message needs to its data node.
        """
        apart = self.stage[:, None] != self.stage
        far = np.iinfo(np.int64).max // 4
        homes = self.stage == 0
        come = self.work[0, homes].min() + np.where(apart, self.travel, far).min(0)
        go = self.work[2, homes].min() + np.where(apart, self.travel, far).min(1)
        gap, span = round(pipeline.gap / TICK), np.maximum(until - come - go, 0)
        turns = (span + gap) // (self.work[0] + self.work[2] + 2 * gap)
        each = zip(self.members, turns.tolist(), strict=True)
        most = np.array([np.minimum(pipeline.places[nodes], turn).sum() for nodes, turn in each])
        return most, np.array([pipeline.room[nodes].sum() for nodes in self.members]) * span


def _types(pipeline: Pipeline, most: int) -> _Types:
    """The fewest types that are exact, or so few that there are about `most` pairs of a data node and a path.

    Those that are merged are clusters of a stage by links and work (average linkage). What they become has the least of
    their times, so that no plan takes longer with it. Data nodes whose slots differ in length are never merged.
    """
    nodes, stage = np.array(list(pipeline.stage_of)), np.array(list(pipeline.stage_of.values()))
    travel, work = pipeline.travel[np.ix_(nodes, nodes)], pipeline.work[:, nodes]
    apart = stage[:, None] != stage
    slots = {node: tuple(map(len, c)) for node, c in zip(pipeline.groups[0], pipeline.chains_of, strict=True)}
    kinds = {lengths: number for number, lengths in enumerate(sorted({(), *slots.values()}))}
    kind = np.array([kinds[slots.get(node, ())] for node in nodes.tolist()])
    both = np.where(apart, travel + travel.T, 0)
    alike = np.c_[kind, work.T, np.where(apart, travel, 0), np.where(apart, travel.T, 0)]
    label, tree = np.zeros(len(nodes), np.int64), {}
    for s in range(pipeline.stages):
        here = np.flatnonzero(stage == s)
        label[here] = np.unique(alike[here], axis=0, return_inverse=True)[1].ravel()
        if len(here) > 1:
            near = np.unique(np.c_[both[here], work.T[here].sum(1) * len(nodes)], axis=1)
            tree[s] = linkage(near.astype(float), "average")

    def pairs(at: np.ndarray) -> int:
        number = [len(np.unique(at[stage == s])) for s in range(pipeline.stages)]
        return number[0] * sum(math.prod(number[s] for s in order) for order in pipeline.orders)

    most_of = max(len(np.unique(label[stage == s])) for s in range(pipeline.stages))
    while pairs(label) > most and most_of > 1:
        most_of -= 1 + most_of // 10
        for s, merged in tree.items():
            if len(np.unique(label[here := stage == s])) > most_of:
                label[here] = fcluster(merged, most_of, "maxclust") * len(kinds) + kind[here]
    first = {pair: number for number, pair in enumerate(sorted(set(zip(stage.tolist(), label.tolist(), strict=True))))}
    members = [np.flatnonzero((stage == s) & (label == k)) for s, k in first]
    by = np.concatenate(members)
    cuts = np.r_[0, np.cumsum([len(each) for each in members])[:-1]]
    shortest = np.minimum.reduceat(np.minimum.reduceat(travel[np.ix_(by, by)], cuts, 0), cuts, 1)
    return _Types(
        [nodes[each].tolist() for each in members], np.array([s for s, _ in first]),
        np.minimum.reduceat(work[:, by], cuts, 1), shortest, [slots.get(int(nodes[each[0]]), ()) for each in members],
    )  # fmt: skip


def lower_bound(pipeline: Pipeline, effort: float = 20.0, nodes: int = 2) -> float:
    """Seconds that no plan can beat: the largest of `assignment_bound` and what is proven of single data nodes.

    effort: CP-SAT's deterministic time for each of the `nodes` data nodes whose closed form is largest. Each is given
    all relays to itself (`optimum`); with nodes=0 this is left out, which takes seconds instead of a minute.
    """
    each = closed_form(pipeline)
    bound = max(_machines(pipeline, each), assignment_bound(pipeline))
    for d in np.argsort(-each, kind="stable")[:nodes]:
        bound = max(bound, optimum(alone(pipeline, int(d)), effort).lower)
    return bound


def proven(pipeline: Pipeline, effort: float = 20.0, nodes: int = 2, recorded: str | File | None = None) -> float:
    """`lower_bound`, from the record if it is there. It is never below the closed form, which is computed each time."""
    given = {"bound": pipeline.digest, "effort": effort, "nodes": nodes, "version": VERSION}

    def compute(_: list[dict]) -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"lower": [lower_bound(pipeline, effort, nodes)]})

    (table,) = computed([given], compute, recorded)
    return max(float(table["lower"].iloc[0]), float(closed_form(pipeline).max()))


def _machines(pipeline: Pipeline, each: np.ndarray) -> float:
    """The largest `own_machine` of the data nodes with the largest closed forms `each` [D], alike ones once."""
    kinds: dict[tuple, int] = {}
    for d in np.argsort(-each, kind="stable").tolist():
        slots = tuple(map(len, pipeline.chains_of[d]))
        kinds.setdefault((float(each[d]), slots, *pipeline.work[:, pipeline.groups[0][d]].tolist()), d)
    return max(float(each.max()), *(own_machine(pipeline, d) for d in list(kinds.values())[:MACHINES]))


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
    each = closed_form(pipeline)
    least = round(_machines(pipeline, each) / TICK)
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
