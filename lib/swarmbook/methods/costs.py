"""What a run costs beyond its weights: bytes, FLOPs, messages and stages, counted where they arise.

Serves: CheckFree table 1; NoLoCo at equal bytes and equal hops; SkipPipe's FLOPs of skipped stages.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ENTRIES = (
    "stored",  # bytes of copies held beside the training state, at most at any time
    "sent in training",  # bytes sent to keep copies and between replicas, over the run
    "sent in background",  # bytes among these that are sent while training goes on
    "serial hops",  # messages between replicas of which each waits for the one before it
    "sent on failure",  # bytes sent to rebuild stages, and to replicas that copy a peer's weights, over the run
    "training FLOPs",  # forward and backward of every step, repeated steps included
    "redundant FLOPs",  # FLOPs of computing what another node computes as well
    "steps repeated",  # steps that a rollback undid and the run made again
    "rebuilt",  # lost stages that were rebuilt
    "not recoverable",  # lost stages whose copies died with them
)


class Costs(Counter):
    """Totals of one run by the names of `ENTRIES`; the rows of the metric "ledger" in its record."""

    def add(self, name: str, amount: float) -> None:
        """Add to an entry; KeyError for a name that is not in `ENTRIES`."""
        if name not in ENTRIES:
            raise KeyError(f"{name!r} is no entry of the costs: {', '.join(ENTRIES)}")
        self[name] += amount


def bytes_of(tensors: Mapping[str, "Tensor"]) -> int:
    """Bytes that tensors take together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
