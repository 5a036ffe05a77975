"""Provenance: each cell stands on the runs that it reads, directly or by what was taken from them before."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest

from swarmbook.config import run_config
from swarmbook.errors import NotebookError
from swarmbook.records.computed import computed
from swarmbook.records.keys import key_of
from swarmbook.records.store import Store
from swarmbook.reproduction import execution, lineage, papers, publishing, recorded_runs
from swarmbook.runs import run

PAPERS = papers.discover(Path(__file__).parents[1] / "papers")
TINY = dict(data="stories_toy", tokenizer="bytes", width=8, heads=2, hidden=8, sequence=8, stages=2, microbatches=1)
TINY |= dict(steps=4, evaluate_every=2, log_every=2, held_out=4)
TABLE = {"experts": [run_config(**TINY).key], "version": 1}
CELLS = {  # what stands in a cell, and the seeds of the runs that it stands on; "table" for the recorded table
    "set-up": (
        "import pandas as pd\nfrom swarmbook.config import grid\nfrom swarmbook.records.computed import computed\n"
        "from swarmbook.runs import run\n",
        [],
    ),
    "load": (f"runs = run(grid({TINY}, seed=range(3)), device='cpu')\nheld = {{'all': runs}}", []),
    "figure 1": ("runs.where(seed=1).final()", [1]),
    "figure 2": ("held['all'].final()", [0, 1, 2]),
    "take": ("first = runs.where(seed=0).final()\nlast = runs.where(seed=2).final()", [0, 2]),
    "figure 3": ("print(last)", [2]),
    "define": ("def doubled(times=2):\n    return scaled * times\nscaled = first['value']", [0]),
    "figure 4": ("[doubled(n) for n in (1, 2)]", [0]),
    "collect": ("rows = []\nfor part in (first, last):\n    rows.append(part)", [0, 2]),
    "figure 5": ("pd.concat(rows)", [0, 2]),
    "figure 6": ("print(steps, len(runs))", []),
    "again": ("last = 3\nif last > 2:\n    rows = [first]", [0]),
    "figure 7": ("print(last)", []),
    "figure 8": ("rows", [0, 2]),  # on some ways through the cell it is what it was
    "figure 9": (f"(table,) = computed([{TABLE}], None)\ntable.sum()", ["table"]),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Three runs that differ in the seed, and a table made from the first."""
    store = Store(tmp_path_factory.mktemp("store"))
    run([run_config(**TINY, seed=seed) for seed in range(3)], store=store, device="cpu", show=False)
    computed([TABLE], lambda wanted: [pd.DataFrame({"value": [1.0]})], store=store)
    return store


@pytest.fixture
def paper(toy, store) -> papers.Paper:
    path = toy("toy", *((source, tag) for tag, (source, _) in CELLS.items()))
    store.publish(seeds([0, 1, 2, "table"]), path.parent / "runs")
    return papers.read_paper(path)


def seeds(of: list) -> frozenset[str]:
    table = key_of({"computed": TABLE})
    return frozenset(table if seed == "table" else run_config(**TINY, seed=seed).key for seed in of)


def ids(paper: papers.Paper) -> dict[str, str]:
    cells = json.loads(paper.notebook.read_text())["cells"]
    return {tag: cell["id"] for cell in cells for tag in cell["metadata"].get("tags", [])}


def test_each_cell_stands_on_what_it_reads_and_no_more(paper):
    found = lineage.keys_of_cells([paper])["toy"]
    for tag, cell in ids(paper).items():
        if tag in CELLS:
            assert found.get(cell, frozenset()) == seeds(CELLS[tag][1]), tag


def test_what_is_kept_holds_for_its_code_and_record_alone(paper):
    assert lineage.kept(paper) is None
    lineage.keep([paper])
    kept = lineage.kept(paper)
    assert kept == lineage.traced([paper])["toy"]
    code = paper.notebook.read_text()
    paper.notebook.write_text(code.replace("seed=1", "seed=2"))
    assert lineage.kept(paper) is None
    assert lineage.keys_of_cells([paper])["toy"][ids(paper)["figure 1"]] == seeds([2])
    paper.notebook.write_text(code)
    assert lineage.kept(paper) == kept
    (paper.notebook.parent / "runs" / f"{'0' * 20}.parquet").write_bytes(b"")
    assert lineage.kept(paper) is None


