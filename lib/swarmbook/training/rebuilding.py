"""Checkpoints, copies of stages and what they cost: the rules of bookkeeping that need nothing of a trainer.

`run` is a `swarmbook.config.RunConfig` everywhere.

Serves: the costs in the CheckFree notebook, and every checkpoint.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from swarmbook.methods.costs import Costs, bytes_of
from swarmbook.methods.model_size import Shape, flops
from swarmbook.methods.recovery import RULES, Lost, Strategy
from swarmbook.methods.sync import SYNCS
from swarmbook.training.state_layout import WEIGHTS, kept_in


def checkpoint_of(
    tensors: Mapping,
    positions: Sequence[int],
    outers: Sequence[dict | None],
    costs: Sequence[Costs],
    copies: Mapping[int, Mapping],
    diverged: Mapping[int, str],
    seconds: float,
    made_on: Sequence[str] = (),
) -> dict:
    """What is kept of a pack in training, so that it can go on, whoever trained it.

    tensors: "fleet", "adam", "norms" and "rebuilt" of `Bookkeeping.state`, of all runs side by side; other entries are
    left out. positions, outers, costs: of each run. copies, diverged: as of `Bookkeeping`, by number of the run.
    made_on: where the steps so far were computed, if that is known.
    """
    whole = {name: tensors[name] for name in ("fleet", "adam", "norms", "rebuilt")}
    whole |= {"position": torch.tensor(positions), "outers": outers, "ledgers": [dict(each) for each in costs]}
    return whole | {"copies": copies, "diverged": diverged, "seconds": seconds, "made_on": list(made_on)}


def state_in(checkpoint: Mapping) -> dict:
    """The `Bookkeeping.state` of the only run of a checkpoint."""
    whole = {name: checkpoint[name] for name in ("fleet", "adam", "norms", "rebuilt")}
    return whole | {"position": int(checkpoint["position"][0]), "outer": checkpoint["outers"][0]}


def surviving_copy(strategy: Strategy, cell: Lost, kept: Mapping, place: tuple[int, int]) -> dict | None:
    """What a strategy keeps of a stage that is about to be lost, by parameter; None if no copy survives.

    kept: the weights that were copied, as of `Fleet.state_dict`; a strategy that copies after every step needs none.
    place: the replica and stage of the cell in them.
    """
    if not strategy.survives(cell.stage, cell.fleet.shape.stages, cell.dead):
        return None
    if strategy.always:
        return {name: weight.clone() for name, weight in cell.weights.items()}
    replica, stage = place
    return WEIGHTS.cell(kept, replica, None if cell.stage == cell.fleet.shape.stages else stage)


def count_step(run, shape: Shape, visits: int, costs: Costs, replicas: int | None = None) -> None:
    """Add the FLOPs of a step to the costs, and what a strategy that copies after every step stores and sends.

    visits: of stages by all microbatches of the step together. replicas: those that are there; None for all.
    """
    replicas = run.replicas if replicas is None else replicas
    strategy, share = RULES[run.recovery], visits / (replicas * run.microbatches * run.stages)
    tokens = run.tokens_per_step // run.replicas * replicas
    costs.add("training FLOPs", 3 * flops(shape, tokens, run.sequence, share))
    if strategy is None or not strategy.always or not strategy.holders:
        return
    held = shape.parameters if strategy.keeps == "stages" else shape.ends_parameters
    costs["stored"] = 4 * run.replicas * len(strategy.holders) * held
    costs.add("sent in training", costs["stored"])
    if strategy.forwards:
        costs.add("redundant FLOPs", flops(shape, tokens, run.sequence, share, ends=False))


def copied_bytes(copy: Mapping, strategy: Strategy) -> int:
    """Bytes of what a strategy keeps, in all its copies: of weights, or of weights, moments and slow weights of a whole
    run.
    """
    if strategy.keeps != "run":
        return bytes_of(copy["fleet"]) * max(1, len(strategy.holders))
    moments = {name: moment for name, moment in copy["adam"].items() if name not in ("steps", "lr_scale")}
    return sum(map(bytes_of, (copy["fleet"], moments, *kept_in(copy["outer"] or {}).values())))


def why_diverged(run, step: int, losses: Iterable[int], what: str = "loss") -> str:
    """What is said of a run whose loss, or another metric, is not finite from a step on, with the likely cause.

    losses: the steps at which it lost stages.
    """
    recent = [lost for lost in losses if step - 20 <= lost <= step]
    cause = (
        f"a stage was rebuilt by {run.recovery!r} at step {max(recent)}"
        if recent
        else f"the learning rate {run.lr} is probably too high; try {run.lr / 3:.1g}, or a warm-up"
    )
    if SYNCS[run.sync] and not recent:
        numbers = f"outer_lr={run.outer_lr}, outer_momentum={run.outer_momentum}, consensus={run.consensus}"
        cause += f"; or {run.sync!r} does not converge with {numbers}"
    return f"run {run.key}: the {what} is not finite from step {step} on; {cause}"


def boosted(rebuilt: np.ndarray, step: int, boost, half_life) -> np.ndarray:
    """Learning rates in multiples of the run's own, of cells that were rebuilt at these steps, -1 for never.

    It is `boost` in the step of the rebuilding, and the excess over 1 halves every `half_life` steps.
    """
    return np.where(rebuilt < 0, 1.0, 1 + (boost - 1) * 0.5 ** ((step - rebuilt) / half_life))
