"""Measurements measure what they say, of the runs that ask, and put everything back."""

from math import comb
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swarmbook.config import grid, run_config
from swarmbook.methods import measurements
from swarmbook.methods.measurements import JUMP_RULES, MEASUREMENTS
from swarmbook.methods.model_size import Shape
from swarmbook.methods.recovery import RULES, Lost
from swarmbook.records.store import Store
from swarmbook.runs import run
from swarmbook.training import llama
from swarmbook.training.fleet import Fleet

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = Shape(stages=4, layers_per_stage=2, width=16, heads=2, hidden=24, vocabulary=41)
S, EACH, RUNS, N, T = SHAPE.stages, 2, 3, 6, 12
NAMES = ("loss jump", "pair jump", "missing stages", "similarity", "re-initialisation error")


class Pack:
    """Three finished runs of two replicas each, as measurements see them."""

    def __init__(self, shape=SHAPE):
        self.fleet = Fleet(shape, range(RUNS * EACH), device="cpu", compile=False)
        self.runs = [SimpleNamespace(stages=shape.stages, replicas=EACH) for _ in range(RUNS)]
        generator = torch.Generator().manual_seed(0)
        for weight in [*self.fleet.layers.values(), *self.fleet.outer.values()]:  # far from the start
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
        self.norms = torch.rand(RUNS * EACH, shape.stages + 1, generator=generator) + 0.1
        self.held_out = torch.randint(shape.vocabulary, (1, N, T + 1), generator=generator)

    def replicas(self, i):
        return range(i * EACH, (i + 1) * EACH)

    def validation_loss(self, cells=None):
        return self.fleet.loss(self.held_out, cells).view(RUNS, EACH).mean(1).tolist()

    def rebuild(self, i, row, stage, dead, rule):
        rng = np.random.default_rng((i, row, stage))
        RULES[rule].rule(Lost(self.fleet, row, stage, dead, self.norms, rng))


@pytest.fixture
def pack():
    return Pack()


def table(pack, name, asking=(0, 1, 2)):
    """{(run, stage, label): value}, each once."""
    rows = list(MEASUREMENTS[name](pack, list(asking)))
    assert {row[1] for row in rows} <= {name}
    values = {(i, stage, label): value for i, _, stage, label, value in rows}
    assert len(values) == len(rows)
    return values


def skipping(first, missing, stages=S):
    cells = np.empty((stages, RUNS * EACH, 1, 2), dtype=np.int64)
    cells[..., 0] = np.arange(RUNS * EACH)[None, :, None]
    cells[..., 1] = np.arange(stages)[:, None, None]
    cells[first : first + missing, ..., 1] = -1
    return cells


def copy_stage(fleet, row, source, target):
    for name, weight in fleet.stage(row, target).items():
        weight.copy_(fleet.stage(row, source)[name])


def test_every_measurement_is_registered_with_its_rows(pack):
    assert set(NAMES) <= set(MEASUREMENTS)
    stages_and_labels = {
        "loss jump": {(s, rule) for s in (1, 2, 3, 4) for rule in JUMP_RULES},
        "pair jump": {(s, rule) for s in (1, 2, 3) for rule in JUMP_RULES},
        "missing stages": {(s, str(k)) for k in (1, 2, 3) for s in range(1, S - k + 2)},
        "similarity": {(s, label) for s in (1, 2, 3) for label in ("weights", "functions")},
        "re-initialisation error": {(s, rule) for s in (1, 2, 3, 4) for rule in JUMP_RULES}
        | {(s, f"{rule} of functions") for s in (2, 3) for rule in ("uniform average", "CheckFree")},
    }
    for name, wanted in stages_and_labels.items():
        for asking in ([0, 2], [1]):
            assert set(table(pack, name, asking)) == {(i, *place) for i in asking for place in wanted}
        assert table(pack, name, [2, 0]).items() >= table(pack, name, [2]).items()


@pytest.mark.parametrize("name", NAMES)
def test_the_fleet_is_left_as_it_was(pack, name):
    before = pack.fleet.state_dict()
    for _ in MEASUREMENTS[name](pack, [0, 2]):
        after = pack.fleet.state_dict()  # at any time at which others can look
        assert all(torch.equal(after[key], weight) for key, weight in before.items())


