"""Mean and variance of a normal variable after an activation that clips it.

For `x ~ N(m, g^2)` clipped to `[a, c]`, with `A = (a - m) / g`, `C = (c - m) / g`, Phi and phi the normal distribution
and its density:

    E[x]   = g (phi(A) - phi(C)) + m (Phi(C) - Phi(A)) + a Phi(A) + c (1 - Phi(C))
    E[x^2] = (m^2 + g^2) (Phi(C) - Phi(A)) + g ((m + a) phi(A) - (m + c) phi(C)) + a^2 Phi(A) + c^2 (1 - Phi(C))

ReLU is `[0, inf)`, ReLU6 `[0, 6]`.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, appendix C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clipped_normal(
    mean: Tensor, deviation: Tensor, low: float = -math.inf, high: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation after clipping, float64, in the shape of `mean`.

    Args:
        mean: m.
        deviation: g, 0 or more; 0 is a constant.
        low: a, may be -inf.
        high: c, may be inf.

    Example:
        >>> mean, deviation = clipped_normal(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 2.0]), 0.0, 6.0)
        >>> [round(v, 6) for v in mean.tolist()]
        [0.398942, 3.0]
    """
    m, g = mean.double(), deviation.double()
    first, second = m.clone(), m.square() + g.square()
    if low > -math.inf or high < math.inf:
        spread = g.clamp(min=1e-300)
        below, above = torch.special.ndtr((low - m) / spread), torch.special.ndtr((m - high) / spread)
        at_low, at_high = _density((low - m) / spread), _density((high - m) / spread)
        a, c = (low if low > -math.inf else 0.0), (high if high < math.inf else 0.0)
        inside = 1.0 - below - above
        first = g * (at_low - at_high) + m * inside + a * below + c * above
        second = (
            second * inside + g * ((m + a) * at_low - (m + c) * at_high) + a * a * below + c * c * above
        )  # fmt: skip
    return first, (second - first.square()).clamp(min=0.0).sqrt()


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
