"""MSE: the range whose quantizer loses least, by search.

    minimise over (lo, hi)   sum |x - Q(x; lo, hi)|^p

Source: p-norm search as in Li et al., BRECQ, 2021 and Wei et al., QDrop, 2022 (p = 2.4 there). Choices:

1. `Q` is the deployed quantizer: every candidate goes through `scale_and_zero_point` and `fake_quantize`;
2. symmetric or one-sided rows: `A_i = max|x| i / N`, `i = 1 .. N`;
3. two-sided asymmetric rows: lengths `R_i = (hi - lo) i / N` with every zero point `z`, range `[-z d, R_i - z d]`,
   `d = R_i / levels`. All z of one length share the lattice `d Z` and differ in what they clip, so the loss is
   convex in z and bisection finds the best z exactly (Q evaluated `2 log2(levels)` times in place of `levels`);
4. of equal losses the smallest range wins, then the smallest zero point;
5. for p = 2 and long rows the values are sorted once: a code then takes a run of them, and its error follows from
   running sums of x and x^2, in float64, whatever the number of values;
6. raw values up to `exact_limit` a row, beyond that the bin centres of the streaming histogram.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine, fake_quantize, scale_and_zero_point
from bitwright.ranges.estimator import with_zero
from bitwright.ranges.sample import Sample, update_sample

#: Rows of so many values for each step of the grid are sorted.
SORTED_FROM = 64
_CHUNK = 1 << 20  # quantized values held at a time: 4 MB, which stays in the cache


@dataclass(frozen=True, kw_only=True)
class MSE:
    """The range of least `mean |x - Q(x)|^p`.

    Args:
        p: exponent of the error; 2 is the mean squared error, more weighs clipping heavier.
        candidates: N, how many lengths are tried.
        bins: bins of the histogram over the largest magnitude of the first batch.
        exact_limit: how many values a row may have for the search on raw values.

    Raises:
        InputError: p is not positive, candidates or bins too few.

    Example:
        >>> estimator = MSE()
        >>> x = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([8.0])])[None]
        >>> state = estimator.update(estimator.init(), x)
        >>> lo, hi = estimator.finish(state, Affine(bits=4, signed=True), symmetric=True)
        >>> bool(hi < 8)
        True
    """

    p: float = 2.0
    candidates: int = 100
    bins: int = 2048
    exact_limit: int = 65536

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise InputError("p", f"an exponent of {self.p}", "more than 0")
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
        return search_range(values, counts, grid, symmetric=symmetric, p=self.p, candidates=self.candidates)


def search_range(
    values: Tensor, counts: Tensor | None, grid: Affine, *, symmetric: bool, p: float, candidates: int
) -> tuple[Tensor, Tensor]:
    """The best `(lo, hi)` of each row, each `[rows]` float32.

    Args:
        values: `[rows, n]`.
        counts: how often each value occurs, `[rows, n]`; None for once.
        grid: the codes.
        symmetric: ranges `(-A, A)`.
        p: exponent of the error.
        candidates: how many lengths are tried.
    """
    lo, hi = with_zero(*torch.aminmax(values, dim=1), symmetric=symmetric)
    two_sided = (lo < 0) & (hi > 0) & (not symmetric)
    best_lo, best_hi = torch.zeros_like(lo), torch.zeros_like(hi)
    height = max(1, _CHUNK // values.shape[1])
    scratch = torch.empty(min(_CHUNK, candidates * values.numel()), dtype=torch.float32, device=values.device)
    wide = torch.empty_like(scratch, dtype=torch.float64)
    for both, search in ((False, _search_length), (True, _search_length_and_zero)):
        for index in torch.split(torch.nonzero(two_sided == both).flatten(), height):
            if index.numel() == 0:
                continue
            part = None if counts is None else counts[index]
            loss: _Loss | _SortedLoss
            if p == 2 and counts is None and values.shape[1] >= SORTED_FROM * (grid.qmax - grid.qmin):
                loss = _sorted_loss(values[index], grid, symmetric=symmetric)
            else:
                loss = _Loss(
                    values=values[index], counts=part, grid=grid, symmetric=symmetric, p=p, scratch=scratch, wide=wide
                )
            best_lo[index], best_hi[index] = search(loss, lo[index], hi[index], candidates)
    return best_lo, best_hi


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """`loss(lo, hi)`: `[c, rows]` ranges to `[c, rows]` losses, in float64.

    The two buffers are used over and over: thousands of fresh allocations of this size fragment the memory.
    """

    values: Tensor
    counts: Tensor | None
    grid: Affine
    symmetric: bool
    p: float
    scratch: Tensor
    wide: Tensor

    def __call__(self, lo: Tensor, hi: Tensor) -> Tensor:
        scale, zero_point = scale_and_zero_point(lo, hi, self.grid, symmetric=self.symmetric)
        scale, zero_point = scale[..., None], zero_point[..., None]
        total = torch.zeros(lo.shape, dtype=torch.float64, device=lo.device)
        for start in range(0, self.values.shape[1], _CHUNK):
            x = self.values[:, start : start + _CHUNK]
            shape = (*lo.shape, x.shape[1])
            size = lo.numel() * x.shape[1]
            error = self.scratch[:size].view(shape)
            fake_quantize(x, scale, zero_point, self.grid, out=error).sub_(x)
            error = error.square_() if self.p == 2 else error.abs_().pow_(self.p)
            if self.counts is not None:
                error.mul_(self.counts[:, start : start + _CHUNK])
            # float64: ties are to be decided by the loss, not by the order of the summation.
            total += self.wide[:size].view(shape).copy_(error).sum(-1)
        return total

    @property
    def at_once(self) -> int:
        """How many ranges a row to evaluate in one call."""
        return max(1, _CHUNK // self.values.numel())


@dataclass(frozen=True, kw_only=True)
class _SortedLoss:
    """The same losses for p = 2, from sorted rows and their running sums."""

    values: Tensor
    first: Tensor
    second: Tensor
    grid: Affine
    symmetric: bool

    def __call__(self, lo: Tensor, hi: Tensor) -> Tensor:
        scale, zero_point = (
            t.double()[..., None] for t in scale_and_zero_point(lo, hi, self.grid, symmetric=self.symmetric)
        )
        codes = torch.arange(self.grid.qmin, self.grid.qmax + 1, dtype=torch.float64, device=lo.device)
        level = (codes - zero_point) * scale  # [c, rows, codes]
        edges = (level[..., 1:] + level[..., :-1]) / 2
        rows, n = self.values.shape
        place = torch.searchsorted(self.values, edges.transpose(0, 1).reshape(rows, -1))
        place = place.view(rows, lo.shape[0], -1).transpose(0, 1)
        ends = torch.nn.functional.pad(torch.nn.functional.pad(place, (1, 0)), (0, 1), value=n)
        flat = ends.transpose(0, 1).reshape(rows, -1)
        sums = (s.gather(1, flat).view(rows, lo.shape[0], -1).transpose(0, 1) for s in (self.first, self.second))
        first, second = (s.diff(dim=-1) for s in sums)
        return (second - 2 * level * first + level.square() * ends.diff(dim=-1)).sum(-1)

    @property
    def at_once(self) -> int:
        """How many ranges a row to evaluate in one call."""
        return max(1, _CHUNK // (self.values.shape[0] * (self.grid.qmax - self.grid.qmin + 1)))


def _sorted_loss(values: Tensor, grid: Affine, *, symmetric: bool) -> _SortedLoss:
    x = values.double().sort(1).values
    first, second = (torch.nn.functional.pad(t.cumsum(1), (1, 0)) for t in (x, x.square()))
    return _SortedLoss(values=x, first=first, second=second, grid=grid, symmetric=symmetric)


Search = Callable[["_Loss | _SortedLoss", Tensor, Tensor, int], tuple[Tensor, Tensor]]


def _search_length(loss: _Loss | _SortedLoss, lo: Tensor, hi: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Shrink the range towards zero; the zero end of a one-sided range stays."""
    fraction = torch.arange(1, candidates + 1, dtype=torch.float64, device=lo.device)[:, None] / candidates
    lows, highs = (lo * fraction).float(), (hi * fraction).float()
    parts = zip(torch.split(lows, loss.at_once), torch.split(highs, loss.at_once), strict=True)
    found = torch.cat([loss(low, high) for low, high in parts])
    first = found.argmin(0, keepdim=True)  # of equal losses the first
    return lows.gather(0, first)[0], highs.gather(0, first)[0]


