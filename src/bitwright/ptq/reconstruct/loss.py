"""Losses of a unit: how far what it gives is from what the float network gives there.

    error:   mean over images and positions of sum over channels |z~ - z|^p
    fisher:  the same of |z~ - z|^2 (|g| + damping)^2,   g = dKL(softmax(y) || softmax(y~)) / dz~
    prediction:  KL(softmax(y) || softmax(y~)), y the network's first output, y~ in float after the unit
    network:  prediction, and w times the mean over blocks of |a~ - a|^2 / |a|^2, a what a block in the network gives
    error and prediction:  error + w KL(softmax(y / T) || softmax(y~ / T)), y~ from the quantized network's values

The sum over channels, not a mean, sets the balance with the regulariser, which is a sum over weights.

Source: Li et al., BRECQ, ICLR 2021, section 3.2. Choices: in `fisher` g is scaled to a root mean square of 1 (only
ratios matter beside the regulariser) and the damping is 0, as in the paper; the authors' code has a damping of 1 on
tiny g, which is the plain error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.graph.blocks import find_blocks
from bitwright.lookup import Row
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.ptq.reconstruct.work import Work

#: Loss of the images of `index`, a scalar with gradients.
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class WholeLoss:
    """A loss of all images at once: `step()` gives it, and leaves the gradients where the optimiser finds them."""

    step: Callable[[], float]


LOSSES: dict[str, Row] = {
    "error": Row("bitwright.ptq.reconstruct.loss:output_error", "the error of the unit's output"),
    "moments": Row("bitwright.ptq.reconstruct.moments_error:moments_error", "a layer's, of all images at once"),
    "cheapest": Row(
        "bitwright.ptq.reconstruct.moments_error:cheapest_error", "moments or error, whichever costs less"
    ),
    "fisher": Row("bitwright.ptq.reconstruct.loss:fisher_error", "weighted by what it does to the network's output"),
    "error and prediction": Row(
        "bitwright.ptq.reconstruct.loss:error_and_prediction", "both: of the unit's output and of the network's"
    ),
    "network": Row(
        "bitwright.ptq.reconstruct.loss:network_error", "divergence of the network's output, and errors inside it"
    ),
    "prediction": Row("bitwright.ptq.reconstruct.loss:prediction_error", "divergence of the network's output"),
}


def summed_over_channels(error: Tensor) -> Tensor:
    """Mean over images and positions of the sum over channels; channels are axis 1, or the last of three.

    Example:
        >>> float(summed_over_channels(torch.ones(2, 3, 4, 4)))
        3.0
    """
    return error.sum() / positions(error)


def positions(values: Tensor) -> float:
    """Images times positions: elements of one channel."""
    channels = values.shape[1] if values.ndim in (2, 4, 5) else values.shape[-1]
    return values.numel() / channels


def output_error(work: Work) -> Loss:
    """`mean sum |z~ - z|^p`."""
    power = work.method.power

    def loss(index: Tensor) -> Tensor:
        given, target = work.output(index), work.target[index]
        if power == 2:
            return F.mse_loss(given, target, reduction="sum") / positions(given)
        return summed_over_channels((given - target).abs().pow(power))

    return loss


def fisher_error(work: Work) -> Loss:
    """`mean sum (z~ - z)^2 g^2`, g from the network that is quantized up to and including this unit."""
    weights = fisher_weights(work)

    def loss(index: Tensor) -> Tensor:
        return summed_over_channels((work.output(index) - work.target[index]).square() * weights[index])

    return loss


def prediction_error(work: Work) -> Loss:
    """`KL(softmax(y) || softmax(y~))` of the network's first output, in float after the unit."""

    def loss(index: Tensor) -> Tensor:
        return prediction_difference(work.logits[index], work.rest(index, work.output(index)))

    return loss


def error_and_prediction(work: Work) -> Loss:
    """`error + w KL(softmax(y / T) || softmax(y~ / T))` (PD-Quant).

    The error is that of the inputs as the method has them; y~ comes from those of the quantized network alone, through
    the unit, and in float after it.
    """
    error, method = output_error(work), work.method

    def loss(index: Tensor) -> Tensor:
        first = error(index)
        for rounding in work.weights.values():  # the regulariser, which enters by its gradient, counts once
            rounding.beta = None
        logits = work.rest(index, work.output(index, "quantized"))
        difference = prediction_difference(work.logits[index], logits, method.temperature)
        return first + method.prediction_weight * difference

    return loss


def network_error(work: Work) -> Loss:
    """`prediction + w mean over blocks of |a~ - a|^2 / |a|^2`, for the network as one unit (NWQ).

    Errors are relative, so that a block counts as much as another, whatever the size of its values.
    """
    inside = [b.output.name or "" for b in find_blocks(work.state.model) if b.output.name != work.name]
    inputs, outputs = work.program.inputs, [*inside, work.name]
    expected = float_program(work.state, inputs=inputs, outputs=outputs)
    given = simulated_program(work.state, inputs=inputs, outputs=outputs, quantizers=work.quantizers)
    weight = work.method.activation_weight

    def loss(index: Tensor) -> Tensor:
        x = work.inputs(index)
        with torch.no_grad():
            *floats, y = expected.module(*work.inputs(index, "float"))
        *values, logits = given.module(*x)
        errors = [
            (a - b).square().sum() / b.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
            for a, b in zip(values, floats, strict=True)
        ]
        difference = prediction_difference(y, logits, work.method.temperature)
        return difference + weight * sum(errors, torch.zeros(())) / max(1, len(errors))

    return loss


def fisher_weights(work: Work) -> Tensor:
    """`g^2` of every image, over its mean: gradients of the network's divergence from float, in float after the unit.

    Where nothing comes after the unit, its output is the network's own, and all elements count the same.
    """
    shape = (len(work.target), *work.target.shape)
    if not work.rest_inputs:
        return torch.ones(1).expand(shape)
    found = torch.empty(shape)
    for index in torch.arange(len(work.target)).split(work.method.batch):
        with torch.no_grad():
            z = work.rounded_output(index)
        z.requires_grad_(True)
        divergence = prediction_difference(work.logits[index], work.rest(index, z))
        (gradient,) = torch.autograd.grad(divergence, z)
        found[index] = gradient.square()
    return found / found.mean().clamp(min=torch.finfo(torch.float32).tiny)


def prediction_difference(expected: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`KL(softmax(expected / T) || softmax(logits / T))`, mean over images; classes are the last axis.

    Example:
        >>> y = torch.tensor([[1.0, 2.0]])
        >>> float(prediction_difference(y, y))
        0.0
    """
    log_p, log_q = F.log_softmax(expected / temperature, -1), F.log_softmax(logits / temperature, -1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / (expected.numel() / expected.shape[-1])
