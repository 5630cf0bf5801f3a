"""KL (entropy): the threshold at which the quantized histogram resembles the clipped one most.

For every threshold of i bins of the histogram of |x|, with L quantization levels:

    P = hist[:i], all counts beyond added to its last bin
    Q = hist[:i] summed into L groups, each sum spread evenly over the bins of its group that are not empty
    choose the i of least KL(P / sum P || Q / sum Q)

Source: Migacz, 8-bit Inference with TensorRT, GTC 2017, and the histogram calibrator of NVIDIA's
pytorch-quantization. Choices:

1. L is `2^(b-1)`, the levels of one sign, or `2^b` for one-sided data on an asymmetric grid;
2. bin 0 counts as much as bin 1, whatever lies there: the mass of exact zeros would rule the search;
3. a threshold whose last bin is empty although values lie beyond it is out (KL is infinite);
4. of equal divergences the largest threshold wins; the threshold is the upper edge of bin i;
5. two-sided data on an asymmetric grid are cut at the same threshold on both sides, within their extremes;
6. L bins or fewer leave nothing to choose: the range is that of the data.

For activations of 8 bits; at fewer bits it clips too much, there the MSE search is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.ranges.estimator import no_data, with_zero
from bitwright.ranges.histogram import Histogram, update_histogram

Grouping = Literal["even", "floor"]
_CHUNK = 1 << 20  # group edges held at a time


@dataclass(frozen=True, kw_only=True)
class KL:
    """The range of least Kullback-Leibler divergence.

    Args:
        bins: bins of the histogram over the largest magnitude of the first batch.
        grouping: how i bins become L groups: `even`, bin j to group `floor(j L / i)` (NVIDIA's calibrator), or
            `floor`, groups of `floor(i / L)` bins and the remainder in the last (the talk's slides).

    Raises:
        InputError: an unknown grouping, or too few bins.

    Example:
        >>> estimator = KL()
        >>> x = torch.cat([torch.linspace(-1, 1, 10001), torch.tensor([9.0])])[None]
        >>> state = estimator.update(estimator.init(), x)
        >>> lo, hi = estimator.finish(state, Affine(bits=8, signed=True), symmetric=True)
        >>> bool(hi < 2)
        True
    """

    bins: int = 2048
    grouping: Grouping = "even"

    def __post_init__(self) -> None:
        if self.grouping not in ("even", "floor"):
            raise InputError("grouping", f"{self.grouping!r}", "'even' or 'floor'")
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
        threshold = torch.zeros_like(lo)
        one_sided = ((lo == 0) | (hi == 0)) & (not symmetric)
        for alone, levels in ((False, 2 ** (grid.bits - 1)), (True, 2**grid.bits)):
            index = torch.nonzero(one_sided == alone).flatten()
            if index.numel():
                bins = kl_threshold(state.magnitude[index], levels, grouping=self.grouping)
                threshold[index] = (bins * state.width[index]).float()
        return torch.maximum(lo, -threshold), torch.minimum(hi, threshold)


def kl_threshold(counts: Tensor, levels: int, *, grouping: Grouping = "even") -> Tensor:
    """How many bins to keep of each histogram of `|x|`.

    Args:
        counts: `[rows, k]`, the bin nearest to zero first.
        levels: L, the levels of one sign.
        grouping: as for `KL`.

    Returns:
        int64 `[rows]`.

    Example:
        >>> counts = (1e6 * torch.exp(-torch.arange(2048, dtype=torch.float64) / 50)).floor()[None]
        >>> kl_threshold(counts, 128), kl_threshold(counts, 128, grouping="floor")
        (tensor([537]), tensor([623]))
    """
    counts = counts.double().clone()
    if counts.shape[1] > 1:
        counts[:, 0] = counts[:, 1]
    columns = torch.arange(1, counts.shape[1] + 1, device=counts.device)
    length = torch.where(counts > 0, columns, 0).amax(1) if counts.shape[1] else torch.zeros_like(counts.sum(1)).long()
    if int(length.amax()) < levels:
        return length
    i = torch.arange(levels, int(length.amax()) + 1, device=counts.device)
    at_once = max(1, _CHUNK // (counts.shape[0] * (levels + 1)))
    parts = [kl_divergence(counts, part, levels, grouping=grouping) for part in torch.split(i, at_once)]
    divergence = torch.cat(parts, dim=1).where(i <= length[:, None], torch.inf)
    # Equal up to rounding counts as equal, and of equal divergences the last wins.
    least = (divergence <= divergence.amin(1, keepdim=True) + 1e-13) & (divergence < torch.inf)
    return torch.where(least.any(1), torch.where(least, i, 0).amax(1), length)


def kl_divergence(counts: Tensor, i: Tensor, levels: int, *, grouping: Grouping) -> Tensor:
    """`KL(P || Q)` of each histogram when cut after i bins, `[rows, len(i)]`; infinite where Q lacks what P has.

    Computed from running sums, so that a threshold costs L operations and not i. With S_g the sum of group g,
    r_g that sum by non-empty bin, C_i the counts up to i, T all counts, o = T - C_i, h the last bin before i:

        T KL = sum_{j<i-1} h_j ln h_j + (h+o) ln(h+o) - sum_g S_g ln r_g - o ln r_last - T ln T + T ln C_i
    """
    h = counts.double()
    groups = torch.arange(levels + 1, device=h.device)
    edges = -(-groups * i[:, None] // levels) if grouping == "even" else groups * (i[:, None] // levels)
    edges[:, -1] = i
    beyond = [torch.nn.functional.pad(t.cumsum(1), (1, 0)) for t in (h, (h > 0).double(), torch.xlogy(h, h))]
    sums, filled = (t[:, edges].diff(dim=2) for t in beyond[:2])
    rate = sums / filled.clamp(min=1)
    total, kept, last = h.sum(1, keepdim=True), beyond[0][:, i], h[:, i - 1]
    outside = total - kept
    cross = torch.xlogy(sums, rate).sum(2) + torch.xlogy(outside, rate[:, :, -1])
    own = beyond[2][:, i - 1] + torch.xlogy(last + outside, last + outside)
    divergence = (own - cross) / total - torch.log(total) + torch.log(kept)
    return divergence.where((last > 0) | (outside <= 0), torch.inf)
