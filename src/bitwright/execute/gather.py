"""Picking elements by index, and putting them back. Negative indices count from the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitwright.execute.attributes import Ints, axis_of, ints, unsupported

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _wrapped(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


def gather(x: Tensor, indices: Tensor | int, *, axis: int = 0) -> Tensor:
    """`y[a, *i, b] = x[a, indices[*i], b]`: shape `x.shape[:axis] + indices.shape + x.shape[axis + 1:]`.

    Example:
        >>> gather(torch.tensor([[1, 2], [3, 4]]), torch.tensor([-1]), axis=1).tolist()
        [[2], [4]]
    """
    axis = axis_of("Gather", axis, x.ndim)
    if isinstance(indices, int):
        return x.select(axis, indices)
    flat = _wrapped(indices, x.shape[axis]).reshape(-1)
    return x.index_select(axis, flat).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """`y[i, j, k] = x[i, indices[i, j, k], k]` for axis 1, the shape of `indices`."""
    axis = axis_of("GatherElements", axis, x.ndim)
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """`y[b, *i] = x[b, *indices[b, *i, :]]`: the last dimension of `indices` holds positions in `x`.

    Example:
        >>> gather_nd(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0, 1], [1, 0]])).tolist()
        [2, 3]
    """
    batch, depth = list(x.shape[:batch_dims]), indices.shape[-1]
    rest = list(x.shape[batch_dims + depth :])
    flat, size = _flat_index(indices, list(x.shape[batch_dims : batch_dims + depth]))
    n = math.prod(batch)
    flat = flat.reshape(n, -1) + torch.arange(n, device=x.device)[:, None] * size
    return x.reshape([n * size, *rest])[flat.reshape(-1)].reshape(list(indices.shape[:-1]) + rest)


def _flat_index(indices: Tensor, sizes: list[int]) -> tuple[Tensor, int]:
    """Positions `[..., depth]` as one number `[...]` in the flattened dimensions `sizes`, and their product."""
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i, size in enumerate(sizes):
        flat = flat * size + _wrapped(indices[..., i], size)
    return flat, math.prod(sizes)


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """A copy of `x` with `y[i, indices[i, j, k], k] = updates[i, j, k]` for axis 1, or with the two combined.

    Raises:
        UnsupportedError: `reduction` is not none, add, mul, max or min.
    """
    axis = axis_of("ScatterElements", axis, x.ndim)
    return _scattered("ScatterElements", x, axis, _wrapped(indices, x.shape[axis]), updates, reduction)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy of `x` with `y[*indices[*i, :]] = updates[*i]`, or with the two combined.

    Raises:
        UnsupportedError: `reduction` is not none, add, mul, max or min.

    Example:
        >>> scatter_nd(torch.zeros(3), torch.tensor([[2], [0]]), torch.tensor([5.0, 7.0])).tolist()
        [7.0, 0.0, 5.0]
    """
    depth = indices.shape[-1]
    flat, size = _flat_index(indices, list(x.shape[:depth]))
    rows = updates.reshape(flat.numel(), -1)
    index = flat.reshape(-1, 1).expand_as(rows)
    return _scattered("ScatterND", x.reshape(size, -1), 0, index, rows, reduction).reshape(x.shape)


def _scattered(op: str, x: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, index, updates)
    if reduction == "add":
        return x.scatter_add(axis, index, updates)
    if reduction in _REDUCTIONS:
        return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])
    raise unsupported(op, "reduction", reduction, "none, add, mul, max or min")


def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices of `x` along `axis` (of the flattened `x` without it) where the condition holds."""
    chosen = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1)[chosen] if axis is None else x.index_select(axis_of("Compress", axis, x.ndim), chosen)


def non_zero(x: Tensor) -> Tensor:
    """Indices of the elements that are not 0: `[rank, count]`, int64."""
    return torch.nonzero(x).t()


def one_hot(indices: Tensor, depth: Ints, values: Tensor, *, axis: int = -1) -> Tensor:
    """A new dimension of size `depth` at `axis`: `values[1]` at the index, `values[0]` elsewhere.

    Example:
        >>> one_hot(torch.tensor([0, -1, 9]), 2, torch.tensor([0, 1])).tolist()
        [[1, 0], [0, 1], [0, 0]]
    """
    size = int(ints(depth)[0])
    axis = axis_of("OneHot", axis, indices.ndim + 1)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = size
    places = torch.arange(size, device=indices.device).reshape(shape)
    return torch.where(_wrapped(indices, size).unsqueeze(axis) == places, values[1], values[0])
