"""Min-max: the range of the values seen, and nothing is clipped.

`lo = min(x)`, `hi = max(x)`. One outlier sets the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats.affine import Affine
from bitwright.ranges.estimator import no_data, row_extremes, with_zero


@dataclass(frozen=True, kw_only=True)
class MinMaxState:
    """Smallest and largest value of each row, `[rows]`; None before the first update."""

    lo: Tensor | None = None
    hi: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """Smallest and largest value over all updates.

    Example:
        >>> estimator = MinMax()
        >>> state = estimator.update(estimator.init(), torch.tensor([[0.5, -1.0, 3.0]]))
        >>> estimator.finish(state, Affine(bits=8, signed=False), symmetric=False)
        (tensor([-1.]), tensor([3.]))
    """

    @property
    def extremes_only(self) -> bool:
        """True: the two extremes of a row are all that counts."""
        return True

    def init(self) -> MinMaxState:
        """The state before any data."""
        return MinMaxState()

    def update(self, state: MinMaxState, rows: Tensor, *, site: str = "tensor") -> MinMaxState:
        """The state after `rows`, `[rows, n]`."""
        lo, hi = row_extremes(rows, state.lo, site)
        if state.lo is None or state.hi is None:
            return MinMaxState(lo=lo, hi=hi)
        return MinMaxState(lo=torch.minimum(state.lo, lo), hi=torch.maximum(state.hi, hi))

    def finish(
        self, state: MinMaxState, grid: Affine, *, symmetric: bool, site: str = "tensor"
    ) -> tuple[Tensor, Tensor]:
        """`(lo, hi)`, each `[rows]`."""
        if state.lo is None or state.hi is None:
            raise no_data(site)
        return with_zero(state.lo, state.hi, symmetric=symmetric)
