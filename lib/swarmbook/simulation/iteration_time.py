"""How long an iteration of a data-parallel pipeline takes, and what failures add to it (CheckFree, sections 4 and 5.2).

- R pipelines of stages 1 to S, and a stage 0 that holds data, embedding, head and loss: stage s of pipeline r runs on
  node s * R + r. Stage 0 never fails. (`swarmbook.training.fleet` counts the same stages from 0 and the ends as the last.)
- microbatches go forward along their route, back to stage 0 for the loss, and home again; a node does one task at a
  time, messages share no links; then the replicas of each stage send each other their gradients, all to all
- iterations overlap: a stage goes on as soon as it has its peers' gradients, which hides most of the slow exchanges
- a `Scheme` says what a recovery strategy costs in time; all run on one `Workload` and one `Network`
- what differs between iterations is only when each node is ready for it, so equal ones are simulated once
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import simpy

from swarmbook.errors import ConfigError, unknown
from swarmbook.methods.routing import ROUTES
from swarmbook.simulation.network import Network

COLUMNS = ("node", "stage", "replica", "kind", "pipeline", "microbatch", "start", "end")
DIGITS = 6  # of times in seconds
Schedule = Sequence[tuple[int, int]]  # (iteration, stage) as in `swarmbook.methods.failures.events`


@dataclass(frozen=True)
class Workload:
    """What is computed and how large it is; the defaults are CheckFree's throughput experiment as released.

    stages: S, without stage 0. replicas: R. microbatches: of each pipeline and iteration, at most in_flight of them
    under way. sequences: in a microbatch, of `sequence` tokens. width, layers (of a stage), vocabulary: of the medium
    LLaMA, feed-forward 4 * width. value_bytes: of a weight, gradient or activation. forward, backward: seconds of a
    stage for a microbatch; the authors do not state them: these give their measured iteration of 91.3 s to 1 %. head:
    seconds of head and loss, both ways, in proportion to their weights. polling: seconds until a finished result is
    sent; the released code looks every 0.1 s. idle: seconds that stage 0 waits before an iteration. provision: seconds
    until a lost node's replacement stands; the paper reports about 30 s for a recovery. Times are used to the
    microsecond. Raises `ConfigError` for values out of range.
    """

    stages: int = 6
    replicas: int = 3
    microbatches: int = 6
    in_flight: int = 3
    sequences: int = 8
    sequence: int = 1024
    width: int = 1024
    layers: int = 4
    vocabulary: int = 32_000
    value_bytes: int = 4
    forward: float = 0.38
    backward: float = 0.76
    head: float = 0.56
    polling: float = 0.05
    idle: float = 10.0
    provision: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (isinstance(value, int) and value >= 1):
                raise ConfigError(f"{field.name} must be a whole number of at least 1, not {value!r}")
            if field.type is float and not value >= 0:
                raise ConfigError(f"{field.name} must be at least 0 seconds, not {value!r}")

    @property
    def nodes(self) -> int:
        """R * (S + 1)."""
        return self.replicas * (self.stages + 1)

    @property
    def activation_bytes(self) -> int:
        """Of one microbatch between two stages, and of its gradient."""
        return self.value_bytes * self.sequences * self.sequence * self.width

    @property
    def stage_bytes(self) -> int:
        """Of a stage's weights, or their gradient: 16 d^2 + 2 d values a layer."""
        return self.value_bytes * self.layers * (16 * self.width**2 + 2 * self.width)

    @property
    def ends_bytes(self) -> int:
        """Of stage 0's weights: embedding, head and last norm."""
        return self.value_bytes * (2 * self.vocabulary * self.width + self.width)


