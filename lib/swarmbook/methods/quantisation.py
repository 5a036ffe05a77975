"""Quantisation by statistics: a tensor in a few bits an entry, each a bin around the mean (MuLoCo's released code).

Serves: the exchanges "DiLoCo, 4 bits" and "DiLoCo, 2 bits".
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SIGMAS = 6  # standard deviations that all bins together are wide


def quantised(tensors: "Tensor", bits: int) -> "Tensor":
    """What arrives of tensors [..., k], each of k entries on its own, when an entry is sent in `bits` bits.

    The bins of a tensor are equally wide and have `SIGMAS` standard deviations together; those at the ends reach
    further. An entry arrives as the mean of all entries in its bin.
    """
    bins = 2**bits
    mean = tensors.mean(-1, keepdim=True)
    centred = tensors - mean
    width = SIGMAS / bins * centred.std(-1, keepdim=True) if tensors.shape[-1] > 1 else mean * 0
    width = width.where(width > 0, 1.0)
    bin_of = (centred / width + bins // 2).round_().clamp_(0, bins - 1)
    found = mean.expand_as(tensors).clone()
    for b in range(bins):  # sums, not scattered additions, whose order a GPU does not keep
        inside = (bin_of == b).to(centred)
        found += inside * ((inside * centred).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1))
    return found


def bytes_sent(entries: int, bits: int) -> int:
    """Bytes of one such tensor: its entries, and in fp32 its mean and what each bin stands for."""
    return -(-entries * bits // 8) + 4 * (1 + 2**bits)
