"""Experts: models that branch from a seed model, train on one domain after another, and share a budget of compute.

- a lane is the line of one expert: branch from its last weights, train on the next domain with a fresh optimizer
  (HDEE as released; Branch-Train-Merge without a mixture of parents)
- expert lengths of one lane lie on one learning-rate schedule, so the longer run goes on with the shorter one
- budgets are counted in FLOPs of the runs themselves, and can be shared out by what a domain still gains
"""

from collections.abc import Sequence

import numpy as np

from swarmbook.config import RunConfig, run_config
from swarmbook.data import tokenization
from swarmbook.errors import ConfigError

OWN = {
    "data",
    "start",
    "branch",
    "steps",
    "schedule_steps",
    "evaluate_on",
    "measurements",
    "lost_stages",
}  # not its parent's


def trained(parent: RunConfig, domain: str, steps: int, through: Sequence[int] = (), **fields) -> RunConfig:
    """The expert that `parent` becomes in `steps` steps on a domain, with everything else as in `parent` or `fields`.

    through: lengths at which other experts leave the same trajectory; this run goes on with the shorter of them, so
    that they are trained once.
    """
    kept = {name: getattr(parent, name) for name in RunConfig.model_fields if name not in OWN}
    base = {**kept, "data": domain, **fields}
    expert = None
    for length in [*sorted({n for n in through if n < steps}), steps]:
        line = {"branch": parent} if expert is None else {"start": expert}
        expert = run_config(**{**base, **line, "steps": length})
    return expert


def lane(
    seed_model: RunConfig, domains: Sequence[str], steps: int | Sequence[int], through: Sequence[int] = (), **fields
) -> list[RunConfig]:
    """A lane's expert after each of its domains; steps: of every iteration, or one for each."""
    lengths = [steps] * len(domains) if isinstance(steps, int) else list(steps)
    if len(lengths) != len(domains):
        raise ConfigError(f"steps={steps!r} must be one number, or as many as the {len(domains)} domains of the lane")
    line = [seed_model]
    for domain, length in zip(domains, lengths, strict=True):
        line.append(trained(line[-1], domain, length, through, **fields))
    return line[1:]


def training_flops(expert: RunConfig, vocabulary: int | None = None) -> int:
    """FLOPs of all that an expert was trained for after its seed model: the budget that HDEE holds equal.

    vocabulary: to spare fetching the tokenizer, which has it.
    """
    from swarmbook.methods.model_size import flops

    vocabulary = vocabulary or tokenization.tokenizer(expert.tokenizer).get_vocab_size()
    total = 0
    while expert.parents:
        (parent,) = expert.parents
        shape = expert.shape(vocabulary)
        steps = expert.steps - (parent.steps if expert.start else 0)
        total += 3 * steps * flops(shape, expert.tokens_per_step, expert.sequence)
        expert = parent
    return total


def gain(steps: Sequence[float], losses: Sequence[float]) -> float:
    """Nats that a doubling of the steps saves: slope of a learning curve against log2 of the steps, by least squares.

    Loss curves of this length are nearly straight there. Points at step 0 are left out. Raises ConfigError for fewer
    than two points.
    """
    points = [(np.log2(n), loss) for n, loss in zip(steps, losses, strict=True) if n > 0]
    if len(points) < 2:
        raise ConfigError(f"a learning curve needs two points after step 0, not {len(points)}: evaluate more often")
    return float(-np.polyfit(*zip(*points, strict=True), 1)[0])


def allocate(gains: Sequence[float], budget: float, least: float = 0.0, most: float = np.inf) -> np.ndarray:
    """Steps [k] for domains whose loss falls by `gains` [k] with each doubling, so that the sum of losses is least.

    That is where one more step saves the same everywhere: in proportion to the gains, `budget` in all, and no domain
    below `least` or above `most`. Raises ConfigError where those leave no choice.
    """
    k = len(gains)
    if not least * k <= budget <= most * k:
        raise ConfigError(
            f"budget={budget:g} does not fit {k} domains of at least {least:g} and at most {most:g} steps"
        )
    gains = np.maximum(np.asarray(gains, float), 1e-9)
    most = min(most, budget)
    turns = np.unique([bound / g for g in gains for bound in (least, most)])  # between them the sum is linear
    sums = [np.clip(gains * turn, least, most).sum() for turn in turns]
    return np.clip(gains * np.interp(budget, sums, turns), least, most)
