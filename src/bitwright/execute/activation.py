"""Activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.execute.attributes import axis_of, unsupported


def relu(x: Tensor) -> Tensor:
    """`max(x, 0)`."""
    return F.relu(x)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """`x` if `x >= 0`, else `alpha * x`."""
    return F.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """`x` if `x >= 0`, else `slope * x`; `slope` broadcasts to `x` from the right."""
    return torch.where(x < 0, slope * x, x)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`x` if `x > 0`, else `alpha * (exp(x) - 1)`."""
    return F.elu(x, alpha)


def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """`gamma * x` if `x > 0`, else `gamma * alpha * (exp(x) - 1)`."""
    return gamma * F.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)`."""
    return F.celu(x, alpha)


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`."""
    return F.softplus(x, threshold=40.0)  # above 40 the two are the same number even in float64


def softsign(x: Tensor) -> Tensor:
    """`x / (1 + |x|)`."""
    return F.softsign(x)


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`."""
    return torch.sigmoid(x)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """`clip(alpha * x + beta, 0, 1)`."""
    return torch.clamp(alpha * x + beta, 0, 1)


def hard_swish(x: Tensor) -> Tensor:
    """`x * clip(x / 6 + 1/2, 0, 1)`."""
    return F.hardswish(x)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """`x * Phi(x)`, `Phi` the normal distribution function, or its tanh approximation.

    Raises:
        UnsupportedError: `approximate` is neither none nor tanh.
    """
    if approximate not in ("none", "tanh"):
        raise unsupported("Gelu", "approximate", approximate, "none or tanh")
    return F.gelu(x, approximate=approximate)


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu of `x + bias` by its tanh approximation."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """`x * sigmoid(alpha * x)`."""
    return swish(x, alpha=alpha)


def mish(x: Tensor) -> Tensor:
    """`x * tanh(log(1 + exp(x)))`."""
    return F.mish(x)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`x * sigmoid(alpha * x)`."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`x` if `x > alpha`, else 0."""
    return F.threshold(x, alpha, 0.0)


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """`x + bias` below `-lambd`, `x - bias` above `lambd`, 0 between."""
    outside = torch.where(x < 0, x + bias, x - bias)
    return torch.where(x.abs() > lambd, outside, torch.zeros_like(outside)).to(x.dtype)


def clip(x: Tensor, low: Tensor | float | None = None, high: Tensor | float | None = None) -> Tensor:
    """`min(max(x, low), high)`; an omitted bound does not bind.

    Example:
        >>> clip(torch.tensor([-1.0, 7.0]), 0.0, 6.0).tolist()
        [0.0, 6.0]
    """
    # a bound of shape [1] must not add a dimension to a scalar
    low = low.reshape(()) if isinstance(low, Tensor) and low.ndim else low
    high = high.reshape(()) if isinstance(high, Tensor) and high.ndim else high
    if low is None and high is None:
        return x
    if low is None or high is None or isinstance(low, Tensor) == isinstance(high, Tensor):
        return torch.clamp(x, low, high)  # type: ignore[arg-type]
    return torch.clamp(torch.clamp(x, min=low), max=high)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """`exp(x) / sum(exp(x))` along `axis`."""
    return torch.softmax(x, axis_of("Softmax", axis, x.ndim))


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """`x - log(sum(exp(x)))` along `axis`."""
    return torch.log_softmax(x, axis_of("LogSoftmax", axis, x.ndim))


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first maximum along `axis`, else 0."""
    axis = axis_of("Hardmax", axis, x.ndim)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)
