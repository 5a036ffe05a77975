"""What a run costs beyond its weights: bytes and FLOPs, counted where they arise."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from swarmbook.model import Shape

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


class Ledger(Counter):
    """Totals of one run by the names of `ENTRIES`."""

    def add(self, name: str, amount: float) -> None:
        if name not in ENTRIES:
            raise KeyError(f"{name!r} is no entry of a ledger: {', '.join(ENTRIES)}")
        self[name] += amount


def bytes_of(tensors: Mapping[str, "Tensor"]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def flops(shape: "Shape", tokens: int, sequence: int, share: float = 1.0, ends: bool = True) -> int:
    """FLOPs of one forward pass over `tokens` tokens in sequences of `sequence`; a backward pass takes twice as many.

    share: of the stages, that a token goes through on average. A multiply-add counts 2; matmuls and causal attention
    only.
    """
    D, H = shape.width, shape.hidden
    layer = 2 * (4 * D * D + 3 * D * H) + 2 * D * (sequence + 1)  # scores and values of half the positions
    return round(share * tokens * shape.layers * layer) + (tokens * 2 * D * shape.vocabulary if ends else 0)
