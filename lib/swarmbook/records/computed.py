"""Tables that no single training run gives, such as plans and ensembles: recorded and stored like runs.

Serves: SkipPipe's plans and bounds, HDEE's ensembles, what SyncPCN simulates.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import swarmbook
from swarmbook.locations import recorded_folders
from swarmbook.records.keys import key_of
from swarmbook.records.progress_bars import ready
from swarmbook.records.store import Store, open_store


def computed(
    wanted: Sequence[dict],
    compute: Callable[[list[dict]], Iterable[pd.DataFrame]],
    recorded: str | Path | None = None,
    store: Store | None = None,
) -> list[pd.DataFrame]:
    """The tables that are wanted, in that order: from the record where they are there, computed now where they are not.

    wanted: for each table all that it depends on, as JSON. A version of the code that computes it belongs to that, and
    is raised by hand whenever the same rest would give other numbers.
    compute: is called with those that are neither recorded nor stored, and yields their tables in that order. Each is
    kept as soon as it comes. `Store.put` says what a table may hold.
    recorded: a folder of recorded tables; by default those of all papers.
    Raises StoreError if a table cannot be written.
    """
    store = store or open_store(recorded_folders(recorded))
    keys = [key_of({"computed": what}) for what in wanted]
    by_key = dict(zip(keys, wanted, strict=True))
    while None in (found := {key: store.get(key) for key in by_key}).values():
        missing = [key for key in by_key if found[key] is None]
        with store.claim(missing) as mine:
            began = time.monotonic()
            for key, table in zip(mine, compute([by_key[key] for key in mine]) if mine else (), strict=True):
                took = {"swarmbook": swarmbook.__version__, "seconds": time.monotonic() - began}
                store.put(key, by_key[key], table, took)
                began = time.monotonic()
        if not mine:
            store.wait(missing)
    note(by_key)
    return [found[key].metrics for key in keys]


def simulated(function: Callable[..., pd.DataFrame], version: int, **given: Any) -> pd.DataFrame:
    """The table that a function gives for these arguments: from the record, or computed now (see `computed`).

    function: its name must be no other recorded function's. version: of what it gives, raised by hand whenever the same
    arguments would give other numbers. given: JSON.
    """
    wanted = {"simulated": function.__name__, "given": given, "version": version}
    return computed([wanted], lambda _: [function(**given)])[0]


def note(keys: Iterable[str]) -> None:
    """Tell `swarmbook run`, if it listens, which runs and tables the notebook stands on."""
    ready(keys)
    if path := os.environ.get("SWARMBOOK_RECORD"):
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{key}\n" for key in keys)
