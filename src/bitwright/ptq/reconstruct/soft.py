"""Soft rounding: each weight lies between the level below it and the level above, and learns which of them to be.

    W~ = below + (above - below) h(V),    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)
    loss + strength * sum(1 - |2 h - 1|^beta),    zeta = 1.1, gamma = -0.1

The regulariser enters by its gradient, which is added where W~ hands the loss's gradient to V. Weights beyond the grid
stay at its ends. Levels need not be equally spaced, so tables (log2, codebook ...) are rounded as integers are.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.plan.encoding import Encoding
from bitwright.ptq.reconstruct.pieces import pieces

ZETA, GAMMA = 1.1, -0.1
STRETCH = ZETA - GAMMA
LOWEST = torch.tensor(GAMMA)


def rectified_sigmoid(v: Tensor) -> Tensor:
    """`clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1)`.

    Example:
        >>> [round(h, 6) for h in rectified_sigmoid(torch.tensor([0.5, 1.0, 2.5])).tolist()]
        [0.646951, 0.77727, 1.0]
    """
    return torch.sigmoid(v).mul_(STRETCH).add_(GAMMA).clamp_(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The V at which `rectified_sigmoid` is `h`, of `[0, 1]`: `-ln((zeta - gamma) / (h - gamma) - 1)`.

    Example:
        >>> [round(v, 6) for v in inverse_rectified_sigmoid(torch.tensor([0.0, 0.1, 0.5, 0.75])).tolist()]
        [-2.397895, -1.609438, -0.0, 0.887303]
    """
    return -torch.log(STRETCH / (h - GAMMA) - 1)


def neighbours(weight: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor, Tensor]:
    """Code of the level below each weight, its value, and how far the level above is: 0 beyond the ends of the grid.

    Example:
        >>> from bitwright.plan.spec import QSpec
        >>> spec = QSpec(bits=2)
        >>> grid = Encoding(spec=spec, scale=torch.tensor(0.5), zero_point=torch.tensor(1, dtype=torch.int32))
        >>> [t.tolist() for t in neighbours(torch.tensor([-9.0, -0.1, 0.2, 9.0]), grid)]
        [[0, 0, 1, 3], [-0.5, -0.5, 0.0, 1.0], [0.0, 0.5, 0.5, 0.0]]
    """
    codes = encoding.quantize(weight)
    if encoding.levels is None:
        lowest, highest = encoding.spec.grid.qmin, encoding.spec.grid.qmax
    else:
        lowest, highest = 0, len(encoding.levels) - 1
    below = torch.where((encoding.dequantize(codes) > weight) & (codes > lowest), codes - 1, codes)
    value = encoding.dequantize(below)
    gap = encoding.dequantize((below + 1).clamp(max=highest)) - value
    outside = (weight <= encoding.dequantize(torch.full_like(codes, lowest))) | (below == highest)
    return below, value, gap.masked_fill(outside, 0.0)


