"""The committed notebooks: well formed, true to the code, and able to start from nothing.

That stored outputs are what the code gives is checked by nbval, which pytest runs over `papers/` (pyproject.toml);
here is the proof that it would notice.
"""

import base64
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from PIL import Image

from swarmbook.analysis.claims import MIMETYPE
from swarmbook.reproduction import execution, papers, publishing

ROOT = Path(__file__).parents[1]
RECORDS = papers.records(ROOT / "papers")
NOTEBOOKS = [paper.notebook for paper in RECORDS.values() if not paper.profile]
LONGEST = 30  # lines of a cell; what is longer belongs in the library

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def flaws(notebook: NotebookNode, profile: str = "") -> Iterator[str]:
    """What is wrong with a notebook that is to be committed; profile: of a record at another than the default one."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    tags = [cell.metadata.get("tags", []) for cell in code]
    if sum("parameters" in row for row in tags) != 1:
        yield "one cell must have the tag `parameters`"
    injected = [cell.source for cell, row in zip(code, tags, strict=True) if publishing.INJECTED in row]
    if injected != ([f'# Parameters\nprofile = "{profile}"'] if profile else []):
        yield "holds other injected parameters than its profile's; commit what `swarmbook run --record` writes"
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"cells were executed in the order {counts}"
    for number, cell in enumerate(code, 1):
        if len(cell.source.splitlines()) > LONGEST:
            yield f"code cell {number} is longer than {LONGEST} lines"
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"code cell {number} ended in an error"
        figure = [tag for tag in cell.metadata.get("tags", []) if tag.startswith("figure ")]
        if figure and not pictures(cell):
            yield f"code cell {number} is tagged {figure[0]!r} and shows no picture"
        if any(blank(picture) for picture in pictures(cell)):
            yield f"code cell {number} shows a blank picture"
        yield from (f"code cell {number} ({', '.join(figure)}): {fault}" for fault in unreadable(cell))
        if figure and not cell.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"code cell {number} draws {figure[0]!r}, and its source is not collapsed (`jupyter.source_hidden`)"


def unreadable(cell: NotebookNode) -> Iterator[str]:
    """What `analysis.pictures` found when it drew the figures of a cell, and which of them nobody described."""
    for output in cell.get("outputs", []):
        if "image/png" in output.get("data", {}):
            metadata = output.metadata.get("image/png", {})
            yield from metadata.get("overlaps", [])
            if not metadata.get("alt"):
                yield "a picture without a description; `analysis.figures.style` lets figures have one"


def stale(record: papers.Paper) -> list[str]:
    """Where a record at another profile differs from its paper's notebook, but for its profile and what it shows."""
    name = record.notebook.parent.name
    own, papers_own = (
        [
            (cell.id, cell.cell_type, cell.source, cell.metadata.get("tags", []))
            for cell in nbformat.read(path, as_version=4).cells
            if publishing.INJECTED not in cell.metadata.get("tags", [])
        ]
        for path in (record.notebook, record.notebook.with_name(f"{name}.ipynb"))
    )
    differing = [here or there for here, there in zip_longest(own, papers_own) if here != there]
    cure = f"renew it with `{record.command} --record`, which trains only what is not recorded"
    return [f"{record.notebook.name}: cell {cell[0]} is not as in {name}.ipynb; {cure}" for cell in differing[:1]]


def pictures(cell: NotebookNode) -> list[bytes]:
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return [base64.b64decode(each["image/png"]) for each in data if "image/png" in each]


def blank(picture: bytes) -> bool:
    """Whether a PNG shows next to nothing: one colour, or too small to read."""
    image = Image.open(io.BytesIO(picture)).convert("L")
    dark, light = image.getextrema()
    return min(image.size) < 50 or light - dark < 32


