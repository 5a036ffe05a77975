"""Parameters cells as people write them, each with the values that Python gives its names."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmbook.reproduction.parameters_cell import parameters_of

CELLS = {
    'profile = "cpu"  # smoke | cpu | gpu | paper': [("profile", "cpu", "smoke | cpu | gpu | paper")],
    "rate = 0.1  # step size; rate = 0 trains nothing": [("rate", 0.1, "step size; rate = 0 trains nothing")],
    'note = "a # b"  # text': [("note", "a # b", "text")],
    'mark = "=="': [("mark", "==", "")],
    "size: int | None = None  # rows": [("size", None, "rows")],
    'kind: "Literal[1, 2]" = 1': [("kind", 1, "")],
    "a = 1; b = 2  # both": [("a", 1, "both"), ("b", 2, "both")],
    "import os\na = 1\nimport sys\nb = [2,\n     3]  # list": [("a", 1, ""), ("b", [2, 3], "list")],
    "a = b = 3": [("a", 3, ""), ("b", 3, "")],
    "low, high = 1, 2.5": [("low", 1, ""), ("high", 2.5, "")],
    "betas = (0.9, 0.95)": [("betas", (0.9, 0.95), "")],
    "a = 1\na = 2  # the last": [("a", 2, "the last")],
    "import os\nwhere = os.getcwd()": [("where", "os.getcwd()", "")],
    "# a = 1\n\nb = -1e-3": [("b", -1e-3, "")],
    'text = """a = 1\n# no comment\n"""  # long': [("text", "a = 1\n# no comment\n", "long")],
    "a: int\nb = 1\nb += 1\nif b:\n    c = 3": [("b", 1, "")],
}


@pytest.mark.parametrize("source", CELLS)
def test_cells_are_read_as_python_reads_them(source):
    assert [tuple(parameter) for parameter in parameters_of(source)] == CELLS[source]


@given(
    st.dictionaries(st.from_regex("[a-z]{1,5}_", fullmatch=True), st.one_of(st.integers(), st.text(), st.booleans()))
)
def test_whatever_is_assigned_is_found(values):
    source = "\n".join(f"{name} = {value!r}  # {name} = 1 | # | {value!r}" for name, value in values.items())
    assert {parameter.name: parameter.default for parameter in parameters_of(source)} == values


@pytest.mark.parametrize(
    "notebook", sorted((Path(__file__).parents[1] / "papers").glob("*/*.ipynb")), ids=lambda p: p.stem
)
def test_our_notebooks_read_as_papermill_reads_them(notebook):
    from papermill.translators import PythonTranslator

    cells = json.loads(notebook.read_text())["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    source = "".join(cell["source"])
    theirs = [(p.name, p.help) for p in PythonTranslator.inspect({"source": source})]
    assert [(p.name, p.help) for p in parameters_of(source)] == theirs
