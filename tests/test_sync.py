"""What replicas exchange: rules against each other and against formulas, alone on tensors and within training."""

import numpy as np
import pandas as pd
import pytest
import torch

from swarmbook.config import grid, run_config
from swarmbook.data import tokenization
from swarmbook.data.batches import Batches
from swarmbook.errors import TrainingError
from swarmbook.methods import consistency
from swarmbook.methods.costs import Costs
from swarmbook.methods.gossip_groups import MATCHINGS
from swarmbook.methods.sync import OURS, SYNCS, Exchange, Method, sync
from swarmbook.records.store import Store
from swarmbook.runs import run
from swarmbook.training import trainer
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer

N, S, STEPS = 4, 4, 20
TINY = {
    "data": "stories_toy", "stages": S, "width": 16, "heads": 2, "hidden": 32, "sequence": 8, "replicas": N,
    "microbatches": 2, "batch": 1, "steps": STEPS, "log_every": 5, "evaluate_every": 10, "held_out": 4,
    "common_start": True, "sync_every": 5, "lr": 3e-3,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_thread")
AVERAGING = [name for name, method in OURS.items() if method and not method.gradients]


def close(a, b, tolerance=2e-6):
    """Two fleets, or their states, hold the same weights to rounding."""
    a, b = (x if isinstance(x, dict) else x.fleet.state_dict() for x in (a, b))
    for name, weight in a.items():
        torch.testing.assert_close(weight, b[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def same(a, b):
    a, b = (x if isinstance(x, dict) else x.fleet.state_dict() for x in (a, b))
    return all(torch.equal(a[name], b[name]) for name in a)


def metrics(config, folder):
    return run([config], show=False, store=Store(folder / config.key)).records[0].metrics


# Rules on tensors


def tensors(replicas, alike=True, seed=0, size=6):
    """theta [N, 1, 1, k] in fp64, phi and delta; all replicas the same phi and delta, or each its own."""
    generator = torch.Generator().manual_seed(seed)
    shape = (replicas, 1, 1, size)
    theta, phi, delta = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    if alike:
        phi, delta = (t[:1].expand(shape).clone() for t in (phi, delta))
    return theta, phi, delta


def outer_steps(name, state, steps=12, matching="random", group=2, **numbers):
    """Outer steps of a rule with inner progress that is the same whatever the rule: [steps] of (theta, phi, delta)."""
    theta, phi, delta = (t.clone() for t in state)
    rng, inner = np.random.default_rng(1), torch.Generator().manual_seed(2)
    found = []
    for step in range(steps):
        groups = MATCHINGS[matching](len(theta), step, rng, group)
        SYNCS[name].rule(Exchange([(theta, phi, delta)], groups, **numbers))
        found.append((theta.clone(), phi.clone(), delta.clone()))
        theta.add_(torch.randn(theta.shape, generator=inner, dtype=theta.dtype))
    return found


@pytest.mark.parametrize("consensus", [0.0, 0.3, 0.7, 1.4])
def test_noloco_in_one_group_of_all_is_diloco(consensus):
    state = tensors(8)
    noloco = outer_steps("NoLoCo", state, group=8, consensus=consensus)
    diloco = outer_steps("DiLoCo", state, group=8)
    for a, b in zip(noloco, diloco, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-13)
    apart = outer_steps("NoLoCo", state, group=2, consensus=consensus)
    assert not torch.allclose(apart[-1][1], diloco[-1][1], atol=1e-2)


@pytest.mark.parametrize("group", [2, 4])
def test_for_gamma_equal_beta_one_tensor_is_enough(group):
    state = tensors(8, alike=False)
    for name in ("NoLoCo, one tensor", "NoLoCo, prefetched"):
        for a, b in zip(outer_steps(name, state, group=group), outer_steps("NoLoCo", state, group=group), strict=True):
            torch.testing.assert_close(a[1], b[1], rtol=0, atol=1e-12)
    other = outer_steps("NoLoCo", state, group=group, consensus=0.5)
    assert not torch.allclose(a[1], other[-1][1], atol=1e-3)


def test_the_consensus_term_cancels_within_a_group():
    for group in (2, 4):
        state = tensors(8, alike=False)
        groups = MATCHINGS["random"](8, 0, np.random.default_rng(0), group)
        deltas = []
        for consensus in (0.0, 1.3):
            theta, phi, delta = (t.clone() for t in state)
            SYNCS["NoLoCo"].rule(Exchange([(theta, phi, delta)], groups, consensus=consensus))
            deltas.append(delta)
        pulls = deltas[1] - deltas[0]  # gamma times the way to the group's mean
        means = state[1][groups].mean(1, keepdim=True)
        wanted = torch.empty_like(pulls)
        wanted[groups] = 1.3 * (means - state[1][groups])
        torch.testing.assert_close(pulls, wanted)
        assert pulls[groups].sum(1).abs().max() < 1e-14 < pulls.abs().min()


def test_the_replica_mean_knows_neither_gamma_nor_the_matching():
    state = tensors(8, alike=False)
    means, spreads = [], []
    for matching in MATCHINGS:
        for consensus in (0.0, 0.7, 1.2):
            steps = outer_steps("NoLoCo", state, matching=matching, consensus=consensus)
            means.append(torch.stack([phi.mean(0) for _, phi, _ in steps]))
            spreads.append(float(steps[-1][1].var(0).mean()))
            delta, phi = state[2].mean(0), state[1].mean(0)
            theta, inner = state[0].mean(0), torch.Generator().manual_seed(2)
            for _, after, _ in steps:  # alpha delta + beta Delta, of the means
                delta = 0.5 * delta + 0.7 * (theta - phi)
                phi = phi + delta
                torch.testing.assert_close(after.mean(0), phi, rtol=0, atol=1e-12)
                theta = phi + torch.randn(state[0].shape, generator=inner, dtype=phi.dtype).mean(0)
    for mean in means:
        torch.testing.assert_close(mean, means[0], rtol=0, atol=1e-12)
    assert min(spreads) * 3 < max(spreads)  # the replicas themselves do differ


def on_a_quadratic(name, outer_steps, **numbers):
    """Largest |phi| after each outer step of 50 SGD steps on theta^2 / 2 (eigenvalues 0.1 and 1, rate 0.01), N = 16."""
    eigenvalues = torch.tensor([0.1, 1.0], dtype=torch.float64)
    theta, phi, delta = tensors(16, size=2)
    phi = theta.clone()
    delta.zero_()
    rng, found = np.random.default_rng(0), []
    for step in range(outer_steps):
        theta *= (1 - 0.01 * eigenvalues) ** 50
        SYNCS[name].rule(Exchange([(theta, phi, delta)], MATCHINGS["random"](16, step, rng, 2), **numbers))
        found.append(float(phi.abs().max()))
    return np.array(found)


def test_the_printed_sign_climbs_and_the_corrected_one_descends():
    printed, corrected = (on_a_quadratic(name, 80) for name in ("NoLoCo, as printed", "NoLoCo"))
    assert printed[-1] > 1e9 and (np.diff(printed[20:]) > 0).all()
    assert corrected[-1] < 1e-2 * corrected[0]
    assert on_a_quadratic("NoLoCo", 400)[-1] < 1e-7


def test_nesterov_is_that_of_torch():
    theta, phi, delta = tensors(4)
    delta.zero_()
    parameter = torch.nn.Parameter(phi[0].clone())
    sgd = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    inner = torch.Generator().manual_seed(0)
    for _ in range(5):
        parameter.grad = phi[0] - theta.mean(0)
        sgd.step()
        x = Exchange([(theta, phi, delta)], np.arange(4)[None], momentum=0.9, lr=0.7)
        SYNCS["DiLoCo, Nesterov"].rule(x)
        for r in range(4):
            torch.testing.assert_close(theta[r], parameter.detach(), rtol=0, atol=1e-13)
        theta.add_(torch.randn(theta.shape, generator=inner, dtype=theta.dtype))


def test_sparseloco_sends_the_largest_entries_and_keeps_the_rest():
    generator = torch.Generator().manual_seed(0)
    theta, phi = (torch.randn(3, 2, 2, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    delta = torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    start, owed = phi.clone(), 0.9 * delta + (theta - phi)
    x = Exchange([(theta, phi, delta)], np.arange(3)[None], momentum=0.9, lr=0.5, density=0.25)
    SYNCS["SparseLoCo"].rule(x)
    sent = owed - delta
    assert ((sent != 0).flatten(3).sum(3) == 5).all()  # a quarter of each matrix
    assert (torch.where(sent != 0, delta, sent) == 0).all()
    smallest = torch.where(sent != 0, sent.abs(), torch.inf).flatten(3).amin(3)
    assert (smallest >= delta.abs().flatten(3).amax(3)).all()
    torch.testing.assert_close(phi, start + 0.5 * sent.mean(0))
    assert torch.equal(theta, phi)
    assert x.costs == {"sent in training": 3 * 2 * (2 * 2 * 5) * (8 + 4), "serial hops": 2}


def test_the_mean_is_over_those_who_are_present_or_ones_own():
    value = tensors(6)[0]
    groups = np.array([[0, 3], [5, 1], [4, 2]])
    x = Exchange([], groups, present=np.array([True, False, True, True, True, False]))
    wanted = value.clone()
    wanted[[0, 3]] = (value[0] + value[3]) / 2
    wanted[[4, 2]] = (value[4] + value[2]) / 2
    torch.testing.assert_close(x.mean(value), wanted, rtol=0, atol=1e-15)
    x = Exchange([], groups, present=np.array([True, True, False, False, True, False]))
    for group, there in ((groups[0], 0), (groups[1], 1), (groups[2], 4)):
        torch.testing.assert_close(x.mean(value)[group], value[[there, there]], rtol=0, atol=1e-15)
    x = Exchange([], np.arange(6)[None], present=np.arange(6) % 2 == 0)
    torch.testing.assert_close(x.mean(value), value[::2].mean(0).expand_as(value), rtol=0, atol=1e-15)
    everyone = Exchange([], groups, present=np.ones(6, dtype=bool))
    torch.testing.assert_close(everyone.mean(value), Exchange([], groups).mean(value), rtol=0, atol=1e-15)
    plain = Exchange([], groups).mean(value)
    assert torch.equal(plain[groups[:, 0]], value[groups].mean(1))


def test_what_an_absent_replica_of_sparseloco_would_send_it_keeps():
    theta, phi, delta = tensors(3)
    theta[1] = phi[1]
    start, owed = phi.clone(), 0.9 * delta + (theta - phi)
    x = Exchange([(theta, phi, delta)], np.arange(3)[None], momentum=0.9, lr=0.5, density=0.5)
    x.present = np.array([True, False, True])
    SYNCS["SparseLoCo"].rule(x)
    sent = owed - delta
    assert ((sent != 0).flatten(1).sum(1) == torch.tensor([3, 0, 3])).all()
    torch.testing.assert_close(phi, start + 0.5 * ((sent[0] + sent[2]) / 2))
    assert x.costs == {"sent in training": 2 * 1 * 3 * (8 + 4), "serial hops": 1}


def test_groups_of_a_matching_of_ones_own_are_checked(monkeypatch):
    for groups in ([[0, 1], [1, 2]], [[0, 1], [2, 4]], [[0, 1]], [0, 1, 2, 3]):
        monkeypatch.setitem(MATCHINGS, "mine", lambda *_, groups=groups: np.array(groups))
        with pytest.raises(ValueError, match=r"matching 'mine' deals the groups .* of the replicas 0..3 once"):
            run_config(**TINY, sync="NoLoCo", matching="mine")
    monkeypatch.setitem(MATCHINGS, "mine", lambda *_: np.array([[0, 3], [2, 1]]))
    run_config(**TINY, sync="NoLoCo", matching="mine")


# In training


def plainly(config, outer=None):
    """Reference: replicas in a Fleet, trained without a Pack; `outer(fleet, t)` comes after step t = 1, 2, ..."""
    tokens = tokenization.tokens(config.data, "train", config.tokenizer)
    R = config.replicas
    batches = Batches(tokens, config.sequence, (R, config.microbatches, config.batch), config.seeds("batches"))
    seeds = [int(config.seeds("weights", 0).generate_state(1)[0])] * R
    fleet = Fleet(config.shape(tokens.vocabulary), seeds, "cpu", compile=False)
    adam = InnerOptimizer(fleet, config.lr)
    for t in range(1, config.steps + 1):
        fleet.gradients(batches[t - 1])
        fleet.clip(config.clip)
        adam.step()
        if outer:
            outer(fleet, t)
    return fleet.state_dict()


def diloco_of(config):
    """Streaming DiLoCo cell by cell: one phi and delta for all replicas."""
    phi, delta, late = {}, {}, []
    F, K, alpha, beta = config.fragments, config.sync_every, config.outer_momentum, config.outer_lr

    def cells(fleet, s):
        return [fleet.stage(r, s) for r in range(config.replicas)]

    def outer(fleet, t):
        if not phi:
            start = Fleet(fleet.shape, [int(config.seeds("weights", 0).generate_state(1)[0])], "cpu", compile=False)
            for s in range(S + 1):
                phi[s] = {name: w.clone() for name, w in start.stage(0, s).items()}
                delta[s] = {name: torch.zeros_like(w) for name, w in phi[s].items()}
        for f in range(F):
            if t % K == f * K // F:
                for s in [s for s in range(S) if s % F == f] + [S] * (f == F - 1):
                    for name, slow in phi[s].items():
                        mean = sum(cell[name] for cell in cells(fleet, s)) / config.replicas
                        delta[s][name] = alpha * delta[s][name] + beta * (mean - slow)
                        phi[s][name] = slow + delta[s][name]
                    late.append((t + config.delay, s, dict(phi[s])))
        for due, s, weights in late:
            if due == t:
                for cell in cells(fleet, s):
                    for name, weight in cell.items():
                        weight.copy_(config.mixing * weight + (1 - config.mixing) * weights[name])

    return outer


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"outer_momentum": 0.0, "outer_lr": 1.0},
        {"delay": 2},
        {"mixing": 0.5},
        {"fragments": 2},
        {"fragments": 3, "delay": 1, "mixing": 0.3},
        {"fragments": 4, "sync_every": 4, "delay": 3},
    ],
)
def test_streaming_diloco_is_that_of_separate_cells(new_pack, fields):
    config = run_config(**{**TINY, "sync": "DiLoCo", **fields})
    pack = new_pack(config, steps=STEPS)
    close(pack, plainly(config, diloco_of(config)), 5e-6)
    other = new_pack(sync="DiLoCo", sync_every=10, steps=STEPS)
    assert not same(pack, other)


def test_without_an_exchange_replicas_are_runs_of_their_own(new_pack):
    pack = new_pack(steps=STEPS)
    config = pack.runs[0]
    tokens = tokenization.tokens(config.data, "train", config.tokenizer)
    for r in range(N):
        alone = Fleet(pack.fleet.shape, [int(config.seeds("weights", 0).generate_state(1)[0])], "cpu", compile=False)
        adam = InnerOptimizer(alone, config.lr)
        batches = Batches(tokens, config.sequence, (N, 2, 1), config.seeds("batches"))
        for t in range(STEPS):
            alone.gradients(batches[t][r : r + 1])
            alone.clip(config.clip)
            adam.step()
        close(alone.state_dict(), pack.fleet.state_dict([r]))
    assert pack.spread(0) > 1e-3


def test_in_training_too_noloco_with_all_is_diloco_and_needs_one_tensor_only(new_pack):
    diloco = new_pack(sync="DiLoCo", steps=STEPS)
    for consensus in (0.0, 1.4):
        close(new_pack(sync="NoLoCo", group=N, consensus=consensus, steps=STEPS), diloco, 5e-6)
    whole, lean = (new_pack(sync=name, outer_lr=0.4, steps=STEPS) for name in ("NoLoCo", "NoLoCo, one tensor"))
    close(whole, lean, 5e-6)
    whole = new_pack(sync="NoLoCo", steps=STEPS)
    free = new_pack(sync="NoLoCo", consensus=0.1, steps=STEPS)
    assert free.spread(0) > 1.2 * whole.spread(0) > 0 == diloco.spread(0)


def test_gossip_among_all_is_plain_averaging(new_pack):
    before, after = new_pack(steps=5), new_pack(sync="gossip", group=N, steps=5)
    for r in range(N):
        for s in range(S + 1):
            for name, weight in after.fleet.stage(r, s).items():
                wanted = sum(before.fleet.stage(q, s)[name] for q in range(N)) / N
                torch.testing.assert_close(weight, wanted, rtol=0, atol=3e-7)
    pairs = new_pack(sync="gossip", matching="hypercube", sync_every=1, lr=1e-30, common_start=False, steps=2)
    wanted = new_pack(common_start=False).fleet.outer["head"].mean(0)
    torch.testing.assert_close(pairs.fleet.outer["head"], wanted.expand(N, -1, -1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("route", ["in order", "random replicas"])
def test_all_reduce_keeps_replicas_identical(new_pack, route):
    pack = new_pack(sync="all-reduce", route=route, clip=0.04, steps=STEPS)
    assert pack.norms.min() > 0.04  # each replica's gradient was clipped on its own
    first = pack.fleet.state_dict([0])
    for r in range(1, N):
        assert same(pack.fleet.state_dict([r]), first)
    assert pack.spread(0) == 0 and not same(new_pack().fleet.state_dict([0]), first)


def test_all_reduce_is_one_replica_with_a_larger_batch(new_pack):
    pack = new_pack(sync="all-reduce", clip=1e9, steps=STEPS)
    one = new_pack(replicas=1, microbatches=2 * N, clip=1e9, steps=STEPS)
    for name, weight in one.fleet.state_dict().items():
        mine = pack.fleet.state_dict([2])[name]
        assert float((mine - weight).abs().mean()) < 1e-6 and float((mine - weight).abs().max()) < 1e-3
    losses = [torch.stack(p.losses).mean(1) for p in (pack, one)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-4)
    assert losses[0][-1] < losses[0][0] - 0.1


def test_all_reduce_averages_clipped_gradients(new_pack):
    pack, plain = new_pack(sync="all-reduce", clip=0.1, steps=1), new_pack(clip=0.1, steps=1)
    assert plain.norms.max() > 2 * plain.norms.min() > 0.2
    for r in range(N):
        for s in range(S + 1):
            for name, gradient in pack.fleet.stage_gradient(r, s).items():
                mean = sum(plain.fleet.stage_gradient(q, s)[name] for q in range(N)) / N
                torch.testing.assert_close(gradient, mean, rtol=0, atol=1e-7)


def test_sparseloco_that_sends_everything_is_plain_outer_sgd(new_pack):
    sparse = new_pack(sync="SparseLoCo", steps=STEPS)
    close(sparse, new_pack(sync="DiLoCo", outer_momentum=0.0, steps=STEPS), 5e-6)
    assert not same(sparse, new_pack(sync="SparseLoCo", density=0.1, steps=STEPS))


def test_what_is_not_mixed_in_has_no_effect(new_pack):
    assert same(new_pack(sync="DiLoCo", mixing=1.0, steps=STEPS), new_pack(steps=STEPS))
    arriving, plain = new_pack(sync="DiLoCo", delay=3, steps=7), new_pack(steps=7)
    assert same(arriving, plain)
    arriving.advance()
    assert arriving.spread(0) == 0 < plain.spread(0)


def test_a_fragment_exchanges_its_own_stages(new_pack):
    pack, plain = new_pack(sync="DiLoCo", fragments=4, sync_every=8, steps=1), new_pack(steps=1)
    turns = {2: [1], 4: [2], 6: [3, S], 8: [0]}
    for step in range(2, 9):
        pack.advance()
        plain.advance()
        equal = [
            s for s in range(S + 1)
            if all(same(pack.fleet.stage(r, s), pack.fleet.stage(0, s)) for r in range(N))
        ]  # fmt: skip
        assert equal == turns.get(step, []), step


def test_with_one_stage_a_route_has_no_effect(tmp_path):
    fields = {**TINY, "stages": 1, "sync": "NoLoCo"}
    a, b = (metrics(run_config(**fields, route=route), tmp_path) for route in ("in order", "random replicas"))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    more = {**fields, "stages": 2}
    a, b = (metrics(run_config(**more, route=route), tmp_path) for route in ("in order", "random replicas"))
    assert not np.array_equal(a["value"], b["value"])


def test_a_common_start_is_that_of_the_first_replica(new_pack):
    alike, apart = new_pack(), new_pack(common_start=False)
    assert alike.spread(0) == 0 and apart.spread(0) == pytest.approx(0.02 * np.sqrt((N - 1) / N), rel=0.05)
    for r in range(N):
        assert same(alike.fleet.state_dict([r]), apart.fleet.state_dict([0]))


def test_spread_is_the_population_deviation_of_all_weights(new_pack):
    pack = new_pack(run_config(**TINY), run_config(**TINY, seed=1), steps=3)
    for i in range(2):
        replicas = [torch.cat([w.flatten() for w in pack.fleet.state_dict([r]).values()]) for r in pack.replicas(i)]
        flat = torch.stack(replicas).double().numpy()  # [N, parameters]
        assert pack.spread(i) == pytest.approx(np.sqrt(((flat - flat.mean(0)) ** 2).mean()), rel=1e-6)


def test_spread_is_recorded_at_every_evaluation_of_several_replicas(tmp_path):
    table = metrics(run_config(**{**TINY, "sync": "DiLoCo", "sync_every": 20}), tmp_path)
    spread = table[table["metric"] == "replica spread"].set_index("step")["value"]
    assert list(spread.index) == [0, 10, 20] and spread[0] == spread[20] == 0 < spread[10]
    table = metrics(run_config(**{**TINY, "replicas": 1}), tmp_path)
    assert "replica spread" not in set(table["metric"])


V = tokenization.tokenizer("swarmbook").get_vocab_size()
STAGE, ENDS = 4 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16), 4 * (2 * V * 16 + 16)
M = S * STAGE + ENDS  # bytes of one replica
MATRICES = S * [16 * 48, 16 * 16, 16 * 64, 32 * 16, 16, 16] + [V * 16, V * 16, 16]
TENTH = sum(round(entries / 10) for entries in MATRICES)
OUTER = STEPS // 5


@pytest.mark.parametrize(
    ("fields", "sent", "hops", "background"),
    [
        ({"sync": "none"}, None, None, None),
        ({"sync": "all-reduce"}, STEPS * 2 * (N - 1) * M, STEPS * 2 * 2, None),
        ({"sync": "DiLoCo"}, OUTER * 2 * (N - 1) * M, OUTER * 2 * 2, None),
        ({"sync": "DiLoCo", "sync_every": 10}, 2 * 2 * (N - 1) * M, 2 * 2 * 2, None),
        ({"sync": "DiLoCo", "replicas": 1}, 0, 0, None),
        ({"sync": "DiLoCo, Nesterov"}, OUTER * 2 * (N - 1) * M, OUTER * 2 * 2, None),
        ({"sync": "DiLoCo", "delay": 2}, OUTER * 2 * (N - 1) * M, OUTER * 2 * 2, OUTER * 2 * (N - 1) * M),
        ({"sync": "DiLoCo", "fragments": 4}, OUTER * 2 * (N - 1) * M, 4 * OUTER * 2 * 2, None),
        ({"sync": "NoLoCo"}, OUTER * N * 2 * M, OUTER, None),
        ({"sync": "NoLoCo", "group": 4}, OUTER * N * 3 * 2 * M, OUTER, None),
        ({"sync": "NoLoCo", "group": 1}, 0, 0, None),
        ({"sync": "NoLoCo, prefetched"}, OUTER * N * 2 * M, OUTER, OUTER * N * M),
        ({"sync": "NoLoCo, one tensor"}, OUTER * N * M, OUTER, None),
        ({"sync": "gossip"}, OUTER * N * M, OUTER, None),
        ({"sync": "SparseLoCo", "density": 0.1}, OUTER * N * (N - 1) * TENTH * 8, OUTER * 2, None),
    ],
)
def test_bytes_and_hops_follow_from_shapes(new_pack, fields, sent, hops, background):
    costs = new_pack(**fields, steps=STEPS).costs[0]
    assert [costs.get(name) for name in ("sent in training", "serial hops", "sent in background")] == [
        sent, hops, background,
    ]  # fmt: skip


PRESENT = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)  # of pairs 01, 23 or 02, 13


@pytest.fixture
def some_absent(monkeypatch):
    monkeypatch.setattr("swarmbook.config.RunConfig.present_at", lambda run, step: PRESENT[step % len(PRESENT)])


@pytest.mark.parametrize(
    ("name", "copies", "to_all"),
    [
        ("NoLoCo", 2, False),
        ("NoLoCo, one tensor", 1, False),
        ("gossip", 1, False),
        ("DiLoCo", 2, True),
        ("SparseLoCo", TENTH * 8 / M, True),
    ],
)
def test_nobody_sends_to_or_for_those_who_are_absent(new_pack, some_absent, name, copies, to_all):
    fields = {"density": 0.1} if name == "SparseLoCo" else {} if to_all else {"matching": "hypercube"}
    costs = new_pack(sync=name, **fields, steps=STEPS).costs[0]
    sent, hops = 0.0, 0
    for step, there in enumerate(PRESENT[:OUTER]):
        pairs = sum(there[r] and there[r ^ 1 << step % 2] for r in range(N))  # each counted from both ends
        others = max(0, there.sum() - 1)
        if name == "SparseLoCo":  # to each other one
            sent += there.sum() * others * copies * M
            hops += int(np.ceil(np.log2(others + 1)))
        elif to_all:
            sent += others * copies * M
            hops += 2 * int(np.ceil(np.log2(others + 1)))
        else:
            sent += pairs * copies * M
            hops += pairs > 0
    assert (costs["sent in training"], costs["serial hops"]) == (round(sent), hops)


def test_a_late_and_a_prefetched_exchange_send_as_little_for_the_absent(new_pack, some_absent):
    pairs = 2 + 2 + 2 + 0
    costs = new_pack(sync="NoLoCo, prefetched", matching="hypercube", steps=STEPS).costs[0]
    assert (costs["sent in training"], costs["sent in background"]) == (pairs * 2 * M, pairs * M)
    costs = new_pack(sync="NoLoCo", matching="hypercube", delay=2, steps=STEPS).costs[0]
    assert costs["sent in training"] == costs["sent in background"] == pairs * 2 * M


# Absent replicas


def test_an_absent_replica_of_noloco_goes_on_from_its_slow_weights(new_pack, some_absent):
    pack = new_pack(sync="NoLoCo")
    outer = pack.outers[0]
    for step, there in enumerate(PRESENT):
        for _ in range(4):
            pack.advance()
        before = outer.state_dict()
        pack.advance()
        if not there.any():
            continue  # nothing at all happens then: see below
        for name, theta in outer.theta.items():
            phi, delta = before["phi"][name], before["delta"][name]
            assert torch.equal(theta, outer.phi[name])
            for r in range(N):
                untouched = torch.equal(theta[r], phi[r]) and torch.equal(outer.buffers["delta"][name][r], delta[r])
                assert untouched != there[r], (step, r, name)


def test_a_replica_whose_partner_is_absent_makes_its_outer_step_alone(new_pack, some_absent):
    pack, plain = new_pack(sync="NoLoCo", matching="hypercube", steps=5), new_pack(steps=5)
    start, alone = new_pack().fleet.state_dict([3]), plain.fleet.state_dict([3])
    for name, weight in pack.fleet.state_dict([3]).items():  # 2 is absent
        torch.testing.assert_close(weight, start[name] + 0.7 * (alone[name] - start[name]), rtol=0, atol=3e-7)
    start, both = new_pack().fleet.state_dict([0]), [plain.fleet.state_dict([r]) for r in (0, 1)]
    for name, weight in pack.fleet.state_dict([0]).items():
        mean = (both[0][name] + both[1][name]) / 2
        torch.testing.assert_close(weight, start[name] + 0.7 * (mean - start[name]), rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", ["DiLoCo", "DiLoCo, Nesterov", "SparseLoCo"])
def test_an_absent_replica_gets_what_the_others_made_without_it(new_pack, some_absent, name):
    pack, plain, start = new_pack(sync=name, steps=5), new_pack(steps=5), new_pack().fleet.state_dict([0])
    others = [plain.fleet.state_dict([r]) for r in (0, 1, 3)]
    rate = 0.7 * 1.5 if "Nesterov" in name else 0.7
    for r in range(N):
        for key, weight in pack.fleet.state_dict([r]).items():
            mean = sum(other[key] for other in others) / 3
            torch.testing.assert_close(weight, start[key] + rate * (mean - start[key]), rtol=0, atol=5e-7)
    for _ in range(10):
        pack.advance()
    assert pack.spread(0) == 0


def test_an_absent_replica_only_misses_the_averaging_of_gossip(new_pack, some_absent):
    pack, plain = new_pack(sync="gossip", matching="hypercube", steps=5).fleet, new_pack(steps=5).fleet
    for r in (2, 3):  # 2 is absent, and 3 has nobody to meet
        assert same(pack.state_dict([r]), plain.state_dict([r]))
    first, second = (plain.state_dict([r]) for r in (0, 1))
    for r in (0, 1):
        for name, weight in pack.state_dict([r]).items():
            torch.testing.assert_close(weight, (first[name] + second[name]) / 2, rtol=0, atol=1e-7)


def test_all_reduce_averages_the_gradients_of_those_present(new_pack, monkeypatch):
    there = np.array([True, False, True, True])
    monkeypatch.setattr("swarmbook.config.RunConfig.present_at", lambda run, step: there)
    pack, plain = new_pack(sync="all-reduce", steps=1), new_pack(steps=1)
    for name, gradient in plain.fleet.replica_views(range(N), gradients=True).items():
        mean = gradient[there].mean(0).expand_as(gradient)
        mine = pack.fleet.replica_views(range(N), gradients=True)[name]
        torch.testing.assert_close(mine, mean, rtol=0, atol=1e-7)
    assert pack.spread(0) == 0
    assert pack.costs[0] == {**pack.costs[0], "sent in training": 2 * 2 * M, "serial hops": 4}


@pytest.fixture
def counted(new_pack, monkeypatch):
    """Weights of two replicas of two stages that begin at 0 and grow by 1 a step, 2 for replica 0 if asked.

    The result has a row for each step: of stage 1 and of stage 2 for replica 0, then of both for replica 1. missing:
    the exchanges, counted from 0, that replica 1 misses.
    """

    def make(steps, missing, growth=(1.0, 1.0), **fields):
        present = {"swarmbook.config.RunConfig.present_at": lambda _, step: np.array([True, step not in missing])}
        for name, rule in present.items():
            monkeypatch.setattr(name, rule)
        base = {"replicas": 2, "stages": 2, "sync_every": 4, "outer_lr": 1.0, "outer_momentum": 0.0, "absent": 0.5}
        pack = new_pack(**{**base, **fields})
        outer, rows = pack.outers[0], []
        for weights in (outer.theta, outer.phi):
            for weight in weights.values():
                weight.zero_()
        for step in range(1, steps + 1):
            for weight in outer.theta.values():
                weight[0] += growth[0]
                weight[1] += growth[1]
            outer.step(step, Costs())
            rows.append([float(outer.theta["layers.qkv"][r, 0, s, 0, 0]) for r in (0, 1) for s in (0, 1)])
            ends = outer.theta["ends.head"][:, 0, 0, 0, 0].tolist()
            assert ends == rows[-1][1::2]  # the ends go with the last fragment
        return rows

    return make


@pytest.mark.parametrize("mixing", [0.0, 0.5, 1.0])
def test_the_fast_weights_of_a_crashed_replica_are_lost_whatever_the_mixing(counted, mixing):
    rows = counted(8, {0}, sync="NoLoCo", mixing=mixing)
    assert [row[2] for row in rows[:7]] == [1, 2, 3, 0, 1, 2, 3] and rows[3][0] == 4
    assert counted(4, {0}, sync="DiLoCo", outer_lr=0.5, mixing=mixing)[3][::2] == [4 * mixing + 2 * (1 - mixing), 2]


def test_a_crashed_replica_goes_on_from_its_slow_weights_at_once_however_long_results_take(counted):
    """Nothing arrives for it within a group. Slow weights that all share reach it when they reach the others."""
    rows = counted(8, {0}, sync="NoLoCo", delay=2, growth=(2.0, 1.0))
    assert [row[0] for row in rows[:6]] == [2, 4, 6, 8, 10, 8]
    assert [row[2] for row in rows] == [1, 2, 3, 0, 1, 2, 3, 4]
    rows = counted(6, {0}, sync="DiLoCo", delay=2, mixing=0.5, outer_lr=0.5)
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5, 0.5 * 6 + 0.5 * 2]
    assert [row[2] for row in rows] == [1, 2, 3, 0, 1, 0.5 * 2 + 0.5 * 2]
    gossip = counted(6, {0}, sync="gossip", delay=2)  # it has no slow weights, and loses nothing
    assert [row[2] for row in gossip] == [1, 2, 3, 4, 5, 6]


def test_a_crash_takes_the_whole_model_in_whatever_fragments_it_is_exchanged(counted):
    rows = counted(8, {1}, sync="NoLoCo", fragments=2)
    assert [row[0::2] for row in rows[:5]] == [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5]]  # stage 1: at 4 and 8
    assert rows[5] == [6, 6, 4, 2]  # stage 2 and the ends, at 2 and 6; replica 1 is back at what 4 and 2 left
    assert rows[7] == [8, 8, 4, 2]  # and misses the other half of this outer step too


def test_a_crash_comes_before_what_is_still_on_its_way(counted):
    rows = counted(7, {1}, sync="DiLoCo", fragments=2, delay=3)
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5, 6, 4]  # of step 4
    assert [row[2] for row in rows] == [1, 2, 3, 4, 5, 0, 4]


