"""Annealing softmax: a weight is a mixture of a few levels around it, which cools down to one of them.

    W~ = sum_k p_k level(below + k),    p = softmax(V / T),    T from 1 to `coldest` as time goes,    k = -1 .. 2

At the end the level of the largest V is taken. At first `V_k = -2 (k - r)^2`, r where the weight lies between the
levels below and above it, so that the mixture is within a few hundredths of a step of the weight. Levels need not be
equally spaced.

Source: Wang et al., Leveraging Inter-Layer Dependency for Post-Training Quantization, NeurIPS 2022 (annealing
softmax). Choices: four candidates, the first V, and a temperature that falls geometrically.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitwright.plan.encoding import Encoding
from bitwright.ptq.reconstruct.soft import neighbours

CANDIDATES = (-1, 0, 1, 2)
#: Logit of a candidate beyond the grid: exp of it is 0 at every temperature.
NEVER = -1e9


class AnnealingRounding(nn.Module):
    """A weight between its candidates.

    Args:
        weight: float weight.
        encoding: its grid, which stays.
        strength: of a regulariser; there is none, so that it is not used.
        coldest: temperature at the end.
    """

    below: Tensor
    levels: Tensor
    beyond: Tensor

    def __init__(self, weight: Tensor, encoding: Encoding, strength: float = 0.0, *, coldest: float = 0.01) -> None:
        super().__init__()
        self.encoding, self.coldest, self.beta, self.time = encoding, coldest, None, 0.0
        below, value, gap = neighbours(weight, encoding)
        table, grid = encoding.levels, encoding.spec.grid
        lowest, highest = (grid.qmin, grid.qmax) if table is None else (0, len(table) - 1)
        codes = torch.stack([below + k for k in CANDIDATES])
        self.register_buffer("below", below)
        self.register_buffer("beyond", (codes < lowest) | (codes > highest))
        self.register_buffer("levels", torch.stack([encoding.dequantize(c.clamp(lowest, highest)) for c in codes]))
        between = torch.where(gap > 0, (weight - value) / gap.clamp(min=1e-30), 0.0).clamp(0, 1)
        self.v = nn.Parameter(torch.stack([-2 * (k - between).square() for k in CANDIDATES]))

    def _temperature(self) -> float:
        return self.coldest**self.time

    def _logits(self) -> Tensor:
        return self.v.masked_fill(self.beyond, NEVER)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is mixed now; the float weight has said all when this was made."""
        return (torch.softmax(self._logits() / self._temperature(), 0) * self.levels).sum(0)

    def groups(self) -> Mapping[str, nn.Parameter]:
        """V, one for each weight and candidate."""
        return {"weight": self.v}

    def settled(self) -> bool:
        """Not before the end: it only cools."""
        return False

    @torch.no_grad()
    def undecided(self) -> float:
        """Share of the weights of which no candidate has 0.99 of the mixture."""
        largest = torch.softmax(self._logits() / self._temperature(), 0).amax(0)
        return float((largest < 0.99).float().mean())

    @torch.no_grad()
    def rounded(self) -> Encoding:
        """The encoding with the codes of the largest V."""
        chosen = self._logits().argmax(0).to(torch.int32) + CANDIDATES[0]
        return dataclasses.replace(self.encoding, codes=self.below + chosen)
