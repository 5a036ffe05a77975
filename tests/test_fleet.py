"""A Fleet is many separate models; a route is a plain walk of each microbatch through the cells it names."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from swarmbook.methods import routing
from swarmbook.methods.model_size import Shape
from swarmbook.training import cpu_layers, llama
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer

SHAPE = Shape(stages=4, layers_per_stage=2, width=16, heads=2, hidden=24, vocabulary=41)
R, S, M, B, T = 3, SHAPE.stages, 4, 2, 12


def fleet_of(seeds=(1, 2, 3), shape=SHAPE, **options):
    return Fleet(shape, list(seeds), device="cpu", **{"compile": False, **options})


def batch(seed=0, replicas=R, microbatches=M):
    return np.random.default_rng(seed).integers(SHAPE.vocabulary, size=(replicas, microbatches, B, T + 1))


def in_order(replicas=R, stages=S):
    cells = np.empty((stages, replicas, M, 2), dtype=np.int64)
    cells[..., 0] = np.arange(replicas)[None, :, None]
    cells[..., 1] = np.arange(stages)[:, None, None]
    return cells


def swapped():
    cells = in_order()
    cells[:, :, 1::2, 1] = np.array([1, 0, 3, 2])[:, None, None]
    return cells


def hops(seed=5):
    """At each position another permutation of the replicas (NoLoCo)."""
    cells = in_order()
    for p in range(S):
        cells[p, :, :, 0] = np.random.default_rng(seed + p).permutation(R)[:, None]
    return cells


def elsewhere():
    """As `hops`, and heads of other replicas again take the loss."""
    heads = np.empty((1, R, M, 2), dtype=np.int64)
    heads[..., 0] = np.random.default_rng(4).permuted(np.tile(np.arange(R), (M, 1)), axis=1).T
    heads[..., 1] = S
    return np.concatenate([hops(), heads])


def skips():
    """Microbatches that leave out a stage, and one that visits none."""
    cells = in_order()
    cells[1, :, 0, 1] = -1
    cells[3, 1, :, 1] = -1
    cells[:, 2, 3, 1] = -1
    return cells


def wild(seed=7):
    """Every microbatch its own walk over cells of any replica, skips and second visits included."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(R, size=(S + 1, R, M)), rng.integers(-1, S, size=(S + 1, R, M))], -1)


def random_replicas():
    return routing.random_replicas(R, S, M, np.random.default_rng(3))


def planned():
    """The first microbatch skips two stages, the second swaps two, the third has them in reverse."""
    return routing.planned(R, S, M, np.random.default_rng(0), paths=((0, 3), (0, 2, 1), (3, 2, 1, 0)))


def random_paths():
    return routing.random_paths(R, S, M, np.random.default_rng(3), visits=2.5, swaps=1)


ROUTES = {"in order": in_order, "swapped": swapped, "hops": hops, "skips": skips, "wild": wild}
ROUTES |= {"other heads": elsewhere, "random replicas": random_replicas}
ROUTES |= {"planned": planned, "random paths": random_paths}


def walk(fleet, tokens, cells):
    """Reference: microbatch by microbatch, layer by layer, plain autograd in fp64; losses by head, weights."""
    tokens = torch.as_tensor(tokens)
    shape = fleet.shape
    cos, sin = llama.rotary(T, shape.head_width, torch.device("cpu"))
    stages = {
        (r, s): {name: w.double().requires_grad_() for name, w in fleet.stage(r, s).items()}
        for r in range(fleet.replicas)
        for s in range(shape.stages)
    }
    ends = [{name: w.double().requires_grad_() for name, w in fleet.ends(r).items()} for r in range(fleet.replicas)]
    losses = [[] for _ in range(fleet.replicas)]
    for r in range(fleet.replicas):
        for m in range(tokens.shape[1]):
            head = r
            x = ends[r]["embedding"][tokens[r, m, :, :-1]]  # [B, T, D]
            for replica, stage in cells[:, r, m]:
                if stage == shape.stages:
                    head = replica
                elif stage >= 0:
                    for j in range(shape.layers_per_stage):
                        x = plain_layer({k: w[j] for k, w in stages[replica, stage].items()}, x, cos[:, 0], sin[:, 0])
            z = rms(x) * ends[head]["norm"] @ ends[head]["head"]
            losses[head].append(torch.nn.functional.cross_entropy(z.flatten(0, 1), tokens[r, m, :, 1:].flatten()))
    losses = torch.stack([torch.stack(taken).mean() for taken in losses])
    losses.sum().backward()
    return losses.detach().float(), stages, ends


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def plain_layer(w, x, cos, sin):
    B, T, D = x.shape
    heads = SHAPE.heads

    def turn(t):  # [B, heads, T, D / heads]
        a, b = t.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    q, k, v = (t.view(B, T, heads, -1).transpose(1, 2) for t in (rms(x) * w["attention_norm"] @ w["qkv"]).chunk(3, -1))
    scores = turn(q) @ turn(k).transpose(-1, -2) / (D // heads) ** 0.5
    scores = scores + torch.full((T, T), float("-inf")).triu(1)
    x = x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D) @ w["output"]
    gate, up = (rms(x) * w["mlp_norm"] @ w["gate_up"]).chunk(2, -1)
    return x + (gate * torch.sigmoid(gate) * up) @ w["down"]


