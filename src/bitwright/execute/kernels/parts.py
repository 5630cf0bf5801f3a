"""What a kernel is made from, and what kernels share: bounds of codes, and requantization of exact sums."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor, nn

from bitwright.execute.kernels.sums import Sum
from bitwright.graph.regions import Region
from bitwright.plan.encoding import Encoding

#: float32 counts integers exactly up to here.
EXACT_FLOAT32 = 2**24


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A region and the numbers of its sites.

    Attributes:
        region: the region.
        encoding: encoding of a value.
        tensor: present value of an initializer.
        bias_codes: codes of a bias that were read from a file; None where they follow from its value.
        sums: how each sum of two activations is computed, where the runtime has several ways.
        ends: regions whose output no region reads as codes, where that matters to the runtime.
    """

    region: Region
    encoding: Callable[[ir.Value], Encoding]
    tensor: Callable[[ir.Value], Tensor]
    bias_codes: Callable[[ir.Value], Tensor | None]
    sums: Mapping[Region, Sum] = field(default_factory=dict)
    ends: Collection[Region] = ()

    @property
    def x(self) -> Encoding:
        """Encoding of the first activation that the region reads."""
        return self.encoding(self.region.inputs[0])

    @property
    def y(self) -> Encoding:
        """Encoding of the output."""
        return self.encoding(self.region.output)

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest code of the output."""
        return code_bounds(self.region.bounds, self.y)

    @property
    def absorbed(self) -> Sum | None:
        """The sum that the region's own kernel computes; None where there is none."""
        return next((found for found in self.sums.values() if found.convolution is self.region), None)

    def constant_codes(self, value: ir.Value) -> Tensor | None:
        """Codes (uint8) of an operand that is an initializer; None for an activation."""
        if not value.is_initializer():
            return None
        return self.encoding(value).codes_of(self.tensor(value)).to(torch.uint8)


def code_bounds(region_bounds: tuple[float, float] | None, encoding: Encoding) -> tuple[int, int]:
    """Lowest and highest code of a region's output: those of the grid, within those of its activation."""
    low, high = encoding.spec.grid.qmin, encoding.spec.grid.qmax
    if region_bounds is not None:
        bounds = torch.tensor(region_bounds, dtype=torch.float32)
        finite = torch.clamp(bounds, -3.0e38, 3.0e38)
        first, last = encoding.quantize(finite).tolist()
        low, high = max(low, first), min(high, last)
    return low, high


def exact_carrier(bound: float) -> torch.dtype:
    """The dtype that counts exactly where no partial sum passes `bound`."""
    return torch.float32 if bound < EXACT_FLOAT32 else torch.float64


def furthest(encoding: Encoding) -> int:
    """The largest `|code - zero point|` of an activation."""
    z, grid = int(encoding.zero_point), encoding.spec.grid
    return max(z - grid.qmin, grid.qmax - z)


class Requantize(nn.Module):
    """`y = clip(rint(float32(acc) * multiplier) + z_y)`, acc exact, the product float32."""

    multiplier: Tensor

    def __init__(self, multiplier: Tensor, output: Encoding, bounds: tuple[int, int], channel: int = 1) -> None:
        super().__init__()
        self.register_buffer("multiplier", multiplier.float())
        self.zero_point = int(output.zero_point)
        self.low, self.high = bounds
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
