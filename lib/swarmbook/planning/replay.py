"""What a plan takes, by discrete events.

It shares no code with the planners, so that a plan's cost there and its replay are two independent computations of one
number.

Serves: all iteration times and schedules of SkipPipe's planning part.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import simpy

from swarmbook.errors import PlanError
from swarmbook.planning.pipeline import TICK, Operation, Pipeline, Plan, checked_hops, remaining_ticks, ticks


@dataclass(frozen=True)
class Replay:
    """What happened when a plan was executed.

    - `tasks` has a row for every operation: node, stage, microbatch, position on its way, kind (forward, loss or
      backward), and ready, start and end in seconds.
    - `makespan` is the end of the last backward pass in seconds, the paper's iteration time.
    """

    tasks: pd.DataFrame
    makespan: float

    @property
    def waiting(self) -> float:
        """Seconds for which operations stood ready and did not run, summed over all operations."""
        return float((self.tasks["start"] - self.tasks["ready"]).sum())

    def order(self) -> dict[int, tuple[Operation, ...]]:
        """The operations of each node in the order in which they ran."""
        ordered = self.tasks.sort_values("start", kind="stable")
        return {
            int(node): tuple(zip(part["microbatch"].tolist(), part["position"].tolist(), strict=True))
            for node, part in ordered.groupby("node")
        }


@dataclass
class _Node:
    """The state of a node: what waits there, the activations that it holds, and how many operations it has done."""

    waiting: list[tuple[int, int, Operation]] = field(default_factory=list)  # ready, arrival, operation
    held: int = 0
    busy: bool = False
    done: int = 0


def replay(pipeline: Pipeline, plan: Plan, hops: np.ndarray | None = None) -> Replay:
    """Execute a plan by discrete events. `hops` [N, N]: the seconds that messages really take, if not the pipeline's.

    A node does one operation at a time, in the plan's order, or by its rule, which it applies to what has arrived. Of
    messages that arrive in the same tick, the one sent first arrives first. A forward pass needs one of the node's m
    places for activations, which the backward pass frees. Raises `PlanError` for a plan that breaks a constraint, and
    for an order in which nodes wait for each other for ever; `ConfigError` for hops that are no such seconds.
    """
    plan.check(pipeline)
    travel = pipeline.travel if hops is None else ticks(checked_hops(hops, len(pipeline.hops)))
    gap, launch_gap = int(ticks(pipeline.gap)), int(ticks(pipeline.launch_gap))
    clock = simpy.Environment()
    nodes = {node: _Node() for group in pipeline.groups for node in group}
    ways = [pipeline.itinerary(microbatch, path) for microbatch, path in enumerate(plan.paths)]
    left = [remaining_ticks(pipeline, way, travel) for way in ways]
    follows = {a: b for chain in pipeline.chains for a, b in itertools.pairwise(chain)}
    ends = 2 * pipeline.visits
    arrivals, rows = itertools.count(), []

    def arrive(operation: Operation, delay: int):
        yield clock.timeout(delay)
        node = ways[operation[0]][operation[1]]
        nodes[node].waiting.append((clock.now, next(arrivals), operation))
        yield from work(node)

    def may_start(state: _Node, operation: Operation) -> bool:
        return operation[1] >= pipeline.visits or state.held < pipeline.memory

    def choose(node: int) -> tuple[int, int, Operation] | None:
        state = nodes[node]
        if isinstance(plan.order, str):
            able = [entry for entry in state.waiting if may_start(state, entry[2])]
            rank = {
                "fifo": lambda e: (e[0], e[1]),
                "backward first": lambda e: (e[2][1] < pipeline.visits, e[0], e[1]),
                "longest rest": lambda e: (-left[e[2][0]][e[2][1]], e[0], e[1]),
            }[plan.order]
            return min(able, key=rank, default=None)
        due = plan.order[node][state.done] if state.done < len(plan.order[node]) else None
        return next((entry for entry in state.waiting if entry[2] == due), None)

    def work(node: int):
        state = nodes[node]
        if state.busy or (entry := choose(node)) is None:
            return
        state.waiting.remove(entry)
        state.busy, (ready, _, (microbatch, position)) = True, entry
        state.held += position < pipeline.visits
        duration = pipeline.duration(position, node)
        kind = "forward" if position < pipeline.visits else "loss" if position == pipeline.visits else "backward"
        start = clock.now
        yield clock.timeout(duration)
        rows.append((node, pipeline.stage_of[node], microbatch, position, kind, ready, start, clock.now))
        state.held -= position > pipeline.visits
        state.done += 1
        if position < ends:
            clock.process(arrive((microbatch, position + 1), int(travel[node, ways[microbatch][position + 1]])))
        elif microbatch in follows:
            clock.process(arrive((follows[microbatch], 0), 0))
        yield clock.timeout(launch_gap if position == 0 else gap)
        state.busy = False
        yield from work(node)

    for chain in pipeline.chains:
        clock.process(arrive((chain[0], 0), 0))
    clock.run()
    if len(rows) < len(ways) * (ends + 1):
        stuck = {node: plan.order[node][s.done] for node, s in nodes.items() if s.done < len(plan.order.get(node, ()))}
        raise PlanError(f"order: nodes wait for each other for ever; (microbatch, position) due by node: {stuck}")
    columns = ["node", "stage", "microbatch", "position", "kind", "ready", "start", "end"]
    tasks = pd.DataFrame(rows, columns=columns).sort_values(["start", "node"], ignore_index=True)
    seconds = {name: TICK * tasks[name] for name in ("ready", "start", "end")}
    return Replay(tasks.assign(**seconds), TICK * int(tasks["end"].max()))
