"""Verification: what is recorded beside a notebook is checked, shown again, and made again from nothing.

- Every recorded file must match its checksum, and its configuration the key that names it. A run must have the rows
  that its configuration asks for.
- The notebook, executed on nothing but what is recorded, must show the text, tables and claims that it holds.
- A sample of the runs is trained again, into a store that is thrown away, and compared curve by curve. On the same type
  of processor, with the same torch, threads and compilation and in a pack of as many runs, every number must be the
  same bit by bit. Otherwise rounding differs, which training amplifies, and numbers may differ by `TOLERANCE`.
- A sample of the tables that no single run gives, such as plans and ensembles, is computed again by the notebook, which
  is executed without them. They do not say on what they were computed, so `TOLERANCE` holds for all of them.
- What was recorded on CUDA is made again only where there is CUDA. Elsewhere it takes too long, and gives other bits.

Serves: `swarmbook verify`.
"""

import math
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swarmbook.analysis.claims import MIMETYPE
from swarmbook.config import RunConfig
from swarmbook.errors import NotebookError, TrainingError
from swarmbook.records.store import Record, Store
from swarmbook.reproduction import execution, papers
from swarmbook.reproduction.papers import Paper
from swarmbook.reproduction.publishing import stable
from swarmbook.reproduction.recorded_runs import Recorded, apart, recorded
from swarmbook.reproduction.training_time import duration, seconds

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-3  # of the greatest number that a run records of the same metric; seeds differ by some 5e-3
COUNTED = ("failure", "ledger")  # metrics that follow from the configuration: the same everywhere
CLOCKED = ["seconds"]  # columns of tables that say how long a search took
BAR = "%|"  # in the lines of a progress bar, which there are only where something is made again
# Provenance that decides how numbers are rounded; "earlier" is where steps before an interruption were computed
ALIKE = ("device", "torch", "threads", "compiled", "packed", "processes", "earlier")


@dataclass
class Shown:
    """What an execution on the record has shown.

    faults: a sentence for each place at which the notebook shows something else than it holds. tables: those that were
    computed again, by key.
    """

    faults: list[str] = field(default_factory=list)
    tables: dict[str, Record] = field(default_factory=dict)


def shown(paper: Paper, without: Collection[str] = (), progress: execution.OnProgress | None = None) -> Shown:
    """Execute a notebook on what is recorded. without: keys of tables that are left out, so that it computes them."""
    import nbformat

    stored = nbformat.read(paper.notebook, 4)
    with tempfile.TemporaryDirectory(prefix="swarmbook-") as scratch:
        place, own = Path(scratch), Store(Path(scratch) / "store")
        surroundings = {"SWARMBOOK_STORE": str(own.root), "SWARMBOOK_FRESH": "0"}
        try:
            own_paper, folder = apart(paper, place, without), place / "runs"
            done = execution.execute(own_paper, {}, environment=surroundings, progress=progress, folder=folder)
        except NotebookError as error:
            return Shown([str(error).split("\nexecuted so far")[0]])
        executed = nbformat.read(done.notebook, 4)
        there = paper.recorded
        if without:  # what experts of an ensemble began with is trained again for its weights, recorded or not
            there |= {path.stem for path in own.root.glob("states/*.pt")}
        new = {path.stem for path in own.root.glob("*.parquet")}
        found = Shown(tables={key: own.get(key) for key in new & set(without)})
    if missing := sorted(new - there):
        found.faults.append(f"{paper.name} needs runs that are not recorded beside it: {', '.join(missing)}")
    found.faults += _changes(paper, stored, executed)
    return found


def _changes(paper: Paper, stored: Any, executed: Any) -> Iterator[str]:
    """Where an executed notebook shows other text, tables or claims than the stored one."""
    pairs = [
        (was, now)
        for was, now in zip(stored.cells, executed.cells, strict=True)
        if was.cell_type == "code" and was.source
    ]
    for number, (was, now) in enumerate(pairs, 1):
        label = papers.label_of(was)
        where = f"{paper.name}, code cell {number} of {len(pairs)}{label and f' ({label})'}"
        for before, after in _differences(_shown(was), _shown(now)):
            yield f"{where} holds {before!r}, but the code gives {after!r}; execute it anew, or restore it with git"