def test_a_crashed_replica_can_go_on_from_the_fast_weights_of_a_peer(counted):
    """Of its whole model, as they are before the exchange. Its slow weights are its own, as the next exchange shows."""
    rows = counted(8, {0}, sync="NoLoCo", rejoin="fast", growth=(2.0, 1.0), outer_lr=0.5)
    assert [row[0] for row in rows[:7]] == [2, 4, 6, 4, 6, 8, 10]
    assert [row[2] for row in rows[:7]] == [1, 2, 3, 8, 9, 10, 11]
    assert rows[7][::2] == [4 + 0.5 * (8 + 12) / 2 - 0.5 * 2, 0 + 0.5 * (8 + 12) / 2 + 0.5 * 2]
    rows = counted(6, {0}, sync="DiLoCo", rejoin="fast", growth=(2.0, 1.0), delay=2, mixing=0.5, outer_lr=0.5)
    assert rows[5][::2] == [0.5 * 12 + 0.5 * 4, 0.5 * 10 + 0.5 * 4]
    rows = counted(4, {0}, sync="DiLoCo", rejoin="fast", growth=(2.0, 1.0), mixing=0.5, outer_lr=0.5)
    assert rows[3][::2] == [0.5 * 8 + 0.5 * 4] * 2
    rows = counted(8, {1}, sync="NoLoCo", rejoin="fast", growth=(2.0, 1.0), fragments=2)
    assert rows[4] == [8, 9, 7, 6] and rows[5] == [10, 11, 10, 11] and rows[7] == [14, 15, 14, 15]
    rows = counted(4, {0}, sync="gossip", rejoin="fast", growth=(2.0, 1.0))
    assert rows[3][::2] == [8, 8]


