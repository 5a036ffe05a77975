"""The simulated timeline against closed forms, conservation laws and the authors' logs."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmbook.errors import ConfigError
from swarmbook.simulation import failure_experiments
from swarmbook.simulation.failure_experiments import compare, compared, experiment
from swarmbook.simulation.iteration_time import simulate
from swarmbook.simulation.network import Network
from swarmbook.simulation.recovery_schemes import SCHEMES, Scheme, Workload, microbatch_nodes

AUTHORS = Workload()
SEVEN = Network.over("seven", AUTHORS.nodes)
FIVE = Network.over("five clusters", AUTHORS.nodes)
COMPUTING = ["forward", "redundant forward", "loss", "backward"]
schemes = st.sampled_from(sorted(SCHEMES))


def quiet(nodes: int) -> Network:
    """A network that costs nothing."""
    return Network(("Iowa",) * nodes, threshold=math.inf)


def unshipped(name: str) -> Scheme:
    return dataclasses.replace(SCHEMES[name], ships=False)


@st.composite
def workloads(draw, **fixed) -> Workload:
    seconds = st.floats(0, 3).map(lambda x: round(x, 3))
    values = {
        **{"stages": draw(st.integers(4, 6)), "replicas": draw(st.integers(1, 3))},
        **{"microbatches": 2 * draw(st.integers(1, 3)), "in_flight": draw(st.integers(1, 4))},
        **{name: draw(seconds) for name in ("forward", "backward", "head", "idle", "polling")},
        **fixed,
    }
    return Workload(**values)


# Closed forms


@settings(max_examples=30)
@given(workloads(replicas=1, in_flight=1))
def test_one_microbatch_after_another_takes_the_sum_of_its_parts(w):
    done = simulate(w, quiet(w.nodes))
    results = 1 + w.stages + 1 + w.stages + 1  # embedding, forward, loss, backward, and the last at stage 0
    once = w.stages * (w.forward + w.backward) + w.head + results * w.polling
    assert done.seconds == pytest.approx(w.idle + w.microbatches * once)


@settings(max_examples=30)
@given(workloads(replicas=1, backward=0.0, head=0.0, polling=0.0))
def test_a_full_pipeline_takes_fill_and_drain(w):
    w = dataclasses.replace(w, in_flight=w.microbatches)
    assert simulate(w, quiet(w.nodes)).seconds == pytest.approx(w.idle + (w.stages + w.microbatches - 1) * w.forward)


def test_without_compute_an_iteration_is_idle_time_two_waves_round_the_ring_and_the_exchange_of_the_ends():
    still = dataclasses.replace(AUTHORS, forward=0.0, backward=0.0, head=0.0, polling=0.0)
    nodes = microbatch_nodes(still)
    ring = sum(SEVEN.seconds(a, b, still.activation_bytes) for a, b in zip(nodes, nodes[1:], strict=False))
    assert (ring, 2 * ring, 4 * ring) == pytest.approx((9.32, 18.6, 37.3), abs=0.05)
    ends = SEVEN.matrix(still.ends_bytes)[:3, :3].max()
    assert ends == pytest.approx(25.0, abs=0.05)
    assert simulate(still, SEVEN).seconds == pytest.approx(10 + 4 * ring + ends, abs=1e-4)
    # Two waves of 15 results, and the gradient, wait 0.05 s each: the 73.8 s without compute.
    polled = dataclasses.replace(still, polling=0.05)
    assert simulate(polled, SEVEN).seconds == pytest.approx(10 + 4 * ring + ends + 31 * 0.05, abs=1e-4)
    assert simulate(polled, SEVEN).seconds == pytest.approx(73.8, abs=0.05)


def test_sizes_of_the_medium_model():
    assert AUTHORS.nodes == 21
    assert AUTHORS.stage_bytes / 4 == pytest.approx(67.1e6, rel=1e-3)
    assert AUTHORS.ends_bytes / 1e6 == pytest.approx(262, abs=0.5)


# The authors' measurements


def test_iteration_time_of_the_authors():
    assert experiment(AUTHORS, SEVEN, "CheckFree").mean == pytest.approx(91.3245, rel=0.02)


@pytest.mark.parametrize(
    ("name", "seconds"), [("redundant computation", 98), ("redundant computation, full task time", 122)]
)
def test_redundant_computation_is_faster_than_the_paper_says(name, seconds):
    mean = experiment(AUTHORS, SEVEN, unshipped(name)).mean
    assert mean == pytest.approx(seconds, rel=0.05)
    equal_terms = experiment(AUTHORS, SEVEN, name).mean
    assert mean <= equal_terms < 127.8 < 151.04  # the paper's 151.04; below 127.8 it beats CheckFree+ even at 5 %


def test_the_iteration_with_the_failure_takes_what_the_log_says():
    seconds = experiment(AUTHORS, SEVEN, "CheckFree", [(395, 4)]).seconds
    assert seconds[395] == pytest.approx(113.9, abs=2)
    assert seconds[np.arange(500) != 395].max() < 91.5


def test_the_log_alternates_because_stage_0_hands_a_head_start_to_and_fro():
    """In the log, steps of one node take 83.6 and 99.0 s in turn: nodes 0 and 1 wait for each other's gradient."""
    ready, gaps = np.zeros(21), []
    ready[1] = 7.0
    for _ in range(8):
        done = simulate(AUTHORS, SEVEN, ready=ready)
        gaps.append(done.seconds + done.ready[0] - ready[0])
        ready = np.array(done.ready)
    assert gaps[2::2] == pytest.approx([gaps[2]] * 3) and gaps[3::2] == pytest.approx([gaps[3]] * 3)
    assert abs(gaps[2] - gaps[3]) == pytest.approx(99.0 - 83.6, abs=1.5)
    assert np.mean(gaps[2:]) == pytest.approx(experiment(AUTHORS, SEVEN, "CheckFree").mean, abs=0.01)


