"""How a plan fares when things do not go as planned: durations that vary, links that change, relays that die.

- `makespans` draws iterations of a plan whose nodes keep their order. Every pass and message takes its time times a
  log-normal factor of mean 1 (`simulation.sync_latency.Delay`, NoLoCo's clock), and every link has a speed of its own
- plans are compared on the same draws: a factor belongs to a microbatch's operation or to a link, not to a plan
- `deaths` says what the death of each relay costs: microbatches that are lost with it, or seconds if others take them
- `compare` puts these together for several plans, `compared` records that, and `choose` takes one of them

All draws of one operation are computed at once, so that 200 iterations of 30 microbatches take some hundredths of a
second.

Serves: `swarmbook plan --robust`, and SkipPipe's table and figure of plans under jitter.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path as File

import numpy as np
import pandas as pd

from swarmbook.errors import ConfigError, PlanError, finite, whole
from swarmbook.planning.encoding import dispatched
from swarmbook.planning.pipeline import TICK, Path, Pipeline, Plan
from swarmbook.planning.replay import replay, way_between
from swarmbook.records.computed import computed
from swarmbook.records.keys import key_of
from swarmbook.simulation.sync_latency import Delay

VERSION = 1  # of what `compare` gives: to be raised when the same arguments would give other numbers
CHOICES = ("planned", "mean", "95 %")


@dataclass(frozen=True)
class Conditions:
    """What varies from one iteration to the next.

    - `jitter` is the standard deviation of every pass and message over its mean.
    - `links` is the factor by which a link may be slower or faster, drawn evenly on a logarithmic scale and the same in
      both directions; 1 changes nothing.

    Raises `ConfigError` for a negative jitter and a factor below 1.
    """

    jitter: float = 0.2
    links: float = 2.0

    def __post_init__(self) -> None:
        finite("jitter", self.jitter, 0.0)
        finite("links", self.links, 1.0)

    def worst(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline whose links all are as slow as they may be: what planning for the worst plans for."""
        return replace(pipeline, hops=self.links * pipeline.hops)


@dataclass(frozen=True)
class Death:
    """What the death of one relay costs: microbatches that go through it, and seconds if other relays take them.

    - `lost` is how many microbatches are lost if nobody takes them; `rest` is what the others then take in seconds.
    - `rerouted` is what all microbatches take if relays of the same stage take them; None if there is no other.
    """

    relay: int
    lost: int
    rest: float
    rerouted: float | None


def makespans(
    pipeline: Pipeline,
    plan: Plan,
    conditions: Conditions,
    rng: np.random.Generator,
    draws: int = 200,
    occupied: np.ndarray | None = None,
    half_duplex: bool = False,
) -> np.ndarray:
    """Seconds [draws] that iterations of a plan take under the conditions. occupied, half_duplex: as in `replay`.

    Nodes and links keep the order in which they work when nothing varies. Without variation each draw is the replay.
    Equal generators give equal factors to the same operations and links of any plan of this pipeline.
    """
    whole("draws", draws, 1)
    J, W = pipeline.count, 2 * pipeline.visits + 1
    delay = Delay(1.0, conditions.jitter)
    passes, messages = delay.draw(rng, (J, W, draws)), delay.draw(rng, (J, W, draws))
    key = int(rng.integers(2**62))

    @cache
    def slowness(a: int, b: int) -> np.ndarray:
        """The factors [draws] of a link, which depend on its two nodes alone."""
        return conditions.links ** np.random.default_rng((key, a, b)).uniform(-1.0, 1.0, draws)

    done = replay(pipeline, plan, None, occupied, half_duplex)
    ways = [pipeline.itinerary(j, path) for j, path in enumerate(plan.paths)]
    follows = {a: b for chain in pipeline.chains for a, b in itertools.pairwise(chain)}
    zero = np.zeros(draws)
    ready: dict[tuple[int, int], np.ndarray] = {}
    free: dict[int, np.ndarray] = {}
    clear: dict[tuple[int, int], np.ndarray] = {}
    ends = zero
    for node, _, j, position, *_ in done.rows:  # in the order of their ends, so that causes come first
        start = np.maximum(ready.pop((j, position), zero), free.get(node, zero))
        work = pipeline.work[(position >= pipeline.visits) + (position > pipeline.visits), node]
        end = start + TICK * work * passes[j, position]
        free[node] = end + (pipeline.launch_gap if position == 0 else pipeline.gap)
        if position + 1 < W:
            to, leaves = ways[j][position + 1], end
            slower = slowness(min(node, to), max(node, to)) * messages[j, position]
            if occupied is not None:
                way = way_between(node, to, half_duplex)
                leaves = np.maximum(end, clear.get(way, zero))
                clear[way] = leaves + occupied[node, to] * slower
            ready[j, position + 1] = leaves + pipeline.hops[node, to] * slower
        elif j in follows:
            ready[follows[j], 0] = end
        if position == W - 1:
            ends = np.maximum(ends, end)
    return ends


