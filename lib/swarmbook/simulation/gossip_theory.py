"""How far replicas drift apart that average in small groups only, on a quadratic loss (NoLoCo, theorem 1, appendix A).

- an `Update` is an outer step (equations 1 to 3) with momentum alpha, outer learning rate beta and consensus strength
  gamma, in groups of n among R replicas. Its signs are those that descend. Equation 2 prints -beta, though the outer
  gradient points downhill; `update.as_printed()` does that, and diverges
- a `Quadratic` is the setting of appendix A along one eigenvector of the curvature. The weights of a replica are then
  one number; arrays stand for many eigenvalues or learning rates. Its inner steps come to a `pull` and a `kick`
- phi are the slow weights of a replica and delta is its outer momentum. Dealing groups at random multiplies the second
  moments of (phi, delta) by a matrix of 3 x 3 on average. From this follow the closed forms: `predicted` over outer
  steps, `steady` in the end, and `spectral_radius` and `gamma_range` for stability
- `simulated` runs many replicas with actual groups; `growth` is how fast a typical run grows, not the mean square
- `printed_range` is the paper's own condition on gamma (equation 74), which is not the true one: see `gamma_range`

Serves: NoLoCo's theory figures (stability, theorem 1), the figure on gamma and momentum, rounds of averaging, and the
claims "Eq. 2", "Eq. 74" and "theorem 1".
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from swarmbook.errors import ConfigError
from swarmbook.methods.gossip_groups import deal


class Spread(NamedTuple):
    """Variances of the slow weights around the optimum at 0; total = between + mean.

    total: the mean square over replicas. between: the mean square distance from the mean over replicas (population
    form, the square of what figure 3B shows). mean: the square of that mean.
    """

    total: np.ndarray
    between: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class Update:
    """NoLoCo's outer update of replica i in group G (equations 1 to 3, sign corrected).

    delta_i <- alpha delta_i + beta mean_G(theta - phi) + gamma (mean_G phi - phi_i), then phi_i <- phi_i + delta_i,
    where theta are the weights after the inner steps. The next inner steps begin at phi_i. The defaults are those of
    the released code, where gamma is not a setting of its own but equal to beta. size: n, the replicas of a group;
    groups are dealt at random unless said otherwise. replicas: R, or infinity for the limit of many. With n = R it is
    DiLoCo. Raises `ConfigError` unless 2 <= n <= R and n divides R, and alpha, beta and gamma are finite.
    """

    alpha: float = 0.5
    beta: float = 0.7
    gamma: float = 0.7
    size: int = 2
    replicas: float = 16

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} must be finite")
        if not 2 <= self.size <= self.replicas:
            raise ConfigError(f"size={self.size} must be at least 2 and at most replicas={self.replicas}")
        if self.replicas != math.inf and (self.replicas != int(self.replicas) or self.replicas % self.size):
            raise ConfigError(f"replicas={self.replicas} must be math.inf or a whole multiple of size={self.size}")

    def as_printed(self) -> "Update":
        """The update with the sign of equation 2, which climbs where it should descend."""
        return dataclasses.replace(self, beta=-self.beta)

    @property
    def kept(self) -> float:
        """Share of the variance between replicas that averaging random groups keeps: (R - n) / (n (R - 1))."""
        if self.replicas == math.inf:
            return 1 / self.size
        return (self.replicas - self.size) / (self.size * (self.replicas - 1))


@dataclass(frozen=True)
class Quadratic:
    """Loss curvature (theta - c)^2 / 2 with c ~ N(0, noise), drawn anew for each of `steps` steps of SGD (appendix A).

    rate: the inner learning rate omega. curvature: an eigenvalue Lambda. noise: the variance Sigma of c. Arrays
    broadcast. After the steps theta is exactly (1 - pull) phi plus an independent normal number of variance `kick`.
    Raises `ConfigError` for what is not finite, and unless there are steps.
    """

    rate: ArrayLike = 0.01
    curvature: ArrayLike = 1.0
    steps: int = 50
    noise: ArrayLike = 1.0

    def __post_init__(self) -> None:
        for name in ("rate", "curvature", "noise"):
            if not np.isfinite(np.asarray(getattr(self, name), float)).all():
                raise ConfigError(f"{name}={np.asarray(getattr(self, name)).tolist()} must be finite")
        if not isinstance(self.steps, (int, np.integer)) or self.steps < 1:
            raise ConfigError(f"steps={self.steps!r} must be a whole number of at least 1")

    @property
    def pull(self) -> np.ndarray:
        """Share of the way to the optimum that the inner steps go: 1 - (1 - omega Lambda) ** m."""
        return 1 - (1 - self._step) ** self.steps

    @property
    def kick(self) -> np.ndarray:
        """Variance that the inner steps add: (omega Lambda)^2 Sigma (1 - B^2m) / (1 - B^2), B = 1 - omega Lambda."""
        powers = (1 - self._step)[..., None] ** (2 * np.arange(self.steps))
        return self._step**2 * np.asarray(self.noise, float) * powers.sum(-1)

    @property
    def _step(self) -> np.ndarray:
        return np.asarray(self.rate, float) * np.asarray(self.curvature, float)


def predicted(update: Update, pull: ArrayLike, kick: ArrayLike, steps: int, start: ArrayLike = 0.0) -> Spread:
    """Expected variances [steps + 1, ...] after each outer step, of replicas that all begin at `start` at rest.

    The expectation is over noise and over groups dealt at random; it is exact for any number of replicas. pull, kick:
    as in `Quadratic`, numbers or, for learning rates that change, arrays [steps, ...] or [1, ...]. Raises `ValueError`
    for arrays of another length.
    """
    pull, kick = _per_step("pull", pull, steps), _per_step("kick", kick, steps)
    shape = np.broadcast_shapes(pull.shape[1:], kick.shape[1:], np.shape(start))
    parts = 0.0 if update.replicas == math.inf else 1 / update.replicas
    between, mean = np.zeros((2, steps + 1, *shape, 3))  # of phi phi, phi delta, delta delta
    mean[0, ..., 0] = np.square(start)
    for k, (a, s) in enumerate(zip(pull, kick, strict=True)):
        for moments, kept, share in ((between, update.kept, update.kept * (1 - parts)), (mean, 1.0, parts)):
            moments[k + 1] = np.einsum("...ij,...j->...i", _transfer(update, a, kept), moments[k])
            moments[k + 1] += (update.beta**2 * s * share)[..., None]
    apart, centre = between[..., 0], mean[..., 0]
    return Spread(apart + centre, apart, centre)


def steady(update: Update, pull: ArrayLike, kick: ArrayLike) -> Spread:
    """Variances after infinitely many outer steps; infinite where they grow without bound. Arrays broadcast.

    Let g = kept beta pull + (1 - kept) gamma and h = kept (beta pull)^2 + (1 - kept) gamma^2. Then a second moment is
    kept beta^2 kick (1 + alpha) / (2 g (1 - alpha^2 + alpha g) - h (1 + alpha)). For the mean over replicas kept is 1
    and the kick is divided by R.
    """
    kick = np.asarray(kick, float)
    parts = 0.0 if update.replicas == math.inf else 1 / update.replicas
    apart = _steady(update, pull, kick * update.kept * (1 - parts), update.kept)
    centre = _steady(update, pull, kick * parts, 1.0)
    return Spread(apart + centre, apart, centre)


def spectral_radius(update: Update, pull: ArrayLike) -> np.ndarray:
    """Factor by which the variance between replicas grows in an outer step, in the long run and without noise.

    It is the largest eigenvalue of the map of second moments; below 1 the update is stable in mean square. `pull`: as
    in `Quadratic`.
    """
    return abs(np.linalg.eigvals(_transfer(update, pull, update.kept))).max(-1)


def mean_radius(update: Update, pull: ArrayLike) -> np.ndarray:
    """Factor by which the mean over replicas grows in an outer step: the larger root r of
    r^2 - (1 + alpha - beta pull) r + alpha, whatever gamma and the groups."""
    trace = 1 + update.alpha - update.beta * np.asarray(pull, float)
    root = np.sqrt(trace.astype(complex) ** 2 - 4 * update.alpha)
    return np.maximum(abs(trace + root), abs(trace - root)) / 2


def gamma_range(
    alpha: ArrayLike, size: int = 2, replicas: float = math.inf, pull: ArrayLike = 0.0, beta: ArrayLike = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest gamma between which the variance between replicas stays bounded; NaN if no gamma does that.

    It is bounded where 2 g (1 - alpha^2 + alpha g) > h (1 + alpha), with g and h as in `steady`. In flat directions
    (pull 0) and for many replicas that is 0 < gamma < 2 n (1 - alpha^2) / ((n - 1)(1 - alpha) + 1 + alpha), or
    2 (1 - alpha^2) for pairs. Curvature helps: a least gamma below 0 means that no consensus term is needed. The mean
    over replicas has a condition of its own, 0 < beta pull < 2 (1 + alpha). Arrays broadcast; |alpha| < 1.
    """
    alpha, pulled = np.asarray(alpha, float), np.asarray(beta, float) * np.asarray(pull, float)
    kept = Update(size=size, replicas=replicas).kept
    mixed, rest = 1 - kept, 1 - alpha**2
    square = mixed * (2 * alpha * mixed - 1 - alpha)  # negative for |alpha| < 1
    linear = mixed * (2 * rest + 4 * alpha * kept * pulled)
    constant = kept * pulled * (2 * rest + pulled * (2 * alpha * kept - 1 - alpha))
    inside = np.where(abs(alpha) < 1, linear**2 - 4 * square * constant, -1.0)
    root = np.sqrt(np.where(inside > 0, inside, np.nan))
    return (linear - root) / (-2 * square), (linear + root) / (-2 * square)


