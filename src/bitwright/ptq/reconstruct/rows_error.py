"""Error of a convolution's output as a product of matrices: for maps so small that a convolution's kernels are slow.

The same numbers as `output_error`: `y = rows(x) W~^T + b`, bounded as the activation bounds it. At 2x2 positions, 512
channels and 3x3 taps a product of the rows, forwards and backwards, takes a quarter of the time of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitwright.ptq.reconstruct.work import Work
from bitwright.ptq.second_moments import Layer

#: All rows of an image.
ALL = 1 << 62


def rows_error(work: Work, layer: Layer) -> Callable[[Tensor], Tensor]:
    """The loss of a convolution without groups, activations in float meanwhile."""
    (region,) = (r for r in work.unit.regions if r.weight is not None)
    weight, rounding = work.state.tensor(layer.weight), work.weights[layer.weight]
    bias = None if region.bias is None else work.state.tensor(region.bias.name or "")
    low, high = region.bounds or (None, None)
    power, generator = work.method.power, torch.Generator()

    def loss(index: Tensor) -> Tensor:
        rows = torch.cat(list(layer.rows(work.read(layer.site, index), ALL, generator)))[:, 0]
        y = torch.nn.functional.linear(rows, layer.matrix(rounding(weight))[0], bias)
        y = y if low is None else y.clamp(low, high)
        difference = y - work.target[index].flatten(2).mT.reshape(y.shape)
        error = difference.square() if power == 2 else difference.abs().pow(power)
        return error.sum() / len(y)

    return loss
