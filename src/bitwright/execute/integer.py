"""Integer regions, as ONNX Runtime's x86-64 kernels compute them: codes in, codes out, bit for bit.

Formulas (`docs/design.md`, section 4); `rint` rounds half to even, all factors are float32:

    conv, gemm   acc = sum (x - z_x) w + b                              exact int32
                 y = clip(rint(float32(acc) * float32(s_x * s_w / s_y)) + z_y)
    add          y = clip(rint(fma(a, ra, fma(b, rb, c)))), ra = s_a / s_y, rb = s_b / s_y,
                 c = z_y - fma(ra, z_a, rb z_b)
    global pool  y = clip(rint(float32(sum x - n z_x) * (s_x / (float32(n) * s_y))) + z_y)
    mean pool    y = clip(rint(((sum s_x (x - z_x)) / n) / s_y + z_y)), float32, summed in the order of the window

An absorbed ReLU or Clip and a width below 8 bits are bounds on the code: rounding is monotone, so bounding after it is
the same. Codes travel as uint8. Accumulators are float32 where every partial sum is below 2^24, where float32 counts
exactly, and float64 elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import onnx_ir as ir
import torch
from torch import Tensor, nn

from bitwright.errors import UnsupportedError
from bitwright.execute.attributes import ints
from bitwright.execute.nodes import attributes_of, op_function
from bitwright.graph.regions import Region
from bitwright.plan.encoding import Encoding

#: float32 counts integers exactly up to here.
EXACT_FLOAT32 = 2**24


def code_bounds(region_bounds: tuple[float, float] | None, encoding: Encoding) -> tuple[int, int]:
    """Lowest and highest code of a region's output: those of the grid, within those of its activation."""
    low, high = encoding.spec.grid.qmin, encoding.spec.grid.qmax
    if region_bounds is not None:
        bounds = torch.tensor(region_bounds, dtype=torch.float32)
        finite = torch.clamp(bounds, -3.0e38, 3.0e38)
        first, last = encoding.quantize(finite).tolist()
        low, high = max(low, first), min(high, last)
    return low, high


class Requantize(nn.Module):
    """`y = clip(rint(acc * multiplier) + z_y)`, acc exact."""

    multiplier: Tensor

    def __init__(self, multiplier: Tensor, output: Encoding, bounds: tuple[float, float] | None, channel: int) -> None:
        super().__init__()
        self.register_buffer("multiplier", multiplier.float())
        self.zero_point = int(output.zero_point)
        self.low, self.high = code_bounds(bounds, output)
        self.channel = channel

    def forward(self, acc: Tensor) -> Tensor:
        """Codes of an exact accumulator."""
        multiplier = self.multiplier
        if multiplier.ndim:
            shape = [1] * acc.ndim
            shape[self.channel] = -1
            multiplier = multiplier.reshape(shape)
        y = torch.round(acc.float() * multiplier) + self.zero_point
        return y.clamp_(self.low, self.high).to(torch.uint8)


class Weighted(nn.Module):
    """Convolution or gemm on codes."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, region: Region, x: Encoding, weight: Encoding, codes: Tensor, bias: Tensor | None, y: Encoding
    ) -> None:
        super().__init__()
        self.op = op_function(region.op.op_type)
        self.attributes = attributes_of(region.op)
        centred = weight.integers(codes).double()
        axis = weight.spec.axis if weight.spec.axis is not None else 0
        per_channel = centred.abs().movedim(axis, 0).flatten(1).sum(1)
        z = int(x.zero_point)
        bound = float(per_channel.max()) * max(z - x.spec.grid.qmin, x.spec.grid.qmax - z)
        offset = torch.zeros(codes.shape[axis]) if bias is None else bias
        bound += float(offset.double().abs().max())
        self.carrier = torch.float32 if bound < EXACT_FLOAT32 else torch.float64
        self.register_buffer("weight", centred.to(self.carrier))
        self.register_buffer("bias", offset.to(self.carrier))
        self.zero_point = z
        # product first, then the quotient, both in float32
        multiplier = (x.scale * weight.scale) / y.scale
        self.requantize = Requantize(multiplier, y, region.bounds, channel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the output."""
        centred = x.to(self.carrier) - self.zero_point
        return self.requantize(self.op(centred, self.weight, self.bias, **self.attributes))


class Add(nn.Module):
    """Sum of two code tensors, each at its own scale."""

    ra: Tensor
    rb: Tensor
    constant: Tensor

    def __init__(self, region: Region, a: Encoding, b: Encoding, y: Encoding) -> None:
        super().__init__()
        ra, rb = a.scale / y.scale, b.scale / y.scale
        # fma(ra, z_a, rb z_b): the first product is not rounded before the sum (measured; it shows once in 1e6 codes).
        offset = ra.double() * a.zero_point.double() + (rb * b.zero_point.float()).double()
        constant = y.zero_point.float() - offset.float()
        for name, value in (("ra", ra), ("rb", rb), ("constant", constant)):
            self.register_buffer(name, value.double())
        self.low, self.high = code_bounds(region.bounds, y)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Codes of the sum."""
        # A fused multiply-add rounds once: in float64 the product is exact and so is the sum of numbers this close.
        inner = (b.double() * self.rb + self.constant).float().double()
        y = torch.round((a.double() * self.ra + inner).float())
        return y.clamp_(self.low, self.high).to(torch.uint8)


class GlobalAveragePool(nn.Module):
    """Mean over the plane."""

    s_x: Tensor
    s_y: Tensor

    def __init__(self, region: Region, x: Encoding, y: Encoding) -> None:
        super().__init__()
        self.register_buffer("s_x", x.scale)
        self.register_buffer("s_y", y.scale)
        self.x_zero, self.y_zero = int(x.zero_point), int(y.zero_point)
        self.low, self.high = code_bounds(region.bounds, y)

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

    def __init__(self, region: Region, x: Encoding, y: Encoding) -> None:
        super().__init__()
        attributes = attributes_of(region.op)
        self.kernel = ints(attributes["kernel_shape"])
        spatial = len(self.kernel)
        self.strides = ints(attributes.get("strides", [1] * spatial))
        self.pads = ints(attributes.get("pads", [0] * 2 * spatial))
        self.count_padding = bool(attributes.get("count_include_pad", 0))
        table = x.scale * (torch.arange(256, dtype=torch.float32) - float(x.zero_point))
        self.register_buffer("real", table)
        self.register_buffer("s_y", y.scale)
        self.y_zero = float(y.zero_point)
        self.low, self.high = code_bounds(region.bounds, y)

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the means."""
        real = self.real[x.int()]
        spatial = len(self.kernel)
        sides = [p for i in reversed(range(spatial)) for p in (self.pads[i], self.pads[i + spatial])]
        real = nn.functional.pad(real, sides)
        inside = nn.functional.pad(torch.ones(x.shape[2:]), sides)
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


