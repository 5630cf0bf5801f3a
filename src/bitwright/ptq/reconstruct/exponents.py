"""Steps that are powers of two and yet learned: softly between two powers at first, at one of them in the end.

    weights:      s = 2^(e + h(P)),  e = floor(log2 s'),  for a share of the time; then h is 0 or 1, and weights are
                  rounded up or down by `soft.py` on the grid that was found
    activations:  s = s0 2^(k - 1),  k = h + time (rnd(h) - h),  straight through rnd

h is AdaRound's rectified sigmoid, s' the step of least error without the bound to powers of two, and s0 the power of
two that clips nothing of the calibrated range, so that the best one is it or its half. Zero points follow the step,
`z = rnd(z' s' / s)`, so that the range stays where it was.

Source: Yao et al., RAPQ: Rescuing Accuracy for Power-of-Two Low-bit Post-training Quantization, IJCAI 2022.
Choices: exponents of activations harden steadily, where the authors' are free numbers in the end; rounding variables
start anew when the exponents of weights have settled; the regulariser of these is ten times that of weights, as in the
authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitwright.formats.affine import SMALLEST_SCALE
from bitwright.formats.pow2 import power_of_two
from bitwright.plan.encoding import Encoding
from bitwright.ptq.calibrate import weight_encoding
from bitwright.ptq.reconstruct.activations import Coin, LearnedStep, quantized_by
from bitwright.ptq.reconstruct.penalty import penalised
from bitwright.ptq.reconstruct.soft import GAMMA, STRETCH, SoftRounding, inverse_rectified_sigmoid, rectified_sigmoid
from bitwright.ranges.mse import MSE

#: Where the exponent of an activation begins, between 0, half the step, and 1, the step.
HIGH = 0.75
#: Weight of the regulariser of exponents, over that of weights; its power at first and when they settle.
HEAVIER, SOFT, HARD = 10.0, 20.0, 2.0


def _soft(v: Tensor) -> Tensor:
    """`rectified_sigmoid` with gradients."""
    return torch.clamp(torch.sigmoid(v) * STRETCH + GAMMA, 0, 1)


def exponent_rounding(
    weight: Tensor, encoding: Encoding, strength: float, *, settle: float = 0.1
) -> ExponentRounding | SoftRounding:
    """The rounding of a weight: its exponents move where they are powers of two; other formats keep their grid."""
    if encoding.spec.format == "pow2":
        return ExponentRounding(weight, encoding, strength, settle=settle)
    return SoftRounding(weight, encoding, strength)


class ExponentRounding(nn.Module):
    """A weight whose steps are powers of two that are chosen first.

    Args:
        weight: float weight.
        encoding: of the format `pow2`.
        strength: of the regulariser.
        settle: share of the time in which exponents are chosen; 0 for the nearest in the logarithm.
    """

    base: Tensor

    def __init__(self, weight: Tensor, encoding: Encoding, strength: float, *, settle: float = 0.1) -> None:
        super().__init__()
        self.encoding, self.strength, self.settle, self.beta, self.time = encoding, strength, settle, None, 0.0
        self.float_weight = weight
        self.free = weight_encoding(weight, dataclasses.replace(encoding.spec, format="affine"), MSE(), "a weight")
        exponent = torch.log2(self.free.scale)
        self.register_buffer("base", power_of_two(self.free.scale, "floor"))
        self.exponent = nn.Parameter(inverse_rectified_sigmoid((exponent - torch.log2(self.base)).clamp(0, 1)))
        self.soft: SoftRounding | None = None
        self.v = nn.Parameter(torch.zeros_like(weight))
        step, _ = self._grid(self.base * torch.exp2(rectified_sigmoid(self.exponent.detach())))
        u = weight / encoding.spec.granularity.expand(step, weight)
        self.v.data = inverse_rectified_sigmoid(u - torch.floor(u))

    def _grid(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Step and zero point: the range stays where it was."""
        grid = self.encoding.spec.grid
        zero = torch.round(self.free.zero_point * self.free.scale / step.detach()).clamp(grid.qmin, grid.qmax)
        return step, zero

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is rounded now; the float weight has said all when this was made."""
        if self.soft is None and self.time >= self.settle:
            self._settle()
        if self.soft is not None:
            self.soft.beta = self.beta
            found: Tensor = self.soft(weight)
            return found
        h = _soft(self.exponent)
        step, zero = self._grid(self.base * torch.exp2(h))
        expand = self.encoding.spec.granularity.expand
        s, z, grid = expand(step, weight), expand(zero, weight), self.encoding.spec.grid
        u = self.float_weight / s
        up = _soft(self.v)
        # floor passes the gradient on to the step, as rounding does.
        code = (u + (torch.floor(u) - u).detach() + up + z).clamp(grid.qmin, grid.qmax)
        power = SOFT + (HARD - SOFT) * self.time / self.settle
        undecided = (1 - (2 * h - 1).abs().pow(power)).sum()
        return penalised((code - z) * s, HEAVIER * self.strength * undecided)

    @torch.no_grad()
    def _settle(self) -> SoftRounding:
        """Exponents that are chosen; rounding begins on their grid."""
        up = (self.exponent >= 0).to(torch.int32)
        step, zero = self._grid(torch.ldexp(self.base, up).clamp(min=SMALLEST_SCALE))
        chosen = dataclasses.replace(self.encoding, scale=step, zero_point=zero.to(torch.int32), codes=None)
        soft = SoftRounding(self.float_weight, chosen, self.strength)
        self.v.data = soft.v.data
        soft.v = self.v  # the one that the optimiser has
        self.soft = soft
        return soft

    def groups(self) -> Mapping[str, nn.Parameter]:
        """Rounding variables and exponents."""
        return {"weight": self.v, "weight step": self.exponent}

    def settled(self) -> bool:
        """Whether neither exponents nor weights can move any more."""
        return self.soft is not None and self.soft.settled()

    def undecided(self) -> float:
        """Share of the weights that are between two codes."""
        return 1.0 if self.soft is None else self.soft.undecided()

    def rounded(self) -> Encoding:
        """The chosen grid and the chosen codes."""
        return (self.soft or self._settle()).rounded()


class LearnedExponent(LearnedStep):
    """The quantizer of an activation whose step ends at one of two powers of two: that of its encoding, or its half.

    Args:
        encoding: step and zero point to begin with.
        learned: whether the exponent moves.
        coin: which elements are quantized; None for all.
    """

    def __init__(self, encoding: Encoding, *, learned: bool, coin: Coin | None = None) -> None:
        super().__init__(encoding, learned=learned, coin=coin)
        high = torch.full_like(encoding.scale, HIGH)
        self.step = nn.Parameter(inverse_rectified_sigmoid(high), requires_grad=learned)

    def forward(self, x: Tensor) -> Tensor:
        """Real values, on the grid where they are quantized."""
        if not self.step.requires_grad:
            return quantized_by(x, self.encoding.scale, float(self.encoding.zero_point), self.encoding.spec.grid,
                                self.coin)  # fmt: skip
        h = _soft(self.step)
        h = h + self.time * (torch.round(h) - h).detach()
        step = self.encoding.scale * torch.exp2(h - 1)
        return quantized_by(x, step, float(self._zero(step.detach())), self.encoding.spec.grid, self.coin)

    def _zero(self, step: Tensor) -> Tensor:
        grid = self.encoding.spec.grid
        return torch.round(self.encoding.zero_point * self.encoding.scale / step).clamp(grid.qmin, grid.qmax)

    @torch.no_grad()
    def moved(self) -> Encoding:
        """The encoding at the exponent that was chosen."""
        least = power_of_two(torch.tensor(SMALLEST_SCALE), "ceil")
        step = (self.encoding.scale * torch.exp2(torch.round(_soft(self.step)) - 1)).clamp(min=float(least))
        return dataclasses.replace(self.encoding, scale=step, zero_point=self._zero(step).to(torch.int32))
