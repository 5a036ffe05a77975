"""Which cells, each a (replica, stage), a microbatch visits, and in what order.

- a route is an int array [P, R, M, 2]: at position p, microbatch m that started on replica r visits the cell
  (replica, stage). Stage -1 passes the microbatch on unchanged. Stage S at the last position names the replica whose
  head takes the loss; without it, the head of replica r takes it. Gradients go back the same way
- a path is the stages of one microbatch in the order of its visits, counted from 0; it skips the stages not in it
- it is one concept, longer than most, since rules are read side by side
- within a step, random paths visit every stage that they may skip equally often, or once more (SkipPipe, rule TC1);
  LayerDrop knows no such rule

Serves: CheckFree+ in CheckFree figures 3 and 4; NoLoCo figures 1 and 4; SkipPipe's convergence and its constraints.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

Rule = Callable[..., np.ndarray]
ROUTES: dict[str, Rule] = {}


def route(name: str) -> Callable[[Rule], Rule]:
    """Register a rule (replicas, stages, microbatches, rng) -> cells [P, R, M, 2] under a name.

    If the rule needs further fields of the configuration, it has keyword-only parameters of the same names; others are
    its own (`swarmbook.methods.parameters`).
    """

    def register(rule: Rule) -> Rule:
        ROUTES[name] = rule
        return rule

    return register


@route("in order")
def in_order(replicas: int, stages: int, microbatches: int, rng: np.random.Generator) -> np.ndarray:
    """Every microbatch visits the stages of its own replica one after another."""
    cells = np.empty((stages, replicas, microbatches, 2), dtype=np.int64)
    cells[..., 0] = np.arange(replicas)[None, :, None]
    cells[..., 1] = np.arange(stages)[:, None, None]
    return cells


@route("swapped ends")
def swapped_ends(replicas: int, stages: int, microbatches: int, rng: np.random.Generator) -> np.ndarray:
    """Odd microbatches visit the first two stages in reverse, and the last two as well (CheckFree+, section 4.3).

    ValueError for fewer than 4 stages or an odd number of microbatches.
    """
    if stages < 4 or microbatches % 2:
        raise ValueError(
            f"route 'swapped ends' needs at least 4 stages and an even number of microbatches, "
            f"not stages={stages}, microbatches={microbatches}"
        )
    cells = in_order(replicas, stages, microbatches, rng)
    order = np.arange(stages)
    order[[0, 1, -2, -1]] = order[[1, 0, -1, -2]]
    cells[:, :, 1::2, 1] = order[:, None, None]
    return cells


@route("random replicas")
def random_replicas(replicas: int, stages: int, microbatches: int, rng: np.random.Generator) -> np.ndarray:
    """After every stage each microbatch goes on to a random replica, no two to the same one (NoLoCo, section 3.1).

    The replica that runs the last stage takes the loss, for which the labels travel along (released code). In the
    released code a microbatch is one sequence, which is `batch=1` here. A routed step sends no more than a pipeline
    sends anyway.
    """
    cells = permuted_replicas(replicas, stages, microbatches, rng)
    heads = cells[-1:].copy()
    heads[..., 1] = stages
    return np.concatenate([cells, heads])


def permuted_replicas(replicas: int, stages: int, microbatches: int, rng: np.random.Generator) -> np.ndarray:
    """NoLoCo's random pipeline routing (section 3.1) as cells [P, R, M, 2].

    A microbatch starts on its own replica. After each stage but the last, one permutation for each m says on which
    replicas the m-th microbatches go on, so that every cell has M microbatches. With one stage, or one replica, the
    route is in order.
    """
    order = np.broadcast_to(np.arange(replicas), (stages - 1, microbatches, replicas))
    return _permuted_cells(rng.permuted(order, axis=-1))


def released_route(replicas: int, stages: int, microbatches: int, processed: int = 0) -> np.ndarray:
    """The cells [P, R, M, 2] through which NoLoCo's released code sends the next M sequences of each replica.

    processed: the training sequences that each replica has had before; a microbatch is one sequence. The permutation of
    sequence c after stage s has the seed c * P + s + 1. So neither the seed of the run nor evaluation, which stays in
    order, changes it.
    """
    first = np.arange(processed, processed + microbatches) * stages + 1
    drawn = [[np.random.default_rng(seed + s).permutation(replicas) for seed in first] for s in range(stages - 1)]
    return _permuted_cells(np.array(drawn, dtype=np.int64).reshape(stages - 1, microbatches, replicas))


def _permuted_cells(permutations: np.ndarray) -> np.ndarray:
    """The cells [P, R, M, 2] of microbatches that go from replica r to permutations[s, m, r] after stage s."""
    boundaries, microbatches, replicas = permutations.shape
    cells = np.empty((boundaries + 1, replicas, microbatches, 2), dtype=np.int64)
    cells[..., 1] = np.arange(boundaries + 1)[:, None, None]
    at = np.broadcast_to(np.arange(replicas), (microbatches, replicas))
    cells[0, ..., 0] = at.T
    for s, permutation in enumerate(permutations):
        at = np.take_along_axis(permutation, at, axis=1)
        cells[s + 1, ..., 0] = at.T
    return cells


@route("planned")
def planned(
    replicas: int,
    stages: int,
    microbatches: int,
    rng: np.random.Generator,
    *,
    paths: Sequence[Sequence[int]] = (),
) -> np.ndarray:
    """Paths that a planner fixed before the training: microbatch m follows paths[m % len(paths)] in every step.

    ValueError without paths, or for a path that is empty, visits a stage twice, or visits one that does not exist.
    """
    if not paths:
        raise ValueError("route 'planned' needs paths: give each one's stages in order, such as ((0, 1, 3), (0, 2, 1))")
    for path in paths:
        if not path or len(set(path)) < len(path) or not all(0 <= s < stages for s in path):
            raise ValueError(
                f"the path {tuple(path)} is not one of stages={stages}: give some of the stages 0..{stages - 1}, each "
                "once at most"
            )
    return _cells([[paths[m % len(paths)] for m in range(microbatches)]] * replicas)


@route("random paths")
def random_paths(
    replicas: int,
    stages: int,
    microbatches: int,
    rng: np.random.Generator,
    *,
    visits: float | None = None,
    swaps: int = 0,
    swap_lag: int = 1,
    reach: int | None = None,
    keep_first: bool = True,
) -> np.ndarray:
    """Random paths, new ones in every step, under SkipPipe's convergence constraints (section 4; rules as released).

    visits: the stages of a path, on average over the microbatches; None for all. keep_first: stage 0 comes first on
    every path; otherwise it is skipped and swapped like any other stage. reach: how many stages above the highest so
    far the next one may be; None for any number. A swap puts a stage off until after the stage `swap_lag` above it, if
    that one is on the path. swaps: a path makes as many swaps as it has room for, up to this number. The released rules
    are reach=4, swap_lag=1 and at most 2 swaps; there a path need not swap.
    ValueError for limits that no paths can keep that visit all stages equally often.
    """
    first = int(keep_first)
    sizes = _sizes(visits, stages, microbatches)
    routes = []
    for _ in range(replicas):
        chosen = [set(range(first)) | hand for hand in deal(range(first, stages), sizes - first, rng)]
        if reach is not None:
            _bring_within(reach, chosen, first, rng)
        routes.append([_swapped(sorted(path), swaps, swap_lag, reach, first, rng) for path in chosen])
    return _cells(routes)


@route("blind paths")
def blind_paths(
    replicas: int, stages: int, microbatches: int, rng: np.random.Generator, *, visits: float | None = None
) -> np.ndarray:
    """Paths of `visits` random stages in random order, stage 0 like any other, under no convergence constraint.

    ValueError unless 1 <= visits <= stages; None is all stages.
    """
    sizes = _sizes(visits, stages, microbatches)
    hands = [deal(range(stages), sizes, rng) for _ in range(replicas)]
    return _cells([[rng.permutation(sorted(hand)).tolist() for hand in own] for own in hands])


@route("LayerDrop")
def layer_drop(
    replicas: int,
    stages: int,
    microbatches: int,
    rng: np.random.Generator,
    *,
    drop: float = 0.2,
    rising: bool = False,
) -> np.ndarray:
    """Every microbatch skips each stage with probability `drop`, whatever the others skip (arXiv 1909.11556).

    rising: stage s of S, from 1, with drop * s / S instead, as in stochastic depth (arXiv 1603.09382). A microbatch
    that would skip all visits one stage at random. Evaluation visits all stages, and nothing is rescaled, neither then
    nor in training, as in LayerDrop; stochastic depth scales what a layer adds by its share of visits in evaluations.
    ValueError unless 0 <= drop < 1.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop={drop} must be at least 0 and below 1: it is the probability that a stage is skipped")
    skipped = drop * (np.arange(1, stages + 1) / stages if rising else np.ones(stages))
    kept = rng.random((replicas, microbatches, stages)) >= skipped
    alone = np.eye(stages, dtype=bool)[rng.integers(stages, size=(replicas, microbatches))]
    kept = np.where(kept.any(-1, keepdims=True), kept, alone)
    return _cells([[np.flatnonzero(path).tolist() for path in own] for own in kept])


