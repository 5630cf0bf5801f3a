"""Normalisations, in their inference form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.attributes import axes_of, axis_of, unsupported
from bitwright.execute.dtypes import torch_dtype


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,  # weights the running statistics, which only training updates
    training_mode: int = 0,
) -> Tensor:
    """`scale * (x - mean) / sqrt(var + epsilon) + b`, one of each for a channel.

    Args:
        x: `[batch, channels, ...]`.
        scale, b, mean, var: `[channels]`.

    Raises:
        UnsupportedError: `training_mode` is set.

    Example:
        >>> one = torch.ones(1)
        >>> batch_normalization(torch.tensor([[3.0]]), one, one, one, 4 * one, epsilon=0.0).tolist()
        [[2.0]]
    """
    if training_mode:
        raise unsupported("BatchNormalization", "training_mode", training_mode, "0: statistics are inputs of the node")
    dtype = x.dtype
    if mean.requires_grad or var.requires_grad:  # torch's kernel takes statistics for constants
        channels = [-1] + [1] * (x.ndim - 2)
        factor = scale * torch.rsqrt(var + epsilon)
        return (x * factor.reshape(channels) + (b - mean * factor).reshape(channels)).to(dtype)
    return F.batch_norm(x, mean.to(dtype), var.to(dtype), scale.to(dtype), b.to(dtype), False, 1 - momentum, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """`scale * (x - mean) / sqrt(var + epsilon) + b`, mean and variance of each map.

    Args:
        x: `[batch, channels, *spatial]`.
        scale, b: `[channels]`.
    """
    return torch.group_norm(x, x.shape[1], scale, b, epsilon)


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    num_outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """`scale * (x - mean) / sqrt(var + epsilon) + b`, mean and variance over `axis` and all after it.

    Args:
        x: any shape.
        scale, b: broadcast to `x.shape[axis:]`.
        stash_type: ONNX number of the dtype in which mean and variance are computed.
        num_outputs: 2 and 3 also return the mean and `1 / sqrt(var + epsilon)`, shapes `x.shape[:axis] + [1, ...]`.

    Example:
        >>> layer_normalization(torch.tensor([[1.0, 3.0]]), torch.ones(2), epsilon=0.0).tolist()
        [[-1.0, 1.0]]
    """
    shape = x.shape[axis_of("LayerNormalization", axis, x.ndim) :]
    stash = torch_dtype(stash_type, "LayerNormalization", "stash_type")
    z = x.to(stash)
    if num_outputs == 1 and stash == x.dtype and scale.shape == shape and (b is None or b.shape == shape):
        return F.layer_norm(x, shape, scale, b, epsilon)
    y, mean, rstd = torch.native_layer_norm(z, shape, None, None, epsilon)
    y = y.to(x.dtype) * scale
    y = y if b is None else y + b
    return y if num_outputs == 1 else (y, mean, rstd)[:num_outputs]


def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """`scale * (x - mean) / sqrt(var + epsilon) + bias`, mean and variance of each group of channels.

    Args:
        x: `[batch, channels, *spatial]`.
        scale, bias: `[channels]`.
        stash_type: ONNX number of the dtype in which mean and variance are computed.

    Raises:
        InputError: the groups do not divide the channels.
    """
    if x.shape[1] % num_groups:
        raise InputError("GroupNormalization: num_groups", f"is {num_groups}", f"a divisor of {x.shape[1]} channels")
    stash = torch_dtype(stash_type, "GroupNormalization", "stash_type")
    if stash == x.dtype:
        return torch.group_norm(x, num_groups, scale, bias, epsilon)
    channels = [-1] + [1] * (x.ndim - 2)
    y = torch.group_norm(x.to(stash), num_groups, None, None, epsilon).to(x.dtype)
    return y * scale.reshape(channels) + bias.reshape(channels)


def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """`scale * x / sqrt(mean(x^2) + epsilon)`, the mean over `axis` and all after it.

    Args:
        x: any shape.
        scale: broadcasts to `x.shape[axis:]`.
        stash_type: ONNX number of the dtype in which the mean is computed.
    """
    z = x.to(torch_dtype(stash_type, "RMSNormalization", "stash_type"))
    axes = list(range(axis_of("RMSNormalization", axis, x.ndim), x.ndim))
    y = z * torch.rsqrt(z.square().mean(axes, keepdim=True) + epsilon)
    return y.to(x.dtype) * scale


def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """`x / (bias + alpha / size * sum x^2)^beta`, the sum over `size` neighbouring channels.

    The neighbours of channel `c` are `c - floor((size - 1) / 2)` to `c + ceil((size - 1) / 2)`.

    Args:
        x: `[batch, channels, *spatial]`.
    """
    before = (size - 1) // 2
    channels = x.shape[1]
    squares = x.square()
    padded = torch.cat([squares.new_zeros([x.shape[0], before, *x.shape[2:]]), squares], 1)
    padded = torch.cat([padded, squares.new_zeros([x.shape[0], size - 1 - before, *x.shape[2:]])], 1)
    summed = sum(padded.narrow(1, i, channels) for i in range(size))
    return x / (bias + alpha / size * summed) ** beta


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """`x / (sum |x|^p)^(1/p)` along `axis`; 0 where the norm is 0."""
    norm = torch.linalg.vector_norm(x, p, dim=axis_of("LpNormalization", axis, x.ndim), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """`(x - mean) / (sqrt(var) + 1e-9)`, mean and variance over `axes`."""
    dims = axes_of("MeanVarianceNormalization", axes, x.ndim)
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True).sqrt() + 1e-9)
