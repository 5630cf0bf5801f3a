"""Encoding: a number format with its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitwright.formats.affine import dequantize, fake_quantize, quantize
from bitwright.plan.spec import QSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """`x ~ scale * (code - zero_point)`, with the grid of `spec`.

    Attributes:
        spec: the number format.
        scale: float32, `[]` for a tensor, `[channels]` for an axis.
        zero_point: int32, same shape.
        codes: the integer codes (int32) of a constant whose rounding was chosen, or read from a file; None where
            rounding to nearest gives them.
    """

    spec: QSpec
    scale: Tensor
    zero_point: Tensor
    codes: Tensor | None = None

    def parameters(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, made to broadcast over `like` (shape of the quantized tensor)."""
        expand = self.spec.granularity.expand
        return expand(self.scale, like).to(like.device), expand(self.zero_point, like).to(like.device)

    def codes_of(self, x: Tensor) -> Tensor:
        """The chosen codes of a constant, or those nearest to `x`."""
        return self.quantize(x) if self.codes is None else self.codes

    def integers(self, codes: Tensor) -> Tensor:
        """What a kernel multiplies by: `code - zero_point`, int32."""
        return codes - self.parameters(codes)[1]

    def quantize(self, x: Tensor) -> Tensor:
        """Codes (int32) of real values."""
        return quantize(x, *self.parameters(x), self.spec.grid)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Real values (float32) of codes."""
        return dequantize(codes, *self.parameters(codes))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize, with the straight-through gradient."""
        return fake_quantize(x, *self.parameters(x), self.spec.grid)