@pytest.mark.parametrize("name", ["loss jump", "pair jump", "re-initialisation error"])
@pytest.mark.parametrize("broken", ["rebuild", "apply", "stop"])
def test_the_fleet_is_put_back_after_a_failure(pack, name, broken, monkeypatch):
    class Stopped(BaseException):
        pass

    before, calls = pack.fleet.state_dict(), []

    def after_a_while(function, last):
        def call(*arguments):
            function(*arguments)
            calls.append(arguments)
            if len(calls) == last:
                raise Stopped
            return function(*arguments)

        return call

    if broken == "stop":
        rows = MEASUREMENTS[name](pack, [0, 1])
        next(rows)
        rows.close()
    else:
        target = pack if broken == "rebuild" else pack.fleet
        monkeypatch.setattr(target, broken, after_a_while(getattr(target, broken), 7))
        with pytest.raises(Stopped):
            list(MEASUREMENTS[name](pack, [0, 1]))
    assert all(torch.equal(pack.fleet.state_dict()[key], weight) for key, weight in before.items())


@pytest.mark.parametrize(("name", "width"), [("loss jump", 1), ("pair jump", 2)])
def test_jumps_are_those_of_losing_and_rebuilding_by_hand(pack, name, width):
    got = table(pack, name)
    before = pack.validation_loss()
    state = pack.fleet.state_dict()
    for s in range(S - width + 1):
        for rule in JUMP_RULES:
            for i in range(RUNS):
                for row in pack.replicas(i):
                    for stage in range(s, s + width):
                        pack.rebuild(i, row, stage, frozenset(range(s, s + width)), rule)
            after = pack.validation_loss()
            pack.fleet.load_state_dict(state)
            for i in range(RUNS):
                assert got[i, s + 1, rule] == pytest.approx(after[i] - before[i], abs=2e-6), (i, s, rule)
    assert len({round(value, 6) for value in got.values()}) > 30  # they do differ


def test_a_lost_pair_is_rebuilt_from_the_nearest_survivors(pack):
    """Stages 2 and 3 lost: copies of stage 1 by one rule, the mean of stages 1 and 4 by the other."""
    got = table(pack, "pair jump")
    before, state = pack.validation_loss(), pack.fleet.state_dict()
    for rule, share in (("copy previous", 1.0), ("uniform average", 0.5)):
        for weight in pack.fleet.layers.values():  # [layers, S, R, ...]
            weight[:, 1:3] = (share * weight[:, 0] + (1 - share) * weight[:, 3])[:, None]
        after = pack.validation_loss()
        pack.fleet.load_state_dict(state)
        for i in range(RUNS):
            assert got[i, 2, rule] == pytest.approx(after[i] - before[i], abs=2e-6)


def test_missing_stages_are_skipped_by_a_route(pack):
    for (i, stage, label), value in table(pack, "missing stages").items():
        wanted = pack.validation_loss(skipping(stage - 1, int(label)))[i]
        assert value == pytest.approx(wanted, abs=2e-6), (i, stage, label)


def test_a_stage_rebuilt_as_identity_is_a_missing_one(pack):
    jumps, pairs, missing = (table(pack, name) for name in ("loss jump", "pair jump", "missing stages"))
    before = pack.validation_loss()
    for i in range(RUNS):
        for s in range(1, S + 1):
            assert before[i] + jumps[i, s, "identity"] == pytest.approx(missing[i, s, "1"], abs=2e-6)
        for s in range(1, S):
            assert before[i] + pairs[i, s, "identity"] == pytest.approx(missing[i, s, "2"], abs=2e-6)


def test_equal_stages_are_similar_and_opposite_ones_are_not(pack):
    fleet = pack.fleet
    for row in pack.replicas(1):
        copy_stage(fleet, row, 0, 1)
        copy_stage(fleet, row, 1, 2)
        fleet.stage(row, 2)["attention_norm"].mul_(3)  # the gains do not count as weights
    for row in pack.replicas(2):
        copy_stage(fleet, row, 1, 2)
        for name in ("output", "down"):
            fleet.stage(row, 2)[name].neg_()
    got = table(pack, "similarity")
    assert got[1, 1, "weights"] == pytest.approx(1, abs=1e-5)
    assert got[1, 1, "functions"] == pytest.approx(1, abs=1e-5)
    assert got[1, 2, "weights"] == pytest.approx(1, abs=1e-5)
    assert got[1, 2, "functions"] < 0.999
    assert abs(got[0, 1, "weights"]) < 0.1 and abs(got[0, 1, "functions"]) < 0.9
    flat = [torch.cat([fleet.stage(4, s)[n].flatten() for n in ("qkv", "output", "gate_up", "down")]) for s in (1, 2)]
    again = [torch.cat([fleet.stage(5, s)[n].flatten() for n in ("qkv", "output", "gate_up", "down")]) for s in (1, 2)]
    wanted = np.mean([float(a @ b / a.norm() / b.norm()) for a, b in (flat, again)])
    assert got[2, 2, "weights"] == pytest.approx(wanted, abs=1e-5)