def close(got, wanted, where, tolerance=2e-5):
    """Equal to `tolerance` of the largest entry: sums of many terms cancel to small ones."""
    size = max(float(wanted.abs().max()), 1e-3)
    torch.testing.assert_close(got / size, wanted / size, rtol=0, atol=tolerance, msg=lambda m: f"{where}: {m}")


def assert_gradients(fleet, stages, ends):
    for (r, s), weights in stages.items():
        for name, gradient in fleet.stage_gradient(r, s).items():
            wanted = weights[name].grad
            close(gradient, torch.zeros_like(gradient) if wanted is None else wanted.float(), (r, s, name))
    for r, weights in enumerate(ends):
        for name, gradient in fleet.ends_gradient(r).items():
            close(gradient, weights[name].grad.float(), (r, name))


def disturbed(fleet, size=0.2):
    """Weights far from the start, so that stages differ clearly."""
    generator = torch.Generator().manual_seed(0)
    cells = [fleet.stage(r, s) for r in range(fleet.replicas) for s in range(fleet.shape.stages)]
    for cell in cells + [fleet.ends(r) for r in range(fleet.replicas)]:
        for weight in cell.values():
            weight.add_(torch.randn(weight.shape, generator=generator) * size)
    return fleet


@pytest.mark.parametrize(
    ("checkpointing", "group", "at_once"), [(False, 1, None), (False, 1 << 18, None), (True, 1 << 18, 1), (False, 1, 3)]
)
@pytest.mark.parametrize("name", ROUTES)
def test_routes_are_walks(name, checkpointing, group, at_once, monkeypatch):
    monkeypatch.setattr("swarmbook.training.fleet._GROUP", {"cpu": group})
    fleet, cells = disturbed(fleet_of(checkpointing=checkpointing)), ROUTES[name]()
    tokens = batch()
    fleet.gradients(batch(9), wild(8))  # whatever was stored before must not count
    losses = fleet.gradients(tokens, cells, at_once)
    wanted, stages, ends = walk(fleet, tokens, cells)
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-5)
    assert_gradients(fleet, stages, ends)
    evaluated = fleet.loss(tokens.reshape(R, M * B, T + 1), cells)
    torch.testing.assert_close(evaluated, wanted, rtol=1e-5, atol=1e-5)


def test_no_route_is_in_order():
    fleet, tokens = fleet_of(), batch()
    losses = fleet.gradients(tokens)
    gradients = fleet.stage_gradient(1, 2)["qkv"].clone()
    torch.testing.assert_close(fleet.gradients(tokens, in_order()), losses, rtol=0, atol=0)
    torch.testing.assert_close(fleet.stage_gradient(1, 2)["qkv"], gradients, rtol=0, atol=0)
    assert gradients.abs().max() > 0


def test_heads_at_home_change_no_bit():
    fleet, tokens = disturbed(fleet_of()), batch()
    home = np.stack([in_order()[0, ..., 0], np.full((R, M), S)], -1)[None]
    for cells in (in_order(), swapped(), skips()):
        losses = fleet.gradients(tokens, cells)
        gradients = {name: g.clone() for name, g in (fleet.layer_gradients | fleet.outer_gradients).items()}
        assert torch.equal(fleet.gradients(tokens, np.concatenate([cells, home])), losses)
        for name, gradient in (fleet.layer_gradients | fleet.outer_gradients).items():
            assert torch.equal(gradient, gradients[name]), name


