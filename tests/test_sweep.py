"""Sweeps: grids that are refused line by line, and points that survive whatever is killed.

The sweeps here train: a notebook of one tiny run a seed, whose store, notebooks and log of finished trainings lie below
a folder of the test. The scheduler and workers of one test are processes of their own, as on a cluster.
"""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest
from conftest import CLAIM
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sweeps import kill_all, linux, notebooks, processes, records, said, start, surroundings, until

from swarmbook import cli, errors
from swarmbook.errors import UsageError
from swarmbook.records import locks
from swarmbook.reproduction import execution, papers, sweep, sweep_grid, sweep_summary
from swarmbook.reproduction.sweep import DONE, EXECUTED, FAILED, HELD, LEFT, OUTDATED, REPAIRED, RESUMED

ROOT = Path(__file__).parents[1]

# --- grids ---


def points(paper: Path, text: str, **options) -> list[dict]:
    paper.with_name("sweep.yaml").write_text(textwrap.dedent(text))
    return sweep_grid.points(papers.read_paper(paper), **options)


def test_a_grid_is_the_product_of_lists_ranges_and_zipped_groups_seed_by_seed(toy):
    text = """\
        seeds: 0-1
        grid:
          steps: 3-4
          note: fast
        zip:
          - rate: [0.1, 1]
            profile_: x
        """
    with pytest.raises(UsageError, match=r"line 7: unknown parameter of toy 'profile_'"):
        points(toy(), text)
    found = points(papers.discover()["toy"].notebook, text.replace("    profile_: x\n", ""))
    assert len(found) == 8
    assert found[0] == {"profile": "cpu", "seeds": [0], "steps": 3, "note": "fast", "rate": 0.1}
    assert found[-1] == {"profile": "cpu", "seeds": [1], "steps": 4, "note": "fast", "rate": 1.0}
    assert [point["seeds"] for point in found] == [[0]] * 4 + [[1]] * 4


def test_zipped_parameters_move_together(toy):
    found = points(toy(), "zip:\n- {steps: 1-3, rate: [1, 2, 3]}\n- note: [a, b]\n")
    assert [(p["steps"], p["rate"], p["note"]) for p in found] == [
        (1, 1.0, "a"), (1, 1.0, "b"), (2, 2.0, "a"), (2, 2.0, "b"), (3, 3.0, "a"), (3, 3.0, "b"),
    ]  # fmt: skip


