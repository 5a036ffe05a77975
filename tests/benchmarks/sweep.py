"""What a sweep costs beside its training: starting, points with nothing left to train; and what packing runs gains.

    python tests/benchmarks/sweep.py start            # until a cluster of two workers is ready
    python tests/benchmarks/sweep.py points noloco    # a point of a paper at smoke, trained before
    python tests/benchmarks/sweep.py packed           # runs an hour, one by one and packed

Times are seconds of processors, which a busy machine stretches little, beside seconds on the wall. A point's are told
apart: the worker's (reading, messages, writing), its kernel's until the set-up cell has imported all, and its kernel's
in the cells after it, which is the notebook's own work. Runs an hour are those of two processes of one thread each.
It is a benchmark, not a test: it asserts nothing.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

from swarmbook.reproduction import execution, papers, sweep, sweep_grid

SIZES = {  # of the runs that are packed: those of the default profile of two papers, and of the smallest of one
    "CheckFree, cpu": dict(data="fiction_austen", width=64, heads=4, hidden=256, sequence=128, batch=1, steps=20),
    "NoLoCo, cpu, 8 replicas": dict(
        data="fiction_austen", tokenizer="bytes", width=48, heads=2, hidden=128, sequence=64, batch=1, microbatches=4,
        stages=2, layers_per_stage=2, replicas=8, sync="NoLoCo", sync_every=20, common_start=True,
        steps=20,
    ),
    "CheckFree, smoke": dict(data="fiction_austen", width=32, heads=2, hidden=64, sequence=32, batch=1, steps=40),
}  # fmt: skip


def spent(whose: int) -> float:
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def measured(row: dict[str, float]) -> Iterator[None]:
    """Seconds of this process, of its children that have ended, and on the wall."""
    before = spent(resource.RUSAGE_SELF), spent(resource.RUSAGE_CHILDREN), time.monotonic()
    yield
    after = spent(resource.RUSAGE_SELF), spent(resource.RUSAGE_CHILDREN), time.monotonic()
    row |= {name: b - a for name, a, b in zip(("own", "children", "wall"), before, after, strict=True)}


def start() -> None:
    for _ in range(3):
        row: dict[str, float] = {}
        with measured(row):
            began = time.monotonic()
            with sweep.cluster(None, 2):
                ready = time.monotonic() - began
        print(f"ready after {ready:.1f} s; processors {row['own'] + row['children']:.1f} s, its end included")


def points(names: list[str]) -> None:
    print(f"{'':10}  {'wall':>6}  {'worker':>6}  {'kernel, set-up':>14}  {'kernel, cells':>13}  sum without cells")
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            paper, place = papers.discover()[name], Path(scratch)
            parameters = sweep_grid.points(paper, "smoke", (1,))
            environment = {"SWARMBOOK_STORE": str(place / "store")}
            whole, short = {}, {}
            for number in range(3):  # the first trains
                (point,) = sweep.place(paper, parameters, place / str(number))
                with measured(whole):
                    outcome = sweep.execute(point, environment, wait=True)
                if outcome.error:
                    raise SystemExit(outcome.error)
            with measured(short):
                execution.execute(set_up(paper, place), parameters[0], None, environment, folder=place / "short")
        row = whole["wall"], whole["own"], short["children"], whole["children"] - short["children"]
        print(f"{name:10}  {row[0]:6.1f}  {row[1]:6.1f}  {row[2]:14.1f}  {row[3]:13.1f}  {row[1] + row[2]:.1f}")


def set_up(paper: papers.Paper, place: Path) -> papers.Paper:
    """The paper's notebook up to the cell that imports."""
    content = nbformat.read(paper.notebook, 4)
    code = [number for number, cell in enumerate(content.cells) if cell.cell_type == "code"]
    content.cells = content.cells[: code[1] + 1]
    folder = place / "papers" / paper.name
    folder.mkdir(parents=True)
    for table in paper.notebook.parent.glob("*.csv"):
        (folder / table.name).symlink_to(table)
    (folder / paper.notebook.name).write_text(nbformat.writes(content))
    return papers.read_paper(folder / paper.notebook.name)


def packed(counts: list[int]) -> None:
    import torch

    from swarmbook.config import run_config
    from swarmbook.records.store import Store
    from swarmbook.runs import run

    torch.set_num_threads(1)
    for name, fields in SIZES.items():
        fields = {"evaluate_every": 10, "held_out": 16, **fields}

        def train(seeds: range, apart: bool, fields: dict = fields) -> float:
            with tempfile.TemporaryDirectory() as scratch:
                configs, store, row = [run_config(**fields, seed=s) for s in seeds], Store(Path(scratch)), {}
                with measured(row):
                    for part in [[config] for config in configs] if apart else [configs]:
                        run(part, device="cpu", show=False, store=store)
                return row["own"] / len(seeds)

        train(range(1), False)  # tokenizes
        each = {1: train(range(100, 104), True)} | {n: train(range(n), False) for n in counts}
        rates = ", ".join(f"{n} at once {2 * 3600 / seconds:.0f}" for n, seconds in each.items())
        print(f"{name}: runs an hour on two cores: {rates} ({json.dumps({n: round(s, 2) for n, s in each.items()})} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["start", "points", "packed"])
    parser.add_argument("papers", nargs="*", help="for points; default: all")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.what == "start":
        start()
    elif options.what == "points":
        points(options.papers or list(papers.discover()))
    else:
        packed([4, 16])


if __name__ == "__main__":
    main()