def pytest_here(target: Path, **environment: str) -> subprocess.CompletedProcess:
    """Pytest as this project sets it up, over notebooks that lie elsewhere."""
    command = [sys.executable, "-m", "pytest", "-n0", "-c", ROOT / "pyproject.toml", "--rootdir", target.parent]
    command += ["-p", "no:cacheprovider", "--color=no", target]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def committed(toy) -> Path:
    """A toy notebook with the outputs that `swarmbook run --record` leaves in it."""
    table = "import pandas; pandas.DataFrame({'loss': [2.5, 3.25]})"
    slow = "print('step 3 of 3, took 0.1 s')"
    figure = "import matplotlib.pyplot as plt\nfrom swarmbook.analysis.figures import style\nstyle()\n"
    figure += "plt.plot([0, steps], [0, rate])\nplt.ylabel('rate')\nplt.show()"
    claim = (
        "from IPython.display import display\n"
        "claims = [dict(id='T1', text='text', paper='1', ours='2', verdict='holds')]\n"
        f"display({{{MIMETYPE!r}: claims, 'text/plain': 'T1'}}, raw=True)"
    )
    path = toy("toy", (figure, "figure 1"), (table, "table 1"), (slow, ""), (claim, ""))
    collapsed = nbformat.read(path, as_version=4)
    collapsed.cells[2].metadata["jupyter"] = {"source_hidden": True}
    nbformat.write(collapsed, path)
    paper = papers.read_paper(path)
    publishing.commit(paper, execution.execute(paper).notebook)
    return path


@pytest.mark.parametrize("name", RECORDS)
def test_notebook_is_well_formed(name):
    assert not list(flaws(nbformat.read(RECORDS[name].notebook, as_version=4), RECORDS[name].profile))


def test_records_at_other_profiles_are_of_the_code_beside_them():
    assert [fault for record in RECORDS.values() for fault in stale(record)] == []


def test_a_record_of_other_code_is_noticed(committed):
    paper = papers.read_paper(committed)
    record = papers.at(paper, "smoke")
    publishing.commit(record, execution.execute(paper, {"profile": "smoke"}).notebook)
    before, stored = committed.read_text(), nbformat.read(record.notebook, as_version=4)
    assert stale(record) == [] == list(flaws(stored, "smoke"))
    assert next(flaws(stored)).startswith("holds other injected parameters")
    assert next(flaws(stored, "gpu")).startswith("holds other injected parameters")
    for change in (
        lambda cells: cells[2].update(source="1 + 1"),
        lambda cells: cells[0].update(source="# Another title"),
        lambda cells: cells.pop(),
        lambda cells: cells.insert(2, cells.pop()),
        lambda cells: cells[2].metadata.update(tags=["figure 2"]),
    ):
        notebook = nbformat.reads(before, as_version=4)
        change(notebook.cells)
        nbformat.write(notebook, committed)
        (fault,) = stale(record)
        assert (
            "toy.smoke.ipynb: cell " in fault and "renew it with `swarmbook run toy --profile smoke --record`" in fault
        )


@pytest.mark.parametrize("kept", sorted(ROOT.glob("papers/*/*.png")), ids=lambda path: path.stem)
def test_a_picture_beside_a_notebook_is_one_of_its_figures(kept):
    """Else renew it with `swarmbook run --record`."""
    notebook = nbformat.read(kept.with_name(f"{kept.parent.name}.ipynb"), as_version=4)
    assert publishing.pictures(notebook)[kept.stem.replace("-", " ")] == kept.read_bytes()


@each_notebook
def test_notebook_runs_from_nothing(path, tmp_path):
    """With nothing recorded or stored, at the smallest profile: every figure is drawn, every claim judged."""
    paper = papers.read_paper(path)
    environment = {"SWARMBOOK_STORE": str(tmp_path / "store"), "SWARMBOOK_FRESH": "1"}
    done = execution.execute(paper, {"profile": "smoke"}, tmp_path / "runs", environment)
    executed = nbformat.read(done.notebook, as_version=4)
    executed.cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in executed.cells:
        tags = cell.metadata.get("tags", [])
        assert not any(tag.startswith("figure ") for tag in tags) or pictures(cell), f"nothing drawn for {tags}"
        assert not any(blank(picture) for picture in pictures(cell)), f"a blank picture for {tags}"
    assert [claim.id for claim in done.claims] == [claim.id for claim in paper.claims]


