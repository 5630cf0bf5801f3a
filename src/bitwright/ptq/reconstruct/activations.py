"""Activation quantizers while a unit is reconstructed: a step that is learned (LSQ), elements that are left in float.

    y = s (clip(rnd(x / s) + z, qmin, qmax) - z),    with probability `keep` for each element; else y = x
    dy/dx = 1 inside the grid, 0 outside;    dy/ds = g (rnd(x / s) - x / s) inside, g (q - z) outside
    g = 1 / sqrt(elements (qmax - qmin))

Source: Esser et al., Learned Step Size Quantization, ICLR 2020; elements left in float: X. Wei et al., QDrop, ICLR
2022. Choice: g counts the elements of the whole batch, as QDrop's authors do.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.formats.affine import SMALLEST_SCALE, Affine
from bitwright.plan.encoding import Encoding

#: Random bits that are drawn once; each use takes them from another place on.
POOL = 1 << 22


class Coin:
    """Independent draws with probability `keep`, which may change: a long row, read from a drawn place on.

    Example:
        >>> coin = Coin(0.2, torch.Generator().manual_seed(0))
        >>> round(float(coin(torch.empty(400, 500)).mean()), 2)
        0.2
    """

    def __init__(self, keep: float, generator: torch.Generator) -> None:
        self.generator, self.keep = generator, keep
        self.pool = torch.rand(POOL, generator=generator)
        self._at, self._ones = math.nan, self.pool

    def __call__(self, like: Tensor) -> Tensor:
        """Zeros and ones, as floats and in the layout of `like`: other masks cost several times as much."""
        if self._at != self.keep:
            self._at, self._ones = self.keep, self.pool.clone().lt_(self.keep)
        n, row = like.numel(), self._ones
        if n > POOL:
            row = row.repeat(-(-n // POOL) + 1)
        start = int(torch.randint(len(row) - n + 1, (1,), generator=self.generator))
        layout = torch.empty_like(like).stride()  # without gaps
        return row[start : start + n].as_strided(like.shape, layout, start)


def quantized_by(x: Tensor, step: Tensor, zero: float, grid: Affine, coin: Coin | None) -> Tensor:
    """`y` as above, with its gradients to values and step."""
    kept = None if coin is None else coin(x)
    found: Tensor = _Step.apply(x, step, zero, grid.qmin, grid.qmax, kept)
    return found


class LearnedStep(nn.Module):
    """The quantizer of one activation.

    Args:
        encoding: step and zero point to begin with.
        learned: whether the step moves.
        coin: which elements are quantized; None for all.
    """

    def __init__(self, encoding: Encoding, *, learned: bool, coin: Coin | None = None) -> None:
        super().__init__()
        self.encoding, self.coin = encoding, coin
        #: Share of the iterations that have been made, set by the engine.
        self.time = 0.0
        self.step = nn.Parameter(encoding.scale.clone(), requires_grad=learned)

    def forward(self, x: Tensor) -> Tensor:
        """Real values, on the grid where they are quantized."""
        return quantized_by(x, self.step, float(self.encoding.zero_point), self.encoding.spec.grid, self.coin)

    def moved(self) -> Encoding:
        """The encoding at the learned step."""
        step = self.step.detach().abs().clamp(min=SMALLEST_SCALE).clone()
        return dataclasses.replace(self.encoding, scale=step)


class _Step(torch.autograd.Function):
    """Masks are floats of zeros and ones: products of floats run at several times the speed of choices by a bool."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: float, qmin: int, qmax: int, kept: Tensor | None) -> Tensor:
        size = step.abs().clamp(min=SMALLEST_SCALE)
        code = torch.div(x, size).round_()
        y = code.clamp(qmin - zero, qmax - zero)
        outside = code.ne_(y)
        moved = y.mul_(size).sub(x)
        if kept is not None:
            outside.mul_(kept)
            y = x + moved.mul_(kept)
        ctx.save_for_backward(x, moved, outside, step)
        ctx.levels = qmax - qmin
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, moved, outside, step = ctx.saved_tensors
        (upstream,) = gradients
        stopped, to_step = upstream * outside, None
        if ctx.needs_input_grad[1]:
            # y - x inside and y outside are s times what the formula asks for; `moved` is y - x where quantized.
            total = ((upstream * moved).sum() + (stopped * x).sum()) / step.abs().clamp(min=SMALLEST_SCALE)
            to_step = (total * torch.sign(step) / math.sqrt(x.numel() * ctx.levels)).reshape(step.shape)
        return torch.sub(upstream, stopped, out=stopped), to_step, None, None, None, None


class ShiftedBias(nn.Module):
    """A bias that is learned, as a difference from what it was."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(bias))

    def forward(self, bias: Tensor) -> Tensor:
        """The bias now."""
        return bias + self.change()

    def change(self) -> Tensor:
        """What is added to the bias."""
        return self.shift


class BorderedBias(ShiftedBias):
    """A bias that moves the border at which what a layer gives is rounded up: `(1/2 - B) s` is added, B in (0, 1).

        rnd(v / s + 1/2 - B) = rnd((v + (1/2 - B) s) / s)

    Args:
        bias: of the layer.
        step: quantizer of what it gives, whose step is s.
        shared: one border for all channels.
    """

    def __init__(self, bias: Tensor, step: LearnedStep, *, shared: bool) -> None:
        super().__init__(bias[:1] if shared else bias)
        self.of, self.like = (step,), bias  # in a tuple: it has a place among the modules already

    def change(self) -> Tensor:
        """`(1/2 - B) s`, with `B = sigmoid(shift)`."""
        step: Tensor = self.of[0].moved().scale
        return ((0.5 - torch.sigmoid(self.shift)) * step).expand_as(self.like)
