"""`bitwright benchmark`: latency of files side by side."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from rich.console import Group, RenderableType

from bitwright.deploy.benchmark import Timing, benchmark, fastest_of, installed
from bitwright.errors import InputError
from bitwright.verbs.preparing import existing_file
from bitwright.verbs.serving import AUTO, check_runtimes
from bitwright.verbs.tables import columns, file_labels
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, option


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time files in rounds; in each round every file runs once, so that a slow moment hits all of them.

    The ratio is to the first file: the median over the rounds of the ratio within each.
    """

    models: tuple[str, ...] = argument("ONNX files; the first is what the others are compared with")
    runtime: str = option("onnxruntime", "what runs them; several with commas between, auto: all that are installed")
    threads: str = option("2", "threads within an op; several with commas between, 0: one a core")
    batch: str = option("1", "images a run; several with commas between")
    rounds: int = option(10, "rounds of at least 0.1 s a file")

    def run(self, terminal: Terminal) -> Outcome:
        """Benchmark."""
        for model in self.models:
            existing_file(model)
        runtimes = installed() if self.runtime == AUTO else [name.strip() for name in self.runtime.split(",")]
        versions = check_runtimes(runtimes)
        if self.rounds < 1:
            raise InputError("--rounds", f"is {self.rounds}", "a whole number from 1 on")
        each = list(product(numbers("--threads", self.threads, 0), numbers("--batch", self.batch, 1)))
        rows: list[Timing] = []
        with terminal.progress("benchmark", len(each) * self.rounds) as advance:
            for threads, batch in each:
                rows += benchmark(
                    self.models, runtimes=runtimes, threads=threads, batch=batch, rounds=self.rounds, progress=advance
                )
        json = {
            "rows": [asdict(row) for row in rows],
            "fastest": _fastest(rows) if len(versions) > 1 else [],
            "rounds": self.rounds,
            "runtimes": versions,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }
        return Outcome(json=json, text=_text(rows, json))


def _fastest(rows: list[Timing]) -> list[dict[str, Any]]:
    """The fastest runtime of each file, in each condition."""
    conditions = dict.fromkeys((row.model, row.threads, row.batch) for row in rows)
    found = {key: fastest_of([r for r in rows if (r.model, r.threads, r.batch) == key]) for key in conditions}
    return [
        {"model": model, "threads": threads, "batch": batch, **asdict(fast)}
        for (model, threads, batch), fast in found.items()
    ]


def numbers(flag: str, text: str, least: int) -> list[int]:
    """Read `1,2,4`.

    Raises:
        InputError: something else, or a number below `least`.

    Example:
        >>> numbers("--threads", "1, 2", 0)
        [1, 2]
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise InputError(flag, f"is {text!r}", f"a whole number from {least} on, or several with commas between")
    return list(dict.fromkeys(found))


def _text(rows: list[Timing], json: Mapping[str, Any]) -> RenderableType:
    labels = file_labels([row.model for row in rows])
    several = len(json["runtimes"]) > 1
    lines = [
        (
            label, *([row.runtime] if several else []), str(row.threads or "all"), str(row.batch),
            f"{row.median_ms:.3f}", f"{row.p10_ms:.3f}", f"{row.p90_ms:.3f}", f"{row.ratio:.3f}",
        )
        for label, row in zip(labels, rows, strict=True)
    ]  # fmt: skip
    runtimes = ["runtime"] if several else []
    table = columns(("file", *runtimes, ">threads", ">batch", ">median ms", ">p10", ">p90", ">ratio"), lines)
    ran = ", ".join(f"{name} {version}" for name, version in json["runtimes"].items())
    where = f"{ran} on {json['cores']} cores ({json['machine']}), {json['rounds']} rounds"
    same = ", in the same runtime" if several else ""
    fastest = [
        f"fastest for {label}, {entry['threads'] or 'all'} threads, batch {entry['batch']}: {entry['runtime']}, "
        f"{entry['ratio']:.2f} of the time of {entry['slowest']}"
        for label, entry in zip(file_labels([e["model"] for e in json["fastest"]]), json["fastest"], strict=True)
    ]
    return Group(table, "", *fastest, where, f"ratio: latency relative to {labels[0]}{same}")
