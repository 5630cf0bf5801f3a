"""Which values of an integer region carry a quantizer.

Where a target has quantizers at values, every value that the region reads or gives. Where it has them at inputs, only
what kernels read: the runtime fuses what follows, and carries codes across what only moves them.
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.execute.integer import constant_operands
from bitwright.graph.macs import WEIGHTED_OPS
from bitwright.graph.regions import Region, only_consumer
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
    fused = fused_operand(region) if rule.fuses else None
    return tuple(value for value in region.inputs if value is not fused)
