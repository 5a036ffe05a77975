"""Reading without damage: copies of notebooks to work in, and what a notebook showed when it was recorded.

- JupyterLab saves a notebook whenever it likes: in the middle of an execution, or after one at another profile. So who
  reads gets a copy, and the record in `papers/` stays as it is.
- Who has changed the record all the same is told so. What was recorded is taken from git's last commit.
- The seal of what a notebook shows lies in `provenance.json` (see `swarmbook.reproduction.lineage`).

Serves: `swarmbook open`, `list`, `report` and `verify`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swarmbook.errors import NotebookError, UsageError
from swarmbook.locations import store_folder
from swarmbook.records.atomic_files import write
from swarmbook.reproduction import lineage, papers
from swarmbook.reproduction.papers import Paper


def copy(paper: Paper, profile: str | None, folder: Path) -> Path:
    """Put a copy of a notebook into `folder` and return its path; an earlier copy that was worked in is left alone.

    profile: the copy is what was recorded at this profile, or else the notebook set to it, without outputs.
    Raises UsageError for a profile that the notebook does not have.
    """
    values = papers.checked(paper, {} if profile is None else {"profile": profile})
    record = papers.at(paper, profile)
    recorded = record.notebook.exists()
    with as_recorded([record] if recorded else [paper]) as (source,):
        content = source.notebook.read_bytes() if recorded else _at_profile(source, values)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = folder / f"{record.name}{f'-{number}' if number > 1 else ''}.ipynb"
        if path.is_file() and path.read_bytes() == content:
            return path
        if not path.exists():
            write(path, content)
            return path
    raise UsageError(f"{folder} has {number} copies of {record.name} that were worked in; move some of them away")


def _at_profile(paper: Paper, values: dict) -> bytes:
    import nbformat
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    content = parameterize_notebook(load_notebook_node(str(paper.notebook)), values)
    content.metadata.pop("papermill", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return (nbformat.writes(content) + "\n").encode()


def open_in_jupyterlab(notebook: Path, browser: bool = True, arguments: Sequence[str] = ()) -> int:
    """Start JupyterLab on a notebook, and return its exit status when it ends.

    browser: whether it opens a page; else it prints the address. arguments: further ones for JupyterLab.
    The kernel finds recorded runs and the store wherever the notebook lies.
    """
    place = [f"--ServerApp.root_dir={notebook.parent}", f"--LabApp.default_url=/lab/tree/{notebook.name}"]
    quiet = [] if browser else ["--no-browser"]
    command = [sys.executable, "-m", "jupyter", "lab", *place, *quiet, *arguments]
    environment = {"SWARMBOOK_STORE": str(store_folder()), "SWARMBOOK_PAPERS": str(papers.papers_folder())}
    return subprocess.run(command, env={**os.environ, **environment}).returncode


@contextmanager
def as_recorded(chosen: Sequence[Paper], told: list[str] | None = None) -> Iterator[list[Paper]]:
    """The papers as they were recorded: one whose notebook has changed since is replaced by a copy of what git holds.

    told: gets a sentence, with the remedy, for each notebook that has changed.
    """
    with tempfile.TemporaryDirectory(prefix="swarmbook-") as scratch:
        found = []
        for paper in chosen:
            seal = lineage.shown(paper)
            if seal is None or seal == lineage.seal_of_shown(paper.notebook.read_bytes()):
                found.append(paper)
                continue
            content = _committed(paper.notebook)
            whole = content is not None and lineage.seal_of_shown(content) == seal
            from swarmbook.reproduction.recorded_runs import apart  # takes pandas

            found.append(apart(paper, Path(scratch), content=content) if whole else paper)
            if told is not None:
                told.append(_changed(paper, whole))
        yield found


def _changed(paper: Paper, whole: bool) -> str:
    try:
        profile = paper.parameters()["profile"].default
    except (NotebookError, KeyError):
        profile = "unknown"
    what = f"{paper.notebook} has changed since it was recorded (its profile is {profile} now)"
    if whole:
        return f"{what}; what was recorded is used. To restore it: git checkout {paper.notebook}"
    return f"{what}, and git's last commit does not hold what was recorded. To record it anew: {paper.command} --record"


def _committed(path: Path) -> bytes | None:
    """What git's last commit holds at a path, or None."""
    command = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    try:
        done = subprocess.run(command, capture_output=True)
    except OSError:  # there is no git
        return None
    return done.stdout if done.returncode == 0 else None
