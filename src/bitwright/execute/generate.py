"""Ops that make tensors from nothing, from a shape, or from the shape of another tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.attributes import Ints, ints, unsupported
from bitwright.execute.dtypes import torch_dtype


def constant(
    *,
    value: Tensor | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
    sparse_value: object | None = None,
) -> Tensor:
    """The one value that is given: a tensor, or numbers as int64 or float32.

    Raises:
        UnsupportedError: the value is sparse or made of strings.
        InputError: there is no value.

    Example:
        >>> constant(value_ints=[1, 2])
        tensor([1, 2])
    """
    odd_forms = {"value_string": value_string, "value_strings": value_strings, "sparse_value": sparse_value}
    for name, odd in odd_forms.items():
        if odd is not None:
            raise unsupported("Constant", name, odd, "a dense tensor or numbers")
    if value is not None:
        return value
    for integers in (value_int, value_ints):
        if integers is not None:
            return torch.tensor(integers, dtype=torch.int64)
    for floats in (value_float, value_floats):
        if floats is not None:
            return torch.tensor(floats, dtype=torch.float32)
    raise InputError("Constant", "has no value", "one of value, value_int(s) and value_float(s)", "check the model")


def constant_of_shape(shape: Ints, *, value: Tensor | None = None) -> Tensor:
    """A tensor of `shape` filled with the one element of `value` (float32 zero without it)."""
    element = torch.zeros(1) if value is None else value
    if isinstance(shape, Tensor):
        element = element.to(shape.device)
    return element.reshape(()).expand(ints(shape)).clone()


def range_(start: Tensor | float, limit: Tensor | float, delta: Tensor | float) -> Tensor:
    """`start, start + delta, ...` up to, without, `limit`, in the dtype of `start`, be it a Python number.

    Example:
        >>> range_(torch.tensor(1), torch.tensor(6), torch.tensor(2)), range_(3, 0, -1)
        (tensor([1, 3, 5]), tensor([3, 2, 1]))
    """
    first = start if isinstance(start, Tensor) else torch.tensor(start)
    numbers = [number.item() if isinstance(number, Tensor) else number for number in (start, limit, delta)]
    return torch.arange(*numbers, dtype=first.dtype, device=first.device)


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of dimensions `start` to `end` of `x`, int64.

    Example:
        >>> shape(torch.zeros(2, 3, 5), start=-2)
        tensor([3, 5])
    """
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def size(x: Tensor) -> Tensor:
    """The number of elements of `x`, an int64 scalar."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """A matrix of the shape of `x` with ones on diagonal `k`, in the ONNX data type `dtype` or that of `x`."""
    kind = x.dtype if dtype is None else torch_dtype(dtype, "EyeLike", "dtype")
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return (torch.arange(x.shape[1], device=x.device) - rows == k).to(kind)
