#!/usr/bin/env bash
# papermill 2.7.0 overlooks a parameter whose comment has a `=`, and cuts a default at a `#` within a string.
#
# Guess: `inspect_notebook` names the parameters of a notebook and their defaults as Python would read the cell.
# Seen: it counts the `=` of a line and skips the line if there are two, also if the second stands in the comment; a line
#   in the log says "Unable to parse". It takes the first `#` for the start of the comment, also within quotes; nothing
#   says so. `papermill --help-notebook` shows the same.
# Remedy: read the cell with `ast`.
# Known: nteract/papermill issues 721, 772 and 864, for a `=` within a string.
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

source = """\
steps = 5  # how many
rate = 0.1  # a share, as in rate=0.2
colour = "#00ff00"
"""
language = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
cells = [new_code_cell(source, metadata={"tags": ["parameters"]})]
nbformat.write(new_notebook(cells=cells, metadata=language), "in.ipynb")
for name, parameter in papermill.inspect_notebook("in.ipynb").items():
    print(f"{name}: default {parameter['default']!r}, help {parameter['help']!r}")
EOF
venv/bin/python show.py > seen
diff - seen <<'EOF'
steps: default '5', help 'how many'
colour: default '"', help '00ff00"'
EOF
cat seen