@pytest.mark.parametrize("name", ["NoLoCo", "DiLoCo", "SparseLoCo"])
@pytest.mark.parametrize("delay", [0, 2])
def test_who_only_missed_the_messages_keeps_its_fast_weights(counted, name, delay):
    """As in DiLoCo's paper; what all others made without it reaches its slow weights."""
    rows = counted(7, {0}, sync=name, rejoin="own", delay=delay, outer_lr=0.5)
    assert [row[2] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[3 + delay][0] == 2


def test_the_peer_is_the_next_replica_that_is_there_and_what_it_sends_is_counted(new_pack, some_absent):
    pack, plain = new_pack(sync="NoLoCo", absent=0.5, rejoin="fast"), new_pack(sync="NoLoCo")
    sources = []
    copied, copy = pack.outers[0], pack.outers[0]._copy
    copied._copy = lambda found: (sources.append(found), copy(found))
    for _ in range(5):
        pack.advance()
    before = new_pack(steps=5).fleet.state_dict([3])  # 2 takes the weights of 3, before the exchange
    assert same(pack.fleet.state_dict([2]), before)
    for _ in range(STEPS - 5):
        pack.advance()
    assert sources == [{2: 3}, {0: 1, 2: 3}, {0: 1}]  # and from the last exchange all are absent
    assert pack.costs[0]["sent on failure"] == 4 * M and "sent on failure" not in plain.costs[0]
    copied._copy = sources.append
    copied._copy_peers(np.array([True, False, False, False]), Costs())
    copied._copy_peers(np.array([False, False, True, False]), Costs())
    assert sources[3:] == [{1: 0, 2: 0, 3: 0}, {0: 2, 1: 2, 3: 2}]


def test_without_mixing_the_new_weights_stand_for_infinite_ones(new_pack):
    pack = new_pack(sync="DiLoCo", delay=1, steps=5)
    outer = pack.outers[0]
    for weight in outer.theta.values():
        weight[0] = float("inf")
    outer.step(6, Costs())
    assert all(torch.equal(weight, outer.phi[name]) for name, weight in outer.theta.items())


@pytest.mark.parametrize("name", [name for name in OURS if name != "none"])
def test_an_exchange_from_which_all_are_absent_does_not_take_place(new_pack, monkeypatch, name):
    monkeypatch.setattr("swarmbook.config.RunConfig.present_at", lambda run, step: np.zeros(N, bool))
    delay = {} if OURS[name].gradients else {"delay": 2}
    pack, plain = new_pack(sync=name, **delay, steps=12), new_pack(steps=12)
    assert same(pack, plain)
    assert "sent in training" not in pack.costs[0] and "serial hops" not in pack.costs[0]
    assert not any(w.any() for each in pack.outers[0].buffers.values() for w in each.values())


@pytest.mark.parametrize("name", [name for name in OURS if name != "none"])
def test_nobody_absent_is_what_there_was_before_anybody_could_be(new_pack, monkeypatch, name):
    plain, rare = new_pack(sync=name, steps=10), new_pack(sync=name, absent=1e-12, steps=10)
    close(rare, plain)
    assert rare.costs == plain.costs
    monkeypatch.setattr("swarmbook.config.RunConfig.present_at", lambda run, step: None)
    assert same(new_pack(sync=name, steps=10), plain)
    monkeypatch.undo()
    half = new_pack(sync=name, absent=0.5, steps=10)
    assert not same(half, plain) and half.costs != plain.costs


def test_who_is_absent_follows_from_the_seed_and_more_are_at_a_higher_rate():
    def there(absent, steps=400, **fields):
        config = run_config(**{**TINY, "sync": "NoLoCo", **fields}, absent=absent)
        return np.array([config.present_at(step) for step in range(steps)])

    low, high = there(0.2), there(0.5)
    assert low.shape == (400, N) and (high <= low).all()
    assert abs(low.mean() - 0.8) < 0.04 and abs(high.mean() - 0.5) < 0.05  # four standard deviations
    assert abs(np.corrcoef(low.T)[np.triu_indices(N, 1)]).max() < 0.2
    matched = [run_config(**TINY).rng("sync", step).random(N) >= 0.2 for step in range(400)]
    assert not np.array_equal(low, matched)  # drawn apart from who meets whom
    others = {"sync": "gossip", "matching": "hypercube", "route": "random replicas", "lr": 1.0}
    assert np.array_equal(there(0.2, **others), low) and not np.array_equal(there(0.2, seed=1), low)
    assert not there(1 - 1e-12).any() and run_config(**TINY, sync="NoLoCo").present_at(0) is None


# Storage in bf16


def rounded(tensor):
    return torch.equal(tensor, tensor.bfloat16().float())


@pytest.mark.parametrize(
    "fields",
    [
        {"sync": "NoLoCo"},
        {"sync": "DiLoCo", "fragments": 3, "delay": 1, "mixing": 0.3},
        {"sync": "SparseLoCo", "density": 0.2, "absent": 0.3},
        {"sync": "gossip", "absent": 0.3},
        {"sync": "all-reduce"},
        {"recovery": "CheckFree", "lost_stages": [(3, 2), (12, 3)], "sync": "NoLoCo", "absent": 0.3},
        {"storage": "bf16, fp32 moments", "sync": "NoLoCo", "fragments": 2, "delay": 1, "mixing": 0.3, "absent": 0.3},
    ],
)
def test_all_that_is_stored_in_bf16_is_rounded(new_pack, fields):
    pack = new_pack(**{"storage": "bf16", **fields}, steps=5)
    exact = new_pack(**{**fields, "storage": "fp32"}, steps=5)
    for _ in range(8):
        state = pack.state(0)
        moments = [t for name, pair in state["adam"].items() if name not in ("steps", "lr_scale") for t in pair]
        assert all(map(rounded, state["fleet"].values())), pack.step
        assert all(map(rounded, moments)) == ("storage" not in fields), pack.step
        slow = [w for each in pack.outers[0]._kept().values() for w in each.values()]
        assert all(map(rounded, slow)), pack.step
        pack.advance()
        exact.advance()
    assert not all(map(rounded, exact.fleet.state_dict().values()))
    close(pack, exact, 0.05)


def test_runs_in_fp32_are_as_they_were_beside_one_in_bf16(new_pack):
    fields = {**TINY, "sync": "NoLoCo"}
    first, second, third = (run_config(**fields, seed=seed) for seed in range(3))
    mixed = new_pack(first, run_config(**fields, seed=1, storage="bf16"), third, steps=7)
    plain = new_pack(first, second, third, steps=7)
    for i in (0, 2):
        a, b = mixed.state(i), plain.state(i)
        assert same(a["fleet"], b["fleet"]) and same(a["outer"]["phi"], b["outer"]["phi"])
        assert all(torch.equal(a["adam"][name], b["adam"][name]) for name in ("steps", "lr_scale"))
        assert all(
            torch.equal(t, u) for name in a["adam"] for t, u in zip(a["adam"][name], b["adam"][name], strict=True)
        )
    assert not same(mixed.state(1)["fleet"], plain.state(1)["fleet"])


# Together

STORAGE = ["fp32", "bf16", "bf16, fp32 moments"]


def everything():
    """A run of each method, with other settings, routes and seeds."""
    changes = [
        {"route": "random replicas"},
        {"fragments": 2, "mixing": 0.5, "seed": 1},
        {"delay": 4, "outer_lr": 0.5},
        {"matching": "hypercube", "density": 0.2},
        {"recovery": "rollback", "keep_every": 4, "lost_stages": [(7, 2), (14, 1)], "delay": 2},
        {"fragments": 3, "delay": 2, "sync_every": 10, "route": "swapped ends", "common_start": False},
    ]
    base = {**TINY, "data": "stories_toy+fiction_austen"}
    runs = []
    for i, name in enumerate(SYNCS):
        left_out = consistency.unread(run_config(**{**base, "sync": name}))
        left_out |= {"common_start"} if SYNCS[name] and SYNCS[name].alike else set()
        changed = {field: value for field, value in changes[i % 6].items() if field not in left_out}
        runs.append(run_config(**{**base, **changed, "sync": name}))
    base |= {"absent": 0.4, "shards": "domains"}
    runs += grid(base, sync=["all-reduce", "DiLoCo", "NoLoCo", "gossip"])
    runs += grid(base, sync=["SparseLoCo"], density=[0.2])
    runs += grid({**base, "fragments": 2, "delay": 2, "mixing": 0.5, "sync": "NoLoCo"}, storage=STORAGE)
    return runs


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """All in one pack; by one thread, as in each test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(everything(), show=False, store=Store(tmp_path_factory.mktemp("packed")))
    finally:
        torch.set_num_threads(threads)


def test_packed_runs_exchange_as_they_would_alone(packed, tmp_path):
    configs = everything()
    assert {record.provenance["packed"] for record in packed.records} == {len(configs)}
    for config, record in zip(configs, packed.records, strict=True):
        alone, together = metrics(config, tmp_path), record.metrics
        pd.testing.assert_frame_equal(alone.drop(columns="value"), together.drop(columns="value"))
        np.testing.assert_allclose(together["value"], alone["value"], atol=5e-4, rtol=1e-5, err_msg=config.sync)


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_with_its_slow_weights(packed, tmp_path, monkeypatch):
    configs = everything()
    other, advance = Store(tmp_path / "other"), trainer.Pack.advance

    def killed(self):
        if self.step == 13:
            raise Killed
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(trainer.Pack, "advance", killed)
        with pytest.raises(Killed):
            run(configs, show=False, store=other)
    steps = []
    monkeypatch.setattr(trainer.Pack, "advance", lambda self: (steps.append(self.step), advance(self))[1])
    resumed = run(configs, show=False, store=other)
    assert steps == list(range(10, STEPS))
    for a, b in zip(packed.records, resumed.records, strict=True):
        pd.testing.assert_frame_equal(a.metrics, b.metrics, check_exact=True)


@pytest.mark.parametrize("name", AVERAGING)
def test_a_run_that_goes_on_is_one_that_never_stopped(tmp_path, name):
    fields = {**TINY, "sync": name, "route": "random replicas", "fragments": 2, "delay": 3, "mixing": 0.2}
    fields |= {"data": "stories_toy+fiction_austen", "absent": 0.4, "shards": "domains", "storage": "bf16"}
    parent = run_config(**{**fields, "steps": 10})  # an exchange is on its way
    whole, after = (metrics(c, tmp_path) for c in (run_config(**fields), run_config(**fields, start=parent)))
    whole, after = (t[(t["step"] > 10) & (t["metric"] != "ledger")].reset_index(drop=True) for t in (whole, after))
    assert len(after) > 2
    pd.testing.assert_frame_equal(after, whole, check_exact=True)


def test_another_method_begins_at_the_weights_it_finds(tmp_path, new_pack):
    store = Store(tmp_path / "store")
    parent = run_config(**{**TINY, "steps": 10}, sync="DiLoCo", fragments=2, delay=3)
    state = run([parent], show=False, store=store, keep=True) and store.state(parent.key)
    for fields in ({"sync": "NoLoCo"}, {"sync": "gossip"}, {"sync": "none"}, {"sync": "DiLoCo", "delay": 1}):
        child = run_config(**TINY, **fields, start=parent)
        pack = trainer.Pack([child], store.progress([child.key]), "cpu", starts={parent.key: state})
        assert same(pack, state["fleet"])
        outer = pack.outers[0]
        if fields["sync"] == "NoLoCo":
            assert all(torch.equal(outer.phi[name], w) for name, w in outer.theta.items())
            assert not any(w.any() for w in outer.buffers["delta"].values())
        elif fields["sync"] == "DiLoCo":
            assert all(torch.equal(outer.phi[name], w) for name, w in state["outer"]["phi"].items())
            assert any(w.any() for w in outer.buffers["delta"].values())
            assert state["outer"]["arriving"] and not outer.arriving  # of other fragments


def test_a_rollback_takes_slow_weights_back_too(new_pack):
    fields = {"sync": "NoLoCo", "sync_every": 3, "delay": 1, "fragments": 2}
    config = run_config(**{**TINY, **fields}, recovery="rollback", keep_every=4, lost_stages=[(6, 1)])
    rolled, plain = new_pack(config, steps=9), new_pack(**fields, steps=7)  # 6 steps, back to 4, and 3 more
    a, b = rolled.state(0), plain.state(0)
    assert a["position"] == b["position"] == 7
    assert same(a["fleet"], b["fleet"]) and same(a["outer"]["phi"], b["outer"]["phi"])
    assert (
        same(a["outer"]["delta"], b["outer"]["delta"])
        and a["outer"]["arriving"].keys() == b["outer"]["arriving"].keys()
    )
    assert rolled.costs[0]["stored"] == N * 5 * M  # weights, two moments, slow weights, buffer


def test_ones_own_rule_is_one_function(tmp_path, monkeypatch):
    def half_way(x):
        for theta, _, _ in x:
            theta.lerp_(x.mean(theta), 0.5)
        x.send_to_group(copies=1)

    monkeypatch.setitem(SYNCS, "half way", None)  # to be removed again
    sync("half way")(half_way)
    runs = run(grid(TINY, sync=["none", "half way", "gossip"]), show=False, store=Store(tmp_path))
    spreads = runs.final("replica spread").set_index("sync")["value"]
    assert spreads["gossip"] < spreads["half way"] < spreads["none"]


def test_groups_are_dealt_anew_by_the_seed_at_every_outer_step(new_pack, monkeypatch):
    seen = []
    monkeypatch.setitem(SYNCS, "look", Method(lambda x: seen.append(x.groups.tolist()), keeps=False))
    fields = {**TINY, "replicas": 8, "sync": "look", "sync_every": 5, "steps": STEPS}

    def dealt(**more):
        seen.clear()
        new_pack(run_config(**{**fields, **more}), steps=STEPS)
        return [frozenset(map(frozenset, groups)) for groups in seen]

    def wanted(matching, seed, steps=OUTER):
        rngs = [run_config(**{**fields, "seed": seed}).rng("sync", step) for step in range(steps)]
        groups = [MATCHINGS[matching](8, step, rng, 2).tolist() for step, rng in enumerate(rngs)]
        return [frozenset(map(frozenset, pairs)) for pairs in groups]

    assert dealt() == dealt(lr=1e-3, route="random replicas") == wanted("random", 0)
    assert len(set(dealt())) == OUTER
    assert dealt(seed=1) == wanted("random", 1) != dealt()
    assert dealt(matching="hypercube") == wanted("hypercube", 0)
    assert len(set(dealt(matching="hypercube"))) == 3
    assert dealt(fragments=2, sync_every=10) == [w for w in wanted("random", 0, 2) for _ in range(2)]


def test_a_rebuilt_stage_is_pulled_back_to_its_slow_weights(new_pack):
    fields = {"sync": "DiLoCo", "lr": 1e-30, "outer_lr": 0.7}
    before = new_pack(**fields).fleet.stage(0, 1)["qkv"]
    rebuilt, after = (
        new_pack(**fields, recovery="random", lost_stages=[(2, 2)], steps=steps).fleet.stage(0, 1)["qkv"]
        for steps in (4, 5)
    )
    packs = new_pack(**fields, recovery="random", lost_stages=[(2, 2)], steps=4).fleet
    mean = sum(packs.stage(r, 1)["qkv"] for r in range(N)) / N  # each replica lost its own
    assert not torch.allclose(rebuilt, before, atol=1e-2)
    torch.testing.assert_close(after, before + 0.7 * (mean - before), rtol=0, atol=1e-6)


def test_late_exchanges_are_sent_in_the_background():
    x = Exchange([tuple(tensors(4))], np.arange(4).reshape(2, 2), late=True, costs=Costs())
    x.send(copies=1.5, hops=3, early=1)
    assert x.costs == {"sent in training": 4 * 1.5 * 48, "sent in background": 4 * 1.5 * 48, "serial hops": 3}


def test_a_diverging_exchange_is_named_as_a_cause(tmp_path):
    config = run_config(**{**TINY, "sync": "NoLoCo, as printed", "sync_every": 1, "outer_lr": 1e4, "steps": 40})
    with pytest.raises(TrainingError, match=r"or 'NoLoCo, as printed' does not converge with outer_lr=10000.0"):
        run([config], show=False, store=Store(tmp_path))
