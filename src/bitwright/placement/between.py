"""Which regions are worth their integer kernel only in company, and which of them have it.

A value *comes as codes* where an integer region gives it, or where it is quantized anyway because a kernel that always
runs in integers reads it, directly or through ops that move codes. A value is *wanted as codes* where a region that
computes in integers reads it so. Of the regions that ask for company, those are taken out, again and again, whose
operands do not all come as codes, or, if they stand between, whose output nobody wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from bitwright.execute.integer import constant_operands
from bitwright.graph.regions import Region
from bitwright.targets.target import OpRule, When

FED = "what it reads comes from float ops"
WANTED = "no integer op reads what it gives"


def company(region: Region, rule: OpRule) -> When:
    """When a region is worth its kernel; one with a constant operand replaces a float op that costs little."""
    return "between" if rule.how == "kernel" and constant_operands(region) else rule.when


def without_company(regions: Sequence[Region], able: Mapping[Region, OpRule]) -> dict[Region, str]:
    """The regions to leave in float although their target could run them, each with the reason.

    Args:
        regions: all regions, in execution order.
        able: those that the target could run in integers.
    """
    when = {r: company(r, rule) for r, rule in able.items() if rule.how == "kernel"}
    order = [r for r in regions if r in able]
    # Quantized for the sake of kernels that always run, through what moves codes.
    anyway: set[ir.Value] = set()
    for region in reversed(order):
        if when.get(region) == "always" or (region not in when and region.output in anyway):
            anyway.update(region.inputs)
    out: dict[Region, str] = {}
    while True:
        found = _unfed(order, when, out, anyway) | _unwanted(order, when, out)
        if not found:
            return out
        out |= found


def _unfed(
    order: Sequence[Region], when: Mapping[Region, When], out: Mapping[Region, str], anyway: set[ir.Value]
) -> dict[Region, str]:  # fmt: skip
    """Regions whose operands do not all come as codes."""
    coded = set(anyway)
    found = {}
    for region in order:
        if region in out:
            continue
        if region not in when:  # moves codes, if it is given any
            if not coded.isdisjoint(region.inputs):
                coded.add(region.output)
            continue
        floats = [v for v in region.inputs if v not in coded]
        if when[region] == "fed":  # a network may begin with it
            floats = [v for v in floats if not v.is_graph_input()]
        if when[region] != "always" and floats:
            found[region] = FED
        else:
            coded.add(region.output)
    return found


def _unwanted(order: Sequence[Region], when: Mapping[Region, When], out: Mapping[Region, str]) -> dict[Region, str]:
    """Regions between, whose output no integer region reads."""
    wanted: set[ir.Value] = set()
    found = {}
    for region in reversed(order):
        if region in out:
            continue
        if when.get(region) == "between" and region.output not in wanted:
            found[region] = WANTED
        elif region in when or region.output in wanted:
            wanted.update(region.inputs)
    return found
