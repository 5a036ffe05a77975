"""TODO"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

import swarmbook
from swarmbook.records.keys import key_of
from swarmbook.records.store import Store, open_store


def computed(
    wanted: Sequence[dict],
    compute: Callable[[list[dict]], Iterable[pd.DataFrame]],
    recorded: str | Path = "runs",
    store: Store | None = None,
) -> list[pd.DataFrame]:
    """Tables that no single training run gives, such as plans or ensembles: recorded and stored like runs.

    wanted: all that a table depends on, as JSON, a version of its code among it, to be raised by hand whenever the
    same rest would give other numbers. compute: called with those that are neither recorded nor stored, yields their
    tables in that order; each is kept as soon as it comes. Tables as for `Store.put`.
    """
    store = store or open_store(recorded=[Path(recorded)])
    keys = [key_of({"computed": what}) for what in wanted]
    by_key = dict(zip(keys, wanted, strict=True))
    while missing := [key for key in by_key if store.get(key) is None]:
        with store.claim(missing) as mine:
            for key, table in zip(mine, compute([by_key[key] for key in mine]) if mine else (), strict=True):
                store.put(key, by_key[key], table, {"swarmbook": swarmbook.__version__})
        if not mine:
            store.wait(missing)
    _note(by_key)
    return [store.get(key).metrics for key in keys]


def _note(keys: Iterable[str]) -> None:
    """Tell `swarmbook run --record`, if it listens, which runs and tables the notebook stands on."""
    if path := os.environ.get("SWARMBOOK_RECORD"):
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{key}\n" for key in keys)
