"""How far the ranges of a calibration can be trusted: enough images, enough classes, and ranges that repeat.

The range of a site is the width of `[min(lo, 0), max(hi, 0)]` over the batches of a set. The batches are split into
two halves again and again; a site's change is the mean over these splits of `|a - b| / max(a, b)`, with `a` and `b`
its ranges in the two halves. It is what one may expect the range to change when other images of the same kind are
taken, and needs nothing but the extremes of each batch, whatever estimator sets the ranges.

The limits are those that sets of 128 images and more keep to on ResNet-20 (CIFAR-10), MobileNetV2 (Tiny-ImageNet) and
the digits network: no site changes by more than 32 % there. With 16 images of MobileNetV2 one changes by 39 %, with
64 one by 52 %.

Source: split-half reliability, Spearman, Correlation Calculated from Faulty Data, British Journal of Psychology, 1910.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Fewer images are too few.
FEWEST_IMAGES = 100
#: Fewer classes than this share of what so many images could show are too few.
LEAST_COVERAGE = 0.5
#: A site whose range changes by more than this between halves is unstable.
UNSTABLE = 1 / 3
#: Splits that are averaged, and how many of the worst sites are named.
SPLITS, WORST = 32, 3


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How much ranges change between halves of the data; fractions of the wider range.

    Attributes:
        median: over the sites.
        worst: `(site, change)` of the sites that change most, the first most of all.
        unstable: how many sites change by more than `UNSTABLE`.
        sites: how many there are.
    """

    median: float
    worst: tuple[tuple[str, float], ...]
    unstable: int
    sites: int


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a set of calibration images is worth.

    Attributes:
        images: how many there were.
        batches: in how many batches they came.
        classes_seen: classes among their labels; None without labels that are classes of the network.
        classes: classes of the network; None as above.
        stability: of the ranges; None where one batch was all, or nothing was watched.
        warnings: what is weak about the set, with the numbers and the limit; empty where nothing is.
    """

    images: int
    batches: int
    classes_seen: int | None
    classes: int | None
    stability: Stability | None
    warnings: tuple[str, ...]


def audit(
    extremes: Mapping[str, Tensor], images: int, *, labels: np.ndarray | None = None, classes: int | None = None
) -> Audit:
    """Measure a calibration set.

    Args:
        extremes: `{site: smallest and largest value in each batch}`, `[batches, 2]`, of as many batches each.
        images: how many images passed.
        labels: their classes, `[images]`.
        classes: how many classes the network has; both or neither.

    Example:
        >>> found = audit({"relu": torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 3.0], [0.0, 1.0]])}, images=16)
        >>> found.warnings[0]
        '16 calibration images, fewer than 100: ranges may be those of these images alone'
        >>> found.stability.worst[0][0], round(found.stability.worst[0][1], 2)
        ('relu', 0.67)
    """
    batches = max((len(found) for found in extremes.values()), default=0)
    stability = _stability(extremes) if batches > 1 else None
    labelled = labels is not None and classes is not None
    seen = len(np.unique(labels)) if labelled and labels is not None else None
    warnings = []
    if images < FEWEST_IMAGES:
        warnings.append(
            f"{images} calibration images, fewer than {FEWEST_IMAGES}: ranges may be those of these images alone"
        )
    if seen is not None and classes is not None and seen < LEAST_COVERAGE * min(classes, images):
        warnings.append(
            f"the calibration images are of {seen} of {classes} classes, fewer than "
            f"{100 * LEAST_COVERAGE:.0f} % of what {images} images could show"
        )
    if stability is not None and stability.unstable:
        worst = ", ".join(f"{site} by {100 * change:.0f} %" for site, change in stability.worst if change > UNSTABLE)
        warnings.append(
            f"the ranges of {stability.unstable} of {stability.sites} sites change by more than "
            f"{100 * UNSTABLE:.0f} % between halves of the calibration images: {worst}; take more of them, or clip "
            "outliers (--step calibrate.activations=percentile)"
        )
    return Audit(
        images=images, batches=batches, classes_seen=seen, classes=classes if labelled else None, stability=stability,
        warnings=tuple(warnings),
    )  # fmt: skip


def _stability(extremes: Mapping[str, Tensor]) -> Stability:
    changes = dict(zip(extremes, split_changes(torch.stack(list(extremes.values()))).tolist(), strict=True))
    ranked = sorted(changes.items(), key=lambda item: (-item[1], item[0]))
    return Stability(
        median=float(np.median(list(changes.values()))), worst=tuple(ranked[:WORST]),
        unstable=sum(change > UNSTABLE for change in changes.values()), sites=len(changes),
    )  # fmt: skip


def split_changes(extremes: Tensor, splits: int = SPLITS) -> Tensor:
    """Mean relative change of the range of each site between random halves of the batches, `[sites]`.

    Args:
        extremes: smallest and largest value of each batch, `[sites, batches, 2]`, two batches or more.
        splits: how many halvings; the same ones for each site.

    Example:
        >>> split_changes(torch.tensor([[[0.0, 2.0], [-1.0, 1.0]], [[0.0, 4.0], [0.0, 1.0]]]))
        tensor([0.0000, 0.7500])
    """
    sites, batches, _ = extremes.shape
    generator = torch.Generator().manual_seed(0)
    low, high = extremes[..., 0].clamp(max=0), extremes[..., 1].clamp(min=0)  # zero belongs to every range
    total = torch.zeros(sites)
    for _ in range(splits):
        order = torch.randperm(batches, generator=generator)
        halves = order[: batches // 2], order[batches // 2 :]
        widths = [high[:, half].amax(dim=1) - low[:, half].amin(dim=1) for half in halves]
        wider = torch.maximum(*widths)
        total += torch.where(wider > 0, (widths[0] - widths[1]).abs() / wider, torch.zeros_like(wider))
    return total / splits
