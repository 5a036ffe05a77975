"""Claims as code: what a paper says, what was measured here, and whether the claim holds.

Most claims put a number above or below a bound. The number is a mean over seeds, mostly of differences or ratios
between runs of equal seed, and has a 95 % confidence interval. If the whole interval lies on the side that the paper
claims, the verdict is *holds*. If it lies on the other side, the verdict is *does not hold*. Otherwise, or with fewer
than three seeds, it is *undecided at this scale*.

Serves: every claim of every notebook, the tables "What held", `swarmbook list` and the report.
"""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from swarmbook.errors import unknown
from swarmbook.locations import papers_folder

if TYPE_CHECKING:  # listing claims must be instant; only making them takes pandas
    import pandas as pd

    from swarmbook.analysis.confidence import Estimate

VERDICTS = HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided at this scale"
MIMETYPE = "application/vnd.swarmbook.claims+json"  # a list of {id, text, paper, ours, verdict}


def verdict(measured: "Estimate", above: float | None = None, below: float | None = None) -> str:
    """The verdict on a claim that a number lies above a bound, or below one; `measured` is our estimate of it.

    ValueError unless exactly one of `above` and `below` is given.
    """
    if (above is None) == (below is None):
        raise ValueError("give one of above= and below=: the side of the bound on which the claim puts the number")
    if measured.n < 3:  # two seeds give an interval, but not one to rest a verdict on
        return UNDECIDED
    holds, fails = (
        (measured.low > above, measured.high < above)
        if below is None
        else (measured.high < below, measured.low > below)
    )
    return HOLDS if holds else FAILS if fails else UNDECIDED


def decided(true: bool) -> str:
    """The verdict on a claim that is true or false by counting or arithmetic, without spread."""
    return HOLDS if true else FAILS


def all_of(*verdicts: str) -> str:
    """The verdict on a claim of several parts: it fails if one part fails, and holds if all parts hold."""
    return FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else UNDECIDED


@dataclass(frozen=True)
class Claim:
    """One claim of a paper and the verdict of its notebook.

    paper, ours: what the paper says and what was measured here, as text that is ready to print. verdict: one of
    `VERDICTS`.
    """

    id: str
    text: str
    paper: str
    ours: str
    verdict: str

    def _repr_markdown_(self) -> str:
        return f"**{self.id} {self.verdict}**: {self.text}. Paper: {self.paper}. Ours: {self.ours}."


@dataclass
class Claims:
    """The claims of one notebook. It is shown as a table, from which `swarmbook list` reads the claims back."""

    claims: list[Claim] = field(default_factory=list)

    def add(self, id: str, text: str, paper: object, ours: object, verdict: str) -> Claim:
        """Note a claim, in place of an earlier one with this id; it is shown as a sentence if it ends a cell.

        ValueError for a verdict that is not in `VERDICTS`.
        """
        if verdict not in VERDICTS:
            raise ValueError(unknown("verdict", verdict, VERDICTS))
        claim = Claim(id, text, str(paper), str(ours), verdict)
        self.claims = [other for other in self.claims if other.id != id] + [claim]
        return claim

    def table(self) -> "pd.DataFrame":
        """One row a claim, by its id."""
        import pandas as pd

        return pd.DataFrame([asdict(claim) for claim in self.claims]).set_index("id")

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        import pandas as pd

        with pd.option_context("display.max_colwidth", None, "display.width", 250):
            table = self.table()
            return {
                "text/plain": table.to_string(),
                "text/html": table.to_html(),
                MIMETYPE: [asdict(claim) for claim in self.claims],
            }


def published(paper: str) -> "pd.DataFrame":
    """What a paper printed, with columns item (figure or table), series, quantity, value, unit, source, note.

    paper: its name, such as "noloco"; LookupError, with the names that there are, for another.
    """
    import pandas as pd

    tables = {path.parent.name: path for path in sorted(papers_folder().glob("*/published.csv"))}
    if paper not in tables:
        raise LookupError(unknown("paper", paper, tables))
    return pd.read_csv(tables[paper])


def printed(table: "pd.DataFrame", item: str, series: str, quantity: str) -> float:
    """One published number; KeyError, with the numbers that there are, unless exactly one fits."""
    rows = table[(table["item"] == item) & (table["series"] == series) & (table["quantity"] == quantity)]
    if len(rows) != 1:
        known = table[["item", "series", "quantity"]].to_string(index=False, header=False)
        raise KeyError(f"{len(rows)} published numbers for {(item, series, quantity)}; there are:\n{known}")
    return float(rows["value"].iloc[0])
