"""Who meets whom: the groups that average at an outer step, and the replicas that a microbatch passes through.

- `MATCHINGS[name](replicas, step, rng, size)` deals the replicas into groups of `size`: int array [R / size, size], in
  which every replica occurs once. `step` counts outer steps from 0; only "random" draws from the generator
- NoLoCo meets at random (section 3.2): every outer step deals new pairs, all stages the same ones
- `permuted_replicas` is its random pipeline routing (section 3.1), for `swarmbook.methods.routing`: at each boundary between
  stages each microbatch of a replica goes to a random one, and no two to the same
- `released_groups` and `released_route` are the very draws of the authors' code, which derives them from counters so
  that every worker finds the same without a message
"""

from collections.abc import Callable

import numpy as np

from swarmbook.errors import ConfigError, unknown

Rule = Callable[..., np.ndarray]
MATCHINGS: dict[str, Rule] = {}


def matching(name: str) -> Callable[[Rule], Rule]:
    """Register a rule (replicas, step, generator, size=2) -> groups [replicas / size, size] under a name."""

    def register(rule: Rule) -> Rule:
        MATCHINGS[name] = rule
        return rule

    return register


@matching("random")
def random_groups(replicas: int, step: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """Groups dealt at random: g, g + R / size, g + 2 R / size ... of one permutation meet (released code).

    ConfigError unless `size` divides `replicas`: nobody is left over, as in the released code.
    """
    _divisible("random", replicas, size)
    return rng.permutation(replicas).reshape(size, -1).T


@matching("hypercube")
def hypercube(replicas: int, step: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """Replicas whose numbers differ in one digit to base `size` meet, in another digit at each step.

    Plain averaging reaches the exact mean in log(R) / log(size) steps. ConfigError unless R is a power of `size`.
    """
    _divisible("hypercube", replicas, size)
    digits = 1
    while size**digits < replicas:
        digits += 1
    if size**digits != replicas:
        raise ConfigError(
            f"matching 'hypercube' cannot place {replicas} replicas: their number must be a power of size={size}, "
            f"such as {size ** (digits - 1)} or {size**digits}"
        )
    lines = np.arange(replicas).reshape(-1, size, size ** (step % digits))
    return lines.swapaxes(1, 2).reshape(-1, size)


@matching("ring")
def ring(replicas: int, step: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """Neighbours on a ring: pairs 01, 23 ... at even steps and 12, 34 ... at odd ones; groups move by half their size.

    ConfigError unless `size` divides `replicas`.
    """
    _divisible("ring", replicas, size)
    return np.roll(np.arange(replicas), -(size // 2) * (step % 2)).reshape(-1, size)


@matching("fixed")
def fixed(replicas: int, step: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """The same groups of consecutive replicas at every step, so that groups never hear of each other.

    ConfigError unless `size` divides `replicas`.
    """
    _divisible("fixed", replicas, size)
    return np.arange(replicas).reshape(-1, size)


def deal(name: str, replicas: int, steps: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """Groups [steps, R / size, size] of the matching of that name at each of `steps` outer steps.

    ConfigError for an unknown name, or a number of replicas that the matching cannot deal.
    """
    if name not in MATCHINGS:
        raise ConfigError(unknown("matching", name, MATCHINGS))
    dealt = [MATCHINGS[name](replicas, step, rng, size) for step in range(steps)]
    return np.array(dealt, dtype=np.int64).reshape(steps, -1, size)


def released_groups(replicas: int, step: int, size: int = 2) -> np.ndarray:
    """Groups [R / size, size] that NoLoCo's released code forms after inner step `step` (50, 100, ...; from 1).

    The generator's seed is step + 1, whatever the stage, run or seed of the run. ConfigError as `random_groups`.
    """
    return random_groups(replicas, step, np.random.default_rng(step + 1), size)


def partners(groups: np.ndarray) -> np.ndarray:
    """The partner [R] of each replica in pairs [R / 2, 2]. ValueError for larger groups."""
    if groups.ndim != 2 or groups.shape[1] != 2:
        raise ValueError(f"groups of shape {list(groups.shape)} are not pairs: give [R / 2, 2]")
    partner = np.empty(groups.size, dtype=np.int64)
    partner[groups] = groups[:, ::-1]
    return partner


def mixing(groups: np.ndarray) -> np.ndarray:
    """Float [R, R] that replaces each replica's value by the mean of its group: symmetric, a projection."""
    weights = np.zeros((groups.size, groups.size))
    weights[groups[:, :, None], groups[:, None, :]] = 1 / groups.shape[1]
    return weights


def _divisible(rule: str, replicas: int, size: int) -> None:
    if size < 1 or replicas < size or replicas % size:
        raise ConfigError(
            f"matching {rule!r} cannot deal {replicas} replicas into groups of {size}: give a number of replicas "
            f"that size={size} divides, so that nobody is left over"
        )
