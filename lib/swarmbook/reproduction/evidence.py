"""Which figures and tables show what a claim stands on, by the names in a notebook's code.

- A claim reads names. What its cell computes on the way counts as what it was computed from.
- Its evidence is the figure or table at or before it with most of these names, and the nearest of several. Names count
  there that have kept their value since. Constants, which are written in capitals, count under the same heading alone.
- A name that this one does not have leads to the cell that gave it its value last. If that cell shows a figure or
  table, this is evidence as well.
- A claim that shares no name with a figure or table has the nearest before it under the same heading, or none.
- Imports, functions and parameters lead nowhere: all figures share them.

Nothing is executed.

Serves: the links of claims in `swarmbook report`.
"""

import ast
import builtins
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from swarmbook.reproduction import papers
from swarmbook.reproduction.names import Names

Cells = Sequence[Mapping[str, Any]]


def evidence(cells: Cells, ids: Collection[str]) -> dict[str, list[int]]:
    """The numbers of the cells with figures and tables that each claim stands on, in order; empty if there is none."""
    common, written = _common(cells), {}
    shown = [number for number, cell in enumerate(cells) if papers.label_of(cell)]
    used = {number: _names(cells[number]) for number in shown}
    found: dict[str, list[int]] = {}
    heading = 0
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "markdown" and re.search("^#", "".join(cell["source"]), re.MULTILINE):
            heading = number
        statements = [(statement, Names(statement)) for statement in _statements(cell)]
        for place, (statement, names) in enumerate(statements):
            for id in _added(statement, ids):
                needed = _needed(names.read - common, [earlier for _, earlier in statements[:place]]) - common
                which, most = None, 0
                for each in (each for each in shown if each <= number):
                    near = each >= heading
                    kept = [name for name in needed & used[each] if each >= written.get(name, 0)]
                    score = math.inf if each == number else sum(near or not name.isupper() for name in kept)
                    if score >= most and (score or near):
                        which, most = each, score
                rest = {name for name in needed - used.get(which, set()) if not name.isupper()}
                found[id] = sorted({which, *(written.get(name) for name in rest)} & set(shown))
        for _, names in statements:
            written |= dict.fromkeys(names.written | names.changed, number)
    return {id: found.get(id, []) for id in ids}


def _needed(read: set[str], before: Sequence[Names]) -> set[str]:
    """The names of other cells that these names go back to, by the statements before in the same cell."""
    needed = set(read)
    for names in reversed(before):
        if needed & (names.written | names.changed):
            needed = (needed - names.written) | names.read
    return needed


def _common(cells: Cells) -> set[str]:
    """Names that tell nothing about where a number comes from."""
    found = {"claims", *dir(builtins)}
    for cell in cells:
        parameters = "parameters" in cell["metadata"].get("tags", [])
        for statement in _statements(cell):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                found |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
            elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
                found.add(statement.name)
            elif parameters:
                found |= Names(statement).written
            calls = (node.func for node in ast.walk(statement) if isinstance(node, ast.Call))
            found |= {function.id for function in calls if isinstance(function, ast.Name)}
    return found


def _names(cell: Mapping[str, Any]) -> set[str]:
    return set().union(*(names.read | names.written for names in map(Names, _statements(cell))))


def _statements(cell: Mapping[str, Any]) -> list[ast.stmt]:
    if cell["cell_type"] != "code":
        return []
    try:
        return ast.parse("".join(cell["source"])).body
    except SyntaxError:  # a magic of IPython, say
        return []


def _added(statement: ast.stmt, ids: Collection[str]) -> list[str]:
    """The claims that a statement adds, by their ids in it; it may be a loop over several."""
    nodes = list(ast.walk(statement))
    adds = any(isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "add" for n in nodes)
    return [n.value for n in nodes if adds and isinstance(n, ast.Constant) and n.value in ids]
