"""Which relays every microbatch goes through, and in what order nodes work, so that an iteration is short (SkipPipe).

- `PLANNERS[name](pipeline, rng)` gives a `Plan`; all of them keep the rules and the capacity of relays
- "annealing" is the one to use: simulated annealing over paths and orders together, on the compiled `jobshop`; more
  moves never give a worse plan, and the same moves from the same generator always the same one
- "blind" stands for DT-FM-skip: paths that keep the rules and know nothing of the network; a distribution, not a number
- "conflict-based" is the search that SkipPipe's authors released, rebuilt in `swarmbook.conflicts`
- `planned` records what a search finds and reads it from the record, where the plan is checked and replayed again
- `full_pipelines` is the baseline in which no microbatch skips anything (DT-FM)
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path as File
from typing import Literal

import numpy as np
import pandas as pd

from swarmbook import jobshop
from swarmbook.errors import PlanError, unknown
from swarmbook.files import key_of
from swarmbook.pipeline import RULES, TICK, Path, Pipeline, Plan, Rules, replay, rest, ticks
from swarmbook.runs import computed

HOT, COLD = 0.03, 0.0005  # first and last temperature of a round, in parts of the makespan that it starts with
WEIGHT = 0.3  # of the mean end of the slots beside the makespan: an order that only helps the others still helps
PATH_MOVES = 0.5  # share of the moves that change paths
ROUND = 100_000  # moves of the first round; each has half as many again as the one before
SECTION = 10_000  # moves between two looks at the clock

OPERATION = ("node", "microbatch", "position")  # columns of a recorded plan
VERSION = 1  # of what searches find: to be raised when the same search would give another plan, or count otherwise

Planner = Callable[[Pipeline, np.random.Generator], Plan]
PLANNERS: dict[str, Planner] = {}


def planner(name: str) -> Callable[[Planner], Planner]:
    """Register a planner (pipeline, generator) -> plan under a name."""

    def register(rule: Planner) -> Planner:
        PLANNERS[name] = rule
        return rule

    return register


@dataclass(frozen=True)
class Search:
    """What a search found: plan, its makespan in seconds, and (moves, seconds, makespan) at every improvement.

    moves, seconds: of the whole search; a move of the conflict-based one is an arrangement that it branches on. Seconds
    are processor time, which a busy machine does not stretch. ended: why it stopped.
    """

    plan: Plan
    makespan: float
    history: tuple[tuple[int, float, float], ...]
    moves: int
    seconds: float
    ended: str = "limit"


@planner("blind")
def blind(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """Random paths, one a slot, that keep the rules and the capacity and do not look at the network (DT-FM-skip).

    Slots take turns in what they skip, then relays are exchanged at random many times over. Raises `PlanError` if no
    paths were found that fit the relays.
    """
    return Plan.of_slots(pipeline, _arranged(pipeline, rng, 200, hot=0.0, cold=0.0), "backward first")


@planner("shortest")
def shortest(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """Paths, one a slot, with short round trips for all, and no thought of who waits for whom; nodes work fifo.

    What SkipPipe is without its collision constraint TC2, by simulated annealing on the round trips.
    """
    return Plan.of_slots(pipeline, _arranged(pipeline, rng, 2000, hot=1.0, cold=0.001), "fifo")


@planner("annealing")
def annealing(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """`search` with moves for some ten seconds on one core for 30 microbatches."""
    return search(pipeline, rng, moves=1_000_000).plan


@planner("conflict-based")
def conflict_based(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """The released planner's search, `swarmbook.conflicts`, stopped after 10,000 arrangements. Nothing is random."""
    from swarmbook.conflicts import conflict_search

    return conflict_search(pipeline).plan


@planner("conflict-based without collisions")
def conflict_based_without_collisions(pipeline: Pipeline, rng: np.random.Generator) -> Plan:
    """The same without the collision constraint TC2: its first arrangement that fits the relays. Nothing is random."""
    from swarmbook.conflicts import conflict_search

    return conflict_search(pipeline, collisions=False).plan


