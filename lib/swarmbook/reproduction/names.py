"""The names that a statement reads, writes and changes, by its syntax alone.

Serves: `swarmbook.reproduction.lineage` and `evidence`, which follow numbers through a notebook by their names.
"""

import ast
from typing import Any


class Names(ast.NodeVisitor):
    """The names of a statement.

    read: those whose value from before the statement it reads. written: those to which it always gives a new value.
    changed: those that may have changed. These are the ones whose items or attributes it sets, whose methods it calls
    as a statement, such as `rows.append(x)`, or which it writes on some of the ways through it only.
    """

    def __init__(self, statement: ast.stmt):
        self.read: set[str] = set()
        self.changed: set[str] = set()
        self._bound: set[str] = set()
        self._some: set[str] = set()
        self.visit(statement)
        self.written = self._bound - self._some
        self.changed |= self._some

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._bound.add(node.id)
        elif node.id not in self._bound:
            self.read.add(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._in_order(node.value, *node.targets)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._in_order(node.value, node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        base = _base(node.target)
        self._in_order(ast.Name(base, ast.Load()), node.value, node.target)
        self.changed.add(base)

    def visit_Subscript(self, node: ast.Subscript | ast.Attribute) -> None:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            self.changed.add(_base(node))

    visit_Attribute = visit_Subscript

    def visit_Expr(self, node: ast.Expr) -> None:
        self.visit(node.value)
        if isinstance(node.value, ast.Call) and not isinstance(node.value.func, ast.Name):
            self.changed.add(_base(node.value.func))

    def visit_For(self, node: ast.For) -> None:
        self._in_order(node.iter, node.target, *node.body, *node.orelse)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        before = set(self._bound)
        ways = []
        for way in (node.body, node.orelse):
            self._bound = set(before)
            self._in_order(*way)
            ways.append(self._bound)
        self._bound = ways[0] & ways[1]
        self._some |= (ways[0] | ways[1]) - self._bound

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self._in_order(*node.decorator_list)  # its body counts when it is called
        self._bound.add(node.name)

    visit_ClassDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        arguments = node.args
        self._in_order(*arguments.defaults, *(default for default in arguments.kw_defaults if default))
        self._apart([argument.arg for argument in ast.walk(arguments) if isinstance(argument, ast.arg)], node.body)

    def visit_ListComp(self, node: Any) -> None:
        parts = [part for each in node.generators for part in (each.iter, each.target, *each.ifs)]
        self._apart([], *parts, *((node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)))

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def _apart(self, arguments: list[str], *nodes: ast.AST) -> None:
        before = set(self._bound)
        self._bound |= set(arguments)
        self._in_order(*nodes)
        self._bound = before

    def _in_order(self, *nodes: ast.AST) -> None:
        for node in nodes:
            self.visit(node)


def _base(node: ast.AST) -> str:
    """The name at the bottom of `name.attribute[item](...)`; empty if there is none."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
