"""What moves, joins or bounds codes; given codes of one encoding it gives codes of that encoding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.execute.kernels.parts import Parts
from bitwright.execute.nodes import attributes_of, op_function


class Codes(nn.Module):
    """An op that moves codes: the float op itself, on codes."""

    def __init__(self, op_type: str, attributes: dict[str, object], arguments: list[Tensor | None]) -> None:
        super().__init__()
        self.op = op_function(op_type)
        self.attributes, self.arguments = attributes, arguments

    def forward(self, x: Tensor) -> Tensor:
        """The same codes, moved."""
        # Not every float op takes uint8; float32 holds each code exactly.
        y = self.op(x.float(), *self.arguments, **self.attributes)
        return (y[0] if isinstance(y, tuple) else y).to(torch.uint8)


def codes(parts: Parts) -> Codes:
    """The kernel of an op that moves codes; zeros that it pads with are the zero point."""
    op = parts.region.op
    attributes = attributes_of(op)
    arguments = [None if v is None else parts.tensor(v) for v in op.inputs[1:]]
    if op.op_type == "Pad" and attributes.get("mode", "constant") == "constant":
        arguments = [*arguments[:1], torch.tensor(float(parts.y.zero_point)), *arguments[2:]]
    return Codes(op.op_type, attributes, arguments)


class Bound(nn.Module):
    """ReLU or Clip that stands alone: bounds on the codes."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Codes within the bounds."""
        return x.clamp(self.low, self.high)


def bound(parts: Parts) -> Bound:
    """The kernel of a ReLU or Clip that stands alone."""
    return Bound(*parts.bounds)


class Concat(nn.Module):
    """Codes of one encoding, side by side; `None` stands for what is computed, the rest are constants."""

    def __init__(self, axis: int, constants: list[Tensor | None]) -> None:
        super().__init__()
        self.axis, self.constants = axis, constants

    def forward(self, *xs: Tensor) -> Tensor:
        """Codes of all inputs."""
        waiting = iter(xs)
        return torch.cat([next(waiting) if c is None else c.to(xs[0].device) for c in self.constants], self.axis)


def concat(parts: Parts) -> Concat:
    """The kernel of a concatenation."""
    op = parts.region.op
    return Concat(op.attributes.get_int("axis", 0), [parts.constant_codes(v) for v in op.inputs if v is not None])
