import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import FIGURE

from swarmbook import yaml_values
from swarmbook.analysis.claims import MIMETYPE, Claim
from swarmbook.errors import NotebookError, UsageError
from swarmbook.reproduction import execution, papers, publishing

CLAIM = Claim("T1", "toys work", "3", "3", "holds")


def run(path: Path, **parameters):
    return execution.execute(papers.read_paper(path), parameters)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_notebook_says_what_it_holds_without_being_executed(toy):
    path = toy()
    (path.parent / "runs").mkdir()
    (path.parent / "runs" / "a.parquet").touch()
    paper = papers.discover()["toy"]
    assert paper.title == "The toy paper"
    assert (paper.figures, paper.tables) == (("figure 4a",), ("table 2",))
    assert paper.claims == ()  # not executed yet
    assert paper.runs == 1


def test_what_is_recorded_at_other_profiles_follows_its_paper(toy):
    path = toy("toy", ("print(profile)", "table 2"))
    toy("other")
    paper = papers.read_paper(path)
    for profile in ("smoke", "gpu"):
        publishing.commit(papers.at(paper, profile), execution.execute(paper, {"profile": profile}).notebook)
    (path.parent / "runs.gpu").mkdir()
    (path.parent / "runs.gpu" / "a.parquet").touch()
    assert list(papers.discover()) == ["other", "toy"]
    known = papers.records()
    assert list(known) == ["other", "toy", "toy.gpu", "toy.smoke"]
    gpu = known["toy.gpu"]
    assert (gpu.title, gpu.tables, gpu.runs, gpu.profile) == ("The toy paper", ("table 2",), 1, "gpu")
    assert (known["toy"].runs, known["toy"].profile, known["toy"].command) == (0, "", "swarmbook run toy")
    assert gpu.command == "swarmbook run toy --profile gpu"
    assert (
        papers.at(paper, "gpu").notebook == gpu.notebook == gpu.beside("toy.ipynb") == path.with_name("toy.gpu.ipynb")
    )
    assert gpu.beside("provenance.json") == path.with_name("provenance.gpu.json")
    assert papers.at(paper, None) == papers.at(paper, "cpu") == paper
    assert nbformat.read(gpu.notebook, 4).cells[-1].outputs[0].text == "gpu\n"
    assert (
        papers.read_paper(execution.execute(gpu).notebook).name == "toy.gpu"
    )  # by itself, with the profile that it sets

    def chosen(*names):
        return [record.name for record in papers.chosen(names, known)]

    assert chosen() == list(known)
    assert chosen("toy") == chosen("toy", "toy.gpu") == ["toy", "toy.gpu", "toy.smoke"]
    assert chosen("toy.smoke", "other") == ["toy.smoke", "other"]
    with pytest.raises(
        UsageError, match=r"unknown paper 'toy.gpuu': did you mean 'toy.gpu'\? Known: other, toy, toy.gpu"
    ):
        chosen("toy.gpuu")


def test_parameters_come_with_defaults_types_and_choices(toy):
    parameters = papers.read_paper(toy()).parameters()
    assert {name: p.default for name, p in parameters.items()} == {
        "profile": "cpu",
        "seeds": [0, 1],
        "rate": 0.1,
        "steps": 3,
        "note": "none",
        "data": "",
        "device": "auto",
    }
    assert parameters["profile"].choices == ("smoke", "cpu", "gpu", "paper")
    assert parameters["seeds"].help == "one run each"
    assert parameters["note"].choices == ()


def test_profiles_are_the_four_where_the_notebook_lists_none(toy):
    path = toy()
    path.write_text(path.read_text().replace("  # smoke | cpu | gpu | paper", ""))
    assert papers.read_paper(path).parameters()["profile"].choices == papers.PROFILES


