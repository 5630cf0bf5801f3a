"""QuantizeLinear and DequantizeLinear: per tensor, per axis and per block of an axis."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.attributes import axis_of, unsupported
from bitwright.execute.dtypes import integer_range, torch_dtype

_NUMBERS = {
    torch.uint8: 2,
    torch.int8: 3,
    torch.uint16: 4,
    torch.int16: 5,
    torch.int32: 6,
}


def quantize_linear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """`q = clip(rint(x / scale) + zero_point, lowest, highest)`, halves to the even integer.

    Args:
        x: float, any shape.
        y_scale: `[]` for the tensor, `[n]` for each index of `axis`, or the shape of `x` with `axis` divided by
            `block_size`.
        y_zero_point: the shape of the scale, 0 without it; its dtype is that of the result.
        output_dtype: ONNX number of the result, needed for 4 and 2 bits, which live in int8 and uint8.
        precision: ONNX number of the dtype of the division, that of the scale without it.
        saturate: says how 8-bit floats are reached, which are refused.

    Raises:
        UnsupportedError: the result is not an integer type.
        InputError: the scale does not fit the input.

    Example:
        >>> quantize_linear(torch.tensor([0.5, 1.5, 9.0]), torch.tensor(1.0), output_dtype=22)
        tensor([0, 2, 7], dtype=torch.int8)
    """
    del saturate
    if not output_dtype:
        kind = torch.uint8 if y_zero_point is None else y_zero_point.dtype
        if kind not in _NUMBERS:
            raise unsupported("QuantizeLinear", "dtype of the zero point", kind, "int8, uint8, int16, uint16 or int32")
        output_dtype = _NUMBERS[kind]
    lowest, highest = integer_range(output_dtype, "QuantizeLinear", "output_dtype")
    inner = torch_dtype(precision, "QuantizeLinear", "precision") if precision else y_scale.dtype
    scale = _spread("QuantizeLinear", y_scale, x, axis, block_size)
    q = torch.round(x.to(inner) / scale.to(inner))
    if y_zero_point is not None:
        q = q + _spread("QuantizeLinear", y_zero_point, x, axis, block_size).to(inner)
    return q.clamp(lowest, highest).to(torch_dtype(output_dtype, "QuantizeLinear", "output_dtype"))


def dequantize_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """`y = (x - zero_point) * scale`, the difference in integers.

    Args:
        x: integers, any shape.
        x_scale: `[]` for the tensor, `[n]` for each index of `axis`, or the shape of `x` with `axis` divided by
            `block_size`.
        x_zero_point: the shape of the scale, 0 without it.
        output_dtype: ONNX number of the result, the dtype of the scale without it.

    Raises:
        UnsupportedError: `x` is not an integer tensor.
        InputError: the scale does not fit the input.

    Example:
        >>> dequantize_linear(torch.tensor([0, 255], dtype=torch.uint8), torch.tensor(0.5), torch.tensor(128)).tolist()
        [-64.0, 63.5]
    """
    if x.is_floating_point():
        raise unsupported("DequantizeLinear", "dtype of the input", x.dtype, "an integer type")
    scale = _spread("DequantizeLinear", x_scale, x, axis, block_size)
    if x_zero_point is not None:
        x = x.to(torch.int32) - _spread("DequantizeLinear", x_zero_point, x, axis, block_size).to(torch.int32)
    y = x.to(scale.dtype) * scale
    return y.to(torch_dtype(output_dtype, "DequantizeLinear", "output_dtype")) if output_dtype else y


def _spread(op: str, parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point, made to broadcast over `x`."""
    if parameter.ndim == 0 or (parameter.ndim == 1 and parameter.shape[0] == 1 and not block_size):
        return parameter.reshape(())
    axis = axis_of(op, axis, x.ndim)
    if block_size:
        expected = list(x.shape)
        expected[axis] = -(-x.shape[axis] // block_size)
        if list(parameter.shape) != expected:
            raise InputError(f"{op}: scale", f"has shape {list(parameter.shape)}", f"{expected} for this block_size")
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if parameter.ndim != 1 or parameter.shape[0] != x.shape[axis]:
        raise InputError(
            f"{op}: scale", f"has shape {list(parameter.shape)}", f"[{x.shape[axis]}], the size of axis {axis}"
        )
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)
