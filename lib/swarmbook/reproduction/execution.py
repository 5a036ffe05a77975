"""Executing a paper's notebook with papermill, and the stamp that says with what it was executed.

- The kernel is always the interpreter that runs this, whatever kernels are installed. It listens on no port
  (`swarmbook.reproduction.kernel`).
- Results appear under their names when they are whole. A notebook that failed is kept as `<name>.failed.ipynb`.
- A stamp is what an executed notebook was executed with, in its metadata, sealed by a checksum of its cells.

Serves: `swarmbook run`, `sweep` and `verify`.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from swarmbook.analysis.claims import Claim
from swarmbook.endings import Terminated, terminable
from swarmbook.errors import NotebookError
from swarmbook.locations import runs_folder, store_folder
from swarmbook.records.atomic_files import scratch_folder, write
from swarmbook.reproduction import publishing
from swarmbook.reproduction.kernel import channels, socket_folder
from swarmbook.reproduction.papers import Paper, at, checked, claims_of, label_of
from swarmbook.reproduction.publishing import KERNELSPEC, html

# Seconds for a kernel to start, and for the output of a cell to arrive when the cell has ended: nbclient's 4 s are over
# sooner than a busy machine, or a cluster that reads all from one disk, has sent a large figure.
BUSY = 600

# is called with the number of code cells that are done and of all, the figure or table, the last line that was printed
OnProgress = Callable[[int, int, str, str], None]


@dataclass(frozen=True)
class Execution:
    """A notebook that ran to its end."""

    notebook: Path
    html: Path | None
    claims: tuple[Claim, ...]


def results_folder(paper: Paper, parameters: Mapping[str, Any], output: Path | None = None) -> Path:
    """Where results go: `<name>` in `output` or the `runs_folder`, with `-<profile>` if not the default one."""
    output = runs_folder(paper.notebook.parents[1]) if output is None else Path(output).absolute()
    profile = at(paper, parameters.get("profile")).profile
    return output / f"{paper.name}{profile and f'-{profile}'}"


def execute(
    paper: Paper,
    parameters: Mapping[str, Any] | None = None,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
    progress: OnProgress | None = None,
    folder: Path | None = None,
    stamp: Mapping[str, Any] | None = None,
    page: bool = True,
    figures: bool = False,
) -> Execution:
    """Execute a paper's notebook in its own folder, and write a page of HTML and the executed notebook.

    parameters: in place of the notebook's own. output: see `results_folder`. environment: is added to the kernel's.
    folder: where the results go, in place of `results_folder`. stamp: what `stamp_of` gives back. page: whether a page
    of HTML is written, which takes two seconds. figures: whether each figure is written as PNG, SVG and CSV of its
    numbers to a folder `figures`, which takes as long as drawing them.
    Raises UsageError for parameters that do not fit the notebook, and NotebookError if a cell fails or the kernel dies;
    what was executed until then is kept beside the results. So it is if a signal ends this process (Terminated).
    """
    parameters = checked(paper, parameters or {})
    # what lies beside the notebook is found by these, wherever the kernel runs
    places = {"SWARMBOOK_STORE": str(store_folder()), "SWARMBOOK_PAPERS": str(paper.notebook.parents[1])}
    environment = {**places, **(environment or {})}
    folder = folder or results_folder(paper, parameters, output)
    failed = folder / f"{paper.name}.failed.ipynb"
    with terminable(), scratch_folder(folder) as scratch, socket_folder() as sockets:
        partial = scratch / paper.notebook.name
        try:
            drawn = {"SWARMBOOK_FIGURES": str(scratch)} if figures else {}
            surroundings = {**_bars_to(scratch), **drawn, **environment}
            content = _run(paper, parameters, partial, surroundings, progress, sockets)
        except NotebookError as error:
            write(failed, partial.read_bytes())
            raise NotebookError(f"{error}\nexecuted so far: {failed}") from error
        except Terminated:
            if partial.exists():
                write(failed, partial.read_bytes())
                with suppress(OSError):  # the terminal may be gone
                    print(f"\nexecuted so far: {failed}", file=sys.stderr, flush=True)
            raise
        shown = folder / f"{paper.name}.html" if page else None
        if shown:
            write(shown, html(content).encode())
        if figures:
            publishing.write_figures(content, folder / "figures", scratch)
        write(folder / paper.notebook.name, partial.read_bytes() if stamp is None else _stamped(content, stamp))
    failed.unlink(missing_ok=True)
    return Execution(folder / paper.notebook.name, shown, claims_of(content, paper.name))


def _bars_to(folder: Path) -> dict[str, str]:
    """Keep bars of progress out of the notebook: they go to whoever follows the execution, or else to a folder."""
    return {"SWARMBOOK_PROGRESS": os.environ.get("SWARMBOOK_PROGRESS") or str(folder)}


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
    progress: OnProgress | None,
    sockets: Path | None,
) -> Any:
    import papermill
    from nbclient.exceptions import DeadKernelError

    papermill.engines.papermill_engines.register("written once", _written_once())
    watch = _Watch(paper, progress)
    log = target.with_name("kernel.log")
    try:
        return papermill.execute_notebook(
            _literal(paper.notebook),
            _literal(target),
            parameters=dict(parameters),
            cwd=str(paper.notebook.parent),
            engine_name="written once",
            kernel_name=KERNELSPEC["name"],
            language="python",
            progress_bar=False,
            start_timeout=BUSY,
            iopub_timeout=BUSY,
            kernel_manager_class=kernel_of_this_python(environment, log, sockets),
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


def _literal(path: Path) -> str:
    """A path for papermill, which fills parameters into what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


@cache
def _written_once() -> type:
    """papermill's engine, except that the notebook is written once, at the end, and not twice for every cell."""
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


def kernel_of_this_python(environment: Mapping[str, str], log: Path, sockets: Path | None) -> type:
    """A kernel manager whose kernel is `sys.executable`, with `environment` added to this process's.

    log: the file to which goes what the kernel itself prints. What cells print goes to the notebook. sockets: the
    folder of its channels; None for ports of this machine.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict, make_ipkernel_cmd
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    # a backend chosen for scripts would leave the notebook without pictures
    environment = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", **environment}

    command = get_kernel_dict() | ({"argv": make_ipkernel_cmd("swarmbook.reproduction.kernel")} if sockets else {})

    class KernelOfThisPython(AsyncKernelManager):
        def __init__(self, **named: Any) -> None:
            super().__init__(**named, **channels(sockets))

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **command, env=environment)

        async def start_kernel(self, **arguments: Any) -> None:
            with open(log, "w") as file:
                await super().start_kernel(stdout=file, stderr=file, **arguments)

    return KernelOfThisPython


class _Watch:
    """Follows an execution: which code cell runs, and the last line that it printed."""

    def __init__(self, paper: Paper, progress: OnProgress | None):
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
