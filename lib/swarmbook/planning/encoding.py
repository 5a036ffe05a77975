"""Pipelines and plans as the arrays of `swarmbook.planning.jobshop`, and back.

- a `Pipeline` becomes a `Shop`, and paths or a `Plan` become a `State`
- `dispatched` lets nodes choose the order by a dispatching rule; `cost` is what a plan with orders takes

Serves: `swarmbook.planning.annealing`, `swarmbook.planning.slot_paths` and `swarmbook.planning.conflict_based_search`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from swarmbook import tables
from swarmbook.errors import PlanError, unknown
from swarmbook.planning import jobshop
from swarmbook.planning.pipeline import DISPATCH_RULES, TICK, Path, Pipeline, Plan, remaining_ticks, ticks


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    - `plan` is the best plan, and `makespan` is what it takes in seconds.
    - `history` has (moves, seconds, makespan) at every improvement.
    - `moves` and `seconds` are those of the whole search. A move of the conflict-based search is an arrangement that it
      branches on. Seconds are processor time, which a busy machine does not stretch.
    - `ended` says why the search stopped.
    """

    plan: Plan
    makespan: float
    history: tuple[tuple[int, float, float], ...]
    moves: int
    seconds: float
    ended: str = "limit"

    def _repr_html_(self) -> str:
        found = f"{self.makespan:.6g} s an iteration; {self.moves} moves in {self.seconds:.3g} s ({self.ended})"
        columns = ("moves", "seconds of search", "seconds an iteration")
        improved = [dict(zip(columns, row, strict=True)) for row in self.history]
        return tables.html(found, improved) + self.plan._repr_html_()


def dispatched(pipeline: Pipeline, paths: Sequence[Path], rule: str) -> tuple[Plan, float]:
    """The plan whose nodes choose by a dispatching rule, with the orders that they come to, and its seconds.

    paths [D * M]: one for every microbatch. rule: one of `DISPATCH_RULES`. It does what the replay does, but compiled.
    Of operations that become ready in the same tick it takes that of the earlier microbatch first. Raises `PlanError`
    for an unknown rule, and for paths that break a constraint.
    """
    if rule not in DISPATCH_RULES:
        raise PlanError(unknown("rule", rule, DISPATCH_RULES))
    Plan(tuple(paths)).check(pipeline)
    state = state_of_paths(pipeline, paths)
    P = pipeline.visits
    if rule == "longest rest":
        key = longest_rest_priorities(pipeline, state)
    else:
        forward = np.arange(len(state.node)) % (2 * P + 1) < P
        key = forward.astype(np.int64) if rule == "backward first" else np.zeros(len(state.node), np.int64)
    jobshop.dispatch(shop_of(pipeline), state, key)
    return plan_of(pipeline, state), TICK * makespan_of(state)


def cost(pipeline: Pipeline, plan: Plan) -> float:
    """Seconds that a plan with orders takes, by the longest path through its operations: the planners' own number.

    Raises `PlanError` for a plan that breaks a constraint, whose order is a rule, or whose nodes wait for each other
    for ever.
    """
    return TICK * makespan_of(state_of_plan(pipeline, plan))


def state_of_plan(pipeline: Pipeline, plan: Plan) -> jobshop.State:
    """The state of a plan with orders. Raises `PlanError` as `cost` does."""
    plan.check(pipeline)
    if isinstance(plan.order, str):
        raise PlanError(f"order={plan.order!r} leaves the order to the nodes: replay the plan")
    state, P = state_of_paths(pipeline, plan.paths), pipeline.visits
    operation = _operation_numbers(pipeline, state)
    for node, order in plan.order.items():
        held = 0
        for microbatch, position in order:
            jobshop.append(state, node, operation[microbatch, position], held)
            held += (position < P) - (position > P)
    if makespan_of(state) < 0:
        raise PlanError("order: nodes wait for each other for ever")
    return state


