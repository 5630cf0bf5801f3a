"""Softmax on codes, the runtime's own algorithm, all float32 unless said.

With `n` elements along the axis and `h = max(0, float32(ln(FLT_MAX / n)) - 5)`:

    e_i = exp((i - 255) s_x + h), computed in float64, for i = 0 .. 255
    t_j = e[x_j + 255 - max x]
    y_j = clip(rint((t_j * floor(1 / s_y)) / sum t) + z_y), the sum taken element after element

`h` lifts the exponentials as far as their sum stays finite. `e_255 floor(1 / s_y)` must be finite too: a scale that is
too small for the number of elements gives codes without meaning (`overflows`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bitwright.execute.kernels.parts import Parts
from bitwright.plan.encoding import Encoding


def _lift(size: int) -> float:
    """`h`: how far exponentials are lifted, so that the sum of `size` of them stays finite."""
    largest = torch.tensor(torch.finfo(torch.float32).max) / size
    return max(0.0, float(torch.tensor(math.log(float(largest)))) - 5.0)


def _steps(y: Encoding) -> float:
    """`floor(1 / s_y)` in float32."""
    return float(torch.floor(1.0 / y.scale))


def overflows(size: int, y: Encoding) -> bool:
    """Whether the kernel's products pass the range of float32 for `size` elements at the scale of `y`.

    Example:
        >>> from bitwright.plan.spec import QSpec
        >>> def share(largest):
        ...     scale, zero_point = torch.tensor(largest / 255), torch.tensor(0)
        ...     return Encoding(spec=QSpec(bits=8), scale=scale, zero_point=zero_point)
        >>> overflows(200, share(1.0)), overflows(200, share(1 / 200))
        (False, True)
    """
    return math.exp(_lift(size)) * _steps(y) > torch.finfo(torch.float32).max


class Softmax(nn.Module):
    """Exponentials that sum to one, on codes."""

    def __init__(self, axis: int, x: Encoding, y: Encoding, bounds: tuple[int, int]) -> None:
        super().__init__()
        self.axis, self.scale = axis, float(x.scale)
        self.steps, self.zero_point = _steps(y), int(y.zero_point)
        self.low, self.high = bounds

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the shares."""
        rows = x.movedim(self.axis, -1)
        size = rows.shape[-1]
        # The lift is divided by the scale and multiplied by it again, in float64, as the runtime does.
        shift = _lift(size) / self.scale
        table = torch.tensor([math.exp((i - 255 + shift) * self.scale) for i in range(256)], device=x.device)
        index = rows.long() + 255 - rows.amax(-1, keepdim=True).long()
        terms = table[index]
        total = torch.zeros_like(terms[..., 0])
        for j in range(size):
            total = total + terms[..., j]
        y = torch.round(terms * self.steps / total[..., None]) + self.zero_point
        return y.clamp_(self.low, self.high).to(torch.uint8).movedim(-1, self.axis)


def softmax(parts: Parts) -> Softmax:
    """The kernel of a softmax along one axis."""
    return Softmax(parts.region.op.attributes.get_int("axis", -1), parts.x, parts.y, parts.bounds)