def search(
    pipeline: Pipeline,
    rng: np.random.Generator,
    moves: int | None = None,
    seconds: float | None = None,
    start: Plan | None = None,
) -> Search:
    """Simulated annealing over paths and orders, for so many moves, or so many seconds after compiling.

    Rounds grow by half; each cools down from `HOT` to `COLD`. Every other round starts anew from short paths, the
    others go on from the best plan. Give moves where a result must be repeatable. start: a plan with orders to begin
    with, such as one for links as they were before; the first round is a tenth as hot then, and the result is never
    worse. Raises `PlanError` if it breaks a constraint of this pipeline.
    """
    if (moves is None) == (seconds is None) or not (moves if seconds is None else seconds) > 0:
        raise PlanError(f"give one of moves, at least 1, and seconds, above 0; not {moves} and {seconds}")
    shop = _shop(pipeline)
    _compiled()
    started, begun, done, history = time.monotonic(), time.thread_time(), 0, []
    best = _begin(pipeline, shop, rng) if start is None else _of_plan(pipeline, start)
    least = _makespan(best)
    history.append((0, time.thread_time() - begun, TICK * least))
    for number in itertools.count():
        state = _begin(pipeline, shop, rng) if number % 2 and number > 1 else jobshop.clone(best)
        size = int(ROUND * 1.5**number)
        mild = 0.1 if start is not None and number == 0 else 1.0  # a good plan is not to be melted down at once
        hot, cold = mild * HOT * _makespan(state), COLD * _makespan(state)
        for first in range(0, size, SECTION):
            section = min(SECTION, size - first, size if moves is None else moves - done)
            now, then = (hot * (cold / hot) ** (at / size) for at in (first, first + section))
            found = jobshop.anneal(
                shop, state, best, _spare(pipeline, state), section, now, then, WEIGHT, PATH_MOVES, rng
            )
            done += section
            if found < least:
                least = int(found)
                history.append((done, time.thread_time() - begun, TICK * least))
            if done == moves or (seconds is not None and time.monotonic() - started >= seconds):
                return Search(_plan(pipeline, best), TICK * least, tuple(history), done, time.thread_time() - begun)


def planned(
    pipeline: Pipeline,
    how: Literal["annealing", "conflict-based"] = "annealing",
    seed: int = 0,
    start: Plan | None = None,
    recorded: str | File = "runs",
    **limits,
) -> Search:
    """A search by `search` or `swarmbook.conflicts.conflict_search`, from the record if it is there, as training runs.

    limits: the search's own options. A recorded plan is checked against the pipeline and replayed; its times are those
    of when it was found. Raises `PlanError` if a recorded plan does not take what its record says.
    """
    given = {"planner": how, "pipeline": pipeline.digest, "limits": limits, "version": VERSION}
    if how == "annealing":
        given |= {"seed": seed, "start": start and key_of(_table(start).to_dict("list"))}

    def compute(_: list[dict]) -> Iterator[pd.DataFrame]:
        from swarmbook.conflicts import conflict_search

        if how == "annealing":
            found = search(pipeline, np.random.default_rng(seed), start=start, **limits)
        else:
            found = conflict_search(pipeline, **limits)
        steps = pd.DataFrame(found.history, columns=["moves", "seconds", "makespan"])
        last = pd.DataFrame([(found.moves, found.seconds, found.makespan)], columns=steps.columns)
        parts = {"operation": _table(found.plan), "better": steps, found.ended: last}
        table = pd.concat([part.assign(what=what) for what, part in parts.items()], ignore_index=True)
        counts = {name: table[name].fillna(-1).astype("int64") for name in (*OPERATION, "moves")}
        yield table.assign(**counts)

    (table,) = computed([given], compute, recorded)
    line, steps = table[table["what"] == "operation"], table[table["what"] == "better"]
    *_, end = table.itertuples()
    plan = _plan_of(pipeline, line)
    takes = replay(pipeline, plan).makespan
    if takes != end.makespan:
        raise PlanError(
            f"the recorded plan takes {takes} s where its record says {end.makespan} s; delete it from {recorded} and "
            "plan anew"
        )
    history = tuple(steps[["moves", "seconds", "makespan"]].itertuples(index=False, name=None))
    return Search(plan, takes, history, end.moves, end.seconds, end.what)


def _table(plan: Plan) -> pd.DataFrame:
    """The operations of a plan with orders, node by node in its order."""
    rows = [(node, *operation) for node, line in sorted(plan.order.items()) for operation in line]
    return pd.DataFrame(rows, columns=list(OPERATION))


