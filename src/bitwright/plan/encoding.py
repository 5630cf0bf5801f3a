"""Encoding: a number format with its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import dequantize, fake_quantize, quantize
from bitwright.formats.levels import encode_levels, midpoints
from bitwright.plan.spec import QSpec, spec_from_json, spec_to_json


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """`x ~ scale * (code - zero_point)`, with the grid of `spec`, or `x ~ scale * levels[code]`.

    Attributes:
        spec: the number format.
        scale: float32, `[]` for a tensor, `[channels]` for an axis.
        zero_point: int32, same shape; zeros where there are levels.
        codes: the integer codes (int32) of a constant whose rounding was chosen, or read from a file; None where
            rounding to nearest gives them.
        levels: int32, ascending, of a format that is a table; None for affine integers.
    """

    spec: QSpec
    scale: Tensor
    zero_point: Tensor
    codes: Tensor | None = None
    levels: Tensor | None = None

    def parameters(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, made to broadcast over `like` (shape of the quantized tensor)."""
        expand = self.spec.granularity.expand
        return expand(self.scale, like).to(like.device), expand(self.zero_point, like).to(like.device)

    def codes_of(self, x: Tensor) -> Tensor:
        """The chosen codes of a constant, or those nearest to `x`."""
        return self.quantize(x) if self.codes is None else self.codes

    def integers(self, codes: Tensor) -> Tensor:
        """What a kernel multiplies by, int32: `code - zero_point`, or the level of the code."""
        if self.levels is not None:
            return self.levels.to(codes.device)[codes.long()]
        return codes - self.parameters(codes)[1]

    def quantize(self, x: Tensor) -> Tensor:
        """Codes (int32) nearest to real values."""
        if self.levels is None:
            return quantize(x, *self.parameters(x), self.spec.grid)
        rows = (x / self.parameters(x)[0]).reshape(1, -1)
        one = self.scale.new_ones(1)
        return encode_levels(rows, one, midpoints(self.levels)).reshape(x.shape)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Real values (float32) of codes."""
        if self.levels is not None:
            return self.integers(codes).float() * self.parameters(codes)[0]
        return dequantize(codes, *self.parameters(codes))

    def values_of(self, x: Tensor) -> Tensor:
        """Real values of a constant at the codes that were chosen for it, or at its nearest ones."""
        return self.dequantize(self.codes_of(x))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize, with the straight-through gradient."""
        if self.levels is not None:
            return x + (self.dequantize(self.quantize(x.detach())) - x).detach()
        return fake_quantize(x, *self.parameters(x), self.spec.grid)


def to_plain(encoding: Encoding) -> dict[str, Any]:
    """Tensors and plain JSON values, as `torch.save` keeps them."""
    fields = {f.name: getattr(encoding, f.name) for f in dataclasses.fields(encoding)}
    return fields | {"spec": spec_to_json(encoding.spec)}


def from_plain(entry: Mapping[str, Any], where: str) -> Encoding:
    """The encoding that `to_plain` took apart; `where` is what errors call it.

    Example:
        >>> import torch
        >>> spec = QSpec(bits=4)
        >>> there = Encoding(spec=spec, scale=torch.tensor(0.5), zero_point=torch.tensor(0))
        >>> from_plain(to_plain(there), "x").spec == spec
        True
    """
    spec = spec_from_json(entry["spec"], where)
    if not isinstance(spec, QSpec):
        raise InputError(where, f"is {entry['spec']!r}", "the spec of a quantized site")
    return Encoding(**{**entry, "spec": spec})
