"""Papers as notebooks: what a committed notebook says about itself.

- Reading one needs nothing but JSON, so that listing the papers is instant.
- Figures and tables are tags of cells ("figure 4a"). Claims are an output of a cell, of type `MIMETYPE`.
- A cell of text with the tag "answer" has a few sentences: what the paper says, what was found, what would change that.
- `<name>.ipynb` was executed at the notebook's default profile. What was recorded at another lies beside it, as
  `<name>.<profile>.ipynb`.

Serves: every command.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swarmbook.analysis.claims import MIMETYPE, VERDICTS, Claim
from swarmbook.errors import DataError, NotebookError, UsageError, unknown
from swarmbook.locations import papers_folder
from swarmbook.reproduction.parameters_cell import parameters_of

PROFILES = ("smoke", "cpu", "gpu", "paper")
MOST_SEEDS = 10_000
CELLS = ("markdown", "code")
FOUND = "**Found.** "  # begins the paragraph of an answer that says what was found


@dataclass(frozen=True)
class Parameter:
    """One assignment of a notebook's cell of parameters. The comment behind it is its help."""

    name: str
    default: Any
    help: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that a help such as `smoke | cpu | gpu` allows; empty if all are, as with `auto | cpu ...`."""
        named = tuple(part.strip().split(" ")[0].strip("\"',.;") for part in self.help.split("|"))
        if len(named) > 1 and self.default in named and not self.help.rstrip().endswith("..."):
            return named
        return PROFILES if self.name == "profile" else ()


@dataclass(frozen=True)
class Paper:
    """A committed notebook and what it says about itself.

    It is `papers/<name>/<name>.ipynb`, or its record at another profile, `papers/<name>/<name>.<profile>.ipynb`.
    """

    name: str  # of the file, without .ipynb
    notebook: Path
    title: str
    figures: tuple[str, ...]
    tables: tuple[str, ...]
    claims: tuple[Claim, ...]
    profile: str  # of a record at a profile that is not the default; else empty
    answer: str = ""  # Markdown, a paragraph each for what the paper says, what was found, and what would change that

    @property
    def found(self) -> str:
        """The paragraph of the answer that says what was found, on one line, as README has it; empty without one."""
        paragraphs = (" ".join(paragraph.split()) for paragraph in self.answer.split("\n\n"))
        return next((text.removeprefix(FOUND) for text in paragraphs if text.startswith(FOUND)), "")

    def beside(self, name: str) -> Path:
        """The path of what lies beside it, such as `runs`; of a record at another profile, such as `runs.gpu`."""
        path = self.notebook.with_name(name)
        return path.with_name(f"{path.stem}.{self.profile}{path.suffix}") if self.profile else path

    @property
    def recorded(self) -> set[str]:
        """Keys of the runs and tables that are recorded beside the notebook."""
        return {path.stem for path in self.beside("runs").glob("*.parquet")}

    @property
    def runs(self) -> int:
        """How many runs and tables are recorded beside the notebook."""
        return len(self.recorded)

    @property
    def command(self) -> str:
        """The command that executes it again; with ` --record` it also records it."""
        return f"swarmbook run {self.notebook.parent.name}{self.profile and f' --profile {self.profile}'}"

    def parameters(self) -> dict[str, Parameter]:
        """The parameters cell; a default that is no literal stays source text. NotebookError where it is no Python."""
        cells = json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        try:
            found = [p for cell in tagged[:1] for p in parameters_of("".join(cell["source"]))]
        except SyntaxError as error:
            raise NotebookError(f"{self.notebook}: the parameters cell is no Python: {error}") from error
        return {p.name: Parameter(*p) for p in found}


def discover(folder: Path | None = None) -> dict[str, Paper]:
    """All papers below `folder` by name; raises NotebookError if one of the notebooks cannot be read."""
    folder = papers_folder() if folder is None else Path(folder).absolute()
    notebooks = (path for path in sorted(folder.glob("*/*.ipynb")) if path.stem == path.parent.name)
    return {path.stem: read_paper(path) for path in notebooks}


def records(folder: Path | None = None) -> dict[str, Paper]:
    """All papers by name, as `discover` finds them, each followed by its records at other profiles."""
    found = {}
    for name, paper in discover(folder).items():
        others = map(read_paper, sorted(paper.notebook.parent.glob(f"{name}.*.ipynb")))
        found |= {name: paper} | {other.name: other for other in others}
    return found


def at(paper: Paper, profile: str | None) -> Paper:
    """The record of a paper at a profile, whether it is there or not.

    profile: for the default one, and for None, the record is the paper itself.
    """
    if profile is None or profile == paper.parameters()["profile"].default:
        return paper
    other = replace(paper, name=f"{paper.name}.{profile}", profile=profile)
    return replace(other, notebook=other.beside(paper.notebook.name))


def chosen(names: Sequence[str], known: Mapping[str, Paper]) -> list[Paper]:
    """The papers that are named, or all if none is. A paper's name also stands for its records at other profiles.

    Raises UsageError for a name that is not known.
    """
    picked = {}
    for name in names or known:
        if name not in known:
            raise UsageError(unknown("paper", name, known))
        picked |= {paper.name: paper for paper in known.values() if name in (paper.name, paper.notebook.parent.name)}
    return list(picked.values())


def read_paper(notebook: Path) -> Paper:
    """What a notebook says about itself; nothing is executed. Raises NotebookError if it cannot be read."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        cells = content["cells"]
        labels = [label for cell in cells for label in _labels(cell)]
        sources = {kind: ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind] for kind in CELLS}
        claims = claims_of(content, str(notebook))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotebookError(f"{notebook} is not a notebook ({error}); restore it from git") from error
    heading = re.search(r"^#+ *(.+)", "\n".join(sources["markdown"]), re.MULTILINE)
    answers = ["".join(cell["source"]) for cell in cells if "answer" in cell["metadata"].get("tags", [])]
    return Paper(
        name=notebook.stem,
        notebook=notebook,
        title=heading[1].strip() if heading else notebook.stem,
        figures=tuple(label for label in labels if label.startswith("figure ")),
        tables=tuple(label for label in labels if label.startswith("table ")),
        claims=claims,
        profile=notebook.stem.partition(f"{notebook.parent.name}.")[2],
        answer="\n\n".join(answers),
    )