def test_losses_and_logits_of_heads_elsewhere(monkeypatch):
    """Each head's loss is in the row of its replica, each token's logits in the row of the token."""
    fleet, tokens = disturbed(fleet_of()), batch().reshape(R, M * B, T + 1)
    cells = elsewhere()
    for group in (1, 1 << 18):
        monkeypatch.setattr("swarmbook.training.fleet._GROUP", {"cpu": group})
        logits = fleet.logits(tokens[..., :-1], cells)  # [R, N, T, V]
        labels = torch.as_tensor(tokens[..., 1:])
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none")
        nats = nats.view(R, M, B, T).mean(-1)  # of the sequences, where they started
        losses = fleet.loss(tokens, cells, per_sequence=True).view(R, M, B)
        for r in range(R):
            for m in range(M):
                torch.testing.assert_close(losses[cells[-1, r, m, 0], m], nats[r, m], rtol=1e-5, atol=1e-5)
    apart = fleet.loss(tokens, in_order(), per_sequence=True).view(R, M, B)
    assert not torch.allclose(losses, apart, atol=1e-3)


@pytest.mark.parametrize("heads", [[[0, 1, 2, 0], [0, 1, 2, 0], [0, 1, 2, 0]], [[0] * M, [1] * M, [1] * M]])
def test_heads_that_take_unequal_shares_are_refused(heads):
    cells = np.concatenate([in_order(), np.full((1, R, M, 2), S)])
    cells[-1, ..., 0] = heads
    with pytest.raises(ValueError, match="one first microbatch, one second and so on, or leave stage 4 out"):
        fleet_of().gradients(batch(), cells)
    cells[-1, ..., 0] = np.arange(R)[:, None]
    cells[-1, 0, 0, 1] = -1
    with pytest.raises(ValueError, match="leave stage 4 out"):
        fleet_of().gradients(batch(), cells)


def test_gradients_do_not_depend_on_stages_never_visited():
    """NoLoCo's routing: what replica r learns depends on the replicas that its microbatches went through, no others."""
    fleet, tokens = disturbed(fleet_of(range(8))), batch(replicas=8, microbatches=2)
    cells = routing.random_replicas(8, S, 2, np.random.default_rng(0))
    fleet.gradients(tokens, cells)
    before = {s: [fleet.stage_gradient(r, s)["qkv"].clone() for r in range(8)] for s in (0, 1)}
    for q in range(8):
        changed = fleet_of(range(8))
        changed.load_state_dict(fleet.state_dict())
        changed.stage(q, 1)["qkv"].mul_(1.5)
        changed.gradients(tokens, cells)
        for r in range(8):
            visited = q in cells[1, r, :, 0]
            after = changed.stage_gradient(r, 0)["qkv"]
            assert torch.equal(after, before[0][r]) != visited, (q, r)
    skipping = cells.copy()
    skipping[1, :, 0][cells[1, :, 0, 0] == 3] = -1
    skipping[1, :, 1][cells[1, :, 1, 0] == 3] = -1
    fleet.gradients(tokens, skipping)
    for r in range(8):
        assert bool(fleet.stage_gradient(r, 1)["qkv"].any()) == (r != 3)


def test_swapping_equal_stages_changes_nothing():
    fleet, tokens = disturbed(fleet_of()), batch()
    assert not torch.allclose(fleet.gradients(tokens, swapped()), fleet.gradients(tokens), atol=1e-3)
    for r in range(R):
        for a, b in ((0, 1), (2, 3)):
            for name, weight in fleet.stage(r, a).items():
                weight.copy_(fleet.stage(r, b)[name])
    torch.testing.assert_close(fleet.gradients(tokens, swapped()), fleet.gradients(tokens), rtol=1e-6, atol=1e-6)


def test_skipping_a_stage_is_the_model_without_it():
    fleet, tokens = disturbed(fleet_of()), batch()
    cells = in_order()
    cells[2, ..., 1] = -1
    short = fleet_of(shape=Shape(**{**SHAPE.__dict__, "stages": S - 1}))
    for r in range(R):
        for name, weight in fleet.ends(r).items():
            short.ends(r)[name].copy_(weight)
        for ours, theirs in enumerate((0, 1, 3)):
            for name, weight in fleet.stage(r, theirs).items():
                short.stage(r, ours)[name].copy_(weight)
    torch.testing.assert_close(fleet.gradients(tokens, cells), short.gradients(tokens), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fleet.stage_gradient(1, 3)["down"], short.stage_gradient(1, 2)["down"])
    assert all((g == 0).all() for g in fleet.stage_gradient(0, 2).values())


