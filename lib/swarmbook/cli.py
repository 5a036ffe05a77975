"""The command line.

- `run` executes the papers' notebooks, and `sweep` does so at every point of a grid.
- `verify` makes again what is recorded, and compares. `report` makes a site of the notebooks.
- `export` writes the model of a run for transformers. `list` shows what the notebooks say.
- `plan` plans the pipelines of a swarm of your own.
- `open` starts JupyterLab on a copy of a notebook.

The exit status is 0 if all went well; 1 if a notebook failed, a run deviates or a file cannot be written; 2 for a wrong
name, type or option, and where there are no papers; 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP. Whatever
ends a command, it says so in a sentence; only a fault of swarmbook itself shows a traceback.

All commands are in one file, so that an option is read beside what it does.

Serves: `swarmbook`.
"""

import argparse
import functools
import io
import json
import math
import os
import re
import secrets
import sys
import tempfile
import textwrap
import time
import traceback
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swarmbook import __version__, locations
from swarmbook.endings import Terminated, tell, terminable
from swarmbook.errors import ConfigError, DataError, NotebookError, StoreError, TrainingError, UsageError, unusable
from swarmbook.reproduction import execution, papers, publishing
from swarmbook.reproduction.papers import Paper
from swarmbook.reproduction.terminal import (
    Progress,
    busy,
    claims_table,
    columns,
    facts_table,
    papers_table,
    rows_table,
    short,
    sweep_teller,
)

RECORDS = "with all its records; PAPER.PROFILE: what was recorded of it at that profile alone; default: all papers"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit status."""
    name = "swarmbook"
    try:
        with terminable():
            _open_streams()
            options = _parser().parse_args(argv)
            name = f"swarmbook {options.name}"
            _check_surroundings()
            status = options.command(options)
            sys.stdout.flush()  # what cannot be printed is told here, and not as the interpreter ends
            return status
    except (KeyboardInterrupt, Terminated) as end:
        kept = name in ("swarmbook run", "swarmbook sweep", "swarmbook export")
        resume = "; what was trained is kept: run again, without --fresh, to go on from there" if kept else ""
        return _flushed(tell(end, resume))
    except SystemExit as exit:  # argparse's
        return _flushed(exit.code or 0)
    except BrokenPipeError:  # whoever reads what is printed has enough of it, as `head` has
        return _flushed(0 if name in ("swarmbook", "swarmbook list") else 1)
    except Exception as error:
        print(f"{name}: {_said(error)}", file=sys.stderr)
        return _flushed(2 if isinstance(error, (UsageError, ConfigError)) else 1)


def _open_streams() -> None:
    """Make it safe to print: to streams that were closed, and in encodings that lack a letter."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # else a file that is opened later gets its number, and what is printed
            setattr(sys, stream, io.TextIOWrapper(io.FileIO(os.devnull, "w")))
        elif isinstance(getattr(sys, stream), io.TextIOWrapper):
            getattr(sys, stream).reconfigure(errors="backslashreplace")


def _check_surroundings() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder is gone: change to one that is there") from error


