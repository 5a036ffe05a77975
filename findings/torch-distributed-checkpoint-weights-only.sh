#!/usr/bin/env bash
# torch 2.13.0: torch.load(weights_only=True) cannot read the .metadata file of torch.distributed.checkpoint.
#
# Guess: a checkpoint that torch.distributed.checkpoint has saved can be looked at with torch's restricted loader. The data
#   file loads at once. For the file that says which tensors there are, one allows the few classes of
#   torch.distributed.checkpoint.metadata with `torch.serialization.safe_globals`.
# Seen: with and without these classes the loader ends with "Unsupported operand 149". That is the frame opcode of pickle
#   protocol 4. The checkpoint's writer uses the protocol that is Python's default, and the restricted loader reads what
#   torch.save writes, which is protocol 2. So no list of allowed classes helps, though the message speaks of a setting.
# Remedy: ask `FileSystemReader(folder).read_metadata()`, which does not restrict what is loaded, so only for files of
#   one's own. To pass weights on, write them with torch.save or as safetensors.
# Known: pytorch/pytorch issues 118092 (protocol 4 in files of torch.save) and 189308 (the metadata is a plain pickle).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.1

cat > show.py <<'EOF'
import inspect
import pickletools
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

warnings.simplefilter("ignore")
dcp.save({"weight": torch.arange(4.0)}, checkpoint_id="saved")


def load(name, allowed=()):
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return type(torch.load(f"saved/{name}", weights_only=True)).__name__
    except Exception as error:
        (reason,) = [line for line in str(error).splitlines() if "operand" in line or "GLOBAL" in line]
        return f"{type(error).__name__}: {reason}"


classes = [kind for module in (metadata, filesystem) for _, kind in inspect.getmembers(module, inspect.isclass)]
print("data:", load("__0_0.distcp"))
print(".metadata:", load(".metadata"))
print(".metadata, all its classes allowed:", load(".metadata", classes))
print("its pickle protocol:", next(pickletools.genops(Path("saved/.metadata").read_bytes()))[1])
print("its own reader:", type(dcp.FileSystemReader("saved").read_metadata()).__name__)
EOF
venv/bin/python show.py 2> told > seen || { cat told; exit 1; }
diff - seen <<'EOF'
data: Tensor
.metadata: UnpicklingError: Unsupported operand 149
.metadata, all its classes allowed: UnpicklingError: Unsupported operand 149
its pickle protocol: 4
its own reader: Metadata
EOF
cat seen
