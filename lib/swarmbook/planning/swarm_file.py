"""A user's swarm, read from YAML and CSV: nodes, links, stages and microbatches, and every mistake with its line.

- `read` gives a `Swarm`, or raises one `ConfigError` that tells all mistakes of the file, each with file, line, value and
  remedy. A part with a mistake is read without it, so that what comes after it is checked as well
- a file says what was measured: seconds or GFLOP of each stage, GiB of memory, latency in ms and bandwidth in Mbit/s
  between nodes or between regions. [lib/README.md](../../README.md) has an example and the meaning of each key
- nodes and links may lie in CSV files of their own, links also as two square matrices

Serves: `swarmbook plan`.
"""

import csv
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml import MappingNode, Node, SequenceNode

from swarmbook import yaml_values
from swarmbook.errors import ConfigError, DataError, unknown, unusable
from swarmbook.planning.swarm import NodeSpec, Swarm

MOST = 1_000  # stages, and of microbatches of a node
SHOWN = 20  # mistakes that are told one by one
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=MOST)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Node(_Entry):
    name: Annotated[str, Field(min_length=1)]
    region: str | None = None
    stage: Annotated[int, Field(ge=0)] | None = None
    microbatches: Count | None = None
    speed: Positive = 1.0
    gflop_s: Positive | None = None
    forward_s: list[Positive] | None = None
    backward_s: list[Positive] | None = None
    memory_gib: Positive | None = None
    holds: Count | None = None


class _Stage(_Entry):
    count: Count = 1
    forward_s: Positive | None = None
    forward_gflop: Positive | None = None
    backward_s: Positive | None = None
    memory_gib: Annotated[float, Field(ge=0)] = 0.0
    activations_gib: Positive | None = None


class _Link(_Entry):
    between: Annotated[list[str], Field(min_length=2, max_length=2)]
    latency_ms: Annotated[float, Field(ge=0)]
    bandwidth_mbit_s: Positive
    one_way: bool = False


class _Rules(_Entry):
    swaps: Annotated[int, Field(ge=0)] = 2
    ahead: Annotated[int, Field(ge=1)] = 4
    lag: Annotated[int, Field(ge=0)] = 1
    lags: Annotated[int, Field(ge=0)] = 2
    shared: bool = True
    TC1: bool = True
    TC2: bool = True


class _File(_Entry):
    """What stands at the top of a file, beside its stages, nodes, links and rules."""

    message_mib: Positive
    visits: Annotated[int, Field(ge=2)] | None = None
    skip: Annotated[float, Field(ge=0, lt=1)] | None = None
    microbatches: Count = 6
    holds: Count = 3
    sources: Count | None = None
    backward: Positive = 2.0
    loss: Annotated[float, Field(ge=0)] = 0.25
    gap_s: Annotated[float, Field(ge=0)] = 0.0
    duplex: Literal["full", "half", "unlimited"] = "full"


PARTS = ("stages", "nodes", "links", "rules")


@dataclass
class _Lines:
    """A mapping of a file with the lines of its keys."""

    raw: Any
    file: str
    lines: dict[tuple, int]
    path: tuple = ()

    def at(self, *more: str | int) -> tuple[str, int]:
        """File and line of a part, or of the nearest part around it that has a line."""
        path = (*self.path, *more)
        while path and path not in self.lines:
            path = path[:-1]
        return self.file, self.lines.get(path, 1)

    def part(self, *more: str | int) -> "_Lines":
        """One part of it."""
        value = self.raw
        for key in more:
            value = value[key]
        return _Lines(value, self.file, self.lines, (*self.path, *more))


