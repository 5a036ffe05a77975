"""The grid of a sweep: `papers/<name>/sweep.yaml`, read and checked against the notebook's own parameters.

Serves: `swarmbook sweep`.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from swarmbook.errors import UsageError, unknown
from swarmbook.records.keys import canonical
from swarmbook.reproduction import papers
from swarmbook.reproduction.papers import MOST_SEEDS, Paper
from swarmbook.yaml_values import compose, plain

MOST = MOST_SEEDS  # points of a sweep
RANGE = re.compile(r"(\d{1,18}) *- *(\d{1,18})")


@dataclass(frozen=True)
class Grid:
    """What a sweep.yaml says of a profile.

    product: the values of parameters of which every combination is a point. groups: of parameters that move together.
    """

    seeds: tuple[int, ...]
    product: Mapping[str, list]
    groups: tuple[Mapping[str, list], ...]

    def points(self, paper: Paper) -> list[dict[str, Any]]:
        """The parameters of every point, those of the first seed first."""
        axes = [_seeded(paper, self.seeds)] if self.seeds else []
        axes += [[{name: value} for value in values] for name, values in self.product.items()]
        axes += [
            [dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)] for group in self.groups
        ]
        if math.prod(map(len, axes)) > MOST:
            sizes = " x ".join(str(len(axis)) for axis in axes)
            raise UsageError(f"the grid of {paper.name} has {sizes} points, more than {MOST}: make it smaller")
        return [{name: value for part in parts for name, value in part.items()} for parts in itertools.product(*axes)]


def points(paper: Paper, profile: str | None = None, seeds: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The parameters of every point of a paper's sweep.

    profile: by default the notebook's. seeds: in place of those in sweep.yaml.
    Raises UsageError, which names the line of sweep.yaml, for a wrong name, type, choice or grid.
    """
    profile = papers.checked(paper, {"profile": profile})["profile"] if profile else _default_profile(paper)
    sheet = paper.notebook.with_name("sweep.yaml")
    if sheet.exists():
        grid = Sheet(paper, sheet).grids()[profile]
    elif seeds:
        grid = Grid((), {}, ())
    else:
        raise UsageError(f"{paper.name} has no {sheet}: write one, or name seeds with --seeds, such as --seeds 0-4")
    if seeds:
        taken = {"seed", "seeds"} & {*grid.product, *(name for group in grid.groups for name in group)}
        if taken:
            raise UsageError(f"{sheet} sets {', '.join(taken)} in its grid, and --seeds as well: leave out one of them")
        grid = replace(grid, seeds=tuple(seeds))
    found = [{"profile": profile, **point} for point in grid.points(paper)]
    if found == [{"profile": profile}]:
        raise UsageError(f"{sheet} has an empty grid: name values of a parameter under grid, or seeds")
    return found


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds in a text such as `3`, `0-4` (ends included) or `0,2,5-7`; raises UsageError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        bounds = RANGE.fullmatch(part.strip()) or re.fullmatch(r"((\d{1,18}))", part.strip())
        if bounds is None or int(bounds[1]) > int(bounds[2]):
            raise UsageError(f"seeds {text!r} are no seeds: write a number, a range such as 0-4, or 0,2,5-7")
        if (count := len(seeds) + int(bounds[2]) - int(bounds[1]) + 1) > MOST:
            raise UsageError(f"seeds {text!r} are {count} seeds or more, and a sweep has at most {MOST} points")
        seeds += range(int(bounds[1]), int(bounds[2]) + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {text!r} name a seed twice")
    return tuple(seeds)


def _seeded(paper: Paper, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The parameter of each seed. Of a notebook that takes a count, seed s means the seeds 0 to s."""
    parameters = paper.parameters()
    if "seed" in parameters:
        return [papers.checked(paper, {"seed": seed}) for seed in seeds]
    if "seeds" not in parameters:
        raise UsageError(unknown(f"parameter of {paper.name}", "seeds", parameters))
    counts = isinstance(parameters["seeds"].default, int)
    return [papers.checked(paper, {"seeds": seed + 1 if counts else [seed]}) for seed in seeds]


def _default_profile(paper: Paper) -> str:
    parameters = paper.parameters()
    if "profile" not in parameters:
        raise UsageError(unknown(f"parameter of {paper.name}", "profile", parameters))
    return parameters["profile"].default


class Sheet:
    """A sweep.yaml as it is read and checked, line by line."""

    def __init__(self, paper: Paper, path: Path):
        self.paper, self.path = paper, path
        self.parameters = paper.parameters()
        try:
            self.root = compose(path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UsageError(f"{path}, line {line}: not YAML: {error.problem}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML: {error}") from error
        if self.root is None:
            raise UsageError(f"{path} is empty: name values of a parameter under grid, or seeds, such as seeds: 0-4")

    def grids(self) -> dict[str, Grid]:
        """The grids of all profiles, so that a mistake is found before its profile is asked for."""
        entries = self._entries(self.root, "sweep.yaml", ("seeds", "grid", "zip", "profiles"))
        profiles = self.parameters["profile"].choices
        base = self._grid({name: node for name, node in entries.items() if name != "profiles"}, Grid((), {}, ()))
        grids = dict.fromkeys(profiles, base)
        if "profiles" in entries:
            for profile, node in self._entries(entries["profiles"], "profiles", profiles).items():
                grids[profile] = self._grid(self._entries(node, profile, ("seeds", "grid", "zip")), base)
        return grids

    def _grid(self, entries: dict[str, Node], base: Grid) -> Grid:
        seeds, product, groups = base.seeds, dict(base.product), base.groups
        if "seeds" in entries:
            seeds = self._seeds(entries["seeds"])
        if "grid" in entries:
            node = entries["grid"]
            product |= {name: self._values(name, values) for name, values in self._entries(node, "grid").items()}
        if "zip" in entries:
            groups = self._groups(entries["zip"])
        names = [*product, *(name for group in groups for name in group), *([self._seed_name()] if seeds else [])]
        for name, count in Counter(names).items():
            if count > 1:
                node = entries.get("zip") or entries.get("grid") or entries["seeds"]
                raise self._wrong(node, f"parameter {name} is set in two of seeds, grid and zip; keep one of them")
        return Grid(seeds, product, groups)

    def _seed_name(self) -> str:
        return "seed" if "seed" in self.parameters else "seeds"

    def _seeds(self, node: Node) -> tuple[int, ...]:
        value = self._plain(node)
        listed = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            seeds = seeds_of(listed)
            _seeded(self.paper, seeds)
        except UsageError as error:
            raise self._wrong(node, str(error)) from error
        return seeds

    def _groups(self, node: Node) -> tuple[Mapping[str, list], ...]:
        groups = []
        for item in node.value if isinstance(node, SequenceNode) else [node]:
            group = {name: self._values(name, values) for name, values in self._entries(item, "zip").items()}
            sizes = {name: len(values) for name, values in group.items()}
            if len(set(sizes.values())) > 1:
                lengths = ", ".join(f"{name} has {size} values" for name, size in sizes.items())
                raise self._wrong(item, f"what is zipped moves together, but {lengths}")
            groups.append(group)
        return tuple(groups)

    def _values(self, name: str, node: Node) -> list:
        """The values of a parameter: a list, a range of integers such as 1-5, or one value."""
        if name == "profile":
            raise self._wrong(node, "the profile is chosen with --profile; what differs at one goes under profiles")
        if name not in self.parameters:
            raise self._wrong(node, unknown(f"parameter of {self.paper.name}", name, self.parameters))
        whole = self._plain(node)
        if type(self.parameters[name].default) is int and (bounds := RANGE.fullmatch(str(whole))):
            if int(bounds[2]) - int(bounds[1]) >= MOST:
                raise self._wrong(node, f"parameter {name} has the values {whole}, more than {MOST}: name fewer")
            values = list(range(int(bounds[1]), int(bounds[2]) + 1))
        else:
            values = whole if isinstance(whole, list) else [whole]
        if not values:
            raise self._wrong(
                node, f"parameter {name} has no values ({whole!r}), so the grid is empty: name one or more"
            )
        nodes = node.value if isinstance(node, SequenceNode) else [node] * len(values)
        fitted = [self._fitted(name, value, item) for value, item in zip(values, nodes, strict=True)]
        for i, value in enumerate(fitted):
            if value in fitted[:i]:
                raise self._wrong(nodes[i], f"parameter {name} has the value {value!r} twice")
        return fitted

    def _fitted(self, name: str, value: Any, node: Node) -> Any:
        try:
            fitted = papers.checked(self.paper, {name: value})[name]
            canonical(fitted, name)
        except (ValueError, TypeError) as error:
            raise self._wrong(node, str(error)) from error
        return fitted

    def _entries(self, node: Node, what: str, valid: Sequence[str] = ()) -> dict[str, Node]:
        """The entries of a mapping, by name; none of them twice, all of them valid."""
        if not isinstance(node, MappingNode) or not node.value:
            known = f": {', '.join(valid)}" if valid else ""
            raise self._wrong(node, f"{what} takes names with their values{known}, but got {self._plain(node)!r}")
        entries: dict[str, Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else repr(self._plain(key))
            if name in entries:
                raise self._wrong(key, f"{name} is there twice in {what}; keep one of them")
            if valid and name not in valid:
                raise self._wrong(key, unknown(f"entry of {what}", name, valid))
            if not valid and name not in self.parameters:
                raise self._wrong(key, unknown(f"parameter of {self.paper.name}", name, self.parameters))
            entries[name] = value
        return entries

    def _plain(self, node: Node) -> Any:
        try:
            return plain(node)
        except yaml.MarkedYAMLError as error:
            raise self._wrong(node, error.problem) from error

    def _wrong(self, node: Node, message: str) -> UsageError:
        return UsageError(f"{self.path}, line {node.start_mark.line + 1}: {message}")
