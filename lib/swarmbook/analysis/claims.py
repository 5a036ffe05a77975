"""Claims as code: what a paper says, what was measured here, and whether the claim holds.

**The rule.** A verdict has a direction and a size.

- *Direction.* A claim puts a number above or below a bound. The number is a mean over seeds, mostly of differences or
  ratios between runs of equal seed, and has a 95 % confidence interval. If the whole interval lies on the side that
  the paper claims, the direction holds. If it lies on the other side, the verdict is *does not hold*. Otherwise, or
  with fewer than three seeds, it is *undecided at this scale*. A claim that something is "at most" so much has a
  bound alone.
- *Size.* Where the paper prints the number itself, or a range for it, the direction is not enough. The verdict is
  *holds* if our interval and the paper's range meet, and *the direction holds, the size differs* if they do not. The
  interval excludes the bound by then, so it is not so wide that it meets everything.
- *Power.* A claim may name a control, something that must make a clear difference if the comparison can show
  anything, and the least size that the difference must have: the paper's own effect, or else the claim's bound. If
  the interval of the control does not lie above that size, the verdict is *no power at this scale*, whatever was
  measured.
- Counts and arithmetic have no spread, and are decided by the same directions and sizes. A claim of several parts is
  as good as its worst part.
- The unit is the same on both sides. Where ours is per byte and the paper's per token, a size is compared per token.

**Where to find what.** A claim is shown where it is added, below the heading of its id, so that `#` and its `anchor`
lead there. `Claims.strip` shows all verdicts in one place, at the top of a notebook, and follows the claims as they
are added. Of an executed notebook, `swarmbook.reproduction.papers.read_paper` gives `claims`, each with id, verdict
and anchor, `answer`, the sentences that stand below the strip, and `found`, the one line of them that README has.
`papers.claims_shown` says which claims a cell adds, `MARK` has a sign for each verdict, and `by_verdict` sorts claims
into them.

Serves: every claim of every notebook, the strips of verdicts, the tables "What held", `swarmbook list` and the
report.
"""

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from swarmbook.errors import unknown
from swarmbook.locations import papers_folder

if TYPE_CHECKING:  # listing claims must be instant; only making them takes pandas
    import pandas as pd

    from swarmbook.analysis.confidence import Estimate

HOLDS, DIRECTION, FAILS = "holds", "the direction holds, the size differs", "does not hold"
UNDECIDED, POWERLESS = "undecided at this scale", "no power at this scale"
MARK = {HOLDS: "✓", DIRECTION: "→", FAILS: "✗", UNDECIDED: "?", POWERLESS: "∅"}  # read without colour
VERDICTS = tuple(MARK)
MIMETYPE = "application/vnd.swarmbook.claims+json"  # a list of claims as mappings, see `Claim`
STRIP = "swarmbook-verdicts"  # names the output in which a notebook shows all verdicts
HEADING = "##### "  # begins what is shown of a claim; its id follows
Range = tuple[float, float]


def verdict(
    measured: "Estimate", above: float | None = None, below: float | None = None, size: float | Range | None = None
) -> str:
    """The verdict on a claim that a number lies above a bound, or below one; `measured` is our estimate of it.

    size: the number that the paper prints, or the least and the largest of its range, in the unit of `measured`.
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
    if not holds:
        return FAILS if fails else UNDECIDED
    least, largest = size if isinstance(size, tuple) else (size, size)
    return HOLDS if size is None or (measured.low <= largest and measured.high >= least) else DIRECTION


def decided(direction: bool, size: bool = True) -> str:
    """The verdict on a claim that is true or false by counting or arithmetic, without spread."""
    return FAILS if not direction else HOLDS if size else DIRECTION


def all_of(*verdicts: str) -> str:
    """The verdict on a claim of several parts: that of its worst part. What fails is worst, then what has no power."""
    order = (FAILS, POWERLESS, UNDECIDED, DIRECTION, HOLDS)
    return min(verdicts, key=order.index)


def whatever(*verdicts: str) -> str:
    """The verdict on a claim under each of several assumptions: the common one, undecided where it depends on them."""
    return verdicts[0] if len(set(verdicts)) == 1 else UNDECIDED


@dataclass(frozen=True)
class Claim:
    """One claim of a paper and the verdict of its notebook.

    paper, ours: what the paper says and what was measured here, as text that is ready to print. verdict: one of
    `VERDICTS`. power: what the control shows, as text; empty where the claim names none.
    """

    id: str
    text: str
    paper: str
    ours: str
    verdict: str
    power: str = ""

    @property
    def anchor(self) -> str:
        """The part of a link behind "#" that leads to the claim, in JupyterLab and in pages of HTML."""
        return self.id.replace(" ", "-")

    def markdown(self) -> str:
        """The claim as it is shown: its id as a heading, and a sentence in which no Markdown or HTML counts."""
        power = f" Power: {self.power}." if self.power else ""
        said = _escaped(f"{self.text}. Paper: {self.paper}. Ours: {self.ours}.{power}")
        return f"{HEADING}{_escaped(self.id)}\n\n{MARK[self.verdict]} **{self.verdict}**: {said}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/plain": repr(self), "text/markdown": self.markdown(), MIMETYPE: [asdict(self)]}


def _escaped(text: str) -> str:
    """Text as Markdown, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]~$#|])", r"\\\1", text)


