"""Failures in training: what is restored, what is repeated, and what a run that goes on from another one gives."""

import numpy as np
import pytest
import torch

from swarmbook.config import RunConfig, run_config
from swarmbook.data import batches, tokenization
from swarmbook.errors import DataError
from swarmbook.methods.recovery import RULES
from swarmbook.methods.routing import ROUTES
from swarmbook.records.store import Store
from swarmbook.runs import run
from swarmbook.simulation import checkpointing
from swarmbook.training import packing

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "data": "stories_toy", "stages": 4, "width": 16, "heads": 2, "hidden": 32, "sequence": 8, "microbatches": 2,
    "batch": 1, "steps": 20, "log_every": 1, "evaluate_every": 1, "held_out": 4,
}  # fmt: skip
S = TINY["stages"]
STILL = {"lr": 1e-30}  # no weight moves: after a step they are what the recovery wrote


def metrics(config, folder):
    return run([config], show=False, store=Store(folder / config.key)).records[0].metrics


def validation(config, folder):
    """Validation loss after every step, the untrained one first."""
    table = metrics(config, folder)
    return table[table["metric"] == "validation loss"].set_index("step")["value"]


def weights(pack, stage):
    return {name: weight.clone() for name, weight in pack.fleet.stage(0, stage).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SPREAD = ((3, 2), (5, 0), (7, 4), (12, 1))  # never two at once; 0 is embedding and head


@pytest.mark.parametrize(
    "fields",
    [
        {"recovery": "redundant computation", "lost_stages": SPREAD},
        {"recovery": "learning rate alone", "lr_boost": 1.0, "lost_stages": SPREAD},
        {"recovery": "learning rate alone", "lr_boost": 1.0, "failure_rate": 0.2, "failing": "all"},
        {
            "recovery": "rollback",
            "keep_every": 1,
            "lost_stages": SPREAD,
        },  # the last copy is the state of this very step
        {"recovery": "CheckFree"},
    ],
)
def test_what_loses_nothing_gives_the_bits_of_plain_training(new_pack, tmp_path, fields):
    plain, config = run_config(**TINY), run_config(**TINY, **fields)
    for metric in ("training loss", "validation loss", "gradient norm"):
        a, b = (m[m["metric"] == metric]["value"].to_numpy() for m in (metrics(c, tmp_path) for c in (plain, config)))
        assert np.array_equal(a, b)
    a, b = (new_pack(c, steps=20) for c in (plain, config))
    assert same(a.fleet.state_dict(), b.fleet.state_dict())
    assert same(a.optimizer.state_dict(), b.optimizer.state_dict())


def test_a_further_domain_that_is_too_short_is_told_before_the_training(new_pack):
    with pytest.raises(DataError, match="'children_alice' .validation., which has 3516; ask for 1 to 3516"):
        new_pack(held_out=3517, evaluate_on=["children_alice"])


def test_a_loss_that_is_not_made_good_shows(tmp_path):
    plain, config = run_config(**TINY), run_config(**TINY, recovery="random", lost_stages=((3, 2),))
    a, b = validation(plain, tmp_path), validation(config, tmp_path)
    assert (a[:4] == b[:4]).all() and (a[4:] != b[4:]).all()


def test_redundant_computation_cannot_restore_a_stage_that_dies_with_its_holder(new_pack):
    before = new_pack(**STILL)
    pack = new_pack(**STILL, recovery="redundant computation", lost_stages=((2, 2), (2, 3)), steps=3)
    assert same(weights(pack, 1), weights(before, 1))  # its holder, the first stage, lives
    below, above = weights(before, 0), weights(before, 3)
    for name, weight in weights(pack, 2).items():
        torch.testing.assert_close(weight, (below[name] + above[name]) / 2)
    assert pack.costs[0]["rebuilt"] == 2 and pack.costs[0]["not recoverable"] == 1
    assert pack.optimizer.lr_scale[0].tolist() == [1.0, 1.0, 1.1, 1.0, 1.0]
    assert pack.optimizer.steps[0].tolist() == [3, 3, 1, 3, 3]


@pytest.mark.parametrize(
    ("recovery", "lost", "exact", "gone"),
    [
        ("CheckFree+", (0,), True, 0),
        ("CheckFree+", (0, 2), True, 0),
        ("CheckFree+", (0, 1), False, 1),  # the embedding's copy died with the first stage
        ("CheckFree+", (0, S), False, 1),  # the head's with the last
        ("CheckFree+", (1, S), True, 0),  # the ends live: nothing of theirs is lost
        ("CheckFree+, as released", (0,), True, 0),
        ("neighbour snapshot", (0, S), False, 1),
        ("redundant computation", (0, 1), False, 2),  # each held the other's copy
        ("CheckFree", (0,), False, 0),  # it keeps no copies that could be lost
        ("CheckFree", (2,), True, 0),
    ],
)
def test_ends_come_back_from_the_first_and_last_stage_or_are_drawn_anew(new_pack, recovery, lost, exact, gone):
    before = weights(new_pack(**STILL), S)
    pack = new_pack(**STILL, recovery=recovery, lost_stages=tuple((2, stage) for stage in lost), steps=3)
    after = weights(pack, S)
    assert same(before, after) == exact
    assert (after["norm"] == 1).all() and 0.015 < float(after["head"].std()) < 0.025
    assert pack.costs[0]["not recoverable"] == gone
    assert pack.costs[0]["rebuilt"] == len(lost)
    if exact:
        assert pack.optimizer.lr_scale[0, S] == 1.0


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_every": 5, "lost_stages": ((3, 1), (7, 2), (8, 0), (12, 3), (13, 2), (13, 3), (18, 4))},
        {"keep_every": 5, "lost_stages": ((3, 1), (4, 2), (5, 1))},
        {"keep_every": 4, "failure_rate": 0.08, "failing": "all", "seed": 3, "route": "swapped ends"},
        {"keep_every": 7, "failure_rate": 0.03, "replicas": 2, "seed": 1},
        {
            "keep_every": 5,
            "failure_rate": 0.03,
            "replicas": 2,
            "seed": 1,
            "sync": "NoLoCo",
            "sync_every": 3,
            "delay": 1,
        },
    ],
)
def test_rolling_back_is_training_without_failures_at_the_progress_held(new_pack, tmp_path, fields):
    config = run_config(**TINY, recovery="rollback", **fields)
    given = {
        name: v for name, v in fields.items() if name not in ("keep_every", "lost_stages", "failure_rate", "failing")
    }
    plain = validation(run_config(**TINY, **given), tmp_path)
    held = checkpointing.progress(config.failures().any((1, 2)), config.keep_every)  # before each step
    table = metrics(config, tmp_path)
    rolled = table[table["metric"] == "validation loss"].set_index("step")["value"]
    assert held[-1] < config.steps - 3  # several failures set it back
    assert [rolled[t] for t in range(1, config.steps + 1)] == [plain[h + 1] for h in held]
    ledger = table[table["metric"] == "ledger"].set_index("label")["value"]
    assert ledger["steps repeated"] == config.steps - (held[-1] + 1)

    pack, other = new_pack(config, steps=config.steps), new_pack(**given, steps=int(held[-1]) + 1)
    a, b = pack.state(0), other.state(0)
    assert same(a["fleet"], b["fleet"]) and same(a["adam"], b["adam"]) and torch.equal(a["norms"], b["norms"])
    assert a["position"] == b["position"] == held[-1] + 1


