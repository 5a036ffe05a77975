"""How good a plan is after how long, beside bounds, and how that scales.

    python tests/benchmarks/planner.py           # everything, 40 minutes on one idle core
    python tests/benchmarks/planner.py --quick   # two cases and 20 nodes, a minute

Cases are the reference cases of tests/skippipe.py; bounds get deterministic effort, so that they are the same each
time. A bound is `lower_bound`'s: no plan of those paths and orders can be below it; "gap" is what a plan is above its
bound. At scale, nodes are dealt over the twelve places and put into 6 stages for paths of 4, with one process a size so
that its peak of memory is its own. Seconds are of the wall clock, after compiling. It is a benchmark, not a test: it
asserts nothing.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from skippipe import CASES, instance, released  # noqa: E402

from swarmbook.planning import placement  # noqa: E402
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.bounds import closed_form, lower_bound  # noqa: E402
from swarmbook.planning.conflict_based_search import conflict_search  # noqa: E402
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import DISPATCH_RULES, Pipeline, Plan
from swarmbook.planning.planners import PLANNERS, full_pipelines  # noqa: E402
from swarmbook.planning.replay import replay  # noqa: E402
from swarmbook.simulation.network import SKIPPIPE, Network  # noqa: E402

STAGES, VISITS, SAMPLES, BYTES, FORWARD = 6, 4, 8, 4_194_304, 1.76  # of case A
# Microbatches of each data node by number of nodes: 100 nodes have 100 in all, 1,000 have 1,000. Groups of 6 stages for
# paths of 4 need a multiple of 20 nodes.
SIZES = {20: 6, 60: 6, 100: 4, 500: 6, 1000: 4}


def cases(names: str, limits: tuple[float, ...], effort: float) -> None:
    print(f"{'case':4} {'planner':24} {'seconds':>8} {'makespan':>9} {'bound':>8} {'gap':>7}")
    for name in names:
        pipeline = instance(name)
        started = time.perf_counter()
        bound = lower_bound(pipeline, effort=effort, nodes=1)
        print(f"{name:4} {'(the bound)':24} {time.perf_counter() - started:8.2f} {'':9} {bound:8.3f}", flush=True)

        def row(planner: str, seconds: float | None, makespan: float, name=name, bound=bound) -> None:
            took, gap = "" if seconds is None else f"{seconds:.2f}", f"{100 * (makespan / bound - 1):6.1f}%"
            print(f"{name:4} {planner:24} {took:>8} {makespan:9.3f} {bound:8.3f} {gap}", flush=True)

        row("full pipelines", None, replay(*full_pipelines(pipeline)).makespan)
        for method in ("dtfm_skip", "skippipe_no_tc2", "skippipe"):
            if "paths" in CASES[name]["results"].get(method, {}):
                loose = instance(name, relay_limit=pipeline.count)  # case A's paths overload a relay
                plans = [Plan.of_slots(loose, released(name, method), rule) for rule in DISPATCH_RULES]
                row(f"released {method}", None, min(replay(loose, plan).makespan for plan in plans))
        for planner in ("blind", "shortest"):
            started = time.perf_counter()
            plan = PLANNERS[planner](pipeline, np.random.default_rng(0))
            row(planner, time.perf_counter() - started, replay(pipeline, plan).makespan)
        calm = conflict_search(pipeline, collisions=False, expand=None, seconds=limits[-1])
        row("conflict-based, no TC2", calm.seconds, calm.makespan)
        found = conflict_search(pipeline, expand=None, seconds=limits[-1])
        anytime("conflict-based", found.history, limits, row)
        found = annealing_search(pipeline, np.random.default_rng(0), seconds=limits[-1])
        anytime("annealing", found.history, limits, row)


def anytime(planner: str, history: tuple, limits: tuple[float, ...], row) -> None:
    """A row for the best plan after each time: the last improvement before it, or the first plan if that is later."""
    for limit in limits:
        spans = [span for at, (_, seconds, span) in enumerate(history) if at == 0 or seconds <= limit]
        row(planner, max(limit, history[0][1]), min(spans))


def scale(nodes: int, limits: tuple[float, ...]) -> None:
    network = Network.over("twelve", nodes, **SKIPPIPE)
    hops, rng = network.matrix(SAMPLES * BYTES), np.random.default_rng(0)
    placed = placement.place(hops, placement.group_sizes(nodes, STAGES, VISITS), rng, FORWARD)
    pipeline = Pipeline(placed.groups, hops, FORWARD, PathRules(VISITS), microbatches=SIZES[nodes])
    started = time.perf_counter()
    bound = float(closed_form(pipeline).max())
    bounding = time.perf_counter() - started
    found = annealing_search(pipeline, rng, seconds=limits[-1])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def row(_: str, seconds: float, makespan: float) -> None:
        print(
            f"{nodes:5} {pipeline.count:13,} {seconds:8.0f} {makespan:9.3f} {bound:8.3f} "
            f"{100 * (makespan / bound - 1):6.1f}% {bounding:9.3f} {found.history[0][1]:8.2f} {memory:5.2f} GiB",
            flush=True,
        )

    anytime("", found.history, limits, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two cases and 20 nodes, few seconds of search")
    quick = parser.parse_args().quick
    limits = (1.0, 5.0) if quick else (1.0, 5.0, 10.0, 60.0)
    cases("CS" if quick else "CBAS", limits, 0.5 if quick else 20.0)
    print(f"\n{'nodes':5} {'microbatches':>13} {'seconds':>8} {'makespan':>9} {'bound':>8} {'gap':>7} ", end="")
    print(f"{'s a bound':>9} {'s first':>8} {'memory':>9}")
    context = multiprocessing.get_context("spawn")
    for nodes in (20,) if quick else SIZES:
        process = context.Process(target=scale, args=(nodes, limits))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
