"""DeMo's view of a tensor: chunks of it as frequencies, of which the largest are sent (arXiv 2411.19870, Algorithm 1).

A matrix is cut into chunks, and each chunk is taken through the discrete cosine transform of both its axes; a vector
through that of its one. The transform is orthonormal.

Serves: the exchange "DeMo".
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def chunk_of(size: int, most: int) -> int:
    """The edge of the chunks of an axis: the largest divisor of its size that is not above `most`."""
    return max(edge for edge in range(1, min(size, max(1, most)) + 1) if size % edge == 0)


def basis(size: int, like: "Tensor") -> "Tensor":
    """The orthonormal DCT-II [frequency, place], in the type and on the device of `like`."""
    import torch  # here, so that configurations need no torch

    places = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * (places + 0.5) * places[:, None]) * math.sqrt(2 / size)
    waves[0] *= math.sqrt(0.5)
    return waves.to(like)


def frequencies(tensors: "Tensor", matrices: bool, most: int) -> "Tensor":
    """Frequencies [..., chunks, entries of a chunk] of matrices [..., a, b], or of vectors [..., a]."""
    if not matrices:
        edge = chunk_of(tensors.shape[-1], most)
        return tensors.unflatten(-1, (-1, edge)) @ basis(edge, tensors).T
    h, w = (chunk_of(size, most) for size in tensors.shape[-2:])
    chunks = tensors.unflatten(-1, (-1, w)).unflatten(-3, (-1, h)).transpose(-3, -2)  # [..., a / h, b / w, h, w]
    return (basis(h, tensors) @ chunks @ basis(w, tensors).T).flatten(-2).flatten(-3, -2)


def from_frequencies(found: "Tensor", like: "Tensor", matrices: bool, most: int) -> "Tensor":
    """The tensors, shaped as `like`, that have these frequencies; the inverse of `frequencies`."""
    if not matrices:
        return (found @ basis(found.shape[-1], found)).view_as(like)
    h, w = (chunk_of(size, most) for size in like.shape[-2:])
    chunks = found.unflatten(-1, (h, w)).unflatten(-3, (like.shape[-2] // h, -1))
    return (basis(h, found).T @ chunks @ basis(w, found)).transpose(-3, -2).reshape(like.shape)


def largest(found: "Tensor", count: int) -> "Tensor":
    """Which frequencies of each chunk are among its `count` largest, bool like `found`."""
    places = found.abs().topk(min(max(1, count), found.shape[-1]), dim=-1).indices
    return found.new_zeros(found.shape).scatter_(-1, places, 1.0).bool()
