"""A user's swarm, read from YAML and CSV: nodes, links, stages and microbatches, and every mistake with its line.

- `read` gives a `Swarm`, or raises one `ConfigError` that tells all mistakes, each with line, value and remedy
- a file says what was measured: seconds or GFLOP of each stage, GiB of memory, latency in ms and bandwidth in Mbit/s
  between nodes or between regions. The library's README explains each key
- nodes and links may lie in CSV files of their own, links also as two square matrices

Serves: `swarmbook plan`.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from swarmbook.errors import ConfigError, unknown
from swarmbook.planning.lined_files import Entry, Lines, Reader, opened, value_of
from swarmbook.planning.swarm import NodeSpec, Swarm

MOST = 1_000  # stages, and of microbatches of a node
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Number = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Ends = tuple[str, str]  # of a link: names of nodes or regions


class _Top(Entry):
    message_mib: Positive
    visits: Annotated[int, Field(ge=2)] | None = None
    skip: Annotated[float, Field(ge=0, lt=1)] | None = None
    microbatches: Count = 6
    holds: Count = 3
    sources: Count | None = None
    backward: Positive = 2.0
    loss: NotNegative = 0.25
    gap_s: NotNegative = 0.0
    duplex: Literal["full", "half", "unlimited"] = "full"


PARTS = ("stages", "nodes", "links", "rules")  # beside those


class _Stage(Entry):
    count: Count = 1
    forward_s: Positive | None = None
    forward_gflop: Positive | None = None
    backward_s: Positive | None = None
    memory_gib: NotNegative = 0.0
    activations_gib: Positive | None = None


class _Node(Entry):
    name: Annotated[str, Field(min_length=1)]
    region: str | None = None
    stage: Number | None = None
    microbatches: Count | None = None
    speed: Positive = 1.0
    gflop_s: Positive | None = None
    forward_s: list[Positive] | None = None
    backward_s: list[Positive] | None = None
    memory_gib: Positive | None = None
    holds: Count | None = None


class _Link(Entry):
    between: Annotated[list[str], Field(min_length=2, max_length=2)]
    latency_ms: NotNegative
    bandwidth_mbit_s: Positive
    one_way: bool = False


class _Rules(Entry):
    swaps: Number = 2
    ahead: Annotated[int, Field(ge=1)] = 4
    lag: Number = 1
    lags: Number = 2
    shared: bool = True
    TC1: bool = True
    TC2: bool = True


Nodes = Sequence[tuple[_Node, Lines]]


def read(path: Path) -> Swarm:
    """The swarm of a YAML file. Raises `ConfigError` with all its mistakes, or if it cannot be read."""
    reader, top = opened(path)
    head = {key: value for key, value in top.raw.items() if key not in PARTS}
    whole = reader.entry(_Top, Lines(head, top.file, top.lines), PARTS) or _Top(message_mib=1.0)
    rules = reader.entry(_Rules, Lines(top.raw.get("rules"), top.file, top.lines, ("rules",))) or _Rules()
    stages = _stages(reader, top)
    entries = reader.entries(top, "nodes")
    nodes = [(node, entry) for entry in entries if (node := reader.entry(_Node, entry))]
    lines: dict[str, int] = {}
    for node, entry in nodes:
        file, line = entry.at("name")
        if lines.setdefault(node.name, line) != line:
            reader.wrong((file, line), f"node {node.name} is given twice, first in line {lines[node.name]}")
    if nodes and len(nodes) < len(stages):
        reader.wrong(top.at("nodes"), f"{len(nodes)} nodes for {len(stages)} stages: give at least one for each")
    latency, bandwidth = _links(reader, top, nodes, complete=len(nodes) == len(entries))
    specs = [_spec(reader, node, entry, [stage for stage, _ in stages], whole) for node, entry in nodes]
    visits = _visits(reader, top, whole, rules, len(stages))
    _memory(reader, stages, specs, nodes)
    if reader.mistakes:
        raise ConfigError(reader.told())
    return Swarm(
        path.stem, tuple(specs), len(stages), latency, bandwidth, whole.message_mib * 2**20, visits, whole.loss,
        whole.gap_s, whole.duplex, whole.sources, whole.microbatches, **rules.model_dump(),
    )  # fmt: skip


def _stages(reader: Reader, top: Lines) -> list[tuple[_Stage, Lines]]:
    """The stages, those of an entry with a count each by itself."""
    stages = []
    for entry in reader.entries(top, "stages"):
        if stage := reader.entry(_Stage, entry):
            stages += [(stage, entry)] * stage.count
        if isinstance(entry.raw, dict) and len({"forward_s", "forward_gflop"} & set(entry.raw)) != 1:
            reader.wrong(entry.at(), "a stage takes one of forward_s (seconds at speed 1) and forward_gflop")
    if len(stages) == 1 or len(stages) > MOST:
        reader.wrong(
            top.at("stages"), f"{len(stages)} stages: give 2 to {MOST}, of which the first holds head and loss"
        )
    return stages


def _spec(reader: Reader, node: _Node, entry: Lines, stages: Sequence[_Stage], whole: _Top) -> NodeSpec:
    """What a node takes for each stage, and how many microbatches fit beside it."""
    S, forward, backward, holds = len(stages), [], [], []
    for name in ("forward_s", "backward_s"):
        if (given := getattr(node, name)) and len(given) != S:
            reader.wrong(
                entry.at(name), f"{name} of {node.name} has {len(given)} numbers: give one for each of {S} stages"
            )
    if node.stage is not None and stages and node.stage >= S:
        reader.wrong(entry.at("stage"), f"stage={node.stage} of {node.name}: give 0 to {S - 1}, or leave it out")
    if node.stage and node.microbatches:
        reader.wrong(entry.at("microbatches"), f"{node.name} at stage {node.stage} sends none: leave microbatches out")
    told = set(entry.raw) <= set(_Node.model_fields) and "gflop_s" not in entry.raw
    if told and node.forward_s is None and any(stage.forward_gflop for stage in stages):
        reader.wrong(entry.at(), f"gflop_s of {node.name} is missing: stages are given in forward_gflop")
    for number, stage in enumerate(stages):
        if node.forward_s and len(node.forward_s) == S:
            seconds = node.forward_s[number]
        elif stage.forward_gflop:
            seconds = stage.forward_gflop / (node.gflop_s or 1.0)
        else:
            seconds = (stage.forward_s or 1.0) / node.speed
        back = stage.backward_s / node.speed if stage.backward_s else whole.backward * seconds
        if node.backward_s and len(node.backward_s) == S:
            back = node.backward_s[number]
        room = node.holds or whole.holds
        if node.memory_gib is not None:
            left = node.memory_gib - stage.memory_gib
            fit = int(left / stage.activations_gib + 1e-9) if stage.activations_gib else room
            room = 0 if left < 0 else min(fit, MOST if node.holds is None else node.holds)
        forward.append(seconds)
        backward.append(back)
        holds.append(room)
    stage = 0 if node.stage is None and node.microbatches else node.stage
    return NodeSpec(node.name, node.region, stage, node.microbatches, tuple(forward), tuple(backward), tuple(holds))


def _memory(reader: Reader, stages: Sequence[tuple[_Stage, Lines]], specs: Sequence[NodeSpec], nodes: Nodes) -> None:
    """Note nodes and stages for which the memory is too small."""
    for spec, (node, entry) in zip(specs, nodes, strict=True):
        where = [s for s in range(len(stages)) if spec.stage in (None, s)]
        if node.memory_gib is not None and where and not any(spec.holds[s] for s in where):
            need = min(stages[s][0].memory_gib + (stages[s][0].activations_gib or 0) for s in where)
            what = "any stage: the smallest" if spec.stage is None else f"stage {spec.stage}, which"
            reader.wrong(
                entry.at("memory_gib"),
                f"memory_gib={node.memory_gib:g} of {spec.name} is too small for {what} needs {need:g} with one "
                "microbatch; give it more, make the stages smaller, or leave the node out",
            )
    for number, (_, entry) in enumerate(stages):
        if specs and not any(spec.holds[number] for spec in specs if spec.stage in (None, number)):
            reader.wrong(entry.at("memory_gib"), f"no node can hold stage {number} and a microbatch: make it smaller")


def _visits(reader: Reader, top: Lines, whole: _Top, rules: _Rules, stages: int) -> int:
    """How many stages a microbatch visits; all if nothing is said."""
    if whole.visits is not None and whole.skip is not None:
        reader.wrong(top.at("skip"), f"skip={whole.skip} and visits={whole.visits} say the same: give one of them")
    visits = whole.visits or (max(2, stages) if whole.skip is None else max(2, round(stages * (1 - whole.skip))))
    if stages and visits > stages:
        reader.wrong(top.at("visits"), f"visits={visits}: give 2 to {stages}, the number of stages")
    elif stages and stages > (visits - 1) * rules.ahead + 1:
        reader.wrong(
            top.at("rules", "ahead") if top.raw.get("rules") else top.at("visits"),
            f"no feasible path visits stage {stages - 1}: {visits - 1} steps of at most ahead={rules.ahead} end at "
            f"stage {(visits - 1) * rules.ahead}; raise ahead or visits",
        )
    return visits


def _links(reader: Reader, top: Lines, nodes: Nodes, complete: bool) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of latency and bytes a second [N, N] between all nodes; nan where a link has a mistake.

    What is said of two nodes goes before what is said of their regions, and what is said of one direction before what
    is said of both. complete: whether all nodes were read, so that other names are unknown.
    """
    where: dict[str, set[int]] = {}
    for number, (node, _) in enumerate(nodes):
        for name in {node.name, node.region} - {None}:
            where.setdefault(name, set()).add(number)
    single, given = {node.name for node, _ in nodes}, {}
    found: dict[tuple[int, int], tuple[tuple[int, bool], float, float]] = {}
    for entry, link, (a, b) in _given_links(reader, top):
        strangers = [name for name in (a, b) if name not in where]
        for name in strangers if complete else ():
            reader.wrong(entry.at("between"), unknown("node or region", name, where))
        one_way = link is not None and link.one_way
        ends, line = (a, b) if one_way else frozenset((a, b)), entry.at()[1]
        if given.setdefault(ends, line) != line:
            reader.wrong(entry.at("between"), f"the link of {a} and {b} is given twice, first in line {given[ends]}")
        for x, y in [] if strangers else [(a, b)] if one_way else [(a, b), (b, a)]:
            rank = ((x in single) + (y in single), one_way)
            values = (link.latency_ms / 1000, link.bandwidth_mbit_s * 125_000) if link else (np.nan, np.nan)
            for pair in itertools.product(where[x], where[y]):
                if pair not in found or rank > found[pair][0]:
                    found[pair] = rank, *values
    N, missing = len(nodes), {}
    latency, bandwidth = np.zeros((N, N)), np.full((N, N), np.inf)
    for pair in itertools.permutations(range(N), 2):
        if pair in found:
            _, latency[pair], bandwidth[pair] = found[pair]
        else:
            ends = tuple(nodes[n][0].region or nodes[n][0].name for n in pair)
            missing.setdefault(frozenset(ends), ends)
    for a, b in missing.values() if top.raw.get("links") else ():
        example = f"- {{between: [{a}, {b}], latency_ms: 50, bandwidth_mbit_s: 200}}"
        reader.wrong(top.at("links"), f"no link between {a} and {b}: measure it and add, for example, `{example}`")
    return latency, bandwidth


