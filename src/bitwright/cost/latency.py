"""Latency: measured in the installed runtime, never derived.

The table is built by timing real regions. Each region with a weight is cut out of the written file, codes in and codes
out, once for each width of its weight, and timed beside its other widths in interleaved rounds (`timing.py`); regions
with equal ops, settings and shapes are timed once, and timings are kept on disk by machine (`timing_cache.py`).

A narrower width counts as faster than the next wider one only where the interval of the ratio excludes equality, at a
confidence that holds for all comparisons of the table together (Bonferroni). Where it does not, the width has the
latency of the wider one, and the table says so. The width of an activation chooses no kernel: narrow codes live in
uint8, and the bound on them is part of the region that gives them. So all `a` of a `w` have one latency.

Why regions are cut out, where ONNX Runtime has a profiler of nodes: that one counts whole microseconds, slows what it
watches, loses the names of what it fuses, and other runtimes have none like it. What cutting adds, a call and a change
of layout at both ends, is the same at every width. It cancels, as the table is anchored at the whole file: `rest` is
the measured latency of the state's own file without its entries. So a sum is

    measured(now) + sum_r (t_r(w_r) - t_r(now))

The float file is timed in the rounds of the whole file, and it is what relative budgets refer to.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from bitwright.cost.cutting import float_region, signature, written_region
from bitwright.cost.size import written
from bitwright.cost.table import Table, Widths
from bitwright.cost.timing import Comparison, Sampler, Timer, compared, interleaved
from bitwright.cost.timing_cache import Samples, TimingCache, default_path, fingerprint, open_cache
from bitwright.cost.workload import FLOAT as WEIGHT_IN_FLOAT
from bitwright.cost.workload import Workload, with_widths, workload
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.errors import InputError, UnsupportedError
from bitwright.pipeline import State
from bitwright.plan.plan import Plan

log = logging.getLogger("bitwright")

#: What the float form of a region is called among its widths.
FLOAT = "float"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Latency of a written file, timed beside the float file in the same rounds.

    Attributes:
        ms: median.
        float_ms: median of the float file.
        to_float: the ratio, with its interval.
    """

    ms: float
    float_ms: float
    to_float: Comparison


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A table's latency beside the measured one of the written file.

    Attributes:
        predicted_ms: by the table, as of the run that it was made in.
        measured: of the file.
        predicted_to_float: the predicted one over the float file's in the run of the table: a machine that is slower
            today is slower for both.
    """

    predicted_ms: float
    predicted_to_float: float
    measured: Measured

    def words(self) -> str:
        """For people."""
        m = self.measured
        return (
            f"latency {m.ms:.3g} ms measured ({m.to_float.ratio:.3f} of float, {m.to_float.low:.3f} to "
            f"{m.to_float.high:.3f}), {self.predicted_ms:.3g} ms predicted ({self.predicted_to_float:.3f} of float)"
        )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What timing says of one width of a region.

    Attributes:
        beside: the width that it was compared with: the last wider one that is not itself as slow as a wider one.
        comparison: their ratio.
        ms: what the table takes for it.
    """

    beside: int
    comparison: Comparison
    ms: float


