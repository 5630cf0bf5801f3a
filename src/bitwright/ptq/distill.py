"""Distilled data: images made from the statistics of batch norm, to calibrate with where there are no others.

Noise `x ~ N(0, 1)` is optimised until what each batch norm reads has the mean and spread that it saw in training. With
`mu_l, s_l` of each image and channel over space (`s = sqrt(var + 1e-6)`, var unbiased), summed over all batch norms l:

    loss = sum_l (1/B) sum_{images, channels} (mean_l - mu_l)^2 + (std_l - s_l)^2

and the same for the images themselves, against mean 0 and deviation 1. Of maps of fewer than 16 elements the
statistics are those of the whole batch. What a batch norm reads is watched at the batch norm itself, so that it does
not matter how layers are named or ordered.

Source: Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, CVPR 2020, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.program import Program, build
from bitwright.graph.overlay import initializer

#: Images that are optimised together, where the network does not fix their number.
BATCH = 32
#: Maps of fewer elements have too few for a spread of their own.
SMALL_MAP = 16
#: Added to variances.
EPSILON = 1e-6
PATIENCE, LEAST_RATE = 100, 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Distilled:
    """Images, and how well they fit.

    Attributes:
        arrays: `{input: [images, ...]}`, float32.
        losses: before each iteration and after the last, the mean over the batches that were optimised.
    """

    arrays: dict[str, np.ndarray]
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Make images from a float network with batch norm.

    Args:
        images: how many.
        iterations: steps of Adam.
        lr: its first learning rate, cut to a tenth after 100 iterations without progress.
        seed: of the noise that they start from.
    """

    images: int = 32
    iterations: int = 500
    lr: float = 0.5
    seed: int = 0

    def __call__(self, model: ir.Model, progress: Callable[[int], None] | None = None) -> Distilled:
        """Images for every input of `model`, a normalised network whose batch norm is not folded.

        Args:
            model: the network.
            progress: told the images of each batch that is done.

        Raises:
            InputError: a setting out of range, no batch norm, or an input that holds no real numbers.
        """
        if self.images < 1 or self.iterations < 1 or not self.lr > 0:
            found = f"images={self.images}, iterations={self.iterations}, lr={self.lr}"
            raise InputError("distill", found, "1 or more images and iterations, a rate above 0")
        watched = batchnorm_inputs(model)
        if not watched:
            raise InputError(
                "--data distilled", "the network has no batch norm to make images from", "a network with batch norm",
                "give images with --data, or the file as it was before its batch norm was folded",
            )  # fmt: skip
        program = build(model, {}, outputs=[name for name, _, _ in watched])
        shapes, fixed = _input_shapes(model)
        generator = torch.Generator().manual_seed(self.seed)
        made: list[list[Tensor]] = []
        losses: list[list[float]] = []
        for rows in _batches(self.images, fixed):
            start = [torch.randn(fixed or rows, *shape, generator=generator) for shape in shapes]
            images, curve = self._optimised(program, watched, start)
            made.append([x[:rows] for x in images])
            losses.append(curve)
            if progress is not None:
                progress(rows)
        joined = [torch.cat(parts).numpy() for parts in zip(*made, strict=True)]
        arrays = dict(zip(program.inputs, joined, strict=True))
        return Distilled(arrays=arrays, losses=tuple(np.mean(losses, axis=0).tolist()))

    def _optimised(
        self, program: Program, watched: Sequence[tuple[str, Tensor, Tensor]], start: list[Tensor]
    ) -> tuple[list[Tensor], list[float]]:
        images = [x.requires_grad_() for x in start]
        optimiser = torch.optim.Adam(images, lr=self.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=PATIENCE, min_lr=LEAST_RATE)
        losses: list[float] = []
        for _ in range(self.iterations):
            optimiser.zero_grad()
            loss = batchnorm_loss(program, watched, images)
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                raise InputError(
                    "--data distilled", f"the loss is {losses[-1]} after {len(losses) - 1} iterations",
                    "a finite loss", "make distill.lr smaller, and check the network's weights",
                )  # fmt: skip
            loss.backward()
            optimiser.step()
            schedule.step(losses[-1])
        with torch.no_grad():
            losses.append(float(batchnorm_loss(program, watched, images)))
        return [x.detach() for x in images], losses


def batchnorm_inputs(model: ir.Model) -> list[tuple[str, Tensor, Tensor]]:
    """`(value, mean, deviation)` of what each batch norm with constant statistics reads."""
    found = []
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain or node.inputs[0] is None:
            continue
        if node.attributes.get_int("training_mode", 0) or not all(v and v.is_initializer() for v in node.inputs[3:5]):
            continue
        mean, var = (initializer(model, {}, v.name or "") for v in node.inputs[3:5] if v is not None)
        found.append((node.inputs[0].name or "", mean, (var + EPSILON).sqrt()))
    return found


def batchnorm_loss(
    program: Program, watched: Sequence[tuple[str, Tensor, Tensor]], images: Sequence[Tensor]
) -> Tensor:
    """How far the statistics of what batch norms read are from those of training.

    Args:
        program: from the images to what each batch norm reads.
        watched: of `batchnorm_inputs`.
        images: one batch for each input.
    """
    values = program.module(*images)
    terms = [mismatch(x, mean, deviation) for x, (_, mean, deviation) in zip(values, watched, strict=True)]
    terms += [mismatch(x, torch.zeros(1), torch.ones(1)) for x in images if x.ndim > 2]
    return torch.stack(terms).sum()


def mismatch(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """`(1/B) sum (mean - mu)^2 + (deviation - s)^2` over images and channels.

    Args:
        x: `[B, channels, *]`.
        mean: `[channels]`, or `[1]`.
        deviation: the same shape.

    Example:
        >>> x = torch.tensor([[[-1.0, 1.0] * 8, [1.0, 3.0] * 8]])
        >>> round(float(mismatch(x, torch.tensor([0.0, 1.0]), x.std(2).flatten())), 4)  # the second mean is 2
        1.0
    """
    x = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    if x.shape[2] < SMALL_MAP:
        x = x.transpose(0, 1).flatten(1).unsqueeze(0)
    found = (x.var(2, correction=1 if x.shape[2] > 1 else 0) + EPSILON).sqrt()
    distance = (mean - x.mean(2)).square() + (deviation - found).square()
    return distance.sum() / x.shape[0]


def _input_shapes(model: ir.Model) -> tuple[list[list[int]], int]:
    """Sizes of one image of every input, and the batch that the network fixes, 0 for any."""
    shapes = []
    fixed = 0
    for value in model.graph.inputs:
        if value.dtype is None or not value.dtype.is_floating_point():
            raise InputError(
                "--data distilled", f"input {value.name!r} holds no real numbers", "images", "give data of your own"
            )
        batch, *sizes = value.shape if value.shape is not None else [None]
        shapes.append([d for d in sizes if isinstance(d, int)])
        fixed = batch if isinstance(batch, int) else fixed
    return shapes, fixed


def _batches(images: int, fixed: int) -> list[int]:
    """Sizes of batches, as equal as can be, so that none is left with too few images for statistics.

    Example:
        >>> _batches(40, 0), _batches(5, 2)
        ([20, 20], [2, 2, 1])
    """
    if fixed:
        return [min(fixed, images - i) for i in range(0, images, fixed)]
    count = -(-images // BATCH)
    return [images // count + (i < images % count) for i in range(count)]
