#!/usr/bin/env bash
# nbval 0.11.0: the rules of --nbval-sanitize-with reach stored text and HTML, and not stored JSON.
#
# Guess: what a rule replaces in the outputs of cells no longer counts in the comparison, whatever type an output has.
# Seen: three cells show how long something took, as text, as HTML and as JSON, and a rule replaces seconds. The first
#   two cells pass with other seconds than the stored ones. The third fails: JSON is compared as it is, since the rules
#   are applied to strings alone and an output of JSON is a mapping.
# Remedy: leave out what changes from JSON outputs, or skip their type with nbval_skip_compare.
# Known: the documentation says that outputs are sanitised, and names no types.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q nbval==0.11.0 pytest==9.2.0 ipykernel==7.4.0 nbformat==5.11.1

cat > rules.cfg <<'EOF'
[seconds]
regex: \d+\.\d s
replace: SECONDS
EOF
cat > make.py <<'EOF'
import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

SHOWN = {
    "text/plain": lambda seconds: f"took {seconds} s",
    "text/html": lambda seconds: f"<p>took {seconds} s</p>",
    "application/json": lambda seconds: {"took": f"{seconds} s"},
}
cells = []
for kind, made in SHOWN.items():
    source = f"from IPython.display import display\ndisplay({ {kind: made(2.5)} }, raw=True)"
    stored = new_output("display_data", data={kind: made(1.5)})
    cells.append(new_code_cell(source, execution_count=1, outputs=[stored]))
notebook = new_notebook(cells=cells)
notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(notebook, "times.ipynb")
EOF
venv/bin/python make.py
export PATH="$place/venv/bin:$PATH" JUPYTER_PATH="$place/venv/share/jupyter"
venv/bin/pytest -p no:cacheprovider --color=no -v --nbval --nbval-sanitize-with rules.cfg times.ipynb > all || true
grep -oE '^times::ipynb::Cell [0-9] (PASSED|FAILED)' all > seen
diff - seen <<'EOF'
times::ipynb::Cell 0 PASSED
times::ipynb::Cell 1 PASSED
times::ipynb::Cell 2 FAILED
EOF
cat seen
