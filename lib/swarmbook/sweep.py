"""Sweeps: a paper's notebook executed at every point of a grid, on as many workers as there are.

- The grid is `papers/<name>/sweep.yaml`; all of it is checked against the notebook's own parameters before anything
  starts. Seeds are named by number: of a notebook that takes a count of them, the point of seed s stands on seeds 0 to
  s, so that each point adds one seed to those before it and the last has them all.
- Workers are dask's: processes of a cluster made for the sweep, or those of any scheduler by its address.
- A point is finished when its executed notebook bears a mark: the hash of its parameters, of the library's code and of
  the notebook. It appears whole or not at all, so whatever is killed, the next sweep goes on from there.
- Points share training runs through the store: each is trained once, by whoever comes first.
"""

import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmbook import papers
from swarmbook.claims import VERDICTS, Claim
from swarmbook.files import canonical, key_of
from swarmbook.papers import NotebookError, Paper, UsageError, unknown

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client, Future
    from yaml import Node

MOST = 10_000  # points of a sweep
RANGE = re.compile(r"(\d+) *- *(\d+)")
OUTER = ("__main__.py", "cli.py", "provenance.py", "report.py", "sweep.py", "verify.py")  # no numbers depend on them
FOUND = DONE, RESUMED, REPAIRED, OUTDATED, LEFT = "done", "resumed", "repaired", "outdated", "left"
EXECUTED, HELD, FAILED = "executed", "held", "failed"


# The grid


@dataclass(frozen=True)
class Grid:
    """One part of a sweep.yaml: the seeds, parameters that are combined, and groups of them that move together."""

    seeds: tuple[int, ...]
    product: Mapping[str, list]
    groups: tuple[Mapping[str, list], ...]

    def points(self, paper: Paper) -> list[dict[str, Any]]:
        """The parameters of every point, those of the first seed first."""
        axes = [_seeded(paper, self.seeds)] if self.seeds else []
        axes += [[{name: value} for value in values] for name, values in self.product.items()]
        axes += [
            [dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)] for group in self.groups
        ]
        if math.prod(map(len, axes)) > MOST:
            sizes = " x ".join(str(len(axis)) for axis in axes)
            raise UsageError(f"the grid of {paper.name} has {sizes} points, more than {MOST}: make it smaller")
        return [{name: value for part in parts for name, value in part.items()} for parts in itertools.product(*axes)]


