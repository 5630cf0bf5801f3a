"""Division-based rounding: each weight is divided by a factor of its own before it is rounded.

    W~ = s1 (clip(rnd(W / (s1 S)) + z, qmin, qmax) - z),    S = S2 s3 s4 > 0

S2 has a factor for each weight, s3 one for each output channel, s4 one for each input channel of a convolution; all
begin at 1. s1 is the step itself and learned too. They act in the denominator only: codes stay on the grid of s1, and
a weight may move by several codes. As `d(W / S) / dS = -W / S^2`, large weights move more than small ones.

Source: Lee et al., FlexRound: Learnable Rounding based on Element-wise Division for Post-Training Quantization,
ICML 2023. Choices: factors are powers of e, so that they stay positive; the derivative at 1 is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitwright.formats.affine import SMALLEST_SCALE, fake_quantize
from bitwright.plan.encoding import Encoding
from bitwright.ptq.reconstruct.weights import AlwaysRounded, refuse_fixed_steps


class DividedRounding(AlwaysRounded):
    """A weight over its factors, rounded with straight-through gradients.

    Args:
        weight: float weight.
        encoding: its grid; the zero point stays.
        strength: of a regulariser; there is none, so that it is not used.

    Raises:
        InputError: a format that is a table of levels, or whose steps are powers of two.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, encoding: Encoding, strength: float = 0.0) -> None:
        super().__init__()
        refuse_fixed_steps(encoding)
        self.encoding, self.beta, self.time = encoding, None, 0.0
        self.register_buffer("weight", weight)
        self.step = nn.Parameter(encoding.scale.clone())
        self.factor = nn.Parameter(torch.zeros_like(weight))
        # Convolutions have factors for rows and for columns, matrices for their output channels alone.
        axes = (0, 1) if weight.ndim > 2 else (encoding.spec.axis or 0,)
        self.along = nn.ParameterList([nn.Parameter(weight.new_zeros(_along(weight, axis))) for axis in axes])

    def _divided(self) -> Tensor:
        exponent = self.factor
        for part in self.along:
            exponent = exponent + part
        return self.weight * torch.exp(-exponent)

    def _step(self) -> Tensor:
        return self.step.abs().clamp(min=SMALLEST_SCALE)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is rounded now; the float weight has said all when this was made."""
        expand = self.encoding.spec.granularity.expand
        zero = expand(self.encoding.zero_point.float(), weight)
        return fake_quantize(self._divided(), expand(self._step(), weight), zero, self.encoding.spec.grid)

    def groups(self) -> Mapping[str, nn.Parameter]:
        """All factors at the rate of weights, and the step."""
        along = {f"weight:{i}": part for i, part in enumerate(self.along)}
        return {"weight": self.factor, "weight step": self.step, **along}

    @torch.no_grad()
    def rounded(self) -> Encoding:
        """Codes at the learned step."""
        moved = dataclasses.replace(self.encoding, scale=self._step().clone(), codes=None)
        return dataclasses.replace(moved, codes=moved.quantize(self._divided()))


def _along(weight: Tensor, axis: int) -> list[int]:
    return [size if i == axis else 1 for i, size in enumerate(weight.shape)]