def test_notebooks_import_nothing_that_only_training_needs_and_their_form_is_checked_without_grammars():
    """torch takes 1.5 s in every kernel, scipy's statistics 0.6 s, and the grammars 1.3 s in every process."""
    code = [cell for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    imports = re.findall(r"^from swarmbook\S* import (?:\([^)]*\)|.+)$", "\n".join(cell.source for cell in code), re.M)
    assert len(imports) > 50
    command = "\n".join([*imports, "import swarmbook.reproduction, nbformat, sys"])
    command += "\nprint({'torch', 'scipy.stats', 'scipy.signal', 'seaborn', 'lark'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_pytest_visits_the_notebooks():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    assert "papers" in options["testpaths"]
    assert {"--nbval", "--nbval-current-env"} <= set(options["addopts"])


def test_a_true_notebook_passes_whatever_kernel_is_installed(committed, tmp_path):
    assert not list(flaws(nbformat.read(committed, as_version=4)))
    kernel = tmp_path / "jupyter/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "other", "language": "python"}))
    source = committed.read_text().replace("took 0.1 s", "took 99 s")  # in code and stored output
    committed.write_text(source.replace("took 99 s')", "took 0.1 s')"))
    done = pytest_here(committed, JUPYTER_PATH=str(tmp_path / "jupyter"))
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


@pytest.mark.parametrize(
    ("stored", "tampered"),
    [
        ("step 3 of 3", "step 3 of 4"),
        ("3.25</td>", "3.35</td>"),
        ('"verdict": "holds"', '"verdict": "does not hold"'),
    ],
)
def test_a_tampered_output_is_noticed(committed, stored, tampered):
    notebook = json.loads(committed.read_text())
    for cell in notebook["cells"]:
        if "outputs" in cell:
            text = json.dumps(cell["outputs"])
            cell["outputs"] = json.loads(text.replace(stored, tampered))
    before = committed.read_text()
    committed.write_text(json.dumps(notebook))
    assert nbformat.read(committed, 4) != nbformat.reads(before, 4)
    done = pytest_here(committed)
    assert done.returncode == 1
    assert "1 failed, 4 passed" in done.stdout


def png(size: tuple[int, int], dots: bool) -> str:
    image = Image.new("RGB", size, "white")
    if dots:
        image.putpixel((10, 10), (0, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_flaws_are_found(committed):
    def flawed(change) -> list[str]:
        notebook = nbformat.read(committed, as_version=4)
        change(notebook.cells)
        return list(flaws(notebook))

    def set_picture(cells, picture):
        cells[2].outputs[0].data["image/png"] = picture

    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    assert flawed(lambda cells: None) == []
    assert flawed(lambda cells: cells.pop(1))[0] == "one cell must have the tag `parameters`"
    assert "executed in the order" in flawed(lambda cells: cells[-1].update(execution_count=9))[0]
    assert "longer than 30 lines" in flawed(lambda cells: cells[1].update(source="a = 1\n" * 31))[0]
    assert "ended in an error" in flawed(lambda cells: cells[1].outputs.append(error))[0]
    assert "shows no picture" in flawed(lambda cells: cells[2].update(outputs=[]))[0]
    assert "blank picture" in flawed(lambda cells: set_picture(cells, png((200, 200), dots=False)))[0]
    assert "blank picture" in flawed(lambda cells: set_picture(cells, png((20, 20), dots=True)))[0]
    assert flawed(lambda cells: set_picture(cells, png((200, 200), dots=True))) == []
    assert "is not collapsed" in flawed(lambda cells: cells[2].metadata.pop("jupyter"))[0]
    assert "without a description" in flawed(lambda cells: cells[2].outputs[0].metadata.clear())[0]
    over = {"overlaps": ["'a' lies over 'b'"]}
    assert flawed(lambda cells: cells[2].outputs[0].metadata["image/png"].update(over)) == [
        "code cell 2 (figure 1): 'a' lies over 'b'"
    ]


def test_pytest_works_from_any_folder(pytestconfig):
    assert Path(pytestconfig.getoption("nbval_sanitize_with")).is_absolute()