def test_one_layer_that_only_changes_its_sign_points_the_other_way():
    """With one layer and no MLP a stage is linear in its output projection."""
    pack = Pack(Shape(**{**SHAPE.__dict__, "layers_per_stage": 1}))
    pack.fleet.layers["down"].zero_()
    for row in range(RUNS * EACH):
        copy_stage(pack.fleet, row, 0, 1)
        pack.fleet.stage(row, 1)["output"].neg_()
    assert table(pack, "similarity")[0, 1, "functions"] == pytest.approx(-1, abs=1e-5)


def walk(pack, row, stages, sources):
    """What enters each of `stages` of one replica in order, and the updates of `sources` there; plain model calls."""
    cos, sin = llama.rotary(T, SHAPE.head_width, torch.device("cpu"))
    found = {}

    def through(stage, x):
        weights = pack.fleet.stage(row, stage)
        for j in range(SHAPE.layers_per_stage):
            x = llama.layer(x, *(w[j : j + 1] for w in weights.values()), cos, sin)[0]
        return x

    x = pack.fleet.ends(row)["embedding"][pack.held_out[0, :, :-1]].view(1, N * T, SHAPE.width)
    for s in stages:
        found[s] = {k: (through(k, x) - x).double() for k in sources(s)}
        x = through(s, x)
    return found


def test_the_error_of_averaged_functions_is_that_of_plain_model_calls(pack):
    pack.norms[3] = 0.0  # no gradients at all: equal shares
    got = table(pack, "re-initialisation error")
    for i in range(RUNS):
        wanted = {}
        for row in pack.replicas(i):
            updates = walk(pack, row, range(S), lambda s: range(max(0, s - 1), min(S, s + 2)))
            for s in range(1, S - 1):
                f = updates[s]
                a, b = float(pack.norms[row, s - 1]) ** 2, float(pack.norms[row, s + 1]) ** 2
                share = a / (a + b) if a + b else 0.5
                for label, w in (("uniform average", 0.5), ("CheckFree", share)):
                    error = (w * f[s - 1] + (1 - w) * f[s + 1] - f[s]).square().sum() / f[s].square().sum()
                    wanted.setdefault((s + 1, f"{label} of functions"), []).append(float(error))
        for place, errors in wanted.items():
            assert got[i, *place] == pytest.approx(np.mean(errors), rel=1e-4), (i, place)


def test_the_error_of_a_rebuilt_stage_is_that_of_plain_model_calls(pack):
    got, state = table(pack, "re-initialisation error"), pack.fleet.state_dict()
    for s in range(S):
        for rule in JUMP_RULES:
            errors = []
            for row in pack.replicas(1):
                lost = walk(pack, row, range(s + 1), lambda k: [k])[s][s]
                pack.rebuild(1, row, s, frozenset({s}), rule)
                rebuilt = walk(pack, row, range(s + 1), lambda k: [k])[s][s]
                pack.fleet.load_state_dict(state)
                errors.append(float((rebuilt - lost).square().sum() / lost.square().sum()))
            assert got[1, s + 1, rule] == pytest.approx(np.mean(errors), rel=1e-4), (s, rule)


def test_a_stage_rebuilt_as_it_was_has_no_error_and_a_skipped_one_has_error_1(pack):
    for row in range(RUNS * EACH):
        for s in range(1, S):
            copy_stage(pack.fleet, row, 0, s)
    got = table(pack, "re-initialisation error")
    for (_, _, label), error in got.items():
        if label == "identity":
            assert error == pytest.approx(1, abs=1e-6)
        elif label == "copy previous":
            assert error == 0
        elif label != "random":
            assert error < 1e-9, label


def test_the_lost_weights_cannot_be_read(pack, monkeypatch):
    def keeps_all(lost):
        pass

    monkeypatch.setitem(RULES, "CheckFree", type(RULES["CheckFree"])(keeps_all))
    assert np.isnan(table(pack, "loss jump")[0, 2, "CheckFree"])