def by_verdict(claims: Iterable[Claim]) -> dict[str, list[Claim]]:
    """The claims of each verdict that there is, in the order of `VERDICTS`."""
    claims = list(claims)
    found = {verdict: [claim for claim in claims if claim.verdict == verdict] for verdict in VERDICTS}
    return {verdict: group for verdict, group in found.items() if group}


@dataclass(frozen=True)
class Strip:
    """The verdicts of a notebook's claims in a few lines, each claim linked to its evidence.

    profile: at which they were judged.
    """

    claims: tuple[Claim, ...]
    profile: str

    def _lines(self, named: Callable[[Claim], str]) -> list[str]:
        if not self.claims:
            return ["No verdicts yet: they appear here as the claims below are judged."]
        lines = [f"Verdicts at the profile `{self.profile}`, {len(self.claims)} claims"]
        for verdict, group in by_verdict(self.claims).items():
            lines.append(f"{MARK[verdict]} {verdict} ({len(group)}): {' · '.join(map(named, group))}")
        return lines

    def __repr__(self) -> str:
        return "\n".join(self._lines(lambda claim: claim.id))

    def _repr_markdown_(self) -> str:
        links = self._lines(lambda claim: f"[{_escaped(claim.id)}](#{quote(claim.anchor, safe=',.:+')})")
        return "  \n".join(links)  # two spaces end a line


@dataclass
class Claims:
    """The claims of one notebook. It is shown as a table, from which `swarmbook list` reads the claims back.

    profile: the size at which they are judged, as the strip of verdicts says it.
    """

    claims: list[Claim] = field(default_factory=list)
    profile: str = ""

    def strip(self) -> None:
        """Show all verdicts here, and show them anew whenever a claim is added."""
        self._show()

    def add(
        self,
        id: str,
        text: str,
        paper: object,
        ours: object,
        verdict: str,
        power: "tuple[Estimate, float, str] | None" = None,
    ) -> None:
        """Note a claim, in place of an earlier one with this id, and show it.

        power: the effect of a control as an estimate, the least size that it must have, and what it is in words.
        Without three seeds, or where the interval of the effect does not lie above that size, the verdict becomes
        "no power". ValueError for a verdict that is not in `VERDICTS`, and for an id to which no link can lead.
        """
        from IPython.display import display

        if "%" in id:  # browsers decode it in links, and then look for another place
            raise ValueError(
                f"the claim's id {id!r} has a %, and links cannot lead to it: write 'percent' or leave it out"
            )
        if verdict not in VERDICTS:
            raise ValueError(unknown("verdict", verdict, VERDICTS))
        checked = ""
        if power is not None:
            effect, least, what = power
            enough = effect.n >= 3 and effect.low > least
            checked = f"{what}: {effect}, where more than {least:.3g} is needed"
            verdict = verdict if enough else POWERLESS
        claim = Claim(id, text, str(paper), str(ours), verdict, checked)
        self.claims = [other for other in self.claims if other.id != id] + [claim]
        display(claim)
        self._show(update=True)

    def _show(self, update: bool = False) -> None:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None or not update:  # elsewhere there is no place to show it in
            display(Strip(tuple(self.claims), self.profile), display_id=STRIP, update=update)

    def table(self) -> "pd.DataFrame":
        """One row a claim, by its id."""
        import pandas as pd

        rows = pd.DataFrame([asdict(claim) for claim in self.claims]).set_index("id")
        return rows if rows["power"].any() else rows.drop(columns="power")

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
