"""Work on large tensors piece by piece, so that several operations in a row find each piece in the cache."""

from __future__ import annotations

from torch import Tensor

#: Elements of a piece: half a megabyte of each tensor.
PIECE = 1 << 17


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat views of a contiguous tensor, without its graph: what is written to them is written to it.

    Example:
        >>> import torch
        >>> [len(part) for part in pieces(torch.zeros(2, PIECE))]
        [131072, 131072]
    """
    flat = tensor.detach().view(-1)
    return (flat,) if len(flat) <= PIECE else flat.split(PIECE)
