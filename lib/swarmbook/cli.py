"""The command line: `swarmbook run` executes the papers' notebooks, `swarmbook list` shows what they say.

Exit status: 0 all went well, 1 a notebook failed, 2 a wrong name, type or option, 130 interrupted by Ctrl-C.
"""

import argparse
import json
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from swarmbook import __version__, papers
from swarmbook.claims import Claim
from swarmbook.papers import NotebookError, Paper, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return options.command(options)
    except UsageError as error:
        print(f"swarmbook {options.name}: {error}", file=sys.stderr)
        return 2
    except NotebookError as error:
        print(f"swarmbook {options.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted; what was trained is kept: run again, without --fresh, to go on from there",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarmbook", description="Reproduce papers, one notebook each.")
    parser.add_argument("--version", action="version", version=f"swarmbook {__version__}")
    commands = parser.add_subparsers(required=True, metavar="run | list", dest="name")

    command = commands.add_parser(
        "run",
        help="execute notebooks, write them and HTML under runs/, print the claims",
        description="Execute notebooks. Recorded and stored runs are used where they match.",
        epilog="Exit status: 0 all went well, 1 a notebook failed, 2 wrong usage, 130 interrupted.",
    )
    command.add_argument("papers", nargs="*", metavar="PAPER", help="default: all papers")
    command.add_argument("--profile", metavar="NAME", help=f"size of the runs: {', '.join(papers.PROFILES)}")
    command.add_argument("--fresh", action="store_true", help="train anew, without recorded and stored runs")
    command.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="parameters",
        help="set a parameter of the notebook, as YAML; may be repeated",
    )
    command.add_argument("--output", type=Path, metavar="DIR", help="default: runs/ in the clone")
    command.add_argument(
        "--record",
        action="store_true",
        help="for maintainers: keep finished runs and the executed notebook in papers/",
    )
    command.set_defaults(command=_run)

    command = commands.add_parser("list", help="show papers, figures, claims and recorded runs")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(command=_list)
    return parser


def _run(options: argparse.Namespace) -> int:
    chosen = _chosen(options.papers)
    values = _values(options.parameters, options.profile)
    if options.record and (values or options.fresh):
        raise UsageError("--record needs the default parameters: leave out --profile, -p and --fresh")
    # all of them before anything is executed
    parameters = {paper.name: papers.checked(paper, values) for paper in chosen}

    failures = []
    for paper in chosen:
        try:
            _run_one(paper, parameters[paper.name], options)
        except NotebookError as error:
            failures.append(paper.name)
            print(f"failed: {error}\n", file=sys.stderr, flush=True)
    if failures and len(chosen) > 1:
        print(f"{len(failures)} of {len(chosen)} papers failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


def _chosen(names: Sequence[str]) -> list[Paper]:
    known = papers.discover()
    if not known:
        raise UsageError(
            f"no papers in {papers.papers_folder()}; install with `pip install -e .` in a clone, "
            "or set SWARMBOOK_PAPERS to its folder papers"
        )
    for name in names:
        if name not in known:
            raise papers.unknown("paper", name, list(known))
    return [known[name] for name in dict.fromkeys(names)] or list(known.values())


def _values(pairs: Sequence[tuple[str, str]], profile: str | None) -> dict[str, Any]:
    import yaml

    values: dict[str, Any] = {} if profile is None else {"profile": profile}
    for name, text in pairs:
        if name in values:
            raise UsageError(f"parameter {name} is given twice")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"the value {text!r} of parameter {name} is not YAML: {error}") from error
    return values


def _run_one(paper: Paper, parameters: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"{paper.name}: {paper.title}", flush=True)
    started = time.monotonic()
    environment = {"SWARMBOOK_FRESH": "1"} if options.fresh else {}
    if options.record:
        _record(paper, options.output)
    with _Progress(paper.name) as progress:
        done = papers.execute(paper, parameters, options.output, environment, progress)
    if options.record:
        papers.commit(paper, done.notebook)
    print(claims_table(done.claims, shutil.get_terminal_size((110, 24)).columns))
    print(f"notebook  {_short(done.notebook)}\nHTML      {_short(done.html)}")
    if options.record:
        print(f"recorded  {_short(paper.notebook)}")
    print(f"took      {time.monotonic() - started:.0f} s\n", flush=True)


def _record(paper: Paper, output: Path | None) -> None:
    """Put the runs that the notebook stands on beside it, and no others.

    What is committed is the execution after this one: all from the record, as a reader gets it.
    """
    from swarmbook.store import open_store

    with tempfile.TemporaryDirectory(prefix="swarmbook-") as scratch:
        noted = Path(scratch) / "keys"  # the library writes one key a line
        with _Progress(f"{paper.name}, recording") as progress:
            papers.execute(paper, {}, output, {"SWARMBOOK_RECORD": str(noted)}, progress)
        if noted.exists():
            folder = paper.notebook.parent / "runs"
            open_store([folder]).publish(noted.read_text().split(), folder, exclusive=True)


class _Progress:
    """One line on a terminal that says where a notebook is, nothing elsewhere: a log needs no control characters."""

    def __init__(self, name: str):
        self.name = name
        self.started = time.monotonic()
        self.shown = sys.stderr.isatty()

    def __call__(self, done: int, cells: int, figure: str, log: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        parts = [self.name, f"{minutes}:{seconds:02}", f"cell {done + 1} of {cells}", figure, log]
        self._show("  ".join(part for part in parts if part))

    def __enter__(self) -> "_Progress":
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


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _list(options: argparse.Namespace) -> int:
    known = papers.discover().values()
    if options.json:
        print(json.dumps({"papers": [_as_json(paper) for paper in known]}, indent=2, ensure_ascii=False))
        return 0
    width = shutil.get_terminal_size((110, 24)).columns
    for paper in known:
        print(f"{paper.name}: {paper.title}")
        print(f"{', '.join(paper.figures + paper.tables) or 'no figures yet'}; {paper.runs} recorded runs")
        print(f"{claims_table(paper.claims, width)}\n")
    if not known:
        print(f"no papers in {papers.papers_folder()}")
    return 0


def _as_json(paper: Paper) -> dict[str, Any]:
    shown = asdict(paper)
    del shown["notebook"]
    return shown
