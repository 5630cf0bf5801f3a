"""What is measured of outputs beyond top-1: how they agree with a reference, and a user's own score of each image.

A metric is a callable `(outputs, labels) -> scores`: `outputs` is `{name: array}` of one batch, `labels` its labels or
None; scores are an array `[images]`, or `{name: array}` of several. Their mean has the interval of Student's t,
`m -+ t(0.975, n - 1) s / sqrt(n)`; beside a reference the same of the differences on the same images.

Source: Student, The Probable Error of a Mean, Biometrika, 1908.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from bitwright.errors import BitwrightError, InputError, first_line

Metric = Callable[[dict[str, np.ndarray], np.ndarray | None], Any]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over images with its 95 % interval, which a single image has not."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One score of a metric.

    Attributes:
        name: of the score.
        images: images that were scored.
        score: of the file.
        reference: of the reference; None without one.
        difference: score minus the reference's, image by image; None without a reference.
    """

    name: str
    images: int
    score: Mean
    reference: Mean | None
    difference: Mean | None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One output beside the reference's.

    Attributes:
        output: its name.
        sqnr_db: signal to quantization noise, `10 log10(sum r^2 / sum (r - y)^2)`; infinite where they are equal.
        agreement: share that is the same; None where the output has no such parts.
        of: what was counted: `images` by their largest class (`[batch, classes]`), `positions` by their largest
            channel (`[batch, channels, height, width]`), or `elements` of integers.
    """

    output: str
    sqnr_db: float
    agreement: float | None
    of: str | None


def mean_of(scores: np.ndarray) -> Mean:
    """Mean and interval of `[n]` scores.

    Example:
        >>> found = mean_of(np.array([1.0, 2.0, 3.0, 4.0]))
        >>> found.mean, round(found.low, 3), round(found.high, 3)
        (2.5, 0.446, 4.554)
    """
    n = len(scores)
    mean = float(scores.mean())
    if n < 2:
        return Mean(mean=mean, low=None, high=None)
    spread = float(stdtrit(n - 1, 0.975)) * float(scores.std(ddof=1)) / math.sqrt(n)
    return Mean(mean=mean, low=mean - spread, high=mean + spread)


class Scores:
    """The scores that a metric gives, batch after batch."""

    def __init__(self, metric: Metric, where: str) -> None:
        self.metric, self.where = metric, where
        self.own: dict[str, list[np.ndarray]] = {}
        self.others: dict[str, list[np.ndarray]] = {}

    def add(
        self, own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray] | None, labels: np.ndarray | None,
        images: int,
    ) -> None:  # fmt: skip
        """Score one batch of the file and of the reference.

        Raises:
            InputError: the callable raises, gives something else than a number for each image, or other scores than
                before.
        """
        for outputs, kept in ((own, self.own), (other, self.others)):
            if outputs is None:
                continue
            found = self._called(outputs, labels, images)
            if kept and set(kept) != set(found):
                raise InputError(
                    self.where, f"gave the scores {', '.join(found)} after {', '.join(kept)}", "the same in each batch"
                )
            for name, scores in found.items():
                kept.setdefault(name, []).append(scores)

    def _called(
        self, outputs: Mapping[str, np.ndarray], labels: np.ndarray | None, images: int
    ) -> dict[str, np.ndarray]:
        try:
            given = self.metric(dict(outputs), labels)
        except BitwrightError:
            raise
        except Exception as error:  # the user's code
            raise InputError(
                self.where, f"raised {type(error).__name__}: {first_line(error)}",
                "a callable (outputs, labels) -> scores", "labels are None where the data have none",
            ) from error  # fmt: skip
        several = given if isinstance(given, Mapping) else {self.where.rpartition(":")[2]: given}
        if not several:
            raise InputError(self.where, "gave no score at all", f"an array of {images} numbers, or several by name")
        return {str(name): self._checked(str(name), scores, images) for name, scores in several.items()}

    def _checked(self, name: str, given: Any, images: int) -> np.ndarray:
        try:
            scores = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(
                self.where, f"gave {type(given).__name__} as {name!r}", f"an array of {images} numbers"
            ) from None
        if scores.shape != (images,):
            raise InputError(
                self.where, f"gave {name!r} of shape {list(scores.shape)}", f"[{images}], one score for each image"
            )
        if not np.isfinite(scores).all():
            raise InputError(self.where, f"gave NaN or infinity as {name!r}", "finite scores")
        return scores

    def results(self) -> tuple[Measured, ...]:
        """Mean, interval and difference of each score."""
        found = []
        for name, parts in self.own.items():
            own = np.concatenate(parts)
            other = np.concatenate(self.others[name]) if self.others else None
            found.append(
                Measured(
                    name=name,
                    images=len(own),
                    score=mean_of(own),
                    reference=None if other is None else mean_of(other),
                    difference=None if other is None else mean_of(own - other),
                )
            )
        return tuple(found)


class Agreements:
    """How outputs agree with a reference's, batch after batch."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.signal: dict[str, float] = {}
        self.noise: dict[str, float] = {}
        self.same: dict[str, int] = {}
        self.counted: dict[str, int] = {}
        self.of: dict[str, str | None] = {}

    def add(self, own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
        """Compare one batch, output by output in order: a quantized file keeps the order, and mostly the names.

        Raises:
            InputError: another number of outputs, or another shape.
        """
        if len(own) != len(other):
            raise InputError(self.where, f"has {len(own)} outputs", f"the reference's {len(other)}")
        for (name, y), r in zip(own.items(), other.values(), strict=True):
            if r.shape != y.shape:
                raise InputError(
                    self.where, f"its output {name!r} has shape {list(y.shape)}", f"the reference's {list(r.shape)}"
                )
            reference = r.astype(np.float64)
            self.signal[name] = self.signal.get(name, 0.0) + float((reference**2).sum())
            self.noise[name] = self.noise.get(name, 0.0) + float(((reference - y) ** 2).sum())
            self.of[name] = kind = parts_of(y)
            if kind is not None:
                same = (y == r) if kind == "elements" else y.argmax(1) == r.argmax(1)
                self.same[name] = self.same.get(name, 0) + int(same.sum())
                self.counted[name] = self.counted.get(name, 0) + same.size

    def results(self) -> tuple[Agreement, ...]:
        """One row an output, in order."""
        return tuple(
            Agreement(
                output=name,
                sqnr_db=_decibels(self.signal[name], self.noise[name]),
                of=kind,
                agreement=self.same[name] / self.counted[name] if kind is not None and self.counted[name] else None,
            )
            for name, kind in self.of.items()
        )


def joint_sqnr_db(compared: Sequence[Agreement]) -> float:
    """Signal to noise of all outputs of real numbers together, each one's noise counted over its own power, in dB.

    `-10 log10(mean of 10^(-dB / 10))`; of whole numbers only where there is nothing else.

    Example:
        >>> rows = [Agreement(output="y", sqnr_db=dB, of=None, agreement=None) for dB in (20.0, 20.0, float("inf"))]
        >>> round(joint_sqnr_db(rows), 2), joint_sqnr_db(rows[2:])
        (21.76, inf)
    """
    found = [row.sqnr_db for row in compared if row.of != "elements"] or [row.sqnr_db for row in compared]
    noise = math.fsum(10 ** (-dB / 10) for dB in found) / len(found)
    return -10 * math.log10(noise) if noise > 0 else math.inf


def parts_of(output: np.ndarray) -> str | None:
    """What of an output can be the same or not: images, positions, elements, or nothing.

    Example:
        >>> parts_of(np.zeros((2, 10))), parts_of(np.zeros((2, 4, 8, 8))), parts_of(np.zeros((2, 1, 8, 8)))
        ('images', 'positions', None)
    """
    if output.dtype.kind in "iub":
        return "elements"
    if output.ndim == 2:
        return "images"
    return "positions" if output.ndim == 4 and output.shape[1] > 1 else None


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