def deal(members: Sequence[int], sizes: Sequence[int], rng: np.random.Generator) -> list[set[int]]:
    """Random sets of the given sizes, in which every member occurs equally often, or once more.

    All sets of a size are equally likely, but the sets are not independent. No size may exceed the number of members.
    """
    hands: list[set[int]] = []
    stock: list[int] = []
    for size in sizes:
        hand, stock = stock[:size], stock[size:]
        if len(hand) < size:
            fresh = rng.permutation(members).tolist()
            new = [member for member in fresh if member not in hand][: size - len(hand)]
            hand, stock = hand + new, [member for member in fresh if member not in new]
        hands.append(set(hand))
    return hands


def _sizes(visits: float | None, stages: int, microbatches: int) -> np.ndarray:
    """The number of stages that each microbatch visits, int [M], `visits` on average; ValueError if that cannot be."""
    visits = stages if visits is None else visits
    if not 1 <= visits <= stages:
        raise ValueError(f"visits={visits} must be from 1 to stages={stages}")
    return np.diff(np.floor(np.arange(microbatches + 1) * visits + 1e-9).astype(int))


def _bring_within(reach: int, chosen: list[set[int]], first: int, rng: np.random.Generator) -> None:
    """Exchange stages between paths, in place, until no path goes up by more than `reach` stages at once."""

    def excess(path: set[int]) -> int:
        steps = np.diff(sorted(path), prepend=0) if path else np.zeros(0)
        return int(np.maximum(steps - reach, 0).sum())

    above = [excess(path) for path in chosen]
    for _ in range(_ATTEMPTS * len(chosen)):
        if not any(above):
            return
        a = int(rng.choice(np.flatnonzero(above)))
        b = int(rng.integers(len(chosen)))
        give, take = sorted(chosen[a] - chosen[b]), sorted(chosen[b] - chosen[a])
        if not give or not take:
            continue
        x, y = give[rng.integers(len(give))], take[rng.integers(len(take))]
        new = chosen[a] - {x} | {y}, chosen[b] - {y} | {x}
        found = excess(new[0]), excess(new[1])
        if sum(found) <= above[a] + above[b]:
            (chosen[a], chosen[b]), (above[a], above[b]) = new, found
    if any(above):
        raise ValueError(
            f"reach={reach} leaves no paths that visit all stages equally often: give a larger reach or more visits"
        )


