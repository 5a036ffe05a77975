"""Lineage: which recorded runs and tables each cell of a notebook stands on.

- The code of a notebook is executed once more in a process of its own, on its record alone, without drawing.
- A statement stands on the records whose numbers it reads: of a hundred runs at hand, the ten that it plots.
- It also stands on what the names stand on that it reads, or that functions read which it calls. So numbers keep where
  they are from through any number of names.
- What was found is kept beside the notebook, in `provenance.json`, and holds until its code or its record changes.
- A record at another profile, `<paper>.<profile>`, is a notebook like any other.

`python -m swarmbook.reproduction.lineage [PAPER ...]` finds out anew what is kept.

Serves: `swarmbook report` and `swarmbook run --record`.
"""

import ast
import contextlib
import dis
import hashlib
import json
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmbook import errors
from swarmbook.endings import terminable
from swarmbook.errors import NotebookError
from swarmbook.records import atomic_files
from swarmbook.reproduction import papers
from swarmbook.reproduction.names import Names
from swarmbook.reproduction.papers import Paper

if TYPE_CHECKING:
    from swarmbook.reproduction.recorded_runs import Recorded

Keys = frozenset[str]
NONE: Keys = frozenset()
KEPT = "provenance.json"


def keys_of_cells(chosen: Sequence[Paper]) -> dict[str, dict[str, Keys]]:
    """The keys of the runs and tables that each cell stands on, by paper and id of the cell.

    Cells that stand on none are absent. What is kept is read; for papers whose code or record has changed since, it is
    found anew. Raises NotebookError if a cell fails, or needs a run that is not recorded beside the notebook.
    """
    found = {paper.name: kept(paper) for paper in chosen}
    return found | traced([paper for paper in chosen if found[paper.name] is None])


def kept(paper: Paper) -> dict[str, Keys] | None:
    """The keys by cell that are kept beside the notebook, or None if they are of other code or another record."""
    if not paper.runs:
        return {}
    path = paper.beside(KEPT)
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["of"] != _seal(paper):
        return None
    return {cell: frozenset(keys.split()) for cell, keys in content["cells"].items()}


def keep(chosen: Sequence[Paper]) -> None:
    """Find out anew which keys cells stand on, and keep it beside the notebooks that have recorded runs."""
    found = traced(chosen)
    for paper in chosen:
        path = paper.beside(KEPT)
        if not paper.runs:
            path.unlink(missing_ok=True)
            continue
        cells = {cell: " ".join(sorted(keys)) for cell, keys in found[paper.name].items()}
        content = {"of": _seal(paper), "shown": seal_of_shown(paper.notebook.read_bytes()), "cells": cells}
        atomic_files.write(path, (json.dumps(content, indent=1) + "\n").encode())


def traced(chosen: Sequence[Paper]) -> dict[str, dict[str, Keys]]:
    """As `keys_of_cells`, but all are found by executing the notebooks.

    Each is executed in a process of its own, as many at once as there are cores.
    """
    found: dict[str, dict[str, Keys]] = {paper.name: {} for paper in chosen}
    if recorded := [paper for paper in chosen if paper.runs]:
        workers = min(len(recorded), os.cpu_count() or 1)
        before = active_children()
        with ThreadPoolExecutor(workers) as threads:
            try:
                found |= zip((paper.name for paper in recorded), threads.map(_traced_apart, recorded), strict=True)
            except BaseException:  # one has failed, or this process is asked to end
                for child in active_children():
                    if child not in before:
                        child.terminate()
                raise
    return found


def _traced_apart(paper: Paper) -> dict[str, Keys]:
    """`trace` in a new process. A pool that gives each task a new one can wait for the last for ever (Python 3.11)."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(trace, paper).result()


def parents(record: "Recorded") -> dict[str, Keys]:
    """What each recorded run and table was made from, of what is recorded: where a run began, an ensemble's experts."""
    runs = {key: {parent.key for parent in config.parents} for key, (_, config) in record.runs.items()}
    tables = {key: set(table.config.get("experts", ())) for key, table in record.tables.items()}
    return {key: frozenset(made_from & (runs.keys() | tables.keys())) for key, made_from in (runs | tables).items()}


def ancestors(keys: Set[str], parents: Mapping[str, Keys]) -> Keys:
    """All that some runs and tables were made from, directly or not, without these themselves."""
    found: Keys = NONE
    rest = set(keys)
    while rest:
        rest = set().union(*(parents[key] for key in rest)) - found
        found |= rest
    return found - keys