def test_packed_routes_are_separate_fleets():
    routes = [in_order(), swapped(), skips()]
    cells = np.concatenate([route[:, r : r + 1] for r, route in enumerate(routes)], axis=1)  # each at home
    packed, tokens = disturbed(fleet_of()), batch()
    losses = packed.gradients(tokens, cells)
    for r in range(R):
        alone = fleet_of([0])
        alone.load_state_dict(packed.state_dict([r]))
        own = cells[:, r : r + 1].copy()
        own[..., 0] = 0
        torch.testing.assert_close(alone.gradients(tokens[r : r + 1], own)[0], losses[r], rtol=1e-6, atol=1e-6)
        for s in range(S):
            for name, gradient in alone.stage_gradient(0, s).items():
                torch.testing.assert_close(packed.stage_gradient(r, s)[name], gradient, rtol=1e-5, atol=1e-6)


def test_stacked_is_separate_over_20_steps():
    def train(fleet, take):
        adam = InnerOptimizer(fleet, 1e-2)
        losses = []
        for step in range(20):
            losses.append(fleet.gradients(batch(step % 4)[take], swapped()[:, take] - own(take)))
            fleet.clip(0.5)
            adam.step()
        return torch.stack(losses)  # [steps, R]

    def own(take):
        return np.array([take.start, 0])

    stacked = fleet_of()
    together = train(stacked, slice(0, R))
    assert (together[-1] < together[0] - 0.1).all()
    for r in range(R):
        alone = fleet_of([r + 1])
        apart = train(alone, slice(r, r + 1))
        torch.testing.assert_close(together[:, r : r + 1], apart, rtol=1e-5, atol=1e-5)
        for s in range(S):
            for name, weight in alone.stage(0, s).items():
                torch.testing.assert_close(stacked.stage(r, s)[name], weight, rtol=1e-5, atol=1e-5)


def test_start_depends_on_the_own_seed_only():
    wide, alone = fleet_of([4, 5, 6, 7]), fleet_of([6])
    for name, weight in (alone.stage(0, 3) | alone.ends(0)).items():
        assert torch.equal(weight, (wide.stage(2, 3) | wide.ends(2))[name])
    assert not torch.equal(wide.stage(0, 0)["qkv"], wide.stage(1, 0)["qkv"])
    assert not torch.equal(fleet_of([1 << 32]).stage(0, 0)["qkv"], fleet_of([0]).stage(0, 0)["qkv"])
    wide.initialise(0, 1, 11)
    wide.initialise(3, 2, 11)
    assert torch.equal(wide.stage(0, 1)["down"], wide.stage(3, 2)["down"])
    assert torch.equal(wide.stage(0, 0)["down"], fleet_of([4]).stage(0, 0)["down"])


def test_views_of_replicas_are_their_cells():
    fleet = disturbed(fleet_of())
    fleet.gradients(batch())
    for gradients, cell in ((False, fleet.stage), (True, fleet.stage_gradient)):
        views = fleet.replica_views(range(1, 3), gradients)
        assert views.keys() == fleet.state_dict().keys()
        for r in (1, 2):
            for s in range(S):
                for name, weight in cell(r, s).items():
                    assert torch.equal(views[f"layers.{name}"][r - 1, :, s], weight)
            for name, weight in cell(r, S).items():
                assert torch.equal(views[f"ends.{name}"][r - 1, 0, 0], weight)
        views["layers.qkv"][0].zero_()
        assert not cell(1, 2)["qkv"].any() and cell(0, 2)["qkv"].any() and cell(2, 2)["qkv"].any()


