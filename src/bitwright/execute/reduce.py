"""Reductions along axes, cumulative sums and searches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitwright.execute.attributes import Ints, axes_of, axis_of, ints


def _reduced(
    op: str,
    x: Tensor,
    axes: Ints | None,
    keepdims: int,
    noop_with_empty_axes: int,
    over: Callable[[Tensor, list[int], bool], Tensor],
    alone: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """`over(x, axes, keepdim)`; no axes mean all of them, or (`noop_with_empty_axes`) none: `alone(x)`."""
    dims = [] if axes is None else axes_of(op, axes, x.ndim)
    if not dims:
        if noop_with_empty_axes:
            return alone(x)
        dims = list(range(x.ndim))
    if not dims:
        return over(x.reshape(1), [0], False)
    return over(x, dims, bool(keepdims))


def _sum(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return x.sum(dims, keepdim=keepdim, dtype=x.dtype)


def _mean(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dims, keepdim=keepdim)
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return torch.div(_sum(x, dims, keepdim), count, rounding_mode="trunc")


def _extreme(x: Tensor, dims: list[int], keepdim: bool, *, largest: bool) -> Tensor:
    if all(x.shape[dim] for dim in dims):
        return x.amax(dims, keepdim=keepdim) if largest else x.amin(dims, keepdim=keepdim)
    # the maximum of nothing is the lowest value there is
    if x.is_floating_point():
        empty = -torch.inf if largest else torch.inf
    elif x.dtype == torch.bool:
        empty = not largest
    else:
        empty = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
    return torch.full_like(_sum(x, dims, keepdim), empty)


def _prod(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keepdim, dtype=x.dtype)
    return x


def _logsumexp(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return torch.logsumexp(x.float() if not x.is_floating_point() else x, dims, keepdim).to(x.dtype)


def _l2(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, dims, keepdim)
    return _sum(x * x, dims, keepdim).double().sqrt().to(x.dtype)


def reduce_sum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """`sum x` over the axes.

    Example:
        >>> reduce_sum(torch.ones(2, 3), [1], keepdims=0).tolist()
        [3.0, 3.0]
    """
    return _reduced("ReduceSum", x, axes, keepdims, noop_with_empty_axes, _sum)


def reduce_mean(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """`sum x / n` over the axes."""
    return _reduced("ReduceMean", x, axes, keepdims, noop_with_empty_axes, _mean)


def reduce_max(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """`max x` over the axes; the lowest value of the dtype where there is nothing."""
    return _reduced(
        "ReduceMax", x, axes, keepdims, noop_with_empty_axes, lambda x, dims, k: _extreme(x, dims, k, largest=True)
    )


def reduce_min(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """`min x` over the axes; the highest value of the dtype where there is nothing."""
    return _reduced(
        "ReduceMin", x, axes, keepdims, noop_with_empty_axes, lambda x, dims, k: _extreme(x, dims, k, largest=False)
    )


def reduce_prod(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """`prod x` over the axes."""
    return _reduced("ReduceProd", x, axes, keepdims, noop_with_empty_axes, _prod)


def reduce_l1(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """`sum |x|` over the axes."""
    return _reduced(
        "ReduceL1", x, axes, keepdims, noop_with_empty_axes, lambda x, dims, k: _sum(x.abs(), dims, k), torch.abs
    )


def reduce_l2(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """`sqrt(sum x^2)` over the axes."""
    return _reduced("ReduceL2", x, axes, keepdims, noop_with_empty_axes, _l2, torch.abs)


def reduce_log_sum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """`log(sum x)` over the axes."""
    return _reduced(
        "ReduceLogSum", x, axes, keepdims, noop_with_empty_axes, lambda x, dims, k: _sum(x, dims, k).log(), torch.log
    )


def reduce_log_sum_exp(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """`log(sum exp(x))` over the axes, in the form that does not overflow."""
    return _reduced("ReduceLogSumExp", x, axes, keepdims, noop_with_empty_axes, _logsumexp)


def reduce_sum_square(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """`sum x^2` over the axes."""
    return _reduced(
        "ReduceSumSquare",
        x,
        axes,
        keepdims,
        noop_with_empty_axes,
        lambda x, dims, k: _sum(x * x, dims, k),
        torch.square,
    )


def cum_sum(x: Tensor, axis: Ints, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """`y[i] = sum_{j <= i} x[j]` along `axis`; `j < i` for `exclusive`, from the end for `reverse`.

    Example:
        >>> cum_sum(torch.tensor([1, 2, 3]), 0, exclusive=1, reverse=1).tolist()
        [5, 3, 0]
    """
    dim = axis_of("CumSum", ints(axis)[0], x.ndim)
    x = x.flip(dim) if reverse else x
    if exclusive and x.shape[dim]:
        x = torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x.narrow(dim, 0, x.shape[dim] - 1)], dim)
    y = x.cumsum(dim, dtype=x.dtype)
    return y.flip(dim) if reverse else y


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Index of the first (or last) maximum along `axis`, int64."""
    axis = axis_of("ArgMax", axis, x.ndim)
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmax(axis, bool(keepdims))
    return x.argmax(axis, bool(keepdims))


def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Index of the first (or last) minimum along `axis`, int64."""
    axis = axis_of("ArgMin", axis, x.ndim)
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmin(axis, bool(keepdims))
    return x.argmin(axis, bool(keepdims))


def top_k(x: Tensor, k: Ints, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """The `k` largest (smallest) elements along `axis` and their indices, int64.

    Of equal elements the one with the lower index comes first. `sorted=0` allows any order: it is sorted all the same.

    Example:
        >>> [t.tolist() for t in top_k(torch.tensor([2.0, 5.0, 5.0]), 2)]
        [[5.0, 5.0], [1, 2]]
    """
    del sorted
    axis, count = axis_of("TopK", axis, x.ndim), ints(k)[0]
    # torch.topk promises no order among equals, a stable sort does
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
