"""Diagonal empirical Fisher information: how fast the loss of single images changes, squared, times squared noise.

    loss_g(k) = 1/2 sum_w F_w (Q_k(w) - w)^2  +  1/2 mean_i sum_a g_ia^2 (Q_k(a_i) - a_i)^2

    F_w = mean_i g_iw^2,    g_iw = d loss_i / dw,    g_ia = d loss_i / da,    loss_i = cross-entropy of image i

The sums go over the group's weights w, and, where activations vary, over the elements a of the activations that move
with it. Gradients are those of each image, not of a batch's mean. Weights are differentiated around the float network.

FIT keeps one trace for a tensor and multiplies it by the mean squared noise; this is its sum element by element, and
for activations image by image, with the half of the second-order term of the loss for both.

Source: Zandonati et al., FIT: A Metric for Model Sensitivity, 2022, section 3; the diagonal as in Li et al., BRECQ:
Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021, eq. 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bitwright.data.batches import Batch, Batches
from bitwright.errors import InputError
from bitwright.execute.program import FakeQuantize
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library
from bitwright.mixed.problem import Additive
from bitwright.mixed.sensitivity.gradients import Differentiable, cross_entropy, gradients, moved, tensors
from bitwright.mixed.space import Space
from bitwright.pipeline import Progress

TARGETS = ("labels", "predicted")


def half_squares(squares: Tensor, moved: Tensor) -> float:
    """`1/2 sum_w F_w d_w^2`, of squared gradients and what each element moved by.

    Example:
        >>> half_squares(torch.tensor([1.0, 4.0]), torch.tensor([2.0, -0.5]))
        2.5
    """
    return 0.5 * float((squares * moved.square()).double().sum())


@dataclass(frozen=True, kw_only=True)
class Fisher:
    """Squared gradients times squared noise.

    Args:
        target: `labels`, or `predicted`: the class that the float network scores highest, which needs no labels.

    Raises:
        InputError: another target.

    Example:
        >>> Fisher().needs_labels, Fisher(target="predicted").needs_labels
        (True, False)
    """

    target: str = "labels"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError("fisher.target", f"is {self.target!r}", " or ".join(TARGETS))

    @property
    def needs_labels(self) -> bool:
        """Whether labels are needed."""
        return self.target == "labels"

    def passes(self, space: Space) -> float:
        """Forward and back, image by image; a network of a fixed batch goes back through all of it for each image."""
        return 3.0

    def __call__(
        self, library: Library, batches: Batches, kept: Kept | None = None, images_done: Progress | None = None
    ) -> Additive:
        """The loss of every choice of every group.

        Raises:
            InputError: labels are needed and missing, or the network gives no scores of classes.
            UnsupportedError: an op without a derivative.
        """
        if self.needs_labels:
            batches.require_labels()
        kept = kept or Kept(None)
        network = Differentiable(library, activations=True)
        noise = [moved(library, group) for group in library.space.groups]
        sums = np.zeros(sum(len(group.choices) for group in library.space.groups))
        for number, batch in enumerate(batches):
            measured = partial(self._batch, library, network, noise, batch, batches.fixed)
            sums += np.array(kept.once(f"batch {number}", measured))
            if images_done is not None:
                images_done(batch.valid)
        means = iter((sums / len(batches)).tolist())
        return Additive(values=tuple(tuple(next(means) for _ in group.choices) for group in library.space.groups))

    def _batch(
        self, library: Library, network: Differentiable, noise: Sequence[Mapping[str, Sequence[Tensor]]],
        batch: Batch, fixed: bool,
    ) -> list[float]:  # fmt: skip
        """Sums over a batch's images, of each choice of each group."""
        space = library.space
        squares = {site: torch.zeros_like(weight) for site, weight in network.weights.items()}
        roots = [[(g, root) for root in space.roots[group.name]] for g, group in enumerate(space.groups)]
        read = [[0.0] * len(group.choices) for group in space.groups]
        for loss in self._losses(network, batch, fixed):
            seen = {root: list(tap.seen) for root, tap in network.taps.items()}
            places = [x for passed in seen.values() for x in passed]
            found = gradients(loss, [*network.weights.values(), *places], keep=fixed)
            for site, gradient in zip(squares, found, strict=False):
                squares[site] += gradient.square()
            slopes = iter(found[len(squares) :])
            by_root = {root: [(x, next(slopes).square()) for x in passed] for root, passed in seen.items()}
            for g, root in (pair for pairs in roots for pair in pairs):
                for k, width in enumerate(space.groups[g].choices):
                    quantizer = FakeQuantize(library.activations[root, width.activation or 0])
                    read[g][k] += _noise(quantizer, by_root[root])
        sums = []
        for g, group in enumerate(space.groups):
            for k in range(len(group.choices)):
                weights = sum(half_squares(squares[site], choices[k]) for site, choices in noise[g].items())
                sums.append(weights + read[g][k])
        return sums

    def _losses(self, network: Differentiable, batch: Batch, fixed: bool) -> Iterator[Tensor]:
        """The loss of one image after the other; what the taps have seen is of the same run.

        An image runs alone: kernels then give its own gradient, with nothing to be taken apart. Where the network has
        a fixed batch, the batch runs once and is gone back through for each of its images.
        """
        inputs, labels = tensors(batch)
        whole = network.scores(inputs) if fixed else None
        for i in range(batch.valid):
            if whole is None:
                y = network.scores({name: x[i : i + 1] for name, x in inputs.items()})
            else:
                y = whole[i : i + 1]
            known = labels[i : i + 1] if self.needs_labels and labels is not None else y.detach().argmax(1)
            yield cross_entropy(y, known)


@torch.no_grad()
def _noise(quantizer: FakeQuantize, places: Sequence[tuple[Tensor, Tensor]]) -> float:
    return sum(half_squares(slopes, quantizer(x) - x) for x, slopes in places)
