"""Geometry of sliding windows: the padding that `auto_pad`, `pads` and `ceil_mode` ask for.

Lingo: `extent = (kernel - 1) * dilation + 1` is the span of one window;
`begin` and `end` are the paddings before and after the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.attributes import unsupported


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window over `rank` spatial dimensions, every field `[rank]`.

    `overhang` is what `ceil_mode` adds after the end padding, so that the last window is complete.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    overhang: list[int]

    @property
    def padding(self) -> list[int] | None:
        """The one padding of both sides, where torch can take it as it is, else None."""
        return self.begin if self.begin == self.end and min(self.begin, default=0) >= 0 else None


def resolve_window(
    op: str,
    spatial: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int = 0,
) -> Window:
    """The window of a Conv or pool node over an input of `spatial` size.

    `SAME_*`: `out = ceil(in / stride)`, `total = max((out - 1) * stride + extent - in, 0)`,
    the odd one goes to the end (UPPER) or to the beginning (LOWER).

    Raises:
        UnsupportedError: the rank is not 1 to 3, or `auto_pad` is unknown.
        InputError: an attribute does not have one entry for each spatial dimension.

    Example:
        >>> resolve_window("Conv", [5], [2], strides=None, dilations=None, pads=None, auto_pad="SAME_UPPER").end
        [1]
    """
    rank = len(spatial)
    if not 1 <= rank <= 3:
        raise unsupported(op, "number of spatial dimensions", rank, "1, 2 or 3")
    strides = list(strides) if strides else [1] * rank
    dilations = list(dilations) if dilations else [1] * rank
    for name, values in (("kernel_shape", kernel), ("strides", strides), ("dilations", dilations)):
        if len(values) != rank:
            raise InputError(f"{op}: {name}", f"has {len(values)} entries", f"{rank}, one for each spatial dimension")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end, overhang = [0] * rank, [0] * rank, [0] * rank
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(rank):
            total = max((-(-spatial[i] // strides[i]) - 1) * strides[i] + extent[i] - spatial[i], 0)
            begin[i], end[i] = total // 2, total - total // 2
        if auto_pad == "SAME_LOWER":
            begin, end = end, begin
    elif auto_pad not in ("NOTSET", "VALID"):
        raise unsupported(op, "auto_pad", auto_pad, "NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    elif pads and auto_pad == "NOTSET":
        if len(pads) != 2 * rank:
            raise InputError(f"{op}: pads", f"has {len(pads)} entries", f"{2 * rank}, all begins and then all ends")
        begin, end = list(pads[:rank]), list(pads[rank:])
    if ceil_mode and not auto_pad.startswith("SAME"):
        overhang = [_overhang(spatial[i], extent[i], strides[i], begin[i], end[i]) for i in range(rank)]
    return Window(kernel=list(kernel), strides=strides, dilations=dilations, begin=begin, end=end, overhang=overhang)


def _overhang(size: int, extent: int, stride: int, begin: int, end: int) -> int:
    """How far the last window of `ceil_mode` reaches beyond the end padding.

    A window that would start in the end padding is dropped.
    """
    out = -(-(size + begin + end - extent) // stride) + 1
    if (out - 1) * stride >= size + begin:
        out -= 1
    return max((out - 1) * stride + extent - (size + begin + end), 0)


def pad_spatial(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """`x` with the last `len(begin)` dimensions padded by a constant."""
    flat = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def windows(x: Tensor, window: Window) -> Tensor:
    """A view of `[batch, channels, *spatial]` as `[batch, channels, *out, *kernel]`, without padding."""
    rank = len(window.kernel)
    for i in range(rank):
        extent = (window.kernel[i] - 1) * window.dilations[i] + 1
        x = x.unfold(2 + i, extent, window.strides[i])[..., :: window.dilations[i]]
    return x