def claims_of(content: Mapping[str, Any], where: str) -> tuple[Claim, ...]:
    """The claims in the outputs of a notebook given as nbformat's JSON; `where` names it in errors.

    Of a claim that is shown more than once the last one counts, in its place.
    """
    outputs = (output for cell in content["cells"] for output in cell.get("outputs", []))
    found: dict[str, Claim] = {}
    for row in (row for output in outputs for row in output.get("data", {}).get(MIMETYPE, [])):
        claim = _claim(row, where)
        found.pop(claim.id, None)
        found[claim.id] = claim
    return tuple(found.values())


def claims_shown(cell: Mapping[str, Any]) -> list[str]:
    """The ids of the claims that an executed cell adds, in its order. A table of claims adds none."""
    outputs = (output.get("data", {}) for output in cell.get("outputs", []))
    return [row["id"] for data in outputs if "text/markdown" in data for row in data.get(MIMETYPE, [])]


def _claim(row: Any, where: str) -> Claim:
    try:
        said = (str(row[field]) for field in ("id", "text", "paper", "ours", "verdict"))
        claim = Claim(*said, power=str(row.get("power", "")))
    except (KeyError, TypeError, AttributeError) as error:
        raise NotebookError(f"{where}: a claim lacks id, text, paper, ours or verdict: {row!r}") from error
    if claim.verdict not in VERDICTS:
        valid = ", ".join(map(repr, VERDICTS))
        raise NotebookError(f"{where}: claim {claim.id} has verdict {claim.verdict!r}; valid: {valid}")
    return claim


def _labels(cell: Mapping[str, Any]) -> list[str]:
    """The figures and tables that a cell shows."""
    return [tag for tag in cell["metadata"].get("tags", []) if tag.startswith(("figure ", "table "))]


def label_of(cell: Mapping[str, Any]) -> str:
    """The figures and tables that a cell shows, as one text; empty if none."""
    return ", ".join(_labels(cell))


def checked(paper: Paper, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` for the paper's parameters; raises UsageError where a name, a choice, a type or a value is wrong.

    An integer passes for a float (and becomes one), anything for None; a list's items must fit the default's. Values
    are checked of the parameters that mean the same in all notebooks: seeds, data and device.
    """
    parameters = paper.parameters()
    result = {}
    for name, value in values.items():
        if name not in parameters:
            raise UsageError(unknown(f"parameter of {paper.name}", name, parameters))
        parameter = parameters[name]
        if isinstance(value, str) and parameter.choices and value not in parameter.choices:
            raise UsageError(unknown(f"{name} of {paper.name}", value, parameter.choices))
        try:
            result[name] = _fitted(_storable(value), parameter.default)
        except TypeError as error:
            raise UsageError(
                f"parameter {name} of {paper.name} is {parameter.default!r} by default, so it takes "
                f"{_kind(parameter.default)}, but got {value!r} ({_kind(value)}){error}"
            ) from error
        if reason := _refused(name, result[name]):
            raise UsageError(f"parameter {name} of {paper.name} cannot be {value!r}: {reason}")
    return result


def _refused(name: str, value: Any) -> str:
    """Why no notebook could take this value of a parameter; empty if there is no reason known here."""
    if name in ("seed", "seeds") and isinstance(value, (int, list)):
        if any(isinstance(seed, int) and seed < 0 for seed in (value if isinstance(value, list) else [value])):
            return "seeds are numbers from 0 on"
        if name == "seeds" and (len(value) if isinstance(value, list) else value) > MOST_SEEDS:
            return f"it takes at most {MOST_SEEDS} seeds"
    if name == "data" and isinstance(value, str) and value:
        return _not_to_be_had(value)
    if name == "device" and isinstance(value, str) and not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value, re.ASCII):
        return "give auto, cpu, cuda or cuda:<number>"
    return ""


def _not_to_be_had(data: str) -> str:
    """Why texts of this name, several joined by "+", cannot be had; empty if the name is right."""
    from swarmbook.data.tokenization import sources_of

    try:
        for source in sources_of(data):
            source.content()
    except DataError as error:
        return str(error)
    return ""


def _storable(value: Any) -> Any:
    """The value as a notebook can hold it: tuples as lists. TypeError says what JSON and papermill do not have."""
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {name: _storable(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError("; a notebook cannot hold it")
    if not isinstance(value, (str, int, float, type(None))):
        raise TypeError("; give text, numbers, true or false, lists or mappings of them")
    return value


def _fitted(value: Any, default: Any) -> Any:
    if default is None:
        return value
    if isinstance(default, float):
        if isinstance(value, str):  # YAML 1.1 takes 1e-3 for text
            try:
                return _storable(float(value))
            except ValueError:
                raise TypeError from None
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    if isinstance(default, tuple):
        default = list(default)
    if type(value) is not type(default):
        hint = "; text that reads as something else needs quotes of its own: '\"...\"'"
        raise TypeError(hint if isinstance(default, str) else "")
    if isinstance(default, list) and default:
        return [_fitted(item, default[0]) for item in value]
    return value


def _kind(value: Any) -> str:
    names = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "nothing"}
    names |= {list: "a list", tuple: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)
