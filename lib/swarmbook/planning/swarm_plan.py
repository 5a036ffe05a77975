"""A plan for a user's swarm, and what limits it.

- a `SwarmPlan` is what `swarmbook.planning.swarm_search` finds
- `limits` follows the critical path back from the end: each operation waited for the one before it on its node, for a
  message, for a link, or for the microbatch before it in its slot

Serves: `swarmbook plan`.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from swarmbook.planning.pipeline import TICK, Pipeline, Plan
from swarmbook.planning.replay import Replay, replay
from swarmbook.planning.swarm import Swarm, link_name

USUAL, WORST = "planned", "for the worst"  # names of candidates


@dataclass(frozen=True)
class SwarmPlan:
    """A plan for a swarm.

    - `pipeline` says which node serves which stage; `plan` has the orders, and `done` is what happens.
    - `bound` is what no plan of this pipeline can beat, in seconds.
    - `table` compares candidates by name (`robustness.compare`), if conditions were given; `name` is the chosen one.
    """

    swarm: Swarm
    pipeline: Pipeline
    plan: Plan
    done: Replay
    bound: float
    name: str = ""
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class Limits:
    """What an iteration's time is made of, and what would shorten it, in seconds.

    - `computing`, `sending` and `queueing` are the parts of the critical path in passes, in messages and in waiting for
      a link; they add up to the makespan. `nodes` and `links` share out the first two by name, the largest first.
    - `slots` counts how often the path waits for a microbatch to come back before the next may start.
    - `busy` [N] is the share of the time in which each node computes.
    - `instead` is the makespan if links or nodes were twice as fast, with the same plan, or if every node had room for
      one microbatch more, with another plan; the last is None where none was found that is shorter.
    """

    computing: float
    sending: float
    queueing: float
    nodes: dict[str, float]
    links: dict[str, float]
    slots: int
    busy: np.ndarray
    instead: dict[str, float | None]

    @property
    def most(self) -> str:
        """What would gain most."""
        return min(self.instead, key=lambda name: self.instead[name] or float("inf"))


def limits(found: SwarmPlan, roomier: float | None = None) -> Limits:
    """What limits a plan. roomier: the makespan if nodes had room for one microbatch more, if that is known."""
    swarm, pipeline, done = found.swarm, found.pipeline, found.done
    at = {row[2:4]: row for row in done.rows}
    before = {b: a for line in done.order().values() for a, b in zip(line, line[1:], strict=False)}
    follows = {b: a for chain in pipeline.chains for a, b in zip(chain, chain[1:], strict=False)}
    nodes, links, queueing, gaps, slots = Counter(), Counter(), 0, 0, 0
    now = max(done.rows, key=lambda row: row[-1])
    while now is not None:
        node, _, m, position, _, ready, start, end = now
        nodes[swarm.nodes[node].name] += end - start
        if start > ready:  # the node was busy
            then = at[before[m, position]]
            gaps += start - then[-1]
        elif position:
            then = at[m, position - 1]
            travel = int(pipeline.travel[then[0], node])
            links[link_name(swarm, then[0], node)] += travel
            queueing += ready - then[-1] - travel
        else:
            then = at[follows[m], 2 * pipeline.visits] if m in follows else None
            slots += then is not None
        now = then
    busy = done.tasks.assign(took=done.tasks["end"] - done.tasks["start"]).groupby("node")["took"].sum()
    swift = replace(pipeline, forward=pipeline.forward / 2)
    faster = {name: share / 2 if name == "occupied" else share for name, share in swarm.line.items()}
    instead = {
        "links twice as fast": replay(replace(pipeline, hops=pipeline.hops / 2), found.plan, **faster).makespan,
        "nodes twice as fast": replay(swift, found.plan, **swarm.line).makespan,
        "room for one microbatch more": roomier if roomier is not None and roomier < done.makespan else None,
    }
    return Limits(
        computing=TICK * (nodes.total() + gaps),
        sending=TICK * links.total(),
        queueing=TICK * queueing,
        nodes={name: TICK * ticks for name, ticks in nodes.most_common()},
        links={name: TICK * ticks for name, ticks in links.most_common()},
        slots=slots,
        busy=busy.reindex(range(len(swarm.nodes)), fill_value=0.0).to_numpy() / done.makespan,
        instead=instead,
    )