def _swapped(
    path: list[int], swaps: int, lag: int, reach: int | None, first: int, rng: np.random.Generator
) -> list[int]:
    """An ascending path in which `swaps` stages, or as many as there is room for, are put off until after later ones.

    All choices of disjoint swaps are equally likely.
    """
    n = len(path)
    last = [path.index(stage + lag) if stage + lag in path else i for i, stage in enumerate(path)]
    for i in range(n):
        below = path[i - 1] if i else 0
        if i < first or (last[i] > i and reach is not None and path[i + 1] - below > reach):
            last[i] = i
    ways = np.zeros((n + 1, swaps + 1))  # [i, k]: of making k swaps in what begins at i
    ways[n, 0] = 1
    for i in reversed(range(n)):
        ways[i] = ways[i + 1]
        if last[i] > i:
            ways[i, 1:] += ways[last[i] + 1, :-1]
    left = int(np.flatnonzero(ways[0])[-1])
    order, i = [], 0
    while i < n:
        if left and last[i] > i and rng.random() * ways[i, left] < ways[last[i] + 1, left - 1]:
            order += [*path[i + 1 : last[i] + 1], path[i]]
            i, left = last[i] + 1, left - 1
        else:
            order.append(path[i])
            i += 1
    return order


def _cells(routes: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """The cells [P, R, M, 2] of microbatches that stay on their replicas, from their paths [R][M].

    Either the visits of every path follow one another without a gap, or each visit stands at the position of its
    stage's number, or later if the path is late. The layout is taken in which more microbatches visit a stage together.
    """
    layouts = [
        [[place(path) for path in own] for own in routes] for place in (_by_stage, lambda path: range(len(path)))
    ]
    places = min(layouts, key=lambda layout: _visits(layout, routes))
    P = 1 + max(path[-1] for own in places for path in own)
    cells = np.full((P, len(routes), len(routes[0]), 2), -1)
    cells[..., 0] = np.arange(len(routes))[:, None]
    for r, own in enumerate(routes):
        for m, path in enumerate(own):
            cells[places[r][m], r, m, 1] = path
    return cells


def _by_stage(path: Sequence[int]) -> list[int]:
    places: list[int] = []
    for stage in path:
        places.append(max(stage, places[-1] + 1) if places else stage)
    return places


def _visits(layout: Sequence, routes: Sequence) -> int:
    """The number of different pairs (position, stage) of each replica, summed: its work comes in so many pieces."""
    pairs = (set(zip(chain(*p), chain(*own), strict=True)) for p, own in zip(layout, routes, strict=True))
    return sum(map(len, pairs))


_ATTEMPTS = 400  # attempts per path; a few are enough where it can be done at all


def around(cells: np.ndarray, gone: np.ndarray, peers: bool) -> np.ndarray:
    """A route of all R replicas past the cells that are away, from one of those r replicas that are there.

    cells: [P, r, M, 2], with replicas counted among the r. gone: bool [R, S + 1]; a replica is there if its ends are.
    peers: whether a microbatch visits a stage that is away on the next replica that has it; else, and where none has
    it, the microbatch skips the stage. Microbatches of a replica that is away visit nothing.
    """
    (P, _, M, _), (R, S) = cells.shape, (len(gone), gone.shape[1] - 1)
    there = np.flatnonzero(~gone[:, S])
    whole = np.full((P, R, M, 2), -1)
    whole[..., 0] = np.arange(R)[:, None]
    if (cells[-1, ..., 1] == S).all():
        whole[-1, ..., 1] = S
    replica, stage = there[cells[..., 0]], cells[..., 1]
    for s in np.flatnonzero(gone[:, :S].any(0)):
        away = (stage == s) & gone[replica, s]
        holders = there[~gone[there, s]]
        if peers and len(holders):
            replica[away] = np.append(holders, holders[0])[np.searchsorted(holders, replica[away])]
        else:
            stage = np.where(away, -1, stage)
    whole[:, there] = np.stack([replica, stage], -1)
    return whole


def stage_visits(cells: np.ndarray, stages: int) -> int:
    """The number of visits to stages by all microbatches of a route [P, R, M, 2]; heads do not count."""
    return int(((cells[..., 1] >= 0) & (cells[..., 1] < stages)).sum())


def side_by_side(routes: Sequence[np.ndarray], stages: int) -> np.ndarray:
    """One route for the replicas of several runs, from their routes [P, R, M, 2], each with replicas counted from 0.

    Shorter routes wait for the others before the heads.
    """
    bodies = [cells[:-1] if (cells[-1, ..., 1] == stages).all() else cells for cells in routes]
    whole, first = [], 0
    for cells, body in zip(routes, bodies, strict=True):
        R = cells.shape[1]
        own = np.full((max(map(len, bodies)) + 1, *cells.shape[1:]), -1)
        own[..., 0] = np.arange(R)[:, None]
        own[-1, ..., 1] = stages
        own[: len(body)] = body
        own[-1:] = cells[len(body) :] if len(body) < len(cells) else own[-1:]
        own[..., 0] += first
        whole.append(own)
        first += R
    return np.concatenate(whole, axis=1)
