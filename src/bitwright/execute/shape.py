"""Ops that move, join, cut and repeat elements without looking at them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.attributes import Ints, axes_of, axis_of, ints, unsupported


def identity(x: Tensor) -> Tensor:
    """`x` itself."""
    return x


def dropout(
    x: Tensor,
    ratio: Tensor | float = 0.5,
    training_mode: Tensor | bool = False,
    *,
    seed: int = 0,
    num_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """`x` itself, as inference has it; with two outputs also a mask of ones.

    Args:
        ratio, seed: what training would drop.

    Raises:
        UnsupportedError: `training_mode` is set.
    """
    del ratio, seed
    if bool(training_mode):
        raise unsupported("Dropout", "training_mode", True, "False")
    return x if num_outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """The same elements in another shape; -1 is what remains, 0 is the size of `x` there (unless `allowzero`).

    Example:
        >>> reshape(torch.zeros(2, 3, 4), [0, -1]).shape
        torch.Size([2, 12])
    """
    sizes = ints(shape)
    if not allowzero:
        # with an empty tensor torch cannot tell what -1 is next to a 0
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the dimensions before `axis` by the others."""
    axis = axis + x.ndim if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    columns = 1
    for size in x.shape[axis:]:
        columns *= size
    return x.reshape(rows, columns)


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """The dimensions in the order `perm`, or reversed."""
    return x.permute(list(perm) if perm is not None else list(reversed(range(x.ndim))))


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """`x` without the dimensions `axes`, or without all of size 1.

    Raises:
        InputError: one of `axes` is larger than 1.
    """
    if axes is None:
        return x.squeeze()
    dims = axes_of("Squeeze", axes, x.ndim)
    for dim in dims:
        if x.shape[dim] != 1:
            raise InputError("Squeeze: axes", f"dimension {dim} has size {x.shape[dim]}", "1", "check the model")
    return x.squeeze(dims)


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """`x` with dimensions of size 1 at `axes` of the result.

    Example:
        >>> unsqueeze(torch.zeros(3), [0, -1]).shape
        torch.Size([1, 3, 1])
    """
    numbers = ints(axes)
    for dim in sorted(axes_of("Unsqueeze", numbers, x.ndim + len(numbers))):
        x = x.unsqueeze(dim)
    return x


def expand(x: Tensor, shape: Ints) -> Tensor:
    """`x` broadcast with `shape`, in both directions."""
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape)))


def tile(x: Tensor, repeats: Ints) -> Tensor:
    """`x` repeated along each dimension."""
    return x.repeat(ints(repeats))


def concat(*tensors: Tensor, axis: int) -> Tensor:
    """The inputs one after the other along `axis`."""
    return torch.cat(tensors, axis_of("Concat", axis, tensors[0].ndim))


