"""Every end of a command has a message: what can happen to a user is told in a sentence, with a cure and no traceback.

Faults of swarmbook itself are not hidden: they show their traceback, and that they are to be reported.
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import papermill.iorw
import pytest
from sweeps import linux, processes, said, start, surroundings, until

from swarmbook import __main__, cli, locations
from swarmbook.records.atomic_files import save_tensors
from swarmbook.records.keys import key_of
from swarmbook.records.store import Store
from swarmbook.reproduction import papers

TINY = dict(data="stories_toy", tokenizer="bytes", width=8, heads=2, hidden=8, sequence=8, stages=2, batch=1)
TINY |= dict(microbatches=1, steps=2, evaluate_every=2, log_every=2, held_out=4)


def swarmbook(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "swarmbook", *map(str, arguments)]
    options = {"capture_output": True, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run(command, timeout=300, **options)


def ended(arguments: list, capsys, status: int = 1) -> str:
    """The one sentence in which a command ends."""
    try:
        found = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:
        found = exit.code
    told = capsys.readouterr().err
    assert found == status, told
    assert "Traceback" not in told
    return told.strip().splitlines()[-1]


def no_room() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


WRITING = [["run"], ["run", "--figures"], ["sweep", "--seeds", "0"], ["report"], ["open", "toy", "--no-browser"]]


@pytest.mark.parametrize("command", WRITING, ids=" ".join)
def test_a_folder_that_cannot_be_written_is_told_before_anything_starts(toy, file, capsys, monkeypatch, command):
    toy("toy", ("raise RuntimeError('it was executed')", ""))
    monkeypatch.setattr(papers.Paper, "recorded", None)  # nor is anything looked up
    for place in (file, file / "x", Path("/dev/null/x")):
        told = ended([*command, "--output", place], capsys)
        assert re.fullmatch(
            rf"swarmbook {command[0]}: cannot write {place}\S*: (File exists|Not a directory); name another folder .*",
            told,
        )


@pytest.mark.parametrize("command", WRITING, ids=" ".join)
def test_runs_that_cannot_be_written_are_told_before_anything_starts(toy, tmp_path, capsys, monkeypatch, command):
    """A file in their place, and a disk that is mounted for reading alone; what only reads goes on."""
    toy("toy", ("raise RuntimeError('it was executed')", ""))
    (tmp_path / "runs").touch()
    named = rf"swarmbook {command[0]}: cannot write {tmp_path}/runs/?\S*: "
    assert re.fullmatch(rf"{named}(File exists|Not a directory); name another folder .*", ended(command, capsys))
    (tmp_path / "runs").unlink()

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", read_only)
    assert re.fullmatch(rf"{named}Read-only file system; name another folder with --output.*", ended(command, capsys))
    assert cli.main(["list"]) == 0


def test_a_result_that_cannot_be_written_is_told(toy, tmp_path, capsys):
    toy("toy", ("1", ""))
    (tmp_path / "runs/toy/toy.ipynb").mkdir(parents=True)
    assert "toy.ipynb: Is a directory; name a file in place of the folder" in ended(["run"], capsys)


def test_a_result_that_cannot_be_written_ends_notebooks_side_by_side(toy, tmp_path, capsys):
    toy("one", ("import time; time.sleep(1000)", ""))
    toy("two", ("1", ""))
    (tmp_path / "runs/two/two.ipynb").mkdir(parents=True)
    assert "two.ipynb: Is a directory" in ended(["run", "--jobs", 2], capsys)
    files = {path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert "two.html" in files <= {"two.html", "one.failed.ipynb"}  # of the other, what was executed until then


@pytest.mark.parametrize("place", ["a result", "what papermill writes"])
def test_a_disk_that_fills_up_while_notebooks_run(toy, tmp_path, capsys, monkeypatch, place):
    """The notebook before is kept, of the other is nothing half done, and the same command then does it."""
    for name in ("one", "two"):
        toy(name, ("print(steps)", ""))
    with monkeypatch.context() as patch:
        if place == "a result":
            room = iter(range(2))  # for the page and the notebook of the first
            patch.setattr(os, "fsync", lambda _: None if next(room, None) is not None else no_room())
        else:
            write = papermill.iorw.LocalHandler.write
            patch.setattr(
                papermill.iorw.LocalHandler,
                "write",
                lambda self, content, path: no_room() if "/two/" in path else write(self, content, path),
            )
        told = ended(["run", "--jobs", 1], capsys)
    named = f"{tmp_path}/runs/two/two.html: " if place == "a result" else ""
    assert re.fullmatch(rf"swarmbook run: {named}No space left on device; make room, .*", told)
    files = {str(path.relative_to(tmp_path / "runs")) for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert files == {"one/one.html", "one/one.ipynb"} and not list((tmp_path / "runs/two").iterdir())
    assert cli.main(["run", "--jobs", "1", "two"]) == 0


def test_a_disk_that_fills_up_while_a_report_is_written(toy, tmp_path, capsys, monkeypatch):
    """Pages that were there are whole, whether they are the old ones or the new ones."""
    for name in ("one", "two"):
        toy(name)
    assert cli.main(["report"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "runs/report").rglob("*") if path.is_file()}
    room = iter(range(1))
    monkeypatch.setattr(os, "fsync", lambda _: None if next(room, None) is not None else no_room())
    told = ended(["report"], capsys)
    assert re.fullmatch(rf"swarmbook report: {tmp_path}/runs/report/\S*: No space left on device; make room, .*", told)
    assert {path: path.read_bytes() for path in (tmp_path / "runs/report").rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["list", "--json"]])
def test_output_that_is_full_closed_or_of_few_letters(toy, arguments):
    path = toy()
    path.write_text(path.read_text().replace("The toy paper", "The toy påper ±"))
    with open("/dev/full", "w") as full:
        done = swarmbook(*arguments, stdout=full, capture_output=False, stderr=subprocess.PIPE)
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    assert done.returncode == (0 if arguments == ["--help"] else 1)
    closed = f"'{sys.executable}' -m swarmbook {' '.join(arguments)} >&-"
    done = subprocess.run(["sh", "-c", closed], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    done = swarmbook(*arguments, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    if "--json" in arguments:
        assert json.loads(done.stdout)["papers"][0]["title"] == "The toy påper ±"


def test_a_folder_with_braces(toy, tmp_path, capsys, monkeypatch):
    """papermill would fill parameters into them."""
    path = toy("toy", ("print(steps)", ""))
    braces = tmp_path / "{steps} {" / "papers"
    braces.parent.mkdir()
    path.parents[1].rename(braces)
    monkeypatch.setenv("SWARMBOOK_PAPERS", str(braces))
    assert cli.main(["run", "-p", "steps", "5", "--output", str(tmp_path / "{} {nothing}")]) == 0
    assert (tmp_path / "{} {nothing}/toy/toy.ipynb").exists()


def test_an_export_into_the_current_folder_or_one_that_is_gone(toy, tmp_path, capsys, monkeypatch):
    toy()
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))
    (tmp_path / "run.json").write_text(json.dumps(TINY))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert "is the current folder: name a new one, such as model" in ended(["export", "../run.json", "."], capsys, 2)
    here.rmdir()
    for command in (["export", tmp_path / "run.json", "model"], ["list"], ["run"]):
        assert "the current folder is gone: change to one that is there" in ended(command, capsys, 2)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--seed", "-1"], "'-1' is no number from 0 on"),
        (["verify", "--sample", "0"], "'0' is no number from 1 on"),
        (["verify", "--within", "nan"], "'nan' is no number from 1 on"),
        (["export", "run.json", "model", "--replica", "-1"], "'-1' is no number from 0 on"),
        (["sweep", "--workers", "²"], "'²' is no number from 1 on"),
        (["sweep", "--workers", "9" * 5000], "is no number from 1 on"),
    ],
)
def test_numbers_that_are_none(capsys, arguments, message):
    assert message in ended(arguments, capsys, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no configuration of a run"),
        (b"\xff", "holds no configuration of a run"),
        (b"[]", "holds no configuration of a run"),
        (b'{"data": "stories_toy", "steps": 0}', "steps"),
        (b'{"data": "stories_toy", "tokenizer": "tokenizer.json", "steps": 1}', "tokenizer"),
    ],
)
def test_an_export_of_what_is_no_run(toy, tmp_path, capsys, monkeypatch, content, message):
    toy()
    monkeypatch.chdir(tmp_path)
    Path("run.json").write_bytes(content)
    Path("tokenizer.json").write_text("{}")
    status = 1 if b"tokenizer" in content else 2
    assert message in ended(["export", "run.json", "model"], capsys, status)


def test_ctrl_c_at_any_time(toy, capsys, monkeypatch):
    toy()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for place in ("_parser", "_check_surroundings", "_run"):
        with monkeypatch.context() as patch:
            patch.setattr(cli, place, interrupted)
            assert ended(["run"], capsys, 130).startswith("interrupted")
    monkeypatch.setattr(cli, "_list", interrupted)
    assert ended(["list"], capsys, 130) == "interrupted"
    monkeypatch.setattr(cli, "main", interrupted)  # as while it is imported
    assert (__main__.main(), capsys.readouterr().err) == (130, "\ninterrupted\n")


def test_ctrl_c_while_weights_are_saved_is_no_want_of_room():
    torch = pytest.importorskip("torch")

    class Interrupted:
        def write(self, data):
            raise KeyboardInterrupt

        def flush(self):
            pass

    with pytest.raises(KeyboardInterrupt):
        save_tensors({"weights": torch.zeros(1 << 20)}, Interrupted())


def test_what_is_missing_is_named(toy, capsys, monkeypatch):
    toy()

    def fails(error):
        def command(_):
            raise error

        return command

    for error, told in (
        (ModuleNotFoundError("No module named 'papermill'", name="papermill"), "papermill is missing: install"),
        (MemoryError(), "not enough memory: close other programs"),
        (OSError(28, "No space left on device"), "No space left on device; make room, or name another disk"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied; give yourself the right to it"),
    ):
        monkeypatch.setattr(cli, "_list", fails(error))
        assert told in ended(["list"], capsys)
    for error in (KeyError("a"), ModuleNotFoundError("x", name="swarmbook"), ValueError("b")):
        monkeypatch.setattr(cli, "_list", fails(error))
        assert cli.main(["list"]) == 1
        told = capsys.readouterr().err
        assert "a fault of swarmbook" in told and "please report it" in told and "Traceback" in told


def test_a_user_without_a_home_has_to_name_a_cache(monkeypatch):
    monkeypatch.setenv("SWARMBOOK_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(FileNotFoundError, match="set SWARMBOOK_CACHE to a folder"):
        locations.cache_folder()
    monkeypatch.setenv("SWARMBOOK_CACHE", "/somewhere")
    assert locations.cache_folder() == Path("/somewhere")


@linux
def test_a_stop_by_ctrl_c_while_the_cluster_of_a_sweep_starts(toy, tmp_path):
    """It is heard at the latest once the cluster is there, and leaves no process behind."""
    toy("toy", ("import time; time.sleep(20)", ""))
    for number, pause in enumerate((0, 0.7)):
        folder = tmp_path / str(number)
        process = start(folder, "toy", "--seeds", "0-1", "--workers", "2", start_new_session=True)
        assert process.stdout.readline() == "toy at smoke, 2 points: 2 left\n"
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        text = said(process, 130)
        assert "interrupted; what was trained is kept" in text and "Traceback" not in text
        until(lambda folder=folder: not processes(folder), "all processes gone")


WAITING = """\
import os, pathlib, time
import pandas
from swarmbook.records.computed import computed
tables = computed([{"a": 1}], lambda wanted: [pandas.DataFrame({"b": [1]})])
pathlib.Path(os.environ["SIGN"]).write_text(str(os.getpid()))
time.sleep(120)
"""


@linux
@pytest.mark.parametrize(
    ("command", "sent", "status"),
    [
        (["report"], "SIGHUP", 129),
        (["report"], "SIGTERM", 143),
        (["verify"], "SIGHUP", 129),
        (["sweep", "--seeds", "0", "--workers", "1"], "SIGHUP", 129),
        (["sweep", "--seeds", "0", "--workers", "1"], "SIGTERM", 143),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0] if isinstance(value, list) else None,
)
def test_who_is_asked_to_end_says_so_and_leaves_no_process_and_nothing_half_done(
    toy, tmp_path, short, command, sent, status
):
    """The process that traces a notebook, the kernel, or the workers of a sweep and theirs."""
    path, sign = toy("toy", (WAITING, "table 1")), tmp_path / "sign"
    store = Store(tmp_path / "store")
    store.put(key_of({"computed": {"a": 1}}), {"a": 1}, pd.DataFrame({"b": [1]}), {"swarmbook": "0"})
    store.publish([key_of({"computed": {"a": 1}})], path.parent / "runs")
    named = surroundings(tmp_path, SIGN=str(sign), TMPDIR=str(short))
    whole = [sys.executable, "-m", "swarmbook", *command]
    with subprocess.Popen(whole, env=named, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until(lambda: (sign.exists() and sign.read_text()) or process.poll() is not None, "a notebook at work")
        process.send_signal(getattr(signal, sent))
        text = said(process, status)
    assert text.splitlines()[-1].startswith(f"ended by {sent}") and "Traceback" not in text
    until(lambda: not processes(tmp_path), "all processes gone")
    assert not list(short.glob("swarmbook-*"))
    left = [path for path in (tmp_path / "runs").rglob(".partial-*") if path.is_dir()]
    assert not left or command[0] == "sweep"  # its workers are killed; the next sweep takes away what they left
    assert not list(tmp_path.rglob("*.tmp")) and not list((tmp_path / "runs").rglob("*.html"))


@linux
@pytest.mark.parametrize(("sent", "status"), [("SIGHUP", 129), ("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("replaceable", [False, True], ids=["alone", "replaceable"])
def test_training_on_many_processes_is_ended_in_a_sentence(tmp_path, sent, status, replaceable):
    (tmp_path / "run.json").write_text(
        json.dumps({**TINY, "steps": 10**6, "evaluate_every": 10**6, "recovery": "random"})
    )
    command = [sys.executable, "-m", "swarmbook.distributed", str(tmp_path / "run.json")]
    command += ["--replace", "1"] if replaceable else []
    process = subprocess.Popen(
        command, env=surroundings(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    text = ""
    while "\nstep " not in text:  # what is written at the beginning is there: a supervised process is killed as it is
        text += (line := process.stdout.readline())
        assert line, text
    process.send_signal(getattr(signal, sent))
    text += said(process, status)
    name = "interrupted" if sent == "SIGINT" else f"ended by {sent}"
    assert f"{name}; training goes on from its last checkpoint" in text and "Traceback" not in text
    until(lambda: not processes(tmp_path), "all processes gone")
    assert not list(tmp_path.rglob("*.tmp"))


KILLED = """\
import os, signal, sys
if "--multiprocessing-fork" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_that_are_killed_as_they_start(toy, tmp_path):
    toy()
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    surroundings = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = swarmbook("sweep", "--seeds", "0", env=surroundings)
    assert done.returncode == 1
    told = done.stderr.decode()
    assert told.startswith("swarmbook sweep: the workers of the sweep did not start") and told.count("\n") == 1
    assert told.endswith("Use fewer --workers\n")
