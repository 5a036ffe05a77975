"""Experts: models that branch from a seed model, train on one domain after another, and share a budget of compute.

- a lane is the history of one expert: in each iteration it branches from its last weights and trains on the next domain
  with a fresh optimiser (HDEE as released; Branch-Train-Merge without a mixture of parents)
- experts of several lengths can follow one trajectory, so that a longer run continues the shorter one
- a budget is counted in FLOPs of the runs themselves, and can be shared out by what each domain still gains

Serves: HDEE's tables of lengths, its iterations, and who should get the steps.
"""

from collections.abc import Sequence

import numpy as np

from swarmbook.config import RunConfig, run_config
from swarmbook.data import tokenization
from swarmbook.errors import ConfigError
from swarmbook.methods.model_size import flops

OWN = {
    "data",
    "start",
    "branch",
    "steps",
    "schedule_steps",
    "evaluate_on",
    "measurements",
    "lost_stages",
    "away",
}  # not taken over from the parent


def in_place_of(domains: Sequence[str], own: str) -> list[str]:
    """As many domains as given: the user's own, joined with "+", come first, and the given ones fill what is left.

    own: "" for none. ConfigError for more than can be taken, or for one that is there twice.
    """
    names = own.split("+") if own else []
    if len(names) > len(domains) or len(set(names)) < len(names):
        raise ConfigError(f"data={own!r} must be at most {len(domains)} different domains joined with '+'")
    return [*names, *(domain for domain in domains if domain not in names)][: len(domains)]


def trained(parent: RunConfig, domain: str, steps: int, through: Sequence[int] = (), **fields) -> RunConfig:
    """The expert that `parent` becomes in `steps` steps on a domain; fields: what else differs from the parent.

    through: lengths, in steps, of other experts on the same trajectory. This run continues the shorter ones among them,
    so that they are trained once.
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
    """The expert of a lane after each of its domains.

    steps: the length of every iteration, or one length for each domain. through, fields: as in `trained`. ConfigError
    unless there are as many lengths as domains.
    """
    lengths = [steps] * len(domains) if isinstance(steps, int) else list(steps)
    if len(lengths) != len(domains):
        raise ConfigError(f"steps={steps!r} must be one number, or as many as the {len(domains)} domains of the lane")
    line = [seed_model]
    for domain, length in zip(domains, lengths, strict=True):
        line.append(trained(line[-1], domain, length, through, **fields))
    return line[1:]


def training_flops(expert: RunConfig, vocabulary: int | None = None) -> int:
    """The FLOPs of all training of an expert since its seed model; HDEE holds this budget equal.

    vocabulary: the number of tokens that the tokenizer knows; None to look it up.
    """
    vocabulary = vocabulary or tokenization.vocabulary(expert.tokenizer)
    total = 0
    while expert.parents:
        (parent,) = expert.parents
        shape = expert.shape(vocabulary)
        steps = expert.steps - (parent.steps if expert.start else 0)
        total += 3 * steps * flops(shape, expert.tokens_per_step, expert.sequence)
        expert = parent
    return total


def gain(steps: Sequence[float], losses: Sequence[float]) -> float:
    """The loss, in nats, that doubling the steps saves: the slope of a learning curve against log2 of its steps.

    The line is fitted by least squares, without points at step 0; loss curves of this length are nearly straight.
    ConfigError for fewer than two points.
    """
    points = [(np.log2(n), loss) for n, loss in zip(steps, losses, strict=True) if n > 0]
    if not np.isfinite(points).all():
        raise ConfigError(f"losses={list(losses)} and steps={list(steps)} must be finite for a learning curve")
    if len(points) < 2:
        raise ConfigError(f"a learning curve needs two points after step 0, not {len(points)}: evaluate more often")
    return float(-np.polyfit(*zip(*points, strict=True), 1)[0])


def allocate(gains: Sequence[float], budget: float, least: float = 0.0, most: float = np.inf) -> np.ndarray:
    """Steps [k] for k domains that make the sum of their losses least, if each doubling saves `gains` [k].

    At the optimum one more step saves the same in every domain, so steps are in proportion to the gains. budget: the
    sum of the steps. least, most: bounds for the steps of a domain. ConfigError if the budget does not fit the bounds.
    """
    k = len(gains)
    if not np.isfinite(gains).all():
        raise ConfigError(f"gains={list(gains)} must be finite: leave out domains whose curve has none")
    if not least * k <= budget <= most * k:
        raise ConfigError(
            f"budget={budget:g} does not fit {k} domains of at least {least:g} and at most {most:g} steps"
        )
    gains = np.maximum(np.asarray(gains, float), 1e-9)
    most = min(most, budget)
    turns = np.unique([bound / g for g in gains for bound in (least, most)])  # between them the sum is linear
    sums = [np.clip(gains * turn, least, most).sum() for turn in turns]
    return np.clip(gains * np.interp(budget, sums, turns), least, most)
