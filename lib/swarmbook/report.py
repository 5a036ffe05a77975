"""The report: one static site of the executed notebooks, and a front page with the claims of all papers.

- Pages are nbconvert's, in its own JupyterLab theme, without the scripts that it would fetch: nothing is loaded from
  anywhere, and they read the same with JavaScript off, in the light, in the dark, on a phone and on paper.
- Each page ends with where its numbers come from: keys of its recorded runs, versions, and the command to repeat it.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmbook import __version__, papers
from swarmbook.claims import FAILS, HOLDS, UNDECIDED, Claim
from swarmbook.papers import Paper

MARK = {HOLDS: "✓", FAILS: "✗", UNDECIDED: "?"}  # with the words: no colour is needed to tell them apart
TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
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
.jp-RenderedImage img { max-width: 100%; height: auto; background: #fff; }
.jp-OutputArea-output pre, .jp-InputArea-editor { overflow-x: auto; }
code { overflow-wrap: anywhere; }
@media (max-width: 40rem) { body.jp-Notebook { padding: 0.25rem; } }
@media print {
  body.jp-Notebook { max-width: none; }
  .jp-RenderedHTMLCommon table { display: table; font-size: 8pt; }
  .jp-OutputArea-output pre, .highlight pre { white-space: pre-wrap; }
  tr, img { break-inside: avoid; }
}
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; } DARK }
"""


def build(chosen: Sequence[Paper], output: Path) -> Path:
    """Write `index.html` and one page for each paper into a folder; the front page's path."""
    import nbformat
    from nbformat.v4 import new_markdown_cell, new_notebook

    output.mkdir(parents=True, exist_ok=True)
    template = _template()
    front = [
        "# swarmbook: what holds\n\nFive papers on computing with machines that nobody can rely on, each reproduced by "
        "one notebook. Verdicts rest on 95 % confidence intervals over seeds; "
        f"*{UNDECIDED}* means that the interval, or the size of the runs, leaves it open."
    ]
    for paper in chosen:
        content = nbformat.read(paper.notebook, 4)
        front.append(_summary(paper, content))
        content.cells.insert(0, new_markdown_cell("[All papers](index.html)"))
        content.cells.append(new_markdown_cell(_provenance(paper), id="provenance"))
        content.metadata["title"] = paper.title
        papers.write(output / f"{paper.name}.html", papers.html(content, template).encode())
    index = new_notebook(cells=[new_markdown_cell(text) for text in front], metadata={"title": "swarmbook"})
    papers.write(output / "index.html", papers.html(index, template).encode())
    return output / "index.html"


def _template() -> str:
    """nbconvert's page without its scripts; where the system is dark, the colours of its dark theme."""
    from nbconvert import HTMLExporter

    found = (Path(folder) / "lab/static/theme-dark.css" for folder in HTMLExporter().template_paths)
    dark = next(path for path in found if path.exists()).read_text(encoding="utf-8")
    style = STYLE.replace("DARK", dark)
    return TEMPLATE.replace("STYLE", "{% raw %}" + style + "{% endraw %}")


def _summary(paper: Paper, content: Mapping[str, Any]) -> str:
    """A paper on the front page: its claims as a table."""
    lines = [f"## {paper.title}", "", f"[The notebook]({paper.name}.html)", ""]
    if not paper.claims:
        return "\n".join([*lines, "No claims yet."])
    lines += ["| claim | | verdict | paper | ours | figure |", "|---|---|---|---|---|---|"]
    for claim in paper.claims:
        label, anchor = _figure(claim, content)
        link = f"[{label}]({paper.name}.html{anchor})"
        cells = [claim.id, claim.text, f"{MARK[claim.verdict]} {claim.verdict}", claim.paper, claim.ours]
        lines.append(f"| {' | '.join([*map(_cell, cells), link])} |")
    return "\n".join(lines)


def _figure(claim: Claim, content: Mapping[str, Any]) -> tuple[str, str]:
    """The figure or table that a claim is read from, the nearest at or before the cell that adds it, and its anchor."""
    label, anchor = "notebook", ""
    adds = re.compile(rf"""\.add\(\s*["']{re.escape(claim.id)}["']""")  # a colour can have the name of a claim
    for cell in content["cells"]:
        if shown := papers.label_of(cell):
            label, anchor = shown, f"#cell-id={cell['id']}" if "id" in cell else ""
        if adds.search(cell["source"]):
            return label, anchor
    return "notebook", ""


def _provenance(paper: Paper) -> str:
    """Where a paper's numbers come from, as Markdown."""
    import pyarrow.parquet as pq

    rows: dict[str, list[str]] = {}
    for path in sorted((paper.notebook.parent / "runs").glob("*.parquet")):
        header = json.loads(pq.read_metadata(path).metadata[b"swarmbook"])
        made = header["provenance"]
        how = f"swarmbook {made['swarmbook']}"
        if "torch" in made:
            how += f", torch {made['torch']}, numpy {made['numpy']}, Python {made['python']}, {made['device']}, "
            how += f"{made['threads']} thread{'s' * (made['threads'] > 1)}"
        rows.setdefault(how, []).append(header["key"])
    runs = sum(map(len, rows.values()))
    text = [
        "## Where these numbers come from",
        f"All figures and tables of this page come from executing its notebook with swarmbook {__version__}. "
        f"`swarmbook run {paper.name}` repeats that"
        + (
            f", on {runs} recorded runs; `--fresh` trains them again, and `swarmbook verify {paper.name}` "
            if runs
            else "."
        )
        + ("a sample of them." if runs else ""),
    ]
    for how, keys in rows.items():
        listed = " ".join(f"<code>{key}</code>" for key in keys)
        text.append(f"<details><summary>{html.escape(how)}: {len(keys)} runs</summary>{listed}</details>")
    return "\n\n".join(text)


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table, as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html.escape(text, quote=False)).replace("\n", " ")
