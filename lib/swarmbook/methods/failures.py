"""Which stages fail, and when.

In CheckFree (section 5) every stage fails independently with probability p in every step, whatever the recovery rule.
All runs of one seed draw the same uniform numbers. So the failures at a low rate are among those at a higher rate, and
rules are compared under the same losses.

- a trace is a bool array [steps, replicas, stages], true where a stage is lost at the start of a step; `events` lists
  it as pairs (step from 0, stage from 1)
- `trace` is the trace of a run, with one more column for its ends: embedding, last norm and head
- `released_failures` and `released_schedule` are the very traces of the authors' training and throughput runs
- the paper states probabilities per hour and its code holds probabilities per step: `per_step` and `per_hour` convert

Serves: CheckFree figures 3 and 4, table 2, its throughput, and the failure process.
"""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

HOUR = 3600.0  # seconds
SCHEDULE_RATES = {5: 0.0009, 10: 0.002, 16: 0.004, 33: 0.01}  # per iteration, by % per hour; released, medium model


def failures(rng: np.random.Generator, steps: int, replicas: int, stages: int, rate: float) -> np.ndarray:
    """A random trace, bool [steps, replicas, stages]; `rate` is the probability per stage, replica and step."""
    return rng.random((steps, replicas, stages)) < rate


def trace(
    rng: np.random.Generator,
    rng_of_ends: np.random.Generator,
    steps: int,
    replicas: int,
    stages: int,
    rate: float,
    failing: Literal["interior", "stages", "all", "replicas"],
    lost_stages: Sequence[tuple[int, int]],
) -> np.ndarray:
    """The trace of a run, bool [steps, R, S + 1]; its last column is the ends.

    rate: the probability that a stage is lost in a step, or with "replicas" that a replica is. failing, lost_stages: as
    in `swarmbook.config.RunConfig`. The stages draw from `rng` and the ends from `rng_of_ends`, so that the same stages
    die whether or not the ends can.
    """
    dying = np.zeros((steps, replicas, stages + 1), dtype=bool)
    if failing == "replicas":
        dying[:] = failures(rng, steps, replicas, 1, rate)
    else:
        dying[..., :-1] = failures(rng, steps, replicas, stages, rate)
    if failing == "interior":
        dying[..., [0, -2]] = False
    if failing == "all":
        dying[..., -1:] = failures(rng_of_ends, steps, replicas, 1, rate)
    for step, stage in lost_stages:
        dying[step, :, stage - 1] = True  # stage 0, which stands for the ends, is the last column
    return dying


def per_step(hourly: ArrayLike, seconds: ArrayLike) -> np.ndarray:
    """The probability that a stage fails in a step of `seconds`; `hourly` is that of failing within an hour.

    p = 1 - (1 - P) ** (seconds / 3600); arrays broadcast. ValueError unless 0 <= hourly < 1 and seconds > 0.
    """
    hourly, seconds = checked_chance("hourly", hourly), _seconds(seconds)
    return -np.expm1(np.log1p(-hourly) * seconds / HOUR)


def per_hour(rate: ArrayLike, seconds: ArrayLike) -> np.ndarray:
    """The probability that a stage fails within an hour; `rate` is that of failing in a step of `seconds`.

    The inverse of `per_step`; arrays broadcast. ValueError unless 0 <= rate < 1 and seconds > 0.
    """
    rate, seconds = checked_chance("rate", rate), _seconds(seconds)
    return -np.expm1(np.log1p(-rate) * HOUR / seconds)


def implied_seconds(hourly: ArrayLike, rate: ArrayLike) -> np.ndarray:
    """Seconds that a step lasts if `rate` per step and `hourly` per hour are the same; arrays broadcast.

    CheckFree states probabilities per hour (section 5) and its released code holds them per step. ValueError unless
    both lie between 0 and 1, and are neither: without failures every length would do.
    """
    hourly, rate = checked_chance("hourly", hourly, positive=True), checked_chance("rate", rate, positive=True)
    return HOUR * np.log1p(-rate) / np.log1p(-hourly)


def any_stage(rate: ArrayLike, stages: ArrayLike) -> np.ndarray:
    """The probability q = 1 - (1 - p) ** S that a step loses at least one of S `stages`, each lost with p = `rate`.

    Arrays broadcast. ValueError unless 0 <= rate < 1 and stages >= 1.
    """
    rate, stages = checked_chance("rate", rate), np.asarray(stages)
    if not (stages >= 1).all():
        raise ValueError(f"stages={stages.tolist()} cannot fail: give a whole number of at least 1")
    return -np.expm1(np.log1p(-rate) * stages)


def released_failures(rate: float, steps: int, stages: int, seed: int = 42) -> np.ndarray:
    """The trace [steps, 1, stages] that CheckFree's training script draws (released code).

    Every iteration draws one number for each stage in ascending order, and the stage fails if the number exceeds
    1 - rate. Each failure then draws the microbatch in which it strikes. The script overwrites this microbatch with the
    first, but the draw shifts all later failures, by the same amount for every power of two of microbatches, such as
    all of its models have. So the failures at a low rate are not among those at a higher rate. The trace of fewer steps
    is the beginning of the trace of more. ValueError unless 0 <= rate < 1.
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
    """The trace [iterations, 1, 6] of CheckFree's throughput experiment (released code).

    Unlike in training, one draw per iteration decides whether any of the six stages fails, and a draw from a second
    generator, seeded with the rate, decides which one. Iterations that save a checkpoint, which are 1, 101, 201 and so
    on, draw nothing. rate_percent: the paper's rate in percent per hour, 5, 10, 16 or 33; ValueError for another.
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
    """How much a trace loses; each replica's iterations count on their own.

    stages: the number of lost stages. iterations: the number of iterations that lose a stage. double: the number of
    iterations that lose two or more. adjacent: the number of iterations that lose two neighbouring stages, which
    averaging neighbours cannot recover (CheckFree, section 6).
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
    """A probability as floats; ValueError that names it unless 0 <= value < 1, and value > 0 if it must be positive."""
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
