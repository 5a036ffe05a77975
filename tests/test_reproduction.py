"""The papers' own sweeps, at the smallest profile: killed twice at random and resumed, they end as if nothing had been.

The ordinary suite takes a part of one paper and two seeds. All papers over five seeds take most of an hour on two
cores: they are run where SWARMBOOK_SWEEPS is "all", as in the weekly job. Runs may end in other packs after a kill, and
numbers of a single replica are rounded differently then: runs are compared as `swarmbook verify` does.
"""

import os
import random
import shutil
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from sweeps import kill_all, linux, notebooks, records, said, start

from swarmbook.reproduction import papers, verify

PAPERS = papers.discover(Path(__file__).parents[1] / "papers")
HOUR = 3600.0
everything = pytest.mark.skipif(
    os.environ.get("SWARMBOOK_SWEEPS") != "all", reason='takes long: run it with SWARMBOOK_SWEEPS="all" pytest'
)


def differences(before: Path, after: Path) -> list[str]:
    """What two folders of sweeps do not have in common: runs, tables, and text that notebooks show."""
    found = []
    was, now = records(before), records(after)
    found += [f"{key} is there only once" for key in was.keys() ^ now.keys()]
    for key in was.keys() & now.keys():
        if "packed" in was[key].provenance:
            one = verify.compare(was[key], now[key])
            if not one.agrees:
                found.append(f"run {key}: {one.verdict} {one.where}")
        else:
            both = was[key].metrics, now[key].metrics
            left, right = (table.drop(columns=verify.CLOCKED, errors="ignore") for table in both)
            try:
                pd.testing.assert_frame_equal(left, right, rtol=verify.TOLERANCE)
            except AssertionError as error:
                found.append(f"table {key}: {error}")
    was, now = (
        {name: verify._shown({"outputs": outputs}) for name, outputs in notebooks(folder).items()}
        for folder in (before, after)
    )
    assert was, f"no notebooks in {before}"
    found += [f"{name} is there only once" for name in was.keys() ^ now.keys()]
    for name in was.keys() & now.keys():
        found += [f"{name}: {a!r} became {b!r}" for a, b in verify._differences(was[name], now[name])]
    return found


def reproduced(name: str, seeds: str, folder: Path) -> None:
    """Sweep a paper undisturbed, and again with two kills at random; the results must be the same."""
    calm, killed = folder / "calm", folder / "killed"
    command = [name, "--seeds", seeds, "--workers", "2"]
    began = time.monotonic()
    text = said(start(calm, *command), patience=HOUR)
    lasted = time.monotonic() - began
    print(f"{name}: undisturbed in {lasted:.0f} s: {text.splitlines()[0]}")
    rng = random.Random()
    for number in (1, 2):
        process = start(killed, *command, start_new_session=True)
        moment = rng.uniform(0.1, 0.35) * lasted
        time.sleep(moment)
        assert process.poll() is None, process.communicate()[0]
        kill_all(process, killed)
        print(f"{name}: kill {number} after {moment:.0f} s")
    began = time.monotonic()
    text = said(start(killed, *command), patience=HOUR)
    print(f"{name}: resumed, {time.monotonic() - began:.0f} s: {text.splitlines()[0]}")
    print(f"{name}: {len(records(calm))} runs and tables, {len(notebooks(calm))} notebooks")
    assert differences(calm, killed) == []


@linux
def test_a_sweep_that_was_killed_twice_ends_as_if_undisturbed(tmp_path, monkeypatch):
    """Of NoLoCo's notebook up to its second table, which trains most of its runs."""
    home, folder = PAPERS["noloco"].notebook.parent, tmp_path / "papers" / "noloco"
    folder.mkdir(parents=True)
    content = nbformat.read(PAPERS["noloco"].notebook, 4)
    tags = [cell.metadata.get("tags", []) for cell in content.cells]
    kept = next(number for number, tag in enumerate(tags) if "table 2" in tag)
    claims = next(number for number, tag in enumerate(tags) if "claims" in tag)
    content.cells = [*content.cells[: kept + 3], content.cells[claims]]
    nbformat.write(content, folder / "noloco.ipynb")
    for table in home.glob("*.csv"):
        shutil.copy(table, folder)
    monkeypatch.setenv("SWARMBOOK_PAPERS", str(folder.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    reproduced("noloco", "0-1", tmp_path)
    assert len(records(tmp_path / "calm")) > 40


@everything
@linux
@pytest.mark.parametrize("name", PAPERS)
def test_the_sweep_of_every_paper_survives(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    reproduced(name, "0-4", tmp_path)
