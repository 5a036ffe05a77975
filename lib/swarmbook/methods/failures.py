"""Which stages die when.

The failure process of CheckFree (section 5): every stage fails independently with probability p in every step,
whatever the recovery rule. All runs of one seed draw the same uniform numbers, so that a trace at a low rate is
part of the trace at a higher one and rules are compared under the same losses.

- a trace is a bool array [steps, replicas, stages]; `events` lists it as (step, stage), stages counted from 1
- `trace` is that of a run, with one column more for its ends
- `released_failures` and `released_schedule` are the very traces of the authors' training and throughput runs
- the paper states chances per hour, its code holds chances per step: `per_step` and `per_hour` convert
"""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

HOUR = 3600.0  # seconds
SCHEDULE_RATES = {5: 0.0009, 10: 0.002, 16: 0.004, 33: 0.01}  # % an hour: per iteration; released code, medium model


def failures(rng: np.random.Generator, steps: int, replicas: int, stages: int, rate: float) -> np.ndarray:
    """Bool [steps, replicas, stages]: the cell is lost at the start of the step. `rate` is per cell and step."""
    return rng.random((steps, replicas, stages)) < rate


def trace(
    rng: np.random.Generator,
    rng_of_ends: np.random.Generator,
    steps: int,
    replicas: int,
    stages: int,
    rate: float,
    failing: Literal["interior", "stages", "all"],
    lost_stages: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Bool [steps, R, S + 1]: which cells die at the start of a step; the last column is the embedding and head.

    rate: chance of each cell in each step. failing, lost_stages: as in `swarmbook.config.RunConfig`. The stages draw from
    `rng` and the embedding and head from `rng_of_ends`, so that the same stages die whether or not the ends may.
    """
    dying = np.zeros((steps, replicas, stages + 1), dtype=bool)
    dying[..., :-1] = failures(rng, steps, replicas, stages, rate)
    if failing == "interior":
        dying[..., [0, -2]] = False
    if failing == "all":
        dying[..., -1:] = failures(rng_of_ends, steps, replicas, 1, rate)
    for step, stage in lost_stages:
        dying[step, :, stage - 1] = True  # stage 0, the embedding and head, is the last column
    return dying


def per_step(hourly: ArrayLike, seconds: ArrayLike) -> np.ndarray:
    """Chance to fail in a step of `seconds`, of a stage that fails within an hour with chance `hourly`.

    p = 1 - (1 - P) ** (seconds / 3600); arrays broadcast. ValueError unless 0 <= hourly < 1 and seconds > 0.
    """
    hourly, seconds = checked_chance("hourly", hourly), _seconds(seconds)
    return -np.expm1(np.log1p(-hourly) * seconds / HOUR)


def per_hour(rate: ArrayLike, seconds: ArrayLike) -> np.ndarray:
    """Chance to fail within an hour, of a stage that fails with chance `rate` in each step of `seconds`.

    The inverse of `per_step`; arrays broadcast. ValueError unless 0 <= rate < 1 and seconds > 0.
    """
    rate, seconds = checked_chance("rate", rate), _seconds(seconds)
    return -np.expm1(np.log1p(-rate) * HOUR / seconds)


def implied_seconds(hourly: ArrayLike, rate: ArrayLike) -> np.ndarray:
    """How long a step must last for `rate` a step to come to `hourly` an hour; arrays broadcast.

    CheckFree states the one (section 5) and its released code holds the other. ValueError unless both lie between
    0 and 1, ends excluded: without failures any length would do.
    """
    hourly, rate = checked_chance("hourly", hourly, positive=True), checked_chance("rate", rate, positive=True)
    return HOUR * np.log1p(-rate) / np.log1p(-hourly)


def any_stage(rate: ArrayLike, stages: ArrayLike) -> np.ndarray:
    """Chance that a step loses at least one of `stages` stages, each with chance `rate`: q = 1 - (1 - p) ** S."""
    rate, stages = checked_chance("rate", rate), np.asarray(stages)
    if not (stages >= 1).all():
        raise ValueError(f"stages={stages.tolist()} cannot fail: give a whole number of at least 1")
    return -np.expm1(np.log1p(-rate) * stages)


def released_failures(rate: float, steps: int, stages: int, seed: int = 42) -> np.ndarray:
    """Bool [steps, 1, stages]: the trace that CheckFree's training script draws (released code).

    Every iteration draws one number for each stage in ascending order, and the stage fails where it exceeds
    1 - rate. A failure then draws the microbatch in which it strikes; the script overwrites that with the first,
    but the draw moves all later failures, and by the same for any power of two of microbatches, such as all of its
    models have. So a low rate's trace is not part of a higher one's; that of fewer steps is the beginning of that of
    more. ValueError unless 0 <= rate < 1.
    """
    checked_chance("rate", rate)
    draw = random.Random(seed)
    lost = np.zeros((steps, 1, stages), bool)
    for step in range(steps):
        for stage in range(stages):
            if draw.random() > 1 - rate:
                lost[step, 0, stage] = True
                draw.randint(0, 3)
    return lost


def released_schedule(rate_percent: int, iterations: int = 500) -> np.ndarray:
    """Bool [iterations, 1, 6]: the failures of CheckFree's throughput experiment (released code).

    Unlike in training, one draw an iteration decides whether any of the six stages fails at all, and one from
    a second generator, seeded with the rate, which; iterations that save a checkpoint, every 100th from 1 on, draw
    nothing. `rate_percent` is the paper's chance an hour: 5, 10, 16 or 33; ValueError for another.
    """
    if rate_percent not in SCHEDULE_RATES:
        raise ValueError(
            f"rate_percent={rate_percent!r} has no released schedule: give one of {', '.join(map(str, SCHEDULE_RATES))}"
        )
    strike, pick = random.Random(33), random.Random(5 * rate_percent)
    lost = np.zeros((iterations, 1, 6), bool)
    for iteration in range(iterations):
        if iteration % 100 != 1 and strike.random() < SCHEDULE_RATES[rate_percent]:
            lost[iteration, 0, pick.randint(1, 6) - 1] = True
    return lost


def events(trace: np.ndarray) -> list[tuple[int, int]]:
    """(step, stage) of every failure in a one-replica trace [steps, 1, stages]; steps from 0, stages from 1."""
    if trace.ndim != 3 or trace.shape[1] != 1:
        raise ValueError(f"a trace of shape {trace.shape} is not one replica's: give [steps, 1, stages]")
    return [(int(step), int(stage) + 1) for step, _, stage in np.argwhere(trace)]


class Losses(NamedTuple):
    """What a trace asks of a recovery rule; an iteration of each replica counts for itself.

    stages: lost stages; iterations: those that lose any; double: those that lose two or more; adjacent: those that
    lose two stages next to each other, which averaging neighbours cannot recover (CheckFree, section 6).
    """

    stages: int
    iterations: int
    double: int
    adjacent: int


def losses(trace: np.ndarray) -> Losses:
    """Count the failures of a bool trace [steps, replicas, stages]."""
    lost = trace.sum(-1)
    together = (trace[..., 1:] & trace[..., :-1]).any(-1)
    return Losses(int(lost.sum()), int((lost > 0).sum()), int((lost > 1).sum()), int(together.sum()))


def checked_chance(name: str, value: ArrayLike, positive: bool = False) -> np.ndarray:
    """`value` as floats; ValueError that names it unless 0 <= value < 1, or 0 < value < 1 where it must be positive."""
    chance = np.asarray(value, float)
    bad = chance[~((chance >= 0) & (chance < 1)) | (positive & (chance == 0))]
    if bad.size:
        least = "more than 0" if positive else "at least 0"
        raise ValueError(f"{name}={bad[0]:g} is not a chance of failing: give {least} and less than 1 (5 % is 0.05)")
    return chance


def _seconds(value: ArrayLike) -> np.ndarray:
    seconds = np.asarray(value, float)
    bad = seconds[~((seconds > 0) & np.isfinite(seconds))]
    if bad.size:
        raise ValueError(f"seconds={bad[0]:g} is not the length of a step: give more than 0")
    return seconds
