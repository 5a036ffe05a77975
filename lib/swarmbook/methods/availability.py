"""Which nodes are there, and when: absences of a run, traces from files, and synthetic ones.

A node is a stage of a replica, "2.3" for the third stage of the second replica, or a whole replica, "2". A run holds
its absences as (node, first step away, step of its return), from 0; None for who leaves for good. While a node is away
its weights are frozen, microbatches go past it, and nobody exchanges with it. Who comes back is a newcomer, whose
weights the run's recovery rebuilds.

- `read` takes the trace of a user from a CSV file, `intervals` makes absences of any table of who is there
- `sessions`, `diurnal` and `regions` are synthetic traces, each a bool array [steps, nodes], true where a node is there

Serves: runs with `away` or `downtime`.
"""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swarmbook.errors import ConfigError

Interval = tuple[str, int, int | None]  # node, first step away, step of its return
COLUMNS = ["node", "from", "to"]


class Absences(NamedTuple):
    """Tables [steps, R, S + 1] of cells, the last column the ends; bool.

    lost: the cell is lost, or goes away, at the start of the step. gone: it is away in the step. back: it has to be
    rebuilt at the start of the step, because it was lost and is replaced at once or because its absence is over.
    """

    lost: np.ndarray
    gone: np.ndarray
    back: np.ndarray


def absences(dying: np.ndarray, away: Sequence[Interval], downtime: int | None) -> Absences:
    """What becomes of drawn losses and announced absences together.

    dying: the losses that were drawn, bool [steps, R, S + 1]; what is away cannot die. downtime: for how many steps
    what is lost stays away, None for good. Who is away before the first step is not lost in it.
    """
    steps, replicas, cells = dying.shape
    gone = np.zeros_like(dying)
    for node, first, end in away:
        gone[first:end, *_cells(node, replicas, cells - 1)] = True
    at_once = np.zeros_like(dying)
    for step, *cell in np.argwhere(dying):
        if not gone[step, *cell]:
            gone[step : None if downtime is None else step + downtime, *cell] = True
            at_once[step, *cell] = downtime == 0
    before = np.concatenate([gone[:1], gone[:-1]])
    at_once &= ~before
    return Absences(gone & ~before | at_once, gone, before & ~gone | at_once)


def check(away: Sequence[Interval], steps: int, replicas: int, stages: int) -> None:
    """ValueError for a node that is not there, an interval that ends before it begins or after the run, or overlaps."""
    taken = np.zeros((steps, replicas, stages + 1), dtype=bool)
    for node, first, end in away:
        named = f"away={(node, first, end)}"
        try:
            cells = _cells(node, replicas, stages)
        except ValueError as error:
            raise ValueError(f"{named}: {error}") from None
        if first >= steps or (end is not None and not first < end < steps):
            raise ValueError(
                f"{named}: give (node, first step away, step of its return), the steps one after the other and less "
                f"than steps={steps}, and None for a node that does not come back"
            )
        if taken[first:end, *cells].any():
            raise ValueError(f"{named} overlaps another absence of the same node: join the two")
        taken[first:end, *cells] = True


