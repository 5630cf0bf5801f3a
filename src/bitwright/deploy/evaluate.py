"""Accuracy of a file in its runtime, and of one file beside another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from bitwright.data.batches import Batch, Batches
from bitwright.deploy.metric import Agreement, Agreements, Measured, Metric, Scores, joint_sqnr_db
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.runtimes.runtime import Runtime
from bitwright.deploy.simulate import Simulation
from bitwright.errors import InputError
from bitwright.lookup import lookup

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

    def upper(self, confidence: float) -> float:
        """Upper end of the drop's two-sided interval at another confidence, 0 (its middle) to below 1.

        Example:
            >>> d = Drop(reference=0.9, accuracy=0.9, drop=0.0, low=-0.01, high=0.02, images=100)
            >>> d.upper(0), round(d.upper(0.95), 6), d.upper(0.99) > 0.02
            (0.005, 0.02, True)
        """
        middle = (self.low + self.high) / 2
        return middle + (self.high - middle) * NormalDist().inv_cdf(0.5 + confidence / 2) / Z95


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a file does on data.

    Attributes:
        images: images seen.
        top1, top5: fractions; None without labels, or (top5) with fewer than six classes.
        agreement: fraction of images with the same top-1 as the reference; None without one, or where the first output
            has no class scores.
        sqnr_db: signal to quantization noise of all outputs (`joint_sqnr_db`); None without a
            reference, infinite where they are equal.
        drop: accuracy beside the reference's; None without labels or reference.
        simulated: our own program stood for the file, which nothing here executes.
        outputs: every output beside the reference's; empty without one.
        metrics: the scores of the metric; empty without one.
    """

    images: int
    top1: float | None
    top5: float | None
    agreement: float | None
    sqnr_db: float | None
    drop: Drop | None
    simulated: bool = False
    outputs: tuple[Agreement, ...] = ()
    metrics: tuple[Measured, ...] = ()


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
    model: str | Path | bytes | Simulation,
    batches: Batches,
    *,
    against: str | Path | bytes | None = None,
    runtime: str = "onnxruntime",
    threads: int = 0,
    labelled: bool = True,
    metric: Metric | None = None,
    metric_name: str = "metric",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a file over data in its runtime, and count.

    Args:
        model: file or serialized model; or the simulation of one.
        batches: images; labels are class indices.
        against: a reference to run on the same images, usually the float network.
        runtime: row of `RUNTIMES` that runs both.
        threads: threads within an op; 0 for one a core.
        labelled: count right answers, where the data have labels.
        metric: scores each image, `(outputs, labels or None) -> [images]` or `{name: [images]}`.
        metric_name: what errors call it.
        progress: told the number of images of each batch.

    Raises:
        InputError: labels that are no class of the output, an output that is not finite, a reference with other
            outputs, or a metric that does not give a number for each image.
    """
    simulated = isinstance(model, Simulation)
    load = lookup(RUNTIMES, runtime, "runtime").load()
    runner = model if isinstance(model, Simulation) else load(model, threads)
    other = None if against is None else load(against, threads)
    labelled = labelled and batches.labels is not None
    where = "model" if isinstance(model, bytes | Simulation) else str(model)
    tally, agreements = _Tally(labelled=labelled, where=where), Agreements(where)
    scores = None if metric is None else Scores(metric, metric_name)
    for batch in batches:
        own = _valid(runner, batch)
        reference = None if other is None else _valid(other, batch)
        for name, output in own.items():
            if not np.isfinite(output).all():
                raise InputError(where, f"its output {name!r} has NaN or infinity", "finite values")
        tally.add(_first(own), None if reference is None else _first(reference), batch.labels, batch.valid)
        if reference is not None:
            agreements.add(own, reference)
        if scores is not None:
            scores.add(own, reference, batch.labels, batch.valid)
        if progress is not None:
            progress(batch.valid)
    compared = agreements.results()
    first = compared[0] if compared else None
    return replace(
        tally.result(), simulated=simulated, outputs=compared, metrics=() if scores is None else scores.results(),
        agreement=first.agreement if first is not None and first.of == "images" else None,
        sqnr_db=joint_sqnr_db(compared) if compared else None,
    )  # fmt: skip


def _valid(runtime: Runtime | Simulation, batch: Batch) -> dict[str, np.ndarray]:
    """Outputs of a batch without the rows that only fill it up; what has no row for each image stays whole."""
    rows = len(next(iter(batch.inputs.values())))
    found = runtime.run(batch.inputs)
    return {name: y[: batch.valid] if y.ndim and len(y) == rows else y for name, y in found.items()}


def _first(outputs: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(outputs.values()))


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
        self.images = self.top5 = self.classes = 0

    def add(self, scores: np.ndarray, reference: np.ndarray | None, labels: np.ndarray | None, images: int) -> None:
        self.images += images
        if not self.labelled or labels is None:
            return
        if scores.ndim != 2:
            raise InputError(self.where, f"its output has shape {list(scores.shape)}", "[batch, classes] for labels")
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
        if reference is not None and reference.shape == scores.shape:
            self.reference_right.append(rank_of(reference, labels) == 0)

    def result(self) -> Evaluation:
        right = np.concatenate(self.right) if self.right else None
        reference = np.concatenate(self.reference_right) if self.reference_right else None
        return Evaluation(
            images=self.images, agreement=None, sqnr_db=None,
            top1=None if right is None else float(right.mean()),
            top5=None if right is None or self.classes <= 5 else self.top5 / self.images,
            drop=None if right is None or reference is None else paired_drop(reference, right),
        )  # fmt: skip
