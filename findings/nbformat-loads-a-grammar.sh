#!/usr/bin/env bash
# nbformat 5.11.1 beside rfc3987-syntax 1.1.0: reading a notebook compiles a grammar of addresses that it never asks.
#
# Good guess: a package that only adds an optional check costs nothing until something is checked. `import nbformat`
# takes as long whether it is installed or not; JupyterLab installs it with jsonschema[format-nongpl].
# Behaviour: `import nbformat` imports jsonschema, jsonschema imports rfc3987_syntax if it is there, and that builds
# its parser with lark in the import. It takes most of the time of the import, in each process that reads a notebook.
# The schema of notebooks has no internationalised addresses, so the parser is never used.
# Seen with Python 3.11:
#   without rfc3987-syntax: lark loaded False
#   with rfc3987-syntax: lark loaded True
#   the import takes more than three times as long: True
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install -q "nbformat==5.11.1" "jsonschema==4.26.0" "rfc3987-syntax==1.1.0" "lark==1.3.1"
cat > look.py <<'P'
import subprocess
import sys

CODE = """
import sys, time
if {without}:
    sys.modules["rfc3987_syntax"] = None
began = time.process_time()
import nbformat
print(time.process_time() - began, "lark" in sys.modules)
"""


def imported(without):
    runs = [subprocess.check_output([sys.executable, "-c", CODE.format(without=without)], text=True) for _ in range(4)]
    seconds, loaded = zip(*(run.split() for run in runs), strict=True)
    return min(map(float, seconds[1:])), loaded[0]


(fast, absent), (slow, present) = imported(True), imported(False)
print("without rfc3987-syntax: lark loaded", absent)
print("with rfc3987-syntax: lark loaded", present)
print("the import takes more than three times as long:", slow > 3 * fast)
P
env/bin/python look.py 2> told | tee seen || { cat told; exit 1; }
diff seen - <<'P'
without rfc3987-syntax: lark loaded False
with rfc3987-syntax: lark loaded True
the import takes more than three times as long: True
P
