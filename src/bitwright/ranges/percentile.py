"""Percentile: clip a fixed share of the values at either end.

Source: Li et al., Fully Quantized Network for Object Detection, CVPR 2019; Wu et al., Integer
Quantization for Deep Learning Inference, 2020. Choices:

1. the percentile counts all values, exact zeros included;
2. an end is a bin edge: the nearest to zero that keeps at least `percentile` percent of the values on its
   inner side, and never beyond the extremes seen;
3. exact zeros lie inside of the first bin of either side, so that a tensor of almost nothing but zeros
   still keeps one bin of the side it lies on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.ranges.estimator import no_data, with_zero
from bitwright.ranges.histogram import Histogram, update_histogram


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """The `100 - p` and `p` percent quantiles; of `|x|` when symmetric.

    Args:
        percentile: p in percent, above 50 to 100.
        bins: bins of the histogram over the largest magnitude of the first batch.

    Raises:
        InputError: p is not within (50, 100], or bins is below 16.

    Example:
        >>> estimator = Percentile(percentile=99.0, bins=1000)
        >>> state = estimator.update(estimator.init(), torch.arange(1001.0)[None])
        >>> estimator.finish(state, Affine(bits=8, signed=False), symmetric=False)
        (tensor([0.]), tensor([990.]))
    """

    percentile: float = 99.99
    bins: int = 2048

    def __post_init__(self) -> None:
        if not 50.0 < self.percentile <= 100.0:
            raise InputError("percentile", f"{self.percentile}", "percent, above 50 and at most 100", "such as 99.99")
        if self.bins < 16:
            raise InputError("bins", f"{self.bins}", "16 or more")

    @property
    def extremes_only(self) -> bool:
        """False: every value counts."""
        return False

    def init(self) -> Histogram | None:
        """The state before any data."""
        return None

    def update(self, state: Histogram | None, rows: Tensor, *, site: str = "tensor") -> Histogram | None:
        """The state after `rows`, `[rows, n]`."""
        return update_histogram(state, rows, bins=self.bins, site=site)

    def finish(
        self, state: Histogram | None, grid: Affine, *, symmetric: bool, site: str = "tensor"
    ) -> tuple[Tensor, Tensor]:
        """`(lo, hi)`, each `[rows]`."""
        if state is None:
            raise no_data(site)
        lo, hi = with_zero(state.lo, state.hi, symmetric=symmetric)
        total = state.counts.sum(1)
        # 20000 values at 99.9 % are 19980: not one more because 0.999 is no binary fraction.
        enough = torch.ceil(total.double() * self.percentile / 100 * (1 - 1e-12))
        if symmetric:
            amax = torch.minimum(hi, _edge(state.zeros, state.magnitude, enough, state.width))
            return -amax, amax
        inside = state.zeros + state.negative.sum(1)
        high = _edge(inside, state.positive, enough, state.width)
        high = high.where(inside - state.zeros < enough, torch.zeros_like(high))
        inside = state.zeros + state.positive.sum(1)
        low = _edge(inside, state.negative, enough, state.width)
        low = low.where(inside - state.zeros < enough, torch.zeros_like(low))
        return torch.maximum(lo, -low), torch.minimum(hi, high)


def _edge(inside: Tensor, counts: Tensor, enough: Tensor, width: Tensor) -> Tensor:
    """The upper edge of the first magnitude bin at which `inside` and the bins up to it hold `enough` values."""
    if counts.shape[1] == 0:
        return torch.zeros_like(width).float()
    held = inside[:, None] + counts.cumsum(1)
    bin_ = torch.searchsorted(held.double(), enough[:, None]).squeeze(1).clamp(max=counts.shape[1] - 1)
    return ((bin_ + 1) * width).float()
