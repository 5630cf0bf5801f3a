"""Affine integers: `x = scale * (code - zero_point)`, 1 to 16 bits.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018; Nagel et al., A White Paper on Neural Network
Quantization, 2021. Choices made where the literature differs:

1. the zero point comes from the low end, `qmin - rnd(lo / s)`, not from the high end;
2. the division is rounded before the zero point is added, `rnd(x / s) + z`;
3. `x / s` is a float32 division, not a product with the reciprocal;
4. `rnd` is half to even, the rounding of ONNX QuantizeLinear.

Parameters are tensors that broadcast against `x`; `granularity.expand` makes them so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.rounding import round_straight_through

SMALLEST_SCALE = 1e-8
"""Floor of every scale: the product of two scales and the quotient of three stay normal float32 numbers."""


@dataclass(frozen=True, kw_only=True)
class Affine:
    """The integer codes `qmin .. qmax`.

    Unsigned `0 .. 2^b - 1`; signed `-2^(b-1) .. 2^(b-1) - 1`; signed and narrow `-(2^(b-1) - 1) .. 2^(b-1) - 1`.

    Args:
        bits: width b, 1 to 16.
        signed: codes on both sides of zero.
        narrow: leave out the lowest signed code, so that the grid is symmetric (needs 2 bits).

    Raises:
        InputError: the width is not 1 to 16, or narrow does not apply.

    Example:
        >>> Affine(bits=8, signed=True, narrow=True).qmin, Affine(bits=4, signed=False).qmax
        (-127, 15)
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 16:
            raise InputError("bits", f"a width of {self.bits!r}", "a whole number from 1 to 16")
        if self.narrow and not self.signed:
            raise InputError("narrow", "an unsigned grid", "a signed grid", "set signed or leave narrow out")
        if self.narrow and self.bits < 2:
            raise InputError("narrow", "1 bit, which leaves the code 0 alone", "2 bits or more")

    @property
    def qmin(self) -> int:
        """Lowest code."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + int(self.narrow)

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << (self.bits - int(self.signed))) - 1

    def fit(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the min-max range of each row: symmetric on a signed grid, else asymmetric."""
        lo, hi = torch.aminmax(rows.float(), dim=1)
        return scale_and_zero_point(lo, hi, self, symmetric=self.signed)

    def encode(self, rows: Tensor, *parameters: Tensor) -> Tensor:
        """`quantize` with one scale and zero point a row."""
        scale, zero_point = parameters
        return quantize(rows, scale[:, None], zero_point[:, None], self)

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """`dequantize` with one scale and zero point a row."""
        scale, zero_point = parameters
        return dequantize(codes, scale[:, None], zero_point[:, None])