class Codes(nn.Module):
    """An op that moves codes: the float op itself, on codes. Zeros that it pads with are the zero point."""

    def __init__(self, region: Region, y: Encoding, arguments: list[Tensor | None]) -> None:
        super().__init__()
        self.op = op_function(region.op.op_type)
        self.attributes = attributes_of(region.op)
        self.arguments = list(arguments)
        if region.op.op_type == "Pad" and self.attributes.get("mode", "constant") == "constant":
            self.arguments = [*self.arguments[:1], torch.tensor(float(y.zero_point)), *self.arguments[2:]]

    def forward(self, x: Tensor) -> Tensor:
        """The same codes, moved."""
        # Not every float op takes uint8; float32 holds each code exactly.
        y = self.op(x.float(), *self.arguments, **self.attributes)
        return (y[0] if isinstance(y, tuple) else y).to(torch.uint8)


class Bound(nn.Module):
    """ReLU or Clip that stands alone: bounds on the codes."""

    def __init__(self, region: Region, y: Encoding) -> None:
        super().__init__()
        self.low, self.high = code_bounds(region.bounds, y)

    def forward(self, x: Tensor) -> Tensor:
        """Codes within the bounds."""
        return x.clamp(self.low, self.high)


class Concat(nn.Module):
    """Codes of one encoding, side by side."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        self.axis = region.op.attributes.get_int("axis", 0)

    def forward(self, *xs: Tensor) -> Tensor:
        """Codes of all inputs."""
        return torch.cat(xs, self.axis)


def bias_scale(x: Encoding, weight: Encoding) -> Tensor:
    """Scale of an accumulator and so of its bias: `s_x s_w`, the float32 product."""
    return (x.scale * weight.scale).float()


def quantized_bias(bias: Tensor, x: Encoding, weight: Encoding) -> Tensor:
    """Codes of a bias, `rint(b / (s_x s_w))`, as float64, which holds every int32."""
    return torch.round(bias.double() / bias_scale(x, weight).double())


def kernel_operands(region: Region) -> list[ir.Value]:
    """The activations that a region's kernel takes, in order; a value that is read twice stands twice (`x + x`)."""
    operands = region.op.inputs if region.op.op_type in ("Add", "Concat") else region.inputs
    return [v for v in operands if v is not None and not v.is_initializer()]


def region_kernel(
    region: Region,
    encoding: Callable[[ir.Value], Encoding],
    tensor: Callable[[ir.Value], Tensor],
    bias_codes: Callable[[ir.Value], Tensor | None] = lambda value: None,
) -> nn.Module:
    """The integer kernel of a region that placement made integer.

    Args:
        region: the region.
        encoding: encoding of a site.
        tensor: present value of an initializer.
        bias_codes: codes of a bias that were read from a file; None where they follow from its value.

    Raises:
        UnsupportedError: there is no formula for the region's kind.
    """
    y = encoding(region.output)
    kind = region.op.op_type
    if kind in ("Conv", "Gemm"):
        assert region.weight is not None
        x, weight = encoding(region.inputs[0]), encoding(region.weight)
        bias = None
        if region.bias is not None:
            read = bias_codes(region.bias)
            bias = quantized_bias(tensor(region.bias), x, weight) if read is None else read
        return Weighted(region, x, weight, weight.codes_of(tensor(region.weight)), bias, y)
    if kind == "Add":
        a, b = (v for v in region.op.inputs if v is not None)
        return Add(region, encoding(a), encoding(b), y)
    if kind in _POOLS:
        return _POOLS[kind](region, encoding(region.inputs[0]), y)
    if kind in ("Relu", "Clip"):
        return Bound(region, y)
    if kind == "Concat":
        return Concat(region)
    if kind in CODE_OPS:
        return Codes(region, y, [None if v is None else tensor(v) for v in region.op.inputs[1:]])
    raise UnsupportedError(f"region {region.name!r}", f"{kind} has no integer formula", fix="keep it in float")


_POOLS: Mapping[str, Callable[[Region, Encoding, Encoding], nn.Module]] = {
    "GlobalAveragePool": GlobalAveragePool,
    "AveragePool": AveragePool,
}
#: Ops that move codes without computing with them.
CODE_OPS = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad")
#: Those, and what bounds or joins codes: given codes of one encoding they give codes of that encoding.
MOVING_OPS = (*CODE_OPS, "Relu", "Clip", "Concat")
