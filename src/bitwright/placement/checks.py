"""Conditions under which a target's kernel takes a region; each answers None or the reason why not."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from bitwright.execute.nodes import has_row
from bitwright.graph.regions import Region, activation_bounds

Check = Callable[[Region], str | None]


def constant_weight(region: Region) -> str | None:
    """The weight is an initializer."""
    return None if region.weight is not None else "its weight is computed, not constant"


def constant_bias(region: Region) -> str | None:
    """There is no bias, or it is an initializer of one value a channel."""
    has_bias = len(region.op.inputs) > 2 and region.op.inputs[2] is not None
    if has_bias and region.bias is None:
        return "its bias is computed, not constant"
    if region.bias is not None and region.bias.shape is not None and len(region.bias.shape) != 1:
        return f"its bias has shape {region.bias.shape}, one value for each output channel is needed"
    return None


def float32(region: Region) -> str | None:
    """Activations are float32 tensors."""
    for value in (*region.inputs, region.output):
        if value.dtype != ir.DataType.FLOAT:
            found = "of unknown type" if value.dtype is None else value.dtype.name.lower()
            return f"{value.name!r} is {found}, not float32"
    return None


def plain_gemm(region: Region) -> str | None:
    """`y = x W + b`: alpha and beta 1, x not transposed."""
    attributes = region.op.attributes
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        return "it scales its operands (alpha or beta is not 1)"
    return "its input is transposed (transA=1)" if attributes.get_int("transA", 0) else None


def two_activations(region: Region) -> str | None:
    """Both operands are computed."""
    operands = region.op.inputs[:2]
    if any(v is None or v.is_initializer() for v in operands):
        return "one operand is a constant"
    return None


def all_activations(region: Region) -> str | None:
    """No operand is a constant."""
    return "one operand is a constant" if any(v is None or v.is_initializer() for v in region.op.inputs) else None


def an_activation(region: Region) -> str | None:
    """At least one operand is computed."""
    return None if region.inputs else "all its operands are constants"


def matrices(region: Region) -> str | None:
    """Both operands have two axes or more."""
    ranks = [len(v.shape) if v is not None and v.shape is not None else 0 for v in region.op.inputs[:2]]
    return None if min(ranks) >= 2 else "an operand is a vector, or of unknown shape"


def known_axis(region: Region) -> str | None:
    """The number of elements along its axis is fixed."""
    shape, axis = region.inputs[0].shape, region.op.attributes.get_int("axis", -1)
    fixed = shape is not None and -len(shape) <= axis < len(shape) and isinstance(shape[axis], int)
    return None if fixed else "the number of elements along its axis is open"


def float64_on_torch(region: Region) -> str | None:
    """Every op of a table can be computed in float64, so that its codes do not depend on anyone's float32."""
    unknown = [node.op_type for node in region.nodes if not has_row(node)]
    return f"{unknown[0]} has no float64 form here" if unknown else None


def nearest(region: Region) -> str | None:
    """Resizing repeats elements; the runtime's mixtures of codes (linear, cubic) are not those of real values."""
    mode = region.op.attributes.get_string("mode", "nearest")
    return None if mode == "nearest" else f"it mixes neighbours (mode {mode})"


def plain_average(region: Region) -> str | None:
    """No dilation, and no rounding up of the output size."""
    attributes = region.op.attributes
    if attributes.get_int("ceil_mode", 0):
        return "it rounds its output size up (ceil_mode=1)"
    if any(d != 1 for d in attributes.get_ints("dilations", ())):
        return "its window is dilated"
    return "its padding is automatic" if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" else None


def no_counted_padding(region: Region) -> str | None:
    """Its mean leaves padding out: OpenVINO counts padding as code 0, which means zero only at zero point 0."""
    attributes = region.op.attributes
    counts = attributes.get_int("count_include_pad", 0) and any(attributes.get_ints("pads", ()))
    return "its mean counts padding (count_include_pad=1)" if counts else None


def one_shape(region: Region) -> str | None:
    """Its operands have the same shape, apart from the batch."""
    shapes = [None if v is None or v.shape is None else list(v.shape)[1:] for v in region.op.inputs[:2]]
    return None if None not in shapes and shapes[0] == shapes[1] else "its operands differ in shape"


def no_indices(region: Region) -> str | None:
    """Only the maxima are read."""
    outputs = region.op.outputs
    return "its indices are read" if len(outputs) > 1 and outputs[1].uses() else None


def constant_bounds(region: Region) -> str | None:
    """Bounds of Clip are initializers."""
    return None if activation_bounds(region.op) is not None else "its bounds are computed, not constant"


def constant_arguments(region: Region) -> str | None:
    """Everything but the data is an initializer."""
    if any(v is not None and not v.is_initializer() for v in region.op.inputs[1:]):
        return "its arguments are computed, not constant"
    return None


def zero_padding(region: Region) -> str | None:
    """Pads with zeros, whose code is the zero point."""
    mode = region.op.attributes.get_string("mode", "constant")
    value = region.op.inputs[2] if len(region.op.inputs) > 2 else None
    if mode != "constant":
        return None  # reflect, edge and wrap repeat codes
    if value is not None and value.const_value is not None and value.const_value.numpy().any():
        return "it pads with a value other than zero"
    return None


CHECKS: dict[str, Check] = {
    "constant weight": constant_weight,
    "constant bias": constant_bias,
    "float32": float32,
    "plain gemm": plain_gemm,
    "two activations": two_activations,
    "all activations": all_activations,
    "an activation": an_activation,
    "matrices": matrices,
    "known axis": known_axis,
    "float64 on torch": float64_on_torch,
    "nearest": nearest,
    "plain average": plain_average,
    "no counted padding": no_counted_padding,
    "one shape": one_shape,
    "no indices": no_indices,
    "constant bounds": constant_bounds,
    "constant arguments": constant_arguments,
    "zero padding": zero_padding,
}
