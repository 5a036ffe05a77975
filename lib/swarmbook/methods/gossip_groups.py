"""Which replicas meet at an outer step: the groups in which they average.

- a matching is a function (replicas, step, rng, size) -> groups, int [R / size, size], in which every replica occurs
  once; `MATCHINGS` has them by name. `step` counts outer steps from 0. Only "random" draws from the generator
- NoLoCo deals new pairs at random at every outer step, the same ones for all stages (section 3.2)
- `released_groups` are the very draws of the authors' code, which seeds them with a counter of steps, so that every
  worker finds the same groups without a message

Serves: NoLoCo table 2, its theory, and its comparison of group sizes and matchings.
"""

from collections.abc import Callable

import numpy as np

from swarmbook.errors import ConfigError, unknown

Rule = Callable[..., np.ndarray]
MATCHINGS: dict[str, Rule] = {}


def matching(name: str) -> Callable[[Rule], Rule]:
    """Register a matching (replicas, step, rng, size=2) -> groups [replicas / size, size] under a name."""

    def register(rule: Rule) -> Rule:
        MATCHINGS[name] = rule
        return rule

    return register


@matching("random")
def random_groups(replicas: int, step: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """Groups that are dealt at random: entries g, g + R / size, g + 2 R / size ... of one permutation (released code).

    ConfigError unless `size` divides `replicas`. Nobody is left over, as in the released code.
    """
    _divisible("random", replicas, size)
    return rng.permutation(replicas).reshape(size, -1).T


@matching("hypercube")
def hypercube(replicas: int, step: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """Replicas meet whose numbers, written to base `size`, differ in one digit; each step takes the next digit.

    Plain averaging reaches the exact mean in log(R) / log(size) steps. ConfigError unless R is a power of `size`.
    """
    _divisible("hypercube", replicas, size)
    if size == 1 < replicas:
        raise ConfigError(f"matching 'hypercube' cannot place {replicas} replicas in groups of 1: give a larger size")
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
    """Neighbours on a ring meet: pairs 01, 23 ... at even steps and 12, 34 ... at odd steps.

    Larger groups shift by half their size at odd steps. ConfigError unless `size` divides `replicas`.
    """
    _divisible("ring", replicas, size)
    return np.roll(np.arange(replicas), -(size // 2) * (step % 2)).reshape(-1, size)


@matching("fixed")
def fixed(replicas: int, step: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """Consecutive replicas meet, the same ones at every step, so that groups never learn from one another.

    ConfigError unless `size` divides `replicas`.
    """
    _divisible("fixed", replicas, size)
    return np.arange(replicas).reshape(-1, size)


def deal(name: str, replicas: int, steps: int, rng: np.random.Generator, size: int = 2) -> np.ndarray:
    """The groups [steps, R / size, size] that a matching deals at each of `steps` outer steps.

    name: a key of `MATCHINGS`. ConfigError for an unknown name, or for replicas that the matching cannot deal.
    """
    if name not in MATCHINGS:
        raise ConfigError(unknown("matching", name, MATCHINGS))
    dealt = [MATCHINGS[name](replicas, step, rng, size) for step in range(steps)]
    return np.array(dealt, dtype=np.int64).reshape(steps, -1, size)


def released_groups(replicas: int, step: int, size: int = 2) -> np.ndarray:
    """The groups [R / size, size] that NoLoCo's released code forms after inner step `step`.

    step: counted from 1, so 50, 100 and so on. The seed of its generator is step + 1, whatever the stage and the seed
    of the run. ConfigError as `random_groups`.
    """
    return random_groups(replicas, step, np.random.default_rng(step + 1), size)


def partners(groups: np.ndarray) -> np.ndarray:
    """The partner of each replica, int [R], from pairs [R / 2, 2]. ValueError for larger groups."""
    if groups.ndim != 2 or groups.shape[1] != 2:
        raise ValueError(f"groups of shape {list(groups.shape)} are not pairs: give [R / 2, 2]")
    partner = np.empty(groups.size, dtype=np.int64)
    partner[groups] = groups[:, ::-1]
    return partner


def mixing(groups: np.ndarray) -> np.ndarray:
    """The matrix [R, R] that replaces each replica's value by the mean of its group; a symmetric projection."""
    weights = np.zeros((groups.size, groups.size))
    weights[groups[:, :, None], groups[:, None, :]] = 1 / groups.shape[1]
    return weights


def _divisible(rule: str, replicas: int, size: int) -> None:
    if size < 1 or replicas < size or replicas % size:
        raise ConfigError(
            f"matching {rule!r} cannot deal {replicas} replicas into groups of {size}: give a number of replicas "
            f"that size={size} divides, so that nobody is left over"
        )