def _plan_of(pipeline: Pipeline, line: pd.DataFrame) -> Plan:
    """The plan of such a table."""
    way, order = {}, {}
    for node, microbatch, position in line[list(OPERATION)].itertuples(index=False, name=None):
        order.setdefault(node, []).append((microbatch, position))
        way[microbatch, position] = node
    count = 1 + max((microbatch for microbatch, _ in way), default=-1)
    paths = [tuple(way.get((j, position), -1) for position in range(1, pipeline.visits)) for j in range(count)]
    return Plan(tuple(paths), {node: tuple(operations) for node, operations in order.items()})


def full_pipelines(
    pipeline: Pipeline, columns: Sequence[Sequence[int]] | None = None, microbatches: int | None = None
) -> tuple[Pipeline, Plan]:
    """No skipping: pipeline i goes through the i-th node of every stage, in order (DT-FM); the other data nodes idle.

    columns [K][S]: nodes of each pipeline, the first a data node; default: the i-th of each group. microbatches: of
    each pipeline; default: so many that none are lost, D * M / K rounded up.
    """
    K = min(len(group) for group in pipeline.groups)
    columns = [[group[i] for group in pipeline.groups] for i in range(K)] if columns is None else columns
    groups = tuple(tuple(column[s] for column in columns) for s in range(pipeline.stages))
    each = -(-pipeline.count // len(columns)) if microbatches is None else microbatches
    rules = Rules(pipeline.stages, pipeline.rules.ahead, swaps=0)
    whole = replace(pipeline, groups=groups, rules=rules, microbatches=each, relay_limit=None)
    return whole, Plan.of_slots(whole, [tuple(column[1:]) for column in columns])


def dispatched(pipeline: Pipeline, paths: Sequence[Path], rule: str) -> tuple[Plan, float]:
    """The plan of paths [D * M] whose nodes choose by a rule, with the orders that they come to; its makespan.

    As in the replay, but compiled; of operations that become ready in the same tick the earlier microbatch's is first.
    """
    if rule not in RULES:
        raise PlanError(unknown("rule", rule, RULES))
    Plan(tuple(paths)).check(pipeline)
    state = _state(pipeline, paths)
    P = pipeline.visits
    if rule == "longest rest":
        key = _longest_rest(pipeline, state)
    else:
        forward = np.arange(len(state.node)) % (2 * P + 1) < P
        key = forward.astype(np.int64) if rule == "backward first" else np.zeros(len(state.node), np.int64)
    jobshop.dispatch(_shop(pipeline), state, key)
    return _plan(pipeline, state), TICK * _makespan(state)


def cost(pipeline: Pipeline, plan: Plan) -> float:
    """Seconds that a plan with given orders takes, by the longest path through them; the planners' own number.

    Raises `PlanError` for a plan that breaks a constraint, or whose nodes wait for each other for ever.
    """
    return TICK * _makespan(_of_plan(pipeline, plan))


def _of_plan(pipeline: Pipeline, plan: Plan) -> jobshop.State:
    """The state of a plan with given orders, if it is a valid one."""
    plan.check(pipeline)
    if isinstance(plan.order, str):
        raise PlanError(f"order={plan.order!r} leaves the order to the nodes: replay the plan")
    state, P = _state(pipeline, plan.paths), pipeline.visits
    operation = _numbers(pipeline, state)
    for node, order in plan.order.items():
        held = 0
        for microbatch, position in order:
            jobshop.append(state, node, operation[microbatch, position], held)
            held += (position < P) - (position > P)
    if _makespan(state) < 0:
        raise PlanError("order: nodes wait for each other for ever")
    return state


@cache
def _compiled() -> None:
    """Compile, or load, all that a search needs, so that its clock does not count it."""
    toy = Pipeline(((0, 1), (2, 3), (4, 5)), np.ones((6, 6)), 1.0, Rules(2), microbatches=2, memory=1)
    shop, rng = _shop(toy), np.random.default_rng(0)
    state = _begin(toy, shop, rng)
    jobshop.anneal(shop, state, jobshop.clone(state), _spare(toy, state), 1, 1.0, 0.5, WEIGHT, PATH_MOVES, rng)


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
        raise PlanError(no_room(pipeline))
    state = _state(wave, paths)
    state.chosen[:] = np.bincount(np.ravel(paths), np.repeat(places, wave.visits - 1), len(wave.hops))
    jobshop.arrange(_shop(wave), state, places, _spare(wave, state), moves * wave.count, hot, cold, rng)
    return _paths(wave, state)


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


def no_room(pipeline: Pipeline) -> str:
    """The message for microbatches that do not fit the relays."""
    return (
        f"no paths of {pipeline.visits} stages were found that fit {pipeline.count} microbatches into relays for "
        f"{pipeline.capacity} each under {pipeline.rules}: give the relay stages more nodes, or the rules more room"
    )


def _spare(pipeline: Pipeline, state: jobshop.State) -> np.ndarray:
    """Relays that are chosen less often than they may be."""
    relays = [node for group in pipeline.groups[1:] for node in group]
    total = sum(int(state.chosen[node]) for node in relays)
    return np.array(relays if total < pipeline.capacity * len(relays) else [], dtype=np.int64)


def _begin(pipeline: Pipeline, shop: jobshop.Shop, rng: np.random.Generator) -> jobshop.State:
    """Short paths, and an order by the longest rest."""
    state = _state(pipeline, shortest(pipeline, rng).paths)
    jobshop.dispatch(shop, state, _longest_rest(pipeline, state))
    return state


def _longest_rest(pipeline: Pipeline, state: jobshop.State) -> np.ndarray:
    operation = _numbers(pipeline, state)
    key = np.zeros(len(state.node), np.int64)
    for microbatch, path in enumerate(_paths(pipeline, state)):
        left = rest(pipeline, pipeline.way(microbatch, path), pipeline.travel)
        for position, seconds in enumerate(left):
            key[operation[microbatch, position]] = -seconds
    return key


def _shop(pipeline: Pipeline) -> jobshop.Shop:
    stage = np.full(len(pipeline.hops), -1, np.int64)
    for node, s in pipeline.stage_of.items():
        stage[node] = s
    slot, before, after = (np.full(pipeline.count, -1, np.int64) for _ in range(3))
    for number, chain in enumerate(pipeline.chains):
        slot[list(chain)] = number
        for a, b in itertools.pairwise(chain):
            after[a], before[b] = b, a
    rules = pipeline.rules
    limits = [rules.visits, rules.ahead, rules.swaps, rules.lag, rules.lags, pipeline.memory]
    limits += [int(ticks(pipeline.gap)), int(ticks(pipeline.launch_gap)), pipeline.capacity, int(rules.shared)]
    start = np.array([pipeline.data_node(j) for j in range(pipeline.count)], np.int64)
    return jobshop.Shop(pipeline.travel, pipeline.work, stage, start, slot, before, after, np.array(limits, np.int64))


def _state(pipeline: Pipeline, paths: Sequence[Path]) -> jobshop.State:
    """Paths without orders."""
    J, P, N = pipeline.count, pipeline.visits, len(pipeline.hops)
    state = jobshop.empty(J, P, N)
    for j, path in enumerate(paths):
        home = pipeline.data_node(j)
        state.node.reshape(J, -1)[j] = (home, *path, home, *path, home)
        for node in path:
            state.chosen[node] += 1
    jobshop.lay(_shop(pipeline), state)
    return state


def _makespan(state: jobshop.State) -> int:
    makespan, _ = jobshop.follow(state, np.zeros(len(state.node), np.int8), np.zeros(len(state.node), np.int64))
    return int(makespan)


def _numbers(pipeline: Pipeline, state: jobshop.State) -> np.ndarray:
    """Operations by microbatch and position on its way [J, 2 P + 1]."""
    J, P = pipeline.count, pipeline.visits
    first = np.arange(J)[:, None] * (2 * P + 1)
    ends = [np.full((J, 1), k) for k in (0, P, 2 * P)]
    k = np.concatenate([ends[0], state.visit, ends[1], P + state.visit[:, ::-1], ends[2]], axis=1)
    return first + k


def _paths(pipeline: Pipeline, state: jobshop.State) -> list[Path]:
    operation = _numbers(pipeline, state)
    return [tuple(row) for row in state.node[operation[:, 1 : pipeline.visits]].tolist()]


def _plan(pipeline: Pipeline, state: jobshop.State) -> Plan:
    operation = _numbers(pipeline, state)
    named = {int(op): where for where, op in np.ndenumerate(operation)}
    order = {}
    for node, op in enumerate(state.first.tolist()):
        line = []
        while op >= 0:
            line.append(tuple(int(i) for i in named[op]))
            op = int(state.later[op])
        if line:
            order[node] = tuple(line)
    return Plan(tuple(_paths(pipeline, state)), order)