def _flushed(status: int) -> int:
    """The exit status, once what was printed is out or given up."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it ends
    return status


def _said(error: Exception) -> str:
    """What a user is told of an error: what can happen to anyone in a sentence, a fault of ours with its traceback."""
    if isinstance(error, (UsageError, ConfigError, NotebookError, StoreError, DataError, TrainingError)):
        return str(error)
    if isinstance(error, OSError):
        return unusable(error)
    if isinstance(error, MemoryError):
        return "not enough memory: close other programs, or choose a smaller --profile or fewer --workers"
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("swarmbook"):
        return f"{error.name} is missing: install swarmbook and what it needs with `pip install -e .` in a clone"
    told = "".join(traceback.format_exception(error))
    return f"a fault of swarmbook {__version__}, please report it with the command and these lines:\n{told}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarmbook", description="Reproduce papers, one notebook each.")
    parser.add_argument("--version", action="version", version=f"swarmbook {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="run | open | sweep | verify | report | export | list | plan", dest="name"
    )

    command = commands.add_parser(
        "run",
        help="execute notebooks, write them and HTML under runs/, print the claims",
        description="Execute notebooks. Recorded and stored runs are used where they match.",
        epilog="Exit status: 0 all went well, 1 a notebook failed, 2 wrong usage, 130 interrupted.",
    )
    _papers_of(command)
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
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="default: runs/ in the clone, or here if there is none"
    )
    command.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        help="notebooks at a time, each with its share of the cores; default: one a core",
    )
    command.add_argument(
        "--figures", action="store_true", help="write each figure as PNG, SVG and a CSV of its numbers as well"
    )
    command.add_argument(
        "--record",
        action="store_true",
        help="for maintainers: keep finished runs and the executed notebook in papers/, beside those of the default "
        "profile if another is given",
    )
    command.set_defaults(command=_run)

    command = commands.add_parser(
        "open",
        help="start JupyterLab on a copy of a notebook, so that working in it changes no record",
        description="Copy a notebook, with what it shows, to runs/open/ and start JupyterLab on the copy. "
        "Recorded runs are found from there. A copy in which you have worked is kept, and the next one gets a number.",
        epilog="Exit status: that of JupyterLab; 2 wrong usage.",
    )
    command.add_argument("paper", metavar="PAPER", help="its name, as `swarmbook list` shows it")
    command.add_argument("--profile", metavar="NAME", help=f"size of the runs: {', '.join(papers.PROFILES)}")
    command.add_argument(
        "--jupyter",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of JupyterLab's own, such as --jupyter=--port=8890; may be repeated",
    )
    command.add_argument("--no-browser", action="store_true", help="print the address instead, as on a server")
    command.add_argument("--output", type=Path, metavar="DIR", help="of the copy; default: runs/open/ in the clone")
    command.set_defaults(command=_open)

    command = commands.add_parser(
        "sweep",
        help="execute a notebook at every point of its sweep.yaml, on several workers",
        description="Execute a notebook at every point of the grid in papers/PAPER/sweep.yaml, and one that collects "
        "the claims. Points that are finished are not executed again: after an interruption, start the same again.",
        epilog="Exit status: 0 all points are done, 1 some failed or are left, 2 wrong usage, 130 interrupted.",
    )
    _papers_of(command)
    command.add_argument("--profile", metavar="NAME", help=f"size of the runs: {', '.join(papers.PROFILES)}")
    command.add_argument("--seeds", metavar="0-4", help="one point for each of these seeds, in place of sweep.yaml's")
    command.add_argument("--workers", type=_count, metavar="N", help="processes here; default: one for each core")
    command.add_argument("--scheduler", metavar="ADDRESS", help="a dask scheduler to use, such as tls://10.0.0.1:8786")
    command.add_argument("--output", type=Path, metavar="DIR", help="default: runs/sweeps/ in the clone")
    command.add_argument(
        "--keep-going",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="after a point has failed, execute the others (default)",
    )
    command.set_defaults(command=_sweep)

    command = commands.add_parser(
        "verify",
        help="train recorded runs again and compare whole curves",
        description="Check the seals of all that is recorded, execute the notebooks on it and compare what they show; "
        "train a sample of the runs again from nothing, compute as recorded tables again, and compare every number.",
        epilog="Exit status: 0 all agree, 1 something deviates or is damaged, 2 wrong usage, 130 interrupted.",
    )
    _papers_of(command, RECORDS)
    size = command.add_mutually_exclusive_group()
    size.add_argument("--sample", type=_count, default=2, metavar="N", help="how many to make again; default: 2")
    size.add_argument("--all", action="store_true", help="make all of them again, which takes hours")
    command.add_argument("--within", type=_count, metavar="S", help="only those that take at most so many seconds")
    command.add_argument("--seed", type=_seed, metavar="S", help="of the sample; default: another each time")
    command.set_defaults(command=_verify)

    command = commands.add_parser("report", help="build a static site of the executed notebooks and all claims")
    _papers_of(command, RECORDS)
    command.add_argument("--output", type=Path, metavar="DIR", help="default: runs/report/ in the clone")
    command.set_defaults(command=_report)

    command = commands.add_parser(
        "export",
        help="write the model of a run as a folder that transformers loads",
        description="Write final weights, tokenizer and a model card in the format of Hugging Face. Weights that are "
        "not kept, such as those of the recorded runs, are trained first, which is told before.",
        epilog="Exit status: 0 the folder is there, 1 it cannot be written, 2 wrong usage, 130 interrupted.",
    )
    command.add_argument(
        "run", metavar="RUN", help="the key of a recorded or finished run, or a RunConfig as JSON file"
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder, or an empty one")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--replica", type=_seed, metavar="N", help="of a run with several, counted from 0")
    which.add_argument("--mean", action="store_true", help="the mean of the weights of all replicas")
    command.set_defaults(command=_export)

    command = commands.add_parser(
        "list",
        help="show papers and how many of their claims hold; of papers that are named, figures and all claims",
    )
    _papers_of(command, "of which figures and all claims are shown; default: a table of all papers")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(command=_list)

    command = commands.add_parser(
        "plan",
        help="plan the pipelines of a swarm of your own: which node serves what, on which paths, in which order",
        description="Read nodes, links and stages from YAML, which lib/README.md explains, and write plan.json, "
        "visits.csv and schedule.svg. What an iteration takes, a bound on it and what limits it are printed.",
        epilog="Exit status: 0 the plan is there, 1 it cannot be written, 2 mistakes in the swarm, 130 interrupted.",
    )
    command.add_argument("swarm", type=Path, metavar="SWARM.yaml", help="such as those in papers/skippipe/swarms/")
    time_ = command.add_mutually_exclusive_group()
    time_.add_argument(
        "--seconds", type=_count, default=10, metavar="S", help="of the search, on one core; default: 10"
    )
    time_.add_argument("--moves", type=_count, metavar="N", help="in place of seconds, for the same plan every time")
    command.add_argument("--seed", type=_seed, default=0, metavar="S", help="of the search; default: 0")
    command.add_argument(
        "--robust",
        action="store_true",
        help="choose of several plans the one with the least 95th percentile under jitter and links that change by 2x",
    )
    command.add_argument("--folder", type=Path, metavar="DIR", help="default: runs/plans/NAME in the clone")
    command.set_defaults(command=_plan)
    return parser


def _papers_of(command: argparse.ArgumentParser, which: str = "default: all papers") -> None:
    command.add_argument("papers", nargs="*", metavar="PAPER", help=which)


def _count(text: str) -> int:
    return _number(text, 1)


def _seed(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} on")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    chosen = _chosen(options.papers, papers.discover())
    values = _values(options.parameters, options.profile)
    if options.record and (options.parameters or options.fresh):
        raise UsageError("--record takes what the notebook says at a profile: leave out -p and --fresh")
    if options.record:
        _of_clone("run --record")
    # all of them before anything is executed
    parameters = {paper.name: papers.checked(paper, values) for paper in chosen}
    for paper in chosen:
        _make_writable(execution.results_folder(paper, parameters[paper.name], options.output))
    if sys.stderr.isatty() and (hint := busy()):
        print(hint, file=sys.stderr)

    jobs = min(len(chosen), 1 if options.record else options.jobs or os.cpu_count() or 1)
    if jobs > 1:
        failures = _run_side_by_side(chosen, parameters, options, jobs)
    else:
        failures = _run_in_turn(chosen, parameters, options)
    if failures and len(chosen) > 1:
        print(f"{len(failures)} of {len(chosen)} papers failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


def _chosen(names: Sequence[str], known: Mapping[str, Paper], what: str = "") -> list[Paper]:
    """The papers that are named, whose notebooks have been checked; `what` is done with them is said before that."""
    if not known:
        raise _no_papers()
    chosen = papers.chosen(names, known)
    if what:  # at once: all that comes after it takes seconds to load
        print(f"{what}: {', '.join(paper.name for paper in chosen)}", file=sys.stderr, flush=True)
    for paper in chosen:
        publishing.check(paper.notebook)
    return chosen


def _no_papers() -> UsageError:
    return UsageError(
        f"no papers in {locations.papers_folder()}; install with `pip install -e .` in a clone, "
        "or set SWARMBOOK_PAPERS to its folder papers"
    )


def _of_clone(what: str) -> None:
    """Refuse what needs recorded runs, which a wheel does not carry."""
    if locations.papers_folder().parent == locations.SHARE:
        raise UsageError(
            f"{what} needs the recorded runs, which are in the repository and not in the installed package; install "
            "with `pip install -e .` in a clone, or set SWARMBOOK_PAPERS to its folder papers"
        )


def _values(pairs: Sequence[tuple[str, str]], profile: str | None) -> dict[str, Any]:
    import yaml

    from swarmbook import yaml_values
    from swarmbook.data.local_text import absolute

    values: dict[str, Any] = {} if profile is None else {"profile": profile}
    for name, text in pairs:
        if name in values:
            raise UsageError(f"parameter {name} is given twice")
        try:
            values[name] = absolute(yaml_values.load(text))  # the kernel runs elsewhere
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", error)
            raise UsageError(f"the value {text!r} of parameter {name} is not YAML: {reason}") from error
    return values


def _make_writable(folder: Path) -> None:
    """Make a folder for results; StoreError, before anything is computed, if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {unusable(OSError(error.errno, error.strerror))}") from error


