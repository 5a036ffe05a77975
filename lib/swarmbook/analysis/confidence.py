"""Means over seeds and how far to trust them: paired differences and ratios with 95 % confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with the half-width of its 95 % confidence interval (Student's t)."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __mul__(self, factor: float) -> "Estimate":
        """In another unit: both mean and interval times a positive number without spread."""
        return Estimate(self.mean * factor, self.half * factor, self.n)

    def __str__(self) -> str:
        """Rounded to the digits that the interval justifies, three after the point at most."""
        if not np.isfinite(self.half):
            return f"{self.mean:.2g} (one seed)" if self.n == 1 else "not reached"
        digits = 3 if self.half == 0 else min(3, max(0, 1 - int(np.floor(np.log10(self.half)))))
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and confidence interval; one value, or a missing one, has an infinite interval."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return Estimate(float(values.mean()) if n else float("nan"), float("inf"), n)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return Estimate(float(values.mean()), float(half), n)


def paired(table: pd.DataFrame, axis: str, a: object, b: object, ratio: bool = False) -> Estimate:
    """Value at `axis` = a minus (or over) the value at `axis` = b, seed by seed, of the seeds that both have.

    Needs columns seed and value. A value that is NaN makes the estimate infinite: a seed that never got there counts.
    """
    sides = []
    for name in (a, b):
        side = table[table[axis] == name]
        if side.empty:
            raise KeyError(f"{axis}={name!r} is not in the table, which has {list(table[axis].unique())}")
        if side["seed"].duplicated().any():
            raise ValueError(f"{axis}={name!r} has several values of a seed: choose one measurement a run")
        sides.append(side.set_index("seed")["value"])
    ours, theirs = sides[0].align(sides[1], join="inner")
    return estimate(ours / theirs if ratio else ours - theirs)
