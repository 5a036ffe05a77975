"""The notebook that puts the claims of all points of a sweep side by side.

Serves: `swarmbook sweep`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmbook.analysis.claims import VERDICTS, Claim
from swarmbook.errors import NotebookError
from swarmbook.records import atomic_files
from swarmbook.reproduction import execution, papers
from swarmbook.reproduction.papers import Paper
from swarmbook.reproduction.sweep import Point, unwritten

if TYPE_CHECKING:
    import pandas as pd


def collect(paper: Paper, points: Sequence[Point], environment: Mapping[str, str]) -> execution.Execution:
    """Write `sweep.ipynb` beside the folders of the points, and execute it.

    environment: is added to the kernel's. Raises NotebookError if it fails or cannot be written.
    """
    import nbformat
    from filelock import FileLock
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    folder, profile = points[0].folder.parent, points[0].parameters["profile"]
    names = "".join(f"    {point.name!r},\n" for point in points)
    cells = [
        new_markdown_cell(
            f"# {paper.name}: a sweep at `{profile}`\n\n{paper.title}\n\nEach point is one execution of the notebook; "
            "its folder here has the same name. A point of several seeds shows their spread in its own numbers."
        ),
        new_code_cell(
            "import pandas as pd\n\nfrom swarmbook.reproduction import sweep_summary\n\n"
            "pd.set_option('display.max_colwidth', None)\n"
            f"points = sweep_summary.read_points({paper.name!r}, [\n{names}])\npoints.table()"
        ),
        new_markdown_cell("**The claims**: from the least to the greatest number over all points, and their verdicts."),
        new_code_cell("points.summary()", metadata={"tags": ["claims"]}),
        new_markdown_cell("**Point by point.**"),
        new_code_cell("points.side_by_side()"),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    try:
        with FileLock(folder / ".collect.lock", fallback_to_soft=False):
            atomic_files.write(folder / "sweep.ipynb", nbformat.writes(new_notebook(cells=cells)).encode())
            return execution.execute(papers.read_paper(folder / "sweep.ipynb"), {}, None, environment, folder=folder)
    except OSError as error:
        raise NotebookError(unwritten(folder, error)) from error


@dataclass(frozen=True)
class Collected:
    """The points of a sweep by name: the parameters and claims of each, or None for one that was not executed."""

    points: dict[str, tuple[dict[str, Any], tuple[Claim, ...]] | None]

    def table(self) -> "pd.DataFrame":
        """One row a point: its parameters, and how many claims have each verdict."""
        import pandas as pd

        rows = []
        for name, point in self.points.items():
            counts = Counter(claim.verdict for claim in point[1]) if point else {}
            verdicts = {verdict: str(counts[verdict]) if point else "" for verdict in VERDICTS}
            parameters = {key: str(value) for key, value in point[0].items()} if point else {}
            rows.append({"point": name, **parameters, "executed": "yes" if point else "no", **verdicts})
        return pd.DataFrame(rows).fillna("").set_index("point")

    def claims(self) -> list[Claim]:
        """Each claim once for all points: the range of its numbers, and a count of its verdicts."""
        merged = []
        for id, claims in self._by_id().items():
            counts = Counter(claim.verdict for claim in claims.values())
            verdicts = ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
            last = list(claims.values())[-1]
            merged.append(Claim(id, last.text, last.paper, spread([c.ours for c in claims.values()]), verdicts))
        return merged

    def summary(self) -> "pd.DataFrame":
        import pandas as pd

        rows = [(c.id, c.text, c.paper, c.ours, c.verdict) for c in self.claims()]
        return pd.DataFrame(rows, columns=["id", "claim", "paper", "ours, over points", "verdicts"]).set_index("id")

    def side_by_side(self) -> "pd.DataFrame":
        """One row a claim, one column a point."""
        import pandas as pd

        cells = {
            id: {name: f"{claim.ours} ({claim.verdict})" for name, claim in claims.items()}
            for id, claims in self._by_id().items()
        }
        return pd.DataFrame.from_dict(cells, orient="index", columns=self._executed()).fillna("")

    def _executed(self) -> list[str]:
        return [name for name, point in self.points.items() if point]

    def _by_id(self) -> dict[str, dict[str, Claim]]:
        found: dict[str, dict[str, Claim]] = {}
        for name in self._executed():
            for claim in self.points[name][1]:
                found.setdefault(claim.id, {})[name] = claim
        return found


def read_points(paper: str, names: Sequence[str], folder: Path | str = ".") -> Collected:
    """The points of a paper's sweep by the names of their folders, which lie below `folder`."""
    found: dict[str, tuple[dict[str, Any], tuple[Claim, ...]] | None] = {}
    for name in names:
        executed = Path(folder) / name / f"{paper}.ipynb"
        if not executed.exists():
            found[name] = None
            continue
        stamp = execution.stamp_of(executed) or {}
        found[name] = stamp.get("parameters", {}), papers.read_paper(executed).claims
    return Collected(found)


NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def spread(texts: Sequence[str]) -> str:
    """Texts that differ in their numbers only as one text, with a range for each number that varies; else all texts."""
    if len({NUMBER.sub("#", text) for text in texts}) > 1:
        return "; ".join(dict.fromkeys(texts))
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    ranges = []
    for column in columns:
        low, *_, high = 2 * sorted(column, key=lambda number: float(number.replace("−", "-")))
        ranges.append(low if low == high else f"{low} to {high}")
    found = iter(ranges)
    return NUMBER.sub(lambda _: next(found), texts[0])
