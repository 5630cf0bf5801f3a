"""Accuracy of a file in its runtime, and of one file beside another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitwright.data.batches import Batches
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime
from bitwright.errors import InputError

#: 97.5 % point of the standard normal.
Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy of two networks on the same images, and the difference with its 95 % interval.

    Fractions. `drop = reference - accuracy`; positive means worse than the reference.
    """

    reference: float
    accuracy: float
    drop: float
    low: float
    high: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a file does on data.

    Attributes:
        images: images seen.
        top1, top5: fractions; None without labels, or (top5) with fewer than six classes.
        agreement: fraction of images with the same top-1 as the reference; None without one, or where outputs are no
            class scores.
        sqnr_db: signal to quantization noise of the output, `10 log10(sum r^2 / sum (r - y)^2)`; None without a
            reference, infinite where they are equal.
        drop: accuracy beside the reference's; None without labels or reference.
    """

    images: int
    top1: float | None
    top5: float | None
    agreement: float | None
    sqnr_db: float | None
    drop: Drop | None


def paired_drop(reference_right: np.ndarray, right: np.ndarray) -> Drop:
    """Difference of two accuracies on the same images, with its 95 % interval.

    With `b` images that only the reference gets right and `c` that only the other does, out of `n`, half added to
    each cell of the table: `d = (b - c) / (n + 2)`, `se = sqrt(b + c - (b - c)^2 / (n + 2)) / (n + 2)`.

    Source: Agresti and Min, Simple improved confidence intervals for comparing matched proportions, Statistics in
    Medicine, 2005.

    Example:
        >>> d = paired_drop(np.array([1, 1, 0, 1], bool), np.array([1, 0, 0, 1], bool))
        >>> d.drop, d.low < 0.25 < d.high
        (0.25, True)
    """
    n = len(right)
    b = int((reference_right & ~right).sum())
    c = int((~reference_right & right).sum())
    b_half, c_half, total = b + 0.5, c + 0.5, n + 2
    centre = (b_half - c_half) / total
    spread = Z95 * math.sqrt(b_half + c_half - (b_half - c_half) ** 2 / total) / total
    return Drop(
        reference=float(reference_right.mean()), accuracy=float(right.mean()), drop=(b - c) / n,
        low=centre - spread, high=centre + spread, images=n,
    )  # fmt: skip


def evaluate(
    model: str | Path | bytes,
    batches: Batches,
    *,
    against: str | Path | bytes | None = None,
    threads: int = 0,
    labelled: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a file over data in its runtime, and count.

    Args:
        model: file or serialized model.
        batches: images; labels are class indices.
        against: a reference to run on the same images, usually the float network.
        threads: threads within an op; 0 for one a core.
        labelled: count right answers, where the data have labels.
        progress: told the number of images of each batch.

    Raises:
        InputError: labels that are no class of the output, or an output that is not finite.
    """
    runtime = OnnxRuntime(model, threads)
    other = None if against is None else OnnxRuntime(against, threads)
    labelled = labelled and batches.labels is not None
    tally = _Tally(labelled=labelled, where="model" if isinstance(model, bytes) else str(model))
    for batch in batches:
        valid = batch.valid
        scores = _first(runtime, batch.inputs)[:valid]
        reference = None if other is None else _first(other, batch.inputs)[:valid]
        tally.add(scores, reference, batch.labels)
        if progress is not None:
            progress(valid)
    return tally.result()


def _first(runtime: OnnxRuntime, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return runtime.run(inputs)[runtime.outputs[0]]


def rank_of(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before each label: those that score more, and among equals the earlier ones.

    Example:
        >>> rank_of(np.array([[0.1, 0.5, 0.5]]), np.array([2])).tolist()
        [1]
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1])[None] < labels[:, None]
    rank: np.ndarray = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return rank


class _Tally:
    def __init__(self, *, labelled: bool, where: str) -> None:
        self.labelled, self.where = labelled, where
        self.right: list[np.ndarray] = []
        self.reference_right: list[np.ndarray] = []
        self.images = self.top5 = self.same = self.classes = 0
        self.signal = self.noise = 0.0
        self.compared = self.classifies = False

    def add(self, scores: np.ndarray, reference: np.ndarray | None, labels: np.ndarray | None) -> None:
        if not np.isfinite(scores).all():
            raise InputError(self.where, "its output has NaN or infinity", "finite values")
        self.images += len(scores)
        self.classifies = classifies = scores.ndim == 2
        if self.labelled and labels is not None:
            if not classifies:
                raise InputError(
                    self.where, f"its output has shape {list(scores.shape)}", "[batch, classes] for labels"
                )
            self.classes = scores.shape[1]
            if len(labels) != len(scores):
                found = f"its output has {len(scores)} rows for {len(labels)} images"
                raise InputError(self.where, found, "[batch, classes] for labels")
            if labels.ndim != 1 or labels.min() < 0 or labels.max() >= self.classes:
                found = f"labels from {labels.min()} to {labels.max()}"
                raise InputError("labels", found, f"classes 0 to {self.classes - 1} of {self.where}")
            rank = rank_of(scores, labels)
            self.right.append(rank == 0)
            self.top5 += int((rank < 5).sum())
        if reference is None:
            return
        if reference.shape != scores.shape:
            raise InputError(
                self.where, f"its output has shape {list(scores.shape)}", f"the reference's {list(reference.shape)}"
            )
        self.compared = True
        self.signal += float((reference.astype(np.float64) ** 2).sum())
        self.noise += float(((reference.astype(np.float64) - scores) ** 2).sum())
        if classifies:
            self.same += int((scores.argmax(1) == reference.argmax(1)).sum())
            if self.labelled and labels is not None:
                self.reference_right.append(rank_of(reference, labels) == 0)

    def result(self) -> Evaluation:
        right = np.concatenate(self.right) if self.right else None
        reference = np.concatenate(self.reference_right) if self.reference_right else None
        return Evaluation(
            images=self.images,
            top1=None if right is None else float(right.mean()),
            top5=None if right is None or self.classes <= 5 else self.top5 / self.images,
            agreement=self.same / self.images if self.compared and self.classifies else None,
            sqnr_db=self._sqnr() if self.compared else None,
            drop=None if right is None or reference is None else paired_drop(reference, right),
        )

    def _sqnr(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf
