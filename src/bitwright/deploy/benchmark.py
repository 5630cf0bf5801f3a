"""Latency of files side by side: interleaved rounds, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime
from bitwright.errors import InputError
from bitwright.lookup import lookup

#: A sample runs at least this long, so that timer and scheduler do not count.
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latency of one batch in milliseconds; `ratio` to the first file, the median of the ratios within each round."""

    model: str
    runtime: str
    threads: int
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class _Contender:
    model: str
    run: Callable[[], None]
    repeats: int


def benchmark(
    models: Sequence[str | Path],
    *,
    runtime: str = "onnxruntime",
    threads: int = 2,
    batch: int = 1,
    rounds: int = 10,
    progress: Callable[[int], None] | None = None,
) -> list[Timing]:
    """Time files in interleaved rounds.

    Args:
        models: files; the first is what the ratios refer to.
        runtime: row of `RUNTIMES`.
        threads: threads within an op.
        batch: images a run.
        rounds: rounds; in each, every file is timed once.
        progress: told each round.

    Raises:
        InputError: no file, or a file with a fixed batch of another size.
    """
    if not models:
        raise InputError("benchmark", "no file to time", "one or more")
    load = lookup(RUNTIMES, runtime, "runtime").load()
    contenders = [_contender(str(m), load(m, threads), batch) for m in models]
    samples = np.zeros((rounds, len(contenders)))
    for i in range(rounds):
        # Who runs after another finds its threads still spinning: the order turns round from one round to the next.
        order = range(len(contenders)) if i % 2 == 0 else reversed(range(len(contenders)))
        for j in order:
            samples[i, j] = _sample(contenders[j])
        if progress is not None:
            progress(1)
    ratios = np.median(samples / samples[:, :1], axis=0)
    return [
        Timing(
            model=c.model, runtime=runtime, threads=threads, batch=batch, median_ms=float(np.median(t)),
            p10_ms=float(np.percentile(t, 10)), p90_ms=float(np.percentile(t, 90)), ratio=float(r),
        )
        for c, t, r in zip(contenders, samples.T, ratios, strict=True)
    ]  # fmt: skip


def _contender(name: str, runtime: OnnxRuntime, batch: int) -> _Contender:
    generator = np.random.default_rng(0)
    feeds = {}
    for value in runtime.session.get_inputs():
        shape = [batch if i == 0 else d for i, d in enumerate(value.shape)]
        if isinstance(value.shape[0], int) and value.shape[0] != batch:
            raise InputError(name, f"has a fixed batch of {value.shape[0]}", f"--batch {value.shape[0]}")
        if any(not isinstance(d, int) for d in shape):
            raise InputError(name, f"input {value.name!r} has shape {value.shape}", "only the batch open")
        if value.type != "tensor(float)":
            raise InputError(name, f"input {value.name!r} is a {value.type}", "tensor(float)")
        feeds[value.name] = generator.standard_normal(shape).astype(np.float32)

    def run() -> None:
        runtime.session.run(None, feeds)

    for _ in range(3):  # warm-up: first runs allocate
        run()
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    return _Contender(model=name, run=run, repeats=max(1, round(SAMPLE_SECONDS / max(once, 1e-6))))


def _sample(contender: _Contender) -> float:
    """Milliseconds of one run, mean over the repeats of a sample; one run before it wakes the threads."""
    contender.run()
    start = time.perf_counter()
    for _ in range(contender.repeats):
        contender.run()
    return (time.perf_counter() - start) / contender.repeats * 1e3
