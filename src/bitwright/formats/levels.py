"""Level tables: a code is an index into a short table of integers, times one scale a row.

    x = scale * levels[code]

The levels are whole numbers in ascending order. Where they fit int8 the table is the weight that an integer
kernel sees, whatever the spacing: powers of two, sums of them, a codebook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitwright.errors import InputError, UnsupportedError
from bitwright.formats.affine import SMALLEST_SCALE

_CHUNK = 1 << 20  # values that are encoded at a time


def midpoints(levels: Tensor) -> Tensor:
    """Boundaries of the nearest-level rule, half-way between neighbours, float32 `[levels - 1]`."""
    levels = levels.double()
    return ((levels[1:] + levels[:-1]) / 2).float()


def encode_levels(rows: Tensor, scale: Tensor, boundaries: Tensor) -> Tensor:
    """Codes, int32: how many boundaries lie below `x / scale`. On a boundary the level nearer to zero wins.

    Args:
        rows: `[rows, n]`.
        scale: `[rows]`.
        boundaries: ascending, float32, one less than there are levels.

    Example:
        >>> rows = torch.tensor([[-0.9, -0.5, 0.2, 0.5, 3.0]])
        >>> encode_levels(rows, torch.tensor([1.0]), midpoints(torch.tensor([-1, 0, 1]))).tolist()
        [[0, 1, 1, 1, 2]]
    """
    u = rows.float() / scale[:, None]
    towards_zero = torch.bucketize(u.clamp(min=0), boundaries), torch.bucketize(u.clamp(max=0), boundaries, right=True)
    return torch.where(u > 0, *towards_zero).to(torch.int32)


def decode_levels(codes: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    """Values, float32 `[rows, n]`: `scale * levels[code]`.

    Example:
        >>> decode_levels(torch.tensor([[0, 2]]), torch.tensor([0.5]), torch.tensor([-4, 0, 4])).tolist()
        [[-2.0, 2.0]]
    """
    return levels.to(torch.float32)[codes.long()] * scale[:, None]


def as_int8(levels: Sequence[int], where: str) -> Tensor:
    """The table as int8, for a kernel.

    Args:
        levels: ascending whole numbers.
        where: name of the format, for errors.

    Raises:
        InputError: the levels are not ascending.
        UnsupportedError: a level does not fit.

    Example:
        >>> as_int8((-64, 0, 64), "log2")
        tensor([-64,   0,  64], dtype=torch.int8)
    """
    if list(levels) != sorted(set(levels)) or not levels:
        raise InputError(where, f"levels {list(levels)}", "ascending levels, each once")
    worst = max(levels, key=abs)
    if abs(worst) > 127:
        raise UnsupportedError(where, f"a level of {worst}", "levels from -127 to 127", "choose fewer bits")
    return torch.tensor(levels, dtype=torch.int8)


def fit_scale(rows: Tensor, levels: Tensor, boundaries: Tensor, *, candidates: int = 100) -> Tensor:
    """The scale of least squared error of each row, `[rows]` float32.

    Tries `i / candidates` of the scale at which the outermost level reaches the largest magnitude, i = 1 ..
    candidates; of equal errors the smallest wins.

    Example:
        >>> levels = torch.tensor([-1, 0, 1])
        >>> fit_scale(torch.tensor([[0.0, 0.5, -0.5]]), levels, midpoints(levels))
        tensor([0.5000])
    """
    rows = rows.detach().float()
    # The floor is for the largest magnitude: the unit of a table of many octaves is far below it.
    widest = rows.abs().amax(1).double().clamp(min=SMALLEST_SCALE) / int(levels.abs().max())
    best = torch.empty(rows.shape[0], dtype=torch.float32, device=rows.device)
    height = max(1, _CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], height):
        part = slice(start, start + height)
        least = torch.full(widest[part].shape, torch.inf, dtype=torch.float64, device=rows.device)
        for i in range(1, candidates + 1):
            scale = (widest[part] * i / candidates).float()
            x = rows[part]
            decoded = decode_levels(encode_levels(x, scale, boundaries), scale, levels)
            error = decoded.sub_(x).square_().sum(1, dtype=torch.float64)
            best[part] = torch.where(error < least, scale, best[part])
            least = torch.minimum(error, least)
    return best
