"""The learning rate of a run at each of its steps.

Serves: every trained run.
"""

import math
from collections.abc import Callable


def schedule(kind: str, base: float, warmup: int, steps: int, final: float = 0.1) -> Callable[[int], float]:
    """Learning rate at each step, counted from 0.

    Linear warm-up over the first `warmup` steps, base * (step + 1) / warmup; then "constant", or "cosine"
    down to final * base at step `steps`. Raises ValueError for another kind or a warm-up longer than the run.
    """
    if kind not in ("constant", "cosine"):
        raise ValueError(f"schedule {kind!r} is unknown: give 'constant' or 'cosine'")
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup={warmup} does not fit into steps={steps}: give 0 <= warmup <= steps")

    def rate(step: int) -> float:
        if step < warmup:
            return base * (step + 1) / warmup
        if kind == "constant":
            return base
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return base * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    return rate
