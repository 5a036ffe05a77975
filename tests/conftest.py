"""Toy papers, so that the outer parts can be tested without training anything; one thread to train; a browser."""

import multiprocessing.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import nbformat
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Processes of tests, and what they start, share the cores. To be said before torch is loaded.
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

multiprocessing.util.get_temp_dir()  # of sockets, before a test changes where temporary files go

PARAMETERS = """\
profile = "cpu"  # smoke | cpu | gpu | paper
seeds = [0, 1]  # one run each
rate = 0.1
steps = 3
note = "none"  # none | some ...
data = ""
device = "auto"
"""
FIGURE = """\
import matplotlib.pyplot as plt
plt.plot([0, steps], [0, rate])
plt.show()
"""
CLAIM = """\
class Claims:
    def _repr_mimebundle_(self, include=None, exclude=None):
        row = {"id": "T1", "text": "toys work", "paper": "3", "ours": str(steps), "verdict": "holds"}
        return {"text/plain": "T1 holds", "application/vnd.swarmbook.claims+json": [row]}
Claims()
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Numbers of one thread, which are the same each time and wait for nobody."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def new_pack(tmp_path: Path, request: pytest.FixtureRequest) -> Callable:
    """Makes a pack of runs, by default of one with the module's `TINY` sizes, and trains it some steps."""
    from swarmbook.config import run_config
    from swarmbook.records.store import Store
    from swarmbook.training import trainer

    def make(*configs, steps=0, **fields):
        configs = configs or [run_config(**{**request.module.TINY, **fields})]
        pack = trainer.Pack(configs, Store(tmp_path).progress([c.key for c in configs]), "cpu")
        for _ in range(steps):
            pack.advance()
        return pack

    return make


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes `papers/<name>/<name>.ipynb` below tmp_path: a parameters cell, then (source, tag) pairs.

    Kernels that the process of the test starts are forks; those of commands start as everybody's do.
    """
    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", forks.kernel)
    folder = tmp_path / "papers"
    folder.mkdir()
    monkeypatch.setenv("SWARMBOOK_PAPERS", str(folder))

    def make(name: str = "toy", *cells: tuple[str, str]) -> Path:
        path = folder / name / f"{name}.ipynb"
        path.parent.mkdir()
        notebook = new_notebook(
            cells=[
                new_markdown_cell(f"# The {name} paper\nIts claim."),
                new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            ]
        )
        for source, tag in cells or [(FIGURE, "figure 4a"), ("print(steps)", "table 2"), (CLAIM, "")]:
            notebook.cells.append(new_code_cell(source, metadata={"tags": [tag]} if tag else {}))
        nbformat.write(notebook, path)
        return path

    return make


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a short name, of processes that are started as well."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of all papers, as a folder; built by the first process of pytest that asks for it."""
    from swarmbook.reproduction import papers, report

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "index.html").exists():
            known = papers.records(Path(__file__).parents[1] / "papers")
            report.build(list(known.values()), folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Chromium, the system's or Playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[test]'")
    system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        if not system and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no browser: apt install chromium, or .venv/bin/playwright install --with-deps chromium")
        root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
        browser = driver.chromium.launch(executable_path=system, args=root)
        yield browser
        browser.close()