def test_a_profile_replaces_what_it_names_and_only_there(toy):
    text = "seeds: 0-4\ngrid: {steps: [1, 2]}\nprofiles:\n  gpu:\n    seeds: 7\n    grid: {steps: 9}\n"
    path = toy()
    assert len(points(path, text)) == 10
    assert points(path, text, profile="gpu") == [{"profile": "gpu", "seeds": [7], "steps": 9}]
    assert len(points(path, text, profile="smoke", seeds=(5,))) == 2


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("seeds = 0  # how many", [{"seeds": 1}, {"seeds": 2}, {"seeds": 4}]),
        ("seed = 0", [{"seed": 0}, {"seed": 1}, {"seed": 3}]),
        ("seeds = [0]", [{"seeds": [0]}, {"seeds": [1]}, {"seeds": [3]}]),
    ],
)
def test_seeds_are_numbers_whatever_the_notebook_takes(toy, cell, expected):
    """A count of seeds takes those from 0 on: the point of seed s stands on all up to s."""
    path = toy()
    path.write_text(path.read_text().replace("seeds = [0, 1]  # one run each", cell))
    assert points(path, "seeds: [0, 1, 3]") == [{"profile": "cpu", **point} for point in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sweep.yaml is empty: name values"),
        ("grid: [", "line 1: not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("- steps", "line 1: sweep.yaml takes names with their values: seeds, grid, zip, profiles, but got ['steps']"),
        ("grids: {steps: 1}", "line 1: unknown entry of sweep.yaml 'grids': did you mean 'grid'?"),
        ("seeds: 0-4\ngrid: {}", "line 2: grid takes names with their values, but got {}"),
        ("seeds: 0-4\ngrid:\n", "line 2: grid takes names with their values, but got None"),
        ("grid:\n  steps: 1\n  setps: 2", "line 3: unknown parameter of toy 'setps': did you mean 'steps'? Known: pro"),
        ("grid:\n  steps: []", "line 2: parameter steps has no values ([]), so the grid is empty"),
        ("grid:\n  steps: 4-1", "line 2: parameter steps has no values ('4-1'), so the grid is empty"),
        ("grid:\n  steps: few", "line 2: parameter steps of toy is 3 by default, so it takes an integer, but"),
        ("grid:\n  steps:\n  - 1\n  - 2.5", "line 4: parameter steps of toy is 3 by default, so it takes an integer"),
        ("grid:\n  note: [a, true]", "line 2: parameter note of toy is 'none' by default, so it takes text, but"),
        ("grid:\n  rate: .nan", "line 2: parameter rate of toy is 0.1 by default, so it takes a number, but got nan"),
        ("grid:\n  seeds: [0, 1]", "line 2: parameter seeds of toy is [0, 1] by default, so it takes a list,"),
        ("grid:\n  steps: [1, 2, 1]", "line 2: parameter steps has the value 1 twice"),
        ("grid:\n  steps: 1\n  steps: 2", "line 3: steps is there twice in grid"),
        ("grid:\n  profile: [cpu, gpu]", "line 2: the profile is chosen with --profile"),
        ("zip:\n- steps: 1-3\n  rate: [1, 2]", "line 2: what is zipped moves together, but steps has 3 val"),
        ("grid: {steps: 1}\nzip:\n- steps: 2", "line 3: parameter steps is set in two of seeds, grid and zip"),
        ("seeds: 0\ngrid:\n  seeds: [[1]]", "line 3: parameter seeds is set in two of seeds, grid and zip"),
        ("seeds: -1", "line 1: seeds '-1' are no seeds: write a number, a range such as 0-4, or 0,2,5-7"),
        ("seeds: 4-0", "line 1: seeds '4-0' are no seeds"),
        ("seeds: [1, 1]", "line 1: seeds '1,1' name a seed twice"),
        ("seeds: true", "line 1: seeds 'True' are no seeds"),
        ("seeds: 0\nprofiles:\n  laptop: {seeds: 1}", "line 3: unknown entry of profiles 'laptop': Known: smoke, cpu"),
        ("seeds: 0\nprofiles:\n  gpu:\n    grid:\n      stepps: 1", "line 5: unknown parameter of toy 'stepps'"),
        ("seeds: 0\nprofiles:\n  gpu: {grid: {steps: ten}}", "line 3: parameter steps of toy"),
        ("seeds: 0-9999999999", "line 1: seeds '0-9999999999' are 10000000000 seeds or more, and a sweep has at most"),
        ("seeds: [0-9000, 9001-18000]", "line 1: seeds '0-9000,9001-18000' are 18001 seeds or more"),
        ("grid:\n  steps: 0-9999999999", "line 2: parameter steps has the values 0-9999999999, more than 10000"),
        ("grid:\n  steps: !few 3", "line 2: not YAML: tags such as !!int are not read"),
        ("grid:\n  steps: &a 3\n  rate: *a", "line 3: not YAML: aliases such as *a are not read"),
        ("grid: {steps: 1:30}", "line 1: parameter steps of toy is 3 by default, so it takes an integer, but got '1"),
        ("grid: {[1]: 2}", "line 1: unknown parameter of toy '[1]'"),
        ("grid: {steps: {[1]: 2}}", "line 1: found unhashable key"),
        ("seeds: 0-99\ngrid: {steps: 1-99}\nzip:\n- note: [a, b]", "the grid of toy has 100 x 99 x 2 points, more"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_line_before_anything_starts(toy, tmp_path, capsys, text, message):
    toy().with_name("sweep.yaml").write_text(text)
    assert cli.main(["sweep", "toy"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy"], "toy has no"),
        (["toy", "--seeds", "x"], "seeds 'x' are no seeds"),
        (["toy", "--seeds", "0", "--profile", "gpuu"], "did you mean 'gpu'?"),
        (["toy", "--seeds", "0", "--workers", "0"], "'0' is no number from 1 on"),
        (["toy", "--seeds", "0", "--workers", "2", "--scheduler", "tcp://x:1"], "--workers 2 is for workers here"),
        (["tony", "--seeds", "0"], "unknown paper 'tony'"),
        (["--seeds", "3-1"], "seeds '3-1' are no seeds"),
        (["toy", "--seeds", "0-9999999999"], "are 10000000000 seeds or more, and a sweep has at most 10000 points"),
        (["toy", "--seeds", "9" * 5000], "are no seeds"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(toy, tmp_path, capsys, arguments, message):
    toy()
    try:
        status = cli.main(["sweep", *arguments])
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_notebook_without_seeds_or_profile_says_so(toy):
    path = toy()
    whole = path.read_text()
    path.write_text(whole.replace("seeds = [0, 1]", "sheets = [0, 1]"))
    with pytest.raises(UsageError, match=r"line 1: unknown parameter of toy 'seeds': did you mean 'sheets'"):
        points(path, "seeds: 0")
    path.write_text(whole.replace('profile = \\"cpu\\"', 'size = \\"cpu\\"'))
    with pytest.raises(UsageError, match=r"unknown parameter of toy 'profile'"):
        points(path, "seeds: 0")


PAPERS = papers.discover(Path(__file__).parents[1] / "papers")


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("profile", papers.PROFILES)
def test_every_paper_can_be_swept(name, profile):
    found = sweep_grid.points(PAPERS[name], profile)
    assert len({sweep._name(point) for point in found}) == len(found) > 0
    assert {point["profile"] for point in found} == {profile}


# --- points ---


def executed(point: sweep.Point, mark: str | None = None) -> Path:
    """A point's notebook as an execution would leave it."""
    stamp = {"mark": mark or point.mark, "parameters": point.parameters}
    point.folder.mkdir(parents=True, exist_ok=True)
    point.executed.write_bytes(execution._stamped(nbformat.read(point.notebook, 4), stamp))
    return point.executed


def placed(path: Path, **parameters) -> sweep.Point:
    return sweep.place(papers.read_paper(path), [{"profile": "cpu", **parameters}])[0]


def test_a_point_says_how_far_it_has_come(toy):
    path = toy()
    point = placed(path, steps=5)
    assert sweep.state(point) == LEFT
    point.folder.mkdir(parents=True)
    (point.folder / "begun").touch()
    assert sweep.state(point) == RESUMED
    notebook = executed(point)
    assert sweep.state(point) == DONE
    whole = notebook.read_text()
    for damaged in (whole[: len(whole) // 2], "", whole.replace("print(steps)", "print(9)"), "[]", "{}"):
        notebook.write_text(damaged)
        assert sweep.state(point) == REPAIRED, damaged
    executed(point, mark="of other code")
    assert sweep.state(point) == OUTDATED


def test_a_mark_follows_parameters_code_and_published_numbers_and_nothing_else(toy, monkeypatch):
    path = toy()
    mark = placed(path, steps=5).mark
    assert placed(path, steps=6).mark != mark
    (path.parent / "published.csv").write_text("item\n")
    published = placed(path, steps=5).mark
    (path.parent / "figure-4a.png").touch()
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source += " More text."
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(notebook, path)
    assert placed(path, steps=5).mark == published != mark
    notebook.cells[2].source += "\n"
    nbformat.write(notebook, path)
    assert placed(path, steps=5).mark != published
    monkeypatch.setattr(sweep, "version", lambda: "other")
    assert placed(path, steps=5).code == "other"


def test_a_version_follows_the_code_that_numbers_depend_on_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.swarmbook, "__file__", str(tmp_path / "__init__.py"))
    code = ("__init__.py", "__main__.py", "cli.py", "config.py", "methods/sync.py", "reproduction/report.py")
    for name in code:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before")
    version = sweep.version.__wrapped__
    before, counted = version(), []
    for name in code:
        (tmp_path / name).write_text("after")
        if version() != before:
            counted.append(name)
        (tmp_path / name).write_text("before")
    assert counted == ["__init__.py", "config.py", "methods/sync.py"]


def test_names_of_points_are_readable_and_their_own():
    assert sweep._name({"profile": "cpu", "seeds": 3, "layout": "6x4"}) == "seeds=3,layout=6x4"
    odd = [sweep._name({"data": text}) for text in ("a/b", "a_b", "a b", "../x", "x" * 200, "x" * 201, "é")]
    assert len(set(odd)) == len(odd)
    assert all(re.fullmatch(r"[\w.=,+-]+", name) and len(name) < 100 for name in odd)


@pytest.mark.parametrize(
    ("texts", "merged"),
    [
        (["0.10 ± 0.02"], "0.10 ± 0.02"),
        (["0.10 ± 0.02", "0.30 ± 0.02", "-0.2 ± 0.02"], "-0.2 to 0.30 ± 0.02"),
        (["5 % 1.5; 10 % −2", "5 % 1.7; 10 % 3e-4"], "5 % 1.5 to 1.7; 10 % −2 to 3e-4"),
        (["not reached", "1.5"], "not reached; 1.5"),
        (["yes", "yes"], "yes"),
        (["seed2 9", "seed2 10"], "seed2 9 to 10"),
    ],
)
def test_numbers_of_several_points_become_ranges(texts, merged):
    assert sweep_summary.spread(texts) == merged


def test_dask_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[cluster\]'"), sweep.cluster(None, 1):
        pass


def test_a_worker_without_the_files_or_with_other_code_fails_and_says_so(toy):
    point = placed(toy(), steps=5)
    strange = dataclasses.replace(point, code="0123")
    assert "has other code of swarmbook" in sweep.execute(strange, {}, False).error
    strange = dataclasses.replace(point, notebook=point.notebook.with_name("gone.ipynb"))
    assert "a file system that all workers share" in sweep.execute(strange, {}, False).error
    assert not point.folder.exists()


def test_a_point_that_another_sweep_executes_is_left_to_it(toy):
    """And is found done, once that has finished."""
    point = placed(toy(), steps=5)
    point.folder.mkdir(parents=True)
    with FileLock(point.folder / ".lock"):
        assert sweep.execute(point, {}, wait=False).state == HELD
    executed(point)
    assert sweep.execute(point, {}, wait=False).state == DONE
    assert not (point.folder / "begun").exists()


def test_who_holds_a_point_is_told_at_once_and_then_again(toy, capsys, monkeypatch):
    """Where the sweep was started, whatever worker it is that waits."""
    distributed = pytest.importorskip("distributed", reason="comes with the extra cluster")
    monkeypatch.setattr(locks, "TELL", 0.1)
    monkeypatch.setattr(execution, "execute", lambda *_, **__: None)
    point, said = placed(toy(), steps=5), []
    with ExitStack() as held:
        held.enter_context(locks.lock(point.lock))

        def told(*_):
            said.extend(capsys.readouterr().err.splitlines())
            if len(said) >= 2:
                held.close()

        with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
            (outcome,) = sweep.sweep([point], client, {}, told)
    assert outcome.state == EXECUTED and len(said) == 2
    for line in said:
        assert line.startswith(f"waiting for point {point.name}, which is held by process {os.getpid()} on ")
        assert line.endswith("(what it has finished is kept), or sweep into another folder with --output.")


def test_a_folder_that_cannot_be_written_is_told_before_anything_starts(toy, tmp_path, capsys):
    toy()
    (tmp_path / "file").touch()
    assert cli.main(["sweep", "toy", "--seeds", "0", "--output", str(tmp_path / "file")]) == 1
    assert "Not a directory; name another folder with --output" in capsys.readouterr().err


def answered(port: int, wrap: Callable[[socket.socket], socket.socket]) -> bytes:
    """What a port answers to someone without the certificate of its cluster."""
    with socket.create_connection(("127.0.0.1", port), timeout=300) as plain:
        try:
            spoken = wrap(plain)
            spoken.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return spoken.recv(100)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_nobody_else_can_talk_to_the_cluster_of_a_sweep():
    """Every port that its processes listen on ends a conversation in which no certificate is shown."""
    psutil = pytest.importorskip("psutil", reason="comes with the extra cluster")
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    alert = b"\x15\x03"  # TLS's way to say no

    def listened() -> set:
        us = psutil.Process()
        found = [port for one in (us, *us.children(recursive=True)) for port in one.net_connections("tcp")]
        return {port.laddr for port in found if port.status == psutil.CONN_LISTEN}

    before = listened()  # by earlier tests in this process
    with sweep.cluster(None, 2) as client:
        assert client.submit(os.getpid).result() != os.getpid()
        listening = listened() - before
        assert len(listening) >= 3 and {address.ip for address in listening} == {"127.0.0.1"}
        for _, port in listening:
            assert answered(port, stranger.wrap_socket) == b""
            assert answered(port, lambda plain: plain)[:2] in (b"", alert)
        assert client.submit(os.getpid).result() != os.getpid()


@pytest.mark.parametrize(
    ("address", "encrypted"), [("carrier-pigeon://1", False), ("tls://127.0.0.1:1", False), ("tcp://127.0.0.1:1", True)]
)
def test_nobody_at_an_address_is_told(address, encrypted):
    """Nor is anybody asked over TLS without a certificate, or without TLS where dask's settings ask for it."""
    dask = pytest.importorskip("dask", reason="needs the extra cluster")
    told = rf"no scheduler answers at '{address}' .*: give the address that `dask scheduler` prints.* settings of TLS"
    with dask.config.set({"distributed.comm.require-encryption": encrypted}), pytest.raises(UsageError, match=told):
        sweep.cluster(address, 1).__enter__()


# --- sweeps that train ---

PARAMETERS = 'profile = "cpu"  # smoke | cpu | gpu | paper\nseeds = 0  # how many'
TRAINING = """\
import os, time
from swarmbook.training import trainer
from swarmbook.analysis.claims import Claims, decided
from swarmbook.config import run_config
from swarmbook.runs import run
from swarmbook.records.store import Store
trainer.CHECKPOINT_SECONDS = 0.2
put, step = Store.put, trainer.Pack.advance
def put_and_tell(store, key, config, *rest):
    put(store, key, config, *rest)
    with open(os.environ["TRAINED"], "a") as log:
        log.write(f"{config['seed']}\\n")
def advance(pack):
    step(pack)
    time.sleep(float(os.environ.get("PAUSE", 0)))
Store.put, trainer.Pack.advance = put_and_tell, advance
base = {"data": "stories_toy", "width": 8, "heads": 2, "hidden": 8, "sequence": 8, "stages": 2}
base |= {"microbatches": 1, "steps": 40, "evaluate_every": 10, "log_every": 10, "tokenizer": "bytes"}
configs = [run_config(**base, seed=s, held_out=4 + s) for s in range(seeds)]  # no two share a pack, nor its rounding
"""
CLAIMS = """\
losses = run(configs).final()["value"]
claims = Claims()
claims.add("T1", "losses are finite", "yes", ", ".join(f"{loss:.6f}" for loss in losses), decided(losses.notna().all()))
claims
"""


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A paper that trains one run a seed; returns how to sweep it into a folder of its own, as a process."""
    path = tmp_path / "papers" / "tiny" / "tiny.ipynb"
    path.parent.mkdir(parents=True)
    cells = [
        new_markdown_cell("# The tiny paper"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(TRAINING),
        new_code_cell(CLAIMS),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    monkeypatch.setenv("SWARMBOOK_PAPERS", str(path.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def begin(name: str, *arguments: str, pause: float = 0.0, **options) -> subprocess.Popen:
        return start(tmp_path / name, "tiny", *arguments, environment=tiny(tmp_path / name, pause), **options)

    return begin


def tiny(folder: Path, pause: float, **more: str) -> dict[str, str]:
    """The environment of a sweep of the tiny paper whose steps last so many seconds longer."""
    return surroundings(folder, TRAINED=str(folder / "trained"), PAUSE=str(pause), **more)


def trained(folder: Path) -> Counter:
    """How often the run of each seed was trained to its end."""
    return Counter((folder / "trained").read_text().split())


def results(folder: Path) -> dict[str, list]:
    """All that the notebooks of a sweep show but progress bars, and the runs in its store."""
    stored = {key: record.metrics.to_json() for key, record in records(folder).items()}
    return {**notebooks(folder), "store": stored}


def encrypted(folder: Path) -> Path:
    """A folder of settings with which dask talks over TLS alone, as papers/README.md shows them; a certificate too."""
    from distributed.security import Security

    made = Security.temporary()
    folder.mkdir()
    certificate, key, settings = folder / "dask.pem", folder / "dask.key", folder / "tls.yaml"
    certificate.write_text(made.tls_ca_file)
    key.write_text(made.tls_client_key)
    shown = re.search(r"```yaml\n(.*?)```", (ROOT / "papers" / "README.md").read_text(), re.DOTALL)[1]
    settings.write_text(shown.replace("/shared/dask.pem", str(certificate)).replace("/shared/dask.key", str(key)))
    return settings


def training_now(folder: Path) -> bool:
    """Whether a run is in the middle: some of its steps are on disk."""
    return any(mark.exists() for mark in folder.glob("store/partial/*/checkpoint.json"))


@linux
def test_whatever_is_killed_each_run_is_trained_once_and_the_results_are_the_same(training, tmp_path):
    """An undisturbed sweep; one killed twice at random; one on a cluster over TLS that loses a worker in mid-run."""
    calm, killed, wide = tmp_path / "calm", tmp_path / "killed", tmp_path / "wide"
    everything = training("calm", "--seeds", "0-1", "--workers", "1")
    text = said(everything)
    assert "tiny at smoke, 2 points: 2 left\n" in text
    assert re.search(r"tiny: 2 done, 0 failed, 0 left; took \d+ s", text)
    assert trained(calm) == {"0": 1, "1": 1}
    expected = results(calm)

    rng = random.Random()
    for _ in range(2):
        process = training("killed", "--seeds", "0-1", "--workers", "2", pause=0.05, start_new_session=True)
        until(lambda sweep=process: training_now(killed) or sweep.poll() is not None, "a run in training")
        time.sleep(rng.uniform(0, 2))
        kill_all(process, killed)
    text = said(training("killed", "--seeds", "0-1", "--workers", "2"))
    assert "2 points: 2 left" not in text and "2 done, 0 failed, 0 left" in text
    assert max(trained(killed).values()) == 1
    assert results(killed) == expected

    environment = tiny(wide, 0.05, DASK_CONFIG=str(encrypted(wide)))
    with ExitStack() as started:

        def dask(*arguments: str | Path) -> subprocess.Popen:
            command = [sys.executable, "-m", "dask", *arguments]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            started.callback(process.communicate)
            started.callback(process.kill)
            return process

        where = wide / "scheduler.json"
        dask(
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--protocol",
            "tls",
            "--no-dashboard",
            "--scheduler-file",
            where,
        )
        until(where.exists, "a scheduler")
        address = json.loads(where.read_text())["address"]
        assert address.startswith("tls://127.0.0.1:")
        each = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", wide]
        workers = [dask("worker", address, *each) for _ in range(2)]
        process = start(wide, "tiny", "--seeds", "0-1", "--scheduler", address, environment=environment)
        until(lambda: training_now(wide), "a run in training")
        workers[0].kill()
        assert "2 done, 0 failed, 0 left" in said(process)
    assert max(trained(wide).values()) == 1
    assert results(wide) == expected
    until(lambda: not processes(wide), "all kernels gone")


@linux
def test_ctrl_c_stops_all_at_once_and_the_next_sweep_goes_on(training, tmp_path):
    folder = tmp_path / "stopped"
    process = training("stopped", "--seeds", "0", pause=0.5, start_new_session=True)
    until(lambda: training_now(folder), "a run in training")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of its processes
    text = said(process, 130)
    assert "interrupted; what was trained is kept" in text and "Traceback" not in text
    until(lambda: not processes(folder), "all processes gone")
    assert not list(folder.glob("sweeps/*/*/tiny.ipynb"))
    text = said(training("stopped", "--seeds", "0"))
    assert "1 point: 1 resumed\n" in text and "1 done, 0 failed, 0 left" in text
    assert trained(folder) == {"0": 1}


@pytest.fixture
def disk(tmp_path):
    """A file system of its own in a folder; returns how to give it room (`size=4k`) or make it read-only (`ro`)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    try:
        subprocess.run(mounted, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"must be allowed to mount a file system: {error}")
    yield lambda option: subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)
    subprocess.run(["umount", folder], check=True)


def test_a_store_on_a_disk_that_is_full_or_read_only_is_told_and_the_next_sweep_goes_on(training, disk, tmp_path):
    point = sweep.place(papers.discover()["tiny"], [{"profile": "smoke", "seeds": 1}], tmp_path / "sweeps")[0]
    environment = {"SWARMBOOK_STORE": str(tmp_path / "disk/store"), "TRAINED": str(tmp_path / "trained"), "PAUSE": "0"}

    def execute() -> sweep.Outcome:
        return sweep.execute(point, environment, wait=True)

    for option, why in (("size=4k", ""), ("ro", "Read-only file system")):  # torch says of the first what it likes
        disk(option)
        outcome = execute()
        assert outcome.state == FAILED and sweep.state(point) == LEFT
        assert re.search(rf"tiny, code cell 3 of 3: StoreError: cannot write .*{why}. Make room", outcome.error)
        disk("rw")
    disk("size=8m")
    assert execute().state == EXECUTED and sweep.state(point) == DONE
    assert trained(tmp_path) == {"0": 1}
    disk("ro")
    shutil.rmtree(point.folder)
    assert execute().state == EXECUTED  # what is finished can be read
    assert trained(tmp_path) == {"0": 1}


def test_points_on_a_full_disk_are_told_and_the_next_sweep_goes_on(toy, disk, tmp_path):
    point = sweep.place(papers.read_paper(toy()), [{"profile": "smoke", "steps": 5}], tmp_path / "disk")[0]
    point.folder.parent.mkdir(parents=True)
    disk("size=8k")
    outcome = sweep.execute(point, {}, wait=True)
    told = "No space left on device; make room or make it writable, or choose another folder"
    assert outcome.state == FAILED and f"cannot write {point.folder}: {told}" in outcome.error
    assert sweep.state(point) == RESUMED
    with pytest.raises(errors.NotebookError, match=told):
        sweep_summary.collect(papers.read_paper(point.notebook), [point], {})
    disk("size=8m")
    assert sweep.execute(point, {}, wait=True).state == EXECUTED and sweep.state(point) == DONE
    assert sweep_summary.collect(papers.read_paper(point.notebook), [point], {}).claims == ()


CLOCK = """\
import os, time
real = time.time
time.time = lambda: real() + 36_000 * (-1) ** os.getpid() * os.path.exists(os.environ["JUMP"])  # ten hours
"""


@linux
def test_two_sweeps_at_once_share_points_and_runs_while_clocks_jump(training, tmp_path):
    """Those of one folder, points; all, the store. Files then come from the past and the future."""
    folder, other = tmp_path / "shared", tmp_path / "other"
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock/sitecustomize.py").write_text(CLOCK)
    clock = {"JUMP": str(tmp_path / "jump"), "PYTHONPATH": f"{tmp_path / 'clock'}:{os.environ.get('PYTHONPATH', '')}"}
    environment = tiny(folder, 0.05, **clock)
    command = ["tiny", "--seeds", "0-1", "--workers", "1"]
    sweeps = [start(where, *command, environment=environment) for where in (folder, folder, other)]
    until(lambda: training_now(folder), "a run in training")
    (tmp_path / "jump").touch()
    for process in sweeps:
        assert "2 done, 0 failed, 0 left" in said(process)
    assert trained(folder) == {"0": 1, "1": 1}
    points = [notebooks(where) for where in (folder, other)]
    assert points[0] == points[1] and len(points[0]) == 3

    rng = random.Random()
    for path in folder.rglob("*"):
        os.utime(path, (time.time() + rng.uniform(-1, 1) * 3e8,) * 2)
    text = said(start(folder, *command, environment=environment))
    assert "2 points: 2 done\n" in text and trained(folder) == {"0": 1, "1": 1}


def test_points_that_fail_are_listed_and_tried_again_and_damaged_ones_repaired(toy, tmp_path, capsys):
    path = toy("toy", ("assert steps != 4, 'four is too many'", "table 2"), (CLAIM, ""))
    path.with_name("sweep.yaml").write_text("grid: {steps: 3-4}")
    command = ["sweep", "toy", "--profile", "smoke", "--workers", "1"]
    assert cli.main(command) == 1
    told = capsys.readouterr()
    assert "toy at smoke, 2 points: 2 left" in told.out and "toy: 1 done, 1 failed, 0 left" in told.out
    assert "failed    steps=4: toy, code cell 2 of 3 (table 2): AssertionError: four is too many" in told.err
    assert (tmp_path / "runs/sweeps/toy-smoke/steps=4/toy.failed.ipynb").exists()

    done = tmp_path / "runs/sweeps/toy-smoke/steps=3/toy.ipynb"
    assert {path.name for path in done.parent.iterdir()} == {"toy.ipynb"}
    done.write_text(done.read_text().replace("toys work", "toys play"))
    path.with_name("sweep.yaml").write_text("grid: {steps: [3, 5]}")
    assert cli.main(command) == 0
    told = capsys.readouterr()
    assert "toy at smoke, 2 points: 1 repaired, 1 left" in told.out
    assert "repaired  steps=3" in told.out and "is not as it was written" in told.out
    rows = next(line for line in told.out.splitlines() if line.startswith("T1")).split()
    assert rows == ["T1", "toys", "work", "holds", "2", "3", "3", "to", "5"]
    collected = nbformat.read(tmp_path / "runs/sweeps/toy-smoke/sweep.ipynb", 4)
    assert "3 (holds)" in str(collected.cells[-1].outputs) and "5 (holds)" in str(collected.cells[-1].outputs)

    assert cli.main(command) == 0  # nothing is left: no cluster is started
    assert "toy at smoke, 2 points: 2 done\n" in capsys.readouterr().out