@pytest.mark.parametrize("schedule", [{"warmup": 10}, {"schedule": "cosine", "warmup": 3}])
def test_a_rollback_takes_the_learning_rate_back_too(tmp_path, schedule):
    config = run_config(**TINY, **schedule, recovery="rollback", keep_every=5, lost_stages=((8, 1), (13, 2)))
    plain = validation(run_config(**TINY, **schedule), tmp_path)
    held = checkpointing.progress(config.failures().any((1, 2)), 5)
    rolled = validation(config, tmp_path)
    np.testing.assert_allclose(rolled[1:], plain[held + 1], rtol=1e-5)


def test_packed_rollbacks_keep_their_own_progress(tmp_path):
    fields = {**TINY, "recovery": "rollback", "keep_every": 5}
    arms = [
        run_config(**fields, lost_stages=((8, 1),)),
        run_config(**fields, lost_stages=((13, 2),), seed=1),
        run_config(**TINY),
    ]
    packed = run(arms, show=False, store=Store(tmp_path / "packed"))
    assert {record.provenance["packed"] for record in packed.records} == {3}
    for arm, record in zip(arms, packed.records, strict=True):
        together = record.metrics[record.metrics["metric"] == "validation loss"]["value"]
        np.testing.assert_allclose(together, validation(arm, tmp_path), atol=2e-4)


