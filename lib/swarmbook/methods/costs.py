"""What a run costs beyond its weights: bytes and FLOPs, counted where they arise."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ENTRIES = (
    "stored",  # bytes of copies held beside the training state, at most at any time
    "sent in training",  # bytes sent to keep copies and between replicas, over the run
    "sent in background",  # how many of these go while training goes on
    "serial hops",  # messages between replicas of which each waits for the one before it
    "sent on failure",  # bytes sent to rebuild stages, over the run
    "training FLOPs",  # forward and backward of every step, repeated ones included
    "redundant FLOPs",  # of computing what another node computes as well
    "steps repeated",
    "rebuilt",  # stages
    "not recoverable",  # stages whose copies died with them
)


class Costs(Counter):
    """Totals of one run by the names of `ENTRIES`."""

    def add(self, name: str, amount: float) -> None:
        if name not in ENTRIES:
            raise KeyError(f"{name!r} is no entry of the costs: {', '.join(ENTRIES)}")
        self[name] += amount


def bytes_of(tensors: Mapping[str, "Tensor"]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