@pytest.mark.parametrize(
    ("values", "fitted"),
    [
        ({"rate": 1}, {"rate": 1.0}),
        ({"rate": "1e-3"}, {"rate": 0.001}),
        ({"seeds": []}, {"seeds": []}),
        ({"seeds": [4, 5], "profile": "gpu"}, {"seeds": [4, 5], "profile": "gpu"}),
    ],
)
def test_values_that_fit(toy, values, fitted):
    result = papers.checked(papers.read_paper(toy()), values)
    assert result == fitted
    assert all(type(result[name]) is type(fitted[name]) for name in fitted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sedes": [1]}, "unknown parameter of toy 'sedes': did you mean 'seeds'?"),
        ({"qqq": 1}, "Known: profile, seeds, rate, steps, note"),
        ({"profile": "gpuu"}, "did you mean 'gpu'? Known: smoke, cpu, gpu, paper"),
        ({"profile": 3}, "takes text, but got 3 (an integer)"),
        ({"note": True}, "quotes of its own"),
        ({"steps": 2.5}, "takes an integer, but got 2.5 (a number)"),
        ({"steps": True}, "takes an integer"),
        ({"rate": "fast"}, "takes a number, but got 'fast' (text)"),
        ({"seeds": 4}, "takes a list, but got 4"),
        ({"seeds": ["a"]}, "parameter seeds of toy"),
    ],
)
def test_values_that_do_not_fit(toy, values, message):
    with pytest.raises(UsageError) as error:
        papers.checked(papers.read_paper(toy()), values)
    assert message in str(error.value)


def test_execution_leaves_notebook_and_html_and_nothing_else(toy, tmp_path):
    path = toy()
    done = run(path, steps=3)
    assert done.claims == (CLAIM,)
    assert files_below(tmp_path / "runs") == {"toy/toy.ipynb", "toy/toy.html"}
    assert papers.read_paper(done.notebook).claims == (CLAIM,)
    assert re.search('<img alt="figure 4a"[^>]* src="data:image/png;base64,', done.html.read_text())
    assert papers.read_paper(path).claims == (), "the committed notebook must stay as it was"


def test_another_profile_has_a_folder_of_its_own(toy, tmp_path):
    path = toy("toy", ("print(profile)", ""))
    assert run(path, profile="cpu").notebook == tmp_path / "runs/toy/toy.ipynb"
    done = run(path, profile="smoke")
    assert done.notebook == tmp_path / "runs/toy-smoke/toy.ipynb"
    assert nbformat.read(done.notebook, 4).cells[-1].outputs[0].text == "smoke\n"


def test_the_kernel_is_this_interpreter_in_the_notebooks_folder(toy, tmp_path, monkeypatch):
    """Also where another kernel is installed under the usual name, and a plotting backend is set."""
    kernel = tmp_path / "jupyter/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    here = os.getcwd()
    path = toy(
        "toy",
        ("import os, sys; print(sys.executable, os.getcwd(), os.environ['EXTRA'], sep='\\n')", ""),
        ("import matplotlib.pyplot as plt; _ = plt.plot([1, 2])", ""),
    )
    done = execution.execute(papers.read_paper(path), environment={"EXTRA": "yes"})
    said, drawn = nbformat.read(done.notebook, 4).cells[-2:]
    assert said.outputs[0].text.split("\n")[:3] == [sys.executable, str(path.parent), "yes"]
    assert "image/png" in drawn.outputs[0].data
    assert os.getcwd() == here and "EXTRA" not in os.environ


def test_a_failing_cell_is_named_and_what_ran_is_kept(toy, tmp_path):
    path = toy("toy", ("print('before')", ""), ("1 / 0", "figure 4c"), ("print('after')", ""))
    with pytest.raises(NotebookError) as error:
        run(path, steps=4)  # an injected cell must not shift the number
    kept = tmp_path / "runs/toy/toy.failed.ipynb"
    assert str(error.value) == (
        "toy, code cell 3 of 4 (figure 4c): ZeroDivisionError: division by zero\n" + f"executed so far: {kept}"
    )
    assert files_below(tmp_path / "runs") == {"toy/toy.failed.ipynb"}
    assert "before" in kept.read_text() and "after\\n" not in kept.read_text()


