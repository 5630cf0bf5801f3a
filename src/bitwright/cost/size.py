"""Size of the file as it is written: the writer writes it, and its bytes are counted.

The table is read off such files too: one for each width of weights and of activations, at all regions at once. Of each
file the bytes that belong to a region's weight (its packed codes, scales, zero points, the constant expression that
unpacks it) and to the codes of an activation (the bound of a width below 8 bits) are added up. Constants that a file
has once for all weights of a width, as tables of bytes, are `once`. The sum is exact for the plan of the state. For
another it may be off by a few bytes a region: the embedded plan is compressed, and numbers that are not calibrated yet
decide whether zero points are stored once (`completed`). A region in float is taken from a file in which it alone is:
neighbours in float, between which nothing is converted, cost a little less.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from bitwright.cost.completed import completed
from bitwright.cost.table import Once, Table
from bitwright.cost.workload import FLOAT, Workload, with_widths, workload
from bitwright.deploy.forms import FORMS, Form
from bitwright.deploy.names import codes_name, unbounded_name
from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.plan.plan import Plan
from bitwright.targets import TARGETS
from bitwright.targets.target import Target


def written(state: State, plan: Plan | None = None) -> onnx.ModelProto:
    """The file of a state under `plan`, or under its own, with numbers for what is not calibrated (`completed`).

    Raises:
        InputError: neither plan is there.
    """
    plan = plan or state.plan
    if plan is None:
        raise InputError("cost", "the network has no plan", "a plan, for its widths", "place it first")
    target: Target = TARGETS[plan.target].load()
    form: Form = FORMS[target.form].load()
    proto: onnx.ModelProto = ir.to_proto(form.write(completed(state, plan)))
    return proto


@dataclass(frozen=True, kw_only=True)
class Size:
    """Bytes of the written file."""

    unit: ClassVar[str] = "B"

    def of(self, state: State, plan: Plan | None = None) -> float:
        """Bytes of the file; those of `write`, where the state has the encodings of the plan.

        Raises:
            InputError: no plan.
        """
        return float(written(state, plan).ByteSize())

    def reference(self, state: State) -> float:
        """Bytes of the float network as an ONNX file, as normalised."""
        return float(ir.to_proto(state.reference).ByteSize())

    def tables(self, state: State, weights: Sequence[int] = (), activations: Sequence[int] = ()) -> tuple[Table, ...]:
        """One table, exact for the plan of the state, near it elsewhere (see the module).

        Raises:
            InputError: no plan.
            UnsupportedError: a width that the target lacks.
        """
        load = workload(state)
        options = load.options(weights, activations)
        now = {name: widths[0] for name, widths in options.items()}
        of_now = _Owned(load, written(state))
        of_weight: dict[int, _Owned] = {}
        for w in sorted({w for each in options.values() for w, _ in each if w != FLOAT}):
            plan = with_widths(state, {r: (w, a) for r, (_, a) in now.items()})
            of_weight[w] = _Owned(load, written(state, plan))
        by_read: dict[tuple[str, int], float] = {(r, a): of_now.of_read[r] for r, (_, a) in now.items()}
        for a in sorted({a for each in options.values() for _, a in each}):
            choice = {r: (now[r][0], a) for r, each in options.items() if a in (o[1] for o in each) and a != now[r][1]}
            owned = _Owned(load, written(state, with_widths(state, choice))) if choice else of_now
            by_read |= {(r, a): owned.of_read[r] for r in choice}
        of_float = {
            r: of_now.of_weight[r] + float(written(state, with_widths(state, {r: (FLOAT, now[r][1])})).ByteSize())
            - of_now.whole for r, each in options.items() if any(w == FLOAT for w, _ in each)
        }  # fmt: skip
        entries = {
            r: {(w, a): (of_float[r] if w == FLOAT else of_weight[w].of_weight[r]) + by_read[r, a] for w, a in each}
            for r, each in options.items()
        }
        table = Table(
            unit=self.unit, rest=0.0, entries=entries, now=now, reference=self.reference(state), once=_once(of_weight)
        )
        return (dataclasses.replace(table, rest=of_now.whole - table.total()),)


def _once(files: Mapping[int, _Owned]) -> tuple[Once, ...]:
    """Constants that no region owns and that not all widths have, by the widths that have them."""
    everything = {name: size for owned in files.values() for name, size in owned.shared.items()}
    found: dict[frozenset[int], float] = defaultdict(float)
    for name, size in everything.items():
        found[frozenset(w for w, owned in files.items() if name in owned.shared)] += size
    return tuple(Once(cost=cost, weights=widths) for widths, cost in found.items() if len(widths) < len(files))


class _Owned:
    """Bytes of a file by region.

    Attributes:
        whole: of the file.
        of_weight: `{region: bytes of its weight}`.
        of_read: `{region: bytes of the nodes that give the codes it speaks for}`.
        shared: `{constant: bytes}` of those that belong to no region's weight.
    """

    def __init__(self, load: Workload, proto: onnx.ModelProto) -> None:
        self.whole = float(proto.ByteSize())
        self._load = load
        self._weights = {p.region.weight.name: p.name for p in load.products if p.has_choice and p.region.weight}
        self._sites: dict[str, str] = {}
        for held in load.held:
            speaker = None if held.root is None else load.speakers.get(held.root)
            if speaker is not None:
                name = held.value.name or ""
                self._sites |= {codes_name(name): speaker, unbounded_name(name): speaker}
        self.of_weight = dict.fromkeys(self._weights.values(), 0.0)
        self.of_read = dict.fromkeys(self._weights.values(), 0.0)
        self.shared: dict[str, float] = {}
        self._count(proto.graph)

    def _count(self, graph: onnx.GraphProto) -> None:
        owner: dict[str, str | None] = {}
        for tensor in graph.initializer:
            name = tensor.name
            while name and name not in self._weights:
                name = name.rpartition("/")[0]
            owner[tensor.name] = self._weights.get(name)
            self._add(self.of_weight, owner[tensor.name], tensor.ByteSize())
            if owner[tensor.name] is None:
                self.shared[tensor.name] = _message(tensor.ByteSize())
        for node in graph.node:
            inputs = [name for name in node.input if name]
            if inputs and all(name in owner for name in inputs):  # a constant expression
                regions = {o for name in inputs if (o := owner[name]) is not None}
                region = regions.pop() if len(regions) == 1 else None
                owner |= dict.fromkeys(node.output, region)
                self._add(self.of_weight, region, node.ByteSize())
            else:
                self._add(self.of_read, self._sites.get(node.output[0]), node.ByteSize())
        for value in graph.value_info:  # the types of constants
            self._add(self.of_weight, owner.get(value.name), value.ByteSize())
            if value.name in self.shared:
                self.shared[value.name] += _message(value.ByteSize())

    def _add(self, found: dict[str, float], region: str | None, payload: int) -> None:
        if region is not None:
            found[region] += _message(payload)


def _message(payload: int) -> int:
    """Bytes of a message inside another: a tag of one byte, its length in 7 bits a byte, itself.

    Example:
        >>> _message(127), _message(128)
        (129, 131)
    """
    return 1 + max(1, -(-payload.bit_length() // 7)) + payload