@dataclass(frozen=True, kw_only=True)
class TimedTable(Table):
    """A table of latency, with what it rests on.

    Attributes:
        findings: `{region: {w: finding}}` of all widths but the widest.
        float_ms: `{region: milliseconds of its float ops}`.
        machine: fingerprint.
    """

    findings: Mapping[str, Mapping[int, Finding]] = field(default_factory=dict)
    float_ms: Mapping[str, float] = field(default_factory=dict)
    machine: str

    def notes(self) -> list[str]:
        """What each width brings, one line a width: a refusal to claim speed where no region is faster."""
        lines = []
        for w in sorted({w for each in self.findings.values() for w in each}, reverse=True):
            found = {region: each[w] for region, each in self.findings.items() if w in each}
            faster = [region for region, one in found.items() if one.comparison.verdict == "faster"]
            ratios = [one.comparison.ratio for one in found.values()]
            spread = f"ratios {min(ratios):.2f} to {max(ratios):.2f}"
            if faster:
                lines.append(f"W{w}: faster than wider weights in {', '.join(faster)} ({spread})")
            else:
                lines.append(f"W{w}: no faster than wider weights in any of {len(found)} regions ({spread})")
        return lines


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one run.

    Args:
        rounds: rounds of each comparison.
        threads: threads within an op; 0 for one a core.
        batch: images a run.
        seconds: a sample takes about so long.
        confidence: that no width is called faster which is not, over a whole table.
        cache: path of the file of timings; `timing_cache.default_path()` if empty.

    Raises:
        InputError: a setting out of its range.
    """

    rounds: int = 20
    threads: int = 2
    batch: int = 1
    seconds: float = 0.02
    confidence: float = 0.95
    cache: str = ""

    unit: ClassVar[str] = "ms"

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("threads", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"latency.{name}", f"is {getattr(self, name)}", f"a whole number from {least} on")
        if not 0 < self.confidence < 1:
            raise InputError("latency.confidence", f"is {self.confidence}", "between 0 and 1")
        if not self.seconds > 0:
            raise InputError("latency.seconds", f"is {self.seconds}", "above 0")

    def of(self, state: State, plan: Plan | None = None, *, sample: Sampler | None = None) -> float:
        """Measured milliseconds of the file under `plan`, or under the state's own.

        Args:
            state: the network.
            plan: widths.
            sample: times one model; the target's runtime if None.

        Raises:
            InputError: no plan, or an input that is open beyond the batch.
            UnsupportedError: no runtime here executes the target's files.
        """
        return self.measure(state, plan, sample=sample).ms

    def reference(self, state: State, *, sample: Sampler | None = None) -> float:
        """Measured milliseconds of the float file in the runtime of the state's target."""
        load = workload(state)
        sample = sample or self._timer(load)
        return statistics.median(interleaved({FLOAT: _float_file(state)}, sample, self.rounds)[FLOAT])

    def measure(self, state: State, plan: Plan | None = None, *, sample: Sampler | None = None) -> Measured:
        """The written file beside the float file, in the same rounds."""
        load = workload(state, plan)
        sample = sample or self._timer(load)
        files = {FLOAT: _float_file(state), "written": written(state, plan).SerializeToString()}
        times = interleaved(files, sample, self.rounds)
        return Measured(
            ms=statistics.median(times["written"]), float_ms=statistics.median(times[FLOAT]),
            to_float=compared(times["written"], times[FLOAT], self.confidence),
        )  # fmt: skip

    def tables(
        self, state: State, weights: Sequence[int] = (), activations: Sequence[int] = (), *,
        sample: Sampler | None = None, progress: Callable[[int], None] | None = None,
    ) -> tuple[TimedTable, ...]:  # fmt: skip
        """One table, by timing regions that are not in the cache; `progress` is told each round.

        Raises:
            InputError: no plan, or a value that is open beyond the batch.
            UnsupportedError: a width that the target lacks, or no runtime here executes its files.
        """
        load = workload(state)
        timer = sample or self._timer(load)
        assert load.target is not None
        options = load.options(weights, activations)
        now = {name: widths[0] for name, widths in options.items()}
        cache = open_cache(
            Path(self.cache) if self.cache else default_path(), fingerprint(load.target.runtime, self.threads)
        )
        cuts, signatures = self._cuts(state, load, options)
        known: dict[str, Samples] = {}
        for name, models in cuts.items():
            if signatures[name] not in known:
                known[signatures[name]] = self._samples(cache, signatures[name], models, timer, progress)
        comparisons = sum(max(0, len(models) - 2) for models in known.values()) or 1
        confidence = 1 - (1 - self.confidence) / comparisons
        times, findings = {}, {}
        for name in cuts:
            samples = {int(key[1:]): each for key, each in known[signatures[name]].items() if key != FLOAT}
            times[name], findings[name] = effective(samples, confidence)
            times[name][WEIGHT_IN_FLOAT] = statistics.median(known[signatures[name]][FLOAT])
        measured = self.measure(state, sample=timer)
        entries: dict[str, dict[Widths, float]] = {
            name: {(w, a): times[name][w] if name in times else 0.0 for w, a in each} for name, each in options.items()
        }
        table = TimedTable(
            unit=self.unit, rest=0.0, entries=entries, now=now, reference=measured.float_ms, findings=findings,
            float_ms={name: statistics.median(known[signatures[name]][FLOAT]) for name in cuts}, machine=cache.machine,
        )  # fmt: skip
        table = dataclasses.replace(table, rest=measured.ms - table.total())
        for line in table.notes():
            log.info("latency: %s", line)
        return (table,)

    def check(
        self, state: State, tables: Sequence[Table], choice: Mapping[str, Widths], *, sample: Sampler | None = None
    ) -> Checked:
        """The table's latency of a choice beside the measured one of its file.

        Args:
            state: whose tables they are; where it is the chosen network itself, quantized, give its own widths.
            tables: of `tables`.
            choice: widths.
            sample: times one model; the target's runtime if None.
        """
        (table,) = tables
        predicted = table.total(choice)
        measured = self.measure(state, with_widths(state, choice), sample=sample)
        return Checked(predicted_ms=predicted, predicted_to_float=predicted / table.reference, measured=measured)

    def _timer(self, load: Workload) -> Timer:
        assert load.target is not None
        runtime = load.target.runtime
        row = RUNTIMES.get(runtime)
        if row is None or not row.load().version:
            raise UnsupportedError(
                "latency", f"no runtime here executes files for {load.target.name}",
                "a target whose runtime is installed",
                "choose another cost: bops, linear or energy are models, no measurements",
            )  # fmt: skip
        return Timer(runtime=runtime, threads=self.threads, batch=self.batch, seconds=self.seconds)

    def _cuts(
        self, state: State, load: Workload, options: Mapping[str, Sequence[Widths]]
    ) -> tuple[dict[str, dict[str, bytes]], dict[str, str]]:
        """`{region: {width: its model}}` of the regions that run on codes, and `{region: signature}`."""
        assert load.plan is not None and load.target is not None
        timed = [p for p in load.products if p.name in options and p.in_integers and p.roots]
        cuts: dict[str, dict[str, bytes]] = {p.name: {} for p in timed}
        signatures: dict[str, str] = {}
        for w in sorted({w for p in timed for w, _ in options[p.name] if w != WEIGHT_IN_FLOAT}, reverse=True):
            having = [p for p in timed if w in (o[0] for o in options[p.name])]
            plan = with_widths(state, {p.name: (w, p.widths[1]) for p in having})
            file = written(state, plan)
            for product in having:
                cut = written_region(file, product.region, load.plan.sites, self.batch)
                signatures[product.name] = signature(product.region, cut, load.target.name, self.batch)
                cuts[product.name][f"W{w}"] = cut.SerializeToString()
        for product in timed:
            cuts[product.name][FLOAT] = float_region(state, product.region, self.batch).SerializeToString()
        return cuts, signatures

    def _samples(
        self, cache: TimingCache, signed: str, models: Mapping[str, bytes], sample: Sampler,
        progress: Callable[[int], None] | None,
    ) -> Samples:  # fmt: skip
        found = cache.samples(signed, models, self.rounds, self.seconds)
        if found is None:
            found = interleaved(models, sample, self.rounds, progress)
            cache.add(signed, found, self.seconds)
            cache.save()  # region by region: what was timed before an interruption is not timed again
        return found