@dataclass(frozen=True)
class Scheme:
    """What a recovery strategy does besides training.

    source: who gives a replacement its weights: the nearest surviving neighbours, the store on node 0, or the
    predecessor, which holds a copy. route: of `swarmbook.methods.routing`. period: with a store, every stage sends it its
    weights after iterations 1, 1 + period, 1 + 2 * period ... of the clock (released code), and goes on meanwhile
    unless `blocking`. rollback: all stages go back to the last complete checkpoint and lost iterations are run again;
    the released code restores the lost stage alone. split: microbatches are cut into so many, for which a task takes
    `part` of the time. redundant: each node also runs the forward pass of the stage after it, before it sends its own
    result on or, if it `hides` it, after that, in the time it would wait (Bamboo); for this that stage `ships` it the
    updated weights in every iteration. Raises `ConfigError` for a combination without meaning.
    """

    source: Literal["neighbours", "store", "predecessor"] = "neighbours"
    route: str = "in order"
    period: int | None = None
    rollback: bool = False
    blocking: bool = False
    redundant: bool = False
    hides: bool = False
    ships: bool = False
    split: int = 1
    part: float = 1.0

    def __post_init__(self) -> None:
        sources = ("neighbours", "store", "predecessor")
        if self.source not in sources:
            raise ConfigError(unknown("source", self.source, sources))
        if self.route not in ROUTES:
            raise ConfigError(unknown("route", self.route, ROUTES))
        if (self.source == "store") != (self.period is not None):
            raise ConfigError(f"source {self.source!r} with period={self.period}: a store, and only it, has a period")
        if self.period is not None and self.period < 1:
            raise ConfigError(f"period must be at least 1 iteration, not {self.period}")
        if self.source != "store" and (self.rollback or self.blocking):
            raise ConfigError(f"only source 'store' can roll back or block, not {self.source!r}")
        if (self.source == "predecessor") != self.redundant or ((self.ships or self.hides) and not self.redundant):
            raise ConfigError("source 'predecessor' and redundant=True belong together; ships and hides need them")
        if self.split < 1 or not 0 < self.part <= 1:
            raise ConfigError(f"split must be at least 1 and part in (0, 1], not {self.split} and {self.part}")


_REDUNDANT = Scheme("predecessor", redundant=True, ships=True, split=2, part=0.5)
SCHEMES = {
    "CheckFree": Scheme(),
    "CheckFree+": Scheme(route="swapped ends"),
    "checkpointing": Scheme("store", period=100),
    "rollback": Scheme("store", period=100, rollback=True),
    # Half-size microbatches, twice as many, so that the second stage fits into memory (section 5). Whether a small task
    # takes half the time depends on the hardware.
    "redundant computation": _REDUNDANT,
    "redundant computation, full task time": dataclasses.replace(_REDUNDANT, part=1.0),
    "redundant computation, hidden": dataclasses.replace(_REDUNDANT, hides=True),
}


@dataclass(frozen=True)
class Iteration:
    """One iteration, in seconds from the moment in which the last node of stage 0 took its last optimizer step.

    seconds: until it takes the next. ready [N]: when each node may begin the iteration after, from that next step.
    rows: what every node did, as in `tasks`. sent: bytes by purpose. unrecovered: replicas of lost stages whose weights
    nobody had; they are charged for a fetch from the nearest survivors.
    """

    seconds: float
    ready: tuple[float, ...]
    rows: list[tuple]
    sent: dict[str, int]
    unrecovered: int

    @functools.cached_property
    def tasks(self) -> pd.DataFrame:
        """What every node did, in order of beginning, with the columns `COLUMNS`.

        kind is forward, redundant forward, loss, backward, exchange, upload, shipment, recovery or idle; pipeline and
        microbatch are -1 where there is none. Made when asked for: of thousands of iterations few are looked at.
        """
        return pd.DataFrame(self.rows, columns=list(COLUMNS)).sort_values("start", kind="stable", ignore_index=True)


@dataclass(frozen=True)
class Experiment:
    """Iterations one after another under failures.

    seconds [n]: of each iteration. progress: iterations whose updates are in the weights at the end; fewer than n only
    with rollback. sent: bytes by purpose. failures: stages lost. unrecovered: as in `Iteration`, of all iterations.
    """

    seconds: np.ndarray
    progress: int
    sent: dict[str, int]
    failures: int
    unrecovered: int

    @property
    def mean(self) -> float:
        """Seconds an iteration, the paper's "iteration time" (Table 2)."""
        return float(self.seconds.mean())

    @property
    def effective(self) -> float:
        """Seconds for each iteration of progress; infinite without any."""
        return float(self.seconds.sum()) / self.progress if self.progress else float("inf")


