import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
import yaml

from swarmbook import cli
from swarmbook.analysis.claims import Claim
from swarmbook.records.progress_bars import bar, ready
from swarmbook.reproduction import execution, lineage, papers, publishing, terminal, verify

WORKFLOWS = Path(__file__).parents[1] / ".github" / "workflows"


def swarmbook(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "swarmbook", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, **options)


def committed(path: Path) -> Path:
    """Give the toy notebook the outputs of an execution."""
    paper = papers.read_paper(path)
    publishing.commit(paper, execution.execute(paper).notebook)
    return path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["export", "--help"], ["list"], ["list", "--json"]]
)
def test_help_and_list_load_no_heavy_library(toy, arguments):
    toy()
    code = (
        f"import sys; from swarmbook.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
        "print(*sorted({'torch', 'pandas', 'papermill', 'nbconvert'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n")


def test_run_prints_claims_and_paths(toy, tmp_path, monkeypatch, capsys):
    toy()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["run", "toy", "-p", "steps", "12", "-p", "rate", "1e-3"]) == 0
    printed = capsys.readouterr()
    assert [" ".join(line.split()) for line in printed.out.split("took")[0].splitlines()] == [
        "toy: The toy paper",
        "claim verdict paper ours",
        "T1 toys work holds 3 12",
        "1 claim: holds 1",
        "notebook runs/toy/toy.ipynb",
        "HTML runs/toy/toy.html",
    ]
    assert printed.err == ""
    assert not set(printed.out) & {"\r", "\x1b"}


def test_options_reach_the_kernel(toy, tmp_path):
    source = "import os; print(profile, seeds, os.environ.get('SWARMBOOK_FRESH'))"
    toy("toy", (source, ""))
    output = tmp_path / "elsewhere"
    arguments = ["run", "--profile", "smoke", "-p", "seeds", "[7, 8]", "--fresh", "--output", str(output)]
    assert cli.main(arguments) == 0
    cell = nbformat.read(output / "toy-smoke/toy.ipynb", 4).cells[-1]
    assert cell.outputs[0].text == "smoke [7, 8] 1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tony"], "unknown paper 'tony': did you mean 'toy'? Known: other, toy"),
        (
            ["run", "--profile", "cpuu"],
            "unknown profile of other 'cpuu': did you mean 'cpu'? Known: smoke, cpu",
        ),
        (["run", "toy", "-p", "step", "3"], "unknown parameter of toy 'step': did you mean 'steps'?"),
        (["run", "toy", "-p", "note", "3"], "parameter note of toy is 'none' by default, so it takes text"),
        (["run", "toy", "-p", "steps", "[1"], "the value '[1' of parameter steps is not YAML"),
        (["run", "toy", "-p", "steps", "1:30"], "so it takes an integer, but got '1:30' (text)"),
        (["run", "toy", "-p", "steps", "!few 3"], "the value '!few 3' of parameter steps is not YAML: tags such as"),
        (["run", "toy", "-p", "rate", "nan"], "so it takes a number, but got 'nan' (text); a notebook cannot hold it"),
        (["run", "toy", "-p", "rate", "1e999"], "but got inf (a number); a notebook cannot hold it"),
        (["run", "toy", "-p", "seeds", "[0, -1]"], "seeds of toy cannot be [0, -1]: seeds are numbers from 0 on"),
        (["run", "toy", "-p", "data", "story_toy"], "cannot be 'story_toy': unknown domain 'story_toy': did you mean"),
        (["run", "toy", "-p", "data", "stories_toy+hub:x"], "unknown hub corpus 'hub:x'; known: hub:"),
        (["run", "toy", "-p", "device", "gpu"], "cannot be 'gpu': give auto, cpu, cuda or cuda:<number>"),
        (["run", "-p", "profile", "gpu", "--profile", "cpu"], "parameter profile is given twice"),
        (
            ["run", "--record", "--fresh"],
            "--record takes what the notebook says at a profile: leave out -p and --fresh",
        ),
        (["run", "--record", "--profile", "gpu", "-p", "steps", "4"], "leave out -p and --fresh"),
        (["run", "toy.smoke"], "unknown paper 'toy.smoke': Known: other, toy"),
        (["verify", "toy.smoke"], "unknown paper 'toy.smoke'"),
        (["run", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["run", "-p", "steps"], "expected 2 arguments"),
        (["prove"], "invalid choice: 'prove'"),
        (
            ["export", "0123456789abcdef0123", "model"],
            "'0123456789abcdef0123' is neither a JSON file nor the key of a run",
        ),
        (["export", "run.json", "model", "--replica", "1", "--mean"], "--mean: not allowed with argument --replica"),
        (["export", "run.json"], "required: FOLDER"),
        ([], "required"),
    ],
)
def test_wrong_usage_is_refused_before_anything_runs(toy, tmp_path, capsys, arguments, message):
    toy("toy")
    toy("other")
    try:
        status = cli.main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_no_papers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SWARMBOOK_PAPERS", str(tmp_path))
    assert cli.main(["run"]) == 2
    assert "pip install -e ." in capsys.readouterr().err
    assert cli.main(["list"]) == 2
    assert "pip install -e ." in capsys.readouterr().err
    assert cli.main(["list", "--json"]) == 2
    assert '"papers": []' in capsys.readouterr().out


