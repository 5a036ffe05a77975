"""What a rehearsal measures is what the simulations say: exactly by a clock that waits for nobody, else within 10 %."""

import os
import queue
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import emulation
import numpy as np
import pytest
from emulation import rehearse, score_of_iteration, score_of_plan, seconds_of
from hypothesis import given, settings
from hypothesis import strategies as st
from skippipe import instance, instances

from swarmbook.errors import ConfigError
from swarmbook.planning.pipeline import Plan
from swarmbook.planning.planners import PLANNERS
from swarmbook.planning.replay import replay
from swarmbook.simulation.iteration_time import simulate
from swarmbook.simulation.network import Network
from swarmbook.simulation.recovery_schemes import Workload

ALONE = SimpleNamespace(
    rank=0, size=1, timeout=60.0, broadcast=lambda news, _: news, all_reduce=lambda times: times, flush=lambda: None
)
SMALL = Workload(stages=4, replicas=1)


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self):
        self.now = 0.0
        self.Empty = queue.Empty

    def monotonic(self):
        return self.now

    def SimpleQueue(self):
        return self

    def get(self, timeout):
        self.now += timeout
        raise queue.Empty


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(emulation, "time", clock)
    monkeypatch.setattr(emulation, "queue", clock)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_plan_takes_as_long_as_its_replay(data):
    pipeline = data.draw(instances())
    plan = PLANNERS["blind"](pipeline, np.random.default_rng(data.draw(st.integers(0, 99))))
    replayed = replay(pipeline, Plan(plan.paths, replay(pipeline, plan).order()))
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock.__wrapped__(monkeypatch)
        score = score_of_plan(pipeline, Plan(plan.paths, replayed.order()))
        times = rehearse(score, ALONE, pace=data.draw(st.sampled_from([1.0, 0.25])))
    assert seconds_of(score, times) == pytest.approx(replayed.makespan, abs=1e-6)
    tasks = replayed.tasks.sort_values(["microbatch", "position"])
    np.testing.assert_allclose(times, tasks[["start", "end"]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("planner", ["blind", "shortest"])
def test_a_node_takes_what_comes_first(clock, planner):
    pipeline = instance("S")
    plan = Plan(PLANNERS[planner](pipeline, np.random.default_rng(0)).paths)
    score = score_of_plan(pipeline, plan)
    replayed = replay(pipeline, plan).makespan  # of times rounded to whole ticks
    assert seconds_of(score, rehearse(score, ALONE)) == pytest.approx(replayed, abs=1e-4)


@pytest.mark.parametrize("scheme", ["CheckFree", "CheckFree+"])
@pytest.mark.parametrize("workload", [SMALL, Workload(), Workload(stages=5, replicas=2, in_flight=2, idle=0.0)])
def test_an_iteration_takes_as_long_as_simulated(clock, workload, scheme):
    network = Network.over("seven", workload.nodes)
    score = score_of_iteration(workload, network, scheme)
    simulated = simulate(workload, network, scheme).seconds
    assert seconds_of(score, rehearse(score, ALONE)) == pytest.approx(simulated, abs=1e-4)


def test_what_has_no_score_is_refused():
    pipeline = instance("S")
    with pytest.raises(ConfigError, match="'backward first' cannot be rehearsed"):
        score_of_plan(pipeline, Plan(PLANNERS["blind"](pipeline, np.random.default_rng(0)).paths, "backward first"))
    with pytest.raises(ConfigError, match="a network of 3 for 5 nodes"):
        score_of_iteration(SMALL, Network.over("seven", 3))
    with pytest.raises(ConfigError, match="redundant=True"):
        score_of_iteration(SMALL, Network.over("seven", 5), "redundant computation")


def test_messages_between_processes_take_as_long_as_between_places():
    """Four processes and the machine's clock; the same command without --quick measures the papers' settings."""
    command = [sys.executable, str(Path(__file__).parent / "benchmarks/links.py"), "--quick"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    off = [float(found) for found in re.findall(r"([-+][\d.]+) %$", done.stdout, re.MULTILINE)]
    assert len(off) == 3 and max(map(abs, off)) < 10, done.stdout
