"""`bitwright inspect`: what is in a network, and what of it a target runs in integers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir
from rich.console import Group, RenderableType

from bitwright.deploy.reader import is_written, read_model
from bitwright.deploy.runtimes.versions import needs
from bitwright.errors import InputError
from bitwright.graph.macs import count_macs, count_parameters
from bitwright.graph.open import open_model
from bitwright.graph.regions import Region, find_regions
from bitwright.pipeline import State
from bitwright.placement.place import classify, integer_regions, place
from bitwright.placement.transposed import transposed_as_convolutions
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Float
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.targets import TARGETS
from bitwright.targets.target import OpRule, Target
from bitwright.verbs.preparing import file_bytes, float_network, input_specs, resolve_target
from bitwright.verbs.quantize import ShapeFlag
from bitwright.verbs.quantized import model_bytes
from bitwright.verbs.tables import columns, counted, dimensions, facts, percent, short
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, option

#: Bits of both operands of a multiplication that runs in float.
FLOAT_BITS = 32


@dataclass(frozen=True, kw_only=True)
class RegionFacts:
    """One region: what it costs, and how the target runs it.

    Attributes:
        name: module path of its weight, else of its node.
        kind: the op that gives it its kind.
        output_shape: None for the batch.
        parameters: elements of the weights it reads, batch norm included; a shared weight counts where it comes first.
        macs: multiply-accumulates for one image.
        integer: it runs in integers.
        how: `kernel`, `codes` (moved unchanged) or `join`; None in float.
        weight_bits, activation_bits: widths of the operands; None in float, or without a weight.
        bops: `MAC b b'` with the widths of both operands, 32 in float.
        reason: why it stays float; None if it does not.
    """

    name: str
    kind: str
    output_shape: tuple[int | None, ...] | None
    parameters: int
    macs: int
    integer: bool
    how: str | None
    weight_bits: int | None
    activation_bits: int | None
    bops: int
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Inspect(ShapeFlag):
    """Look into a network: ops, shapes, parameters, multiply-accumulates, and what a target runs in integers.

    Of a float network: what quantizing it with the default widths would give. Of a file written by quantize: its own
    plan.
    """

    model: str = argument("an ONNX file (float, or written by quantize), a .pt2 file, or module:callable")
    target: str = option("auto", "whose integer kernels to look for; auto: the file's own, else this machine's")

    def run(self, terminal: Terminal) -> Outcome:
        """Inspect."""
        opened = open_model(self.model)
        written = is_written(opened)
        if written:
            state = read_model(opened, self.model)
            target = self._target_of(state.plan)
            network, plan = state.model, state.plan
        else:
            network = float_network(opened, shapes=self.shape, where=self.model)
            target = resolve_target(self.target, terminal)
            state = FoldBatchNorm()(State(model=network, reference=network))
            state = state.but(model=transposed_as_convolutions(state.model, state.overlay, target)[0])
            plan = planned(state.model, target)
        regions = region_facts(state.model, network, target, plan)
        size = file_bytes(self.model) if self.model.endswith(".onnx") else _other_bytes(self.model, network)
        json = _json(network, regions, size, written, target)
        json["needs"] = needs(opened, target.runtime) if written else {}
        return Outcome(json=json, text=_text(self.model, json))

    def _target_of(self, plan: Plan | None) -> Target:
        assert plan is not None
        if self.shape:
            raise InputError("--shape", "is given, but the shapes of a written file are fixed", fix="leave it out")
        if self.target not in ("auto", plan.target):
            raise InputError("--target", f"is {self.target!r}", f"{plan.target!r}, which the file was written for")
        target: Target = TARGETS[plan.target].load()
        return target


def _other_bytes(source: str, network: ir.Model) -> int:
    """Size of a file of another kind, or of the network as ONNX when it comes from no file."""
    return os.path.getsize(source) if os.path.isfile(source) else len(model_bytes(network))


def planned(model: ir.Model, target: Target) -> Plan | None:
    """The plan that the target's default widths give; None when nothing can be quantized."""
    integer, _ = classify(find_regions(model), target, {})
    if not any(rule.how == "kernel" for rule in integer.values()):
        return None
    return place(model, target).plan


def region_facts(model: ir.Model, network: ir.Model, target: Target, plan: Plan | None) -> list[RegionFacts]:
    """Every region in execution order.

    Args:
        model: the network as it is placed, batch norm folded.
        network: the network as it came, whose weights are counted.
        target: what the hardware can do.
        plan: widths; None when nothing is quantized.
    """
    integer = {} if plan is None else {r.name: rule for r, rule in integer_regions(model, plan, target).items()}
    regions = find_regions(model)
    _, refused = classify(regions, target, {})
    parameters = _parameters(network)
    return [_facts(r, integer.get(r.name), refused.get(r), plan, parameters.get(r.name, 0)) for r in regions]


def _facts(
    region: Region, rule: OpRule | None, refused: str | None, plan: Plan | None, parameters: int
) -> RegionFacts:
    def bits(value: ir.Value | None) -> int | None:
        spec = None if value is None or rule is None or plan is None else plan.qspec(value.name or "")
        return None if spec is None else spec.bits

    # One operand of an addition that is fused has no quantizer.
    activation_bits = next((b for v in region.inputs if (b := bits(v)) is not None), None)
    weight_bits = bits(region.weight)
    second = bits(region.inputs[-1]) if region.weight is None and region.inputs else weight_bits
    shape = region.output.shape
    return RegionFacts(
        name=region.name, kind=region.kind, macs=region.macs, parameters=parameters,
        output_shape=None if shape is None else tuple(d if isinstance(d, int) else None for d in shape),
        integer=rule is not None, how=None if rule is None else rule.how,
        weight_bits=weight_bits, activation_bits=activation_bits,
        bops=region.macs * (activation_bits or FLOAT_BITS) * (second or FLOAT_BITS),
        reason=None if rule is not None else _reason(region, refused, plan),
    )  # fmt: skip