def effective(
    samples: Mapping[int, Sequence[float]], confidence: float
) -> tuple[dict[int, float], dict[int, Finding]]:
    """`{w: milliseconds}` that a table may claim, and `{w: finding}` of all widths but the widest.

    Args:
        samples: `{w: milliseconds in each round}`.
        confidence: of each interval.

    Example:
        >>> times, findings = effective({8: [2.0] * 8, 4: [1.0] * 8, 2: [1.01, 0.99] * 4}, 0.95)
        >>> times
        {8: 2.0, 4: 1.0, 2: 1.0}
        >>> findings[4].comparison.verdict, findings[2].comparison.verdict, findings[2].beside
        ('faster', 'no faster', 4)
    """
    widest, *narrower = sorted(samples, reverse=True)
    times, findings = {widest: statistics.median(samples[widest])}, {}
    beside = widest
    for w in narrower:
        comparison = compared(samples[w], samples[beside], confidence)
        changed = comparison.verdict != "no faster"
        times[w] = times[beside] * (comparison.ratio if changed else 1.0)
        findings[w] = Finding(beside=beside, comparison=comparison, ms=times[w])
        beside = w if comparison.verdict == "faster" else beside
    return times, findings


def _float_file(state: State) -> bytes:
    data: bytes = ir.to_proto(state.reference).SerializeToString()
    return data
