"""Main effects and interactions of a factorial: against least squares, and against effects that were put in."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from swarmbook.analysis.effects import effects
from swarmbook.errors import ConfigError

FACTORS = {"exchange": ["none", "pairs", "all"], "recovery": ["copy", "average"], "route": ["in order", "planned"]}


def factorial(value, seeds=3):
    """One row a run; value: of (exchange, recovery, route, seed)."""
    cells = list(product(*FACTORS.values(), range(seeds)))
    return pd.DataFrame([(*cell, value(*cell)) for cell in cells], columns=[*FACTORS, "seed", "value"])


def test_effects_that_were_put_in_are_found():
    exchange, recovery = {"none": 0.5, "pairs": -0.2, "all": -0.3}, {"copy": -0.1, "average": 0.1}
    together = {("none", "copy"): 0.07, ("none", "average"): -0.07, ("all", "copy"): -0.07, ("all", "average"): 0.07}

    def value(e, r, route, seed):
        return 2 + 0.3 * seed + exchange[e] + recovery[r] + together.get((e, r), 0.0)

    found = effects(factorial(value), FACTORS)
    for name, put in (("exchange", exchange), ("recovery", recovery)):
        for level, effect in put.items():
            assert found[(name, level), (name, level)].mean == pytest.approx(effect)
    for e, r in product(exchange, recovery):
        here = found[("exchange", e), ("recovery", r)]
        assert here.mean == pytest.approx(together.get((e, r), 0.0), abs=1e-12) and here.n == 3
        assert here == found[("recovery", r), ("exchange", e)]
        assert here.half == pytest.approx(0.0, abs=1e-12)  # seeds differ by a constant, which cancels
    assert found[("route", "planned"), ("route", "planned")].mean == pytest.approx(0.0, abs=1e-12)
    assert found[("route", "planned"), ("exchange", "all")].mean == pytest.approx(0.0, abs=1e-12)


def test_effects_are_those_of_least_squares_with_sum_to_zero_contrasts():
    rng = np.random.default_rng(1)
    table = factorial(lambda *cell: rng.normal(), seeds=1)
    table = pd.concat([table, table.assign(seed=1), table.assign(seed=2)])
    found = effects(table, FACTORS)
    part = table[table["seed"] == 0]
    contrast = {}
    for name, levels in FACTORS.items():
        for level in levels[:-1]:
            contrast[name, level] = (part[name] == level).astype(float) - (part[name] == levels[-1]).astype(float)
    columns = {(): np.ones(len(part))} | {(key,): column for key, column in contrast.items()}
    for a, b in product(contrast, contrast):
        if list(FACTORS).index(a[0]) < list(FACTORS).index(b[0]):
            columns[a, b] = contrast[a] * contrast[b]
    solved, *_ = np.linalg.lstsq(np.stack(list(columns.values()), 1), part["value"].to_numpy(), rcond=None)
    for key, weight in zip(columns, solved, strict=True):
        if key:
            assert found[key[0], key[-1]].mean == pytest.approx(weight)


def test_a_factorial_with_a_hole_or_a_doubled_cell_is_refused():
    table = factorial(lambda *cell: 1.0)
    with pytest.raises(ConfigError, match=r"no run has \{'exchange': 'all', 'recovery': 'average', 'route': 'planned'"):
        effects(table[:-1], FACTORS)
    with pytest.raises(ConfigError, match="has several values"):
        effects(pd.concat([table, table[:1]]), FACTORS)
    with pytest.raises(ConfigError, match="'route' has the levels"):
        effects(table, FACTORS | {"route": ["in order"]})
    assert effects(pd.concat([table, table.assign(exchange="unknown")]), FACTORS) == effects(table, FACTORS)