@dataclass
class _Reader:
    """A file as far as it was read, and its mistakes."""

    folder: Path
    mistakes: list[tuple[tuple[str, int], str]] = field(default_factory=list)

    def wrong(self, where: tuple[str, int], message: str) -> None:
        """Note a mistake once."""
        if (where, message) not in self.mistakes:
            self.mistakes.append((where, message))

    def entry(self, model: type[_Entry], entry: _Lines) -> Any:
        """An entry of a model; what is wrong in it is noted and left out. None if it lacks something then."""
        raw = {} if entry.raw is None else entry.raw
        if not isinstance(raw, dict):
            self.wrong(entry.at(), f"{_shown(raw)} is refused: give keys and values, of {', '.join(model.model_fields)}")
            return None
        for attempt in range(2):
            try:
                return model(**{str(key): value for key, value in raw.items()})
            except ValidationError as error:
                faults = error.errors()
                for fault in faults if not attempt else ():
                    self.wrong(entry.at(*fault["loc"]), _reason(fault, model))
                bad = {fault["loc"][0] for fault in faults}
                raw = {key: value for key, value in raw.items() if str(key) not in bad}
        return None

    def entries(self, top: _Lines, part: str) -> list[_Lines]:
        """The entries of a list that stands in the file, or in a CSV file that it names."""
        value = top.raw.get(part)
        if value is None or value == []:
            self.wrong(top.at(part), f"{part} is missing: give a list, or the name of a CSV file")
            return []
        if isinstance(value, str):
            return list(self.rows(value, top.at(part)))
        if isinstance(value, dict):
            value = [value]
            return [_Lines(value[0], top.file, top.lines, (part,))]
        if not isinstance(value, list):
            self.wrong(top.at(part), f"{part}={value!r} is refused: give a list, or the name of a CSV file")
            return []
        return [top.part(part, number) for number in range(len(value))]

    def table(self, name: str, where: tuple[str, int]) -> list[list[str]]:
        """The cells of a CSV file beside the swarm's."""
        try:
            with (self.folder / name).open(newline="", encoding="utf-8-sig") as file:
                return [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)]
        except OSError as error:
            self.wrong(where, f"{name} cannot be read: {unusable(error)}")
        except (UnicodeDecodeError, csv.Error, ValueError) as error:
            self.wrong(where, f"{name} is no CSV file in UTF-8: {error}")
        return []

    def rows(self, name: str, where: tuple[str, int]) -> Iterator[_Lines]:
        """The rows of a CSV file with a header, as entries."""
        head, *rows = self.table(name, where) or [[]]
        for number, row in enumerate(rows, 2):
            if not any(row):
                continue
            if len(row) > len(head):
                self.wrong((name, number), f"{len(row)} cells under {len(head)} columns: leave out the last")
            raw: dict[str, Any] = {}
            for key, cell in zip(head, row, strict=False):
                if cell:
                    raw[key] = cell if key in ("name", "region", "from", "to") else _value(cell)
            if "from" in raw and "to" in raw:
                raw["between"] = [raw.pop("from"), raw.pop("to")]
            yield _Lines(raw, name, {(): number})


