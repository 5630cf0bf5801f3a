"""Pools that compute.

- global: `y = clip(rint(float32(sum x - n z_x) * (s_x / (float32(n) * s_y))) + z_y)`;
- windows: `y = clip(rint(((sum s_x (x - z_x)) / n) / s_y + z_y))`, float32, summed in the order of the window.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from bitwright.execute.attributes import ints
from bitwright.execute.kernels.parts import Parts
from bitwright.execute.nodes import attributes_of


class GlobalAveragePool(nn.Module):
    """Mean over the plane."""

    s_x: Tensor
    s_y: Tensor

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        x, y = parts.x, parts.y
        self.register_buffer("s_x", x.scale)
        self.register_buffer("s_y", y.scale)
        self.x_zero, self.y_zero = int(x.zero_point), int(y.zero_point)
        self.low, self.high = parts.bounds

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the means."""
        plane = x.flatten(2)
        n = plane.shape[2]
        total = plane.sum(2, dtype=torch.int64) - n * self.x_zero
        factor = self.s_x / (torch.tensor(float(n), device=x.device) * self.s_y)
        y = torch.round(total.float() * factor) + self.y_zero
        return y.clamp_(self.low, self.high).to(torch.uint8).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


class AveragePool(nn.Module):
    """Mean over a sliding window."""

    real: Tensor
    s_y: Tensor

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        x, y = parts.x, parts.y
        attributes = attributes_of(parts.region.op)
        self.kernel = ints(attributes["kernel_shape"])
        spatial = len(self.kernel)
        self.strides = ints(attributes.get("strides", [1] * spatial))
        self.pads = ints(attributes.get("pads", [0] * 2 * spatial))
        self.count_padding = bool(attributes.get("count_include_pad", 0))
        table = x.scale * (torch.arange(256, dtype=torch.float32) - float(x.zero_point))
        self.register_buffer("real", table)
        self.register_buffer("s_y", y.scale)
        self.y_zero = float(y.zero_point)
        self.low, self.high = parts.bounds

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the means."""
        real = self.real[x.int()]
        spatial = len(self.kernel)
        sides = [p for i in reversed(range(spatial)) for p in (self.pads[i], self.pads[i + spatial])]
        real = nn.functional.pad(real, sides)
        inside = nn.functional.pad(torch.ones(x.shape[2:], device=x.device), sides)
        total, count = self._sum(real), self._sum(inside)
        if self.count_padding:
            count = torch.full_like(count, float(torch.tensor(self.kernel).prod()))
        y = torch.round((total / count) / self.s_y + self.y_zero)
        return y.clamp_(self.low, self.high).to(torch.uint8)

    def _sum(self, x: Tensor) -> Tensor:
        """Window sums in float32, added one element after another as the kernel does."""
        plane = x.shape[-len(self.kernel) :]
        sizes = [(n - k) // s + 1 for n, k, s in zip(plane, self.kernel, self.strides, strict=True)]
        total = None
        for offset in itertools.product(*(range(k) for k in self.kernel)):
            window = x
            for axis, (start, size, stride) in enumerate(zip(offset, sizes, self.strides, strict=True)):
                steps = torch.arange(start, start + size * stride, stride, device=x.device)
                window = window.index_select(window.ndim - len(self.kernel) + axis, steps)
            total = window if total is None else total + window
        assert total is not None
        return total


def global_average_pool(parts: Parts) -> GlobalAveragePool:
    """The kernel of a mean over the plane."""
    return GlobalAveragePool(parts)


def average_pool(parts: Parts) -> AveragePool:
    """The kernel of a mean over a sliding window."""
    return AveragePool(parts)