def test_clip_is_clip_grad_norm_of_each_cell():
    fleet = disturbed(fleet_of())
    fleet.gradients(batch())
    limit = float(fleet.norms().median())
    cells = {(r, s): fleet.stage_gradient(r, s) for r in range(R) for s in range(S)}
    cells |= {(r, S): fleet.ends_gradient(r) for r in range(R)}
    wanted, norms = {}, torch.empty(R, S + 1)
    for cell, gradients in cells.items():
        parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients.values()]
        for parameter, gradient in zip(parameters, gradients.values(), strict=True):
            parameter.grad = gradient.clone()
        norms[cell] = torch.nn.utils.clip_grad_norm_(parameters, limit)
        wanted[cell] = [p.grad for p in parameters]
    torch.testing.assert_close(fleet.norms(), norms)
    torch.testing.assert_close(fleet.clip(limit), norms)
    for cell, gradients in cells.items():
        for gradient, clipped in zip(gradients.values(), wanted[cell], strict=True):
            torch.testing.assert_close(gradient, clipped)
    assert (fleet.norms() <= limit * 1.0001).all()
    assert (norms > limit).any() and (norms < limit).any()


@pytest.mark.parametrize("stages", [1, 2, S])
def test_clipping_by_workers_is_clip_grad_norm_of_what_each_worker_of_a_pipeline_holds(stages):
    fleet = disturbed(fleet_of(shape=replace(SHAPE, stages=stages)))
    fleet.gradients(batch())
    wanted, lengths = [], []
    for limit in (0.1, 1e9):
        for r in range(R):
            for s in range(stages):
                ends = fleet.ends_gradient(r)
                held = list(fleet.stage_gradient(r, s).values())
                held += [ends["embedding"]] if s == 0 else []
                held += [ends["norm"], ends["head"]] if s == stages - 1 else []
                parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in held]
                for parameter, gradient in zip(parameters, held, strict=True):
                    parameter.grad = gradient.clone()
                lengths.append(float(torch.nn.utils.clip_grad_norm_(parameters, limit)))
                wanted += [(gradient, parameter.grad) for gradient, parameter in zip(held, parameters, strict=True)]
        cells = fleet.norms()
        assert torch.equal(fleet.clip(limit, workers=True), cells)  # what is logged is that of cells all the same
        for gradient, clipped in wanted:
            torch.testing.assert_close(gradient, clipped)
        assert (min(lengths) > limit) == (limit < 1)
        wanted, lengths = [], []


