"""TODO"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from swarmbook.config import RunConfig
from swarmbook.records.store import Record

if TYPE_CHECKING:
    pass


def seconds(chosen: Mapping[str, tuple[Record, RunConfig]], known: Mapping[str, tuple[Record, RunConfig]]) -> float:
    """How long training some runs takes, by what it took when they were recorded: their shares of their packs.

    What they begin with is trained as well; of that which is not recorded each token takes as long as of its child.
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
    """A length of time as it is said."""
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.0f} h"
        if seconds < math.inf
        else "an unknown time"
    )
