"""Who is there when: traces from files and formulas, and training past what is away, until it comes back."""

import math

import numpy as np
import pytest
import torch

from swarmbook.config import run_config
from swarmbook.errors import ConfigError
from swarmbook.methods import availability, routing
from swarmbook.methods.availability import absences, diurnal, intervals, read, regions, sessions, weibull
from swarmbook.records.store import Store
from swarmbook.runs import run
from swarmbook.training.trainer import Pack

R, S, STEPS = 3, 4, 12
TINY = {
    "data": "stories_toy", "stages": S, "width": 8, "heads": 2, "hidden": 16, "sequence": 8, "microbatches": 2,
    "batch": 1, "steps": STEPS, "log_every": 1, "evaluate_every": 4, "held_out": 4, "replicas": R, "common_start": True,
    "sync_every": 4, "lr": 3e-3,
}  # fmt: skip
BACK = {"recovery": "peer copy", "slow_weights": "peer"}
pytestmark = pytest.mark.usefixtures("one_thread")


# Traces


def written(tmp_path, *lines):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["node,from,to", *lines]) + "\n")
    return path


def test_a_trace_says_when_nodes_are_there(tmp_path):
    """Times in minutes, with steps of two: a node misses the steps in which it is not there from beginning to end."""
    lines = ["1,0,", "2.1,0,9", "2.1,12,", "2.2,4,", "3.1,0,10", "3.2,0,10"]
    found = read(written(tmp_path, *lines), steps=8, replicas=3, stages=2, unit=2.0)
    assert found == (("2.2", 0, 2), ("2.1", 4, 6), ("3", 5, None))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,0,5", "1.2,4,9"], "line 3: node 1.2 is there from 4, but an interval before it ends at 5"),
        (["1,3,5", "1,0,2"], "line 3: node 1 is there from 0, but an interval before it ends at 5: give the intervals"),
        (["1,5,5"], "line 2: node 1 is there from 5 to 5: give 0 <= from < to"),
        (["1,nan,5"], "line 2: node 1 is there from nan to 5"),
        (["1,-1,5"], "line 2: node 1 is there from -1 to 5"),
        (["3,0,5"], "line 2: .* node '3' is none of replicas 1 to 2 with stages 1 to 2"),
        (["1.0,0,5"], "line 2: .* node '1.0' is none of replicas"),
        (["a,0,5"], "line 2: .* node 'a' is none of replicas"),
        (["1,x,5"], "line 2: '1,x,5' is no node, from, to such as 2.3,0,40"),
        (["1,0"], "line 2: '1,0' is no node, from, to"),
        (["1,0,", "", "2.1,0,"], "node 2.2 is in no line: say when it is there"),
    ],
)
def test_what_is_wrong_in_a_trace_is_named_with_its_line(tmp_path, lines, message):
    with pytest.raises(ConfigError, match=message):
        read(written(tmp_path, *lines), steps=8, replicas=2, stages=2)


