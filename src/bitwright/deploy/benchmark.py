"""Latency of files side by side: interleaved rounds, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.runtimes.runtime import Runtime
from bitwright.errors import InputError
from bitwright.lookup import lookup

#: A sample runs at least this long, so that timer and scheduler do not count.
SAMPLE_SECONDS = 0.1
#: Rounds in which the fastest runtime is found.
ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latency of one batch in milliseconds.

    Ratios are medians of the ratios within each round: `ratio` to the first file in the same runtime, `runtime_ratio`
    to the same file in the first runtime.
    """

    model: str
    runtime: str
    threads: int
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    runtime_ratio: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Fastest:
    """The runtime that takes least time for a file here.

    Attributes:
        runtime: its name.
        ratio: its time over that of the slowest, as medians of ratios within each round; 1 where there is one only.
        slowest: what it is compared with.
    """

    runtime: str
    ratio: float
    slowest: str


@dataclass(frozen=True, kw_only=True)
class _Contender:
    model: str
    runtime: str
    run: Callable[[], None]
    repeats: int


def benchmark(
    models: Sequence[str | Path],
    *,
    runtimes: Sequence[str] = ("onnxruntime",),
    threads: int = 2,
    batch: int = 1,
    rounds: int = 10,
    progress: Callable[[int], None] | None = None,
) -> list[Timing]:
    """Time files in interleaved rounds.

    Args:
        models: files; the first is what the ratios refer to.
        runtimes: rows of `RUNTIMES`, each of which runs every file.
        threads: threads within an op.
        batch: images a run.
        rounds: rounds; in each, every file is timed once in every runtime.
        progress: told each round.

    Raises:
        InputError: no file, a file with a fixed batch of another size, or a runtime that is not installed.
    """
    if not models:
        raise InputError("benchmark", "no file to time", "one or more")
    rows = {name: lookup(RUNTIMES, name, "runtime").load() for name in dict.fromkeys(runtimes)}
    contenders = [_contender(str(m), load(m, threads), batch) for load in rows.values() for m in models]
    samples = np.zeros((rounds, len(contenders)))
    for i in range(rounds):
        # Who runs after another finds its threads still spinning: the order turns round from one round to the next.
        order = range(len(contenders)) if i % 2 == 0 else reversed(range(len(contenders)))
        for j in order:
            samples[i, j] = _sample(contenders[j])
        if progress is not None:
            progress(1)
    times = samples.reshape(rounds, len(rows), len(models))
    to_first_file = np.median(times / times[:, :, :1], axis=0).reshape(-1)
    to_first_runtime = np.median(times / times[:, :1], axis=0).reshape(-1)
    return [
        Timing(
            model=c.model, runtime=c.runtime, threads=threads, batch=batch, median_ms=float(np.median(t)),
            p10_ms=float(np.percentile(t, 10)), p90_ms=float(np.percentile(t, 90)), ratio=float(r),
            runtime_ratio=float(o),
        )
        for c, t, r, o in zip(contenders, samples.T, to_first_file, to_first_runtime, strict=True)
    ]  # fmt: skip


def installed() -> list[str]:
    """The runtimes that are installed here."""
    return [name for name, row in RUNTIMES.items() if row.load().version]


def fastest_of(timings: Sequence[Timing]) -> Fastest:
    """The fastest among timings of one file in several runtimes."""
    best = min(timings, key=lambda t: t.runtime_ratio)
    worst = max(timings, key=lambda t: t.runtime_ratio)
    return Fastest(runtime=best.runtime, ratio=best.runtime_ratio / worst.runtime_ratio, slowest=worst.runtime)


def fastest(model: str | Path, *, threads: int = 0, batch: int = 1, rounds: int = ROUNDS) -> Fastest:
    """The installed runtime that takes least time for a file, found by interleaved rounds.

    Args:
        model: the file.
        threads: threads within an op; 0 for one a core.
        batch: images a run, where the file leaves that open.
        rounds: rounds in which every runtime runs once.
    """
    names = installed()
    if len(names) == 1:
        return Fastest(runtime=names[0], ratio=1.0, slowest=names[0])
    first: Runtime = RUNTIMES[names[0]].load()(model, threads)
    sizes = {shape[0] for shape in first.shapes.values() if shape and shape[0] is not None}
    size = min(sizes) if sizes else batch
    return fastest_of(benchmark([model], runtimes=names, threads=threads, batch=size, rounds=rounds))


def _contender(name: str, runtime: Runtime, batch: int) -> _Contender:
    generator = np.random.default_rng(0)
    feeds = {}
    for value, sizes in runtime.shapes.items():
        shape = [batch if i == 0 else d for i, d in enumerate(sizes)]
        if sizes and sizes[0] is not None and sizes[0] != batch:
            raise InputError(name, f"has a fixed batch of {sizes[0]}", f"--batch {sizes[0]}")
        if any(d is None for d in shape):
            raise InputError(name, f"input {value!r} has shape {list(sizes)}", "only the batch open")
        if runtime.types[value] != "tensor(float)":
            raise InputError(name, f"input {value!r} is a {runtime.types[value]}", "tensor(float)")
        feeds[value] = generator.standard_normal([d for d in shape if d is not None]).astype(np.float32)

    def run() -> None:
        runtime.run(feeds)

    for _ in range(3):  # warm-up: first runs allocate
        run()
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    return _Contender(
        model=name, runtime=runtime.name, run=run, repeats=max(1, round(SAMPLE_SECONDS / max(once, 1e-6)))
    )


def _sample(contender: _Contender) -> float:
    """Milliseconds of one run, mean over the repeats of a sample; one run before it wakes the threads."""
    contender.run()
    start = time.perf_counter()
    for _ in range(contender.repeats):
        contender.run()
    return (time.perf_counter() - start) / contender.repeats * 1e3
