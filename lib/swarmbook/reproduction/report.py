"""The report: a static site of the executed notebooks, and a front page with the claims of all papers.

- Pages are nbconvert's, in its own JupyterLab theme, without the scripts that it would fetch. Nothing is loaded from
  anywhere and no script runs; a content security policy in each page has browsers hold to that, whatever a notebook
  shows. Pages read the same in light and dark themes, on a phone and on paper.
- What the report itself says of claims, labels and records is text: no HTML or Markdown in it counts.
- Below each figure, table and claim stands where it comes from: the runs that its cell stands on, what made them, and
  the command to repeat it. Each page ends with all that is recorded.
- What was recorded of a paper at another profile has a page of its own, and on the front page a place below the paper.

Serves: `swarmbook report`.
"""

import html
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from swarmbook import __version__
from swarmbook.analysis.claims import MARK, UNDECIDED, Claim
from swarmbook.errors import NotebookError
from swarmbook.records import atomic_files
from swarmbook.reproduction import papers, publishing
from swarmbook.reproduction.papers import Paper

if TYPE_CHECKING:
    from swarmbook.records.store import Record
    from swarmbook.reproduction.recorded_runs import Recorded

# what browsers may load and run for a page: pictures and styles that are in it
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
TEMPLATE = f"""\
{{%- extends 'lab/index.html.j2' -%}}
{{%- block html_head_js -%}}<meta http-equiv="Content-Security-Policy" content="{POLICY}">{{%- endblock -%}}
"""
TEMPLATE += """\
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>STYLE</style>{%- endblock -%}
"""
STYLE = """
body.jp-Notebook { max-width: 70rem; margin: 0 auto; padding: 1rem; overflow: visible; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
.jp-RenderedHTMLCommon table { display: block; max-width: 100%; overflow-x: auto; margin-left: 0; }
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th { text-align: left; vertical-align: top; white-space: normal; }
.jp-RenderedImage { overflow-x: auto; }
.jp-RenderedImage img { max-width: 100%; height: auto; }
.jp-RenderedImage img, .jp-RenderedHTML svg { background: #fff; } /* drawn for a light page */
.jp-OutputArea-output pre, .jp-InputArea-editor { overflow-x: auto; }
code { overflow-wrap: anywhere; }
.origin { color: var(--jp-content-font-color2); }
.keys, .keys td { font-family: var(--jp-code-font-family); font-size: var(--jp-code-font-size); }
@media (max-width: 40rem) {
  body.jp-Notebook { padding: 0.25rem; }
  .jp-RenderedImage img { max-width: 46rem; } /* smaller cannot be read; it scrolls by itself */
  table.claims :is(tbody, tr, td), table.claims { display: block; }
  table.claims thead { display: none; }
  table.claims tr { padding: 0.5rem 0; }
  table.claims td { padding: 0.1rem 0.5rem; }
  table.claims td:nth-child(4)::before { content: "paper: "; }
  table.claims td:nth-child(5)::before { content: "ours: "; }
}
@media print {
  body.jp-Notebook { max-width: none; }
  .jp-RenderedHTMLCommon table { display: table; font-size: 8pt; }
  .jp-OutputArea-output pre, .highlight pre { white-space: pre-wrap; }
  tr, img { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
}
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; } DARK }
"""


