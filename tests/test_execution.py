"""Executing notebooks: what stays of one that is ended from outside, and what is cleaned up after the dead."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
import zmq
from papermill import engines

from swarmbook import endings
from swarmbook.records.atomic_files import scratch_folder, write_folder
from swarmbook.reproduction import execution, kernel, papers


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(toy, tmp_path):
    """`swarmbook run` in a process of its own, which has come to a cell that takes long; and the kernel's number."""
    sign = tmp_path / "pid"
    long = f"import os, pathlib, time; pathlib.Path({str(sign)!r}).write_text(str(os.getpid())); time.sleep(120)"
    toy("toy", ("print('the first cell')", ""), (long, ""))
    process = subprocess.Popen(
        [sys.executable, "-m", "swarmbook", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: sign.exists() and sign.read_text())
    return process, Path(f"/proc/{sign.read_text()}")


def listening() -> set[tuple[str, int]]:
    """The TCP ports on which this process and its descendants listen."""
    psutil = pytest.importorskip("psutil", reason="comes with the extra test")
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {(p.name(), c.laddr.port) for p in ours for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


@pytest.mark.skipif(sys.platform == "win32", reason="ZeroMQ has no sockets in files there")
def test_a_notebook_that_runs_listens_on_no_port(toy, tmp_path, short):
    """Its channels are sockets in a folder of this user; what forked processes print arrives as well."""
    fork = "import os\nif not os.fork():\n    print('from the fork', flush=True)\n    os._exit(0)\nos.wait()"
    first = "from ipykernel.connect import get_connection_file; print(get_connection_file())\n"
    first += "import rfc3987_syntax"  # which we do not load, but notebooks may
    paper, seen = papers.read_paper(toy("toy", (first, ""), (fork, ""), ("print(steps)", ""))), []

    def look(done: int, *_) -> None:
        if done == 3:
            made = [(path.stat().st_mode & 0o777, len(list(path.glob("channel-*")))) for path in short.iterdir()]
            seen.append((listening() - before, made))

    before = listening()  # this process may still have some of other tests
    execution.execute(paper, page=False, progress=look)
    assert seen and all(one == (set(), [(0o700, 5)]) for one in seen)
    assert not list(short.iterdir())
    cells = nbformat.read(tmp_path / "runs/toy/toy.ipynb", 4).cells
    text = [output.get("text") for cell in cells for output in cell.get("outputs", [])]
    assert "from the fork\n" in text and text[0].startswith(str(short))


@pytest.mark.parametrize("place", ["no sockets", "long"])
def test_where_sockets_have_no_place_the_kernel_has_ports(toy, tmp_path, monkeypatch, place):
    if place == "long":
        long = tmp_path / ("x" * 100)
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        with kernel.socket_folder() as folder:
            assert folder.parent == Path("/tmp")
    monkeypatch.setattr(zmq, "has", lambda _: False)
    with kernel.socket_folder() as folder:
        assert folder is None and kernel.channels(folder) == {}
    if place == "no sockets":
        execution.execute(papers.read_paper(toy("toy", ("1 + 1", ""))), page=False)
        assert (tmp_path / "runs/toy/toy.ipynb").exists()


def test_a_busy_machine_has_time_to_send_what_a_cell_shows(toy, monkeypatch):
    """nbclient gives up 4 s after a cell has ended."""
    waits, made = [], engines.PapermillNotebookClient

    def client(*arguments, **named):
        waits.append(made(*arguments, **named))
        return waits[-1]

    monkeypatch.setattr(engines, "PapermillNotebookClient", client)
    execution.execute(papers.read_paper(toy("toy", ("1 + 1", ""))), page=False)
    assert waits[0].iopub_timeout == waits[0].startup_timeout == execution.BUSY


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_who_is_asked_to_end_keeps_what_was_executed_and_nothing_half_done(toy, tmp_path, short, name, status):
    process, kernel = running(toy, tmp_path)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    told = errors.decode()
    assert "executed so far:" in told and f"ended by {name}; what was trained is kept" in told
    assert "Traceback" not in told
    (kept,) = (path for path in (tmp_path / "runs").rglob("*") if path.is_file())
    assert kept.name == "toy.failed.ipynb" and not list(kept.parent.glob(".partial-*"))
    outputs = [output for cell in nbformat.read(kept, 4).cells for output in cell.get("outputs", [])]
    assert "the first cell\n" in [output.get("text") for output in outputs]
    wait_until(lambda: not kernel.exists())
    assert not list(short.iterdir())  # nor sockets


def test_what_the_dead_leave_is_removed_by_the_next(toy, tmp_path):
    process, kernel = running(toy, tmp_path)
    process.kill()
    process.communicate()
    folder = tmp_path / "runs" / "toy"
    assert [path for path in folder.glob(".partial-*") if path.is_dir()]
    paper = papers.discover(tmp_path / "papers")["toy"]
    content = nbformat.read(paper.notebook, 4)
    content.cells = content.cells[:3]
    nbformat.write(content, paper.notebook)
    execution.execute(papers.read_paper(paper.notebook), page=False)
    assert [path.name for path in folder.iterdir()] == ["toy.ipynb"]
    wait_until(lambda: not kernel.exists())  # it sees that its parent is gone


def test_a_scratch_folder_of_the_living_stays(tmp_path):
    (tmp_path / ".partial-0123abcd").mkdir()
    (tmp_path / ".partial-4567abcd.lock").touch()
    with scratch_folder(tmp_path) as one:
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [one.name]
        (one / "file").touch()
        with scratch_folder(tmp_path) as other:
            assert (one / "file").exists() and other.is_dir()
        assert one.is_dir() and not other.exists()
        write_folder(tmp_path / "model", {"a": b"1"})
        assert (one / "file").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_handler_of_ones_own_is_left_alone(toy, tmp_path):
    paper = papers.read_paper(toy("toy", ("1 + 1", "")))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGTERM)
        execution.execute(paper, page=False)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    execution.execute(paper, page=False)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_second_request_to_end_ends_at_once():
    child = os.fork()
    if not child:
        try:
            with endings.terminable():
                os.kill(os.getpid(), signal.SIGTERM)
        except endings.Terminated:
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


WORKER = """
import os
from distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        print(client.submit(lambda: os.environ["OMP_NUM_THREADS"]).result())
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("3", "3")])
def test_a_worker_of_dask_has_one_thread_unless_it_is_told_otherwise(tmp_path, given, expected):
    """As papers/README.md says of workers that are started by hand; dask's nanny sets the default."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if given is None else {"OMP_NUM_THREADS": given}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == expected, done.stderr
