"""Verification: what was tampered with is found and named, and what is sound passes."""

import json
import math
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from swarmbook import cli
from swarmbook.config import run_config
from swarmbook.records.computed import computed
from swarmbook.records.keys import key_of
from swarmbook.records.store import Record, Store
from swarmbook.reproduction import execution, papers, publishing, recorded_runs, training_time, verify
from swarmbook.runs import run

TINY = dict(data="stories_toy", tokenizer="bytes", width=8, heads=2, hidden=8, sequence=8, stages=2, microbatches=1)
TINY |= dict(steps=4, evaluate_every=2, log_every=2, held_out=4)
RECORDS = papers.records(Path(__file__).parents[1] / "papers")
PLAN = {"planner": "by hand", "version": 1}
TABLE = key_of({"computed": PLAN})
PLANNING = f"""\
import pandas
from tqdm import tqdm
from swarmbook.records.computed import computed
plan = pandas.DataFrame({{"seconds": [7.0], "makespan": [1.0]}})
(table,) = computed([{PLAN}], lambda wanted: [plan for _ in tqdm(wanted, "planning")])
print(table["makespan"].sum())
"""


@pytest.fixture
def recorded(toy, tmp_path, one_thread) -> Path:
    """A toy paper as it is committed: executed; beside it two runs, one that goes on from the first, and a table."""
    path = toy("toy", ("print('step', steps); print('took 3 s')", "table 2"), (PLANNING, ""))
    first = run_config(**TINY)
    configs = [first, run_config(**{**TINY, "seed": 1}), run_config(**{**TINY, "steps": 6, "start": first})]
    store = Store(tmp_path / "store")
    for config in configs:  # each alone, as they are trained again
        run([config], store=store, device="cpu", show=False)
    computed([PLAN], lambda wanted: [pd.DataFrame({"seconds": [3.0], "makespan": [1.0]})], store=store)
    runs = path.parent / "runs"
    store.publish([*(config.key for config in configs), TABLE], runs)
    paper = papers.read_paper(path)
    publishing.commit(paper, execution.execute(paper).notebook)
    return runs


TRAINED = f"""\
from swarmbook.config import grid
from swarmbook.runs import run
runs = run(grid({TINY}, seed=range(1 if profile == "smoke" else 2)), device="cpu")
print(len(runs), profile)
"""


@pytest.fixture
def records(toy, tmp_path, one_thread) -> dict[str, papers.Paper]:
    """A toy paper of two runs and its record at `smoke`, of the first run and an ensemble of it."""
    ensemble = {"experts": [run_config(**TINY).key], "version": 1}
    table = key_of({"computed": ensemble})
    scored = "import pandas\nfrom swarmbook.records.computed import computed\n"
    scored += "def score(wanted):\n    return [pandas.DataFrame({'value': [1.0]})]\n"
    scored += f"if profile == 'smoke':\n    (table,) = computed([{ensemble}], score)"
    path = toy("toy", (TRAINED, "table 1"), (scored, ""))
    keys = [run_config(**TINY, seed=seed).key for seed in range(2)]
    store = Store(tmp_path / "store")
    run([run_config(**TINY, seed=seed) for seed in range(2)], store=store, device="cpu", show=False)
    computed([ensemble], lambda wanted: [pd.DataFrame({"value": [1.0]})], store=store)
    paper = papers.read_paper(path)
    store.publish(keys, paper.beside("runs"))
    store.publish([keys[0], table], papers.at(paper, "smoke").beside("runs"))
    publishing.commit(paper, execution.execute(paper).notebook)
    publishing.commit(papers.at(paper, "smoke"), execution.execute(paper, {"profile": "smoke"}).notebook)
    return papers.records()


def test_a_record_at_another_profile_is_verified_like_its_paper(records, capsys):
    assert cli.main(["verify", "--within", "100", "--all"]) == 0
    said = capsys.readouterr().out
    assert "toy: 2 runs recorded, 0 damaged\ntoy: the notebook shows just what it holds\n" in said
    assert "toy.smoke: 1 runs and 1 tables recorded, 0 damaged\n" in said and "CUDA" not in said
    smoke = records["toy.smoke"]
    assert verify.shown(smoke).faults == []
    smoke.notebook.write_text(smoke.notebook.read_text().replace("1 smoke\\n", "2 smoke\\n"))
    assert verify.shown(smoke).faults == [
        "toy.smoke, code cell 3 of 4 (table 1) holds '2 smoke', but the code gives '1 smoke'; "
        "execute it anew, or restore it with git"
    ]
    assert verify.shown(records["toy"]).faults == []


