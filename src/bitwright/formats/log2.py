"""Logarithmic codes: levels are powers of two, products are shifts.

    |x| = scale * 2^(m - 1),   m = 1 .. M,   and m = 0 is exactly zero

Signed formats of b bits have `M = 2^(b-1) - 1` magnitudes of either sign, unsigned ones `M = 2^b - 1`.

Source: Miyashita et al., Convolutional Neural Networks using Logarithmic Data Representation, 2016. Choices:

1. one code is exact zero, where the paper clamps small values to the smallest power;
2. rounding happens in the logarithm, at `sqrt(2) 2^k`, or linearly, at `1.5 2^k`; zero takes the place of the
   next power in the first case, and is the nearest level in the second;
3. up to 7 magnitudes (4 signed bits) the levels 1 .. 64 are int8 integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.levels import decode_levels, encode_levels, fit_scale, midpoints


@dataclass(frozen=True, kw_only=True)
class Log2:
    """Powers of two and zero.

    Args:
        bits: width; 2 to 6 signed, 1 to 5 unsigned (31 octaves at most).
        signed: both signs.
        rounding: `log` or `linear`.

    Raises:
        InputError: another width or rounding.

    Example:
        >>> Log2(bits=3).levels
        (-4, -2, -1, 0, 1, 2, 4)
        >>> log = Log2(bits=3)
        >>> scale = torch.tensor([0.25])
        >>> log.decode(log.encode(torch.tensor([[0.9, -0.3, 0.1, 0.36]]), scale), scale).tolist()
        [[1.0, -0.25, 0.0, 0.5]]
    """

    bits: int = 4
    signed: bool = True
    rounding: Literal["log", "linear"] = "log"

    def __post_init__(self) -> None:
        fewest = 1 + int(self.signed)
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not fewest <= self.bits < fewest + 5:
            raise InputError("log2 bits", f"a width of {self.bits!r}", f"{fewest} to {fewest + 4}")
        if self.rounding not in ("log", "linear"):
            raise InputError("log2 rounding", f"{self.rounding!r}", "'log' or 'linear'")

    @property
    def levels(self) -> tuple[int, ...]:
        """The table, in units of the smallest magnitude."""
        powers = [1 << m for m in range((1 << (self.bits - int(self.signed))) - 1)]
        return tuple([-p for p in reversed(powers)] * self.signed + [0] + powers)

    @property
    def boundaries(self) -> Tensor:
        """Where one level ends and the next begins, float32."""
        levels = torch.tensor(self.levels, dtype=torch.float64)
        if self.rounding == "linear":
            return midpoints(levels)
        inner = torch.where(levels[1:] > 0, levels[1:], levels[:-1])  # the larger magnitude of two neighbours
        return (inner * 0.5**0.5).float()

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
        return (fit_scale(rows, table, self.boundaries.to(rows.device)),)

    def encode(self, rows: Tensor, *parameters: Tensor) -> Tensor:
        """Index of the level of each value."""
        (scale,) = parameters
        return encode_levels(rows, scale, self.boundaries.to(rows.device))

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """`scale * levels[code]`."""
        (scale,) = parameters
        return decode_levels(codes, scale, torch.tensor(self.levels, device=codes.device))
