"""ACIQ: the clipping value that is optimal for a Laplace or a normal distribution.

Clipping at `mu +- alpha` with `2^M` levels costs, in units of the spread (Laplace scale 1, or deviation 1):

    Laplace   2 exp(-a) + a^2 / (3 4^M)                              optimum: a exp(a) = 3 4^M
    normal    (1 + a^2) erfc(a / sqrt 2) - a sqrt(2 / pi) exp(-a^2 / 2) + a^2 / (3 4^M)

Source: Banner et al., Post Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment,
NeurIPS 2019. Choices:

1. the optimum is computed for every M, not read from a table;
2. one-sided data on an asymmetric grid have `2^M` levels for one side alone, which is the optimum of M + 1;
3. one-sided data are taken for a ReLU of a distribution around zero: the spread is that of the values that
   are not zero, which undoes the fold;
4. symmetric ranges are centred at zero and not at the mean;
5. the range never exceeds the data;
6. moments are those of the bin centres of the streaming histogram.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.ranges.estimator import no_data, with_zero
from bitwright.ranges.histogram import Histogram, update_histogram

Distribution = Literal["laplace", "normal"]


@dataclass(frozen=True, kw_only=True)
class ACIQ:
    """`mu +- alpha` with the analytic alpha.

    Args:
        distribution: `laplace`, spread `mean |x - mu|`, or `normal`, spread the standard deviation.
        bins: bins of the histogram over the largest magnitude of the first batch.

    Raises:
        InputError: an unknown distribution, or too few bins.

    Example:
        >>> estimator = ACIQ(distribution="normal")
        >>> x = torch.erfinv(torch.linspace(-0.9999, 0.9999, 20001))[None] * 2**0.5
        >>> state = estimator.update(estimator.init(), x)
        >>> lo, hi = estimator.finish(state, Affine(bits=2, signed=True), symmetric=True)
        >>> round(hi.item(), 2)
        1.71
    """

    distribution: Distribution = "laplace"
    bins: int = 2048

    def __post_init__(self) -> None:
        if self.distribution not in ("laplace", "normal"):
            raise InputError("distribution", f"{self.distribution!r}", "'laplace' or 'normal'")
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
        lo, hi = with_zero(state.lo, state.hi, symmetric=False)
        one_sided = (lo == 0) | (hi == 0)
        x, counts = state.centres.double(), state.counts.double()
        counts = torch.where(one_sided[:, None] & (x == 0), 0.0, counts)
        total = counts.sum(1).clamp(min=1)
        centre = (counts * x).sum(1) / total
        if symmetric:
            centre = torch.zeros_like(centre)
        else:
            centre = centre.where(~one_sided, 0.0)
        distance = (x - centre[:, None]).abs()
        if self.distribution == "laplace":
            spread = (counts * distance).sum(1) / total
        else:
            spread = ((counts * distance.square()).sum(1) / total).sqrt()
        both = optimal_clipping(grid.bits, self.distribution)
        alone = both if symmetric else optimal_clipping(grid.bits + 1, self.distribution)
        alpha = spread * torch.where(one_sided, alone, both)
        low, high = torch.maximum((centre - alpha).float(), lo), torch.minimum((centre + alpha).float(), hi)
        return with_zero(low, high, symmetric=symmetric)


def optimal_clipping(bits: int, distribution: Distribution) -> float:
    """The alpha of least error for `2^bits` levels over `2 alpha`, in units of the spread.

    Example:
        >>> round(optimal_clipping(4, "laplace"), 4), round(optimal_clipping(4, "normal"), 4)
        (5.0286, 2.5591)
    """
    noise = 2 / (3 * 4**bits)

    def slope(a: float) -> float:
        """Derivative of the error."""
        if distribution == "laplace":
            return noise * a - 2 * math.exp(-a)
        clip = a * math.erfc(a / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-a * a / 2)
        return noise * a + 2 * clip

    return _root(slope, 0.0, 64.0)


def _root(increasing: Callable[[float], float], low: float, high: float) -> float:
    """Bisection to the last bit of a float32."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return high
