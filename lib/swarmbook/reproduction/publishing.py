"""Executed notebooks as others see them: as pages of HTML, and committed without what varies between executions.

Serves: the pages of `swarmbook run` and `report`, and `swarmbook run --record`.
"""

import base64
import json
import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from swarmbook.errors import NotebookError, UsageError
from swarmbook.records.atomic_files import write
from swarmbook.reproduction.papers import Paper, _labels, label_of

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# Where ipykernel says that a cell stands, as a warning does; it names the process, and is in `sanitize.cfg` as well.
CELL_FILE = (r"""(/[^\s'"<>:/]+)*/ipykernel_\d+/\d+\.py""", "cell.py")
FOLDED = """
{%- block input_group -%}
{%- if FOLD -%}
<details class="source"><summary>code</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
{%- block input -%}
<div class="jp-CodeMirrorEditor jp-Editor jp-InputArea-editor" data-type="inline"><div class="cm-editor cm-s-jupyter">
{{ cell.source | highlight_code(metadata=cell.metadata) }}
</div></div>
{%- endblock -%}
"""  # of code that is folded; nbconvert would also clean what pygments writes, which takes as long as all the rest
HIDDEN = 'cell.metadata.get("jupyter", {}).get("source_hidden")'  # what JupyterLab hides, a page of HTML folds
TAG = re.compile(r"""<\w+(?:[^>"']|"[^"]*"|'[^']*')*>""")
ATTRIBUTE = re.compile(r"""\s+([^\s=>"'/]+)(?:\s*=\s*(?:"[^"]*"|'[^']*'|[^\s>"']+))?""")
INJECTED = "injected-parameters"  # papermill's tag of the cell that sets other parameters than the default


def check(notebook: Path) -> None:
    """NotebookError unless a file has the form of a notebook: before it is executed or shown by others' code."""
    import nbformat

    from swarmbook.data.hub import first_line

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cells without ids, which are made up
            nbformat.validate(json.loads(notebook.read_text(encoding="utf-8")), version=4, relax_add_props=True)
    except OSError:
        raise
    except Exception as error:  # of several libraries, which meet what they do not expect
        raise NotebookError(f"{notebook} is not a notebook ({first_line(error)}); restore it from git") from error


def html(content: Any, template: str = "", fold: bool = False) -> str:
    """A notebook as a page of HTML, by nbconvert, with the descriptions of its figures, and their code folded.

    content: as nbformat reads it. template: nbconvert's own, or the text of a Jinja template that replaces it. fold:
    whether all code is folded.
    """
    from nbconvert import HTMLExporter

    log = logging.getLogger(__name__)  # would warn of each picture without a description
    log.setLevel(logging.ERROR)
    template = (template or "{%- extends 'lab/index.html.j2' -%}") + FOLDED.replace("FOLD", "true" if fold else HIDDEN)
    exporter = HTMLExporter(embed_images=True, log=log, raw_template=template)
    page, _ = exporter.from_notebook_node(content)
    for cell in content.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                said = output.get("metadata", {}).get("image/png", {}).get("alt")
                description = escape(": ".join(filter(None, (label_of(cell), said))) or "picture")
                page = page.replace('alt="No description has been provided for this image"', f'alt="{description}"', 1)
    return page


def without_handlers(shown: str) -> str:
    """HTML whose elements have no handlers of events; they are scripts, which pages of the report do not run."""
    return TAG.sub(lambda tag: ATTRIBUTE.sub(lambda one: "" if one[1][:2].lower() == "on" else one[0], tag[0]), shown)


def commit(paper: Paper, executed: Path) -> None:
    """Put an executed notebook in the committed one's place, without what varies between executions.

    paper: a paper, or its record at a profile as `papers.at` gives it; that holds the cell which sets its profile.
    Pictures that are kept beside the notebook for other pages to show, such as `figure-4a.png`, are renewed.
    Raises UsageError for a notebook that was executed with other parameters.
    """
    import nbformat

    content = nbformat.read(executed, as_version=4)
    injected = [cell for cell in content.cells if INJECTED in cell.metadata.get("tags", [])]
    for cell in injected:
        cell.id, cell.source = INJECTED, cell.source.strip()
    given = [line for cell in injected for line in cell.source.splitlines() if not line.startswith("#")]
    if given != (wanted := [f'profile = "{paper.profile}"'] if paper.profile else []):
        raise UsageError(f"{executed} was executed with other parameters than the default{' and '.join(['', *wanted])}")
    for part in (content, *content.cells):
        for volatile in ("papermill", "execution", "widgets"):
            part.metadata.pop(volatile, None)
        if not part.metadata.get("tags"):  # papermill adds an empty list to each cell
            part.metadata.pop("tags", None)
    for cell in content.cells:
        if "outputs" in cell:
            cell.outputs = nbformat.from_dict(stable(cell.outputs, [CELL_FILE]))
    content.metadata.kernelspec = KERNELSPEC
    content.metadata.get("language_info", {}).pop("version", None)
    write(paper.notebook, (nbformat.writes(content) + "\n").encode())
    for label, picture in pictures(content).items() if not paper.profile else ():
        kept = paper.notebook.with_name(f"{label.replace(' ', '-')}.png")
        if kept.exists():
            write(kept, picture)


def stable(shown: Any, patterns: Iterable[tuple[str, str]]) -> Any:
    """JSON in whose texts what varies between executions is replaced, by pairs of a pattern and a name for it.

    Pictures are left alone.
    """
    patterns = list(patterns)
    if isinstance(shown, Mapping):
        return {name: part if name.startswith("image/") else stable(part, patterns) for name, part in shown.items()}
    if isinstance(shown, list):
        return [stable(part, patterns) for part in shown]
    if isinstance(shown, str):
        for pattern, name in patterns:
            shown = re.sub(pattern, name, shown)
    return shown


def slug(label: str) -> str:
    """A label as a file and a place in a page are named by it, such as "figure-4a"."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-")


def write_figures(content: Mapping[str, Any], folder: Path, drawn: Path | None = None) -> dict[str, list[Path]]:
    """Write the figures of a notebook to a folder: PNG, CSV of the numbers in it, and SVG where it was `drawn`.

    drawn: a folder with SVGs, each under the checksum of its picture or, as this function names it, under its label
    beside that picture. Returns the files by label.
    """
    from swarmbook.analysis.pictures import name_of, numbers_of

    written: dict[str, list[Path]] = {}
    for label, picture in pictures(content).items():
        numbers, name = numbers_of(picture), slug(label)
        files = {".png": picture} | ({} if numbers is None else {".csv": numbers.encode()})
        if drawn is not None:
            own, same = drawn / f"{name_of(picture)}.svg", drawn / f"{name}.png"
            svg = own if own.exists() else drawn / f"{name}.svg"
            if svg.exists() and (svg == own or (same.exists() and same.read_bytes() == picture)):
                files[".svg"] = svg.read_bytes()
        folder.mkdir(parents=True, exist_ok=True)
        written[label] = [folder / f"{name}{suffix}" for suffix in files]
        for path, data in zip(written[label], files.values(), strict=True):
            write(path, data)
    return written


def pictures(content: Mapping[str, Any]) -> dict[str, bytes]:
    """The PNG that each figure of a notebook, given as nbformat's JSON, shows last."""
    found = {}
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                found |= {label: base64.b64decode(picture) for label in _labels(cell)}
    return found
