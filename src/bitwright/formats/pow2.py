"""Power-of-two scales: rescaling is a shift.

    s = 2^k,   k = rnd(log2 s'), ceil(log2 s') or floor(log2 s') of an affine scale s', or the best of a few k

Source: Jain et al., Trained Quantization Thresholds for Accurate and Efficient Fixed-Point Inference, MLSys
2020 (ceil); the search over neighbouring exponents is that of the Vitis AI quantizer. `ceil` never clips.
`nearest` rounds in the logarithm, at `sqrt(2) 2^k`, which no float32 number hits: there are no ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine, dequantize, fake_quantize, quantize, scale_and_zero_point

PowerRounding = Literal["nearest", "ceil", "floor"]


def power_of_two(scale: Tensor, rounding: PowerRounding = "nearest") -> Tensor:
    """The power of two that stands for each scale, float32 and exact.

    Args:
        scale: positive scales, any shape.
        rounding: how log2 becomes a whole number.

    Raises:
        InputError: an unknown rounding, or a scale that is not positive and finite.

    Example:
        >>> scales = torch.tensor([0.25, 0.3, 0.4])
        >>> [power_of_two(scales, r).tolist() for r in ("nearest", "ceil", "floor")]
        [[0.25, 0.25, 0.5], [0.25, 0.5, 0.5], [0.25, 0.25, 0.25]]
    """
    if not bool((scale > 0).all() and torch.isfinite(scale).all()):
        raise InputError("scale", "a scale that is not positive and finite", "scales above 0")
    # frexp is exact where log2 is not: scale = mantissa * 2^exponent, 1/2 <= mantissa < 1.
    mantissa, exponent = torch.frexp(scale.double())
    if rounding == "nearest":
        up = mantissa > 0.5**0.5
    elif rounding == "ceil":
        up = mantissa > 0.5
    elif rounding == "floor":
        up = torch.zeros_like(mantissa, dtype=torch.bool)
    else:
        raise InputError("rounding", f"{rounding!r}", "'nearest', 'ceil' or 'floor'")
    return torch.ldexp(torch.ones_like(mantissa), exponent - 1 + up.to(exponent.dtype)).float()


def pow2_scale_and_zero_point(
    lo: Tensor, hi: Tensor, grid: Affine, *, symmetric: bool, rounding: PowerRounding = "ceil"
) -> tuple[Tensor, Tensor]:
    """As `scale_and_zero_point`, with a scale of `2^k` and the zero point that suits it.

    Example:
        >>> lo, hi = torch.tensor([-0.5]), torch.tensor([3.0])
        >>> pow2_scale_and_zero_point(lo, hi, Affine(bits=4, signed=False), symmetric=False)
        (tensor([0.2500]), tensor([2], dtype=torch.int32))
    """
    scale, zero_point = scale_and_zero_point(lo, hi, grid, symmetric=symmetric)
    scale = power_of_two(scale, rounding)
    if not symmetric:
        low = lo.double().clamp(max=0.0)
        zero_point = (grid.qmin - torch.round(low / scale)).clamp(grid.qmin, grid.qmax).to(torch.int32)
    return scale, zero_point


def search_power_of_two(rows: Tensor, grid: Affine, *, symmetric: bool, finer: int = 4) -> tuple[Tensor, Tensor]:
    """Of the scale that clips nothing and the `finer` powers below it the one of least squared error, row by row.

    The zero point is that of the scale that clips nothing: both ends shrink in proportion. Of equal errors the
    largest scale wins.

    Args:
        rows: `[rows, n]`.
        grid: the codes.
        symmetric: fix the zero point.
        finer: how many smaller powers are tried.

    Returns:
        float32 scale and int32 zero point, `[rows]`.

    Example:
        >>> rows = torch.cat([torch.linspace(-1, 1, 100), torch.tensor([1.1])])[None]
        >>> search_power_of_two(rows, Affine(bits=4, signed=True), symmetric=True)[0]
        tensor([0.1250])
    """
    lo, hi = torch.aminmax(rows.float(), dim=1)
    widest, zero_point = pow2_scale_and_zero_point(lo, hi, grid, symmetric=symmetric, rounding="ceil")
    best, least = widest, torch.full(widest.shape, torch.inf, dtype=torch.float64, device=rows.device)
    for k in range(finer + 1):
        scale = widest * 0.5**k
        quantized = fake_quantize(rows.detach(), scale[:, None], zero_point[:, None], grid)
        error = (quantized - rows).square().sum(1, dtype=torch.float64)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best, zero_point


@dataclass(frozen=True, kw_only=True)
class PowerOfTwo:
    """Affine integers whose scale is a power of two.

    Args:
        bits: width, 1 to 16.
        signed: codes on both sides of zero, symmetric; unsigned grids are asymmetric.
        narrow: leave out the lowest signed code.
        rounding: of the min-max scale, or `search` for the power of least squared error.

    Raises:
        InputError: as `Affine`, or an unknown rounding.

    Example:
        >>> scale, zero_point = PowerOfTwo(bits=4, rounding="ceil").fit(torch.tensor([[-1.0, 0.3]]))
        >>> scale, zero_point
        (tensor([0.2500]), tensor([0], dtype=torch.int32))
    """

    bits: int = 8
    signed: bool = True
    narrow: bool = False
    rounding: Literal["nearest", "ceil", "floor", "search"] = "search"

    def __post_init__(self) -> None:
        if self.rounding not in ("nearest", "ceil", "floor", "search"):
            raise InputError("rounding", f"{self.rounding!r}", "'nearest', 'ceil', 'floor' or 'search'")
        _ = self.grid  # refuses what Affine refuses

    @property
    def grid(self) -> Affine:
        """The codes."""
        return Affine(bits=self.bits, signed=self.signed, narrow=self.narrow)

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return self.grid.qmin

    @property
    def qmax(self) -> int:
        """Highest code."""
        return self.grid.qmax

    def fit(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each row."""
        if self.rounding == "search":
            return search_power_of_two(rows, self.grid, symmetric=self.signed)
        lo, hi = torch.aminmax(rows.float(), dim=1)
        return pow2_scale_and_zero_point(lo, hi, self.grid, symmetric=self.signed, rounding=self.rounding)

    def encode(self, rows: Tensor, *parameters: Tensor) -> Tensor:
        """As `Affine`."""
        scale, zero_point = parameters
        return quantize(rows, scale[:, None], zero_point[:, None], self.grid)

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """As `Affine`."""
        scale, zero_point = parameters
        return dequantize(codes, scale[:, None], zero_point[:, None])