def scale_and_zero_point(lo: Tensor, hi: Tensor, grid: Affine, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point that map the range `[lo, hi]`, widened to contain zero, to the grid.

    With `A = max(|lo|, |hi|)`:

    - asymmetric: `s = (hi - lo) / (qmax - qmin)`, `z = clip(qmin - rnd(lo / s), qmin, qmax)`;
    - symmetric, signed and narrow: `s = A / qmax`, `z = 0`;
    - symmetric, signed and full: `s = 2A / (2^b - 1)`, `z = 0` (half-range: `+A` loses up to `s / 2`);
    - symmetric, unsigned: `s = A / (2^(b-1) - 1)`, `z = 2^(b-1)` (both ends are representable).

    The scale is computed in float64 and rounded once to float32, and is at least `SMALLEST_SCALE`.

    Args:
        lo: low ends, any shape.
        hi: high ends, same shape.
        grid: the codes.
        symmetric: fix the zero point.

    Returns:
        float32 scale and int32 zero point, in the shape of `lo`.

    Raises:
        InputError: shapes differ, an end is NaN or infinite, or 1 bit is asked to be symmetric and unsigned.

    Example:
        >>> grid = Affine(bits=8, signed=False)
        >>> s, z = scale_and_zero_point(torch.tensor(-1.0), torch.tensor(1.0), grid, symmetric=False)
        >>> round(s.item(), 8), z.item()
        (0.00784314, 128)
    """
    if lo.shape != hi.shape:
        raise InputError("range", f"low ends {list(lo.shape)}, high ends {list(hi.shape)}", "the same shape")
    if not bool(torch.isfinite(lo).all() and torch.isfinite(hi).all()):
        raise InputError("range", "an end that is NaN or infinity", "finite ends")
    low, high = lo.double().clamp(max=0.0), hi.double().clamp(min=0.0)
    if symmetric:
        amax = torch.maximum(-low, high)
        steps, zero = _symmetric_steps(grid)
        # Rounding to float32 comes last: the ratio lo / s below needs the exact scale to see ties.
        return _as_float32(amax / steps), torch.full_like(amax, zero, dtype=torch.int32)
    scale = ((high - low) / (grid.qmax - grid.qmin)).clamp(min=SMALLEST_SCALE)
    zero_point = (grid.qmin - torch.round(low / scale)).clamp(grid.qmin, grid.qmax)
    return _as_float32(scale), zero_point.to(torch.int32)


def _symmetric_steps(grid: Affine) -> tuple[float, int]:
    """How many steps lie between zero and A, and the code of zero."""
    if grid.narrow:
        return float(grid.qmax), 0
    if grid.signed:
        return (2**grid.bits - 1) / 2, 0
    if grid.bits == 1:
        raise InputError("symmetric", "1 unsigned bit, which has no code on either side of zero", "2 bits or more")
    return float(2 ** (grid.bits - 1) - 1), 2 ** (grid.bits - 1)


def _as_float32(scale: Tensor) -> Tensor:
    return scale.clamp(SMALLEST_SCALE, torch.finfo(torch.float32).max).to(torch.float32)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Affine) -> Tensor:
    """Codes, int32: `q = clip(rnd(x / s) + z, qmin, qmax)`. `x` must not hold NaN.

    Example:
        >>> x = torch.tensor([-1.2, 0.0, -0.26, 1.0, 1.2])
        >>> quantize(x, torch.tensor(2 / 255), torch.tensor(128), Affine(bits=8, signed=False)).tolist()
        [0, 128, 95, 255, 255]
    """
    # An out-of-place division, then in place: half the memory of the plain chain.
    return torch.div(x.float(), scale).round_().add_(zero_point).clamp_(grid.qmin, grid.qmax).to(torch.int32)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Values, float32: `x = (q - z) * s`.

    Example:
        >>> dequantize(torch.tensor([0, 2, 15]), torch.tensor(0.25), torch.tensor(2)).tolist()
        [-0.5, 0.0, 3.25]
    """
    return (q - zero_point).to(torch.float32) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Affine, *, out: Tensor | None = None) -> Tensor:
    """`dequantize(quantize(x))`, the same float32 values, with straight-through gradients.

    `dy/dx = 1` where `qmin <= rnd(x / s) + z <= qmax`, else 0: the mask looks at the rounded code, as torch does.
    A scale or a floating-point zero point that requires a gradient receives
    `dy/ds = rnd(x / s) - x / s` inside and `q - z` outside, `dy/dz = 0` inside and `-s` outside.

    Loops over many scales pass `out`, a float32 buffer of the shape of the result; it takes no gradients.

    Example:
        >>> x = torch.tensor([-3.0, 0.3, 0.8, 9.0], requires_grad=True)
        >>> y = fake_quantize(x, torch.tensor(0.5), torch.tensor(0), Affine(bits=2, signed=True))
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([-1.0, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0])
    """
    if (
        out is None
        and torch.is_grad_enabled()
        and (x.requires_grad or scale.requires_grad or zero_point.requires_grad)
    ):
        code = (round_straight_through(x.float() / scale) + zero_point).clamp(grid.qmin, grid.qmax)
        return (code - zero_point) * scale
    code = torch.div(x.float(), scale, out=out).round_().add_(zero_point).clamp_(grid.qmin, grid.qmax)
    return code.sub_(zero_point).mul_(scale)
