#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("json") cannot read a packed file with brackets in its name.
#
# Good guess: a file that is read as `part[1].jsonl` is read as `part[1].jsonl.gz` too, as `part-1.jsonl.gz` is. The
# brackets are escaped for the library's patterns (glob.escape).
# Behaviour: streamed or not, the packed file ends in a ValueError. The library chains the protocol and the name of the
# unpacked file into an address, gzip://part[1].jsonl::/..., and Python's urlsplit takes the brackets for an IPv6 host.
# Seen with Python 3.11:
#   part[1].jsonl streamed: ['one']
#   part-1.jsonl.gz streamed: ['one']
#   part[1].jsonl.gz streamed: ValueError: '1' does not appear to be an IPv4 or IPv6 address
#   part[1].jsonl.gz whole: ValueError: '1' does not appear to be an IPv4 or IPv6 address
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install -q "datasets==5.2.0" "pandas==3.1.1" "pyarrow==26.0.1" "huggingface-hub==2.4.0"
export HF_HUB_OFFLINE=1 HF_HOME="$place/home"
cat > look.py <<'P'
import glob
import gzip
from pathlib import Path

from datasets import load_dataset

row = b'{"text": "one"}\n'
Path("part[1].jsonl").write_bytes(row)
for name in ("part-1.jsonl.gz", "part[1].jsonl.gz"):
    Path(name).write_bytes(gzip.compress(row))


def show(name, streaming):
    try:
        named = glob.escape(str(Path(name).absolute()))
        rows = load_dataset("json", data_files=[named], split="train", streaming=streaming)
        told = [row["text"] for row in rows]
    except ValueError as error:
        told = f"{type(error).__name__}: {error}"
    print(name, "streamed:" if streaming else "whole:", told)


show("part[1].jsonl", True)
show("part-1.jsonl.gz", True)
show("part[1].jsonl.gz", True)
show("part[1].jsonl.gz", False)
P
env/bin/python look.py 2> told | tee seen || { cat told; exit 1; }
diff seen - <<'P'
part[1].jsonl streamed: ['one']
part-1.jsonl.gz streamed: ['one']
part[1].jsonl.gz streamed: ValueError: '1' does not appear to be an IPv4 or IPv6 address
part[1].jsonl.gz whole: ValueError: '1' does not appear to be an IPv4 or IPv6 address
P
