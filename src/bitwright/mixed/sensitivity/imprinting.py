"""Pyramid-pooled weight imprinting: a classifier of features that is not trained, but averaged.

    e^d       = flatten(average pool of F to d x d), of unit length                        (9)
    W^d[c]    = sum_(j in c) conf_j e_j^d / sum_(j in c) conf_j, of unit length            (10)
    S^d       = W^d e^d                                                                    (12)
    H^d       = -sum_k P log P,  P = softmax(tau S^d)                                      (13), (14)
    S         = sum_d w^d S^d / sum_d w^d,  w = H (`printed`) or log(classes) - H (`confidence`)   (15)

A class without an image (or whose confidences are all 0) has no template: it is never the answer, and counts in no
softmax.

Where the source cannot be taken by the letter: (8) needs templates and features of unit length; (12) multiplies
matrices that do not fit, see `pyramid` for the ways out; the sum of (13) runs over classes; with unit features and
tau = 1 all entropies are nearly log(classes), so tau is a setting; and the source says that more entropy is more
certainty, which is the wrong way round: `printed` keeps it, `confidence` turns it.

Source: MSQ, Post-training Mixed-accuracy Quantization Algorithm Based on Pyramid-pooled Weight Imprinting, section
3.2; Qi et al., Low-Shot Learning with Imprinted Weights, CVPR 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.errors import UnsupportedError

Fusion = Literal["each", "fused", "literal"]
Weighting = Literal["printed", "confidence"]
Confidence = Literal["true", "predicted"]


def pyramid(features: Tensor, pools: Sequence[int], fusion: Fusion = "each") -> list[Tensor]:
    """Features of an image at several scales, `[images, length]` of unit length each.

    Args:
        features: maps `[images, channels, height, width]`, or vectors `[images, channels]`, which have one scale.
        pools: sizes d; maps are averaged to d x d.
        fusion: `each`, one feature a scale, `[images, channels d^2]`; `literal`, the same after bilinear upsampling
            to the largest size; `fused`, these side by side as one feature.

    Raises:
        UnsupportedError: another number of dimensions.

    Example:
        >>> maps = torch.tensor([[[[3.0, 3.0], [3.0, 3.0]], [[4.0, 4.0], [4.0, 4.0]]]])
        >>> pyramid(maps, (1, 2))
        [tensor([[0.6000, 0.8000]]), tensor([[0.3000, 0.3000, 0.3000, 0.3000, 0.4000, 0.4000, 0.4000, 0.4000]])]
    """
    if features.ndim == 2:
        return [functional.normalize(features, dim=1)]
    if features.ndim != 4:
        raise UnsupportedError(
            "msq", f"a layer that gives {list(features.shape)}", "maps [n, channels, y, x] or vectors [n, channels]",
            "another sensitivity",
        )  # fmt: skip
    averages = _averages(features, pools)
    pooled = [averages[d] for d in pools]
    if fusion != "each":
        largest = max(pools)
        pooled = [functional.interpolate(p, size=(largest, largest), mode="bilinear") for p in pooled]
    if fusion == "fused":
        pooled = [torch.cat(pooled, dim=1)]
    return [functional.normalize(p.flatten(1), dim=1) for p in pooled]


def _averages(features: Tensor, pools: Sequence[int]) -> dict[int, Tensor]:
    """`functional.adaptive_avg_pool2d` of each size; a size that divides a larger one averages what that one gave.

    Adaptive pooling of whole maps is as slow as the convolutions of a small network.
    """
    found: dict[int, Tensor] = {}
    source = features
    for d in sorted(set(pools), reverse=True):
        (height, width), (rows, columns) = source.shape[2:], features.shape[2:]
        if height % d == width % d == 0:
            source = source if height == width == d else functional.avg_pool2d(source, (height // d, width // d))
            found[d] = source
        elif d % rows == d % columns == 0:
            found[d] = functional.interpolate(features, size=(d, d))
        else:
            found[d] = functional.adaptive_avg_pool2d(features, d)
    return found


def confidences(probabilities: Tensor, labels: Tensor, of: Confidence = "true") -> Tensor:
    """Probability of the `true` class, or of the `predicted` one, of each image, `[images]`.

    Example:
        >>> p = torch.tensor([[0.9, 0.1]])
        >>> confidences(p, torch.tensor([1])), confidences(p, torch.tensor([1]), "predicted")
        (tensor([0.1000]), tensor([0.9000]))
    """
    if of == "predicted":
        return probabilities.amax(1)
    return probabilities.gather(1, labels[:, None])[:, 0]


def class_sums(e: Tensor, confidence: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """`sum conf e` and `sum conf` of each class: `[classes, length]`, `[classes]`. Sums of batches add up.

    Example:
        >>> e = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
        >>> class_sums(e, torch.tensor([0.5, 0.25]), torch.tensor([0, 0]), 2)
        (tensor([[0.5500, 0.4000],
                [0.0000, 0.0000]]), tensor([0.7500, 0.0000]))
    """
    sums = e.new_zeros(classes, e.shape[1]).index_add_(0, labels, e * confidence[:, None])
    return sums, e.new_zeros(classes).index_add_(0, labels, confidence)


def templates(sums: Tensor, totals: Tensor) -> Tensor:
    """The mean feature of each class, of unit length, `[classes, length]`; NaN for a class without an image.

    Example:
        >>> templates(torch.tensor([[0.84, 0.72], [0.0, 0.0]]), torch.tensor([1.2, 0.0]))
        tensor([[0.7593, 0.6508],
                [   nan,    nan]])
    """
    return functional.normalize(sums / totals[:, None], dim=1)


def similarities(e: Tensor, weights: Tensor) -> Tensor:
    """`S = W e`, `[images, classes]`; -inf for a class without a template.

    Example:
        >>> similarities(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [torch.nan, torch.nan]]))
        tensor([[0.6000,   -inf]])
    """
    return (e @ weights.T).masked_fill(weights[:, 0].isnan(), -math.inf)  # templates are NaN as a whole, or nowhere


def entropy(s: Tensor, tau: float = 10.0) -> Tensor:
    """`H = -sum_k P log P`, `P = softmax(tau s)`, of each image, `[images]`.

    Example:
        >>> entropy(torch.tensor([[5.0, 1.0, 0.0], [0.0, 1.0, 0.9]]), tau=1.0)
        tensor([0.1291, 1.0227])
    """
    return torch.special.entr((tau * s).softmax(1)).sum(1)


def fused(scales: Sequence[Tensor], tau: float = 10.0, weighting: Weighting = "printed") -> Tensor:
    """The scores of all scales, weighted by their entropies, `[images, classes]`; evenly where all weights are 0.

    Args:
        scales: `S^d`, `[images, classes]` each; -inf where a class has no template, the same classes in all.
        tau: inverse temperature of the softmax.
        weighting: `printed`, by H, so the least certain scale counts most; `confidence`, by log(classes) - H.

    Example:
        >>> scales = torch.tensor([[5.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.9]])
        >>> fused(scales, tau=1.0), fused(scales, tau=1.0, weighting="confidence")
        (tensor([[0.5604, 1.0000, 0.7991]]), tensor([[4.6367, 1.0000, 0.0654]]))
    """
    stacked = torch.stack(list(scales))
    entropies = torch.stack([entropy(s, tau) for s in scales])
    if weighting == "confidence":
        classes = stacked[0].isfinite().sum(1)
        entropies = (classes.to(entropies.dtype).log() - entropies).clamp(min=0.0)
    totals = entropies.sum(0)
    shares = torch.where(totals > 0, entropies / totals, 1.0 / len(stacked))
    empty = stacked[0].isinf()
    return (shares[:, :, None] * stacked.masked_fill(empty, 0.0)).sum(0).masked_fill(empty, -math.inf)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cut out anew, by up to an eighth of its sides beside its place, and mirrored half the time.

    Args:
        images: `[images, channels, height, width]`; zeros are read beyond the edges.
        generator: draws places and mirrors.

    Example:
        >>> images = torch.rand(4, 3, 16, 16)
        >>> augmented(images, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 16, 16])
    """
    height, width = images.shape[2:]
    beyond = height // 8, width // 8
    padded = functional.pad(images, (beyond[1], beyond[1], beyond[0], beyond[0]))
    found = []
    for image in padded:
        y, x = (int(torch.randint(2 * b + 1, (1,), generator=generator)) for b in beyond)
        cut = image[:, y : y + height, x : x + width]
        found.append(cut.flip(2) if torch.rand(1, generator=generator) < 0.5 else cut)
    return torch.stack(found)
