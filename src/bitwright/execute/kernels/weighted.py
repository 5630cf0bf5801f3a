"""Convolution and gemm: `acc = sum (x - z_x) w + b` exact, `y = clip(rint(float32(acc) * (s_x s_w / s_y)) + z_y)`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.execute.kernels.parts import Parts, Requantize, exact_carrier, furthest
from bitwright.execute.nodes import attributes_of, op_function
from bitwright.plan.encoding import Encoding


def bias_scale(x: Encoding, weight: Encoding) -> Tensor:
    """Scale of an accumulator and so of its bias: `s_x s_w`, the float32 product."""
    return (x.scale * weight.scale).float()


def quantized_bias(bias: Tensor, x: Encoding, weight: Encoding) -> Tensor:
    """Codes of a bias, `rint(b / (s_x s_w))`, as float64, which holds every int32."""
    return torch.round(bias.double() / bias_scale(x, weight).double())


class Weighted(nn.Module):
    """Convolution or gemm on codes.

    Sums are float32 where every partial sum is below 2^24, where float32 counts exactly, and float64 elsewhere.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, parts: Parts, codes: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        region = parts.region
        assert region.weight is not None
        x, weight, y = parts.x, parts.encoding(region.weight), parts.y
        self.op = op_function(region.op.op_type)
        self.attributes = attributes_of(region.op)
        centred = weight.integers(codes).double()
        axis = weight.spec.axis if weight.spec.axis is not None else 0
        per_channel = centred.abs().movedim(axis, 0).flatten(1).sum(1)
        offset = torch.zeros(codes.shape[axis]) if bias is None else bias
        bound = float(per_channel.max()) * furthest(x) + float(offset.double().abs().max())
        self.carrier = exact_carrier(bound)
        self.register_buffer("weight", centred.to(self.carrier))
        self.register_buffer("bias", offset.to(self.carrier))
        self.zero_point = int(x.zero_point)
        # product first, then the quotient, both in float32
        self.requantize = Requantize((x.scale * weight.scale) / y.scale, y, parts.bounds)

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the output."""
        centred = x.to(self.carrier) - self.zero_point
        y: Tensor = self.requantize(self.op(centred, self.weight, self.bias, **self.attributes))
        return y


def weighted(parts: Parts) -> Weighted:
    """The kernel of a convolution or gemm with a constant weight."""
    region = parts.region
    assert region.weight is not None
    weight = parts.encoding(region.weight)
    bias = None
    if region.bias is not None:
        read = parts.bias_codes(region.bias)
        bias = quantized_bias(parts.tensor(region.bias), parts.x, weight) if read is None else read
    return Weighted(parts, weight.codes_of(parts.tensor(region.weight)), bias)
