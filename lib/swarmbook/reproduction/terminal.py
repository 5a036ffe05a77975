"""What commands show in a terminal: how far they are, tables of papers and claims, short paths.

Serves: `swarmbook run`, `sweep`, `verify`, `report`, `list` and `plan`.
"""

import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from swarmbook.analysis.claims import DIRECTION, FAILS, HOLDS, POWERLESS, UNDECIDED, VERDICTS, Claim
from swarmbook.reproduction.papers import Paper

if TYPE_CHECKING:  # it takes a fifth of a second to load, and is loaded where it is needed
    from rich.console import Group
    from rich.table import Table

COLOUR = {HOLDS: "green", DIRECTION: "cyan", FAILS: "red", UNDECIDED: "yellow", POWERLESS: "magenta"}
EVERY = 60.0  # seconds between two lines of a log
TELLING = 30.0  # seconds of known work after which its speed here says how long the rest takes


class Progress:
    """How far a command is, on standard error, from the beginning to the end of a `with` block.

    On a terminal these are two lines: a bar over all that the command does with a clock that ticks, and what it does
    now. Elsewhere it is a line a minute, for the sake of logs. It is called as `execution.OnProgress` is.

    name: of what is done in the block. number, of: it is the part `number`, from 0, of so many. costs: seconds that the
    runs it stands on took when they were recorded, by key; they say how long the rest may take.
    """

    def __init__(self, name: str, number: int = 0, of: int = 1, costs: Mapping[str, float] | None = None):
        self.name, self.number, self.of, self.costs = name, number, of, costs or {}
        self.done, self.now = 0.0, ""  # the share of this part, and what is done now
        self.started = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="swarmbook-")
        self._parts: dict[str, Part] = {}
        self._end = threading.Event()
        self._live = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            quiet = {"redirect_stdout": False, "redirect_stderr": False}
            where = {"console": Console(stderr=True), "transient": True, "refresh_per_second": 2}
            self._live = Live(get_renderable=self._lines, **where, **quiet)
        else:
            self._log = threading.Thread(target=self._tell, daemon=True)

    def __call__(self, done: int, cells: int, figure: str, log: str) -> None:
        self.done = done / cells
        self.show(f"cell {done + 1} of {cells}", figure, log)

    def at(self, share: float, now: str) -> None:
        """Say what share of it is done, and what is done now."""
        self.done, self.now = share, now

    def show(self, *parts: str) -> None:
        """Say what is done now."""
        self.now = "  ".join(part for part in parts if part)

    def part(self, name: str) -> "Part":
        """What another process calls to tell how far its part is."""
        self._parts[name] = Part(self._folder.name, name)
        return self._parts[name]

    def end(self, name: str) -> None:
        """Say that the part of another process is done."""
        self._parts[name].tell(1.0, "")

    def say(self, line: str, file: TextIO | None = None) -> None:
        """Print a line that stays, on standard output or another file, above those that move."""
        if self._live:
            self._live.stop()
        print(line, file=file, flush=True)
        if self._live:
            self._live.start()

    def line(self) -> str:
        """All of it in one line."""
        self._gather()
        return "  ".join(filter(None, (self._titled(), self._clock(), self._left(), self._detail())))

    def __enter__(self) -> "Progress":
        os.environ["SWARMBOOK_PROGRESS"] = self._folder.name  # training here and in kernels says there how far it is
        if self._live:
            self._live.start()
        else:
            self._log.start()
        return self

    def __exit__(self, *_: object) -> None:
        del os.environ["SWARMBOOK_PROGRESS"]
        self._end.set()
        with suppress(OSError):  # the terminal is gone
            if self._live:
                self._live.stop()
            else:
                self._log.join()
        self._folder.cleanup()

    def _tell(self) -> None:
        while not self._end.wait(EVERY):
            with suppress(OSError, ValueError):
                print(self.line(), file=sys.stderr, flush=True)

    def _lines(self) -> "Group":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        self._gather()
        head = Table.grid(padding=(0, 2))
        known, spent = self._spent()
        share = (self.number + (spent / known if known else self.done)) / self.of
        head.add_row(self._titled(), ProgressBar(1.0, share, width=24), self._clock(), self._left())
        return Group(head, Text(self._detail(), no_wrap=True, overflow="ellipsis", style="dim"))

    def _gather(self) -> None:
        """Read how far the parts of other processes are."""
        if self._parts:
            told = [part.read() for part in self._parts.values()]
            self.done = sum(share for share, _ in told) / len(told)
            self.show(*(now for _, now in told))

    def _titled(self) -> str:
        return f"{self.name} ({self.number + 1} of {self.of})" if self.of > 1 else self.name

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02}"

    def _detail(self) -> str:
        """What is done now: the cell, how many runs are ready, and the bar of what is being trained."""
        ready = len(set(self._read("keys").split()))
        runs = f"{ready} of {len(self.costs)} runs" if self.costs else f"{ready} runs" if ready else ""
        return "  ".join(filter(None, (self.now, runs, self._read("bar"))))

    def _spent(self) -> tuple[float, float]:
        """The seconds of all runs whose costs are known, and of those of them that are ready."""
        ready = set(self._read("keys").split())
        return sum(self.costs.values()), sum(cost for key, cost in self.costs.items() if key in ready)

    def _left(self) -> str:
        known, spent = self._spent()
        if known <= spent:
            return ""
        from swarmbook.reproduction.training_time import duration

        speed = (time.monotonic() - self.started) / spent if spent >= TELLING else 1.0
        return f"about {duration((known - spent) * speed)} left"

    def _read(self, name: str) -> str:
        try:
            return Path(self._folder.name, name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""


@dataclass(frozen=True)
class Part:
    """How far one of several processes is, which it tells in a file. It is called as `execution.OnProgress` is."""

    folder: str
    name: str

    def __call__(self, done: int, cells: int, figure: str, log: str) -> None:
        self.tell(done / cells, f"{self.name} {done + 1} of {cells}")

    def tell(self, share: float, now: str) -> None:
        """Say what share is done, and what is done now."""
        with suppress(OSError):  # the folder goes away with the command that reads it
            Path(self.folder, f"part-{self.name}").write_text(f"{share}\t{now}", encoding="utf-8")

    def read(self) -> tuple[float, str]:
        """What was told last; nothing is done if nothing was, or if it is being written."""
        try:
            share, now = Path(self.folder, f"part-{self.name}").read_text(encoding="utf-8").split("\t")
            return float(share), now
        except (OSError, ValueError):
            return 0.0, ""


def columns() -> int:
    """The width of what is printed."""
    return shutil.get_terminal_size((80, 24)).columns


def claims_table(claims: Sequence[Claim], width: int | None = None) -> str:
    """Claims as aligned text of `width` columns, how many have which verdict last; coloured on a terminal."""
    if not claims:
        return "no claims yet"
    from rich.text import Text

    table = _table(claim=4, verdict=None, paper=3, ours=4)
    for claim in claims:
        verdict = Text(claim.verdict, COLOUR.get(claim.verdict, ""))
        table.add_row(Text.assemble((claim.id, "bold"), "  ", claim.text), verdict, Text(claim.paper), Text(claim.ours))
    return f"{_printed(table, width)}\n{totals(claims)}"


def totals(claims: Iterable[Claim]) -> str:
    """How many claims have which verdict."""
    counts = Counter(claim.verdict for claim in claims)
    each = ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
    return f"{counts.total()} claim{'s' * (counts.total() != 1)}{each and f': {each}'}"


def papers_table(papers: Sequence[Paper], width: int | None = None) -> str:
    """One row a paper: how many of its claims have which verdict, and how many runs are recorded."""
    from rich.text import Text

    table = _table(paper=None, claims=2, runs=None, title=3)
    for paper in papers:
        counts = Counter(claim.verdict for claim in paper.claims)
        each = [
            Text(f"{verdict} {counts[verdict]}", COLOUR.get(verdict, "")) for verdict in VERDICTS if counts[verdict]
        ]
        claims = Text("\n").join(each) if each else Text("none yet")
        table.add_row(Text(paper.name, "bold"), claims, str(paper.runs), Text(paper.title))
    every = [claim for paper in papers for claim in paper.claims]
    return f"{_printed(table, width)}\n{totals(every)}"


def facts_table(facts: Sequence[tuple[str, str]], width: int | None = None) -> str:
    """Names and values side by side."""
    from rich.text import Text

    table = _table(what=None, value=1)
    table.show_header = False
    table.columns[0].max_width = None
    for name, value in facts:
        table.add_row(Text(name, "bold"), Text(value))
    return _printed(table, width)


def rows_table(rows: Sequence[Mapping[str, str]], width: int | None = None) -> str:
    """Rows with the same columns as aligned text."""
    from rich.text import Text

    table = _table(**dict.fromkeys(rows[0]))
    for row in rows:
        table.add_row(*map(Text, row.values()))
    return _printed(table, width)


def _table(**ratios: int | None) -> "Table":
    """A table without lines; a column with a ratio shares what width the others leave."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, expand=True, padding=(0, 2, 0, 0), header_style="bold")
    for name, ratio in ratios.items():
        table.add_column(name, ratio=ratio, overflow="fold", max_width=None if ratio else 14)
    return table


def _printed(table: "Table", width: int | None) -> str:
    from rich.console import Console

    console = Console(width=width or columns(), highlight=False, emoji=False, markup=False)
    with console.capture() as printed:
        console.print(table)
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


def busy() -> str:
    """What is said where other processes keep all cores busy. There the threads of each step wait for one another.

    Measured on two cores with seven busy processes, a small model takes 0.3 to 0.6 s a step with two threads and 0.07
    with one. The number of threads is not changed unasked, because it is part of what a run's bits depend on.
    """
    cores, waiting = os.cpu_count() or 1, os.getloadavg()[0]
    if "OMP_NUM_THREADS" in os.environ or cores == 1 or waiting < cores:
        return ""
    return f"about {waiting:.0f} processes share {cores} cores: with OMP_NUM_THREADS=1 small models train faster then"


def short(path: Path) -> str:
    """A path as it is shown: from the current directory on, if it lies below that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def sweep_teller(progress: Progress, points: int) -> Callable:
    """What `sweep.sweep` calls to tell each point as it ends, and to show how long the rest may take.

    points: how many the sweep has in all.
    """
    ended: list = []
    started = time.monotonic()

    def told(outcome, left: int) -> None:
        if outcome is not None:
            ended.append(outcome)
            progress.say(f"{outcome.state:9} {outcome.point.name}  {outcome.seconds:.0f} s")
        failed = sum(outcome.state == "failed" for outcome in ended)
        minutes = (time.monotonic() - started) / max(len(ended), 1) * left / 60
        rest = f"about {minutes:.0f} min left" if ended else ""
        progress.done = (points - left) / points
        progress.show(
            f"{points - left - failed} of {points} done", f"{failed} failed", f"{left} running or to come", rest
        )

    return told