def test_snapshots_are_as_old_as_the_last_copy(new_pack):
    fields = {"recovery": "neighbour snapshot", "keep_every": 3}
    at = {step: weights(new_pack(steps=step), 1) for step in (0, 3, 6)}
    for step, copied in [(2, 0), (3, 3), (5, 3), (7, 6)]:
        pack = new_pack(**fields, lost_stages=((step, 2),), steps=step)
        pack._fail(0)
        assert same(weights(pack, 1), at[copied])
        assert pack.optimizer.steps[0].tolist() == [step, 0, *[step] * 3]


BACKED = {"recovery": "neighbour snapshot", "keep_every": 5, "lost_stages": ((3, 2), (14, 3))}


@pytest.mark.parametrize(
    "fields",
    [
        {
            "recovery": "CheckFree",
            "failure_rate": 0.08,
            "route": "swapped ends",
            "boost_half_life": 4.0,
            "lost_stages": ((4, 3), (10, 2)),  # the norms of step 9 decide what is written at step 10
        },
        {"recovery": "CheckFree+", "failure_rate": 0.05, "failing": "all", "replicas": 2, "moments": "average"},
        BACKED,
        {**BACKED, "recovery": "redundant computation"},
        {
            **BACKED,
            "recovery": "rollback",
            "keep_every": 4,
            "lost_stages": ((2, 1), (13, 2)),
        },  # 8 steps are held at step 10
    ],
)
def test_a_run_that_goes_on_is_one_that_never_stopped(tmp_path, fields):
    long = run_config(**TINY, **fields)
    first = {name: v for name, v in fields.items() if name != "lost_stages"}
    first["lost_stages"] = tuple(loss for loss in long.lost_stages if loss[0] < 10)
    parent = run_config(**{**TINY, "steps": 10}, **first)
    child = run_config(**TINY, **fields, start=parent)
    whole, after = metrics(long, tmp_path), metrics(child, tmp_path)
    before = metrics(parent, tmp_path)
    assert len(whole[(whole["metric"] == "failure") & (whole["step"] >= 10)])

    def rows(table, first, last):
        table = table[table["step"].between(first, last) & ~table["metric"].isin(["ledger"])]
        return [tuple(row) for row in table.itertuples(index=False)]

    assert rows(after, 11, 20) == rows(whole, 11, 20)
    assert rows(before, 0, 9) == rows(whole, 0, 9)
    ledgers = [t[t["metric"] == "ledger"].set_index("label")["value"] for t in (before, after, whole)]
    for entry in ("training FLOPs", "sent on failure", "rebuilt", "steps repeated", "sent in training"):
        parts = [ledger.get(entry, 0.0) for ledger in ledgers]
        assert parts[0] + parts[1] == parts[2], entry
    start = after[(after["metric"] == "validation loss") & (after["step"] == 10)]["value"]
    assert start.tolist() == before[before["metric"] == "validation loss"]["value"].tolist()[-1:]


def test_a_child_may_change_how_training_goes_on(tmp_path):
    parent = run_config(**{**TINY, "steps": 10})
    child = run_config(**{**TINY, "data": "fiction_austen", "microbatches": 4}, lr=3e-3, start=parent, seed=7)
    store = Store(tmp_path)
    after = run([child], show=False, store=store).table("training loss")
    assert after["step"].tolist() == list(range(11, 21)) and np.isfinite(after["value"]).all()


def uniform(rate, **fields):
    return run_config(**TINY, recovery="CheckFree", failure_rate=rate, **fields).failures()


def test_whatever_fails_its_losses_are_those_of_the_larger_kind():
    interior, stages, everything = (uniform(0.2, failing=failing) for failing in ("interior", "stages", "all"))
    assert interior.shape == (20, 1, S + 1)
    assert interior.any() and not interior[..., [0, S - 1, S]].any()
    assert not stages[..., S].any() and everything[..., S].any()
    assert np.array_equal(interior[..., 1 : S - 1], stages[..., 1 : S - 1]) and stages[..., [0, S - 1]].any()
    assert np.array_equal(stages[..., :S], everything[..., :S])