def test_a_failure_does_not_stop_the_others(toy, tmp_path):
    toy("first", ("raise RuntimeError('no luck')", "figure 2"))
    toy("second", ("print('fine')", ""))
    done = swarmbook("run")
    assert done.returncode == 1
    assert done.stderr.startswith("failed: first, code cell 2 of 2 (figure 2): RuntimeError: no luck\n")
    assert done.stderr.endswith("1 of 2 papers failed: first\n")
    assert "runs/second/second.ipynb" in done.stdout
    assert not set(done.stdout + done.stderr) & {"\r", "\x1b"}


MEETING = """\
import os, pathlib, time
folder = pathlib.Path(FOLDER)
(folder / NAME).write_text(str(os.getpid()))
while len(list(folder.iterdir())) < 2:
    time.sleep(0.01)
"""


def meeting(toy, tmp_path, *more: tuple[str, str]) -> Path:
    """Two papers whose notebooks wait for each other in a folder, where they say their kernels."""
    folder = tmp_path / "meeting"
    folder.mkdir()
    for name in ("first", "second"):
        toy(name, (MEETING.replace("FOLDER", repr(str(folder))).replace("NAME", repr(name)), ""), *more)
    return folder


def test_notebooks_are_executed_side_by_side(toy, tmp_path):
    meeting(toy, tmp_path, ("print(os.environ['OMP_NUM_THREADS'])", ""))
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = swarmbook("run", "--jobs", "2", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no claims yet") == 2
    for name in ("first", "second"):
        cells = nbformat.read(tmp_path / "runs" / name / f"{name}.ipynb", 4).cells
        assert cells[-1].outputs[0].text == f"{max(1, os.cpu_count() // 2)}\n"


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_the_longest_notebooks_begin_first(toy, tmp_path, monkeypatch, fresh):
    """By what their runs took when they are trained again, else by the number of their cells of code."""
    import pandas as pd

    from swarmbook.records import store

    for name, cells in (("first", ["print('long ' * 100)"]), ("second", ["1", "2", "3"])):
        toy(name, *((cell, "") for cell in cells))
    key = store.key_of({"computed": {"a": 1}})
    store.open_store().put(key, {"a": 1}, pd.DataFrame({"b": [1]}), {"seconds": 9.0})
    store.open_store().publish([key], papers.discover()["first"].beside("runs"))
    begun = []
    monkeypatch.setattr(
        "swarmbook.reproduction.side_by_side.side_by_side",
        lambda work, *_, **__: begun.extend(paper.name for paper, *_ in work) or [],
    )
    assert cli.main(["run", "--jobs", "2", "--output", str(tmp_path / "out"), *fresh]) == 0
    assert begun == (["first", "second"] if fresh else ["second", "first"])


@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_notebooks_side_by_side_end_together(toy, tmp_path, sent, status):
    folder = meeting(toy, tmp_path, ("time.sleep(1000)", ""))
    command = [sys.executable, "-m", "swarmbook", "run", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: len([path for path in folder.iterdir() if path.read_text()]) == 2)
        process.send_signal(getattr(signal, sent))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.decode().count("executed so far:") == 2 and "Traceback" not in errors.decode()
    kept = [path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert sorted(kept) == ["first.failed.ipynb", "second.failed.ipynb"]
    wait_until(lambda: not any(Path("/proc", path.read_text()).exists() for path in folder.iterdir()))


def test_a_broken_notebook_is_named(toy, capsys):
    toy().write_text("half")
    assert cli.main(["run"]) == 1
    assert "toy.ipynb is not a notebook" in capsys.readouterr().err


def test_ctrl_c_leaves_no_half_written_notebook_and_no_kernel(toy, tmp_path):
    sign = tmp_path / "pid"
    source = f"import os, pathlib, time; pathlib.Path({str(sign)!r}).write_text(str(os.getpid())); time.sleep(120)"
    toy("toy", (source, ""))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "swarmbook", "run"]
    environment = os.environ | {"TMPDIR": str(scratch)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: sign.exists() and sign.read_text())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors.decode() and "Traceback" not in errors.decode()
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not list(scratch.glob("swarmbook-*"))
    wait_until(lambda: not Path(f"/proc/{sign.read_text()}").exists())


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_reader_may_stop_early(toy):
    """As `swarmbook list | head` does."""
    toy()
    command = [sys.executable, "-m", "swarmbook", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
        assert listing.wait() == 0


def test_list_as_text(toy, capsys, monkeypatch):
    """Counts of all papers; figures and claims of those that are named."""
    monkeypatch.setenv("COLUMNS", "80")
    committed(toy())
    toy("other")
    assert cli.main(["list"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "paper claims runs title",
        "other none yet 0 The other paper",
        "toy holds 1 0 The toy paper",
        "1 claim: holds 1",
        "`swarmbook list PAPER` shows the claims of a paper",
    ]
    assert cli.main(["list", "toy"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "toy: The toy paper",
        "figure 4a, table 2; 0 recorded runs",
        "",
        "claim verdict paper ours",
        "T1 toys work holds 3 3",
        "1 claim: holds 1",
    ]
    assert cli.main(["list", "tony"]) == 2
    assert "unknown paper 'tony': did you mean 'toy'?" in capsys.readouterr().err


def test_list_as_json(toy, capsys):
    path = committed(toy())
    (path.parent / "runs").mkdir()
    (path.parent / "runs" / "a.parquet").touch()
    assert cli.main(["list", "--json"]) == 0
    claim = {"id": "T1", "text": "toys work", "paper": "3", "ours": "3", "verdict": "holds", "power": ""}
    assert json.loads(capsys.readouterr().out) == {
        "papers": [
            {
                "name": "toy",
                "title": "The toy paper",
                "figures": ["figure 4a"],
                "tables": ["table 2"],
                "claims": [claim],
                "runs": 1,
                "profile": "",
                "answer": "",
            }
        ]
    }


def test_record_keeps_the_runs_that_were_noted_and_the_notebook_as_a_reader_gets_it(toy, tmp_path, monkeypatch):
    pandas, store = pytest.importorskip("pandas"), pytest.importorskip("swarmbook.records.store")
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))
    key = store.key_of({"lr": 0.1})
    table = pandas.DataFrame({"step": [1], "value": [2.0]})
    store.open_store().put(key, {"lr": 0.1}, table, {"torch": "none"})
    source = (
        "import os\nnoted = os.environ.get('SWARMBOOK_RECORD')\n"
        f"print(open(noted, 'a').write('{key}\\n') if noted else 'from the record')"
    )
    path = toy("toy", (source, "table 1"))
    (path.parent / "runs").mkdir()
    (path.parent / "runs" / "0123456789.parquet").write_text("of an older notebook")
    assert cli.main(["run", "--record"]) == 0
    assert [file.name for file in (path.parent / "runs").iterdir()] == [f"{key}.parquet"]
    assert nbformat.read(path, 4).cells[-1].outputs[0].text == "from the record\n"
    assert papers.read_paper(path).runs == 1


TINY = dict(data="stories_toy", tokenizer="bytes", width=8, heads=2, hidden=8, sequence=8, stages=2, microbatches=1)
TINY |= dict(evaluate_every=2, log_every=2, held_out=4)
TRAINING = f"""\
from swarmbook.config import run_config
from swarmbook.runs import run
runs = run([run_config(**{TINY}, steps={{"cpu": 4, "smoke": 2}}[profile])], device="cpu")
runs.final()
"""
COMPUTING = """\
import pandas
from swarmbook.records.computed import computed
wanted = [{"steps": steps} for steps in {"cpu": [2, 4], "smoke": [2]}[profile]]
tables = computed(wanted, lambda asked: [pandas.DataFrame([one]) for one in asked])
print(profile, len(tables), tables[-1]["steps"].sum())
"""


@pytest.fixture
def computing(toy, tmp_path, monkeypatch) -> Path:
    """A toy paper that stands on two tables at its default profile, and on the first of them at `smoke`."""
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))
    return toy("toy", (COMPUTING, "table 2"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def recorded(kept: dict[str, bytes]) -> dict[str, list[str]]:
    """Folders of recorded runs: how many they hold."""
    folders = sorted(name.split("/")[0] for name in kept if "/" in name)
    return {folder: folders.count(folder) for folder in folders}


def test_a_second_profile_is_recorded_beside_the_default_one(computing, tmp_path, monkeypatch, capsys):
    home = computing.parent
    assert cli.main(["run", "--record"]) == 0
    default = contents(home)
    assert recorded(default) == {"runs": 2}
    (home / "runs.smoke").mkdir()
    (home / "runs.smoke" / "0123456789.parquet").write_text("of an older notebook")
    assert cli.main(["run", "toy", "--record", "--profile", "smoke"]) == 0
    assert f"recorded  {home / 'toy.smoke.ipynb'}\n" in capsys.readouterr().out
    both = contents(home)
    assert recorded(both) == {"runs": 2, "runs.smoke": 1}
    assert {name: both[name] for name in default} == default
    (own,) = both.keys() - default.keys() - {"toy.smoke.ipynb", "provenance.smoke.json"}
    assert both[own] == default[own.replace(".smoke", "")]  # complete in itself

    # anew from the record alone, as on a machine that could not train it: nothing is made again, no byte differs
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "empty"))
    assert cli.main(["run", "--record", "--profile", "smoke"]) == 0
    assert cli.main(["run", "--record", "--profile", "cpu"]) == 0
    assert (contents(home), contents(tmp_path / "empty")) == (both, {})

    assert cli.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.split("\n\n")[-1])["papers"]
    assert [(one["name"], one["runs"], one["profile"]) for one in listed] == [("toy", 2, ""), ("toy.smoke", 1, "smoke")]
    assert cli.main(["list"]) == 0
    assert "toy.smoke  none yet" in capsys.readouterr().out
    assert cli.main(["verify", "--all"]) == 0
    said = capsys.readouterr().out
    assert "toy: 0 runs and 2 tables recorded" in said and "toy.smoke: 0 runs and 1 tables recorded" in said


