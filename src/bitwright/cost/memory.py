"""Peak memory of activations: the largest cut through the order of execution.

    peak = max_i sum of elements(v) bits(v) / 8   over the values v that are alive while region i runs

A value is alive from the region that makes it (an input of the network: from the start) to the last one that reads it
(an output: to the end), both included, so that what a region reads and what it gives are alive together. Reshaping
copies nothing: its result is the value that it reads. Bits are those of the codes, packed; a runtime that keeps 4-bit
codes in bytes needs more, and so does one that stores scratch of its own.

The maximum is not a sum, so there is a table for each region at which the peak may lie; cuts inside another are left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bitwright.cost.table import Table
from bitwright.cost.workload import Held, Workload, workload
from bitwright.pipeline import State
from bitwright.plan.plan import Plan

#: Ops whose result lies where what they read lies.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def cuts(load: Workload) -> list[tuple[str, frozenset[ir.Value]]]:
    """`(region, values alive while it runs)`, in execution order; a view is the value that it shows.

    Raises:
        InputError: a value whose size is open beyond the batch.
    """
    shown: dict[ir.Value, ir.Value] = {}
    for region in load.regions:
        if region.kind in VIEWS and region.inputs:
            shown[region.output] = shown.get(region.inputs[0], region.inputs[0])

    def buffer(value: ir.Value) -> ir.Value:
        return shown.get(value, value)

    first = dict.fromkeys(load.model.graph.inputs, 0)
    last = dict.fromkeys(load.model.graph.inputs, 0)
    for i, region in enumerate(load.regions):
        first.setdefault(buffer(region.output), i)
        for value in (*region.inputs, region.output):
            last[buffer(value)] = i
    for value in load.model.graph.outputs:
        if buffer(value) in first:
            last[buffer(value)] = len(load.regions)
    return [
        (region.name, frozenset(v for v in first if first[v] <= i <= last[v])) for i, region in enumerate(load.regions)
    ]


def largest(found: Sequence[tuple[str, frozenset[ir.Value]]]) -> list[tuple[str, frozenset[ir.Value]]]:
    """The cuts that no other contains; of equal ones the first."""
    return [
        (region, alive) for i, (region, alive) in enumerate(found)
        if not any(alive < other or (alive == other and j < i) for j, (_, other) in enumerate(found))
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of activations alive at once, for one image."""

    unit: ClassVar[str] = "B"

    def of(self, state: State, plan: Plan | None = None) -> float:
        """Bytes at the peak under `plan`, or under the state's own.

        Raises:
            InputError: no plan, or a value whose size is open beyond the batch.
        """
        return _peak(workload(state, plan))

    def reference(self, state: State) -> float:
        """Bytes at the peak of the float network."""
        return _peak(Workload(state.reference, None))

    def tables(self, state: State, weights: Sequence[int] = (), activations: Sequence[int] = ()) -> tuple[Table, ...]:
        """A table for each cut that no other contains.

        Raises:
            InputError: the state has no plan, or a value's size is open beyond the batch.
            UnsupportedError: a width that the target lacks.
        """
        load = workload(state)
        options, reference = load.options(weights, activations), self.reference(state)
        held = {h.value: h for h in load.held}
        tables = []
        for _, alive in largest(cuts(load)):
            entries = {name: dict.fromkeys(widths, 0.0) for name, widths in options.items()}
            rest = 0.0
            for one in (held[v] for v in alive):
                speaker = None if one.root is None else load.speakers.get(one.root)
                if speaker is None:
                    rest += _bytes(one, one.bits)
                    continue
                for w, a in entries[speaker]:
                    entries[speaker][w, a] += _bytes(one, a)
            now = {name: widths[0] for name, widths in options.items()}
            tables.append(Table(unit=self.unit, rest=rest, entries=entries, now=now, reference=reference))
        return tuple(tables)


def _bytes(held: Held, bits: int) -> float:
    return held.elements * bits / 8


def _peak(load: Workload) -> float:
    held = {h.value: h for h in load.held}
    return max((sum(_bytes(held[v], held[v].bits) for v in alive) for _, alive in cuts(load)), default=0.0)
