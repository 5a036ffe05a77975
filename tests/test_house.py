"""The house: no circle of imports, few floors, imports that point one way, long files that say why."""

import ast
import importlib
import re

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


def told(path):
    """The dotted names of the library that a page or a module tells of, but for examples of what is wrong."""
    return sorted(set(re.findall(r"(?<![\w./-])swarmbook(?:\.[A-Za-z_]\w*)+", path.read_text())) - {"swarmbook.runn"})


def exists(name):
    """Whether a dotted name is that of a module or of something in one."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for part in parts[split:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_names_of_the_library_in_pages_and_docstrings_exist():
    pages = [path for path in ROOT.glob("*/*.md")] + [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    pages += [*(ROOT / "lib").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "papers").glob("*/*.ipynb")]
    wrong = {path.name: [name for name in told(path) if not exists(name)] for path in pages}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize("name", long_files())
def test_long_files_say_why(name):
    """One concept may need many lines; its docstring then says so."""
    assert "one file" in (ast.get_docstring(ast.parse((ROOT / name).read_text())) or "")
