"""Place quantizers: decide for every region whether the target runs it in integers, and for every site its format.

1. A region is integer when the target has a rule for its kind and every check of the rule holds.
2. Regions that only move codes follow their neighbours: they are integer when what they read or give is quantized.
3. Sites joined by moved codes, or by a concat, share one encoding; they get and lose bits together.
4. Biases are int32 at `s_x * s_w`. What is left is float, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir as ir

from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.integer import constant_operands
from bitwright.graph.regions import Region, find_regions
from bitwright.placement.between import without_company
from bitwright.placement.checks import CHECKS
from bitwright.placement.ends import end_sites
from bitwright.placement.overrides import Override, Width, what_would_match
from bitwright.placement.quantized import origins, quantized_values
from bitwright.placement.widths import activation_spec, weight_spec
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, Float, Shared, SiteSpec
from bitwright.targets.target import OpRule, Target

#: How many scales a weight has: one for each output channel, or one for the tensor.
Scales = Literal["channel", "tensor"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """The plan, and for each region whether it runs in integers.

    Attributes:
        plan: what goes into the file.
        integer: regions that run in integers, with the rule that lets them.
        refused: reason of every other region.
    """

    plan: Plan
    integer: Mapping[Region, OpRule] = field(default_factory=dict)
    refused: Mapping[Region, str] = field(default_factory=dict)


def place(
    model: ir.Model, target: Target, *, overrides: Sequence[Override] = (), ends: int | None = 8,
    granularity: Scales = "channel",
) -> Placement:  # fmt: skip
    """Place quantizers on a normalised model.

    Args:
        model: normalised, batch norm folded.
        target: what the hardware can do.
        overrides: in order, later ones win.
        ends: bits of the network's ends; None for the same as everywhere.
        granularity: one scale for each output channel of a weight, or one for the tensor.

    Raises:
        InputError: an override matches nothing, has no effect, or gives different widths to sites that share an
            encoding.
        UnsupportedError: a width that the target lacks, or no quantizable op at all.
    """
    regions = find_regions(model)
    sites = _all_sites(regions)
    matched = [_matches(o, regions, sites) for o in overrides]
    kept, modes = _kept(regions, target, overrides, matched)
    integer, refused = classify(regions, target, kept)
    if not modes and not any(rule.how == "kernel" for rule in integer.values()):
        reasons = "; ".join(f"{r.name}: {reason}" for r, reason in list(refused.items())[:3])
        raise UnsupportedError("model", "has no quantizable op", "a convolution, gemm, add or pool", reasons)
    root = _shared_roots(regions, integer if target.quantizers == "values" else {})
    at_ends = {v for end in end_sites(model, regions) for v in (end, *origins(end, target.passing))}
    widths = _widths(regions, root, overrides, matched, ends, at_ends if ends else set(), target.widest_weight)
    quantized = {v for r, rule in integer.items() for v in quantized_values(r, rule, target)}
    for override, found in zip(overrides, matched, strict=True):
        _check_effect(override, found, integer, quantized, modes)
    specs: dict[str, SiteSpec] = {}
    by_region: dict[str, tuple[str, ...]] = {}
    for region in regions:
        rule = integer.get(region)
        operands = () if rule is None else constant_operands(region)
        for value in (*region.inputs, *operands, region.output):
            specs.setdefault(
                value.name or "", _activation_spec(value, quantized, root, widths, regions, refused, target)
            )
        for constant in (region.weight, region.bias):
            if constant is not None:
                how = target.rule(region.kind) if region in modes and constant is region.weight else rule
                specs[constant.name or ""] = _constant_spec(
                    region, constant, how, refused, widths, target, granularity
                )
        by_region[region.name] = tuple(
            v.name or "" for v in (region.weight, region.bias, *operands, region.output) if v is not None
        )
    reasons_by_name = {region.name: reason for region, reason in refused.items()}
    modes_by_name = {region.name: mode for region, mode in modes.items()}
    plan = Plan(target=target.name, sites=specs, regions=by_region, refused=reasons_by_name, modes=modes_by_name)
    return Placement(plan=plan, integer=integer, refused=refused)


def _kept(
    regions: Sequence[Region], target: Target, overrides: Sequence[Override], matched: Sequence[_Found]
) -> tuple[dict[Region, str], dict[Region, str]]:
    """What overrides take out of the integer regions, and why; and the mode of those whose weights stay quantized."""
    kept: dict[Region, str] = {}
    modes: dict[Region, str] = {}
    for override, found in zip(overrides, matched, strict=True):
        said = f"--set {override.pattern}:" if override.pattern else "--set "
        named = [r for r in regions if r in found.regions or r.output in found.values or r.weight in found.values]
        if override.keep_float:
            kept |= {r: f"kept in float by {said}float" for r in found.regions}
        elif override.mode and target.form != "qdq":
            where = f"{said}A={'dynamic' if override.mode == 'dynamic' else 'float'}"
            raise UnsupportedError(where, f"files for {target.name} have no such layers", "a target of the form qdq")
        elif override.mode == "weights":
            scope = named if override.pattern else regions
            kept |= {r: f"activations are float ({said}A=float)" for r in scope}
            modes |= {r: "weights" for r in scope if _has_weight(r, target)}
        elif override.mode == "dynamic":
            scope = named if override.pattern else regions
            linear = [r for r in scope if r.kind == "Gemm" and _has_weight(r, target)]
            if not linear:
                expected = "a linear layer with constant weights; others need calibrated ranges"
                raise InputError(f"{said}A=dynamic", "names no linear layer", expected)
            kept |= {r: f"activation ranges are found at run time ({said}A=dynamic)" for r in linear}
            modes |= dict.fromkeys(linear, "dynamic")
        elif override.activations is not None:  # a later width takes back what an earlier mode said
            back = [r for r in named if r in modes] if override.pattern else list(modes)
            kept = {r: reason for r, reason in kept.items() if r not in back}
            modes = {r: mode for r, mode in modes.items() if r not in back}
    return kept, {r: mode for r, mode in modes.items() if r in kept}


def _has_weight(region: Region, target: Target) -> bool:
    rule = target.rule(region.kind)
    return rule is not None and region.weight is not None and _first_failure(region, rule) is None


def _check_effect(
    override: Override, found: _Found, integer: Mapping[Region, OpRule], quantized: set[ir.Value],
    modes: Mapping[Region, str],
) -> None:  # fmt: skip
    """Refuse what would be silently ignored."""
    weights = {r.weight for r in (*integer, *modes) if r.weight is not None}
    named = {*(r.weight for r in found.regions), *found.values}
    outputs = {*(r.output for r in found.regions), *found.values}
    missing = ""
    if override.pattern and override.weights and weights.isdisjoint(named):
        missing = "no weight that is quantized"
    elif override.pattern and override.activations and quantized.isdisjoint(outputs):
        missing = "no activation that is quantized"
    elif override.keep_float and not found.regions:
        missing = "no region, nor what one gives"
    if missing:
        raise InputError(f"--set {override.pattern!r}", f"names {missing}", "a glob of what it is to set")


def integer_regions(model: ir.Model, plan: Plan, target: Target) -> dict[Region, OpRule]:
    """The regions that run in integers under a plan: it does not refuse them, and quantizes all that they read."""
    regions = find_regions(model)
    integer, _ = classify(regions, target, {})
    return {
        region: rule for region, rule in integer.items()
        if region.name not in plan.refused
        and all(plan.qspec(v.name or "") is not None for v in quantized_values(region, rule, target))
        and (region.weight is None or plan.qspec(region.weight.name or "") is not None)
    }  # fmt: skip


def classify(
    regions: Sequence[Region], target: Target, kept: Mapping[Region, str]
) -> tuple[dict[Region, OpRule], dict[Region, str]]:
    """Which regions run in integers, and why the others do not."""
    refused: dict[Region, str] = {}
    able: dict[Region, OpRule] = {}
    for region in regions:
        rule = target.rule(region.kind)
        if region in kept:
            refused[region] = kept[region]
        elif rule is None:
            refused[region] = f"{region.kind} has no integer kernel on {target.name}"
        elif (reason := _first_failure(region, rule)) is not None:
            refused[region] = f"{region.kind}: {reason}"
        else:
            able[region] = rule
    alone = without_company(regions, able) if target.quantizers != "producers" else {}
    for region, reason in alone.items():
        refused[region] = f"{region.kind}: {reason}"
        del able[region]
    quantized = {v for r, rule in able.items() if rule.how == "kernel" for v in (*r.inputs, r.output)}
    movers = [r for r, rule in able.items() if rule.how != "kernel"]
    while True:
        joined = [r for r in movers if not quantized.isdisjoint((*r.inputs, r.output))]
        if not joined:
            break
        quantized.update(v for r in joined for v in (*r.inputs, r.output))
        movers = [r for r in movers if r not in joined]
    for region in movers:
        refused[region] = f"{region.kind} stands between float ops"
        del able[region]
    return able, refused


def _first_failure(region: Region, rule: OpRule) -> str | None:
    return next((reason for check in rule.checks if (reason := CHECKS[check](region)) is not None), None)


def _shared_roots(regions: Sequence[Region], integer: Mapping[Region, OpRule]) -> dict[ir.Value, ir.Value]:
    """For each value, the site whose encoding it uses (itself when it has its own)."""
    parent: dict[ir.Value, ir.Value] = {}

    def find(value: ir.Value) -> ir.Value:
        while parent.get(value, value) is not value:
            value = parent[value]
        return value

    for region in regions:
        rule = integer.get(region)
        if rule is None or rule.how == "kernel":
            continue
        # A concat's range is the union of its inputs' ranges, so it speaks for the group; a copy repeats its input.
        speaker = find(region.output) if rule.how == "join" else find(region.inputs[0])
        for value in (*region.inputs, *constant_operands(region), region.output):
            parent[find(value)] = speaker
    operands = [v for r in integer for v in constant_operands(r)]
    return {v: find(v) for v in (*(v for r in regions for v in (*r.inputs, r.output)), *operands)}


@dataclass(frozen=True)
class _Found:
    regions: list[Region]
    values: list[ir.Value]


def _all_sites(regions: Iterable[Region]) -> list[ir.Value]:
    every = [v for r in regions for v in (*r.inputs, r.weight, *constant_operands(r), r.output)]
    return list(dict.fromkeys(v for v in every if v is not None))


def _matches(override: Override, regions: Sequence[Region], sites: Sequence[ir.Value]) -> _Found:
    if not override.pattern:
        return _Found([], [])
    found = [r for r in regions if fnmatchcase(r.name, override.pattern)]
    values = [v for v in sites if fnmatchcase(v.name or "", override.pattern)]
    if not found and not values:
        names, others = [r.name for r in regions], [v.name or "" for v in sites]
        raise InputError(
            f"--set {override.pattern!r}", "matches no region and no site",
            f"a glob of one of {len(names) + len(others)} names", what_would_match(override.pattern, names, others),
        )  # fmt: skip
    if override.keep_float:
        found = found + [r for r in regions if r.output in values or r.weight in values]
    return _Found(found, values)


def _widths(
    regions: Sequence[Region], root: Mapping[ir.Value, ir.Value], overrides: Sequence[Override],
    matched: Sequence[_Found], ends: int | None, at_ends: Set[ir.Value], widest: int,
) -> dict[ir.Value, Width]:  # fmt: skip
    """Width of every weight and of every group of activations (by its root)."""
    weights = [r.weight for r in regions if r.weight is not None]
    bits = dict.fromkeys(root.values(), Width(bits=8)) | dict.fromkeys(weights, Width(bits=widest))
    for override in overrides:
        if override.pattern:
            continue
        for weight in weights:
            if override.weights and weight not in at_ends:
                bits[weight] = override.weights
        for value, speaker in root.items():
            if override.activations and value is speaker:
                bits[value] = override.activations
    for value in at_ends:
        if ends is not None:
            bits[root.get(value, value)] = Width(bits=min(ends, widest) if value in weights else ends)
    said: dict[ir.Value, dict[str, Width]] = {}
    for override, found in zip(overrides, matched, strict=True):
        if override.weights:
            named = [r.weight for r in found.regions if r.weight] + [v for v in found.values if v in weights]
            bits.update(dict.fromkeys(named, override.weights))
        if override.activations:
            for value in [r.output for r in found.regions] + [v for v in found.values if v in root]:
                said.setdefault(root[value], {})[value.name or ""] = override.activations
    for speaker, widths in said.items():
        _check_agreement(widths)
        bits[speaker] = next(iter(widths.values()))
    return bits


def _check_agreement(widths: Mapping[str, Width]) -> None:
    """What was said last of each site of a group; they share one encoding, so it must be the same."""
    (first, bits), *others = widths.items()
    for site, other in others:
        if other != bits:
            raise InputError(
                f"--set ...:A={other}", f"site {site!r} shares its encoding with {first!r}, set to A={bits}",
                "one width for both", "set both to the same width",
            )  # fmt: skip


def _activation_spec(
    value: ir.Value, quantized: set[ir.Value], root: Mapping[ir.Value, ir.Value], widths: Mapping[ir.Value, Width],
    regions: Sequence[Region], refused: Mapping[Region, str], target: Target,
) -> SiteSpec:  # fmt: skip
    if value not in quantized:
        makers = [r for r in regions if r.output is value and r in refused]
        readers = [r for r in regions if value in r.inputs and r in refused]
        if not makers and not readers and target.quantizers == "producers":
            return Float(f"placement {target.placement}: no quantizer, since {_unmultiplied(value, target)}")
        if not makers and not readers:
            return Float(f"no kernel of {target.name} reads it in integers")
        region = (makers or readers)[0]
        return Float(f"{region.name}: {refused[region]}")
    if root[value] is not value:
        return Shared(root[value].name or "")
    return activation_spec(value.name or "", widths[value], target)


def _unmultiplied(value: ir.Value, target: Target) -> str:
    if value.is_graph_input():
        return "it is the network's input"
    passed = value not in origins(value, target.passing)
    return "what it is made of has one" if passed else "no layer with weights reads it"


def _constant_spec(
    region: Region, value: ir.Value, rule: OpRule | None, refused: Mapping[Region, str],
    widths: Mapping[ir.Value, Width], target: Target, granularity: Scales,
) -> SiteSpec:  # fmt: skip
    if rule is None:
        return Float(f"{region.name}: {refused[region]}")
    if value is region.bias:
        return bias_spec(region, target)
    axis = rule.weight_axis
    if region.kind == "Gemm" and not region.op.attributes.get_int("transB", 0):
        axis = 1
    if granularity == "tensor":
        axis = None
    return weight_spec(value.name or "", widths[value], target, axis)


def bias_spec(region: Region, target: Target) -> SiteSpec:
    """The format of the bias of an integer region."""
    assert region.weight is not None
    if target.bias_bits is None:
        return Float(f"{region.name}: {target.name} adds biases in float")
    return Derived(region.inputs[0].name or "", region.weight.name or "")
