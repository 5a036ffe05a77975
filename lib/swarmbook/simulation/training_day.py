"""A day of training of a swarm of R replicas and S stages: how far it comes, and where its seconds go.

A `Combination` says how replicas exchange, how lost stages are recovered, and how long an inner step takes. `day` puts
together what the other modules say of each of these alone:

- an inner step takes as long as `iteration_time` says for one replica alone, or as a planner says
- exchanges are those of `sync_latency`, and their messages cross the links of a `network`. Or all replicas send all
  their gradients as in `iteration_time`, where a stage does so as soon as it has them
- every node fails in every minute of the day with a chance that follows from its chance in an hour. All combinations
  of a seed lose the same nodes in the same minutes, and the losses at a low rate are among those at a higher rate
- a loss counts at the start of the next inner step, as in `swarmbook.methods.failures`. What then happens is the
  combination's recovery

Each replica's day is `CAUSES`: steps that are in the weights in the end, waiting for other replicas and their messages,
recovering, steps that a rollback undid, and what steps took longer because a stage was away. The node of stage 0, which
holds data and ends, never fails.

Serves: the day of training and the time to equal loss of a whole swarm.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from swarmbook.analysis.confidence import Estimate, estimate
from swarmbook.errors import ConfigError, finite, unknown, whole
from swarmbook.methods.failures import failures, per_step
from swarmbook.methods.gossip_groups import random_groups
from swarmbook.records.computed import computed
from swarmbook.simulation.failure_experiments import experiment
from swarmbook.simulation.network import Network
from swarmbook.simulation.recovery_schemes import Scheme, Workload, check_setting
from swarmbook.simulation.sync_latency import EXCHANGES, Delay

VERSION = 1  # of what `days` gives: to be raised when the same arguments would give other numbers
DAY = 86_400.0  # seconds
SLOT = 60.0  # seconds; failures strike at the start of one
CAUSES = ("useful", "waiting", "recovery", "repeated", "slower")
OVERLAPPED = "all to all, overlapped"  # with the ends of the pipelines, as in `iteration_time`

Recovery = Literal["checkpoint", "neighbours", "peer"]


@dataclass(frozen=True)
class Combination:
    """How a swarm trains. Raises `ConfigError` for a combination without meaning.

    - `exchange` is a name in `sync_latency.EXCHANGES`, or `OVERLAPPED`, and happens after every `every` inner steps.
      Training goes on for `background` inner steps until its result must be there; with 0 it waits at once.
    - `recovery` gives a replacement its weights. "checkpoint": all replicas wait for it, load the last checkpoint,
      which is taken after every `period` steps of progress, and run the steps since then again. "neighbours": the
      stages before and behind it send theirs (CheckFree). "peer": the nearest other replica sends the same stage.
    - `route` is the order in which microbatches visit the stages, a name in `swarmbook.methods.routing.ROUTES`.
    - `iteration` is seconds of an inner step of every replica, such as the makespan of a plan; None for what
      `iteration_seconds` gives.
    - `away`: how many times as long an inner step of the swarm takes for each node that is away. The swarm then goes
      on without a lost stage, `replan` seconds after it is lost, until its replacement has weights. With None the
      replica of the lost stage waits for the replacement.
    """

    exchange: str = OVERLAPPED
    every: int = 1
    background: int = 0
    recovery: Recovery = "checkpoint"
    period: int | None = None
    route: str = "in order"
    iteration: float | None = None
    away: float | None = None
    replan: float = 0.0

    def __post_init__(self) -> None:
        if self.exchange not in (OVERLAPPED, *EXCHANGES):
            raise ConfigError(unknown("exchange", self.exchange, (OVERLAPPED, *EXCHANGES)))
        if self.recovery not in get_args(Recovery):
            raise ConfigError(unknown("recovery", self.recovery, get_args(Recovery)))
        Scheme(route=self.route)  # refuses an unknown one
        if whole("background", self.background) > whole("every", self.every, 1):
            raise ConfigError(f"background={self.background} is refused: give at most every={self.every} inner steps")
        if self.period is not None:
            whole("period", self.period, 1)
        if (self.recovery == "checkpoint") != (self.period is not None):
            raise ConfigError(
                f"recovery={self.recovery!r} with period={self.period}: checkpoints, and only they, have a period"
            )
        for name in ("iteration", "away"):
            if getattr(self, name) is not None:
                finite(name, getattr(self, name), 0, above=True)
        finite("replan", self.replan, 0)
        if self.away is not None and self.recovery == "checkpoint":
            raise ConfigError(f"away={self.away!r} with recovery='checkpoint': a rollback waits for all; give None")
        if self.away is None and self.replan:
            raise ConfigError(f"replan={self.replan!r} without away: who waits for a stage keeps its plan; give 0")


@dataclass(frozen=True)
class _StageLinks:
    """Stands for a `sync_latency.Link`: a message crosses a link between two nodes of a stage, drawn at random."""

    network: Network
    nodes: tuple[int, ...]

    def draw(self, rng: np.random.Generator, shape: int | Sequence[int], size: float = 0.0) -> np.ndarray:
        nodes = np.array(self.nodes)
        return rng.choice(self.network.seconds(nodes[:, None], nodes, size)[~np.eye(len(nodes), dtype=bool)], shape)


def iteration_seconds(workload: Workload, network: Network, route: str = "in order") -> np.ndarray:
    """Seconds [R] of an inner step of each replica by itself, without exchange, once iterations overlap."""
    alone, found = dataclasses.replace(workload, replicas=1), []
    for nodes in _nodes(workload).T:
        there = dataclasses.replace(network, locations=tuple(network.locations[node] for node in nodes))
        found.append(experiment(alone, there, Scheme(route=route), iterations=3).seconds[-1])
    return np.array(found)


def exchange_seconds(
    rng: np.random.Generator, trials: int, combination: Combination, workload: Workload, network: Network
) -> np.ndarray:
    """Seconds [trials] of an exchange of all stages and the ends, which take place beside one another.

    Messages cross links between the nodes of a stage, drawn at random. An overlapped exchange takes what iterations of
    all replicas take beyond those of the slowest alone.
    """
    if combination.exchange == OVERLAPPED:
        together = experiment(workload, network, Scheme(route=combination.route), iterations=3).seconds[-1]
        extra = together - iteration_seconds(workload, network, combination.route).max()
        return np.full(trials, max(0.0, extra))
    longest = np.zeros(trials)
    for stage, nodes in enumerate(_nodes(workload)):
        links = _StageLinks(network, tuple(nodes.tolist()))
        size = workload.stage_bytes if stage else workload.ends_bytes
        drawn = EXCHANGES[combination.exchange].draw(rng, trials, workload.replicas, links, size)
        np.maximum(longest, drawn, out=longest)
    return longest


def day(
    combination: Combination,
    workload: Workload,
    network: Network,
    hourly: float = 0.0,
    draws: int = 20,
    seed: int = 0,
    jitter: float = 0.0,
    seconds: float = DAY,
) -> pd.DataFrame:
    """Simulate so many days: a row each, with the steps of progress, and the seconds for each of `CAUSES`.

    hourly: the chance that a node fails within an hour. jitter: standard deviation over mean of the seconds of an inner
    step, which are log-normal and independent (NoLoCo, section 5.3). seconds: how long the day is. Progress and seconds
    are means over replicas; a step that the end of the day cuts counts in part. Of steps that a rollback undid, the
    time of computing counts as repeated, and that of their exchanges stays with waiting. A step is run on one plan, so
    that who is away when it begins slows down all of it. failures: nodes that the trace loses.
    Checkpoints are sent in the background and are complete at once. Whoever sends weights is taken to be alive.
    Raises `ConfigError`, or `ValueError` for a chance, before anything is simulated.
    """
    c, w = combination, workload
    _check(c, w, network, hourly, draws, jitter, seconds)
    slots, chance = math.ceil(seconds / SLOT), float(per_step(hourly, SLOT))
    streams = [np.random.default_rng([seed, 0, draw]) for draw in range(draws)]
    lost = np.stack([failures(rng, slots, w.replicas, w.stages, chance) for rng in streams], axis=1)
    strikes = np.concatenate([np.zeros_like(lost[:1], dtype=int), lost.cumsum(0)])  # [slots + 1, draws, R, S]
    base = iteration_seconds(w, network, c.route) if c.iteration is None else np.full(w.replicas, c.iteration)
    transfer, paces = _transfers(c, w, network), Delay(1.0, jitter)
    pace, meet = np.random.default_rng([seed, 1]), _meetings(c, w, network, draws, np.random.default_rng([seed, 2]))
    spent = {cause: np.zeros((draws, w.replicas)) for cause in CAUSES}
    now, due, progress, unsaved = (np.zeros((draws, w.replicas)) for _ in range(4))
    back = np.zeros((draws, w.replicas, w.stages))  # when each node is back
    seen, at = np.zeros(now.shape, dtype=int), np.ix_(range(draws), range(w.replicas))

    def spend(cause: str, amount: np.ndarray, who: np.ndarray) -> np.ndarray:
        nonlocal now
        then = now + np.where(who, amount, 0.0)
        inside = np.minimum(then, seconds) - np.minimum(now, seconds)
        spent[cause] += inside
        now = then
        return inside

    step = 0
    while (running := now < seconds).any():
        step += 1
        slot = np.minimum(now // SLOT, len(lost)).astype(int)
        dying = (strikes[slot, *at] > strikes[seen, *at]) & running[..., None] & (back <= now[..., None])
        seen = slot
        hit = dying.any(-1)
        if c.recovery == "checkpoint" and hit.any():
            who = hit.any(1, keepdims=True) & running
            resume = np.where(running, now, 0).max(1, keepdims=True) + w.provision + transfer.max()
            spend("recovery", resume - now, who)
            spent["repeated"] += np.where(who, unsaved, 0.0)
            spent["useful"] -= np.where(who, unsaved, 0.0)
            progress -= np.where(who, progress % c.period, 0.0)
            unsaved[who] = due[who] = 0.0
        elif c.away is None and hit.any():
            spend("recovery", w.provision + np.where(dying, transfer, 0.0).max(-1), hit)
        elif hit.any():
            back = np.where(dying, now[..., None] + w.provision + transfer, back)
            spend("recovery", np.full(now.shape, c.replan), hit.any(1, keepdims=True) & running)
        work = base * paces.draw(pace, now.shape)
        longer = 1.0
        if c.away is not None:  # all of the swarm shares one plan
            longer = c.away ** (back.reshape(draws, 1, -1) > now[..., None]).sum(-1)
        takes = work * longer
        inside = spend("useful", np.minimum(work, takes), running)
        inside = inside + spend("slower", takes - np.minimum(work, takes), running)
        progress += np.where(running & (now <= seconds), 1.0, inside / takes)  # whole numbers, for the periods
        if c.period is not None:
            unsaved = np.where(progress % c.period == 0, 0.0, unsaved + inside)
        settles = (step - c.background) % c.every == 0
        if settles and c.background:
            spend("waiting", np.maximum(due - now, 0.0), running)
        if step % c.every == 0:
            due = next(meet)(now)
        if settles and not c.background:
            spend("waiting", np.maximum(due - now, 0.0), running)
    table = pd.DataFrame({cause: amount.mean(1) for cause, amount in spent.items()})
    table.insert(0, "progress", progress.mean(1))
    table["failures"] = lost.sum((0, 2, 3))
    return table.rename_axis("draw").reset_index()


def days(
    combinations: Mapping[str, Combination],
    workload: Workload,
    network: Network,
    hourly: Sequence[float],
    draws: int = 20,
    seed: int = 0,
    jitter: float = 0.0,
) -> pd.DataFrame:
    """`day` for several combinations and chances, from the record if it is there; with columns combination, hourly."""
    for combination in combinations.values():
        for chance in hourly:
            _check(combination, workload, network, chance, draws, jitter, DAY)
    given = {
        **{"days": VERSION, "combinations": [[name, repr(c)] for name, c in combinations.items()]},
        **{"workload": repr(workload), "network": repr(network), "hourly": list(hourly)},
        **{"draws": draws, "seed": seed, "jitter": jitter},
    }

    def compute(_: list[dict]) -> Iterator[pd.DataFrame]:
        tables = [
            day(c, workload, network, chance, draws, seed, jitter).assign(combination=name, hourly=chance)
            for name, c in combinations.items()
            for chance in hourly
        ]
        yield pd.concat(tables, ignore_index=True)

    return computed([given], compute)[0]


def time_to_loss(seconds: Sequence[float], steps: Sequence[float]) -> Estimate:
    """Seconds to a loss, with the uncertainty of both: mean seconds for a step of progress times mean steps to it.

    seconds: one for each simulated day; steps: the steps that each trained seed takes to the loss. Either may be
    relative to another combination's, draw by draw and seed by seed; the product is then the ratio of the two times.
    The two are independent, so that the half-widths of their intervals (Student's t) add in squares, each times the
    other's mean. To the first order this is what a bootstrap over pairs of draws and seeds gives, without its narrow
    intervals for few seeds. n is the smaller number of the two.
    """
    clock, curve = estimate(seconds), estimate(steps)
    half = math.hypot(clock.half * curve.mean, curve.half * clock.mean)
    return Estimate(clock.mean * curve.mean, half, min(clock.n, curve.n))


def _nodes(workload: Workload) -> np.ndarray:
    """The node [S + 1, R] of each stage and replica."""
    return np.arange(workload.nodes).reshape(workload.stages + 1, workload.replicas)


def _group(c: Combination, w: Workload) -> int:
    """How many replicas wait for one another in an exchange."""
    return 2 if c.exchange in EXCHANGES and EXCHANGES[c.exchange].pairs else w.replicas


def _check(
    c: Combination, w: Workload, network: Network, hourly: float, draws: int, jitter: float, seconds: float
) -> None:
    """Refuse what cannot be simulated."""
    check_setting(w, network, ())
    if c.exchange in EXCHANGES:
        EXCHANGES[c.exchange].hops(w.replicas)  # a tree refuses numbers of replicas that do not fill it
    random_groups(w.replicas, 0, np.random.default_rng(0), _group(c, w))
    if c.recovery == "peer" and w.replicas < 2:
        raise ConfigError("recovery='peer' copies from another replica, but there is one: give replicas=2 or more")
    if c.recovery == "neighbours" and w.stages < 2:
        raise ConfigError("recovery='neighbours' copies from other stages, but there is one: give stages=2 or more")
    finite("jitter", jitter, 0), whole("draws", draws, 1), finite("seconds", seconds, 0, above=True)
    per_step(hourly, SLOT)


def _transfers(c: Combination, w: Workload, network: Network) -> np.ndarray:
    """Seconds [R, S] until a replacement has the weights of its stage, from when it is up."""
    nodes = _nodes(w)
    if c.recovery == "checkpoint":
        return network.seconds(0, nodes[1:], w.stage_bytes).T
    seconds = network.matrix(w.stage_bytes)
    if c.recovery == "peer":
        return np.array([[seconds[np.delete(row, r), row[r]].min() for row in nodes[1:]] for r in range(w.replicas)])
    givers = [[s for s in (stage - 1, stage + 1) if 1 <= s <= w.stages] for stage in range(1, w.stages + 1)]
    return np.array(
        [
            [max(seconds[nodes[s, r], nodes[stage, r]] for s in givers[stage - 1]) for stage in range(1, w.stages + 1)]
            for r in range(w.replicas)
        ]
    )


def _meetings(c: Combination, w: Workload, network: Network, draws: int, rng: np.random.Generator) -> Iterator:
    """For each exchange a function from when replicas are ready [draws, R] to when they have its result."""
    block, size = 64, _group(c, w)
    while True:
        shape = block, draws, w.replicas // size
        took = exchange_seconds(rng, math.prod(shape), c, w, network).reshape(shape)
        order = rng.permuted(np.broadcast_to(np.arange(w.replicas), (block, draws, w.replicas)), axis=-1)
        for each, who in zip(took, order.reshape(*shape, size), strict=True):

            def met(ready: np.ndarray, each: np.ndarray = each, who: np.ndarray = who) -> np.ndarray:
                rows, result = np.arange(draws)[:, None, None], np.empty_like(ready)
                result[rows, who] = (ready[rows, who].max(-1) + each)[..., None]
                return result

            yield met