def no_room_message(pipeline: Pipeline) -> str:
    """The message of the error for microbatches that do not fit into the relays."""
    places = [int(pipeline.places[node]) for group in pipeline.groups[1:] for node in group]
    each = f"{min(places)} to {max(places)}" if min(places) < max(places) else f"{places[0]}"
    return (
        f"no paths of {pipeline.visits} stages were found that fit {pipeline.count} microbatches into relays for "
        f"{each} each under {pipeline.rules}: give the relay stages more nodes, or the rules more room"
    )


def relays_if_room(pipeline: Pipeline, state: jobshop.State) -> np.ndarray:
    """All relays as an array, or none if every relay is chosen as often as it may be (TC1)."""
    relays = [node for group in pipeline.groups[1:] for node in group]
    total = sum(int(state.chosen[node]) for node in relays)
    return np.array(relays if total < pipeline.places[relays].sum() else [], dtype=np.int64)


def longest_rest_priorities(pipeline: Pipeline, state: jobshop.State) -> np.ndarray:
    """Keys [O] by which `jobshop.dispatch` takes first what is farthest from its microbatch's end."""
    operation = _operation_numbers(pipeline, state)
    key = np.zeros(len(state.node), np.int64)
    for microbatch, path in enumerate(paths_of(pipeline, state)):
        left = remaining_ticks(pipeline, pipeline.itinerary(microbatch, path), pipeline.travel)
        for position, seconds in enumerate(left):
            key[operation[microbatch, position]] = -seconds
    return key


def shop_of(pipeline: Pipeline) -> jobshop.Shop:
    """The pipeline as plain arrays."""
    stage = np.full(len(pipeline.hops), -1, np.int64)
    for node, s in pipeline.stage_of.items():
        stage[node] = s
    slot, before, after = (np.full(pipeline.count, -1, np.int64) for _ in range(3))
    for number, chain in enumerate(pipeline.chains):
        slot[list(chain)] = number
        for a, b in itertools.pairwise(chain):
            after[a], before[b] = b, a
    rules = pipeline.rules
    limits = [rules.visits, rules.ahead, rules.swaps, rules.lag, rules.lags]
    limits += [int(ticks(pipeline.gap)), int(ticks(pipeline.launch_gap)), int(rules.shared)]
    start = np.array([pipeline.data_node(j) for j in range(pipeline.count)], np.int64)
    numbers = np.array(limits, np.int64), pipeline.room, pipeline.places
    return jobshop.Shop(pipeline.travel, pipeline.work, stage, start, slot, before, after, *numbers)


def state_of_paths(pipeline: Pipeline, paths: Sequence[Path]) -> jobshop.State:
    """The state of paths [D * M], one for every microbatch, without orders."""
    J, P, N = pipeline.count, pipeline.visits, len(pipeline.hops)
    state = jobshop.empty_state(J, P, N)
    for j, path in enumerate(paths):
        home = pipeline.data_node(j)
        state.node.reshape(J, -1)[j] = (home, *path, home, *path, home)
        for node in path:
            state.chosen[node] += 1
    jobshop.lay_out(shop_of(pipeline), state)
    return state


def makespan_of(state: jobshop.State) -> int:
    """Ticks that a state with orders takes; -1 if its nodes wait for each other in a circle."""
    makespan, _ = jobshop.start_times(state, np.zeros(len(state.node), np.int8), np.zeros(len(state.node), np.int64))
    return int(makespan)


def _operation_numbers(pipeline: Pipeline, state: jobshop.State) -> np.ndarray:
    """The number of each operation in a state, by microbatch and position on its way [J, 2 P + 1]."""
    J, P = pipeline.count, pipeline.visits
    first = np.arange(J)[:, None] * (2 * P + 1)
    ends = [np.full((J, 1), k) for k in (0, P, 2 * P)]
    k = np.concatenate([ends[0], state.visit, ends[1], P + state.visit[:, ::-1], ends[2]], axis=1)
    return first + k