def build(chosen: Sequence[Paper], output: Path) -> Path:
    """Write `index.html` and one page for each paper, or record of one, into a folder; returns the front page's path.

    Raises NotebookError if a recorded run is damaged, or if it cannot be found out what a figure stands on.
    """
    import nbformat
    from nbformat.v4 import new_markdown_cell, new_notebook

    from swarmbook.reproduction import lineage
    from swarmbook.reproduction.recorded_runs import recorded

    output.mkdir(parents=True, exist_ok=True)
    template = _template()
    records = {paper.name: recorded(paper) for paper in chosen}
    if faults := [fault for record in records.values() for fault in record.faults]:
        raise NotebookError("\n".join(faults))
    stands_on = lineage.keys_of_cells(chosen)
    front = [
        "# swarmbook: what holds\n\nFive papers on computing with machines that nobody can rely on, each reproduced by "
        "one notebook. Verdicts rest on 95 % confidence intervals over seeds; "
        f"*{UNDECIDED}* means that the interval, or the size of the runs, leaves it open."
    ]
    for paper in chosen:
        record = records[paper.name]
        parents = lineage.parents(record)
        content = nbformat.read(paper.notebook, 4)
        front.append(_summary(paper, content))
        cells = [new_markdown_cell(_contents(content), id="contents")]
        for cell in content.cells:
            cells.append(cell)
            if shown := _shown(cell, paper):
                keys = stands_on[paper.name].get(cell["id"], frozenset())
                text = _origin(shown, paper, record, keys, lineage.ancestors(keys, parents))
                cells.append(new_markdown_cell(text, id=f"{cell['id']}-provenance"))
        content.cells = [*cells, new_markdown_cell(_record(paper, record, parents), id="provenance")]
        content.metadata["title"] = _title(paper)
        atomic_files.write(output / f"{paper.name}.html", publishing.html(content, template).encode())
    index = new_notebook(cells=[new_markdown_cell(text) for text in front], metadata={"title": "swarmbook"})
    atomic_files.write(output / "index.html", publishing.html(index, template).encode())
    return output / "index.html"


def _template() -> str:
    """nbconvert's page without its scripts. Where the reader's system has a dark theme, so has the page."""
    from nbconvert import HTMLExporter

    found = (Path(folder) / "lab/static/theme-dark.css" for folder in HTMLExporter().template_paths)
    dark = next(path for path in found if path.exists()).read_text(encoding="utf-8")
    style = STYLE.replace("DARK", dark)
    return TEMPLATE.replace("STYLE", "{% raw %}" + style + "{% endraw %}")


def _contents(content: Mapping[str, Any]) -> str:
    """The head of a page: links to the front page and to all figures and tables."""
    cells = [cell for cell in content["cells"] if papers.label_of(cell)]
    shown = " · ".join(f"<a href='{_anchor(cell)}'>{_escaped(papers.label_of(cell))}</a>" for cell in cells)
    return f"<p><a href='index.html'>All papers</a></p><p>{shown}</p>"


def _summary(paper: Paper, content: Mapping[str, Any]) -> str:
    """A paper on the front page: its claims as a table."""
    heading, page = "h3" if paper.profile else "h2", f"{quote(paper.name)}.html"
    counts = {verdict: sum(claim.verdict == verdict for claim in paper.claims) for verdict in MARK}
    said = ", ".join(f"{MARK[verdict]} {verdict}: {n}" for verdict, n in counts.items() if n) or "no claims yet"
    text = f"<{heading}>{_escaped(_title(paper))}</{heading}><p><a href='{page}'>The notebook</a>. {said}.</p>"
    rows = []
    for claim in paper.claims:
        label, anchor = _figure(claim, content)
        cells = (f"<b>{_escaped(claim.id)}</b>", *map(_escaped, (claim.text, f"{MARK[claim.verdict]} {claim.verdict}")))
        cells += (*map(_escaped, (claim.paper, claim.ours)), f"<a href='{page}{anchor}'>{_escaped(label)}</a>")
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    if rows:
        head = "".join(f"<th>{name}</th>" for name in ("claim", "", "verdict", "paper", "ours", "figure"))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        text += f"<table class='claims'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return text


def _title(paper: Paper) -> str:
    return f"{paper.title}{paper.profile and f', at the profile {paper.profile}'}"


def _figure(claim: Claim, content: Mapping[str, Any]) -> tuple[str, str]:
    """The figure or table from which a claim is read, and its anchor.

    It is the nearest at or before the cell that adds the claim, or the table of claims if no cell adds it by its name.
    """
    label, anchor, table = "notebook", "", ""
    for cell in content["cells"]:
        if shown := papers.label_of(cell):
            label, anchor = shown, _anchor(cell)
        if _adds(cell, claim):
            return label, anchor
        if "claims" in cell["metadata"].get("tags", []):
            table = _anchor(cell)
    return ("claims", table) if table else ("notebook", "")


def _anchor(cell: Mapping[str, Any]) -> str:
    return f"#cell-id={quote(cell['id'])}"


def _adds(cell: Mapping[str, Any], claim: Claim) -> bool:
    """Whether a cell adds a claim. Its name alone does not tell: a colour can have the name of a claim."""
    return re.search(rf"""\.add\(\s*["']{re.escape(claim.id)}["']""", cell["source"]) is not None


