"""Iterations measured over slow links, beside what the simulations say.

    python tests/benchmarks/links.py           # the papers' settings and small ones, 3 minutes
    python tests/benchmarks/links.py --quick   # small ones, half a minute

Four processes on this machine send each other messages, each held back as long as it would take between the paper's
places; nodes sleep instead of computing, so that a machine with two cores can play twenty-one. "pace" is real seconds
for one of the paper's. The last row is our own training: its order of work, messages and links, with sleeps for layers.
Measured is the median of several iterations, and the least and the greatest. It asserts nothing.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from emulation import rehearse, score_of_iteration, score_of_plan, seconds_of, seconds_of_tasks  # noqa: E402
from skippipe import instance  # noqa: E402

from swarmbook.distributed.communicator import Communicator  # noqa: E402
from swarmbook.distributed.emulated_links import EmulatedLinks  # noqa: E402
from swarmbook.distributed.mesh import Mesh  # noqa: E402
from swarmbook.distributed.schedule_1f1b import perform, tasks_of  # noqa: E402
from swarmbook.methods.routing import in_order  # noqa: E402
from swarmbook.planning.pipeline import Plan
from swarmbook.planning.planners import PLANNERS  # noqa: E402
from swarmbook.planning.replay import replay  # noqa: E402
from swarmbook.simulation.iteration_time import simulate  # noqa: E402
from swarmbook.simulation.network import Network  # noqa: E402
from swarmbook.simulation.recovery_schemes import Workload

RANKS = 4
SMALL = Workload(stages=4, replicas=1)  # as many stages as CheckFree's small model has
Case = tuple[str, float, float, Callable[[], float]]  # name, pace, simulated seconds, one measurement of them


def cases(comm: Communicator, quick: bool) -> Iterator[Case]:
    workloads = {"CheckFree, 4 stages": (SMALL, "CheckFree")}
    plans = {"SkipPipe, case S": "S"}
    if not quick:
        workloads |= {"CheckFree, as released": (Workload(), "CheckFree"), "CheckFree+": (Workload(), "CheckFree+")}
        plans |= {"SkipPipe, case C": "C", "SkipPipe, case A": "A"}
    pace = 0.02 if quick else 0.04
    for name, (workload, scheme) in workloads.items():
        network = Network.over("seven", workload.nodes)
        score = score_of_iteration(workload, network, scheme)
        yield name, pace, simulate(workload, network, scheme).seconds, player(score, comm, pace)
    for name, case in plans.items():
        pipeline = instance(case)
        plan = Plan(PLANNERS["shortest"](pipeline, np.random.default_rng(0)).paths)
        yield name, pace, replay(pipeline, plan).makespan, player(score_of_plan(pipeline, plan), comm, pace)
    yield training(comm, pace)


def player(score, comm: Communicator, pace: float) -> Callable[[], float]:
    return lambda: seconds_of(score, rehearse(score, comm, pace))


def training(comm: Communicator, pace: float) -> Case:
    """Four stages, one a rank, and a microbatch of CheckFree's throughput experiment for each message."""
    like = torch.zeros(1, 64, 64)
    weight = Workload().activation_bytes / (like.numel() * like.element_size())
    comm.links = links = EmulatedLinks(Network.over("seven", comm.size), pace, weight)
    tasks = tasks_of(in_order(1, comm.size, 6, np.random.default_rng(0)), Mesh(1, comm.size, 1, comm.size))
    seconds = {"embed": 0.0, "forward": 0.38 * pace, "loss": 0.56 * pace, "backward": 0.76 * pace, "unembed": 0.0}
    size = like.numel() * like.element_size()

    def do(task, _) -> torch.Tensor:
        time.sleep(seconds[task.kind])
        return like

    def measure() -> float:
        begin = comm.broadcast(time.monotonic() + 0.2 if comm.rank == 0 else None, 0)
        time.sleep(max(0.0, begin - time.monotonic()))
        perform(tasks, do, like, comm)
        ends = torch.zeros(comm.size, dtype=torch.float64)
        ends[comm.rank] = time.monotonic() - begin
        return float(comm.all_reduce(ends).max()) / pace

    return "training, 4 stages", pace, seconds_of_tasks(tasks, seconds, links, size) / pace, measure


def measure(rank: int, quick: bool) -> None:
    """What each of the four processes does."""
    os.environ["RANK"] = str(rank)
    with Communicator(torch.device("cpu"), timeout=60.0) as comm:
        if comm.rank == 0:
            print(f"{'iteration':24} {'pace':>5} {'simulated':>10} {'measured':>9} {'least':>8} {'most':>8} {'off':>9}")
        for name, pace, simulated, once in cases(comm, quick):
            found = sorted(once() for _ in range(3 if quick else 5))
            median = statistics.median(found)
            if comm.rank == 0:
                print(
                    f"{name:24} {pace:5} {simulated:8.2f} s {median:7.2f} s {found[0]:6.2f} s {found[-1]:6.2f} s "
                    f"{100 * (median / simulated - 1):+7.2f} %",
                    flush=True,
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small settings, few iterations")
    quick = parser.parse_args().quick
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_PORT": str(place.getsockname()[1]), "WORLD_SIZE": str(RANKS)}
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=measure, args=(rank, quick)) for rank in range(RANKS)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return max(abs(process.exitcode) for process in started)


if __name__ == "__main__":
    sys.exit(main())
