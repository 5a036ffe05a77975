#!/usr/bin/env bash
# papermill 2.7.0 writes a tuple parameter as a string.
#
# Guess: `execute_notebook(..., parameters={"size": (1, 2)})` gives the notebook a tuple, or, as JSON would, a list.
# Seen: the injected cell says `size = "(1, 2)"`. Nothing warns. The notebook fails later, or goes on: a loop over
#   `size` then visits six characters. The same holds for a tuple inside a dictionary. Lists arrive as lists.
# Remedy: give lists.
# Known: nteract/papermill issue 784.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q papermill==2.7.0

cat > show.py <<'EOF'
import nbformat
import papermill
from nbformat.v4 import new_code_cell, new_notebook

language = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
cells = [new_code_cell("size = (1, 2)", metadata={"tags": ["parameters"]})]
nbformat.write(new_notebook(cells=cells, metadata=language), "in.ipynb")
for size in ([1, 2], (1, 2), {"inner": (1, 2)}):
    given = {"size": size}
    out = papermill.execute_notebook("in.ipynb", "out.ipynb", given, prepare_only=True)  # writes the cell, runs nothing
    (injected,) = [cell for cell in out.cells if "injected-parameters" in cell.metadata.tags]
    arrived = {}
    exec(injected.source, arrived)
    print(f"given {size!r}, arrived {arrived['size']!r}")
EOF
venv/bin/python show.py > seen
diff - seen <<'EOF'
given [1, 2], arrived [1, 2]
given (1, 2), arrived '(1, 2)'
given {'inner': (1, 2)}, arrived {'inner': '(1, 2)'}
EOF
cat seen
