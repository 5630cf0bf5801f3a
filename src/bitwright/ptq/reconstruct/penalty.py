"""A penalty on a rounding's variables that enters a loss by its gradient alone.

A rounding gives a weight and no loss of its own; what it wants of its variables is added where the gradient passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Penalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, penalty: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], gradients[0].new_ones(())


def penalised(value: Tensor, penalty: Tensor) -> Tensor:
    """`value`, whose gradients are those of `loss + penalty`, whatever the loss.

    Args:
        value: what goes on to the loss.
        penalty: a scalar.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> penalised(2 * x, x.square()).backward()
        >>> float(x.grad)
        8.0
    """
    found: Tensor = _Penalised.apply(value, penalty)
    return found
