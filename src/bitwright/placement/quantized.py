"""Which values of an integer region carry a quantizer.

Where a target has quantizers at values, every value that the region reads or gives. Where it has them at inputs, only
what kernels read: the runtime fuses what follows, and carries codes across what only moves them. Where it has them at
producers, what layers with weights read, directly or through ops that pass it on, is quantized where it is made.
"""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from bitwright.execute.integer import constant_operands
from bitwright.graph.macs import WEIGHTED_OPS
from bitwright.graph.regions import Region, only_consumer
from bitwright.plan.plan import Plan
from bitwright.targets.target import OpRule, Target


def fused_operand(region: Region) -> ir.Value | None:
    """The operand that comes straight from a weighted op and that nothing else reads; the first, if both do.

    Source: TensorRT, Working with Quantized Types, Q/DQ Layer-Placement Recommendations: quantize the residual input
    in skip connections, and do not quantize the outputs of weighted operations.

    Example:
        >>> x, w = ir.Value(name="x"), ir.Value(name="w")
        >>> conv = ir.Node("", "Conv", [x, w])
        >>> add = ir.Node("", "Add", [x, conv.outputs[0]])
        >>> region = Region(name="add", nodes=(add,), inputs=(x, conv.outputs[0]), weight=None, bias=None,
        ...                 output=add.outputs[0], bounds=None, macs=0)
        >>> graph = ir.Graph([x, w], add.outputs, nodes=[conv, add])
        >>> fused_operand(region) is conv.outputs[0]
        True
    """
    for value in region.op.inputs:
        producer = None if value is None else value.producer()
        if value is not None and producer is not None and producer.op_type in WEIGHTED_OPS:
            if only_consumer(value) is region.op:
                return value
    return None


def quantized_values(region: Region, rule: OpRule, target: Target) -> tuple[ir.Value, ...]:
    """The activations of an integer region, and the constants among its operands, that are quantized on a target."""
    if target.quantizers == "values":
        return (*region.inputs, *constant_operands(region), region.output)
    if rule.how != "kernel":
        return ()
    if target.quantizers == "producers":
        return (region.output,) if is_multiplied(region.output, target.passing) else ()
    fused = fused_operand(region) if rule.fuses else None
    return tuple(value for value in region.inputs if value is not fused)


def is_multiplied(value: ir.Value, passing: Set[str]) -> bool:
    """Whether an op that multiplies by weights reads a value, directly or through ops of the kinds in `passing`.

    Example:
        >>> x, w = ir.Value(name="x"), ir.Value(name="w")
        >>> pool = ir.Node("", "MaxPool", [x])
        >>> conv = ir.Node("", "Conv", [pool.outputs[0], w])
        >>> is_multiplied(x, {"MaxPool"}), is_multiplied(x, set()), is_multiplied(conv.outputs[0], {"MaxPool"})
        (True, False, False)
    """
    waiting, seen = [value], {value}
    while waiting:
        for node in (use.node for use in waiting.pop().uses()):
            if node.op_type in WEIGHTED_OPS:
                return True
            if node.op_type in passing:
                waiting.extend(v for v in node.outputs if v not in seen)
                seen.update(node.outputs)
    return False


def origins(value: ir.Value, passing: Set[str]) -> set[ir.Value]:
    """Where a value is made, if ops of the kinds in `passing` only pass it on: itself, or what they read.

    Example:
        >>> x = ir.Value(name="x")
        >>> origins(ir.Node("", "MaxPool", [x]).outputs[0], {"MaxPool"}) == {x}
        True
    """
    found: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        node = one.producer()
        if node is not None and node.op_type in passing:
            waiting.extend(v for v in node.inputs if v is not None and not v.is_initializer())
        else:
            found.add(one)
    return found


def reads_quantized(region: Region, plan: Plan, target: Target) -> bool:
    """Whether all activations that an integer region reads are quantized, there or where they are made."""
    if target.quantizers != "producers":
        return True
    made = {v for value in region.inputs for v in origins(value, target.passing)}
    return all(plan.qspec(v.name or "") is not None for v in made)