def test_a_store_that_was_carried_home_completes_the_record(toy, tmp_path, monkeypatch):
    """Trained where nothing is recorded; of all that was made there, only the store comes home."""
    path, there, home = toy("toy", (TRAINING, "table 1")), tmp_path / "there", tmp_path / "home"
    monkeypatch.setenv("SWARMBOOK_STORE", str(there))
    assert cli.main(["run", "toy", "--profile", "smoke"]) == 0
    trained = {name: data for name, data in contents(there).items() if name.endswith(".parquet")}
    there.rename(home)
    monkeypatch.setenv("SWARMBOOK_STORE", str(home))
    assert cli.main(["run", "toy", "--record", "--profile", "smoke"]) == 0
    kept = contents(path.parent)
    assert {name.removeprefix("runs.smoke/"): data for name, data in kept.items() if "/" in name} == trained
    assert {name: data for name, data in contents(home).items() if name.endswith(".parquet")} == trained
    assert "provenance.smoke.json" in kept and "toy.smoke.ipynb" in kept


def test_whatever_ends_a_recording_leaves_notebooks_that_stand_on_their_record(computing, toy, monkeypatch, capsys):
    """A failing cell, or a kill, before the new notebook is there or after; other papers are recorded all the same."""
    record = ["run", "--record", "--profile", "smoke"]
    assert cli.main(record) == 0
    home = computing.parent
    before = contents(home)
    toy("zoo", ("print(profile)", ""))
    computing.write_text(computing.read_text().replace('\\"smoke\\": [2]', '\\"smoke\\": [4]'))  # stands on another run
    notebook = nbformat.read(computing, 4)

    def assert_whole(runs: int, renewed: bool) -> None:
        after = contents(home)
        assert recorded(after) == {"runs.smoke": runs}
        assert (after["toy.smoke.ipynb"] != before["toy.smoke.ipynb"]) == renewed
        assert renewed or {name: after[name] for name in before.keys() - {"toy.ipynb"}}.items() <= before.items()
        assert verify.shown(papers.records()["toy.smoke"]).faults == []

    later = "import os\nif 'SWARMBOOK_RECORD' not in os.environ: raise RuntimeError"
    for failing, runs in (("raise RuntimeError", 1), (later, 2)):  # in the first execution and in the second
        notebook.cells.append(nbformat.v4.new_code_cell(failing))
        nbformat.write(notebook, computing)
        assert cli.main(record) == 1
        assert "1 of 2 papers failed: toy" in capsys.readouterr().err
        assert_whole(runs, renewed=False)
        assert list(papers.records()) == ["toy", "toy.smoke", "zoo", "zoo.smoke"]
        notebook.cells.pop()
    nbformat.write(notebook, computing)

    def killed(*_):
        raise KeyboardInterrupt

    for place, runs in (("swarmbook.reproduction.publishing.commit", 2), ("swarmbook.reproduction.lineage.keep", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            assert cli.main([*record[:1], "toy", *record[1:]]) == 130
        assert_whole(runs, renewed=runs == 1)
    assert lineage.kept(papers.records()["toy.smoke"]) is None  # that of the old record is known to be old


def test_export(toy, tmp_path, monkeypatch, capfd):
    """A run that nobody has trained, by its configuration; then its replicas by its key, without training again."""
    toy()
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    sizes = {"stages": 2, "width": 8, "heads": 2, "hidden": 8, "sequence": 8, "batch": 1, "held_out": 4}
    fields = {"data": "stories_toy", **sizes, "steps": 4, "log_every": 2, "evaluate_every": 2, "replicas": 2}
    Path("run.json").write_text(json.dumps(fields))
    assert cli.main(["export", "run.json", "model"]) == 2
    assert "swarmbook export: the run has 2 replicas: choose one of 0..1" in capfd.readouterr().err
    assert cli.main(["export", "run.json", "model", "--replica", "1"]) == 0
    told, exported = capfd.readouterr().out.splitlines()
    key = told.split()[4]
    assert told == f"the weights of run {key} are not kept: it is trained now, 4 steps in all"
    assert exported == "exported  model"
    assert cli.main(["export", key, "middle", "--mean"]) == 0
    assert capfd.readouterr() == ("exported  middle\n", f"export: run {key}\n")
    assert f"# Run {key}, the mean of 2 replicas" in Path("middle/README.md").read_text()
    assert cli.main(["export", key, "middle", "--mean"]) == 2
    assert "middle is there already and no empty folder: name another" in capfd.readouterr().err
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cli.main(["export", key, "other", "--mean"]) == 1
    assert "cannot write" in capfd.readouterr().err


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_give_commands_that_exist(workflow):
    """Every `swarmbook ...` of a CI job is parsed as the command line would; the rest is YAML of the right shape."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    lines = [line.strip() for step in steps for line in step.get("run", "").splitlines()]
    ours = [shlex.split(line.replace('"$SAMPLE"', "20"))[1:] for line in lines if line.startswith("swarmbook ")]
    assert [cli._parser().parse_args(arguments).name for arguments in ours] == ["verify", "sweep", "report"]


def test_a_busy_machine_is_told_what_helps(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, told in ((1.5, False), (6.6, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0))
        assert bool(terminal.busy()) == told
    assert terminal.busy().startswith("about 7 processes share 2 cores: with OMP_NUM_THREADS=1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert terminal.busy() == ""


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_claims_table_wraps_and_loses_nothing(width, monkeypatch):
    long = "recovery by averaging the neighbours of a lost stage costs less than copying one of them " * 2
    claims = [
        Claim(
            "C6",
            long.strip(),
            "about 0.1 lower at a failure rate of 16 %",
            "0.02 ± 0.01",
            "undecided at this scale",
        ),
        Claim("C8", "[bold]short[/bold] :smile:", "", "", "holds"),
    ]
    *lines, last = terminal.claims_table(claims, width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["claim", "verdict", "paper", "ours"]
    assert last == "2 claims: holds 1, undecided at this scale 1"
    letters = Counter("".join(lines))
    wanted = Counter("".join("".join(vars(claim).values()) for claim in claims).replace(" ", ""))
    assert not wanted - letters, "letters are lost"
    assert not letters.keys() & {"\x1b"}


def test_verdicts_are_coloured_on_a_terminal_alone(monkeypatch):
    claims = [Claim("C1", "a", "b", "c", verdict) for verdict in ("holds", "does not hold")]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = terminal.claims_table(claims, 80)
    assert "\x1b[32mholds" in shown and "\x1b[31mdoes not hold" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in terminal.claims_table(claims, 80)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(terminal.time, "monotonic", lambda: self.now)


def test_a_log_has_a_line_a_minute_with_the_time_that_is_left(monkeypatch, capsys):
    """Known costs: 100 s a run. One of two is ready after 120 s, so the other takes 120 s as well."""
    clock = Clock(monkeypatch)
    with terminal.Progress("toy", 1, 3, {"a": 100.0, "b": 100.0}) as progress:
        assert progress.line() == "toy (2 of 3)  0:00  about 3 min left  0 of 2 runs"
        progress(4, 10, "figure 2", "warming up")
        ready(["a"])
        clock.now += 120
        with bar(total=4, desc="1 run on cpu", unit="tok", mininterval=0) as moving:
            moving.set_postfix_str("loss 2.500", refresh=False)
            moving.update(2)
            moving.refresh()
            line = progress.line()
        assert line.startswith("toy (2 of 3)  2:00  about 2 min left  cell 5 of 10  figure 2  warming up  1 of 2 runs")
        assert "1 run on cpu 50 %, loss 2.500" in line
        waits = iter([False, True])
        monkeypatch.setattr(progress._end, "wait", lambda seconds: next(waits) or seconds != 60)
        progress._tell()
        assert "toy (2 of 3)  2:00" in capsys.readouterr().err
    assert "SWARMBOOK_PROGRESS" not in os.environ


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_on_a_terminal_a_bar_moves_and_a_clock_ticks(toy, tmp_path):
    """What is printed stays on standard output; the lines that move are on the terminal and are taken away."""
    import pty

    sign, go = tmp_path / "sign", tmp_path / "go"
    wait = f"import pathlib, time\npathlib.Path({str(sign)!r}).touch()\n"
    toy("toy", (f"{wait}while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.1)", "figure 1"))
    control, terminal_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-m", "swarmbook", "run"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=terminal_end) as process:
        os.close(terminal_end)
        shown = b""
        while len(set(re.findall(rb"0:\d\d", shown[shown.find(b"figure 1") :] if b"figure 1" in shown else b""))) < 2:
            shown += os.read(control, 4096)  # the clock ticks while the cell lasts
        go.touch()
        while process.poll() is None:
            with suppress(OSError):  # its end is closed
                shown += os.read(control, 4096) if select.select([control], [], [], 0.1)[0] else b""
        printed = process.stdout.read().decode()
    os.close(control)
    assert sign.exists() and b"cell 2 of 2" in shown and "━".encode() in shown
    assert "HTML      " in printed and "\x1b" not in printed


def test_a_bar_in_a_notebook_is_a_widget_that_leaves_nothing(toy, tmp_path):
    """Run by anything but swarmbook, such as JupyterLab; with swarmbook nothing of it reaches the notebook at all."""
    source = (
        "import os\nos.environ.update(SWARMBOOK_PROGRESS={folder!r})\nfrom swarmbook.records.progress_bars import bar\n"
    )
    source += "for _ in bar(range(3), desc='training'): pass\nprint('done')"
    stored = {}
    for name, folder in (("alone", ""), ("followed", str(tmp_path))):
        paper = papers.read_paper(toy(name, (source.format(folder=folder), "")))
        stored[name] = nbformat.read(execution.execute(paper, page=False).notebook, 4).cells[-1].outputs
    (empty, done), (only,) = stored["alone"], stored["followed"]
    assert (dict(empty.data), done.text) == ({"text/plain": ""}, "done\n")
    assert only.text == "done\n"
    assert "training 100 %" in (tmp_path / "bar").read_text()
