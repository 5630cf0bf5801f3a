"""Pooling over windows and over whole feature maps.

torch's own pools are used wherever they say the same as ONNX (equal padding on both sides, at most half
the window); the rest is done on explicitly padded inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.execute.attributes import unsupported
from bitwright.execute.window import Window, pad_spatial, resolve_window, windows

_MAX: tuple[Callable[..., Tensor], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    num_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum of each window; padding counts as minus infinity.

    Args:
        x: `[batch, channels, *spatial]`, 1 to 3 spatial dimensions.
        storage_order: 0 counts the Indices row by row, 1 column by column.
        num_outputs: 2 also returns Indices, positions in the flattened `x`.

    Raises:
        UnsupportedError: the number of spatial dimensions is not 1 to 3, or `auto_pad` is unknown.

    Example:
        >>> max_pool(torch.tensor([[[1.0, 3.0, 2.0, 0.0, 5.0]]]), kernel_shape=[2], strides=[2], ceil_mode=1).tolist()
        [[[3.0, 2.0, 5.0]]]
    """
    window = resolve_window(
        "MaxPool",
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    size = x.shape[2:]
    begin = [0] * len(size)
    padding = _torch_padding(window)
    if padding is None:
        begin, padding = window.begin, [0] * len(size)
        end = [e + o for e, o in zip(window.end, window.overhang, strict=True)]
        lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x = pad_spatial(x, window.begin, end, lowest)
        ceil_mode = 0
    # 8-bit integers, the only ones ONNX allows here, go through floats: not every kernel of torch takes integers
    z = x if x.is_floating_point() else x.float()
    args = (z, window.kernel, window.strides, padding, window.dilations, bool(ceil_mode and any(window.overhang)))
    pool = _MAX[len(size) - 1]
    if num_outputs == 1:
        return pool(*args).to(x.dtype)
    y, flat = pool(*args, return_indices=True)
    return y.to(x.dtype), _indices(flat, x.shape, size, begin, storage_order)


def _indices(
    flat: Tensor, padded: Sequence[int], size: Sequence[int], begin: Sequence[int], storage_order: int
) -> Tensor:
    """torch's position in each padded map, as ONNX's position in the whole unpadded tensor."""
    rank, position, stride = len(size), torch.zeros_like(flat), 1
    coordinates: list[Tensor] = []
    for i in reversed(range(rank)):
        coordinates.insert(0, flat % padded[2 + i] - begin[i])
        flat = flat // padded[2 + i]
    for i in range(rank) if storage_order else reversed(range(rank)):
        position = position + coordinates[i] * stride
        stride *= size[i]
    maps = torch.arange(padded[0] * padded[1], device=flat.device).reshape([padded[0], padded[1]] + [1] * rank)
    return maps * stride + position


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Mean of each window: over the elements of `x` in it, or also over its padding (`count_include_pad`).

    What `ceil_mode` adds beyond the padding is never counted.

    Args:
        x: `[batch, channels, *spatial]`, 1 to 3 spatial dimensions.

    Raises:
        UnsupportedError: the number of spatial dimensions is not 1 to 3, or `auto_pad` is unknown.

    Example:
        >>> average_pool(torch.ones(1, 1, 3), kernel_shape=[2], pads=[1, 0], count_include_pad=1).tolist()
        [[[0.5, 1.0, 1.0]]]
    """
    window = resolve_window(
        "AveragePool",
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    rank = len(window.kernel)
    padding = _torch_padding(window)
    if padding is not None and set(window.dilations) == {1}:
        ceil = bool(ceil_mode and any(window.overhang))
        return _AVERAGE[rank - 1](x, window.kernel, window.strides, padding, ceil, bool(count_include_pad))
    # mean over the counted = mean over the whole window of x / mean over the whole window of "is counted"
    counted = x.new_ones([1, 1, *x.shape[2:]])
    counted = pad_spatial(counted, window.begin, window.end, float(bool(count_include_pad)))
    counted = pad_spatial(counted, [0] * rank, window.overhang)
    x = pad_spatial(x, window.begin, [e + o for e, o in zip(window.end, window.overhang, strict=True)])
    if set(window.dilations) == {1}:
        pool = _AVERAGE[rank - 1]
        return pool(x, window.kernel, window.strides) / pool(counted, window.kernel, window.strides)
    inside = list(range(-rank, 0))
    return windows(x, window).sum(inside) / windows(counted, window).sum(inside)


def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The p-norm of each window: `(sum |x|^p)^(1/p)`; padding counts as 0.

    Args:
        x: `[batch, channels, *spatial]`, 1 to 3 spatial dimensions.

    Raises:
        UnsupportedError: the number of spatial dimensions is not 1 to 3, or `auto_pad` is unknown.
    """
    window = resolve_window(
        "LpPool",
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    x = pad_spatial(x, window.begin, [e + o for e, o in zip(window.end, window.overhang, strict=True)])
    return torch.linalg.vector_norm(windows(x, window), p, dim=list(range(-len(window.kernel), 0)))


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all spatial dimensions: `[batch, channels, *spatial] -> [batch, channels, 1, ...]`."""
    return x.mean(_spatial("GlobalAveragePool", x), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over all spatial dimensions: `[batch, channels, *spatial] -> [batch, channels, 1, ...]`."""
    return x.amax(_spatial("GlobalMaxPool", x), keepdim=True)


def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm over all spatial dimensions: `[batch, channels, *spatial] -> [batch, channels, 1, ...]`."""
    return torch.linalg.vector_norm(x, p, dim=_spatial("GlobalLpPool", x), keepdim=True)


def _spatial(op: str, x: Tensor) -> list[int]:
    if x.ndim < 3:
        raise unsupported(op, "number of dimensions", x.ndim, "at least 3: batch, channels and one spatial dimension")
    return list(range(2, x.ndim))


def _torch_padding(window: Window) -> list[int] | None:
    """The padding for torch's own pool, or None where torch refuses it."""
    padding = window.padding
    if padding is None or any(2 * p > k for p, k in zip(padding, window.kernel, strict=True)):
        return None
    return padding
