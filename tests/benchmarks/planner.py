"""How good plans are beside bounds and beside other planners, after equal processor time.

    python tests/benchmarks/planner.py                          # the table of tests/README.md
    python tests/benchmarks/planner.py --quick                  # two cases, a minute
    python tests/benchmarks/planner.py --instances 300 --seconds 1 10 60

Instances are the reference cases of tests/skippipe.py by letter, and swarms of N nodes dealt over twelve places, by
number (`swarm`). "bound" is `lower_bound` with nodes=0: no plan of any paths and orders is below it. "ratio" is the
makespan over the bound. Seconds are of the processor, one core each, after compiling.

Peers:
- "CP-SAT, orders": OR-Tools on one thread, with short paths (`short_paths`), for what each node does in what order
- "PyJobShop": the same problem given to PyJobShop, which hands it to CP-SAT, for as much of CP-SAT's own time. It knows
  no travel times between relays that are chosen, so that it cannot choose paths. For its line, `pip install --target
  FOLDER --no-deps pyjobshop psplib fjsplib` and give `--peers FOLDER`. job-shop-lib knows neither travel times nor
  memory, so that what its rules give is no plan
- "rules": the best of our dispatching rules on short paths; "conflict-based": the released search as rebuilt; "blind"

It is a benchmark, not a test: it asserts nothing.
"""

import argparse
import contextlib
import importlib.util
import io
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from skippipe import CASES, instance  # noqa: E402

from swarmbook.planning import placement  # noqa: E402
from swarmbook.planning.annealing import annealing_search  # noqa: E402
from swarmbook.planning.bounds import lower_bound  # noqa: E402
from swarmbook.planning.conflict_based_search import conflict_search  # noqa: E402
from swarmbook.planning.encoding import dispatched  # noqa: E402
from swarmbook.planning.path_rules import PathRules  # noqa: E402
from swarmbook.planning.pipeline import DISPATCH_RULES, TICK, Pipeline, Plan  # noqa: E402
from swarmbook.planning.planners import PLANNERS  # noqa: E402
from swarmbook.planning.replay import replay  # noqa: E402
from swarmbook.planning.slot_paths import short_paths  # noqa: E402
from swarmbook.simulation.network import SKIPPIPE, Network  # noqa: E402

MOST_PEER = 100  # nodes of the largest instance that is given to PyJobShop
STAGES, VISITS, SAMPLES, BYTES, FORWARD = 6, 4, 8, 4_194_304, 1.76  # of case A


def swarm(nodes: int) -> Pipeline:
    """Nodes dealt over twelve places and put into 6 stages for paths of 4, with 6 microbatches a data node."""
    network, rng = Network.over("twelve", nodes, **SKIPPIPE), np.random.default_rng(0)
    hops = network.matrix(SAMPLES * BYTES)
    trials = 40_000  # the same for all sizes, so that 1,000 nodes take seconds
    placed = placement.place(hops, placement.group_sizes(nodes, STAGES, VISITS), rng, FORWARD, trials=trials)
    return Pipeline(placed.groups, hops, FORWARD, PathRules(VISITS))


def cp_sat_orders(pipeline: Pipeline, paths: list, seconds: float) -> list[tuple[float, float]]:
    """(processor seconds, makespan) of each plan that CP-SAT finds with these paths, on one thread."""
    from ortools.sat.python import cp_model

    model, P = cp_model.CpModel(), pipeline.visits
    gap, launch = round(pipeline.gap / TICK), round(pipeline.launch_gap / TICK)
    _, first = min((dispatched(pipeline, paths, rule) for rule in DISPATCH_RULES), key=lambda found: found[1])
    horizon = 2 * round(first / TICK)  # twice what a dispatching rule takes
    begin, busy, held, ends = {}, {}, {}, []
    for chain in pipeline.chains:
        before = None
        for j in chain:
            way = pipeline.itinerary(j, paths[j])
            for position, node in enumerate(way):
                start = begin[j, position] = model.new_int_var(0, horizon, "")
                ticks = pipeline.duration(position, node) + (gap if position else launch)
                busy.setdefault(node, []).append(model.new_fixed_size_interval_var(start, ticks, ""))
                if before is not None:
                    model.add(start >= before)
                before = start + pipeline.duration(position, node)
                if position < 2 * P:
                    before += int(pipeline.travel[node, way[position + 1]])
            for position in range(1, P):
                until = begin[j, 2 * P - position] + pipeline.duration(2 * P - position, way[position])
                size = model.new_int_var(0, horizon, "")
                holds = model.new_interval_var(begin[j, position], size, until, "")
                held.setdefault(way[position], []).append(holds)
        ends.append(before)
    for intervals in busy.values():
        model.add_no_overlap(intervals)
    for intervals in held.values():
        model.add_cumulative(intervals, [1] * len(intervals), pipeline.memory)
    makespan = model.new_int_var(0, horizon, "")
    model.add_max_equality(makespan, ends)
    model.minimize(makespan)
    return _timed(model, seconds, cp_model)


