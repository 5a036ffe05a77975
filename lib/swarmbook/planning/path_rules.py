"""Which stages a path may visit, and in what order (SkipPipe's convergence constraints, CC).

Serves: all of SkipPipe's planning, and its table of what each constraint costs in time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from swarmbook.errors import ConfigError, PlanError


@dataclass(frozen=True)
class PathRules:
    """Which stages a microbatch may visit, and in what order (the convergence constraints CC of SkipPipe's code).

    - `visits` is P, the number of stages on every path, stage 0 included.
    - `ahead` is how far the next stage may lie above the highest one so far.
    - `swaps` is how many stages may be visited after a higher one. `lag` is how far below the highest one so far each
      of them may lie, and `lags` is how much that may be in all.
    - `shared` says whether all microbatches of a slot take the same path.

    The defaults are those of the released code; its first version has ahead=3 and swaps=1. Raises `ConfigError` for
    values out of range.
    """

    visits: int
    ahead: int = 4
    swaps: int = 2
    lag: int = 1
    lags: int = 2
    shared: bool = True

    def __post_init__(self) -> None:
        least = {"visits": 2, "ahead": 1, "swaps": 0, "lag": 0, "lags": 0}
        whole = all(isinstance(getattr(self, name), (int, np.integer)) for name in least)
        if not whole or any(getattr(self, name) < bound for name, bound in least.items()):
            raise ConfigError(
                "visits must be at least 2, ahead at least 1 and swaps, lag and lags not negative, all whole numbers, "
                f"not {self}"
            )

    def broken(self, order: Sequence[int]) -> str | None:
        """The name of a rule that relay stages break in this order of visits; None if they keep all rules."""
        if len(order) != self.visits - 1:
            return "visits"
        if len(set(order)) < len(order) or 0 in order:
            return "each stage once"
        frontier, swaps, lags = 0, 0, 0
        for stage in order:
            if stage > frontier + self.ahead:
                return "ahead"
            if stage < frontier:
                swaps, lags = swaps + 1, lags + frontier - stage
                if frontier - stage > self.lag:
                    return "lag"
            frontier = max(frontier, stage)
        return "swaps" if swaps > self.swaps else "lags" if lags > self.lags else None

    def steps(self, stages: int, frontier: int, swaps: int, lags: int) -> Iterator[tuple[int, int, int]]:
        """What may come next on a path: (relay stage, swaps, lags), with the swaps and lags made by then.

        frontier: the highest stage so far. swaps, lags: those made so far. The caller leaves out stages that the path
        already has.
        """
        for stage in range(max(1, frontier - self.lag), min(stages - 1, frontier + self.ahead) + 1):
            lag = max(0, frontier - stage)
            if swaps + (lag > 0) <= self.swaps and lags + lag <= self.lags:
                yield stage, swaps + (lag > 0), lags + lag

    def orders(self, stages: int) -> tuple[tuple[int, ...], ...]:
        """All orders of relay stages 1 to `stages` - 1 that a path may have, sorted."""
        found: list[tuple[int, ...]] = []

        def extend(order: tuple[int, ...], frontier: int, swaps: int, lags: int) -> None:
            if len(order) == self.visits - 1:
                found.append(order)
                return
            for stage, *made in self.steps(stages, frontier, swaps, lags):
                if stage not in order:
                    extend((*order, stage), max(frontier, stage), *made)

        extend((), 0, 0, 0)
        return tuple(sorted(found))

    def draw(self, stages: int, rng: np.random.Generator) -> tuple[int, ...]:
        """A random order of relay stages that a path may have. Raises `PlanError` if none turns up."""
        for _ in range(10_000):
            order, frontier = [], 0
            for _ in range(self.visits - 1):
                low, high = max(1, frontier - self.lag), min(stages - 1, frontier + self.ahead)
                stage = int(rng.integers(low, high + 1))
                order.append(stage)
                frontier = max(frontier, stage)
            if self.broken(order) is None:
                return tuple(order)
        raise PlanError(f"no order of {self.visits} of {stages} stages was found that keeps {self}")