def test_a_sample_of_the_held_out_sequences_will_do(pack, monkeypatch):
    whole = {name: table(pack, name) for name in NAMES}
    monkeypatch.setattr(measurements, "SEQUENCES", 2)
    sampled = {name for name in NAMES if table(pack, name) != whole[name]}
    assert sampled == {"pair jump", "similarity", "re-initialisation error"}


@pytest.mark.parametrize("stages", [1, 2])
def test_short_models_have_fewer_rows(stages):
    pack = Pack(Shape(**{**SHAPE.__dict__, "stages": stages}))
    places = {name: {(s, label) for _, s, label in table(pack, name)} for name in NAMES}
    assert len(places["loss jump"]) == stages * len(JUMP_RULES)
    assert len(places["pair jump"]) == (stages - 1) * len(JUMP_RULES)
    assert places["missing stages"] == {(s, "1") for s in range(1, stages + 1) if stages > 1}
    assert len(places["similarity"]) == 2 * (stages - 1)
    assert len(places["re-initialisation error"]) == stages * len(JUMP_RULES)


def test_from_configuration_to_record(tmp_path):
    tiny = {
        "data": "stories_toy", "stages": 4, "width": 16, "heads": 2, "hidden": 32, "sequence": 16, "steps": 10,
        "log_every": 5, "evaluate_every": 10, "held_out": 4,
    }  # fmt: skip
    asking = run_config(**tiny, measurements=NAMES)
    silent = run_config(**tiny, seed=1)
    runs = run([silent, asking], show=False, store=Store(tmp_path / "store"))
    for name in NAMES:
        rows = runs.table(name)
        assert set(rows["seed"]) == {0} and set(rows["step"]) == {10}
        assert np.isfinite(rows["value"]).all()
    final = runs.final()
    before = float(final[final["seed"] == 0]["value"].iloc[0])
    jumps, missing = runs.table("loss jump"), runs.table("missing stages")
    jumps = jumps[jumps["label"] == "identity"].set_index("stage")["value"]
    missing = missing[missing["label"] == "1"].set_index("stage")["value"]
    np.testing.assert_allclose(before + jumps, missing, atol=1e-5)


def losses_of(fleet, weights, tokens):
    """Loss of one model with these weights on each of tokens [N, T + 1]."""
    alone = Fleet(fleet.shape, [0], device="cpu", compile=False)
    alone.load_state_dict(weights)
    return alone.loss(tokens[None], per_sequence=True)[0]


@pytest.mark.parametrize("asking", [[0, 2], [1]])
def test_the_mean_weight_loss_is_that_of_one_model_with_the_mean_weights(pack, asking):
    before, rows = pack.fleet.state_dict(), MEASUREMENTS["mean weights"](pack, asking)
    found = {}
    for i, *labels, value in rows:
        assert labels == ["mean-weight loss", 0, ""]
        assert all(torch.equal(weight, before[key]) for key, weight in pack.fleet.state_dict().items())
        found[i] = value
    assert list(found) == asking
    for i, value in found.items():
        own = [pack.fleet.state_dict([row]) for row in pack.replicas(i)]
        mean = {name: sum(state[name] for state in own) / EACH for name in before}
        assert value == pytest.approx(float(losses_of(pack.fleet, mean, pack.held_out[0]).mean()), rel=1e-5)
        assert value != pytest.approx(pack.validation_loss()[i], rel=1e-3)


def test_the_fleet_is_put_back_if_its_mean_cannot_be_measured(pack, monkeypatch):
    class Stopped(BaseException):
        pass

    def stop(tokens):
        assert any(not torch.equal(weight, before[key]) for key, weight in pack.fleet.state_dict().items())
        raise Stopped

    before = pack.fleet.state_dict()
    monkeypatch.setattr(pack.fleet, "loss", stop)
    with pytest.raises(Stopped):
        list(MEASUREMENTS["mean weights"](pack, [0, 1, 2]))
    assert all(torch.equal(weight, before[key]) for key, weight in pack.fleet.state_dict().items())


def test_each_replica_is_measured_on_all_and_on_its_own_share(pack):
    rows = list(MEASUREMENTS["replicas"](pack, [0, 2]))
    assert [row[:4] for row in rows] == [(i, "replica loss", 0, label) for i in (0, 2) for label in ("1", "2")]
    each = [losses_of(pack.fleet, pack.fleet.state_dict([row]), pack.held_out[0]) for row in range(RUNS * EACH)]
    for i, *_, label, value in rows:
        assert value == pytest.approx(float(each[pack.replicas(i)[int(label) - 1]].mean()), rel=1e-5)
    pack.held_out, each = pack.held_out[:, :5], [losses[:5] for losses in each]  # shares of 3 and 2 sequences
    for i, metric, stage, label, value in MEASUREMENTS["own shard"](pack, [0, 2]):
        first, second = (each[row] for row in pack.replicas(i))
        wanted = (first[[0, 2, 4]].mean() + second[[1, 3]].mean()) / 2
        assert (metric, stage, label) == ("own-shard loss", 0, "") and value == pytest.approx(float(wanted), rel=1e-5)


