"""Additive powers of two: each magnitude is the sum of one or two powers of two, so that levels crowd near
zero without leaving the outer range bare.

Source: Li et al., Additive Powers-of-Two Quantization, ICLR 2020. A magnitude of b - 1 bits is `p + q` with

    b - 1 = 1   p in {0, 1}
    b - 1 = 2   p in {0, 1/2, 1/4, 1/8}
    b - 1 = 3   p in {0, 1/2, 1/4, 1/16},  q in {0, 1/8}
    b - 1 = 4   p in {0, 1/2, 1/8, 1/32},  q in {0, 1/4, 1/16, 1/64}

Choices: zero has one code where sign and magnitude would give it two; the levels are written as the whole
numbers that they are multiples of, 48 at most, which fit int8; the scale is fitted, not learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.levels import decode_levels, encode_levels, fit_scale, midpoints

# Magnitudes of 1 to 4 bits in units of their smallest power: the terms p and q.
_TERMS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    1: ((0, 1), (0,)),
    2: ((0, 1, 2, 4), (0,)),
    3: ((0, 1, 4, 8), (0, 2)),
    4: ((0, 2, 8, 32), (0, 1, 4, 16)),
}


@dataclass(frozen=True, kw_only=True)
class APoT:
    """Sums of powers of two, with a sign.

    Args:
        bits: width, 2 to 5.

    Raises:
        InputError: another width.

    Example:
        >>> APoT(bits=4).levels
        (-10, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 10)
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits - 1 not in _TERMS:
            raise InputError("apot bits", f"a width of {self.bits!r}", "2 to 5")

    @property
    def levels(self) -> tuple[int, ...]:
        """The table, in units of the smallest power."""
        first, second = _TERMS[self.bits - 1]
        magnitudes = {p + q for p in first for q in second}
        return tuple(sorted({-m for m in magnitudes} | magnitudes))

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return len(self.levels) - 1

    def fit(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The scale of least squared error of each row."""
        table = torch.tensor(self.levels, device=rows.device)
        return (fit_scale(rows, table, midpoints(table)),)

    def encode(self, rows: Tensor, *parameters: Tensor) -> Tensor:
        """Index of the nearest level."""
        (scale,) = parameters
        return encode_levels(rows, scale, midpoints(torch.tensor(self.levels, device=rows.device)))

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """`scale * levels[code]`."""
        (scale,) = parameters
        return decode_levels(codes, scale, torch.tensor(self.levels, device=codes.device))
