"""What each factor of a full factorial does by itself, and what two of them do together, with intervals over seeds.

A factorial has one run of every seed for each combination of the levels of its factors, such as exchange, recovery and
route. With y(a) the mean over all runs in which a factor has the level a, and y the mean of all runs,

- the *main effect* of a is y(a) - y
- the *interaction* of a and b, levels of two factors, is y(a, b) - y(a) - y(b) + y: what they do together beyond the
  sum of what each does alone. Where it is 0, the two methods compose.

These are the effects of an analysis of variance with sum-to-zero contrasts (Montgomery, Design and Analysis of
Experiments, chapter 5). They are taken seed by seed, and their intervals are those of the mean over seeds.

Serves: the matrix of effects in `papers/swarm`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import pandas as pd

from swarmbook.analysis.confidence import Estimate, estimate
from swarmbook.errors import ConfigError

Level = tuple[str, object]  # a factor and one of its levels


def effects(table: pd.DataFrame, factors: Mapping[str, Sequence]) -> dict[tuple[Level, Level], Estimate]:
    """Main effects, under (a, a), and interactions of two factors, under (a, b) and (b, a).

    table: one row a run, with a column for each factor, seed and value; rows with other levels do not count.
    factors: the levels of each, at least two. ConfigError for a combination that a seed lacks, or has twice.
    """
    for name, levels in factors.items():
        if len(set(levels)) < 2:
            raise ConfigError(f"the factor {name!r} has the levels {list(levels)}: give at least two different ones")
    cells = table.set_index([*factors, "seed"])["value"]
    wanted = pd.MultiIndex.from_product([*factors.values(), sorted(table["seed"].unique())], names=cells.index.names)
    if len(missing := wanted.difference(cells.index)):
        raise ConfigError(f"no run has {dict(zip(wanted.names, missing[0], strict=True))}: a factorial has them all")
    cells = cells[cells.index.isin(wanted)]
    if cells.index.has_duplicates:
        twice = cells.index[cells.index.duplicated()][0]
        raise ConfigError(f"{dict(zip(wanted.names, twice, strict=True))} has several values: give one for each run")

    whole = cells.groupby("seed").mean()
    alone = {
        (name, level): cells.xs(level, level=name).groupby("seed").mean() - whole
        for name, levels in factors.items()
        for level in levels
    }
    found = {(level, level): estimate(effect) for level, effect in alone.items()}
    for a, b in _pairs(factors):
        together = cells.xs((a[1], b[1]), level=(a[0], b[0])).groupby("seed").mean() - whole
        found[a, b] = found[b, a] = estimate(together - alone[a] - alone[b])
    return found


def _pairs(factors: Mapping[str, Sequence]) -> Iterator[tuple[Level, Level]]:
    for one, other in combinations(factors, 2):
        yield from product(((one, level) for level in factors[one]), ((other, level) for level in factors[other]))