def test_a_failure_does_not_touch_the_last_good_result_and_success_clears_it_away(toy, tmp_path):
    path = toy("toy", ("assert steps == 3", ""))
    good = run(path)
    before = good.notebook.read_bytes()
    with pytest.raises(NotebookError):
        run(path, steps=4)
    assert good.notebook.read_bytes() == before
    assert files_below(tmp_path / "runs") == {"toy/toy.ipynb", "toy/toy.html", "toy/toy.failed.ipynb"}
    run(path)
    assert files_below(tmp_path / "runs") == {"toy/toy.ipynb", "toy/toy.html"}


def test_a_dead_kernel_is_named(toy, tmp_path):
    path = toy("toy", ("import faulthandler, sys; faulthandler._sigsegv()", "figure 1"))
    with pytest.raises(NotebookError, match=r"toy, code cell 2 of 2 \(figure 1\): the kernel died"):
        run(path)
    assert files_below(tmp_path / "runs") == {"toy/toy.failed.ipynb"}


def test_progress_tells_cells_figure_and_last_line(toy):
    path = toy("toy", ("print('a'); print('b\\rc')", "figure 4a"), ("2", ""))
    seen = []
    execution.execute(papers.read_paper(path), {"steps": 5}, progress=lambda *told: seen.append(told))
    assert seen == [(0, 3, "", ""), (1, 3, "figure 4a", ""), (1, 3, "figure 4a", "c"), (2, 3, "", "")]


def test_committing_twice_gives_the_same_bytes(toy):
    path = toy()
    paper = papers.read_paper(path)
    publishing.commit(paper, execution.execute(paper).notebook)
    first = path.read_text()
    publishing.commit(paper, execution.execute(paper).notebook)
    assert path.read_text() == first
    assert "papermill" not in first and str(path.parent) not in first
    assert papers.read_paper(path).claims == (CLAIM,)
    assert papers.read_paper(path).figures == ("figure 4a",)


def test_a_record_at_another_profile_is_committed_beside_and_the_same_each_time(toy):
    path = toy("toy", (FIGURE, "figure 4a"))
    picture = path.with_name("figure-4a.png")
    picture.write_bytes(b"of the default profile")
    paper, before = papers.read_paper(path), path.read_bytes()
    record = papers.at(paper, "smoke")
    publishing.commit(record, execution.execute(paper, {"profile": "smoke"}).notebook)
    first = record.notebook.read_bytes()
    publishing.commit(record, execution.execute(paper, {"profile": "smoke"}).notebook)
    assert record.notebook.read_bytes() == first
    assert (path.read_bytes(), picture.read_bytes()) == (before, b"of the default profile")
    (injected,) = [cell for cell in nbformat.read(record.notebook, 4).cells if cell.id == "injected-parameters"]
    assert injected.source == '# Parameters\nprofile = "smoke"'
    again = execution.execute(papers.read_paper(record.notebook))  # as verification does
    assert "papermill" not in first.decode() and papers.read_paper(again.notebook).figures == ("figure 4a",)


def test_committing_renews_the_pictures_kept_beside_the_notebook(toy):
    path = toy("toy", (FIGURE, "figure 4a"), (FIGURE.replace("rate", "9"), "figure 4c"))
    kept = path.with_name("figure-4a.png")
    kept.touch()
    paper = papers.read_paper(path)
    publishing.commit(paper, execution.execute(paper).notebook)
    shown = publishing.pictures(nbformat.read(path, 4))
    assert set(shown) == {"figure 4a", "figure 4c"} and shown["figure 4a"] != shown["figure 4c"]
    assert kept.read_bytes() == shown["figure 4a"]
    assert not path.with_name("figure-4c.png").exists()


