"""Mixtures of experts: weights and probabilities against brute force, priors, what an ensemble may be."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmbook.config import run_config
from swarmbook.data import batches, tokenization
from swarmbook.ensembles.ensemble import (
    PRIORS,
    VERSION,
    WEIGHTINGS,
    Ensemble,
    averaged,
    cached_prior,
    cached_prior_as_released,
    geometric,
    mixed,
    moving_average_prior,
    perplexities,
    posterior,
    table_of,
    top,
)
from swarmbook.runs import final_states, run
from swarmbook.training.fleet import Fleet

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = {
    "data": "essay_cfi", "stages": 1, "layers_per_stage": 1, "width": 16, "heads": 2, "hidden": 24, "sequence": 12,
    "tokenizer": "bytes", "microbatches": 1, "batch": 2, "steps": 4, "log_every": 2, "evaluate_every": 2, "held_out": 2,
}  # fmt: skip
DOMAINS = ("children_alice", "code_rust")


def probabilities(k, N, T, seed=0, spread=1.0):
    """log p of targets [k, N, T], as models of a vocabulary would give them."""
    rng = np.random.default_rng(seed)
    return np.log(rng.dirichlet(np.full(8, spread), (k, N, T)).max(-1) * rng.uniform(0.05, 1, (k, N, T)))


@st.composite
def cases(draw):
    k, N, T = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    values = st.floats(-30, -1e-3, allow_nan=False)
    log_p = np.array(draw(st.lists(values, min_size=k * N * T, max_size=k * N * T))).reshape(k, N, T)
    prior = np.array(draw(st.lists(st.floats(0.01, 1), min_size=k, max_size=k)))
    return log_p, prior / prior.sum()


def in_words(log_p, prior):
    """The mixture, one token after another, with plain products of probabilities."""
    k, N, T = log_p.shape
    found, weights = np.empty((N, T)), np.empty((k, N, T))
    for n in range(N):
        for t in range(T):
            joint = [prior[j] * float(np.prod([np.exp(log_p[j, n, u]) for u in range(t)])) for j in range(k)]
            weights[:, n, t] = np.array(joint) / sum(joint)
            found[n, t] = np.log(sum(w * np.exp(log_p[j, n, t]) for j, w in enumerate(weights[:, n, t])))
    return found, weights


@settings(max_examples=200, deadline=None)
@given(cases())
def test_the_mixture_is_that_of_the_paper_term_by_term(case):
    log_p, prior = case
    found, weights = mixed(log_p, prior)
    expected, by_hand = in_words(log_p, prior)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(weights, by_hand, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_a_useless_expert_costs_no_more_than_its_prior(case):
    log_p, prior = case
    whole = -mixed(log_p, prior)[0].sum(-1)  # nats of each sequence [N]
    bound = -log_p.sum(-1) - np.log(prior)[:, None]  # [k, N]
    assert (whole[None] <= bound + 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(cases())
def test_weights_start_at_the_prior_and_add_up(case):
    log_p, prior = case
    weights = posterior(log_p, prior)
    np.testing.assert_allclose(weights[:, :, 0], np.broadcast_to(prior[:, None], weights.shape[:2]), atol=1e-12)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-12)


def test_probabilities_of_a_mixture_sum_to_one_over_the_vocabulary():
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(7), (3, 5))  # three experts, five positions, seven entries
    target = rng.integers(0, 7, 5)
    log_p = np.log(p[:, np.arange(5), target])[:, None]  # [3, 1, 5]
    weights = mixed(log_p, np.array([0.5, 0.3, 0.2]))[1][:, 0]  # [3, 5]
    whole = np.einsum("jt,jtv->tv", weights, p)
    np.testing.assert_allclose(whole.sum(1), 1)
    np.testing.assert_allclose(np.log(whole[np.arange(5), target]), mixed(log_p, np.array([0.5, 0.3, 0.2]))[0][0])


@pytest.mark.parametrize("name", PRIORS)
def test_three_times_the_same_expert_is_that_expert_under_every_prior(name):
    one = probabilities(1, 6, 20)
    same = np.repeat(one, 3, 0)
    prior = PRIORS[name](same)
    np.testing.assert_allclose(prior, 1 / 3)
    np.testing.assert_allclose(mixed(same, prior)[0], one[0])


def test_the_cached_prior_locks_on_and_the_moving_average_does_not():
    """100 sequences of 1,024 tokens, noise of 6 nats a sequence, an advantage of 2 in 1,000 nats a token."""
    rng = np.random.default_rng(0)
    log_p = np.full((3, 100, 1024), -3.0) + rng.normal(0, 6 / 32, (3, 100, 1024))
    log_p[1] += 0.002
    locked, soft = cached_prior(log_p), moving_average_prior(log_p)
    assert locked[1] > 1 - 1e-12 and locked[[0, 2]].max() < 1e-12
    assert soft.max() < 0.9 and soft.min() > 0.02
    fair = cached_prior(log_p - np.array([0, 0.002, 0])[:, None, None])
    assert fair.max() > 0.99  # without any advantage as well


def test_the_cached_prior_is_the_recursion_of_the_released_code():
    log_p = probabilities(3, 5, 2, spread=5.0)
    kept = np.ones(3)
    for i in range(5):
        total = np.exp(log_p[:, i].sum(-1)) * kept
        kept = 0.3 ** (i + 1) * kept + total / total.sum()
    np.testing.assert_allclose(cached_prior(log_p), kept / kept.sum())


def test_the_released_prior_begins_anew_in_every_batch_of_ten_sequences():
    log_p = probabilities(3, 30, 2, spread=5.0)
    seen = 0
    for batch in np.split(log_p, 3, axis=1):
        kept = np.ones(3)  # as released: set inside the loop over batches
        for each in batch.sum(-1).T:
            total = np.exp(each) * kept
            kept = 0.3 ** (seen + 1) * kept + total / total.sum()
            seen += 1
    np.testing.assert_allclose(cached_prior_as_released(log_p), kept / kept.sum())
    other = log_p.copy()
    other[:, :20] = probabilities(3, 20, 2, seed=1, spread=5.0)  # what the released code forgets
    np.testing.assert_array_equal(cached_prior_as_released(other), cached_prior_as_released(log_p))
    assert abs(cached_prior(other) - cached_prior(log_p)).max() > 0.1
    np.testing.assert_array_equal(cached_prior_as_released(log_p[:, :9]), cached_prior(log_p[:, :9]))


def test_the_geometric_mean_is_never_better_than_the_mean_of_probabilities():
    log_p = probabilities(3, 4, 30)
    (each, weights), (mean, even) = geometric(log_p), averaged(log_p)
    assert weights is None and (even == 1 / 3).all()
    assert (each <= mean).all()
    losses = [-part.mean() for part in log_p]
    assert np.exp(-each.mean()) == pytest.approx(np.exp(losses).prod() ** (1 / 3))


def test_top_keeps_the_largest():
    prior = np.array([0.2, 0.5, 0.3])
    assert top(prior, 1).tolist() == [0, 1, 0]
    np.testing.assert_allclose(top(prior, 2), [0, 0.625, 0.375])
    assert top(np.array([0.4, 0.4, 0.2]), 1).tolist() == [1, 0, 0]
    log_p = probabilities(3, 4, 5)
    np.testing.assert_array_equal(mixed(log_p, top(prior, 1))[0], log_p[1])


def test_a_domain_has_a_loss_and_an_error_for_each_weighting_and_each_expert():
    log_p, development = probabilities(3, 8, 10, 1), probabilities(3, 4, 10, 2)
    rows = pd.DataFrame(table_of(log_p, development), columns=["weighting", "quantity", "value"])
    losses = rows[rows["quantity"] == "loss"].set_index("weighting")["value"]
    assert list(losses.index) == [*WEIGHTINGS[:3], "top 1", "top 2", *WEIGHTINGS[3:5]] + [
        f"expert {j}" for j in (1, 2, 3)
    ] + ["best expert"]
    assert losses["expert 2"] == pytest.approx(-log_p[1].mean())
    assert losses["best expert"] == min(losses[f"expert {j}"] for j in (1, 2, 3))
    errors = rows[rows["quantity"] == "error"].set_index("weighting")["value"]
    assert errors["expert 2"] == pytest.approx(log_p[1].mean(-1).std(ddof=1) / np.sqrt(8))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path))
    monkeypatch.delenv("SWARMBOOK_FRESH", raising=False)
    return tmp_path


def losses_of(table, weighting):
    rows = table[(table["quantity"] == "loss") & (table["weighting"] == weighting)]
    return rows.set_index("domain")["value"]


def quiet(ensembles):
    return perplexities(ensembles, recorded="none", device="cpu", show=False)


def test_experts_of_two_sizes_are_scored_as_each_alone(store):
    experts = [run_config(**{**SEED, "hidden": hidden, "seed": seed}) for hidden, seed in ((24, 0), (40, 0), (24, 1))]
    both = Ensemble(experts=experts, domains=DOMAINS, sequences=3, prior_sequences=2)
    alone = [Ensemble(experts=[e], domains=DOMAINS, sequences=3, prior_sequences=2) for e in experts]
    whole, *single = quiet([both, *alone])
    for j, (expert, table) in enumerate(zip(experts, single, strict=True)):
        pd.testing.assert_series_equal(losses_of(whole, f"expert {j + 1}"), losses_of(table, "expert 1"))
        for weighting in WEIGHTINGS:  # an ensemble of one is that expert
            pd.testing.assert_series_equal(losses_of(table, weighting), losses_of(table, "expert 1"))
        fleet = Fleet(expert.shape(257), [0], "cpu")
        fleet.load_state_dict(final_states([expert], show=False)[expert.key]["fleet"])
        for domain in DOMAINS:
            tokens = batches.held_out(tokenization.tokens(domain, "test", "bytes"), 12, 3)
            assert float(fleet.loss(tokens[None])) == pytest.approx(losses_of(table, "expert 1")[domain], rel=1e-6)


def test_an_expert_of_several_replicas_is_their_mean(store):
    gossip = run_config(**{**SEED, "replicas": 2, "sync": "gossip", "sync_every": 3, "common_start": True})
    one = run_config(**SEED)
    states = final_states([gossip, one], show=False)
    merged, several = quiet(
        [
            Ensemble(experts=[one, gossip], domains=DOMAINS, sequences=3, prior_sequences=2, merged=True),
            Ensemble(experts=[one, gossip], domains=DOMAINS, sequences=3, prior_sequences=2),
        ]
    )
    fleet = Fleet(one.shape(257), [0], "cpu")
    parts = {name: (states[one.key]["fleet"][name], states[gossip.key]["fleet"][name]) for name in fleet.state_dict()}
    axis = {name: 2 if name.startswith("layers.") else 0 for name in parts}
    mean_of = {name: both.mean(axis[name], keepdim=True) for name, (_, both) in parts.items()}
    tokens = batches.held_out(tokenization.tokens(DOMAINS[0], "test", "bytes"), 12, 3)[None]
    fleet.load_state_dict(mean_of)
    assert float(fleet.loss(tokens)) == pytest.approx(losses_of(several, "expert 2")[DOMAINS[0]], rel=1e-6)
    three = {name: torch.cat(pair, axis[name]).mean(axis[name], keepdim=True) for name, pair in parts.items()}
    fleet.load_state_dict(three)
    assert float(fleet.loss(tokens)) == pytest.approx(losses_of(merged, "expert 1")[DOMAINS[0]], rel=1e-6)


def test_recorded_numbers_need_no_expert(store, monkeypatch):
    ensemble = Ensemble(experts=[run_config(**SEED)], domains=DOMAINS, sequences=3, prior_sequences=2)
    (first,) = quiet([ensemble])
    for path in (store / "states").iterdir():
        path.unlink()
    monkeypatch.setattr("swarmbook.ensembles.ensemble.final_states", None)
    (again,) = quiet([ensemble])
    pd.testing.assert_frame_equal(first, again)
    assert Ensemble(**{**dict(ensemble), "sequences": 4}).depends_on != ensemble.depends_on


def test_the_released_prior_is_scored_where_it_is_registered(monkeypatch):
    ensemble = Ensemble(experts=[run_config(**SEED)], domains=DOMAINS)
    before = ensemble.depends_on
    monkeypatch.setitem(PRIORS, "as released", cached_prior_as_released)
    assert ensemble.depends_on != before
    log_p = probabilities(3, 24, 12)
    priors = {way: [v for w, q, v in table_of(log_p, log_p) if w == way and q.startswith("prior")] for way in PRIORS}
    np.testing.assert_allclose(priors["as released"], cached_prior_as_released(log_p))
    assert priors["cached prior"] != priors["as released"]


def test_a_prior_of_ones_own_is_scored_and_part_of_what_numbers_depend_on(store, monkeypatch):
    ensemble = Ensemble(
        experts=[run_config(**{**SEED, "seed": seed}) for seed in (0, 1)],
        domains=DOMAINS[:1],
        sequences=3,
        prior_sequences=2,
    )
    before = ensemble.depends_on
    monkeypatch.setitem(PRIORS, "first alone", lambda log_p: np.eye(len(log_p))[0])
    assert ensemble.depends_on != before
    (table,) = quiet([ensemble])
    pd.testing.assert_series_equal(losses_of(table, "first alone"), losses_of(table, "expert 1"))


def test_what_an_ensemble_cannot_be_is_told():
    expert = run_config(**SEED)
    longer, wider = run_config(**{**SEED, "sequence": 16}), run_config(**{**SEED, "hidden": 32})
    with pytest.raises(ValueError, match="needs experts and domains"):
        Ensemble(experts=[], domains=DOMAINS)
    with pytest.raises(
        ValueError, match="sequence must be the same for all experts to predict the same tokens; it is 12 and"
    ):
        Ensemble(experts=[expert, longer], domains=DOMAINS)
    with pytest.raises(ValueError, match="hidden must be the same for all experts to be merged; it is 24 and 32"):
        Ensemble(experts=[expert, wider], domains=DOMAINS, merged=True)
    with pytest.raises(tokenization.DataError, match="unknown domain 'code_rusty'"):
        _ = Ensemble(experts=[expert], domains=["code_rusty"]).depends_on


def test_golden_numbers(store):
    """Change the numbers of an ensemble on purpose only, and then raise VERSION."""
    experts = [run_config(**{**SEED, "seed": seed}) for seed in (0, 1)]
    run(experts, show=False, keep=True)
    (table,) = quiet([Ensemble(experts=experts, domains=DOMAINS[:1], sequences=3, prior_sequences=2)])
    found = {f"{row.weighting}, {row.quantity}": row.value for row in table.itertuples()}
    golden = json.loads((Path(__file__).parent / "golden_ensemble.json").read_text())
    assert golden.pop("version") == VERSION
    assert found == pytest.approx(golden, rel=1e-5)


def test_a_target_that_an_expert_calls_impossible_takes_its_weight_and_nothing_else():
    log_p = np.log(np.full((2, 1, 4), 0.5))
    log_p[0, 0, 1] = -np.inf
    weights = posterior(log_p, np.array([0.5, 0.5]))
    np.testing.assert_allclose(weights[0, 0], [0.5, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(weights.sum(0), 1.0)
    found, _ = mixed(log_p, np.array([0.5, 0.5]))
    np.testing.assert_allclose(np.exp(found[0]), [0.5, 0.25, 0.5, 0.5])
    for prior in (cached_prior(log_p), moving_average_prior(log_p)):
        assert np.isfinite(prior).all() and abs(prior.sum() - 1) < 1e-12
