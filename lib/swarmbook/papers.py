"""Papers as notebooks: what a committed notebook says about itself, and executing one with papermill.

- reading needs nothing but JSON, so that listing the papers is instant; papermill loads on execution
- figures and tables are cell tags ("figure 4a"), claims a cell output of type `MIMETYPE`
- the kernel is always the interpreter that runs this, whatever kernels are installed
- results appear under their names only when whole: a notebook that failed is kept as `<name>.failed.ipynb`
- an executed notebook can bear a stamp: what it was executed with, sealed by a checksum of its cells
- beside `<name>.ipynb` as executed at its default profile lies what was recorded at others: `<name>.<profile>.ipynb`
"""

import ast
import base64
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from swarmbook import errors
from swarmbook.claims import MIMETYPE, VERDICTS, Claim

PROFILES = ("smoke", "cpu", "gpu", "paper")
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
INJECTED = "injected-parameters"  # papermill's tag of the cell that sets other parameters than the default

# called with: code cells done, code cells in all, figure or table, last line printed
Progress = Callable[[int, int, str, str], None]


class UsageError(ValueError):
    """A paper, parameter or value was asked for that does not exist or does not fit."""


class NotebookError(Exception):
    """A notebook cannot be read, or one of its cells failed."""


@dataclass(frozen=True)
class Parameter:
    """One assignment of a notebook's parameters cell; the comment behind it is its help."""

    name: str
    default: Any
    help: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that a help such as `smoke | cpu | gpu` allows; empty if any, as with `auto | cpu ...`."""
        named = tuple(part.strip().split(" ")[0].strip("\"',.;") for part in self.help.split("|"))
        if len(named) > 1 and self.default in named and not self.help.rstrip().endswith("..."):
            return named
        return PROFILES if self.name == "profile" else ()


@dataclass(frozen=True)
class Paper:
    """A committed notebook and what it says about itself: `papers/<name>/<name>.ipynb`, or its record at a profile
    other than the default, `papers/<name>/<name>.<profile>.ipynb`.
    """

    name: str  # as of the file
    notebook: Path
    title: str
    figures: tuple[str, ...]
    tables: tuple[str, ...]
    claims: tuple[Claim, ...]
    profile: str  # of a record at another than the default one; else empty

    def beside(self, name: str) -> Path:
        """Where `runs` or `provenance.json` of it lie; of a record at another profile `runs.gpu`, and so on."""
        path = self.notebook.with_name(name)
        return path.with_name(f"{path.stem}.{self.profile}{path.suffix}") if self.profile else path

    @property
    def recorded(self) -> set[str]:
        """Keys of the runs and tables that are recorded beside the notebook."""
        return {path.stem for path in self.beside("runs").glob("*.parquet")}

    @property
    def runs(self) -> int:
        return len(self.recorded)

    @property
    def command(self) -> str:
        """What executes it again; ` --record` records it."""
        return f"swarmbook run {self.notebook.parent.name}{self.profile and f' --profile {self.profile}'}"

    def parameters(self) -> dict[str, Parameter]:
        """The parameters cell as papermill reads it; a default that is no literal stays source text."""
        from papermill.translators import PythonTranslator

        cells = json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        found = [p for cell in tagged[:1] for p in PythonTranslator.inspect({"source": "".join(cell["source"])})]
        return {p.name: Parameter(p.name, _literal(p.default), p.help) for p in found}


@dataclass(frozen=True)
class Execution:
    """A notebook that ran to its end."""

    notebook: Path
    html: Path | None
    claims: tuple[Claim, ...]


def papers_folder() -> Path:
    """SWARMBOOK_PAPERS, or `papers/` of the clone that this module lies in."""
    return Path(os.environ.get("SWARMBOOK_PAPERS") or Path(__file__).parents[2] / "papers").absolute()


def discover(folder: Path | None = None) -> dict[str, Paper]:
    """All papers below `folder` by name; raises NotebookError if one of the notebooks cannot be read."""
    folder = papers_folder() if folder is None else Path(folder).absolute()
    notebooks = (path for path in sorted(folder.glob("*/*.ipynb")) if path.stem == path.parent.name)
    return {path.stem: read(path) for path in notebooks}


def records(folder: Path | None = None) -> dict[str, Paper]:
    """All papers by name as of `discover`, each followed by its records at other profiles."""
    found = {}
    for name, paper in discover(folder).items():
        others = map(read, sorted(paper.notebook.parent.glob(f"{name}.*.ipynb")))
        found |= {name: paper} | {other.name: other for other in others}
    return found


def at(paper: Paper, profile: str | None) -> Paper:
    """The record of a paper at a profile, made already or not: the paper itself at the default one, or None."""
    if profile is None or profile == paper.parameters()["profile"].default:
        return paper
    other = replace(paper, name=f"{paper.name}.{profile}", profile=profile)
    return replace(other, notebook=other.beside(paper.notebook.name))


def chosen(names: Sequence[str], known: Mapping[str, Paper]) -> list[Paper]:
    """Those that are named, all if none is; the name of a paper stands for its records at other profiles as well."""
    picked = {}
    for name in names or known:
        if name not in known:
            raise unknown("paper", name, list(known))
        picked |= {paper.name: paper for paper in known.values() if name in (paper.name, paper.notebook.parent.name)}
    return list(picked.values())


def read(notebook: Path) -> Paper:
    """What the notebook says about itself, without executing anything."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        cells = content["cells"]
        labels = [label for cell in cells for label in _labels(cell)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotebookError(f"{notebook} is not a notebook ({error}); restore it from git") from error
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    heading = re.search(r"^#+ *(.+)", text, re.MULTILINE)
    return Paper(
        name=notebook.stem,
        notebook=notebook,
        title=heading[1].strip() if heading else notebook.stem,
        figures=tuple(label for label in labels if label.startswith("figure ")),
        tables=tuple(label for label in labels if label.startswith("table ")),
        claims=claims_of(content, str(notebook)),
        profile=notebook.stem.partition(f"{notebook.parent.name}.")[2],
    )


def claims_of(content: Mapping[str, Any], where: str) -> tuple[Claim, ...]:
    """The claims in the outputs of a notebook given as nbformat's JSON; `where` names it in errors.

    Of a claim that is shown more than once the last word counts.
    """
    outputs = (output for cell in content["cells"] for output in cell.get("outputs", []))
    rows = (row for output in outputs for row in output.get("data", {}).get(MIMETYPE, []))
    claims = (_claim(row, where) for row in rows)
    return tuple({claim.id: claim for claim in claims}.values())


def _claim(row: Any, where: str) -> Claim:
    try:
        claim = Claim(*(str(row[field]) for field in ("id", "text", "paper", "ours", "verdict")))
    except (KeyError, TypeError) as error:
        raise NotebookError(f"{where}: a claim lacks id, text, paper, ours or verdict: {row!r}") from error
    if claim.verdict not in VERDICTS:
        valid = ", ".join(VERDICTS)
        raise NotebookError(f"{where}: claim {claim.id} has verdict {claim.verdict!r}; valid: {valid}")
    return claim


def _labels(cell: Mapping[str, Any]) -> list[str]:
    """The figures and tables that a cell shows."""
    return [tag for tag in cell["metadata"].get("tags", []) if tag.startswith(("figure ", "table "))]


def label_of(cell: Mapping[str, Any]) -> str:
    """The figures and tables that a cell shows, as one text; empty if none."""
    return ", ".join(_labels(cell))


def _literal(source: str) -> Any:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return source


def unknown(kind: str, name: str, valid: list[str]) -> UsageError:
    """An error that names the valid names, and the nearest of them."""
    return UsageError(errors.unknown(kind, name, valid))


def checked(paper: Paper, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` for the paper's parameters; raises UsageError where a name, a choice or a type is wrong.

    An integer passes for a float (and becomes one), anything for None; a list's items must fit the default's.
    """
    parameters = paper.parameters()
    result = {}
    for name, value in values.items():
        if name not in parameters:
            raise unknown(f"parameter of {paper.name}", name, list(parameters))
        parameter = parameters[name]
        if isinstance(value, str) and parameter.choices and value not in parameter.choices:
            raise unknown(f"{name} of {paper.name}", value, list(parameter.choices))
        try:
            result[name] = _fitted(value, parameter.default)
        except TypeError as error:
            raise UsageError(
                f"parameter {name} of {paper.name} is {parameter.default!r} by default, so it takes "
                f"{_kind(parameter.default)}, but got {value!r} ({_kind(value)}){error}"
            ) from error
    return result


def _fitted(value: Any, default: Any) -> Any:
    if default is None:
        return value
    if isinstance(default, float):
        if isinstance(value, str):  # YAML 1.1 takes 1e-3 for text
            try:
                return float(value)
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


def results_folder(paper: Paper, parameters: Mapping[str, Any], output: Path | None = None) -> Path:
    """Where results go: `runs/<name>` beside the papers folder, with `-<profile>` if not the default one."""
    output = paper.notebook.parents[2] / "runs" if output is None else Path(output).absolute()
    profile = at(paper, parameters.get("profile")).profile
    return output / f"{paper.name}{profile and f'-{profile}'}"


def execute(
    paper: Paper,
    parameters: Mapping[str, Any] | None = None,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
    stamp: Mapping[str, Any] | None = None,
    page: bool = True,
) -> Execution:
    """Execute a paper's notebook in its own folder; write a page of HTML, then it, into `folder` or `results_folder`.

    `environment` is added to the kernel's; `stamp` is what `stamp_of` gives back; without `page` there is no HTML,
    which takes two seconds. Raises UsageError for parameters that do not fit the notebook, and NotebookError if a cell
    fails or the kernel dies; what was executed until then is kept beside the results.
    """
    parameters = checked(paper, parameters or {})
    folder = folder or results_folder(paper, parameters, output)
    folder.mkdir(parents=True, exist_ok=True)
    failed = folder / f"{paper.name}.failed.ipynb"
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
        partial = Path(scratch) / paper.notebook.name
        try:
            content = _run(paper, parameters, partial, environment or {}, progress)
        except NotebookError as error:
            write(failed, partial.read_bytes())
            raise NotebookError(f"{error}\nexecuted so far: {failed}") from error
        shown = folder / f"{paper.name}.html" if page else None
        if shown:
            write(shown, html(content).encode())
        write(folder / paper.notebook.name, partial.read_bytes() if stamp is None else _stamped(content, stamp))
    failed.unlink(missing_ok=True)
    return Execution(folder / paper.notebook.name, shown, claims_of(content, paper.name))


def _stamped(content: Any, stamp: Mapping[str, Any]) -> bytes:
    import nbformat

    whole = json.loads(nbformat.writes(content))
    whole["metadata"]["swarmbook"] = {**stamp, "seal": _seal(whole["cells"])}
    return (json.dumps(whole, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def stamp_of(executed: Path) -> dict[str, Any] | None:
    """The stamp of an executed notebook, or None if it was executed without one.

    Raises NotebookError if the file is no whole notebook, or not what was written: its cells were changed since.
    """
    try:
        whole = json.loads(executed.read_bytes())
        stamp = whole["metadata"].get("swarmbook")
        if stamp is not None and stamp.pop("seal") != _seal(whole["cells"]):
            raise ValueError("its cells do not match their checksum")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotebookError(f"{executed} is not as it was written: {error}") from error
    return stamp


def _seal(cells: list) -> str:
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def _run(
    paper: Paper,
    parameters: Mapping[str, Any],
    target: Path,
    environment: Mapping[str, str],
    progress: Progress | None,
) -> Any:
    import papermill
    from nbclient.exceptions import DeadKernelError

    papermill.engines.papermill_engines.register("written once", _written_once())
    watch = _Watch(paper, progress)
    log = target.with_name("kernel.log")
    try:
        return papermill.execute_notebook(
            str(paper.notebook),
            str(target),
            parameters=dict(parameters),
            cwd=str(paper.notebook.parent),
            engine_name="written once",
            kernel_name=KERNELSPEC["name"],
            language="python",
            progress_bar=False,
            start_timeout=600,  # seconds; a machine that is busy, or a cluster that reads all from one disk, is slow
            kernel_manager_class=kernel_of_this_python(environment, log),
            coalesce_streams=True,
            record_timing=False,
            on_cell_start=watch.start,
            stdout_file=watch,
            stderr_file=watch,
        )
    except papermill.PapermillExecutionError as error:
        last = "".join(error.traceback[-1:]) or f"{error.ename}: {error.evalue}"
        raise NotebookError(f"{watch.where(error.source)}: {_plain(last)}") from error
    except DeadKernelError as error:
        said = "".join(f"\n  {line}" for line in log.read_text(errors="replace").splitlines()[-3:])
        raise NotebookError(f"{watch.where()}: the kernel died, perhaps for want of memory{said}") from error


@cache
def _written_once() -> type:
    """papermill's engine, but the notebook is written at the end, however that comes, and not twice a cell."""
    from papermill.engines import NBClientEngine

    class WrittenOnce(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, *arguments: Any, **named: Any) -> None:
            target, nb_man.output_path = nb_man.output_path, None
            try:
                super().execute_managed_notebook(nb_man, *arguments, **named)
            finally:
                nb_man.output_path = target  # which papermill then writes

    return WrittenOnce


def kernel_of_this_python(environment: Mapping[str, str], log: Path) -> type:
    """A kernel manager whose kernel is `sys.executable`, with `environment` added to this process's.

    What the kernel says of itself goes to the file `log`; what cells print goes to the notebook as ever.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    # a backend chosen for scripts would leave the notebook without pictures
    environment = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", **environment}

    class KernelOfThisPython(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict(), env=environment)

        async def start_kernel(self, **arguments: Any) -> None:
            with open(log, "w") as file:
                await super().start_kernel(stdout=file, stderr=file, **arguments)

    return KernelOfThisPython


class _Watch:
    """Follows an execution: which code cell runs, and the last line that it printed."""

    def __init__(self, paper: Paper, progress: Progress | None):
        cells = json.loads(paper.notebook.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        self.sources = ["".join(cell["source"]) for cell in code]
        self.labels = [label_of(cell) for cell in code]
        self.name = paper.name
        self.progress = progress
        self.current = 0
        self.log = ""

    def start(self, cell: Any, cell_index: int) -> None:
        if cell.cell_type == "code" and cell.source in self.sources[self.current :]:  # not an injected cell
            self.current = self.sources.index(cell.source, self.current)
            self.report("")

    def write(self, text: str) -> None:
        lines = [line.strip() for line in re.split(r"[\r\n]", _plain(text)) if line.strip()]
        if lines:
            self.report(lines[-1])

    def flush(self) -> None:
        pass

    def report(self, log: str) -> None:
        if self.progress:
            self.progress(self.current, len(self.sources), self.labels[self.current], log)

    def where(self, source: str | None = None) -> str:
        number = self.sources.index(source) if source in self.sources else self.current
        label = self.labels[number] and f" ({self.labels[number]})"
        return f"{self.name}, code cell {number + 1} of {len(self.sources)}{label}"


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def html(content: Any, template: str = "") -> str:
    """A notebook, as nbformat reads it, as a page of HTML by nbconvert; in a template of Jinja's if given."""
    from nbconvert import HTMLExporter

    log = logging.getLogger(__name__)  # would warn of each picture without a description
    log.setLevel(logging.ERROR)
    exporter = HTMLExporter(embed_images=True, log=log, **({"raw_template": template} if template else {}))
    page, _ = exporter.from_notebook_node(content)
    for cell in content.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                description = label_of(cell) or "picture"
                page = page.replace('alt="No description has been provided for this image"', f'alt="{description}"', 1)
    return page


def write(path: Path, content: bytes) -> None:
    """Write under another name, then rename: a reader never sees half a file."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
        partial = Path(scratch) / path.name
        partial.write_bytes(content)
        os.replace(partial, path)


def commit(paper: Paper, executed: Path) -> None:
    """Put an executed notebook in the committed one's place, without what varies between executions.

    paper: or its record as of `at`, which holds the injected cell that sets its profile. Pictures of a paper's figures
    that are kept beside it for others to show, as `figure-4a.png`, are renewed.
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
    content.metadata.kernelspec = KERNELSPEC
    content.metadata.get("language_info", {}).pop("version", None)
    write(paper.notebook, (nbformat.writes(content) + "\n").encode())
    for label, picture in pictures(content).items() if not paper.profile else ():
        kept = paper.notebook.with_name(f"{label.replace(' ', '-')}.png")
        if kept.exists():
            write(kept, picture)


def pictures(content: Mapping[str, Any]) -> dict[str, bytes]:
    """The PNG that each figure of a notebook, given as nbformat's JSON, shows last."""
    found = {}
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                found |= {label: base64.b64decode(picture) for label in _labels(cell)}
    return found