TINY = {
    "data": "stories_toy", "stages": 2, "width": 16, "heads": 2, "hidden": 24, "sequence": 8, "steps": 10,
    "held_out": 4,
}  # fmt: skip


@pytest.fixture
def far_apart(new_pack):
    """Makes a pack of runs with seeds 0, 1 and 2, whose replicas have drifted apart."""

    def make(replicas):
        pack = new_pack(*grid(TINY, seed=range(3), replicas=[replicas]))
        generator = torch.Generator().manual_seed(0)
        for weight in [*pack.fleet.layers.values(), *pack.fleet.outer.values()]:
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
        return pack

    return make


def averaging(pack, asking=(0, 1, 2)):
    """{(run, metric, label): value}, each once."""
    rows = list(MEASUREMENTS["averaging rounds"](pack, list(asking)))
    assert {stage for _, _, stage, _, _ in rows} <= {0}
    values = {(i, metric, label): value for i, metric, _, label, value in rows}
    assert len(values) == len(rows)
    return values


def test_a_hypercube_of_pairs_reaches_the_mean(far_apart):
    pack = far_apart(8)
    got, spreads, loss = averaging(pack), [pack.spread(i) for i in range(3)], pack.validation_loss()
    mean = {i: value for i, *_, value in MEASUREMENTS["mean weights"](pack, [0, 1, 2])}
    for i in range(3):
        rows = pack.replicas(i)
        for k in (1, 2, 3, 4):
            flat = torch.cat([w.flatten(1) for w in pack.fleet.replica_views(rows).values()], 1).double()
            for bit in range(min(k, 3)):
                flat = (flat + flat[[r ^ 1 << bit for r in range(8)]]) / 2
            wanted = float(flat.var(0, correction=0).mean().sqrt())
            assert got[i, "averaged spread", f"hypercube {k}"] == pytest.approx(wanted, abs=1e-6 * spreads[i])
        assert wanted < 1e-12 < 0.1 * spreads[i] < got[i, "averaged spread", "hypercube 2"]
        for k in (3, 4):
            assert got[i, "averaged loss", f"hypercube {k}"] == pytest.approx(mean[i], abs=1e-5)
        for other in (loss[i], got[i, "averaged loss", "hypercube 2"]):
            assert abs(other - mean[i]) > 1e-3


def test_the_loss_after_a_round_is_that_of_replicas_averaged_by_hand(far_apart):
    pack = far_apart(4)
    got = averaging(pack, [1])
    rows = pack.replicas(1)
    own = [pack.fleet.state_dict([row]) for row in rows]
    pairs = [{name: (own[r][name] + own[r ^ 1][name]) / 2 for name in own[0]} for r in range(4)]
    wanted = np.mean([float(losses_of(pack.fleet, pair, pack.held_out[0]).mean()) for pair in pairs])
    assert got[1, "averaged loss", "hypercube 1"] == pytest.approx(wanted, rel=1e-5)


def test_random_pairs_halve_the_variance_in_each_round(far_apart):
    """A pair's mean has half the variance, less that of the mean of all: (R - 2) / (2 R - 2) of the one before."""
    R, pack = 32, far_apart(32)
    got, left = averaging(pack), []
    for i in range(3):
        spreads = [pack.spread(i), *(got[i, "averaged spread", f"random {k}"] for k in range(1, 7))]
        left.append(np.divide(spreads[1:], spreads[:-1]) ** 2)
    np.testing.assert_allclose(np.array(left)[:, 0], (R - 2) / (2 * R - 2), rtol=0.02)  # of independent replicas
    assert np.mean(left) == pytest.approx((R - 2) / (2 * R - 2), rel=0.15)
    assert (np.array(left) < 1).all() and len({round(row[2], 6) for row in left}) == 3  # each seed deals its own pairs