def read(path: Path | str, steps: int, replicas: int, stages: int, unit: float = 1.0) -> tuple[Interval, ...]:
    """The absences of a run from a CSV file with the columns node, from, to, which says when each node is there.

    from, to: times in any unit, in which a step takes `unit`; an empty `to` is the end. A node is there in the steps
    that lie wholly in one of its intervals. Intervals of a node stand in their order, and all nodes, or their whole
    replicas, are in the file. ConfigError names the line of what is wrong.
    """
    path = Path(path)
    there = np.zeros((steps, replicas, stages), dtype=bool)
    named = np.zeros((replicas, stages), dtype=bool)
    ended: dict[tuple[int, int], float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if (head := next(rows, [])) != COLUMNS:
            raise ConfigError(f"{path}, line 1: the columns are {','.join(head)!r}: give {','.join(COLUMNS)}")
        for line, row in enumerate(rows, 2):
            where = f"{path}, line {line}"
            if not row:
                continue
            try:
                node, start, end = row
                replica, stage = _cells(node, replicas, stages)
                first, last = float(start), float(end) if end.strip() else math.inf
            except ValueError as error:
                raise ConfigError(
                    f"{where}: {','.join(row)!r} is no node, from, to such as 2.3,0,40: {error}"
                ) from None
            if not 0 <= first < last:  # nan too
                raise ConfigError(f"{where}: node {node} is there from {start} to {end}: give 0 <= from < to")
            for cell in np.argwhere(_chosen(named.shape, replica, stage)).tolist():
                if first < ended.get(tuple(cell), 0.0):
                    raise ConfigError(
                        f"{where}: node {node} is there from {start}, but an interval before it ends at "
                        f"{ended[tuple(cell)]:g}: give the intervals of a node in order, and join those that overlap"
                    )
                ended[tuple(cell)] = last
            named[_chosen(named.shape, replica, stage)] = True
            end_step = steps if math.isinf(last) else math.floor(last / unit + 1e-9)
            there[math.ceil(first / unit - 1e-9) : end_step, _chosen(named.shape, replica, stage)] = True
    if not named.all():
        replica, stage = np.argwhere(~named)[0]
        raise ConfigError(f"{path}: node {replica + 1}.{stage + 1} is in no line: say when it is there")
    return intervals(there)


def intervals(there: np.ndarray) -> tuple[Interval, ...]:
    """Absences from who is there in each step: bool [steps, R] of whole replicas, or [steps, R, S] of stages.

    Of stages, a replica of which none is there counts as away itself.
    """
    steps, found = len(there), []
    if there.ndim == 2:
        there = there[..., None]
    whole = ~there.any(2)
    nodes = {str(r + 1): whole[:, r] for r in range(there.shape[1])}
    for r, s in np.ndindex(there.shape[1:]):
        nodes[f"{r + 1}.{s + 1}"] = ~there[:, r, s] & ~whole[:, r]
    for node, away in nodes.items():
        edges = np.flatnonzero(np.diff(away, prepend=False, append=False)).tolist()
        found += [(node, a, b if b < steps else None) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return tuple(sorted(found, key=lambda interval: (interval[1], interval[0])))


def weibull(mean: float, shape: float = 1.0) -> Callable[[np.random.Generator], float]:
    """Draws of a duration whose survival is exp(-(t / scale) ** shape), with mean = scale Gamma(1 + 1 / shape).

    With shape 1 it is exponential, so that sessions end as a Poisson process. Machines in the field have shapes below
    1: who has stayed long will stay longer (Nurmi, Brevik and Wolski, Euro-Par 2005).
    """
    scale = mean / math.gamma(1 + 1 / shape)
    return lambda rng: scale * rng.weibull(shape)


def sessions(
    rng: np.random.Generator,
    steps: int,
    nodes: int,
    up: Callable[[np.random.Generator], float],
    down: Callable[[np.random.Generator], float],
) -> np.ndarray:
    """Who is there if each node is up and down in turn, for times drawn from `up` and `down`, such as `weibull`.

    An alternating renewal process: in the long run a node is there for mean(up) / (mean(up) + mean(down)) of the time.
    All begin as there. A node is there in the steps that begin in one of its sessions.
    """
    there = np.zeros((steps, nodes), dtype=bool)
    for node in range(nodes):
        time = 0.0
        while time < steps:
            end = time + up(rng)
            there[math.ceil(time) : math.ceil(min(end, steps)), node] = True
            time = end + down(rng)
    return there


def diurnal(
    rng: np.random.Generator, steps: int, nodes: int, day: float, least: float, most: float, zones: int = 1
) -> np.ndarray:
    """Who is there if volunteers come and go with the time of day.

    The share that is there is p(t) = least + (most - least) (1 + cos(2 pi (t / day - zone / zones))) / 2, where nodes
    are dealt to time zones in turn. A node with the uniform number u, drawn once, is there while u < p(t), so that it
    keeps the same hours every day. That availability follows the day was measured by Bhagwan, Savage and Voelker
    (IPTPS 2003); the formula is ours.
    """
    phase = np.arange(steps)[:, None] / day - np.arange(nodes) % zones / zones
    return rng.random(nodes) < least + (most - least) * (1 + np.cos(2 * np.pi * phase)) / 2


def regions(
    rng: np.random.Generator, steps: int, region_of: Sequence[int], alone: float, together: float, down: int
) -> np.ndarray:
    """Who is there if nodes fail alone, and with all nodes of their region.

    In each step a node fails with probability `alone`, and a region with `together`; what fails is away for `down`
    steps. It is the common-shock model of Marshall and Olkin (1967) in discrete time: a node fails in a step with
    1 - (1 - alone) (1 - together). That failures come in bursts by place was measured by Ford et al. (OSDI 2010).
    region_of: the region of each node, from 0.
    """
    own = rng.random((steps, len(region_of))) < alone
    shared = rng.random((steps, max(region_of) + 1)) < together
    failing, there = own | shared[:, list(region_of)], np.ones(own.shape, dtype=bool)
    for step, node in np.argwhere(failing):
        there[step : step + down, node] = False
    return there


def _cells(node: str, replicas: int, stages: int) -> tuple[int, int | slice]:
    """Replica and stage of a node, from 0; a slice for a whole replica, with its ends. ValueError if there is none."""
    replica, dot, stage = node.strip().partition(".")
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in (replica, stage if dot else "1")]
    if not (1 <= numbers[0] <= replicas and 1 <= numbers[1] <= stages):
        raise ValueError(
            f"node {node!r} is none of replicas 1 to {replicas} with stages 1 to {stages}: give 1 for the first "
            "replica, 1.2 for its second stage"
        )
    return numbers[0] - 1, numbers[1] - 1 if dot else slice(None)


def _chosen(shape: tuple[int, ...], replica: int, stage: int | slice) -> np.ndarray:
    chosen = np.zeros(shape, dtype=bool)
    chosen[replica, stage] = True
    return chosen
