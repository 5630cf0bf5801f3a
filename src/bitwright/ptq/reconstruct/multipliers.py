"""Alternating directions: a free weight and its nearest multiple of the grid, drawn together until they agree.

    min f(W)  with  W in {a (q - z)}:
    W   <- argmin f(W) + rho / 2 ||(W - G + U) / s||^2     some steps of the optimiser
    G   <- the point a (q - z) nearest to W + U            `alternate.py`, a scale for each channel
    U   <- U + W - G,    and U <- U rho / rho' where rho becomes rho'

f is the loss of the unit. rho grows, so that the weight is on the grid at the end. All is counted in the steps s that
the weight began with, so that rates and rho mean the same in every layer: rho is what it costs to be a step away.

Source: Leng et al., Extremely Low Bit Neural Network: Squeeze the Last Bit Out with ADMM, AAAI 2018. Choices: f is
the reconstruction error of a layer, not the training loss; Adam in place of the extra-gradient step; rho grows
geometrically, to a hundred times what it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitwright.formats.affine import SMALLEST_SCALE
from bitwright.plan.encoding import Encoding
from bitwright.ptq.reconstruct.alternate import nearest_multiple
from bitwright.ptq.reconstruct.penalty import penalised
from bitwright.ptq.reconstruct.weights import refuse_fixed_steps

#: By how much rho grows.
GROWTH = 100.0


class AlternatingRounding(nn.Module):
    """A free weight that is drawn to the grid.

    Args:
        weight: float weight.
        encoding: its grid; the zero point stays.
        strength: rho at first.
        turns: how often the nearest point of the grid is looked for.

    Raises:
        InputError: a format that is a table of levels, or whose steps are powers of two.
    """

    near: Tensor
    gap: Tensor
    step: Tensor

    def __init__(self, weight: Tensor, encoding: Encoding, strength: float, *, turns: float = 20) -> None:
        super().__init__()
        refuse_fixed_steps(encoding)
        self.encoding, self.strength, self.turns, self.beta, self.time = encoding, strength, int(turns), None, 0.0
        self.done = 0
        self.register_buffer("step", encoding.parameters(weight)[0].clone())
        self.register_buffer("gap", torch.zeros_like(weight))
        self.weight = nn.Parameter(weight / self.step)
        self.register_buffer("near", self._near(weight))

    def _near(self, weight: Tensor) -> Tensor:
        found = self._nearest(weight)
        return found.values_of(weight) / self.step

    def _nearest(self, weight: Tensor) -> Encoding:
        granularity, spec = self.encoding.spec.granularity, self.encoding.spec
        rows = granularity.rows(weight)
        scale = self.encoding.scale.reshape(-1)
        amax = rows.abs().amax(1).clamp(min=SMALLEST_SCALE)
        half = (spec.grid.qmax - spec.grid.qmin) / 2
        starts = torch.stack([scale, amax / half, amax / (1.25 * half), amax / (2.5 * half)])
        found, codes = nearest_multiple(rows, starts, self.encoding.zero_point.reshape(-1).float(), spec.grid)
        if spec.axis is None:
            codes = codes.reshape(weight.shape)
        else:
            codes = codes.reshape(weight.movedim(spec.axis, 0).shape).movedim(0, spec.axis).contiguous()
        return dataclasses.replace(self.encoding, scale=found.reshape(self.encoding.scale.shape), codes=codes)

    def forward(self, weight: Tensor) -> Tensor:
        """The free weight, with the gradient of the penalty; now and then the other two directions."""
        if self.time * self.turns >= self.done + 1:
            self._turn()
        rho = self.strength * GROWTH**self.time
        away = self.weight - self.near + self.gap
        return penalised(self.weight * self.step, rho / 2 * away.square().sum())

    @torch.no_grad()
    def _turn(self) -> None:
        self.done = int(self.time * self.turns)
        self.near.copy_(self._near((self.weight + self.gap) * self.step))
        self.gap += self.weight - self.near
        self.gap /= GROWTH ** (1 / self.turns)

    def groups(self) -> Mapping[str, nn.Parameter]:
        """The free weight."""
        return {"weight": self.weight}

    def settled(self) -> bool:
        """Not before the end: rho still grows."""
        return False

    @torch.no_grad()
    def undecided(self) -> float:
        """Share of the weights that are further than a tenth of a step from the grid."""
        return float(((self.weight - self.near).abs() > 0.1).float().mean())

    @torch.no_grad()
    def rounded(self) -> Encoding:
        """The nearest point of the grid."""
        return self._nearest((self.weight + self.gap) * self.step)