def _run_in_turn(chosen: Sequence[Paper], parameters: Mapping[str, dict], options: argparse.Namespace) -> list[str]:
    """Execute one notebook after another, and record them if that is asked for; the names of those that failed."""
    failures = []
    for number, paper in enumerate(chosen):
        part = functools.partial(Progress, number=number, of=len(chosen))
        given = parameters[paper.name]
        record = papers.at(paper, given.get("profile"))
        if options.record and not record.profile:
            given = {}  # the default profile is not to be injected
        print(f"{paper.name}: {paper.title}", flush=True)
        started = time.monotonic()
        try:
            if options.record:
                from swarmbook.reproduction import recording

                with part(f"{paper.name}, recording") as progress:
                    keys = recording.record_runs(record, paper, given, options.output, progress)
            with part(paper.name, costs=_costs(options, [paper], parameters)) as progress:
                done = execution.execute(paper, given, progress=progress, **_way(options))
            print(_told(done, options))
            if options.record:
                recording.commit(record, done.notebook, keys)
                print(f"recorded  {short(record.notebook)}")
            print(f"took      {time.monotonic() - started:.0f} s\n", flush=True)
        except NotebookError as error:
            failures.append(paper.name)
            print(f"failed: {error}\n", file=sys.stderr, flush=True)
    return failures