def test_each_record_must_be_complete_in_itself(records):
    """Though who executes a notebook finds what is recorded at any profile."""
    keys = {seed: run_config(**TINY, seed=seed).key for seed in range(2)}
    smoke = records["toy.smoke"].beside("runs") / f"{keys[0]}.parquet"
    smoke.unlink()
    done = execution.execute(records["toy"], {"profile": "smoke"})
    assert nbformat.read(done.notebook, 4).cells[3].outputs[0].text.startswith("1 smoke\n")
    wanted = f"toy.smoke needs runs that are not recorded beside it: {keys[0]}"
    assert verify.shown(records["toy.smoke"]).faults[0] == wanted
    (records["toy"].beside("runs") / f"{keys[1]}.parquet").rename(smoke.with_name(f"{keys[1]}.parquet"))
    assert verify.shown(records["toy"]).faults[0] == f"toy needs runs that are not recorded beside it: {keys[1]}"


def test_what_was_recorded_on_cuda_is_made_again_only_there(records, tmp_path, monkeypatch, capsys):
    smoke = records["toy.smoke"]
    (record, _), (table,) = *recorded_runs.recorded(smoke).runs.values(), recorded_runs.recorded(smoke).tables
    forged = Store(tmp_path / "forged")
    forged.put(record.key, record.config, record.metrics, {**record.provenance, "device": "NVIDIA H100 80GB HBM3"})
    (tmp_path / "forged" / f"{record.key}.parquet").rename(smoke.beside("runs") / f"{record.key}.parquet")
    found = {"toy.smoke": recorded_runs.recorded(smoke)}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert verify.out_of_reach(found) == {record.key, table}
    assert verify.drawn(found, None, 0) == verify.drawn(found, 1, 0) == ({}, {"toy.smoke": []})
    assert cli.main(["verify", "toy.smoke", "--all"]) == 0
    said = capsys.readouterr().out
    assert "1 runs and 1 tables made of them were recorded on CUDA, which is not here: they are not made again" in said
    assert "the notebook shows just what it holds" in said and "training" not in said
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert verify.drawn(found, None, 0) == (found["toy.smoke"].runs, {"toy.smoke": [table]})


def test_an_ensemble_of_experts_that_are_not_recorded_counts_as_made_like_the_runs_beside_it(records):
    one = recorded_runs.recorded(records["toy.smoke"])
    (run, config), table = next(iter(one.runs.values())), next(iter(one.tables.values()))
    other = altered(run, lambda metrics: None, device="NVIDIA H200")
    for runs, experts, far in (
        ({"a": run}, ["a", "b"], set()),
        ({"a": run, "c": other}, ["a"], {"c"}),
        ({"a": run, "c": other}, ["a", "b"], {"c", "table"}),
        ({"a": run, "c": other}, ["c"], {"c", "table"}),
    ):
        ensemble = Record("table", {"experts": experts}, table.metrics, {}, table.path)
        plan = Record("plan", PLAN, table.metrics, {}, table.path)
        found = recorded_runs.Recorded(
            {key: (each, config) for key, each in runs.items()}, {"table": ensemble, "plan": plan}
        )
        assert verify.out_of_reach({"toy": found}) == far, (runs, experts)


def first_run(runs: Path) -> Record:
    return Store(runs.parent / "none", [runs]).get(run_config(**TINY).key)


