"""Codebook: the 2^b int8 levels that suit a tensor best.

    minimise over integers l_1 < ... < l_K in -127 .. 127    sum over all x of min_k (x / scale_row - l_k)^2

with `scale = max|row| / 127`. One table for the tensor, one scale for each row. The search is exact: in one
dimension the cost splits between neighbouring levels, at their midpoint, and dynamic programming over the
255 possible levels finds the optimum (k-means finds a local one).

Source: Gong et al., Compressing Deep Convolutional Networks using Vector Quantization, 2014 (k-means
codebooks); Wang and Song, Ckmeans.1d.dp, The R Journal 2011 (dynamic programming).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import SMALLEST_SCALE
from bitwright.formats.levels import decode_levels, encode_levels, midpoints

_TOP = 127
_CHUNK = 1 << 20  # values that are sorted into cells at a time


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """A table of `2^bits` integers that is fitted with the scales.

    Args:
        bits: width, 1 to 7.
        largest: largest magnitude of a level, 1 to 127.

    Raises:
        InputError: another width or bound, or fewer integers within the bound than levels.

    Example:
        >>> book = Codebook(bits=2)
        >>> scale, levels = book.fit(torch.tensor([[-1.27, -1.26, 0.0, 0.5, 0.51, 1.27]]))
        >>> levels.tolist()
        [-127, 0, 50, 127]
    """

    bits: int = 4
    largest: int = 127

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 7:
            raise InputError("codebook bits", f"a width of {self.bits!r}", "1 to 7")
        if not 1 <= self.largest <= _TOP or 2 * self.largest + 1 < 1 << self.bits:
            raise InputError("codebook largest", f"{self.largest} for {1 << self.bits} levels", "more, 127 at most")

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << self.bits) - 1

    def fit(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The scale of each row, and the levels, int8 `[2^bits]`."""
        rows = rows.detach().float()
        scale = (rows.abs().amax(1) / self.largest).clamp(min=SMALLEST_SCALE)
        return scale, best_levels(rows / scale[:, None], 1 << self.bits)

    def encode(self, rows: Tensor, *parameters: Tensor) -> Tensor:
        """Index of the nearest level."""
        scale, levels = parameters
        return encode_levels(rows, scale, midpoints(levels))

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """`scale * levels[code]`."""
        scale, levels = parameters
        return decode_levels(codes, scale, levels)


def best_levels(values: Tensor, count: int) -> Tensor:
    """The `count` integers of -127 .. 127 of least squared error to the values, ascending int8.

    Args:
        values: any shape, within -127 .. 127.
        count: 1 to 255.

    Example:
        >>> best_levels(torch.tensor([1.0, 1.2, 9.0, 9.4]), 2)
        tensor([1, 9], dtype=torch.int8)
    """
    between, below, above = _costs(values.flatten())
    cost, came_from = below, []
    for _ in range(count - 1):
        cost, previous = (cost[:, None] + between).min(0)
        came_from.append(previous)
    last = int((cost + above).argmin())
    chosen = [last]
    for previous in reversed(came_from):
        chosen.append(int(previous[chosen[-1]]))
    return torch.tensor(chosen[::-1], device=values.device).sub(_TOP).to(torch.int8)


def _costs(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors of the values between two neighbouring levels, below a first one, and from a last one on.

    Neighbours i < j part at their midpoint, a multiple of one half: sums over cells of one half suffice.
    """
    cells = 4 * _TOP + 1
    moments = torch.zeros(3, cells, dtype=torch.float64, device=values.device)
    for part in torch.split(values, _CHUNK):
        x = part.double()
        cell = (x * 2).floor().clamp(-2 * _TOP, 2 * _TOP).long() + 2 * _TOP
        for k, power in enumerate((torch.ones_like(x), x, x.square())):
            moments[k] += torch.bincount(cell, weights=power, minlength=cells)
    # sums[k][c]: sum of x^k over the cells before c.
    sums = torch.nn.functional.pad(moments.cumsum(1), (1, 0))
    level = torch.arange(-_TOP, _TOP + 1, device=values.device)
    start = 2 * (level + _TOP)  # first cell of each level

    def error(first: Tensor, end: Tensor, to: Tensor) -> Tensor:
        """Sum of (x - to)^2 over the cells first .. end - 1."""
        n, s1, s2 = (s[end] - s[first] for s in sums)
        return (s2 - 2 * to * s1 + to * to * n).clamp(min=0)

    i, j = level[:, None], level[None, :]
    middle = (i + j + 2 * _TOP).clamp(0, cells)
    between = error(start[:, None], middle, i) + error(middle, start[None, :], j)
    between = between.where(i < j, torch.inf)
    return between, error(torch.zeros_like(start), start, level), error(start, torch.full_like(start, cells), level)