def printed_range(alpha: ArrayLike, size: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Gamma's range as printed: sqrt(n / (2 (n - 1))) alpha to sqrt(n / (2 (n - 1)) (2 + alpha^2)) (equation 74).

    The appendix has gamma squared where the covariance of phi and delta is linear in it. The lower bound is not
    needed: any smaller gamma contracts too. For pairs the upper bound equals the true one at alpha = 0.5 and is above
    it for larger alpha; from 0.78 on the whole printed range diverges.
    """
    alpha = np.asarray(alpha, float)
    factor = size / (2 * (size - 1))
    return math.sqrt(factor) * alpha, np.sqrt(factor * (2 + alpha**2))


def simulated(
    rng: np.random.Generator,
    update: Update,
    pull: ArrayLike,
    kick: ArrayLike,
    steps: int,
    start: ArrayLike = 0.0,
    trials: int = 1,
    matching: str = "random",
) -> Spread:
    """Variances [steps + 1, trials, ...] of simulated replicas in actual groups; `predicted` gives their mean.

    Every trial has groups of its own; the numbers within a trial, such as the eigenvalues of a model, share them.
    matching: a name in `swarmbook.methods.gossip_groups`. Raises `ConfigError` for infinitely many replicas or an
    unknown matching.
    """
    dealt = _groups(rng, update, trials, steps, matching)
    pull, kick = _per_step("pull", pull, steps), _per_step("kick", kick, steps)
    shape = np.broadcast_shapes(pull.shape[1:], kick.shape[1:], np.shape(start))
    phi = np.broadcast_to(start, (trials, int(update.replicas), *shape)).astype(float)
    delta = np.zeros_like(phi)
    spreads = [_spread(phi)]
    for a, s, groups in zip(pull, kick, dealt, strict=True):
        fast = (1 - a) * phi + np.sqrt(s) * rng.standard_normal(phi.shape)
        phi, delta = outer_step(update, phi, delta, fast, groups)
        spreads.append(_spread(phi))
    return Spread(*map(np.array, zip(*spreads, strict=True)))


def outer_step(
    update: Update, slow: np.ndarray, momentum: np.ndarray, fast: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """New slow weights and momenta of all replicas (`Update`): arrays [trials, R, ...], groups [trials, R / n, n]."""
    own = np.arange(len(slow))[:, None, None]
    gradient, target = np.empty_like(slow), np.empty_like(slow)
    gradient[own, groups] = (fast - slow)[own, groups].mean(2, keepdims=True)
    target[own, groups] = slow[own, groups].mean(2, keepdims=True)
    momentum = update.alpha * momentum + update.beta * gradient + update.gamma * (target - slow)
    return slow + momentum, momentum


def growth(
    rng: np.random.Generator,
    update: Update,
    pull: float = 0.0,
    steps: int = 1000,
    trials: int = 16,
    matching: str = "random",
) -> float:
    """Factor by which the distance between replicas grows in an outer step of a typical run without noise.

    It is the geometric mean over `trials` and over the last nine tenths of `steps`. Below 1 nearly every run comes
    together. The mean square may grow all the same, as rare runs dominate it; for few replicas the two differ.
    """
    dealt, burn_in = _groups(rng, update, trials, steps, matching), steps // 10
    phi, delta = rng.standard_normal((2, trials, int(update.replicas)))
    logs = np.zeros(trials)
    for step, groups in enumerate(dealt):
        phi, delta = outer_step(update, phi, delta, (1 - pull) * phi, groups)
        phi, delta = (x - x.mean(1, keepdims=True) for x in (phi, delta))
        length = np.sqrt((phi**2 + delta**2).sum(1, keepdims=True))
        phi, delta = phi / length, delta / length
        if step >= burn_in:
            logs += np.log(length[:, 0])
    return float(np.exp(logs.mean() / (steps - burn_in)))


def _transfer(update: Update, pull: ArrayLike, kept: float) -> np.ndarray:
    """The map [..., 3, 3] of expected phi^2, phi delta, delta^2 in an outer step, without noise.

    Averaging random groups splits any deviation into two orthogonal parts. For the one, whose share is `kept`,
    delta <- alpha delta - beta pull phi; for the other delta <- alpha delta - gamma phi.
    """
    pulled = update.beta * np.asarray(pull, float)
    g = kept * pulled + (1 - kept) * update.gamma
    h = kept * pulled**2 + (1 - kept) * update.gamma**2
    alpha, zero, one = (np.broadcast_to(float(x), g.shape) for x in (update.alpha, 0.0, 1.0))
    along = np.stack([-g, alpha, zero], -1)  # of phi times the new delta
    square = np.stack([h, -2 * alpha * g, alpha**2], -1)  # of the new delta squared
    before = np.stack([one, zero, zero], -1)
    return np.stack([before + 2 * along + square, along + square, square], -2)


def _steady(update: Update, pull: ArrayLike, kick: np.ndarray, kept: float) -> np.ndarray:
    pulled, alpha = update.beta * np.asarray(pull, float), update.alpha
    g = kept * pulled + (1 - kept) * update.gamma
    h = kept * pulled**2 + (1 - kept) * update.gamma**2
    room = 2 * g * (1 - alpha**2 + alpha * g) - h * (1 + alpha)
    stable = (room > 0) & (g > 0) & (abs(alpha) < 1)
    with np.errstate(over="ignore"):  # infinity is then the answer
        bounded = update.beta**2 * kick * (1 + alpha) / np.where(stable, room, 1.0)
    return np.where(stable, bounded, np.where(kick > 0, np.inf, 0.0))


def _per_step(name: str, values: ArrayLike, steps: int) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim and len(values) not in (1, steps):
        raise ValueError(
            f"{name} of shape {list(values.shape)} has no axis for the {steps} outer steps: give a number, or an array "
            f"[{steps}, ...] or [1, ...]"
        )
    return np.broadcast_to(values, (steps, *values.shape[1:]))


def _groups(rng: np.random.Generator, update: Update, trials: int, steps: int, matching: str) -> np.ndarray:
    """Groups [steps, trials, R / n, n] of their own for every trial."""
    if update.replicas == math.inf:
        raise ConfigError("replicas=inf cannot be simulated: give a whole number, or use the closed forms")
    return np.stack([deal(matching, int(update.replicas), steps, rng, update.size) for _ in range(trials)], axis=1)


def _spread(phi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean = phi.mean(1)
    between = phi.var(1)
    return between + mean**2, between, mean**2
