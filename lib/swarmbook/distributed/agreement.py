"""What all ranks must have alike before the first step, and what is said where they do not.

Ranks that were started by hand may have been given other files or options. They would train a mixture of two runs, or
wait for one another for ever.

Serves: `python -m swarmbook.distributed`.
"""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import swarmbook
from swarmbook.config import NUMERICS, RunConfig
from swarmbook.distributed.mesh import Mesh

OPTIONS = ("keep", "replace", "places", "pace", "weight", "timeout")
LONGEST = 80  # characters of a value in a message


def stated(runs: Sequence[RunConfig], meshes: Sequence[Mesh], options: Namespace, ranks: int) -> dict[str, str]:
    """What a rank was started with, by name: versions, options, and of each run its key, mesh and fields."""
    said: dict[str, Any] = {"swarmbook": swarmbook.__version__, "torch": torch.__version__, "numerics": NUMERICS}
    said |= {"processes": ranks, "GPUs used": torch.cuda.is_available(), "number of runs": len(runs)}
    said |= {f"--{name}": getattr(options, name) for name in OPTIONS}
    for i, (run, mesh) in enumerate(zip(runs, meshes, strict=True), 1):
        said[f"--mesh of run {i}"] = mesh.shape
        said |= {f"{name} of run {i}": value for name, value in run.model_dump(mode="json").items()}
        said[f"text or own code of run {i}, by its key"] = run.key
    return {name: json.dumps(value) for name, value in said.items()}


def difference(statements: Mapping[int, Mapping[str, str]]) -> str | None:
    """What ranks that do not have all alike are told; None if they do. statements: what `stated` gave, by rank."""
    names = dict.fromkeys(name for said in statements.values() for name in said)
    differing = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for rank, said in sorted(statements.items()):
            holders.setdefault(said.get(name, "nothing"), []).append(rank)
        if len(holders) > 1:
            who = [f"{_short(value)} on rank {', '.join(map(str, ranks))}" for value, ranks in holders.items()]
            differing.append(f"{name} is {', '.join(who)}")
    if not differing:
        return None
    told = [text for text in differing if "by its key" not in text] or differing  # a key differs if any field does
    return f"the ranks were started with different things: {'; '.join(told)}. Start all with the same files and options"


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
