"""The house: no circle of imports, few floors, imports that point one way, long files that say why."""

import ast

import pytest
from house import FLOORS, ROOT, circles, highest, imports, long_files
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


@pytest.fixture(scope="module")
def graph():
    return imports()


def test_no_module_imports_itself_through_others(graph):
    assert circles(graph) == []


def test_there_are_few_floors(graph):
    assert highest(graph) <= FLOORS


def test_imports_point_one_way():
    assert lint_imports(str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


def test_every_room_is_in_the_contract():
    """A new module or package at the top has a place among the layers."""
    rooms = {
        path.stem
        for path in (ROOT / "lib/swarmbook").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    contract = (ROOT / "pyproject.toml").read_text()
    assert [room for room in sorted(rooms - {"__init__"}) if f"swarmbook.{room}" not in contract] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "lib").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "lib"))
)
def test_every_module_says_what_it_holds(path):
    assert (ast.get_docstring(ast.parse(path.read_text())) or "TODO") != "TODO"


@pytest.mark.parametrize("name", long_files())
def test_long_files_say_why(name):
    """One concept may need many lines; its docstring then says so."""
    assert "one file" in (ast.get_docstring(ast.parse((ROOT / name).read_text())) or "")
