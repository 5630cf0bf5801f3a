"""Rounding modes, and rounding that lets the gradient through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RoundStraightThrough(torch.autograd.Function):
    """Half-even forwards, identity backwards.

    A function of its own, because `u + (rnd(u) - u).detach()` is not `rnd(u)` in float32.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return torch.round(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def round_straight_through(u: Tensor) -> Tensor:
    """`rnd(u)`, half to even, with the gradient of the identity.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013.

    Example:
        >>> u = torch.tensor([0.5, 1.5, 2.6], requires_grad=True)
        >>> round_straight_through(u).sum().backward()
        >>> round_straight_through(u).tolist(), u.grad.tolist()
        ([0.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    """
    rounded: Tensor = _RoundStraightThrough.apply(u)
    return rounded
