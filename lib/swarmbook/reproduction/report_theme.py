"""How pages of the report look: nbconvert's JupyterLab theme, light and dark, with a few rules of our own.

- Nothing is loaded from anywhere. A content security policy in each page has browsers hold to that, whatever a notebook
  shows. The front page has one script, which that policy allows by its hash and no other.
- Verdicts have signs and words, so that no colour is needed. Colours have a contrast of 4.5 and more on their ground.
- Filters are boxes that the style alone obeys. Without JavaScript only the search is missing, and its field is hidden.

Serves: `swarmbook report`.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path

from swarmbook.analysis.claims import DIRECTION, FAILS, HOLDS, POWERLESS, UNDECIDED

# of each verdict, on a light and on a dark ground
COLOURS = {
    HOLDS: ("#1a7f37", "#57d27b"),
    DIRECTION: ("#0b62c4", "#79b8ff"),
    FAILS: ("#b42318", "#ff9b92"),
    UNDECIDED: ("#7a5600", "#e8bd4a"),
    POWERLESS: ("#7b3fa0", "#d2a8ff"),
}
GROUNDS = (("#ffffff", "#f5f5f5"), ("#111111", "#212121"))  # of pages and of every second row of a table
# finds the rows of claims that have all words that are typed
SCRIPT = """
const box = document.getElementById("search"), told = document.getElementById("found");
const rows = Array.from(document.querySelectorAll("tr.claim"));
box.closest("p").hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  told.textContent = words.length ? rows.filter(row => !row.hidden).length + " of " + rows.length + " claims" : "";
});
"""
# what browsers may load and run for a page: pictures and styles that are in it
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}<meta http-equiv="Content-Security-Policy" content="POLICY">{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>{% raw %}STYLE{% endraw %}</style>{%- endblock -%}
{%- block body_footer -%}{% raw %}SCRIPT{% endraw %}{{ super() }}{%- endblock -%}
"""
STYLE = """
:root { LIGHT }
@media screen and (prefers-color-scheme: dark) { :root { NIGHT } }
body.jp-Notebook { max-width: 70rem; margin: 0 auto; padding: 1rem; overflow: visible; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
.jp-RenderedHTMLCommon table { display: block; max-width: 100%; overflow-x: auto; margin-left: 0; }
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th { text-align: left; vertical-align: top; white-space: normal; }
.jp-RenderedImage { overflow-x: auto; }
.jp-RenderedImage img { max-width: 100%; height: auto; }
.jp-RenderedImage img, .jp-RenderedHTML svg, img.first { background: #fff; } /* drawn for a light page */
.jp-OutputArea-output pre, .jp-InputArea-editor { overflow-x: auto; }
.jp-RenderedHTML input[type="range"] { display: none; } /* without scripts it moves nothing */
code { overflow-wrap: anywhere; }
[hidden] { display: none !important; }
.origin, .made { color: var(--jp-content-font-color2); }
.keys, .keys td { font-family: var(--jp-code-font-family); font-size: var(--jp-code-font-size); }
.label { font-weight: 600; margin-bottom: 0; scroll-margin-top: 1rem; }
.label small { font-weight: 400; margin-left: 0.75rem; }
.mark { white-space: nowrap; font-weight: 600; }
.jp-RenderedHTMLCommon a.mark { display: inline-block; border: 1px solid; border-radius: 0.5rem; padding: 0 0.4rem;
  margin: 0 0.25rem 0.25rem 0; white-space: normal; }
.only-read { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.paper { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 24rem); gap: 0 1.5rem; }
.paper img.first { width: 100%; height: auto; }
.filters label { white-space: nowrap; margin-right: 1rem; display: inline-block; }
.filters input { accent-color: currentColor; }
#search { font: inherit; width: min(100%, 24rem); padding: 0.25rem 0.5rem; }
table.claims tr:target, .label:target { outline: 2px solid var(--jp-brand-color1); }
VERDICTS
@media (max-width: 40rem) {
  body.jp-Notebook { padding: 0.25rem; }
  .paper { display: block; }
  .jp-RenderedImage img { max-width: 46rem; } /* smaller cannot be read; it scrolls by itself */
  table.claims :is(tbody, tr, td), table.claims, table.matrix :is(tbody, tr, td, th), table.matrix { display: block; }
  table.claims thead, table.matrix thead { display: none; }
  table.claims tr, table.matrix tr { padding: 0.5rem 0; }
  table.claims td, table.matrix td { padding: 0.1rem 0.5rem; }
  table.claims td:nth-child(4)::before { content: "paper: "; }
  table.claims td:nth-child(5)::before { content: "ours: "; }
  table.matrix td:not(:has(a)) { display: none; }
  table.matrix td::before { content: attr(data-verdict) ": "; }
}
@media print {
  body.jp-Notebook { max-width: none; }
  .filters { display: none; }
  .jp-RenderedHTMLCommon table { display: table; font-size: 8pt; }
  .jp-OutputArea-output pre, .highlight pre { white-space: pre-wrap; }
  tr, img { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
}
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; } DARK }
"""


def name_of(verdict: str) -> str:
    """A verdict as styles name it, such as "does-not-hold"."""
    return "-".join(verdict.replace(",", "").split())


def policy(script: str = "") -> str:
    """What browsers may load and run for a page with this script, or without any."""
    if not script:
        return POLICY
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{POLICY}; script-src 'sha256-{digest}'"


@cache
def template(script: str = "", papers: tuple[str, ...] = ()) -> str:
    """nbconvert's page without its scripts, with ours. Where the reader's system has a dark theme, so has the page.

    papers: the names of those whose claims can be filtered.
    """
    from nbconvert import HTMLExporter

    found = (Path(folder) / "lab/static/theme-dark.css" for folder in HTMLExporter().template_paths)
    dark = next(path for path in found if path.exists()).read_text(encoding="utf-8")
    light, night = (" ".join(f"--{name_of(v)}: {pair[i]};" for v, pair in COLOURS.items()) for i in (0, 1))
    rules = [
        f".jp-RenderedHTMLCommon :is(span.{name}, a.{name}:link, a.{name}:visited) {{ color: var(--{name}); }}"
        for name in map(name_of, COLOURS)
    ]
    for group in (*map(name_of, COLOURS), *papers):
        rules.append(f"body:has(#show-{group}:not(:checked)) tr.of-{group} {{ display: none; }}")
    parts = {"LIGHT": light, "NIGHT": night, "VERDICTS": "\n".join(rules), "DARK": dark}
    style = STYLE
    for name, text in parts.items():
        style = style.replace(name, text)
    page = TEMPLATE.replace("POLICY", policy(script)).replace("STYLE", style)
    return page.replace("SCRIPT", f"<script>{script}</script>" if script else "")