def _shown(cell: Mapping[str, Any], paper: Paper) -> str:
    """The figures, tables and claims that a cell shows, as one text."""
    claims = ", ".join(f"claim {claim.id}" for claim in paper.claims if _adds(cell, claim))
    return ", ".join(text for text in (papers.label_of(cell), claims) if text)


def _origin(shown: str, paper: Paper, record: "Recorded", keys: Set[str], ancestors: Set[str]) -> str:
    """Where what a cell shows comes from, as a closed block of HTML."""
    command = _escaped(paper.command)
    again = f"<code>{command}</code>"
    if not keys:
        said = f"{_escaped(shown)}: computed by {again}, from nothing recorded"
        return f"<details class='origin'><summary>{said}</summary></details>"
    text = [
        f"<summary>{_escaped(shown)}: from {_count(keys, record)}</summary>",
        f"<p>From the record again by {again}, from nothing by <code>{command} --fresh</code>.</p>",
        *(f"<p>{_escaped(made)}</p>" for made in sorted({_made(_of(key, record)) for key in keys | ancestors})),
        f"<p class='keys'>{_linked(keys)}</p>",
    ]
    if ancestors:
        text.append(f"<p class='keys'>These were made from {_count(ancestors, record)}: {_linked(ancestors)}</p>")
    return f"<details class='origin'>{''.join(text)}</details>"


def _record(paper: Paper, record: "Recorded", parents: Mapping[str, Set[str]]) -> str:
    """All that is recorded beside a notebook, by what made it, as Markdown."""
    command, name = _escaped(paper.command), _escaped(paper.name)
    text = [
        "## Where these numbers come from",
        f"<p>All of this page comes from executing its notebook with swarmbook {__version__}: "
        f"<code>{command}</code>. Below each figure, table and claim are the keys of the runs that it stands on.</p>",
    ]
    groups: dict[str, list[str]] = {}
    for key in sorted(parents):
        groups.setdefault(_made(_of(key, record)), []).append(key)
    if groups:
        text.append(
            f"<p><code>{command} --fresh</code> trains all runs again; <code>swarmbook verify {name}</code> does so "
            "with a sample of them, and compares. What is told of a run is what differs from the defaults of "
            "<code>RunConfig</code>.</p>"
        )
    else:
        text.append("Nothing is recorded beside it: it computes everything, from the seed among its parameters.")
    for made, keys in groups.items():
        told = {key: f"{_escaped(_described(key, record))} {_linked(parents[key])}" for key in keys}
        rows = (f"<tr id='run-{key}'><td>{key}</td><td>{text}</td></tr>" for key, text in told.items())
        summary = f"{_count(set(keys), record)}: {_escaped(made)}"
        text.append(f"<details><summary>{summary}</summary><table class='keys'>{''.join(rows)}</table></details>")
    return "\n\n".join(text)


def _of(key: str, record: "Recorded") -> "Record":
    return record.runs[key][0] if key in record.runs else record.tables[key]


def _made(record: "Record") -> str:
    """What made a run or table."""
    made = record.provenance
    how = f"swarmbook {made['swarmbook']}"
    if "torch" in made:
        how += f", torch {made['torch']}, numpy {made['numpy']}, Python {made['python']}, {made['device']}, "
        how += f"{made['threads']} thread{'s' * (made['threads'] > 1)}"
    return how


def _described(key: str, record: "Recorded") -> str:
    """The configuration of a run, or what a table depends on."""
    if key in record.runs:
        fields = record.runs[key][1].model_dump(mode="json", exclude_defaults=True, exclude={"start", "branch"})
    else:
        fields = {name: value for name, value in record.tables[key].config.items() if name not in ("data", "experts")}
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _count(keys: Set[str], record: "Recorded") -> str:
    runs, tables = len(keys & record.runs.keys()), len(keys & record.tables.keys())
    counts = (f"{n} {name}{'s' * (n > 1)}" for n, name in ((runs, "run"), (tables, "recorded table")) if n)
    return " and ".join(counts)


def _linked(keys: Set[str]) -> str:
    return " ".join(f"<a href='#run-{key}'>{key}</a>" for key in sorted(keys))


def _escaped(text: str) -> str:
    """Text as HTML, on one line: a blank one would end the block of HTML, and what follows would count as Markdown."""
    return html.escape(" ".join(text.split()))