def test_swapping_costs_what_the_longer_links_cost():
    assert microbatch_nodes(AUTHORS, "CheckFree+", pipeline=1, microbatch=4) == [1, 4, 7, 10, 13, 16, 19, 1]
    assert microbatch_nodes(AUTHORS, "CheckFree+", pipeline=1, microbatch=3) == [1, 7, 4, 10, 13, 19, 16, 1]
    seven = [experiment(AUTHORS, SEVEN, name).mean for name in ("CheckFree", "CheckFree+")]
    assert seven[1] / seven[0] == pytest.approx(1.085, abs=0.005)
    five = [experiment(AUTHORS, FIVE, name).mean for name in ("CheckFree", "CheckFree+")]
    assert five[1] / five[0] == pytest.approx(0.995, abs=0.005)


# Laws


@settings(max_examples=30, deadline=None)
@given(workloads(), schemes, st.sampled_from(["seven", "five clusters"]))
def test_a_timeline_obeys_nodes_routes_and_limits(w, name, places):
    network, scheme = Network.over(places, w.nodes), SCHEMES[name]
    done = simulate(w, network, scheme)
    tasks = done.tasks
    work = tasks[tasks["kind"].isin(COMPUTING)]
    for _, mine in work.groupby("node"):
        assert (mine["start"].to_numpy()[1:] >= mine["end"].to_numpy()[:-1] - 1e-9).all()
        assert done.seconds >= (mine["end"] - mine["start"]).sum()
    count = w.microbatches * scheme.split
    for r in range(w.replicas):
        spans = []
        for m in range(count):
            mine = work[(work["pipeline"] == r) & (work["microbatch"] == m)]
            steps = mine[mine["kind"] != "redundant forward"]
            there = microbatch_nodes(w, scheme, r, m)
            assert steps[steps["kind"] != "backward"]["node"].tolist() == there
            assert steps[steps["kind"] == "backward"]["node"].tolist() == there[-2:0:-1]
            spans += [(steps["start"].min(), 1), (steps["end"].max(), -1)]
        # A microbatch may start at the moment in which another returns.
        under_way = np.cumsum([change for _, change in sorted(spans)])
        assert under_way.max() <= w.in_flight
    assert (tasks["end"] >= tasks["start"]).all()


@settings(max_examples=30, deadline=None)
@given(workloads(), schemes)
def test_bytes_are_conserved(w, name):
    scheme = SCHEMES[name]
    sent = simulate(w, SEVEN if w.nodes == 21 else Network.over("seven", w.nodes), scheme).sent
    around = w.replicas * w.microbatches * (w.stages + 1) * w.activation_bytes
    assert sent["activations"] == sent["activation gradients"] == around
    model = w.stages * w.stage_bytes + w.ends_bytes
    assert sent["exchange"] == w.replicas * (w.replicas - 1) * model
    assert sent.get("shipments", 0) == (w.replicas * w.stages * w.stage_bytes if scheme.ships else 0)
    assert set(sent) <= {"activations", "activation gradients", "exchange", "shipments"}


