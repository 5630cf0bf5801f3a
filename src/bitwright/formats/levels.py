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

_CHUNK = 1 << 20  # values that are sorted at a time


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
    # `bucketize` counts the boundaries below a value, so a tie falls to the lower level: right above zero, and
    # put right below zero by moving those boundaries down by one float32 number.
    below = torch.nextafter(boundaries, torch.full_like(boundaries, -torch.inf))
    return torch.bucketize(rows.float() / scale[:, None], boundaries.where(boundaries > 0, below), out_int32=True)


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
    candidates; of equal errors the smallest wins. The values of a row are sorted once: a level then takes a run of
    them, and its error follows from running sums of x and x^2, whatever the number of values.

    Example:
        >>> levels = torch.tensor([-1, 0, 1])
        >>> fit_scale(torch.tensor([[0.0, 0.5, -0.5]]), levels, midpoints(levels))
        tensor([0.5000])
    """
    rows = rows.detach().float()
    # The floor is for the largest magnitude: the unit of a table of many octaves is far below it.
    widest = rows.abs().amax(1).double().clamp(min=SMALLEST_SCALE) / int(levels.abs().max())
    scales = (widest[:, None] * torch.arange(1, candidates + 1, device=rows.device) / candidates).float()
    height = max(1, _CHUNK // max(rows.shape[1], candidates * len(levels)))
    return torch.cat(
        [_least(*part, levels, boundaries) for part in zip(rows.split(height), scales.split(height), strict=True)]
    )


def _least(rows: Tensor, scales: Tensor, levels: Tensor, boundaries: Tensor) -> Tensor:
    """Of the scales `[rows, candidates]` of each row the first of least squared error."""
    x = rows.double().sort(1).values
    sums = [torch.nn.functional.pad(t.cumsum(1), (1, 0)) for t in (x, x.square())]
    edges = (scales.double()[..., None] * boundaries).flatten(1)
    start = torch.searchsorted(x, edges, right=True).view(*scales.shape, -1)
    ends = torch.nn.functional.pad(torch.nn.functional.pad(start, (1, 0)), (0, 1), value=x.shape[1])
    count = ends.diff(dim=-1)
    first, second = (s.gather(1, ends.flatten(1)).view(ends.shape).diff(dim=-1) for s in sums)
    value = scales.double()[..., None] * levels
    error = (second - 2 * value * first + value.square() * count).sum(-1)
    # Differences of running sums are good to twelve digits of the whole: less is a tie.
    least = error <= error.amin(1, keepdim=True) + 1e-12 * sums[1][:, -1:]
    return scales.gather(1, least.int().argmax(1, keepdim=True))[:, 0]
