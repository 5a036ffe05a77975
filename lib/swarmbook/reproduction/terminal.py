"""What commands show in a terminal: one line that moves, tables of claims, short paths.

Serves: `swarmbook run`, `sweep` and `list`.
"""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from swarmbook.analysis.claims import Claim


class StatusLine:
    """One line on a terminal that says how far an execution is. Elsewhere it says nothing, for the sake of logs.

    It is called as `execution.OnProgress` is.
    """

    def __init__(self, name: str):
        self.name = name
        self.started = time.monotonic()
        self.shown = sys.stderr.isatty()

    def __call__(self, done: int, cells: int, figure: str, log: str) -> None:
        self.show(f"cell {done + 1} of {cells}", figure, log)

    def show(self, *parts: str) -> None:
        """Replace the line by the name, the time so far and these parts."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        self._show("  ".join(part for part in (self.name, f"{minutes}:{seconds:02}", *parts) if part))

    def say(self, line: str) -> None:
        """Print a line that stays, above the one that moves."""
        self._show("")
        print(line, flush=True)

    def __enter__(self) -> "StatusLine":
        self._show(f"{self.name}  starting")
        return self

    def __exit__(self, *_: object) -> None:
        self._show("")

    def _show(self, line: str) -> None:
        if self.shown:
            room = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:room]:{room}}\r", end="", file=sys.stderr, flush=True)


def claims_table(claims: Sequence[Claim], width: int) -> str:
    """Claims as aligned text of at most about `width` columns."""
    if not claims:
        return "no claims yet"
    rows = [("", "verdict", "paper", "ours", "claim")]
    rows += [(claim.id, claim.verdict, claim.paper, claim.ours, claim.text) for claim in claims]
    widths = [min(max(len(row[i]) for row in rows), limit) for i, limit in enumerate((8, 14, 22, 22))]
    widths.append(max(width - sum(widths) - 2 * len(widths), 24))
    lines = []
    for row in rows:
        columns = [textwrap.wrap(text, size) for text, size in zip(row, widths, strict=True)]
        for parts in zip_longest(*columns, fillvalue=""):
            padded = (part.ljust(size) for part, size in zip(parts, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


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


def sweep_teller(progress: StatusLine, points: int) -> Callable:
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
        progress.show(
            f"{points - left - failed} of {points} done", f"{failed} failed", f"{left} running or to come", rest
        )

    return told