def _timed(model, seconds: float, cp_model) -> list[tuple[float, float]]:
    """Solve on one thread until the process has used so many processor seconds; what was found when."""
    begun, found, over = time.process_time(), [], threading.Event()

    class Log(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            found.append((time.process_time() - begun, TICK * self.objective_value))

    solver, log = cp_model.CpSolver(), Log()
    solver.parameters.num_workers, solver.parameters.random_seed = 1, 0

    def watch() -> None:
        while not over.wait(0.05):
            if time.process_time() - begun >= seconds:
                solver.stop_search()

    watcher = threading.Thread(target=watch)
    watcher.start()
    solver.solve(model, log)
    over.set()
    watcher.join()
    return found


def pyjobshop_orders(pipeline: Pipeline, paths: list, seconds: float) -> list[tuple[float, float]]:
    """[(processor seconds, makespan)] of the plan that PyJobShop finds with these paths; none without PyJobShop."""
    if importlib.util.find_spec("pyjobshop") is None:
        return []
    Model = importlib.import_module("pyjobshop").Model  # no dependency of ours: whoever wants this line installs it
    begun, model, P = time.process_time(), Model(), pipeline.visits
    gap, launch = round(pipeline.gap / TICK), round(pipeline.launch_gap / TICK)
    machine = {node: model.add_machine() for node in pipeline.stage_of}
    room = {node: model.add_renewable(int(pipeline.room[node])) for node in pipeline.stage_of}
    for chain in pipeline.chains:
        before = None
        for j in chain:
            way, job, tasks = pipeline.itinerary(j, paths[j]), model.add_job(), []
            for position, node in enumerate(way):
                idle = gap if position else launch
                task = model.add_task(job)
                model.add_mode(task, machine[node], pipeline.duration(position, node) + idle)
                if before is not None:
                    last, free, from_node = before
                    travel = int(pipeline.travel[from_node, node]) if position else 0
                    model.add_end_before_start(last, task, travel - free)
                tasks.append(task)
                before = task, idle, node
            for position in range(1, P):
                holds = model.add_task(allow_idle=True)
                model.add_mode(holds, room[way[position]], 1, 1)
                model.add_start_at_start(holds, tasks[position])
                model.add_end_at_end(holds, tasks[2 * P - position], gap)
    with contextlib.redirect_stdout(io.StringIO()):
        found = model.solve(display=False, num_workers=1, max_deterministic_time=seconds)
    if not np.isfinite(found.objective):
        return []
    return [(time.process_time() - begun, TICK * (found.objective - gap))]


def best_by(history, limit: float) -> float:
    """The least makespan found by then; inf if there was none."""
    return min((row[-1] for row in history if row[-2] <= limit), default=float("inf"))


def compare(name: str, limits: list[float]) -> None:
    pipeline = instance(name) if name in CASES else swarm(int(name))
    begun = time.process_time()
    bound = lower_bound(pipeline, nodes=0)
    print(f"{name:5} {'bound':20} {time.process_time() - begun:5.1f} s {bound:9.3f}", flush=True)

    def row(planner: str, spans: list[float]) -> None:
        cells = "".join(f" {span:9.2f} {span / bound:6.3f}" for span in spans)
        print(f"{name:5} {planner:20} {cells}", flush=True)

    annealing_search(pipeline, np.random.default_rng(0), moves=1)  # compiles
    found = annealing_search(pipeline, np.random.default_rng(0), seconds=limits[-1])
    row("annealing", [best_by(found.history, limit) for limit in limits])
    begun = time.process_time()
    slots = short_paths(pipeline, np.random.default_rng(0))
    paths = Plan.of_slots(pipeline, slots).paths
    spent = time.process_time() - begun
    rules = min(dispatched(pipeline, paths, rule)[1] for rule in DISPATCH_RULES)
    row("rules", [rules] * len(limits))
    both = [(spent + at, span) for at, span in cp_sat_orders(pipeline, paths, limits[-1] - spent)]
    row("CP-SAT, orders", [best_by(both, limit) for limit in limits])
    if len(pipeline.hops) <= MOST_PEER:
        spans = [pyjobshop_orders(pipeline, paths, limit) for limit in limits]
        if any(spans):
            row("PyJobShop", [span[0][1] if span else float("inf") for span in spans])
            taken = ", ".join(f"{span[0][0]:.1f}" if span else "-" for span in spans)
            print(f"{name:5} {'PyJobShop took':20} {taken} s", flush=True)
    blind = PLANNERS["blind"](pipeline, np.random.default_rng(0))
    row("blind", [replay(pipeline, blind).makespan] * len(limits))
    if len(pipeline.hops) <= 20:
        found = conflict_search(pipeline, expand=None, seconds=limits[-1])
        row("conflict-based", [best_by(found.history, limit) for limit in limits])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two cases, few seconds of search")
    parser.add_argument("--instances", nargs="+", default=["C", "A", "B", "S", "20", "100", "300", "1000"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[1.0, 10.0, 60.0])
    parser.add_argument("--peers", type=Path, help="a folder with packages of peers that are not installed here")
    given = parser.parse_args()
    if given.peers:
        sys.path.append(str(given.peers))
    names, limits = (["C", "S"], [1.0, 5.0]) if given.quick else (given.instances, sorted(given.seconds))
    print(f"{'':26} " + "".join(f" {f'{limit:g} s':>9} {'ratio':>6}" for limit in limits))
    for name in names:
        compare(name, limits)


if __name__ == "__main__":
    main()