def test_columns_of_a_trace_are_checked(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("node,start,end\n1,0,5\n")
    with pytest.raises(ConfigError, match="line 1: the columns are 'node,start,end': give node,from,to"):
        read(path, 8, 1, 1)


@pytest.mark.parametrize("shape", [(30, 3), (30, 3, 4)])
def test_absences_say_all_of_who_is_there(shape):
    there = np.random.default_rng(0).random(shape) < 0.7
    gone = absences(np.zeros((30, 3, 5), dtype=bool), intervals(there), 0).gone
    stages = there if there.ndim == 3 else np.repeat(there[..., None], 4, 2)
    np.testing.assert_array_equal(gone[..., :-1], ~stages)
    np.testing.assert_array_equal(gone[..., -1], ~stages.any(2))
    availability.check(intervals(there), 30, 3, 4)


def test_what_is_lost_stays_away_and_comes_back():
    dying = np.zeros((10, 1, 3), dtype=bool)
    dying[[1, 2, 8], 0, 0] = True
    dying[[0, 5], 0, 1] = True
    found = absences(dying, [("1.2", 4, 7)], 3)
    tables = [["".join(map(str, table[:, 0, s].astype(int))) for s in (0, 1)] for table in found]
    assert tables[1] == ["0111000011", "1110111000"]
    assert tables[0] == ["0100000010", "0000100000"]  # who is away before the first step is not lost in it
    assert tables[2] == ["0000100000", "0001000100"]
    forever = absences(dying, (), None)
    assert not forever.back.any() and forever.gone[1:, 0, 0].all() and forever.gone[:, 0, 1].all()
    at_once = absences(dying, [("1.2", 4, 7)], 0)
    assert np.array_equal(at_once.lost[..., 0], dying[..., 0]) and np.array_equal(at_once.back[..., 0], dying[..., 0])
    assert np.flatnonzero(at_once.back[:, 0, 1]).tolist() == [0, 7]


def test_sessions_last_as_their_formula_says():
    for shape in (1.0, 0.5):
        draw, rng = weibull(20.0, shape), np.random.default_rng(0)
        drawn = np.array([draw(rng) for _ in range(20_000)])
        assert drawn.mean() == pytest.approx(20.0, abs=4 * drawn.std() / math.sqrt(len(drawn)))
        scale = 20.0 / math.gamma(1 + 1 / shape)
        assert (drawn > scale).mean() == pytest.approx(math.exp(-1), abs=0.015)
    there = sessions(np.random.default_rng(0), 4000, 50, weibull(30.0), weibull(10.0))
    assert there[1000:].mean() == pytest.approx(30 / 40, abs=0.02) and there[0].all()
    poisson = ~there[1:] & there[:-1]  # sessions end at a constant rate, rounded up to whole steps
    assert poisson.sum() / there[:-1].sum() == pytest.approx(1 - math.exp(-1 / 30), rel=0.1)


def test_volunteers_keep_the_hours_of_their_day():
    there = diurnal(np.random.default_rng(0), 96, 4000, day=24, least=0.2, most=0.8)
    share = there.mean(1)
    for hour, expected in ((0, 0.8), (6, 0.5), (12, 0.2), (18, 0.5), (24, 0.8)):
        assert share[hour] == pytest.approx(expected, abs=0.03)
    assert np.array_equal(there[:24], there[72:])
    shifted = diurnal(np.random.default_rng(0), 24, 4000, day=24, least=0.2, most=0.8, zones=2)
    assert shifted[0, 1::2].mean() == pytest.approx(0.2, abs=0.04) and shifted[12, 1::2].mean() > 0.75


def test_regions_fail_together():
    region_of = np.repeat(np.arange(4), 5)
    there = regions(np.random.default_rng(0), 20_000, region_of, alone=0.01, together=0.02, down=1)
    down = ~there
    assert down.mean() == pytest.approx(1 - 0.99 * 0.98, abs=0.002)
    both = (down[:, 0] & down[:, 1]).mean()  # of one region; of two they are independent
    assert both == pytest.approx(0.02 + 0.98 * 0.01**2, abs=0.003) and (down[:, 0] & down[:, 5]).mean() < 0.003
    longer = regions(np.random.default_rng(0), 2000, region_of, 0.0, 0.01, down=7)
    edges = np.diff(np.flatnonzero(np.diff(longer[:, 0], prepend=True, append=True)))[::2]
    assert set(edges[:-1]) >= {7} and min(edges[:-1]) >= 7


# Routes


def gone_of(*nodes):
    gone = np.zeros((R, S + 1), dtype=bool)
    for replica, stage in nodes:
        gone[replica, stage] = True
    return gone


def test_a_route_goes_past_what_is_away():
    cells = routing.in_order(R, S, 2, None)
    skipping = routing.around(cells, gone_of((1, 2), (2, 2), (2, 0)), peers=False)
    assert skipping[:, 0, 0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert skipping[..., 1][:, 1, 0].tolist() == [0, 1, -1, 3] and skipping[..., 1][:, 2, 1].tolist() == [-1, 1, -1, 3]
    visiting = routing.around(cells, gone_of((1, 2), (2, 2), (2, 0)), peers=True)
    assert visiting[:, 1, 0].tolist() == [[1, 0], [1, 1], [0, 2], [1, 3]]
    assert visiting[:, 2, 0].tolist() == [[0, 0], [2, 1], [0, 2], [2, 3]]
    nobody = routing.around(cells, gone_of((0, 2), (1, 2), (2, 2)), peers=True)
    assert (nobody[2, ..., 1] == -1).all()


def test_replicas_that_are_there_share_a_route_of_their_own():
    rng = np.random.default_rng
    gone = gone_of(*((1, s) for s in range(S + 1)))
    cells = routing.around(routing.random_replicas(2, S, 2, rng(0)), gone, peers=False)
    assert (cells[:-1, 1, :, 1] == -1).all() and (cells[-1, 1] == [1, S]).all()
    assert set(cells[:-1, [0, 2], :, 0].flatten()) == {0, 2}
    assert (np.sort(cells[-1, ..., 0], 0) == np.arange(R)[:, None]).all()  # each head for one first microbatch


# In training


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def cells_of(pack, replica):
    return {s: {n: w.clone() for n, w in pack.fleet.stage(replica, s).items()} for s in range(S + 1)}


@pytest.mark.parametrize("sync", ["NoLoCo", "DiLoCo", "all-reduce", "none"])
@pytest.mark.parametrize("node", ["2", "2.3"])
@pytest.mark.parametrize("detour", ["skip", "peer"])
def test_what_is_away_is_frozen_and_nobody_hears_of_it(new_pack, sync, node, detour):
    """With other weights in its place, the numbers of all others are the same."""
    fields = {"sync": sync, "group": 3} if sync == "NoLoCo" else {"sync": sync}
    fields |= {"away": [(node, 2, None)], "detour": detour}
    lost = [(1, s) for s in (range(S + 1) if node == "2" else [2])]
    packs = [new_pack(**fields, steps=3) for _ in range(2)]
    for cell in lost:
        for weight in packs[1].fleet.stage(*cell).values():
            weight.fill_(7.0)
    for pack in packs:
        pack._put_row = lambda row, rows=(kept := []): rows.append(row["value"])
        pack.kept = kept
        while pack.step < STEPS:
            pack.advance()
            pack.evaluate()
            pack.log()
    assert packs[0].kept == packs[1].kept and np.isfinite(packs[0].kept).all()
    for r in range(R):
        for s, stage in cells_of(packs[0], r).items():
            other = packs[1].fleet.stage(r, s)
            if (r, s) in lost:
                assert all((weight == 7.0).all() for weight in other.values())
            else:
                assert same(stage, other)
    assert packs[0].costs == packs[1].costs


@pytest.mark.parametrize("sync", ["NoLoCo", "DiLoCo", "all-reduce", "none"])
def test_without_a_replica_the_others_train_as_if_there_were_no_more(new_pack, sync):
    """As many batches are drawn, so that theirs are the same."""
    fields = {"sync": sync, "group": 3} if sync == "NoLoCo" else {"sync": sync}
    absent = new_pack(**fields, away=[("3", 0, None)], steps=STEPS)
    plain = new_pack(**{**fields, "replicas": 2} | ({"group": 2} if sync == "NoLoCo" else {}))
    batches = absent.batches[0]
    plain.batches[0] = [batches[t][:2] for t in range(STEPS)]
    for _ in range(STEPS):
        plain.advance()
    for r in range(2):
        for s in range(S + 1):
            for name, weight in plain.fleet.stage(r, s).items():
                torch.testing.assert_close(absent.fleet.stage(r, s)[name], weight, rtol=0, atol=2e-6)
    assert absent.costs == plain.costs
    assert absent.spread(0) == pytest.approx(plain.spread(0), abs=1e-7)
    np.testing.assert_allclose(absent.validation_loss(), plain.validation_loss(), atol=1e-6)
    torch.testing.assert_close(absent._losses_by_run(), plain._losses_by_run(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(absent._norms_by_stage(), plain._norms_by_stage(), rtol=1e-4)


def test_a_stage_that_is_away_everywhere_is_a_model_without_it(new_pack):
    absent = new_pack(sync="DiLoCo", away=[(f"{r}.2", 0, None) for r in (1, 2, 3)], steps=STEPS)
    plain = new_pack(sync="DiLoCo", stages=3)
    for r in range(R):
        for to, source in enumerate((0, 2, 3, S)):
            for name, weight in plain.fleet.stage(r, to).items():
                weight.copy_(new_pack(sync="DiLoCo").fleet.stage(r, source)[name])
    for name, phi in plain.outers[0].phi.items():
        phi.copy_(plain.outers[0].theta[name])
    for _ in range(STEPS):
        plain.advance()
    for s, source in enumerate((0, 2, 3, S)):
        for name, weight in plain.fleet.stage(0, s).items():
            torch.testing.assert_close(absent.fleet.stage(0, source)[name], weight, rtol=0, atol=5e-6)
    np.testing.assert_allclose(absent.validation_loss(), plain.validation_loss(), atol=1e-5)
    sent = [pack.costs[0]["sent in training"] for pack in (absent, plain)]
    hops = [pack.costs[0]["serial hops"] for pack in (absent, plain)]
    assert sent[0] == sent[1] and hops[0] == hops[1]


@pytest.mark.parametrize("fields", [{"away": [("2", 3, 6)]}, {"away": [("2.3", 3, 6)]}, {"downtime": 3}])
def test_a_newcomer_is_rebuilt_like_what_was_lost(new_pack, fields):
    if "downtime" in fields:
        fields = {**fields, "lost_stages": ((3, 2),), "recovery": "random"}
    pack = new_pack(**{**BACK, **fields, "sync": "NoLoCo", "group": 3}, steps=6)
    gone = pack.gone[0]
    before = cells_of(pack, 1)
    pack.advance()
    assert gone[3:6].any() and not gone[6:].any()
    assert (pack.back[0] == (np.roll(gone, 1, 0) & ~gone)).all() and pack.costs[0]["rebuilt"] == pack.back[0].sum()
    for s in np.flatnonzero(gone[5, 1]):
        assert not same(before[s], pack.fleet.stage(1, s))
    rows = pack.progress.metrics()
    rows = rows[rows["metric"] == "failure"]
    assert set(rows["step"]) == {3} and len(rows) == gone[3].sum()


def test_a_newcomer_among_replicas_alike_is_as_they_are(new_pack):
    """Under DiLoCo just after an exchange, with slow weights and outer momentum of a peer."""
    pack = new_pack(**BACK, sync="DiLoCo", away=[("2", 3, 4), ("3.1", 2, 8)], steps=4)
    pack._fail(0)
    for weights in (pack.outers[0].theta, pack.outers[0].phi, pack.outers[0].buffers["delta"]):
        assert all(torch.equal(w[1], w[0]) for w in weights.values())
    for _ in range(STEPS - 4):
        pack.advance()
    assert pack.spread(0) == 0  # the last exchange has just been


def test_what_arrives_late_does_not_overwrite_a_newcomer(new_pack):
    """An exchange of step 4 arrives at step 6; the stage was away at 4, and is rebuilt before step 5."""
    fields = {"sync": "NoLoCo", "group": 3, "delay": 2, "away": [("2.3", 2, 5)]}
    pack = new_pack(**BACK, **fields, steps=5)
    assert pack.outers[0].arriving
    pack._fail(0)
    rebuilt = cells_of(pack, 1)
    pack.step = 5
    pack.outers[0].step(6, pack.costs[0])
    assert not pack.outers[0].arriving and same(rebuilt[2], pack.fleet.stage(1, 2))
    assert not same(rebuilt[1], pack.fleet.stage(1, 1))


def test_a_run_with_absences_goes_on_bit_by_bit(tmp_path, monkeypatch):
    fields = {**TINY, **BACK, "sync": "NoLoCo", "group": 3, "delay": 2, "route": "random replicas", "detour": "peer"}
    config = run_config(**fields, away=[("1.2", 3, 9), ("3", 5, 10)], failure_rate=0.05, downtime=2)
    whole = run([config], show=False, store=Store(tmp_path / "whole")).records[0]
    monkeypatch.setattr("swarmbook.training.trainer.CHECKPOINT_SECONDS", -1.0)
    advance = Pack.advance

    def killed(pack):
        if pack.step == 7:
            raise KeyboardInterrupt
        advance(pack)

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            run([config], show=False, store=Store(tmp_path / "parts"))
    again = run([config], show=False, store=Store(tmp_path / "parts")).records[0]
    assert whole.metrics.equals(again.metrics)


@pytest.mark.parametrize("nothing", [{}, {"away": [("3.2", STEPS - 1, None)]}])
def test_packed_runs_have_their_own_absences(new_pack, nothing):
    configs = [
        run_config(**TINY, sync="NoLoCo", group=3, **fields)
        for fields in (
            nothing,
            {**BACK, "away": [("2", 2, 7)], "seed": 1},
            {"away": [("1.3", 1, None)], "detour": "peer"},
        )
    ]
    packed = new_pack(*configs, steps=STEPS)
    losses = packed._losses_by_run()
    for i, config in enumerate(configs):
        alone = new_pack(config, steps=STEPS)
        for name, weight in alone.fleet.state_dict().items():
            mine = packed.fleet.state_dict(list(packed.replicas(i)))[name]
            torch.testing.assert_close(mine, weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(alone._losses_by_run()[:, 0], losses[:, i], rtol=0, atol=1e-5)
        assert alone.costs[0] == packed.costs[i]


GONE = {"failing": "replicas", "failure_rate": 0.1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"away": [("4", 2, None)]}, "node '4' is none of replicas 1 to 3 with stages 1 to 4: give 1 for the first"),
        ({"away": [("2", 5, 5)]}, r"away=\('2', 5, 5\): give \(node, first step away, step of its return\)"),
        ({"away": [("2", 5, 99)]}, "less than steps=12, and None for a node that does not come back"),
        ({"away": [("2", 5, None), ("2.1", 8, None)]}, r"away=\('2.1', 8, None\) overlaps another absence of the same"),
        (
            {"away": [("1", 5, None), ("2", 4, None), ("3", 6, None)]},
            "all of replicas=3 are away at step 6, and nobody",
        ),
        ({"away": [("2", 5, 8)]}, "node 2.1 comes back at step 8 and needs a recovery: none, random"),
        (
            {"away": [("2", 5, 8)], "recovery": "CheckFree"},
            "a replica that comes back at step 8 is lost as a whole: rec",
        ),
        (
            {**GONE, "recovery": "CheckFree+"},
            "failing='replicas': recovery 'CheckFree[+]' makes a stage of others of its",
        ),
        ({**GONE, "recovery": "peer copy", "replicas": 1}, "asks other replicas, and replicas=1 has none"),
        ({"detour": "peer"}, "detour='peer' does nothing where no node is away: give away or downtime"),
        (
            {"detour": "peer", "away": [("1.2", 3, None)], "replicas": 1},
            "detour='peer' leads to other replicas, and rep",
        ),
        ({"downtime": 3, "recovery": "random"}, "downtime=3 does nothing where nothing is lost"),
        ({"failure_rate": 0.1}, "failure_rate=0.1 needs a recovery: .*; or downtime=None, by which it stays away"),
        (
            {"away": [("2", 3, None)], "measurements": ("similarity",)},
            "are of all nodes, of which some are away at the",
        ),
        (
            {"away": [("2", 3, None)], "sync": "NoLoCo", "group": 3, "absent": 0.1},
            "absent=0.1 draws who misses an exch",
        ),
        (
            {"away": [("2", 3, 8)], "sync": "NoLoCo", "group": 3, "recovery": "peer copy"},
            "node 2.1 comes back at step 8 without anything that it had: slow_weights='keep' must be another",
        ),
        ({"away": [("2.2", 3, 8)], "recovery": "CheckFree", "moments": "keep"}, "moments='keep' must be another"),
        (
            {"away": [("2.2", 0, None)], "route": "planned", "paths": ((0, 1, 2, 3),)},
            "a planned path goes through node 2.2, which is away before the first step: let it leave later",
        ),
        (
            {"sync": "DiLoCo", "recovery": "CheckFree", "failure_rate": 0.1, "slow_weights": "likewise"},
            "slow_weights='likewise' would leave the stage apart for good: replicas of sync 'DiLoCo' make the sa",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(fields, message):
    with pytest.raises(ConfigError, match=message):
        run_config(**{**TINY, **fields})


def test_a_whole_replica_is_lost_at_once(new_pack):
    pack = new_pack(**GONE, recovery="mean of peers", steps=STEPS)
    died = pack.traces[0]
    assert died.any() and (died == died[..., :1]).all()
    assert pack.costs[0]["rebuilt"] == died.sum()
    rates = run_config(**{**TINY, "steps": 4000}, **GONE, recovery="random").failures()[..., 0].mean(0)
    assert rates == pytest.approx([0.1] * R, abs=0.02)


# The factorial of exchanges, failures, recoveries and routes

EXCHANGES = {
    "all-reduce": {"sync": "all-reduce"},
    "DiLoCo": {"sync": "DiLoCo"},
    "NoLoCo": {"sync": "NoLoCo", "group": 3},
    "fragments": {"sync": "DiLoCo", "fragments": 2, "delay": 1, "mixing": 0.3},
}
FAILURES = {
    "none": {},
    "stages": {"failure_rate": 0.05},
    "stages, for a while": {"failure_rate": 0.05, "downtime": 2},
    "replicas": {"failing": "replicas", "failure_rate": 0.1},
    "a stage for good": {"away": (("2.2", 5, None),)},
    "a replica for good": {"away": (("2", 5, None),)},
    "a newcomer": {"away": (("2", 5, 8),)},
}
RECOVERIES = ("none", "rollback", "CheckFree", "CheckFree+", "peer copy", "mean of peers", "peer's slow weights")
PATHS = {
    "in order": {},
    "swapped": {"route": "swapped ends"},
    "skipping": {"route": "random paths", "visits": 3, "keep_first": False},
    "around": {"detour": "peer"},
}


def refusal(exchange, failures, recovery, path):
    """Why a cell of the factorial is none, in the words of its error; None for those that are."""
    if recovery == "none" and failures in ("stages", "stages, for a while", "replicas"):
        return "needs a recovery"
    if recovery == "peer's slow weights" and exchange == "all-reduce":
        return "asks for slow weights, and sync 'all-reduce' has none"
    if recovery.startswith("CheckFree") and failures == "replicas":
        return "makes a stage of others of its replica"
    if path == "around" and failures in ("none", "stages", "replicas"):
        return "does nothing where no node is away"
    if recovery == "none" and failures == "a newcomer":
        return "needs a recovery"
    if recovery.startswith("CheckFree") and failures == "a newcomer":
        return "makes a stage of others of its replica"
    return None


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("failures", FAILURES)
def test_every_cell_of_the_factorial_is_a_configuration_or_says_why_not(new_pack, exchange, failures):
    """With slow weights of a peer where a rebuilt stage needs some; the last of them is trained."""
    accepted = []
    for recovery in RECOVERIES:
        for path, route in PATHS.items():
            fields = {**TINY, **EXCHANGES[exchange], **FAILURES[failures], **route, "recovery": recovery}
            fields |= {"slow_weights": "peer"} if exchange != "all-reduce" and recovery != "none" else {}
            why = refusal(exchange, failures, recovery, path)
            if why:
                with pytest.raises(ConfigError, match=why):
                    run_config(**fields)
            else:
                accepted.append(run_config(**fields))
    assert len({config.key for config in accepted}) == len(accepted)
    pack = new_pack(accepted[-1], steps=STEPS)
    assert np.isfinite(pack.validation_loss()).all() and pack._losses_by_run().isfinite().all()


def test_a_seed_that_loses_nothing_is_not_refused():
    """The same configuration is good for every seed, whatever is drawn."""
    fields = {**TINY, "failure_rate": 1e-6, "downtime": 2, "detour": "peer", "recovery": "rollback", "steps": STEPS}
    assert not run_config(**fields).failures().any()


def test_where_nothing_can_be_rebuilt_what_is_lost_stays_away(new_pack):
    pack = new_pack(sync="NoLoCo", group=3, failure_rate=0.05, downtime=None, steps=STEPS)
    gone = pack.gone[0]
    assert gone[-1].any() and not (gone[:-1] & ~gone[1:]).any() and "rebuilt" not in pack.costs[0]
    assert np.isfinite(pack.validation_loss()).all()