def points(paper: Paper, profile: str | None = None, seeds: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The parameters of every point of a paper's sweep at a profile (default: the notebook's); `seeds` replace its own.

    Raises UsageError that names the line of sweep.yaml where a name, a type, a choice or a grid is wrong.
    """
    profile = papers.checked(paper, {"profile": profile})["profile"] if profile else _default_profile(paper)
    sheet = paper.notebook.with_name("sweep.yaml")
    if sheet.exists():
        grid = Sheet(paper, sheet).grids()[profile]
    elif seeds:
        grid = Grid((), {}, ())
    else:
        raise UsageError(f"{paper.name} has no {sheet}: write one, or name seeds with --seeds, such as --seeds 0-4")
    if seeds:
        taken = {"seed", "seeds"} & {*grid.product, *(name for group in grid.groups for name in group)}
        if taken:
            raise UsageError(f"{sheet} sets {', '.join(taken)} in its grid, and --seeds as well: leave out one of them")
        grid = replace(grid, seeds=tuple(seeds))
    found = [{"profile": profile, **point} for point in grid.points(paper)]
    if found == [{"profile": profile}]:
        raise UsageError(f"{sheet} has an empty grid: name values of a parameter under grid, or seeds")
    return found


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds as `3`, `0-4` (ends included) or `0,2,5-7`; raises UsageError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        bounds = RANGE.fullmatch(part.strip()) or re.fullmatch(r"((\d+))", part.strip())
        if bounds is None or int(bounds[1]) > int(bounds[2]):
            raise UsageError(f"seeds {text!r} are no seeds: write a number, a range such as 0-4, or 0,2,5-7")
        seeds += range(int(bounds[1]), int(bounds[2]) + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {text!r} name a seed twice")
    return tuple(seeds)


def _seeded(paper: Paper, seeds: Sequence[int]) -> list[dict[str, Any]]:
    parameters = paper.parameters()
    if "seed" in parameters:
        return [papers.checked(paper, {"seed": seed}) for seed in seeds]
    if "seeds" not in parameters:
        raise unknown(f"parameter of {paper.name}", "seeds", list(parameters))
    counts = isinstance(parameters["seeds"].default, int)
    return [papers.checked(paper, {"seeds": seed + 1 if counts else [seed]}) for seed in seeds]


def _default_profile(paper: Paper) -> str:
    parameters = paper.parameters()
    if "profile" not in parameters:
        raise unknown(f"parameter of {paper.name}", "profile", list(parameters))
    return parameters["profile"].default


class Sheet:
    """A sweep.yaml as it is read and checked, line by line."""

    def __init__(self, paper: Paper, path: Path):
        import yaml

        self.paper, self.path = paper, path
        self.parameters = paper.parameters()
        try:
            self.root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UsageError(f"{path}, line {line}: not YAML: {error.problem}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML: {error}") from error
        if self.root is None:
            raise UsageError(f"{path} is empty: name values of a parameter under grid, or seeds, such as seeds: 0-4")

    def grids(self) -> dict[str, Grid]:
        """By profile, all of them, so that a mistake is found before its profile is asked for."""
        entries = self._entries(self.root, "sweep.yaml", ("seeds", "grid", "zip", "profiles"))
        profiles = self.parameters["profile"].choices
        base = self._grid({name: node for name, node in entries.items() if name != "profiles"}, Grid((), {}, ()))
        grids = dict.fromkeys(profiles, base)
        if "profiles" in entries:
            for profile, node in self._entries(entries["profiles"], "profiles", profiles).items():
                grids[profile] = self._grid(self._entries(node, profile, ("seeds", "grid", "zip")), base)
        return grids

    def _grid(self, entries: dict[str, "Node"], base: Grid) -> Grid:
        seeds, product, groups = base.seeds, dict(base.product), base.groups
        if "seeds" in entries:
            seeds = self._seeds(entries["seeds"])
        if "grid" in entries:
            node = entries["grid"]
            product |= {name: self._values(name, values) for name, values in self._entries(node, "grid").items()}
        if "zip" in entries:
            groups = self._groups(entries["zip"])
        names = [*product, *(name for group in groups for name in group), *([self._seed_name()] if seeds else [])]
        for name, count in Counter(names).items():
            if count > 1:
                node = entries.get("zip") or entries.get("grid") or entries["seeds"]
                raise self._wrong(node, f"parameter {name} is set in two of seeds, grid and zip; keep one of them")
        return Grid(seeds, product, groups)

    def _seed_name(self) -> str:
        return "seed" if "seed" in self.parameters else "seeds"

    def _seeds(self, node: "Node") -> tuple[int, ...]:
        value = _plain(node)
        listed = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            seeds = seeds_of(listed)
            _seeded(self.paper, seeds)
        except UsageError as error:
            raise self._wrong(node, str(error)) from error
        return seeds

    def _groups(self, node: "Node") -> tuple[Mapping[str, list], ...]:
        from yaml import SequenceNode

        groups = []
        for item in node.value if isinstance(node, SequenceNode) else [node]:
            group = {name: self._values(name, values) for name, values in self._entries(item, "zip").items()}
            sizes = {name: len(values) for name, values in group.items()}
            if len(set(sizes.values())) > 1:
                lengths = ", ".join(f"{name} has {size} values" for name, size in sizes.items())
                raise self._wrong(item, f"what is zipped moves together, but {lengths}")
            groups.append(group)
        return tuple(groups)

    def _values(self, name: str, node: "Node") -> list:
        """The values of a parameter: a list, a range of integers such as 1-5, or one value."""
        from yaml import SequenceNode

        if name == "profile":
            raise self._wrong(node, "the profile is chosen with --profile; what differs at one goes under profiles")
        if name not in self.parameters:
            raise self._wrong(node, str(unknown(f"parameter of {self.paper.name}", name, list(self.parameters))))
        whole = _plain(node)
        if type(self.parameters[name].default) is int and (bounds := RANGE.fullmatch(str(whole))):
            values = list(range(int(bounds[1]), int(bounds[2]) + 1))
        else:
            values = whole if isinstance(whole, list) else [whole]
        if not values:
            raise self._wrong(
                node, f"parameter {name} has no values ({whole!r}), so the grid is empty: name one or more"
            )
        nodes = node.value if isinstance(node, SequenceNode) else [node] * len(values)
        fitted = [self._fitted(name, value, item) for value, item in zip(values, nodes, strict=True)]
        for i, value in enumerate(fitted):
            if value in fitted[:i]:
                raise self._wrong(nodes[i], f"parameter {name} has the value {value!r} twice")
        return fitted

    def _fitted(self, name: str, value: Any, node: "Node") -> Any:
        try:
            fitted = papers.checked(self.paper, {name: value})[name]
            canonical(fitted, name)
        except (ValueError, TypeError) as error:
            raise self._wrong(node, str(error)) from error
        return fitted

    def _entries(self, node: "Node", what: str, valid: Sequence[str] = ()) -> dict[str, "Node"]:
        """The entries of a mapping, by name; none of them twice, all of them valid."""
        from yaml import MappingNode, ScalarNode

        if not isinstance(node, MappingNode) or not node.value:
            known = f": {', '.join(valid)}" if valid else ""
            raise self._wrong(node, f"{what} takes names with their values{known}, but got {_plain(node)!r}")
        entries: dict[str, Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else repr(_plain(key))
            if name in entries:
                raise self._wrong(key, f"{name} is there twice in {what}; keep one of them")
            if valid and name not in valid:
                raise self._wrong(key, str(unknown(f"entry of {what}", name, list(valid))))
            if not valid and name not in self.parameters:
                raise self._wrong(key, str(unknown(f"parameter of {self.paper.name}", name, list(self.parameters))))
            entries[name] = value
        return entries

    def _wrong(self, node: "Node", message: str) -> UsageError:
        return UsageError(f"{self.path}, line {node.start_mark.line + 1}: {message}")


def _plain(node: "Node") -> Any:
    from yaml.constructor import SafeConstructor

    return SafeConstructor().construct_document(node)


# Points: where they are, and how far they have come


@dataclass(frozen=True)
class Point:
    """One execution of a notebook; a folder of its own holds what comes of it."""

    name: str
    notebook: Path
    parameters: dict[str, Any]
    folder: Path
    code: str  # a hash of the library that executes it
    mark: str

    @property
    def executed(self) -> Path:
        return self.folder / self.notebook.name


def place(paper: Paper, parameters: Sequence[dict[str, Any]], output: Path | None = None) -> list[Point]:
    """The points of a sweep in folders below `output`, by default `runs/sweeps/<paper>-<profile>` beside `papers/`."""
    root = paper.notebook.parents[2] / "runs" / "sweeps" if output is None else Path(output).absolute()
    notebook, code = _content(paper.notebook), version()
    found = []
    for values in parameters:
        name = _name(values)
        mark = key_of({"parameters": values, "notebook": notebook, "code": code})
        folder = root / f"{paper.name}-{values['profile']}" / name
        found.append(Point(name, paper.notebook, values, folder, code, mark))
    return found


def prepare(points: Sequence[Point]) -> None:
    """Make the folder of a sweep; raises UsageError if nothing can be written there."""
    folder = points[0].folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
    except OSError as error:
        raise UsageError(_unwritten(folder, error)) from error


def _unwritten(folder: Path, error: OSError) -> str:
    cure = "make room or make it writable, or choose another folder with --output; then start the sweep again"
    return f"cannot write {folder}: {error.strerror or error}; {cure}"


def _name(parameters: Mapping[str, Any]) -> str:
    """A readable name of a folder; with a hash where it could stand for other parameters as well."""
    exact = ",".join(f"{name}={value}" for name, value in parameters.items() if name != "profile")
    name = re.sub(r"[^\w.=,+-]", "_", exact)[:80]
    return name if name == exact else f"{name}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


@cache
def version() -> str:
    """A hash of the library's code, but for the modules that no notebook's numbers depend on."""
    root = Path(__file__).parent
    modules = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    return _hashed({name: path.read_bytes() for name, path in modules.items() if name not in OUTER})


def _content(notebook: Path) -> str:
    """A hash of a notebook's code and of the tables that lie beside it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [
        ["".join(cell["source"]), cell["metadata"].get("tags", [])] for cell in cells if cell["cell_type"] == "code"
    ]
    beside = [path for path in notebook.parent.iterdir() if path.suffix in (".csv", ".json")]
    tables = [path for path in beside if not path.name.startswith("provenance.")]  # renewed with a record, read by none
    return _hashed({"": json.dumps(code).encode(), **{path.name: path.read_bytes() for path in tables}})


