"""Timing models against each other, and what may be said of the difference.

In each round every model is loaded anew and timed once, in an order that turns round from one round to the next: where
a session lies in memory alone can cost 30 % of a short run, so a round is one draw of that too, and a slow moment of
the machine hits all models of a round.

The ratio of two models is the median over the rounds of the ratio within each, with the interval of order statistics:
of n sorted ratios the k-th from both ends, for the largest k at which `2 P(B(n, 1/2) < k) <= 1 - confidence`. It asks
nothing of the distribution but that rounds are independent; with too few rounds for the confidence it is everything.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bitwright.deploy.runtimes import RUNTIMES
from bitwright.errors import InputError
from bitwright.lookup import lookup

#: Milliseconds of one run of a serialized model, loaded anew.
Sampler = Callable[[bytes], float]
#: Runs before the first that counts: they allocate.
WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Timer:
    """Times a model in a runtime.

    Args:
        runtime: row of `RUNTIMES`.
        threads: threads within an op; 0 for one a core.
        batch: images a run, where the model leaves that open.
        seconds: a sample takes about so long.
        clock: seconds from some moment on.

    Raises:
        InputError: an input that is open beyond the batch, or of a type that cannot be made up.
    """

    runtime: str
    threads: int = 1
    batch: int = 1
    seconds: float = 0.02
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    def __call__(self, model: bytes) -> float:
        """The median of the runs of a sample, in milliseconds."""
        loaded = lookup(RUNTIMES, self.runtime, "runtime").load()(model, self.threads)
        draw = np.random.default_rng(0)
        feeds = {
            name: _feed(draw, name, sizes, loaded.types[name], self.batch) for name, sizes in loaded.shapes.items()
        }
        for _ in range(WARM_UP):
            loaded.run(feeds)
        runs: list[float] = []
        while sum(runs) < self.seconds or len(runs) < WARM_UP:
            start = self.clock()
            loaded.run(feeds)
            runs.append(self.clock() - start)
        return statistics.median(runs) * 1e3


def _feed(draw: np.random.Generator, name: str, sizes: Sequence[int | None], kind: str, batch: int) -> np.ndarray:
    shape = [batch if i == 0 and d is None else d for i, d in enumerate(sizes)]
    known = [d for d in shape if d is not None]
    if len(known) != len(shape):
        raise InputError(f"input {name!r}", f"has shape {list(sizes)}", "only the batch open", "give --shape")
    if kind == "tensor(float)":
        return draw.standard_normal(known).astype(np.float32)
    if kind == "tensor(uint8)":
        return draw.integers(0, 256, known, dtype=np.uint8)
    if kind in ("tensor(int64)", "tensor(int32)"):  # tokens: the first of the vocabulary
        return np.zeros(known, dtype=np.int64 if "64" in kind else np.int32)
    raise InputError(f"input {name!r}", f"is a {kind}", "tensor(float), tensor(uint8), tensor(int32) or tensor(int64)")


def interleaved(
    models: Mapping[str, bytes], sample: Sampler, rounds: int, progress: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """`{model: milliseconds in each round}`; `progress` is told each round.

    Example:
        >>> order = []
        >>> interleaved({"a": b"1", "b": b"2"}, lambda model: order.append(model) or float(model), 2)
        {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
        >>> order
        [b'1', b'2', b'2', b'1']
    """
    found: dict[str, list[float]] = {name: [] for name in models}
    for i in range(rounds):
        for name in list(models)[:: 1 if i % 2 == 0 else -1]:
            found[name].append(sample(models[name]))
        if progress is not None:
            progress(1)
    return found


def median_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """An interval that holds the median of the distribution with at least this confidence.

    Example:
        >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 0.95)
        (2.0, 9.0)
        >>> median_interval([1.0, 2.0, 3.0], 0.95)
        (-inf, inf)
    """
    n, ordered, k, below = len(values), sorted(values), 0, 0.0
    while k < n // 2:
        below += math.comb(n, k) / 2**n  # P(B < k + 1)
        if 2 * below > 1 - confidence:
            break
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How long one model takes beside another: medians of ratios within rounds.

    Attributes:
        ratio: below 1 is faster.
        low, high: the interval.
    """

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`faster` or `slower`, where the interval excludes 1; else `no faster`."""
        return "faster" if self.high < 1 else "slower" if self.low > 1 else "no faster"


def compared(times: Sequence[float], others: Sequence[float], confidence: float) -> Comparison:
    """Times of a model beside those of another in the same rounds.

    Example:
        >>> compared([1.0, 2.0, 1.0, 2.0, 1.0, 2.0], [2.0, 4.0, 2.0, 4.0, 2.0, 4.0], 0.95).verdict
        'faster'
    """
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    low, high = median_interval(ratios, confidence)
    return Comparison(ratio=statistics.median(ratios), low=low, high=high)
