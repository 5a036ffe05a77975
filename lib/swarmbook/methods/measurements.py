"""What is measured on finished runs: one small function a measurement, named in `MEASUREMENTS`.

- a measurement gets finished runs that share a Fleet, and the indices of those that ask for it, and yields rows of
  their records
- it loses, rebuilds and skips stages of all runs at once, and computes only the stages from the lost one on, because
  what enters the lost stage is the same whatever replaces it
- whatever it changed is back, bit for bit, before it yields or fails

Serves: CheckFree's single losses, pairs, Eq. 1 and similarity of stages; NoLoCo table 2 ("own shard"), its mean model
and its last rounds; SkipPipe's inference with a part of the model.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from swarmbook.methods.gossip_groups import MATCHINGS
from swarmbook.methods.routing import deal
from swarmbook.methods.sync import Exchange
from swarmbook.methods.trained import Model, Trained

if TYPE_CHECKING:
    from torch import Tensor

MeasuredRow = tuple[int, str, int, str, float]  # index of the run, metric, stage from 1 or 0 for none, label, value
Measurement = Callable[[Trained, list[int]], Iterator[MeasuredRow]]
MEASUREMENTS: dict[str, Measurement] = {}

JUMP_RULES = ("random", "copy previous", "uniform average", "CheckFree", "identity")
SEQUENCES = 16  # held-out sequences that are used where a sample will do
SUBSETS = 12  # choices of the stages that are left out, at most, for each number of them


def measurement(name: str) -> Callable[[Measurement], Measurement]:
    """Register a measurement (pack, asking) -> rows under a name.

    pack: a `Trained`. asking: indices of the runs that have the name in their `measurements`. For each of these it
    yields rows, each a `MeasuredRow`, and it leaves the pack as it found it.
    """

    def register(measure: Measurement) -> Measurement:
        MEASUREMENTS[name] = measure
        return measure

    return register


@measurement("loss jump")
def loss_jump(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """The rise of the validation loss, in nats, if one stage is lost and rebuilt by the rule in `label`."""
    yield from _jumps(pack, asking, "loss jump", 1, pack.held_out)


@measurement("pair jump")
def pair_jump(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """The rise of the loss, in nats, if stages s and s + 1 are lost at once, which CheckFree leaves open (section 6).

    Each is rebuilt from the nearest survivors by the rule in `label`. The loss is that on the first `SEQUENCES`
    held-out sequences.
    """
    yield from _jumps(pack, asking, "pair jump", 2, pack.held_out[:, :SEQUENCES])


@measurement("missing stages")
def missing_stages(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """The validation loss, in nats, if 1, 2 or 3 stages from s on are skipped; `label` is the number of them.

    Embedding and head stay, and so does at least one stage.
    """
    fleet, S = pack.fleet, pack.fleet.shape.stages
    x = fleet.embed(pack.held_out[..., :-1])
    for s in range(S):
        for missing in range(1, min(3, S - 1, S - s) + 1):
            losses = _loss(fleet, s + missing, x, pack.held_out)
            yield from _rows(pack, asking, "missing stages", s, str(missing), losses)
        x = fleet.apply(s, x)


@measurement("partial model")
def partial_model(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """Inference with a part of the stages: metrics "partial loss" and "partial perplexity" (SkipPipe).

    Every number of stages is left out, from none to all but the first, which lies with the embedding and always runs.
    For each number, all choices of stages are measured, or `SUBSETS` choices that leave out every stage equally often;
    the choices are the same for all runs. The other stages run in order. `label` lists the stages that are left out,
    from 1, as in "2 5". The loss is the mean over tokens, in nats. The perplexity is that of each sequence, averaged
    over sequences (SkipPipe's released code), which is above exp(loss).
    """
    import torch

    fleet = pack.fleet
    sets = subsets(fleet.shape.stages)
    found: dict[tuple[int, ...], list] = {left_out: [] for left_out in sets}
    for first in range(0, pack.held_out.shape[1], SEQUENCES):
        part = pack.held_out[:, first : first + SEQUENCES]
        for left_out, x in _walks(fleet, 0, fleet.embed(part[..., :-1]), sets):
            found[left_out].append(fleet.head_loss(x, part[..., 1:], per_sequence=True))
    for left_out, parts in found.items():
        losses = torch.cat(parts, 1)  # [R, N]
        label = " ".join(str(stage + 1) for stage in left_out)
        yield from _rows(pack, asking, "partial loss", -1, label, losses.mean(1))
        yield from _rows(pack, asking, "partial perplexity", -1, label, losses.exp().mean(1))


def subsets(stages: int) -> list[tuple[int, ...]]:
    """The choices of stages, from 0, that "partial model" leaves out; the first stage is in none of them."""
    sets: list[tuple[int, ...]] = []
    for size in range(stages):
        if math.comb(stages - 1, size) <= SUBSETS:
            sets += itertools.combinations(range(1, stages), size)
            continue
        rng, chosen = np.random.default_rng((stages, size)), set()
        while len(chosen) < SUBSETS:  # a few hands may be the same
            chosen = {tuple(sorted(hand)) for hand in deal(range(1, stages), [size] * SUBSETS, rng)}
        sets += sorted(chosen)
    return sets


@measurement("similarity")
def similarity(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """Cosine similarity, between -1 and 1, of the neighbouring stages s and s + 1.

    Label "weights": the similarity of all their matrices, laid end to end. The gains of the norms are left out: they
    start at 1 and stay near it, so that any two stages would look alike. Label "functions": the similarity of their
    residual updates of the same input, the one that enters stage s in order; the mean over the tokens of the first
    `SEQUENCES` held-out sequences.
    """
    from torch.nn.functional import cosine_similarity  # here, so that configurations need no torch

    fleet = pack.fleet
    x = fleet.embed(pack.held_out[:, :SEQUENCES, :-1])
    for s in range(fleet.shape.stages - 1):
        y = fleet.apply(s, x)
        weights = cosine_similarity(_matrices(fleet, s), _matrices(fleet, s + 1), dim=-1)
        functions = cosine_similarity(y - x, fleet.apply(s + 1, x) - x, dim=-1).mean((1, 2))
        yield from _rows(pack, asking, "similarity", s, "weights", weights)
        yield from _rows(pack, asking, "similarity", s, "functions", functions)
        x = y


@measurement("re-initialisation error")
def reinitialisation_error(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """The error of a rebuilt stage in CheckFree's bound (section 4.4, Eq. 1), relative to the lost stage's own update.

    It is sum |g(x) - f_s(x)|^2 / sum |f_s(x)|^2 over the tokens of the first `SEQUENCES` held-out sequences. f_s is the
    residual update of stage s, x is what enters it in order, and g is the update of the stage rebuilt by the rule in
    `label`. The method averages weights, but its bound speaks of averaged functions, g = w_1 f_(s-1) + w_2 f_(s+1).
    Stages with two neighbours have these as well, under the labels "uniform average of functions" and "CheckFree of
    functions", whose weights are squared gradient norms. A stage that is skipped has the error 1. A stage that does
    nothing has NaN or infinity.
    """
    fleet, S = pack.fleet, pack.fleet.shape.stages
    x = fleet.embed(pack.held_out[:, :SEQUENCES, :-1])
    for s in range(S):
        y = fleet.apply(s, x)
        size = _square(y - x)
        errors = {}
        for rule in JUMP_RULES:
            with _rebuilt(pack, asking, range(s, s + 1), rule):
                errors[rule] = _square(fleet.apply(s, x) - y) / size
        if 0 < s < S - 1:
            before, after = fleet.apply(s - 1, x), fleet.apply(s + 1, x)  # x drops out below: the shares sum to 1
            norms = pack.norms[:, [s - 1, s + 1]].to(x).square()  # [R, 2]
            norms[norms.sum(1) == 0] = 1.0
            share = (norms[:, 0] / norms.sum(1)).view(-1, 1, 1, 1)
            errors["uniform average of functions"] = _square((before + after) / 2 - y) / size
            errors["CheckFree of functions"] = _square(share * before + (1 - share) * after - y) / size
        for label, error in errors.items():
            yield from _rows(pack, asking, "re-initialisation error", s, label, error)
        x = y


@measurement("mean weights")
def mean_weights(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """Metric "mean-weight loss": the validation loss, in nats, of the model whose weights are the replicas' mean."""
    fleet, rows = pack.fleet, [row for i in asking for row in pack.replicas(i)]
    kept = fleet.state_dict(rows)
    try:
        for i in asking:
            for weights in fleet.replica_views(pack.replicas(i)).values():
                weights.copy_(weights.mean(0, keepdim=True))
        losses = fleet.loss(pack.held_out).tolist()
    finally:
        fleet.load_state_dict(kept, rows)
    yield from ((i, "mean-weight loss", 0, "", losses[pack.replicas(i)[0]]) for i in asking)


@measurement("averaging rounds")
def averaging_rounds(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """The replicas after further rounds of averaging weights in pairs, without training.

    Metric "averaged loss" is the mean loss of the replicas, in nats; "averaged spread" is their spread, measured like
    "replica spread". `label` is the matching and the number of rounds, such as "random 2". Random pairs halve the
    variance between replicas in each round. The hypercube, for a power of 2 of replicas R, reaches their mean in log2 R
    rounds. Nothing is measured for an odd R.
    """
    fleet, rows = pack.fleet, [row for i in asking for row in pack.replicas(i)]
    R = pack.runs[0].replicas
    names = [] if R % 2 else ["random"] if R & (R - 1) else ["random", "hypercube"]
    kept, found = fleet.state_dict(rows), []
    try:
        for name in names:
            fleet.load_state_dict(kept, rows)
            for k in range(R.bit_length()):
                for i in asking:
                    groups = MATCHINGS[name](R, k, pack.runs[i].rng("sync", pack.step, k), 2)
                    exchange = Exchange([], groups)
                    for weights in fleet.replica_views(pack.replicas(i)).values():
                        weights.copy_(exchange.mean(weights))
                losses = fleet.loss(pack.held_out).tolist()
                for i in asking:
                    own = [losses[row] for row in pack.replicas(i)]
                    found.append((i, "averaged loss", 0, f"{name} {k + 1}", sum(own) / R))
                    found.append((i, "averaged spread", 0, f"{name} {k + 1}", pack.spread(i)))
    finally:
        fleet.load_state_dict(kept, rows)
    yield from found


@measurement("replicas")
def replicas(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """Metric "replica loss": the validation loss, in nats, of each replica; `label` is its number, from 1."""
    losses = pack.fleet.loss(pack.held_out).tolist()
    for i in asking:
        for r, row in enumerate(pack.replicas(i)):
            yield i, "replica loss", 0, str(r + 1), losses[row]


@measurement("own shard")
def own_shard(pack: Trained, asking: list[int]) -> Iterator[MeasuredRow]:
    """Metric "own-shard loss": the mean, over the R replicas r of a run, of their losses on sequences r, r + R, ...

    In nats. NoLoCo's perplexities are made of it (released code).
    """
    losses = pack.fleet.loss(pack.held_out, per_sequence=True)  # [R, N]
    for i in asking:
        rows = pack.replicas(i)
        shards = [float(losses[row, r :: len(rows)].mean()) for r, row in enumerate(rows)]
        yield i, "own-shard loss", 0, "", sum(shards) / len(shards)


def _jumps(pack: Trained, asking: list[int], metric: str, width: int, tokens) -> Iterator[MeasuredRow]:
    """The rise of the loss on `tokens` if `width` consecutive stages are lost at once: everywhere, and by each rule."""
    fleet, places = pack.fleet, range(pack.fleet.shape.stages - width + 1)
    x = fleet.embed(tokens[..., :-1])
    found = []
    for s in places:
        for rule in JUMP_RULES:
            with _rebuilt(pack, asking, range(s, s + width), rule):
                found.append((s, rule, _loss(fleet, s, x, tokens)))
        x = fleet.apply(s, x)
    whole = _loss(fleet, len(places), x, tokens)
    for s, rule, losses in found:
        yield from _rows(pack, asking, metric, s, rule, losses - whole)


@contextmanager
def _rebuilt(pack: Trained, asking: list[int], stages: range, rule: str) -> Iterator[None]:
    """Within the context, stages that are lost at once and rebuilt, in all replicas of the runs that ask."""
    dead = frozenset(stages)
    cells = [(i, row, stage) for i in asking for row in pack.replicas(i) for stage in stages]
    kept = [{name: w.clone() for name, w in pack.fleet.stage(row, stage).items()} for _, row, stage in cells]
    try:
        for _, row, stage in cells:  # what was lost cannot be read
            for weight in pack.fleet.stage(row, stage).values():
                weight.fill_(float("nan"))
        for i, row, stage in cells:
            pack.rebuild(i, row, stage, dead, rule)
        yield
    finally:
        for (_, row, stage), weights in zip(cells, kept, strict=True):
            for name, weight in pack.fleet.stage(row, stage).items():
                weight.copy_(weights[name])


def _loss(fleet: Model, first: int, x: "Tensor", tokens) -> "Tensor":
    """Mean cross-entropy [R] on tokens [1, N, T + 1] if x [R, N, T, D] enters stage `first`; stage S is the head."""
    for stage in range(first, fleet.shape.stages):
        x = fleet.apply(stage, x)
    return fleet.head_loss(x, tokens[..., 1:])


def _walks(
    fleet: Model, stage: int, x: "Tensor", sets: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], "Tensor"]]:
    """For each set of stages, what leaves the last stage if the set is skipped and x enters `stage`.

    What several sets share is computed once.
    """
    if stage == fleet.shape.stages:
        yield from ((left_out, x) for left_out in sets)
        return
    if without := [left_out for left_out in sets if stage in left_out]:
        yield from _walks(fleet, stage + 1, x, without)
    if through := [left_out for left_out in sets if stage not in left_out]:
        yield from _walks(fleet, stage + 1, fleet.apply(stage, x), through)


def _matrices(fleet: Model, stage: int) -> "Tensor":
    """All weights of a stage but the gains of the norms, laid end to end for each replica: [R, n]."""
    import torch

    matrices = [w for name, w in fleet.layers.items() if not name.endswith("norm")]
    return torch.cat([w[:, stage].movedim(1, 0).flatten(1) for w in matrices], 1)


def _square(x: "Tensor") -> "Tensor":
    """The squared length of x [R, N, T, D], summed over all tokens of a replica: [R]."""
    return x.square().sum((1, 2, 3))


def _rows(
    pack: Trained, asking: list[int], metric: str, stage: int, label: str, values: "Tensor"
) -> Iterator[MeasuredRow]:
    """One row for each run that asks, the mean of values [R] over its replicas; stage from 0, -1 for none."""
    values = values.tolist()
    for i in asking:
        own = [values[row] for row in pack.replicas(i)]
        yield i, metric, stage + 1, label, sum(own) / len(own)
