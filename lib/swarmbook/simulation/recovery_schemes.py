"""What an iteration of a data-parallel pipeline computes, and how a lost stage is recovered (CheckFree, section 5.2).

- R pipelines have stages 1 to S, and a stage 0 that holds data, embedding, head and loss. Stage s of pipeline r runs on
  node s * R + r. Stage 0 never fails. (`swarmbook.training.fleet` counts stages from 0, and stage 0 as the last.)
- a `Workload` is what is computed; a `Scheme` is what a recovery strategy costs besides, and `SCHEMES` has those that
  are compared
- `microbatch_nodes` names the nodes that a microbatch visits

Serves: CheckFree's throughput figure and table 2.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from swarmbook.errors import ConfigError, unknown
from swarmbook.methods.routing import ROUTES
from swarmbook.simulation.network import Network


@dataclass(frozen=True)
class Workload:
    """What is computed and how large it is; the defaults are CheckFree's throughput experiment as released.

    Raises `ConfigError` for values out of range.

    - `stages` is S, without stage 0; `replicas` is R, the number of pipelines.
    - `microbatches` are those of each pipeline and iteration; at most `in_flight` of them are under way at once.
    - `sequences` are those of a microbatch, of `sequence` tokens each.
    - `width`, `layers` (of a stage) and `vocabulary` are those of the medium LLaMA, with a feed-forward of 4 * width.
    - `value_bytes` is the size of a weight, a gradient value or an activation.
    - `forward` and `backward` are a stage's seconds for a microbatch. The authors do not state them; with these the
      iteration takes the 91.3 s that they measured, to 1 %.
    - `head` is the seconds of head and loss, forward and backward together, in proportion to their weights.
    - `polling` is the seconds until a finished result is sent; the released code looks every 0.1 s.
    - `idle` is the seconds that stage 0 waits before an iteration.
    - `provision` is the seconds until a lost node's replacement is up; the paper reports about 30 s for a recovery.

    Times are used to the microsecond.
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
            if field.type is float and not 0 <= value < math.inf:
                raise ConfigError(f"{field.name} must be a finite number of seconds, at least 0, not {value!r}")

    @property
    def nodes(self) -> int:
        """Number of nodes, R * (S + 1)."""
        return self.replicas * (self.stages + 1)

    @property
    def activation_bytes(self) -> int:
        """Bytes of a microbatch's activations between two stages, and of their gradient."""
        return self.value_bytes * self.sequences * self.sequence * self.width

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage's weights, or of their gradient: 16 d^2 + 2 d values a layer of width d."""
        return self.value_bytes * self.layers * (16 * self.width**2 + 2 * self.width)

    @property
    def ends_bytes(self) -> int:
        """Bytes of stage 0's weights: embedding, head and last norm."""
        return self.value_bytes * (2 * self.vocabulary * self.width + self.width)


@dataclass(frozen=True)
class Scheme:
    """What a recovery strategy does besides training.

    Raises `ConfigError` for a combination without meaning.

    - `source` gives a replacement its weights: the nearest surviving neighbours, the store on node 0, or the
      predecessor, which holds a copy.
    - `route` is the order in which microbatches visit the stages, one of `swarmbook.methods.routing`.
    - `period`: with a store, every stage sends it its weights after iterations 1, 1 + period, 1 + 2 * period ... of the
      clock (released code). Training goes on meanwhile unless the scheme is `blocking`.
    - `rollback`: all stages go back to the last complete checkpoint, and lost iterations are run again. The released
      code restores the lost stage alone.
    - `redundant`: each node also runs the forward pass of the stage after it, before it sends its own result on. If it
      `hides` that pass, it runs it afterwards, in time in which it would wait (Bamboo).
    - `ships`: in every iteration a stage sends its updated weights to the node before it, which runs them redundantly.
    - `split`: each microbatch is cut into so many, for which a task takes `part` of the time.
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
        for name in ("period", "split"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer, type(None))) or (value is not None and value < 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
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


def microbatch_nodes(
    workload: Workload, scheme: Scheme | str = "CheckFree", pipeline: int = 0, microbatch: int = 0
) -> list[int]:
    """The nodes that a microbatch visits, from stage 0 out and back to it; its gradient takes them in reverse."""
    scheme = scheme_of(scheme)
    return [pipeline, *route_nodes(route_cells(workload, scheme), pipeline, microbatch), pipeline]


def route_cells(workload: Workload, scheme: Scheme) -> np.ndarray:
    """Replica and stage at each of P positions on every microbatch's route [P, R, M, 2]; stage 0 for none."""
    shape = workload.replicas, workload.stages, workload.microbatches * scheme.split
    cells = ROUTES[scheme.route](*shape, np.random.default_rng(0)).copy()
    cells[..., 1] += 1
    return cells


def route_nodes(cells: np.ndarray, pipeline: int, microbatch: int) -> list[int]:
    """The nodes that one microbatch of a pipeline visits between its two visits of stage 0, from `route_cells`."""
    return [s * cells.shape[1] + r for r, s in cells[:, pipeline, microbatch].tolist() if s]


def scheme_of(scheme: Scheme | str) -> Scheme:
    """The scheme itself, or the one of that name in `SCHEMES`. Raises `ConfigError` for an unknown name."""
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        raise ConfigError(unknown("scheme", scheme, SCHEMES))
    return SCHEMES[scheme]


def check_setting(workload: Workload, network: Network, lost: Sequence[int]) -> None:
    """Raise `ConfigError` for a network that does not fit the workload, or for a stage that cannot be lost."""
    if len(network) != workload.nodes:
        raise ConfigError(
            f"{workload.replicas} pipelines of {workload.stages} stages and stage 0 need {workload.nodes} nodes, but "
            f"the network has {len(network)}: Network.over(places, nodes={workload.nodes})"
        )
    for stage in lost:
        if not 1 <= stage <= workload.stages:
            raise ConfigError(f"stage {stage} cannot be lost: stages 1 to {workload.stages} can, stage 0 never fails")
