"""Kernels of two operands; either may be a constant with codes of its own.

- add: `y = clip(rint(fma(a, ra, fma(b, rb, c))))`, `ra = s_a / s_y`, `rb = s_b / s_y`,
  `c = z_y - fma(ra, z_a, rb z_b)`, all float32. Where the innermost axis that is not 1 has one element in the first
  operand and several in the second, the two change places.
- mul: `y = clip(rint(float32(float32((a - z_a)(b - z_b)) * r) + z_y))`, `r = s_a s_b / s_y` in float32; the zero point
  is added before rounding.
- matmul: `y = clip(rint(float32(sum (a - z_a)(b - z_b)) * r) + z_y)`, the sum exact.

`fma` rounds once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.execute.kernels.parts import Parts, Requantize, exact_carrier, furthest
from bitwright.plan.encoding import Encoding


class _Operands(nn.Module):
    """Takes codes of the operands that are computed, and puts constants in their places."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.a, self.b = (parts.encoding(v) for v in parts.region.op.inputs if v is not None)
        self.constants = [parts.constant_codes(v) for v in parts.region.op.inputs if v is not None]

    def operands(self, xs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Codes of both operands."""
        waiting = iter(xs)
        a, b = (next(waiting) if c is None else c.to(xs[0].device) for c in self.constants)
        return a, b


def _is_scalar_first(a: Tensor, b: Tensor) -> bool:
    """Whether the first operand is repeated along the innermost axis on which the second has several elements."""
    for back in range(1, max(a.ndim, b.ndim) + 1):
        sizes = [x.shape[-back] if back <= x.ndim else 1 for x in (a, b)]
        if sizes != [1, 1]:
            return sizes[0] == 1
    return False


class Add(_Operands):
    """Sum of two code tensors, each at its own scale."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.y = parts.y
        self.low, self.high = parts.bounds

    def forward(self, *xs: Tensor) -> Tensor:
        """Codes of the sum."""
        a, b = self.operands(xs)
        if _is_scalar_first(a, b):
            return self._sum(b, a, self.b, self.a)
        return self._sum(a, b, self.a, self.b)

    def _sum(self, a: Tensor, b: Tensor, a_encoding: Encoding, b_encoding: Encoding) -> Tensor:
        ra, rb = a_encoding.scale / self.y.scale, b_encoding.scale / self.y.scale
        # fma(ra, z_a, rb z_b): the first product is not rounded before the sum (measured; it shows once in 1e6 codes).
        offset = ra.double() * a_encoding.zero_point.double() + (rb * b_encoding.zero_point.float()).double()
        constant = (self.y.zero_point.float() - offset.float()).double()
        # A fused multiply-add rounds once: in float64 the product is exact and so is the sum of numbers this close.
        inner = (b.double() * rb.double() + constant).float().double()
        y = torch.round((a.double() * ra.double() + inner).float())
        return y.clamp_(self.low, self.high).to(torch.uint8)


class Mul(_Operands):
    """Product of two code tensors."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.ratio = float((self.a.scale * self.b.scale) / parts.y.scale)
        self.zero_point = float(parts.y.zero_point)
        self.low, self.high = parts.bounds

    def forward(self, *xs: Tensor) -> Tensor:
        """Codes of the product."""
        a, b = self.operands(xs)
        product = (a.float() - float(self.a.zero_point)) * (b.float() - float(self.b.zero_point))  # below 2^16: exact
        y = torch.round(product * self.ratio + self.zero_point)
        return y.clamp_(self.low, self.high).to(torch.uint8)


class MatMul(_Operands):
    """Matrix product of two code tensors."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.term = float(furthest(self.a) * furthest(self.b))
        self.requantize = Requantize((self.a.scale * self.b.scale) / parts.y.scale, parts.y, parts.bounds)

    def forward(self, *xs: Tensor) -> Tensor:
        """Codes of the matrices."""
        a, b = self.operands(xs)
        carrier = exact_carrier(self.term * a.shape[-1])
        left, right = a.to(carrier) - int(self.a.zero_point), b.to(carrier) - int(self.b.zero_point)
        y: Tensor = self.requantize(left @ right)
        return y


def add(parts: Parts) -> Add:
    """The kernel of a sum."""
    return Add(parts)


def mul(parts: Parts) -> Mul:
    """The kernel of a product, element by element."""
    return Mul(parts)


def matmul(parts: Parts) -> MatMul:
    """The kernel of a product of matrices."""
    return MatMul(parts)
