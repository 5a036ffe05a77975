"""Recording: the runs that a notebook stands on, and the executed notebook, are put into `papers/`.

Serves: `swarmbook run --record`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmbook.locations import recorded_folders
from swarmbook.records.store import open_store
from swarmbook.reproduction import execution, lineage, papers, publishing
from swarmbook.reproduction.papers import Paper


def record_runs(
    record: Paper, paper: Paper, parameters: Mapping[str, Any], output: Path | None, progress: execution.OnProgress
) -> list[str]:
    """Execute a notebook, and put the runs and tables that it stands on beside `record`, its record at a profile.

    Returns their keys. What is committed is a second execution, which has all of them from the record, as a reader has.
    """
    with tempfile.TemporaryDirectory(prefix="swarmbook-") as scratch:
        noted = Path(scratch) / "keys"  # the library writes one key a line
        execution.execute(paper, parameters, output, {"SWARMBOOK_RECORD": str(noted)}, progress, page=False)
        keys = noted.read_text().split() if noted.exists() else []
    if keys:
        open_store(recorded_folders()).publish(keys, record.beside("runs"))
    return keys


def commit(record: Paper, executed: Path, keys: Sequence[str]) -> None:
    """Put an executed notebook in its place, then delete the runs that only the one before stood on."""
    publishing.commit(record, executed)
    if keys:
        folder = record.beside("runs")
        open_store([folder]).publish(keys, folder, exclusive=True)
    lineage.keep([papers.read_paper(record.notebook)])
