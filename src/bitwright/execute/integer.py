"""Integer regions, as a runtime's kernels compute them: codes in, codes out, bit for bit.

The formulas are in the modules of `execute.kernels` and in `docs/design.md`, section 4. An absorbed ReLU or Clip and a
width below 8 bits are bounds on the code: rounding is monotone, so bounding after it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from torch import Tensor, nn

from bitwright.errors import UnsupportedError
from bitwright.execute.kernels import ARITHMETICS, KERNELS, openvino
from bitwright.execute.kernels.parts import Parts, code_bounds
from bitwright.execute.kernels.sums import Sum, ends_of, sums_of
from bitwright.execute.kernels.weighted import bias_scale, quantized_bias
from bitwright.graph.regions import Region
from bitwright.plan.encoding import Encoding
from bitwright.targets.target import Target

__all__ = [
    "BOUNDING_OPS",
    "MOVING_OPS",
    "ONNXRUNTIME",
    "Arithmetic",
    "arithmetic_of",
    "bias_scale",
    "code_bounds",
    "constant_operands",
    "kernel_operands",
    "quantized_bias",
    "region_kernel",
]

#: Ops of several operands, each of which may be a constant with codes of its own.
_SEVERAL_OPERANDS = ("Add", "Mul", "MatMul", "Concat")
#: What stands alone as a bound on codes.
BOUNDING_OPS = ("Relu", "Clip")
#: What moves, bounds or joins codes: given codes of one encoding it gives codes of that encoding.
MOVING_OPS = tuple(op for op, row in KERNELS.items() if row.path.startswith("bitwright.execute.kernels.moving:"))


def _operands(region: Region) -> list[ir.Value]:
    several = region.op.op_type in _SEVERAL_OPERANDS and not region.is_table
    return [v for v in (region.op.inputs if several else region.inputs) if v is not None]


def kernel_operands(region: Region) -> list[ir.Value]:
    """The activations that a region's kernel takes, in order; a value that is read twice stands twice (`x + x`)."""
    return [v for v in _operands(region) if not v.is_initializer()]


def constant_operands(region: Region) -> list[ir.Value]:
    """Initializers that stand where an activation might: they have sites of their own, as activations do."""
    return [v for v in _operands(region) if v.is_initializer()]


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a runtime computes the integer regions of one network.

    Attributes:
        name: row of `kernels.ARITHMETICS`.
        sums: how each sum of two activations is computed, where the runtime has several ways.
        ends: regions whose output no region reads as codes, where that matters to the runtime.
    """

    name: str = "onnxruntime"
    sums: Mapping[Region, Sum] = field(default_factory=dict)
    ends: Collection[Region] = ()

    def quantizer(self, encoding: Encoding) -> nn.Module | None:
        """Real values to codes, at the entrance of an integer region; None where it is the encoding's own rounding."""
        return openvino.Quantize(encoding) if self.name == "openvino" else None


def arithmetic_of(
    name: str, target: Target, regions: Sequence[Region], encoding: Callable[[ir.Value], Encoding]
) -> Arithmetic:
    """How the runtime `name` computes `regions`, which run in integers in a file for `target`."""
    if name != "openvino":
        return Arithmetic(name=name)

    def bounds(region: Region) -> tuple[int, int]:
        return code_bounds(region.bounds, encoding(region.output))

    sums = sums_of(regions, bounds, MOVING_OPS, thinned=target.thins_first)
    return Arithmetic(name=name, sums=sums, ends=ends_of(regions, bounds, MOVING_OPS))


#: ONNX Runtime's, for any network.
ONNXRUNTIME = Arithmetic()


def region_kernel(
    region: Region,
    encoding: Callable[[ir.Value], Encoding],
    tensor: Callable[[ir.Value], Tensor],
    bias_codes: Callable[[ir.Value], Tensor | None] = lambda value: None,
    arithmetic: Arithmetic = ONNXRUNTIME,
) -> nn.Module:
    """The integer kernel of a region that placement made integer.

    Args:
        region: the region.
        encoding: encoding of a site.
        tensor: present value of an initializer.
        bias_codes: codes of a bias that were read from a file; None where they follow from its value.
        arithmetic: how the runtime computes the network that the region is of.

    Raises:
        UnsupportedError: there is no formula for the region's kind.
    """
    kind = "Table" if region.is_table else region.op.op_type
    kernels = ARITHMETICS[arithmetic.name]
    if kind not in kernels:
        raise UnsupportedError(
            f"region {region.name!r}", f"{kind} has no integer formula of {arithmetic.name}", fix="keep it in float"
        )
    made: nn.Module = kernels[kind].load()(
        Parts(
            region=region,
            encoding=encoding,
            tensor=tensor,
            bias_codes=bias_codes,
            sums=arithmetic.sums,
            ends=arithmetic.ends,
        )
    )
    return made
