"""Distribution correction: move a unit's float inputs until its batch norms see what they saw in training.

    min_x'  sum over batch norms (1/B) sum over images and channels ((mean - mu)^2 + (std - sigma)^2)
            + closeness * rec(x', x)

mean and std are those of one image's channel over its positions, mu and sigma the batch norm's running statistics, rec
the error summed over channels. Few calibration images fit their own distribution; the statistics are the training
set's.

Batch norm is folded here: the layer gives `y = k (u - mean_bn) + beta` with `k = gamma / sigma`, where u is what the
batch norm read. So u is had back, `mean(u) - mu = (mean(y) - beta) / k` and `std(u) = std(y) / |k|`, and distances are
those of the unfolded network. Channels with `|k|` near 0, which give a constant, say nothing of u and are left out.

Source: Liu et al., PD-Quant, CVPR 2023, section 3.4. Choice: std is biased, `sqrt(var + 1e-6)`: the unbiased one is
no number on maps of one position, where std is then a constant and only means count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.graph.blocks import Block
from bitwright.pipeline import BatchNorm, State
from bitwright.ptq.programs import float_program
from bitwright.ptq.reconstruct.loss import summed_over_channels
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.rows import Budget, Rows

#: What a unit reads to its distance from the statistics, and what it gives.
Distance = Callable[[list[Tensor]], tuple[Tensor, Tensor]]
#: Slopes below this give a constant.
LEAST_SLOPE = 1e-4
#: The rate falls by a factor of 10 where the loss has not fallen for so many steps, down to the least.
PATIENCE, LEAST_RATE = 100, 1e-5


def distance_from_statistics(y: Tensor, bn: BatchNorm) -> Tensor:
    """Squared distance of an output's means and spreads from a folded batch norm's, in the units of its input.

    Args:
        y: what the layer with the folded batch norm gives, `[images, channels, *]`.
        bn: the statistics.

    Returns:
        Sum over channels, mean over images; a scalar.

    Example:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> bn = BatchNorm(gamma=2 * one, beta=one, mean=zero, var=one, eps=0.0)
        >>> y = torch.tensor([[[3.0, -1.0]]])  # mean 1 is beta, spread 2 is gamma
        >>> round(float(distance_from_statistics(y, bn)), 5), round(float(distance_from_statistics(y + 4, bn)), 5)
        (0.0, 4.0)
    """
    sigma = (bn.var + bn.eps).sqrt()
    slope = bn.gamma / sigma
    speaks = slope.abs() > LEAST_SLOPE
    k = torch.where(speaks, slope, 1.0)
    flat = y.flatten(2) if y.ndim > 2 else y.unsqueeze(2)
    shift = (flat.mean(2) - bn.beta) / k
    spread = (flat.var(2, correction=0) / k.square() + 1e-6).sqrt() - sigma
    return ((shift.square() + spread.square()) * speaks).sum() / len(y)


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A unit's float inputs and output after the correction, and how far they were from the statistics.

    Attributes:
        floats: values that the unit reads.
        output: what it gives for them.
        before, after: distance from the statistics, a mean over batches.
    """

    floats: Mapping[str, Rows]
    output: Rows
    before: float
    after: float


def corrected(
    state: State, unit: Block, floats: Mapping[str, Rows], method: Method, batches: list[Tensor], budget: Budget
) -> Corrected | None:
    """Move the unit's entrance for every image; None where it holds no batch norm.

    Args:
        state: the network; its float form counts.
        unit: whose first input moves.
        floats: values of the float network.
        method: steps, rate and closeness.
        batches: numbers of the images that move together; of each, as many as are new count.
        budget: of the memory of the new values.
    """
    norms = [
        (region.op.outputs[0].name or "", state.batchnorm[region.weight.name or ""])
        for region in unit.regions if region.weight is not None and region.weight.name in state.batchnorm
    ]  # fmt: skip
    names = [v.name or "" for v in unit.inputs]
    if not norms or not names:
        return None
    outputs = [*(name for name, _ in norms), unit.output.name or ""]
    program = float_program(state, inputs=names, outputs=outputs)

    def distance(given: list[Tensor]) -> tuple[Tensor, Tensor]:
        *seen, z = program.module(*given)
        parts = [distance_from_statistics(y, bn) for y, (_, bn) in zip(seen, norms, strict=True)]
        return torch.stack(parts).sum(), z

    count = len(floats[names[0]])
    moved = Rows(count, floats[names[0]].shape, budget, dtype=floats[names[0]].dtype)
    target = floats[outputs[-1]]
    output = Rows(count, target.shape, budget, dtype=target.dtype)
    told: list[tuple[float, float]] = []
    at = 0
    for index in batches:
        given = [floats[name][index] for name in names]
        first, last, x = _moved(distance, given, method)
        with torch.no_grad():
            _, z = distance([x, *given[1:]])
        new = min(len(index), count - at)
        moved.write(at, x[:new])
        output.write(at, z[:new])
        told.append((first, last))
        at += new
    before, after = (sum(values) / len(told) for values in zip(*told, strict=True))
    return Corrected(floats={**floats, names[0]: moved}, output=output, before=before, after=after)


def _moved(distance: Distance, given: list[Tensor], method: Method) -> tuple[float, float, Tensor]:
    """Distance before and after, and the entrance moved."""
    start = given[0]
    x = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([x], lr=method.correction_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=PATIENCE, min_lr=LEAST_RATE)
    first = last = 0.0
    with torch.enable_grad():
        for i in range(method.correction):
            optimiser.zero_grad(set_to_none=True)
            far, _ = distance([x, *given[1:]])
            loss = far + method.closeness * summed_over_channels((x - start).square())
            loss.backward()
            optimiser.step()
            schedule.step(float(loss.detach()))
            last = float(far.detach())
            first = last if i == 0 else first
    return first, last, x.detach()
