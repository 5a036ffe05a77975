"""Plans in real time: nodes on many processes that sleep instead of computing, over links as slow as the plan's.

How long an iteration takes according to a simulation (`swarmbook.planning.pipeline`,
`swarmbook.simulation.iteration_time`) is measured here: messages go from process to process, a node begins what has
reached it, and the clock is the machine's. Nothing is taken from a simulation but its input.

- a `Score` lists the tasks of one iteration, who hears of each how long after it, and in what order a node takes them
- `score_of_plan` makes one of a SkipPipe plan, `score_of_iteration` of a CheckFree iteration
- `rehearse` performs one on all processes together; node n is on rank n mod ranks
- `seconds_of_tasks` says how long `swarmbook.distributed` takes over `swarmbook.distributed.emulated_links`
"""

import heapq
import itertools
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from swarmbook.distributed.communicator import Communicator
from swarmbook.distributed.emulated_links import EmulatedLinks
from swarmbook.errors import ConfigError
from swarmbook.planning.pipeline import Pipeline, Plan
from swarmbook.simulation.network import Network
from swarmbook.simulation.recovery_schemes import SCHEMES, Scheme, Workload, microbatch_nodes

if TYPE_CHECKING:
    from swarmbook.distributed.schedule_1f1b import PipelineTask

AHEAD = 0.2  # seconds from the word to begin until all do


@dataclass(frozen=True)
class Task:
    """What a node does at one go.

    seconds: how long. pause: seconds that the node rests afterwards. then: (task, seconds) that hear of its end, and
    how long after it. needs: how many ends it must have heard of to begin. alone: whether the node does nothing else
    meanwhile. holds: places for activations that it takes at its start (1) or frees at its end (-1). opens: whether its
    end lets the next of the node's `Score.queues` begin.
    """

    node: int
    seconds: float = 0.0
    pause: float = 0.0
    then: tuple[tuple[int, float], ...] = ()
    needs: int = 1
    alone: bool = True
    holds: int = 0
    opens: bool = False


@dataclass(frozen=True)
class Score:
    """The tasks of one iteration.

    begin: (task, seconds) that nobody has to tell. order: by node its tasks in the order in which it does them; of a
    node without, what reached it first is first. memory: places for activations of each node. queues: by node the
    tasks that wait for one that `opens`. last: the tasks with whose end the iteration ends.
    """

    tasks: tuple[Task, ...]
    begin: tuple[tuple[int, float], ...]
    last: tuple[int, ...]
    order: dict[int, tuple[int, ...]] = field(default_factory=dict)
    memory: int | None = None
    queues: dict[int, tuple[int, ...]] = field(default_factory=dict)


def score_of_plan(pipeline: Pipeline, plan: Plan) -> Score:
    """Of a plan with an order for each node, or with the rule "fifo"; task j * (2 P + 1) + k is microbatch j's k-th.

    PlanError for a plan that breaks a constraint, ConfigError for another rule.
    """
    plan.check(pipeline)
    if isinstance(plan.order, str) and plan.order != "fifo":
        raise ConfigError(f"order={plan.order!r} cannot be rehearsed: give the order of its replay, or 'fifo'")
    P, W = pipeline.visits, 2 * pipeline.visits + 1
    follows = {a: b for chain in pipeline.chains for a, b in itertools.pairwise(chain)}
    tasks = []
    for j, relays in enumerate(plan.paths):
        way = pipeline.itinerary(j, relays)
        for k, node in enumerate(way):
            then = [(j * W + k + 1, float(pipeline.hops[node, way[k + 1]]))] if k + 1 < W else []
            if k + 1 == W and j in follows:
                then = [(follows[j] * W, 0.0)]
            share = 1.0 if k < P else pipeline.head if k == P else pipeline.backward
            pause = pipeline.gap if k else pipeline.launch_gap
            holds = (k < P) - (k > P)
            tasks.append(Task(node, share * float(pipeline.forward[node]), pause, tuple(then), holds=holds))
    order = {} if isinstance(plan.order, str) else plan.order
    return Score(
        tasks=tuple(tasks),
        begin=tuple((chain[0] * W, 0.0) for chain in pipeline.chains),
        last=tuple(range(W - 1, len(tasks), W)),
        order={node: tuple(j * W + k for j, k in operations) for node, operations in order.items()},
        memory=pipeline.memory,
    )


