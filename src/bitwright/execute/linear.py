"""Products of matrices and tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.errors import InputError


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """`y = alpha * A' @ B' + beta * C`, where `A'` is `A` or its transpose.

    Args:
        a: `[m, k]`, or `[k, m]` with `transA`.
        b: `[k, n]`, or `[n, k]` with `transB`.
        c: broadcasts to `[m, n]`.

    Raises:
        InputError: `a` or `b` is not a matrix.

    Example:
        >>> gemm(torch.ones(2, 3), torch.ones(1, 3), torch.ones(1), transB=1, beta=2.0).tolist()
        [[5.0], [5.0]]
    """
    if a.ndim != 2 or b.ndim != 2:
        raise InputError("Gemm", f"the inputs have {a.ndim} and {b.ndim} dimensions", "2 and 2", "use MatMul")
    a = a.t() if transA else a
    plain = alpha == 1.0 and (c is None or (beta == 1.0 and c.ndim == 1 and c.shape[0] == b.shape[0 if transB else 1]))
    if plain and a.is_floating_point():
        return F.linear(a, b if transB else b.t(), c)
    y = a @ (b.t() if transB else b)
    if alpha != 1.0:
        y = (y * alpha).to(a.dtype)
    if c is None:
        return y
    return y + (c if beta == 1.0 else (c * beta).to(a.dtype))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` over the last two dimensions, the others broadcast: `[..., m, k] @ [..., k, n] -> [..., m, n]`."""
    return torch.matmul(a, b)


def einsum(*operands: Tensor, equation: str) -> Tensor:
    """The sum of products that `equation` spells.

    Example:
        >>> einsum(torch.ones(2, 3), torch.ones(3), equation="ij,j->i").tolist()
        [3.0, 3.0]
    """
    return torch.einsum(equation, *operands)


def det(x: Tensor) -> Tensor:
    """Determinant of square matrices: `[..., m, m] -> [...]`."""
    return torch.linalg.det(x)
