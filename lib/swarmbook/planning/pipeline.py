"""Partial pipelines: microbatches that visit some of the stages, on nodes that do one thing at a time (SkipPipe).

- a `Pipeline` is an instance: which node holds which stage, how long messages and computations take, how many
  microbatches start where, and the rules on what a path may skip and swap (`swarmbook.planning.path_rules`)
- data nodes hold stage 0, which is on every path and always first; the nodes of all other stages are relays
- a microbatch leaves its data node, goes through its relays, comes back for head and loss, and returns through the same
  relays in reverse. Each of these stops is an operation
- a data node has a few slots. A slot has one microbatch under way, and sends its next when that one is back
- a `Plan` says through which relays each microbatch goes, and in which order every node does its operations.
  `swarmbook.planning.replay` says what it takes

Serves: all of SkipPipe's planning.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from swarmbook import tables
from swarmbook.errors import ConfigError, PlanError, unknown
from swarmbook.planning.path_rules import PathRules
from swarmbook.records.keys import key_of

Path = tuple[int, ...]  # relays in the order of the forward pass
Operation = tuple[int, int]  # microbatch and position on its way: 0 is its first forward pass, P the loss, 2 P its end
DISPATCH_RULES = ("fifo", "backward first", "longest rest")
TICK = 1e-6  # seconds; times are whole ticks, so that sums are exact and ties are ties


@dataclass(frozen=True, eq=False)
class Pipeline:
    """One instance of a partial pipeline: nodes, times, microbatches and rules.

    - `groups` are the nodes by stage. Group 0 are the data nodes, where microbatches begin and end.
    - `hops` [N, N] are seconds of a message from node to node, of activations or of their gradient.
    - `forward` [N] is seconds of a stage's forward pass on each node; one number stands for all nodes.
    - `rules` are those that paths keep.
    - `microbatches` is M, the number that each data node sends: one for all of them, or one for each [D].
    - `memory` is m, how many microbatches' activations a node holds at once: one number, or one for each node [N]. It
      is also how many microbatches a data node has under way, the number of its slots.
    - `head` and `backward` are the times of loss and backward pass, in forward passes; `backward` may be given for each
      node [N].
    - `gap` is seconds that a node stays busy after an operation, `launch_gap` those after a data node's first forward
      pass (released code).
    - `relay_limit` is how many microbatches may choose the same relay (TC1): one number, or one for each node [N]. None
      stands for as many as m slots have.

    Raises `ConfigError` for values out of range, and if the relays cannot hold what the paths need.
    """

    groups: tuple[tuple[int, ...], ...]
    hops: np.ndarray
    forward: np.ndarray | float
    rules: PathRules
    microbatches: int | Sequence[int] = 6
    memory: int | Sequence[int] = 3
    head: float = 0.25
    backward: float | Sequence[float] = 1.5
    gap: float = 0.13
    launch_gap: float = 0.09
    relay_limit: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        groups = tuple(tuple(int(node) for node in group) for group in self.groups)
        hops = checked_hops(self.hops, len(self.hops))
        N = len(hops)
        nodes = [node for group in groups for node in group]
        if len(groups) < 2 or not all(groups) or len(set(nodes)) < len(nodes) or not set(nodes) <= set(range(N)):
            raise ConfigError(f"groups must be two or more groups of different nodes 0 to {N - 1}, not {groups}")
        forward = np.asarray(self.forward, dtype=float)
        if forward.shape not in ((), (N,)) or not (np.isfinite(forward).all() and (forward > 0).all()):
            raise ConfigError(f"forward must be positive seconds, one number or one of {N} nodes, not {self.forward}")
        forward = np.broadcast_to(forward, (N,)).copy()
        each = {"microbatches": (len(groups[0]), "data nodes"), "memory": (N, "nodes"), "relay_limit": (N, "nodes")}
        for name, (count, of) in each.items():
            value = _one_or_each(name, getattr(self, name), count, f"whole number or one for each of {count} {of}")
            given = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(v, (int, np.integer, type(None))) and (v is None or v >= 1) for v in given):
                raise ConfigError(f"{name} must be at least 1, not {value}: give a whole number")
            object.__setattr__(self, name, value)
        backward = _one_or_each("backward", self.backward, N, f"number or one for each of {N} nodes")
        object.__setattr__(self, "backward", backward)
        for name in ("head", "backward", "gap", "launch_gap"):
            value = getattr(self, name)
            if not all(0 <= v < math.inf for v in (value if isinstance(value, tuple) else (value,))):
                raise ConfigError(f"{name} must not be negative, not {value}: give finite numbers")
        if self.rules.visits > len(groups):
            raise ConfigError(f"visits={self.rules.visits} must be at most the number of stages, {len(groups)}")
        hops.flags.writeable = forward.flags.writeable = False
        for name, value in (("groups", groups), ("hops", hops), ("forward", forward)):
            object.__setattr__(self, name, value)
        room = sum(int(self.places[list(group)].sum()) for group in groups[1:])
        need = self.count * (self.rules.visits - 1)
        if need > room:
            raise ConfigError(
                f"{need} visits of relays do not fit into {room} places: give relay stages more nodes, fewer visits "
                f"than {self.rules.visits}, or fewer data nodes than {len(groups[0])}"
            )

    @property
    def stages(self) -> int:
        """S, the number of stages, stage 0 included."""
        return len(self.groups)

    @property
    def visits(self) -> int:
        """P, the number of stages on a path."""
        return self.rules.visits

    @property
    def skipped(self) -> float:
        """Share of the stages that a microbatch skips, and of the bytes that this saves: 1 - P / S."""
        return 1 - self.visits / self.stages

    @cached_property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        """All orders of relay stages that a path may have, sorted."""
        return self.rules.orders(self.stages)

    @cached_property
    def stage_of(self) -> dict[int, int]:
        """The stage of each node that has one."""
        return {node: s for s, group in enumerate(self.groups) for node in group}

    @cached_property
    def sent(self) -> tuple[int, ...]:
        """How many microbatches each data node sends [D]."""
        M = self.microbatches
        return M if isinstance(M, tuple) else (M,) * len(self.groups[0])

    @cached_property
    def room(self) -> np.ndarray:
        """How many microbatches' activations each node holds at once [N]."""
        return np.broadcast_to(np.asarray(self.memory, dtype=np.int64), (len(self.hops),)).copy()

    @property
    def slots(self) -> int:
        """How many microbatches a data node has under way at most."""
        return max(map(len, self.chains_of))

    @cached_property
    def places(self) -> np.ndarray:
        """How many microbatches may choose each node as a relay [N] (TC1), by default as many as its m slots have."""
        uses = max(len(chain) for chains in self.chains_of for chain in chains)
        limit = uses * self.room if self.relay_limit is None else np.asarray(self.relay_limit, dtype=np.int64)
        return np.broadcast_to(limit, (len(self.hops),)).copy()

    @property
    def capacity(self) -> int:
        """How many microbatches may choose the same relay (TC1), where that differs the most."""
        return int(max(self.places[list(group)].max() for group in self.groups[1:]))

    @property
    def even(self) -> bool:
        """Whether all data nodes send as many microbatches from as many slots, and all relays have as many places."""
        relays = [node for group in self.groups[1:] for node in group]
        shapes = {tuple(map(len, chains)) for chains in self.chains_of}
        return len(shapes) == 1 and len(set(self.places[relays].tolist())) == 1

    @cached_property
    def chains_of(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The slots of each data node [D]: for each its microbatches, in the order in which it sends them.

        Microbatches are numbered data node by data node. As released, those of a slot have successive numbers.
        """
        found, first = [], 0
        for node, sent in zip(self.groups[0], self.sent, strict=True):
            sizes = [len(part) for part in np.array_split(np.arange(sent), min(int(self.room[node]), sent))]
            ends = [first + end for end in itertools.accumulate(sizes)]
            found.append(tuple(tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)))
            first += sent
        return tuple(found)

    @cached_property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """The microbatches of each slot of all data nodes; slots of one data node follow one another."""
        return tuple(itertools.chain.from_iterable(self.chains_of))

    @property
    def count(self) -> int:
        """The number of microbatches of all data nodes, D * M if all send as many."""
        return sum(self.sent)

    @cached_property
    def _homes(self) -> tuple[int, ...]:
        return tuple(node for node, sent in zip(self.groups[0], self.sent, strict=True) for _ in range(sent))

    def data_node(self, microbatch: int) -> int:
        """The data node at which a microbatch begins and ends."""
        return self._homes[microbatch]

    def itinerary(self, microbatch: int, path: Path) -> Path:
        """The nodes of a microbatch's 2 P + 1 operations: P forward passes, the loss, P backward passes."""
        start = self.data_node(microbatch)
        return (start, *path, start, *reversed(path), start)

    @cached_property
    def digest(self) -> str:
        """20 hex digits for all that decides how many ticks a plan of this instance takes."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {"rules": dataclasses.asdict(self.rules), "hops": self.travel.tolist(), "forward": self.work.tolist()}
        return key_of({"pipeline": fields})

    @cached_property
    def travel(self) -> np.ndarray:
        """`hops` in ticks [N, N]."""
        return ticks(self.hops)

    @cached_property
    def work(self) -> np.ndarray:
        """Ticks of forward, loss and backward on each node [3, N]."""
        return ticks([self.forward, self.head * self.forward, np.multiply(self.backward, self.forward)])

    def duration(self, position: int, node: int) -> int:
        """Ticks of an operation on a node, by its position on a microbatch's way."""
        return int(self.work[(position >= self.visits) + (position > self.visits), node])

    def round_trip(self, microbatch: int, path: Path) -> float:
        """Seconds that a microbatch takes if it never waits."""
        way = self.itinerary(microbatch, path)
        return TICK * int(remaining_ticks(self, way, self.travel)[0])


@dataclass(frozen=True)
class Plan:
    """The paths of all microbatches, and the order in which nodes work.

    - `paths` [D * M] are the relays of each microbatch.
    - `order` is, for each node, the operations that it does one after another. Or it is the name of a dispatching rule,
      by which a node chooses among the operations that wait and that it may begin. "fifo" takes the one that came
      first. "backward first" takes losses and backward passes before forward passes, then the one that came first.
      "longest rest" takes the one whose microbatch needs longest to its end without waiting.
    """

    paths: tuple[Path, ...]
    order: dict[int, tuple[Operation, ...]] | Literal["fifo", "backward first", "longest rest"] = "fifo"

    def _repr_html_(self) -> str:
        rows = [{"microbatch": m, "relays": " ".join(map(str, path))} for m, path in enumerate(self.paths)]
        if isinstance(self.order, str):
            return tables.html(f"{len(rows)} microbatches; nodes choose by the rule {self.order!r}", rows)
        done = {node: " ".join(f"{m}.{position}" for m, position in order) for node, order in self.order.items()}
        orders = [{"node": node, "operations (microbatch.position)": text} for node, text in done.items()]
        return tables.html(f"{len(rows)} microbatches", rows) + tables.html("What each node does, in its order", orders)

    @classmethod
    def of_slots(cls, pipeline: Pipeline, paths: Sequence[Path], order="fifo") -> "Plan":
        """A plan from one path a slot, or from one a data node [D] as released; microbatches share it.

        Where the rules let every microbatch have a path of its own, one for each of them will do as well.
        """
        slots, nodes = pipeline.chains, [list(itertools.chain(*chains)) for chains in pipeline.chains_of]
        if len(paths) == pipeline.count and not pipeline.rules.shared:
            return cls(tuple(map(tuple, paths)), order)
        if len(paths) not in (len(slots), len(nodes)):
            raise PlanError(f"{len(paths)} paths: give one for each of {len(slots)} slots or {len(nodes)} nodes")
        who = slots if len(paths) == len(slots) else nodes
        return cls(tuple(tuple(path) for path, those in zip(paths, who, strict=True) for _ in those), order)

    def check(self, pipeline: Pipeline) -> None:
        """Raise `PlanError` with the name of the first constraint that the plan breaks."""
        if len(self.paths) != pipeline.count:
            raise PlanError(f"{len(self.paths)} paths for {pipeline.count} microbatches")
        chosen: dict[int, int] = {}
        for microbatch, path in enumerate(self.paths):
            strangers = [node for node in path if pipeline.stage_of.get(node, 0) == 0]
            if strangers:
                raise PlanError(f"relays: node {strangers[0]} on the path of microbatch {microbatch} is none")
            order = tuple(pipeline.stage_of[node] for node in path)
            if rule := pipeline.rules.broken(order):
                raise PlanError(f"{rule}: microbatch {microbatch} visits stages 0, {order}, against {pipeline.rules}")
            for node in path:
                chosen[node] = chosen.get(node, 0) + 1
        for chain in pipeline.chains if pipeline.rules.shared else ():
            if len({self.paths[microbatch] for microbatch in chain}) > 1:
                raise PlanError(f"shared: microbatches {chain} of a slot take different paths")
        for node, count in chosen.items():
            if count > pipeline.places[node]:
                raise PlanError(f"TC1: {count} microbatches choose node {node}, at most {pipeline.places[node]} may")
        if isinstance(self.order, str):
            if self.order not in DISPATCH_RULES:
                raise PlanError(unknown("rule", self.order, DISPATCH_RULES))
            return
        self._check_order(pipeline)

    def _check_order(self, pipeline: Pipeline) -> None:
        """Raise `PlanError` unless nodes do all operations of the paths, within their memory."""
        want: dict[int, set[Operation]] = {}
        for microbatch, path in enumerate(self.paths):
            for position, node in enumerate(pipeline.itinerary(microbatch, path)):
                want.setdefault(node, set()).add((microbatch, position))
        for node in want | self.order:
            given, operations = self.order.get(node, ()), want.get(node, set())
            if len(given) != len(operations) or set(given) != operations:
                raise PlanError(f"order: node {node} is given other operations than its {len(operations)} of the paths")
            held = 0
            for microbatch, position in given:
                held += (position < pipeline.visits) - (position > pipeline.visits)
                if held > pipeline.room[node]:
                    raise PlanError(
                        f"memory: node {node} would hold {held} microbatches when it takes {microbatch}, at most "
                        f"{pipeline.room[node]} fit"
                    )


def _one_or_each(name: str, value: object, count: int, wanted: str) -> object:
    """One number as it is, or a sequence of `count` as a tuple of Python's own; one number if all are equal.

    Raises `ConfigError` for another length.
    """
    if value is None or np.ndim(value) == 0:
        return value
    if np.shape(value) != (count,):
        raise ConfigError(f"{name} must be one {wanted}, not {value}")
    each = tuple(v.item() if isinstance(v, np.generic) else v for v in value)
    return each[0] if len(set(each)) == 1 else each


def checked_hops(hops: np.ndarray, nodes: int) -> np.ndarray:
    """Hops as floats. Raises `ConfigError` unless they are seconds [nodes, nodes], finite and not negative."""
    hops = np.array(hops, dtype=float)
    if hops.shape != (nodes, nodes):
        raise ConfigError(
            f"hops must be a square matrix of seconds, from each of {nodes} nodes to each, not of shape {hops.shape}"
        )
    wrong = np.argwhere(~(np.isfinite(hops) & (hops >= 0)))
    if len(wrong):
        a, b = wrong[0].tolist()
        raise ConfigError(
            f"hops must be finite seconds, 0 or more, from every node to every other, not {hops[a, b]} from {a} to {b}"
        )
    return hops


def ticks(seconds: float | np.ndarray) -> np.ndarray:
    """Seconds as whole ticks, rounded."""
    return np.rint(np.asarray(seconds) / TICK).astype(np.int64)


def remaining_ticks(pipeline: Pipeline, way: Path, travel: np.ndarray) -> np.ndarray:
    """Ticks [2 P + 1] from the start of each operation on a microbatch's way to its end, without waiting."""
    computing = [pipeline.duration(position, node) for position, node in enumerate(way)]
    moving = [*(travel[a, b] for a, b in itertools.pairwise(way)), 0]
    return np.cumsum((np.array(computing) + moving)[::-1])[::-1]
