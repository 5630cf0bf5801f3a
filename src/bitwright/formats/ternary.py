"""Ternary weights: `x = alpha * (-1, 0 or +1)`.

    delta = 0.7 mean |W|,   T = sign(W) where |W| > delta, else 0,   alpha = mean of |W| where |W| > delta

Source: Li et al., Ternary Weight Networks, 2016 (the threshold is their approximation of the optimum).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import SMALLEST_SCALE
from bitwright.formats.levels import decode_levels


@dataclass(frozen=True, kw_only=True)
class Ternary:
    """Three levels, `-alpha`, 0 and `+alpha`; codes 0, 1, 2.

    Args:
        threshold: delta in units of the mean magnitude of the row.

    Raises:
        InputError: the threshold is not within [0, 1).

    Example:
        >>> rows = torch.tensor([[1.0, -2.0, 0.1, 0.0]])
        >>> alpha, delta = Ternary().fit(rows)
        >>> codes = Ternary().encode(rows, alpha, delta)
        >>> codes.tolist(), Ternary().decode(codes, alpha, delta).tolist()
        ([[2, 0, 1, 1]], [[1.5, -1.5, 0.0, 0.0]])
    """

    threshold: float = 0.7

    def __post_init__(self) -> None:
        # Below 1 at least one magnitude of a row that is not all zeros lies above delta.
        if not 0 <= self.threshold < 1:
            raise InputError("ternary threshold", f"{self.threshold}", "0 or more and below 1", "0.7 is usual")

    @property
    def bits(self) -> int:
        """Two."""
        return 2

    @property
    def levels(self) -> tuple[int, ...]:
        """The table."""
        return (-1, 0, 1)

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return 2

    def fit(self, rows: Tensor) -> tuple[Tensor, ...]:
        """`alpha` and `delta` of each row."""
        magnitude = rows.detach().float().abs()
        delta = self.threshold * magnitude.mean(1)
        above = magnitude > delta[:, None]
        alpha = (magnitude * above).sum(1) / above.sum(1).clamp(min=1)
        return alpha.clamp(min=SMALLEST_SCALE), delta

    def encode(self, rows: Tensor, *parameters: Tensor) -> Tensor:
        """1 + sign where the magnitude lies above delta."""
        _, delta = parameters
        return 1 + (rows > delta[:, None]).to(torch.int32) - (rows < -delta[:, None]).to(torch.int32)

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """`alpha * levels[code]`."""
        alpha, _ = parameters
        return decode_levels(codes, alpha, torch.tensor(self.levels, device=codes.device))
