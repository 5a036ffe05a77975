"""Who reads a notebook cannot damage its record: copies to work in, and what was recorded is still shown."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest

from swarmbook import cli
from swarmbook.config import run_config
from swarmbook.errors import UsageError
from swarmbook.reproduction import execution, lineage, papers, publishing, reading

TINY = dict(data="stories_toy", tokenizer="bytes", width=8, heads=2, hidden=8, sequence=8, stages=2, microbatches=1)
TINY |= dict(evaluate_every=2, log_every=2, held_out=4, steps=2)
TRAINING = f"""\
from swarmbook.config import run_config
from swarmbook.runs import run
runs = run([run_config(**{TINY})], device="cpu", show=False)
runs.final()
"""
CLAIM = """\
from swarmbook.analysis.claims import Claims
claims = Claims()
claims.add("T1", "toys work", 3, steps, "holds")
claims
"""
PUBLISHED = """\
from swarmbook.analysis.claims import published
print(published("toy")["value"].sum())
"""


@pytest.fixture
def recorded(toy, tmp_path, monkeypatch) -> papers.Paper:
    """A toy paper with a published number, one recorded run and its seal, in a git repository."""
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))
    path = toy("toy", (TRAINING, "table 1"), (PUBLISHED, "table 2"), (CLAIM, ""))
    path.with_name("published.csv").write_text("item,series,quantity,value,unit,source,note\ntable 2,all,x,7,s,p,\n")
    assert cli.main(["run", "--record"]) == 0
    git("init", "-q", at=path)
    git("add", "-A", at=path)
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "record", at=path)
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "empty"))
    return papers.read_paper(path)


def git(*arguments: str, at: Path) -> None:
    subprocess.run(["git", "-C", str(at.parent), *arguments], check=True)


def spoil(paper: papers.Paper) -> None:
    """What an automatic save in the middle of an execution at another profile leaves."""
    content = json.loads(paper.notebook.read_text())
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"]).replace('profile = "cpu"', 'profile = "smoke"')
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    paper.notebook.write_text(json.dumps(content))


def test_the_committed_notebooks_show_what_was_sealed():
    for paper in papers.records().values():
        assert lineage.shown(paper) == lineage.seal_of_shown(paper.notebook.read_bytes()), paper.command + " --record"


def test_what_jupyterlab_notes_about_cells_and_text_breaks_no_seal(recorded):
    content = json.loads(recorded.notebook.read_text())
    content["metadata"]["kernelspec"]["display_name"] = "another"
    for cell in content["cells"]:
        cell["metadata"]["scrolled"] = True
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
        else:
            cell["source"] = ["my own words"]
    assert lineage.seal_of_shown(json.dumps(content).encode()) == lineage.shown(recorded)
    content["cells"][-1]["outputs"] = []
    assert lineage.seal_of_shown(json.dumps(content).encode()) != lineage.shown(recorded)


def test_list_report_and_verify_go_on_with_what_was_recorded(recorded, tmp_path, capsys):
    assert cli.main(["list", "toy"]) == 0
    before = capsys.readouterr()
    assert before.err == "" and "1 claim: holds 1" in before.out
    spoil(recorded)
    assert cli.main(["list", "toy"]) == 0
    after = capsys.readouterr()
    assert after.out == before.out
    told = f"{recorded.notebook} has changed since it was recorded (its profile is smoke now); what was recorded is"
    assert after.err.startswith(told) and after.err.count("\n") == 1
    for arguments in (["report", "--output", str(tmp_path / "site")], ["verify", "--all"]):
        assert cli.main(arguments) == 0, arguments
        assert capsys.readouterr().err.startswith(f"{arguments[0]}: toy\n{told}")
    assert "T1" in (tmp_path / "site" / "index.html").read_text()
    remedy = shlex.split(after.err.partition("To restore it: ")[2])
    subprocess.run(remedy, check=True, cwd=recorded.notebook.parent)
    assert cli.main(["list", "toy"]) == 0
    assert capsys.readouterr() == before


def test_without_a_commit_of_what_was_recorded_it_is_said_and_the_notebook_is_shown_as_it_is(recorded, capsys):
    spoil(recorded)
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "by accident", at=recorded.notebook)
    assert cli.main(["list"]) == 0
    said = capsys.readouterr()
    assert "git's last commit does not hold what was recorded" in said.err
    assert said.err.strip().endswith("To record it anew: swarmbook run toy --record")
    assert "toy    none yet" in said.out


def test_a_copy_shows_what_was_recorded_and_leaves_the_record_alone(recorded, tmp_path):
    before = recorded.notebook.read_bytes()
    spoil(recorded)
    copy = reading.copy(recorded, None, tmp_path / "open")
    assert copy == tmp_path / "open" / "toy.ipynb" and copy.read_bytes() == before
    assert reading.copy(recorded, None, tmp_path / "open") == copy  # nobody has worked in it
    copy.write_text("my work")
    second = reading.copy(recorded, None, tmp_path / "open")
    assert second.name == "toy-2.ipynb" and second.read_bytes() == before and copy.read_text() == "my work"


def test_a_copy_at_another_profile_is_its_record_or_else_unexecuted(recorded, tmp_path):
    copy = reading.copy(recorded, "smoke", tmp_path)
    cells = nbformat.read(copy, 4).cells
    assert copy.name == "toy.smoke.ipynb"
    assert not any(cell.get("outputs") for cell in cells)
    assert any('profile = "smoke"' in cell.source for cell in cells)
    smoke = papers.at(recorded, "smoke")
    publishing.commit(smoke, execution.execute(recorded, {"profile": "smoke"}, tmp_path).notebook)
    assert reading.copy(recorded, "smoke", tmp_path / "other").read_bytes() == smoke.notebook.read_bytes()
    with pytest.raises(UsageError, match="unknown profile of toy 'large'"):
        reading.copy(recorded, "large", tmp_path)


def test_a_notebook_works_wherever_it_lies(recorded, tmp_path, monkeypatch):
    """Executed in a folder with nothing beside it, it finds published numbers and recorded runs by themselves."""
    import papermill

    copy = reading.copy(recorded, None, tmp_path / "open")
    monkeypatch.chdir(tmp_path)
    done = papermill.execute_notebook(str(copy), str(tmp_path / "done.ipynb"), progress_bar=False)
    assert done.cells[-2].outputs[0].text == "7\n"
    trained = list((tmp_path / "empty").glob("*.parquet"))
    assert trained == [], f"{run_config(**TINY).key} is recorded and was trained again"


def test_open_starts_jupyterlab_on_the_copy(recorded, tmp_path):
    command = [sys.executable, "-m", "swarmbook", "open", "toy", "--no-browser", "--output", str(tmp_path / "open")]
    command += ["--jupyter=--allow-root", "--jupyter=--port=18890"]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "settings"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    late = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
    late.start()
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "/lab/tree/toy.ipynb" in line:
                break
        assert said[0] == f"copy      {tmp_path / 'open' / 'toy.ipynb'}\n"
        assert "/lab/tree/toy.ipynb" in said[-1], "".join(said)
    finally:
        late.cancel()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_open_refuses_what_does_not_exist_before_anything_starts(recorded, tmp_path, capsys):
    for arguments in (["toi"], ["toy", "--profile", "large"]):
        assert cli.main(["open", *arguments, "--output", str(tmp_path / "open")]) == 2
    assert "did you mean 'toy'?" in capsys.readouterr().err
    assert not (tmp_path / "open").exists()