def _run_side_by_side(
    chosen: Sequence[Paper], parameters: Mapping[str, dict], options: argparse.Namespace, jobs: int
) -> list[str]:
    """Execute `jobs` notebooks at a time, each with its share of the cores; the names of those that failed.

    The longest begin first: by what their training took when it was recorded, or else by their cells of code.
    """
    from swarmbook.reproduction.side_by_side import side_by_side

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    failures, started = [], time.monotonic()
    costs = {paper.name: _costs(options, [paper], parameters) for paper in chosen}

    def length(paper: Paper) -> tuple[float, int]:
        return sum(costs[paper.name].values()), paper.notebook.read_bytes().count(b'"cell_type": "code"')

    chosen = sorted(chosen, key=length, reverse=True)  # so that no long one begins when the others end
    with Progress(f"{len(chosen)} notebooks", costs=dict(ChainMap(*costs.values()))) as progress:
        work = [(paper, parameters[paper.name], progress.part(paper.name)) for paper in chosen]
        for paper, done in side_by_side(work, jobs, **_way(options)):
            progress.end(paper.name)
            progress.say(f"{paper.name}: {paper.title}")
            if isinstance(done, NotebookError):
                failures.append(paper.name)
                progress.say(f"failed: {done}\n", sys.stderr)
            else:
                progress.say(f"{_told(done, options)}\ndone in   {time.monotonic() - started:.0f} s\n")
    return failures


def _way(options: argparse.Namespace) -> dict[str, Any]:
    """How notebooks are executed, as arguments of `execution.execute`."""
    fresh = {"SWARMBOOK_FRESH": "1"} if options.fresh else {}
    return {"output": options.output, "environment": fresh, "figures": options.figures}