@pytest.mark.parametrize("failing", ["interior", "stages", "all"])
def test_a_low_rate_fails_where_a_higher_one_does(failing):
    traces = [uniform(rate, failing=failing, replicas=2) for rate in (0.0, 0.05, 0.2, 1.0)]
    for low, high in zip(traces, traces[1:], strict=False):
        assert not (low & ~high).any() and high.sum() > low.sum()
    assert not traces[0].any()
    assert traces[-1].sum() == 20 * 2 * {"interior": S - 2, "stages": S, "all": S + 1}[failing]


def test_traces_follow_the_seed_alone_and_longer_ones_begin_alike():
    a = uniform(0.2, failing="all", seed=3)
    others = {"recovery": "random", "route": "swapped ends", "lr": 0.1}
    b = run_config(**{**TINY, **others}, failure_rate=0.2, failing="all", seed=3).failures()
    assert np.array_equal(a, b) and not np.array_equal(a, uniform(0.2, failing="all", seed=4))
    longer = run_config(**{**TINY, "steps": 50}, recovery="random", failure_rate=0.2, failing="all", seed=3)
    assert np.array_equal(longer.failures()[:20], a)


def test_given_losses_come_on_top_of_drawn_ones_whatever_may_fail():
    drawn = uniform(0.1, failing="interior", replicas=2)
    both = uniform(0.1, failing="interior", replicas=2, lost_stages=((4, 1), (5, S), (6, 0)))
    added = np.argwhere(both & ~drawn)
    assert sorted(map(tuple, added.tolist())) == sorted(
        (step, r, stage) for step, stage in [(4, 0), (5, S - 1), (6, S)] for r in (0, 1)
    )
    assert not (drawn & ~both).any()


def test_failures_are_recorded_by_stage_with_0_for_the_ends(tmp_path):
    config = run_config(**TINY, recovery="CheckFree+", lost_stages=((4, 1), (6, 0), (6, S)))
    table = metrics(config, tmp_path)
    failures = table[table["metric"] == "failure"]
    assert list(zip(failures["step"], failures["stage"], strict=True)) == [(4, 1), (6, S), (6, 0)]


def test_the_boost_stays_and_does_not_compound(new_pack):
    pack = new_pack(recovery="CheckFree", lr_boost=1.3, lost_stages=((2, 2), (6, 2), (6, 3)))
    seen = []
    for _ in range(20):
        pack.advance()
        seen.append(pack.optimizer.lr_scale[0].copy())
    seen = np.array(seen)
    assert (seen[:2] == 1).all() and (seen[:, [0, 3, S]] == 1).all()
    assert (seen[2:, 1] == 1.3).all() and (seen[:6, 2] == 1).all() and (seen[6:, 2] == 1.3).all()


def test_the_boost_decays_from_each_loss_on_and_reaches_the_weights(new_pack):
    pack = new_pack(recovery="CheckFree", lr_boost=1.5, boost_half_life=4.0, lost_stages=((2, 2), (7, 2)))
    seen = []
    for _ in range(20):
        pack.advance()
        seen.append(pack.optimizer.lr_scale[0, 1])
    since = [None, None, *range(5), *range(13)]
    expected = [1.0 if n is None else 1 + 0.5 / 2 ** (n / 4) for n in since]
    np.testing.assert_allclose(seen, expected, rtol=1e-12)

    config = run_config(**TINY, recovery="CheckFree", lr_boost=1.5, lost_stages=((2, 2),))
    before = new_pack(config, steps=2)
    before._fail(0)
    rebuilt, others = weights(before, 1), weights(before, 0)
    after = new_pack(config, steps=3)
    moved = max(float((after.fleet.stage(0, 1)[name] - rebuilt[name]).abs().max()) for name in rebuilt)
    assert moved == pytest.approx(1.5 * config.lr, rel=1e-2)  # Adam's first step is as long as its rate
    assert max(float((after.fleet.stage(0, 0)[name] - others[name]).abs().max()) for name in others) < 1.1 * config.lr