def _reason(region: Region, refused: str | None, plan: Plan | None) -> str:
    """Why a region stays float: what the target lacks, or what the plan says of one of the region's own sites."""
    if refused is not None:
        return refused
    values = [v for v in (region.weight, region.bias, region.output, *region.inputs) if v is not None]
    specs = [plan.sites.get(v.name or "") for v in values] if plan is not None else []
    told = [spec.reason for spec in specs if isinstance(spec, Float)]
    own = f"{region.name}: "
    return next((reason.removeprefix(own) for reason in told if reason.startswith(own)), told[0] if told else "")


def _parameters(network: ir.Model) -> dict[str, int]:
    """`{region: elements of the weights it reads}`; the sum is `count_parameters`."""
    counts: dict[str, int] = {}
    statistics = {v for n in network.graph if n.op_type == "BatchNormalization" for v in n.inputs[3:5]}
    seen = set(statistics)
    for region in find_regions(network):
        total = 0
        for value in (v for node in region.nodes for v in node.inputs if v is not None and v.is_initializer()):
            constant = value.const_value
            if value in seen or constant is None or not constant.dtype.is_floating_point() or not len(constant.shape):
                continue
            seen.add(value)
            total += constant.size
        counts[region.name] = total
    return counts


def _json(network: ir.Model, regions: list[RegionFacts], size: int, written: bool, target: Target) -> dict[str, Any]:
    macs = count_macs(network)
    quantized = sum(r.bops for r in regions)
    return {
        "nodes": len(list(network.graph)),
        "ops": dict(Counter(node.op_type for node in network.graph).most_common()),
        "inputs": _values(input_specs(network)),
        "outputs": _values(_specs(network)),
        "parameters": count_parameters(network),
        "macs": macs,
        "bytes": size,
        "bops": quantized if written else macs * FLOAT_BITS * FLOAT_BITS,
        "bops_on_target": quantized,
        "target": target.name,
        "weight_bits": target.widest_weight,
        "written": written,
        "integer_mac_share": sum(r.macs for r in regions if r.integer) / macs if macs else 0.0,
        "regions": [asdict(region) for region in regions],
    }


def _specs(network: ir.Model) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """Shape and type of every output, as far as they are known."""
    return {
        v.name or "": (
            () if v.shape is None else tuple(d if isinstance(d, int) else None for d in v.shape),
            "unknown" if v.dtype is None else str(v.dtype.numpy()),
        )
        for v in network.graph.outputs
    }


def _values(specs: Mapping[str, tuple[tuple[int | None, ...], str]]) -> list[dict[str, Any]]:
    return [{"name": name, "shape": list(shape), "type": kind} for name, (shape, kind) in specs.items()]


def _text(path: str, json: Mapping[str, Any]) -> RenderableType:
    written, regions = json["written"], json["regions"]
    kind = "integer network, written by bitwright" if written else "float network"
    table = facts([("network", f"{path}: {kind}, {json['bytes']:,} bytes")])
    for end in ("inputs", "outputs"):
        for value in json[end]:
            table.add_row(end.removesuffix("s"), f"{value['name']}: {dimensions(value['shape'])} {value['type']}")
    table.add_row("nodes", f"{json['nodes']:,}: {counted(json['ops'])}")
    table.add_row("parameters", f"{json['parameters']:,}")
    table.add_row("MACs", f"{json['macs']:,} an image")
    if written:
        before = short(json["macs"] * FLOAT_BITS**2)
        table.add_row("BOPs", f"{short(json['bops'])} by the widths of its plan ({before} in float)")
    else:
        after = f"{short(json['bops_on_target'])} as W{json['weight_bits']}A8 on the target"
        table.add_row("BOPs", f"{short(json['bops'])} in float, {after}")
    table.add_row("target", json["target"])
    if json["needs"]:
        table.add_row("needs", ", ".join(f"{name} {least}" for name, least in json["needs"].items()))
    table.add_row("integer MACs", percent(json["integer_mac_share"]))
    reasons = dict(Counter(r["reason"] for r in regions if not r["integer"]))
    notes = {reason: f"[{i}]" for i, reason in enumerate(reasons, start=1)}
    rows = [
        (
            r["name"],
            r["kind"],
            dimensions(r["output_shape"] or ()),
            f"{r['parameters']:,}",
            f"{r['macs']:,}",
            _runs(r, notes),
        )
        for r in regions
    ]
    listed = columns(("region", "kind", "output", ">parameters", ">MACs", "runs as"), rows)
    parts: list[RenderableType] = [
        table,
        "",
        listed,
        "",
        "W, A: bits of weights and activations; codes: moved unchanged",
    ]
    if reasons:
        why = ((notes[r], f"{r} ({n} region{'s' if n > 1 else ''})") for r, n in reasons.items())
        parts.extend(("float, because:", facts(why)))
    return Group(*parts)


def _runs(region: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """How a region runs: the widths of its integers, or float and the note that says why."""
    if not region["integer"]:
        return f"float {notes[region['reason']]}"
    if region["how"] != "kernel":
        return "passed on" if region["how"] == "passes" else "codes"
    signs = (("W", "weight_bits"), ("A", "activation_bits"))
    return "".join(f"{sign}{region[key]}" for sign, key in signs if region[key])
