"""How long training takes, by what it took when the same was recorded.

Serves: what `swarmbook verify` and `export` say before they train, and how long `swarmbook run --fresh` may take yet.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from swarmbook.config import RunConfig
from swarmbook.records.store import Record


def seconds(chosen: Mapping[str, tuple[Record, RunConfig]], known: Mapping[str, tuple[Record, RunConfig]]) -> float:
    """Seconds that training the chosen runs takes, by what it took when they were recorded.

    A run took its share of the time of the pack in which it was trained.

    chosen, known: records and configurations by key; `known` are all that are recorded. The runs with which the chosen
    ones begin are trained as well. One that is not recorded takes as long for a token as the run that begins with it.
    """
    times: dict[str, float] = {}

    def add(config: RunConfig, each: float) -> None:
        tokens = (config.steps - (config.start.steps if config.start else 0)) * config.tokens_per_step
        if config.key in known:
            provenance = known[config.key][0].provenance
            times[config.key] = provenance["seconds"] / provenance["packed"]
        else:
            times[config.key] = each * tokens
        for parent in config.parents:
            if parent.key not in times:
                add(parent, times[config.key] / tokens)

    for key, (_, config) in chosen.items():
        if key not in times:
            add(config, 0.0)
    return sum(times.values())


def duration(seconds: float) -> str:
    """A length of time in words, such as "25 min"."""
    if seconds == math.inf:
        return "an unknown time"
    if seconds >= 6000:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


def recorded_seconds(folder: Path) -> dict[str, float]:
    """By key the seconds that runs and tables of a folder took when they were recorded; their numbers are not read."""
    import pyarrow.parquet as parquet

    found = {}
    for path in folder.glob("*.parquet"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # what is damaged is told by whoever reads it
            made = json.loads(parquet.read_metadata(path).metadata[b"swarmbook"])["provenance"]
            found[path.stem] = made["seconds"] / made.get("packed", 1)
    return found
