"""What is recorded beside a notebook, each file checked against its checksum, its key and the rows that are due.

Serves: `swarmbook verify` and `report`, and where the cells of a notebook take their numbers from.
"""

import tempfile
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from swarmbook.config import RunConfig, run_config
from swarmbook.errors import ConfigError
from swarmbook.records.keys import key_of
from swarmbook.records.store import Record, Store
from swarmbook.reproduction.papers import Paper, read_paper
from swarmbook.training import logging_plan


@dataclass
class Recorded:
    """What lies in a paper's `runs/`, or `runs.<profile>/`.

    runs: records and configurations by key. tables: those that no single run gives (`swarmbook.records.computed`), by
    key. faults: a sentence for each file that is damaged.
    """

    runs: dict[str, tuple[Record, RunConfig]] = field(default_factory=dict)
    tables: dict[str, Record] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def recorded(paper: Paper) -> Recorded:
    """All recorded files of a paper, each checked against its checksum, its key and the rows of its configuration."""
    folder, found = paper.beside("runs"), Recorded()
    with tempfile.TemporaryDirectory(prefix="swarmbook-") as scratch:
        store = Store(Path(scratch), [folder])
        for path in sorted(folder.glob("*.parquet")):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    record = store.get(path.stem)
                except ValueError as error:  # its name is no key
                    found.faults.append(f"{path}: {error}")
                    continue
            if record is None:
                found.faults += [str(warning.message) for warning in told]
                continue
            try:
                config = run_config(**record.config)
            except (ConfigError, TypeError):
                config = None
            if config is not None and config.key == record.key:
                if wrong := logging_plan.faults(config, record.metrics):
                    found.faults.append(
                        f"{path} has not the rows of its configuration: {'; '.join(wrong)}; train it anew"
                    )
                    continue
                found.runs[record.key] = record, config
            elif config is None and key_of({"computed": record.config}) == record.key:
                found.tables[record.key] = record
            else:
                found.faults.append(f"{path} holds another configuration than its key stands for; restore it with git")
    return found


def apart(paper: Paper, place: Path, without: Collection[str] = (), content: bytes | None = None) -> Paper:
    """The same paper in a folder below `place`, with links to all that is recorded at its profile.

    without: keys that are left out. content: of the notebook, in place of the one that is there.
    """
    home, runs = paper.notebook.parent, paper.beside("runs")
    folder = place / "papers" / home.name
    (folder / runs.name).mkdir(parents=True, exist_ok=True)
    for path in (*home.iterdir(), *runs.glob("*.parquet")):
        target = folder / path.relative_to(home)
        if path.is_file() and path.stem not in without and not target.exists():
            target.symlink_to(path)
    if content is not None:
        notebook = folder / paper.notebook.name
        notebook.unlink()
        notebook.write_bytes(content)
    return read_paper(folder / paper.notebook.name)