def paths_of(pipeline: Pipeline, state: jobshop.State) -> list[Path]:
    """The path of every microbatch in a state."""
    operation = _operation_numbers(pipeline, state)
    return [tuple(row) for row in state.node[operation[:, 1 : pipeline.visits]].tolist()]


def plan_of(pipeline: Pipeline, state: jobshop.State) -> Plan:
    """The paths and orders of a state as a plan."""
    operation = _operation_numbers(pipeline, state)
    named = {int(op): where for where, op in np.ndenumerate(operation)}
    order = {}
    for node, op in enumerate(state.first.tolist()):
        line = []
        while op >= 0:
            line.append(tuple(int(i) for i in named[op]))
            op = int(state.later[op])
        if line:
            order[node] = tuple(line)
    return Plan(tuple(paths_of(pipeline, state)), order)


def ends_of(state: jobshop.State) -> np.ndarray:
    """Ticks [J] at which each microbatch ends, of a state whose start times are set."""
    return (state.begin + state.duration).reshape(len(state.visit), -1)[:, -1]


def parts_of(shop: jobshop.Shop, state: jobshop.State) -> np.ndarray:
    """Numbers [J] of the parts that microbatches belong to; those of different parts visit different nodes."""
    J, N = state.visit.shape[0], len(shop.stage)
    visits = (np.repeat(np.arange(J), len(state.node) // J), J + state.node)
    graph = coo_array((np.ones(len(state.node), np.int8), visits), shape=(J + N, J + N))
    return connected_components(graph, directed=False)[1][:J]


def part_of(
    shop: jobshop.Shop, state: jobshop.State, microbatches: np.ndarray, nodes: np.ndarray
) -> tuple[jobshop.Shop, jobshop.State]:
    """Whole parts as a shop and state of their own, of these microbatches and nodes, whose numbers ascend."""
    ops = _operations_of(state, microbatches)

    def numbers(chosen: np.ndarray, size: int) -> np.ndarray:
        table = np.full(size + 1, -1)  # its last entry is that of -1, which stands for none
        table[chosen] = np.arange(len(chosen))
        return table

    op, node = numbers(ops, len(state.node)), numbers(nodes, len(shop.stage))
    job = numbers(microbatches, len(shop.start))
    piece = jobshop.Shop(
        np.ascontiguousarray(shop.travel[np.ix_(nodes, nodes)]), np.ascontiguousarray(shop.work[:, nodes]),
        shop.stage[nodes], node[shop.start[microbatches]], shop.slot[microbatches],
        job[shop.before[microbatches]], job[shop.after[microbatches]], shop.limits,
        shop.memory[nodes], shop.capacity[nodes],
    )  # fmt: skip
    return piece, jobshop.State(
        node[state.node[ops]], state.visit[microbatches], op[state.earlier[ops]], op[state.later[ops]],
        op[state.first[nodes]], op[state.last[nodes]], state.held[ops], state.chosen[nodes], state.begin[ops],
        op[state.before[ops]], op[state.after[ops]], state.duration[ops], state.busy[ops], state.lag[ops],
    )  # fmt: skip


def put_back(piece: jobshop.State, state: jobshop.State, microbatches: np.ndarray, nodes: np.ndarray) -> None:
    """Write a state that `part_of` gave back into the whole one."""
    ops = _operations_of(state, microbatches)
    op, node = np.append(ops, -1), np.append(nodes, -1)
    state.node[ops], state.visit[microbatches] = node[piece.node], piece.visit
    state.first[nodes], state.last[nodes], state.chosen[nodes] = op[piece.first], op[piece.last], piece.chosen
    for name in ("earlier", "later", "before", "after"):
        getattr(state, name)[ops] = op[getattr(piece, name)]
    for name in ("held", "begin", "duration", "busy", "lag"):
        getattr(state, name)[ops] = getattr(piece, name)


def _operations_of(state: jobshop.State, microbatches: np.ndarray) -> np.ndarray:
    """The numbers of all operations of some microbatches."""
    each = len(state.node) // len(state.visit)
    return (microbatches[:, None] * each + np.arange(each)).ravel()