@pytest.mark.parametrize("recovery", ["redundant computation", "CheckFree+"])
def test_exact_copies_are_not_boosted(new_pack, recovery):
    pack = new_pack(recovery=recovery, lost_stages=((2, 0), (4, 0)), steps=6)
    assert (pack.optimizer.lr_scale == 1).all() and pack.costs[0]["rebuilt"] == 2


@pytest.mark.parametrize("moments", ["reset", "keep", "average"])
def test_moments_of_a_rebuilt_stage(new_pack, moments):
    config = run_config(**TINY, recovery="CheckFree", moments=moments, lost_stages=((4, 1), (5, 2), (5, 3)))
    pack = new_pack(config, steps=5)
    old = {s: {n: [m.clone() for m in pair] for n, pair in pack.optimizer.moments(0, s).items()} for s in range(S)}
    steps = pack.optimizer.steps[0].copy()
    assert steps.tolist() == {"reset": [1, 5, 5, 5, 5], "keep": [5] * 5, "average": [5] * 5}[moments]
    pack.advance()
    for name, pair in pack.optimizer.moments(0, 1).items():
        gradient = pack.fleet.stage_gradient(0, 1)[name]
        for k, beta in enumerate((0.9, 0.999)):
            kept = {
                "reset": torch.zeros_like(gradient),
                "keep": old[1][name][k],
                "average": (old[0][name][k] + old[3][name][k]) / 2,  # of the nearest survivors
            }[moments]
            torch.testing.assert_close(pair[k], beta * kept + (1 - beta) * gradient ** (k + 1))
    taken = {"reset": 0, "keep": steps[1], "average": min(steps[0], steps[3])}[moments]
    assert pack.optimizer.steps[0, 1] == taken + 1


def test_ends_have_no_neighbours_whose_moments_could_be_averaged(new_pack):
    pack = new_pack(recovery="CheckFree", moments="average", lost_stages=((4, 0),), steps=5)
    assert pack.optimizer.steps[0].tolist() == [5, 5, 5, 5, 1]


def test_a_rule_can_say_what_the_trainer_does_next(new_pack, monkeypatch):
    def careful(lost):
        lost.mix({s: 1.0 for s in lost.neighbours})
        lost.boosted, lost.moments = False, "keep"

    monkeypatch.setitem(RULES, "careful", type(RULES["CheckFree"])(careful))
    pack = new_pack(recovery="careful", lost_stages=((4, 2),), steps=5)
    assert (pack.optimizer.lr_scale == 1).all() and (pack.optimizer.steps == 5).all()


def test_runs_share_a_pack_only_if_they_begin_together():
    parents = [run_config(**{**TINY, "steps": steps}, seed=seed) for steps, seed in [(5, 0), (5, 1), (10, 0)]]
    children = [run_config(**TINY, start=parent) for parent in parents]
    whole = [run_config(**TINY), run_config(**TINY, recovery="rollback", moments="keep", keep_every=3)]
    packs = list(packing.packs([*children, *whole], "cpu"))
    assert packs == [children[:2], children[2:], whole]


DOMAINS = ("stories_toy", "fiction_austen")


def test_each_replica_trains_on_its_domain_alone(new_pack, monkeypatch):
    fields = {**TINY, "data": "+".join(DOMAINS), "replicas": 3}
    pack = new_pack(*(run_config(**fields, seed=seed, shards="domains") for seed in (0, 1)), run_config(**fields))
    seen, gradients = [], pack.fleet.gradients
    monkeypatch.setattr(pack.fleet, "gradients", lambda tokens, *rest: seen.append(tokens) or gradients(tokens, *rest))
    for _ in range(5):
        pack.advance()
    seen = np.stack(seen)  # [steps, 9, microbatches, batch, sequence + 1]
    texts = [tokenization.tokens(domain, "train") for domain in DOMAINS]
    windows = [{tuple(row) for row in batches.Batches(text, 8, 100_000, 0)[0].tolist()} for text in texts]
    for row in range(6):
        own = {tuple(window) for window in seen[:, row].reshape(-1, 9).tolist()}
        assert own <= windows[row % 3 % 2] and len(own - windows[1 - row % 3 % 2]) > 5, row
    for i, run_ in enumerate(pack.runs[:2]):
        shards = batches.Shards(texts, 8, (3, 2, 1), run_.seeds("batches"))
        for step in range(5):
            assert np.array_equal(seen[step, pack.replicas(i)], shards[step])
    assert not np.array_equal(seen[:, 0], seen[:, 2]) and not np.array_equal(seen[:, :3], seen[:, 3:6])
    mixed = batches.Batches(
        tokenization.tokens("+".join(DOMAINS), "train"), 8, (3, 2, 1), pack.runs[2].seeds("batches")
    )
    assert np.array_equal(seen[4, 6:], mixed[4])


