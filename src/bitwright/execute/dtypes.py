"""ONNX numbers of data types, their torch dtypes, and conversions between them.

torch computes with no integers below 8 bits: 4- and 2-bit integers live in int8 and uint8, within their range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.execute.attributes import unsupported

_DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
}
# number: (dtype that holds it, lowest, highest)
_NARROW: dict[int, tuple[torch.dtype, int, int]] = {
    21: (torch.uint8, 0, 15),
    22: (torch.int8, -8, 7),
    25: (torch.uint8, 0, 3),
    26: (torch.int8, -2, 1),
}


def torch_dtype(number: int, op: str, attribute: str) -> torch.dtype:
    """The torch dtype that holds ONNX data type `number`.

    Raises:
        UnsupportedError: the type is a string, an 8- or 4-bit float, or unknown.

    Example:
        >>> torch_dtype(7, "Cast", "to")
        torch.int64
    """
    if number in _NARROW:
        return _NARROW[number][0]
    if number not in _DTYPES:
        raise unsupported(op, attribute, number, "the number of an integer, bool, float16, bfloat16, float or complex")
    return _DTYPES[number]


def integer_range(number: int, op: str, attribute: str) -> tuple[int, int]:
    """Lowest and highest value of ONNX integer type `number`.

    Raises:
        UnsupportedError: the type is not an integer.

    Example:
        >>> integer_range(22, "QuantizeLinear", "output_dtype")
        (-8, 7)
    """
    if number in _NARROW:
        return _NARROW[number][1:]
    dtype = torch_dtype(number, op, attribute)
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise unsupported(op, attribute, number, "the number of an integer type")
    info = torch.iinfo(dtype)
    return int(info.min), int(info.max)


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """`x` in ONNX data type `to`; floats truncate towards zero, integers keep their low bits.

    Args:
        saturate, round_mode: say how 8-bit floats are reached, which are refused.

    Raises:
        UnsupportedError: the type is a string, an 8- or 4-bit float, or unknown.

    Example:
        >>> cast(torch.tensor([-1.7, 2.7]), to=7).tolist(), cast(torch.tensor([-9, 9]), to=22).tolist()
        ([-1, 2], [7, -7])
    """
    del saturate, round_mode
    dtype = torch_dtype(to, "Cast", "to")
    if to not in _NARROW:
        return x.to(dtype)
    _, low, high = _NARROW[to]
    return (torch.remainder(x.to(torch.int32) - low, high - low + 1) + low).to(dtype)


def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """`x` in the dtype of `target`.

    Args:
        saturate, round_mode: say how 8-bit floats are reached, which no tensor here holds.
    """
    del saturate, round_mode
    return x.to(target.dtype)