def _hashed(parts: Mapping[str, bytes]) -> str:
    return key_of({name: hashlib.sha256(part).hexdigest() for name, part in parts.items()})


def state(point: Point) -> str:
    """One of FOUND: done; resumed, if begun; repaired, if damaged; outdated, if of other code; left."""
    try:
        stamp = papers.stamp_of(point.executed)
    except FileNotFoundError:
        return RESUMED if (point.folder / "begun").exists() else LEFT
    except NotebookError:
        return REPAIRED
    return DONE if stamp and stamp.get("mark") == point.mark else OUTDATED


# Execution


@dataclass(frozen=True)
class Outcome:
    """What became of a point: executed, done (found so), held (by another sweep) or failed."""

    point: Point
    state: str
    seconds: float = 0.0
    error: str = ""


_alone = threading.Lock()  # papermill changes the folder of the whole process


def execute(point: Point, environment: Mapping[str, str], wait: bool) -> Outcome:
    """Execute a point on this worker, unless it is done, or another sweep executes it now and we are not to wait."""
    if not point.notebook.exists():
        shared = "a sweep needs the clone and its runs in a file system that all workers share"
        return Outcome(point, FAILED, error=f"the worker on {socket.gethostname()} has no {point.notebook}: {shared}")
    if (ours := version()) != point.code:
        return Outcome(
            point,
            FAILED,
            error=f"the worker on {socket.gethostname()} has other code of swarmbook ({ours}, not {point.code}): "
            "install the same version there, and restart it",
        )
    with _alone:
        try:
            return _executed(point, environment, wait)
        except OSError as error:  # of a disk that is full, say; the point counts as begun
            return Outcome(point, FAILED, error=_unwritten(point.folder, error))