@pytest.mark.parametrize(
    ("replicas", "rounds"),
    [(1, {}), (3, {}), (2, {"random": 2, "hypercube": 2}), (4, {"random": 3, "hypercube": 3}), (6, {"random": 3})],
)
def test_which_rounds_of_averaging_there_are(far_apart, replicas, rounds):
    pack = far_apart(replicas)
    labels = {f"{name} {k}" for name, count in rounds.items() for k in range(1, count + 1)}
    wanted = {(i, metric, label) for i in (0, 2) for metric in ("averaged loss", "averaged spread") for label in labels}
    got = averaging(pack, [0, 2])
    assert set(got) == wanted and all(np.isfinite(value) for value in got.values())
    whole = averaging(pack)
    assert all(value == pytest.approx(whole[place], rel=1e-5, abs=1e-8) for place, value in got.items())


def test_averaging_leaves_the_fleet_as_it_was_even_after_a_failure(far_apart, monkeypatch):
    class Stopped(BaseException):
        pass

    def is_as_it_was():
        return all(torch.equal(weight, before[key]) for key, weight in pack.fleet.state_dict().items())

    def measured(tokens):
        assert not is_as_it_was()
        now = pack.fleet.state_dict(list(pack.replicas(1)))
        assert all(torch.equal(weight, silent[key]) for key, weight in now.items())
        calls.append(tokens)
        if len(calls) == stop:
            raise Stopped
        return loss(tokens)

    pack, calls, stop = far_apart(4), [], 100
    before, loss = pack.fleet.state_dict(), pack.fleet.loss
    silent = pack.fleet.state_dict(list(pack.replicas(1)))
    monkeypatch.setattr(pack.fleet, "loss", measured)
    for _ in MEASUREMENTS["averaging rounds"](pack, [0, 2]):
        assert is_as_it_was()
    assert len(calls) == 6
    stop = 10
    with pytest.raises(Stopped):
        averaging(pack, [0, 2])
    assert is_as_it_was()


def test_a_partial_model_is_the_route_without_those_stages(pack, monkeypatch):
    monkeypatch.setattr(measurements, "SEQUENCES", 4)  # of 6: in two parts
    rows = list(MEASUREMENTS["partial model"](pack, [2, 0]))
    found = {(i, metric, label): value for i, metric, stage, label, value in rows if stage == 0}
    labels = ["", *"234", "2 3", "2 4", "3 4", "2 3 4"]
    wanted = {(i, f"partial {m}", label) for i in (0, 2) for m in ("loss", "perplexity") for label in labels}
    assert len(rows) == len(found) and found.keys() == wanted
    for label in labels:
        cells = skipping(0, 0)
        for stage in map(int, label.split()):
            cells[stage - 1, ..., 1] = -1
        losses = pack.fleet.loss(pack.held_out, cells, per_sequence=True).view(RUNS, EACH, N)
        for i in (0, 2):
            assert found[i, "partial loss", label] == pytest.approx(float(losses[i].mean()), rel=1e-6)
            assert found[i, "partial perplexity", label] == pytest.approx(float(losses[i].exp().mean()), rel=1e-5)
            assert found[i, "partial perplexity", label] > np.exp(found[i, "partial loss", label])
    whole = pack.validation_loss()
    assert [found[i, "partial loss", ""] for i in (0, 2)] == pytest.approx([whole[0], whole[2]], rel=1e-6)


def test_a_partial_model_computes_what_walks_share_once_and_changes_nothing(pack, monkeypatch):
    before, calls, apply = pack.fleet.state_dict(), [], pack.fleet.apply
    monkeypatch.setattr(pack.fleet, "apply", lambda stage, x: calls.append(stage) or apply(stage, x))
    for _ in MEASUREMENTS["partial model"](pack, [1]):
        assert all(torch.equal(pack.fleet.state_dict()[name], weight) for name, weight in before.items())
    assert len(calls) == 1 + 2 + 4 + 1 and calls.count(0) == 1  # of the 20 stages that the 8 models have


@pytest.mark.parametrize("stages", [1, 2, 6, 12, 20])
def test_stages_are_left_out_equally_often(stages):
    sets = measurements.subsets(stages)
    assert len(set(sets)) == len(sets) and sets == measurements.subsets(stages)
    for size in range(stages):
        some = [left_out for left_out in sets if len(left_out) == size]
        assert len(some) == min(measurements.SUBSETS, comb(stages - 1, size))
        counts = [sum(stage in left_out for left_out in some) for stage in range(stages)]
        assert counts[0] == 0 and max(counts[1:], default=0) - min(counts[1:], default=0) <= 1