def test_a_record_at_another_profile_has_its_own(paper, store):
    """And stands on its own record alone, though the runs that it asks for are recorded beside the paper as well."""
    lineage.keep([paper])
    smoke = papers.at(paper, "smoke")
    publishing.commit(smoke, execution.execute(paper, {"profile": "smoke"}).notebook)
    (left,) = seeds([1])
    store.publish(seeds([0, 2, "table"]), smoke.beside("runs"))
    smoke = papers.read_paper(smoke.notebook)
    told = f"toy.smoke, code cell 4: .*not recorded beside it: {left}; .* toy --profile smoke --record"
    with pytest.raises(NotebookError, match=told):
        lineage.keys_of_cells([smoke])
    store.publish([left], smoke.beside("runs"))
    smoke = papers.read_paper(smoke.notebook)
    lineage.keep([smoke])
    assert lineage.kept(smoke) == lineage.kept(paper)  # the same cells of the same runs
    assert smoke.notebook.with_name("provenance.smoke.json").exists()
    (smoke.beside("runs") / f"{'0' * 20}.parquet").write_bytes(b"")
    assert lineage.kept(smoke) is None and lineage.kept(paper) is not None


def test_nothing_is_trained_to_find_out(paper):
    (key,) = seeds([1])
    (paper.notebook.parent / "runs" / f"{key}.parquet").unlink()
    with pytest.raises(NotebookError, match=f"toy, code cell 3: .*not recorded beside it: {key}; .* toy --record"):
        lineage.keys_of_cells([paper])


def test_a_failing_cell_is_named(paper):
    paper.notebook.write_text(paper.notebook.read_text().replace("pd.concat(rows)", "pd.concat([])"))
    with pytest.raises(NotebookError, match="toy, code cell 11: ValueError: No objects to concatenate"):
        lineage.traced([paper])


def test_without_a_record_nothing_is_executed_or_kept(toy):
    paper = papers.read_paper(toy("toy", ("1 / 0", "figure 1")))
    lineage.keep([paper])
    assert lineage.keys_of_cells([paper]) == {"toy": {}}
    assert not paper.notebook.with_name(lineage.KEPT).exists()


def test_ancestors_are_followed_to_the_end():
    parents = {"a": frozenset(), "b": frozenset("a"), "c": frozenset("b"), "d": frozenset("ca")}
    assert lineage.ancestors({"d"}, parents) == {"a", "b", "c"}
    assert lineage.ancestors({"b", "c"}, parents) == {"a"}


def test_a_table_is_made_from_its_experts(paper):
    parents = lineage.parents(recorded_runs.recorded(paper))
    (table,) = seeds(["table"])
    assert parents == {key: seeds([0]) if key == table else frozenset() for key in seeds([0, 1, 2, "table"])}


@pytest.mark.parametrize(
    ("statement", "read", "written", "changed"),
    [
        ("a = b", "b", "a", ""),
        ("a = a + 1", "a", "a", ""),
        ("a += b", "a b", "a", "a"),
        ("a[b].c = d", "a b d", "", "a"),
        ("a['x'] |= b", "a b", "", "a"),
        ("a, (b, *c) = d", "d", "a b c", ""),
        ("a.append(b)", "a b", "", "a"),
        ("a[0].plot(b)", "a b", "", "a"),
        ("print(a)", "print a", "", ""),
        ("[b for b in a if b > c]", "a c", "", ""),
        ("{a: b for a, b in c.items()}", "c", "", ""),
        ("(b := a) + b", "a", "b", ""),
        ("f = lambda x, y=z: x + y + w", "z w", "f", ""),
        ("def f(x):\n    return x + y", "", "f", ""),
        ("for a in b:\n    c = a\n    d.append(c)", "b d", "a c", "d"),
        ("for a in b:\n    c.append(e)\n    e = a", "b c e", "a e", "c"),
        ("if a:\n    b = c\nelse:\n    b = d", "a c d", "b", ""),
        ("if a:\n    b = c\nprint(b)", "a c", "", "b"),
        ("with a as b:\n    c = b", "a", "b c", ""),
    ],
)
def test_names_of_a_statement(statement, read, written, changed):
    names = lineage.Names(ast.parse(statement).body[0])
    assert (names.read, names.written, names.changed) == tuple(set(text.split()) for text in (read, written, changed))


def test_a_paper_stands_on_all_that_is_recorded_beside_it():
    """And what is kept of it, if it holds, is what is found anew."""
    paper = PAPERS["skippipe"]
    found = lineage.traced([paper])["skippipe"]
    recorded = recorded_runs.recorded(paper)
    assert frozenset().union(*found.values()) == recorded.runs.keys() | recorded.tables.keys()
    assert lineage.kept(paper) in (None, found)