def _given_links(reader: Reader, top: Lines) -> Iterator[tuple[Lines, _Link | None, Ends]]:
    """Every link of the file with its two ends; None for one with a mistake."""
    value = top.raw.get("links")
    if isinstance(value, dict) and "between" not in value:
        yield from _matrices(reader, top.part("links"))
        return
    for entry in reader.entries(top, "links"):
        if isinstance(entry.raw, dict) and {"from", "to"} <= set(entry.raw):  # a row of a CSV file
            entry.raw["between"] = [entry.raw.pop("from"), entry.raw.pop("to")]
        link = reader.entry(_Link, entry)
        ends = entry.raw.get("between") if isinstance(entry.raw, dict) else None
        if isinstance(ends, list) and len(ends) == 2:
            yield entry, link, (str(ends[0]), str(ends[1]))


def _matrices(reader: Reader, links: Lines) -> Iterator[tuple[Lines, _Link | None, Ends]]:
    """The links of two square matrices in CSV files, from the names of the rows to those of the columns."""
    cells: dict[Ends, dict[str, Any]] = {}
    lines: dict[Ends, dict[tuple, Any]] = {}
    keys = ("latency_ms", "bandwidth_mbit_s")
    for key in links.raw:
        if key not in keys:
            reader.wrong(links.at(key), unknown("key", key, keys))
    for key in keys:
        if not isinstance(name := links.raw.get(key), str):
            reader.wrong(links.at(key), f"{key}={name!r}: give the name of a CSV file with a square matrix")
            continue
        head, *rows = reader.table(name, links.at(key)) or [[]]
        for number, row in enumerate(rows, 2):
            for column, cell in zip(head[1:], row[1:], strict=False):
                if cell and (row[0] != column or float_of(cell)):
                    cells.setdefault((row[0], column), {})[key] = value_of(cell)
                    lines.setdefault((row[0], column), {})[(key,)] = name, number
    for (a, b), raw in cells.items():
        there = {(): next(iter(lines[a, b].values()))} | lines[a, b]
        entry = Lines(raw | {"between": [a, b], "one_way": (b, a) in cells and a != b}, links.file, there)
        yield entry, reader.entry(_Link, entry), (a, b)


def float_of(cell: str) -> float:
    """The number in a cell; 0 if it holds none, as on the diagonal of a matrix."""
    value = value_of(cell)
    return float(value) if isinstance(value, (int, float)) else 0.0