def _shown(cell: Mapping[str, Any]) -> list[str]:
    """What a cell shows, line by line, without what varies between executions."""
    lines = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        shown = [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
        shown += [str(sorted(claim.items())) for claim in data.get(MIMETYPE, [])]
        shown.append(output.get("ename", ""))
        lines += "\n".join(shown).splitlines()
    return [line for line in stable(lines, volatile()) if line.strip() and BAR not in line]


@cache
def volatile() -> list[tuple[str, str]]:
    """What varies between executions, as a regular expression, and what stands for it: from nbval's file."""
    text = Path(__file__).with_name("sanitize.cfg").read_text(encoding="utf-8")
    return re.findall(r"^regex: (.*)\nreplace: (.*)$", text, re.MULTILINE)


def _differences(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The first pair of lines in which two texts differ, if they do."""
    longest = max(len(before), len(after))
    for i in range(longest):
        pair = before[i] if i < len(before) else "", after[i] if i < len(after) else ""
        if pair[0] != pair[1]:
            yield pair
            return


def cost(table: Record, runs: Mapping[str, tuple[Record, RunConfig]]) -> float:
    """About how many seconds it takes to compute a table again; infinite where nothing tells."""
    asked = table.config
    if "planner" in asked:
        return float(table.metrics["seconds"].max())
    if "bound" in asked:
        return asked["effort"] * asked["nodes"]
    if "experts" in asked and runs.keys() >= set(asked["experts"]):  # of which only the numbers are recorded
        return seconds({key: runs[key] for key in asked["experts"]}, runs)
    return table.provenance.get("seconds", math.inf)


@dataclass(frozen=True)
class Comparison:
    """A recorded run beside the same run trained again."""

    key: str
    worst: float  # deviation, in parts of the greatest number of its metric; infinite where rows differ
    where: str
    exact: bool  # whether nothing but the same bits will do
    note: str = ""

    @property
    def agrees(self) -> bool:
        return self.worst == 0 if self.exact else self.worst <= TOLERANCE

    @property
    def verdict(self) -> str:
        if self.worst == 0:
            return "the same bits"
        return "within tolerance" if self.agrees else f"deviates{self.note and f' ({self.note})'}"


def compare(recorded: Record, again: Record) -> Comparison:
    """Two records of one run: all rows of all metrics."""
    differing = [name for name in ALIKE if recorded.provenance.get(name) != again.provenance.get(name)]
    exact = _on_cpu(recorded) and not differing  # CUDA adds up in any order
    rows = ["step", "metric", "stage", "label"]
    before, after = (_plain(record.metrics) for record in (recorded, again))
    if not before[rows].equals(after[rows]):
        return Comparison(recorded.key, math.inf, f"{len(before)} rows recorded, {len(after)} now", exact, "other rows")
    note = "the same bits are due" if exact else f"{TOLERANCE:g} is allowed"
    difference = (before["value"] - after["value"]).abs().to_numpy(copy=True)
    missing = before["value"].isna().to_numpy(), after["value"].isna().to_numpy()
    difference[missing[0] & missing[1]] = 0
    difference[missing[0] ^ missing[1]] = math.inf
    same = before["value"].to_numpy() == after["value"].to_numpy()  # infinities too
    difference[same] = 0
    greatest = before["value"].abs().groupby(before["metric"]).transform("max").to_numpy()
    parts = np.divide(difference, greatest, out=np.where(difference > 0, np.inf, 0.0), where=greatest > 0)
    counted = before["metric"].isin(COUNTED).to_numpy()
    parts[counted & (parts > 1e-9)] = math.inf
    worst = int(np.argmax(parts))
    row = before.iloc[worst]
    place = f"{row['metric']}{row['label'] and ' ' + row['label']} at step {row['step']}"
    where = place if parts[worst] else ""
    return Comparison(recorded.key, float(parts[worst]), where, exact, note)


def compare_tables(recorded: Record, again: Record) -> Comparison:
    """Two records of one table: all entries, but for how long it took."""
    import pandas as pd

    before, after = (record.metrics.drop(columns=CLOCKED, errors="ignore") for record in (recorded, again))
    try:
        pd.testing.assert_frame_equal(before, after, check_exact=True)
        return Comparison(recorded.key, 0.0, "", False)
    except AssertionError as error:
        where = str(error).splitlines()[0]
    if list(before) != list(after) or len(before) != len(after):
        return Comparison(recorded.key, math.inf, f"{len(before)} rows recorded, {len(after)} now", False, "other rows")
    worst = 0.0
    for name in before:
        old, new = before[name], after[name]
        if pd.api.types.is_float_dtype(old):
            same = (old == new) | (old.isna() & new.isna())  # among them infinities, and columns of zeros
            parts = ((old - new).abs() / old.abs().max()).where(~same, 0.0).fillna(math.inf)
            worst = max(worst, float(parts.max()))
        elif not old.equals(new):
            return Comparison(recorded.key, math.inf, name, False, "other rows")
    return Comparison(recorded.key, worst, where, False, f"{TOLERANCE:g} is allowed")


def _plain(metrics: "pd.DataFrame") -> "pd.DataFrame":
    return metrics.astype({"metric": str, "label": str}).reset_index(drop=True)


def again(chosen: Mapping[str, tuple[Record, RunConfig]], device: str = "auto", show: bool = True) -> list[Comparison]:
    """Train runs again from nothing, in packs, with the threads and kernels of their records, and compare them."""
    import torch

    from swarmbook.runs import run
    from swarmbook.training.stacked_stages import plain_layers

    alike: dict[tuple[int, bool], list[RunConfig]] = {}
    for record, config in chosen.values():
        plain = record.provenance["compiled"] is False
        alike.setdefault((record.provenance["threads"], plain), []).append(config)
    found = []
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="swarmbook-") as scratch:
        store = Store(Path(scratch))
        try:
            for (threads, plain), configs in alike.items():
                torch.set_num_threads(threads)
                try:
                    with plain_layers() if plain else nullcontext():
                        run(configs, device=device, show=show, store=store)
                except TrainingError as error:
                    diverged = str(error)
                for config in configs:
                    new = store.get(config.key)
                    if new is None:
                        found.append(Comparison(config.key, math.inf, "", False, f"now diverges: {diverged}"))
                    else:
                        found.append(compare(chosen[config.key][0], new))
        finally:
            torch.set_num_threads(before)
    return found


def out_of_reach(found: Mapping[str, Recorded]) -> set[str]:
    """Keys of the runs that were recorded on CUDA, and of ensembles that need them, if there is no CUDA here.

    An ensemble is within reach if all its experts were recorded on a CPU. Of the others only numbers may be recorded.
    """
    far: set[str] = set()
    for one in found.values():
        if on_cuda := {key for key, (record, _) in one.runs.items() if not _on_cpu(record)}:
            near = one.runs.keys() - on_cuda
            far |= on_cuda | {key for key, table in one.tables.items() if set(table.config.get("experts", ())) - near}
    if not far:
        return far
    import torch  # seconds, for which most have no need here

    return set() if torch.cuda.is_available() else far


def _on_cpu(record: Record) -> bool:
    return str(record.provenance.get("device")).startswith("cpu")


def drawn(
    found: Mapping[str, Recorded], sample: int | None, seed: int, within: float = math.inf
) -> tuple[dict[str, tuple[Record, RunConfig]], dict[str, list[str]]]:
    """A sample of recorded runs and tables: the runs by key, and the keys of tables by paper.

    It is drawn from what can be made again here, which is not `out_of_reach`.
    sample: how many, None for all. within: seconds that each of them may take.
    """
    runs = {key: run for recorded in found.values() for key, run in recorded.runs.items()}
    costs = {key: seconds({key: run}, runs) for key, run in runs.items()}
    costs |= {key: cost(table, runs) for recorded in found.values() for key, table in recorded.tables.items()}
    keys = sorted(key for key in costs.keys() - out_of_reach(found) if costs[key] <= within)
    if sample is not None and sample < len(keys):
        keys = np.random.default_rng(seed).choice(keys, sample, replace=False).tolist()
    tables = {name: sorted(recorded.tables.keys() & set(keys)) for name, recorded in found.items()}
    return {key: runs[key] for key in sorted(keys) if key in runs}, tables


def verify(
    chosen: Sequence[Paper],
    sample: int | None,
    seed: int,
    say: Callable[[str], None],
    within: float = math.inf,
    progress: execution.OnProgress | None = None,
) -> bool:
    """Verify papers; returns whether all is as it should be.

    sample: how many runs and tables are made again, None for all. seed: of the sample. say: is told what is found, line
    by line. within: seconds that each of those which are made again may take. progress: is told how far notebooks are.
    """
    found = {paper.name: recorded(paper) for paper in chosen}
    runs = {key: run for one in found.values() for key, run in one.runs.items()}
    picked, tables = drawn(found, sample, seed, within)
    far = out_of_reach(found)
    faults: list[str] = []
    compared: list[Comparison] = []
    for paper in chosen:
        own = found[paper.name]
        also = f" and {len(own.tables)} tables" if own.tables else ""
        say(f"{paper.name}: {len(own.runs)} runs{also} recorded, {len(own.faults)} damaged")
        if elsewhere := far & own.runs.keys():
            ensembles = len(far & own.tables.keys())
            also = f" and {ensembles} tables made of them" if ensembles else ""
            say(f"{len(elsewhere)} runs{also} were recorded on CUDA, which is not here: they are not made again")
        wrong = list(own.faults)
        if not wrong:
            if anew := tables[paper.name]:
                lasts = sum(cost(own.tables[key], runs) for key in anew)
                say(f"computing {len(anew)} of {len(own.tables)} tables again: about {duration(lasts)}")
            now = shown(paper, anew, progress)
            wrong = now.faults
            compared += [compare_tables(own.tables[key], table) for key, table in sorted(now.tables.items())]
            wrong += [f"table {key} was not computed again" for key in anew if key not in now.tables and not wrong]
            say(f"{paper.name}: the notebook shows {'something else than' if wrong else 'just'} what it holds")
        for fault in wrong:
            say(f"  {fault}")
        faults += wrong
    if picked:
        say(f"training {len(picked)} of {len(runs)} runs again: about {duration(seconds(picked, runs))}")
        compared += again(picked)
    total = len(runs) + sum(len(one.tables) for one in found.values())
    if len(compared) < total:
        say(f"the sample was drawn with --seed {seed}")
    if compared:
        say(f"{'run or table':20}  {'worst deviation':15}  verdict")
    for one in compared:
        say(f"{one.key:20}  {one.worst:<15.2g}  {one.verdict}{one.where and f', at most in {one.where}'}")
        if not one.agrees:
            faults.append(f"{'run' if one.key in runs else 'table'} {one.key}: {one.verdict}")
    say("all agrees" if not faults else f"{len(faults)} deviations:\n" + "\n".join(f"  {fault}" for fault in faults))
    return not faults
