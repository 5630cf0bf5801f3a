"""Arithmetic on elements; inputs broadcast as in numpy, the result has the dtype of the inputs."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from bitwright.execute.attributes import unsupported


def add(a: Tensor, b: Tensor) -> Tensor:
    """`a + b`."""
    return torch.add(a, b)


def sub(a: Tensor, b: Tensor) -> Tensor:
    """`a - b`."""
    return torch.sub(a, b)


def mul(a: Tensor, b: Tensor) -> Tensor:
    """`a * b`."""
    return torch.mul(a, b)


def div(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`; integers truncate towards zero.

    Example:
        >>> div(torch.tensor([-7]), torch.tensor([2])).tolist()
        [-3]
    """
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """`base ^ exponent`, in the dtype of the base."""
    return torch.pow(base, exponent).to(base.dtype)


def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder of `a / b`, with the sign of `b`, or with the sign of `a` for `fmod=1`.

    Example:
        >>> x, y = torch.tensor([-7]), torch.tensor([3])
        >>> mod(x, y).tolist(), mod(x, y, fmod=1).tolist()
        ([2], [-1])
    """
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def maximum(*tensors: Tensor) -> Tensor:
    """The largest of the inputs, element by element."""
    return reduce(torch.maximum, tensors)


def minimum(*tensors: Tensor) -> Tensor:
    """The smallest of the inputs, element by element."""
    return reduce(torch.minimum, tensors)


def total(*tensors: Tensor) -> Tensor:
    """`a + b + ...`, element by element."""
    return reduce(torch.add, tensors)


def mean(*tensors: Tensor) -> Tensor:
    """`(a + b + ...) / n`, element by element."""
    return reduce(torch.add, tensors) / len(tensors)


def neg(x: Tensor) -> Tensor:
    """`-x`."""
    return torch.neg(x)


def absolute(x: Tensor) -> Tensor:
    """`|x|`."""
    return torch.abs(x)


def sqrt(x: Tensor) -> Tensor:
    """`x ^ (1/2)`."""
    return torch.sqrt(x)


def reciprocal(x: Tensor) -> Tensor:
    """`1 / x`."""
    return torch.reciprocal(x)


def exp(x: Tensor) -> Tensor:
    """`e ^ x`."""
    return torch.exp(x)


def log(x: Tensor) -> Tensor:
    """Natural logarithm."""
    return torch.log(x)


def erf(x: Tensor) -> Tensor:
    """`2 / sqrt(pi) * integral_0^x exp(-t^2) dt`."""
    return torch.erf(x)


def floor(x: Tensor) -> Tensor:
    """The largest integer that is not above `x`."""
    return torch.floor(x)


def ceil(x: Tensor) -> Tensor:
    """The smallest integer that is not below `x`."""
    return torch.ceil(x)


def rint(x: Tensor) -> Tensor:
    """The nearest integer, halves to the even one.

    Example:
        >>> rint(torch.tensor([0.5, 1.5, 2.5])).tolist()
        [0.0, 2.0, 2.0]
    """
    return torch.round(x)


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return torch.sign(x)


def sin(x: Tensor) -> Tensor:
    """Sine of radians."""
    return torch.sin(x)


def cos(x: Tensor) -> Tensor:
    """Cosine of radians."""
    return torch.cos(x)


def tan(x: Tensor) -> Tensor:
    """Tangent of radians."""
    return torch.tan(x)


def asin(x: Tensor) -> Tensor:
    """Inverse sine, in radians."""
    return torch.asin(x)


def acos(x: Tensor) -> Tensor:
    """Inverse cosine, in radians."""
    return torch.acos(x)


def atan(x: Tensor) -> Tensor:
    """Inverse tangent, in radians."""
    return torch.atan(x)


def sinh(x: Tensor) -> Tensor:
    """Hyperbolic sine."""
    return torch.sinh(x)


def cosh(x: Tensor) -> Tensor:
    """Hyperbolic cosine."""
    return torch.cosh(x)


def asinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine."""
    return torch.asinh(x)


def acosh(x: Tensor) -> Tensor:
    """Inverse hyperbolic cosine."""
    return torch.acosh(x)


def atanh(x: Tensor) -> Tensor:
    """Inverse hyperbolic tangent."""
    return torch.atanh(x)


def bit_shift(x: Tensor, amount: Tensor, *, direction: str) -> Tensor:
    """`x * 2^amount` (LEFT) or `floor(x / 2^amount)` (RIGHT), on the bits of unsigned integers.

    Raises:
        UnsupportedError: `direction` is neither LEFT nor RIGHT.
    """
    if direction == "LEFT":
        return torch.bitwise_left_shift(x, amount)
    if direction == "RIGHT":
        return torch.bitwise_right_shift(x, amount)
    raise unsupported("BitShift", "direction", direction, "LEFT or RIGHT")


def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    """`a & b`, bit by bit."""
    return torch.bitwise_and(a, b)


def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    """`a | b`, bit by bit."""
    return torch.bitwise_or(a, b)


def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """`a ^ b`, bit by bit."""
    return torch.bitwise_xor(a, b)


def bitwise_not(x: Tensor) -> Tensor:
    """`~x`, bit by bit."""
    return torch.bitwise_not(x)
