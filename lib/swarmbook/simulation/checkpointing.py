"""What checkpoints cost: the steps that rolling back repeats, and the hours they take.

CheckFree's baseline writes the model to storage every k iterations and after a failure goes on from the last copy
(section 5). Three accounts of what that loses:

- `progress`: a trainer that saves after every k steps of progress; our trainer rolls back by exactly this rule
- `released_progress`: the authors did not train it but recomputed it from logs, as if saving on every k-th iteration
- `slowdown` and `wall_slowdown`: the expected number of iterations a useful step takes, in closed form

Weights, moments and place in the data go back together, so that how far a model is says how good it is: `losses_with_rollbacks`
turns the losses of a run without failures into those of a run that rolls back.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from swarmbook.config import RunConfig
from swarmbook.methods.failures import HOUR, checked_chance
from swarmbook.results import Runs


def progress(failing: np.ndarray, every: int) -> np.ndarray:
    """Steps of progress [wall steps] that a trainer holds at each wall step, when it saves one copy in `every`.

    `failing`: bool [wall steps], some stage is lost at the start of the step (`trace.any((1, 2))`). Entry i is the
    progress before step i is trained, after its failure, if any, was handled. A failure puts the model back to the
    last copy; then the step is trained and adds 1; a progress that is now a multiple of `every` is copied at once.
    The untrained model counts as a copy. So a failure goes back to the multiple of `every` at or below the progress,
    and right after a copy it costs nothing; with every=1 failures are free. ValueError for `every` below 1.

    It differs from the released simulation, `released_progress`, in two ways. There copies fall on multiples of the
    wall iteration, so that after a failure the next copy is due earlier than k steps on, which flatters frequent
    failures; here they are counted as trainers do, in the step number that itself goes back. And there a failure on
    the very iteration of a copy loses that copy.
    """
    _period(every)
    held, actual = 0, []
    for fails in np.asarray(failing, bool).tolist():
        if fails:
            held -= held % every
        actual.append(held)
        held += 1
    return np.array(actual, int)


def released_progress(failing: np.ndarray, every: int) -> np.ndarray:
    """Steps of progress [wall steps] in CheckFree's simulation of checkpoints, step by step (released code).

    `failing` as for `progress`. A failure at wall iteration i goes back to the progress at the multiple of `every` at
    or below i, to 0 in the first `every` iterations, and on a multiple itself `every` steps: should other failures
    have left less than that, the result is negative, as it is in the original.
    """
    _period(every)
    held, actual = 0, []
    for i, fails in enumerate(np.asarray(failing, bool).tolist()):
        if fails and i < every:
            held = 0
        elif fails and i % every == 0:
            held -= every
        elif fails:
            held = actual[i - i % every]
        actual.append(held)
        held += 1
    return np.array(actual, int)


def iterations_to_progress(actual: np.ndarray, steps: int) -> int:
    """The first wall iteration at which the progress [wall steps] is at least `steps`: how many it takes to get there.

    ValueError if the trace ends earlier.
    """
    there = np.flatnonzero(actual >= steps)
    if not there.size:
        most = int(actual.max(initial=0))
        raise ValueError(
            f"steps={steps} are not reached: {len(actual)} iterations come to {most}; give a longer trace of failures"
        )
    return int(there[0])


def losses_with_rollbacks(losses: ArrayLike, steps: ArrayLike, actual: np.ndarray) -> np.ndarray:
    """Loss [wall steps] of a run that rolls back, from `losses` [n] of one that never does, measured at `steps` [n].

    Linear between measurements and NaN beyond the last; progress below the first has the first loss. `steps` ascend.
    The released code does the same, but to judge by its calls on losses that were measured under failures, which
    counts these twice; give it losses of a run without. ValueError for steps that do not fit.
    """
    losses, steps = np.asarray(losses, float), np.asarray(steps, float)
    if losses.shape != steps.shape or losses.ndim != 1 or not losses.size:
        raise ValueError(f"losses {losses.shape} and steps {steps.shape} differ: give one step for each loss")
    if not (np.diff(steps) > 0).all():
        raise ValueError(f"steps={steps.tolist()} do not ascend: sort the measurements and drop repeated ones")
    return np.interp(actual, steps, losses, right=np.nan)


def runs_with_rollbacks(
    runs: Runs, rate: float, every: int, rule: Callable = progress, times: float = 1.0
) -> pd.DataFrame:
    """Validation losses that runs without rollbacks would have with them: columns seed, step, value.

    The stages of each run fail as under `failure_rate=rate`, for `times` as many steps as it has; its losses are
    then those at the progress that `rule` (`progress` or `released_progress`) leaves it with `every`.
    """
    tables = []
    for config, part in zip(runs.configs, runs.records, strict=True):
        losses = part.metrics[part.metrics["metric"] == "validation loss"]
        held = progress_of_run(config, rate, every, rule, int(times * config.steps))
        steps = np.arange(0, len(held), config.evaluate_every)
        values = losses_with_rollbacks(losses["value"], losses["step"], np.maximum(held[steps], 0))
        tables.append(pd.DataFrame({"seed": config.seed, "step": steps, "value": values}).dropna())
    return pd.concat(tables, ignore_index=True)


def wall_steps_to(
    runs: Runs, target: float, rate: float, every: int, rule: Callable = progress, times: int = 40
) -> pd.DataFrame:
    """Wall steps to a validation loss with rollbacks, as `Runs.steps_to` without: columns seed, value.

    Stages fail as in `runs_with_rollbacks`; NaN for what is not reached in `times` as many steps as the run has.
    """
    rows = []
    for config, needed in zip(runs.configs, runs.steps_to(target)["value"], strict=True):
        held = progress_of_run(config, rate, every, rule, times * config.steps)
        there = np.flatnonzero(held >= needed)  # never true for NaN
        rows.append({"seed": config.seed, "value": float(there[0]) if there.size else float("nan")})
    return pd.DataFrame(rows)


def progress_of_run(config: RunConfig, rate: float, every: int, rule: Callable, steps: int) -> np.ndarray:
    """Progress after 0, 1, ... `steps` wall steps of a run whose stages fail at `rate` and that rolls back."""
    failing = config.model_copy(update={"steps": steps, "failure_rate": rate}).failures().any((1, 2))
    return np.concatenate([[0], rule(failing, every) + 1])


def slowdown(chance: ArrayLike, every: int) -> np.ndarray:
    """Wall iterations that a step of progress takes on average under `progress`.

    `chance`: q, that an iteration loses any stage (`churn.any_stage`), below 1; arrays broadcast. From one copy to the
    next takes one safe step, and then k - 1 in a row without failure: f = (1 + ((1 - q) ** (1 - k) - 1) / q) / k.
    """
    chance = checked_chance("chance", chance)
    _period(every)
    lost = np.expm1((1 - every) * np.log1p(-chance))
    return (1 + np.where(chance > 0, lost / np.where(chance > 0, chance, 1), every - 1)) / every


def wall_slowdown(chance: ArrayLike, every: int) -> np.ndarray:
    """Wall iterations that a step of progress takes on average when a copy is made on every k-th wall iteration.

    f = k q / (1 - (1 - q) ** k), `chance` as for `slowdown`. This is the released simulation but for failures on the
    iteration of a copy, for each of which it loses k steps more: it comes to f / (1 - q f).
    """
    chance = checked_chance("chance", chance)
    _period(every)
    kept = -np.expm1(every * np.log1p(-chance))
    return np.where(chance > 0, every * chance / np.where(chance > 0, kept, 1), 1.0)


def hours(
    iterations: ArrayLike,
    seconds: ArrayLike,
    failures: ArrayLike = 0,
    recovery_seconds: ArrayLike = 0.0,
    saves: ArrayLike = 0,
    save_seconds: ArrayLike = 0.0,
) -> np.ndarray:
    """Hours of training: `iterations` of `seconds` each (CheckFree, table 2); arrays broadcast.

    The paper leaves out what can be added here: `failures` stages, each of which halts training for
    `recovery_seconds`, and `saves` copies that halt it for `save_seconds`. ValueError for a negative number.
    """
    terms = {
        "iterations": iterations,
        "seconds": seconds,
        "failures": failures,
        "recovery_seconds": recovery_seconds,
        "saves": saves,
        "save_seconds": save_seconds,
    }
    for name, value in terms.items():
        if not (np.asarray(value) >= 0).all():
            raise ValueError(f"{name}={np.asarray(value).tolist()} cannot be negative: give 0 or more")
    iterations, seconds, failures, recovery_seconds, saves, save_seconds = map(np.asarray, terms.values())
    return (iterations * seconds + failures * recovery_seconds + saves * save_seconds) / HOUR


def break_even(iterations: ArrayLike, redundant_iterations: ArrayLike) -> np.ndarray:
    """How many times longer an iteration of redundant computation may last before `iterations` of the other win.

    Redundant computation reaches the loss first in hours iff its iteration time, over the other's, is below the
    other's iterations over its own (derived from CheckFree, table 2, where that time is 151.04 s / 91.32 s = 1.654).
    """
    redundant = np.asarray(redundant_iterations, float)
    if not (redundant > 0).all():
        raise ValueError(f"redundant_iterations={redundant.tolist()} are no training: give more than 0")
    return np.asarray(iterations, float) / redundant


def _period(every: int) -> None:
    if not isinstance(every, (int, np.integer)) or every < 1:
        raise ValueError(f"every={every!r} is not a checkpoint period: give a whole number of steps, at least 1")
