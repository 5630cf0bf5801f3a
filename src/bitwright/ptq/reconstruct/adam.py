"""Adam on few tensors, without a graph and without the compiler that `torch.optim` brings in.

    m = b1 m + (1 - b1) g,    v = b2 v + (1 - b2) g^2,    p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

The first optimiser of `torch.optim` in a process imports torch's compiler, which takes two seconds, and each of its
steps costs a third of what a small layer's does. The numbers are the same.

Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitwright.ptq.reconstruct.pieces import pieces

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(kw_only=True, eq=False)
class Group:
    """Parameters that move at one rate.

    Attributes:
        parameters: contiguous.
        rate: now.
        falls: whether the rate falls along a cosine, which the caller does.
    """

    parameters: Sequence[nn.Parameter]
    rate: float
    falls: bool = False


@dataclass(kw_only=True, eq=False)
class Adam:
    """The optimiser of some groups; parameters without a gradient stay.

    Example:
        >>> p = nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> adam = Adam(groups=[Group(parameters=[p], rate=0.1)])
        >>> p.grad = torch.tensor([2.0, -0.5])
        >>> adam.step()
        >>> [round(x, 6) for x in p.tolist()], p.grad
        ([0.9, -0.9], None)
    """

    groups: Sequence[Group]
    steps: int = field(default=0, init=False)
    moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters; their gradients are used up."""
        self.steps += 1
        first, second = 1 - BETA1**self.steps, math.sqrt(1 - BETA2**self.steps)
        for group in self.groups:
            length = min(
                group.rate / first, torch.finfo(torch.float32).max
            )  # a rate out of hand diverges, as it should
            for parameter in group.parameters:
                gradient, parameter.grad = parameter.grad, None
                if gradient is None:
                    continue
                if parameter not in self.moments:
                    self.moments[parameter] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                tensors = (parameter, gradient.contiguous(), *self.moments[parameter])
                for p, g, m, v in zip(*(pieces(t) for t in tensors), strict=True):
                    m.lerp_(g, 1 - BETA1)
                    v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
                    p.addcdiv_(m, v.sqrt().div_(second).add_(EPSILON), value=-length)
