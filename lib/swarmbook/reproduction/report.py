"""The report: a static site of the executed notebooks, and a front page that says what holds.

- The front page has a matrix of verdicts, a picture and a sentence of each paper, and all claims, to be filtered and
  searched. Each claim leads to its place in the notebook's page and to the figures and tables that show it.
- A page is a notebook, by nbconvert. Claims and figures have places of their own, such as `noloco.html#3A` and
  `noloco.html#figure-2`. A figure comes with its picture, its numbers as CSV, and an SVG if `swarmbook run --figures`
  has drawn the same picture.
- Below each figure, table and claim stands where it comes from (`swarmbook.reproduction.report_origins`).
- What the report itself says of claims, labels and records is text: no HTML or Markdown in it counts.
- What was recorded of a paper at another profile has a page of its own, and on the front page a place below the paper.

Serves: `swarmbook report`.
"""

import base64
import datetime
import io
import subprocess
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from swarmbook import __version__
from swarmbook.analysis.claims import MARK, VERDICTS, Claim, by_verdict
from swarmbook.errors import NotebookError
from swarmbook.locations import runs_folder
from swarmbook.records import atomic_files
from swarmbook.reproduction import evidence, papers, publishing
from swarmbook.reproduction.papers import Paper
from swarmbook.reproduction.publishing import slug
from swarmbook.reproduction.report_origins import escaped, origin, record_of
from swarmbook.reproduction.report_theme import SCRIPT, name_of, template

WIDE = 768  # pixels of a picture on the front page, twice its width there


@dataclass(frozen=True)
class Page:
    """A paper's notebook as a page."""

    paper: Paper
    content: Any  # as nbformat reads it

    @property
    def name(self) -> str:
        return quote(f"{self.paper.name}.html")

    @property
    def title(self) -> str:
        return f"{self.paper.title}{self.paper.profile and f', at the profile {self.paper.profile}'}"

    @cached_property
    def added(self) -> set[str]:
        """The claims that a cell shows where it adds them."""
        return {id for cell in self.content.cells for id in papers.claims_shown(cell)}

    @cached_property
    def shows(self) -> dict[str, list[str]]:
        """The figures and tables that each claim stands on."""
        found = evidence.evidence(self.content.cells, [claim.id for claim in self.paper.claims])
        return {id: [papers.label_of(self.content.cells[n]) for n in numbers] for id, numbers in found.items()}

    def place(self, claim: Claim) -> str:
        """The link to a claim: to its own place, or to the table of all claims if no cell adds it by its id."""
        return f"{self.name}#{quote(claim.anchor) if claim.id in self.added else 'all-claims'}"


def build(chosen: Sequence[Paper], output: Path, say: Callable[[float, str], None] = lambda *_: None) -> Path:
    """Write `index.html` and one page for each paper, or record of one, into a folder; returns the front page's path.

    say: is told what share is done, and what is done now.
    Raises NotebookError if a recorded run is damaged, or if it cannot be found out what a figure stands on.
    """
    import nbformat

    from swarmbook.reproduction import lineage
    from swarmbook.reproduction.recorded_runs import recorded

    output.mkdir(parents=True, exist_ok=True)
    records = {}
    for number, paper in enumerate(chosen):
        say(number / len(chosen) / 2, f"checking what is recorded of {paper.name}")
        records[paper.name] = recorded(paper)
    if faults := [fault for record in records.values() for fault in record.faults]:
        raise NotebookError("\n".join(faults))
    say(0.5, "looking up which runs each figure stands on")
    stands_on = lineage.keys_of_cells(chosen)
    pages = []
    for number, paper in enumerate(chosen):
        say(0.5 + number / len(chosen) / 2, f"writing {paper.name}.html")
        pages.append(Page(paper, nbformat.read(paper.notebook, 4)))
        _write_page(pages[-1], records[paper.name], stands_on[paper.name], output)
    return _write_front(pages, output)


