"""Kernels of two operands; either may be a constant with codes of its own.

- add: `y = clip(rint(fma(a, ra, fma(b, rb, c))))`, `ra = s_a / s_y`, `rb = s_b / s_y`,
  `c = z_y - fma(ra, z_a, rb z_b)`, all float32. Where the innermost axis that is not 1 has one element in the first
  operand and several in the second, the two change places. Which axis is innermost is the runtime's choice, so
  `execute.settle` chooses scales at which both orders give the same codes (`is_free_of_order`).
- mul: `y = clip(rint(float32(float32((a - z_a)(b - z_b)) * r) + z_y))`, `r = s_a s_b / s_y` in float32; the zero point
  is added before rounding.
- matmul: `y = clip(rint(float32(sum (a - z_a)(b - z_b)) * r) + z_y)`, the sum exact.

`fma` rounds once.
"""

from __future__ import annotations

import onnx_ir as ir
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


def may_change_places(op: ir.Node) -> bool:
    """Whether the first operand of a sum may have one element where the second has several, on whatever axis.

    A runtime that lays codes out with another axis innermost then computes it in another order. Sizes that are not
    known may be any.
    """
    first, second = (None if v is None or v.shape is None else list(v.shape) for v in op.inputs[:2])
    if first is None or second is None:
        return True
    rank = max(len(first), len(second))
    pairs = zip([1] * (rank - len(first)) + first, [1] * (rank - len(second)) + second, strict=True)
    return any(n != 1 and (m != n or n == ir.SymbolicDim(None)) for m, n in pairs)


def sum_of_codes(a: Tensor, b: Tensor, a_encoding: Encoding, b_encoding: Encoding, y: Encoding) -> Tensor:
    """`rint(fma(a, ra, fma(b, rb, c)))`, float32, not bounded."""
    ra, rb = a_encoding.scale / y.scale, b_encoding.scale / y.scale
    # fma(ra, z_a, rb z_b): the first product is not rounded before the sum (measured; it shows once in 1e6 codes).
    offset = ra.double() * a_encoding.zero_point.double() + (rb * b_encoding.zero_point.float()).double()
    constant = (y.zero_point.float() - offset.float()).double()
    # A fused multiply-add rounds once: in float64 the product is exact and so is the sum of numbers this close.
    inner = (b.double() * rb.double() + constant).float().double()
    return torch.round((a.double() * ra.double() + inner).float())


def is_free_of_order(a: Encoding, b: Encoding, y: Encoding, bounds: tuple[int, int]) -> bool:
    """Whether `a + b` and `b + a` give the same code for all pairs of codes.

    Args:
        a: encoding of one operand.
        b: encoding of the other.
        y: encoding of the sum.
        bounds: lowest and highest code of the sum.

    Example:
        >>> from bitwright.plan.spec import QSpec
        >>> def steps_of(size, zero_point):
        ...     scale, zero = torch.tensor(size), torch.tensor(zero_point)
        ...     return Encoding(spec=QSpec(bits=8), scale=scale, zero_point=zero)
        >>> a, b = steps_of(0.05, 128), steps_of(0.02, 128)
        >>> [is_free_of_order(a, b, steps_of(size, 128), (0, 255)) for size in (0.1, 0.10001)]
        [False, True]
    """
    rows, columns = (torch.arange(e.spec.grid.qmin, e.spec.grid.qmax + 1) for e in (a, b))
    here = sum_of_codes(rows[:, None], columns, a, b, y).clamp_(*bounds)
    return here.equal(sum_of_codes(columns, rows[:, None], b, a, y).clamp_(*bounds))


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
            y = sum_of_codes(b, a, self.b, self.a, self.y)
        else:
            y = sum_of_codes(a, b, self.a, self.b, self.y)
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