@settings(max_examples=30, deadline=None)
@given(workloads(microbatches=1), st.floats(0, 2), st.integers(1, 3))
def test_one_microbatch_is_never_faster_for_more_work_or_larger_messages(w, more, times):
    network = Network.over("seven", w.nodes)
    harder = dataclasses.replace(w, backward=w.backward + more, sequences=w.sequences * times)
    assert simulate(harder, network).seconds >= simulate(w, network).seconds - 1e-6


def test_work_is_the_same_for_all_schemes_but_for_redundant_passes():
    def busy(name: str, kinds: list[str]) -> float:
        tasks = simulate(AUTHORS, SEVEN, name).tasks
        tasks = tasks[tasks["kind"].isin(kinds)]
        return (tasks["end"] - tasks["start"]).sum()

    plain = ["forward", "loss", "backward"]
    once = 18 * (6 * (0.38 + 0.76) + 0.56)
    for name in ("CheckFree", "CheckFree+", "checkpointing", "redundant computation", "redundant computation, hidden"):
        assert busy(name, plain) == pytest.approx(once)
        extra = 18 * 6 * 0.38 if name.startswith("redundant") else 0
        assert busy(name, ["redundant forward"]) == pytest.approx(extra)


def test_an_experiment_is_its_iterations_one_after_another():
    schedule = [(2, 3), (4, 1), (4, 5)]
    ready, seconds = np.zeros(21), []
    for i in range(6):
        done = simulate(AUTHORS, SEVEN, "CheckFree+", ready, [stage for when, stage in schedule if when == i])
        ready = done.ready
        seconds.append(done.seconds)
    np.testing.assert_array_equal(experiment(AUTHORS, SEVEN, "CheckFree+", schedule, 6).seconds, seconds)


# Failures


@pytest.mark.parametrize(
    ("name", "lost", "givers"),
    [
        ("CheckFree", 3, [2, 4]),
        ("CheckFree", 1, [2]),
        ("CheckFree+", 6, [5]),
        ("checkpointing", 3, [0]),
    ],
)
def test_a_replacement_waits_for_its_weights(name, lost, givers):
    tasks = simulate(AUTHORS, SEVEN, name, lost=[lost]).tasks
    recovery = tasks[tasks["kind"] == "recovery"]
    assert sorted(recovery["node"]) == [3 * lost, 3 * lost + 1, 3 * lost + 2]
    for row in recovery.itertuples():
        senders = [0 if name == "checkpointing" else 3 * giver + row.replica for giver in givers]
        fetch = max(SEVEN.seconds(sender, row.node, AUTHORS.stage_bytes) for sender in senders)
        assert row.end - row.start == pytest.approx(AUTHORS.provision + fetch, abs=1e-6)
        begun = tasks[(tasks["node"] == row.node) & tasks["kind"].isin(COMPUTING)]["start"].min()
        assert begun >= row.end


def test_a_late_neighbour_cannot_help_before_it_has_its_own_update():
    ready = np.zeros(21)
    ready[12:15] = 200.0  # stage 4
    recovery = simulate(AUTHORS, SEVEN, "CheckFree", ready, lost=[3]).tasks.query("kind == 'recovery'")
    for row in recovery.itertuples():
        assert row.end == pytest.approx(200 + SEVEN.seconds(row.node + 3, row.node, AUTHORS.stage_bytes), abs=1e-6)


