"""Attention rounding: a weight may go to any code, to farther ones with a probability that falls as a Gaussian does.

    W~ = s (clip(rnd(W / s + a) + z, qmin, qmax) - z),    a ~ N(0, spread^2) at first, then learned
    P(code k) = Phi((k + 1/2 - W / s) / spread) - Phi((k - 1/2 - W / s) / spread)

What moves `a` is the gradient that rounding passes straight through, times the share of the Gaussian that lies in the
direction of the move beyond `a`: `Phi(a / spread)` on the way down, `1 - Phi(a / spread)` on the way up. So a weight
is the harder to move the farther it is from where it was.

Source: Diao et al., Attention Round for Post-Training Quantization, 2022. From the paper: every code can be
reached, with a probability that falls with the distance as a Gaussian does. Choices: the Gaussian is drawn once, in
steps of the grid, with a spread of 1/2, and the gradient's attention has this form.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.plan.encoding import Encoding
from bitwright.ptq.reconstruct.weights import AlwaysRounded

SPREAD = 0.5


def reach(a: Tensor, gradient: Tensor, spread: float) -> Tensor:
    """Share of `N(0, spread^2)` that lies beyond `a`, in the direction in which the gradient moves it.

    Example:
        >>> far = torch.tensor([1.0, 1.0, 0.0])
        >>> [round(v, 4) for v in reach(far, torch.tensor([1.0, -1.0, 1.0]), 0.5).tolist()]
        [0.9772, 0.0228, 0.5]
    """
    return (1 + torch.erf(a * torch.sign(gradient) / (spread * math.sqrt(2)))) / 2


class AttentionRounding(AlwaysRounded):
    """A weight that is shifted, in steps of its grid, before it is rounded.

    Args:
        weight: float weight.
        encoding: its grid, which stays.
        strength: of a regulariser; there is none, so that it is not used.
        spread: of the first shifts, in steps; 0 for none, with gradients passed straight through.
        seed: of the draw.

    Raises:
        InputError: a format that is a table of levels.
    """

    position: Tensor

    def __init__(
        self, weight: Tensor, encoding: Encoding, strength: float = 0.0, *, spread: float = SPREAD, seed: float = 0
    ) -> None:
        super().__init__()
        if encoding.levels is not None:
            raise InputError("a weight", f"of the format {encoding.spec.format}", "integers, which have steps",
                             "choose another rounding, or another format with --set W=...")  # fmt: skip
        self.encoding, self.spread, self.beta, self.time = encoding, spread, None, 0.0
        self.register_buffer("position", weight / encoding.parameters(weight)[0])
        # Each weight tensor has a draw of its own, the same in every run.
        own = zlib.crc32(weight.detach().contiguous().numpy().tobytes(), int(seed))
        generator = torch.Generator().manual_seed(own)
        self.shift = nn.Parameter(torch.randn(weight.shape, generator=generator) * spread)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is rounded now; the float weight has said all when this was made."""
        scale, zero = self.encoding.parameters(weight)
        grid = self.encoding.spec.grid
        code = _Attended.apply(self.shift, self.position, self.spread)
        # Beyond the grid nothing moves a weight, as nothing would change.
        code = (code + zero).clamp(grid.qmin, grid.qmax)
        found: Tensor = (code - zero) * scale
        return found

    def groups(self) -> Mapping[str, nn.Parameter]:
        """The shifts."""
        return {"weight": self.shift}

    @torch.no_grad()
    def rounded(self) -> Encoding:
        """The encoding with the codes at the shifts that were learned."""
        _, zero = self.encoding.parameters(self.position)
        grid = self.encoding.spec.grid
        codes = (torch.round(self.position + self.shift) + zero).clamp(grid.qmin, grid.qmax)
        return dataclasses.replace(self.encoding, codes=codes.to(torch.int32))


class _Attended(torch.autograd.Function):
    """`rnd(position + shift)`; the gradient, times `reach`."""

    @staticmethod
    def forward(ctx: Any, shift: Tensor, position: Tensor, spread: float) -> Tensor:
        ctx.save_for_backward(shift)
        ctx.spread = spread
        return torch.round(position + shift)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (shift,) = ctx.saved_tensors
        upstream = gradients[0]
        return (upstream * reach(shift, upstream, ctx.spread) if ctx.spread else upstream), None, None
