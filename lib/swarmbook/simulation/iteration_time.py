"""How long one iteration of a data-parallel pipeline takes, by discrete events (CheckFree, sections 4 and 5.2).

- nodes, stages and microbatches are those of `swarmbook.simulation.recovery_schemes`
- microbatches go forward along their route, back to stage 0 for the loss, and home again. A node does one task at a
  time; messages share no links. Then the replicas of each stage send each other their gradients, all to all
- iterations overlap: a node goes on as soon as it has the gradients of its stage's other replicas. This hides most of
  the slow exchanges
- iterations differ only in when each node is ready for them, which stages are lost and whether checkpoints are sent

Serves: CheckFree's throughput figure (the timeline of one iteration).
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import simpy

from swarmbook.errors import ConfigError
from swarmbook.simulation.network import Network
from swarmbook.simulation.recovery_schemes import (
    Scheme,
    Workload,
    check_setting,
    route_cells,
    route_nodes,
    scheme_of,
)

COLUMNS = ("node", "stage", "replica", "kind", "pipeline", "microbatch", "start", "end")
DIGITS = 6  # of times in seconds


@dataclass(frozen=True)
class Iteration:
    """What happened in one iteration. Times are seconds since the last node of stage 0 took its last optimizer step.

    - `seconds` is how long it is until that node takes its next optimizer step.
    - `ready` [N] is when each node may begin the next iteration, in seconds from that next step.
    - `rows` is what every node did; `tasks` has it as a table.
    - `sent` is the bytes sent, by purpose.
    - `unrecovered` counts the replicas of lost stages whose weights no node had. They are charged for a fetch from the
      nearest surviving stages.
    """

    seconds: float
    ready: tuple[float, ...]
    rows: list[tuple]
    sent: dict[str, int]
    unrecovered: int

    @functools.cached_property
    def tasks(self) -> pd.DataFrame:
        """What every node did, sorted by start, with the columns `COLUMNS`; times in seconds.

        kind is forward, redundant forward, loss, backward, exchange, upload, shipment, recovery or idle. pipeline and
        microbatch are -1 where there is none. The table is built when it is first asked for, as few iterations of
        thousands are looked at.
        """
        return pd.DataFrame(self.rows, columns=list(COLUMNS)).sort_values("start", kind="stable", ignore_index=True)


def simulate(
    workload: Workload,
    network: Network,
    scheme: Scheme | str = "CheckFree",
    ready: Sequence[float] | None = None,
    lost: Sequence[int] = (),
    saves: bool = False,
) -> Iteration:
    """Simulate one iteration by discrete events.

    ready: when each node may begin, in seconds [N]; None for all at 0. lost: the stages (1 to S) that die as they
    become ready, all replicas of a stage together. saves: whether every stage first sends its weights to the store.
    Raises `ConfigError` for a network of another size, an unknown scheme, a stage that cannot be lost, `ready` of
    another shape, and for `saves` without a store.
    """
    scheme = scheme_of(scheme)
    check_setting(workload, network, lost)
    ready = np.zeros(workload.nodes) if ready is None else np.asarray(ready, dtype=float)
    if ready.shape != (workload.nodes,):
        raise ConfigError(f"ready must have one value for each of {workload.nodes} nodes, not shape {ready.shape}")
    if saves and scheme.source != "store":
        raise ConfigError(f"saves=True needs a scheme with source 'store', not {scheme.source!r}")
    return _IterationSimulation(workload, network, scheme, ready, frozenset(lost), saves).run()


class _IterationSimulation:
    """The state of one iteration: the clock, the queue of each node, and what has been done so far."""

    def __init__(
        self,
        workload: Workload,
        network: Network,
        scheme: Scheme,
        ready: np.ndarray,
        lost: frozenset[int],
        saves: bool,
    ) -> None:
        self.workload, self.network, self.scheme = workload, network, scheme
        self.env = simpy.Environment(initial_time=float(ready.min()))
        self.tasks: list[tuple] = []
        self.sent: Counter[str] = Counter()
        self.unrecovered = 0
        size = workload.activation_bytes // scheme.split
        self.activation_bytes = size
        self.delay = network.matrix(size).round(DIGITS).tolist()
        self.stage_delay = network.matrix(workload.stage_bytes).round(DIGITS)
        self.ends_delay = network.matrix(workload.ends_bytes).round(DIGITS)
        self.copied = self._ship(ready) if scheme.ships else ready
        ready = self._save(ready) if saves else ready
        ready = self._recover(ready, lost) if lost else ready
        self.begin = ready
        self.busy = [simpy.Resource(self.env) for _ in range(workload.nodes)]
        wait = np.where(np.arange(workload.nodes) < workload.replicas, workload.idle, 0.0)
        self.open = [self._at(time) for time in ready + wait]
        self.free = ready.copy()  # when each node ends its last task
        self.slots = [simpy.Resource(self.env, workload.in_flight) for _ in range(workload.replicas)]
        self.cells = route_cells(workload, scheme)
        self.done = ready.copy()  # when each node's gradient is complete

    def run(self) -> Iteration:
        w, env = self.workload, self.env
        for r in range(w.replicas):
            self.tasks.append((r, 0, r, "idle", -1, -1, self.begin[r], self.begin[r] + w.idle))
            for m in range(w.microbatches * self.scheme.split):
                env.process(self._microbatch(r, m))
        env.run()
        nodes = np.arange(w.nodes)
        peers = nodes[:, None] // w.replicas == nodes // w.replicas
        delay = np.where(nodes[:, None] < w.replicas, self.ends_delay, self.stage_delay) + w.polling
        np.fill_diagonal(delay, 0.0)
        arrival = np.where(peers, self.done[:, None] + delay, -np.inf)  # [from, to]
        ready = arrival.max(axis=0)
        self.sent["exchange"] += w.replicas * (w.replicas - 1) * (w.ends_bytes + w.stages * w.stage_bytes)
        for node in nodes:
            self._note(node, "exchange", self.done[node], ready[node])
        seconds = float(ready[: w.replicas].max())
        # Equal iterations may still differ by rounding errors.
        after = tuple(np.round(np.maximum(ready, self.free) - seconds, DIGITS).tolist())
        return Iteration(seconds, after, self.tasks, dict(self.sent), self.unrecovered)

    def _microbatch(self, r: int, m: int) -> Iterator[simpy.Event]:
        """Take microbatch m of pipeline r out along its route, through the loss, and home."""
        w, part = self.workload, self.scheme.part
        route = route_nodes(self.cells, r, m)
        with self.slots[r].request() as slot:
            yield slot
            at = r
            yield from self._forward(r, r, m, 0.0)
            for node in route:
                yield self._message(at, node, "activations")
                yield from self._forward(node, r, m, w.forward * part)
                at = node
            yield self._message(at, r, "activations")
            yield from self._task(r, r, m, {"loss": w.head * part})
            at = r
            for node in reversed(route):
                yield self._message(at, node, "activation gradients")
                yield from self._task(node, r, m, {"backward": w.backward * part})
                self.done[node] = max(self.done[node], self.free[node])
                at = node
            yield self._message(at, r, "activation gradients")
            yield self.env.timeout(w.polling)
            self.done[r] = max(self.done[r], self.env.now)

    def _forward(self, node: int, r: int, m: int, seconds: float) -> Iterator[simpy.Event]:
        """Run a stage's forward pass and, with redundant computation, that of the stage after it; stage 0 has none."""
        w, scheme = self.workload, self.scheme
        if not scheme.redundant or node >= w.nodes - w.replicas:
            yield from self._task(node, r, m, {"forward": seconds})
        elif scheme.hides:
            yield from self._task(node, r, m, {"forward": seconds})
            self.env.process(self._redundant(node, r, m))
        else:
            yield self._at(self.copied[node])
            yield from self._task(node, r, m, {"forward": seconds, "redundant forward": w.forward * scheme.part})

    def _redundant(self, node: int, r: int, m: int) -> Iterator[simpy.Event]:
        yield self._at(self.copied[node])
        yield from self._task(node, r, m, {"redundant forward": self.workload.forward * self.scheme.part})

    def _task(self, node: int, r: int, m: int, parts: dict[str, float]) -> Iterator[simpy.Event]:
        """Wait for the node, do the parts one after another, and wait until the result is taken up for sending."""
        yield self.open[node]
        with self.busy[node].request() as turn:
            yield turn
            for kind, seconds in parts.items():
                start = self.env.now
                yield self.env.timeout(seconds)
                self._note(node, kind, start, self.env.now, r, m)
            self.free[node] = self.env.now
        yield self.env.timeout(self.workload.polling)

    def _message(self, a: int, b: int, purpose: str) -> simpy.Event:
        self.sent[purpose] += self.activation_bytes
        return self.env.timeout(self.delay[a][b])

    def _at(self, time: float) -> simpy.Event:
        return self.env.timeout(max(0.0, time - self.env.now))

    def _note(self, node: int, kind: str, start: float, end: float, r: int = -1, m: int = -1) -> None:
        replicas = self.workload.replicas
        node = int(node)
        self.tasks.append((node, node // replicas, node % replicas, kind, r, m, float(start), float(end)))

    def _ship(self, ready: np.ndarray) -> np.ndarray:
        """Send each node the updated weights of the stage after it; returns when it has them [N]."""
        w, copied = self.workload, ready.copy()
        for node in range(w.nodes - w.replicas):
            holder = node + w.replicas
            copied[node] = ready[holder] + self.stage_delay[holder, node]
            self.sent["shipments"] += w.stage_bytes
            self._note(node, "shipment", ready[holder], copied[node])
        return copied

    def _save(self, ready: np.ndarray) -> np.ndarray:
        """Send every stage's weights to the store on node 0; returns when each node may go on [N]."""
        after = ready.copy()
        for node in range(self.workload.replicas, self.workload.nodes):
            after[node] += self.stage_delay[node, 0]
            self.sent["checkpoints"] += self.workload.stage_bytes
            self._note(node, "upload", ready[node], after[node])
        return after if self.scheme.blocking else ready

    def _recover(self, ready: np.ndarray, lost: frozenset[int]) -> np.ndarray:
        """Replace the nodes of lost stages and give them weights; returns when each node may go on [N]."""
        w, after = self.workload, ready.copy()
        cells = [s * w.replicas + r for s in sorted(lost) for r in range(w.replicas)]
        stand = ready.copy()
        stand[cells] += w.provision
        if self.scheme.rollback:
            # Everybody waits for the replacements, then all stages, and the copies of stage 0, load the checkpoint.
            start = stand.max()
            for node in range(w.nodes):
                size = w.stage_bytes if node >= w.replicas else w.ends_bytes
                after[node] = start + (self.stage_delay if node >= w.replicas else self.ends_delay)[0, node]
                self.sent["recovery"] += size if node else 0
                self._note(node, "recovery", ready[node], after[node])
            return after
        # A predecessor can help once the last update has reached it; a store has what it was sent long ago.
        has = {"neighbours": ready, "predecessor": self.copied, "store": np.full(w.nodes, -np.inf)}[self.scheme.source]
        for node in cells:
            r, stage = node % w.replicas, node // w.replicas
            givers = self._givers(stage, lost)
            for giver in givers:
                sender = 0 if self.scheme.source == "store" else giver * w.replicas + r
                arrival = max(stand[node], has[sender]) + self.stage_delay[sender, node]
                after[node] = max(after[node], arrival)
            if not givers:
                after[node] = stand[node]
            self.sent["recovery"] += w.stage_bytes * len(givers)
            self._note(node, "recovery", ready[node], after[node])
        if self.scheme.redundant:
            # The copy that the lost node held for the stage after it is gone too, and sent again.
            self.copied = self.copied.copy()
            for node in (node for node in cells if node < w.nodes - w.replicas):
                holder = node + w.replicas
                start = max(stand[node], after[holder])
                self.copied[node] = start + self.stage_delay[holder, node]
                self.sent["recovery"] += w.stage_bytes
                self._note(node, "shipment", start, self.copied[node])
        return after

    def _givers(self, stage: int, lost: frozenset[int]) -> list[int]:
        """The stages that send a lost one its weights; none if no stage is left, so that new weights are drawn."""
        if self.scheme.source == "store":
            return [0]
        if self.scheme.source == "predecessor" and stage - 1 not in lost:
            return [stage - 1]
        before = [s for s in range(1, stage) if s not in lost][-1:]
        after = [s for s in range(stage + 1, self.workload.stages + 1) if s not in lost][:1]
        self.unrecovered += self.scheme.source == "predecessor" or not before + after
        return before + after