def test_all_are_evaluated_on_all_domains_whatever_they_train_on(new_pack):
    fields = {"data": "+".join(DOMAINS), "replicas": 2}
    shards, mixed = new_pack(**fields, shards="domains"), new_pack(**fields)
    assert np.array_equal(shards.held_out, mixed.held_out)
    shards.advance()
    mixed.advance()
    assert shards.validation_loss() != mixed.validation_loss()


def test_storage_in_bf16_starts_at_the_same_weights_rounded_and_ends_at_others(new_pack, tmp_path):
    a, b = (validation(run_config(**TINY, storage=storage), tmp_path) for storage in ("fp32", "bf16"))
    assert (a != b).all() and abs(a[0] - b[0]) < 1e-3
    np.testing.assert_allclose(a, b, atol=0.02)
    pack = new_pack(**STILL, storage="bf16")
    for name, weight in new_pack(**STILL).fleet.state_dict().items():
        assert torch.equal(pack.fleet.state_dict()[name], weight.bfloat16().float())
    assert pack.fleet.layers["qkv"].dtype == torch.float32


SPLIT = "bf16, fp32 moments"


def second_moments(pack):
    moments = pack.state(0)["adam"]
    return {name: pair[1] for name, pair in moments.items() if name not in ("steps", "lr_scale")}


@pytest.mark.parametrize(("storage", "falls"), [("fp32", True), ("bf16", False), (SPLIT, True)])
def test_second_moments_stored_in_bf16_never_fall(new_pack, storage, falls):
    """An entry without gradient becomes 0.999 v. Numbers of 8 significant bits lie at least v / 256 apart, so that this
    rounds back to v. The rate of such an entry can shrink, and never grows again.
    """
    pack, seen = new_pack(storage=storage), set()
    for _ in range(15):
        before = second_moments(pack)
        pack.advance()
        seen |= {name for name, v in second_moments(pack).items() if (v < before[name]).any()}
    assert seen == (before.keys() if falls else set())


def test_weights_in_bf16_with_fp32_moments_are_those_of_torch_adam(new_pack):
    """The reference has real bfloat16 weights, and a fused torch.optim.Adam in fp32 over copies of them."""
    pack, other = new_pack(storage=SPLIT, lr=3e-3, clip=1e9), new_pack(lr=3e-3)
    stored = {name: weight.bfloat16() for name, weight in other.fleet.named_weights().items()}
    working = {name: weight.float().requires_grad_() for name, weight in stored.items()}
    optimizer = torch.optim.Adam(working.values(), lr=3e-3, fused=True)
    for step in range(15):
        other.fleet.load_state_dict({name: weight.float() for name, weight in stored.items()})
        other.fleet.gradients(other.batches[0][step], None, 2)
        for name, gradient in other.fleet.named_gradients().items():
            working[name].grad = gradient.clone()
        optimizer.step()
        stored = {name: weight.detach().bfloat16() for name, weight in working.items()}
        for name, weight in working.items():
            weight.data.copy_(stored[name])
        pack.advance()
    state = pack.state(0)
    for name, weight in working.items():
        assert torch.equal(state["fleet"][name], stored[name].float())
        moments = optimizer.state[weight]
        assert all(map(torch.equal, state["adam"][name], (moments["exp_avg"], moments["exp_avg_sq"])))
    assert not all(torch.equal(v, v.bfloat16().float()) for v in second_moments(pack).values())


def test_runs_that_differ_in_shards_storage_and_absence_share_a_pack():
    fields = {**TINY, "data": "+".join(DOMAINS), "replicas": 2, "sync": "NoLoCo", "sync_every": 5}
    arms = [{}, {"shards": "domains"}, {"storage": "bf16"}, {"storage": SPLIT}, {"absent": 0.5}]
    runs = [run_config(**fields, **arm) for arm in arms]
    assert list(packing.packs(runs, "cpu")) == [runs]