def _search_length_and_zero(
    loss: _Loss | _SortedLoss, lo: Tensor, hi: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """Every length, and for each the best zero point by bisection."""
    levels = loss.grid.qmax - loss.grid.qmin
    fraction = torch.arange(1, candidates + 1, dtype=torch.float64, device=lo.device)[:, None] / candidates
    step = (hi.double() - lo) * fraction / levels
    # Beyond these zero points the range leaves the data on one side and only clips more on the other.
    least = (levels - torch.round(hi / step)).clamp(0, levels)
    most = (-torch.round(lo / step)).clamp(0, levels)
    lows, highs, losses = [], [], []
    for d, left, right in zip(*(torch.split(t, loss.at_once) for t in (step, least, most)), strict=True):

        def ends(zero: Tensor, d: Tensor = d) -> tuple[Tensor, Tensor]:
            return (-zero * d).float(), ((levels - zero) * d).float()

        left, right = torch.minimum(left, right), torch.maximum(left, right)
        while bool((left < right).any()):
            middle = torch.floor((left + right) / 2)
            after = torch.minimum(middle + 1, right)
            go_left = loss(*ends(middle)) <= loss(*ends(after))
            left, right = torch.where(go_left, left, after), torch.where(go_left, middle, right)
        low, high = ends(left)
        lows.append(low)
        highs.append(high)
        losses.append(loss(low, high))
    first = torch.cat(losses).argmin(0, keepdim=True)
    return torch.cat(lows).gather(0, first)[0], torch.cat(highs).gather(0, first)[0]
