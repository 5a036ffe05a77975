"""Lanes of experts, their budgets, and how a budget is shared out."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmbook.config import run_config
from swarmbook.ensembles.experts import allocate, gain, lane, trained, training_flops
from swarmbook.errors import ConfigError
from swarmbook.methods.model_size import Shape, flops
from swarmbook.records.store import Store
from swarmbook.runs import run

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = run_config(
    data="essay_cfi", stages=1, layers_per_stage=2, width=16, heads=2, hidden=32, sequence=12, tokenizer="bytes",
    microbatches=1, batch=2, steps=4, log_every=2, evaluate_every=2, held_out=2, schedule="cosine", warmup=2, lr=3e-3,
)  # fmt: skip
PHASE = {"lr": 1e-3, "warmup": 1, "schedule_steps": 12, "lr_floor": 0.5, "seed": 3}
DOMAINS = ["scripture_web", "commentary_mhcc", "proofs_hol"]


def test_a_lane_branches_from_its_own_last_expert():
    first, second, third = lane(SEED, DOMAINS, (4, 6, 4), **PHASE)
    assert first.branch == SEED and second.branch == first and third.branch == second
    assert [e.data for e in (first, second, third)] == DOMAINS and [e.steps for e in (first, second, third)] == [
        4,
        6,
        4,
    ]
    assert (third.lr, third.schedule_steps, third.seed, third.hidden) == (1e-3, 12, 3, 32)
    with pytest.raises(ConfigError, match=r"steps=\(4, 6\) must be one number, or as many as the 3 domains"):
        lane(SEED, DOMAINS, (4, 6))


def test_a_longer_expert_goes_on_with_the_shorter(tmp_path):
    alone = trained(SEED, "code_go", 8, **PHASE)
    through = trained(SEED, "code_go", 8, (2, 4, 8, 10), **PHASE)
    assert (through.start.steps, through.start.start.steps, through.start.start.branch) == (4, 2, SEED)
    store = Store(tmp_path)
    runs = run([alone, through], show=False, store=store, keep=True, device="cpu")
    last = [table.iloc[-1] for _, table in runs.table("validation loss").groupby("start", dropna=False)]
    assert runs.final()["value"].nunique() == 1, last
    assert training_flops(alone) == training_flops(through)


def test_the_budget_is_that_of_all_steps_after_the_seed():
    expert = lane(SEED, DOMAINS, (4, 6, 4), (2, 4), **PHASE)[-1]
    each = flops(Shape(1, 2, 16, 2, 32, 257), 24, 12)
    assert training_flops(expert) == 3 * 14 * each
    assert training_flops(SEED) == 0


def test_sizes_in_equal_distances_cost_what_equal_sizes_cost():
    sizes = [run_config(**{**dict(SEED), "hidden": hidden}) for hidden in (24, 32, 40)]
    unequal = sum(training_flops(trained(size, "code_go", 4)) for size in sizes)
    assert unequal == 3 * training_flops(trained(sizes[1], "code_go", 4))
    lengths = sum(training_flops(trained(SEED, "code_go", steps)) for steps in (3, 4, 5))
    assert lengths == 3 * training_flops(trained(SEED, "code_go", 4))


def test_experts_of_one_size_train_side_by_side_as_each_alone(tmp_path):
    experts = [trained(SEED, domain, 4, **PHASE) for domain in DOMAINS]
    together = run(experts, show=False, store=Store(tmp_path / "a"), device="cpu")
    assert set(together.provenance()["packed"]) == {3}
    for expert, record in zip(experts, together.records, strict=True):
        (alone,) = run([expert], show=False, store=Store(tmp_path / "b"), device="cpu").records
        assert alone.provenance["packed"] == 1
        pd.testing.assert_frame_equal(
            alone.metrics, record.metrics, check_exact=False, rtol=1e-5, check_categorical=False
        )


def test_a_branch_begins_anew_with_the_weights_of_its_parent(tmp_path, new_pack):
    store = Store(tmp_path / "s")
    run([SEED], show=False, store=store, keep=True, device="cpu")
    from swarmbook.training import trainer

    state = store.state(SEED.key)
    wide = trained(SEED, "code_go", 4, replicas=2, sync="gossip", sync_every=2)
    configs = [trained(SEED, "code_go", 4), trained(SEED, "code_go", 4, seed=1)]
    pack = trainer.Pack(configs, store.progress([c.key for c in configs]), "cpu", {SEED.key: state})
    for name, weight in pack.fleet.state_dict([0]).items():
        assert weight.equal(state["fleet"][name])
    assert pack.begin == 0 and not pack.optimizer.steps.any()
    assert not any(moment.any() for pair in pack.optimizer.moments(0, 0).values() for moment in pair)
    assert (pack.batches[0][0] != pack.batches[1][0]).any()
    several = trainer.Pack([wide], store.progress([wide.key]), "cpu", {SEED.key: state})
    for row in (0, 1):
        for name, weight in several.fleet.state_dict([row]).items():
            assert weight.equal(state["fleet"][name])
    assert all(weight.equal(several.outers[0].theta[name]) for name, weight in several.outers[0].phi.items())


def test_a_branch_that_cannot_be_is_told():
    fields = {"data": "code_go", "steps": 6}
    with pytest.raises(ConfigError, match="hidden=48 must be that of the run it starts from, 32"):
        trained(SEED, **{"domain": "code_go", "steps": 6, "hidden": 48})
    with pytest.raises(ConfigError, match="start and branch exclude each other"):
        run_config(**{**dict(SEED), **fields, "start": SEED, "branch": SEED})
    two = trained(SEED, "code_go", 4, replicas=2)
    with pytest.raises(ConfigError, match="replicas=3 cannot begin with the weights of 2 replicas"):
        trained(two, "code_go", 4, replicas=3)


def test_a_gain_is_the_slope_against_doublings():
    steps = np.array([0, 5, 10, 20, 40])
    assert gain(steps, [9.9, *(4 - 0.3 * np.log2(steps[1:]))]) == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="needs two points after step 0, not 1"):
        gain([0, 10], [4, 3])


def total(gains, steps):
    return -sum(g * np.log2(n) for g, n in zip(gains, steps, strict=True))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0.01, 2), min_size=2, max_size=4),
    st.integers(12, 40),
    st.integers(1, 3),
    st.integers(10, 40),
)
def test_no_whole_allocation_is_better(gains, budget, least, most):
    if most * len(gains) < budget:
        with pytest.raises(ConfigError, match="does not fit"):
            allocate(gains, budget, least, most)
        return
    steps = allocate(gains, budget, least, most)
    assert steps.sum() == pytest.approx(budget) and (steps >= least).all() and (steps <= most).all()
    ours = total(gains, steps)
    for split in itertools.product(range(least, most + 1), repeat=len(gains) - 1):
        last = budget - sum(split)
        if least <= last <= most:
            assert ours <= total(gains, (*split, last)) + 1e-9


def test_an_allocation_that_cannot_be_is_told():
    np.testing.assert_allclose(allocate([0.1, 0.3], 40), [10, 30])
    np.testing.assert_allclose(allocate([0.0, 0.0], 40), [20, 20])
    np.testing.assert_allclose(allocate([-1.0, 0.5], 40, least=4), [4, 36])
    np.testing.assert_allclose(allocate([0.1, 0.3], 40, most=25), [15, 25])
    with pytest.raises(ConfigError, match="budget=10 does not fit 2 domains of at least 6 and at most inf steps"):
        allocate([1, 1], 10, least=6)