PATHS = ((0, 2), (0, 3, 1))


def test_stages_on_no_path_learn_nothing_and_those_on_all_paths_learn_as_in_order(new_pack, monkeypatch):
    monkeypatch.setitem(ROUTES, "half", lambda *sizes: ROUTES["planned"](*sizes, paths=((0, 2),)))
    pack = new_pack(
        run_config(**TINY, seed=1, route="half"),
        run_config(**TINY, seed=1, route="planned", paths=((0, 1, 2, 3),)),
        run_config(**TINY, seed=1),
    )
    before = pack.fleet.state_dict()
    for _ in range(3):
        pack.advance()
    after = pack.fleet.state_dict()
    for name in before:
        if name.startswith("layers."):  # [layers per stage, S, R, ...]
            changed = [(before[name][:, s, 0] != after[name][:, s, 0]).any().item() for s in range(S)]
            assert changed == [True, False, True, False], name
            torch.testing.assert_close(after[name][:, :, 1], after[name][:, :, 2], rtol=1e-4, atol=1e-6)
    assert pack.norms[0, [1, 3]].tolist() == [0.0, 0.0] and (pack.norms[0, [0, 2]] > 0).all()


def test_a_stage_that_some_microbatches_skip_gets_their_share_of_nothing(new_pack):
    """As released: the gradient is that of the mean over all microbatches, not of those that went through."""
    pack = new_pack(route="planned", paths=PATHS)
    tokens = pack.batches[0][0]
    pack.fleet.gradients(tokens, pack._route())
    halves = {name: g.clone() for name, g in pack.fleet.stage_gradient(0, 2).items()}
    pack.fleet.gradients(tokens[:, :1], pack._route()[:, :, :1])
    for name, gradient in pack.fleet.stage_gradient(0, 2).items():
        torch.testing.assert_close(halves[name], gradient / 2, rtol=1e-5, atol=1e-8)


def test_runs_on_different_paths_share_a_pack_and_are_what_they_would_be_alone(tmp_path):
    arms = [
        run_config(**TINY, seed=1, route="planned", paths=PATHS),
        run_config(**TINY, seed=1, route="planned", paths=((3, 0), (2, 1))),
        run_config(**TINY, seed=1, route="random paths", visits=2.5, swaps=1),
        run_config(
            **TINY, seed=2, route="random paths", visits=3, reach=2, keep_first=False, measurements=["partial model"]
        ),
        run_config(**TINY, seed=2, route="blind paths", visits=2),
        run_config(**TINY, seed=2, route="swapped ends", recovery="CheckFree", lost_stages=((4, 2),)),
        run_config(**TINY, seed=2),
    ]
    assert [len(pack) for pack in packing.packs(arms, "cpu")] == [len(arms)]
    packed = run(arms, show=False, store=Store(tmp_path / "packed"))
    for config, record in zip(arms, packed.records, strict=True):
        alone = metrics(config, tmp_path)
        assert alone.drop(columns="value").equals(record.metrics.drop(columns="value"))
        np.testing.assert_allclose(alone["value"], record.metrics["value"], rtol=1e-3, atol=2e-4)
    assert packed.final()["value"].nunique() == len(arms)


def test_skipped_stages_cost_no_flops(tmp_path):
    arms = {
        "all": {},
        "half": {"route": "random paths", "visits": 2},
        "fewer": {"route": "planned", "paths": ((0,), (0, 1, 2, 3))},
        "swapped": {"route": "random paths", "swaps": 1},
    }
    ledgers = run([run_config(**TINY, **fields) for fields in arms.values()], show=False, store=Store(tmp_path))
    ledgers = ledgers.table("ledger")
    found = dict(zip(arms, ledgers[ledgers["label"] == "training FLOPs"]["value"], strict=True))
    assert found["swapped"] == found["all"]
    layer = (found["all"] - found["fewer"]) / 1.5  # a path has 2.5 of 4 layers on average
    assert found["half"] == found["fewer"] - layer / 2 and found["half"] > 2 * layer > 0


def test_what_may_differ_within_a_pack_are_fields_of_a_run():
    assert set(RunConfig.model_fields) > packing.PACKED
