"""Units: the parts of a network that are reconstructed one after the other, and what can be learned in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.execute.program import fits_uint8
from bitwright.graph.blocks import Block, find_blocks
from bitwright.graph.regions import find_regions
from bitwright.lookup import lookup
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.plan.spec import Derived, QSpec
from bitwright.ptq.calibrate import sources
from bitwright.targets import TARGETS


@dataclass(frozen=True, kw_only=True, eq=False)
class Learnable:
    """What a unit's quantizers are made of.

    Attributes:
        weights: initializers with codes.
        biases: initializers that are derived.
        steps: sites whose encodings belong to this unit alone: no unit before it gives a value that has them.
        exponents: the same, where steps are powers of two.
        others: sites with encodings that the unit uses too, whose steps stay.
    """

    weights: tuple[str, ...]
    biases: tuple[str, ...]
    steps: tuple[str, ...]
    exponents: tuple[str, ...]
    others: tuple[str, ...]


def find_units(model: ir.Model, unit: str) -> list[Block]:
    """The units of a network in execution order; what has no weights is a unit too, which has nothing to learn.

    Raises:
        UnsupportedError: the network as one unit, but it has several outputs.
    """
    if unit == "block":
        return find_blocks(model)
    regions = find_regions(model)
    if unit == "layer":
        return [Block(name=r.name, regions=(r,), inputs=tuple(r.inputs), output=r.output) for r in regions]
    outputs = list(model.graph.outputs)
    if len(outputs) != 1:
        raise UnsupportedError(
            "reconstruction of the network", f"has {len(outputs)} outputs", "one output", "reconstruct it by blocks"
        )
    return [Block(name="network", regions=tuple(regions), inputs=tuple(model.graph.inputs), output=outputs[0])]


def learnable(state: State, units: Sequence[Block]) -> list[Learnable]:
    """What can be learned in each unit."""
    plan = state.plan
    assert plan is not None
    target = lookup(TARGETS, plan.target, "target").load()
    integer = {region.name: region for region in integer_regions(state.model, plan, target)}
    speakers = sources(state, plan)
    owners: dict[str, set[int]] = {}
    for i, unit in enumerate(units):
        for site in _given(unit):
            if site in speakers:
                owners.setdefault(speakers[site], set()).add(i)
    inputs = {speakers.get(v.name or "") for v in state.model.graph.inputs}
    found = []
    for i, unit in enumerate(units):
        mine = [integer[r.name] for r in unit.regions if r.name in integer]
        weights = [r.weight.name or "" for r in mine if r.weight is not None]
        biases = [
            r.bias.name or "" for r in mine
            if r.bias is not None and isinstance(plan.sites.get(r.bias.name or ""), Derived)
        ]  # fmt: skip
        used = dict.fromkeys(plan.resolve(s)[0] for s in _given(unit) if s in plan.sites and plan.qspec(s) is not None)
        own = [s for s in used if owners.get(s) == {i} and s not in inputs]
        steps, exponents = (tuple(s for s in own if _is(plan.sites[s], name)) for name in ("affine", "pow2"))
        found.append(
            Learnable(
                weights=tuple(dict.fromkeys(weights)), biases=tuple(dict.fromkeys(biases)), steps=steps,
                exponents=exponents, others=tuple(s for s in used if s not in (*steps, *exponents)),
            )
        )  # fmt: skip
    return found


def _given(unit: Block) -> list[str]:
    return [v.name or "" for region in unit.regions for node in region.nodes for v in node.outputs]


def _is(spec: object, name: str) -> bool:
    return isinstance(spec, QSpec) and spec.format == name


def stored_as_codes(state: State, value: ir.Value) -> bool:
    """Whether the simulation gives a value on the grid of its site, so that its codes say all."""
    plan = state.plan
    assert plan is not None
    spec = plan.qspec(value.name or "")
    producer = value.producer()
    if spec is None or producer is None or spec.has_levels or not fits_uint8(spec):
        return False
    target = lookup(TARGETS, plan.target, "target").load()
    return any(producer in region.nodes for region in integer_regions(state.model, plan, target))


def last_readers(units: Sequence[Block]) -> Mapping[str, int]:
    """The last unit that reads each value."""
    return {v.name or "": i for i, unit in enumerate(units) for v in unit.inputs}


def crossing(units: Sequence[Block], i: int) -> list[str]:
    """Values known after unit `i` that later units read: its output, and what skips over it."""
    known = {v.name or "" for unit in units[: i + 1] for v in unit.inputs} | {
        u.output.name or "" for u in units[: i + 1]
    }
    later = {v.name or "" for unit in units[i + 1 :] for v in unit.inputs}
    made = {u.output.name or "" for u in units[i + 1 :]}
    return sorted((known & later) - made)