def test_a_predecessor_helps_with_what_was_shipped_to_it_and_the_copy_that_died_is_sent_again():
    instant = dataclasses.replace(AUTHORS, provision=0.0)
    tasks = simulate(instant, SEVEN, "redundant computation", lost=[3]).tasks
    times = SEVEN.matrix(AUTHORS.stage_bytes)
    for node in (9, 10, 11):
        (back,) = tasks.query("kind == 'recovery' and node == @node").itertuples()
        assert back.end == pytest.approx(times[node, node - 3] + times[node - 3, node], abs=1e-6)
    late = np.zeros(21)
    late[12:15] = 200.0  # stage 4, whose copy stage 3 held
    tasks = simulate(instant, SEVEN, "redundant computation", late, lost=[3]).tasks
    for node in (9, 10, 11):
        again = tasks.query("kind == 'shipment' and node == @node")["end"].max()
        assert again == pytest.approx(200 + times[node + 3, node], abs=1e-6)
        assert tasks.query("kind == 'redundant forward' and node == @node")["start"].min() >= again
    lost = simulate(instant, SEVEN, unshipped("redundant computation"), late, lost=[3]).tasks
    for node in (9, 10, 11):
        again = lost.query("kind == 'shipment' and node == @node")["end"].item()
        assert again == pytest.approx(200 + times[node + 3, node], abs=1e-6)


def test_a_checkpoint_that_a_failure_interrupts_is_not_taken():
    plan = dataclasses.replace(SCHEMES["rollback"], period=10)
    done = experiment(AUTHORS, SEVEN, plan, [(11, 2)], 12)
    assert done.progress == 2  # back to the checkpoint after iteration 1
    assert done.sent["checkpoints"] == 18 * AUTHORS.stage_bytes


def test_bytes_of_a_recovery():
    stage = 3 * AUTHORS.stage_bytes
    expected = {"CheckFree": 2 * stage, "checkpointing": stage, "redundant computation": 2 * stage}
    for name, size in expected.items():
        assert simulate(AUTHORS, SEVEN, name, lost=[3]).sent["recovery"] == size
    assert simulate(AUTHORS, SEVEN, "CheckFree+", lost=[1]).sent["recovery"] == stage
    everything = 18 * AUTHORS.stage_bytes + 2 * AUTHORS.ends_bytes  # all but the node that is the store
    assert simulate(AUTHORS, SEVEN, "rollback", lost=[3]).sent["recovery"] == everything


def test_neighbours_that_die_together():
    done = simulate(AUTHORS, SEVEN, "CheckFree", lost=[3, 4])
    assert done.sent["recovery"] == 2 * 2 * 3 * AUTHORS.stage_bytes  # each from stages 2 and 5
    assert done.unrecovered == 0
    assert simulate(AUTHORS, SEVEN, "redundant computation", lost=[3, 4]).unrecovered == 3  # 4 of each replica
    assert simulate(AUTHORS, SEVEN, "redundant computation", lost=[3, 5]).unrecovered == 0
    assert simulate(AUTHORS, SEVEN, "CheckFree", lost=range(1, 7)).unrecovered == 18


def test_what_is_saved_when():
    stage = 18 * AUTHORS.stage_bytes
    for period, saves in ((100, 5), (50, 10), (10, 50), (1, 499)):
        plan = dataclasses.replace(SCHEMES["checkpointing"], period=period)
        assert experiment(AUTHORS, SEVEN, plan).sent["checkpoints"] == saves * stage
    plain, saving, blocking = (
        experiment(AUTHORS, SEVEN, scheme).mean
        for scheme in (
            "CheckFree",
            dataclasses.replace(SCHEMES["checkpointing"], period=1),
            dataclasses.replace(SCHEMES["checkpointing"], period=1, blocking=True),
        )
    )
    assert plain == saving < blocking


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.sets(st.integers(0, 59)))
def test_rollback_repeats_what_was_lost(period, failures):
    """Against a log of what was done: the iteration of the training at each iteration of the clock."""
    plan = dataclasses.replace(SCHEMES["rollback"], period=period)
    log = []
    for when in range(60):
        kept = [log[i] for i in range(1, when) if i not in failures and i % period == 1 % period]
        log.append(kept[-1] if kept and when in failures else log[-1] + 1 if log and when not in failures else 0)
    at = log[-1] + 1
    assert experiment(AUTHORS, SEVEN, plan, [(when, 2) for when in failures], 60).progress == at


@pytest.mark.parametrize("period", [10, 50, 100])
def test_rollback_slows_training_by_the_closed_form(period):
    """Expected iterations of the clock for one of progress: k q / (1 - (1 - q)^k)."""
    lost = np.random.default_rng(0).random((100_000, 6)) < 0.002
    schedule = [(int(when), int(stage) + 1) for when, stage in zip(*np.nonzero(lost), strict=True)]
    plan = dataclasses.replace(SCHEMES["rollback"], period=period)
    done = experiment(AUTHORS, SEVEN, plan, schedule, 100_000)
    q = 1 - 0.998**6
    assert 100_000 / done.progress == pytest.approx(period * q / (1 - (1 - q) ** period), rel=0.04)


