"""Convolution as a product of matrices: the values under each window, one row an output position.

Source: K. Chellapilla, S. Puri and P. Simard, High performance convolutional neural networks for document processing,
2006 (im2col).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.execute.window import Window, pad_spatial, windows


def output_positions(x: Tensor, window: Window) -> int:
    """How many outputs a window has over one image of `x [batch, channels, *spatial]`.

    Example:
        >>> from bitwright.execute.window import resolve_window
        >>> output_positions(torch.zeros(1, 1, 4), resolve_window("Conv", [4], [3], strides=None, dilations=None,
        ...                  pads=[1, 1], auto_pad="NOTSET"))
        4
    """
    return sizes(x, window).numel()


def sizes(x: Tensor, window: Window) -> torch.Size:
    """Spatial size of the output."""
    padded = [n + b + e for n, b, e in zip(x.shape[2:], window.begin, window.end, strict=True)]
    extents = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    return torch.Size((n - e) // s + 1 for n, e, s in zip(padded, extents, window.strides, strict=True))


def patches(x: Tensor, window: Window, positions: Tensor | None = None) -> Tensor:
    """What a weight `[out, channels, *kernel]`, made flat, is multiplied by: `[batch, positions, channels * kernel]`.

    Args:
        x: `[batch, channels, *spatial]`; zeros are padded.
        window: of the convolution.
        positions: numbers of the outputs wanted, row by row through space; None for all.

    Example:
        >>> from bitwright.execute.window import resolve_window
        >>> window = resolve_window("Conv", [4], [3], strides=[2], dilations=None, pads=[1, 1], auto_pad="NOTSET")
        >>> patches(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), window).tolist()
        [[[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]]
        >>> patches(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), window, torch.tensor([1])).tolist()
        [[[2.0, 3.0, 4.0]]]
    """
    view = windows(pad_spatial(x, window.begin, window.end), window)  # [batch, channels, *out, *kernel]
    rank = len(window.kernel)
    view = view.movedim(1, 1 + rank)
    if positions is None:
        return view.reshape(len(x), view.shape[1 : 1 + rank].numel(), -1)
    index = torch.unravel_index(positions, view.shape[1 : 1 + rank])
    found: Tensor = view[(slice(None), *index)]  # type: ignore[index]
    return found.flatten(2)