def simulate(
    workload: Workload,
    network: Network,
    scheme: Scheme | str = "CheckFree",
    ready: Sequence[float] | None = None,
    lost: Sequence[int] = (),
    saves: bool = False,
) -> Iteration:
    """One iteration by discrete events.

    ready [N]: when each node may begin, in seconds; all at 0 if None. lost: stages (1 to S) that die as they become
    ready, all replicas together. saves: every stage first sends its weights to the store. Raises `ConfigError` for a
    network of another size, an unknown scheme, or a stage that cannot be lost.
    """
    scheme = _scheme(scheme)
    _check(workload, network, lost)
    ready = np.zeros(workload.nodes) if ready is None else np.asarray(ready, dtype=float)
    if ready.shape != (workload.nodes,):
        raise ConfigError(f"ready must have one value for each of {workload.nodes} nodes, not shape {ready.shape}")
    if saves and scheme.source != "store":
        raise ConfigError(f"saves=True needs a scheme with source 'store', not {scheme.source!r}")
    return _IterationSimulation(workload, network, scheme, ready, frozenset(lost), saves).run()


def experiment(
    workload: Workload,
    network: Network,
    scheme: Scheme | str,
    schedule: Schedule = (),
    iterations: int = 500,
    ready: Sequence[float] | None = None,
) -> Experiment:
    """`iterations` iterations, repeated ones included, under a schedule of failures (section 4 of the released code).

    schedule: (iteration, stage): the stage (1 to S) dies once the clock has seen that many iterations, whichever
    iteration of the training it is then; as `swarmbook.methods.failures.events` lists them. ready: as in `simulate`. Raises
    `ConfigError` as `simulate` does, and for events outside the experiment.
    """
    scheme = _scheme(scheme)
    if iterations < 1:
        raise ConfigError(f"iterations must be at least 1, not {iterations}")
    events: dict[int, set[int]] = {}
    for when, stage in schedule:
        if not 0 <= when < iterations:
            raise ConfigError(f"the schedule has an event at iteration {when}, outside 0 to {iterations - 1}")
        events.setdefault(int(when), set()).add(int(stage))
    _check(workload, network, set().union(*events.values()))

    state = tuple(ready) if ready is not None else (0.0,) * workload.nodes
    seconds, sent, progress, saved, unrecovered = np.empty(iterations), Counter(), 0, 0, 0
    for i in range(iterations):
        lost = tuple(sorted(events.get(i, ())))
        # A checkpoint that is being sent when a stage dies is not complete: the one before it counts.
        saves = scheme.period is not None and i > 0 and i % scheme.period == 1 % scheme.period
        if lost and scheme.rollback:
            progress, saves = saved, False
        elif saves:
            saved = progress
        seconds[i], state, moved, none = _cached(workload, network, scheme, state, lost, saves)
        sent.update(dict(moved))
        unrecovered += none
        progress += 1
    return Experiment(seconds, progress, dict(sent), sum(map(len, events.values())), unrecovered)


def compare(
    workload: Workload,
    networks: Mapping[str, Network],
    schemes: Mapping[str, Scheme],
    schedules: Mapping[object, Schedule],
    iterations: int = 500,
) -> pd.DataFrame:
    """All schemes on equal terms: the same workload, networks and failures. One row an experiment.

    Columns: network, scheme, schedule (the keys of the arguments), failures, mean and effective (seconds, see
    `Experiment`), progress (iterations), unrecovered, GB (10^9 bytes sent an iteration).
    Raises `ConfigError` as `experiment` does.
    """
    rows = []
    for place, network in networks.items():
        for name, scheme in schemes.items():
            for label, schedule in schedules.items():
                done = experiment(workload, network, scheme, schedule, iterations)
                rows.append(
                    {
                        **{"network": place, "scheme": name, "schedule": label, "failures": done.failures},
                        **{"mean": done.mean, "effective": done.effective, "progress": done.progress},
                        **{"unrecovered": done.unrecovered, "GB": sum(done.sent.values()) / iterations / 1e9},
                    }
                )
    return pd.DataFrame(rows)


