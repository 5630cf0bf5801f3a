"""Comparisons and boolean logic; results are bool."""

from __future__ import annotations

import torch
from torch import Tensor


def equal(a: Tensor, b: Tensor) -> Tensor:
    """`a == b`."""
    return torch.eq(a, b)


def greater(a: Tensor, b: Tensor) -> Tensor:
    """`a > b`."""
    return torch.gt(a, b)


def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """`a >= b`."""
    return torch.ge(a, b)


def less(a: Tensor, b: Tensor) -> Tensor:
    """`a < b`."""
    return torch.lt(a, b)


def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """`a <= b`."""
    return torch.le(a, b)


def logical_and(a: Tensor, b: Tensor) -> Tensor:
    """`a and b`."""
    return torch.logical_and(a, b)


def logical_or(a: Tensor, b: Tensor) -> Tensor:
    """`a or b`."""
    return torch.logical_or(a, b)


def logical_xor(a: Tensor, b: Tensor) -> Tensor:
    """Exactly one of `a` and `b`."""
    return torch.logical_xor(a, b)


def logical_not(x: Tensor) -> Tensor:
    """`not x`."""
    return torch.logical_not(x)


def is_nan(x: Tensor) -> Tensor:
    """Where `x` is not a number."""
    return torch.isnan(x)


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where `x` is infinite, of the signs asked for."""
    found = torch.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    if not detect_positive:
        found = found & (x < 0)
    return found


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where the condition holds, else `b`; the three broadcast."""
    return torch.where(condition, a, b)
