"""The parameters cell of a notebook, read as Python reads it: names, defaults, and the comments that explain them.

papermill's own inspection matches lines with a regular expression. It loses a parameter whose comment holds a second
`=`, and reads past strings with `#` (papermill 2.7).

Serves: `swarmbook run -p NAME VALUE`, `sweep` and `list`.
"""

import ast
import io
import tokenize
from typing import Any, NamedTuple


class Assigned(NamedTuple):
    """One parameter: its name, its default (source text where it is no literal), and the comment behind it."""

    name: str
    default: Any
    help: str


def parameters_of(source: str) -> list[Assigned]:
    """The assignments at the top level of a cell, in their order; of a name that comes twice the last one.

    `a = 1`, `a: int = 1`, `a = b = 1` and `a, b = 1, 2` all assign parameters. Other statements are passed by.
    The comment behind the last line of a statement explains all that it assigns. SyntaxError for what is no Python.
    """
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Assigned] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        else:
            continue
        explained = comments.get(statement.end_lineno) or comments.get(statement.lineno, "")
        for target in targets:
            for name, value in _pairs(target, statement.value):
                found.pop(name, None)  # so that the order is that of the last assignments
                found[name] = Assigned(name, _literal(value, source), explained)
    return list(found.values())


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        return [(target.id, value)]
    sequences = (ast.Tuple, ast.List)
    if isinstance(target, sequences) and isinstance(value, sequences) and len(target.elts) == len(value.elts):
        return [pair for part, own in zip(target.elts, value.elts, strict=True) for pair in _pairs(part, own)]
    return []


def _literal(value: ast.expr, source: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):
        return ast.get_source_segment(source, value)