def read(path: Path) -> Swarm:
    """The swarm of a YAML file. Raises `ConfigError` with all its mistakes, and `DataError` if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml_values.compose(text)
        raw = {} if root is None else yaml_values.plain(root)
    except OSError as error:
        raise DataError(f"cannot read the swarm {path}: {unusable(error)}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line} is not YAML: {getattr(error, 'problem', error)}") from error
    reader, lines = _Reader(path.parent), {}
    for where, line, twice in _marks(root) if root is not None else ():
        if twice:
            reader.wrong((path.name, line), f"{where[-1]} is given twice: leave one out")
        lines[where] = line
    swarm = None
    if isinstance(raw, dict):
        swarm = _swarm(reader, _Lines(raw, path.name, lines))
    else:
        reader.wrong((path.name, 1), f"{_shown(raw)} is no swarm: give {', '.join(PARTS[:3])} and message_mib")
    if reader.mistakes or swarm is None:
        raise ConfigError(_told(path, reader.mistakes))
    return swarm


def _swarm(reader: _Reader, top: _Lines) -> Swarm | None:
    head = {key: value for key, value in top.raw.items() if key not in PARTS}
    whole = reader.entry(_File, _Lines(head, top.file, top.lines))
    rules = reader.entry(_Rules, _Lines(top.raw.get("rules"), top.file, top.lines, ("rules",)))
    stages = []
    for entry in reader.entries(top, "stages"):
        if stage := reader.entry(_Stage, entry):
            stages += [(stage, entry)] * stage.count
            if isinstance(entry.raw, dict) and len({"forward_s", "forward_gflop"} & set(entry.raw)) != 1:
                reader.wrong(entry.at(), "a stage takes one of forward_s (seconds at speed 1) and forward_gflop")
    if 0 < len(stages) < 2 or len(stages) > MOST:
        reader.wrong(top.at("stages"), f"{len(stages)} stages: give from 2 to {MOST}, the first for the data nodes")
    entries = reader.entries(top, "nodes")
    nodes = [(node, entry) for entry in entries if (node := reader.entry(_Node, entry))]
    lines: dict[str, tuple[str, int]] = {}
    for node, entry in nodes:
        if node.name in lines:
            reader.wrong(entry.at("name"), f"node {node.name} is given twice, first in line {lines[node.name][1]}")
        lines.setdefault(node.name, entry.at("name"))
    names = [node.name for node, _ in nodes]
    latency, bandwidth = _links(reader, top, nodes, complete=len(nodes) == len(entries))
    whole = whole or _File(message_mib=1.0)
    specs = [_spec(reader, node, entry, [stage for stage, _ in stages], whole) for node, entry in nodes]
    visits = _visits(reader, top, whole, rules or _Rules(), len(stages))
    _memory(reader, top, stages, list(zip(specs, nodes, strict=True)))
    if reader.mistakes or len(set(names)) < len(names) or not stages:
        return None
    return Swarm(
        Path(top.file).stem, tuple(specs), len(stages), latency, bandwidth, whole.message_mib * 2**20, visits,
        whole.loss, whole.gap_s, whole.duplex, whole.sources, whole.microbatches, **rules.model_dump(),
    )  # fmt: skip


def _spec(reader: _Reader, node: _Node, entry: _Lines, stages: Sequence[_Stage], whole: _File) -> NodeSpec:
    """What a node takes for each stage, and how many microbatches fit beside it."""
    S, forward, backward, holds = len(stages), [], [], []
    for name in ("forward_s", "backward_s"):
        if (given := getattr(node, name)) and len(given) != S:
            reader.wrong(entry.at(name), f"{name} of {node.name} has {len(given)} seconds: give one for each of {S} stages")
    if node.stage is not None and node.stage >= max(S, 1):
        reader.wrong(entry.at("stage"), f"stage={node.stage} of {node.name}: give 0 to {S - 1}, or leave it out")
    if node.stage and node.microbatches:
        reader.wrong(entry.at("microbatches"), f"microbatches of {node.name} at stage {node.stage}: only nodes of stage 0 send them")
    for number, stage in enumerate(stages):
        seconds = stage.forward_s / node.speed if stage.forward_s else 1.0
        if stage.forward_gflop:
            if node.gflop_s is None and node.forward_s is None:
                reader.wrong(entry.at(), f"gflop_s of {node.name} is missing, as stages are given in forward_gflop")
            seconds = stage.forward_gflop / (node.gflop_s or 1.0)
        if node.forward_s and len(node.forward_s) == S:
            seconds = node.forward_s[number]
        back = stage.backward_s / node.speed if stage.backward_s else whole.backward * seconds
        if node.backward_s and len(node.backward_s) == S:
            back = node.backward_s[number]
        room = node.holds or whole.holds
        if node.memory_gib is not None:
            left = node.memory_gib - stage.memory_gib
            fit = int(left / stage.activations_gib + 1e-9) if stage.activations_gib else room
            room = 0 if left < 0 else fit if node.holds is None else min(fit, node.holds)
        forward.append(seconds)
        backward.append(back)
        holds.append(room)
    stage = 0 if node.stage is None and node.microbatches else node.stage
    return NodeSpec(node.name, node.region, stage, node.microbatches, tuple(forward), tuple(backward), tuple(holds))


def _memory(reader: _Reader, top: _Lines, stages: Sequence, nodes: Sequence) -> None:
    """Note nodes and stages for which the memory is too small."""
    for spec, (node, entry) in nodes:
        where = range(len(stages)) if spec.stage is None else [s for s in [spec.stage] if s < len(stages)]
        if node.memory_gib is not None and len(where) and not any(spec.holds[s] for s in where):
            need = min(stages[s][0].memory_gib + (stages[s][0].activations_gib or 0) for s in where)
            what = "any stage" if spec.stage is None else f"stage {spec.stage}"
            reader.wrong(
                entry.at("memory_gib"),
                f"memory_gib={node.memory_gib:g} of {spec.name} is too small for {what}, which needs {need:g} with one "
                "microbatch: give it more, make the stages smaller, or leave the node out",
            )
    for number, (_, entry) in enumerate(stages):
        if nodes and not any(spec.holds[number] for spec, _ in nodes if spec.stage in (None, number)):
            reader.wrong(entry.at("memory_gib"), f"no node has memory for stage {number} and one microbatch: make it smaller")
    if nodes and stages and len(nodes) < len(stages):
        reader.wrong(top.at("nodes"), f"{len(nodes)} nodes for {len(stages)} stages: give at least one for each")


def _visits(reader: _Reader, top: _Lines, whole: _File, rules: _Rules, stages: int) -> int:
    """How many stages a microbatch visits."""
    if whole.visits is not None and whole.skip is not None:
        reader.wrong(top.at("skip"), f"skip={whole.skip} and visits={whole.visits} say the same: give one of them")
    visits = whole.visits or (stages if whole.skip is None else max(2, round(stages * (1 - whole.skip))))
    if stages and visits > stages:
        reader.wrong(top.at("visits"), f"visits={visits}: give 2 to {stages}, the number of stages")
    elif stages > (visits - 1) * rules.ahead + 1:
        reader.wrong(
            top.at("rules", "ahead") if "rules" in top.raw else top.at("visits"),
            f"no feasible path visits stage {stages - 1}: {visits - 1} steps of at most ahead={rules.ahead} end at stage "
            f"{(visits - 1) * rules.ahead}; raise ahead or visits",
        )
    return visits


def _links(reader: _Reader, top: _Lines, nodes: Sequence, complete: bool) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of latency and bytes a second [N, N] between all nodes; nan where a link has a mistake.

    What is said of two nodes goes before what is said of their regions. complete: whether all nodes were read.
    """
    N, where = len(nodes), {}
    for number, (node, _) in enumerate(nodes):
        where.setdefault(node.name, set()).add(number)
        if node.region is not None:
            where.setdefault(node.region, set()).add(number)
    single = {node.name for node, _ in nodes}
    found: dict[tuple[int, int], tuple[int, int, float, float]] = {}
    given: dict[tuple[str, str, bool], int] = {}
    for entry, link, ends in _given_links(reader, top):
        strangers = [name for name in ends if name not in where]
        for name in strangers if complete or not strangers else ():
            reader.wrong(entry.at("between"), unknown("node or region", name, where))
        if strangers:
            continue
        for turned, (a, b) in enumerate((ends, ends[::-1])):
            if turned and link and link.one_way:
                continue
            rank = (a in single) + (b in single)
            line = entry.at()[1]
            if given.setdefault((a, b, bool(turned and link and not link.one_way)), line) != line and not turned:
                reader.wrong(entry.at("between"), f"the link from {a} to {b} is given twice, first in line {given[a, b, False]}")
            for i, j in itertools.product(where[a], where[b]):
                new = (rank, 0 if turned else 1, link.latency_ms if link else np.nan, link.bandwidth_mbit_s if link else np.nan)
                if i != j and ((i, j) not in found or new[:2] > found[i, j][:2]):
                    found[i, j] = new
    latency, bandwidth = np.full((N, N), np.nan), np.full((N, N), np.nan)
    np.fill_diagonal(latency, 0.0), np.fill_diagonal(bandwidth, np.inf)
    for (i, j), (*_, ms, mbit) in found.items():
        latency[i, j], bandwidth[i, j] = ms / 1000, mbit * 125_000
    missing: dict[tuple[str, str], None] = {}
    for i, j in itertools.permutations(range(N), 2):
        if (i, j) not in found:
            ends = [nodes[k][0].region or nodes[k][0].name for k in (i, j)]
            missing.setdefault((ends[0], ends[1]) if (ends[1], ends[0]) not in missing else (ends[1], ends[0]))
    for a, b in missing if top.raw.get("links") else ():
        example = f"- {{between: [{a}, {b}], latency_ms: 50, bandwidth_mbit_s: 200}}"
        reader.wrong(top.at("links"), f"no link between {a} and {b}: measure it and add such as `{example}`")
    return latency, bandwidth