def test_an_execution_with_other_parameters_is_not_committed(toy):
    paper = papers.read_paper(toy())
    record = papers.at(paper, "smoke")
    more, default, smoke = (execution.execute(paper, values, folder=paper.notebook.parents[2] / str(n)) for n, values in
                            enumerate(({"profile": "smoke", "steps": 4}, {}, {"profile": "smoke"})))  # fmt: skip
    for target, done in ((paper, more), (paper, smoke)):
        with pytest.raises(UsageError, match="other parameters than the default$"):
            publishing.commit(target, done.notebook)
    for target, done in ((record, more), (record, default), (papers.at(paper, "gpu"), smoke)):
        with pytest.raises(UsageError, match=f'the default and profile = "{target.profile}"$'):
            publishing.commit(target, done.notebook)
    assert list(papers.records()) == ["toy"]


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", '{"cells": [{}]}'])
def test_a_broken_notebook_is_named(toy, content):
    path = toy()
    path.write_text(content)
    with pytest.raises(NotebookError, match=r"toy\.ipynb is not a notebook"):
        papers.discover()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "T1"}, "lacks"),
        ("T1", "lacks"),
        (
            {**vars(CLAIM), "verdict": "maybe"},
            "valid: 'holds', 'the direction holds, the size differs', 'does not hold'",
        ),
    ],
)
def test_a_malformed_claim_is_named(row, message):
    content = {"cells": [{"outputs": [{"data": {MIMETYPE: [row]}}]}]}
    with pytest.raises(NotebookError, match=message):
        papers.claims_of(content, "toy")


def test_of_a_claim_that_is_shown_again_the_last_counts_in_its_place():
    rows = [{**vars(CLAIM), "id": id, "ours": ours} for id, ours in (("T1", "1"), ("T2", "2"), ("T1", "3"))]
    content = {"cells": [{"outputs": [{"data": {MIMETYPE: [row]}} for row in rows]}]}
    assert [(claim.id, claim.ours) for claim in papers.claims_of(content, "toy")] == [("T2", "2"), ("T1", "3")]


def test_values_reach_the_notebook_as_they_are_or_are_refused(toy):
    """papermill writes a tuple as text, and NaN as what is no JSON."""
    paper = papers.read_paper(toy("toy", ("betas = None\n", "")))
    tuples = {"seeds": (2, 3)}
    assert papers.checked(paper, tuples) == {"seeds": [2, 3]}
    for value in (float("nan"), float("inf"), "nan"):
        with pytest.raises(UsageError, match="rate of toy is 0.1 by default.*cannot hold it"):
            papers.checked(paper, {"rate": value})
    with pytest.raises(UsageError, match="seeds of toy"):
        papers.checked(paper, {"seeds": {1, 2}})


@pytest.mark.parametrize(
    ("text", "value"),
    {"010": 10, "0o17": 15, "0x1F": 31, "1:30": "1:30", "1_000": "1_000", "on": "on", "no": "no", "true": True,
     "1e-3": 1e-3, "-.5": -0.5, "+3": 3, "~": None, "": None, "2001-12-14": "2001-12-14", "[1, a]": [1, "a"]}.items(),
)  # fmt: skip
def test_values_are_read_by_version_1_2_of_yaml(text, value):
    read = yaml_values.load(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    "text", ["!!int 3", "!x 3", "[&a 1, *a]", "[" * 60, "9" * 5000, "{[1]: 2}", "\0", "a: 1\n---\nb"]
)
def test_what_is_no_plain_value_is_refused(text):
    with pytest.raises(yaml.YAMLError):
        yaml_values.load(text)


def test_a_count_of_seeds_is_from_0_to_a_limit(toy):
    path = toy()
    path.write_text(path.read_text().replace("seeds = [0, 1]", "seeds = 0"))
    paper = papers.read_paper(path)
    assert papers.checked(paper, {"seeds": 10_000}) == {"seeds": 10_000}
    for count, why in ((-1, "seeds are numbers from 0 on"), (10_001, "it takes at most 10000 seeds")):
        with pytest.raises(UsageError, match=f"parameter seeds of toy cannot be {count}: {why}"):
            papers.checked(paper, {"seeds": count})
