"""What a step of training costs as replicas, stages and steps grow: in proportion, or worse.

    python tests/benchmarks/scaling.py             # all three, about two minutes on one idle core
    python tests/benchmarks/scaling.py replicas    # one of replicas, stages, steps

Of `replicas` and `stages` a step is the forward and backward pass, clipping and Adam over one Fleet; a time is the
median CPU time of a step over `ROUNDS` rounds, in which all sizes take turns, so that a busy machine disturbs all
alike. Of `steps` a time is the CPU time of whole runs by `swarmbook.runs`, evaluations and records included, into a
store that is thrown away. "each more" is what each replica, stage or step costs beyond half as many: the same in all
rows where cost is linear. "times" is the cost over that of half as many: 2 where nothing else costs, less where
something does that does not grow (embedding and head beside the stages). Below stand the straight line that fits best,
by least squares of relative differences, and how far off the worst size is; and the exponent, the slope of log cost
over log size, of all sizes and of the larger half. It is a benchmark, not a test: it asserts nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

from swarmbook.config import run_config
from swarmbook.methods.model_size import Shape
from swarmbook.records.store import Store
from swarmbook.runs import run
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer

ROUNDS = 15
REPLICAS, STAGES, STEPS = (1, 2, 4, 8, 16), (1, 2, 4, 8), (50, 100, 200, 400)
M, B, T = 4, 1, 128  # microbatches of a replica, sequences of each, tokens of each
SIZES = {"width": 64, "heads": 4, "hidden": 256}  # the notebooks' medium model on a CPU
SETTINGS = {"data": "stories_toy", "tokenizer": "bytes", "sequence": T, "microbatches": M, "batch": B, **SIZES}


def step(replicas: int, stages: int) -> Callable[[], None]:
    """A step of training over as many replicas and stages."""
    shape = Shape(stages=stages, layers_per_stage=1, vocabulary=2048, **SIZES)
    fleet = Fleet(shape, range(replicas), device="cpu", compile=False)
    adam = InnerOptimizer(fleet, 1e-3)
    tokens = torch.randint(shape.vocabulary, (replicas, M, B, T + 1))

    def once() -> None:
        fleet.gradients(tokens)
        fleet.clip(1.0)
        adam.step()

    return once


def train(steps: int) -> Callable[[], None]:
    """A run of as many steps, from nothing to its record."""

    def once() -> None:
        config = run_config(**SETTINGS, stages=2, steps=steps, log_every=10, evaluate_every=50, held_out=8)
        with tempfile.TemporaryDirectory() as folder:
            run([config], device="cpu", show=False, store=Store(folder))

    return once


def cpu_times(works: dict[int, Callable[[], None]], rounds: int) -> dict[int, float]:
    """Median CPU seconds of each, taking turns."""
    times: dict[int, list[float]] = {size: [] for size in works}
    for work in works.values():
        work()  # what a first time loads and allocates
    for _ in range(rounds):
        for size, work in works.items():
            start = time.process_time()
            work()
            times[size].append(time.process_time() - start)
    return {size: statistics.median(found) for size, found in times.items()}


def exponent(times: dict[int, float]) -> float:
    """k, where the cost grows like size ** k."""
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def line(times: dict[int, float]) -> tuple[float, float, float]:
    """What costs in any case, what each costs, and the largest relative difference from that."""
    sizes, costs = np.array(list(times), float), np.array(list(times.values()))
    each, fixed = np.polyfit(sizes, costs, 1, w=1 / costs)
    return fixed, each, float(np.abs((fixed + each * sizes) / costs - 1).max())


def report(what: str, of: str, times: dict[int, float]) -> None:
    times = {size: 1e3 * seconds for size, seconds in times.items()}
    print(f"{what:>8}  {f'ms a {of}':>9}  {'each':>6}  {'each more':>9}  times")
    for size, cost in times.items():
        row = f"{size:8}  {cost:9.1f}  {cost / size:6.2f}"
        if half := times.get(size // 2):
            row += f"  {(cost - half) / (size - size // 2):9.2f}  {cost / half:5.2f}"
        print(row)
    fixed, each, off = line(times)
    larger = dict(list(times.items())[len(times) // 2 :])
    print(f"{fixed:.1f} + {each:.2f} x {what} ms, {off:.0%} off at most")
    print(f"exponent {exponent(times):.2f}, of the larger half {exponent(larger):.2f}\n", flush=True)


def main() -> None:
    cases = {
        "replicas": lambda: cpu_times({n: step(n, 2) for n in REPLICAS}, ROUNDS),
        "stages": lambda: cpu_times({n: step(4, n) for n in STAGES}, ROUNDS),
        "steps": lambda: cpu_times({n: train(n) for n in STEPS}, 3),
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(cases)}; all by default")
    chosen = parser.parse_args().cases
    if unknown := set(chosen) - set(cases):
        parser.error(f"unknown case {', '.join(sorted(unknown))}: choose of {', '.join(cases)}")
    torch.set_num_threads(1)
    for name in chosen or cases:
        report(name, "run" if name == "steps" else "step", cases[name]())


if __name__ == "__main__":
    main()
