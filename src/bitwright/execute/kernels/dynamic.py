"""A linear layer whose activation range is found at run time: integer products, float in and out.

    s_x = (max(x, 0) - min(x, 0)) / 255,   z_x = clip(rint(-min(x, 0) / s_x)),   q = clip(rint(x / s_x) + z_x)
    y = float32(sum (q - z_x) w) * (s_x s_w) + b

Minimum and maximum are those of the whole tensor that arrives, all images of a batch together, so an image's result
depends on the images beside it. Source: ONNX DynamicQuantizeLinear and MatMulInteger.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.execute.kernels.parts import exact_carrier
from bitwright.plan.encoding import Encoding


def dynamic_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (float32, whole) of one tensor on uint8.

    Example:
        >>> dynamic_range(torch.tensor([-1.0, 0.0, 1.55]))
        (tensor(0.0100), tensor(100.))
    """
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / 255
    if not bool(scale > 0):  # all zeros
        return torch.ones_like(scale), torch.zeros_like(scale)
    return scale, torch.round(-low / scale).clamp(0, 255)


class DynamicGemm(nn.Module):
    """`x W + b` on the codes of x."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Encoding, codes: Tensor, bias: Tensor | None, *, transposed: bool) -> None:
        super().__init__()
        integers = weight.integers(codes)
        integers = integers.T if transposed else integers
        bound = 255.0 * float(integers.double().abs().sum(0).max())
        self.register_buffer("weight", integers.to(exact_carrier(bound)))
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Real values."""
        scale, zero_point = dynamic_range(x)
        codes = (torch.round(x / scale) + zero_point).clamp(0, 255) - zero_point
        acc = (codes.to(self.weight.dtype) @ self.weight).float()
        y = acc * (scale * self.scale)
        return y if self.bias is None else y + self.bias
