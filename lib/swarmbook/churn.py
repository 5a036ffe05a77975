"""Which stages die when.

The failure process of CheckFree (section 5): every stage fails independently with probability p in every step,
whatever the recovery rule. All runs of one seed draw the same uniform numbers, so that a trace at a low rate is
part of the trace at a higher one and rules are compared under the same losses.
"""

import numpy as np


def failures(rng: np.random.Generator, steps: int, replicas: int, stages: int, rate: float) -> np.ndarray:
    """Bool [steps, replicas, stages]: the cell is lost at the start of the step. `rate` is per cell and step."""
    return rng.random((steps, replicas, stages)) < rate