class SoftRounding(nn.Module):
    """A weight between its two levels; `rounded()` gives the codes once it has settled.

    Args:
        weight: float weight.
        encoding: its grid, which stays.
        strength: of the regulariser.
    """

    below: Tensor
    value: Tensor
    gap: Tensor

    def __init__(self, weight: Tensor, encoding: Encoding, strength: float) -> None:
        super().__init__()
        self.encoding, self.strength = encoding, strength
        below, value, gap = neighbours(weight, encoding)
        self.register_buffer("below", below)
        self.register_buffer("value", value.contiguous())
        self.register_buffer("gap", gap.contiguous())
        fraction = torch.where(gap > 0, (weight - value) / gap.clamp(min=1e-30), 0.0).clamp(0, 1)
        self.v = nn.Parameter(inverse_rectified_sigmoid(fraction).contiguous())
        #: Power of the regulariser now; None while there is none.
        self.beta: float | None = None
        self.time = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is rounded now; the float weight has said all when this was made."""
        found: Tensor = _SoftWeight.apply(self.v, self.value, self.gap, *self._regulariser())
        return found

    def _regulariser(self) -> tuple[float, float]:
        return (0.0, 0.0) if self.beta is None else (self.beta, self.strength)

    @torch.no_grad()
    def step(self, gradient_of: Callable[[Tensor], Tensor]) -> None:
        """Leave V's gradient, from a function that gives the loss's gradient for a weight: no graph is made."""
        weight, sigmoid = soft_weight(self.v, self.value, self.gap)
        self.v.grad = soft_gradient(gradient_of(weight).contiguous(), sigmoid, self.gap, *self._regulariser())

    def groups(self) -> Mapping[str, nn.Parameter]:
        """V, one for each weight."""
        return {"weight": self.v}

    def settled(self) -> bool:
        """Whether no weight can move any more: each is wholly at one of its levels, where the gradient is 0."""
        h = rectified_sigmoid(self.v.detach())
        return bool(((h == 0) | (h == 1) | (self.gap == 0)).all())

    def undecided(self) -> float:
        """Share of the weights that are further than 0.01 from both levels."""
        h = rectified_sigmoid(self.v.detach())
        return float(((h > 0.01) & (h < 0.99) & (self.gap > 0)).float().mean())

    def rounded(self) -> Encoding:
        """The encoding with the codes that were chosen: up where h is at least a half."""
        up = (self.v.detach() >= 0) & (self.gap > 0)
        return dataclasses.replace(self.encoding, codes=self.below + up.to(torch.int32))


def soft_weight(v: Tensor, value: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """`value + gap h(V)`, and `sigmoid(V)`, which `soft_gradient` asks for.

    This is called once a step, on millions of weights, so it goes through them in pieces that stay in the cache; on
    few weights what counts is how many operations there are.
    """
    sigmoid, found = torch.empty_like(v), torch.empty_like(value)
    for part, base, step, s, out in zip(*(pieces(t) for t in (v, value, gap, sigmoid, found)), strict=True):
        h = torch.add(LOWEST, torch.sigmoid(part, out=s), alpha=STRETCH).clamp_(0, 1)
        torch.addcmul(base, step, h, out=out)
    return found, sigmoid


def soft_gradient(upstream: Tensor, sigmoid: Tensor, gap: Tensor, beta: float, strength: float) -> Tensor:
    """The gradient of `loss + strength sum(1 - |2 h - 1|^beta)` for V, from the loss's gradient for the weight."""
    found = torch.empty_like(sigmoid)
    for s, step, given, out in zip(*(pieces(t) for t in (sigmoid, gap, upstream, found)), strict=True):
        stretched = torch.add(LOWEST, s, alpha=STRETCH)
        total = given * step
        if strength:
            # d/dh of -|2h - 1|^beta is -2 beta |2h - 1|^(beta - 1) sign(2h - 1); beyond [0, 1] nothing moves.
            distance = stretched.mul(2).sub_(1)
            slope = distance.abs().log_().mul_(beta - 1).exp_().copysign_(distance)
            total.sub_(slope, alpha=2 * strength * beta)
        inside = torch.ops.aten.hardtanh_backward(total, stretched, 0.0, 1.0)
        torch.mul(torch.ops.aten.sigmoid_backward(inside, s), STRETCH, out=out)
    return found


class _SoftWeight(torch.autograd.Function):
    """`soft_weight`; backward adds the regulariser's gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, value: Tensor, gap: Tensor, beta: float, strength: float) -> Tensor:
        found, sigmoid = soft_weight(v, value, gap)
        ctx.save_for_backward(sigmoid, gap)
        ctx.beta, ctx.strength = beta, strength
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        sigmoid, gap = ctx.saved_tensors
        found = soft_gradient(gradients[0].contiguous(), sigmoid, gap, ctx.beta, ctx.strength)
        return found, None, None, None, None