def test_what_is_sound_passes_and_says_how_long_it_will_take(recorded, capsys):
    assert cli.main(["verify", "toy", "--all"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "toy: 3 runs and 1 tables recorded, 0 damaged",
        "computing 1 of 1 tables again: about 3 s",
        "toy: the notebook shows just what it holds",
    ]
    assert said[3].startswith("training 3 of 3 runs again: about ")
    rows = [line.split(None, 2) for line in said[5:9]]
    assert {row[0] for row in rows} == {path.stem for path in recorded.glob("*.parquet")}
    assert rows[0][0] == TABLE
    assert all(row[2].startswith(("the same bits", "within tolerance")) for row in rows)
    assert said[-1] == "all agrees"
    assert cli.main(["verify", "toy", "--all", "--within", "2"]) == 0
    assert "computing" not in capsys.readouterr().out  # the table is said to take 3 s


def test_bytes_and_outputs_that_were_tampered_with_are_named(recorded, capsys):
    path = recorded / f"{run_config(**TINY).key}.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    (recorded / "notes.parquet").write_bytes(b"")
    assert cli.main(["verify", "toy", "--sample", "1", "--seed", "3"]) == 1
    said = capsys.readouterr().out
    assert f"{path} is damaged and not used" in said and "restore it with git" in said
    assert "'notes' is no key of a run" in said
    assert "drawn with --seed 3" in said

    paper = papers.read_paper(recorded.parent / "toy.ipynb")
    assert verify.shown(paper).faults == []
    paper.notebook.write_text(paper.notebook.read_text().replace("step 3\\n", "step 4\\n"))
    assert verify.shown(paper).faults == [
        "toy, code cell 2 of 3 (table 2) holds 'step 4', but the code gives 'step 3'; "
        "execute it anew, or restore it with git"
    ]


def test_numbers_that_were_tampered_with_under_a_valid_checksum_are_found_by_training_again(recorded, tmp_path):
    record = first_run(recorded)
    metrics = record.metrics.copy()
    row = metrics.index[(metrics["metric"] == "validation loss") & (metrics["step"] == 2)][0]
    metrics.loc[row, "value"] *= 1.05
    folder = tmp_path / "forged"
    Store(folder).put(record.key, record.config, metrics, record.provenance)
    (folder / f"{record.key}.parquet").rename(recorded / f"{record.key}.parquet")
    found = recorded_runs.recorded(papers.discover()["toy"])
    assert found.faults == [] and len(found.runs) == 3
    (one,) = verify.again({record.key: found.runs[record.key]}, "cpu", show=False)
    assert (one.key, one.where) == (record.key, "validation loss at step 2")
    assert one.worst == pytest.approx(0.05 / 1.05 * metrics.loc[row, "value"] / metrics_peak(metrics), rel=1e-3)
    assert not one.agrees and one.verdict.startswith("deviates")


def test_tables_that_were_tampered_with_under_a_valid_checksum_are_found_by_computing_them_again(recorded, tmp_path):
    """Though the notebook that reads them from the record shows nothing else than it holds."""
    paper = papers.discover()["toy"]
    record = recorded_runs.recorded(paper).tables[TABLE]
    forged = Store(tmp_path / "forged")
    for change, agrees in (({"makespan": 1.01}, False), ({"makespan": 1.0001}, True), ({"seconds": 9.0}, True)):
        forged.put(TABLE, PLAN, record.metrics.assign(**change), record.provenance)
        (tmp_path / "forged" / f"{TABLE}.parquet").rename(recorded / f"{TABLE}.parquet")
        own = recorded_runs.recorded(paper)
        now = verify.shown(paper, [TABLE])
        assert own.faults == now.faults == [] and len(list(recorded.iterdir())) == 4
        one = verify.compare_tables(own.tables[TABLE], now.tables[TABLE])
        assert (one.agrees, one.worst == 0) == (agrees, "seconds" in change), change
    assert "makespan" in verify.compare_tables(record, forged.put(TABLE, PLAN, record.metrics + 1.0, {})).where
    more = pd.concat([record.metrics, record.metrics], ignore_index=True)
    assert "other rows" in verify.compare_tables(record, forged.put(TABLE, PLAN, more, {})).verdict


def test_entries_of_a_table_that_are_equal_agree_beside_others_that_do_not(tmp_path):
    """Infinities and columns of zeros too, where a difference in parts of the greatest number is not defined."""
    table = pd.DataFrame({"x": [1.0, 2.0], "lost": [0.0, 0.0], "until": [math.inf, 3.0], "none": [math.nan, 1.0]})
    store, key = Store(tmp_path), key_of({"computed": PLAN})
    before = store.put(key, PLAN, table, {})
    one = verify.compare_tables(before, store.put(key, PLAN, table.assign(x=[1.0, 2.0002]), {}))
    assert one.agrees and one.worst == pytest.approx(1e-4)
    for column, other in (("lost", 0.1), ("until", 3.0), ("none", 1.0)):
        changed = table.assign(**{column: [other, table[column][1]]})
        assert not verify.compare_tables(before, store.put(key, PLAN, changed, {})).agrees, column


def test_a_sample_takes_what_is_cheap_enough_and_the_same_for_a_seed(recorded):
    found = {"toy": recorded_runs.recorded(papers.discover()["toy"])}
    runs = found["toy"].runs
    for number, (record, _) in enumerate(runs.values(), 1):
        record.provenance.update(seconds=100.0 * number, packed=1)
    assert verify.drawn(found, None, 0) == (runs, {"toy": [TABLE]})
    assert verify.drawn(found, None, 0, within=3.0) == ({}, {"toy": [TABLE]})
    assert verify.drawn(found, 5, 0, within=2.9) == ({}, {"toy": []})
    samples = [verify.drawn(found, 2, seed) for seed in (1, 1, *range(20))]
    assert samples[0] == samples[1]
    assert all(len(some) + len(tables["toy"]) == 2 for some, tables in samples)
    assert len({(*some, *tables["toy"]) for some, tables in samples}) > 2


def test_what_computing_a_table_costs_is_read_from_it(recorded):
    runs = recorded_runs.recorded(papers.discover()["toy"]).runs
    key, (record, _) = next(iter(runs.items()))

    def cost(provenance=None, **config):
        metrics = pd.DataFrame({"seconds": [0.0, 3.5]})
        return verify.cost(Record("0", config, metrics, provenance or {}, record.path), runs)

    assert cost(planner="annealing") == 3.5
    assert cost({"seconds": 2.5}, simulated="losses") == 2.5
    assert cost(bound="digest", effort=4, nodes=2) == 8
    assert cost(ensemble={}, experts=[key]) == training_time.seconds({key: runs[key]}, runs)
    assert cost(ensemble={}, experts=[key, "0123"]) == cost(other=1) == math.inf
    assert [training_time.duration(s) for s in (9, 600, 9e3, math.inf)] == ["9 s", "10 min", "2 h", "an unknown time"]


def metrics_peak(metrics: pd.DataFrame) -> float:
    return metrics.loc[metrics["metric"] == "validation loss", "value"].max()


def test_a_configuration_that_its_key_does_not_stand_for_is_named(recorded, tmp_path):
    record = first_run(recorded)
    for change in ({"lr": 0.5}, {"lr": "fast"}, {"plan": 2}):
        Store(tmp_path / "forged").put(record.key, {**record.config, **change}, record.metrics, record.provenance)
        (tmp_path / "forged" / f"{record.key}.parquet").rename(recorded / f"{record.key}.parquet")
        (fault,) = recorded_runs.recorded(papers.discover()["toy"]).faults
        assert f"{record.key}.parquet holds another configuration than its key stands for" in fault


def altered(record: Record, change, **provenance) -> Record:
    metrics = record.metrics.copy()
    change(metrics)
    return Record(record.key, record.config, metrics, {**record.provenance, **provenance}, record.path)


def test_the_same_bits_are_due_where_nothing_rounds_differently_and_a_tolerance_elsewhere(recorded):
    record = first_run(recorded)
    losses = record.metrics["metric"] == "validation loss"
    counted = record.metrics["metric"] == "ledger"

    def scale(rows, factor):
        return lambda metrics: metrics.__setitem__("value", metrics["value"].where(~rows, metrics["value"] * factor))

    assert verify.compare(record, record).verdict == "the same bits"
    tiny = verify.compare(record, altered(record, scale(losses, 1 + 1e-6)))
    assert not tiny.agrees and tiny.exact
    elsewhere = verify.compare(record, altered(record, scale(losses, 1 + 1e-6), threads=2))
    assert elsewhere.agrees and elsewhere.verdict == "within tolerance" and 0 < elsewhere.worst < 2e-6
    on_cuda = [altered(record, scale(losses, factor), device="NVIDIA H200") for factor in (1, 1 + 1e-6)]
    assert verify.compare(*on_cuda).verdict == "within tolerance"  # it adds up in any order
    far = verify.compare(record, altered(record, scale(losses, 1 + 3 * verify.TOLERANCE), torch="9"))
    assert not far.agrees and far.where.startswith("validation loss")
    assert not verify.compare(record, altered(record, scale(counted, 1 + 1e-3), threads=2)).agrees
    none = verify.compare(record, altered(record, scale(losses, math.nan), threads=2))
    assert none.worst == math.inf and not none.agrees
    fewer = Record(record.key, record.config, record.metrics.iloc[1:], {**record.provenance, "threads": 2}, record.path)
    assert "other rows" in verify.compare(record, fewer).verdict


def test_a_notebook_that_needs_what_is_not_recorded_is_told(toy):
    path = toy(
        "toy",
        (
            "import pandas\nfrom swarmbook.records.computed import computed\n"
            "computed([{'plan': 2}], lambda wanted: [pandas.DataFrame({'value': [1.0]})])[0]",
            "table 1",
        ),
    )
    fault = verify.shown(papers.read_paper(path)).faults[0]
    assert fault == f"toy needs runs that are not recorded beside it: {key_of({'computed': {'plan': 2}})}"


def test_time_is_foretold_from_what_recording_took(recorded):
    runs = recorded_runs.recorded(papers.discover()["toy"]).runs
    for record, _ in runs.values():
        record.provenance.update(seconds=12.0, packed=3)
    parent = run_config(**TINY)
    child = next(key for key, (_, config) in runs.items() if config.start)
    assert training_time.seconds(runs, runs) == pytest.approx(12.0)
    assert training_time.seconds({child: runs[child]}, runs) == pytest.approx(8.0)
    del runs[parent.key]
    assert training_time.seconds({child: runs[child]}, runs) == pytest.approx(4.0 + 4.0 * 4 / 2)
    branch = run_config(**{**TINY, "branch": run_config(**{**TINY, "steps": 6, "start": parent})})
    family = {branch.key: (next(iter(runs.values()))[0], branch)}  # its ancestors are not recorded
    assert training_time.seconds(family, family) == pytest.approx(4.0 * (1 + 2 / 4 + 1))


@pytest.mark.parametrize("name", [name for name, paper in RECORDS.items() if paper.runs])
def test_all_that_is_recorded_is_sound(name):
    """Checksums and keys; as often as nbval compares the notebooks. Training again is `swarmbook verify`."""
    found = recorded_runs.recorded(RECORDS[name])
    assert found.faults == []
    assert len(found.runs) + len(found.tables) == RECORDS[name].runs


def test_recorded_runs_of_the_papers_are_what_the_code_gives(one_thread):
    """Two of those that took at most 20 s: a short `swarmbook verify --sample 2`; the weekly job takes others.

    That the notebooks show what they hold is compared by nbval.
    """
    found = {name: recorded_runs.recorded(paper) for name, paper in RECORDS.items()}
    cheap = {name: recorded_runs.Recorded(one.runs) for name, one in found.items()}
    picked, _ = verify.drawn(cheap, 2, seed=0, within=20.0)
    assert len(picked) == 2
    for one in verify.again(picked, "cpu", show=False):
        assert one.agrees, f"{one.key}: {one.verdict}, {one.where}, {one.worst}"


def test_claims_that_were_tampered_with_are_seen():
    claim = {"id": "T1", "verdict": "holds"}
    cell = {"outputs": [{"data": {papers.MIMETYPE: [claim], "text/plain": "T1\ntook 3 s at 0x7f00aa11"}}]}
    other = json.loads(json.dumps(cell).replace("holds", "does not hold").replace("3 s", "4 s").replace("aa11", "bb22"))
    ((before, after),) = verify._differences(verify._shown(cell), verify._shown(other))
    assert "'holds'" in before and "'does not hold'" in after
    assert list(verify._differences(["a"], ["a"])) == []
    assert list(verify._differences(["a"], ["a", "b"])) == [("", "b")]


def test_nbval_replaces_just_what_verification_does():
    """Both read one file, each in its own way."""
    nbval = pytest.importorskip("nbval.plugin")
    root = Path(__file__).parents[1]
    options = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["pytest"]["addopts"]
    (given,) = [option.partition("=")[2] for option in options if option.startswith("--nbval-sanitize-with=")]
    patterns = nbval.get_sanitize_patterns((root / given).read_text())
    assert patterns == verify.volatile() and len(patterns) == 4 and publishing.CELL_FILE in patterns
    shown = "took 3.5 s at 0x7f00aa11bb in /home/me/clone/papers/noloco/runs by /tmp/ipykernel_4711/230.py:3"
    text = shown
    for pattern, name in patterns:
        text = re.sub(pattern, name, text)
    assert text == "took TIME at ADDRESS in papers/noloco/runs by cell.py:3"
    assert verify._shown({"outputs": [{"text": shown}]}) == [text]


def test_what_varies_is_found_at_once_in_long_texts():
    """As in the text of a picture, which has slashes anywhere: no pattern tries the ways to share them out."""
    text = "/a" * 2000 + "/ipykernel_1.py"
    assert publishing.stable({"text/plain": text, "image/png": text}, verify.volatile()) == {
        "text/plain": text,
        "image/png": text,
    }


VARIES = """\
import time, warnings
warnings.warn("a warning")
print(f"took {time.monotonic() % 9:.3f} s at {object()}")
class Claims:
    def _repr_mimebundle_(self, include=None, exclude=None):
        ours = f"took {time.monotonic() % 9:.3f} s"
        row = {"id": "T1", "text": "toys work", "paper": "3", "ours": ours, "verdict": "holds"}
        return {"text/plain": "T1 holds", "application/vnd.swarmbook.claims+json": [row]}
Claims()
"""


@pytest.fixture
def by_nbval(tmp_path):
    """What nbval says of a notebook, with the settings of this repository."""
    root = Path(__file__).parents[1]
    shutil.copy(root / "conftest.py", tmp_path)

    def check(path, *options):
        settings = ["-c", str(root / "pyproject.toml"), "-p", "no:cacheprovider", "-n", "0", "--rootdir", str(tmp_path)]
        command = [sys.executable, "-m", "pytest", *settings, *options, str(path)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300).stdout

    return check


def test_a_cell_that_warns_and_tells_times_is_recorded_so_that_it_verifies(toy, tmp_path, by_nbval):
    """With both comparators: what is stored names no process, and times in the JSON of claims count no more."""
    path = toy("toy", (VARIES, ""))
    done = execution.execute(papers.read_paper(path), output=tmp_path / "out", page=False)
    publishing.commit(papers.read_paper(path), done.notebook)
    stored = path.read_text()
    assert "ipykernel_" not in stored and "cell.py:2: UserWarning: a warning" in stored
    assert verify.shown(papers.read_paper(path)).faults == []
    assert "2 passed" in by_nbval(path)
    path.write_text(stored.replace("UserWarning: a warning", "UserWarning: another"))
    assert "holds 'cell.py:2: UserWarning: another'" in verify.shown(papers.read_paper(path)).faults[0]
    assert "1 failed, 1 passed" in by_nbval(path)
    path.write_text(stored.replace('"text": "toys work"', '"text": "toys do not"'))
    assert "1 failed, 1 passed" in by_nbval(path)


def test_cells_after_one_that_took_too_long_are_no_faults(toy, tmp_path, by_nbval):
    path = toy("toy", ("import time; time.sleep(6)", ""), ("print(steps)", ""))
    content = nbformat.read(path, 4)
    content.cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="3\n")]
    content.cells[-1].execution_count = 1
    nbformat.write(content, path)
    said = by_nbval(path, "--nbval-cell-timeout=2")
    assert "1 failed, 1 passed, 1 xpassed" in said


def test_notebook_errors_are_deviations(toy):
    path = toy("toy", ("1 / 0", "table 1"))
    (fault,) = verify.shown(papers.read_paper(path)).faults
    assert fault.split(":")[0] == "toy, code cell 2 of 2 (table 1)"
    assert nbformat.read(path, 4).cells[-1].outputs == []
