"""The streaming histogram of signed values that the estimators share.

Each row has its own bin width `w`, fixed by the first values that are not all zero:
`w = max|x| / bins`. Zero is an edge and exact zeros are counted on their own, so that a
one-sided tensor stays one-sided and folding the two signs onto `|x|` is exact:

    magnitude bin j of either sign:  j w < |x| <= (j + 1) w

A later batch that reaches further appends bins of the same width; nothing is binned anew. Only
when a sign would need more than `most_bins` bins are neighbours of that row merged in pairs (`w`
doubles, counts stay exact), which bounds the memory whatever the data does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.ranges.estimator import row_extremes

_CHUNK = 1 << 18  # values that are turned into bin numbers at a time: 1 MB, which stays in the cache


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of the values seen.

    Args:
        counts: int64 `[rows, negative bins + 1 + positive bins]`, lowest bin first.
        origin: column of the exact zeros, which is also the number of negative bins.
        width: float64 `[rows]`, bin width; 0 while a row has seen nothing but zeros.
        lo: `[rows]`, smallest value seen.
        hi: `[rows]`, largest value seen.
    """

    counts: Tensor
    origin: int
    width: Tensor
    lo: Tensor
    hi: Tensor

    @property
    def zeros(self) -> Tensor:
        """How many exact zeros, `[rows]`."""
        return self.counts[:, self.origin]

    @property
    def positive(self) -> Tensor:
        """Counts of the positive values by magnitude bin, `[rows, k]`."""
        return self.counts[:, self.origin + 1 :]

    @property
    def negative(self) -> Tensor:
        """Counts of the negative values by magnitude bin, `[rows, k]`: nearest to zero first."""
        return self.counts[:, : self.origin].flip(1)

    @property
    def magnitude(self) -> Tensor:
        """Counts of `|x|` by magnitude bin, exact zeros left out, `[rows, k]`."""
        positive, negative = self.positive, self.negative
        k = max(positive.shape[1], negative.shape[1])
        return _pad(positive, 0, k - positive.shape[1]) + _pad(negative, 0, k - negative.shape[1])

    @property
    def centres(self) -> Tensor:
        """The value that each column stands for, `[rows, columns]` float32: bin centres, within `[lo, hi]`."""
        column = torch.arange(self.counts.shape[1], dtype=torch.float64, device=self.counts.device) - self.origin
        centre = (column - 0.5 * column.sign()) * self.width[:, None]
        return centre.float().clamp(self.lo[:, None], self.hi[:, None])


def update_histogram(
    histogram: Histogram | None, rows: Tensor, *, bins: int, most_bins: int | None = None, site: str = "tensor"
) -> Histogram:
    """The histogram after `rows`, `[rows, n]`, have been seen too.

    Args:
        histogram: what was seen so far, None at the start.
        rows: the new values.
        bins: how many bins the largest magnitude of the first values spans.
        most_bins: bound on the bins of one sign, by default `8 * bins`.
        site: name of the tensor, for errors.

    Raises:
        InputError: as `row_extremes`.

    Example:
        >>> h = update_histogram(None, torch.tensor([[0.0, 0.1, 1.0, -0.6]]), bins=4)
        >>> h.negative.tolist(), h.zeros.tolist(), h.positive.tolist()
        ([[0, 0, 1]], [1], [[1, 0, 0, 1]])
    """
    lo, hi = row_extremes(rows, None if histogram is None else histogram.lo, site)
    rows = rows.float()
    amax = torch.maximum(lo.abs(), hi.abs()).double()
    if histogram is None:
        empty = torch.zeros(rows.shape[0], 1, dtype=torch.int64, device=rows.device)
        histogram = Histogram(counts=empty, origin=0, width=torch.zeros_like(amax), lo=lo, hi=hi)
    histogram = _set_width(histogram, amax, bins, most_bins or 8 * bins)
    width = histogram.width.where(histogram.width > 0, torch.ones_like(histogram.width)).float()[:, None]
    # The same division as in `_count`, and division is monotone: no value can fall outside.
    need_low = int(_outwards(lo[:, None] / width).amin().clamp(max=0).neg())
    need_high = int(_outwards(hi[:, None] / width).amax().clamp(min=0))
    counts = _pad(
        histogram.counts,
        max(0, need_low - histogram.origin),
        max(0, need_high - (histogram.counts.shape[1] - 1 - histogram.origin)),
    )
    origin = max(need_low, histogram.origin)
    return Histogram(
        counts=counts + _count(rows, width, origin, counts.shape[1]),
        origin=origin,
        width=histogram.width,
        lo=torch.minimum(histogram.lo, lo),
        hi=torch.maximum(histogram.hi, hi),
    )


def _set_width(histogram: Histogram, amax: Tensor, bins: int, most_bins: int) -> Histogram:
    """Give a width to rows that have none yet, and double it where `amax` would need too many bins."""
    smallest = torch.finfo(torch.float32).tiny
    first = torch.where(amax > 0, (amax / bins).clamp(min=smallest), torch.zeros_like(amax))
    # Kept as a float32 number: it divides float32 data.
    width = torch.where(histogram.width > 0, histogram.width, first.float().double())
    need = torch.where(width > 0, amax / width, torch.ones_like(amax))
    doublings = torch.log2(need / most_bins).ceil().clamp(min=0).to(torch.int64)
    counts = histogram.counts
    if bool((doublings > 0).any()):
        counts = _merge(counts, histogram.origin, doublings)
    return Histogram(
        counts=counts,
        origin=histogram.origin,
        width=width * torch.exp2(doublings.double()),
        lo=histogram.lo,
        hi=histogram.hi,
    )


def _merge(counts: Tensor, origin: int, doublings: Tensor) -> Tensor:
    """Merge `2^doublings` neighbouring magnitude bins of each row; zero stays where it is."""
    column = torch.arange(counts.shape[1], device=counts.device) - origin
    magnitude = column.abs()[None, :]
    factor = 2 ** doublings.clamp(max=62)[:, None]
    target = column.sign()[None, :] * ((magnitude + factor - 1) // factor) + origin
    return torch.zeros_like(counts).scatter_add_(1, target, counts)


def _outwards(t: Tensor) -> Tensor:
    """Round away from zero: the number of the magnitude bin, from 1, with the sign of the value."""
    return t.abs().ceil_().copysign_(t)


def _count(rows: Tensor, width: Tensor, origin: int, columns: int) -> Tensor:
    """Counts `[rows, columns]` of the values, a few million at a time."""
    height, length = rows.shape
    counts = torch.zeros(height * columns, dtype=torch.int64, device=rows.device)
    index = torch.int32 if counts.numel() < 2**31 else torch.int64
    step_rows = max(1, min(height, _CHUNK // length))
    step = min(length, _CHUNK)
    for r in range(0, height, step_rows):
        row = torch.arange(r, min(r + step_rows, height), dtype=index, device=rows.device)
        base = (row * columns + origin)[:, None]
        for c in range(0, length, step):
            part = rows[r : r + step_rows, c : c + step]
            column = _outwards(part / width[r : r + step_rows]).to(index).add_(base)
            counts += torch.bincount(column.flatten(), minlength=counts.numel())
    return counts.view(height, columns)


def _pad(counts: Tensor, before: int, after: int) -> Tensor:
    return torch.nn.functional.pad(counts, (before, after)) if before or after else counts