def deaths(pipeline: Pipeline, plan: Plan) -> list[Death]:
    """What the death of each relay of the plan costs, by relay.

    Where others of its stage live, each slot that went through it takes the one with the shortest round trip, to which
    the work that it has already is added. Nodes choose what they do next by the longest rest. What the survivors hold
    at once is still limited by their memory, but how many microbatches may choose a relay (TC1) is not.
    """
    used = np.bincount(list(itertools.chain(*plan.paths)), minlength=len(pipeline.hops))
    loose = replace(pipeline, relay_limit=pipeline.count)
    found = []
    for relay in np.flatnonzero(used).tolist():
        others = [node for node in pipeline.groups[pipeline.stage_of[relay]] if node != relay]
        rerouted = None
        if others:
            rerouted = dispatched(loose, _rerouted(pipeline, plan.paths, relay, others, used.copy()), "longest rest")[1]
        found.append(Death(relay, int(used[relay]), _rest(pipeline, plan, relay), rerouted))
    return found


def _rerouted(
    pipeline: Pipeline, paths: Sequence[Path], relay: int, others: Sequence[int], used: np.ndarray
) -> list[Path]:
    """Paths on which another relay of its stage stands in for a dead one, the same for microbatches of a slot."""
    new = list(paths)
    for chain in pipeline.chains:
        for part in [chain] if pipeline.rules.shared else [(j,) for j in chain]:
            if relay in paths[part[0]]:
                options = [tuple(other if node == relay else node for node in paths[part[0]]) for other in others]
                loads = [TICK * int(used[other] * pipeline.work[::2, other].sum()) for other in others]
                trips = [pipeline.round_trip(part[0], path) for path in options]
                best = int(np.argmin(np.add(trips, loads)))
                used[others[best]] += len(part)
                for j in part:
                    new[j] = options[best]
    return new


def _rest(pipeline: Pipeline, plan: Plan, relay: int) -> float:
    """Seconds that the microbatches take that do not go through a relay, in the plan's order."""
    if isinstance(plan.order, str):
        raise PlanError(f"order={plan.order!r}: give a plan with orders, as `replay(...).order()` says")
    kept = [j for j, path in enumerate(plan.paths) if relay not in path]
    if not kept:
        return 0.0
    number = {j: i for i, j in enumerate(kept)}
    homes = [pipeline.data_node(j) for j in kept]
    sources = [node for node in pipeline.groups[0] if node in homes]
    pipeline_left = replace(
        pipeline,
        groups=(tuple(sources), *pipeline.groups[1:]),
        microbatches=tuple(homes.count(node) for node in sources),
        rules=replace(pipeline.rules, shared=False),
        relay_limit=pipeline.count,
    )
    order = {
        node: tuple((number[j], position) for j, position in line if j in number) for node, line in plan.order.items()
    }
    left = Plan(tuple(plan.paths[j] for j in kept), {node: line for node, line in order.items() if line})
    try:
        return replay(pipeline_left, left).makespan
    except PlanError:  # with fewer microbatches slots are dealt out anew, which may not go with the order
        return dispatched(pipeline_left, left.paths, "longest rest")[1]


def compare(
    pipeline: Pipeline,
    plans: Mapping[str, Plan],
    conditions: Conditions,
    seed: int = 0,
    draws: int = 200,
    occupied: np.ndarray | None = None,
    half_duplex: bool = False,
) -> pd.DataFrame:
    """A row for each plan by name, in seconds: "planned", "mean" and "95 %" of the draws, and what a death costs.

    "lost at worst" is the share of the microbatches that go through one relay. "re-routed at worst" is the longest that
    an iteration takes after a death, without relays that are alone in their stage, which "alone" counts. All plans meet
    the same draws.
    """
    rows = {}
    for name, plan in plans.items():
        times = makespans(pipeline, plan, conditions, np.random.default_rng(seed), draws, occupied, half_duplex)
        died = deaths(pipeline, plan)
        taken = [death.rerouted for death in died if death.rerouted is not None]
        rows[name] = {
            "planned": replay(pipeline, plan, None, occupied, half_duplex).makespan,
            "mean": float(times.mean()),
            "95 %": float(np.quantile(times, 0.95)),
            "lost at worst": max(death.lost for death in died) / pipeline.count,
            "re-routed at worst": max(taken) if taken else float("nan"),
            "alone": sum(death.rerouted is None for death in died),
        }
    return pd.DataFrame(rows).T


def compared(
    pipeline: Pipeline,
    plans: Mapping[str, Plan],
    conditions: Conditions,
    seed: int = 0,
    draws: int = 200,
    recorded: str | File | None = None,
) -> pd.DataFrame:
    """`compare`, from the record if it is there."""
    keys = {name: key_of({"paths": plan.paths, "order": sorted(plan.order.items())}) for name, plan in plans.items()}
    given = {"robustness": pipeline.digest, "plans": keys, "seed": seed, "draws": draws, "version": VERSION}
    given |= {"jitter": conditions.jitter, "links": conditions.links}

    def compute(_: list[dict]) -> Iterator[pd.DataFrame]:
        yield compare(pipeline, plans, conditions, seed, draws).rename_axis("plan").reset_index()

    (table,) = computed([given], compute, recorded)
    return table.set_index("plan")


def cost_of_caution(table: pd.DataFrame, careful: str, usual: str) -> float:
    """Share by which the mean of a plan is above that of another: what planning for the worst costs on average."""
    return float(table.loc[careful, "mean"] / table.loc[usual, "mean"] - 1)


def choose(table: pd.DataFrame, by: str = "95 %") -> str:
    """The name of the plan with the least seconds in a column of `compare`: planned, mean or 95 %."""
    if by not in CHOICES:
        raise ConfigError(f"by={by!r} is no column of seconds to choose by: give one of {', '.join(CHOICES)}")
    return str(table[by].idxmin())