def _told(done: execution.Execution, options: argparse.Namespace) -> str:
    """What is said of an executed notebook: its claims, and where it lies."""
    lines = [claims_table(done.claims), f"notebook  {short(done.notebook)}", f"HTML      {short(done.html)}"]
    if options.figures:
        lines.append(f"figures   {short(done.notebook.parent / 'figures')}")
    return "\n".join(lines)


def _costs(options: argparse.Namespace, chosen: Sequence[Paper], parameters: Mapping[str, dict]) -> dict[str, float]:
    """Seconds that the runs to be trained took when they were recorded, by key, if all of them are to be trained."""
    from swarmbook.reproduction.training_time import recorded_seconds

    costs: dict[str, float] = {}
    for paper in chosen if options.fresh else ():
        costs |= recorded_seconds(papers.at(paper, parameters[paper.name].get("profile")).beside("runs"))
    return costs


def _open(options: argparse.Namespace) -> int:
    from swarmbook.reproduction import reading

    (paper,) = _chosen([options.paper], papers.discover())
    papers.checked(paper, {} if options.profile is None else {"profile": options.profile})
    folder = (options.output or locations.runs_folder() / "open").absolute()
    _make_writable(folder)
    notebook = reading.copy(paper, options.profile, folder)
    print(f"copy      {short(notebook)}", flush=True)
    return reading.open_in_jupyterlab(notebook, not options.no_browser, options.jupyter)


def _sweep(options: argparse.Namespace) -> int:
    from swarmbook.reproduction import sweep, sweep_grid

    if options.workers and options.scheduler:
        raise UsageError(f"--workers {options.workers} is for workers here; those of {options.scheduler} are its own")
    seeds = sweep_grid.seeds_of(options.seeds) if options.seeds else ()
    # all of them before anything is executed
    sweeps = [
        (paper, sweep.place(paper, sweep_grid.points(paper, options.profile, seeds), options.output))
        for paper in _chosen(options.papers, papers.discover())
    ]
    for _, points in sweeps:
        _make_writable(points[0].folder.parent)
    failed = False
    for paper, points in sweeps:
        failed |= not _sweep_one(paper, points, options)
        if failed and not options.keep_going:
            break
    return 1 if failed else 0


def _sweep_one(paper: Paper, points: list, options: argparse.Namespace) -> bool:
    """Whether all points are done at the end."""
    from swarmbook.reproduction import sweep, sweep_summary

    started = time.monotonic()
    found = [(point, sweep.state(point)) for point in points]
    counts = ", ".join(f"{n} {state}" for state in sweep.FOUND if (n := sum(s == state for _, s in found)))
    print(
        f"{paper.name} at {points[0].parameters['profile']}, {len(points)} point{'s' * (len(points) > 1)}: {counts}",
        flush=True,
    )
    for point, state in found:
        if state == sweep.REPAIRED:
            print(f"repaired  {point.name}: {short(point.executed)} is not as it was written", flush=True)
    unfinished = [point for point, state in found if state != sweep.DONE]
    workers = min(options.workers or sweep.cores(), max(1, len(unfinished)))
    environment = {} if options.scheduler else sweep.threads(workers)
    outcomes = []
    if unfinished:
        with sweep.cluster(options.scheduler, workers) as client, Progress(paper.name) as progress:
            outcomes = sweep.sweep(
                unfinished, client, environment, sweep_teller(progress, len(points)), options.keep_going
            )
    failures = [outcome for outcome in outcomes if outcome.state == sweep.FAILED]
    done = len(points) - len(unfinished) + len(outcomes) - len(failures)
    for outcome in failures:
        print(f"failed    {outcome.point.name}: {outcome.error}", file=sys.stderr)
    if done:
        collected = sweep_summary.collect(paper, points, environment)
        merged = sweep_summary.read_points(
            paper.name, [point.name for point in points], collected.notebook.parent
        ).claims()
        print(claims_table(merged))
        print(f"notebook  {short(collected.notebook)}\nHTML      {short(collected.html)}")
    left = len(points) - done - len(failures)
    took = time.monotonic() - started
    print(f"{paper.name}: {done} done, {len(failures)} failed, {left} left; took {took:.0f} s\n", flush=True)
    return done == len(points)