def _executed(point: Point, environment: Mapping[str, str], wait: bool) -> Outcome:
    from filelock import FileLock, Timeout

    started = time.monotonic()
    point.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(point.folder / ".lock", thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=wait, poll_interval=0.2)
    except Timeout:
        return Outcome(point, HELD)
    try:
        if state(point) == DONE:
            return Outcome(point, DONE)
        for leftover in point.folder.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        begun = point.folder / "begun"
        begun.touch()
        stamp = {"mark": point.mark, "parameters": point.parameters, "code": point.code}
        error = ""
        try:
            paper = papers.read(point.notebook)
            papers.execute(paper, point.parameters, None, environment, folder=point.folder, stamp=stamp, page=False)
        except NotebookError as failure:
            error = str(failure)
        begun.unlink()
        return Outcome(point, FAILED if error else EXECUTED, time.monotonic() - started, error)
    finally:
        lock.release()


def sweep(
    points: Sequence[Point],
    client: "Client",
    environment: Mapping[str, str],
    told: Callable[[Outcome | None, int], None],
    keep_going: bool = True,
) -> list[Outcome]:
    """Execute points on a client's workers; `told` hears of each as it ends, or None, and how many are left.

    Those that another sweep executes are looked at again after all others. Without `keep_going` the first failure ends
    it. Raises ConnectionError if the scheduler is lost.
    """
    from distributed import CancelledError, wait

    def submit(point: Point, patient: bool) -> "Future":
        return client.submit(execute, point, dict(environment), patient, pure=False, priority=-patient)

    waiting = {submit(point, False): point for point in points}
    outcomes = []
    try:
        while waiting:
            try:
                finished = wait(list(waiting), timeout=1, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                finished = set()
            except CancelledError as error:
                where = client.scheduler.address
                raise ConnectionError(f"lost the scheduler at {where}; start the sweep again to go on") from error
            for future in finished:
                point = waiting.pop(future)
                outcome = _outcome(point, future)
                if outcome.state == HELD:
                    waiting[submit(point, True)] = point
                    continue
                outcomes.append(outcome)
                told(outcome, len(waiting))
                if outcome.state == FAILED and not keep_going:
                    return outcomes
            told(None, len(waiting))
    finally:
        if client.status == "running":
            client.cancel(list(waiting))
    return outcomes


def _outcome(point: Point, future: "Future") -> Outcome:
    from distributed import KilledWorker

    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, KilledWorker):
        why = "its worker was killed each time, perhaps for want of memory: use fewer workers, or a smaller profile"
        return Outcome(point, FAILED, error=why)
    return Outcome(point, FAILED, error=f"{type(error).__name__}: {error}")