def split(
    x: Tensor, split: Ints | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Tensor, ...]:
    """`x` cut along `axis` into pieces of the sizes `split`, or `num_outputs` equal ones (the last may be smaller).

    Raises:
        InputError: neither `split` nor `num_outputs` is given.

    Example:
        >>> [piece.tolist() for piece in split(torch.arange(5), num_outputs=2)]
        [[0, 1, 2], [3, 4]]
    """
    axis = axis_of("Split", axis, x.ndim)
    if split is not None:
        return torch.split(x, ints(split), axis)
    if num_outputs is None:
        raise InputError("Split", "has neither the input split nor num_outputs", "one of them", "check the model")
    size = x.shape[axis]
    piece = -(-size // num_outputs)
    return torch.split(x, [min(piece, max(size - i * piece, 0)) for i in range(num_outputs)], axis)


def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """`x[start:end:step]` along each of `axes`, as Python slices; steps may be negative.

    Example:
        >>> slice_(torch.arange(5), [-1], [-9], [0], [-2]).tolist()
        [4, 2, 0]
    """
    first, last = ints(starts), ints(ends)
    dims = list(range(len(first))) if axes is None else axes_of("Slice", axes, x.ndim)
    index, flipped = [slice(None)] * x.ndim, []
    for i, dim in enumerate(dims):
        step = 1 if steps is None else ints(steps)[i]
        positions = range(x.shape[dim])[first[i] : last[i] : step]
        if step < 0:
            positions = positions[::-1]
            flipped.append(dim)
        index[dim] = slice(positions.start, max(positions.stop, positions.start), positions.step)
    x = x[tuple(index)]
    return x.flip(flipped) if flipped else x


def pad(
    x: Tensor,
    pads: Ints,
    constant_value: Tensor | float | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """`x` with elements added before and after each of `axes` (all begins, then all ends); negative pads cut.

    The added elements are `constant_value` (0), mirrored without the border (reflect), the border (edge), or those of
    the other end (wrap).

    Raises:
        UnsupportedError: `mode` is unknown.

    Example:
        >>> pad(torch.tensor([1, 2, 3]), [1, 2], mode="reflect").tolist()
        [2, 1, 2, 3, 2, 1]
    """
    amounts = ints(pads)
    dims = list(range(x.ndim)) if axes is None else axes_of("Pad", axes, x.ndim)
    if len(amounts) != 2 * len(dims):
        raise InputError("Pad: pads", f"has {len(amounts)} entries", f"{2 * len(dims)}, all begins and then all ends")
    before, after = dict(zip(dims, amounts, strict=False)), dict(zip(dims, amounts[len(dims) :], strict=True))
    if mode == "constant":
        flat = [amount for dim in reversed(range(x.ndim)) for amount in (before.get(dim, 0), after.get(dim, 0))]
        if not any(flat):
            return x
        value = constant_value.item() if isinstance(constant_value, Tensor) else constant_value
        return F.pad(x, flat, value=value or 0)
    for dim in dims:
        if before[dim] or after[dim]:
            x = x.index_select(dim, _source(x.shape[dim], before[dim], after[dim], mode, x.device))
    return x


def _source(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """For each element of a padded dimension, the index of the element that it repeats."""
    position = torch.arange(-before, size + after, device=device)
    if mode == "edge":
        return position.clamp(0, size - 1)
    if mode == "wrap":
        return position % size
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        position = position % period
        return torch.minimum(position, period - position) if size > 1 else position
    raise unsupported("Pad", "mode", mode, "constant, reflect, edge or wrap")


def center_crop_pad(x: Tensor, shape: Ints, *, axes: Sequence[int] | None = None) -> Tensor:
    """The middle of `x` along `axes`, cut or padded by zeros to `shape`; the odd element goes to the end."""
    dims = list(range(x.ndim)) if axes is None else axes_of("CenterCropPad", axes, x.ndim)
    flat = [0] * (2 * x.ndim)
    for dim, size in zip(dims, ints(shape), strict=True):
        missing = size - x.shape[dim]
        # a crop starts at floor(surplus / 2), a padding has floor(missing / 2) in front
        before = missing // 2 if missing >= 0 else -(-missing // 2)
        flat[2 * (x.ndim - 1 - dim)], flat[2 * (x.ndim - 1 - dim) + 1] = before, missing - before
    return F.pad(x, flat)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """`[batch, c * s * s, h, w] -> [batch, c, h * s, w * s]`, s the blocksize.

    Channels are `(s, s, c)` for DCR and `(c, s, s)` for CRD.

    Raises:
        UnsupportedError: `mode` is neither DCR nor CRD.
    """
    n, depth, h, w = x.shape
    s, c = blocksize, depth // (blocksize * blocksize)
    if mode == "CRD":
        y = x.reshape(n, c, s, s, h, w).permute(0, 1, 4, 2, 5, 3)
    elif mode == "DCR":
        y = x.reshape(n, s, s, c, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        raise unsupported("DepthToSpace", "mode", mode, "DCR or CRD")
    return y.reshape(n, c, h * s, w * s)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """`[batch, c, h * s, w * s] -> [batch, s * s * c, h, w]`, s the blocksize; the inverse of DepthToSpace.

    Raises:
        UnsupportedError: `mode` is neither DCR nor CRD.
    """
    n, c, height, width = x.shape
    s = blocksize
    h, w = height // s, width // s
    y = x.reshape(n, c, h, s, w, s)
    if mode == "CRD":
        y = y.permute(0, 1, 3, 5, 2, 4)
    elif mode == "DCR":
        y = y.permute(0, 3, 5, 1, 2, 4)
    else:
        raise unsupported("SpaceToDepth", "mode", mode, "DCR or CRD")
    return y.reshape(n, s * s * c, h, w)


def trilu(x: Tensor, k: Ints | None = None, *, upper: int = 1) -> Tensor:
    """The upper (lower) triangle of matrices, from diagonal `k` on; the rest is 0."""
    diagonal = 0 if k is None else ints(k)[0]
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def reverse_sequence(x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first `sequence_lens[b]` steps of each batch entry in reverse order, the others as they are."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    lens = sequence_lens.to(x.device)[:, None]
    source = torch.where(steps < lens, lens - 1 - steps, steps)  # [batch, time]
    source = source if batch_axis < time_axis else source.t()
    return x.gather(time_axis, source.reshape(list(source.shape) + [1] * (x.ndim - 2)).expand(x.shape))
