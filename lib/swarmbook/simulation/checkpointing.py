"""What checkpoints cost: the steps that rolling back repeats, and the hours they take.

CheckFree's baseline writes the model to storage every k iterations. After a failure it goes on from the last copy
(section 5). A *wall step* is a step that is trained, repeated or not; *progress* counts the steps whose updates are in
the weights. Three accounts say what is lost:

- `progress` is that of a trainer that saves after every k steps of progress. Our trainer rolls back by this very rule
- `released_progress` is the authors' account. They did not train it, but computed it from logs as if every k-th
  iteration were saved
- `slowdown` and `wall_slowdown` are the expected number of wall steps for a step of progress, in closed form

Weights, moments and place in the data go back together, so the progress of a model determines its loss. Hence
`losses_with_rollbacks` turns the losses of a run without failures into those of a run that rolls back.

Serves: CheckFree figures 3 and 4b, table 2, the throughput figure over failure rates, and claim C7.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from swarmbook.config import RunConfig
from swarmbook.methods.failures import HOUR, checked_chance
from swarmbook.results import Runs


def progress(failing: np.ndarray, every: int) -> np.ndarray:
    """Progress [wall steps] of a trainer that saves a copy whenever its progress is a multiple of `every`.

    `failing`: bool [wall steps], whether some stage is lost at the start of the step (`trace.any((1, 2))`). Entry i is
    the progress before step i is trained, after its failure, if any, was handled. A failure puts the model back to the
    last copy; then the step is trained, which adds 1 to the progress; then the model is copied if a copy is due. The
    untrained model counts as a copy. So a failure goes back to the multiple of `every` at or below the progress, and
    right after a copy it costs nothing; with every=1 failures are free. Raises `ValueError` for `every` below 1.

    It differs from the released simulation, `released_progress`, in two ways. There copies fall on multiples of the
    wall step. After a failure the next copy is then due in less than k steps, which flatters frequent failures. Here
    they are counted as trainers do, in the step number that itself goes back. And there a failure on the very step of
    a copy loses that copy.
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
    """Progress [wall steps] in CheckFree's simulation of checkpoints (released code). `failing`: as for `progress`.

    A failure at wall step i goes back to the progress at the last multiple of `every` below i, and to 0 in the first
    `every` steps. If i is itself a multiple, it takes off `every` steps. Should other failures have left fewer than
    that, the result is negative, as it is in the original.
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
    """How many wall steps it takes until the progress `actual` [wall steps] is at least `steps`.

    Raises `ValueError` if the trace ends earlier.
    """
    there = np.flatnonzero(actual >= steps)
    if not there.size:
        most = int(actual.max(initial=0))
        raise ValueError(
            f"steps={steps} are not reached: {len(actual)} iterations come to {most}; give a longer trace of failures"
        )
    return int(there[0])


def losses_with_rollbacks(losses: ArrayLike, steps: ArrayLike, actual: np.ndarray) -> np.ndarray:
    """Loss [wall steps] of a run with progress `actual` [wall steps], from `losses` [n] of a run without rollbacks.

    `losses` were measured at the ascending `steps` [n]. The result is linear between measurements and NaN beyond the
    last; progress below the first measurement has the first loss. The released code does the same but, to judge by its
    calls, with losses that were measured under failures. That counts failures twice: give losses of a run without any.
    Raises `ValueError` for steps that do not ascend or are not as many as the losses.
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
    """Validation losses that runs without rollbacks would have with them: columns seed, step (a wall step), value.

    The stages of each run fail as with `failure_rate=rate`, over `times` as many wall steps as the run has steps. Its
    losses are those at the progress that `rule` (`progress` or `released_progress`) gives for a copy every `every`.
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
    """Wall steps until runs with rollbacks reach a validation loss of `target`: columns seed, value.

    `Runs.steps_to` has the same without rollbacks. Stages fail as in `runs_with_rollbacks`. The value is NaN if the
    loss is not reached within `times` as many wall steps as the run has steps.
    """
    rows = []
    for config, needed in zip(runs.configs, runs.steps_to(target)["value"], strict=True):
        held = progress_of_run(config, rate, every, rule, times * config.steps)
        there = np.flatnonzero(held >= needed)  # never true for NaN
        rows.append({"seed": config.seed, "value": float(there[0]) if there.size else float("nan")})
    return pd.DataFrame(rows)


def progress_of_run(config: RunConfig, rate: float, every: int, rule: Callable, steps: int) -> np.ndarray:
    """Progress [steps + 1] after 0, 1, ... `steps` wall steps of a run whose stages fail at `rate` a step."""
    failing = config.model_copy(update={"steps": steps, "failure_rate": rate}).failures().any((1, 2))
    return np.concatenate([[0], rule(failing, every) + 1])


def slowdown(chance: ArrayLike, every: int) -> np.ndarray:
    """Wall steps that a step of progress takes on average under the rule `progress`, with k = `every`.

    `chance` is q, the chance that a step loses any stage (`swarmbook.methods.failures.any_stage`), below 1; arrays
    broadcast. From one copy to the next it takes one step, which is safe, and then k - 1 in a row without failure:
    f = (1 + ((1 - q) ** (1 - k) - 1) / q) / k.
    """
    chance = checked_chance("chance", chance)
    _period(every)
    lost = np.expm1((1 - every) * np.log1p(-chance))
    return (1 + np.where(chance > 0, lost / np.where(chance > 0, chance, 1), every - 1)) / every


def wall_slowdown(chance: ArrayLike, every: int) -> np.ndarray:
    """Wall steps that a step of progress takes on average when a copy is made on every k-th wall step.

    f = k q / (1 - (1 - q) ** k), with `chance` as for `slowdown`. The released simulation differs in failures on the
    step of a copy: it loses k steps more for each of them, and comes to f / (1 - q f).
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

    What the paper leaves out can be added: `failures` lost stages, each of which halts training for
    `recovery_seconds`, and `saves` copies, each of which halts it for `save_seconds`. Raises `ValueError` for a
    negative number.
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
    """How many times longer an iteration of redundant computation may last and still reach the loss first, in hours.

    That is `iterations`, which the other method needs to the loss, over those of redundant computation (derived from
    CheckFree, table 2, whose iteration times have the ratio 151.04 s / 91.32 s = 1.654). Raises `ValueError` unless
    `redundant_iterations` is positive.
    """
    redundant = np.asarray(redundant_iterations, float)
    if not (redundant > 0).all():
        raise ValueError(f"redundant_iterations={redundant.tolist()} are no training: give more than 0")
    return np.asarray(iterations, float) / redundant


def _period(every: int) -> None:
    if not isinstance(every, (int, np.integer)) or every < 1:
        raise ValueError(f"every={every!r} is not a checkpoint period: give a whole number of steps, at least 1")
