"""Ranges without data, from the batch normalisation before a tensor.

A channel after batch normalisation is taken for a normal variable, `x_c ~ N(beta_c, gamma_c^2)`:

    lo = min_c (beta_c - n |gamma_c|),   hi = max_c (beta_c + n |gamma_c|)

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019
(n = 6). Use the beta and gamma of after equalization and bias absorption. There is no stream of data to
estimate from, so these are functions and no row of ESTIMATORS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel before an activation, `[channels]`.

    Raises:
        InputError: shapes differ, or a value is NaN or infinite.
    """

    mean: Tensor
    deviation: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.deviation.shape or self.mean.numel() == 0:
            found = f"mean {list(self.mean.shape)}, deviation {list(self.deviation.shape)}"
            raise InputError("batch norm", found, "two vectors of one length")
        if not bool(torch.isfinite(self.mean).all() and torch.isfinite(self.deviation).all()):
            raise InputError("batch norm", "NaN or infinity in beta or gamma", "finite values")


def batchnorm_statistics(beta: Tensor, gamma: Tensor) -> ChannelStatistics:
    """Statistics of the output of a batch normalisation: mean beta, deviation |gamma|."""
    return ChannelStatistics(mean=beta, deviation=gamma.abs())


def added_statistics(*terms: ChannelStatistics) -> ChannelStatistics:
    """Statistics of a residual sum, its terms taken as independent: means add, variances add.

    Example:
        >>> a = batchnorm_statistics(torch.tensor([1.0]), torch.tensor([-3.0]))
        >>> b = batchnorm_statistics(torch.tensor([2.0]), torch.tensor([4.0]))
        >>> added_statistics(a, b)
        ChannelStatistics(mean=tensor([3.]), deviation=tensor([5.]))
    """
    if len({tuple(t.mean.shape) for t in terms}) != 1:
        found = f"terms of {[t.mean.shape[0] for t in terms]} channels"
        raise InputError("residual sum", found, "at least one term, all of the same number of channels")
    mean = torch.stack([t.mean for t in terms]).sum(0)
    return ChannelStatistics(mean=mean, deviation=torch.stack([t.deviation for t in terms]).square().sum(0).sqrt())


def batchnorm_range(
    statistics: ChannelStatistics,
    *,
    deviations: float = 6.0,
    clip: tuple[float, float] = (-torch.inf, torch.inf),
    per_channel: bool = False,
) -> tuple[Tensor, Tensor]:
    """`(lo, hi)` of a tensor, each `[1]`, or `[channels]`, with `lo <= 0 <= hi`.

    Args:
        statistics: of the tensor before its activation.
        deviations: n, how many standard deviations to each side.
        clip: bounds of the activation that follows: `(0, inf)` for ReLU, `(0, 6)` for ReLU6.
        per_channel: one range a channel.

    Raises:
        InputError: n is not positive, or the bounds are not in order.

    Example:
        >>> s = batchnorm_statistics(torch.tensor([1.0, -0.5]), torch.tensor([0.5, 2.0]))
        >>> batchnorm_range(s)
        (tensor([-12.5000]), tensor([11.5000]))
        >>> batchnorm_range(s, clip=(0, 6))
        (tensor([0.]), tensor([6.]))
    """
    if not deviations > 0:
        raise InputError("deviations", f"{deviations}", "more than 0", "6 is usual")
    if not clip[0] < clip[1]:
        raise InputError("clip", f"{clip}", "the lower bound first")
    lo = (statistics.mean - deviations * statistics.deviation).float()
    hi = (statistics.mean + deviations * statistics.deviation).float()
    if not per_channel:
        lo, hi = lo.amin(0, keepdim=True), hi.amax(0, keepdim=True)
    return lo.clamp(*clip).clamp(max=0.0), hi.clamp(*clip).clamp(min=0.0)