def test_progress_by_hand():
    assert experiment(AUTHORS, SEVEN, "rollback", [(395, 4)]).progress == 500 - (395 - 301)
    assert experiment(AUTHORS, SEVEN, "checkpointing", [(395, 4)]).progress == 500
    start = experiment(AUTHORS, SEVEN, "rollback", [(0, 4)], 1)
    assert (start.progress, start.failures) == (1, 1)
    assert start.effective == start.mean == start.seconds[0]


def test_compare_puts_everything_on_equal_terms():
    periods = {f"rollback {k}": dataclasses.replace(SCHEMES["rollback"], period=k) for k in (5, 20)}
    table = compare(AUTHORS, {"seven": SEVEN, "five": FIVE}, SCHEMES | periods, {0: [], 1: [(10, 2)]}, iterations=30)
    assert len(table) == 2 * (len(SCHEMES) + 2) * 2
    assert (table.groupby("schedule")["failures"].agg(["min", "max"]).to_numpy() == [[0, 0], [1, 1]]).all()
    wide = table.pivot(index=["network", "scheme"], columns="schedule", values="mean")
    assert (wide[1] > wide[0]).all()
    lost = table[table["schedule"] == 1].pivot(index="network", columns="scheme", values="progress")
    assert (lost["rollback 5"] == 26).all() and (lost["rollback 20"] == 21).all()


def test_a_comparison_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path))
    what = (AUTHORS, {"seven": SEVEN}, {"rollback": SCHEMES["rollback"]}, {5: [(3, 1)]}, 4)
    pd.testing.assert_frame_equal(compared(*what), compare(*what))
    monkeypatch.setattr(failure_experiments, "compare", lambda *_: pytest.fail("made again"))
    pd.testing.assert_frame_equal(compared(*what), compare(*what))
    with pytest.raises(pytest.fail.Exception):
        compared(*what[:3], {5: [(3, 2)]}, 4)


# Mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simulate(AUTHORS, Network.over("seven", 20)), r"need 21 nodes.*has 20.*nodes=21"),
        (lambda: simulate(AUTHORS, SEVEN, "CheckFre"), "unknown scheme 'CheckFre': did you mean 'CheckFree'"),
        (lambda: simulate(AUTHORS, SEVEN, lost=[0]), "stage 0 cannot be lost: stages 1 to 6 can"),
        (lambda: simulate(AUTHORS, SEVEN, lost=[7]), "stage 7 cannot be lost"),
        (lambda: simulate(AUTHORS, SEVEN, ready=[0.0]), "one value for each of 21 nodes"),
        (lambda: simulate(AUTHORS, SEVEN, saves=True), "needs a scheme with source 'store'"),
        (lambda: experiment(AUTHORS, SEVEN, "CheckFree", [(500, 1)]), "event at iteration 500, outside 0 to 499"),
        (lambda: experiment(AUTHORS, SEVEN, "CheckFree", [(-1, 1)]), "event at iteration -1"),
        (lambda: experiment(AUTHORS, SEVEN, "CheckFree", iterations=0), "iterations must be at least 1"),
        (lambda: Workload(stages=0), "stages must be a whole number of at least 1, not 0"),
        (lambda: Workload(forward=-1.0), "forward must be a finite number of seconds, at least 0, not -1.0"),
        (lambda: Scheme("stor", period=1), "unknown source 'stor': did you mean 'store'"),
        (lambda: Scheme(route="in ordr"), "did you mean 'in order'"),
        (lambda: Scheme("store"), "source 'store' with period=None"),
        (lambda: Scheme(period=5), "source 'neighbours' with period=5"),
        (lambda: Scheme("store", period=0), "period must be a whole number of at least 1, not 0"),
        (lambda: Scheme(rollback=True), "only source 'store' can roll back"),
        (lambda: Scheme(ships=True), "ships and hides need them"),
        (lambda: Scheme("predecessor"), "belong together"),
        (lambda: Scheme(part=0.0), r"part in \(0, 1\]"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