def _verify(options: argparse.Namespace) -> int:
    _of_clone("verify")
    chosen = _chosen(options.papers, papers.records(), "verify")
    from swarmbook.reproduction import verify

    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    sample, within = None if options.all else options.sample, options.within or math.inf
    with _as_recorded(chosen) as chosen, Progress("verify") as progress:
        return 0 if verify.verify(chosen, sample, seed, progress.say, within, progress) else 1


def _report(options: argparse.Namespace) -> int:
    chosen = _chosen(options.papers, papers.records(), "report")
    output = (options.output or locations.runs_folder() / "report").absolute()
    _make_writable(output)
    from swarmbook.reproduction import report

    with _as_recorded(chosen) as chosen, Progress("report") as progress:
        front = report.build(chosen, output, progress.at)
    print(f"report    {short(front)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    print(f"export: run {options.run}", file=sys.stderr, flush=True)
    from swarmbook import export

    run = export.run_named(options.run)
    replica = export.MEAN if options.mean else options.replica
    with Progress("export") as progress:
        folder = export.export(run, options.folder, replica, say=progress.say)
    print(f"exported  {short(folder)}")
    return 0


def _list(options: argparse.Namespace) -> int:
    known = papers.records()
    with _as_recorded(papers.chosen(options.papers, known)) as chosen:
        if options.json:
            print(json.dumps({"papers": [_as_json(paper) for paper in chosen]}, indent=2))
        elif options.papers:
            print("\n\n".join(_listed(paper) for paper in chosen))
        elif chosen:
            print(f"{papers_table(chosen)}\n`swarmbook list PAPER` shows the claims of a paper")
    if not known:
        raise _no_papers()
    return 0


def _plan(options: argparse.Namespace) -> int:
    from swarmbook.planning import swarm_file

    swarm = swarm_file.read(options.swarm)
    folder = (options.folder or locations.runs_folder() / "plans" / swarm.name).absolute()
    _make_writable(folder)
    print(f"plan: {len(swarm.nodes)} nodes, {swarm.stages} stages", file=sys.stderr, flush=True)
    from swarmbook.planning import plan_report, swarm_plan, swarm_search
    from swarmbook.planning.robustness import Conditions

    effort = {"seconds": options.seconds} if options.moves is None else {"moves": options.moves}
    with Progress("plan") as progress:
        conditions = Conditions() if options.robust else None
        found = swarm_search.plan_swarm(swarm, **effort, seed=options.seed, conditions=conditions, tell=progress.at)
        limits = swarm_plan.limits(found, swarm_search.roomier(found, **effort, seed=options.seed))
        written = plan_report.write(found, limits, folder)
    print(facts_table(plan_report.facts(found, limits)))
    if options.robust:
        print("\nseconds under jitter and changing links; * is the plan that was chosen")
        print(f"{rows_table(plan_report.robust_rows(found))}\n{plan_report.caution(found)}")
    print("written   " + ", ".join(short(path) for path in written))
    return 0


def _listed(paper: Paper) -> str:
    shown = ", ".join(paper.figures + paper.tables) or "no figures yet"
    head = textwrap.fill(f"{shown}; {paper.runs} recorded runs", columns())
    return f"{paper.name}: {paper.title}\n{head}\n\n{claims_table(paper.claims)}"


@contextmanager
def _as_recorded(chosen: Sequence[Paper]) -> Iterator[list[Paper]]:
    """The papers as they were recorded; which notebooks have changed since is said on standard error."""
    from swarmbook.reproduction import reading

    told: list[str] = []
    with reading.as_recorded(chosen, told) as found:
        for sentence in told:
            print(sentence, file=sys.stderr, flush=True)
        yield found


def _as_json(paper: Paper) -> dict[str, Any]:
    shown = asdict(paper) | {"runs": paper.runs}
    del shown["notebook"]
    return shown