def _write_page(page: Page, record: Any, stands_on: Mapping[str, Set[str]], output: Path) -> None:
    """Write the page of a paper, its notebook as a file, and its figures."""
    from nbformat.v4 import new_markdown_cell

    from swarmbook.reproduction import lineage

    paper, parents = page.paper, lineage.parents(record)
    executed = runs_folder(paper.notebook.parents[1]) / paper.name / "figures"
    files = publishing.write_figures(page.content, output / "figures" / paper.name, executed)
    atomic_files.write(output / paper.notebook.name, paper.notebook.read_bytes())
    links = {label: [path.relative_to(output).as_posix() for path in own] for label, own in files.items()}
    cells = [new_markdown_cell(_head(page), id="contents")]
    for cell in page.content.cells:
        if text := _places(cell, links):
            cells.append(new_markdown_cell(text, id=f"{cell['id']}-place"))
        cells.append(cell)
        for shown in cell.get("outputs", []):
            if "text/html" in shown.get("data", {}):
                shown.data["text/html"] = publishing.without_handlers(shown.data["text/html"])
        told = ", ".join(filter(None, (papers.label_of(cell), *(f"claim {id}" for id in papers.claims_shown(cell)))))
        if told:
            keys = stands_on.get(cell["id"], frozenset())
            text = origin(told, paper, record, keys, lineage.ancestors(keys, parents))
            cells.append(new_markdown_cell(text, id=f"{cell['id']}-provenance"))
    whole = page.content.copy()
    whole.cells = [*cells, new_markdown_cell(record_of(paper, record, parents), id="provenance")]
    whole.metadata["title"] = page.title
    atomic_files.write(output / f"{paper.name}.html", publishing.html(whole, template(), fold=True).encode())


def _head(page: Page) -> str:
    """The head of a page: links to the front page, the notebook, and all figures and tables; its verdicts, unless the
    notebook shows them itself."""
    labels = [papers.label_of(cell) for cell in page.content.cells if papers.label_of(cell)]
    shown = " · ".join(f"<a href='#{quote(slug(label))}'>{escaped(label)}</a>" for label in labels)
    text = f"<p><a href='index.html'>All papers</a> · <a href='{quote(page.paper.notebook.name)}'>this notebook</a></p>"
    if not any("verdicts" in cell["metadata"].get("tags", []) for cell in page.content.cells):
        text += f"<p>{_marks(page, page.paper.claims)}</p>"
    return f"{text}<p>{shown}</p>"


def _places(cell: Mapping[str, Any], files: Mapping[str, Sequence[str]]) -> str:
    """The places to which links to a cell's figures lead; empty if it has none. files: paths by label.

    A claim needs none: its id is a heading.
    """
    text, label = "", papers.label_of(cell)
    if label:
        own = dict.fromkeys(path for name in label.split(", ") for path in files.get(name, ()))
        links = " · ".join(f"<a href='{quote(path)}'>{path[-3:].upper()}</a>" for path in own)
        link = f"<a href='#{quote(slug(label))}'>{escaped(label)}</a>"
        text = f"<p class='label' id='{escaped(slug(label))}'>{link}{links and f'<small>{links}</small>'}</p>"
    if "claims" in cell["metadata"].get("tags", []):
        text += "<p class='label' id='all-claims'></p>"
    return text


def _write_front(pages: Sequence[Page], output: Path) -> Path:
    from nbformat.v4 import new_markdown_cell, new_notebook

    claims = [claim for page in pages for claim in page.paper.claims]
    text = [
        "<h1>swarmbook: what holds</h1><p>Papers on computing with machines that nobody can rely on, each reproduced "
        "by one notebook. Verdicts rest on 95 % confidence intervals over seeds.</p>",
        _matrix(pages),
        f"<p class='made'>{_made(pages)}</p>",
        *map(_summary, pages),
        "<h2 id='claims'>All claims</h2>",
        _filters(pages, by_verdict(claims)) + _claims(pages) if claims else "<p>No claims yet.</p>",
    ]
    front = new_notebook(cells=[new_markdown_cell(part) for part in text], metadata={"title": "swarmbook"})
    looks = template(SCRIPT if claims else "", tuple(slug(page.paper.name) for page in pages))
    atomic_files.write(output / "index.html", publishing.html(front, looks).encode())
    return output / "index.html"


