"""Error of a layer's output over all images at once, from the second moments of what it reads.

    E ||W~ x^ - W x||^2 = tr(W~ H W~^T) - 2 tr(W~ (W C)^T) + tr(W G W^T)
    H = E[x^ x^^T],  C = E[x x^^T],  G = E[x x^T]

A step costs one product with H and no image at all, and has no noise of drawn images. The activation that follows is
left out: where a ReLU does, errors below zero count here and not in the plain error, so results differ; both are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bitwright.errors import UnsupportedError
from bitwright.ptq.reconstruct.loss import Loss, WholeLoss, output_error
from bitwright.ptq.reconstruct.rows_error import ALL, rows_error
from bitwright.ptq.reconstruct.soft import SoftRounding
from bitwright.ptq.reconstruct.work import Work
from bitwright.ptq.second_moments import Layer, Moments, layer_of

#: Positions of a map up to which a product of rows is faster than a convolution.
SMALL_MAP = 16


def moments_error(work: Work) -> WholeLoss:
    """The loss of a layer as a function of its weight alone.

    Raises:
        UnsupportedError: a unit of several layers, activations that are quantized meanwhile, or too wide a layer.
    """
    layers = [r for r in work.unit.regions if r.weight is not None]
    rounding = None if len(layers) != 1 else work.weights.get(layer_of(layers[0]).weight)
    if not isinstance(rounding, SoftRounding) or work.steps or work.biases or work.method.inputs != "quantized":
        raise UnsupportedError(
            f"{work.method.name}.loss", "is moments, which knows the weight of one layer alone",
            "units of one layer, soft rounding, quantized inputs, activations and biases in float", "take loss=output",
        )  # fmt: skip
    layer = layer_of(layers[0])
    if len(layer.parts) > 1:
        raise UnsupportedError(
            f"{work.method.name}: weight {layer.weight!r}", f"has {layer.columns} inputs an output",
            f"at most {layer.parts[0].stop}, whose moments are held whole", "take loss=output",
        )  # fmt: skip
    moments, aim, rest = _moments(work, layer)
    return WholeLoss(step=_stepping(layer, rounding, moments, aim, rest))


def _stepping(layer: Layer, rounding: SoftRounding, moments: Tensor, aim: Tensor, rest: float) -> Callable[[], float]:
    """`tr(W H W^T) - 2 tr(W B^T)` and its gradient `2 (W H - B)` by hand: a graph takes as long as the product."""

    def step() -> float:
        loss = rest

        def gradient(weight: Tensor) -> Tensor:
            nonlocal loss
            matrix = layer.matrix(weight)
            half = torch.baddbmm(aim, matrix, moments, beta=-1)
            loss += float(torch.dot(matrix.reshape(-1), torch.sub(half, aim).view(-1)))
            return layer.tensor(half.mul_(2))

        rounding.step(gradient)
        return loss

    return step


def cheapest_error(work: Work) -> Loss | WholeLoss:
    """`moments_error` where a product with H is less work than a step's images, `D < 2 rows`; else `output_error`.

    The latter as a product of rows, where a convolution's map is small (`rows_error`).
    """
    layers = [r for r in work.unit.regions if r.weight is not None]
    if len(layers) != 1 or work.steps or work.biases or work.method.inputs != "quantized":
        return output_error(work)
    layer, shape = layer_of(layers[0]), work.target.shape
    is_conv = layer.op.op_type == "Conv"
    positions = math.prod(shape[1:]) if is_conv else math.prod(shape[:-1])
    if len(layer.parts) == 1 and layer.columns < 2 * positions * work.method.batch:
        return moments_error(work)
    alone = len(work.unit.regions) == 1 and layer.groups == 1
    return rows_error(work, layer) if is_conv and alone and positions <= SMALL_MAP else output_error(work)


@torch.no_grad()
def _moments(work: Work, layer: Layer) -> tuple[Tensor, Tensor, float]:
    """`H [groups, d, d]`, `W C [groups, o, d]` and `tr(W G W^T)`; C and G themselves are never made."""
    matrix, quantized, generator = (
        layer.matrix(work.state.tensor(layer.weight)),
        Moments(layer=layer),
        torch.Generator(),
    )
    aim, power, count = torch.zeros_like(matrix), 0.0, 0
    for index in torch.arange(len(work.target)).split(work.method.batch):
        x, read = work.floats[layer.site][index], work.read(layer.site, index)
        for rows, others in zip(layer.rows(x, ALL, generator), layer.rows(read, ALL, generator), strict=True):
            quantized.add(others)
            y = torch.bmm(matrix, rows.permute(1, 2, 0))
            aim.baddbmm_(y, others.transpose(0, 1))
            power += float(y.square().sum())
            count += len(rows)
    return quantized.mean()[0], aim / count, power / count
