"""Conv and ConvTranspose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.attributes import unsupported
from bitwright.execute.window import Window, pad_spatial, resolve_window

_CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Cross-correlation: `y[n, o, p] = b[o] + sum_{c, k} w[o, c, k] * x[n, c, p * stride + k * dilation - begin]`.

    Args:
        x: `[batch, channels, *spatial]`, 1 to 3 spatial dimensions.
        w: `[out, channels / group, *kernel]`.
        b: `[out]`.

    Raises:
        UnsupportedError: the number of spatial dimensions is not 1 to 3, or `auto_pad` is unknown.
        InputError: `kernel_shape` is not the shape of `w`.

    Example:
        >>> import torch
        >>> conv(torch.ones(1, 1, 4), torch.ones(1, 1, 3), pads=[2, 0]).tolist()
        [[[1.0, 2.0, 3.0, 3.0]]]
    """
    _check_kernel("Conv", w, kernel_shape)
    window = resolve_window(
        "Conv", x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    padding = window.padding
    if padding is None:
        x, padding = pad_spatial(x, window.begin, window.end), [0] * len(window.begin)
    return _CONV[len(padding) - 1](x, w, b, window.strides, padding, window.dilations, group)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The transpose (gradient) of Conv: `out = (in - 1) * stride + output_padding + extent - begin - end`.

    Args:
        x: `[batch, channels, *spatial]`, 1 to 3 spatial dimensions.
        w: `[channels, out / group, *kernel]`.
        b: `[out]`.
        output_shape: spatial size of the result; it decides the padding.

    Raises:
        UnsupportedError: the number of spatial dimensions is not 1 to 3, `auto_pad` is unknown,
            or the output is larger than any window can reach.
        InputError: `kernel_shape` is not the shape of `w`.
    """
    _check_kernel("ConvTranspose", w, kernel_shape)
    window = resolve_window(
        "ConvTranspose",
        x.shape[2:],
        w.shape[2:],
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
    )
    begin, end, extra = _transposed_padding(x.shape[2:], window, auto_pad, output_padding, output_shape)
    # torch takes one padding for both sides: the smaller one there, the rest is cut off here
    both = [max(min(pair), 0) for pair in zip(begin, end, strict=True)]
    y = _CONV_TRANSPOSE[x.ndim - 3](x, w, b, window.strides, both, extra, group, window.dilations)
    cut_begin = [p - side for p, side in zip(both, begin, strict=True)]
    cut_end = [p - side for p, side in zip(both, end, strict=True)]
    return pad_spatial(y, cut_begin, cut_end)


def _transposed_padding(
    spatial: Sequence[int],
    window: Window,
    auto_pad: str,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> tuple[list[int], list[int], list[int]]:
    """Paddings before and after, and the output padding, each `[rank]`.

    `total = (in - 1) * stride + output_padding + extent - out`, where the output size is given or follows from
    SAME (`in * stride`); the odd one goes to the end (UPPER) or to the beginning (all others).
    """
    rank = len(spatial)
    begin, end, extra = list(window.begin), list(window.end), list(output_padding or [0] * rank)
    for i in range(rank):
        full = (spatial[i] - 1) * window.strides[i] + extra[i] + (window.kernel[i] - 1) * window.dilations[i] + 1
        if output_shape:
            total = full - output_shape[i - rank]
        elif auto_pad.startswith("SAME"):
            total = full - spatial[i] * window.strides[i]
        else:
            continue
        if total < 0:
            total, extra[i] = 0, extra[i] - total
        begin[i] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        end[i] = total - begin[i]
    limits = [max(pair) for pair in zip(window.strides, window.dilations, strict=True)]
    if any(e >= limit for e, limit in zip(extra, limits, strict=True)):
        raise unsupported(
            "ConvTranspose",
            "output padding (given, or needed for output_shape)",
            extra,
            f"less than the larger of stride and dilation, {limits}",
        )
    return begin, end, extra


def _check_kernel(op: str, w: Tensor, kernel_shape: Sequence[int] | None) -> None:
    if kernel_shape and list(kernel_shape) != list(w.shape[2:]):
        raise InputError(
            f"{op}: kernel_shape", f"is {list(kernel_shape)}", f"{list(w.shape[2:])}, the shape of the weight"
        )