def _seal(paper: Paper) -> str:
    """A hash of all that decides which cell stands on what: code and keys of what is recorded."""
    code = [[cell["id"], "".join(cell["source"])] for cell in _code(paper.notebook)]
    recorded = sorted(paper.recorded)
    return hashlib.sha256(json.dumps([code, recorded]).encode()).hexdigest()


def shown(paper: Paper) -> str | None:
    """The seal of what the notebook showed when it was recorded, or None if it was never sealed."""
    path = paper.beside(KEPT)
    return json.loads(path.read_text(encoding="utf-8")).get("shown") if path.exists() else None


def seal_of_shown(notebook: bytes) -> str:
    """A hash of a notebook's code and of what it shows. Text and what JupyterLab notes about cells do not count."""
    cells = [cell for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]
    outputs = [[output.get("data", output.get("text")) for output in cell["outputs"]] for cell in cells]
    code = ["".join(cell["source"]) for cell in cells]
    return hashlib.sha256(json.dumps([code, outputs], sort_keys=True).encode()).hexdigest()


def trace(paper: Paper) -> dict[str, Keys]:
    """Execute a notebook in this process, and return the keys by cell. The process is of no other use afterwards."""
    from swarmbook.records.store import Record, Store

    recorded = paper.recorded
    read: set[str] = set()

    class Noting(Record):
        """A record that tells when its numbers are read."""

        def __getattribute__(self, name: str) -> Any:
            if name == "metrics":
                read.add(object.__getattribute__(self, "key"))
            return object.__getattribute__(self, name)

    def get(store: Store, key: str, get=Store.get) -> Record | None:
        record = get(store, key) if key in recorded else None  # not what is recorded at other profiles alone
        return record and Noting(**vars(record))

    def claim(store: Store, keys: Sequence[str]) -> None:
        why = f"not recorded beside it: {', '.join(keys)}"
        raise LookupError(f"{why}; `{paper.command} --record` trains and records it")

    with terminable(), tempfile.TemporaryDirectory(prefix="swarmbook-") as scratch, open(os.devnull, "w") as nowhere:
        os.environ |= {"SWARMBOOK_STORE": scratch, "SWARMBOOK_FRESH": "0", "MPLBACKEND": "Agg"}
        os.environ["SWARMBOOK_PAPERS"] = str(paper.notebook.parents[1])
        Store.get, Store.claim = get, claim
        os.chdir(paper.notebook.parent)
        with contextlib.redirect_stdout(nowhere):
            return {cell: keys for cell, keys in _trace(paper.notebook, read) if keys}


def _trace(notebook: Path, read: set[str]) -> Iterator[tuple[str, Keys]]:
    """The id and the keys of each cell. read: the set in which a key appears when numbers of its record are read."""
    from matplotlib import pyplot as plt

    known: dict[str, Any] = {"__name__": "__main__"}
    taint: dict[str, Keys] = {}
    for number, cell in enumerate(_code(notebook), 1):
        found: set[str] = set()
        try:
            for statement in ast.parse("".join(cell["source"])).body:
                names = Names(statement)
                passed = [_stands_on(name, known, taint) for name in names.read]
                read.clear()
                exec(compile(ast.Module([statement], []), f"code cell {number}", "exec"), known)
                keys = frozenset(read.union(*passed))
                found |= keys
                taint |= dict.fromkeys(names.written, keys)
                taint |= {name: taint.get(name, NONE) | keys for name in names.changed}
        except Exception as error:
            where = f"{notebook.stem}, code cell {number}"
            raise NotebookError(f"{where}: {type(error).__name__}: {error}") from error
        plt.close("all")
        yield cell["id"], frozenset(found)


def _stands_on(name: str, known: dict[str, Any], taint: dict[str, Keys], within: frozenset[str] = frozenset()) -> Keys:
    """What a name stands on. A function of the notebook stands on the notebook's names that it reads when called."""
    from swarmbook.analysis.claims import Claims

    value = known.get(name)
    if isinstance(value, types.FunctionType) and value.__globals__ is known:
        if name in within:
            return NONE
        inside = (_stands_on(other, known, taint, within | {name}) for other in _globals(value.__code__))
        return NONE.union(*inside)
    apart = isinstance(value, types.ModuleType | Claims) or _are_runs(value)  # what is read of runs is noted then
    return NONE if apart else taint.get(name, NONE)


def _are_runs(value: Any) -> bool:
    from swarmbook.results import Runs

    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, Runs) or (bool(inside) and all(map(_are_runs, inside)))


def _globals(code: types.CodeType) -> set[str]:
    """The global names that a function reads, and those within it."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _code(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


if __name__ == "__main__":
    try:
        keep(papers.chosen(sys.argv[1:], papers.records()))
    except errors.UsageError as error:
        sys.exit(str(error))
