"""Binary weights: `x = alpha * (+1 or -1)`.

    alpha = mean |W|,   code = 1 where W >= 0, else 0

which is the least-squares fit of one magnitude to a row. Source: Rastegari et al., XNOR-Net, ECCV 2016
(Binary-Weight-Network). Zero has no code of its own and counts as positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats.affine import SMALLEST_SCALE
from bitwright.formats.levels import decode_levels


@dataclass(frozen=True, kw_only=True)
class Binary:
    """Two levels, `-alpha` and `+alpha`.

    Example:
        >>> alpha, = Binary().fit(torch.tensor([[1.0, -2.0, 0.0]]))
        >>> codes = Binary().encode(torch.tensor([[1.0, -2.0, 0.0]]), alpha)
        >>> codes.tolist(), Binary().decode(codes, alpha).tolist()
        ([[1, 0, 1]], [[1.0, -1.0, 1.0]])
    """

    @property
    def bits(self) -> int:
        """One."""
        return 1

    @property
    def levels(self) -> tuple[int, ...]:
        """The table."""
        return (-1, 1)

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return 1

    def fit(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Mean magnitude of each row."""
        return (rows.detach().float().abs().mean(1).clamp(min=SMALLEST_SCALE),)

    def encode(self, rows: Tensor, *parameters: Tensor) -> Tensor:
        """1 where a value is not negative; no scale enters."""
        return (rows >= 0).to(torch.int32)

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """`alpha * levels[code]`."""
        (alpha,) = parameters
        return decode_levels(codes, alpha, torch.tensor(self.levels, device=codes.device))