def path(workload: Workload, scheme: Scheme | str = "CheckFree", pipeline: int = 0, microbatch: int = 0) -> list[int]:
    """The nodes that a microbatch visits, from stage 0 out and back to it; its gradient takes them in reverse."""
    scheme = _scheme(scheme)
    return [pipeline, *_route(_cells(workload, scheme), pipeline, microbatch), pipeline]


class _IterationSimulation:
    """The state of one iteration: clock, node queues, and what was done so far."""

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
        self.cells = _cells(workload, scheme)
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
        """Out along the route, loss, and home."""
        w, part = self.workload, self.scheme.part
        route = _route(self.cells, r, m)
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
        """A stage's forward pass (none in stage 0) and, with redundant computation, that of the stage after it."""
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
        """When each node has the updated weights of the stage after it, [N]."""
        w, copied = self.workload, ready.copy()
        for node in range(w.nodes - w.replicas):
            holder = node + w.replicas
            copied[node] = ready[holder] + self.stage_delay[holder, node]
            self.sent["shipments"] += w.stage_bytes
            self._note(node, "shipment", ready[holder], copied[node])
        return copied

    def _save(self, ready: np.ndarray) -> np.ndarray:
        """Send every stage's weights to the store on node 0; when each node may go on, [N]."""
        after = ready.copy()
        for node in range(self.workload.replicas, self.workload.nodes):
            after[node] += self.stage_delay[node, 0]
            self.sent["checkpoints"] += self.workload.stage_bytes
            self._note(node, "upload", ready[node], after[node])
        return after if self.scheme.blocking else ready

    def _recover(self, ready: np.ndarray, lost: frozenset[int]) -> np.ndarray:
        """When each node may go on once the replacements of the lost stages have their weights, [N]."""
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
        """The stages that send a lost one its weights; none if no stage is left, and fresh ones are drawn."""
        if self.scheme.source == "store":
            return [0]
        if self.scheme.source == "predecessor" and stage - 1 not in lost:
            return [stage - 1]
        before = [s for s in range(1, stage) if s not in lost][-1:]
        after = [s for s in range(stage + 1, self.workload.stages + 1) if s not in lost][:1]
        self.unrecovered += self.scheme.source == "predecessor" or not before + after
        return before + after


@functools.lru_cache(maxsize=1 << 14)
def _cached(
    workload: Workload,
    network: Network,
    scheme: Scheme,
    ready: tuple[float, ...],
    lost: tuple[int, ...],
    saves: bool,
) -> tuple[float, tuple[float, ...], tuple[tuple[str, int], ...], int]:
    """An iteration without its tasks: seconds, ready, bytes sent, unrecovered."""
    done = simulate(workload, network, scheme, ready, lost, saves)
    return done.seconds, done.ready, tuple(done.sent.items()), done.unrecovered


def _cells(workload: Workload, scheme: Scheme) -> np.ndarray:
    """Replica and stage [P, R, M, 2] of each hop, stages from 1; 0 where the microbatch passes on."""
    shape = workload.replicas, workload.stages, workload.microbatches * scheme.split
    cells = ROUTES[scheme.route](*shape, np.random.default_rng(0)).copy()
    cells[..., 1] += 1
    return cells


def _route(cells: np.ndarray, pipeline: int, microbatch: int) -> list[int]:
    """The nodes of one microbatch, without stage 0."""
    return [s * cells.shape[1] + r for r, s in cells[:, pipeline, microbatch].tolist() if s]


def _scheme(scheme: Scheme | str) -> Scheme:
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        raise ConfigError(unknown("scheme", scheme, SCHEMES))
    return SCHEMES[scheme]


def _check(workload: Workload, network: Network, lost: Sequence[int]) -> None:
    if len(network) != workload.nodes:
        raise ConfigError(
            f"{workload.replicas} pipelines of {workload.stages} stages and stage 0 need {workload.nodes} nodes, but "
            f"the network has {len(network)}: Network.over(places, nodes={workload.nodes})"
        )
    for stage in lost:
        if not 1 <= stage <= workload.stages:
            raise ConfigError(f"stage {stage} cannot be lost: stages 1 to {workload.stages} can, stage 0 never fails")
