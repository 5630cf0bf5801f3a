"""A chain of elementwise float ops between codes: a table with one entry for each code of its input.

    entry(q) = clip(rint(f(s_x (q - z_x)) / s_y) + z_y),   f in float64, s_x (q - z_x) in float32

Runtimes compute `f` in float32, each with exponentials of its own. They agree with the table, and with each other,
where no entry lies so near to the middle between two codes that an error of theirs can carry it over. How large that
error can be follows from the chain: every op may be wrong by `ACCURACY (|result| + min(1, largest |operand|))`, twice
as much and more as ONNX Runtime's ops were seen to be (`tests/deploy/test_deploy_formulas_tables.py`). `is_settled`
says whether all entries keep this distance and `MARGIN`; `execute.settle` chooses scales at which they do.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import Tensor, nn

from bitwright.errors import UnsupportedError
from bitwright.execute.kernels.parts import Parts
from bitwright.execute.nodes import attributes_of, function_of
from bitwright.graph.regions import Region
from bitwright.plan.encoding import Encoding

#: By how much of its result, and of its largest operand up to 1, an op of a runtime may be wrong.
ACCURACY = 2.0**-20
#: Between what the operand's part is held for particular ops. Some are computed through numbers near one, `exp(x) - 1`
#: or `1 + erf(x)`, however small the operand is; OpenVINO's Softplus is 4e-6 off at its lower end.
ALLOWANCES: dict[str, tuple[float, float]] = {
    "Elu": (1, 1), "Selu": (1, 1), "Celu": (1, 1), "Erf": (1, 1), "Softplus": (8, 8), "Mish": (2, 2), "Gelu": (0, 4),
}  # fmt: skip
#: Least distance of an entry to the middle between two codes beyond that error, in steps of the output.
MARGIN = 2.0**-12


def chain(
    region: Region, x: Tensor, tensor: Callable[[ir.Value], Tensor],
    disturb: Callable[[int, Tensor, list[Tensor]], Tensor] = lambda node, result, operands: result,
) -> Tensor:  # fmt: skip
    """The function that the region's nodes compute, in the dtype of `x`.

    Args:
        region: a table.
        x: real values of its input.
        tensor: present value of an initializer.
        disturb: `(number of the node, its result, its operands)` -> the result that the next nodes read.
    """
    values = {region.inputs[0]: x}
    for i, node in enumerate(region.nodes):
        arguments = [None if v is None else values[v] if v in values else _as(tensor(v), x) for v in node.inputs]
        result = function_of(node)(*arguments, **attributes_of(node)).reshape(x.shape)
        operands = [a for a in arguments if a is not None and a.is_floating_point()]
        values[node.outputs[0]] = disturb(i, result, operands)
    return values[region.output]


def _as(constant: Tensor, x: Tensor) -> Tensor:
    """A one-element constant in the dtype of `x`, without axes of its own."""
    return constant.to(x.dtype).reshape(()) if constant.is_floating_point() else constant.reshape(())


def entries(region: Region, x: Encoding, tensor: Callable[[ir.Value], Tensor]) -> tuple[Tensor, Tensor]:
    """`f` of every code of `x` in float64, and how far a runtime's result can be from it.

    Raises:
        UnsupportedError: the function is not defined everywhere on the input's range.
    """
    grid, count = x.spec.grid, len(region.nodes)
    real = x.dequantize(torch.arange(grid.qmin, grid.qmax + 1))
    rows = real.double().expand(2 * count + 1, -1)  # the first as it is, then one node at a time up, then down

    def disturb(node: int, result: Tensor, operands: list[Tensor]) -> Tensor:
        bounds = ALLOWANCES.get(region.nodes[node].op_type, (0, 1))
        largest = torch.stack([o.abs().expand_as(result) for o in operands]).amax(0).clamp(*bounds)
        error = torch.zeros_like(result)
        error[1 + node], error[1 + count + node] = 1.0, -1.0
        return result + error * ACCURACY * (result.abs() + largest)

    exact, *others = chain(region, rows, tensor, disturb)
    if exact.isnan().any() or chain(region, real, tensor).isnan().any():
        raise UnsupportedError(
            f"region {region.name!r}", "gives NaN within the range of its input", "a function defined there",
            f"keep it in float: --set '{region.name}:float'",
        )  # fmt: skip
    change = (torch.stack(others) - exact).abs().reshape(2, count, -1)
    change = torch.where(exact.isinf(), 0.0, change.nan_to_num(torch.inf))  # infinity is beyond every code
    return exact, change.amax(0).sum(0)


def settled_scales(exact: Tensor, error: Tensor, y: Encoding, scales: Tensor) -> Tensor:
    """At which of `scales` every entry is further from the middle between two codes of `y` than errors reach."""
    scale, grid = scales.double()[:, None], y.spec.grid
    place = exact / scale + int(y.zero_point)
    middle = (torch.floor(place) + 0.5).clamp(grid.qmin + 0.5, grid.qmax - 0.5)
    return ((place - middle).abs() >= MARGIN + error / scale).all(1)


def is_settled(exact: Tensor, error: Tensor, y: Encoding) -> bool:
    """Whether the codes of all entries are sure at the scale of `y`.

    Example:
        >>> from bitwright.plan.spec import QSpec
        >>> def steps_of(size):
        ...     return Encoding(spec=QSpec(bits=8), scale=torch.tensor(size), zero_point=torch.tensor(10))
        >>> exact, error = torch.tensor([0.0, 2.5], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        >>> is_settled(exact, error, steps_of(1.0)), is_settled(exact, error, steps_of(1.01))
        (False, True)
    """
    return bool(settled_scales(exact, error, y, y.scale.reshape(1)).all())


def is_hopeless(exact: Tensor, error: Tensor, y: Encoding) -> bool:
    """Whether errors reach from code to code even at twice the scale, so that none in between can settle it."""
    scale, grid = float(y.scale), y.spec.grid
    place = exact / scale + int(y.zero_point)
    inside = (place > grid.qmin) & (place < grid.qmax)  # at a larger scale too
    return bool((inside & (MARGIN + error / (2 * scale) >= 0.5)).any())


class Table(nn.Module):
    """A code for each code."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the function."""
        return self.codes[x.int()]


def table(parts: Parts) -> Table:
    """The kernel of a chain of elementwise ops."""
    exact, _ = entries(parts.region, parts.x, parts.tensor)
    y = parts.y
    low, high = parts.bounds
    codes = (torch.round(exact / y.scale.double()) + int(y.zero_point)).clamp(low, high)
    return Table(codes.to(torch.uint8))