@contextmanager
def cluster(address: str | None, workers: int) -> Iterator["Client"]:
    """A client of the scheduler at an address, or of a cluster of so many processes here.

    Raises UsageError if dask is missing, nothing answers at the address within 30 s, or no worker is there.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a sweep needs dask ({error}); install it with the extra `cluster`: pip install -e '.[cluster]'"
        ) from error
    if address is None:
        quiet = {"distributed.scheduler.worker-ttl": None, "distributed.scheduler.allowed-failures": 10}
        with (
            tempfile.TemporaryDirectory(prefix="swarmbook-") as scratch,
            dask.config.set(quiet),
            _deaf() as listening,
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any free port: nobody looks
                silence_logs=50,
                local_directory=scratch,
            ) as here,
            Client(here) as client,
        ):
            listening()
            yield client
        return
    try:
        client = Client(address, timeout=30)
    except (OSError, ValueError, TypeError) as error:
        example = "give the address that `dask scheduler` prints, such as tcp://10.0.0.1:8786"
        raise UsageError(f"no scheduler answers at {address!r} ({error}): {example}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError as error:
            start = f"start some with `dask worker {address} --nthreads 1`"
            raise UsageError(f"the scheduler at {address} has no workers: {start}") from error
        yield client


@contextmanager
def _deaf() -> Iterator[Callable[[], None]]:
    """Have processes that are started now ignore Ctrl-C: a terminal sends it to them as well, but it is for us."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set this
        yield lambda: None
        return
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield lambda: signal.signal(signal.SIGINT, ours)
    finally:
        signal.signal(signal.SIGINT, ours)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(workers: int) -> dict[str, str]:
    """The environment that gives each of so many workers here its share of the processors, unless that is set."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // workers))}


# The collection


def collect(paper: Paper, points: Sequence[Point], environment: Mapping[str, str]) -> papers.Execution:
    """Write and execute `sweep.ipynb` beside the points' folders: their claims side by side.

    Raises NotebookError if it fails, or cannot be written.
    """
    import nbformat
    from filelock import FileLock
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    folder, profile = points[0].folder.parent, points[0].parameters["profile"]
    names = "".join(f"    {point.name!r},\n" for point in points)
    cells = [
        new_markdown_cell(
            f"# {paper.name}: a sweep at `{profile}`\n\n{paper.title}\n\nEach point is one execution of the notebook; "
            "its folder here has the same name. A point of several seeds shows their spread in its own numbers."
        ),
        new_code_cell(
            "import pandas as pd\n\nfrom swarmbook import sweep\n\npd.set_option('display.max_colwidth', None)\n"
            f"points = sweep.read({paper.name!r}, [\n{names}])\npoints.table()"
        ),
        new_markdown_cell("**The claims**: from the least to the greatest number over all points, and their verdicts."),
        new_code_cell("points.summary()", metadata={"tags": ["claims"]}),
        new_markdown_cell("**Point by point.**"),
        new_code_cell("points.side_by_side()"),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    try:
        with FileLock(folder / ".collect.lock", fallback_to_soft=False):
            papers.write(folder / "sweep.ipynb", nbformat.writes(new_notebook(cells=cells)).encode())
            return papers.execute(papers.read(folder / "sweep.ipynb"), {}, None, environment, folder=folder)
    except OSError as error:
        raise NotebookError(_unwritten(folder, error)) from error


@dataclass(frozen=True)
class Collected:
    """Executed points by name: their parameters and claims; None where a point was not executed."""

    points: dict[str, tuple[dict[str, Any], tuple[Claim, ...]] | None]

    def table(self) -> "pd.DataFrame":
        """One row a point: its parameters, and how many claims have which verdict."""
        import pandas as pd

        rows = []
        for name, point in self.points.items():
            counts = Counter(claim.verdict for claim in point[1]) if point else {}
            verdicts = {verdict: str(counts[verdict]) if point else "" for verdict in VERDICTS}
            parameters = {key: str(value) for key, value in point[0].items()} if point else {}
            rows.append({"point": name, **parameters, "executed": "yes" if point else "no", **verdicts})
        return pd.DataFrame(rows).fillna("").set_index("point")

    def claims(self) -> list[Claim]:
        """The claims of all points as one each: the range of their numbers, and a count of their verdicts."""
        merged = []
        for id, claims in self._by_id().items():
            counts = Counter(claim.verdict for claim in claims.values())
            verdicts = ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
            last = list(claims.values())[-1]
            merged.append(Claim(id, last.text, last.paper, spread([c.ours for c in claims.values()]), verdicts))
        return merged

    def summary(self) -> "pd.DataFrame":
        import pandas as pd

        rows = [(c.id, c.text, c.paper, c.ours, c.verdict) for c in self.claims()]
        return pd.DataFrame(rows, columns=["id", "claim", "paper", "ours, over points", "verdicts"]).set_index("id")

    def side_by_side(self) -> "pd.DataFrame":
        """One row a claim, one column a point."""
        import pandas as pd

        cells = {
            id: {name: f"{claim.ours} ({claim.verdict})" for name, claim in claims.items()}
            for id, claims in self._by_id().items()
        }
        return pd.DataFrame.from_dict(cells, orient="index", columns=self._executed()).fillna("")

    def _executed(self) -> list[str]:
        return [name for name, point in self.points.items() if point]

    def _by_id(self) -> dict[str, dict[str, Claim]]:
        found: dict[str, dict[str, Claim]] = {}
        for name in self._executed():
            for claim in self.points[name][1]:
                found.setdefault(claim.id, {})[name] = claim
        return found


def read(paper: str, names: Sequence[str], folder: Path | str = ".") -> Collected:
    """The points of a sweep by the names of their folders."""
    found: dict[str, tuple[dict[str, Any], tuple[Claim, ...]] | None] = {}
    for name in names:
        executed = Path(folder) / name / f"{paper}.ipynb"
        if not executed.exists():
            found[name] = None
            continue
        stamp = papers.stamp_of(executed) or {}
        found[name] = stamp.get("parameters", {}), papers.read(executed).claims
    return Collected(found)


NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def spread(texts: Sequence[str]) -> str:
    """Texts that differ in their numbers only as one, each number that varies as its range; else all of them."""
    if len({NUMBER.sub("#", text) for text in texts}) > 1:
        return "; ".join(dict.fromkeys(texts))
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    ranges = []
    for column in columns:
        low, *_, high = 2 * sorted(column, key=lambda number: float(number.replace("−", "-")))
        ranges.append(low if low == high else f"{low} to {high}")
    found = iter(ranges)
    return NUMBER.sub(lambda _: next(found), texts[0])
