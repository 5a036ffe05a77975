"""What a plan takes, by discrete events.

It shares no code with the planners, so that a plan's cost there and its replay are two independent computations of one
number.

Serves: all iteration times and schedules of SkipPipe's planning part.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from swarmbook.errors import PlanError
from swarmbook.planning.pipeline import TICK, Operation, Pipeline, Plan, checked_hops, remaining_ticks, ticks


@dataclass(frozen=True)
class Replay:
    """What happened when a plan was executed.

    - `rows` has a tuple for every operation, as they ended: node, stage, microbatch, position on its way, kind
      (forward, loss or backward), and ready, start and end in ticks.
    - `makespan` is the end of the last backward pass in seconds, the paper's iteration time.
    """

    rows: tuple[tuple[int, int, int, int, str, int, int, int], ...]
    makespan: float

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """A row for every operation by start and node, with ready, start and end in seconds."""
        columns = ["node", "stage", "microbatch", "position", "kind", "ready", "start", "end"]
        tasks = pd.DataFrame(self.rows, columns=columns).sort_values(["start", "node"], ignore_index=True)
        return tasks.assign(**{name: TICK * tasks[name] for name in ("ready", "start", "end")})

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


@dataclass(slots=True)
class _Node:
    """The state of a node: what waits there, the activations that it holds, and how many operations it has done."""

    waiting: list[tuple[int, int, Operation]] = field(default_factory=list)  # ready, arrival, operation
    held: int = 0
    busy: bool = False
    done: int = 0


def way_between(node: int, to: int, half_duplex: bool) -> tuple[int, int]:
    """What a message occupies between two nodes: its direction, or on a link of half duplex both."""
    return (min(node, to), max(node, to)) if half_duplex else (node, to)


def replay(
    pipeline: Pipeline,
    plan: Plan,
    hops: np.ndarray | None = None,
    occupied: np.ndarray | None = None,
    half_duplex: bool = False,
) -> Replay:
    """Execute a plan by discrete events. `hops` [N, N]: the seconds that messages really take, if not the pipeline's.

    occupied [N, N]: the seconds of these for which a message has the way from node to node to itself, so that the next
    waits; by default messages do not wait for each other (the paper's model). half_duplex: whether both directions of a
    link are one way.

    A node does one operation at a time, in the plan's order, or by its rule, which it applies to what has arrived. Of
    messages that arrive in the same tick, the one sent first arrives first. A forward pass needs one of the node's m
    places for activations, which the backward pass frees. Raises `PlanError` for a plan that breaks a constraint, and
    for an order in which nodes wait for each other for ever; `ConfigError` for hops that are no such seconds.
    """
    plan.check(pipeline)
    travel = pipeline.travel if hops is None else ticks(checked_hops(hops, len(pipeline.hops)))
    gap, launch_gap = int(ticks(pipeline.gap)), int(ticks(pipeline.launch_gap))
    visits, memory, lasts, stage_of = pipeline.visits, pipeline.room.tolist(), pipeline.work.tolist(), pipeline.stage_of
    nodes = {node: _Node() for group in pipeline.groups for node in group}
    ways = [pipeline.itinerary(microbatch, path) for microbatch, path in enumerate(plan.paths)]
    left = [remaining_ticks(pipeline, way, travel) for way in ways]
    follows = {a: b for chain in pipeline.chains for a, b in itertools.pairwise(chain)}
    rank = {  # of what waits, (ready, arrival, operation): the least goes first
        "fifo": lambda e: e[:2],
        "backward first": lambda e: (e[2][1] < visits, e[0], e[1]),
        "longest rest": lambda e: (-left[e[2][0]][e[2][1]], e[0], e[1]),
    }.get(plan.order if isinstance(plan.order, str) else "")
    numbers, rows = itertools.count(), []
    lasting = None if occupied is None else ticks(checked_hops(occupied, len(pipeline.hops)))
    clear: dict[tuple[int, int], int] = {}  # when each way is free for another message
    events = []  # heap of (tick, number, what happens, its arguments); events of one tick happen as they were set

    def at(tick: int, what: Callable, *arguments) -> None:
        heapq.heappush(events, (tick, next(numbers), what, arguments))

    def arrive(now: int, operation: Operation) -> None:
        node = ways[operation[0]][operation[1]]
        nodes[node].waiting.append((now, next(numbers), operation))
        work(now, node)

    def choose(node: int, state: _Node) -> tuple[int, int, Operation] | None:
        if rank:
            full = state.held >= memory[node]
            return min((e for e in state.waiting if not full or e[2][1] >= visits), key=rank, default=None)
        due = plan.order[node][state.done] if state.done < len(plan.order[node]) else None
        return next((entry for entry in state.waiting if entry[2] == due), None)

    def work(now: int, node: int) -> None:
        state = nodes[node]
        if state.busy or not state.waiting or (entry := choose(node, state)) is None:
            return
        state.waiting.remove(entry)
        state.busy = True
        position = entry[2][1]
        state.held += position < visits
        at(now + lasts[(position >= visits) + (position > visits)][node], end, node, entry, now)

    def end(now: int, node: int, entry: tuple[int, int, Operation], start: int) -> None:
        state, (ready, _, (microbatch, position)) = nodes[node], entry
        kind = "forward" if position < visits else "loss" if position == visits else "backward"
        rows.append((node, stage_of[node], microbatch, position, kind, ready, start, now))
        state.held -= position > visits
        state.done += 1
        at(now + (launch_gap if position == 0 else gap), free, node)
        if position < 2 * visits:
            to, leaves = ways[microbatch][position + 1], now
            if lasting is not None:
                way = way_between(node, to, half_duplex)
                leaves = max(now, clear.get(way, 0))
                clear[way] = leaves + int(lasting[node, to])
            at(leaves + int(travel[node, to]), arrive, (microbatch, position + 1))
        elif microbatch in follows:
            at(now, arrive, (follows[microbatch], 0))

    def free(now: int, node: int) -> None:
        nodes[node].busy = False
        work(now, node)

    for chain in pipeline.chains:
        at(0, arrive, (chain[0], 0))
    while events:
        now, _, what, arguments = heapq.heappop(events)
        what(now, *arguments)
    if len(rows) < len(ways) * (2 * visits + 1):
        stuck = {node: plan.order[node][s.done] for node, s in nodes.items() if s.done < len(plan.order.get(node, ()))}
        raise PlanError(f"order: nodes wait for each other for ever; (microbatch, position) due by node: {stuck}")
    return Replay(tuple(rows), TICK * max(row[-1] for row in rows))
