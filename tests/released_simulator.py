"""SkipPipe's simulator as released, for the numbers that its authors would have seen; `replay` is the one to trust.

- time goes in whole seconds; in each, every node looks 15 times through what waits for it, in the order of the nodes
- a microbatch whose ready time lies in a past second is never run: it is lost, and the makespan is that of the others
- a node sorts what waits for it by the times at which it is ready and at which it arrived, launches of microbatches
  last. It sorts its list in place, so that of equal entries the one comes first that came first before
- of a slot's microbatches the first one alone is waited for: once it is back, all others may leave
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swarmbook.errors import PlanError
from swarmbook.planning.pipeline import Path, Pipeline, Plan

PASSES = 15  # of all nodes in a second
LATER = 2.5  # seconds by which each further use of a path is ready after the one before, unless it has to wait
LATER_IN_FULL = 0.1  # the same in pipelines that skip nothing (DT-FM), where all slots begin at once
COPIES = 1.0  # seconds between the slots of a data node that share one path
RETRY = 0.1  # seconds by which a forward pass that finds no memory is put off


@dataclass(frozen=True)
class Simulation:
    """makespan: seconds to the end of the last backward pass that ran; finished: microbatches that came back."""

    makespan: float
    finished: int


@dataclass
class _Item:
    """An operation that waits at a node; ready, arrived: seconds, of launches `arrived` is infinite."""

    ready: float
    arrived: float
    microbatch: int
    position: int

    @property
    def place(self) -> tuple[float, float]:
        return self.ready, self.arrived


def simulate_released(
    pipeline: Pipeline, paths: Sequence[Path], spacing: float | None = None, later: float = LATER
) -> Simulation:
    """The released code's estimate (com_sym.py), defect included, for one path a slot, or one a data node.

    spacing: seconds between the first launches of a data node's slots; by default a forward pass, or `COPIES` where
    there is one path a data node. later: seconds between the launches of a slot. The released code takes 0 and
    `LATER_IN_FULL` for full pipelines (DT-FM). A forward pass takes one of a node's m places when it starts, and the
    backward pass gives it back when it starts, not when it ends. A node that runs an operation moves all that would
    have become ready meanwhile to the moment it is free again.

    A launch that has to wait for the first microbatch of its slot is put off only while its node has no memory left or
    is busy; in any other second it is lost. Raises `PlanError` for paths that break a constraint, and for
    nodes that wait for each other for ever.
    """
    plan = Plan.of_slots(pipeline, paths)
    plan.check(pipeline)
    if spacing is None and len(paths) < len(pipeline.chains):
        spacing = COPIES
    ways = [pipeline.itinerary(microbatch, path) for microbatch, path in enumerate(plan.paths)]
    nodes = sorted(pipeline.stage_of)
    waiting: dict[int, list[_Item]] = {node: [] for node in nodes}
    free, memory = dict.fromkeys(nodes, 0.0), dict.fromkeys(nodes, pipeline.memory)
    awaited: dict[int, int] = {}
    for slot, chain in enumerate(pipeline.chains):
        home = pipeline.data_node(chain[0])
        first = slot % pipeline.slots * (pipeline.forward[home] if spacing is None else spacing)
        for use, microbatch in enumerate(chain):
            waiting[home].append(_Item(first + later * use, math.inf, microbatch, 0))
            if use:
                awaited[microbatch] = chain[0]
    ends: dict[int, float] = {}
    longest = float(pipeline.hops.max() + pipeline.backward * pipeline.forward.max()) + later * pipeline.count

    def run(node: int, item: _Item) -> None:
        """Do an operation and send what it makes to the next node of the way."""
        position, way = item.position, ways[item.microbatch]
        share = 1 if position < pipeline.visits else pipeline.head if position == pipeline.visits else pipeline.backward
        memory[node] += (position > pipeline.visits) - (position < pipeline.visits)
        end = item.ready + pipeline.forward[node] * share
        free[node] = end + (pipeline.gap if position else pipeline.launch_gap)
        waiting[node].remove(item)
        for other in waiting[node]:
            if item.ready <= other.ready < free[node]:
                other.ready = free[node]
        if position == 2 * pipeline.visits:
            ends[item.microbatch] = end
            return
        arrival = end + pipeline.hops[node, way[position + 1]]
        waiting[way[position + 1]].append(_Item(arrival, arrival, item.microbatch, position + 1))

    def look(node: int, second: int) -> bool:
        """Go once through what waits at a node; whether anything ran."""
        ran = False
        waiting[node].sort(key=lambda item: item.place)
        for item in waiting[node].copy():
            if math.floor(item.ready) != second:
                continue
            if item.ready < free[node]:
                item.ready = free[node]
            elif item.position < pipeline.visits and memory[node] <= 0:
                item.ready += RETRY
            elif item.position or awaited.get(item.microbatch, item.microbatch) in {*ends, item.microbatch}:
                run(node, item)
                ran = True
        return ran

    second, last = 0, 0
    while any(item.ready >= second for items in waiting.values() for item in items):
        for _ in range(PASSES):
            for node in nodes:
                if look(node, second):
                    last = second
        second += 1
        if second - last > longest:
            raise PlanError(f"memory: nodes wait for each other for ever from second {last} on; simulate other paths")
    return Simulation(float(max(ends.values())), len(ends))
