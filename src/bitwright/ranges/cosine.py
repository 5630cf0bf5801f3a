"""Cosine: the range whose quantized tensor points in the direction of the original.

    maximise over A   <x, Q(x)> / (|x| |Q(x)|)

Source: Wu et al., EasyQuant: Post-training Quantization via Scale Optimization, 2020, there on the outputs
of a layer; here, as in mixed-precision papers after it, on the tensor itself. Choices:

1. the ends are the extremes of the data times a factor, evenly spaced over `[narrowest, widest]`, 0.5 to 2;
2. the cosine does not see a common gain, so that the bracket matters; equal cosines are decided by the
   squared error, then by the smaller range;
3. raw values up to `exact_limit` a row, beyond that the bin centres of the streaming histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine, fake_quantize, scale_and_zero_point
from bitwright.ranges.estimator import with_zero
from bitwright.ranges.sample import Sample, update_sample

_CHUNK = 1 << 20  # values that are quantized at a time
_SAME = 1e-12  # cosines that differ by less are equal


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """The range of greatest cosine between the tensor and its quantized form.

    Args:
        narrowest: smallest factor on the extremes.
        widest: largest factor.
        candidates: how many factors are tried.
        bins: bins of the histogram over the largest magnitude of the first batch.
        exact_limit: how many values a row may have for the search on raw values.

    Raises:
        InputError: the bracket is empty, candidates or bins too few.

    Example:
        >>> estimator = Cosine()
        >>> state = estimator.update(estimator.init(), torch.linspace(-1, 1, 99)[None])
        >>> lo, hi = estimator.finish(state, Affine(bits=4, signed=True, narrow=True), symmetric=True)
        >>> 0.5 <= hi.item() <= 2
        True
    """

    narrowest: float = 0.5
    widest: float = 2.0
    candidates: int = 100
    bins: int = 2048
    exact_limit: int = 65536

    def __post_init__(self) -> None:
        if not 0 < self.narrowest < self.widest:
            raise InputError("narrowest, widest", f"{self.narrowest}, {self.widest}", "0 < narrowest < widest")
        if self.candidates < 2:
            raise InputError("candidates", f"{self.candidates}", "2 or more")
        if self.bins < 16:
            raise InputError("bins", f"{self.bins}", "16 or more")

    @property
    def extremes_only(self) -> bool:
        """False: every value counts."""
        return False

    def init(self) -> Sample:
        """The state before any data."""
        return Sample()

    def update(self, state: Sample, rows: Tensor, *, site: str = "tensor") -> Sample:
        """The state after `rows`, `[rows, n]`."""
        return update_sample(state, rows, exact_limit=self.exact_limit, bins=self.bins, site=site)

    def finish(self, state: Sample, grid: Affine, *, symmetric: bool, site: str = "tensor") -> tuple[Tensor, Tensor]:
        """`(lo, hi)`, each `[rows]`."""
        values, counts = state.points(site)
        lo, hi = with_zero(*torch.aminmax(values, dim=1), symmetric=symmetric)
        parts = []
        height = max(1, _CHUNK // values.shape[1])
        for r in range(0, values.shape[0], height):
            rows = slice(r, r + height)
            weights = None if counts is None else counts[rows]
            parts.append(self._search(values[rows], weights, lo[rows], hi[rows], grid, symmetric))
        return torch.cat([low for low, _ in parts]), torch.cat([high for _, high in parts])

    def _search(
        self, x: Tensor, weights: Tensor | None, lo: Tensor, hi: Tensor, grid: Affine, symmetric: bool
    ) -> tuple[Tensor, Tensor]:
        best_lo, best_hi = lo, hi
        best_cosine = torch.full(lo.shape, -torch.inf, dtype=torch.float64, device=lo.device)
        best_error = torch.full_like(best_cosine, torch.inf)
        for factor in torch.linspace(self.narrowest, self.widest, self.candidates, dtype=torch.float64).tolist():
            low, high = (lo.double() * factor).float(), (hi.double() * factor).float()
            scale, zero_point = scale_and_zero_point(low, high, grid, symmetric=symmetric)
            y = fake_quantize(x, scale[:, None], zero_point[:, None], grid)
            cosine, error = cosine_and_error(x, y, weights)
            better = cosine > best_cosine + _SAME
            better |= ((cosine - best_cosine).abs() <= _SAME) & (error < best_error)
            best_lo, best_hi = torch.where(better, low, best_lo), torch.where(better, high, best_hi)
            best_cosine, best_error = best_cosine.where(~better, cosine), best_error.where(~better, error)
        return best_lo, best_hi


def cosine_and_error(x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cosine (0 where a row is all zeros) and sum of squared errors of each row, float64 `[rows]`."""
    x, y = x.double(), y.double()
    weighted = x if weights is None else x * weights
    weighted_y = y if weights is None else y * weights
    xx, xy, yy = (weighted * x).sum(1), (weighted * y).sum(1), (weighted_y * y).sum(1)
    norm = (xx * yy).sqrt()
    return torch.where(norm > 0, xy / norm.clamp(min=1e-300), torch.zeros_like(norm)), xx - 2 * xy + yy
