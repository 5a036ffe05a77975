"""Sweeps: a paper's notebook executed at every point of a grid, on as many workers as there are.

- A point is one execution of the notebook, with parameters of its own (`swarmbook.reproduction.sweep_grid`). Seeds are
  named by number: of a notebook that takes a count of them, the point of seed s stands on seeds 0 to s, so that each
  point adds one seed to those before it and the last has them all.
- Workers are dask's: processes of a cluster that is made for the sweep, or those of any scheduler by its address.
- A point is finished when its executed notebook bears a mark: the hash of its parameters, of the library's code and of
  the notebook. It appears whole or not at all. Whatever is killed, the next sweep goes on from there.
- Points share training runs through the store: each run is trained once, by whoever comes first.

Serves: `swarmbook sweep`.
"""

import hashlib
import json
import math
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import swarmbook
from swarmbook.errors import NotebookError, UsageError
from swarmbook.locations import runs_folder
from swarmbook.records import locks
from swarmbook.records.atomic_files import clean
from swarmbook.records.keys import key_of
from swarmbook.reproduction import execution, papers
from swarmbook.reproduction.papers import Paper

if TYPE_CHECKING:
    from distributed import Client, Future

OUTER = ("reproduction/", "cli.py", "__main__.py")  # of the library, what no notebook's numbers depend on
FOUND = DONE, RESUMED, REPAIRED, OUTDATED, LEFT = "done", "resumed", "repaired", "outdated", "left"
EXECUTED, HELD, FAILED = "executed", "held", "failed"


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

    @property
    def lock(self) -> Path:
        """The lock of the sweep that executes it."""
        return self.folder / ".lock"


def place(paper: Paper, parameters: Sequence[dict[str, Any]], output: Path | None = None) -> list[Point]:
    """The points of a sweep in folders `<paper>-<profile>/<point>` below `output`, by default `runs/sweeps`."""
    root = runs_folder(paper.notebook.parents[1]) / "sweeps" if output is None else Path(output).absolute()
    notebook, code = _content(paper.notebook), version()
    found = []
    for values in parameters:
        name = _name(values)
        mark = key_of({"parameters": values, "notebook": notebook, "code": code})
        folder = root / f"{paper.name}-{values['profile']}" / name
        found.append(Point(name, paper.notebook, values, folder, code, mark))
    return found


def unwritten(folder: Path, error: OSError) -> str:
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
    root = Path(swarmbook.__file__).parent
    modules = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    return _hashed({name: path.read_bytes() for name, path in modules.items() if not name.startswith(OUTER)})


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
    """How far a point has come, as one of FOUND.

    DONE; RESUMED: it was begun; REPAIRED: its notebook is damaged; OUTDATED: it is of other code; LEFT: not begun.
    """
    try:
        stamp = execution.stamp_of(point.executed)
    except FileNotFoundError:
        return RESUMED if (point.folder / "begun").exists() else LEFT
    except NotebookError:
        return REPAIRED
    return DONE if stamp and stamp.get("mark") == point.mark else OUTDATED


# Execution


@dataclass(frozen=True)
class Outcome:
    """What became of a point: EXECUTED, DONE (it was found so), HELD (another sweep executes it) or FAILED."""

    point: Point
    state: str
    seconds: float = 0.0
    error: str = ""


_alone = threading.Lock()  # papermill changes the folder of the whole process


def execute(point: Point, environment: Mapping[str, str], wait: bool) -> Outcome:
    """Execute a point on this worker, unless it is done.

    wait: whether to wait for another sweep that executes it now; else the outcome is HELD.
    """
    if not point.notebook.exists():
        shared = "a sweep needs the clone and its runs in a file system that all workers share"
        return Outcome(point, FAILED, error=f"the worker on {socket.gethostname()} has no {point.notebook}: {shared}")
    if (ours := version()) != point.code:
        other = f"the worker on {socket.gethostname()} has other code of swarmbook ({ours}, not {point.code})"
        return Outcome(point, FAILED, error=f"{other}: install the same version there, and restart it")
    with _alone:
        try:
            return _executed(point, environment, wait)
        except OSError as error:  # of a disk that is full, say; the point counts as begun
            return Outcome(point, FAILED, error=unwritten(point.folder, error))


def _executed(point: Point, environment: Mapping[str, str], wait: bool) -> Outcome:
    started = time.monotonic()
    with locks.lock(point.lock, blocking=wait, what=None) as held:
        if not held:
            return Outcome(point, HELD)
        if state(point) == DONE:
            return Outcome(point, DONE)
        clean(point.executed)
        begun = point.folder / "begun"
        begun.touch()
        stamp = {"mark": point.mark, "parameters": point.parameters, "code": point.code}
        error = ""
        try:
            paper = papers.read_paper(point.notebook)
            execution.execute(paper, point.parameters, None, environment, folder=point.folder, stamp=stamp, page=False)
        except NotebookError as failure:
            error = str(failure)
        begun.unlink()
        return Outcome(point, FAILED if error else EXECUTED, time.monotonic() - started, error)