def test_loss_is_chunked_and_shared(monkeypatch):
    fleet = disturbed(fleet_of())
    tokens = batch(microbatches=5).reshape(R, 5 * B, T + 1)
    whole = fleet.loss(tokens, per_sequence=True)  # [R, N]
    monkeypatch.setattr("swarmbook.training.stacked_stages._BLOCK", {"cpu": 3 * T * SHAPE.vocabulary})
    torch.testing.assert_close(fleet.loss(tokens, per_sequence=True), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fleet.loss(tokens), whole.mean(1), rtol=1e-6, atol=1e-6)
    shared = fleet.loss(tokens[:1], per_sequence=True)
    torch.testing.assert_close(shared[0], whole[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shared[1], fleet.loss(np.repeat(tokens[:1], R, 0), per_sequence=True)[1])


def test_stage_by_stage_is_the_whole_model(monkeypatch):
    fleet, tokens = disturbed(fleet_of()), batch()[:, 0]  # [R, B, T + 1]
    for size in (1 << 20, 1):  # all at once; one replica and sequence at a time
        monkeypatch.setattr("swarmbook.training.fleet._GROUP", {"cpu": size})
        monkeypatch.setattr("swarmbook.training.stacked_stages._BLOCK", {"cpu": size})
        x = fleet.embed(tokens[..., :-1])
        entered = []
        for s in range(S):
            entered.append(x)
            x = fleet.apply(s, x)
        losses = fleet.head_loss(x, tokens[..., 1:])
        torch.testing.assert_close(losses, fleet.loss(tokens), rtol=1e-6, atol=1e-6)
        logits = llama.logits(x.flatten(1, 2), fleet.outer["norm"], fleet.outer["head"]).view(R, B, T, -1)
        torch.testing.assert_close(logits, fleet.logits(tokens[..., :-1]), rtol=1e-5, atol=1e-5)
        skipped = fleet.apply(3, fleet.apply(1, entered[1]))
        route = in_order()[:, :, :1]
        route[2, ..., 1] = -1
        wanted = fleet.loss(tokens, route)
        torch.testing.assert_close(fleet.head_loss(skipped, tokens[..., 1:]), wanted, rtol=1e-6, atol=1e-6)
    cos, sin = llama.rotary(T, SHAPE.head_width, torch.device("cpu"))
    for r in range(R):
        y = fleet.ends(r)["embedding"][torch.as_tensor(tokens[r, :, :-1])]
        for s in range(S):
            torch.testing.assert_close(entered[s][r], y, rtol=1e-4, atol=1e-4)
            for j in range(SHAPE.layers_per_stage):
                y = plain_layer({name: w[j] for name, w in fleet.stage(r, s).items()}, y, cos[:, 0], sin[:, 0])


def test_stages_work_on_shared_tokens_and_in_bf16():
    exact, rough = disturbed(fleet_of(), 0.1), disturbed(fleet_of(precision="bf16"), 0.1)
    tokens = batch()[:1, 0]
    own = np.repeat(tokens, R, 0)
    assert torch.equal(exact.embed(tokens), exact.embed(own))
    x, y = exact.embed(tokens), rough.embed(tokens)
    for s in range(S):
        x, y = exact.apply(s, x), rough.apply(s, y)
    assert y.dtype == torch.float32 and not torch.equal(x, y)
    torch.testing.assert_close(y, x, rtol=5e-2, atol=5e-2)
    assert torch.equal(exact.head_loss(x, tokens), exact.head_loss(x, own))


def test_bad_stages_and_activations_are_refused():
    fleet = fleet_of()
    x = fleet.embed(batch()[:1, 0])
    for stage in (-1, S):  # the ends are no stage to send activations through
        with pytest.raises(IndexError, match=f"stage {stage}.*0..3"):
            fleet.apply(stage, x)
    for wrong in (x[:2], x[..., :8], x[0]):
        with pytest.raises(ValueError, match=r"give \[R, N, T, D\] with R = 3 and D = 16"):
            fleet.apply(0, wrong)
        with pytest.raises(ValueError, match="activations have shape"):
            fleet.head_loss(wrong, batch()[:1, 0])


def test_bf16_is_near_fp32():
    exact, rough = disturbed(fleet_of(), 0.1), disturbed(fleet_of(precision="bf16"), 0.1)
    tokens = batch()
    torch.testing.assert_close(rough.gradients(tokens), exact.gradients(tokens), rtol=2e-2, atol=2e-2)
    for name, gradient in (exact.stage_gradient(1, 2) | exact.ends_gradient(1)).items():
        near = (rough.stage_gradient(1, 2) | rough.ends_gradient(1))[name]
        assert near.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(near.flatten(), gradient.flatten(), 0) > 0.99, name
        assert not torch.equal(near, gradient)


def test_state_goes_on_bit_for_bit():
    def steps(fleet, adam, wanted):
        for step in wanted:
            fleet.gradients(batch(step), swapped())
            fleet.clip(0.5)
            if step == 3:
                adam.reset(1, 2)
                adam.lr_scale[1, 2] = 1.1
            adam.step()
        return fleet.state_dict()

    fleet = fleet_of()
    adam = InnerOptimizer(fleet, 1e-3)
    steps(fleet, adam, range(5))
    saved = fleet.state_dict(), adam.state_dict()
    wanted = steps(fleet, adam, range(5, 8))
    other = fleet_of([7, 8, 9])
    resumed = InnerOptimizer(other, 1e-3)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    got = steps(other, resumed, range(5, 8))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_state_of_some_replicas():
    fleet, pair = fleet_of(), fleet_of([8, 9])
    pair.load_state_dict(fleet.state_dict([2, 0]))
    assert torch.equal(pair.stage(0, 1)["qkv"], fleet.stage(2, 1)["qkv"])
    assert torch.equal(pair.ends(1)["head"], fleet.ends(0)["head"])
    fleet.load_state_dict(pair.state_dict([0]), [1])
    assert torch.equal(fleet.stage(1, 1)["qkv"], pair.stage(0, 1)["qkv"])
    with pytest.raises(ValueError, match="as many replicas"):
        fleet.load_state_dict(pair.state_dict())


@pytest.mark.parametrize(("length", "width", "heads"), [(T, 16, 2), (33, 20, 5), (64, 32, 2)])
def test_kernels_of_a_cpu_are_the_plain_functions(length, width, heads):
    """Forward and backward, with weights of cells that do not lie side by side, and numbers far from 0."""
    C, hidden, vocabulary = 3, 24, 41
    draw = torch.Generator().manual_seed(length)

    def some(*size):
        return torch.randn(size, generator=draw)

    sizes = [(width,), (width, 3 * width), (width, width), (width,), (width, 2 * hidden), (hidden, width)]
    weights = [some(2 * C, *size)[::2] * 0.5 for size in sizes]
    x, dx = 3 * some(C, 2 * length, width), some(C, 2 * length, width)
    angles = llama.rotary(length, width // heads, torch.device("cpu"))
    out, *kept = llama.layer(x, *weights, *angles)
    ours, *ours_kept = cpu_layers.layer(x, *weights, *angles)
    close(ours, out, "forward")
    expected = llama.layer_backward(dx, *kept, *weights, *angles)
    got = cpu_layers.layer_backward(dx, *ours_kept, *weights, *angles)
    for i in range(3):
        close(got[i], expected[i], ("dx", "attention norm", "mlp norm")[i])
    for i in range(3, 11, 2):
        close(got[i].mT @ got[i + 1], expected[i].mT @ expected[i + 1], f"matrix {i // 2}")
    head, targets = some(C, width, vocabulary), torch.randint(vocabulary, (C, 2 * length), generator=draw)
    arguments = x, weights[0], head, targets
    close(cpu_layers.cross_entropy(*arguments), llama.cross_entropy(*arguments), "nats")
    got, expected = (of.cross_entropy_backward(*arguments, 0.25) for of in (cpu_layers, llama))
    for i in range(3):
        close(got[i], expected[i], ("nats", "dx", "norm")[i])
    close(got[3].mT @ got[4], expected[3].mT @ expected[4], "head")


def test_long_sequences_go_through_flash_attention(monkeypatch):
    """And get the same losses, whichever way their attention goes."""
    fleet, tokens = disturbed(fleet_of()), batch()
    explicit = fleet.gradients(tokens)
    gradient = fleet.stage_gradient(1, 0)["qkv"].clone()
    monkeypatch.setitem(llama.ATTENTION_KEPT, "cpu", T - 1)
    torch.testing.assert_close(fleet.gradients(tokens), explicit, rtol=1e-5, atol=1e-5)
    close(fleet.stage_gradient(1, 0)["qkv"], gradient, "qkv")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_diverges_on_a_cpu_is_seen(wrong):
    fleet = fleet_of()
    fleet.stage(1, 2)["down"][0, 3, 3] = wrong
    losses = fleet.gradients(batch())
    assert not losses[1].isfinite() and losses[[0, 2]].isfinite().all()
    assert not fleet.loss(batch()[:, 0])[1].isfinite()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seeds": []}, ValueError, "one seed per replica"),
        ({"device": "tpu"}, ValueError, "device='tpu'.*'cpu'"),
        ({"device": "cuda:99"}, RuntimeError, "cuda:99.*device='cpu'"),
        ({"precision": "fp8"}, ValueError, "precision='fp8'.*'bf16'"),
        ({"compile": "maybe"}, ValueError, "compile='maybe'.*'auto'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Fleet(SHAPE, **{"seeds": [1], "device": "cpu", "compile": False, **options})


def test_a_cpu_has_its_own_kernels():
    assert Fleet(SHAPE, [1], device="cpu").compiled.startswith("numba")
    assert Fleet(SHAPE, [1], device="cpu", precision="bf16").compiled is False
    with pytest.raises(RuntimeError, match="compile=True needs CUDA"):
        Fleet(SHAPE, [1], device="cpu", compile=True)


def test_bad_tokens_and_routes_are_refused():
    fleet = fleet_of()
    with pytest.raises(ValueError, match=r"shape \[2, 4, 2, 13\].*R = 3"):
        fleet.gradients(batch(replicas=2))
    with pytest.raises(ValueError, match="M=4"):
        fleet.gradients(batch(), in_order()[:, :, :2])
    cells = in_order()
    cells[2, 1, 3] = (0, S)
    with pytest.raises(ValueError, match=r"\(0, 4\).*stages 0..3, or -1 to skip, or at the last position 4"):
        fleet.gradients(batch(), cells)
    cells[2, 1, 3] = (R, 0)
    with pytest.raises(ValueError, match=r"\(3, 0\).*replicas are 0..2"):
        fleet.gradients(batch(), cells)
    with pytest.raises(IndexError, match="replica 3"):
        fleet.stage(R, 0)
    with pytest.raises(IndexError, match="stage -1"):
        fleet.stage(0, -1)
