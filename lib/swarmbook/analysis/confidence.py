"""Means over seeds and how far to trust them: 95 % confidence intervals, also of paired differences and ratios.

Serves: every verdict, and every interval in a table or figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds; `half` is half the width of its 95 % confidence interval (Student's t)."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half

    def __mul__(self, factor: float) -> "Estimate":
        """The estimate in another unit: mean and interval times a positive number."""
        return Estimate(self.mean * factor, self.half * factor, self.n)

    def __str__(self) -> str:
        """Mean and half-width, rounded to the digits that the interval justifies, three after the point at most."""
        if not np.isfinite(self.half):
            return f"{self.mean:.2g} (one seed)" if self.n == 1 else "not reached"
        digits = 3 if self.half == 0 else min(3, max(0, 1 - int(np.floor(np.log10(self.half)))))
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values and its confidence interval, which is infinite for one value, or if a value is missing.

    `scipy.stats.ttest_1samp` gives the same interval, but warns if the values are equal, and loses digits if they
    nearly are.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return Estimate(float(values.mean()) if n else float("nan"), float("inf"), n)
    half = special.stdtrit(n - 1, 0.975) * (values.std(ddof=1) / np.sqrt(n))
    return Estimate(float(values.mean()), float(half), n)


def paired(table: pd.DataFrame, axis: str, a: object, b: object, ratio: bool = False) -> Estimate:
    """The difference, or ratio, between the values at `axis` = a and at `axis` = b, seed by seed.

    table: with the columns seed, value and `axis`. Only seeds that both sides have count. A seed whose value is NaN
    counts too, and makes the interval infinite: it never got there. KeyError if a side is not in the table; ValueError
    if it has several values of a seed.
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