def sweep(
    points: Sequence[Point],
    client: "Client",
    environment: Mapping[str, str],
    told: Callable[[Outcome | None, int], None],
    keep_going: bool = True,
) -> list[Outcome]:
    """Execute points on a client's workers.

    Those that another sweep executes are looked at again after all others. Who holds them is told at once, and again
    every minute.
    told: is called with the outcome of each point as it ends, and with None about once a second; the other argument is
    how many points are left. keep_going: whether the others are executed after one has failed.
    Raises ConnectionError if the scheduler is lost.
    """
    from distributed import CancelledError, wait

    def submit(point: Point, patient: bool) -> "Future":
        return client.submit(execute, point, dict(environment), patient, pure=False, priority=-patient)

    waiting = {submit(point, False): point for point in points}
    outcomes, held = [], {}  # what another sweep holds, by name: when that was told
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
                    held[point.name] = -math.inf
                    continue
                held.pop(point.name, None)
                outcomes.append(outcome)
                told(outcome, len(waiting))
                if outcome.state == FAILED and not keep_going:
                    return outcomes
            for point in waiting.values():
                if time.monotonic() - held.get(point.name, math.inf) >= locks.TELL and point.lock.exists():
                    held[point.name] = time.monotonic()
                    cure = "end that sweep (what it has finished is kept), or sweep into another folder with --output"
                    locks.tell(f"point {point.name}", point.lock, cure)
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
    """A client of the scheduler at an address, or of a cluster of `workers` processes on this machine.

    Scheduler and workers of that cluster talk over TLS. Their certificate is made for it, so that no other user of the
    machine can give them work. With a scheduler at an address, dask's own settings say how to talk to it.
    Raises UsageError if dask is missing, nothing answers at the address within 30 s, or no worker is there, and
    ConnectionError if workers of our own do not start.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a sweep needs dask ({error}); install it with the extra `cluster`: pip install -e '.[cluster]'"
        ) from error
    if address is None:
        settings = {"distributed.scheduler.worker-ttl": None, "distributed.scheduler.allowed-failures": 10}
        settings |= {f"distributed.{role}.http.routes": [] for role in ("scheduler", "worker")}  # nothing to be read
        with (
            tempfile.TemporaryDirectory(prefix="swarmbook-", ignore_cleanup_errors=True) as scratch,
            dask.config.set(settings),
            _deaf() as listening,
            ExitStack() as started,
        ):
            try:
                here = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    security=True,  # TLS: whoever connects needs the certificate that is made here, in memory
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=50,
                    local_directory=scratch,
                    env={"TMPDIR": scratch},  # for what a worker leaves that is killed
                )
                client = started.enter_context(Client(started.enter_context(here)))
                _close_pages(client)
            except (RuntimeError, OSError) as error:
                why = "was one killed, perhaps for want of memory? Use fewer --workers"
                raise ConnectionError(f"the workers of the sweep did not start ({error}): {why}") from error
            listening()
            yield client
        return
    try:
        client = Client(address, timeout=30)
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # dask's, where TLS does not fit, are of any kind
        example = "give the address that `dask scheduler` prints, such as tls://10.0.0.1:8786, and its settings of TLS"
        raise UsageError(f"no scheduler answers at {address!r} ({error}): {example}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError as error:
            start = f"start some with `dask worker {address} --nthreads 1`"
            raise UsageError(f"the scheduler at {address} has no workers: {start}") from error
        yield client


def _close_pages(client: "Client") -> None:
    """Close the ports at which scheduler and workers show themselves to browsers; dask opens them unasked."""
    client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.http_server.stop())
    client.run(lambda dask_worker: dask_worker.http_server.stop(), on_error="ignore")


@contextmanager
def _deaf() -> Iterator[Callable[[], None]]:
    """Make processes that are started in the block deaf to what a terminal sends to them as well as to us: Ctrl-C, and
    SIGHUP as it closes.

    What it yields ends that for this process, which hears then what came meanwhile. The signal is blocked, and not
    ignored, because what is ignored is lost; threads and processes inherit that.
    """
    resource_tracker.ensure_running()  # which unblocks the signal as it starts
    signals = {signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(workers: int) -> dict[str, str]:
    """The environment that gives each of `workers` processes its share of the processors, unless it is set already."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // workers))}
