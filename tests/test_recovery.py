"""What each rule writes into a lost stage, and what it may read for that."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmbook.config import run_config
from swarmbook.errors import ConfigError
from swarmbook.methods.model_size import Shape
from swarmbook.methods.recovery import RULES, Lost, Strategy, norm_average, recovery
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer

STAGES = 6
ENDS = STAGES
SHAPE = Shape(stages=STAGES, layers_per_stage=2, width=8, heads=2, hidden=12, vocabulary=32)
AVERAGES = [
    "uniform average",
    "CheckFree",
    "CheckFree, power 1",
    "CheckFree, as released",
    "CheckFree+",
    "neighbour snapshot",
    "redundant computation",
]
NAMES = [name for name in RULES if name not in ("none", "rollback")]  # rollback leaves the writing to the trainer


@pytest.fixture
def fleet():
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    generator = torch.Generator().manual_seed(0)
    for weight in [*fleet.layers.values(), *fleet.outer.values()]:  # far from the start, norms too
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return fleet


def weights(fleet, stage, replica=1):
    return {name: weight.clone() for name, weight in fleet.stage(replica, stage).items()}


def lose(fleet, stage, dead=(), norms=None, seed=0, kept=None):
    dead = frozenset({stage, *dead})
    for s in dead:  # nothing of a dead stage may be read
        for weight in fleet.stage(1, s).values():
            weight.fill_(float("nan"))
    norms = torch.ones(2, STAGES + 1) if norms is None else norms
    return Lost(fleet, 1, stage, dead, norms, np.random.default_rng(seed), kept=kept)


def rebuild(fleet, rule, stage, dead=(), norms=None, seed=0, kept=None):
    if rule == "learning rate alone" and kept is None:  # its copy survives everything
        kept = weights(fleet, stage)
    RULES[rule].rule(lose(fleet, stage, dead, norms, seed, kept))
    return weights(fleet, stage)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def finite(weights):
    return all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize(
    ("stage", "dead", "neighbours"),
    [
        (2, (), [1, 3]),
        (0, (), [1]),
        (5, (), [4]),
        (2, (3,), [1, 4]),
        (0, (1,), [2]),
        (3, (2, 4), [1, 5]),
        (5, (ENDS,), [4]),
        (1, (0,), [2]),
        (ENDS, (), []),
        (2, range(STAGES), []),
    ],
)
def test_neighbours_are_the_nearest_survivors(fleet, stage, dead, neighbours):
    assert lose(fleet, stage, dead).neighbours == neighbours


def test_a_dead_stage_answers_nothing(fleet):
    lost = lose(fleet, 2, dead=(3,))
    for ask in (lost.fetch, lost.norm):
        for stage in (2, 3):
            with pytest.raises(KeyError, match=f"stage {stage + 1} died in the same step: use lost.neighbours"):
                ask(stage)
    assert lost.costs.total() == 0


def test_copy_previous_copies(fleet):
    assert same(rebuild(fleet, "copy previous", 3), weights(fleet, 2))
    assert same(rebuild(fleet, "copy previous", 0), weights(fleet, 1))


@pytest.mark.parametrize("rule", AVERAGES)
def test_equal_norms_give_the_mean(fleet, rule):
    rebuilt = rebuild(fleet, rule, 2, norms=torch.full((2, STAGES + 1), 0.3))
    below, above = weights(fleet, 1), weights(fleet, 3)
    for name, weight in rebuilt.items():
        torch.testing.assert_close(weight, (below[name] + above[name]) / 2)


@pytest.mark.parametrize("rule", [*AVERAGES, "CheckFree+, as released"])
def test_consecutive_losses_take_the_nearest_survivors(fleet, rule):
    rebuilt = rebuild(fleet, rule, 2, dead=(3,))
    below, above = weights(fleet, 1), weights(fleet, 4)
    for name, weight in rebuilt.items():
        torch.testing.assert_close(weight, (below[name] + above[name]) / 2)
    again = rebuild(fleet, rule, 3, dead=(2,))  # what has just been rebuilt is still no survivor
    assert all(torch.allclose(again[name], rebuilt[name]) for name in again)


@pytest.mark.parametrize(("rule", "shares"), [("CheckFree", (0.9, 0.1)), ("CheckFree, power 1", (0.75, 0.25))])
def test_checkfree_weighs_by_norms_of_its_own_replica(fleet, rule, shares):
    norms = torch.ones(2, STAGES + 1)
    norms[1, 1], norms[1, 3] = 3.0, 1.0
    rebuilt = rebuild(fleet, rule, 2, norms=norms)
    below, above = weights(fleet, 1), weights(fleet, 3)
    for name, weight in rebuilt.items():
        torch.testing.assert_close(weight, shares[0] * below[name] + shares[1] * above[name])
    scaled = rebuild(fleet, rule, 2, norms=norms * 7)
    for name, weight in scaled.items():
        torch.testing.assert_close(weight, rebuilt[name])


@given(
    power=st.sampled_from([0, 0.5, 1, 2, 4]) | st.floats(0, 6),
    below=st.floats(0, 1e6, width=32),
    above=st.floats(0, 1e6, width=32),
    clipped=st.booleans(),
    floor=st.sampled_from([0.0, 1e-4]),
)
@settings(max_examples=60, deadline=None)
def test_every_entry_lies_between_its_two_neighbours(power, below, above, clipped, floor):
    fleet = Fleet(Shape(3, 1, 4, 2, 4, 8), [0], device="cpu", compile=False)
    a, b = ({name: weight.clone() for name, weight in fleet.stage(0, s).items()} for s in (0, 2))
    lost = Lost(fleet, 0, 1, frozenset({1}), torch.tensor([[below, 9.9, above, 9.9]]), None)
    norm_average(power, clipped, floor)(lost)
    for name, weight in lost.weights.items():
        low, high = torch.minimum(a[name], b[name]), torch.maximum(a[name], b[name])
        assert (weight >= low - 1e-7).all() and (weight <= high + 1e-7).all()
    heavier = a if below > above else b
    if below != above and power >= 1:  # the larger norm draws the stage to its side, or neither does
        distance = sum(float((lost.weights[name] - heavier[name]).square().sum()) for name in a)
        between = sum(float((a[name] - b[name]).square().sum()) for name in a)
        assert distance <= between / 4 * (1 + 1e-4)


@given(scale=st.floats(1e-3, 1e3), power=st.floats(0, 4), ratio=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_only_the_ratio_of_the_norms_counts(scale, power, ratio):
    def rebuilt(norms):
        fleet = Fleet(Shape(3, 1, 4, 2, 4, 8), [0], device="cpu", compile=False)
        lost = Lost(fleet, 0, 1, frozenset({1}), norms, None)
        norm_average(power)(lost)
        return lost.weights

    norms = torch.tensor([[ratio, 1.0, 1.0, 1.0]])
    scaled = rebuilt(norms * scale)
    for name, weight in rebuilt(norms).items():
        torch.testing.assert_close(weight, scaled[name])


def test_power_0_is_uniform_whatever_the_norms(fleet):
    norms = torch.rand(2, STAGES + 1, generator=torch.Generator().manual_seed(1)) + 0.1
    expected = rebuild(fleet, "uniform average", 2)
    norm_average(power=0)(lose(fleet, 2, norms=norms))
    assert same(expected, weights(fleet, 2))


def test_clipped_norms_make_the_released_weighting_uniform(fleet):
    norms = torch.ones(2, STAGES + 1)
    norms[1, 1], norms[1, 3] = 1.0, 50.0  # both were clipped to 1
    uniform, released = (rebuild(fleet, rule, 2, norms=norms) for rule in ("uniform average", "CheckFree, as released"))
    assert same(uniform, released)
    norms[1, 1] = 0.5
    released = rebuild(fleet, "CheckFree, as released", 2, norms=norms)
    below, above = weights(fleet, 1), weights(fleet, 3)
    for name, weight in released.items():
        expected = (0.5001 * below[name] + 1.0001 * above[name]) / 1.5002
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("rule", ["CheckFree", "CheckFree+", "CheckFree, as released", "uniform average"])
def test_averages_copy_at_the_ends(fleet, rule):
    assert same(rebuild(fleet, rule, 0), weights(fleet, 1))
    assert same(rebuild(fleet, rule, 5), weights(fleet, 4))


def test_released_checkfree_plus_copies_partners_too(fleet):
    norms = torch.rand(2, STAGES + 1, generator=torch.Generator().manual_seed(1)) + 0.1
    rule = "CheckFree+, as released"
    for stage, partner in {0: 1, 1: 0, 4: 5, 5: 4}.items():
        assert same(rebuild(fleet, rule, stage, norms=norms), weights(fleet, partner))
    for stage, dead in [(2, ()), (1, (0,)), (4, (5,))]:  # no partner, or a dead one
        expected = rebuild(fleet, "CheckFree, as released", stage, dead, norms)
        assert same(rebuild(fleet, rule, stage, dead, norms), expected)


@pytest.mark.parametrize("stage", [0, 2, 5, ENDS])
@pytest.mark.parametrize("rule", NAMES)
def test_rules_use_survivors_only_and_touch_nothing_else(fleet, rule, stage):
    before = {(r, s): weights(fleet, s, r) for r in (0, 1) for s in range(STAGES + 1)}
    assert finite(rebuild(fleet, rule, stage, dead=(3,)))
    for (r, s), old in before.items():
        if (r, s) not in ((1, stage), (1, 3)):
            assert same(old, weights(fleet, s, r))


def test_rollback_writes_nothing_itself(fleet):
    lost = lose(fleet, 2)
    before = {s: weights(fleet, s) for s in range(STAGES + 1) if s != 2}
    RULES["rollback"].rule(lost)
    assert lost.rolled_back and not finite(weights(fleet, 2))
    assert all(same(old, weights(fleet, s)) for s, old in before.items())


@pytest.mark.parametrize("rule", NAMES)
def test_a_replica_without_survivors_starts_afresh(fleet, rule):
    assert finite(rebuild(fleet, rule, 2, dead=range(STAGES + 1)))


@pytest.mark.parametrize("rule", ["CheckFree", "uniform average", "copy previous", "CheckFree+", "identity"])
def test_lost_ends_without_a_copy_are_drawn_anew(fleet, rule):
    old = weights(fleet, ENDS)
    new = rebuild(fleet, rule, ENDS)
    assert same(new, rebuild(fleet, "random", ENDS)) and not same(new, old)


@pytest.mark.parametrize("rule", [name for name in NAMES if RULES[name].keeps])
def test_a_copy_that_survived_is_written_back(fleet, rule):
    for stage in (2, ENDS):
        copy = {name: torch.full_like(weight, 0.25) for name, weight in weights(fleet, stage).items()}
        assert same(rebuild(fleet, rule, stage, kept=copy), copy)


@pytest.mark.parametrize(
    ("rule", "boosted", "moments"),
    [
        ("redundant computation", False, "keep"),
        ("CheckFree+", False, "average"),  # of the ends weights alone are copied
        ("neighbour snapshot", True, "average"),
        ("learning rate alone", True, "keep"),
    ],
)
def test_what_an_exact_copy_asks_of_the_trainer(fleet, rule, boosted, moments):
    lost = lose(fleet, ENDS, kept=weights(fleet, ENDS))
    lost.moments = "average"
    RULES[rule].rule(lost)
    assert (lost.boosted, lost.moments) == (boosted, moments)


def test_random_repeats_by_seed(fleet):
    first = rebuild(fleet, "random", 2, seed=5)
    assert same(first, rebuild(fleet, "random", 2, seed=5))
    assert not same(first, rebuild(fleet, "random", 2, seed=6))


def skipping(stage):
    """A route in order [S, R, 1, 2] that passes one stage by."""
    cells = np.empty((STAGES, 2, 1, 2), dtype=np.int64)
    cells[..., 0], cells[..., 1] = np.arange(2)[None, :, None], np.arange(STAGES)[:, None, None]
    cells[stage, ..., 1] = -1
    return cells


@pytest.mark.parametrize("rule", ["identity", "all zeros"])
@pytest.mark.parametrize("stage", [0, 3, 5])
def test_identity_and_zeros_pass_activations_on(fleet, rule, stage):
    tokens = np.random.default_rng(0).integers(32, size=(1, 3, 7))
    intact = fleet.logits(tokens)
    skipped = fleet.logits(tokens, skipping(stage))[1]
    rebuild(fleet, rule, stage)
    found = fleet.logits(tokens)[1]
    assert torch.equal(found, skipped) and not torch.equal(found, intact[1])


@pytest.mark.parametrize(("rule", "learns"), [("identity", True), ("all zeros", False)])
def test_identity_learns_and_zeros_never_do(fleet, rule, learns):
    tokens = np.random.default_rng(0).integers(32, size=(2, 2, 2, 9))
    rebuild(fleet, rule, 3)
    adam = InnerOptimizer(fleet, 1e-2)
    for _ in range(3):
        fleet.gradients(tokens)
        adam.step()
    fleet.gradients(tokens)
    gradients = fleet.stage_gradient(1, 3)
    assert len(gradients) == 6
    for gradient in gradients.values():
        assert (gradient != 0).any() == learns
    if not learns:
        assert all((weight == 0).all() for weight in weights(fleet, 3).values())


@pytest.mark.parametrize("stage", [0, 3, ENDS])
def test_a_peer_gives_the_same_stage_and_no_other(fleet, stage):
    lost, own = lose(fleet, stage, dead={stage, 2}), weights(fleet, 1)
    lost.peers = [0]
    RULES["peer copy"].rule(lost)
    assert same(weights(fleet, stage), weights(fleet, stage, replica=0)) and same(weights(fleet, 1), own)
    assert (lost.moments, lost.boosted) == ("peer", False)
    assert lost.costs == {"sent on failure": sum(4 * w.numel() for w in fleet.stage(0, stage).values())}
    for other in (1, 2):
        with pytest.raises(
            KeyError, match=rf"stage {stage + 1} of replica {other + 1} is none to ask: take one of \[0\]"
        ):
            lost.fetch_from(other)


def test_without_a_peer_the_neighbours_are_averaged(fleet):
    expected = {name: (w + weights(fleet, 4)[name]) / 2 for name, w in weights(fleet, 2).items()}
    lost = lose(fleet, 3)
    RULES["peer copy"].rule(lost)
    for name, weight in weights(fleet, 3).items():
        torch.testing.assert_close(weight, expected[name])
    assert (lost.moments, lost.boosted) == ("reset", True)


def test_the_mean_of_peers_is_that_of_all_that_have_the_stage():
    fleet = Fleet(SHAPE, [1, 2, 3, 4], device="cpu", compile=False)
    expected = {name: (w + fleet.stage(2, 3)[name]) / 2 for name, w in fleet.stage(0, 3).items()}
    lost = Lost(fleet, 1, 3, frozenset({3}), torch.ones(4, STAGES + 1), None, peers=[2, 0])  # in replica 3 it died too
    RULES["mean of peers"].rule(lost)
    for name, weight in weights(fleet, 3).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-8)
    assert (lost.moments, lost.boosted) == ("peers", False)
    assert lost.costs == {"sent on failure": 2 * sum(4 * w.numel() for w in expected.values())}


@pytest.mark.parametrize("rule", ["mean of peers", "peer's slow weights"])
def test_rules_that_ask_peers_average_neighbours_where_there_is_none(fleet, rule):
    expected = {name: (w + weights(fleet, 4)[name]) / 2 for name, w in weights(fleet, 2).items()}
    for name, weight in rebuild(fleet, rule, 3).items():
        torch.testing.assert_close(weight, expected[name])


@pytest.mark.parametrize(
    ("holders", "stage", "expected"),
    [
        ((-1,), 3, {2}),
        ((-1,), 0, {ENDS}),  # around the ring
        ((-1, 1), 3, {2, 4}),
        ((-1, 1), 0, {ENDS, 1}),
        ((-1, 1), STAGES - 1, {STAGES - 2, ENDS}),
        ((-1,), ENDS, {0, STAGES - 1}),  # embedding and head on the stages next to them
        ((-1, 1), ENDS, {0, STAGES - 1}),
        ((), 3, set()),
        ((), ENDS, set()),
    ],
)
def test_holders_of_a_copy(holders, stage, expected):
    assert Strategy(lambda lost: None, "stages", holders).holders_of(stage, STAGES) == expected


def test_a_rule_of_ones_own_takes_one_function_and_one_name(fleet, monkeypatch):
    monkeypatch.setattr("swarmbook.methods.recovery.RULES", rules := dict(RULES))

    @recovery("farthest survivor", keeps="ends", holders=(1,))
    def farthest(lost):
        lost.mix({max(s for s in range(STAGES) if s not in lost.dead): 1.0})

    assert rules["farthest survivor"] == Strategy(farthest, "ends", (1,))
    farthest(lose(fleet, 2, dead=(5,)))
    assert same(weights(fleet, 2), weights(fleet, 4))


TINY = {
    "data": "stories_toy", "stages": 4, "width": 16, "heads": 2, "hidden": 32, "sequence": 8, "microbatches": 2,
    "batch": 1, "steps": 12, "log_every": 1, "evaluate_every": 12, "held_out": 4, "replicas": 3, "common_start": True,
    "lr": 3e-3,
}  # fmt: skip
FAILING = {"recovery": "peer copy", "failing": "all", "failure_rate": 0.12}


def test_among_replicas_that_are_kept_alike_a_copy_of_a_peer_loses_nothing(new_pack):
    failing = new_pack(**FAILING, sync="all-reduce", steps=12)
    whole = new_pack(sync="all-reduce", steps=12)
    died = failing.traces[0]
    assert died[..., -1].any() and died[..., :-1].sum() > 8
    assert not died.all(1).any()  # no stage dies in all replicas at once
    for name, weight in whole.fleet.named_weights().items():
        assert torch.equal(weight, failing.fleet.named_weights()[name])
    bytes_of = [sum(4 * w.numel() for w in whole.fleet.stage(0, s).values()) for s in range(5)]
    assert failing.costs[0]["sent on failure"] == sum(
        3 * int(n) * b for n, b in zip(died.sum((0, 1)), bytes_of, strict=True)
    )
    assert failing.costs[0]["rebuilt"] == died.sum() and "not recoverable" not in failing.costs[0]


def test_a_stage_that_died_in_all_replicas_has_no_peer(new_pack):
    pack = new_pack(recovery="peer copy", lost_stages=[(3, 2)], steps=4)
    assert pack.costs[0]["rebuilt"] == pack.costs[0]["not recoverable"] == 3
    assert (pack.rebuilt[:, 1] == 3).all() and (pack.optimizer.steps[:, 1] == 1).all()


EXCHANGING = {**TINY, "lr": 1e-3, "sync": "NoLoCo", "sync_every": 4, "replicas": 4}


def lose_in_training(new_pack, monkeypatch, stage=2, replica=1, step=6, **fields):
    """A pack just before and just after a stage of a replica is rebuilt at `step`, and what that step cost."""
    config = run_config(**{**EXCHANGING, **fields})
    dying = np.zeros((config.steps, config.replicas, config.stages + 1), dtype=bool)
    dying[step, replica, stage] = True
    monkeypatch.setattr("swarmbook.config.RunConfig.failures", lambda run: dying)
    before, after = new_pack(config, steps=step), new_pack(config, steps=step)
    after._fail(0)
    assert after.costs[0]["rebuilt"] == 1
    return before, after


def kinds_of(pack, replica, stage):
    """Fast and slow weights and buffers of a cell, by kind and parameter, read without what recovery uses."""
    found = {}
    for kind, tensors in {"theta": pack.outers[0].theta, **pack.outers[0]._kept()}.items():
        ends = stage == pack.shape.stages
        for name, tensor in tensors.items():
            if name.startswith("ends.") == ends:
                found[kind, name.partition(".")[2]] = tensor[replica, 0, 0] if ends else tensor[replica, :, stage]
    return {name: tensor.clone() for name, tensor in found.items()}


@pytest.mark.parametrize("stage", [2, 4])
@pytest.mark.parametrize("recovery", ["peer copy", "mean of peers", "peer's slow weights", "CheckFree", "random"])
@pytest.mark.parametrize("slow", ["keep", "reset", "likewise", "peer"])
def test_slow_weights_and_outer_momentum_of_a_rebuilt_stage(new_pack, monkeypatch, recovery, slow, stage):
    """Against what each word says, cell by cell, and with the bytes of what was sent."""
    before, after = lose_in_training(new_pack, monkeypatch, stage, recovery=recovery, slow_weights=slow)
    old, new, peers = kinds_of(before, 1, stage), kinds_of(after, 1, stage), [2, 3, 0]
    others = [kinds_of(before, r, stage) for r in peers]
    beside = [kinds_of(before, 1, s) for s in (1, 3)] if stage < 4 else []
    squares = [float(before.norms[1, s]) ** 2 for s in (1, 3)]
    size = sum(4 * w.numel() for (kind, _), w in old.items() if kind == "theta")
    averaged = recovery == "CheckFree" and stage < 4
    for (kind, name), found in new.items():
        fast, source = new["theta", name], "phi" if recovery == "peer's slow weights" and kind == "theta" else kind
        if recovery == "mean of peers":
            rebuilt = sum(other[source, name] for other in others) / 3
        elif averaged:
            rebuilt = sum(w * cell[kind, name] for w, cell in zip(squares, beside, strict=True)) / sum(squares)
        elif recovery in ("random", "CheckFree"):  # of ends nothing is left
            rebuilt = torch.zeros_like(found) if kind == "delta" else fast
        else:
            rebuilt = others[0][source, name]
        wanted = {
            "keep": old[kind, name],
            "reset": torch.zeros_like(found) if kind == "delta" else fast,
            "likewise": rebuilt,
            "peer": others[0][kind, name],
        }
        expected = rebuilt if kind == "theta" else wanted[slow]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=lambda m, k=(kind, name): f"{k}: {m}")
    assert not all(torch.equal(old[name], new[name]) for name in old if name[0] == "theta")
    for other in [(r, s) for r in range(4) for s in range(5) if (r, s) != (1, stage)]:
        kept, now = kinds_of(before, *other), kinds_of(after, *other)
        assert all(torch.equal(kept[name], now[name]) for name in kept)
    copies = {"peer copy": 1, "peer's slow weights": 1, "mean of peers": 3, "CheckFree": 2 * averaged}.get(recovery, 0)
    moments = 0 if recovery in ("CheckFree", "random") else 2 * copies
    slow_copies = {"likewise": 2 * copies, "peer": 2}.get(slow, 0)
    sent = after.costs[0]["sent on failure"] - before.costs[0]["sent on failure"]
    assert sent == (copies + moments + slow_copies) * size + 8 * averaged  # and two norms


def test_where_a_stage_comes_from_a_copy_its_slow_weights_are_reset(new_pack, monkeypatch):
    fields = {"recovery": "CheckFree+", "failing": "all", "failure_rate": 0.1, "slow_weights": "likewise"}
    before, after = lose_in_training(new_pack, monkeypatch, stage=4, **fields)
    old, new = kinds_of(before, 1, 4), kinds_of(after, 1, 4)
    for (kind, name), found in new.items():
        assert torch.equal(found, torch.zeros_like(found) if kind == "delta" else old["theta", name])


def test_nothing_of_lost_slow_weights_is_read(new_pack, monkeypatch):
    """With NaN in their place the numbers are the same."""
    packs = [lose_in_training(new_pack, monkeypatch, recovery="CheckFree", slow_weights=w) for w in ("reset", "peer")]
    for before, after in packs:
        for weights in before.outers[0]._kept().values():
            weights["layers.qkv"][1, :, 2] = float("nan")
        before.outers[0].theta["layers.qkv"][1, :, 2] = float("nan")
        before._put_row = lambda row: None  # of the same loss
        before._fail(0)
        for name, weight in before.fleet.named_weights().items():
            assert torch.equal(weight, after.fleet.named_weights()[name])


@pytest.mark.parametrize("slow", ["keep", "likewise", "peer"])
def test_just_after_an_exchange_of_all_a_peer_has_what_was_lost(new_pack, monkeypatch, slow):
    """Fast and slow weights and the outer momentum."""
    _, after = lose_in_training(new_pack, monkeypatch, step=4, recovery="peer copy", sync="DiLoCo", slow_weights=slow)
    outer = after.outers[0]
    for weight in (*outer.theta.values(), *outer.phi.values(), *outer.buffers["delta"].values()):
        assert torch.equal(weight[1], weight[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replicas": 1, "recovery": "peer copy"}, "recovery 'peer copy' asks other replicas, and replicas=1 has none"),
        ({"replicas": 1, "recovery": "mean of peers"}, "recovery 'mean of peers' asks other replicas, and replicas=1"),
        ({"recovery": "peer's slow weights"}, "asks for slow weights, and sync 'none' has none: take one of DiLoCo, "),
        ({"recovery": "peer's slow weights", "sync": "all-reduce"}, "asks for slow weights, and sync 'all-reduce' has"),
        ({"sync": "DiLoCo", "sync_every": 4, "slow_weights": "reset"}, "does nothing for recovery 'none'"),
        (
            {"replicas": 1, "sync": "DiLoCo", "sync_every": 4, "recovery": "random", "slow_weights": "peer"},
            "slow_weights='peer' asks other replicas, and replicas=1 has none",
        ),
        (
            {"recovery": "random", "sync": "gossip", "sync_every": 4, "slow_weights": "reset"},
            "slow_weights='reset' does nothing for sync 'gossip', which has neither slow weights nor buffers",
        ),
    ],
)
def test_what_has_nobody_or_nothing_to_ask_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        run_config(**{**TINY, **fields})
