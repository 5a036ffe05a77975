"""Entries of YAML and CSV files with the lines on which they stand, and all mistakes in them at once.

- `opened` reads a YAML file into `Lines`, a mapping that knows where its keys stand, and a `Reader`
- a `Reader` reads entries of pydantic models. What is wrong in an entry is noted with file, line, value and remedy, and
  the entry is read without it, so that what depends on it can be checked as well

Serves: `swarmbook.planning.swarm_file`.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import MappingNode, Node, SequenceNode

from swarmbook import yaml_values
from swarmbook.errors import ConfigError, unknown, unusable

SHOWN = 20  # mistakes that are told one by one
TEXT = ("name", "region", "from", "to")  # columns of CSV files that are text whatever they look like
HEAD = ("head of the table",)
Where = tuple[str, int]  # a file and a line


class Entry(BaseModel):
    """An entry of a file: no key but its fields, and no number that is not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass
class Lines:
    """A part of a file with the lines of its keys, or their files and lines; `HEAD` is that of a CSV file's columns."""

    raw: Any
    file: str
    lines: dict[tuple, int | Where]
    path: tuple = ()

    def at(self, *more: str | int) -> Where:
        """File and line of a part, or of the nearest part around it that has a line."""
        path = (*self.path, *more)
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path, 1)
        return line if isinstance(line, tuple) else (self.file, line)

    def part(self, *more: str | int) -> "Lines":
        """One part of it."""
        value = self.raw
        for key in more:
            value = value[key]
        return Lines(value, self.file, self.lines, (*self.path, *more))


@dataclass
class Reader:
    """What is read of a YAML file and the CSV files that it names, and the mistakes that were found."""

    path: Path
    mistakes: list[tuple[Where, str]] = field(default_factory=list)

    def wrong(self, where: Where, message: str) -> None:
        """Note a mistake once."""
        if (where, message) not in self.mistakes:
            self.mistakes.append((where, message))

    def entry(self, model: type[Entry], entry: Lines, beside: Sequence[str] = ()) -> Any:
        """An entry of a model; what is wrong in it is noted and left out. None if it lacks something then.

        beside: keys that may stand beside those of the model, to be named where one is unknown.
        """
        raw = {} if entry.raw is None else entry.raw
        if not isinstance(raw, dict):
            self.wrong(
                entry.at(), f"{_shown(raw)} is refused: give keys and values, of {', '.join(model.model_fields)}"
            )
            return None
        for attempt in range(2):
            try:
                return model(**{str(key): value for key, value in raw.items()})
            except ValidationError as error:
                faults = error.errors()
                for fault in () if attempt else faults:
                    column = fault["type"] == "extra_forbidden" and HEAD in entry.lines
                    self.wrong(
                        entry.at(*HEAD if column else fault["loc"]), _reason(fault, (*model.model_fields, *beside))
                    )
                bad = {fault["loc"][0] for fault in faults}
                raw = {key: value for key, value in raw.items() if str(key) not in bad}
        return None

    def entries(self, top: Lines, part: str) -> list[Lines]:
        """The entries of a list that stands in the file, or in a CSV file that it names."""
        value = top.raw.get(part)
        if isinstance(value, str):
            return list(self.rows(value, top.at(part)))
        if isinstance(value, dict):
            return [top.part(part)]
        if isinstance(value, list) and value:
            return [top.part(part, number) for number in range(len(value))]
        said = f"{part} is missing" if value in (None, []) else f"{part}={_shown(value)} is refused"
        self.wrong(top.at(part), f"{said}: give a list, or the name of a CSV file")
        return []

    def table(self, name: str, where: Where) -> list[list[str]]:
        """The cells of a CSV file beside the YAML file; none if it cannot be read, which is a mistake at `where`."""
        try:
            with (self.path.parent / name).open(newline="", encoding="utf-8-sig") as file:
                return [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)]
        except OSError as error:
            self.wrong(where, f"{name} cannot be read: {unusable(error)}")
        except (UnicodeDecodeError, csv.Error, ValueError) as error:
            self.wrong(where, f"{name} is no CSV file in UTF-8: {error}")
        return []

    def rows(self, name: str, where: Where) -> Iterator[Lines]:
        """The rows of a CSV file with a header, as entries; empty cells are left out."""
        head, *rows = self.table(name, where) or [[]]
        for number, row in enumerate(rows, 2):
            if len(row) > len(head):
                self.wrong((name, number), f"{len(row)} cells under {len(head)} columns: leave out the last")
            filled = {key: cell for key, cell in zip(head, row, strict=False) if cell}
            if filled:
                raw = {key: cell if key in TEXT else value_of(cell) for key, cell in filled.items()}
                yield Lines(raw, name, {(): number, HEAD: 1})

    def told(self) -> str:
        """All mistakes, those of the YAML file first and each file's in the order of its lines."""
        files = [self.path.name, *dict.fromkeys(file for (file, _), _ in self.mistakes)]
        ordered = sorted(self.mistakes, key=lambda mistake: (files.index(mistake[0][0]), mistake[0][1]))
        told = [f"  {file}:{line}: {message}" for (file, line), message in ordered[:SHOWN]]
        more = [f"  and {len(ordered) - SHOWN} more"] if len(ordered) > SHOWN else []
        return "\n".join([f"{self.path} has {len(ordered)} mistake{'s' * (len(ordered) != 1)}:", *told, *more])


def opened(path: Path) -> tuple[Reader, Lines]:
    """A YAML file. Raises `ConfigError`, with the line, if it cannot be read or is no mapping."""
    try:
        root = yaml_values.compose(path.read_text(encoding="utf-8-sig"))
        raw = None if root is None else yaml_values.plain(root)
    except OSError as error:
        raise ConfigError(f"cannot read {unusable(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line} is not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {_shown(raw)}: give keys and values, such as `nodes: nodes.csv`")
    reader, lines = Reader(path), {}
    for where, line, twice in _marks(root):
        if twice:
            reader.wrong((path.name, line), f"{where[-1]} is given twice, first in line {lines[where]}: leave one out")
        lines[where] = line
    return reader, Lines(raw, path.name, lines)


def value_of(text: str) -> Any:
    """A cell of a CSV file as YAML would read it."""
    try:
        return yaml_values.load(text)
    except yaml.YAMLError:
        return text


def _marks(node: Node, path: tuple = ()) -> Iterator[tuple[tuple, int, bool]]:
    """The path of each part of a YAML document with its line, and whether its key stands there a second time."""
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            there = (*path, str(key.value))
            yield there, key.start_mark.line + 1, there[-1] in seen
            seen.add(there[-1])
            yield from _marks(value, there)
    elif isinstance(node, SequenceNode):
        for number, value in enumerate(node.value):
            yield (*path, number), value.start_mark.line + 1, False
            yield from _marks(value, (*path, number))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _reason(fault: Any, known: Sequence[str]) -> str:
    """A mistake that pydantic found, as value and remedy."""
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return unknown("key", name, known)
    if fault["type"] == "missing":
        return f"{name} is missing: give it"
    return f"{name}={_shown(fault['input'])}: {fault['msg'].replace('Input should', 'it should')}"