def _given_links(reader: _Reader, top: _Lines) -> Iterator[tuple[_Lines, _Link | None, tuple[str, str]]]:
    """Every link of the file with its two ends; None for one with a mistake."""
    value = top.raw.get("links")
    if isinstance(value, dict) and set(value) & {"latency_ms", "bandwidth_mbit_s"} and "between" not in value:
        yield from _matrices(reader, top, value)
        return
    for entry in reader.entries(top, "links"):
        link = reader.entry(_Link, entry)
        ends = entry.raw.get("between") if isinstance(entry.raw, dict) else None
        if isinstance(ends, list) and len(ends) == 2:
            yield entry, link, tuple(map(str, ends))


def _matrices(reader: _Reader, top: _Lines, value: dict) -> Iterator[tuple[_Lines, _Link | None, tuple[str, str]]]:
    """The links of two square matrices in CSV files, of latency and bandwidth, whose first row and column are names."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    lines: dict[tuple[str, str], tuple[str, int]] = {}
    for key in value:
        if key not in ("latency_ms", "bandwidth_mbit_s"):
            reader.wrong(top.at("links", key), unknown("key", key, ("latency_ms", "bandwidth_mbit_s")))
    for key in ("latency_ms", "bandwidth_mbit_s"):
        name = value.get(key)
        if not isinstance(name, str):
            reader.wrong(top.at("links", key), f"{key}={name!r}: give the name of a CSV file with a square matrix")
            continue
        head, *rows = reader.table(name, top.at("links", key)) or [[]]
        for line, row in enumerate(rows, 2):
            for column, cell in zip(head[1:], row[1:], strict=False):
                if cell:
                    cells.setdefault((row[0], column), {})[key] = _value(cell)
                    lines.setdefault((row[0], column), (name, line))
    for (a, b), raw in cells.items():
        if {"latency_ms", "bandwidth_mbit_s"} - set(raw) and a == b:
            continue
        file, line = lines[a, b]
        entry = _Lines(raw | {"between": [a, b], "one_way": (b, a) in cells and a != b}, file, {(): line})
        yield entry, reader.entry(_Link, entry), (a, b)


def _marks(node: Node, path: tuple = ()) -> Iterator[tuple[tuple, int, bool]]:
    """The path of each part of a YAML document with its line, and whether its key stands there a second time."""
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            there = (*path, str(getattr(key, "value", key)))
            yield there, key.start_mark.line + 1, there[-1] in seen
            seen.add(there[-1])
            yield from _marks(value, there)
    elif isinstance(node, SequenceNode):
        for number, value in enumerate(node.value):
            yield (*path, number), value.start_mark.line + 1, False
            yield from _marks(value, (*path, number))


def _value(text: str) -> Any:
    """A cell of a CSV file as YAML would read it."""
    try:
        return yaml_values.load(text)
    except yaml.YAMLError:
        return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _reason(fault: Any, model: type[_Entry]) -> str:
    """A mistake that pydantic found, as value and remedy."""
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = (*model.model_fields, *PARTS) if model is _File else tuple(model.model_fields)
        return unknown("key", name, known)
    if fault["type"] == "missing":
        return f"{name} is missing: give it"
    return f"{name}={_shown(fault['input'])}: {fault['msg'].replace('Input should', 'it should')}"


def _told(path: Path, mistakes: Sequence[tuple[tuple[str, int], str]]) -> str:
    """All mistakes in the order of their lines."""
    files = list(dict.fromkeys(file for (file, _), _ in mistakes))
    ordered = sorted(mistakes, key=lambda m: (files.index(m[0][0]) if m[0][0] != path.name else -1, m[0][1]))
    told = [f"{file}:{line}: {message}" for (file, line), message in ordered[:SHOWN]]
    more = [f"and {len(ordered) - SHOWN} more"] if len(ordered) > SHOWN else []
    count = f"{len(ordered)} mistake{'s' * (len(ordered) != 1)}"
    return os.linesep.join([f"{path} has {count}:", *(f"  {line}" for line in (*told, *more))])