def score_of_iteration(workload: Workload, network: Network, scheme: Scheme | str = "CheckFree") -> Score:
    """Of an iteration without failures, in which all nodes begin at once.

    ConfigError for a network of another size, and for a scheme that computes redundantly.
    """
    w, scheme = workload, SCHEMES[scheme] if isinstance(scheme, str) else scheme
    if scheme.redundant or len(network) != w.nodes:
        raise ConfigError(
            f"a network of {len(network)} for {w.nodes} nodes, redundant={scheme.redundant}: neither fits"
        )
    messages = w.polling + network.matrix(w.activation_bytes // scheme.split)
    tasks: list[Task] = []
    first = {r: [] for r in range(w.replicas)}  # tasks that begin a microbatch
    ends = defaultdict(list)  # by node: tasks after which its gradient is complete
    for r, m in itertools.product(range(w.replicas), range(w.microbatches * scheme.split)):
        out = microbatch_nodes(w, scheme, r, m)
        nodes = [*out, *reversed(out[:-1])]
        last = len(out) - 1
        seconds = [0.0, *[w.forward] * (last - 1), w.head, *[w.backward] * (last - 1), 0.0]
        for k, (node, time_) in enumerate(zip(nodes, seconds, strict=True)):
            task, home = len(tasks), k == len(nodes) - 1
            if k == 0:
                first[r].append(task)
            if k > last:
                ends[node].append(task)
            late = w.polling * (k == len(nodes) - 2)  # home is seen when it is looked for
            then = () if home else ((task + 1, messages[node, nodes[k + 1]] + late),)
            tasks.append(Task(node, time_ * scheme.part, then=then, alone=not home, opens=home))
    done = {node: len(tasks) + node for node in range(w.nodes)}
    ready = {node: len(tasks) + w.nodes + node for node in range(w.nodes)}
    tasks = [
        Task(**{**vars(task), "then": (*task.then, (done[task.node], 0.0))}) if i in ends[task.node] else task
        for i, task in enumerate(tasks)
    ]
    for node in range(w.nodes):
        size = w.ends_bytes if node < w.replicas else w.stage_bytes
        peers = range(node - node % w.replicas, node - node % w.replicas + w.replicas)
        away = [(ready[peer], w.polling + network.seconds(node, peer, size)) for peer in peers if peer != node]
        tasks.append(Task(node, then=((ready[node], 0.0), *away), needs=len(ends[node]), alone=False))
    tasks += [Task(node, needs=w.replicas, alone=False) for node in range(w.nodes)]
    return Score(
        tasks=tuple(tasks),
        begin=tuple((task, w.idle) for r in first for task in first[r][: w.in_flight]),
        last=tuple(ready[r] for r in range(w.replicas)),
        queues={r: tuple(first[r][w.in_flight :]) for r in first},
    )


@dataclass
class _Node:
    """What a node has before it."""

    order: deque | None
    waiting: deque = field(default_factory=deque)  # tasks, as they came
    queue: deque = field(default_factory=deque)
    held: int = 0
    busy: bool = False


def rehearse(score: Score, comm: Communicator, pace: float = 1.0) -> np.ndarray:
    """Perform a score on all processes; start and end of each task [tasks, 2], in seconds of the score.

    pace: real seconds for one of the score. The clocks of all processes must be the same one: one machine.
    """
    rank, ranks = comm.rank, comm.size
    owner = [task.node % ranks for task in score.tasks]
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    coming = Counter(
        owner[a] for a, task in enumerate(score.tasks) for b, _ in task.then if owner[b] == rank != owner[a]
    )

    def listen(source: int, count: int) -> None:
        for _ in range(count):
            inbox.put(comm.receive(torch.empty(2, dtype=torch.float64), source).read().tolist())

    listeners = [threading.Thread(target=listen, args=item, daemon=True) for item in coming.items()]
    nodes = {
        node: _Node(deque(score.order[node]) if node in score.order else None, queue=deque(score.queues.get(node, ())))
        for node in {task.node for task in score.tasks if task.node % ranks == rank}
    }
    times = torch.zeros(len(score.tasks), 2, dtype=torch.float64)
    heard: Counter[int] = Counter()
    events: list[tuple[float, int, str, int]] = []
    number = itertools.count()
    left = owner.count(rank)

    def at(when: float, what: str, which: int) -> None:
        heapq.heappush(events, (when, next(number), what, which))

    def work(node: int) -> None:
        state = nodes[node]
        if state.busy:
            return
        if state.order is not None:
            due = [state.order[0]] if state.order and state.order[0] in state.waiting else []
        else:
            due = [t for t in state.waiting if score.tasks[t].holds < 1 or state.held < (score.memory or np.inf)]
        if due:
            task = due[0]
            state.waiting.remove(task)
            if state.order:
                state.order.popleft()
            state.busy, state.held = True, state.held + max(0, score.tasks[task].holds)
            times[task, 0] = now
            at(now + pace * score.tasks[task].seconds, "end", task)

    def end(task: int) -> None:
        nonlocal left
        this, state = score.tasks[task], nodes[score.tasks[task].node]
        times[task, 1] = now
        left -= 1
        for then, seconds in this.then:
            due = now + pace * seconds
            if owner[then] == rank:
                at(due, "hear", then)
            else:
                comm.send(torch.tensor([then, due], dtype=torch.float64), owner[then])
        if this.opens and state.queue:
            at(now, "hear", state.queue.popleft())
        if this.alone:
            state.held += min(0, this.holds)
            at(now + pace * this.pause, "free", this.node)

    begin = comm.broadcast(time.monotonic() + AHEAD if rank == 0 else None, 0)
    for listener in listeners:
        listener.start()
    for task, seconds in score.begin:
        if owner[task] == rank:
            at(begin + pace * seconds, "hear", task)
    while left:
        wait = events[0][0] - time.monotonic() if events else comm.timeout
        if wait > 0:
            try:
                task, due = inbox.get(timeout=wait)
                at(due, "hear", int(task))
            except queue.Empty:
                continue
            continue
        _, _, what, which = heapq.heappop(events)
        now = time.monotonic()
        if what == "end":
            end(which)
        elif what == "free":
            nodes[which].busy = False
            work(which)
        else:
            heard[which] += 1
            if heard[which] < score.tasks[which].needs:
                continue
            if score.tasks[which].alone:
                nodes[score.tasks[which].node].waiting.append(which)
                work(score.tasks[which].node)
            else:
                times[which, 0] = now
                at(now + pace * score.tasks[which].seconds, "end", which)
    for listener in listeners:
        listener.join()
    comm.flush()
    comm.all_reduce(times)
    return (times.numpy() - begin) / pace


def seconds_of(score: Score, times: np.ndarray) -> float:
    """How long the iteration took."""
    return float(times[list(score.last), 1].max())


def seconds_of_tasks(
    tasks: Sequence["PipelineTask"], seconds: Mapping[str, float], links: EmulatedLinks, size: int
) -> float:
    """How long one passage of a run on many processes takes, in real seconds, by its own order.

    seconds: that a kind of task takes. size: bytes of each message.
    """
    free: dict[int, float] = defaultdict(float)  # by rank
    done: dict[tuple, float] = {}
    for task in tasks:  # nothing comes before what it needs
        ready = done.get((task.path, task.place - 1), 0.0)
        if task.source not in (None, task.rank):
            ready += links.seconds(task.source, task.rank, size)
        free[task.rank] = done[task.path, task.place] = max(free[task.rank], ready) + seconds[task.kind]
    return max(free.values())
