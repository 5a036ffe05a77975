"""The house in numbers: circles of imports, floors, and files that grow too long: `python tests/house.py`.

Imports within functions and under TYPE_CHECKING count as any other. A module stands one floor above the highest that it
imports. The file `__init__.py` of a package hands names on, so that whoever imports it imports what it does.
"""

import sys
from pathlib import Path

import grimp
import networkx as nx

ROOT = Path(__file__).parents[1]
FLOORS, LINES = 10, 350  # at most; a longer file says at its top why it is one concept


def imports() -> nx.DiGraph:
    """Which module of the library imports which."""
    graph = grimp.build_graph("swarmbook", include_external_packages=False, cache_dir=None)
    found = nx.DiGraph()
    found.add_nodes_from(graph.modules)
    found.add_edges_from((a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a))
    for face in [name for name in graph.modules if graph.find_children(name)]:
        found.add_edges_from((a, b) for a in found.predecessors(face) for b in found.successors(face) if a != b)
        found.remove_node(face)
    return found


def circles(graph: nx.DiGraph) -> list[list[str]]:
    """Modules that import each other, by circle."""
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def long_files() -> dict[str, int]:
    """Files of the library of more than `LINES` lines, the longest first."""
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in ROOT.glob("lib/**/*.py")}
    return dict(sorted(((p, n) for p, n in lines.items() if n > LINES), key=lambda pair: -pair[1]))


def highest(graph: nx.DiGraph) -> int:
    """How many floors there are; circles must be gone."""
    return nx.dag_longest_path_length(graph) + 1


if __name__ == "__main__":
    graph = imports()
    found = circles(graph)
    print(f"{len(graph)} modules, {len(found)} circles of imports {found or ''}")
    if not found:
        print(f"{highest(graph)} floors (at most {FLOORS}); the way down: {' > '.join(nx.dag_longest_path(graph))}")
    for name, count in long_files().items():
        print(f"{name}: {count} lines")
    sys.exit(bool(found) or highest(graph) > FLOORS)