def _made(pages: Sequence[Page]) -> str:
    """When the report was made, by which version, and of which commit."""
    command = ["git", "-C", str(pages[0].paper.notebook.parent), "describe", "--always", "--dirty=, with changes"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # there is no git
        commit = ""
    today = datetime.date.today().isoformat()
    said = f"Made on <time>{today}</time> by swarmbook {__version__}{commit and f', commit {escaped(commit)}'}."
    notebooks = (
        f"<a href='{quote(page.paper.notebook.name)}'>{escaped(page.paper.notebook.name)}</a>" for page in pages
    )
    return f"{said} Sources: {', '.join(notebooks)}."


def _mark(claim: Claim, link: str) -> str:
    """A claim as a small link: its sign and id, and for who listens the verdict and the claim in words."""
    said = f"<span class='only-read'> {escaped(claim.verdict)}: {escaped(claim.text)}</span>"
    what = f"<span aria-hidden='true'>{MARK[claim.verdict]}</span> {escaped(claim.id)}{said}"
    title = escaped(f"{claim.verdict}: {claim.text}")
    return f"<a class='mark {name_of(claim.verdict)}' href='{link}' title='{title}'>{what}</a>"


def _marks(page: Page, claims: Sequence[Claim]) -> str:
    return "".join(_mark(claim, page.place(claim)) for claim in claims)


def _verdict(verdict: str) -> str:
    return f"<span class='{name_of(verdict)}'><span aria-hidden='true'>{MARK[verdict]}</span> {escaped(verdict)}</span>"


def _matrix(pages: Sequence[Page]) -> str:
    """One row a paper, one column a verdict: how many claims, and each of them as a mark."""
    there = [verdict for verdict in VERDICTS if any(verdict in by_verdict(page.paper.claims) for page in pages)]
    head = "".join(f"<th scope='col'>{_verdict(verdict)}</th>" for verdict in there)
    rows = []
    for page in pages:
        groups = by_verdict(page.paper.claims)
        cells = []
        for verdict in there:
            group = groups.get(verdict, [])
            count = f"{len(group)}&ensp;{_marks(page, group)}" if group else ""
            cells.append(f"<td data-verdict='{escaped(verdict)}'>{count}</td>")
        name = f"<a href='{page.name}'>{escaped(page.paper.name)}</a>"
        rows.append(f"<tr><th scope='row'>{name}</th>{''.join(cells)}</tr>")
    return f"<table class='matrix'><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _summary(page: Page) -> str:
    """A paper on the front page: what was found in a sentence, and a picture."""
    from nbconvert.filters import markdown2html

    heading = "h3" if page.paper.profile else "h2"
    title = f"<{heading}><a href='{page.name}'>{escaped(page.title)}</a></{heading}>"
    groups = {verdict: len(group) for verdict, group in by_verdict(page.paper.claims).items()}
    counts = ", ".join(f"{_verdict(verdict)}: {count}" for verdict, count in groups.items()) or "no claims yet"
    found = " ".join(markdown2html(page.paper.found).split())
    return f"{title}<div class='paper'><div><p>{counts}.</p>{found}</div>{_picture(page)}</div>"


def _picture(page: Page) -> str:
    """The figure that the first claim stands on, or else the first of the notebook, as a small picture with a link."""
    from PIL import Image

    pictures = publishing.pictures(page.content)
    wanted = [label for labels in page.shows.values() for names in labels for label in names.split(", ")]
    if not (labels := [label for label in (*wanted, *pictures) if label in pictures]):
        return ""
    label = labels[0]
    image = Image.open(io.BytesIO(pictures[label])).convert("RGB")
    image.thumbnail((WIDE, WIDE))
    file = io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(file, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    cell = next(cell for cell in page.content.cells if label in papers.label_of(cell).split(", "))
    alt = escaped(f"{label} of {page.paper.title}")
    link = f"{page.name}#{quote(slug(papers.label_of(cell)))}"
    size = f"width='{image.width}' height='{image.height}'"
    return f"<a href='{link}'><img class='first' {size} alt='{alt}' src='{source}'></a>"


def _filters(pages: Sequence[Page], verdicts: Mapping[str, Sequence[Claim]]) -> str:
    """Boxes that hide claims, which the style alone obeys, and a field to search them, which takes the script."""

    def boxes(named: Mapping[str, str]) -> str:
        box = "<label><input type='checkbox' id='show-{}' checked> {}</label>"
        return "".join(box.format(name, text) for name, text in named.items())

    shown = boxes({name_of(verdict): _verdict(verdict) for verdict in verdicts})
    of = boxes({slug(page.paper.name): escaped(page.paper.name) for page in pages if page.paper.claims})
    search = "<label>Search <input type='search' id='search'></label> <span id='found' role='status'></span>"
    return f"<div class='filters'><p>{shown}</p><p>{of}</p><p hidden>{search}</p></div>"


def _claims(pages: Sequence[Page]) -> str:
    """All claims as one table: each with its verdict, and links to its place and to what shows it."""
    rows = []
    for page in pages:
        own = slug(page.paper.name)
        for claim in page.paper.claims:
            shows = ", ".join(
                f"<a href='{page.name}#{quote(slug(label))}'>{escaped(label)}</a>" for label in page.shows[claim.id]
            )
            of = f"<small>{escaped(page.paper.name)}</small>"
            id = f"<b><a href='{page.place(claim)}'>{escaped(claim.id)}</a></b><br>{of}"
            cells = (id, escaped(claim.text), _verdict(claim.verdict), escaped(claim.paper), escaped(claim.ours), shows)
            row = "".join(f"<td>{cell}</td>" for cell in cells)
            classes = f"claim of-{own} of-{name_of(claim.verdict)}"
            rows.append(f"<tr id='{own}-{escaped(claim.anchor)}' class='{classes}'>{row}</tr>")
    names = ("claim", "", "verdict", "paper", "ours", "shown by")
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    return f"<table class='claims'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
